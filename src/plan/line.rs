//! The wrap-around cut: which holder sends which bytes to which needer.
//!
//! All bytes that one set of holders has and one set of needers wants form a
//! *stream* of `bytes` bytes. Lay one copy of it per needer end to end and cut
//! the line into one slot per holder:
//!
//! ```text
//!   needers      |------ A ------|------ B ------|------ C ------|
//!   holders      |---- 0 ----|---- 1 ----|---- 2 ----|---- 3 ----|
//!                 0 sends to A, 1 to A and B, 2 to B and C, 3 to C
//! ```
//!
//! Slots are as wide as their holders are to send: equal, or as water-filling
//! has it. Loads are so to the byte (but for rounding to whole granules) and
//! there are at most `holders + needers - 1` pairs. Both ends compute it alone.

use super::slots::Slots;

/// Where the line is cut: `needers` copies of a stream over the slots of its
/// holders, from holder `turn` on.
#[derive(Clone, Debug)]
pub struct Line {
    pub bytes: u64,
    pub slots: Slots,
    pub needers: u64,
    pub turn: u64,
}

/// A range of one needer's stream and the holder that sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    pub holder: u64,
    pub needer: u64,
    pub from: u64,
    pub to: u64,
}

/// One slot of a line, in bytes of the line.
struct Slot {
    holder: u64,
    from: u128,
    to: u128,
}

impl Line {
    fn len(&self) -> u128 {
        u128::from(self.needers) * u128::from(self.bytes)
    }

    /// Where the line is, so many of its units from its beginning.
    fn at(&self, unit: u64) -> u128 {
        u128::from(unit) * self.len() / u128::from(self.slots.units())
    }

    fn slot(&self, holder: u64) -> Slot {
        let range = self.slots.turned(holder, self.turn);
        Slot {
            holder,
            from: self.at(range.start),
            to: self.at(range.end),
        }
    }

    /// The slot that byte `at` of the line is in.
    fn slot_at(&self, at: u128) -> Slot {
        let unit = (at * u128::from(self.slots.units()) / self.len().max(1)) as u64;
        let mut slot = self.slot(self.slots.holder_at(unit, self.turn));
        while slot.to <= at {
            let next = self.slots.turned(slot.holder, self.turn).end;
            slot = self.slot(self.slots.holder_at(next, self.turn));
        }
        slot
    }

    /// Who sends what to `needer`, in stream order.
    pub fn shares_of_needer(&self, needer: u64, mut f: impl FnMut(Share)) {
        let base = u128::from(needer) * u128::from(self.bytes);
        let end = base + u128::from(self.bytes);
        let mut at = base;
        while at < end {
            let slot = self.slot_at(at);
            let to = slot.to.min(end);
            f(Share {
                holder: slot.holder,
                needer,
                from: (at - base) as u64,
                to: (to - base) as u64,
            });
            at = to;
        }
    }

    /// What `holder` sends to whom, by needer.
    pub fn shares_of_holder(&self, holder: u64, mut f: impl FnMut(Share)) {
        let slot = self.slot(holder);
        let mut at = slot.from;
        while at < slot.to {
            let needer = (at / u128::from(self.bytes)) as u64;
            let base = u128::from(needer) * u128::from(self.bytes);
            let to = slot.to.min(base + u128::from(self.bytes));
            f(Share {
                holder,
                needer,
                from: (at - base) as u64,
                to: (to - base) as u64,
            });
            at = to;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn line() -> impl Strategy<Value = Line> {
        let widths = prop_oneof![
            (1u64..40).prop_map(Slots::Equal),
            prop::collection::vec(0u64..5, 1..40).prop_map(|mut w| {
                w[0] += u64::from(w.iter().all(|&w| w == 0));
                Slots::of(w)
            }),
        ];
        (0u64..5000, widths, 1u64..40, 0u64..40).prop_map(|(bytes, slots, needers, turn)| Line {
            bytes,
            needers,
            turn: turn % slots.count(),
            slots,
        })
    }

    proptest! {
        #[test]
        fn both_ends_see_the_same_shares(line in line()) {
            let (mut sent, mut received) = (Vec::new(), Vec::new());
            let holders = line.slots.count();
            for h in 0..holders {
                line.shares_of_holder(h, |s| sent.push(s));
            }
            for n in 0..line.needers {
                let mut at = 0;
                line.shares_of_needer(n, |s| {
                    assert_eq!(s.from, at);
                    at = s.to;
                    received.push(s);
                });
                prop_assert_eq!(at, line.bytes);
            }
            sent.sort_by_key(|s| (s.needer, s.from));
            prop_assert_eq!(&sent, &received);
            prop_assert!(sent.len() as u64 <= holders + line.needers);
            let units = line.slots.units();
            for h in 0..holders {
                let load: u64 = sent.iter().filter(|s| s.holder == h).map(|s| s.to - s.from).sum();
                let width = line.slots.width(h);
                prop_assert!((load * units).abs_diff(line.needers * line.bytes * width) <= units);
            }
        }
    }
}
