//! Tensors that are set apart: what is not trained, and what belongs to a
//! draft model. A plan can be made of one kind only.

use super::canonical::check_name;
use crate::error::Result;
use serde::{Deserialize, Serialize};
use wildmatch::WildMatch;

/// Globs (`*`, `?`) on canonical names, each list sorted in a
/// [`Layout`](super::Layout).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    /// Not trained: delivered once, and again only if asked for.
    pub frozen: Vec<String>,
    /// Of a draft model, as multi-token prediction.
    pub draft: Vec<String>,
}

impl Marks {
    pub fn is_frozen(&self, name: &str) -> bool {
        matches_any(&self.frozen, name)
    }

    pub fn is_draft(&self, name: &str) -> bool {
        matches_any(&self.draft, name)
    }

    /// Takes over the marks of another layout.
    pub(crate) fn extend(&mut self, other: &Marks) {
        self.frozen.extend(other.frozen.iter().cloned());
        self.draft.extend(other.draft.iter().cloned());
    }

    pub(super) fn canonical(mut self) -> Result<Marks> {
        for list in [&mut self.frozen, &mut self.draft] {
            for glob in list.iter() {
                check_name("a mark", glob)?;
            }
            list.sort();
            list.dedup();
        }
        Ok(self)
    }
}

fn matches_any(globs: &[String], name: &str) -> bool {
    globs.iter().any(|g| WildMatch::new(g).matches(name))
}
