//! How much of a box other boxes cover, exactly.

use crate::layout::tensor::{IndexBox, Span};

/// Steps that all questions about a pair of layouts may take together.
pub(super) const STEPS_MAX: u64 = 1 << 27;

/// What boxes leave uncovered of one box.
#[derive(Clone)]
pub(super) struct Uncovered {
    pub elements: u64,
    /// One uncovered box, if there is any.
    pub first: Option<IndexBox>,
}

impl Uncovered {
    pub const NOTHING: Uncovered = Uncovered {
        elements: 0,
        first: None,
    };
}

/// What `boxes` leave uncovered of `within`; `None` if it takes more than
/// `steps`, from which what it takes is subtracted.
pub(super) fn uncovered<'a>(
    within: &IndexBox,
    boxes: impl Iterator<Item = &'a IndexBox>,
    steps: &mut u64,
) -> Option<Uncovered> {
    let boxes: Vec<&[Span]> = boxes.map(IndexBox::spans).collect();
    *steps = steps.checked_sub(boxes.len() as u64)?;
    let mut search = Search {
        within: within.spans(),
        steps,
        path: Vec::new(),
        first: None,
    };
    let elements = search.count(&boxes)?;
    Some(Uncovered {
        elements,
        first: search.first,
    })
}

/// Cuts the box into slabs axis by axis; within one slab the same boxes
/// remain.
struct Search<'a> {
    within: &'a [Span],
    steps: &'a mut u64,
    /// The slab of each axis so far.
    path: Vec<Span>,
    first: Option<IndexBox>,
}

impl Search<'_> {
    fn count(&mut self, boxes: &[&[Span]]) -> Option<u64> {
        let axis = self.path.len();
        let rest = &self.within[axis..];
        if boxes.is_empty() {
            let all: u64 = rest.iter().map(|s| s.len()).product();
            if all > 0 && self.first.is_none() {
                let spans = self.path.iter().chain(rest).copied().collect();
                self.first = Some(IndexBox(spans));
            }
            return Some(all);
        }
        let Some(range) = rest.first().copied() else {
            return Some(0);
        };
        let mut sorted: Vec<&[Span]> = boxes
            .iter()
            .copied()
            .filter(|b| !b[axis].intersect(range).is_empty())
            .collect();
        sorted.sort_unstable_by_key(|b| b[axis].lo);
        let mut bounds: Vec<u64> = sorted
            .iter()
            .map(|b| b[axis].intersect(range))
            .flat_map(|s| [s.lo, s.hi])
            .chain([range.lo, range.hi])
            .collect();
        bounds.sort_unstable();
        bounds.dedup();
        let mut active: Vec<&[Span]> = Vec::new();
        let mut next = sorted.into_iter().peekable();
        let mut elements = 0;
        for w in bounds.windows(2) {
            let slab = Span::new(w[0], w[1]);
            active.retain(|b| b[axis].hi > slab.lo);
            while let Some(b) = next.next_if(|b| b[axis].lo <= slab.lo) {
                active.push(b);
            }
            *self.steps = self.steps.checked_sub(1 + active.len() as u64)?;
            self.path.push(slab);
            let inside = self.count(&active);
            self.path.pop();
            elements += inside? * slab.len();
        }
        Some(elements)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ranges: &[(u64, u64)]) -> IndexBox {
        IndexBox(ranges.iter().map(|&(lo, hi)| Span::new(lo, hi)).collect())
    }

    #[test]
    fn what_is_left_is_counted_and_shown() {
        let whole = of(&[(0, 4), (0, 6)]);
        let boxes = [
            of(&[(0, 4), (0, 3)]),
            of(&[(0, 2), (2, 6)]),
            of(&[(3, 9), (3, 5)]),
        ];
        let left = uncovered(&whole, boxes.iter(), &mut 99).unwrap();
        assert_eq!(left.elements, 4);
        assert_eq!(left.first, Some(of(&[(2, 3), (3, 6)])));
        let left = uncovered(&whole, [of(&[(0, 4), (0, 6)])].iter(), &mut 99).unwrap();
        assert_eq!((left.elements, left.first), (0, None));
        assert_eq!(uncovered(&whole, [].iter(), &mut 99).unwrap().elements, 24);
    }

    #[test]
    fn a_scalar_is_held_or_not() {
        assert_eq!(
            uncovered(&of(&[]), [of(&[])].iter(), &mut 9)
                .unwrap()
                .elements,
            0
        );
        assert_eq!(uncovered(&of(&[]), [].iter(), &mut 9).unwrap().elements, 1);
    }

    #[test]
    fn many_chunks_take_few_steps() {
        let n = 100_000;
        let chunks: Vec<IndexBox> = (0..n).map(|i| of(&[(0, 8), (i, i + 1)])).collect();
        let mut steps = 5 * n;
        let left = uncovered(&of(&[(0, 8), (0, n)]), chunks.iter(), &mut steps);
        assert_eq!(left.unwrap().elements, 0);
    }

    #[test]
    fn a_question_that_takes_too_long_is_given_up() {
        let crossing: Vec<IndexBox> = (0..99).map(|i| of(&[(i, i + 50), (i, 200 - i)])).collect();
        assert!(uncovered(&of(&[(0, 200), (0, 200)]), crossing.iter(), &mut 500).is_none());
    }
}
