//! Near before far: the line of a stream whose holders and needers share
//! devices, NVLink domains or cells of the network.
//!
//! Holders keep the widths of their slots and needers get all they need;
//! locality only says who sends what to whom. The line is cut level by level,
//! nearest first. At each level the holders and needers of one place (device,
//! domain, cell) form a line of their own, of what those have left to send and
//! these still lack; the last level is what remains, anywhere:
//!
//! ```text
//!   domain 0   holders 0 1   needer A      0 sends A all it lacks
//!   domain 1   holders 2 3   needer B      2 sends B all it lacks
//!   domain 2                 needer C      ─┐ anywhere: what is left of
//!   domain 3                 needer D      ─┘ 0, then 1, 2, 3 to C, D
//! ```
//!
//! Where nobody is near, this is the plain wrap-around cut.

use super::line::Share;
use super::ranks::RankSet;
use super::slots::Slots;
use super::sorting;
use super::topology::{Site, Topology};
use crate::layout::Layout;
use crate::rank::Rank;
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// Where a rank is at each level, the nearest first.
pub type Places = SmallVec<[u64; 4]>;

/// What a plan knows of who is near to whom.
#[derive(Debug, Default)]
pub struct Locality {
    /// Cuts of the topology, those of the smallest cells first; `None` if no
    /// rank of one side is near to any of the other, but for the rail.
    cuts: Option<Vec<usize>>,
    known: Mutex<FxHashMap<Key, Option<Arc<Matching>>>>,
}

/// Holders, needers, and the holder that is first.
type Key = (RankSet, RankSet, u64);

/// One line: who it is between.
#[derive(Clone, Copy)]
pub struct Ends<'a> {
    pub holders: (&'a RankSet, &'a Layout),
    pub needers: (&'a RankSet, &'a Layout),
    pub slots: &'a Slots,
    pub turn: u64,
}

impl Locality {
    pub fn new(source: &Layout, destination: &Layout, topology: &Topology) -> Locality {
        let mut cuts: Vec<usize> = (0..topology.cuts().len()).collect();
        cuts.sort_unstable_by_key(|&i| {
            let c = &topology.cuts()[i];
            (!c.by_rail, c.hosts, i)
        });
        let ends = [source, destination].map(|layout| topology.ends(layout));
        let share = |place: &dyn Fn(Site) -> u32| {
            let [a, b] = ends.each_ref().map(|all| all.iter().map(|e| e.map(place)));
            overlap(a.collect(), b.collect())
        };
        let share_a_cell = |&i: &usize| share(&|site| site.host / topology.cuts()[i].hosts);
        let meet = share(&|site| site.domain) || cuts.iter().any(share_a_cell);
        Locality {
            cuts: meet.then_some(cuts),
            known: Mutex::default(),
        }
    }

    /// True if somebody is near to somebody of the other side.
    pub fn decides(&self) -> bool {
        self.cuts.is_some()
    }

    /// The line between these ends; `None` if it is the plain cut, because
    /// nobody is near to anybody.
    pub fn matching(&self, ends: Ends<'_>, topology: &Topology) -> Option<Arc<Matching>> {
        let cuts = self.cuts.as_ref()?;
        let key = (ends.holders.0.clone(), ends.needers.0.clone(), ends.turn);
        let lock = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lock().get(&key) {
            return known.clone();
        }
        let places = |rank: Rank| -> Places {
            let Some(site) = topology.site(rank) else {
                return Places::new();
            };
            let near = [u64::from(site.gpu), u64::from(site.domain)];
            let cells = cuts.iter().map(|&i| topology.cell(i, &site));
            near.into_iter().chain(cells).collect()
        };
        let all = |(set, layout): (&RankSet, &Layout)| -> Vec<Places> {
            (0..set.len()).map(|i| places(set.nth(layout, i))).collect()
        };
        let [holders, needers] = [all(ends.holders), all(ends.needers)];
        let made = match are_apart(&holders, &needers) {
            true => None,
            false => Some(Arc::new(Matching::new(
                &holders, &needers, ends.slots, ends.turn,
            ))),
        };
        lock().insert(key, made.clone());
        made
    }
}

