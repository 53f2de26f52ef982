//! The ranks of a transport, and the way to each.

use super::errands::{Parcel, Part};
use super::roles::Way;
use crate::error::{Error, Result, Status};
use crate::rank::Rank;

/// A rank of the transport.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    pub rank: Rank,
    /// From this rank.
    pub way: Way,
    /// Tells hosts apart.
    pub host: u32,
    /// The endpoint of its GPU: itself, if it is in the communicator.
    pub door: Rank,
    /// In the communicator.
    pub place: Option<i32>,
}

/// Ranks, ways and places.
#[derive(Clone, Debug)]
pub(super) struct Peers {
    me: Rank,
    /// Ascending by rank.
    all: Vec<Peer>,
    /// What a slot of a channel holds.
    slot_bytes: u64,
    /// The other ranks on this GPU, if this one is their endpoint.
    guests: Vec<Rank>,
}

impl Peers {
    /// `all` is ascending.
    pub(super) fn new(me: Rank, all: Vec<Peer>, slot_bytes: u64) -> Peers {
        let guests = all.iter().filter(|p| p.door == me && p.rank != me);
        Peers {
            guests: guests.map(|p| p.rank).collect(),
            slot_bytes,
            me,
            all,
        }
    }

    pub(super) fn me(&self) -> Rank {
        self.me
    }

    /// True if this rank is in the communicator.
    pub(super) fn is_member(&self) -> bool {
        self.get(self.me).is_ok_and(|p| p.place.is_some())
    }

    pub(super) fn slot_bytes(&self) -> u64 {
        self.slot_bytes
    }

    /// The ranks that this one is the endpoint of, beside itself.
    pub(super) fn guests(&self) -> &[Rank] {
        &self.guests
    }

    /// Fails if `rank` is unknown.
    pub(super) fn way_to(&self, rank: Rank) -> Result<Way> {
        Ok(self.get(rank)?.way)
    }

    /// Where a rank is among all of them.
    pub(super) fn index(&self, rank: Rank) -> Result<usize> {
        let index = self.all.binary_search_by_key(&rank, |p| p.rank);
        index.map_err(|_| {
            Error::invalid(format!(
                "the plan names rank {rank}, which is none of the {} ranks of the transport",
                self.all.len()
            ))
            .by(rank)
        })
    }

    fn get(&self, rank: Rank) -> Result<&Peer> {
        Ok(&self.all[self.index(rank)?])
    }

    /// True if endpoints carry what these two exchange.
    pub(super) fn is_carried(&self, a: Rank, b: Rank) -> Result<bool> {
        let (a, b) = (self.get(a)?, self.get(b)?);
        Ok(a.host != b.host && (a.place.is_none() || b.place.is_none()))
    }

    /// The endpoints between two ranks, which have to take part.
    pub(super) fn doors(&self, from: Rank, to: Rank, participants: &[Rank]) -> Result<[Rank; 2]> {
        let doors = [self.get(from)?.door, self.get(to)?.door];
        let absent = doors.iter().zip([from, to]);
        let mut absent = absent.filter(|(door, _)| participants.binary_search(door).is_err());
        let Some((door, guest)) = absent.next() else {
            return Ok(doors);
        };
        let message = format!(
            "ranks {from} and {to} are on different hosts, and NCCL takes one rank per GPU, which \
             on the GPU of rank {guest} is rank {door}; that one takes no part in the plan, so \
             nobody carries the bytes: give the rank that does the lower number, or use NCCL \
             2.30.3 or newer with NCCL_MULTI_RANK_GPU_ENABLE=1 on all ranks"
        );
        Err(Error::new(Status::Unsupported, message).by(*door))
    }

    /// What this rank does for bytes that endpoints carry, and whether they
    /// leave its GPU or come there.
    pub(super) fn part_in(&self, from: Rank, to: Rank) -> Result<(bool, Part)> {
        let (from, to) = (self.get(from)?, self.get(to)?);
        let leaves = from.rank == self.me || from.door == self.me;
        let (near, far) = if leaves { (from, to) } else { (to, from) };
        if near.rank == self.me && near.place.is_none() {
            return Ok((leaves, Part::Lane));
        }
        let Some(place) = self.get(far.door)?.place else {
            return Err(Error::internal("an endpoint that NCCL does not know"));
        };
        let rank = near.rank;
        Ok((
            leaves,
            match rank == self.me {
                true => Part::Own { place },
                false => Part::Guest { rank, place },
            },
        ))
    }

