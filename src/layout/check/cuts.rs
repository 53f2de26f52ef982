//! Cuts: do they divide, cover and respect granules?
//!
//! Nested cuts are followed by the *lengths* of the ranges they leave, of
//! which there are few, and not by the ranges, of which there are many.

use super::{Finding, FindingKind, Findings, Problem};
use crate::layout::canonical::repeated;
use crate::layout::cut::{Cut, CutKind};
use crate::layout::dtype::Dtype;
use crate::layout::mesh::Mesh;
use crate::layout::placement::{Part, Placement, Rule};
use crate::layout::tensor::{Dims, Tensor};
use crate::limits::{BOX_COUNT_MAX, TENSOR_BYTES_MAX};
use std::collections::{BTreeSet, HashMap};

/// What the tensors of one rule, shape, granule and dtype have in common.
pub(super) struct Class {
    pub problems: Vec<Problem>,
    /// The largest local extent of each axis, padding included.
    pub extents: Dims,
    /// Bytes of the largest local shard.
    pub bytes: u64,
}

/// The class of every placement, then of every spacer, of a part.
pub(super) struct Classes {
    pub list: Vec<Class>,
    pub of: Vec<usize>,
}

impl Classes {
    /// The class of member `m` of a buffer.
    pub fn of_member(&self, m: u32) -> &Class {
        &self.list[self.of[m as usize]]
    }
}

type ClassKey<'a> = (u32, &'a Dims, &'a Dims, Dtype);

/// Checks meshes, stages and cuts of a part.
pub(super) fn check_part(part: &Part, tensors: &[Tensor], out: &mut Findings) -> Classes {
    let rank = part.ranks.lowest();
    for mesh in &part.meshes {
        if let Err(e) = mesh.validate(part.ranks.count()) {
            out.push(Finding {
                kind: FindingKind::Mesh,
                side: None,
                tensor: String::new(),
                axis: None,
                rank,
                bytes: 0,
                message: format!(
                    "part of rank {}: {}; give it one position per rank",
                    rank.unwrap_or_default(),
                    e.message
                ),
            });
        }
    }
    let mut seen: HashMap<ClassKey<'_>, usize> = HashMap::new();
    let mut classes = Classes {
        list: Vec::new(),
        of: Vec::new(),
    };
    for p in part.placements.iter().chain(&part.spacers) {
        let tensor = &tensors[p.tensor.index()];
        let key = (p.rule, &tensor.shape, &tensor.granule, tensor.dtype);
        let class = *seen.entry(key).or_insert_with(|| {
            classes.list.push(class_of(part, part.rule(p), tensor));
            classes.list.len() - 1
        });
        classes.of.push(class);
        for problem in &classes.list[class].problems {
            if out.has_room(problem.kind) {
                out.list.push(problem.of(&tensor.name, None, rank));
            }
        }
        check_stage(part, p, tensor, out);
    }
    classes
}

fn check_stage(part: &Part, p: &Placement, tensor: &Tensor, out: &mut Findings) {
    let rule = part.rule(p);
    let (Some(axis), Some(stage)) = (rule.stage_axis, p.stage) else {
        return;
    };
    let axis = &part.mesh(rule).axes[axis as usize];
    if stage >= axis.size {
        let text = format!(
            "stage {stage} is out of range; axis \"{}\" of mesh \"{}\" has stages 0 to {}",
            axis.name,
            part.mesh(rule).name,
            axis.size - 1
        );
        let problem = Problem::new(FindingKind::Stage, None, text);
        out.push(problem.of(&tensor.name, None, part.ranks.lowest()));
    }
}

fn class_of(part: &Part, rule: &Rule, tensor: &Tensor) -> Class {
    let mesh = part.mesh(rule);
    let mut problems = axis_problems(rule, mesh, &tensor.shape);
    problems.extend(storage_problems(rule, tensor));
    if problems.is_empty()
        && let Some(g) = rule.grouped
        && let Err(mut p) = follow(rule, mesh, 0, tensor.shape[0], g.size)
    {
        p.text = format!("its indices lie in groups in a fused buffer: {}", p.text);
        problems.push(p);
    }
    let mut extents = tensor.shape.clone();
    for (dim, &size) in tensor.shape.iter().enumerate() {
        if problems.iter().any(|p| p.axis == Some(dim as u8)) {
            continue;
        }
        match follow(rule, mesh, dim, size, tensor.granule[dim]) {
            Ok(extent) => extents[dim] = extent,
            Err(p) => problems.push(p),
        }
    }
    let mut bytes = 0;
    if problems.is_empty() {
        match shard_bytes(rule, tensor, &extents) {
            Ok(n) => bytes = n,
            Err(p) => problems.push(p),
        }
    }
    Class {
        problems,
        extents,
        bytes,
    }
}