/// True if some range of `a`, first and last number included, has a number that
/// one of `b` has.
fn overlap(mut a: Vec<[u32; 2]>, mut b: Vec<[u32; 2]>) -> bool {
    a.sort_unstable();
    b.sort_unstable();
    let mut others = b.iter().peekable();
    let mut reach = None;
    a.iter().any(|&[first, last]| {
        while let Some(other) = others.next_if(|o| o[0] <= last) {
            reach = reach.max(Some(other[1]));
        }
        reach.is_some_and(|to| to >= first)
    })
}

/// True if no holder is near to any needer, at any level.
fn are_apart(holders: &[Places], needers: &[Places]) -> bool {
    let all = |places: &[Places]| -> FxHashSet<(usize, u64)> {
        let levels = places.iter().flat_map(|p| p.iter().copied().enumerate());
        levels.collect()
    };
    all(holders).is_disjoint(&all(needers))
}

/// A line that is cut level by level.
#[derive(Debug, PartialEq, Eq)]
pub struct Matching {
    /// Of one needer's stream.
    units: u64,
    /// By needer and place in its stream.
    shares: Vec<UnitShare>,
    /// Where the shares of each needer begin, and the end.
    of_needer: Vec<u32>,
    /// Indices of shares by holder, and where those of each begin.
    by_holder: Vec<u32>,
    of_holder: Vec<u32>,
}

/// A share in units of a needer's stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct UnitShare {
    holder: u32,
    needer: u32,
    from: u64,
    to: u64,
}

impl Matching {
    /// The line between holders in one order and needers in another, by the
    /// places of each.
    pub fn new(holders: &[Places], needers: &[Places], slots: &Slots, turn: u64) -> Matching {
        let count = holders.len() as u64;
        let order: Vec<u32> = (0..count).map(|i| ((i + turn) % count) as u32).collect();
        let mut open = Open {
            to_send: (0..count)
                .map(|i| slots.width(i) * needers.len() as u64)
                .collect(),
            lacking: vec![slots.units(); needers.len()],
            units: slots.units(),
            shares: Vec::new(),
        };
        let levels = holders.iter().map(|p| p.len()).max().unwrap_or(0);
        for level in 0..levels {
            open.cut_level(
                &at_level(order.iter().copied(), holders, level),
                &at_level(0..needers.len() as u32, needers, level),
            );
        }
        let everywhere = |i: u32| (0, i);
        open.cut_level(
            &order.iter().copied().map(everywhere).collect::<Vec<_>>(),
            &(0..needers.len() as u32)
                .map(everywhere)
                .collect::<Vec<_>>(),
        );
        Matching::of(open.shares, slots.units(), holders.len(), needers.len())
    }

    fn of(mut shares: Vec<UnitShare>, units: u64, holders: usize, needers: usize) -> Matching {
        let place = |s: &UnitShare| (s.needer, s.from);
        sorting::sort(&mut shares, |a, b| place(a).cmp(&place(b)));
        let needer = |s: &UnitShare| s.needer as usize;
        let of_needer = sorting::starts(needers, shares.iter().map(needer));
        let all: Vec<u32> = (0..shares.len() as u32).collect();
        let holder = |&i: &u32| shares[i as usize].holder as usize;
        let (by_holder, of_holder) = sorting::sorted(&all, holders, holder);
        Matching {
            units,
            of_needer,
            by_holder,
            of_holder,
            shares,
        }
    }

    /// Who sends what to `needer` of a stream of `bytes`, in stream order.
    pub fn shares_of_needer(&self, bytes: u64, needer: u64, mut f: impl FnMut(Share)) {
        for i in range_of(&self.of_needer, needer) {
            self.put(bytes, &self.shares[i], &mut f);
        }
    }