    /// True if parcels go between `rank` and this one: the endpoint of a guest,
    /// or a guest of this endpoint.
    pub(super) fn has_lane(&self, rank: Rank) -> bool {
        let is_door = |p: &Peer| p.door == rank && rank != self.me;
        self.guests.contains(&rank) || self.get(self.me).is_ok_and(is_door)
    }

    pub(super) fn place_of(&self, rank: Rank) -> Result<Option<i32>> {
        Ok(self.get(rank)?.place)
    }

    /// Whom this rank waits for on account of a parcel.
    pub(super) fn next_to(&self, parcel: &Parcel) -> Result<impl Iterator<Item = Rank> + use<>> {
        let (near, far) = match parcel.leaves {
            true => (parcel.from, parcel.to),
            false => (parcel.to, parcel.from),
        };
        let next = match parcel.part {
            Part::Lane => [Some(self.get(near)?.door), None],
            Part::Own { .. } => [Some(self.get(far)?.door), None],
            Part::Guest { rank, .. } => [Some(self.get(far)?.door), Some(rank)],
        };
        Ok(next.into_iter().flatten())
    }

    pub(super) fn rank_at(&self, place: i32) -> Option<Rank> {
        let found = self.all.iter().find(|p| p.place == Some(place));
        found.map(|p| p.rank)
    }

    /// The places of all NCCL ranks.
    pub(super) fn places(&self) -> Vec<i32> {
        self.all.iter().filter_map(|p| p.place).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two ranks on the GPU of each of three hosts: the even ones are NCCL's.
    fn six(me: u32) -> Peers {
        let peer = |rank: u32| Peer {
            rank: Rank(rank),
            way: Way::Carried,
            host: rank / 2,
            door: Rank(rank / 2 * 2),
            place: rank.is_multiple_of(2).then_some(rank as i32 / 2),
        };
        Peers::new(Rank(me), (0..6).map(peer).collect(), 64)
    }

    #[test]
    fn everybody_knows_its_part() {
        let part = |me: u32, from, to| six(me).part_in(Rank(from), Rank(to)).unwrap();
        let rank = Rank(1);
        assert_eq!(part(1, 1, 5), (true, Part::Lane));
        assert_eq!(part(0, 1, 5), (true, Part::Guest { rank, place: 2 }));
        let rank = Rank(5);
        assert_eq!(part(4, 1, 5), (false, Part::Guest { rank, place: 0 }));
        assert_eq!(part(5, 1, 5), (false, Part::Lane));
        assert_eq!(part(0, 0, 5), (true, Part::Own { place: 2 }));
        assert_eq!(part(0, 5, 0), (false, Part::Own { place: 2 }));
        assert_eq!(
            (six(0).guests(), six(1).guests()),
            (&[Rank(1)][..], &[][..])
        );
        let carried = |a, b| six(0).is_carried(Rank(a), Rank(b)).unwrap();
        assert!(carried(1, 2) && carried(1, 3) && carried(2, 1));
        assert!(!carried(0, 2) && !carried(0, 1));
    }

    #[test]
    fn an_endpoint_that_takes_no_part_is_named() {
        let all: Vec<Rank> = (0..6).map(Rank).collect();
        let doors = six(0).doors(Rank(1), Rank(5), &all);
        assert_eq!(doors, Ok([Rank(0), Rank(4)]));
        let e = six(0).doors(Rank(1), Rank(5), &all[..4]).unwrap_err();
        assert_eq!((e.status, e.rank), (Status::Unsupported, Some(Rank(4))));
        assert!(e.message.contains("on the GPU of rank 5 is rank 4"), "{e}");
        assert!(e.message.contains("NCCL_MULTI_RANK_GPU_ENABLE"), "{e}");
        let e = six(0).way_to(Rank(9)).unwrap_err();
        assert_eq!((e.status, e.rank), (Status::InvalidArgument, Some(Rank(9))));
    }
}
