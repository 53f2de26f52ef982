//! What ranks tell each other before they make a communicator, and what must
//! fit together.
//!
//! NCCL finds out for itself that versions differ or that two ranks sit on one
//! GPU, but late, on some ranks only, and without naming them.

use super::library::{MULTI_RANK_GPU, NCCL_UNIQUE_ID_BYTES, version_text};
use crate::error::{Error, Result, Status};
use crate::rank::Rank;

/// Whose communicator it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Mode {
    /// Made from a unique id.
    Own = 1,
    /// Split off a borrowed one.
    Split = 2,
    /// The borrowed one itself.
    Direct = 3,
    /// Shrunk from the one of a failed transport, or made from a unique id if
    /// some rank cannot.
    Rebuilt = 4,
}

impl Mode {
    const ALL: [Mode; 4] = [Mode::Own, Mode::Split, Mode::Direct, Mode::Rebuilt];

    fn name(self) -> &'static str {
        match self {
            Mode::Own => "makes a communicator of its own",
            Mode::Split => "splits a borrowed communicator",
            Mode::Direct => "uses a borrowed communicator",
            Mode::Rebuilt => "rebuilds a failed transport",
        }
    }
}

/// Between which ranks of a host bytes go through GPU memory that one process
/// has exported to the other (CUDA IPC), and not through NCCL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum IpcScope {
    /// Where NCCL does not connect them: it has one rank per GPU, except where
    /// all ranks of a GPU may share it.
    #[default]
    Needed = 0,
    /// None. Several ranks on a GPU are refused, except where they may share.
    Off = 1,
    /// NCCL has one rank per GPU in any case.
    Device = 2,
    /// Any two, if their GPUs reach each other's memory.
    Domain = 3,
}

impl IpcScope {
    const ALL: [IpcScope; 4] = [
        IpcScope::Needed,
        IpcScope::Off,
        IpcScope::Device,
        IpcScope::Domain,
    ];

    fn name(self) -> &'static str {
        match self {
            IpcScope::Needed => "where NCCL needs it",
            IpcScope::Off => "off",
            IpcScope::Device => "per device",
            IpcScope::Domain => "per domain",
        }
    }
}

/// Where the channels that a rank offers are to be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct BoardAddress {
    pub process: u32,
    pub file: u32,
    pub key: u128,
}

/// One rank's part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub mode: Mode,
    /// As `ncclGetVersion` counts.
    pub version: i32,
    /// The boot id of the host.
    pub host: [u8; 16],
    /// The PCI address of the GPU, padded with zeroes.
    pub gpu: [u8; 16],
    /// The id of the GPU, or of its part (MIG); 0 if the driver tells none.
    pub uuid: u128,
    pub ipc: IpcScope,
    pub board: BoardAddress,
    /// What a slot of a channel holds.
    pub slot_bytes: u32,
    /// Several ranks may share a GPU here.
    pub shares_gpu: bool,
    /// In a borrowed communicator, or the failed one: the rank there, and how
    /// many there are.
    pub place: (i32, i32),
    /// Names the failed transport; 0 if this rank has nothing to shrink.
    pub parent: u128,
    /// From the lowest rank, or from all if the caller has handed it out.
    pub id: Option<[u8; NCCL_UNIQUE_ID_BYTES]>,
}

/// Changes whenever the fields do.
const FORMAT: u8 = 3;
const BOARD_BYTES: usize = 4 + 4 + 16;
const BYTES: usize =
    1 + 1 + 4 + 16 + 16 + 16 + 1 + BOARD_BYTES + 4 + 1 + 8 + 16 + 1 + NCCL_UNIQUE_ID_BYTES;
const _: () = assert!(BYTES <= crate::transport::greeting::ADDRESS_BYTES_MAX);

