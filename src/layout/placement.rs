//! Symbolic placement: rules that say which ranks hold which box of a tensor,
//! and where in local memory it lies.
//!
//! A *rule* is shared by many tensors (all `q_proj` of a model have one), so a
//! model of a thousand tensors has some twenty rules. A *placement* applies a
//! rule to one tensor. A *buffer* is a named local memory range with one
//! member or, for fused storage, several:
//!
//! ```text
//!   shared_dims = 0   [ q rows | k rows | v rows ]           packed, as vLLM's qkv_proj
//!   shared_dims = 1   [ q0 k0 v0 | q1 k1 v1 | ... ]          row by row
//!   grouped           [ q0 q1 k0 v0 | q2 q3 k1 v1 | ... ]    group by group, as Megatron's linear_qkv
//! ```

use super::cut::{Cut, CutKind};
use super::dtype::Dtype;
use super::mesh::{Mesh, MeshSlice, RankList};
use super::tensor::{Dims, IndexBox, Span, Tensor, TensorIndex};
use super::view::{Conversion, Memory, Strides, View};
use serde::{Deserialize, Serialize};
use smallvec::{SmallVec, smallvec};

/// How a tensor is cut and stored.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Rule {
    /// The mesh whose axes the cuts name.
    pub mesh: u16,
    /// The mesh axis that numbers pipeline stages, if the tensor has a stage.
    pub stage_axis: Option<u8>,
    /// Sorted by dim; cuts of one dim nest in this order.
    pub cuts: Vec<Cut>,
    /// Dtype in memory; `None` is the tensor's own.
    pub dtype: Option<Dtype>,
    /// Memory order of the axes, outermost first; empty is canonical order.
    pub order: SmallVec<[u8; 8]>,
    /// Axes whose local extent is the full chunk even where the part is
    /// shorter: the rest is padding. Bit `i` is axis `i`.
    pub padded: u8,
    /// The axis that is stored as one buffer per index, as per-expert weights.
    pub split: Option<u8>,
    /// How axis 0 lies in a buffer whose members alternate group by group.
    pub grouped: Option<Grouped>,
    pub conversion: Option<Conversion>,
}

/// Axis 0 in groups: a run of indices of this tensor, then room for those of
/// the other members, and so on.
///
/// ```text
///   size 2, pitch 4     q0 q1 .. .. | q2 q3 .. .. | q4 q5 .. ..
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Grouped {
    /// Indices of this tensor in one group. No cut may split a group.
    pub size: u64,
    /// Indices of all members in one group.
    pub pitch: u64,
}

/// A rule applied to one tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    pub tensor: TensorIndex,
    /// Index into the part's rules.
    pub rule: u32,
    /// Coordinate on the rule's stage axis.
    pub stage: Option<u32>,
    /// Index into the part's buffers, and which member of it this is.
    pub buffer: u32,
    pub member: u16,
}

/// A named local memory range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buffer {
    /// May hold `{local}` or `{global}` where its rule has a split axis.
    pub name: String,
    pub memory: Memory,
    /// Axes, outermost in memory first, that the members share; the rest of
    /// each lies end to end.
    pub shared_dims: u8,
    /// Placements in memory order; see [`Part::member`].
    pub members: Vec<u32>,
}

/// What happens to padding: local elements that belong to no box.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
pub enum Padding {
    #[default]
    Leave,
    Zero,
}

/// Which coordinates number the copies (the replicas) of a part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyAxes {
    pub mesh: u16,
    pub axes: SmallVec<[u8; 4]>,
}

/// A region of ranks with its own meshes and rules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub ranks: RankList,
    pub meshes: Vec<Mesh>,
    /// `None`: all ranks of the part are one copy.
    pub copies: Option<CopyAxes>,
    pub padding: Padding,
    pub rules: Vec<Rule>,
    /// Sorted by tensor.
    pub placements: Vec<Placement>,
    /// Members of fused buffers that a selection left out: nobody holds or
    /// needs them through this layout, but they still take their room.
    pub spacers: Vec<Placement>,
    /// Sorted by name.
    pub buffers: Vec<Buffer>,
}

