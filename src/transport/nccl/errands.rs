//! What passes the endpoints of two GPUs on its way from host to host.
//!
//! NCCL connects the endpoints alone. A *guest* of a GPU, one of its other
//! ranks, hands what it sends to its endpoint, in a channel of its own, and
//! gets from there what it receives:
//!
//! ```text
//!   host A, GPU 0                          host B, GPU 1
//!   rank 1 ──lane──► rank 0 ─── NCCL ───► rank 2 ──lane──► rank 3
//!   guest            endpoint             endpoint         guest
//! ```
//!
//! NCCL reads and writes the slots of the lanes themselves, so nothing is
//! copied on an endpoint, and it needs no memory for what it carries.
//!
//! # Turns
//!
//! All bytes of a step from one rank to another are cut into *parcels*, a slot
//! each. A parcel's turn follows from its number and its two ranks:
//!
//! ```text
//!   turn = (number, (from + to) / 2)
//! ```
//!
//! Everybody does the turns of a step in this order, each as one NCCL group: so
//! both endpoints have a parcel in the same group. In a turn a rank sends and
//! receives at most two parcels, for at most two `to` go with a `from`; so no
//! lane, which has more slots than that, ever has to be emptied before the
//! turn that fills it is over. Whoever waits does so for an earlier turn, or
//! for the way of a parcel in this one: somebody always goes on.

use super::peers::Peers;
use crate::device::cuda::channel::after_run;
use crate::device::{Binding, MemoryRange};
use crate::error::Result;
use crate::plan::program::{Direction, Message, Program};
use crate::rank::Rank;
use std::ops::Range;

/// When a parcel goes.
type Turn = (u32, u32);

/// A part of a message in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// Among the messages of the program that the flow is from.
    pub message: usize,
    /// Bytes of the message before it.
    pub done: u64,
    pub bytes: u64,
    /// Bytes of the slot before it.
    pub at: u64,
}

/// The part of an endpoint or a guest in the way of a parcel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// An endpoint's own bytes, to or from this rank of the communicator.
    Own { place: i32 },
    /// The same with those of a guest, which are in its lane.
    Guest { rank: Rank, place: i32 },
    /// A guest's own bytes, to or from the lane of its endpoint.
    Lane,
}

/// A slot full of bytes on their way from one rank to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Parcel {
    turn: Turn,
    pub from: Rank,
    pub to: Rank,
    /// It leaves this GPU, or comes there.
    pub leaves: bool,
    pub part: Part,
    /// In [`Errands::runs`].
    runs: (u32, u32),
}

impl Parcel {
    /// True if it goes through the lane between this rank and `peer`.
    pub(super) fn passes(&self, peer: Rank) -> bool {
        match self.part {
            Part::Own { .. } => false,
            Part::Guest { rank, .. } => rank == peer,
            // The one lane of a guest.
            Part::Lane => true,
        }
    }

    /// True if this rank is the one that fills the lane.
    pub(super) fn fills_lane(&self) -> bool {
        match self.part {
            Part::Own { .. } => false,
            Part::Guest { .. } => !self.leaves,
            Part::Lane => self.leaves,
        }
    }
}

/// What one rank does for the parcels of a plan.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Errands {
    runs: Vec<Run>,
    /// By step, turn, then ranks.
    parcels: Vec<Parcel>,
    /// Of all steps.
    turns: Vec<TurnOf>,
    /// By step: what of the turns is its.
    steps: Vec<Range<usize>>,
}

/// What one rank does in a turn.
#[derive(Debug, PartialEq, Eq)]
struct TurnOf {
    parcels: Range<usize>,
    /// Whom it may wait for.
    company: Vec<Rank>,
}

/// A message that endpoints carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Carried {
    from: Rank,
    to: Rank,
    /// Among the messages of the program that it is from.
    message: usize,
    bytes: u64,
}

impl Errands {
    /// Of a rank with this program, and the endpoint of `guests` if it is one.
    /// Fails if an endpoint on the way is none of `participants`.
    pub(super) fn new(
        peers: &Peers,
        program: &Program,
        guests: &[(Rank, Program)],
        participants: &[Rank],
    ) -> Result<Errands> {
        let mut errands = Errands::default();
        let own = std::iter::once((peers.me(), program));
        let programs: Vec<_> = own.chain(guests.iter().map(|(r, p)| (*r, p))).collect();
        for step in 0..program.steps.len() {
            let begin = errands.parcels.len();
            let carried = carried(peers, &programs, step)?;
            for flow in carried.chunk_by(|a, b| (a.from, a.to) == (b.from, b.to)) {
                peers.doors(flow[0].from, flow[0].to, participants)?;
                errands.cut(peers, flow)?;
            }
            errands.parcels[begin..].sort_unstable_by_key(|p| (p.turn, p.from, p.to));
            errands.take_turns(peers, begin)?;
        }
        Ok(errands)
    }

