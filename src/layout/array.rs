//! Arrays: memory as its owner sees it, held against the views of a plan.
//!
//! A plan knows memory by views; whoever binds a buffer knows it as an array
//! with an element type, a shape and strides. Both describe the same bytes, or
//! the transfer would read or write the wrong ones:
//!
//! ```text
//!   plan   "w" [4, 6] of f32, strides [24, 4]
//!   array      [4, 6] of f32, strides [48, 8]     every other column: refused
//!   array      [24]   of f32, strides [4]         the same bytes in one row
//!   array      [8, 6] of f32, strides [24, 4]     with rows that nobody asked for
//! ```
//!
//! An array holds a view if each element of the view is one of the array's. An
//! array that is not row-major, such as a transposed one, has its axes in the
//! view's order too: its owner cannot mean the bytes as they lie.
//!
//! Unsigned integers as wide as the elements stand for their bits, as bf16 is
//! kept where nothing knows it; bytes stand for any type.

use super::dtype::Dtype;
use super::tensor::{Dims, IndexBox};
use super::view::{Strides, View};
use crate::error::{Error, Result};
use crate::limits::DIM_COUNT_MAX;
use smallvec::SmallVec;

/// What an owner tells of its memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Array {
    dtype: Dtype,
    shape: Dims,
    strides: Strides,
}

impl Array {
    /// An array of this shape, with that many bytes between neighbours along
    /// each axis. Without axes nothing but the element type is told.
    pub fn new(dtype: Dtype, shape: &[u64], strides: &[i64]) -> Result<Array> {
        if shape.len() > DIM_COUNT_MAX {
            return Err(Error::limit(format!(
                "an array has {} axes; at most {DIM_COUNT_MAX} are allowed",
                shape.len()
            )));
        }
        if shape.len() != strides.len() {
            return Err(Error::invalid(format!(
                "an array has {} axes and {} strides",
                shape.len(),
                strides.len()
            )));
        }
        Ok(Array {
            dtype,
            shape: shape.into(),
            strides: strides.into(),
        })
    }

    /// An array without gaps, the last axis innermost.
    pub fn packed(dtype: Dtype, shape: &[u64]) -> Result<Array> {
        let strides = IndexBox::whole(shape).contiguous_strides(dtype.bytes());
        let strides = strides.ok_or_else(|| {
            Error::limit(format!("an array of {shape:?} {dtype} exceeds 2^63 bytes"))
        })?;
        Array::new(dtype, shape, &strides)
    }

    /// Bytes from the lowest to one past the highest; `None` if nothing is
    /// told of the axes.
    pub fn bytes(&self) -> Option<u128> {
        if self.shape.is_empty() {
            return None;
        }
        if self.shape.contains(&0) {
            return Some(0);
        }
        let axes = self.shape.iter().zip(&self.strides);
        let reach = axes.map(|(&n, s)| u128::from(n - 1) * u128::from(s.unsigned_abs()));
        Some(reach.fold(u128::from(self.dtype.bytes()), u128::saturating_add))
    }

    /// True if every element of `view` is one of this array, whose lowest byte
    /// is the first of the view's buffer.
    pub fn holds<B>(&self, view: &View<B>) -> bool {
        if view.bounds.is_empty() {
            return true;
        }
        if !self.keeps(view.dtype) {
            return false;
        }
        if self.shape.is_empty() {
            return true;
        }
        if self.shape.contains(&0) {
            return false;
        }
        let wanted = axes(view.bounds.spans().iter().map(|s| s.len()), &view.strides);
        let held = axes(self.shape.iter().copied(), &self.strides);
        // As many axes as the view has are meant to be the view's.
        let has_elements = self.dtype.bytes() == view.dtype.bytes();
        let is_alike = has_elements && held.len() > 1 && held.len() == wanted.len();
        // Neither walk may land inside an element of the array.
        let held = match is_alike {
            true => held,
            false => merged(held),
        };
        reaches(
            &with_bytes(held, self.dtype),
            &with_bytes(wanted, view.dtype),
            view.offset,
        )
    }
}

impl Array {
    /// True if elements of `dtype` may lie in this array.
    fn keeps(&self, dtype: Dtype) -> bool {
        let is_bits = self.dtype.is_unsigned() && self.dtype.bytes() == dtype.bytes();
        self.dtype == dtype || self.dtype == Dtype::U8 || is_bits
    }
}

