//! Which pair of ranks does not mean the same, once it is known that one does.
//!
//! Agreement compares one number per plan: the hashes of all lists that are
//! sent, less those that are received, which is zero if every pair agrees.
//! Only where it is not, ranks are asked for the hash of each of their lists:
//!
//! ```text
//!   rank 0  sends to 2: a    sends to 3: b
//!   rank 2                                   receives from 0: a   right
//!   rank 3                                   receives from 0: c   the pair 0 -> 3
//! ```

use crate::error::{Error, Status};
use crate::plan::program::{Direction, PairHash};
use crate::rank::Rank;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long the coordinator waits for the lists.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of one pair on the wire.
pub(super) const PAIR_BYTES: usize = 21;
/// Pairs that one rank tells of; more tell nobody more.
const PAIR_COUNT_MAX: usize = 1 << 16;

/// What the two ends of a pair say about it.
#[derive(Debug, Default)]
struct Ends {
    sender: Option<u128>,
    receiver: Option<u128>,
}

/// The lists of all ranks of one execution, as they come in.
#[derive(Debug)]
pub(super) struct Comparison {
    /// When to judge by what is known.
    pub until: Instant,
    heard: u32,
    pairs: BTreeMap<(Rank, Rank), Ends>,
}

impl Comparison {
    pub fn new(until: Instant) -> Comparison {
        Comparison {
            until,
            heard: 0,
            pairs: BTreeMap::new(),
        }
    }

    /// Takes in the lists of `rank`; returns how many ranks have told theirs.
    pub fn hear(&mut self, rank: Rank, list: &[u8]) -> u32 {
        for item in list.chunks_exact(PAIR_BYTES) {
            let (direction, peer, hash) = read_pair(item);
            let key = match direction {
                Direction::Send => (rank, peer),
                Direction::Receive => (peer, rank),
            };
            let ends = self.pairs.entry(key).or_default();
            let end = match direction {
                Direction::Send => &mut ends.sender,
                Direction::Receive => &mut ends.receiver,
            };
            // A pair has one list per stage; their order does not matter.
            *end = Some(end.unwrap_or(0).wrapping_add(hash));
        }
        self.heard += 1;
        self.heard
    }

    /// Names the pair. The culprit is the rank with most pairs that differ,
    /// the lowest of several.
    pub fn verdict(&self, version: u64) -> Error {
        let differs = |e: &Ends| e.sender != e.receiver;
        let wrong: Vec<_> = self.pairs.iter().filter(|(_, e)| differs(e)).collect();
        let mut counts: BTreeMap<Rank, usize> = BTreeMap::new();
        for ((from, to), _) in &wrong {
            *counts.entry(*from).or_default() += 1;
            *counts.entry(*to).or_default() += 1;
        }
        let most = counts.iter().rev().max_by_key(|(_, n)| **n);
        let Some((&culprit, _)) = most else {
            let text = format!(
                "what ranks send is not what ranks receive for version {version}, and {} ranks that \
                 said what they send and expect do not disagree",
                self.heard
            );
            return Error::new(Status::PlanMismatch, text);
        };
        let of_culprit = |p: &&(&(Rank, Rank), &Ends)| p.0.0 == culprit || p.0.1 == culprit;
        let Some(((from, to), ends)) = wrong.iter().find(of_culprit) else {
            return Error::internal("a pair that differs has no ends");
        };
        let what = match (ends.sender, ends.receiver) {
            (Some(_), None) => format!("rank {to} expects nothing from it"),
            (None, Some(_)) => format!("rank {from} would send nothing"),
            _ => "they differ".to_string(),
        };
        let text = format!(
            "what rank {from} would send to rank {to} is not what rank {to} expects: {what}; \
             {} of {} pairs differ, {} of them with rank {culprit}, although the plans have one \
             fingerprint: load the plan anew there, and look for damaged memory or another build",
            wrong.len(),
            self.pairs.len(),
            counts[&culprit],
        );
        Error::new(Status::PlanMismatch, text).by(culprit)
    }
}

/// Writes a rank's lists for the wire.
pub(super) fn write_pairs(pairs: &[PairHash], out: &mut Vec<u8>) {
    for pair in pairs.iter().take(PAIR_COUNT_MAX) {
        out.push(match pair.direction {
            Direction::Send => 0,
            Direction::Receive => 1,
        });
        out.extend_from_slice(&pair.peer.0.to_le_bytes());
        out.extend_from_slice(&pair.hash.to_le_bytes());
    }
}

/// `item` has [`PAIR_BYTES`] bytes.
fn read_pair(item: &[u8]) -> (Direction, Rank, u128) {
    let direction = match item[0] {
        0 => Direction::Send,
        _ => Direction::Receive,
    };
    let peer = item[1..5].try_into().map_or(0, u32::from_le_bytes);
    let hash = item[5..].try_into().map_or(0, u128::from_le_bytes);
    (direction, Rank(peer), hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every one of `ranks` sends to every other; `change` spoils lists.
    fn compared(ranks: u32, change: impl Fn(u32, &mut Vec<PairHash>)) -> Error {
        let mut comparison = Comparison::new(Instant::now());
        for rank in 0..ranks {
            let mut list = Vec::new();
            for peer in (0..ranks).filter(|p| *p != rank) {
                let hash = |from: u32, to: u32| u128::from(from) << 64 | u128::from(to);
                for (direction, hash) in [
                    (Direction::Send, hash(rank, peer)),
                    (Direction::Receive, hash(peer, rank)),
                ] {
                    list.push(PairHash {
                        peer: Rank(peer),
                        direction,
                        hash,
                    });
                }
            }
            change(rank, &mut list);
            let mut bytes = Vec::new();
            write_pairs(&list, &mut bytes);
            assert_eq!(comparison.hear(Rank(rank), &bytes), rank + 1);
        }
        comparison.verdict(1)
    }

    #[test]
    fn the_pair_is_named() {
        let is_it = |p: &&mut PairHash| p.peer == Rank(1) && p.direction == Direction::Send;
        let e = compared(4, |rank, list| {
            if let (2, Some(pair)) = (rank, list.iter_mut().find(is_it)) {
                pair.hash += 1;
            }
        });
        assert!(e.message.contains("rank 2 would send to rank 1"), "{e}");
        assert!(e.message.contains("1 of 12 pairs"), "{e}");
        assert_eq!(e.rank, Some(Rank(1)), "both ends are suspect: {e}");
    }

    #[test]
    fn the_rank_that_differs_from_all_is_the_culprit() {
        let e = compared(5, |rank, list| {
            if rank == 3 {
                list.iter_mut().for_each(|p| p.hash ^= 7);
            }
        });
        assert_eq!(e.rank, Some(Rank(3)), "{e}");
        assert!(e.message.contains("8 of 20 pairs"), "{e}");
    }

    #[test]
    fn a_pair_that_only_one_end_knows_is_named() {
        let e = compared(3, |rank, list| {
            if rank == 0 {
                list.retain(|p| p.peer != Rank(2) || p.direction == Direction::Receive);
            }
        });
        assert!(e.message.contains("rank 0 would send nothing"), "{e}");
    }

    #[test]
    fn nothing_that_differs_is_nobodys_fault() {
        assert_eq!(compared(3, |_, _| {}).rank, None);
    }
}
