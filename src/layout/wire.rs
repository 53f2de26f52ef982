//! A layout as one blob, for runtimes that gather the descriptions of their
//! ranks over a channel of their own.

use super::frame;
use super::{Layout, LayoutSpec};
use crate::error::{Error, Result};

/// The first bytes of a serialised layout.
pub const LAYOUT_BLOB_MAGIC: [u8; 8] = *b"WSYNCLAY";

/// The version of the blob that this library reads and writes.
pub const LAYOUT_BLOB_VERSION: u32 = 3;

impl Layout {
    /// The layout as a blob. Layouts of equal meaning give equal bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let payload = postcard::to_stdvec(self.spec()).expect("numbers and names always serialise");
        frame::seal(LAYOUT_BLOB_MAGIC, LAYOUT_BLOB_VERSION, &payload)
    }

    /// Reads a blob; whatever it says is checked as in [`Layout::new`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Layout> {
        let payload = frame::open(
            LAYOUT_BLOB_MAGIC,
            LAYOUT_BLOB_VERSION,
            "a serialised layout",
            bytes,
        )?;
        let read = postcard::take_from_bytes::<LayoutSpec>(payload);
        let (spec, rest) =
            read.map_err(|e| Error::corrupt(format!("a serialised layout cannot be read: {e}")))?;
        if !rest.is_empty() {
            return Err(Error::corrupt(format!(
                "a serialised layout is followed by {} more bytes",
                rest.len()
            )));
        }
        Layout::new(spec)
    }
}
