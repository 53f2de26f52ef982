//! What became of destination memory.
//!
//! | rank outcome | when |
//! |---|---|
//! | COMPLETE | the done fence was reached and no abort had been seen then |
//! | UNTOUCHED | no write of this request has begun on this rank |
//! | TORN | everything else |
//!
//! Ranks that only send have nothing to tear: theirs is COMPLETE or UNTOUCHED.
//! A copy is COMPLETE if all its ranks are, UNTOUCHED if all are, and TORN
//! otherwise. What nobody can tell any more counts as TORN: only a copy that
//! is known to be COMPLETE may serve the new version, only one that is known
//! to be UNTOUCHED may go on serving the old one.

use super::message::{NO_COPY, Sums};

/// What became of the destination memory of one rank or of one copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[repr(u8)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Nothing was written; the old version is intact.
    Untouched = 1,
    /// Everything was written; the new version may serve.
    Complete = 2,
    /// Something may have been written, but not everything. Must not serve.
    Torn = 3,
}

impl Outcome {
    pub const ALL: &'static [Outcome] = &[Outcome::Untouched, Outcome::Complete, Outcome::Torn];

    pub fn from_code(code: u8) -> Option<Outcome> {
        Outcome::ALL.iter().copied().find(|o| *o as u8 == code)
    }

    /// As the C header spells it less its prefix.
    pub const fn name(self) -> &'static str {
        match self {
            Outcome::Untouched => "UNTOUCHED",
            Outcome::Complete => "COMPLETE",
            Outcome::Torn => "TORN",
        }
    }

    /// The outcome of a whole whose parts have these outcomes: theirs if they
    /// agree, else TORN.
    #[must_use]
    pub fn and(self, other: Outcome) -> Outcome {
        if self == other { self } else { Outcome::Torn }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// One copy's ranks, counted by the coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CopyTally {
    pub copy: u32,
    /// How many ranks its ranks say it has.
    pub expected: u32,
    pub arrived: u32,
    untouched: u32,
    complete: u32,
    /// True if its digests are not those of what was sent.
    pub is_wrong: bool,
}

impl CopyTally {
    /// Notes that a rank of `copy` has agreed.
    pub fn expect(copies: &mut Vec<CopyTally>, copy: u32, ranks: u32) {
        if copy == NO_COPY {
            return;
        }
        match copies.binary_search_by_key(&copy, |c| c.copy) {
            Ok(i) => {
                copies[i].arrived += 1;
                copies[i].expected = copies[i].expected.max(ranks);
            }
            Err(i) => copies.insert(
                i,
                CopyTally {
                    copy,
                    expected: ranks,
                    arrived: 1,
                    untouched: 0,
                    complete: 0,
                    is_wrong: false,
                },
            ),
        }
    }

    /// Notes that a rank of `copy` has ended.
    pub fn end(copies: &mut [CopyTally], copy: u32, outcome: Outcome) {
        let Ok(i) = copies.binary_search_by_key(&copy, |c| c.copy) else {
            return;
        };
        match outcome {
            Outcome::Untouched => copies[i].untouched += 1,
            Outcome::Complete => copies[i].complete += 1,
            Outcome::Torn => {}
        }
    }

    pub fn outcome(&self) -> Outcome {
        if self.is_wrong {
            Outcome::Torn
        } else if self.complete == self.expected {
            Outcome::Complete
        } else if self.untouched == self.expected {
            Outcome::Untouched
        } else {
            Outcome::Torn
        }
    }
}

/// Digests of all ranks, added up by the coordinator. Vectors by tensor; all
/// sums are mod 2^64.
#[derive(Debug, Default)]
pub(super) struct SumTally {
    pub once: Vec<u64>,
    sent: Vec<u64>,
    /// By position in the list of copies, then by tensor.
    held: Vec<u64>,
    tensors: usize,
}

/// A digest that differs: which copy (none: all together), which tensor.
pub(super) type Mismatch = (u32, u32);

impl SumTally {
    pub fn clear(&mut self) {
        self.once.clear();
        self.sent.clear();
        self.held.clear();
        self.tensors = 0;
    }

