//! Explicit views: are they inside their tensors and buffers, and apart?
//!
//! Views of one buffer are first compared by the bytes they span. Where spans
//! overlap, as with interleaved storage, two further looks decide:
//!
//! ```text
//!   residues   every view steps by one pitch    | a b | a b | a b |   a and b differ mod 2
//!   runs       every contiguous run of each     sorted, and swept once
//! ```
//!
//! Both are exact. Where there are too many runs the verdict is that it could
//! not be proven, which counts as an error.

use super::{Finding, FindingKind, Findings, Problem, first_difference};
use crate::layout::LayoutSpec;
use crate::layout::tensor::Tensor;
use crate::layout::view::{RankViews, View};
use crate::limits::BOX_COUNT_MAX;
use crate::rank::Rank;
use smallvec::SmallVec;
use std::collections::BTreeMap;

/// Runs of one group of entangled views that are still enumerated.
const RUNS_MAX: u64 = 1 << 20;
/// Runs, and pairs of boxes, that are looked at in a whole layout.
pub(super) const LOOKS_MAX: u64 = 1 << 25;
/// Pairs of overlapping runs after which a sweep knows enough.
const MEETINGS_MAX: usize = 1 << 20;

/// Checks every explicit rank of a layout.
pub(super) fn check_explicit(spec: &LayoutSpec, out: &mut Findings) {
    let mut looks = LOOKS_MAX;
    for r in &spec.explicit {
        check_counts(r, &spec.tensors, out);
        let is_sound: Vec<bool> = r
            .views
            .iter()
            .map(|v| check_view(r, v, &spec.tensors[v.tensor.index()], out))
            .collect();
        // A view that cannot be trusted hides nothing about the others.
        match is_sound.iter().all(|&s| s) {
            true => check_apart(r, &spec.tensors, &mut looks, out),
            false => {
                let mut sound = r.clone();
                let mut is_sound = is_sound.iter();
                sound
                    .views
                    .retain(|_| *is_sound.next().expect("one for each view"));
                check_apart(&sound, &spec.tensors, &mut looks, out);
            }
        }
    }
}

/// A rank holds a tensor in a limited number of boxes.
fn check_counts(r: &RankViews, tensors: &[Tensor], out: &mut Findings) {
    for group in r.views.chunk_by(|a, b| a.tensor == b.tensor) {
        if group.len() > BOX_COUNT_MAX {
            let text = format!(
                "it has {} views; at most {BOX_COUNT_MAX} are allowed for a tensor on one rank",
                group.len()
            );
            let problem = Problem::new(FindingKind::Storage, None, text);
            let name = &tensors[group[0].tensor.index()].name;
            let mut finding = problem.of(name, None, Some(r.rank));
            finding.message = format!("rank {}, {}", r.rank, finding.message);
            out.push(finding);
        }
    }
}

