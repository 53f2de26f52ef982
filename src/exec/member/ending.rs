//! How the own flight ended: the rank's last word, and what is made of the
//! coordinator's.

use super::{Member, SETTLE_SLACK};
use crate::error::{Error, Status};
use crate::exec::coordinator::LAST_WORDS;
use crate::exec::flight::{Flight, FlightInner};
use crate::exec::message::{MISMATCH_COUNT_MAX, Message, NO_COPY, Sums};
use crate::exec::request::State;
use crate::exec::standstill::with_tensors;
use crate::exec::{FLAG_DRY_RUN, FLAG_VERIFY, Outcome};
use crate::transport::control::Net;
use std::sync::atomic::Ordering;
use std::time::Instant;

impl Member {
    /// Ends the rank's own part, and tells the coordinator how.
    pub(super) fn say_done(&mut self, net: &mut Net, now: Instant, outcome: Outcome) {
        let Some(active) = &mut self.active else {
            return;
        };
        let key = active.key;
        let flight = active.flight.clone();
        active.give_up = self
            .shared
            .abort_reason()
            .map(|_| now + LAST_WORDS + SETTLE_SLACK);
        let is_verified = {
            let mut inner = flight.lock();
            inner.state = State::Settling;
            inner.rank_outcome = Some(outcome);
            inner.flags & FLAG_VERIFY != 0 && outcome == Outcome::Complete
        };
        flight.notify();
        let program = &flight.slot.program;
        let mut vectors = std::mem::take(&mut self.vectors);
        vectors.clear();
        let ends = if is_verified {
            write_sums(&flight, &mut vectors)
        } else {
            [0; 2]
        };
        let message = Message::Done {
            rank: self.shared.rank.0,
            key,
            outcome,
            bytes: program.bytes_received + program.bytes_local,
            sums: Sums {
                once: &vectors[..ends[0]],
                sent: &vectors[ends[0]..ends[1]],
                held: &vectors[ends[1]..],
            },
        };
        self.up(net, &message);
        self.vectors = vectors;
        if self.is_active(key) && self.state() == State::Settling {
            self.while_settling(net, now);
        }
    }

    /// OUTCOME of the own flight.
    pub(super) fn settled(&mut self, message: &Message<'_>) {
        let Message::Outcome {
            copies,
            all,
            exceptions,
            mismatch_count,
            mismatches,
            once,
            ..
        } = *message
        else {
            return;
        };
        let Some(active) = &mut self.active else {
            return;
        };
        let flight = active.flight.clone();
        let card = &flight.slot.card;
        let copy = match card.copy {
            NO_COPY => all,
            copy => find_copy(exceptions, copy).unwrap_or(copies),
        };
        let mut inner = flight.lock();
        if inner.state == State::Running {
            // Aborted, and the others did not wait for our last word.
            active.told = Some(copy);
            return;
        }
        let mut rank = inner.rank_outcome.unwrap_or(Outcome::Untouched);
        if !once.is_empty() {
            publish(&flight, &mut inner, once);
        }
        let is_dry = inner.flags & FLAG_DRY_RUN != 0;
        drop(inner);
        let mut error = None;
        if mismatch_count > 0 {
            error = Some(checksum_error(&flight, mismatch_count, mismatches));
            if card.copy != NO_COPY {
                rank = rank.and(copy);
            }
        } else if all != Outcome::Complete && !is_dry {
            let text = "the execution ended early and nobody said why";
            let reason = self.shared.abort_reason();
            error = Some(reason.unwrap_or_else(|| Error::internal(text)));
        }
        self.finish(error, rank, copy);
    }

    pub(super) fn finish(&mut self, error: Option<Error>, rank: Outcome, copy: Outcome) {
        let Some(active) = self.active.take() else {
            return;
        };
        let mut flight = active.flight.lock();
        let program = &active.flight.slot.program;
        let error = error.map(|e| with_tensors(e, program, flight.steps_done));
        flight.finish(Instant::now(), error, rank, copy);
        // Under the lock: whoever sees the end may prepare the next version.
        self.shared.leave_seat();
        drop(flight);
        active.flight.notify();
    }

