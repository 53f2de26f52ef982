//! What is wrong with a layout, or between two: everything, not the first.
//!
//! ```text
//!   tensor "lm_head.weight": axis 0 has 30522 indices, which 4 equal parts
//!   (tp 4) do not divide; cut it with "floor", "ceil" or "at", or in chunks
//! ```
//!
//! Symbolic layouts are not expanded over their ranks: tensors that share
//! rule, shape and granules are looked at once, and a cut is looked at once
//! per length of the range it cuts. Explicit views are looked at one by one.

mod copies;
mod cover;
mod cuts;
mod inspection;
mod memory;
mod pair;
mod storage;

pub use inspection::Inspection;
pub use pair::{Coverage, PairReport, check_pair};

use super::LayoutSpec;
use super::canonical::canonical;
use super::tensor::{IndexBox, Tensor};
use crate::error::Error;
use crate::rank::Rank;
use serde::Serialize;
use std::collections::BTreeMap;

/// Findings of one kind in a report; further ones are counted only.
pub const FINDINGS_PER_KIND_MAX: usize = 100;

/// One of the two layouts of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    Source,
    Destination,
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Side::Source => "source",
            Side::Destination => "destination",
        })
    }
}

/// What sort of thing is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// The description contradicts itself; nothing else was looked at.
    Structure,
    /// A mesh has more or fewer positions than its part has ranks.
    Mesh,
    /// A cut that does not divide, cover or fit its axis.
    Cut,
    /// A cut, or a box, splits a granule; or an axis is no multiple of its own.
    Granule,
    /// A pipeline stage that the mesh does not have.
    Stage,
    /// Storage that cannot be: its order, its split axis, its size.
    Storage,
    /// Members of a fused buffer that do not fit together.
    Fused,
    /// Two buffers of one rank have one name.
    BufferName,
    /// A box reaches beyond its tensor.
    BoxOutside,
    /// A view reaches beyond its buffer.
    ViewOutside,
    /// Two views share memory and are not the same values.
    Overlap,
    /// Too entangled to tell whether two views share memory.
    OverlapUnproven,
    /// The destination would write something more than once.
    WrittenTwice,
    /// Stored values that cannot be converted into each other.
    Dtype,
    /// The sides disagree about the shape of a tensor.
    Shape,
    /// The destination needs a tensor whose name the source does not know.
    MissingOnSource,
    /// The source has a tensor that the destination does not know.
    MissingOnDestination,
    /// A copy of the destination has some of a tensor, and not all.
    CopyIncomplete,
    /// Bytes that the destination needs and no source rank holds.
    NeverHeld,
    /// Bytes that no source rank holds, and nobody needs.
    SourceHole,
    /// The sides allocate different numbers of indices for padding.
    Padding,
}

impl FindingKind {
    /// False for what is worth knowing and hinders nobody.
    pub const fn is_error(self) -> bool {
        !matches!(self, FindingKind::SourceHole | FindingKind::Padding)
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub kind: FindingKind,
    /// The layout it is about, where there are two.
    pub side: Option<Side>,
    /// The tensor it is about; empty if it is about none.
    pub tensor: String,
    /// The axis of the tensor, where it is about one.
    pub axis: Option<u8>,
    /// The lowest rank it shows on, where that is known.
    pub rank: Option<Rank>,
    /// How many bytes are concerned; 0 if that is not the point.
    pub bytes: u64,
    /// A sentence that names the thing and the numbers, and what to change.
    pub message: String,
}

impl Finding {
    /// The error that names this as the first of `count` findings.
    fn as_error(&self, count: u64) -> Error {
        let message = match count.saturating_sub(1) {
            0 => self.message.clone(),
            more => format!("{}; and {more} more", self.message),
        };
        Error {
            rank: self.rank,
            ..Error::layout(message)
        }
    }
}

/// Everything that is wrong with one layout.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    pub findings: Vec<Finding>,
    /// Findings beyond [`FINDINGS_PER_KIND_MAX`] of their kind.
    pub omitted: u64,
    /// Findings that hinder, listed or omitted.
    pub errors: u64,
}

impl Report {
    /// True if nothing hinders the use of the layout.
    pub fn is_ok(&self) -> bool {
        self.errors == 0
    }

