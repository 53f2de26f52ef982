//! One layout, or two and what is between them, looked at in one go.

use super::{PairReport, Report, check, check_pair};
use crate::error::Result;
use crate::layout::canonical::canonical;
use crate::layout::{Layout, LayoutSpec};
use serde::Serialize;
use std::collections::BTreeSet;

/// Everything that is wrong with a source and a destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Inspection {
    /// Findings that hinder a plan, listed or omitted.
    pub errors: u64,
    pub source: Report,
    pub destination: Option<Report>,
    /// What is between them, of all tensors that are well-formed on both sides;
    /// absent if more is wrong than with single tensors.
    pub pair: Option<PairReport>,
    /// Names of tensors that `pair` leaves out, because they, or others in a
    /// buffer with them, have errors of their own. Sorted.
    pub unpaired: Vec<String>,
}

impl Inspection {
    /// Looks at each layout on its own, and at the pair as far as both are
    /// well-formed.
    pub fn of(source: &LayoutSpec, destination: Option<&LayoutSpec>) -> Result<Inspection> {
        let mut found = Inspection {
            errors: 0,
            source: check(source),
            destination: destination.map(check),
            pair: None,
            unpaired: Vec::new(),
        };
        if let (Some(spec), Some(report)) = (destination, &found.destination)
            && let Some((pair, unpaired)) = pair_of([source, spec], [&found.source, report])
        {
            (found.pair, found.unpaired) = (Some(pair), unpaired);
        }
        found.errors = found.source.errors
            + found.destination.as_ref().map_or(0, |r| r.errors)
            + found.pair.as_ref().map_or(0, |r| r.errors);
        Ok(found)
    }
}

/// What is between two sides less the tensors that have errors, and their
/// names.
fn pair_of(specs: [&LayoutSpec; 2], reports: [&Report; 2]) -> Option<(PairReport, Vec<String>)> {
    let mut faulty: BTreeSet<String> = BTreeSet::new();
    for report in reports {
        let errors = report.findings.iter().filter(|f| f.kind.is_error());
        let names: Vec<&String> = errors.map(|f| &f.tensor).collect();
        if names.iter().any(|n| n.is_empty()) || (report.errors > 0 && report.omitted > 0) {
            return None;
        }
        faulty.extend(names.into_iter().cloned());
    }
    let [source, destination] = specs.map(|spec| canonical(spec.clone()).ok().map(|c| c.0));
    let sides = [source?, destination?];
    // What one side leaves out, the other does, under whichever name.
    while sides.iter().any(|spec| spread(spec, &mut faulty)) {}
    let [source, destination] = sides.map(|spec| {
        let is_kept: Vec<bool> = spec
            .tensors
            .iter()
            .map(|t| !faulty.contains(&t.name))
            .collect();
        Layout::new(spec.keep(&is_kept)).ok()
    });
    let pair = check_pair(&source?, &destination?);
    Some((pair, faulty.into_iter().collect()))
}

/// Adds the tensors that lie in a buffer with a faulty one, and other names of
/// faulty ones; false if there were none to add.
fn spread(spec: &LayoutSpec, faulty: &mut BTreeSet<String>) -> bool {
    let before = faulty.len();
    for part in &spec.parts {
        for b in &part.buffers {
            let names = b.members.iter();
            let name = |m: u32| &spec.tensors[part.member(m).tensor.index()].name;
            if names.clone().any(|&m| faulty.contains(name(m))) {
                faulty.extend(names.map(|&m| name(m).clone()));
            }
        }
    }
    for (alias, name) in &spec.aliases {
        if faulty.contains(alias) || faulty.contains(name) {
            faulty.extend([alias.clone(), name.clone()]);
        }
    }
    faulty.len() > before
}
