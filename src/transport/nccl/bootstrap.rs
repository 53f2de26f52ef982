//! From greetings to a communicator that works.

use super::address::{Address, BoardAddress, IpcScope, Mode, check};
use super::board::Board;
use super::colocated::Colocated;
use super::comm::{Comm, CommLimits};
use super::identity::{gpu_id, host_id};
use super::library::{MULTI_RANK_GPU, NCCL_UNIQUE_ID_BYTES, Nccl};
use super::link::SLOT_BYTES_DEFAULT;
use super::patience::Patience;
use super::roles::{members, peers};
use super::turn::turn_of;
use super::{NcclTransport, OnAbort, Remains, warm_up};
use crate::device::cuda::gpu::Gpu;
use crate::device::cuda::gpu::current_device;
use crate::device::fence::AbortCell;
use crate::error::{Error, Result, Status};
use crate::rank::Rank;
use crate::transport::patience::LOOK;
use crate::transport::{Bootstrap, Kind, Transport};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Whose communicator a transport works with.
#[derive(Debug)]
pub enum CommSource {
    /// One of its own, from a unique id: this one, the same on all ranks, or
    /// one that the lowest rank makes and sends with its greeting.
    Own {
        id: Option<[u8; NCCL_UNIQUE_ID_BYTES]>,
    },
    /// One of its own, split off this `ncclComm_t`. All ranks of it have to
    /// come; it must be idle, and not be used until the ranks have met. After
    /// that nothing is shared.
    Split { comm: usize },
    /// This `ncclComm_t` itself: no further memory. Its owner issues nothing
    /// on it between the start and the end of a request, and destroys it only
    /// after the transport.
    Direct { comm: usize, on_abort: OnAbort },
    /// One of its own, made from what is left of a transport that has failed:
    /// by ncclCommShrink if that can be on all ranks, else from a unique id.
    Rebuilt { from: Remains },
}

/// What a transport is made with.
#[derive(Debug)]
pub struct NcclOptions {
    /// The NCCL to use; `None` searches.
    pub library: Option<PathBuf>,
    /// The GPU; `None` is the current one of the calling thread, or that of
    /// the borrowed communicator.
    pub device: Option<u32>,
    pub source: CommSource,
    pub limits: CommLimits,
    /// After a failure keep what is needed to rebuild with the survivors
    /// without meeting anew. Costs memory until then.
    pub is_rebuildable: bool,
    /// Which ranks of a host exchange bytes without NCCL.
    pub ipc: IpcScope,
    /// Ranks that are reached so read contiguous bytes where they lie in this
    /// rank's buffers, if CUDA can export these. They stay allocated then until a
    /// request of the same plan with others in their place has ended, or the peers
    /// have dropped their transports.
    pub is_lending: bool,
    /// Names this host; `None` takes the boot id. Ranks that give the same are
    /// taken to be on one host.
    pub host: Option<[u8; 16]>,
    /// Bytes that go through GPU memory between two ranks at a time, the same on
    /// all ranks; four times as many are allocated. 0 takes 4 MiB.
    pub slot_bytes: u32,
}

impl Default for NcclOptions {
    fn default() -> NcclOptions {
        NcclOptions {
            library: None,
            device: None,
            source: CommSource::Own { id: None },
            limits: CommLimits::default(),
            is_rebuildable: false,
            ipc: IpcScope::default(),
            is_lending: false,
            host: None,
            slot_bytes: 0,
        }
    }
}

/// A rank that has a GPU and NCCL and has met nobody.
#[derive(Debug)]
pub struct NcclBootstrap {
    nccl: &'static Nccl,
    gpu: Arc<Gpu>,
    source: CommSource,
    limits: CommLimits,
    is_rebuildable: bool,
    address: Vec<u8>,
    lends: bool,
    /// `None` if no bytes go around NCCL.
    board: Option<Board>,
    abort: Arc<AbortCell>,
}

