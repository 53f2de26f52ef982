//! How the holders of a stream share the work: the widths of their slots.
//!
//! ```text
//!   equal      |-- 0 --|-- 1 --|-- 2 --|-- 3 --|     one unit each
//!   unequal    |--- 0 ---|--- 1 ---|--- 2 ---|3|     3 is slow
//! ```
//!
//! Unequal widths are kept as runs of equal ones: a thousand holders of which
//! one is slow are three runs.

use crate::limits::RANK_COUNT_MAX;
use smallvec::SmallVec;
use std::ops::Range;
use std::sync::Arc;

/// Units that unequal slots have together, at most: products with the bytes
/// of a line stay inside 128 bits.
pub const UNITS_MAX: u64 = 1 << 40;
/// Where whole items take turns, a slot of average width has so many turns.
const TURNS: u64 = 16;

/// The slots of a line, one per holder, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Slots {
    /// So many, a unit each.
    Equal(u64),
    Unequal(Arc<Widths>),
}

/// Widths that differ; some may be 0, not all.
#[derive(Debug, PartialEq, Eq)]
pub struct Widths {
    runs: Vec<Run>,
    count: u64,
    units: u64,
}

/// Slots of one width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    first: u64,
    /// Units of all slots before.
    before: u64,
    width: u64,
}

impl Slots {
    /// Slots of these widths, of which one at least is not 0.
    pub fn of(widths: impl IntoIterator<Item = u64>) -> Slots {
        let mut all = Widths {
            runs: Vec::new(),
            count: 0,
            units: 0,
        };
        for width in widths {
            if all.runs.last().is_none_or(|r| r.width != width) {
                all.runs.push(Run {
                    first: all.count,
                    before: all.units,
                    width,
                });
            }
            all.count += 1;
            all.units += width;
        }
        debug_assert!((1..=UNITS_MAX).contains(&all.units));
        match all.runs.len() {
            1 => Slots::Equal(all.count),
            _ => Slots::Unequal(Arc::new(all)),
        }
    }

    /// The same, or equal slots where all would be 0.
    pub fn of_willing(widths: impl Iterator<Item = u64> + Clone) -> Slots {
        match widths.clone().all(|w| w == 0) {
            true => Slots::Equal(widths.count() as u64),
            false => Slots::of(widths),
        }
    }

    /// Slots as wide as these speeds are to the highest of them; equal ones
    /// where all are 0.
    pub fn by_speed(speeds: impl Iterator<Item = u64> + Clone) -> Slots {
        let fastest = u128::from(speeds.clone().max().unwrap_or(0).max(1));
        let most = u128::from(UNITS_MAX / u64::from(RANK_COUNT_MAX));
        let width = |s: u64| (u128::from(s) * most).div_ceil(fastest) as u64;
        Slots::of_willing(speeds.map(width))
    }

    pub fn count(&self) -> u64 {
        match self {
            Slots::Equal(count) => *count,
            Slots::Unequal(w) => w.count,
        }
    }

    /// Units of all slots.
    pub fn units(&self) -> u64 {
        match self {
            Slots::Equal(count) => *count,
            Slots::Unequal(w) => w.units,
        }
    }

    /// The units of slot `i`.
    pub fn range(&self, i: u64) -> Range<u64> {
        match self {
            Slots::Equal(_) => i..i + 1,
            Slots::Unequal(w) => {
                let run = w.runs[w.runs.partition_point(|r| r.first <= i) - 1];
                let from = run.before + (i - run.first) * run.width;
                from..from + run.width
            }
        }
    }

    pub fn width(&self, i: u64) -> u64 {
        let range = self.range(i);
        range.end - range.start
    }

    /// The slot that a unit is in.
    pub fn slot_at(&self, unit: u64) -> u64 {
        match self {
            Slots::Equal(_) => unit,
            Slots::Unequal(w) => {
                // Runs without width begin where the next one does.
                let run = w.runs[w.runs.partition_point(|r| r.before <= unit) - 1];
                run.first + (unit - run.before) / run.width.max(1)
            }
        }
    }

    /// The units of slot `i` on a line that begins with slot `turn`.
    pub fn turned(&self, i: u64, turn: u64) -> Range<u64> {
        let range = self.range(i);
        let before = self.range(turn).start;
        let from = match i >= turn {
            true => range.start - before,
            false => range.start + self.units() - before,
        };
        from..from + (range.end - range.start)
    }