/// Axes that do not exist, mesh axes used twice, impossible numbers of parts.
fn axis_problems(rule: &Rule, mesh: &Mesh, shape: &[u64]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut used: Vec<(u8, String)> = Vec::new();
    if let Some(a) = rule.stage_axis {
        used.push((a, "numbers the stages".into()));
    }
    for cut in &rule.cuts {
        let mut say = |text: String| problems.push(Problem::new(FindingKind::Cut, cut.dim, text));
        if usize::from(cut.dim) >= shape.len() {
            say(format!(
                "a cut names axis {}, but the tensor has {} axes",
                cut.dim,
                shape.len()
            ));
        }
        if let Some(a) = repeated(&cut.axes) {
            let name = &mesh.axes[a as usize].name;
            say(format!(
                "a cut of axis {} names mesh axis \"{name}\" twice; once is enough",
                cut.dim
            ));
        }
        for &a in &cut.axes {
            let name = &mesh.axes[a as usize].name;
            if let Some((_, how)) = used.iter().find(|(b, _)| *b == a) {
                say(format!(
                    "axis {} is cut over mesh axis \"{name}\", which already {how}; \
                     a mesh axis is used once",
                    cut.dim
                ));
            }
        }
        used.extend(
            cut.axes
                .iter()
                .map(|&a| (a, format!("cuts axis {}", cut.dim))),
        );
        if repeated(&cut.axes).is_none()
            && let Some(text) = parts_problem(cut, mesh)
        {
            say(text);
        }
    }
    problems
}

/// The mesh axes of a cut with their sizes, such as `tp 4`.
fn spell_axes(cut: &Cut, mesh: &Mesh) -> String {
    if cut.axes.is_empty() {
        return "no mesh axis".into();
    }
    let axis = |&a: &u8| {
        format!(
            "{} {}",
            mesh.axes[a as usize].name, mesh.axes[a as usize].size
        )
    };
    cut.axes.iter().map(axis).collect::<Vec<_>>().join(" x ")
}

/// Parts must be held by runs of neighbours that are a block of coordinates.
fn parts_problem(cut: &Cut, mesh: &Mesh) -> Option<String> {
    let parts = u64::from(cut.parts?);
    let width = cut.width(mesh);
    let over = format!("{width} positions ({})", spell_axes(cut, mesh));
    if parts == 0 || !width.is_multiple_of(parts) {
        return Some(format!(
            "axis {} is cut into {parts} parts over {over}, which {parts} does not divide; \
             change \"parts\" to a divisor",
            cut.dim
        ));
    }
    let mut run = width / parts;
    for &a in cut.axes.iter().rev() {
        let size = u64::from(mesh.axes[a as usize].size);
        if run.is_multiple_of(size) {
            run /= size;
        } else if size.is_multiple_of(run) {
            return None;
        } else {
            return Some(format!(
                "axis {} is cut into {parts} parts over {over}: the {} neighbours that would hold \
                 one part straddle axis \"{}\" of size {size}; the neighbours of one part must \
                 divide it or be a multiple of it",
                cut.dim,
                width / parts,
                mesh.axes[a as usize].name
            ));
        }
    }
    None
}

fn storage_problems(rule: &Rule, tensor: &Tensor) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut say = |axis: Option<u8>, text: String| {
        problems.push(Problem::new(FindingKind::Storage, axis, text));
    };
    let axes = tensor.shape.len();
    let mut order: Vec<u8> = rule.order.to_vec();
    order.sort_unstable();
    if !order.is_empty() && !order.iter().copied().eq(0..axes as u8) {
        say(
            None,
            format!(
                "its order {:?} must name each of its {axes} axes once",
                rule.order.as_slice()
            ),
        );
    }
    match rule.split {
        Some(d) if usize::from(d) >= axes => {
            say(
                None,
                format!("it is split along axis {d}, but has {axes} axes"),
            );
        }
        Some(d) if d != 0 => {
            say(
                Some(d),
                format!(
                    "it is split along axis {d} into one buffer per index, which only axis 0 can \
                     be; store it in one buffer, or make that axis the first"
                ),
            );
        }
        Some(d) if tensor.shape[d as usize] > u64::from(u32::MAX) => {
            say(
                Some(d),
                format!(
                    "it is split along axis {d} into {} buffers, which is too many",
                    tensor.shape[d as usize]
                ),
            );
        }
        _ => {}
    }
    if let Some(g) = rule.grouped {
        let size = tensor.shape.first().copied().unwrap_or(0);
        let has_blocks = rule
            .cuts
            .iter()
            .any(|c| matches!(c.kind, CutKind::Blocks(_)));
        if g.size == 0 || g.pitch < g.size || size % g.size != 0 {
            say(
                Some(0),
                format!(
                    "axis 0 has {size} indices, which groups of {} do not divide",
                    g.size
                ),
            );
        } else if !rule.order.is_empty() || rule.split.is_some() || rule.padded != 0 || has_blocks {
            say(
                None,
                "it lies in groups in a fused buffer, and can then not be padded, split, cut into \
                 blocks or have an order"
                    .into(),
            );
        }
    }
    if let Some(c) = &rule.conversion {
        say(
            None,
            format!(
                "conversion kind {} is unknown; this library knows none",
                c.kind
            ),
        );
    }
    let stored = rule.stored_dtype(tensor);
    if !tensor.dtype.converts_to(stored) {
        problems.push(Problem::new(
            FindingKind::Dtype,
            None,
            format!(
                "it has dtype {} and is stored as {stored}, which cannot be converted; \
                 f32, f16 and bf16 convert into each other",
                tensor.dtype
            ),
        ));
    }
    problems
}

