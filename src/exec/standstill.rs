//! What a rank was about when nothing moved any more.

use crate::error::{Error, Status};
use crate::layout::tensor::TensorIndex;
use crate::plan::program::{Message, Program};
use crate::rank::Rank;
use std::fmt::Write;

/// Tensors that are named.
const NAMED_MAX: usize = 8;

/// `error` with what this rank had left to exchange with the culprit in the
/// step at which it stands, after `steps_done`: the step, and the tensors.
/// Whoever reads it knows what has not come.
pub(super) fn with_tensors(error: Error, program: &Program, steps_done: u32) -> Error {
    let is_of_a_peer = matches!(error.status, Status::Stalled | Status::PeerLost);
    let Some(culprit) = error.rank.filter(|_| is_of_a_peer) else {
        return error;
    };
    match describe(program, steps_done, culprit) {
        Some(text) => Error {
            message: format!("{}; {text}", error.message),
            ..error
        },
        None => error,
    }
}

/// `None` if the rank has nothing to exchange with the culprit in that step.
fn describe(program: &Program, step: u32, culprit: Rank) -> Option<String> {
    let of_step = program.steps.get(step as usize)?;
    // The culprit itself says all that it was about.
    let is_meant = |m: &&Message| m.peer == culprit || program.rank == culprit;
    let messages = program.messages_of(of_step).iter().filter(is_meant);
    let pieces = messages.flat_map(|m| program.pieces_of(m));
    let mut tensors: Vec<TensorIndex> = pieces.map(|p| p.tensor).collect();
    tensors.sort_unstable();
    tensors.dedup();
    if tensors.is_empty() {
        return None;
    }
    let with = match program.rank == culprit {
        true => "others".into(),
        false => format!("rank {culprit}"),
    };
    let steps = program.steps.len();
    let (me, number) = (program.rank, step + 1);
    let mut text = format!("rank {me} is in step {number} of {steps}, exchanging with {with}:");
    for (i, tensor) in tensors.iter().take(NAMED_MAX).enumerate() {
        let name = program
            .tensors
            .get(tensor.index())
            .map_or("?", |t| t.name.as_str());
        let comma = if i == 0 { "" } else { "," };
        let _ = write!(text, "{comma} \"{name}\"");
    }
    if tensors.len() > NAMED_MAX {
        let _ = write!(text, " and {} more tensors", tensors.len() - NAMED_MAX);
    }
    Some(text)
}