    /// What `holder` sends to whom, by needer.
    pub fn shares_of_holder(&self, bytes: u64, holder: u64, mut f: impl FnMut(Share)) {
        for i in range_of(&self.of_holder, holder) {
            self.put(bytes, &self.shares[self.by_holder[i] as usize], &mut f);
        }
    }

    fn put(&self, bytes: u64, s: &UnitShare, f: &mut impl FnMut(Share)) {
        let cut =
            |unit: u64| (u128::from(unit) * u128::from(bytes) / u128::from(self.units)) as u64;
        let (from, to) = (cut(s.from), cut(s.to));
        if from < to {
            f(Share {
                holder: u64::from(s.holder),
                needer: u64::from(s.needer),
                from,
                to,
            });
        }
    }
}

/// What is not cut yet.
struct Open {
    /// Units that each holder has left to send.
    to_send: Vec<u64>,
    /// Units that each needer still lacks: the end of its stream.
    lacking: Vec<u64>,
    units: u64,
    shares: Vec<UnitShare>,
}

impl Open {
    /// Cuts one line per place; both ends are sorted by it.
    fn cut_level(&mut self, holders: &[(u64, u32)], needers: &[(u64, u32)]) {
        let (mut h, mut n) = (0, 0);
        while h < holders.len() && n < needers.len() {
            let ((a, holder), (b, needer)) = (holders[h], needers[n]);
            let amount = match a == b {
                true => self.to_send[holder as usize].min(self.lacking[needer as usize]),
                false => 0,
            };
            if amount > 0 {
                self.cut(holder, needer, amount);
            }
            // On with the one that is done, or behind.
            if a < b || (a == b && self.to_send[holder as usize] == 0) {
                h += 1;
            } else {
                n += 1;
            }
        }
    }

    fn cut(&mut self, holder: u32, needer: u32, amount: u64) {
        let from = self.units - self.lacking[needer as usize];
        self.to_send[holder as usize] -= amount;
        self.lacking[needer as usize] -= amount;
        self.shares.push(UnitShare {
            holder,
            needer,
            from,
            to: from + amount,
        });
    }
}

/// Place and index of each at one level, by place and then in their order.
fn at_level(order: impl Iterator<Item = u32>, places: &[Places], level: usize) -> Vec<(u64, u32)> {
    let mut at: Vec<(u64, u32)> = order
        .filter_map(|i| Some((*places[i as usize].get(level)?, i)))
        .collect();
    sorting::sort(&mut at, |a, b| a.0.cmp(&b.0));
    at
}

