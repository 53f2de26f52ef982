//! One layout, or two and what is between them, looked at in one go.

use super::{PairReport, Report, check, check_pair};
use crate::error::Result;
use crate::layout::{Layout, LayoutSpec};
use serde::Serialize;

/// Everything that is wrong with a source and a destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Inspection {
    /// Findings that hinder a plan, listed or omitted.
    pub errors: u64,
    pub source: Report,
    pub destination: Option<Report>,
    /// What is between them; absent unless both are well-formed.
    pub pair: Option<PairReport>,
}

impl Inspection {
    /// Looks at each layout on its own and, if both are well-formed, at the
    /// pair.
    pub fn of(source: &LayoutSpec, destination: Option<&LayoutSpec>) -> Result<Inspection> {
        let mut found = Inspection {
            errors: 0,
            source: check(source),
            destination: destination.map(check),
            pair: None,
        };
        let is_ok = found.source.is_ok() && found.destination.as_ref().is_none_or(Report::is_ok);
        if let (true, Some(destination)) = (is_ok, destination) {
            let source = Layout::new(source.clone())?;
            found.pair = Some(check_pair(&source, &Layout::new(destination.clone())?));
        }
        found.errors = found.source.errors
            + found.destination.as_ref().map_or(0, |r| r.errors)
            + found.pair.as_ref().map_or(0, |r| r.errors);
        Ok(found)
    }
}
