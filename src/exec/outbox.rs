//! What the coordinator wants to be done, in the order it was decided.

use super::message::Message;
use crate::error::Error;

/// What the coordinator wants to be done.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// Messages for everybody, each preceded by its length.
    frames: Vec<u8>,
    /// Where the next message starts.
    at: usize,
    /// Stop everything, for this reason.
    pub abort: Option<Error>,
}

impl Outbox {
    pub fn down(&mut self, message: &Message<'_>) {
        let at = self.frames.len();
        self.frames.extend_from_slice(&[0; 4]);
        message.encode(&mut self.frames);
        let length = (self.frames.len() - at - 4) as u32;
        self.frames[at..at + 4].copy_from_slice(&length.to_le_bytes());
    }

    /// Moves the next message to `frame`; false if there is none.
    pub fn next(&mut self, frame: &mut Vec<u8>) -> bool {
        frame.clear();
        let rest = &self.frames[self.at..];
        let Some((head, rest)) = rest.split_first_chunk::<4>() else {
            self.frames.clear();
            self.at = 0;
            return false;
        };
        let length = u32::from_le_bytes(*head) as usize;
        frame.extend_from_slice(&rest[..length]);
        self.at += 4 + length;
        true
    }
}