impl NcclBootstrap {
    /// Finds NCCL and the GPU. `is_lowest` of the transport's ranks makes the
    /// unique id, if one is needed.
    pub fn new(is_lowest: bool, options: NcclOptions) -> Result<NcclBootstrap> {
        options.limits.check()?;
        let library = options.library.as_deref();
        let is_borrowed = matches!(
            options.source,
            CommSource::Split { .. } | CommSource::Direct { .. }
        );
        let nccl = match (&options.source, is_borrowed) {
            (CommSource::Rebuilt { from }, _) => from.nccl(),
            (_, true) => Nccl::find_loaded(library)?,
            (_, false) => Nccl::find(library)?,
        };
        let (device, place) = locate(nccl, &options)?;
        let gpu = Gpu::new(device)?;
        let id = match &options.source {
            CommSource::Own { id: Some(id) } => Some(*id),
            CommSource::Own { id: None } | CommSource::Rebuilt { .. } if is_lowest => {
                Some(nccl.unique_id()?)
            }
            _ => None,
        };
        let parent = match &options.source {
            CommSource::Rebuilt { from } => from.kept_as().unwrap_or(0),
            _ => 0,
        };
        let has_ipc = options.ipc != IpcScope::Off;
        let board = has_ipc.then(Board::new).transpose()?;
        let address = Address {
            mode: mode_of(&options.source),
            version: nccl.version(),
            host: options.host.map_or_else(host_id, Ok)?,
            gpu: gpu_id(&gpu)?,
            uuid: gpu.uuid()?,
            ipc: options.ipc,
            board: board
                .as_ref()
                .map_or(BoardAddress::default(), Board::address),
            slot_bytes: match options.slot_bytes {
                0 => SLOT_BYTES_DEFAULT,
                bytes => bytes,
            },
            shares_gpu: nccl.can(&MULTI_RANK_GPU) && wants_shared_gpus(),
            place,
            parent,
            id,
        };
        Ok(NcclBootstrap {
            nccl,
            gpu,
            source: options.source,
            limits: options.limits,
            is_rebuildable: options.is_rebuildable,
            address: address.encode(),
            lends: options.is_lending,
            board,
            abort: Arc::default(),
        })
    }
}

fn mode_of(source: &CommSource) -> Mode {
    match source {
        CommSource::Own { .. } => Mode::Own,
        CommSource::Split { .. } => Mode::Split,
        CommSource::Direct { .. } => Mode::Direct,
        CommSource::Rebuilt { .. } => Mode::Rebuilt,
    }
}

/// The GPU, and the place in the communicator that there is already.
fn locate(nccl: &'static Nccl, options: &NcclOptions) -> Result<(u32, (i32, i32))> {
    let (device, place) = match &options.source {
        CommSource::Own { .. } => (None, (0, 0)),
        CommSource::Split { comm } | CommSource::Direct { comm, .. } => {
            if *comm == 0 {
                return Err(Error::invalid("the borrowed communicator is NULL"));
            }
            let mut comm = Comm::borrow(nccl, turn_of(0), *comm);
            (Some(comm.device()?), comm.place()?)
        }
        CommSource::Rebuilt { from } => (Some(from.gpu().index), from.place()),
    };
    let device = match (device, options.device) {
        (Some(of_comm), Some(asked)) if of_comm != asked => {
            return Err(Error::invalid(format!(
                "GPU {asked} is asked for and the communicator is on GPU {of_comm}"
            )));
        }
        (Some(device), _) | (None, Some(device)) => device,
        (None, None) => current_device()?,
    };
    Ok((device, place))
}

/// NCCL's own switch, which it reads itself.
fn wants_shared_gpus() -> bool {
    std::env::var("NCCL_MULTI_RANK_GPU_ENABLE").is_ok_and(|v| v.trim() == "1")
}

impl Bootstrap for NcclBootstrap {
    fn kind(&self) -> Kind {
        Kind::Nccl
    }

    fn address(&self) -> &[u8] {
        &self.address
    }

    fn abort_cell(&self) -> Option<Arc<AbortCell>> {
        Some(self.abort.clone())
    }

    fn meet(
        self: Box<Self>,
        rank: Rank,
        addresses: &[(Rank, Vec<u8>)],
        group: u128,
        deadline: Instant,
    ) -> Result<Arc<dyn Transport>> {
        let decode = |(rank, bytes): &(Rank, Vec<u8>)| {
            let address = Address::decode(*rank, bytes)?;
            Ok((*rank, address))
        };
        let all = addresses.iter().map(decode).collect::<Result<Vec<_>>>()?;
        check(&all)?;
        let index = all.iter().position(|(r, _)| *r == rank);
        let index = index.ok_or_else(|| Error::internal("a rank that is none of its own"))?;
        let members = members(&all);
        let is_member = members.binary_search(&rank).is_ok();
        let comm = match is_member {
            true => Some(self.make(rank, &members, &all, deadline)?),
            false => None,
        };
        let peers = peers(&all, &members, &all[index]);
        let colocated = match self.board {
            Some(board) => {
                let peers = (&peers, self.lends);
                Colocated::new(&self.gpu, board, (index, &all), peers, &self.abort)?
            }
            None => None,
        };
        let place = peers.place_of(rank)?;
        let count = match all[0].1.mode {
            Mode::Direct => all[0].1.place.1,
            Mode::Own | Mode::Split | Mode::Rebuilt => members.len() as i32,
        };
        let on_abort = match self.source {
            CommSource::Direct { on_abort, .. } => Some(on_abort),
            _ => None,
        };
        let transport = NcclTransport::start(super::Parts {
            rank,
            nccl: self.nccl,
            gpu: self.gpu,
            comm,
            colocated,
            place: (place.unwrap_or(-1), count),
            peers,
            group,
            is_rebuildable: self.is_rebuildable,
            on_abort,
            abort: self.abort,
        })?;
        if is_member {
            warm_up::warm_up(&transport, deadline)?;
        }
        Ok(transport)
    }
}

