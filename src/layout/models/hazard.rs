//! What is in the way, or worth knowing, when a model meets parallel sizes.

use crate::error::{Error, Result};
use serde::Serialize;

/// What sort of thing it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HazardKind {
    /// Heads that do not divide over ranks, or are cut inside.
    Heads,
    /// Rows or columns that do not divide over ranks.
    Rows,
    /// Vocabulary rows that do not divide, padding included.
    Vocabulary,
    /// Experts that do not divide over ranks.
    Experts,
    /// A cut inside a block of values that share a scale.
    QuantizationBlock,
    /// The sides pad differently.
    Padding,
}

/// One parameter, the numbers, and what to change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hazard {
    pub kind: HazardKind,
    /// True if no layout can be made of it; others are worth knowing.
    pub is_error: bool,
    /// The tensor, with `{layer}` where every layer has it.
    pub parameter: String,
    pub message: String,
}

impl std::fmt::Display for Hazard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.parameter, self.message)
    }
}

impl Hazard {
    /// The first error, and how many more there are.
    pub(super) fn refuse(hazards: &[Hazard]) -> Result<()> {
        let mut errors = hazards.iter().filter(|h| h.is_error);
        let Some(first) = errors.next() else {
            return Ok(());
        };
        Err(Error::layout(match errors.count() {
            0 => first.to_string(),
            more => format!("{first}; and {more} more"),
        }))
    }
}