    /// Puts the parcels of a step, those from `begin` on, into turns.
    fn take_turns(&mut self, peers: &Peers, begin: usize) -> Result<()> {
        let (first, mut at) = (self.turns.len(), begin);
        for turn in self.parcels[begin..].chunk_by(|a, b| a.turn == b.turn) {
            let mut company = Vec::new();
            for parcel in turn {
                company.extend(peers.next_to(parcel)?);
            }
            company.sort_unstable();
            company.dedup();
            self.turns.push(TurnOf {
                parcels: at..at + turn.len(),
                company,
            });
            at += turn.len();
        }
        self.steps.push(first..self.turns.len());
        Ok(())
    }

    /// Cuts what goes from one rank to another into parcels.
    fn cut(&mut self, peers: &Peers, flow: &[Carried]) -> Result<()> {
        let (from, to) = (flow[0].from, flow[0].to);
        let (leaves, part) = peers.part_in(from, to)?;
        let together = (peers.index(from)? + peers.index(to)?) as u32 / 2;
        let slot_bytes = peers.slot_bytes();
        let (mut begin, mut at) = (self.runs.len() as u32, 0);
        let mut number = 0;
        let mut finish = |runs: &[Run], begin: &mut u32, at: &mut u64| {
            self.parcels.push(Parcel {
                turn: (number, together),
                from,
                to,
                leaves,
                part,
                runs: (*begin, runs.len() as u32),
            });
            number += 1;
            (*begin, *at) = (runs.len() as u32, 0);
        };
        for &Carried { message, bytes, .. } in flow {
            let mut done = 0;
            while done < bytes {
                if at >= slot_bytes {
                    finish(&self.runs, &mut begin, &mut at);
                }
                let run = Run {
                    message,
                    done,
                    bytes: (bytes - done).min(slot_bytes - at),
                    at,
                };
                self.runs.push(run);
                done += run.bytes;
                at = after_run(at, run.bytes);
            }
        }
        if at > 0 {
            finish(&self.runs, &mut begin, &mut at);
        }
        Ok(())
    }

    fn turns_of(&self, step: u32) -> &[TurnOf] {
        let range = self.steps.get(step as usize).cloned();
        range.map_or(&[], |range| &self.turns[range])
    }

    /// The parcels of a step, turn by turn.
    pub(super) fn turns(&self, step: u32) -> impl Iterator<Item = &[Parcel]> {
        let turns = self.turns_of(step).iter();
        turns.map(|turn| &self.parcels[turn.parcels.clone()])
    }

    pub(super) fn parcels_of(&self, step: u32) -> &[Parcel] {
        match self.turns_of(step) {
            [] => &[],
            [first, .., last] => &self.parcels[first.parcels.start..last.parcels.end],
            [turn] => &self.parcels[turn.parcels.clone()],
        }
    }

    pub(super) fn parcels(&self) -> &[Parcel] {
        &self.parcels
    }

    pub(super) fn runs_of(&self, parcel: &Parcel) -> &[Run] {
        &self.runs[parcel.runs.0 as usize..parcel.runs.1 as usize]
    }

    /// Where the bytes of a parcel are that is from or to this rank.
    pub(super) fn memory<'a>(
        &'a self,
        parcel: &Parcel,
        binding: &'a Binding,
    ) -> impl Iterator<Item = MemoryRange> + 'a {
        self.runs_of(parcel).iter().map(|run| MemoryRange {
            address: binding.contiguous(&binding.program.messages[run.message]) + run.done as usize,
            bytes: run.bytes,
        })
    }

    /// Whom this rank may wait for in a turn of the step, and a number that grows
    /// with the turn, the same on all ranks and above 0; `None` after the last.
    pub(super) fn company(&self, step: u32, turn: usize) -> Option<(&[Rank], u64)> {
        let turn = self.turns_of(step).get(turn)?;
        let (number, together) = self.parcels[turn.parcels.start].turn;
        let place = (u64::from(number) << 32 | u64::from(together)) + 1;
        Some((&turn.company, place))
    }
}

/// What the endpoints carry of a step, by the ranks that it goes from and to.
fn carried(peers: &Peers, programs: &[(Rank, &Program)], step: usize) -> Result<Vec<Carried>> {
    let mut carried = Vec::new();
    for (rank, program) in programs {
        let Some(at) = program.steps.get(step) else {
            continue;
        };
        let first = at.messages.0 as usize;
        let messages = (first..).zip(program.messages_of(at));
        for (message, m) in messages.filter(|(_, m)| m.bytes > 0) {
            let (from, to) = ends(*rank, m);
            if peers.is_carried(from, to)? {
                carried.push(Carried {
                    from,
                    to,
                    message,
                    bytes: m.bytes,
                });
            }
        }
    }
    carried.sort_unstable();
    Ok(carried)
}