impl NcclBootstrap {
    /// The communicator of `members`, of which `rank` is one.
    fn make(
        &self,
        rank: Rank,
        members: &[Rank],
        all: &[(Rank, Address)],
        deadline: Instant,
    ) -> Result<Comm> {
        let index = members.binary_search(&rank).unwrap_or_default();
        let place = (index as i32, members.len() as i32);
        let turn = turn_of(self.gpu.index);
        let patience = Patience {
            abort: &self.abort,
            deadline: Some(deadline),
        };
        let is_member = |(r, _): &&(Rank, Address)| members.binary_search(r).is_ok();
        let ours: Vec<&Address> = all.iter().filter(is_member).map(|(_, a)| a).collect();
        match &self.source {
            CommSource::Direct { comm, .. } => Ok(Comm::borrow(self.nccl, turn, *comm)),
            CommSource::Split { comm } => self.split(*comm, place.0, deadline),
            CommSource::Rebuilt { from } if can_shrink(&ours) => {
                from.shrink(&excluded(&ours), &self.limits, patience)
            }
            CommSource::Own { .. } | CommSource::Rebuilt { .. } => {
                let Some(id) = all.iter().find_map(|(_, a)| a.id) else {
                    return Err(Error::internal("no rank has sent a unique id"));
                };
                let _current = self.gpu.enter()?;
                Comm::init(self.nccl, turn, id, place, &self.limits, patience)
            }
        }
    }

    /// A blocking parent blocks us in NCCL for as long as a rank does not come,
    /// so the call is made beside this thread.
    fn split(&self, parent: usize, key: i32, deadline: Instant) -> Result<Comm> {
        let (sender, receiver) = mpsc::channel();
        let (nccl, gpu, limits) = (self.nccl, self.gpu.clone(), self.limits);
        let abort = self.abort.clone();
        let body = move || {
            let split = || {
                let _current = gpu.enter()?;
                let patience = Patience {
                    abort: &abort,
                    deadline: Some(deadline),
                };
                Comm::split(nccl, turn_of(gpu.index), parent, key, &limits, patience)
            };
            // If nobody waits any more, the communicator is freed.
            let _ = sender.send(split());
        };
        std::thread::Builder::new()
            .name("wsync-split".into())
            .spawn(body)
            .map_err(|e| Error::os("starting a thread to split a communicator", &e))?;
        // A little longer, so that the thread's own reason comes first.
        let until = deadline + Duration::from_millis(100);
        loop {
            if let Some(reason) = self.abort.reason() {
                return Err(reason);
            }
            let left = until.saturating_duration_since(Instant::now());
            match receiver.recv_timeout(left.min(LOOK)) {
                Ok(result) => return result,
                Err(RecvTimeoutError::Timeout) if !left.is_zero() => {}
                Err(_) => {
                    return Err(Error::new(
                        Status::MeetTimeout,
                        "the borrowed communicator could not be split in time: some rank of it is \
                         not in ncclCommSplit, or it has work that does not end",
                    ));
                }
            }
        }
    }
}

/// True if every NCCL rank has kept its part of the same failed communicator.
fn can_shrink(ours: &[&Address]) -> bool {
    let parent = ours.first().map_or(0, |a| a.parent);
    parent != 0 && ours.iter().all(|a| a.parent == parent)
}

/// The places of the failed communicator that nobody has come from.
fn excluded(ours: &[&Address]) -> Vec<i32> {
    let count = ours.first().map_or(0, |a| a.place.1);
    let is_here = |place: &i32| ours.iter().any(|a| a.place.0 == *place);
    (0..count).filter(|place| !is_here(place)).collect()
}