    /// Makes room for what is to be added.
    pub fn open(&mut self, tensors: usize, copies: usize) {
        self.tensors = tensors;
        self.once.resize(tensors, 0);
        self.sent.resize(tensors, 0);
        self.held.resize(tensors * copies, 0);
    }

    /// Adds one rank's sums; `copy` is a position in the list of copies.
    pub fn add(&mut self, copy: Option<usize>, sums: &Sums<'_>) {
        add_all(&mut self.once, sums.once);
        add_all(&mut self.sent, sums.sent);
        if let Some(copy) = copy {
            let held = copy * self.tensors..(copy + 1) * self.tensors;
            if let Some(held) = self.held.get_mut(held) {
                add_all(held, sums.held);
            }
        }
    }

    /// Compares what was sent with what is held and marks wrong copies. Calls
    /// `found` for every difference.
    pub fn compare(
        &self,
        copies: &mut [CopyTally],
        are_alike: bool,
        mut found: impl FnMut(Mismatch),
    ) {
        for tensor in 0..self.tensors {
            let sent = self.sent[tensor];
            let held = |copy: usize| self.held[copy * self.tensors + tensor];
            if are_alike {
                for (i, copy) in copies.iter_mut().enumerate() {
                    if held(i) != sent {
                        copy.is_wrong = true;
                        found((copy.copy, tensor as u32));
                    }
                }
                continue;
            }
            let total = (0..copies.len()).fold(0u64, |sum, i| sum.wrapping_add(held(i)));
            if total != sent {
                copies.iter_mut().for_each(|c| c.is_wrong = true);
                found((NO_COPY, tensor as u32));
            }
        }
    }
}

fn add_all(to: &mut [u64], from: &[u8]) {
    for (to, from) in to.iter_mut().zip(from.chunks_exact(8)) {
        let from = from.try_into().map_or(0, u64::from_le_bytes);
        *to = to.wrapping_add(from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_what_all_its_ranks_are() {
        let mut copies = Vec::new();
        for copy in [4, 1, 4, NO_COPY] {
            CopyTally::expect(&mut copies, copy, if copy == 4 { 2 } else { 1 });
        }
        assert_eq!(copies.len(), 2);
        CopyTally::end(&mut copies, 4, Outcome::Complete);
        CopyTally::end(&mut copies, 1, Outcome::Untouched);
        assert_eq!(copies[0].outcome(), Outcome::Untouched);
        assert_eq!(copies[1].outcome(), Outcome::Torn);
        CopyTally::end(&mut copies, 4, Outcome::Complete);
        assert_eq!(copies[1].outcome(), Outcome::Complete);
        copies[1].is_wrong = true;
        assert_eq!(copies[1].outcome(), Outcome::Torn);
    }

    #[test]
    fn digests_are_compared_by_copy_or_in_total() {
        let le = |v: &[u64]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        let (sent, good, bad) = (le(&[5, 7]), le(&[5, 7]), le(&[5, 8]));
        let sums = |sent, held| Sums {
            once: &[],
            sent,
            held,
        };
        for (are_alike, expected) in [
            (true, vec![(1, 1)]),
            (false, vec![(NO_COPY, 0), (NO_COPY, 1)]),
        ] {
            let mut copies = Vec::new();
            CopyTally::expect(&mut copies, 0, 1);
            CopyTally::expect(&mut copies, 1, 1);
            let mut tally = SumTally::default();
            tally.open(2, 2);
            tally.add(None, &sums(&sent, &[]));
            tally.add(Some(0), &sums(&[], &good));
            tally.add(Some(1), &sums(&[], &bad));
            let mut found = Vec::new();
            tally.compare(&mut copies, are_alike, |m| found.push(m));
            assert_eq!(found, expected);
            assert_eq!(copies[0].is_wrong, !are_alike);
            assert!(copies[1].is_wrong);
        }
    }

    #[test]
    fn a_whole_is_torn_unless_its_parts_agree() {
        for &a in Outcome::ALL {
            assert_eq!(Outcome::from_code(a as u8), Some(a));
            for &b in Outcome::ALL {
                let whole = a.and(b);
                assert_eq!(whole, b.and(a));
                assert_eq!(whole, if a == b { a } else { Outcome::Torn });
            }
        }
    }
}