/// One axis of a local shard: its global ranges in local order, and how many
/// indices are allocated for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalAxis {
    pub spans: SmallVec<[Span; 2]>,
    pub extent: u64,
    /// Local indices from the start of one span to the next; `None` if spans
    /// lie end to end.
    pub pitch: Option<u64>,
}

impl LocalAxis {
    /// Indices in use.
    pub fn len(&self) -> u64 {
        self.spans.iter().map(|s| s.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Local indices from the start of span `i` to the start of the next.
    fn step(&self, i: usize) -> u64 {
        self.pitch.unwrap_or_else(|| self.spans[i].len())
    }
}

/// A local buffer of one rank of a part: which buffer, and for split storage
/// which local and global index of the split axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LocalBuffer {
    pub buffer: u32,
    pub split: Option<(u32, u32)>,
}

/// Coordinates of one position in each mesh of a part.
#[derive(Clone, Debug)]
pub struct Seat {
    pub part: u16,
    pub position: u32,
    pub coords: SmallVec<[super::mesh::Coords; 2]>,
}

impl Cut {
    /// Product of the mesh axes the cut uses; `u64::MAX` where it is more, as
    /// an ill-formed cut that names an axis again and again may have it.
    pub fn width(&self, mesh: &Mesh) -> u64 {
        let sizes = self.axes.iter().map(|&a| mesh.axes[a as usize].size);
        sizes.fold(1, |width, size| width.saturating_mul(size.into()))
    }

    /// Number of parts.
    pub fn part_count(&self, mesh: &Mesh) -> u64 {
        self.parts.map_or_else(|| self.width(mesh), u64::from)
    }

    /// The part that a rank with these coordinates holds.
    pub fn part_at(&self, mesh: &Mesh, coords: &[u32]) -> u64 {
        let mut flat = 0u64;
        for &a in &self.axes {
            flat = flat * u64::from(mesh.axes[a as usize].size) + u64::from(coords[a as usize]);
        }
        flat / (self.width(mesh) / self.part_count(mesh))
    }

    /// Narrows `ranges` (one per mesh axis) to the ranks that hold part `k`.
    pub fn narrow(&self, mesh: &Mesh, k: u64, ranges: &mut [(u32, u32)]) {
        let run = self.width(mesh) / self.part_count(mesh);
        let mut lo = k * run;
        let mut inner = run;
        // From the innermost axis outwards: axes inside the run stay free.
        for &a in self.axes.iter().rev() {
            let size = u64::from(mesh.axes[a as usize].size);
            let at = (lo % size) as u32;
            ranges[a as usize] = if inner >= size {
                (0, size as u32)
            } else {
                (at, at + inner.max(1) as u32)
            };
            inner = (inner / size).max(1);
            lo /= size;
        }
    }
}

impl Rule {
    /// The cuts of one axis, in nesting order.
    pub fn cuts_of(&self, dim: usize) -> impl Iterator<Item = &Cut> {
        self.cuts.iter().filter(move |c| c.dim as usize == dim)
    }

    pub fn stored_dtype(&self, tensor: &Tensor) -> Dtype {
        self.dtype.unwrap_or(tensor.dtype)
    }

    /// What a rank with these coordinates holds of axis `dim`.
    pub fn local_axis(&self, mesh: &Mesh, coords: &[u32], dim: usize, size: u64) -> LocalAxis {
        let mut spans: SmallVec<[Span; 2]> = smallvec![Span::new(0, size)];
        let mut extent = size;
        for cut in self.cuts_of(dim) {
            let n = cut.part_count(mesh);
            let k = cut.part_at(mesh, coords);
            let base = spans[0];
            extent = match &cut.kind {
                CutKind::Chunk(c) => *c,
                CutKind::Ceil => base.len().div_ceil(n),
                _ => 0,
            };
            spans = match cut.kind {
                CutKind::Blocks(blocks) => (0..u64::from(blocks))
                    .map(|b| cut.kind.slab(base.len(), n, b * n + k))
                    .map(|s| Span::new(base.lo + s.lo, base.lo + s.hi))
                    .collect(),
                _ => {
                    let s = cut.kind.slab(base.len(), n, k);
                    smallvec![Span::new(base.lo + s.lo, base.lo + s.hi)]
                }
            };
        }
        let used = spans.iter().map(|s| s.len()).sum();
        let padded = self.padded & (1 << dim) != 0;
        let grouped = self.grouped.filter(|_| dim == 0);
        if let Some(g) = grouped {
            spans = spans.iter().flat_map(|&s| g.spans(s)).collect();
        }
        LocalAxis {
            spans,
            extent: if padded { extent.max(used) } else { used },
            pitch: grouped.map(|g| g.pitch),
        }
    }

