//! Two layouts: do they speak of the same tensors, and is everything that is
//! needed held?

use super::copies::check_copies;
use super::cover::{STEPS_MAX, Uncovered, uncovered};
use super::cuts::granule_problem;
use super::memory::{Boxes, LOOKS_MAX, written_twice};
use super::{Finding, FindingKind, Findings, Problem, Side, first_difference};
use crate::error::Result;
use crate::layout::Layout;
use crate::layout::dtype::Dtype;
use crate::layout::placement::{Part, Placement};
use crate::layout::tensor::{IndexBox, Tensor, TensorIndex};
use crate::rank::Rank;
use serde::Serialize;
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet};

/// Everything that is wrong between two layouts, and how much fits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PairReport {
    pub findings: Vec<Finding>,
    /// Findings beyond [`FINDINGS_PER_KIND_MAX`](super::FINDINGS_PER_KIND_MAX)
    /// of their kind.
    pub omitted: u64,
    /// Findings that hinder, listed or omitted.
    pub errors: u64,
    pub source: Coverage,
    pub destination: Coverage,
    /// Names of tensors that only the source holds, sorted.
    pub source_only: Vec<String>,
    /// Names of tensors that only the destination needs, sorted.
    pub destination_only: Vec<String>,
}

impl PairReport {
    /// True if nothing hinders planning.
    pub fn is_ok(&self) -> bool {
        self.errors == 0
    }

    /// The first thing that hinders a plan, and how many more do. Source
    /// tensors that nobody wants are left to the caller, who knows whether that
    /// is meant.
    pub(crate) fn refuse_misfits(&self) -> Result<()> {
        let hinders =
            |f: &&Finding| f.kind.is_error() && f.kind != FindingKind::MissingOnDestination;
        match self.findings.iter().find(hinders) {
            None => Ok(()),
            Some(first) => Err(first.as_error(self.errors - self.source_only.len() as u64)),
        }
    }
}

/// What one side describes, each byte counted once however many ranks have
/// it, in the dtypes of its tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Coverage {
    pub tensors: u64,
    pub bytes: u64,
    /// The bytes, of these, that the other side describes too.
    pub matched_bytes: u64,
}

/// Everything that is wrong between a source and a destination that are each
/// well-formed.
pub fn check_pair(source: &Layout, destination: &Layout) -> PairReport {
    let mut steps = STEPS_MAX;
    let mut pair = Pair {
        source,
        destination,
        held: Uses::of(source, &mut steps),
        needed: Uses::of(destination, &mut steps),
        steps,
        report: PairReport::default(),
        out: Findings::default(),
    };
    pair.run();
    let Pair {
        mut report, out, ..
    } = pair;
    let found = out.into_report();
    report.findings = found.findings;
    report.omitted = found.omitted;
    report.errors = found.errors;
    report
}

/// How one side uses a tensor.
#[derive(Default)]
struct Use<'a> {
    /// Some rule places it: then ranks hold all of it between them.
    placed: Option<(&'a Part, &'a Placement)>,
    boxes: Boxes<'a>,
    /// Every dtype it is stored in, with a rank that does so.
    dtypes: BTreeMap<Dtype, Option<Rank>>,
    /// What is left out of it; `None` if that is too hard to tell.
    missing: Option<Uncovered>,
}

impl Use<'_> {
    fn is_none(&self) -> bool {
        self.placed.is_none() && self.boxes.is_empty()
    }
}

/// How one side uses each of its tensors.
struct Uses<'a>(Vec<Use<'a>>);

