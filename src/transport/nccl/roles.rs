//! Which ranks are NCCL's, and how two ranks reach each other.
//!
//! NCCL takes one rank per GPU. Where several are on one, the lowest is its
//! *endpoint*, the NCCL rank; bytes to and from the others go through GPU
//! memory that one process has exported to the other:
//!
//! ```text
//!   GPU 0   rank 0 (endpoint) ◄── NCCL ──► rank 1 (endpoint)   GPU 1
//!             ▲ IPC                          ▲ IPC
//!           rank 2  ◄─────────── IPC ───►  rank 3
//! ```
//!
//! On another host a rank that is not NCCL's is reached through its endpoint
//! (`errands`).

use super::address::{Address, IpcScope, Mode};
use super::peers::{Peer, Peers};
use crate::rank::Rank;

/// How one rank reaches another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// As this rank of the communicator.
    Nccl(i32),
    /// Through a channel in GPU memory.
    Channel,
    /// They are on two hosts, and one of them is not the NCCL rank of its GPU:
    /// the endpoints of both carry the bytes.
    Carried,
}

/// The ranks that are in the communicator, ascending.
pub(super) fn members(all: &[(Rank, Address)]) -> Vec<Rank> {
    let is_member = |(rank, a): &&(Rank, Address)| {
        let is_borrowed = matches!(a.mode, Mode::Split | Mode::Direct);
        is_borrowed || may_share(all, a) || endpoint_of(all, a) == *rank
    };
    all.iter()
        .filter(is_member)
        .map(|(rank, _)| *rank)
        .collect()
}

/// The lowest rank on the GPU of `a`.
fn endpoint_of(all: &[(Rank, Address)], a: &Address) -> Rank {
    let first = all.iter().find(|(_, b)| a.is_on_gpu_of(b));
    first.map_or(Rank(0), |(rank, _)| *rank)
}

/// True if NCCL takes all ranks on the GPU of `a`, and is to.
fn may_share(all: &[(Rank, Address)], a: &Address) -> bool {
    let mut there = all.iter().filter(|(_, b)| a.is_on_gpu_of(b));
    let is_wanted = matches!(a.ipc, IpcScope::Needed | IpcScope::Off);
    is_wanted && there.all(|(_, b)| b.shares_gpu)
}

/// All ranks as `from` sees them; `members` are NCCL's.
pub(super) fn peers(all: &[(Rank, Address)], members: &[Rank], from: &(Rank, Address)) -> Peers {
    let host_of = |a: &Address| all.iter().position(|(_, b)| b.host == a.host);
    let peer = |to: &(Rank, Address)| {
        let place = place(members, to);
        Peer {
            rank: to.0,
            way: way(members, from, to),
            host: host_of(&to.1).unwrap_or_default() as u32,
            door: match place {
                Some(_) => to.0,
                None => endpoint_of(all, &to.1),
            },
            place,
        }
    };
    let slot_bytes = u64::from(from.1.slot_bytes);
    Peers::new(from.0, all.iter().map(peer).collect(), slot_bytes)
}

/// Where a rank is in the communicator, if it is.
fn place(members: &[Rank], (rank, address): &(Rank, Address)) -> Option<i32> {
    let index = members.binary_search(rank).ok()?;
    Some(match address.mode {
        Mode::Direct => address.place.0,
        Mode::Own | Mode::Split | Mode::Rebuilt => index as i32,
    })
}

fn way(members: &[Rank], from: &(Rank, Address), to: &(Rank, Address)) -> Way {
    let is_here = from.1.host == to.1.host && from.0 != to.0;
    let prefers = match from.1.ipc {
        IpcScope::Needed | IpcScope::Off => false,
        IpcScope::Device => from.1.is_on_gpu_of(&to.1),
        IpcScope::Domain => true,
    };
    match (place(members, from), place(members, to)) {
        _ if is_here && prefers => Way::Channel,
        (Some(_), Some(to)) => Way::Nccl(to),
        _ if is_here => Way::Channel,
        (None, _) | (_, None) => Way::Carried,
    }
}

#[cfg(test)]
mod tests {
    use super::super::address::BoardAddress;
    use super::*;

    /// Rank `rank` on GPU `gpu` of host `host`.
    fn rank(rank: u32, host: u8, gpu: u8, ipc: IpcScope) -> (Rank, Address) {
        let address = Address {
            mode: Mode::Own,
            version: 23007,
            host: [host; 16],
            gpu: [gpu; 16],
            uuid: 0,
            ipc,
            board: BoardAddress::default(),
            slot_bytes: 64,
            shares_gpu: false,
            place: (0, 0),
            parent: 0,
            id: None,
        };
        (Rank(rank), address)
    }

    /// Trainers 0 and 1 and engines 2 and 3 on two GPUs of a host, and rank 4
    /// on another host.
    fn five(ipc: IpcScope) -> Vec<(Rank, Address)> {
        let places = [(0, 0), (0, 1), (0, 0), (0, 1), (1, 0)];
        let one = |(i, (host, gpu)): (u32, (u8, u8))| rank(i, host, gpu, ipc);
        (0..).zip(places).map(one).collect()
    }

    fn ways_of(all: &[(Rank, Address)], from: usize) -> Vec<Way> {
        let peers = peers(all, &members(all), &all[from]);
        let way = |(rank, _): &(Rank, Address)| peers.way_to(*rank).unwrap();
        all.iter().map(way).collect()
    }

    #[test]
    fn the_lowest_rank_of_a_gpu_is_its_endpoint() {
        let all = five(IpcScope::Needed);
        assert_eq!(members(&all), [Rank(0), Rank(1), Rank(4)]);
        use Way::{Channel, Nccl};
        let from_0 = [Nccl(0), Nccl(1), Channel, Channel, Nccl(2)];
        assert_eq!(ways_of(&all, 0), from_0);
        let from_2 = ways_of(&all, 2);
        assert_eq!(from_2[..2], [Channel, Channel]);
        assert_eq!(from_2[3..], [Channel, Way::Carried]);
        assert_eq!(ways_of(&all, 4)[3], Way::Carried);
    }

    #[test]
    fn both_ends_choose_the_same_way() {
        for ipc in [IpcScope::Needed, IpcScope::Device, IpcScope::Domain] {
            let all = five(ipc);
            for (i, k) in (0..5).flat_map(|i| (0..5).map(move |k| (i, k))) {
                let (there, back) = (ways_of(&all, i)[k], ways_of(&all, k)[i]);
                let kinds = [there, back].map(|way| std::mem::discriminant(&way));
                assert_eq!(kinds[0], kinds[1], "{ipc:?}: {i} and {k}");
            }
        }
    }

    #[test]
    fn ranks_that_may_share_a_gpu_are_all_of_nccl_unless_ipc_is_chosen() {
        let shared = |ipc| {
            let mut all = five(ipc);
            all.iter_mut().for_each(|(_, a)| a.shares_gpu = true);
            all
        };
        assert_eq!(members(&shared(IpcScope::Needed)).len(), 5);
        assert_eq!(members(&shared(IpcScope::Off)).len(), 5);
        assert_eq!(members(&shared(IpcScope::Device)).len(), 3);
        let domain = ways_of(&shared(IpcScope::Domain), 0);
        assert_eq!(domain[1..4], [Way::Channel; 3]);
        assert_eq!(domain[4], Way::Nccl(2));
    }
}