    /// The axes in memory order, outermost first.
    pub fn memory_order(&self, axes: usize) -> SmallVec<[u8; 8]> {
        match self.order.is_empty() {
            true => (0..axes as u8).collect(),
            false => self.order.clone(),
        }
    }

    /// All axes of the local shard.
    pub fn local_axes(
        &self,
        mesh: &Mesh,
        coords: &[u32],
        shape: &[u64],
    ) -> SmallVec<[LocalAxis; 4]> {
        shape
            .iter()
            .enumerate()
            .map(|(dim, &size)| self.local_axis(mesh, coords, dim, size))
            .collect()
    }

    /// Narrows `ranges` to the ranks that hold index `x` of axis `dim`.
    pub fn narrow_to_index(
        &self,
        mesh: &Mesh,
        dim: usize,
        size: u64,
        x: u64,
        ranges: &mut [(u32, u32)],
    ) {
        let mut base = Span::new(0, size);
        for cut in self.cuts_of(dim) {
            let n = cut.part_count(mesh);
            let j = cut.kind.slab_of(base.len(), n, x - base.lo);
            cut.narrow(mesh, cut.kind.owner(n, j), ranges);
            let s = cut.kind.slab(base.len(), n, j);
            base = Span::new(base.lo + s.lo, base.lo + s.hi);
        }
    }

    /// The slab of axis `dim` that holds index `x`: no bound of this rule lies
    /// inside it.
    pub fn span_at(&self, mesh: &Mesh, dim: usize, size: u64, x: u64) -> Span {
        let mut base = Span::new(0, size);
        for cut in self.cuts_of(dim) {
            let n = cut.part_count(mesh);
            let j = cut.kind.slab_of(base.len(), n, x - base.lo);
            let s = cut.kind.slab(base.len(), n, j);
            base = Span::new(base.lo + s.lo, base.lo + s.hi);
        }
        match self.grouped.filter(|_| dim == 0) {
            Some(g) => base.intersect(g.span_of(x)),
            None => base,
        }
    }

    /// Appends every bound of this rule strictly inside `range` of axis `dim`.
    pub fn bounds_within(
        &self,
        mesh: &Mesh,
        dim: usize,
        size: u64,
        range: Span,
        out: &mut SmallVec<[u64; 16]>,
    ) {
        // No cut falls inside a group, so bounds of groups are all bounds.
        if let Some(g) = self.grouped.filter(|_| dim == 0) {
            out.extend(g.spans(range).skip(1).map(|s| s.lo));
            return;
        }
        let cuts: SmallVec<[&Cut; 4]> = self.cuts_of(dim).collect();
        nested_bounds(&cuts, mesh, Span::new(0, size), range, out);
    }

    /// The mesh slice of ranks that hold the element at `start` (the lowest
    /// corner of a cell that no bound of this rule crosses).
    pub fn holders(
        &self,
        part: u16,
        mesh: &Mesh,
        stage: Option<u32>,
        shape: &[u64],
        start: impl Fn(usize) -> u64,
    ) -> MeshSlice {
        let mut ranges: SmallVec<[(u32, u32); 8]> = mesh.axes.iter().map(|a| (0, a.size)).collect();
        if let (Some(axis), Some(s)) = (self.stage_axis, stage) {
            ranges[axis as usize] = (s, s + 1);
        }
        for (dim, &size) in shape.iter().enumerate() {
            self.narrow_to_index(mesh, dim, size, start(dim), &mut ranges);
        }
        MeshSlice {
            part,
            mesh: self.mesh,
            ranges,
        }
    }
}

impl Grouped {
    /// The indices of the group that holds index `x`.
    fn span_of(self, x: u64) -> Span {
        let lo = x / self.size.max(1) * self.size;
        Span::new(lo, lo + self.size)
    }

