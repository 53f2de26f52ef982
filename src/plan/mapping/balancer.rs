//! Which member of a weight-mapping group receives from a source rank.
//!
//! Several source ranks, one per pipeline stage, feed one group. The balancer
//! hands them out so that every member receives about equally often, and never
//! from its own device. It keeps one *book* per group: an entry per member,
//! ordered by how often it was chosen, then by a sequence number.
//!
//! ```text
//!   group {4, 5, 6, 7}, a sender on the device of 5, opened at slot 1
//!
//!   slot      1(rank 5)  2(rank 6)  3(rank 7)  0(rank 4)
//!   hits, seq   0, 0       0, 1       0, 2       0, 3
//!   rank 5 shares the device: it goes to the back of its row (seq 4)
//!   rank 6 is the first that does not: chosen, hits becomes 1
//! ```
//!
//! A member that was sent to the back stays there, for later senders too. The
//! group is read as a heap, so a request takes logarithmic time; only a sender
//! that shares a device with a member walks the whole group.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// One member of a group: the least entry is served first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    hits: u32,
    seq: u32,
    /// Position in the group.
    slot: u32,
}

/// The entries of one group.
#[derive(Debug)]
pub(super) struct Book {
    heap: BinaryHeap<Reverse<Entry>>,
    /// The sequence number of the next member that is sent to the back.
    next: u32,
    /// The devices of the members, by slot.
    devices: Vec<u32>,
    /// The devices to avoid, ascending: the same ones, or none at all.
    sorted: Vec<u32>,
}

/// A member that may receive from the sender who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    pub slot: usize,
    /// The member that was least loaded but shares the sender's device.
    pub avoided: Option<usize>,
}

impl Book {
    /// A book over members on `devices`, with `first` the first to be served.
    pub fn new(devices: Vec<u32>, first: usize) -> Book {
        let size = devices.len();
        let heap = (0..size)
            .map(|k| {
                Reverse(Entry {
                    hits: 0,
                    seq: k as u32,
                    slot: ((first + k) % size) as u32,
                })
            })
            .collect();
        let mut sorted = devices.clone();
        sorted.sort_unstable();
        Book {
            heap,
            next: size as u32,
            devices,
            sorted,
        }
    }

    /// The same book, but any member may receive from its own device.
    pub fn keeping_same_device(mut self) -> Book {
        self.sorted.clear();
        self
    }

    /// True if some member must not receive from `device`.
    pub fn collides(&self, device: u32) -> bool {
        self.sorted.binary_search(&device).is_ok()
    }

    /// Chooses a member for a sender on `device`; none if all must be avoided.
    pub fn choose(&mut self, device: u32) -> Option<Choice> {
        if self.collides(device) {
            return self.choose_around(device);
        }
        let mut least = self.heap.peek_mut()?;
        least.0.hits += 1;
        Some(Choice {
            slot: least.0.slot as usize,
            avoided: None,
        })
    }

    /// The same where some members are on the sender's device.
    ///
    /// The least entry is taken as many times as there are members. One that
    /// collides goes to the back of its row at once, and may come up again in
    /// this very request, ahead of busier members.
    fn choose_around(&mut self, device: u32) -> Option<Choice> {
        let mut legal = Vec::with_capacity(self.devices.len());
        let mut avoided = None;
        for _ in 0..self.devices.len() {
            let mut entry = self.heap.pop()?.0;
            if self.devices[entry.slot as usize] != device {
                legal.push(entry);
                continue;
            }
            if legal.is_empty() && avoided.is_none() {
                avoided = Some(entry.slot as usize);
            }
            entry.seq = self.next;
            self.next += 1;
            self.heap.push(Reverse(entry));
        }
        if legal.is_empty() {
            legal.push(self.take_busier(device)?);
        }
        legal[0].hits += 1;
        let slot = legal[0].slot as usize;
        self.heap.extend(legal.into_iter().map(Reverse));
        Some(Choice { slot, avoided })
    }

