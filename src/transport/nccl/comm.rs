//! A communicator: made, used, stopped.
//!
//! ```text
//!   ours      from a unique id, split off a borrowed one, shrunk: non-blocking,
//!             nobody else uses it, ours to abort
//!   borrowed  DIRECT: the caller's; never aborted or freed here
//! ```
//!
//! NCCL allows one thread at a time inside it per communicator, and even asking
//! for the state does work. So everything here takes `&mut self`.
//!
//! While a communicator is made, and while its peers are connected, NCCL waits
//! for peers, and they may be threads of this process on the same GPU. Then the
//! device's turn is taken for each call alone; else for a group as a whole.

use super::library::{Nccl, REVOKE, SHRINK};
use super::patience::Patience;
use crate::error::{Error, Result, Status};
use crate::transport::queue::lock;
use nccl_sys::{
    NCCL_REVOKE_DEFAULT, NCCL_SHRINK_ABORT, NCCL_UNIQUE_ID_BYTES, ncclComm_t, ncclConfig_t,
    ncclResult_t, ncclUint8, ncclUniqueId,
};
use std::ffi::{c_int, c_void};
use std::ptr::{with_exposed_provenance, with_exposed_provenance_mut};
use std::sync::Mutex;

/// Limits that a communicator of ours is made with; 0 is NCCL's own choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommLimits {
    /// Thread blocks, and so multiprocessors, that its kernels take.
    pub ctas_min: u32,
    pub ctas_max: u32,
    /// Peers that it connects at once. Since NCCL 2.30; else ignored.
    pub p2p_peers_max: u32,
    /// Channels to a peer on another host. Since NCCL 2.28; else ignored.
    pub channels_per_net_peer: u32,
}

impl CommLimits {
    /// Refuses what NCCL would refuse later, on some ranks.
    pub(super) fn check(&self) -> Result<()> {
        let (min, max) = (self.ctas_min, self.ctas_max);
        if min > 0 && max == 0 {
            return Err(Error::invalid(format!(
                "at least {min} thread blocks are asked for without a maximum; NCCL takes a \
                 minimum only with a maximum"
            )));
        }
        if min > max {
            return Err(Error::invalid(format!(
                "at least {min} thread blocks are asked for, and at most {max}"
            )));
        }
        Ok(())
    }

    fn config(&self) -> ncclConfig_t {
        let mut config = ncclConfig_t {
            blocking: 0,
            splitShare: 0,
            shrinkShare: 0,
            ..ncclConfig_t::UNSET
        };
        let set = |field: &mut c_int, value: u32| {
            if value > 0 {
                *field = c_int::try_from(value).unwrap_or(c_int::MAX);
            }
        };
        set(&mut config.maxCTAs, self.ctas_max);
        set(&mut config.minCTAs, self.ctas_min);
        set(&mut config.maxP2pPeers, self.p2p_peers_max);
        set(&mut config.nChannelsPerNetPeer, self.channels_per_net_peer);
        config
    }
}

/// One message of a group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transfer {
    pub is_send: bool,
    pub address: usize,
    pub bytes: u64,
    /// In the communicator's ranks.
    pub peer: c_int,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Usable,
    /// It is being revoked: that has to be asked after until it is over.
    Revoking,
    /// Nothing runs on it, and nothing can; not freed.
    Revoked,
    /// Freed, or the caller's to free.
    Gone,
}

/// How a communicator was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stopped {
    /// Its kernels end.
    Kernels,
    /// Nobody here can stop it: it is borrowed and this NCCL cannot revoke, or
    /// NCCL has failed to.
    Nothing,
}

/// A communicator, and the right to be inside NCCL with it.
#[derive(Debug)]
pub(super) struct Comm {
    nccl: &'static Nccl,
    turn: &'static Mutex<()>,
    handle: ncclComm_t,
    is_ours: bool,
    state: State,
}

// SAFETY: NCCL takes the handle from any thread, one at a time, which is what
// `&mut self` makes sure of.
unsafe impl Send for Comm {}