    /// `span`, group by group.
    fn spans(self, span: Span) -> impl Iterator<Item = Span> {
        let next = move |at: u64| self.span_of(at).intersect(Span::new(at, span.hi));
        std::iter::successors(Some(next(span.lo)), move |s| Some(next(s.hi)))
            .take_while(|s| !s.is_empty())
    }
}

/// Bounds of nested cuts strictly inside `range`; touches only the slabs that
/// overlap it.
fn nested_bounds(
    cuts: &[&Cut],
    mesh: &Mesh,
    base: Span,
    range: Span,
    out: &mut SmallVec<[u64; 16]>,
) {
    let range = range.intersect(base);
    let Some((cut, inner)) = cuts.split_first() else {
        return;
    };
    if range.is_empty() {
        return;
    }
    let n = cut.part_count(mesh);
    // From one slab to the next that is not empty: there may be many more
    // parts than indices.
    let mut at = range.lo;
    while at < range.hi {
        let j = cut.kind.slab_of(base.len(), n, at - base.lo);
        let s = cut.kind.slab(base.len(), n, j);
        let s = Span::new(base.lo + s.lo, base.lo + s.hi);
        if s.lo > range.lo {
            out.push(s.lo);
        }
        nested_bounds(inner, mesh, s, range, out);
        at = s.hi;
    }
}

impl Part {
    pub fn mesh(&self, rule: &Rule) -> &Mesh {
        &self.meshes[rule.mesh as usize]
    }

    pub fn rule(&self, p: &Placement) -> &Rule {
        &self.rules[p.rule as usize]
    }

    /// Member `m` of a buffer: a placement, or past those a spacer.
    pub fn member(&self, m: u32) -> &Placement {
        let m = m as usize;
        match m.checked_sub(self.placements.len()) {
            None => &self.placements[m],
            Some(spacer) => &self.spacers[spacer],
        }
    }

    /// Per mesh, the axes that some rule cuts by or stages on: bit `a` is axis
    /// `a`. Ranks that differ on other axes alone have the same.
    pub fn axes_in_use(&self) -> Vec<u8> {
        let mut masks = vec![0u8; self.meshes.len()];
        for rule in &self.rules {
            let axes = rule.cuts.iter().flat_map(|c| c.axes.iter());
            for &a in axes.chain(rule.stage_axis.iter()) {
                masks[rule.mesh as usize] |= 1 << a;
            }
        }
        masks
    }

    /// True if ranks of both parts have and store the same: the parts differ at
    /// most in who the ranks are, and in how many have the same.
    pub fn is_cut_like(&self, other: &Part) -> bool {
        let is_same_mesh = |((a, b), used): ((&Mesh, &Mesh), &u8)| {
            let axes = a.axes.iter().zip(&b.axes).enumerate();
            let differ = |(i, (x, y))| used >> i & 1 == 1 && x != y;
            a.axes.len() == b.axes.len() && !axes.into_iter().any(differ)
        };
        let used = self.axes_in_use();
        let meshes = self.meshes.iter().zip(&other.meshes).zip(&used);
        self.meshes.len() == other.meshes.len()
            && self.rules == other.rules
            && self.placements == other.placements
            && self.spacers == other.spacers
            && self.buffers == other.buffers
            && self.padding == other.padding
            && meshes.into_iter().all(is_same_mesh)
    }

    /// The placements of one tensor.
    pub fn placements_of(&self, tensor: TensorIndex) -> &[Placement] {
        let lo = self.placements.partition_point(|p| p.tensor < tensor);
        let n = self.placements[lo..].partition_point(|p| p.tensor == tensor);
        &self.placements[lo..lo + n]
    }