/// The largest shard, if it is not too large, nor in too many pieces.
fn shard_bytes(rule: &Rule, tensor: &Tensor, extents: &[u64]) -> Result<u64, Problem> {
    let element = rule.stored_dtype(tensor).bytes();
    let bytes = extents
        .iter()
        .try_fold(element, |a, &n| a.checked_mul(n.max(1)))
        .filter(|&b| b <= TENSOR_BYTES_MAX);
    let Some(bytes) = bytes else {
        return Err(Problem::new(
            FindingKind::Storage,
            None,
            format!("a local shard of extents {extents:?} exceeds {TENSOR_BYTES_MAX} bytes"),
        ));
    };
    let blocks = rule.cuts.iter().filter_map(|c| match c.kind {
        CutKind::Blocks(k) => Some(u64::from(k)),
        _ => None,
    });
    let split = rule.split.map_or(1, |d| extents[d as usize]);
    let groups = rule.grouped.map_or(1, |g| extents[0].div_ceil(g.size));
    let views = blocks.fold(split.saturating_mul(groups), |a, k| a.saturating_mul(k));
    if views > BOX_COUNT_MAX as u64 {
        return Err(Problem::new(
            FindingKind::Storage,
            None,
            format!("a rank would hold it in {views} pieces; at most {BOX_COUNT_MAX} are allowed"),
        ));
    }
    Ok(bytes)
}

/// The first problem of a granule of `dim`, where cuts are known to be sound.
pub(super) fn granule_problem(
    rule: &Rule,
    mesh: &Mesh,
    dim: usize,
    size: u64,
    granule: u64,
) -> Option<Problem> {
    follow(rule, mesh, dim, size, granule).err()
}

/// Follows the cuts of one axis by the lengths they leave. Returns the
/// largest local extent.
fn follow(rule: &Rule, mesh: &Mesh, dim: usize, size: u64, granule: u64) -> Result<u64, Problem> {
    let cuts: Vec<&Cut> = rule.cuts_of(dim).collect();
    let mut lengths = BTreeSet::from([size]);
    let mut extent = size;
    for (i, cut) in cuts.iter().enumerate() {
        let say = |kind, text: String| {
            let by = spell_axes(cut, mesh);
            let nested = if i > 0 { " left by the cut before" } else { "" };
            let text = text
                .replace("{range}", &format!("indices{nested}"))
                .replace("{by}", &by);
            Problem::new(kind, dim as u8, format!("axis {dim} {text}"))
        };
        let n = cut.part_count(mesh);
        let mut next = BTreeSet::new();
        extent = 0;
        for &length in &lengths {
            ill_formed(&cut.kind, length, n, i + 1 == cuts.len())
                .map_or(Ok(()), |text| Err(say(FindingKind::Cut, text)))?;
            if let Some(bound) = split_granule(&cut.kind, length, n, granule) {
                let text = format!(
                    "has granules of {granule} indices, and the cut of {length} {{range}} over \
                     {{by}} falls at {bound}, inside one; cut at multiples of {granule}"
                );
                return Err(say(FindingKind::Granule, text));
            }
            let local = slab_lengths(&cut.kind, length, n, &mut next);
            let padded = match &cut.kind {
                CutKind::Chunk(c) => *c,
                CutKind::Ceil => length.div_ceil(n),
                _ => 0,
            };
            let is_padded = rule.padded & (1 << dim) != 0;
            extent = extent.max(if is_padded { local.max(padded) } else { local });
        }
        lengths = next;
    }
    Ok(extent)
}

