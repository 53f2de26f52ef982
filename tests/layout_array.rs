//! Arrays hold the views that lie in them, and no others.
//!
//! The reference walks every element and looks up its bytes.

use proptest::prelude::*;
use std::collections::BTreeSet;
use weightsync::Status;
use weightsync::layout::array::Array;
use weightsync::layout::dtype::Dtype;
use weightsync::layout::tensor::{IndexBox, TensorIndex};
use weightsync::layout::view::View;

fn view(dtype: Dtype, shape: &[u64], strides: &[i64], offset: u64) -> View {
    View {
        tensor: TensorIndex(0),
        bounds: IndexBox::whole(shape),
        buffer: 0,
        offset,
        strides: strides.into(),
        dtype,
        conversion: None,
    }
}

fn array(dtype: Dtype, shape: &[u64], strides: &[i64]) -> Array {
    Array::new(dtype, shape, strides).unwrap()
}

/// The matrix of 4 rows of 6 that most plans below want.
fn matrix() -> View {
    view(Dtype::F32, &[4, 6], &[24, 4], 0)
}

#[test]
fn what_lies_as_planned_is_held() {
    let f32 = |shape: &[u64], strides: &[i64]| array(Dtype::F32, shape, strides);
    for held in [
        f32(&[4, 6], &[24, 4]),
        f32(&[4, 1, 6], &[24, 7, 4]),
        // The same bytes in one row, or with rows that nobody asked for.
        f32(&[24], &[4]),
        f32(&[2, 2, 6], &[48, 24, 4]),
        f32(&[9, 6], &[24, 4]),
        // Their bits; bytes, in any shape without gaps; the type alone.
        array(Dtype::new(1, 32, 1).unwrap(), &[4, 6], &[24, 4]),
        array(Dtype::U8, &[96], &[1]),
        array(Dtype::U8, &[4, 24], &[24, 1]),
        array(Dtype::F32, &[], &[]),
    ] {
        assert!(held.holds(&matrix()), "{held}");
    }
    // Padded rows, where the plan knows of the padding.
    let padded = view(Dtype::F32, &[4, 6], &[48, 4], 0);
    assert!(f32(&[4, 6], &[48, 4]).holds(&padded));
    assert!(f32(&[4, 12], &[48, 4]).holds(&padded));
    assert!(array(Dtype::U8, &[4, 24], &[48, 1]).holds(&padded));
    // Storage that the plan sees transposed, and an array that is so itself.
    let transposed = view(Dtype::F32, &[6, 4], &[4, 24], 0);
    assert!(f32(&[4, 6], &[24, 4]).holds(&transposed));
    assert!(f32(&[6, 4], &[4, 24]).holds(&transposed));
    // Two tensors of one buffer, in rows that alternate.
    let second = view(Dtype::F32, &[2, 6], &[48, 4], 24);
    assert!(f32(&[4, 6], &[24, 4]).holds(&second));
    // A plan that reads backwards, of an array that runs backwards or not.
    let backwards = view(Dtype::F32, &[4, 6], &[-24, 4], 72);
    assert!(f32(&[4, 6], &[-24, 4]).holds(&backwards));
    assert!(f32(&[4, 6], &[24, 4]).holds(&backwards));
    let nothing = view(Dtype::F32, &[0, 6], &[24, 4], 0);
    assert!(f32(&[0, 6], &[24, 4]).holds(&nothing));
}

#[test]
fn what_lies_otherwise_is_not() {
    let f32 = |shape: &[u64], strides: &[i64]| array(Dtype::F32, shape, strides);
    for other in [
        // Every other column of twelve; a transposed array; one of other sides.
        f32(&[4, 6], &[48, 8]),
        f32(&[4, 6], &[4, 16]),
        f32(&[6, 4], &[16, 4]),
        f32(&[2, 12], &[48, 4]),
        // Padding that the plan does not know of.
        f32(&[4, 6], &[32, 4]),
        array(Dtype::U8, &[4, 24], &[32, 1]),
        // Backwards, repeated, too short.
        f32(&[24], &[-4]),
        f32(&[4, 6], &[-24, 4]),
        f32(&[4, 6], &[0, 4]),
        f32(&[3, 6], &[24, 4]),
        f32(&[23], &[4]),
        f32(&[0, 6], &[24, 4]),
        // Other element types.
        array(Dtype::I64, &[4, 3], &[24, 8]),
        array(Dtype::BF16, &[4, 12], &[24, 2]),
        array(Dtype::new(0, 32, 1).unwrap(), &[4, 6], &[24, 4]),
        array(Dtype::new(1, 16, 1).unwrap(), &[4, 12], &[24, 2]),
        array(Dtype::new(1, 32, 1).unwrap(), &[4, 6], &[48, 8]),
        array(Dtype::I64, &[], &[]),
    ] {
        assert!(!other.holds(&matrix()), "{other}");
    }
    let square = view(Dtype::F32, &[4, 4], &[16, 4], 0);
    assert!(!f32(&[4, 4], &[4, 16]).holds(&square));
    assert!(!f32(&[4, 4], &[16, 4]).holds(&view(Dtype::F32, &[4, 4], &[16, 4], 2)));
    assert!(!f32(&[4, 4], &[16, 4]).holds(&view(Dtype::F32, &[4, 4], &[16, 4], 4)));
}