/// Checks one view; false if its geometry cannot be trusted.
fn check_view(r: &RankViews, v: &View, t: &Tensor, out: &mut Findings) -> bool {
    let before = out.list.len() + out.omitted as usize;
    let mut say = |kind, axis: Option<usize>, text: String| {
        let problem = Problem::new(kind, axis.map(|a| a as u8), text);
        let mut finding = problem.of(&t.name, None, Some(r.rank));
        finding.message = format!("rank {}, {}", r.rank, finding.message);
        out.push(finding);
    };
    for (axis, (s, &size)) in v.bounds.spans().iter().zip(&t.shape).enumerate() {
        if s.hi > size {
            let text =
                format!("axis {axis} of a box is {s}, but the tensor has {size} indices there");
            say(FindingKind::BoxOutside, Some(axis), text);
            continue;
        }
        let g = t.granule[axis];
        if let Some(bound) = [s.lo, s.hi].into_iter().find(|b| b % g != 0) {
            let text = format!(
                "axis {axis} of a box is {s}, which falls at {bound} inside a granule of {g} \
                 indices; cut at multiples of {g}"
            );
            say(FindingKind::Granule, Some(axis), text);
        }
    }
    let buffer = &r.buffers[v.buffer as usize];
    match v.extent() {
        Some((_, hi)) if hi <= buffer.bytes => {}
        found => {
            let reach = match found {
                Some((lo, hi)) => format!("bytes [{lo},{hi})"),
                None => "bytes before its start, or beyond 2^64,".into(),
            };
            let text = format!(
                "a view of {} from offset {} with strides {:?} touches {reach} of buffer \"{}\", \
                 which has {}",
                v.bounds,
                v.offset,
                v.strides.as_slice(),
                buffer.name,
                buffer.bytes
            );
            say(FindingKind::ViewOutside, None, text);
        }
    }
    if !t.dtype.converts_to(v.dtype) {
        let text = format!(
            "it has dtype {} and is stored as {}, which cannot be converted; f32, f16 and bf16 \
             convert into each other",
            t.dtype, v.dtype
        );
        say(FindingKind::Dtype, None, text);
    }
    if let Some(c) = &v.conversion {
        let text = format!(
            "conversion kind {} is unknown; this library knows none",
            c.kind
        );
        say(FindingKind::Storage, None, text);
    }
    out.list.len() + out.omitted as usize == before
}

/// Finds views of one buffer that share memory without being the same values.
fn check_apart(r: &RankViews, tensors: &[Tensor], looks: &mut u64, out: &mut Findings) {
    for group in entangled(&r.views) {
        let meetings = match meetings(&r.views, &group, looks) {
            Some(m) => m,
            None => {
                out.push(unproven(r, &group, tensors));
                continue;
            }
        };
        for ((i, j), met) in meetings {
            let (a, b) = (&r.views[i], &r.views[j]);
            if i != j && !is_shared_on_purpose(a, b, met) {
                out.push(overlap(r, a, b, tensors, met));
            }
        }
    }
}

/// True if two views that meet do so only where they are the same elements.
fn is_shared_on_purpose(a: &View, b: &View, met: Met) -> bool {
    if !is_same_map(a, b) {
        return false;
    }
    // Views that repeat an element are for sources only, and judged there.
    let common = a.bounds.intersect(&b.bounds).elements() * a.dtype.bytes();
    !is_injective(a) || !is_injective(b) || met.bytes == common
}

fn overlap(r: &RankViews, a: &View, b: &View, tensors: &[Tensor], met: Met) -> Finding {
    let (s, t) = (&tensors[a.tensor.index()], &tensors[b.tensor.index()]);
    let advice = if a.tensor == b.tensor {
        "each element has one place in a buffer"
    } else {
        "move one, or declare one name as an alias of the other"
    };
    Finding {
        kind: FindingKind::Overlap,
        side: None,
        tensor: s.name.clone(),
        axis: (a.tensor == b.tensor)
            .then(|| first_difference(&a.bounds, &b.bounds))
            .flatten(),
        rank: Some(r.rank),
        bytes: met.bytes,
        message: format!(
            "rank {}, buffer \"{}\": {} of tensor \"{}\" and {} of tensor \"{}\" share {} bytes, \
             the first at byte {}; {advice}",
            r.rank,
            r.buffers[a.buffer as usize].name,
            a.bounds,
            s.name,
            b.bounds,
            t.name,
            met.bytes,
            met.first
        ),
    }
}

fn unproven(r: &RankViews, group: &[usize], tensors: &[Tensor]) -> Finding {
    let first = &r.views[group[0]];
    let name = &tensors[first.tensor.index()].name;
    Finding {
        kind: FindingKind::OverlapUnproven,
        side: None,
        tensor: name.clone(),
        axis: None,
        rank: Some(r.rank),
        bytes: 0,
        message: format!(
            "rank {}, buffer \"{}\": {} views, the first of tensor \"{name}\", interleave in more \
             than {RUNS_MAX} runs, so it could not be shown that they do not overlap; use \
             strides with a common pitch, or separate buffers",
            r.rank,
            r.buffers[first.buffer as usize].name,
            group.len()
        ),
    }
}