    /// The copy's outcome as far as this rank can tell alone: what nobody
    /// knows counts as torn.
    pub(super) fn unknown_copy(&self, rank: Outcome) -> Outcome {
        let Some(active) = &self.active else {
            return Outcome::Torn;
        };
        let card = &active.flight.slot.card;
        if card.copy != NO_COPY && card.copy_ranks == 1 {
            rank
        } else {
            Outcome::Torn
        }
    }
}

/// What became of this rank's memory, once its queues are dry or given up.
pub(in crate::exec) fn rank_outcome(
    flight: &FlightInner,
    writes: bool,
    is_drained: bool,
    is_aborted: bool,
) -> Outcome {
    if is_drained && !is_aborted {
        return match flight.flags & FLAG_DRY_RUN {
            0 => Outcome::Complete,
            _ => Outcome::Untouched,
        };
    }
    if !writes {
        return Outcome::Untouched;
    }
    let sequence = flight.key.sequence;
    match &flight.binding {
        // Queues that still run may set the mark any moment.
        Some(binding) if !is_drained || binding.has_written(sequence) => Outcome::Torn,
        _ => Outcome::Untouched,
    }
}

/// Appends this rank's digest sums; returns where the first and the second
/// vector end.
fn write_sums(flight: &Flight, out: &mut Vec<u8>) -> [usize; 2] {
    let inner = flight.lock();
    let Some(binding) = &inner.binding else {
        return [0; 2];
    };
    let program = &flight.slot.program;
    let sums = &binding.sums;
    let mut put = |sums: &[std::sync::atomic::AtomicU64]| {
        for sum in sums {
            out.extend_from_slice(&sum.load(Ordering::Acquire).to_le_bytes());
        }
        out.len()
    };
    let mut ends = [0; 2];
    if !program.digest_source.is_empty() {
        ends = [put(&sums.once), put(&sums.sent)];
    }
    if !program.digest_destination.is_empty() {
        put(&sums.held);
    }
    ends
}

/// Keeps the published digests, and compares them with the version before.
fn publish(flight: &Flight, inner: &mut FlightInner, once: &[u8]) {
    let digests = once
        .chunks_exact(8)
        .map(|c| c.try_into().map_or(0, u64::from_le_bytes));
    inner.digests.clear();
    inner.digests.extend(digests);
    inner.has_digests = true;
    let mut history = flight.slot.lock_history();
    match history.as_mut() {
        Some(before) => {
            inner.is_unchanged = Some(*before == inner.digests);
            before.clone_from(&inner.digests);
        }
        None => *history = Some(inner.digests.clone()),
    }
}

fn find_copy(exceptions: &[u8], copy: u32) -> Option<Outcome> {
    let found = exceptions
        .chunks_exact(5)
        .find(|c| c[..4] == copy.to_le_bytes());
    found.and_then(|c| Outcome::from_code(c[4]))
}

fn checksum_error(flight: &Flight, count: u64, named: &[u8]) -> Error {
    let tensors = flight.slot.plan.tensors();
    let mut text = format!("{count} digests of delivered tensors differ from what was sent:");
    for (i, pair) in named.chunks_exact(8).take(MISMATCH_COUNT_MAX).enumerate() {
        let number = |at: usize| {
            let bytes: [u8; 4] = pair[at..at + 4].try_into().unwrap_or_default();
            u32::from_le_bytes(bytes)
        };
        let (copy, tensor) = (number(0), number(4));
        let name = tensors
            .get(tensor as usize)
            .map_or("?", |t| t.name.as_str());
        text.push_str(if i == 0 { " " } else { ", " });
        match copy {
            NO_COPY => text.push_str(&format!("\"{name}\" over all copies")),
            copy => text.push_str(&format!("\"{name}\" in copy {copy}")),
        }
    }
    if count > MISMATCH_COUNT_MAX as u64 {
        text.push_str(&format!(" and {} more", count - MISMATCH_COUNT_MAX as u64));
    }
    Error::new(Status::ChecksumMismatch, text)
}
