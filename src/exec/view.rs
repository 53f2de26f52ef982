//! What execution needs to know of a plan.

use crate::error::Result;
use crate::layout::Layout;
use crate::layout::tensor::Tensor;
use crate::layout::view::NamedBuffer;
use crate::plan::Plan;
use crate::plan::program::{BufferUse, Program, Side};
use crate::rank::Rank;

/// A plan, as a session sees it. Immutable; every rank's answers agree.
pub trait PlanView: Send + Sync + std::fmt::Debug {
    /// Covers inputs, decision and planner version.
    fn fingerprint(&self) -> u128;

    /// What `rank` does, digest items included; empty if it takes no part.
    fn program(&self, rank: Rank) -> Result<Program>;

    /// Steps of every program.
    fn step_count(&self) -> u32;

    /// Ranks that hold or need anything that the plan moves, ascending. All
    /// of them agree, also those that happen to have nothing to send.
    fn participants(&self) -> Vec<Rank>;

    /// The destination copy that `rank` takes part in, if it is a participant
    /// on that side.
    fn copy_of(&self, rank: Rank) -> Option<u32>;

    /// Participants of `copy`, those without elements included.
    fn copy_ranks(&self, copy: u32) -> u32;

    /// Name, size and memory kind of a buffer that `rank`'s program touches.
    fn buffer(&self, rank: Rank, buffer: &BufferUse) -> Option<NamedBuffer>;

    /// The layout of one side, with the views of every rank.
    fn layout(&self, side: Side) -> &Layout;

    /// The canonical tensors, by index.
    fn tensors(&self) -> &[Tensor];

    /// The staging budget of any rank.
    fn staging_bytes_max(&self) -> u64;

    /// True if all destination copies hold the same elements equally often,
    /// so that each copy's digest is compared by itself.
    fn copies_are_alike(&self) -> bool;
}

impl PlanView for Plan {
    fn fingerprint(&self) -> u128 {
        Plan::fingerprint(self)
    }

    fn program(&self, rank: Rank) -> Result<Program> {
        self.program_with_digests(rank)
    }

    fn step_count(&self) -> u32 {
        Plan::step_count(self)
    }

    fn participants(&self) -> Vec<Rank> {
        Plan::participants(self).to_vec()
    }

    fn copy_of(&self, rank: Rank) -> Option<u32> {
        Plan::copy_of(self, rank)
    }

    fn copy_ranks(&self, copy: u32) -> u32 {
        Plan::copy_ranks(self, copy)
    }

    fn buffer(&self, rank: Rank, buffer: &BufferUse) -> Option<NamedBuffer> {
        Plan::buffer(self, rank, buffer)
    }

    fn layout(&self, side: Side) -> &Layout {
        Plan::layout(self, side)
    }

    fn tensors(&self) -> &[Tensor] {
        Plan::tensors(self)
    }

    fn staging_bytes_max(&self) -> u64 {
        Plan::staging_bytes_max(self)
    }

    fn copies_are_alike(&self) -> bool {
        Plan::copies_are_alike(self)
    }
}
