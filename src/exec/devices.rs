//! Which device works on a session's memory.
//!
//! A plan works on one device: the GPU that a buffer of its is bound on, the
//! one that the transport asks for, else the host. Devices are made when a
//! plan first needs them.

use crate::device::Device;
use crate::device::cuda::{CudaDevice, CudaOptions};
use crate::device::host::HostDevice;
use crate::error::{Error, Result, Status};
use crate::layout::view::Memory;
use crate::plan::program::{BufferSlot, Direction, Program};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The devices of a session.
#[derive(Debug)]
pub(crate) enum Devices {
    /// One, whatever the memory.
    Given(Arc<dyn Device>),
    /// By GPU; `None` is the host.
    Own(Mutex<BTreeMap<Option<u32>, Arc<dyn Device>>>),
}

impl Devices {
    pub fn own() -> Devices {
        Devices::Own(Mutex::default())
    }

    /// The device for buffers in `memory`, where the transport needs `gpu`.
    pub fn device(
        &self,
        memory: impl Iterator<Item = Memory>,
        gpu: Option<u32>,
    ) -> Result<Arc<dyn Device>> {
        let held = match self {
            Devices::Given(device) => return Ok(device.clone()),
            Devices::Own(held) => held,
        };
        let index = one_gpu(memory, gpu)?;
        let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(device) = held.get(&index) {
            return Ok(device.clone());
        }
        let device: Arc<dyn Device> = match index {
            Some(gpu) => Arc::new(CudaDevice::new(gpu, CudaOptions::from_env()?)?),
            None => Arc::new(HostDevice::new()?),
        };
        held.insert(index, device.clone());
        Ok(device)
    }
}

/// The one GPU that all of them mean, if any does.
fn one_gpu(memory: impl Iterator<Item = Memory>, gpu: Option<u32>) -> Result<Option<u32>> {
    let mut one = gpu;
    for memory in memory {
        let Memory::Device(n) = memory else { continue };
        match one {
            Some(m) if m != n => {
                return Err(Error::new(
                    Status::BufferMismatch,
                    format!(
                        "buffers of one plan are bound on GPU {m} and on GPU {n}; a rank works on \
                         one"
                    ),
                ));
            }
            _ => one = Some(n),
        }
    }
    Ok(one)
}

/// Sends what would go straight from `is_host` slots through staging instead:
/// a transport of GPU memory cannot read there. It gets staging of its own,
/// behind the program's, which steps two apart share.
pub(crate) fn stage_host_sends(program: &mut Program, is_host: &[bool]) {
    let reads_host = |slot: BufferSlot| slot != BufferSlot::RELAY && is_host[slot.0 as usize];
    let mut moved = Vec::new();
    let mut ends = vec![0u64; program.steps.len()];
    for (i, m) in program.messages.iter().enumerate() {
        let is_ours = m.is_direct && m.direction == Direction::Send;
        let pieces = program.pieces_of(m);
        if is_ours && pieces.iter().any(|p| reads_host(p.region.slot)) {
            let end = &mut ends[m.step() as usize];
            moved.push((i, *end));
            *end += m.bytes.next_multiple_of(16);
        }
    }
    if moved.is_empty() {
        return;
    }
    let largest = |odd: usize| ends.iter().skip(odd).step_by(2).copied().max().unwrap_or(0);
    let base = program.staging_bytes.next_multiple_of(256);
    let halves = [base, base + largest(0)];
    for (i, at) in moved {
        let m = &mut program.messages[i];
        m.is_direct = false;
        m.staging = halves[m.step() as usize % 2] + at;
    }
    program.staging_bytes = base + largest(0) + largest(1);
}