    /// The least entry on another device, taken out of the book.
    ///
    /// Needed where colliding members with few hits came up again and again and
    /// crowded out the busier ones, of which one may well be legal.
    fn take_busier(&mut self, device: u32) -> Option<Entry> {
        let legal = self
            .heap
            .iter()
            .map(|entry| entry.0)
            .filter(|entry| self.devices[entry.slot as usize] != device)
            .min()?;
        self.heap.retain(|entry| entry.0 != legal);
        Some(legal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_turns_from_the_first() {
        let mut book = Book::new(vec![10, 11, 12], 2);
        let slots: Vec<_> = (0..6).map(|_| book.choose(0).unwrap().slot).collect();
        assert_eq!(slots, [2, 0, 1, 2, 0, 1]);
    }

    #[test]
    fn says_what_it_avoided() {
        let mut book = Book::new(vec![10, 11], 0);
        let choice = book.choose(10).unwrap();
        assert_eq!(
            choice,
            Choice {
                slot: 1,
                avoided: Some(0)
            }
        );
        // The other member collides, but would not have been first.
        let choice = book.choose(11).unwrap();
        assert_eq!(
            choice,
            Choice {
                slot: 0,
                avoided: None
            }
        );
    }

    #[test]
    fn a_busy_member_is_better_than_none() {
        let mut book = Book::new(vec![10, 11], 0);
        for _ in 0..3 {
            assert_eq!(book.choose(11).unwrap().slot, 0);
        }
        assert_eq!(book.choose(10).unwrap().slot, 1);
    }

    #[test]
    fn none_if_all_collide() {
        let mut book = Book::new(vec![7, 7], 0);
        assert_eq!(book.choose(7), None);
    }
}

/// The recorded calls, with the books after each.
#[cfg(test)]
mod recorded {
    use super::*;
    use serde::Deserialize;
    use std::collections::BTreeMap;

    #[derive(Deserialize)]
    struct Record {
        /// By rank.
        devices: Vec<u32>,
        calls: Vec<Call>,
    }

    /// Sender, whether contested senders are being served, the slot that would
    /// open the book, members, who was chosen, whether any member collided, the
    /// next sequence number, and the entries `[hits, seq, slot]` in order.
    #[derive(Deserialize)]
    struct Call(
        usize,
        u8,
        usize,
        Vec<usize>,
        Option<usize>,
        u8,
        u32,
        Vec<[u32; 3]>,
    );

    #[test]
    fn every_recorded_call() {
        let text = include_str!("../../../tests/golden/mapping/balancer.json");
        let records: Vec<Record> = serde_json::from_str(text).unwrap();
        let mut calls = 0;
        for record in &records {
            let mut books = BTreeMap::new();
            for call in &record.calls {
                replay(call, &record.devices, &mut books);
                calls += 1;
            }
        }
        assert_eq!(records.len(), 18);
        println!("compared {calls} calls of {} configurations", records.len());
    }

    fn replay(call: &Call, devices: &[u32], books: &mut BTreeMap<Vec<usize>, Book>) {
        let Call(sender, contested, first, members, chosen, collided, next, entries) = call;
        let book = books
            .entry(members.clone())
            .or_insert_with(|| Book::new(members.iter().map(|&r| devices[r]).collect(), *first));
        let device = devices[*sender];
        assert_eq!(book.collides(device), *collided == 1);
        let got = if book.collides(device) == (*contested == 1) {
            book.choose(device).map(|choice| members[choice.slot])
        } else {
            None
        };
        assert_eq!(got, *chosen);
        assert_eq!(book.next, *next);
        let mut now: Vec<_> = book
            .heap
            .iter()
            .map(|e| [e.0.hits, e.0.seq, e.0.slot])
            .collect();
        now.sort_unstable();
        assert_eq!(now, *entries);
    }
}
