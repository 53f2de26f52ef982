//! A step that is being put on the stream, or is there.

use super::errands::Errands;
use super::peers::Peers;
use super::roles::Way;
use super::turn_word::TurnWord;
use crate::device::fence::Fence;
use crate::plan::program::{Direction, Program};
use crate::rank::Rank;
use crate::transport::waits::Waits;
use std::sync::Arc;

/// See the module.
pub(super) struct Flight {
    pub program: Arc<Program>,
    pub errands: Arc<Errands>,
    pub step: u32,
    /// Reached when the step's group may begin.
    pub begins: Fence,
    /// Reached when the channels have done their part.
    pub beside: Fence,
    /// `None` as long as the step is being put there.
    pub fence: Option<Fence>,
}

impl Flight {
    pub(super) fn is_over(&self) -> bool {
        self.fence.as_ref().is_some_and(Fence::is_reached)
    }

    /// Bytes of this rank's own messages.
    pub(super) fn bytes(&self, way: Direction) -> u64 {
        let messages = self
            .program
            .messages_of(&self.program.steps[self.step as usize]);
        let of_way = messages.iter().filter(|m| m.direction == way);
        of_way.map(|m| m.bytes).sum()
    }

    /// The other ranks of the step that no endpoint is in between.
    fn peers<'a>(&'a self, all: &'a Peers) -> impl Iterator<Item = Rank> + Clone + 'a {
        let messages = self
            .program
            .messages_of(&self.program.steps[self.step as usize]);
        // Messages come by peer.
        let runs = messages.chunk_by(|a, b| a.peer == b.peer);
        let is_direct = |way| matches!(way, Ok(Way::Nccl(_) | Way::Channel));
        let peers = runs.map(|run| run[0].peer).filter(|peer| *peer != all.me());
        peers.filter(move |peer| is_direct(all.way_to(*peer)))
    }

    /// Whom the rank may wait for. A kernel of NCCL does not say: it may be any
    /// peer of its group. Before the group begins, the rank waits for its own
    /// work. `asked` counts calls.
    pub(super) fn waits_for(&self, all: &Peers, word: &TurnWord, asked: usize) -> Waits {
        if !self.begins.is_reached() {
            return Waits::NONE;
        }
        let peers = || Waits::some_of(self.peers(all), asked);
        let Some(turn) = word.get() else {
            return peers();
        };
        // An endpoint has channels on another stream, which may be behind.
        let is_behind = all.is_member() && !self.beside.is_reached();
        match self.errands.company(self.step, turn) {
            Some((company, _)) if is_behind => {
                let both = self.peers(all).chain(company.iter().copied());
                Waits::some_of(both, asked)
            }
            Some((company, place)) => Waits::some_of(company.iter().copied(), asked).at(place),
            None if is_behind => peers(),
            None => peers().at(u64::MAX),
        }
    }
}