#[test]
fn numbers_that_overflow_are_answers() {
    let wild = array(Dtype::F32, &[u64::MAX; 8], &[i64::MIN; 8]);
    assert_eq!(wild.bytes(), Some(u128::MAX));
    assert!(!wild.holds(&matrix()));
    let tight = array(Dtype::F32, &[u64::MAX; 8], &[-1; 8]);
    assert!(!tight.holds(&view(Dtype::F32, &[2, 2], &[i64::MIN, i64::MAX], u64::MAX)));
    let e = Array::packed(Dtype::F32, &[u64::MAX, 2]).unwrap_err();
    assert_eq!(e.status, Status::LimitExceeded);
    let e = Array::new(Dtype::F32, &[1; 9], &[4; 9]).unwrap_err();
    assert_eq!(e.status, Status::LimitExceeded);
    let e = Array::new(Dtype::F32, &[1; 2], &[4; 3]).unwrap_err();
    assert_eq!(e.status, Status::InvalidArgument);
    assert_eq!(array(Dtype::F32, &[4, 6], &[-48, 8]).bytes(), Some(188));
    assert_eq!(array(Dtype::F32, &[4, 0], &[-48, 8]).bytes(), Some(0));
    assert_eq!(array(Dtype::F32, &[], &[]).bytes(), None);
}

/// Offsets of all elements, from the lowest byte, in row-major order.
fn offsets(shape: &[u64], strides: &[i64], first: i64) -> Vec<i64> {
    let axes = shape.iter().zip(strides);
    axes.fold(vec![first], |all, (&n, &stride)| {
        let steps = move |at: i64| (0..n as i64).map(move |i| at + i * stride);
        all.into_iter().flat_map(steps).collect()
    })
}

/// Where the element with all indices 0 lies, from the lowest byte.
fn origin(shape: &[u64], strides: &[i64]) -> i64 {
    let axes = shape.iter().zip(strides);
    axes.map(|(&n, &s)| (n as i64 - 1) * (-s).max(0)).sum()
}

/// Shape and strides of what slicing makes of an array without gaps: per axis
/// its number of indices, the step, and whether it runs backwards; then axes
/// are swapped.
fn sliced(axes: &[(u64, u64, bool)], swap: bool) -> (Vec<u64>, Vec<i64>) {
    let mut shape: Vec<u64> = axes.iter().map(|a| a.0).collect();
    let mut strides = vec![0; axes.len()];
    let mut step = 4i64;
    for (stride, &(n, every, is_backwards)) in strides.iter_mut().zip(axes).rev() {
        let sign = if is_backwards { -1 } else { 1 };
        *stride = sign * step * every as i64;
        step *= (n * every) as i64;
    }
    if swap {
        shape.reverse();
        strides.reverse();
    }
    (shape, strides)
}

fn axes() -> impl Strategy<Value = Vec<(u64, u64, bool)>> {
    prop::collection::vec((1..4u64, 1..3u64, any::<bool>()), 1..4)
}

proptest! {
    /// Nothing is written outside the array, whatever is held.
    #[test]
    fn held_elements_are_elements_of_the_array(
        a in axes(), b in axes(), swap_a: bool, swap_b: bool, skip in 0..20i64,
    ) {
        let (shape, strides) = sliced(&a, swap_a);
        let held = array(Dtype::F32, &shape, &strides);
        let (want, want_strides) = sliced(&b, swap_b);
        let first = origin(&want, &want_strides) + skip;
        let planned = view(Dtype::F32, &want, &want_strides, first as u64);
        if held.holds(&planned) {
            let there: BTreeSet<i64> =
                offsets(&shape, &strides, origin(&shape, &strides)).into_iter().collect();
            for at in offsets(&want, &want_strides, first) {
                prop_assert!(there.contains(&at), "{held} does not have {planned:?}");
            }
        }
    }

    /// An array holds what it is, and every box of it.
    #[test]
    fn boxes_of_an_array_are_held(
        a in axes(), swap: bool, cut in prop::collection::vec((0..4u64, 1..4u64), 3),
    ) {
        let (shape, strides) = sliced(&a, swap);
        let held = array(Dtype::F32, &shape, &strides);
        let mut want = Vec::new();
        let mut first = origin(&shape, &strides);
        for ((&n, &stride), (lo, len)) in shape.iter().zip(&strides).zip(cut) {
            let lo = lo.min(n - 1);
            first += lo as i64 * stride;
            want.push(len.min(n - lo));
        }
        prop_assert!(held.holds(&view(Dtype::F32, &want, &strides, first as u64)));
    }

    /// Without gaps, an array of one row is as good as its bytes.
    #[test]
    fn rows_hold_whatever_fits(b in axes(), swap: bool, count in 1..80u64) {
        let (want, strides) = sliced(&b, swap);
        let first = origin(&want, &strides);
        let planned = view(Dtype::F32, &want, &strides, first as u64);
        let ends = offsets(&want, &strides, first).into_iter().max().unwrap() / 4;
        let row = Array::packed(Dtype::F32, &[count]).unwrap();
        let bytes = Array::packed(Dtype::U8, &[4 * count]).unwrap();
        prop_assert_eq!(row.holds(&planned), ends < count as i64);
        prop_assert_eq!(bytes.holds(&planned), ends < count as i64);
    }
}