impl Comm {
    /// Joins the communicator of `id`, on the current device, whose turn is
    /// `turn`.
    pub(super) fn init(
        nccl: &'static Nccl,
        turn: &'static Mutex<()>,
        id: [u8; NCCL_UNIQUE_ID_BYTES],
        (rank, count): (c_int, c_int),
        limits: &CommLimits,
        patience: Patience<'_>,
    ) -> Result<Comm> {
        let mut config = limits.config();
        let mut handle = ncclComm_t::NULL;
        let id = ncclUniqueId::from_bytes(id);
        let held = lock(turn);
        // SAFETY: places for a handle and a config; the config is copied.
        let result = unsafe {
            (nccl.api().ncclCommInitRankConfig)(&raw mut handle, count, id, rank, &raw mut config)
        };
        drop(held);
        let call = "ncclCommInitRankConfig";
        Comm::made(nccl, turn, call, handle, result, patience)
    }

    /// A communicator of our own with the ranks of `parent`, which must be idle
    /// and is left as it is. Every rank of the parent has to come. Its owner
    /// must not use it meanwhile.
    pub(super) fn split(
        nccl: &'static Nccl,
        turn: &'static Mutex<()>,
        parent: usize,
        key: c_int,
        limits: &CommLimits,
        patience: Patience<'_>,
    ) -> Result<Comm> {
        let mut config = limits.config();
        let mut handle = ncclComm_t::NULL;
        let from = ncclComm_t(with_exposed_provenance_mut(parent));
        // A blocking parent keeps us here until all ranks have come: nobody's
        // turn is taken for that long.
        // SAFETY: the caller lends a live communicator; places as above.
        let result =
            unsafe { (nccl.api().ncclCommSplit)(from, 0, key, &raw mut handle, &raw mut config) };
        if result == ncclResult_t::IN_PROGRESS {
            let mut parent = Comm::borrow(nccl, turn, parent);
            patience.wait("ncclCommSplit", || parent.is_ready_in_turn())?;
        }
        Comm::made(nccl, turn, "ncclCommSplit", handle, result, patience)
    }

    /// A communicator of the ranks of this one less `excluded`; only the
    /// others call. What runs on this one is stopped.
    pub(super) fn shrink(
        &mut self,
        excluded: &[c_int],
        limits: &CommLimits,
        patience: Patience<'_>,
    ) -> Result<Comm> {
        let Some(shrink) = self.nccl.api().ncclCommShrink.filter(|_| self.is_kept()) else {
            return Err(Error::internal("a communicator that cannot be shrunk"));
        };
        patience.wait("ncclCommRevoke", || Ok(self.has_stopped()))?;
        let mut config = limits.config();
        let mut handle = ncclComm_t::NULL;
        let mut excluded = excluded.to_vec();
        let held = lock(self.turn);
        // SAFETY: a live communicator of ours; the list has that length, and
        // is copied.
        let result = unsafe {
            shrink(
                self.handle,
                excluded.as_mut_ptr(),
                excluded.len() as c_int,
                &raw mut handle,
                &raw mut config,
                NCCL_SHRINK_ABORT,
            )
        };
        drop(held);
        if result == ncclResult_t::IN_PROGRESS {
            patience.wait("ncclCommShrink", || self.is_ready_in_turn())?;
        }
        let (nccl, turn) = (self.nccl, self.turn);
        Comm::made(nccl, turn, "ncclCommShrink", handle, result, patience)
    }

    /// A communicator of the caller's.
    pub(super) fn borrow(nccl: &'static Nccl, turn: &'static Mutex<()>, handle: usize) -> Comm {
        Comm {
            nccl,
            turn,
            handle: ncclComm_t(with_exposed_provenance_mut(handle)),
            is_ours: false,
            state: State::Usable,
        }
    }