impl std::fmt::Display for Array {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.dtype)?;
        if self.shape.is_empty() {
            return Ok(());
        }
        write!(f, " {:?} with strides {:?}", self.shape, self.strides)
    }
}

/// An axis with more than one index.
#[derive(Clone, Copy, Debug)]
struct Axis {
    count: u64,
    /// Bytes between neighbours, not 0.
    stride: i128,
}

type Axes = SmallVec<[Axis; DIM_COUNT_MAX + 1]>;

/// The axes along which elements differ, the outermost first.
fn axes(counts: impl Iterator<Item = u64>, strides: &[i64]) -> Axes {
    counts
        .zip(strides)
        .map(|(count, &stride)| Axis {
            count,
            stride: i128::from(stride),
        })
        .filter(|a| a.count > 1 && a.stride != 0)
        .collect()
}

/// The bytes of an element as the innermost axis.
fn with_bytes(mut axes: Axes, dtype: Dtype) -> Axes {
    if dtype.bytes() > 1 {
        axes.push(Axis {
            count: dtype.bytes(),
            stride: 1,
        });
    }
    axes
}

/// Neighbouring axes without a gap between them, as one.
fn merged(axes: Axes) -> Axes {
    let mut out = Axes::new();
    for inner in axes.into_iter() {
        match out.last_mut() {
            Some(outer) if follows(*outer, inner) => {
                outer.count = outer.count.saturating_mul(inner.count);
                outer.stride = inner.stride;
            }
            _ => out.push(inner),
        }
    }
    out
}

fn follows(outer: Axis, inner: Axis) -> bool {
    outer.stride == inner.stride.saturating_mul(i128::from(inner.count))
}

/// True if walking `wanted` from `offset`, in bytes from the lowest of `held`,
/// never leaves what `held` walks over.
fn reaches(held: &[Axis], wanted: &[Axis], offset: u64) -> bool {
    let Some(first) = indices(held, offset) else {
        return false;
    };
    let is_row_major = held
        .windows(2)
        .all(|a| a[0].stride.unsigned_abs() > a[1].stride.unsigned_abs());
    let (mut low, mut high) = (first.clone(), first);
    let mut last = 0;
    for axis in wanted {
        let Some(at) = axis_along(held, axis.stride) else {
            return false;
        };
        if at < last && !is_row_major {
            return false;
        }
        last = at;
        let steps = axis.stride / held[at].stride;
        let reach = steps.saturating_mul(i128::from(axis.count - 1));
        match reach < 0 {
            true => low[at] = low[at].saturating_add(reach),
            false => high[at] = high[at].saturating_add(reach),
        }
    }
    let ends = low.iter().zip(&high).zip(held);
    ends.into_iter()
        .all(|((&low, &high), axis)| 0 <= low && high < i128::from(axis.count))
}

/// The indices of the byte at `offset`, if there is one in `axes`.
fn indices(axes: &[Axis], offset: u64) -> Option<SmallVec<[i128; DIM_COUNT_MAX + 1]>> {
    let mut order: SmallVec<[usize; DIM_COUNT_MAX + 1]> = (0..axes.len()).collect();
    order.sort_unstable_by_key(|&i| (std::cmp::Reverse(axes[i].stride.unsigned_abs()), i));
    let mut found: SmallVec<_> = axes.iter().map(|_| 0).collect();
    let mut rest = i128::from(offset);
    for at in order {
        let Axis { count, stride } = axes[at];
        let last = i128::from(count) - 1;
        let steps = (rest / stride.abs()).min(last);
        rest -= steps * stride.abs();
        found[at] = if stride > 0 { steps } else { last - steps };
    }
    (rest == 0).then_some(found)
}

/// The axis with the widest step of which `stride` is a multiple. An axis that
/// runs backwards is only followed backwards: its owner counts from its end.
fn axis_along(axes: &[Axis], stride: i128) -> Option<usize> {
    axes.iter()
        .enumerate()
        .filter(|(_, a)| stride % a.stride == 0 && (a.stride > 0 || stride < 0))
        .max_by_key(|(_, a)| a.stride.unsigned_abs())
        .map(|(at, _)| at)
}