impl<'a> Uses<'a> {
    fn of(layout: &'a Layout, steps: &mut u64) -> Uses<'a> {
        let tensors = layout.tensors();
        let mut uses: Vec<Use<'a>> = tensors.iter().map(|_| Use::default()).collect();
        for part in layout.parts() {
            for p in &part.placements {
                let u = &mut uses[p.tensor.index()];
                u.placed.get_or_insert((part, p));
                let stored = part.rule(p).stored_dtype(&tensors[p.tensor.index()]);
                u.dtypes.entry(stored).or_insert(part.ranks.lowest());
            }
        }
        for r in layout.explicit() {
            for v in &r.views {
                let u = &mut uses[v.tensor.index()];
                u.boxes.entry(&v.bounds).or_insert(r.rank);
                u.dtypes.entry(v.dtype).or_insert(Some(r.rank));
            }
        }
        for (u, t) in uses.iter_mut().zip(tensors) {
            u.missing = match u.placed {
                Some(_) => Some(Uncovered::NOTHING),
                None => uncovered(&IndexBox::whole(&t.shape), u.boxes.keys().copied(), steps),
            };
        }
        Uses(uses)
    }
}

struct Pair<'a> {
    source: &'a Layout,
    destination: &'a Layout,
    held: Uses<'a>,
    needed: Uses<'a>,
    /// Steps left for questions about boxes.
    steps: u64,
    report: PairReport,
    out: Findings,
}

