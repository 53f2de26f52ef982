//! Messages that a GPU is copying to us.

use super::NAP;
use super::member::{Hold, Member, Posted};
use crate::device::fence::{Fence, Watch};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A promise that a member's fences are not reached as an abort, for as long
/// as a GPU copies.
#[derive(Debug)]
pub(super) struct LongHold(Arc<Member>);

impl LongHold {
    pub(super) fn new(member: &Arc<Member>) -> Option<LongHold> {
        std::mem::forget(member.hold()?);
        Some(LongHold(member.clone()))
    }
}

impl Drop for LongHold {
    fn drop(&mut self) {
        drop(Hold(&self.0));
    }
}

/// One of them. Its sender is held until the GPU is through.
#[derive(Debug)]
pub(super) struct Moving {
    pub fence: Fence,
    pub posted: Posted,
    pub bytes: u64,
    pub _hold: LongHold,
}

/// Tells the senders of what has been copied so far; has `me` woken when there
/// is more.
pub(super) fn land(me: &Arc<Member>, moving: &mut VecDeque<Moving>) {
    let watch: Arc<dyn Watch> = me.clone();
    while moving.front().is_some_and(|m| m.fence.watch(&watch)) {
        let Some(done) = moving.pop_front() else {
            return;
        };
        if !me.abort.is_set() {
            me.bytes_received.fetch_add(done.bytes, Ordering::Relaxed);
            done.posted.sender.copied(done.posted.ticket, done.bytes);
        }
    }
}

/// Waits for all of it. Ends soon after an abort, and when the GPU fails.
pub(super) fn land_all(me: &Arc<Member>, moving: &mut VecDeque<Moving>) {
    while let Some(first) = moving.front() {
        first.fence.wait(NAP);
        land(me, moving);
    }
}
