//! What a rank does, in a few numbers.

use super::Plan;
use super::derive::Walks;
use super::program::Program;
use crate::crew;
use crate::error::Result;
use crate::rank::Rank;
use smallvec::SmallVec;

/// What one rank does in one execution of a plan; all zero if it takes no part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProgramInfo {
    /// Over the transport.
    pub bytes_sent: u64,
    pub bytes_received: u64,
    /// Copied within the rank.
    pub bytes_local: u64,
    /// Staging and relay memory that a session allocates.
    pub staging_bytes: u64,
    /// Both directions.
    pub messages: u64,
    /// Of these, messages that need no staging on this rank.
    pub messages_direct: u64,
    /// Ranks it sends to or receives from.
    pub peers: u32,
    /// Buffers it binds.
    pub buffers: u32,
}

impl ProgramInfo {
    fn of(program: &Program) -> ProgramInfo {
        let direct = program.messages.iter().filter(|m| m.is_direct).count();
        // Of messages there are many more than of pairs, each of which has some.
        let mut peers: SmallVec<[Rank; 32]> = program.pairs.iter().map(|p| p.peer).collect();
        peers.sort_unstable();
        peers.dedup();
        ProgramInfo {
            bytes_sent: program.bytes_sent,
            bytes_received: program.bytes_received,
            bytes_local: program.bytes_local,
            staging_bytes: program.memory_bytes(),
            messages: program.messages.len() as u64,
            messages_direct: direct as u64,
            peers: peers.len() as u32,
            buffers: program.buffers.len() as u32,
        }
    }
}

impl Plan {
    /// What `rank` does.
    ///
    /// `NOT_FOUND` if it is in neither layout.
    pub fn program_info(&self, rank: Rank) -> Result<ProgramInfo> {
        self.check_rank(rank)?;
        let program = self.program_with_buffers(&Walks::alone(), rank)?;
        Ok(ProgramInfo::of(&program))
    }

    /// What each of many ranks does, in their order. Some threads share the
    /// work, and ranks that differ in nothing that cuts a tensor share most of
    /// it.
    ///
    /// `NOT_FOUND` if one of them is in neither layout.
    pub fn program_infos(&self, ranks: &[Rank]) -> Result<Vec<ProgramInfo>> {
        ranks.iter().try_for_each(|&rank| self.check_rank(rank))?;
        let walks = Walks::shared();
        crew::for_each(ranks, |rank| {
            Ok(ProgramInfo::of(&self.program_with_buffers(&walks, rank)?))
        })
    }
}