/// What the destination would write more than once, on one explicit rank.
pub(super) fn written_twice(
    r: &RankViews,
    tensors: &[Tensor],
    looks: &mut u64,
    out: &mut Findings,
) {
    for (i, v) in r.views.iter().enumerate() {
        if is_injective(v) {
            continue;
        }
        let met = meetings(&r.views, &[i], looks).map(|m| m.get(&(i, i)).copied());
        let bytes = match met {
            Some(None) => continue,
            Some(Some(met)) => met.bytes,
            None => 0,
        };
        let text = format!(
            "a view of {} with strides {:?} puts several elements at one place; a destination \
             needs a place for each",
            v.bounds,
            v.strides.as_slice()
        );
        out.push(twice(r, v, tensors, bytes, crowded_axis(v), text));
    }
    // Boxes of one tensor: equal ones, or those in another buffer, are a
    // second place that is meant; others are a slip.
    for group in r.views.chunk_by(|a, b| a.tensor == b.tensor) {
        let Some(pairs) = overlapping_boxes(group, looks) else {
            let text = "its boxes are too many to tell whether they overlap; use fewer, or boxes \
                        that cut along one axis";
            out.push(twice(r, &group[0], tensors, 0, None, text.into()));
            continue;
        };
        for (a, b) in pairs {
            let is_second_place = a.bounds == b.bounds && !is_same_map(a, b);
            if a.buffer != b.buffer || is_second_place {
                continue;
            }
            let common = a.bounds.intersect(&b.bounds);
            let bytes = common.elements() * a.dtype.bytes();
            let text = format!(
                "boxes {} and {} of buffer \"{}\" have {common} in common ({bytes} bytes); make \
                 them disjoint, or put the second place into a buffer of its own",
                a.bounds, b.bounds, r.buffers[a.buffer as usize].name
            );
            let axis = first_difference(&a.bounds, &b.bounds);
            out.push(twice(r, a, tensors, bytes, axis, text));
        }
    }
}

/// The first axis, from the innermost in memory out, whose steps are shorter
/// than what they step over.
fn crowded_axis(v: &View) -> Option<u8> {
    let spans = v.bounds.spans().iter().zip(&v.strides);
    let mut axes: SmallVec<[(u64, u64, u8); 4]> = (0..)
        .zip(spans)
        .map(|(axis, (s, stride))| (stride.unsigned_abs(), s.len(), axis))
        .filter(|&(_, n, _)| n > 1)
        .collect();
    axes.sort_unstable();
    let mut reach = v.dtype.bytes();
    for (step, n, axis) in axes {
        if step < reach {
            return Some(axis);
        }
        reach = reach.saturating_add(step.saturating_mul(n - 1));
    }
    None
}

fn twice(
    r: &RankViews,
    v: &View,
    tensors: &[Tensor],
    bytes: u64,
    axis: Option<u8>,
    text: String,
) -> Finding {
    let name = &tensors[v.tensor.index()].name;
    let mut finding =
        Problem::new(FindingKind::WrittenTwice, axis, text).of(name, None, Some(r.rank));
    finding.side = Some(super::Side::Destination);
    finding.bytes = bytes;
    finding.message = format!("rank {}, {}", r.rank, finding.message);
    finding
}

/// Pairs of views of one tensor whose boxes overlap, found by a sweep along
/// the axis on which they differ most. `None` if that takes too long.
fn overlapping_boxes<'a>(views: &'a [View], looks: &mut u64) -> Option<Vec<(&'a View, &'a View)>> {
    let axes = views.first().map_or(0, |v| v.bounds.0.len());
    let starts = |axis: usize| {
        let mut lo: Vec<u64> = views.iter().map(|v| v.bounds.0[axis].lo).collect();
        lo.sort_unstable();
        lo.dedup();
        lo.len()
    };
    let Some(axis) = (0..axes).max_by_key(|&a| starts(a)) else {
        // Scalars: any two are the same box.
        return Some(views.windows(2).map(|w| (&w[0], &w[1])).collect());
    };
    let mut sorted: Vec<&View> = views.iter().collect();
    sorted.sort_by_key(|v| v.bounds.0[axis].lo);
    let mut pairs = Vec::new();
    for (i, a) in sorted.iter().enumerate() {
        let near = |b: &&&View| b.bounds.0[axis].lo < a.bounds.0[axis].hi;
        for b in sorted[i + 1..].iter().take_while(near) {
            *looks = looks.checked_sub(1)?;
            if a.bounds.overlaps(&b.bounds) {
                pairs.push((*a, *b));
            }
        }
    }
    Some(pairs)
}