/// Whom a message of `rank` goes from and to.
fn ends(rank: Rank, m: &Message) -> (Rank, Rank) {
    match m.direction {
        Direction::Send => (rank, m.peer),
        Direction::Receive => (m.peer, rank),
    }
}

#[cfg(test)]
mod tests {
    use super::super::peers::Peer;
    use super::super::roles::Way;
    use super::*;
    use crate::plan::program::Step;
    use proptest::prelude::*;
    use std::collections::{BTreeSet, VecDeque};

    const SLOT_BYTES: u64 = 64;
    const SLOTS: usize = 4;

    /// `hosts[r]` is the host of rank `r`, which has one GPU.
    fn peers(hosts: &[u32], me: usize) -> Peers {
        let door = |r: usize| hosts.iter().position(|h| *h == hosts[r]).unwrap();
        let mut doors: Vec<usize> = (0..hosts.len()).map(door).collect();
        let doors_of = doors.clone();
        doors.dedup();
        doors.sort_unstable();
        doors.dedup();
        let peer = |r: usize| Peer {
            rank: Rank(r as u32),
            way: Way::Carried,
            host: hosts[r],
            door: Rank(doors_of[r] as u32),
            place: doors.binary_search(&r).ok().map(|place| place as i32),
        };
        let all = (0..hosts.len()).map(peer).collect();
        Peers::new(Rank(me as u32), all, SLOT_BYTES)
    }

    /// What a rank does if messages go as `flows` says: from, to, bytes.
    fn program(me: usize, flows: &[(usize, usize, u64)]) -> Program {
        let message = |&(from, to, bytes): &(usize, usize, u64)| {
            let (peer, direction) = match me {
                _ if from == me => (to, Direction::Send),
                _ if to == me => (from, Direction::Receive),
                _ => return None,
            };
            Some(Message {
                peer: Rank(peer as u32),
                direction,
                stage: 0,
                bucket: 0,
                bytes,
                pieces: (0, 0),
                is_direct: false,
                is_packed_before: false,
                staging: 0,
            })
        };
        let mut messages: Vec<Message> = flows.iter().filter_map(message).collect();
        messages.sort_by_key(|m| m.peer);
        Program {
            steps: vec![Step {
                messages: (0, messages.len() as u32),
                locals: (0, 0),
                staging_bytes: 0,
            }],
            messages,
            ..Program::default()
        }
    }

    fn all_errands(hosts: &[u32], flows: &[(usize, usize, u64)]) -> Vec<Errands> {
        let ranks: Vec<Rank> = (0..hosts.len() as u32).map(Rank).collect();
        let errands = |me: usize| {
            let peers = peers(hosts, me);
            let guest = |g: &Rank| (*g, program(g.0 as usize, flows));
            let guests: Vec<_> = peers.guests().iter().map(guest).collect();
            Errands::new(&peers, &program(me, flows), &guests, &ranks).unwrap()
        };
        (0..hosts.len()).map(errands).collect()
    }