    /// The coordinates of a position in every mesh.
    pub fn seat(&self, part: u16, position: u32) -> Seat {
        Seat {
            part,
            position,
            coords: self.meshes.iter().map(|m| m.coords(position)).collect(),
        }
    }

    /// True if the placement's stage is the one of this seat.
    pub fn is_on_stage(&self, p: &Placement, seat: &Seat) -> bool {
        let rule = self.rule(p);
        match (rule.stage_axis, p.stage) {
            (Some(axis), Some(stage)) => seat.coords[rule.mesh as usize][axis as usize] == stage,
            _ => true,
        }
    }

    /// The local shard of a placement at a seat, ignoring its stage.
    pub fn local_axes(
        &self,
        p: &Placement,
        seat: &Seat,
        tensors: &[Tensor],
    ) -> SmallVec<[LocalAxis; 4]> {
        let rule = self.rule(p);
        let coords = &seat.coords[rule.mesh as usize];
        rule.local_axes(self.mesh(rule), coords, &tensors[p.tensor.index()].shape)
    }

    /// Where the shard of a placement starts in its buffer and the byte stride
    /// of each axis, counting local (padded) indices.
    pub fn storage(&self, p: &Placement, seat: &Seat, tensors: &[Tensor]) -> (u64, Strides) {
        let buffer = &self.buffers[p.buffer as usize];
        let rule = self.rule(p);
        let element = rule.stored_dtype(&tensors[p.tensor.index()]).bytes();
        let shared = buffer.shared_dims as usize;
        let extents = self.block_extents(p, seat, tensors);
        let (mut before, mut row) = (0, block_bytes(rule, &extents, shared, element));
        if buffer.members.len() > 1 {
            row = 0;
            for (i, &m) in buffer.members.iter().enumerate() {
                if i == p.member as usize {
                    before = row;
                }
                let q = self.member(m);
                let extents = self.block_extents(q, seat, tensors);
                let element = self
                    .rule(q)
                    .stored_dtype(&tensors[q.tensor.index()])
                    .bytes();
                row += block_bytes(self.rule(q), &extents, shared, element);
            }
        }
        (
            before,
            storage_strides(rule, &extents, shared, element, row),
        )
    }

    /// Local extents of what lies in one piece: a group, or all.
    fn block_extents(&self, p: &Placement, seat: &Seat, tensors: &[Tensor]) -> Dims {
        let axes = self.local_axes(p, seat, tensors);
        let mut extents: Dims = axes.iter().map(|a| a.extent).collect();
        if let (Some(g), Some(first)) = (self.rule(p).grouped, extents.first_mut()) {
            *first = g.size;
        }
        extents
    }

    /// Bytes of a local buffer at a seat.
    pub fn buffer_bytes(&self, buffer: u32, seat: &Seat, tensors: &[Tensor]) -> u64 {
        let b = &self.buffers[buffer as usize];
        let bytes = |&m: &u32| {
            let p = self.member(m);
            let rule = self.rule(p);
            let axes = self.local_axes(p, seat, tensors);
            let extents: Dims = axes.iter().map(|a| a.extent).collect();
            let element = rule.stored_dtype(&tensors[p.tensor.index()]).bytes();
            block_bytes(rule, &extents, 0, element)
        };
        b.members.iter().map(bytes).sum()
    }