impl Pair<'_> {
    fn run(&mut self) {
        let mut wanted: BTreeSet<usize> = BTreeSet::new();
        for d in 0..self.destination.tensors().len() {
            if self.needed.0[d].is_none() {
                continue;
            }
            let found = self
                .source
                .find_counterpart(self.destination, TensorIndex(d as u32))
                .map(TensorIndex::index)
                .filter(|&s| !self.held.0[s].is_none());
            match found {
                Some(s) => {
                    wanted.insert(s);
                    self.both(s, d);
                }
                None => self.missing_on_source(d),
            }
        }
        for s in 0..self.source.tensors().len() {
            if !self.held.0[s].is_none() && !wanted.contains(&s) {
                self.missing_on_destination(s);
            }
        }
        let mut looks = LOOKS_MAX;
        for r in self.destination.explicit() {
            written_twice(r, self.destination.tensors(), &mut looks, &mut self.out);
        }
        check_copies(self.destination, &mut self.steps, &mut self.out);
        for s in &wanted {
            let t = &self.source.tensors()[*s];
            let held = bytes_of(&self.held.0[*s], t);
            self.report.source.bytes += held;
        }
        self.report.source.tensors += wanted.len() as u64;
    }

    fn missing_on_source(&mut self, d: usize) {
        let t = &self.destination.tensors()[d];
        let bytes = bytes_of(&self.needed.0[d], t);
        self.report.destination.tensors += 1;
        self.report.destination.bytes += bytes;
        self.report.destination_only.push(t.name.clone());
        let twin = self.source.find_tensor(&t.name);
        let why = match twin {
            Some(_) => "declares it and holds none of it",
            None => "does not know it",
        };
        self.out.push(Finding {
            kind: FindingKind::MissingOnSource,
            side: Some(Side::Source),
            tensor: t.name.clone(),
            axis: None,
            rank: lowest_rank(&self.needed.0[d], t),
            bytes,
            message: format!(
                "tensor \"{}\": the destination needs {bytes} bytes of it and the source {why}; \
                 add it to the source, or an alias if it has another name there",
                t.name
            ),
        });
    }

    fn missing_on_destination(&mut self, s: usize) {
        let t = &self.source.tensors()[s];
        let bytes = bytes_of(&self.held.0[s], t);
        self.report.source.tensors += 1;
        self.report.source.bytes += bytes;
        self.report.source_only.push(t.name.clone());
        let why = match self.destination.find_tensor(&t.name) {
            Some(d) => format!(
                "the destination takes that name for an alias of \"{}\"; declare the alias on the \
                 source too",
                self.destination.tensors()[d.index()].name
            ),
            None => "the destination does not know it; add it to the destination, or name it as \
                     unused if that is meant"
                .into(),
        };
        self.out.push(Finding {
            kind: FindingKind::MissingOnDestination,
            side: Some(Side::Destination),
            tensor: t.name.clone(),
            axis: None,
            rank: lowest_rank(&self.held.0[s], t),
            bytes,
            message: format!(
                "tensor \"{}\": the source holds {bytes} bytes of it and {why}",
                t.name
            ),
        });
    }

    /// Checks a tensor that both sides have.
    fn both(&mut self, s: usize, d: usize) {
        let (a, b) = (&self.source.tensors()[s], &self.destination.tensors()[d]);
        self.report.destination.tensors += 1;
        let needed = bytes_of(&self.needed.0[d], b);
        self.report.destination.bytes += needed;
        if let Some(problem) = shape_problem(a, b) {
            self.out.push(problem.of(&b.name, None, None));
            return;
        }
        self.dtypes(s, d);
        if a.granule != b.granule {
            self.granules(Side::Source, s, b);
            self.granules(Side::Destination, d, a);
        }
        self.padding(s, d);
        self.coverage(s, d);
    }

    /// Says where the sides pad an axis differently: what lies there does not
    /// move.
    fn padding(&mut self, s: usize, d: usize) {
        let tensor = &self.destination.tensors()[d];
        let (Some(held), Some(needed)) = (self.held.0[s].placed, self.needed.0[d].placed) else {
            return;
        };
        for (dim, &size) in tensor.shape.iter().enumerate() {
            let (own, other) = (allocated(held, dim, size), allocated(needed, dim, size));
            if own == other {
                continue;
            }
            let text = format!(
                "axis {dim} has {size} indices, which the source pads to {own} and the \
                 destination to {other}; padding does not move"
            );
            let problem = Problem::new(FindingKind::Padding, dim as u8, text);
            self.out.push(problem.of(&tensor.name, None, None));
        }
    }

    fn dtypes(&mut self, s: usize, d: usize) {
        let name = &self.destination.tensors()[d].name;
        let on = |rank: &Option<Rank>| rank.map_or(String::new(), |r| format!(" on rank {r}"));
        let stored: Vec<_> = self.held.0[s].dtypes.iter().collect();
        if let [(x, r), (y, q), ..] = stored[..] {
            let text = format!(
                "it is stored as {x}{} and as {y}{}; all ranks of a source store a tensor alike",
                on(r),
                on(q)
            );
            let problem = Problem::new(FindingKind::Dtype, None, text);
            self.out.push(problem.of(name, Some(Side::Source), *r));
        }
        for (x, r) in &self.held.0[s].dtypes {
            for (y, q) in &self.needed.0[d].dtypes {
                if x.converts_to(*y) {
                    continue;
                }
                let text = format!(
                    "the source stores it as {x}{} and the destination as {y}{}, which cannot be \
                     converted; f32, f16 and bf16 convert into each other",
                    on(r),
                    on(q)
                );
                let problem = Problem::new(FindingKind::Dtype, None, text);
                self.out.push(problem.of(name, None, *q));
            }
        }
    }

    /// Checks the cuts of one side against the granules of the other.
    fn granules(&mut self, side: Side, own: usize, other: &Tensor) {
        let layout = match side {
            Side::Source => self.source,
            Side::Destination => self.destination,
        };
        let tensor = &layout.tensors()[own];
        let mut problems: Vec<(Problem, Option<Rank>)> = Vec::new();
        let mut seen = BTreeSet::new();
        for (i, part) in layout.parts().iter().enumerate() {
            for p in part.placements_of(TensorIndex(own as u32)) {
                if !seen.insert((i, p.rule)) {
                    continue;
                }
                let rule = part.rule(p);
                for (dim, &size) in tensor.shape.iter().enumerate() {
                    let g = other.granule[dim];
                    let found = granule_problem(rule, part.mesh(rule), dim, size, g);
                    problems.extend(found.map(|p| (p, part.ranks.lowest())));
                }
            }
        }
        let boxes = match side {
            Side::Source => &self.held.0[own].boxes,
            Side::Destination => &self.needed.0[own].boxes,
        };
        for (bounds, rank) in boxes {
            for (axis, s) in bounds.spans().iter().enumerate() {
                let g = other.granule[axis];
                if let Some(bound) = [s.lo, s.hi].into_iter().find(|b| b % g != 0) {
                    let text = format!(
                        "axis {axis} of a box is {s}, which falls at {bound} inside a granule of \
                         {g} indices that the other side declares; cut at multiples of {g}"
                    );
                    let problem = Problem::new(FindingKind::Granule, axis as u8, text);
                    problems.push((problem, Some(*rank)));
                }
            }
        }
        for (problem, rank) in problems {
            self.out.push(problem.of(&tensor.name, Some(side), rank));
        }
    }

    /// Counts what is held and needed, and names what is needed and not held.
    fn coverage(&mut self, s: usize, d: usize) {
        let (held, needed) = (&self.held.0[s], &self.needed.0[d]);
        let (a, b) = (&self.source.tensors()[s], &self.destination.tensors()[d]);
        let whole = IndexBox::whole(&b.shape);
        let (Some(unheld), Some(unneeded)) = (&held.missing, &needed.missing) else {
            return self.too_hard(d);
        };
        let (unheld, unneeded) = (unheld.elements, unneeded.elements);
        let unseen = if unheld == 0 || unneeded == 0 {
            0
        } else if held.boxes.keys().eq(needed.boxes.keys()) {
            unheld
        } else {
            let both = held.boxes.keys().chain(needed.boxes.keys()).copied();
            match uncovered(&whole, both, &mut self.steps) {
                Some(left) => left.elements,
                None => return self.too_hard(d),
            }
        };
        let all = whole.elements();
        // |held and needed| = |held| + |needed| - |held or needed|
        let matched = (all - unheld) + (all - unneeded) - (all - unseen);
        self.report.source.matched_bytes += matched * a.dtype.bytes();
        self.report.destination.matched_bytes += matched * b.dtype.bytes();
        if matched < all - unneeded {
            self.never_held(s, d);
        } else if unheld > 0 {
            self.source_hole(s);
        }
    }

    fn never_held(&mut self, s: usize, d: usize) {
        let (held, needed) = (&self.held.0[s], &self.needed.0[d]);
        let b = &self.destination.tensors()[d];
        let whole = IndexBox::whole(&b.shape);
        let mut gaps: Vec<(IndexBox, u64, IndexBox, Option<Rank>)> = Vec::new();
        let missing = held.missing.clone();
        if let (Some((part, p)), Some((elements, Some(first)))) =
            (needed.placed, missing.map(|m| (m.elements, m.first)))
        {
            let rank = first_holder(part, p, b, &first);
            gaps.push((whole, elements, first, rank));
        } else {
            for (bounds, rank) in &needed.boxes {
                let left = uncovered(bounds, held.boxes.keys().copied(), &mut self.steps);
                match left.map(|l| (l.elements, l.first)) {
                    Some((elements, Some(first))) => {
                        gaps.push(((*bounds).clone(), elements, first, Some(*rank)));
                    }
                    Some(_) => {}
                    None => {
                        self.too_hard(d);
                        break;
                    }
                }
            }
        }
        for (bounds, elements, first, rank) in gaps {
            let bytes = elements * b.dtype.bytes();
            let on = rank.map_or(String::new(), |r| format!("rank {r} of "));
            let axis = first_difference(&bounds, &first);
            self.out.push(Finding {
                kind: FindingKind::NeverHeld,
                side: Some(Side::Source),
                tensor: b.name.clone(),
                axis,
                rank,
                bytes,
                message: format!(
                    "tensor \"{}\": {on}the destination needs {bounds}, of which no source rank \
                     holds {bytes} bytes, such as {first}; add a source rank that holds them",
                    b.name
                ),
            });
        }
    }

    fn source_hole(&mut self, s: usize) {
        let t = &self.source.tensors()[s];
        let Some(Uncovered { elements, first }) = self.held.0[s].missing.clone() else {
            return;
        };
        let bytes = elements * t.dtype.bytes();
        let axis = first
            .as_ref()
            .and_then(|b| first_difference(b, &IndexBox::whole(&t.shape)));
        let such = first.map_or(String::new(), |b| format!(", such as {b}"));
        self.out.push(Finding {
            kind: FindingKind::SourceHole,
            side: Some(Side::Source),
            tensor: t.name.clone(),
            axis,
            rank: None,
            bytes,
            message: format!(
                "tensor \"{}\": no source rank holds {bytes} bytes of it{such}; the destination \
                 does not need them",
                t.name
            ),
        });
    }

    fn too_hard(&mut self, d: usize) {
        let t = &self.destination.tensors()[d];
        let text = "it is described in too many crossing boxes to tell whether all that is needed \
                    is held; use boxes that cut along fewer axes";
        let problem = Problem::new(FindingKind::NeverHeld, None, text);
        self.out.push(problem.of(&t.name, Some(Side::Source), None));
    }
}