    /// Waits until a communicator that is being made can be used.
    fn made(
        nccl: &'static Nccl,
        turn: &'static Mutex<()>,
        call: &str,
        handle: ncclComm_t,
        result: ncclResult_t,
        patience: Patience<'_>,
    ) -> Result<Comm> {
        nccl.check(call, result)?;
        if handle.is_null() {
            return Err(nccl.failure(call, result));
        }
        let mut comm = Comm {
            nccl,
            turn,
            handle,
            is_ours: true,
            state: State::Usable,
        };
        let ready = patience.wait(call, || comm.is_ready_in_turn());
        if let Err(e) = ready {
            let _turn = lock(turn);
            comm.stop(false);
            return Err(e);
        }
        Ok(comm)
    }

    pub(super) fn is_usable(&self) -> bool {
        self.state == State::Usable
    }

    /// True if it was stopped in a way that lets the survivors shrink it.
    pub(super) fn is_kept(&self) -> bool {
        matches!(self.state, State::Revoking | State::Revoked) && self.nccl.can(&SHRINK)
    }

    /// Asks whether a revocation is over, if it is the device's turn. A failure
    /// of it shows when the communicator is shrunk.
    pub(super) fn has_stopped(&mut self) -> bool {
        if self.state == State::Revoking
            && let Ok(_turn) = self.turn.try_lock()
            && !matches!(self.is_ready(), Ok(false))
        {
            self.state = State::Revoked;
        }
        self.state != State::Revoking
    }

    /// Asks how the last call has gone on; true if it is over. This may be
    /// what carries it out.
    pub(super) fn is_ready(&mut self) -> Result<bool> {
        let mut state = ncclResult_t::SUCCESS;
        // SAFETY: a live communicator, and a place for a result.
        let result =
            unsafe { (self.nccl.api().ncclCommGetAsyncError)(self.handle, &raw mut state) };
        self.nccl.check("ncclCommGetAsyncError", result)?;
        match state {
            ncclResult_t::SUCCESS => Ok(true),
            ncclResult_t::IN_PROGRESS => Ok(false),
            failed => Err(self.nccl.failure("NCCL", failed)),
        }
    }

    /// The same, in the device's turn.
    fn is_ready_in_turn(&mut self) -> Result<bool> {
        let _turn = lock(self.turn);
        self.is_ready()
    }

    /// Puts `transfers` on the stream as one group. When this returns they
    /// are there, and what is put on the stream next comes after them.
    /// `connects` says that NCCL may have to wait for the peers.
    pub(super) fn group(
        &mut self,
        transfers: impl Iterator<Item = Transfer>,
        stream: *mut c_void,
        connects: bool,
        patience: Patience<'_>,
    ) -> Result<()> {
        let turn = lock(self.turn);
        if !self.issue(transfers, stream)? {
            return Ok(());
        }
        if connects {
            drop(turn);
            return patience.wait("ncclGroupEnd", || self.is_ready_in_turn());
        }
        patience.wait("ncclGroupEnd", || self.is_ready())
    }

    /// Gives NCCL a group; true if it is still under way.
    fn issue(
        &mut self,
        transfers: impl Iterator<Item = Transfer>,
        stream: *mut c_void,
    ) -> Result<bool> {
        let api = self.nccl.api();
        // SAFETY: paired with the end below, on this thread.
        let started = unsafe { (api.ncclGroupStart)() };
        self.nccl.check("ncclGroupStart", started)?;
        let mut failed = None;
        for transfer in transfers {
            // SAFETY: the session promises that the memory is there, on this
            // communicator's device, until the stream has come by.
            let result = unsafe { self.add(&transfer, stream) };
            if result != ncclResult_t::SUCCESS && result != ncclResult_t::IN_PROGRESS {
                let call = if transfer.is_send {
                    "ncclSend"
                } else {
                    "ncclRecv"
                };
                failed = Some(self.nccl.failure(call, result));
                break;
            }
        }
        // SAFETY: ends the group of this thread; without it later groups of
        // the thread would never run.
        let result = unsafe { (api.ncclGroupEnd)() };
        if let Some(e) = failed {
            return Err(e);
        }
        self.nccl.check("ncclGroupEnd", result)?;
        Ok(result == ncclResult_t::IN_PROGRESS)
    }

