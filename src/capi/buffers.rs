//! The buffers of a rank, as C asks for them: one by one.

use super::args::{self, plain_struct};
use super::count_u32;
use super::out::fill_text;
use super::types::{wsync_buffer_info, wsync_memory, wsync_side};
use crate::error::{Error, Result, Status};
use crate::layout::view::{Memory, NamedBuffer};
use crate::plan::program::Side;
use crate::rank::Rank;
use std::sync::{Arc, Mutex, PoisonError};

/// Buffers of a rank, each with its side where a plan tells it.
pub(super) type SideBuffers = Arc<[(Option<Side>, NamedBuffer)]>;

/// The buffers of the rank that was asked for last, so that going through them
/// one by one does not derive them again and again.
#[derive(Default)]
pub(super) struct BufferCache {
    held: Mutex<Option<(Rank, SideBuffers)>>,
}

impl BufferCache {
    pub fn get(
        &self,
        rank: Rank,
        make: impl FnOnce() -> Result<SideBuffers>,
    ) -> Result<SideBuffers> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        match &*held {
            Some((of, buffers)) if *of == rank => Ok(buffers.clone()),
            _ => Ok(held.insert((rank, make()?)).1.clone()),
        }
    }
}

pub(super) fn no_buffer(rank: u32, index: usize, count: usize) -> Error {
    Error::new(
        Status::NotFound,
        format!("rank {rank} has {count} buffers; index {index} is none"),
    )
}

pub(super) fn buffer_info(side: Option<Side>, buffer: &NamedBuffer) -> wsync_buffer_info {
    let (memory, device) = match buffer.memory {
        Memory::Host => (wsync_memory::WSYNC_MEMORY_HOST, 0),
        Memory::PinnedHost => (wsync_memory::WSYNC_MEMORY_PINNED_HOST, 0),
        Memory::Device(n) => (wsync_memory::WSYNC_MEMORY_DEVICE, n),
    };
    let mut info = wsync_buffer_info {
        struct_size: 0,
        bytes: buffer.bytes,
        side: match side {
            None => 0,
            Some(Side::Source) => wsync_side::WSYNC_SIDE_SOURCE as u32,
            Some(Side::Destination) => wsync_side::WSYNC_SIDE_DESTINATION as u32,
        },
        memory: memory as u32,
        device,
        name_bytes: 0,
        name: [0; 1032],
    };
    info.name_bytes = count_u32(fill_text(&mut info.name, &buffer.name));
    info
}

/// The memory kind that two numbers of C mean.
pub(super) fn memory(memory: u32, device: u32) -> Result<Memory> {
    const HOST: u32 = wsync_memory::WSYNC_MEMORY_HOST as u32;
    const PINNED_HOST: u32 = wsync_memory::WSYNC_MEMORY_PINNED_HOST as u32;
    const DEVICE: u32 = wsync_memory::WSYNC_MEMORY_DEVICE as u32;
    match (memory, device) {
        (DEVICE, n) => Ok(Memory::Device(n)),
        (HOST, 0) => Ok(Memory::Host),
        (PINNED_HOST, 0) => Ok(Memory::PinnedHost),
        (HOST | PINNED_HOST, n) => Err(Error::invalid(format!(
            "host memory has device {n}; it must be 0"
        ))),
        (other, _) => Err(args::unknown("memory", other)),
    }
}

plain_struct!(wsync_buffer_info, 1064, "wsync_buffer_info");