impl Address {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(BYTES);
        out.extend([FORMAT, self.mode as u8]);
        out.extend(self.version.to_le_bytes());
        out.extend(self.host);
        out.extend(self.gpu);
        out.extend(self.uuid.to_le_bytes());
        out.push(self.ipc as u8);
        out.extend(self.board.process.to_le_bytes());
        out.extend(self.board.file.to_le_bytes());
        out.extend(self.board.key.to_le_bytes());
        out.extend(self.slot_bytes.to_le_bytes());
        out.push(self.shares_gpu.into());
        out.extend(self.place.0.to_le_bytes());
        out.extend(self.place.1.to_le_bytes());
        out.extend(self.parent.to_le_bytes());
        out.push(self.id.is_some().into());
        out.extend(self.id.unwrap_or([0; NCCL_UNIQUE_ID_BYTES]));
        out
    }

    pub(super) fn decode(rank: Rank, bytes: &[u8]) -> Result<Address> {
        let damaged = || {
            let text = format!("the NCCL address of rank {rank} is damaged");
            Error::corrupt(text).by(rank)
        };
        if bytes.len() != BYTES || bytes[0] != FORMAT {
            return Err(damaged());
        }
        let mut reader = Reader(&bytes[1..]);
        let mode = reader.array::<1>()[0];
        let mode = Mode::ALL.into_iter().find(|m| *m as u8 == mode);
        Ok(Address {
            mode: mode.ok_or_else(damaged)?,
            version: i32::from_le_bytes(reader.array()),
            host: reader.array(),
            gpu: reader.array(),
            uuid: u128::from_le_bytes(reader.array()),
            ipc: {
                let ipc = reader.array::<1>()[0];
                let ipc = IpcScope::ALL.into_iter().find(|i| *i as u8 == ipc);
                ipc.ok_or_else(damaged)?
            },
            board: BoardAddress {
                process: u32::from_le_bytes(reader.array()),
                file: u32::from_le_bytes(reader.array()),
                key: u128::from_le_bytes(reader.array()),
            },
            slot_bytes: u32::from_le_bytes(reader.array()),
            shares_gpu: reader.array::<1>()[0] != 0,
            place: (
                i32::from_le_bytes(reader.array()),
                i32::from_le_bytes(reader.array()),
            ),
            parent: u128::from_le_bytes(reader.array()),
            id: {
                let is_there = reader.array::<1>()[0] != 0;
                let id = reader.array();
                is_there.then_some(id)
            },
        })
    }

    /// True if both are on the same GPU, or the same part of one.
    pub(super) fn is_on_gpu_of(&self, other: &Address) -> bool {
        let is_same = match self.uuid != 0 && other.uuid != 0 {
            true => self.uuid == other.uuid,
            false => self.gpu == other.gpu,
        };
        self.host == other.host && is_same
    }

    pub(super) fn gpu_text(&self) -> String {
        let end = self.gpu.iter().position(|b| *b == 0).unwrap_or(16);
        String::from_utf8_lossy(&self.gpu[..end]).into_owned()
    }
}

/// Reads fields of bytes whose number was checked.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> [u8; N] {
        let (head, rest) = self.0.split_at(N);
        self.0 = rest;
        std::array::from_fn(|i| head[i])
    }
}

/// Checks that the ranks can make one communicator.
pub(super) fn check(all: &[(Rank, Address)]) -> Result<()> {
    let Some((first, rest)) = all.split_first() else {
        return Err(Error::internal("a transport without ranks"));
    };
    for other in rest {
        check_pair(first, other)?;
    }
    let has_ipc = first.1.ipc != IpcScope::Off;
    match first.1.mode {
        Mode::Own | Mode::Rebuilt if has_ipc => {}
        Mode::Own | Mode::Rebuilt | Mode::Split => check_gpus(all)?,
        Mode::Direct => {}
    }
    if matches!(first.1.mode, Mode::Split | Mode::Direct) {
        check_places(all)?;
    }
    Ok(())
}