/// Distinct bytes that one side has of a tensor; all of them where that is
/// too hard to tell.
fn bytes_of(u: &Use<'_>, t: &Tensor) -> u64 {
    let whole = IndexBox::whole(&t.shape);
    let missing = u.missing.as_ref().map_or(0, |m| m.elements);
    (whole.elements() - missing) * t.dtype.bytes()
}

/// The lowest rank that has any of a tensor.
fn lowest_rank(u: &Use<'_>, t: &Tensor) -> Option<Rank> {
    let whole = IndexBox::whole(&t.shape);
    let placed = u.placed.and_then(|(part, p)| match whole.is_empty() {
        true => part.ranks.lowest(),
        false => first_holder(part, p, t, &whole),
    });
    placed.into_iter().chain(u.boxes.values().copied()).min()
}

/// The lowest rank that would hold the first element of a box.
fn first_holder(part: &Part, p: &Placement, t: &Tensor, bounds: &IndexBox) -> Option<Rank> {
    let rule = part.rule(p);
    let mesh = part.mesh(rule);
    let slice = rule.holders(0, mesh, p.stage, &t.shape, |d| bounds.0[d].lo);
    Some(part.ranks.rank(slice.nth(mesh, 0)))
}

/// Indices of an axis that all its parts have together, with their padding.
fn allocated((part, p): (&Part, &Placement), dim: usize, size: u64) -> u64 {
    let rule = part.rule(p);
    let mesh = part.mesh(rule);
    if rule.padded & (1 << dim) == 0 {
        return size;
    }
    let origin: SmallVec<[u32; 8]> = mesh.axes.iter().map(|_| 0).collect();
    let parts: u64 = rule.cuts_of(dim).map(|c| c.part_count(mesh)).product();
    let first = rule.local_axis(mesh, &origin, dim, size).extent;
    first.saturating_mul(parts).max(size)
}

fn shape_problem(a: &Tensor, b: &Tensor) -> Option<Problem> {
    if a.shape == b.shape {
        return None;
    }
    let axes = (a.shape.len(), b.shape.len());
    if axes.0 != axes.1 {
        let text = format!(
            "it has shape {:?} on the source and {:?} on the destination; give it the same axes \
             on both sides",
            a.shape.as_slice(),
            b.shape.as_slice()
        );
        return Some(Problem::new(FindingKind::Shape, None, text));
    }
    let axis = (0..axes.0).find(|&i| a.shape[i] != b.shape[i])?;
    let text = format!(
        "axis {axis} has {} indices on the source and {} on the destination; a canonical tensor \
         has its true extents, without padding",
        a.shape[axis], b.shape[axis]
    );
    Some(Problem::new(FindingKind::Shape, axis as u8, text))
}