    /// # Safety
    ///
    /// The transfer's memory is valid, and the stream one of the
    /// communicator's device.
    unsafe fn add(&self, transfer: &Transfer, stream: *mut c_void) -> ncclResult_t {
        let Transfer {
            is_send,
            address,
            bytes,
            peer,
        } = *transfer;
        let (api, comm) = (self.nccl.api(), self.handle);
        let bytes = bytes as usize;
        if is_send {
            let from = with_exposed_provenance(address);
            // SAFETY: the caller's contract.
            unsafe { (api.ncclSend)(from, bytes, ncclUint8, peer, comm, stream) }
        } else {
            let to = with_exposed_provenance_mut(address);
            // SAFETY: the caller's contract.
            unsafe { (api.ncclRecv)(to, bytes, ncclUint8, peer, comm, stream) }
        }
    }

    /// Stops what runs, without waiting for any peer. With `keep`, and where
    /// NCCL can, the communicator stays so that it can be shrunk.
    pub(super) fn stop(&mut self, keep: bool) -> Stopped {
        if self.state != State::Usable {
            return Stopped::Kernels;
        }
        let can_revoke = self.nccl.can(&REVOKE);
        if can_revoke && (!self.is_ours || (keep && self.nccl.can(&SHRINK))) && self.revoke() {
            return Stopped::Kernels;
        }
        if !self.is_ours {
            self.state = State::Gone;
            return Stopped::Nothing;
        }
        match self.free() {
            true => Stopped::Kernels,
            false => Stopped::Nothing,
        }
    }

    fn revoke(&mut self) -> bool {
        let Some(revoke) = self.nccl.api().ncclCommRevoke else {
            return false;
        };
        // SAFETY: a live communicator; nobody else is inside.
        let result = unsafe { revoke(self.handle, NCCL_REVOKE_DEFAULT) };
        self.state = match result {
            ncclResult_t::SUCCESS => State::Revoked,
            ncclResult_t::IN_PROGRESS => State::Revoking,
            _ => return false,
        };
        true
    }

    /// Aborts and frees a communicator of ours; false if NCCL fails to. Then
    /// its memory is lost, and its kernels may go on.
    fn free(&mut self) -> bool {
        self.state = State::Gone;
        // SAFETY: ours and live; the handle is not used after this.
        let result = unsafe { (self.nccl.api().ncclCommAbort)(self.handle) };
        result == ncclResult_t::SUCCESS || result == ncclResult_t::IN_PROGRESS
    }

    /// The ranks of a communicator: this one's, and how many there are.
    pub(super) fn place(&mut self) -> Result<(c_int, c_int)> {
        let (mut rank, mut count) = (0, 0);
        let api = self.nccl.api();
        // SAFETY: a live communicator, and places for a number each.
        let (a, b) = unsafe {
            (
                (api.ncclCommUserRank)(self.handle, &raw mut rank),
                (api.ncclCommCount)(self.handle, &raw mut count),
            )
        };
        self.nccl.check("ncclCommUserRank", a)?;
        self.nccl.check("ncclCommCount", b)?;
        Ok((rank, count))
    }

    /// The GPU that it is on.
    pub(super) fn device(&mut self) -> Result<u32> {
        let mut device = 0;
        // SAFETY: as for `place`.
        let result = unsafe { (self.nccl.api().ncclCommCuDevice)(self.handle, &raw mut device) };
        self.nccl.check("ncclCommCuDevice", result)?;
        u32::try_from(device).map_err(|_| {
            Error::new(
                Status::InvalidArgument,
                format!("the communicator is on device {device}"),
            )
        })
    }
}

impl Drop for Comm {
    /// Frees what is ours. Never waits for a peer: whatever a peer still needs
    /// has arrived once its request is settled.
    fn drop(&mut self) {
        if self.is_ours && self.state != State::Gone {
            let _turn = lock(self.turn);
            self.free();
        }
    }
}
