//! Ranges of a box in canonical order, and how they lie in memory.
//!
//! A byte range of an item (a box in row-major order) is at most `2n - 1`
//! boxes: a tail of a row, whole rows, a head of a row, per axis:
//!
//! ```text
//!        ┌─────────────┐
//!        │      ███████│  head
//!        │█████████████│  body
//!        │█████████████│
//!        │████         │  tail
//!        └─────────────┘
//! ```

use crate::layout::tensor::{IndexBox, Span};
use crate::plan::program::Loop;
use smallvec::SmallVec;

/// Calls `f` with the boxes, in order, that make up elements `[from, to)` of
/// `bounds` in row-major order.
pub fn flat_boxes(bounds: &IndexBox, from: u64, to: u64, f: &mut impl FnMut(&IndexBox)) {
    if from >= to {
        return;
    }
    if from == 0 && to == bounds.elements() {
        f(bounds);
        return;
    }
    let mut scratch = bounds.clone();
    flat_from(bounds, 0, from, to, &mut scratch, f);
}

fn flat_from(
    bounds: &IndexBox,
    dim: usize,
    from: u64,
    to: u64,
    scratch: &mut IndexBox,
    f: &mut impl FnMut(&IndexBox),
) {
    let span = bounds.0[dim];
    let row: u64 = bounds.0[dim + 1..].iter().map(|s| s.len()).product();
    let whole = |scratch: &mut IndexBox, lo: u64, hi: u64, f: &mut dyn FnMut(&IndexBox)| {
        if lo < hi {
            scratch.0[dim] = Span::new(span.lo + lo, span.lo + hi);
            scratch.0[dim + 1..].copy_from_slice(&bounds.0[dim + 1..]);
            f(scratch);
        }
    };
    let (first, last) = (from / row, to / row);
    let (head, tail) = (from % row, to % row);
    if head == 0 && tail == 0 {
        return whole(scratch, first, last, f);
    }
    if first == last {
        scratch.0[dim] = Span::new(span.lo + first, span.lo + first + 1);
        return flat_from(bounds, dim + 1, head, tail, scratch, f);
    }
    let mut body = first;
    if head > 0 {
        scratch.0[dim] = Span::new(span.lo + first, span.lo + first + 1);
        flat_from(bounds, dim + 1, head, row, scratch, f);
        body += 1;
    }
    whole(scratch, body, last, f);
    if tail > 0 {
        scratch.0[dim] = Span::new(span.lo + last, span.lo + last + 1);
        flat_from(bounds, dim + 1, 0, tail, scratch, f);
    }
}

/// The first axis from which on `bounds` is one contiguous run in memory with
/// these strides. Equals the number of axes if not even neighbours touch.
pub fn contiguous_from(bounds: &IndexBox, strides: &[i64], element: u64) -> usize {
    let mut step = element as i64;
    let mut first = bounds.0.len();
    for (d, s) in bounds.0.iter().enumerate().rev() {
        if s.len() != 1 {
            if strides[d] != step {
                return first;
            }
            step *= s.len() as i64;
        }
        first = d;
    }
    first
}

/// Elements of `bounds` from axis `first` on.
pub fn elements_from(bounds: &IndexBox, first: usize) -> u64 {
    bounds.0[first..].iter().map(|s| s.len()).product()
}

/// The loops (outermost first) and the run of a strided box, neighbouring
/// loops merged where they are one.
pub fn loops_of(
    bounds: &IndexBox,
    strides: &[i64],
    element: u64,
    out: &mut SmallVec<[Loop; 8]>,
) -> u64 {
    out.clear();
    let first = contiguous_from(bounds, strides, element);
    for (s, &stride) in bounds.0[..first].iter().zip(strides) {
        let count = s.len();
        if count == 1 {
            continue;
        }
        match out.last_mut() {
            // The outer loop steps over exactly one round of this one.
            Some(outer) if outer.stride == stride * count as i64 => {
                *outer = Loop {
                    count: outer.count * count,
                    stride,
                };
            }
            _ => out.push(Loop { count, stride }),
        }
    }
    elements_from(bounds, first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn flat_ranges_are_few_boxes_in_order(
            shape in prop::collection::vec(1u64..6, 1..5), a in 0u64..1000, b in 0u64..1000,
        ) {
            let bounds = IndexBox(shape.iter().map(|&n| Span::new(3, 3 + n)).collect());
            let n = bounds.elements();
            let (from, to) = (a.min(b) % (n + 1), a.max(b) % (n + 1));
            let (from, to) = (from.min(to), from.max(to));
            let mut got = Vec::new();
            let mut boxes = 0;
            flat_boxes(&bounds, from, to, &mut |x: &IndexBox| {
                boxes += 1;
                each(x, &mut |i: &[u64]| got.push(flat(&bounds, i)));
            });
            prop_assert_eq!(got, (from..to).collect::<Vec<_>>());
            prop_assert!(boxes < 2 * shape.len());
        }
    }

    fn each(b: &IndexBox, f: &mut impl FnMut(&[u64])) {
        let n = b.elements();
        for k in 0..n {
            let mut rest = k;
            let mut i = vec![0; b.0.len()];
            for d in (0..b.0.len()).rev() {
                i[d] = b.0[d].lo + rest % b.0[d].len();
                rest /= b.0[d].len();
            }
            f(&i);
        }
    }

    fn flat(b: &IndexBox, i: &[u64]) -> u64 {
        i.iter()
            .zip(&b.0)
            .fold(0, |a, (x, s)| a * s.len() + x - s.lo)
    }

    #[test]
    fn rows_that_touch_merge_into_one_run() {
        let b = IndexBox([Span::new(0, 4), Span::new(2, 6)].into_iter().collect());
        let mut loops = SmallVec::new();
        assert_eq!(loops_of(&b, &[8, 2], 2, &mut loops), 16);
        assert!(loops.is_empty());
        assert_eq!(loops_of(&b, &[20, 2], 2, &mut loops), 4);
        assert_eq!(
            loops.as_slice(),
            [Loop {
                count: 4,
                stride: 20
            }]
        );
    }
}