    /// What a rank does next; by turn.
    enum Act<'a> {
        Put(&'a Parcel),
        Take(&'a Parcel),
        Group(&'a [Parcel]),
    }

    fn acts(errands: &Errands) -> VecDeque<Act<'_>> {
        let mut acts = VecDeque::new();
        for turn in errands.turns(0) {
            let (own, carried): (Vec<_>, Vec<_>) = turn.iter().partition(|p| p.part == Part::Lane);
            let (leave, come): (Vec<_>, Vec<_>) = own.into_iter().partition(|p| p.leaves);
            acts.extend(leave.into_iter().map(Act::Put));
            acts.extend(come.into_iter().map(Act::Take));
            if !carried.is_empty() {
                acts.push_back(Act::Group(turn));
            }
        }
        acts
    }

    /// Lets all ranks do what they can until nobody can do anything. Lanes by
    /// guest: what is in them, to its endpoint and from there.
    fn play(all: &[Errands]) -> std::result::Result<(), String> {
        let mut acts: Vec<_> = all.iter().map(acts).collect();
        let mut lanes = vec![[Vec::new(), Vec::new()]; all.len()];
        // What NCCL has done for one of two endpoints.
        let mut passed = BTreeSet::new();
        let name = |p: &Parcel| (p.turn, p.from, p.to);
        loop {
            // Groups that have what their guests give them, and room for more.
            let launched = |i: usize, lanes: &[[Vec<_>; 2]]| match acts[i].front() {
                Some(Act::Group(turn)) => turn.iter().all(|p| match p.part {
                    Part::Guest { rank, .. } if p.leaves => {
                        lanes[rank.0 as usize][0].contains(&name(p))
                    }
                    Part::Guest { rank, .. } => lanes[rank.0 as usize][1].len() + 2 <= SLOTS,
                    _ => true,
                }),
                _ => false,
            };
            let running: Vec<_> = (0..all.len()).filter(|i| launched(*i, &lanes)).collect();
            let is_there = |p: &Parcel, but: usize| {
                let others = running.iter().filter(|k| **k != but);
                let mut groups = others.filter_map(|k| match acts[*k].front() {
                    Some(Act::Group(turn)) => Some(*turn),
                    _ => None,
                });
                passed.contains(&name(p))
                    || groups.any(|turn| turn.iter().any(|q| name(q) == name(p)))
            };
            let done = running.iter().copied().filter(|i| match acts[*i].front() {
                Some(Act::Group(turn)) => turn.iter().all(|p| is_there(p, *i)),
                _ => false,
            });
            let done: Vec<usize> = done.collect();
            let mut has_moved = !done.is_empty();
            for i in done {
                let Some(Act::Group(turn)) = acts[i].pop_front() else {
                    continue;
                };
                for p in turn {
                    passed.insert(name(p));
                    match p.part {
                        Part::Guest { rank, .. } if p.leaves => {
                            let lane = &mut lanes[rank.0 as usize][0];
                            // What was put first is read first.
                            if lane.remove(0) != name(p) {
                                return Err(format!("{p:?} is not the next in its lane"));
                            }
                        }
                        Part::Guest { rank, .. } => lanes[rank.0 as usize][1].push(name(p)),
                        _ => {}
                    }
                }
            }
            for i in 0..all.len() {
                let [to_door, from_door] = &mut lanes[i];
                match acts[i].front() {
                    Some(Act::Put(p)) if to_door.len() < SLOTS => to_door.push(name(p)),
                    Some(Act::Take(p)) if from_door.first() == Some(&name(p)) => {
                        from_door.remove(0);
                    }
                    _ => continue,
                }
                acts[i].pop_front();
                has_moved = true;
            }
            if acts.iter().all(VecDeque::is_empty) {
                return Ok(());
            }
            if !has_moved {
                return Err("everybody waits for somebody".to_string());
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Wherever ranks are and whatever they send: both ends of a parcel cut
        /// it alike, nothing is left out, and nobody waits for ever.
        #[test]
        fn every_parcel_arrives(
            hosts in prop::collection::vec(0u32..4, 2..9),
            flows in prop::collection::vec((0usize..9, 0usize..9, 0u64..400), 0..40),
        ) {
            let n = hosts.len();
            let pairs = flows.into_iter().map(|(from, to, bytes)| (from % n, to % n, bytes));
            let flows: Vec<_> = pairs.filter(|(from, to, _)| from != to).collect();
            let all = all_errands(&hosts, &flows);
            let seen = peers(&hosts, 0);
            for from in 0..n {
                for to in 0..n {
                    let (from, to) = (Rank(from as u32), Rank(to as u32));
                    let of = |me: Rank, leaves: bool| {
                        let errands = &all[me.0 as usize];
                        let ours = errands.parcels().iter();
                        let ours = ours.filter(|p| p.leaves == leaves && (p.from, p.to) == (from, to));
                        let cut = |r: &Run| (r.done, r.bytes, r.at);
                        let cuts = |p| errands.runs_of(p).iter().map(cut).collect::<Vec<_>>();
                        ours.map(cuts).collect::<Vec<_>>()
                    };
                    let sent = of(from, true);
                    let sizes = sent.iter().flatten().map(|r| r.1);
                    let is_flow = |f: &&(usize, usize, u64)| (f.0, f.1) == (from.0 as usize, to.0 as usize);
                    let is_carried = from != to && seen.is_carried(from, to).unwrap();
                    let wanted = flows.iter().filter(is_flow).filter(|_| is_carried);
                    prop_assert_eq!(sizes.sum::<u64>(), wanted.map(|f| f.2).sum::<u64>());
                    if !is_carried {
                        continue;
                    }
                    let doors = seen.doors(from, to, &(0..n as u32).map(Rank).collect::<Vec<_>>());
                    let doors = doors.unwrap();
                    prop_assert_eq!(&sent, &of(doors[0], true));
                    prop_assert_eq!(&sent, &of(doors[1], false));
                    prop_assert_eq!(&sent, &of(to, false));
                }
            }
            prop_assert_eq!(play(&all), Ok(()));
        }
    }
}
