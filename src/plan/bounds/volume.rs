//! How many elements a union of boxes has.

use crate::layout::tensor::IndexBox;

/// Elements that are in some box of `wanted` and in none of `less`.
pub fn volume(wanted: &[&IndexBox], less: &[&IndexBox]) -> u64 {
    let mut wanted = wanted.to_vec();
    wanted.sort_unstable();
    wanted.dedup();
    let mut less: Vec<&IndexBox> = less
        .iter()
        .copied()
        .filter(|b| wanted.iter().any(|w| w.overlaps(b)))
        .collect();
    less.sort_unstable();
    less.dedup();
    // Cut and replicated tensors: every wanted box is held whole or not.
    wanted.retain(|w| !less.iter().any(|b| b.contains(w)));
    less.retain(|b| wanted.iter().any(|w| w.overlaps(b)));
    if less.is_empty() && are_disjoint(&wanted) {
        return wanted.iter().map(|b| b.elements()).sum();
    }
    on_grid(&wanted, &less)
}

/// `boxes` is sorted.
fn are_disjoint(boxes: &[&IndexBox]) -> bool {
    boxes.iter().enumerate().all(|(i, a)| {
        boxes[i + 1..]
            .iter()
            .take_while(|b| a.0.first().is_none_or(|s| b.0[0].lo < s.hi))
            .all(|b| !a.overlaps(b))
    })
}

/// Counts cell by cell, axis by axis: boxes that span a slab of the first axis
/// are counted on the rest.
fn on_grid(wanted: &[&IndexBox], less: &[&IndexBox]) -> u64 {
    let Some(dims) = wanted.first().map(|b| b.0.len()) else {
        return 0;
    };
    slab(wanted, less, 0, dims)
}

fn slab(wanted: &[&IndexBox], less: &[&IndexBox], dim: usize, dims: usize) -> u64 {
    if wanted.is_empty() {
        return 0;
    }
    if dim == dims {
        return u64::from(less.is_empty());
    }
    let both = wanted.iter().chain(less);
    let mut cuts: Vec<u64> = both.flat_map(|b| [b.0[dim].lo, b.0[dim].hi]).collect();
    cuts.sort_unstable();
    cuts.dedup();
    let mut sum = 0;
    for w in cuts.windows(2) {
        let spans = |b: &&&IndexBox| b.0[dim].lo <= w[0] && w[1] <= b.0[dim].hi;
        let inside: Vec<&IndexBox> = wanted.iter().filter(spans).copied().collect();
        let taken: Vec<&IndexBox> = less.iter().filter(spans).copied().collect();
        sum += (w[1] - w[0]) * slab(&inside, &taken, dim + 1, dims);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::tensor::Span;
    use proptest::prelude::*;

    fn boxes() -> impl Strategy<Value = Vec<IndexBox>> {
        let span = (0u64..6, 1u64..4).prop_map(|(lo, n)| Span::new(lo, lo + n));
        let one = (span.clone(), span).prop_map(|(a, b)| IndexBox([a, b].into_iter().collect()));
        proptest::collection::vec(one, 0..5)
    }

    proptest! {
        #[test]
        fn counts_like_counting_one_by_one(wanted in boxes(), less in boxes()) {
            let is_in = |all: &[IndexBox], x: u64, y: u64| {
                all.iter().any(|b| b.0[0].lo <= x && x < b.0[0].hi && b.0[1].lo <= y && y < b.0[1].hi)
            };
            let mut count = 0;
            for x in 0..10 {
                for y in 0..10 {
                    count += u64::from(is_in(&wanted, x, y) && !is_in(&less, x, y));
                }
            }
            let (a, b): (Vec<&IndexBox>, Vec<&IndexBox>) = (wanted.iter().collect(), less.iter().collect());
            prop_assert_eq!(volume(&a, &b), count);
        }
    }
}