fn check_pair((first, a): &(Rank, Address), (rank, b): &(Rank, Address)) -> Result<()> {
    if a.mode != b.mode {
        let (x, y) = (a.mode.name(), b.mode.name());
        return Err(Error::invalid(format!("rank {first} {x}, rank {rank} {y}")).by(*rank));
    }
    if a.version != b.version {
        return Err(Error::new(
            Status::VersionMismatch,
            format!(
                "rank {first} has NCCL {}, rank {rank} has {}; all ranks need the same",
                version_text(a.version),
                version_text(b.version)
            ),
        )
        .by(*rank));
    }
    if a.ipc != b.ipc {
        let (x, y) = (a.ipc.name(), b.ipc.name());
        return Err(Error::invalid(format!(
            "rank {first} has IPC {x}, rank {rank} has it {y}; all ranks need the same"
        ))
        .by(*rank));
    }
    if a.slot_bytes != b.slot_bytes {
        return Err(Error::invalid(format!(
            "rank {first} has channels with slots of {} bytes, rank {rank} of {}; all ranks need \
             the same",
            a.slot_bytes, b.slot_bytes
        ))
        .by(*rank));
    }
    if b.id.is_some() && a.id != b.id {
        return Err(Error::invalid(format!(
            "rank {rank} was given another unique id than rank {first}"
        ))
        .by(*rank));
    }
    Ok(())
}

/// NCCL refuses two ranks on one GPU, except where they are told to share.
fn check_gpus(all: &[(Rank, Address)]) -> Result<()> {
    for (i, (rank, b)) in all.iter().enumerate() {
        let same = all[..i].iter().find(|(_, a)| a.is_on_gpu_of(b));
        let Some((first, a)) = same.filter(|(_, a)| !(a.shares_gpu && b.shares_gpu)) else {
            continue;
        };
        let hint = match a.mode {
            Mode::Split => "; or let the transport make a communicator of its own",
            _ => "; or allow CUDA IPC between them",
        };
        return Err(Error::new(
            Status::Unsupported,
            format!(
                "ranks {first} and {rank} are both on GPU {} of one host; NCCL takes one rank per \
                 GPU (from {} on more, with NCCL_MULTI_RANK_GPU_ENABLE=1){hint}",
                b.gpu_text(),
                MULTI_RANK_GPU.since_text()
            ),
        )
        .by(*rank));
    }
    Ok(())
}

