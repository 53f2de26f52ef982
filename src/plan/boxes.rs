//! The boxes of one tensor that ranks describe view by view, and which of them
//! are near a place.
//!
//! There may be as many boxes as ranks, and each rank must find those that
//! concern it without looking at all. So they are also kept in order of their
//! start along one axis, with how far those up to each one reach:
//!
//! ```text
//!   axis 0    [0,2)  [2,4)  [3,7)  [4,6)  [8,9)
//!   reach       2      4      7      7      9       near [5,6): from the first
//!                             └──────┘              that reaches past 5 to the
//!                                                   last that starts before 6
//! ```

use crate::layout::dtype::Dtype;
use crate::layout::tensor::{IndexBox, Span};
use crate::rank::Rank;
use std::ops::Deref;

/// Ranks that hold (or need) exactly this box, described view by view, and
/// store it alike.
#[derive(Clone, Debug)]
pub struct ExplicitBox {
    pub bounds: IndexBox,
    pub dtype: Dtype,
    /// Ascending; the second number is the index of the view of that rank.
    pub ranks: Vec<(Rank, u32)>,
}

/// The explicit boxes of one tensor on one side, sorted by box.
#[derive(Clone, Debug, Default)]
pub struct ExplicitBoxes {
    list: Vec<ExplicitBox>,
    /// The axis along which they start at the most places.
    axis: usize,
    /// Positions in `list`, by start along that axis.
    order: Vec<u32>,
    /// The furthest end along that axis up to each place of `order`.
    reach: Vec<u64>,
}

impl ExplicitBoxes {
    /// Indexes boxes that are sorted and not empty.
    pub fn new(list: Vec<ExplicitBox>) -> ExplicitBoxes {
        let axes = list.first().map_or(0, |e| e.bounds.0.len());
        let starts = |axis: usize| {
            let mut all: Vec<u64> = list.iter().map(|e| e.bounds.0[axis].lo).collect();
            all.sort_unstable();
            all.dedup();
            all.len()
        };
        // The first of those with the most: both ends choose alike.
        let axis = (0..axes).rev().max_by_key(|&a| starts(a)).unwrap_or(0);
        let span = |i: u32| list[i as usize].bounds.0.get(axis).copied();
        let mut order: Vec<u32> = (0..list.len() as u32).collect();
        order.sort_unstable_by_key(|&i| (span(i).map(|s| s.lo), i));
        let ends = order.iter().map(|&i| span(i).map_or(u64::MAX, |s| s.hi));
        let reach = ends
            .scan(0, |furthest, hi| {
                *furthest = hi.max(*furthest);
                Some(*furthest)
            })
            .collect();
        ExplicitBoxes {
            list,
            axis,
            order,
            reach,
        }
    }

    /// The axis along which the boxes start at the most places.
    pub fn axis(&self) -> usize {
        self.axis
    }

    /// Positions of the boxes that overlap `bounds`, ascending.
    pub fn near(&self, bounds: &IndexBox) -> Vec<usize> {
        let mut found: Vec<usize> = self
            .window(bounds.0.get(self.axis).copied())
            .filter(|&i| self.list[i].bounds.overlaps(bounds))
            .collect();
        found.sort_unstable();
        found
    }

    /// Positions of boxes that may overlap `span` along the axis of the index,
    /// and of all that do.
    fn window(&self, span: Option<Span>) -> impl Iterator<Item = usize> + '_ {
        let (from, to) = match span {
            None => (0, self.order.len()),
            Some(s) => (
                self.reach.partition_point(|&end| end <= s.lo),
                self.order
                    .partition_point(|&i| self.list[i as usize].bounds.0[self.axis].lo < s.hi),
            ),
        };
        let found = self.order.get(from..to).unwrap_or(&[]);
        found.iter().map(|&i| i as usize)
    }
}

impl Deref for ExplicitBoxes {
    type Target = [ExplicitBox];

    fn deref(&self) -> &[ExplicitBox] {
        &self.list
    }
}

impl<'a> IntoIterator for &'a ExplicitBoxes {
    type Item = &'a ExplicitBox;
    type IntoIter = std::slice::Iter<'a, ExplicitBox>;

    fn into_iter(self) -> Self::IntoIter {
        self.list.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boxes(all: &[[(u64, u64); 2]]) -> ExplicitBoxes {
        let mut list: Vec<IndexBox> = all.iter().map(|b| of(*b)).collect();
        list.sort_unstable();
        let explicit = |bounds| ExplicitBox {
            bounds,
            dtype: Dtype::U8,
            ranks: Vec::new(),
        };
        ExplicitBoxes::new(list.into_iter().map(explicit).collect())
    }

    fn of(ranges: [(u64, u64); 2]) -> IndexBox {
        IndexBox(ranges.iter().map(|&(lo, hi)| Span::new(lo, hi)).collect())
    }

    #[test]
    fn near_are_exactly_those_that_overlap() {
        let mut x = 7u64;
        let mut next = |n: u64| {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1);
            (x >> 33) % n
        };
        for _ in 0..200 {
            let mut span = || {
                let lo = next(20);
                (lo, lo + 1 + next(6))
            };
            let all: Vec<[(u64, u64); 2]> = (0..30).map(|_| [span(), span()]).collect();
            let index = boxes(&all);
            let asked = of([span(), span()]);
            let expected: Vec<usize> = (0..index.len())
                .filter(|&i| index[i].bounds.overlaps(&asked))
                .collect();
            assert_eq!(index.near(&asked), expected);
        }
    }

    #[test]
    fn a_window_is_small_along_whichever_axis_is_cut() {
        for axis in 0..2 {
            let slab = |i| {
                let mut b = [(0, 100); 2];
                b[axis] = (i, i + 1);
                b
            };
            let index = boxes(&(0..100).map(slab).collect::<Vec<_>>());
            assert_eq!(index.axis(), axis);
            assert_eq!(index.window(Some(Span::new(40, 42))).count(), 2);
        }
    }
}
