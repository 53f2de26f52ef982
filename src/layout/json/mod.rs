//! The layout file: a short, versioned JSON description of one side.
//!
//! ```json
//! { "weightsync_layout": 1,
//!   "ranks": {"first": 0, "count": 8},
//!   "meshes": {"dense": [["pp", 2], ["dp", 2], ["tp", 2]]},
//!   "stages": {"decoder": [0, 0, 1, 1]},
//!   "tensors": [
//!     {"name": "layers.{layer}.q_proj", "layers": "decoder",
//!      "shape": [16, 128, 1024], "dtype": "bf16",
//!      "stage": {"axis": "pp", "table": "decoder"},
//!      "cuts": [{"dim": 0, "axes": ["tp"]}]} ] }
//! ```
//!
//! [`LAYOUT_SCHEMA`](super::LAYOUT_SCHEMA) documents every field. Errors name
//! the line, the path of the field and what is accepted there.

mod doc;
mod explicit;
mod fault;
mod fold;
mod fused;
mod groups;
mod layers;
mod locate;
mod names;
mod pretty;
mod read;
mod write;

use super::{Layout, LayoutSpec};
use crate::error::{Error, Result, Status};
use crate::limits::FILE_BYTES_MAX;
use doc::FileDoc;
pub(in crate::layout) use doc::Pairs;
use serde::Deserialize;

/// The version of the layout file that this library reads and writes.
pub const LAYOUT_FILE_VERSION: u32 = 1;

impl Layout {
    /// Reads a layout file.
    pub fn from_json(text: &[u8]) -> Result<Layout> {
        Layout::new(LayoutSpec::from_json(text)?)
    }

    /// The layout as a layout file, every tensor on its own.
    pub fn to_json(&self) -> String {
        self.spec().to_json()
    }
}

impl LayoutSpec {
    /// Reads a layout file without checking what it says, for
    /// [`check`](super::check::check) to report on.
    pub fn from_json(text: &[u8]) -> Result<LayoutSpec> {
        if text.len() > FILE_BYTES_MAX {
            return Err(Error::limit(format!(
                "the layout file has {} bytes; at most {FILE_BYTES_MAX} are allowed",
                text.len()
            )));
        }
        let file: FileDoc = serde_json::from_slice(text).map_err(|e| explain(text, &e))?;
        check_version(u64::from(file.weightsync_layout))?;
        read::read(file).map_err(|fault| fault.into_error())
    }

    /// The description as a layout file, every tensor on its own.
    ///
    /// Only a canonical description can be written; take it from a [`Layout`].
    fn to_json(&self) -> String {
        let mut text = write::write(self);
        text.push('\n');
        text
    }
}

fn check_version(version: u64) -> Result<()> {
    if version == u64::from(LAYOUT_FILE_VERSION) {
        return Ok(());
    }
    Err(Error::new(
        Status::VersionMismatch,
        format!(
            "the layout file has version {version} in \"weightsync_layout\"; this library reads \
             version {LAYOUT_FILE_VERSION}"
        ),
    ))
}

/// What only tells the version, whatever else a file holds.
#[derive(Deserialize)]
struct VersionDoc {
    weightsync_layout: u64,
}

/// Words a parser's error with the place it stopped at. A file of another
/// version is that first, and a file with unknown fields second.
fn explain(text: &[u8], e: &serde_json::Error) -> Error {
    let version = serde_json::from_slice::<VersionDoc>(text);
    if let Some(wrong) = version
        .ok()
        .and_then(|v| check_version(v.weightsync_layout).err())
    {
        return wrong;
    }
    let (place, what) = place_in_json(text, e);
    Error::layout(format!("layout file, {place}: {what}"))
}

/// Where in a file a parser stopped, as `line 3 column 7, at parts[0].ranks`,
/// and what it says about it.
pub(crate) fn place_in_json(text: &[u8], e: &serde_json::Error) -> (String, String) {
    let full = e.to_string();
    let place = format!(" at line {} column {}", e.line(), e.column());
    let what = full.strip_suffix(&place).unwrap_or(&full);
    let stop = locate::offset_of(text, e.line(), e.column());
    let path = locate::path_at(text, stop);
    let at = match path.is_empty() {
        true => String::new(),
        false => format!(", at {path}"),
    };
    let place = format!("line {} column {}{at}", e.line(), e.column());
    (place, what.to_string())
}