    /// The slot that a unit is in on a line that begins with slot `turn`.
    pub fn holder_at(&self, unit: u64, turn: u64) -> u64 {
        let unit = unit + self.range(turn).start;
        self.slot_at(unit % self.units())
    }

    /// The slot whose turn it is, where whole items go round.
    pub fn holder_in_turn(&self, at: u64, turn: u64) -> u64 {
        let count = self.count();
        if let Slots::Equal(_) = self {
            return (at % count + turn) % count;
        }
        // Slots in their order, and at another place each time round.
        let place = at % count * TURNS + shuffled(at / count % TURNS);
        self.holder_at(self.middle(place), turn)
    }

    /// When it is the turn of slot `i`: at these, and again after so many.
    pub fn turns_of(&self, i: u64, turn: u64) -> (SmallVec<[u64; 4]>, u64) {
        let count = self.count();
        if let Slots::Equal(_) = self {
            return ([(i + count - turn) % count].into_iter().collect(), count);
        }
        let range = self.turned(i, turn);
        let places = count * TURNS;
        let first = |unit: u64| {
            let mut place =
                (u128::from(unit) * u128::from(places) / u128::from(self.units())) as u64;
            place = place.saturating_sub(1);
            while place < places && self.middle(place) < unit {
                place += 1;
            }
            place
        };
        let mine = first(range.start)..first(range.end);
        let mut turns: SmallVec<[u64; 4]> = mine
            .map(|p| p / TURNS + shuffled(p % TURNS) * count)
            .collect();
        turns.sort_unstable();
        (turns, places)
    }

    /// The unit in the middle of one of `TURNS` places per slot.
    fn middle(&self, place: u64) -> u64 {
        let halves = 2 * u128::from(place) + 1;
        let unit = halves * u128::from(self.units()) / (2 * u128::from(self.count() * TURNS));
        unit as u64
    }
}

/// Numbers below `TURNS` so that any few in a row lie far apart: from the middle
/// on in steps of 7. Done twice it is undone.
fn shuffled(turn: u64) -> u64 {
    (7 * turn + TURNS / 2) % TURNS
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn equal_widths_are_none() {
        assert_eq!(Slots::of([7, 7, 7]), Slots::Equal(3));
        let Slots::Unequal(w) = Slots::of((0..1000).map(|i| 10 - u64::from(i == 500))) else {
            panic!("one is narrower");
        };
        assert_eq!(w.runs.len(), 3);
    }

    #[test]
    fn without_width_it_is_never_ones_turn() {
        let slots = Slots::of([4, 0, 4, 8]);
        let mut turns = [0; 4];
        for at in 0..4 * TURNS {
            turns[slots.holder_in_turn(at, 1) as usize] += 1;
        }
        assert_eq!(turns, [16, 0, 16, 32]);
    }

    proptest! {
        #[test]
        fn slots_tile_the_line(widths in prop::collection::vec(0u64..9, 1..20), turn in 0u64..20) {
            prop_assume!(widths.iter().any(|&w| w > 0));
            let slots = Slots::of(widths.clone());
            let turn = turn % slots.count();
            let mut at = 0;
            for i in (turn..slots.count()).chain(0..turn) {
                let range = slots.turned(i, turn);
                prop_assert_eq!(range.start, at);
                for unit in range.clone() {
                    prop_assert_eq!(slots.holder_at(unit, turn), i);
                }
                at = range.end;
            }
            prop_assert_eq!(at, slots.units());
        }

        #[test]
        fn turns_are_the_same_from_both_ends(
            widths in prop::collection::vec(0u64..9, 1..20), turn in 0u64..20
        ) {
            prop_assume!(widths.iter().any(|&w| w > 0));
            let slots = Slots::of(widths);
            let turn = turn % slots.count();
            for i in 0..slots.count() {
                let (turns, period) = slots.turns_of(i, turn);
                let mine: Vec<u64> = (0..period).filter(|&at| slots.holder_in_turn(at, turn) == i).collect();
                prop_assert_eq!(turns.as_slice(), mine.as_slice());
                prop_assert_eq!(slots.holder_in_turn(period, turn), slots.holder_in_turn(0, turn));
            }
        }
    }
}