/// True if both views put every element of a tensor at the same place.
fn is_same_map(a: &View, b: &View) -> bool {
    let origin = |v: &View| {
        let starts = v.bounds.spans().iter().zip(&v.strides);
        starts.fold(i128::from(v.offset), |at, (s, &stride)| {
            at.wrapping_sub(i128::from(s.lo).wrapping_mul(i128::from(stride)))
        })
    };
    a.tensor == b.tensor
        && a.buffer == b.buffer
        && a.dtype == b.dtype
        && a.strides == b.strides
        && origin(a) == origin(b)
}

/// Groups of views of one buffer whose spans of bytes overlap.
fn entangled(views: &[View]) -> Vec<Vec<usize>> {
    let mut spans: Vec<(u32, u64, u64, usize)> = views
        .iter()
        .enumerate()
        .filter_map(|(i, v)| v.extent().map(|(lo, hi)| (v.buffer, lo, hi, i)))
        .collect();
    spans.sort_unstable();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut reach = (u32::MAX, 0);
    for (buffer, lo, hi, i) in spans {
        if reach.0 == buffer && lo < reach.1 {
            groups
                .last_mut()
                .expect("a reach belongs to a group")
                .push(i);
            reach.1 = reach.1.max(hi);
        } else {
            groups.push(vec![i]);
            reach = (buffer, hi);
        }
    }
    groups.retain(|g| g.len() > 1);
    groups
}

/// How two views meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Met {
    bytes: u64,
    /// The lowest byte they share.
    first: u64,
}

/// Which views of a group share memory, pair by pair; a view that overlaps
/// itself is a pair with itself. `None` if that takes too long to say.
fn meetings(
    views: &[View],
    group: &[usize],
    looks: &mut u64,
) -> Option<BTreeMap<(usize, usize), Met>> {
    if group.len() > 1 && is_apart_by_residues(views, group) {
        return Some(BTreeMap::new());
    }
    let mut count = 0u64;
    for &i in group {
        count = count.saturating_add(Lattice::of(&views[i]).runs());
    }
    if count > RUNS_MAX {
        return None;
    }
    *looks = looks.checked_sub(count)?;
    let mut runs: Vec<(u64, u64, usize)> = Vec::with_capacity(count as usize);
    for &i in group {
        Lattice::of(&views[i]).for_each_run(|lo, hi| runs.push((lo, hi, i)));
    }
    runs.sort_unstable();
    Some(sweep(&runs))
}

fn sweep(runs: &[(u64, u64, usize)]) -> BTreeMap<(usize, usize), Met> {
    let mut found: BTreeMap<(usize, usize), Met> = BTreeMap::new();
    let mut active: Vec<(u64, usize)> = Vec::new();
    let mut looked = 0;
    for &(lo, hi, i) in runs {
        active.retain(|&(end, _)| end > lo);
        for &(end, j) in &active {
            let met = found.entry((i.min(j), i.max(j))).or_insert(Met {
                bytes: 0,
                first: lo,
            });
            met.bytes += end.min(hi) - lo;
        }
        looked += active.len();
        if looked > MEETINGS_MAX {
            break;
        }
        active.push((hi, i));
    }
    found
}

/// The bytes of a view: one run of bytes at every point of a lattice.
struct Lattice {
    start: u64,
    run: u64,
    /// Step and count of each remaining axis, smallest step first.
    steps: SmallVec<[(u64, u64); 4]>,
}