    /// The views of a placement at a seat: one per box, and per index of a
    /// split axis.
    pub fn views(&self, p: &Placement, seat: &Seat, tensors: &[Tensor]) -> Vec<View<LocalBuffer>> {
        let mut out = Vec::new();
        if !self.is_on_stage(p, seat) {
            return out;
        }
        let rule = self.rule(p);
        let axes = self.local_axes(p, seat, tensors);
        let (offset, strides) = self.storage(p, seat, tensors);
        let dtype = rule.stored_dtype(&tensors[p.tensor.index()]);
        for_each_box(&axes, |bounds, local| {
            let mut view = View {
                tensor: p.tensor,
                bounds: bounds.clone(),
                buffer: LocalBuffer {
                    buffer: p.buffer,
                    split: None,
                },
                offset: offset
                    + local
                        .iter()
                        .zip(&strides)
                        .map(|(&l, &s)| l * s as u64)
                        .sum::<u64>(),
                strides: strides.clone(),
                dtype,
                conversion: rule.conversion.clone(),
            };
            match rule.split {
                None => out.push(view),
                Some(d) => {
                    let d = d as usize;
                    let span = bounds.0[d];
                    for (i, g) in (span.lo..span.hi).enumerate() {
                        view.bounds.0[d] = Span::new(g, g + 1);
                        view.buffer.split = Some((local[d] as u32 + i as u32, g as u32));
                        out.push(view.clone());
                    }
                }
            }
        });
        out
    }

    /// The name of a local buffer.
    pub fn buffer_name(&self, b: LocalBuffer) -> String {
        let name = &self.buffers[b.buffer as usize].name;
        match b.split {
            None => name.clone(),
            Some((local, global)) => name
                .replace("{local}", &local.to_string())
                .replace("{global}", &global.to_string()),
        }
    }

    /// The index of the copy a position belongs to, within this part.
    pub fn copy_at(&self, position: u32) -> u32 {
        let Some(c) = &self.copies else { return 0 };
        let mesh = &self.meshes[c.mesh as usize];
        let coords = mesh.coords(position);
        c.axes.iter().fold(0, |flat, &a| {
            flat * mesh.axes[a as usize].size + coords[a as usize]
        })
    }

    /// Number of copies in this part.
    pub fn copy_count(&self) -> u32 {
        let Some(c) = &self.copies else { return 1 };
        let mesh = &self.meshes[c.mesh as usize];
        c.axes.iter().map(|&a| mesh.axes[a as usize].size).product()
    }
}

/// Bytes of a shard less its first `shared` axes in memory, and less the split
/// axis.
fn block_bytes(rule: &Rule, extents: &[u64], shared: usize, element: u64) -> u64 {
    let order = rule.memory_order(extents.len());
    let rest = order
        .iter()
        .skip(shared)
        .filter(|&&d| rule.split != Some(d));
    rest.map(|&d| extents[d as usize]).product::<u64>() * element
}

/// Byte strides of a shard whose trailing axes are contiguous in memory order
/// and whose `shared` outer axes step over `row` bytes. The split axis has no
/// stride: each of its indices is a buffer of its own.
fn storage_strides(rule: &Rule, extents: &[u64], shared: usize, element: u64, row: u64) -> Strides {
    let mut strides: Strides = smallvec![0; extents.len()];
    let order = rule.memory_order(extents.len());
    let (outer, inner) = order.split_at(shared.min(order.len()));
    for (axes, mut step) in [(inner, element), (outer, row)] {
        for &d in axes.iter().rev().filter(|&&d| rule.split != Some(d)) {
            strides[d as usize] = step as i64;
            step *= extents[d as usize];
        }
    }
    strides
}

/// Calls `f` with every box of a product of axes and its local start.
pub fn for_each_box(axes: &[LocalAxis], mut f: impl FnMut(&IndexBox, &[u64])) {
    if axes.iter().any(|a| a.is_empty()) {
        return;
    }
    let n = axes.len();
    let mut at: SmallVec<[usize; 4]> = smallvec![0; n];
    let mut bounds = IndexBox(axes.iter().map(|a| a.spans[0]).collect());
    let mut local: Dims = smallvec![0; n];
    loop {
        if !bounds.is_empty() {
            f(&bounds, &local);
        }
        let mut d = n;
        loop {
            if d == 0 {
                return;
            }
            d -= 1;
            local[d] += axes[d].step(at[d]);
            at[d] += 1;
            if at[d] < axes[d].spans.len() {
                bounds.0[d] = axes[d].spans[at[d]];
                break;
            }
            at[d] = 0;
            local[d] = 0;
            bounds.0[d] = axes[d].spans[0];
        }
    }
}