/// Why `length` indices cannot be cut this way. `{range}` stands for what the
/// indices are, `{by}` for the mesh axes.
fn ill_formed(kind: &CutKind, length: u64, n: u64, is_last: bool) -> Option<String> {
    match kind {
        CutKind::Even if !length.is_multiple_of(n) => Some(format!(
            "has {length} {{range}}, which {n} equal parts ({{by}}) do not divide; \
             cut it with \"floor\", \"ceil\", \"chunk\" or \"at\""
        )),
        CutKind::Chunk(c) if c.checked_mul(n).is_some_and(|all| all < length) || *c == 0 => {
            Some(format!(
                "has {length} {{range}}, of which {n} chunks of {c} ({{by}}) cover only {}; \
                 chunks of {} would do",
                c * n,
                length.div_ceil(n)
            ))
        }
        CutKind::At(bounds) => ill_formed_bounds(bounds, length, n),
        CutKind::Blocks(_) if !is_last => Some(
            "is cut into blocks, and then once more; blocks must be the last cut of an axis".into(),
        ),
        CutKind::Blocks(k) if *k == 0 || !length.is_multiple_of(n * u64::from(*k)) => {
            Some(format!(
                "has {length} {{range}}, which {n} parts ({{by}}) of {k} blocks do not divide; \
                 the number of indices must be a multiple of {n} x {k}"
            ))
        }
        _ => None,
    }
}

fn ill_formed_bounds(bounds: &[u64], length: u64, n: u64) -> Option<String> {
    if bounds.len() as u64 != n + 1 {
        return Some(format!(
            "is cut at {} bounds, but {n} parts ({{by}}) have {}, both ends included",
            bounds.len(),
            n + 1
        ));
    }
    if let Some(i) = bounds.windows(2).position(|w| w[0] > w[1]) {
        return Some(format!(
            "is cut at bounds that fall from {} to {}; they must ascend",
            bounds[i],
            bounds[i + 1]
        ));
    }
    let (first, last) = (bounds.first().copied()?, bounds.last().copied()?);
    (first != 0 || last != length).then(|| {
        format!(
            "has {length} {{range}}, but is cut at bounds from {first} to {last}; \
             they must go from 0 to {length}"
        )
    })
}

/// A bound of a well-formed cut that falls inside a granule.
fn split_granule(kind: &CutKind, length: u64, n: u64, granule: u64) -> Option<u64> {
    let inside = |b: u64| !b.is_multiple_of(granule);
    if granule <= 1 {
        return None;
    }
    match kind {
        CutKind::Even => Some(length / n).filter(|&b| n > 1 && inside(b)),
        CutKind::Blocks(k) => {
            let slabs = n * u64::from(*k);
            Some(length / slabs).filter(|&b| slabs > 1 && inside(b))
        }
        CutKind::Ceil => Some(length.div_ceil(n)).filter(|&b| b < length && inside(b)),
        CutKind::Chunk(c) => Some(*c).filter(|&b| b < length && inside(b)),
        // If any bound is inside one, the first or the last is: i * granules
        // mod n is largest at one of them.
        CutKind::Floor if n > 1 => {
            let ends = [kind.bound(length, n, 1), kind.bound(length, n, n - 1)];
            ends.into_iter().find(|&b| inside(b))
        }
        CutKind::Floor => None,
        CutKind::At(bounds) => bounds.iter().copied().find(|&b| inside(b)),
    }
}

/// Adds the distinct lengths of the slabs, and returns the largest number of
/// indices that one part has.
fn slab_lengths(kind: &CutKind, length: u64, n: u64, out: &mut BTreeSet<u64>) -> u64 {
    match kind {
        CutKind::Even => {
            out.insert(length / n);
            length / n
        }
        CutKind::Floor => {
            out.insert(length / n);
            out.insert(length.div_ceil(n));
            length.div_ceil(n)
        }
        CutKind::Ceil => chunk_lengths(length.div_ceil(n), length, n, out),
        CutKind::Chunk(c) => chunk_lengths(*c, length, n, out),
        CutKind::At(bounds) => {
            out.extend(bounds.windows(2).map(|w| w[1] - w[0]));
            bounds.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0)
        }
        CutKind::Blocks(k) => {
            let block = length / (n * u64::from(*k));
            out.insert(block);
            block * u64::from(*k)
        }
    }
}

fn chunk_lengths(chunk: u64, length: u64, n: u64, out: &mut BTreeSet<u64>) -> u64 {
    let full = length.checked_div(chunk).unwrap_or(0);
    let rest = length.checked_rem(chunk).unwrap_or(0);
    if full > 0 {
        out.insert(chunk);
    }
    if rest > 0 {
        out.insert(rest);
    }
    if full + u64::from(rest > 0) < n {
        out.insert(0);
    }
    chunk.min(length)
}
