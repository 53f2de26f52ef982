//! Tensors that are set apart: what is not trained, and what belongs to a
//! draft model. A plan can be made of one kind only.

use super::Layout;
use super::canonical::check_name;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use wildmatch::WildMatch;

/// Globs (`*`, `?`) on canonical names, each list sorted in a [`Layout`].
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

    /// With these globs marked as not trained, too.
    pub(super) fn with_frozen(mut self, globs: &[String]) -> Marks {
        self.frozen.extend_from_slice(globs);
        self
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
            list.sort_unstable();
            list.dedup();
        }
        Ok(self)
    }
}

impl Layout {
    /// Refuses a "frozen" mark that no tensor has, which is a slip of the pen.
    pub(super) fn check_frozen(&self) -> Result<()> {
        let is_idle = |glob: &&String| {
            let glob = WildMatch::new(glob);
            !self.tensors().iter().any(|t| glob.matches(&t.name))
        };
        match self.spec().marks.frozen.iter().find(is_idle) {
            None => Ok(()),
            Some(glob) => Err(Error::layout(format!(
                "frozen: no tensor is named \"{glob}\"; names and globs such as \
                 \"model.embed_tokens.*\" are accepted"
            ))),
        }
    }
}

fn matches_any(globs: &[String], name: &str) -> bool {
    globs.iter().any(|g| WildMatch::new(g).matches(name))
}