fn range_of(starts: &[u32], i: u64) -> Range<usize> {
    starts[i as usize] as usize..starts[i as usize + 1] as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn places(all: &[[u64; 2]]) -> Vec<Places> {
        all.iter().map(|p| Places::from_slice(p)).collect()
    }

    /// Device and domain of holders and needers, and widths of the holders.
    fn instance() -> impl Strategy<Value = (Vec<Places>, Vec<Places>, Slots, u64)> {
        let places = || {
            let place = (0u64..24).prop_map(|device| Places::from_slice(&[device, device / 4]));
            prop::collection::vec(place, 1..16)
        };
        let widths = prop::collection::vec(1u64..4, 16);
        (places(), places(), widths, any::<bool>(), 0u64..16).prop_map(|(h, n, w, even, turn)| {
            let slots = match even {
                true => Slots::Equal(h.len() as u64),
                false => Slots::of(w[..h.len()].iter().copied()),
            };
            let turn = turn % h.len() as u64;
            (h, n, slots, turn)
        })
    }

    fn all_shares(m: &Matching, bytes: u64, holders: usize, needers: usize) -> [Vec<Share>; 2] {
        let (mut sent, mut received) = (Vec::new(), Vec::new());
        for h in 0..holders as u64 {
            m.shares_of_holder(bytes, h, |s| sent.push(s));
        }
        for n in 0..needers as u64 {
            m.shares_of_needer(bytes, n, |s| received.push(s));
        }
        [sent, received]
    }

    #[test]
    fn each_domain_serves_its_own_first() {
        let holders = places(&[[0, 0], [1, 0], [4, 1], [5, 1]]);
        let needers = places(&[[2, 0], [6, 1], [8, 2], [12, 3]]);
        let m = Matching::new(&holders, &needers, &Slots::Equal(4), 0);
        let [sent, _] = all_shares(&m, 100, 4, 4);
        let who: Vec<_> = sent
            .iter()
            .map(|s| (s.holder, s.needer, s.to - s.from))
            .collect();
        assert_eq!(who, [(0, 0, 100), (1, 2, 100), (2, 1, 100), (3, 3, 100)]);
    }

    #[test]
    fn a_device_serves_itself_before_its_domain() {
        let holders = places(&[[0, 0], [1, 0]]);
        let needers = places(&[[1, 0], [0, 0]]);
        let m = Matching::new(&holders, &needers, &Slots::Equal(2), 0);
        let [sent, _] = all_shares(&m, 10, 2, 2);
        let who: Vec<_> = sent.iter().map(|s| (s.holder, s.needer)).collect();
        assert_eq!(who, [(0, 1), (1, 0)]);
    }

    fn ranges() -> impl Strategy<Value = Vec<[u32; 2]>> {
        let range = (0u32..60, 0u32..6).prop_map(|(first, more)| [first, first + more]);
        prop::collection::vec(range, 0..6)
    }

    proptest! {
        #[test]
        fn ranges_overlap_where_a_number_is_in_both(a in ranges(), b in ranges()) {
            let has = |all: &[[u32; 2]], x: u32| all.iter().any(|r| r[0] <= x && x <= r[1]);
            let expected = (0..66).any(|x| has(&a, x) && has(&b, x));
            prop_assert_eq!(overlap(a, b), expected);
        }

        #[test]
        fn nearness_changes_no_load((holders, needers, slots, turn) in instance(), bytes in 0u64..5000) {
            let m = Matching::new(&holders, &needers, &slots, turn);
            let [mut sent, received] = all_shares(&m, bytes, holders.len(), needers.len());
            sent.sort_by_key(|s| (s.needer, s.from));
            prop_assert_eq!(&sent, &received);
            for n in 0..needers.len() as u64 {
                let mut at = 0;
                for s in received.iter().filter(|s| s.needer == n) {
                    prop_assert_eq!(s.from, at);
                    at = s.to;
                }
                prop_assert_eq!(at, bytes);
            }
            for h in 0..holders.len() as u64 {
                let units: u64 = m.shares.iter().filter(|s| u64::from(s.holder) == h).map(|s| s.to - s.from).sum();
                prop_assert_eq!(units, slots.width(h) * needers.len() as u64);
            }
        }

        #[test]
        fn as_much_stays_near_as_can((holders, needers, slots, turn) in instance()) {
            let m = Matching::new(&holders, &needers, &slots, turn);
            // Within a place stays the smaller of what it has and needs.
            for level in 0..2 {
                let total = |places: &[Places], of: &dyn Fn(usize) -> u64, place: u64| -> u64 {
                    (0..places.len()).filter(|&i| places[i][level] == place).map(of).sum()
                };
                let mut near = 0;
                for place in 0..24 {
                    let has = total(&holders, &|i| slots.width(i as u64) * needers.len() as u64, place);
                    let needs = total(&needers, &|_| slots.units(), place);
                    near += has.min(needs);
                }
                let stays = m.shares.iter().filter(|s| {
                    holders[s.holder as usize][level] == needers[s.needer as usize][level]
                });
                prop_assert_eq!(stays.map(|s| s.to - s.from).sum::<u64>(), near);
            }
        }
    }
}
