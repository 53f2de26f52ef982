//! The first bytes: proof that everybody reaches everybody, and the connections
//! that NCCL would otherwise make in the first request.
//!
//! Every rank sends 16 bytes to every other, and to itself, and looks at what
//! came. With very many ranks only to its neighbours in a ring: NCCL connects
//! the rest when it is needed.

use super::comm::Transfer;
use super::{NcclTransport, Work};
use crate::device::cuda::gpu::Gpu;
use crate::device::fence::Fence;
use crate::error::{Error, Result, Status};
use crate::transport::Transport;
use cuda_runtime_sys::CopyKind;
use std::ptr::{with_exposed_provenance, with_exposed_provenance_mut};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// With more ranks than this, only neighbours are connected.
const ALL_PAIRS_MAX: usize = 128;
/// What is sent: the sender's and the receiver's place.
const TOKEN_BYTES: usize = 16;
/// How often the abort word is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// Exchanges tokens with the peers of `transport`. Every rank must come.
pub(super) fn warm_up(transport: &Arc<NcclTransport>, deadline: Instant) -> Result<()> {
    let me = transport.place().0;
    let partners = partners(&transport.peers().places(), me);
    let bytes = partners.len() * TOKEN_BYTES;
    let gpu = transport.device();
    // Outgoing tokens, then incoming ones.
    let room = Scratch::new(gpu, 2 * bytes)?;
    for (i, partner) in partners.iter().enumerate() {
        room.write(i, token(me, partner.to));
        room.write(partners.len() + i, 0);
    }
    let at = |i: usize| room.device + i * TOKEN_BYTES;
    let transfers = (0..).zip(&partners).flat_map(|(i, partner)| {
        let transfer = |is_send, address, peer| Transfer {
            is_send,
            address,
            bytes: TOKEN_BYTES as u64,
            peer,
        };
        [
            transfer(true, at(i), partner.to),
            transfer(false, at(partners.len() + i), partner.from),
        ]
    });
    let mut transfers = transfers;
    let work = Work {
        copies: &|put, to_device| room.copy(gpu, put.stream(), to_device),
        transfers: &mut transfers,
        carry: None,
        beside: Fence::default(),
        deadline: Some(deadline),
    };
    let exchanged = match transport.exchange(&Fence::default(), work) {
        Ok(fence) => await_fence(transport, &fence, deadline),
        Err(cut) => Err(cut.reason),
    };
    if let Err(e) = exchanged {
        // What is on the stream still uses the memory, for ever if nobody can
        // end it.
        if !transport.give_up(e.clone()) || !transport.drain() {
            std::mem::forget(room);
        }
        return Err(e);
    }
    for (i, partner) in partners.iter().enumerate() {
        let got = room.read(partners.len() + i);
        if got != token(partner.from, me) {
            let rank = transport.peers().rank_at(partner.from);
            let e = Error::new(
                Status::Protocol,
                format!("NCCL brought {got:#x} instead of the token of {rank:?}"),
            );
            return Err(match rank {
                Some(rank) => e.by(rank),
                None => e,
            });
        }
    }
    Ok(())
}

/// Whom one message goes to, and whom one comes from.
struct Partner {
    to: i32,
    from: i32,
}

fn partners(places: &[i32], me: i32) -> Vec<Partner> {
    if places.len() <= ALL_PAIRS_MAX {
        let both = |place: &i32| Partner {
            to: *place,
            from: *place,
        };
        return places.iter().map(both).collect();
    }
    let n = places.len();
    let i = places.iter().position(|p| *p == me).unwrap_or_default();
    vec![Partner {
        to: places[(i + 1) % n],
        from: places[(i + n - 1) % n],
    }]
}

fn token(from: i32, to: i32) -> u128 {
    u128::from(from as u32) << 64 | u128::from(to as u32) << 1 | 1
}

fn await_fence(transport: &NcclTransport, fence: &Fence, deadline: Instant) -> Result<()> {
    while !fence.wait(LOOK) {
        if let Some(reason) = transport.abort_cell().reason() {
            return Err(reason);
        }
        if Instant::now() >= deadline {
            return Err(Error::new(
                Status::MeetTimeout,
                "the first exchange of all ranks was not over in time",
            ));
        }
    }
    match transport.abort_cell().reason() {
        Some(reason) => Err(reason),
        None => Ok(()),
    }
}

/// Tokens on the GPU, and pinned ones on the host.
struct Scratch<'a> {
    gpu: &'a Gpu,
    device: usize,
    host: usize,
    bytes: usize,
}

impl<'a> Scratch<'a> {
    fn new(gpu: &'a Gpu, bytes: usize) -> Result<Scratch<'a>> {
        let device = gpu.allocate(bytes as u64)?;
        let host = match gpu.allocate_pinned(bytes as u64) {
            Ok(host) => host,
            Err(e) => {
                gpu.free(device);
                return Err(e);
            }
        };
        Ok(Scratch {
            gpu,
            device,
            host,
            bytes,
        })
    }

    fn write(&self, index: usize, token: u128) {
        let at = with_exposed_provenance_mut::<u128>(self.host);
        // SAFETY: inside our own pinned memory, of page alignment.
        unsafe { at.add(index).write(token) };
    }

    fn read(&self, index: usize) -> u128 {
        let at = with_exposed_provenance::<u128>(self.host);
        // SAFETY: as above; the GPU has finished.
        unsafe { at.add(index).read() }
    }

    fn copy(&self, gpu: &Gpu, stream: cuda_runtime_sys::Stream, to_device: bool) -> Result<()> {
        let (to, from, kind) = match to_device {
            true => (self.device, self.host, CopyKind::HOST_TO_DEVICE),
            false => (self.host, self.device, CopyKind::DEVICE_TO_HOST),
        };
        gpu.check("cudaMemcpyAsync", |r| {
            let to = with_exposed_provenance_mut(to);
            let from = with_exposed_provenance(from);
            // SAFETY: both of so many bytes, and both live until the fence.
            unsafe { (r.memcpy_async)(to, from, self.bytes, kind, stream) }
        })
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        self.gpu.free(self.device);
        self.gpu.free_pinned(self.host);
    }
}