    fn first_error(&self) -> Option<&Finding> {
        self.findings.iter().find(|f| f.kind.is_error())
    }

    /// The first error, and how many more there are.
    pub(super) fn into_result(self) -> Result<(), Error> {
        let Some(first) = self.first_error() else {
            return Ok(());
        };
        Err(first.as_error(self.errors))
    }
}

/// Everything that is wrong with one layout, looked at on its own.
///
/// A description whose tables do not fit together (numbers out of range, a
/// rank described twice) yields one finding that says so.
pub fn check(spec: &LayoutSpec) -> Report {
    let mut out = Findings::default();
    let mut spec = spec.clone();
    for t in &mut spec.tensors {
        check_granules(t, &mut out);
    }
    match canonical(spec) {
        Ok((spec, _)) => look_at(&spec, &mut out),
        Err(e) => out.push(Finding {
            kind: FindingKind::Structure,
            side: None,
            tensor: String::new(),
            axis: None,
            rank: e.rank,
            bytes: 0,
            message: e.message,
        }),
    }
    out.into_report()
}

/// Says which granules do not fit their axes; what follows is looked at as if
/// there were none.
fn check_granules(t: &mut Tensor, out: &mut Findings) {
    let faults: Vec<(usize, String)> = t.granule_faults().collect();
    for (axis, text) in faults {
        t.granule[axis] = 1;
        out.push(Problem::new(FindingKind::Granule, axis as u8, text).of(&t.name, None, None));
    }
}

/// The same for a description that is in canonical order.
pub(super) fn check_canonical(spec: &LayoutSpec) -> Report {
    let mut out = Findings::default();
    look_at(spec, &mut out);
    out.into_report()
}

fn look_at(spec: &LayoutSpec, out: &mut Findings) {
    for part in &spec.parts {
        let classes = cuts::check_part(part, &spec.tensors, out);
        storage::check_part(part, &spec.tensors, &classes, out);
    }
    memory::check_explicit(spec, out);
}

/// Collects findings and counts those beyond the cap of their kind.
#[derive(Default)]
struct Findings {
    list: Vec<Finding>,
    counts: BTreeMap<FindingKind, usize>,
    omitted: u64,
    errors: u64,
}

impl Findings {
    fn push(&mut self, finding: Finding) {
        if self.has_room(finding.kind) {
            self.list.push(finding);
        }
    }

    /// Counts one finding; false if it is one too many to keep.
    fn has_room(&mut self, kind: FindingKind) -> bool {
        let count = self.counts.entry(kind).or_default();
        *count += 1;
        self.errors += u64::from(kind.is_error());
        let has_room = *count <= FINDINGS_PER_KIND_MAX;
        self.omitted += u64::from(!has_room);
        has_room
    }

    fn into_report(self) -> Report {
        Report {
            findings: self.list,
            omitted: self.omitted,
            errors: self.errors,
        }
    }
}

/// The first axis on which two boxes of a tensor differ.
fn first_difference(a: &IndexBox, b: &IndexBox) -> Option<u8> {
    let spans = a.spans().iter().zip(b.spans());
    (0..)
        .zip(spans)
        .find_map(|(axis, (s, t))| (s != t).then_some(axis))
}

/// A finding about a tensor that is not yet tied to one: many tensors may
/// share it.
#[derive(Clone, Debug)]
struct Problem {
    kind: FindingKind,
    axis: Option<u8>,
    text: String,
}

impl Problem {
    fn new(kind: FindingKind, axis: impl Into<Option<u8>>, text: impl Into<String>) -> Problem {
        Problem {
            kind,
            axis: axis.into(),
            text: text.into(),
        }
    }

    /// The finding for one of its tensors.
    fn of(&self, tensor: &str, side: Option<Side>, rank: Option<Rank>) -> Finding {
        let on = side.map_or(String::new(), |s| format!(" of the {s}"));
        Finding {
            kind: self.kind,
            side,
            tensor: tensor.to_string(),
            axis: self.axis,
            rank,
            bytes: 0,
            message: format!("tensor \"{tensor}\"{on}: {}", self.text),
        }
    }
}