/// In a borrowed communicator every rank has a place of its own, and it is as
/// large everywhere. To be split, all its ranks must come.
fn check_places(all: &[(Rank, Address)]) -> Result<()> {
    let (first, a) = &all[0];
    let mut taken: Vec<(i32, Rank)> = all.iter().map(|(r, a)| (a.place.0, *r)).collect();
    taken.sort_unstable();
    if let Some(pair) = taken.windows(2).find(|w| w[0].0 == w[1].0) {
        return Err(Error::invalid(format!(
            "ranks {} and {} lend rank {} of a communicator",
            pair[0].1, pair[1].1, pair[0].0
        ))
        .by(pair[1].1));
    }
    if let Some((rank, b)) = all.iter().find(|(_, b)| b.place.1 != a.place.1) {
        return Err(Error::invalid(format!(
            "rank {first} lends a communicator of {} ranks, rank {rank} one of {}",
            a.place.1, b.place.1
        ))
        .by(*rank));
    }
    if a.mode == Mode::Split && a.place.1 as usize != all.len() {
        return Err(Error::invalid(format!(
            "a communicator of {} ranks is lent for a transport of {}: all its ranks have to come \
             to split it; DIRECT mode needs them not",
            a.place.1,
            all.len()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(gpu: u8) -> Address {
        let mut at = [0; 16];
        at[..12].copy_from_slice(format!("0000:{gpu:02x}:00.0").as_bytes());
        Address {
            mode: Mode::Own,
            version: 23007,
            host: [7; 16],
            gpu: at,
            uuid: 0,
            ipc: IpcScope::Off,
            board: BoardAddress::default(),
            slot_bytes: 64,
            shares_gpu: false,
            place: (gpu.into(), 3),
            parent: 0,
            id: None,
        }
    }

    fn three() -> Vec<(Rank, Address)> {
        (0..3).map(|i| (Rank(i), address(i as u8))).collect()
    }

    #[test]
    fn addresses_come_back_as_they_went() {
        let mut a = address(3);
        a.id = Some(std::array::from_fn(|i| i as u8));
        a.parent = u128::MAX - 5;
        a.ipc = IpcScope::Domain;
        a.board = BoardAddress {
            process: 7,
            file: 9,
            key: u128::MAX - 3,
        };
        a.mode = Mode::Direct;
        let bytes = a.encode();
        assert_eq!(Address::decode(Rank(1), &bytes).unwrap(), a);
        for n in 0..bytes.len() {
            let e = Address::decode(Rank(1), &bytes[..n]).unwrap_err();
            assert_eq!((e.status, e.rank), (Status::Corrupt, Some(Rank(1))));
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        check(&three()).unwrap();
        let broken = |change: fn(&mut Address)| {
            let mut all = three();
            change(&mut all[2].1);
            check(&all).unwrap_err()
        };
        let e = broken(|a| a.version = 22809);
        assert_eq!(e.status, Status::VersionMismatch);
        assert!(e.message.contains("2.30.7") && e.message.contains("2.28.9"));
        assert_eq!(e.rank, Some(Rank(2)));

        let e = broken(|a| a.gpu = address(0).gpu);
        assert_eq!(e.status, Status::Unsupported);
        assert!(e.message.contains("ranks 0 and 2") && e.message.contains("0000:00:00.0"));

        assert!(broken(|a| a.mode = Mode::Split).message.contains("splits"));
        assert!(
            broken(|a| a.id = Some([1; 128]))
                .message
                .contains("unique id")
        );
    }

    #[test]
    fn ranks_of_one_gpu_may_share_it_if_both_say_so() {
        let mut all = three();
        all[2].1.gpu = all[0].1.gpu;
        all[2].1.shares_gpu = true;
        assert!(check(&all).is_err());
        all[0].1.shares_gpu = true;
        check(&all).unwrap();
        all[2].1.host = [8; 16];
        all[0].1.shares_gpu = false;
        check(&all).unwrap();
    }

    #[test]
    fn parts_of_a_gpu_are_told_apart_by_their_ids() {
        let mut all = three();
        all[2].1.gpu = all[0].1.gpu;
        all[0].1.uuid = 5;
        assert!(check(&all).is_err());
        all[2].1.uuid = 6;
        check(&all).unwrap();
        all[2].1.uuid = 5;
        assert!(check(&all).is_err());
    }

    #[test]
    fn with_ipc_several_ranks_may_be_on_a_gpu_and_all_ranks_agree() {
        let mut all = three();
        all[2].1.gpu = all[0].1.gpu;
        for (_, a) in &mut all {
            a.ipc = IpcScope::Needed;
        }
        check(&all).unwrap();
        all[1].1.ipc = IpcScope::Domain;
        let e = check(&all).unwrap_err();
        assert_eq!(e.rank, Some(Rank(1)));
        assert!(e.message.contains("per domain"), "{e}");
    }

    #[test]
    fn a_borrowed_communicator_is_whole_and_lent_once() {
        let lent = |mode| {
            let mut all = three();
            all.iter_mut().for_each(|(_, a)| a.mode = mode);
            all
        };
        check(&lent(Mode::Split)).unwrap();
        let mut all = lent(Mode::Direct);
        all.iter_mut().for_each(|(_, a)| a.place.1 = 64);
        check(&all).unwrap();
        all[1].1.place.0 = 0;
        assert!(check(&all).unwrap_err().message.contains("ranks 0 and 1"));
        let mut all = lent(Mode::Split);
        all.iter_mut().for_each(|(_, a)| a.place.1 = 64);
        assert!(check(&all).unwrap_err().message.contains("64"));
        all[2].1.place.1 = 3;
        assert_eq!(check(&all).unwrap_err().rank, Some(Rank(2)));
    }
}
