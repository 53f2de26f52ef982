//! One item of work, done on host memory. Both host devices run this.

use super::copy::{self, Halt, MessageCursor, Stop};
use super::digest;
use super::{Binding, MemoryRange, Task, Work};
use crate::error::{Error, Result, Status};
use crate::plan::program::{Message, Step};
use std::ptr::{with_exposed_provenance, with_exposed_provenance_mut};

/// Refuses work that the binding cannot do.
pub(super) fn check(work: &Work) -> Result<()> {
    let program = &work.binding.program;
    let step = match work.task {
        Task::Pack { step } | Task::Unpack { step } | Task::Local { step } => step,
        Task::Fill | Task::DigestSource | Task::DigestDestination => return Ok(()),
    };
    if step as usize >= program.steps.len() {
        return Err(Error::internal(format!(
            "step {step} of a program of {} steps",
            program.steps.len()
        )));
    }
    let at = &program.steps[step as usize];
    let needs_staging = match work.task {
        Task::Pack { .. } => program.packs_of(at).next().is_some(),
        Task::Unpack { .. } => program.unpacks_of(at).next().is_some(),
        _ => false,
    };
    if needs_staging && !work.binding.is_staged() {
        return Err(Error::new(
            Status::InvalidState,
            format!("step {step} is packed and no staging is bound"),
        ));
    }
    Ok(())
}

/// Does the work. Stops, without a word, where an abort word is set.
pub(super) fn run(work: &Work) {
    let binding = &*work.binding;
    let cells = [&*binding.abort];
    let stop = Stop(&cells);
    let done = match work.task {
        Task::Pack { step } => pack(binding, step_of(binding, step), stop),
        Task::Unpack { step } => unpack(work, step_of(binding, step), stop),
        Task::Local { step } => local(work, step_of(binding, step), stop),
        Task::Fill => fill(work, stop),
        Task::DigestSource => digest::digest_source(binding, stop),
        Task::DigestDestination => digest::digest_destination(binding, stop),
    };
    if let Err(Halt::Mismatch { at }) = done {
        binding.abort.set(Error::internal(format!(
            "{:?}: pieces do not cover byte {at} of a message",
            work.task
        )));
    }
}

fn step_of(binding: &Binding, step: u32) -> &Step {
    &binding.program.steps[step as usize]
}

fn pack(binding: &Binding, step: &Step, stop: Stop<'_>) -> Result<(), Halt> {
    for m in binding.program.packs_of(step) {
        let slot = with_exposed_provenance_mut(staged(binding, m).address);
        // SAFETY: `Binding::new` checked that staging holds the message; its
        // maker promised that nobody else uses it until our fence is reached.
        unsafe { MessageCursor::new(m).gather(binding, m, slot, m.bytes, stop)? };
    }
    Ok(())
}

fn unpack(work: &Work, step: &Step, stop: Stop<'_>) -> Result<(), Halt> {
    let binding = &*work.binding;
    for m in binding.program.unpacks_of(step) {
        stop.check()?;
        if binding.program.keeps(m) {
            binding.marks.write_begins(work.sequence);
        }
        let slot = with_exposed_provenance(staged(binding, m).address);
        // SAFETY: as for `pack`.
        unsafe { MessageCursor::new(m).scatter(binding, m, slot, m.bytes, stop)? };
    }
    Ok(())
}

fn local(work: &Work, step: &Step, stop: Stop<'_>) -> Result<(), Halt> {
    let binding = &*work.binding;
    for copy in binding.program.locals_of(step) {
        stop.check()?;
        binding.marks.write_begins(work.sequence);
        copy::copy_local(binding, copy, stop)?;
    }
    Ok(())
}

fn fill(work: &Work, stop: Stop<'_>) -> Result<(), Halt> {
    let binding = &*work.binding;
    for region in &binding.program.fills {
        stop.check()?;
        binding.marks.write_begins(work.sequence);
        copy::fill_zero(binding, region, stop)?;
    }
    Ok(())
}

/// Where a packed message lies in staging.
pub(crate) fn staged(binding: &Binding, message: &Message) -> MemoryRange {
    MemoryRange {
        address: binding.staging.address + message.staging as usize,
        bytes: message.bytes,
    }
}