impl Lattice {
    fn of(v: &View) -> Lattice {
        let (start, _) = v.extent().unwrap_or((0, 0));
        let mut axes: SmallVec<[(u64, u64); 4]> = v
            .strides
            .iter()
            .zip(v.bounds.spans())
            .map(|(stride, s)| (stride.unsigned_abs(), s.len()))
            .filter(|&(_, n)| n > 1)
            .collect();
        axes.sort_unstable();
        let mut lattice = Lattice {
            start,
            run: v.dtype.bytes(),
            steps: SmallVec::new(),
        };
        for (step, n) in axes {
            if step == lattice.run && lattice.steps.is_empty() {
                lattice.run *= n;
            } else {
                lattice.steps.push((step, n));
            }
        }
        lattice
    }

    fn runs(&self) -> u64 {
        self.steps.iter().fold(1, |a, &(_, n)| a.saturating_mul(n))
    }

    fn for_each_run(&self, mut f: impl FnMut(u64, u64)) {
        let mut at: SmallVec<[u64; 4]> = self.steps.iter().map(|_| 0).collect();
        loop {
            let offset: u64 = at
                .iter()
                .zip(&self.steps)
                .map(|(i, (step, _))| i * step)
                .sum();
            f(self.start + offset, self.start + offset + self.run);
            let mut d = self.steps.len();
            loop {
                if d == 0 {
                    return;
                }
                d -= 1;
                at[d] += 1;
                if at[d] < self.steps[d].1 {
                    break;
                }
                at[d] = 0;
            }
        }
    }

    /// The bytes touched modulo `pitch`, as a range that may wrap around;
    /// `None` if they are too spread out to be one.
    fn residue(&self, pitch: u64) -> Option<(u64, u64)> {
        let mut reach = self.run;
        for &(step, n) in &self.steps {
            if !step.is_multiple_of(pitch) {
                reach = reach.checked_add(step.checked_mul(n - 1)?)?;
            }
        }
        (reach <= pitch).then_some((self.start % pitch, reach))
    }
}

/// True if an element of a view is certain to have a place of its own.
fn is_injective(v: &View) -> bool {
    let lattice = Lattice::of(v);
    let mut reach = lattice.run;
    lattice.steps.iter().all(|&(step, n)| {
        let is_clear = step >= reach;
        reach = reach.saturating_add(step.saturating_mul(n - 1));
        is_clear
    })
}

/// True if some common pitch shows that no two views of a group overlap.
fn is_apart_by_residues(views: &[View], group: &[usize]) -> bool {
    let lattices: Vec<Lattice> = group.iter().map(|&i| Lattice::of(&views[i])).collect();
    let mut pitches: Vec<u64> = lattices
        .iter()
        .flat_map(|l| l.steps.iter().map(|s| s.0))
        .filter(|&p| p > 0)
        .collect();
    pitches.sort_unstable();
    pitches.dedup();
    // Real layouts have a few pitches; a group with many falls back to runs.
    pitches.iter().rev().take(16).any(|&pitch| {
        let ranges: Option<Vec<(u64, u64)>> = lattices.iter().map(|l| l.residue(pitch)).collect();
        ranges.is_some_and(|r| is_apart_on_circle(r, pitch))
    })
}

/// True if ranges `(start, length)` on a circle do not overlap.
fn is_apart_on_circle(mut ranges: Vec<(u64, u64)>, pitch: u64) -> bool {
    ranges.sort_unstable();
    let next = ranges.iter().skip(1).map(|r| r.0);
    let around = ranges.first().map(|r| r.0 + pitch);
    ranges
        .iter()
        .zip(next.chain(around))
        .all(|(&(start, length), next)| start + length <= next)
}

/// The lowest explicit rank of each distinct box of every tensor.
pub(super) type Boxes<'a> = BTreeMap<&'a crate::layout::tensor::IndexBox, Rank>;
