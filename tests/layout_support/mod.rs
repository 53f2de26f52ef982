//! A reference that knows nothing but lists of indices: who holds which
//! element, and at which byte. And a generator of random layouts.

#![allow(dead_code)]

use std::collections::{BTreeMap, BTreeSet};
use weightsync::Rank;
use weightsync::layout::check::{Finding, FindingKind, check, check_pair};
use weightsync::layout::cut::{Cut, CutKind};
use weightsync::layout::dtype::Dtype;
use weightsync::layout::mesh::{Mesh, RankList};
use weightsync::layout::placement::{Buffer, CopyAxes, Grouped, Padding, Part, Placement, Rule};
use weightsync::layout::tensor::{Tensor, TensorIndex};
use weightsync::layout::view::{Memory, NamedBuffer, View};
use weightsync::layout::{Layout, LayoutSpec};

/// A small generator, so that one number names a whole layout.
pub struct Dice(pub u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `lo..=hi`.
    pub fn roll(&mut self, lo: u64, hi: u64) -> u64 {
        lo + self.next() % (hi - lo + 1)
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.roll(1, 100) <= percent
    }

    pub fn shuffle<T>(&mut self, v: &mut [T]) {
        for i in (1..v.len()).rev() {
            v.swap(i, self.roll(0, i as u64) as usize);
        }
    }

    pub fn pick<'a, T>(&mut self, v: &'a [T]) -> &'a T {
        &v[self.roll(0, v.len() as u64 - 1) as usize]
    }
}

/// Part `k` of `n` of a list of indices.
fn cut_list(kind: &CutKind, list: &[u64], n: u64, k: u64) -> Vec<u64> {
    let size = list.len() as u64;
    let part_of = |i: u64| -> u64 {
        match kind {
            CutKind::Even => i / (size / n),
            CutKind::Floor => (0..n).rfind(|p| p * size / n <= i).unwrap(),
            CutKind::Ceil => i / size.div_ceil(n),
            CutKind::Chunk(c) => i / c,
            CutKind::At(b) => (0..n).rfind(|p| b[*p as usize] <= i).unwrap(),
            CutKind::Blocks(blocks) => (i / (size / (n * u64::from(*blocks)))) % n,
        }
    };
    let held = (0..size).filter(|&i| part_of(i) == k);
    held.map(|i| list[i as usize]).collect()
}

/// The number of parts, and which of them a rank holds.
fn part_held(cut: &Cut, mesh: &Mesh, coords: &[u32]) -> (u64, u64) {
    let size = |a: u8| u64::from(mesh.axes[a as usize].size);
    let width: u64 = cut.axes.iter().map(|&a| size(a)).product();
    let flat = cut
        .axes
        .iter()
        .fold(0, |f, &a| f * size(a) + u64::from(coords[a as usize]));
    let n = cut.parts.map_or(width, u64::from);
    (n, flat / (width / n))
}

/// Global indices of one axis in local order, and the allocated extent.
pub fn axis_held(
    rule: &Rule,
    mesh: &Mesh,
    coords: &[u32],
    dim: usize,
    size: u64,
) -> (Vec<u64>, u64) {
    let mut list: Vec<u64> = (0..size).collect();
    let mut extent = size;
    for cut in rule.cuts.iter().filter(|c| c.dim as usize == dim) {
        let (n, k) = part_held(cut, mesh, coords);
        let chunk = match &cut.kind {
            CutKind::Ceil => (list.len() as u64).div_ceil(n),
            CutKind::Chunk(c) => *c,
            _ => 0,
        };
        list = cut_list(&cut.kind, &list, n, k);
        let is_padded = rule.padded & (1 << dim) != 0;
        let used = list.len() as u64;
        extent = if is_padded { chunk.max(used) } else { used };
    }
    (list, extent)
}

/// All index tuples of a shape, row-major.
pub fn tuples(shape: &[u64]) -> Vec<Vec<u64>> {
    let mut all = vec![vec![]];
    for &n in shape {
        let longer =
            |t: &Vec<u64>| -> Vec<Vec<u64>> { (0..n).map(|i| [&t[..], &[i]].concat()).collect() };
        all = all.iter().flat_map(longer).collect();
    }
    all
}

/// An element: tensor and index.
type Element = (String, Vec<u64>);

/// Sizes of buffers, and the places (buffer, byte) of every element.
#[derive(Default, Debug, PartialEq)]
pub struct Memories {
    pub sizes: BTreeMap<String, u64>,
    pub places: BTreeMap<Element, BTreeSet<(String, u64)>>,
}

/// Lays out one rank of a part by writing elements one after the other.
pub fn lay_out(part: &Part, tensors: &[Tensor], position: u32) -> Memories {
    let mut out = Memories::default();
    for b in &part.buffers {
        let first = part.member(b.members[0]);
        let rule = &part.rules[first.rule as usize];
        let mesh = &part.meshes[rule.mesh as usize];
        let coords = mesh.coords(position);
        if let (Some(a), Some(s)) = (rule.stage_axis, first.stage)
            && coords[a as usize] != s
        {
            continue;
        }
        let splits: Vec<Option<(u64, u64)>> = match rule.split {
            None => vec![None],
            Some(d) => {
                let size = tensors[first.tensor.index()].shape[d as usize];
                let (list, _) = axis_held(rule, mesh, &coords, d as usize, size);
                (0..).zip(list).map(Some).collect()
            }
        };
        for split in splits {
            lay_out_buffer(part, tensors, position, b, split, &mut out);
        }
    }
    out
}

/// What is held of each axis in one buffer of a split.
fn held(
    part: &Part,
    tensors: &[Tensor],
    p: &Placement,
    position: u32,
    split: Option<(u64, u64)>,
) -> Vec<(Vec<u64>, u64)> {
    let rule = &part.rules[p.rule as usize];
    let mesh = &part.meshes[rule.mesh as usize];
    let shape = &tensors[p.tensor.index()].shape;
    (0..shape.len())
        .map(|d| match (rule.split, split) {
            (Some(s), Some((_, global))) if s as usize == d => (vec![global], 1),
            _ => axis_held(rule, mesh, &mesh.coords(position), d, shape[d]),
        })
        .collect()
}

/// The axes in memory order, outermost first.
fn order_of(part: &Part, p: &Placement, tensors: &[Tensor]) -> Vec<usize> {
    let rule = &part.rules[p.rule as usize];
    match rule.order.is_empty() {
        true => (0..tensors[p.tensor.index()].shape.len()).collect(),
        false => rule.order.iter().map(|&d| d as usize).collect(),
    }
}

fn lay_out_buffer(
    part: &Part,
    tensors: &[Tensor],
    position: u32,
    b: &Buffer,
    split: Option<(u64, u64)>,
    out: &mut Memories,
) {
    let name = match split {
        None => b.name.clone(),
        Some((local, global)) => b
            .name
            .replace("{local}", &local.to_string())
            .replace("{global}", &global.to_string()),
    };
    let shared = b.shared_dims as usize;
    let first = part.member(b.members[0]);
    let order = order_of(part, first, tensors);
    let extents = held(part, tensors, first, position, split);
    let rows: Vec<u64> = order[..shared].iter().map(|&d| extents[d].1).collect();
    let grouped = part.rules[first.rule as usize].grouped;
    let groups = grouped.map_or(1, |g| extents[0].1 / g.size);
    let mut at = 0;
    let mut has_any = false;
    for row in tuples(&rows) {
        for (group, &m) in (0..groups).flat_map(|g| b.members.iter().map(move |m| (g, m))) {
            let is_spacer = m as usize >= part.placements.len();
            let p = part.member(m);
            let rule = &part.rules[p.rule as usize];
            let t = &tensors[p.tensor.index()];
            let held = held(part, tensors, p, position, split);
            let order = order_of(part, p, tensors);
            let extents: Vec<u64> = order[shared..].iter().map(|&d| held[d].1).collect();
            for tuple in tuples(&extents) {
                let mut local = vec![0; t.shape.len()];
                for (&d, &i) in order.iter().zip(row.iter().chain(&tuple)) {
                    local[d] = i;
                }
                if rule.grouped.is_some_and(|g| local[0] / g.size != group) {
                    continue;
                }
                let found = local.iter().zip(&held);
                let global: Option<Vec<u64>> = found
                    .map(|(&i, (list, _))| list.get(i as usize).copied())
                    .collect();
                if let Some(global) = global.filter(|_| !is_spacer) {
                    let key = (t.name.clone(), global);
                    out.places
                        .entry(key)
                        .or_default()
                        .insert((name.clone(), at));
                    has_any = true;
                }
                at += rule.dtype.unwrap_or(t.dtype).bytes();
            }
        }
    }
    if has_any {
        assert!(
            out.sizes.insert(name, at).is_none(),
            "two buffers of one name"
        );
    }
}

/// The same from the library's views.
pub fn memories_of(layout: &Layout, rank: Rank) -> Memories {
    let mut out = Memories::default();
    for b in layout.buffers(rank) {
        assert!(out.sizes.insert(b.name, b.bytes).is_none());
    }
    for v in layout.views(rank) {
        let t = &layout.tensors()[v.tensor.index()];
        let b = layout.buffer(rank, v.buffer).unwrap();
        let (lo, hi) = v.extent().unwrap();
        assert!(lo <= hi && hi <= b.bytes, "{} leaves {}", t.name, b.name);
        let lens: Vec<u64> = v.bounds.spans().iter().map(|s| s.len()).collect();
        for tuple in tuples(&lens) {
            let mut at = v.offset as i64;
            let mut global = Vec::new();
            for (d, i) in tuple.iter().enumerate() {
                at += *i as i64 * v.strides[d];
                global.push(v.bounds.0[d].lo + i);
            }
            let places = out.places.entry((t.name.clone(), global)).or_default();
            assert!(
                places.insert((b.name.clone(), at as u64)),
                "{}: a place twice",
                t.name
            );
        }
    }
    out
}

/// Distinct lengths that a cut leaves of these lengths.
fn lengths_after(kind: &CutKind, lengths: &BTreeSet<u64>, n: u64) -> BTreeSet<u64> {
    let of = |&len: &u64| -> Vec<u64> {
        let list: Vec<u64> = (0..len).collect();
        (0..n)
            .map(|k| cut_list(kind, &list, n, k).len() as u64)
            .collect()
    };
    lengths.iter().flat_map(of).collect()
}

fn random_kind(d: &mut Dice, lengths: &BTreeSet<u64>, n: u64, is_last: bool) -> CutKind {
    let most = *lengths.last().unwrap();
    let divides = |by: u64| lengths.iter().all(|l| *l > 0 && l % by == 0);
    match d.roll(0, 5) {
        0 if divides(n) => CutKind::Even,
        1 => CutKind::Ceil,
        2 => CutKind::Chunk((most.div_ceil(n) + d.roll(0, 2)).max(1)),
        3 if lengths.len() == 1 => {
            let mut b: Vec<u64> = (1..n).map(|_| d.roll(0, most)).collect();
            b.extend([0, most]);
            b.sort_unstable();
            CutKind::At(b)
        }
        4 if is_last => match (1..4).rev().find(|k| divides(n * k)) {
            Some(k) => CutKind::Blocks(k as u32),
            None => CutKind::Floor,
        },
        _ => CutKind::Floor,
    }
}

/// Cuts of one axis over these mesh axes.
fn random_cuts(d: &mut Dice, mesh: &Mesh, dim: u8, size: u64, axes: &[u8]) -> Vec<Cut> {
    let mut cuts = Vec::new();
    let mut lengths = BTreeSet::from([size]);
    let mut rest = axes;
    let of = |a: u8| u64::from(mesh.axes[a as usize].size);
    while !rest.is_empty() {
        let take = d.roll(1, rest.len() as u64) as usize;
        let (now, later) = rest.split_at(take);
        rest = later;
        let width: u64 = now.iter().map(|&a| of(a)).product();
        let inner = of(*now.last().unwrap());
        let parts = match d.roll(0, 3) {
            // The neighbours of one part fill whole inner axes or divide the last.
            0 if inner.is_multiple_of(2) => Some((width / 2) as u32),
            1 if now.len() > 1 => Some((width / inner) as u32),
            2 if d.chance(20) => Some(1),
            _ => None,
        };
        let n = parts.map_or(width, u64::from);
        let kind = random_kind(d, &lengths, n, rest.is_empty());
        lengths = lengths_after(&kind, &lengths, n);
        cuts.push(Cut {
            dim,
            axes: now.iter().copied().collect(),
            kind,
            parts,
        });
    }
    cuts
}

fn random_rule(d: &mut Dice, number: u16, mesh: &Mesh, t: &Tensor, stage: Option<u8>) -> Rule {
    let dims = t.shape.len();
    let mut axes: Vec<u8> = (0..mesh.axes.len() as u8)
        .filter(|a| Some(*a) != stage)
        .collect();
    d.shuffle(&mut axes);
    let mut by_dim: Vec<Vec<u8>> = vec![Vec::new(); dims];
    for a in axes {
        if dims > 0 && d.chance(75) {
            by_dim[d.roll(0, dims as u64 - 1) as usize].push(a);
        }
    }
    let mut cuts = Vec::new();
    for (dim, axes) in by_dim.iter().enumerate() {
        cuts.extend(random_cuts(d, mesh, dim as u8, t.shape[dim], axes));
    }
    let mut order: Vec<u8> = (0..dims as u8).collect();
    if d.chance(40) {
        d.shuffle(&mut order);
    }
    Rule {
        mesh: number,
        stage_axis: stage,
        cuts,
        dtype: d.chance(30).then_some(Dtype::F32),
        order: order.into_iter().collect(),
        padded: d.roll(0, 255) as u8,
        split: (dims > 0 && d.chance(15)).then_some(0),
        grouped: None,
        conversion: None,
    }
}

/// A mesh over `count` ranks.
fn random_mesh(d: &mut Dice, name: &str, count: u32) -> Mesh {
    let mut rest = count;
    let mut axes = Vec::new();
    for name in ["a", "b", "c"] {
        let divisors: Vec<u32> = (1..=rest).filter(|n| rest.is_multiple_of(*n)).collect();
        let size = *d.pick(&divisors);
        rest /= size;
        axes.push((name, size));
    }
    axes.push(("d", rest));
    d.shuffle(&mut axes);
    Mesh::new(name, &axes)
}

/// A part over `count` ranks that places each tensor once.
pub fn random_part(d: &mut Dice, first: u32, count: u32, tensors: &[Tensor]) -> Part {
    let mut ranks: Vec<Rank> = (first..first + count).map(Rank).collect();
    if d.chance(40) {
        d.shuffle(&mut ranks);
    }
    let mut part = Part {
        ranks: RankList::List(ranks),
        meshes: vec![
            random_mesh(d, "dense", count),
            random_mesh(d, "expert", count),
        ],
        copies: d.chance(50).then(|| CopyAxes {
            mesh: 0,
            axes: [0].into_iter().collect(),
        }),
        padding: Padding::Leave,
        rules: Vec::new(),
        placements: Vec::new(),
        spacers: Vec::new(),
        buffers: Vec::new(),
    };
    let mut i = 0;
    while i < tensors.len() {
        i += random_buffer(d, &mut part, i, tensors);
    }
    part
}

/// Places tensor `i`, and some after it if they can share a buffer. Returns
/// how many.
fn random_buffer(d: &mut Dice, part: &mut Part, i: usize, tensors: &[Tensor]) -> usize {
    let number = d.roll(0, 1) as u16;
    let mesh = part.meshes[number as usize].clone();
    let stage_axis = d.chance(30).then(|| d.roll(0, 3) as u8);
    let stage = stage_axis.map(|a| d.roll(0, u64::from(mesh.axes[a as usize].size) - 1) as u32);
    let mut rule = random_rule(d, number, &mesh, &tensors[i], stage_axis);
    let shape = &tensors[i].shape;
    let is_alike = |t: &&Tensor| t.shape.len() == shape.len() && t.shape.first() == shape.first();
    let alike = tensors[i..].iter().take_while(is_alike).count() as u64;
    let may_fuse = rule.cuts.iter().all(|c| c.dim == 0) && rule.split.is_none_or(|s| s == 0);
    let count = if may_fuse && d.chance(60) {
        d.roll(1, alike)
    } else {
        1
    } as usize;
    let mut shared_dims = 0;
    let members = &tensors[i..i + count];
    if count > 1 && members.iter().all(|t| t.shape == *shape) {
        shared_dims = d.roll(0, shape.len() as u64) as u8;
    } else if count > 1 {
        rule.order.clear();
        shared_dims = d.roll(0, 1.min(shape.len() as u64)) as u8;
    }
    let is_flat = |t: &Tensor| t.shape.get(1..) == shape.get(1..) && t.dtype == members[0].dtype;
    if count > 1 && members.iter().all(is_flat) && d.chance(40) {
        let sizes = group_sizes(&rule, &mesh, shape.first().copied().unwrap_or(0));
        if !sizes.is_empty() {
            let size = *d.pick(&sizes);
            let pitch = size * count as u64;
            rule = Rule {
                order: Default::default(),
                padded: 0,
                split: None,
                grouped: Some(Grouped { size, pitch }),
                ..rule
            };
            shared_dims = 0;
        }
    }
    // Names with layers are written as one entry for several of them.
    let base = match tensors[i].name.contains('.') {
        true => format!("buffer.{}.w", i as u64 + d.roll(0, 1) * 10),
        false => format!("buffer{i}"),
    };
    let name = match rule.split {
        Some(_) if d.chance(50) => format!("{base}.{{local}}"),
        Some(_) => format!("{base}.{{global}}"),
        None => base,
    };
    let from = part.placements.len() as u32;
    for k in 0..count {
        let own = match k > 0 && shared_dims == 1 && rule.grouped.is_none() {
            true => cut_further(d, &rule, &mesh, &tensors[i + k]),
            false => rule.clone(),
        };
        part.rules.push(own);
        part.placements.push(Placement {
            tensor: TensorIndex((i + k) as u32),
            rule: part.rules.len() as u32 - 1,
            stage,
            buffer: part.buffers.len() as u32,
            member: k as u16,
        });
    }
    part.buffers.push(Buffer {
        name,
        memory: Memory::Host,
        shared_dims,
        members: (from..from + count as u32).collect(),
    });
    count
}

/// The rule of a member that shares its first axis in memory with others, and
/// may be cut along one of the rest by a mesh axis of its own.
fn cut_further(d: &mut Dice, rule: &Rule, mesh: &Mesh, t: &Tensor) -> Rule {
    let mut rule = rule.clone();
    let shared = rule.order.first().copied().unwrap_or(0);
    let is_free =
        |a: &u8| rule.stage_axis != Some(*a) && rule.cuts.iter().all(|c| !c.axes.contains(a));
    let axes: Vec<u8> = (0..mesh.axes.len() as u8).filter(is_free).collect();
    let dims: Vec<u8> = (1..t.shape.len() as u8).filter(|&x| x != shared).collect();
    if !axes.is_empty() && !dims.is_empty() && d.chance(50) {
        let (axis, dim) = (*d.pick(&axes), *d.pick(&dims));
        let size = t.shape[dim as usize];
        rule.cuts.extend(random_cuts(d, mesh, dim, size, &[axis]));
    }
    rule
}

/// Sizes of groups of axis 0 that no cut of it splits.
fn group_sizes(rule: &Rule, mesh: &Mesh, size: u64) -> Vec<u64> {
    let is_block = |c: &Cut| matches!(c.kind, CutKind::Blocks(_));
    if size == 0 || rule.cuts.iter().any(is_block) {
        return Vec::new();
    }
    let is_whole = |n: &u64| {
        (0..mesh.size() as u32).all(|p| {
            let (list, _) = axis_held(rule, mesh, &mesh.coords(p), 0, size);
            let ends = [list.first().copied(), list.last().map(|x| x + 1)];
            ends.into_iter().flatten().all(|x| x % n == 0)
        })
    };
    let divides = |n: &u64| size.is_multiple_of(*n);
    (1..=size).filter(divides).filter(is_whole).collect()
}

fn random_tensors(d: &mut Dice) -> Vec<Tensor> {
    let mut lead = d.roll(1, 12);
    let mut dims = d.roll(0, 3);
    let has_layers = d.chance(50);
    (0..d.roll(1, 6))
        .map(|i| {
            if d.chance(40) {
                lead = d.roll(1, 12);
                dims = if d.chance(8) {
                    d.roll(4, 8)
                } else {
                    d.roll(0, 3)
                };
            }
            let most = if dims > 3 { 2 } else { 5 };
            let extent = |k: u64, d: &mut Dice| if k == 0 { lead } else { d.roll(1, most) };
            let shape: Vec<u64> = (0..dims).map(|k| extent(k, d)).collect();
            let name = if has_layers {
                format!("t.{i}.w")
            } else {
                format!("t{i}")
            };
            Tensor::new(name, &shape, Dtype::BF16).unwrap()
        })
        .collect()
}

pub fn random_layout(d: &mut Dice) -> Layout {
    let tensors = random_tensors(d);
    random_layout_of(d, 0, &tensors)
}

/// One or two parts from rank `first` on that each hold all of the tensors.
fn random_layout_of(d: &mut Dice, first: u32, tensors: &[Tensor]) -> Layout {
    let mut spec = LayoutSpec::default();
    let mut first = first;
    for _ in 0..d.roll(1, 2) {
        let count = *d.pick(&[1, 2, 4, 6, 8, 12]);
        spec.parts.push(random_part(d, first, count, tensors));
        first += count;
    }
    spec.tensors = tensors.to_vec();
    let report = check(&spec);
    assert!(report.is_ok(), "{:#?}\n{spec:#?}", report.findings);
    Layout::new(spec).unwrap()
}

/// A random order, and the new position of each old one.
fn permutation(d: &mut Dice, n: usize) -> (Vec<usize>, Vec<usize>) {
    let mut order: Vec<usize> = (0..n).collect();
    d.shuffle(&mut order);
    let mut new_of = vec![0; n];
    for (new, &old) in order.iter().enumerate() {
        new_of[old] = new;
    }
    (order, new_of)
}

fn reorder<T: Clone>(v: &[T], order: &[usize]) -> Vec<T> {
    order.iter().map(|&i| v[i].clone()).collect()
}

/// The same description with every table in another order and every rule
/// given once per use.
pub fn shuffled(d: &mut Dice, spec: &LayoutSpec) -> LayoutSpec {
    let mut out = spec.clone();
    let (order, new_of) = permutation(d, spec.tensors.len());
    out.tensors = reorder(&spec.tensors, &order);
    for part in &mut out.parts {
        shuffle_part(d, part, &spec.tensors, &new_of);
    }
    d.shuffle(&mut out.parts);
    for r in &mut out.explicit {
        let (order, buffer_of) = permutation(d, r.buffers.len());
        r.buffers = reorder(&r.buffers, &order);
        for v in &mut r.views {
            v.tensor = TensorIndex(new_of[v.tensor.index()] as u32);
            v.buffer = buffer_of[v.buffer as usize] as u32;
        }
        d.shuffle(&mut r.views);
    }
    d.shuffle(&mut out.explicit);
    out
}

fn shuffle_part(d: &mut Dice, part: &mut Part, tensors: &[Tensor], tensor_of: &[usize]) {
    let (order, mesh_of) = permutation(d, part.meshes.len());
    part.meshes = reorder(&part.meshes, &order);
    if let Some(c) = &mut part.copies {
        c.mesh = mesh_of[c.mesh as usize] as u16;
    }
    let rules = std::mem::take(&mut part.rules);
    let (order, place_of) = permutation(d, part.placements.len());
    part.placements = reorder(&part.placements, &order);
    let (buffers, buffer_of) = permutation(d, part.buffers.len());
    for p in &mut part.placements {
        let mut rule = rules[p.rule as usize].clone();
        rule.mesh = mesh_of[rule.mesh as usize] as u16;
        // Cuts of different axes may come in any order.
        if rule.cuts.len() == 2 && rule.cuts[0].dim != rule.cuts[1].dim {
            d.shuffle(&mut rule.cuts);
        }
        let own = tensors[p.tensor.index()].dtype;
        rule.dtype = rule.dtype.or_else(|| d.chance(50).then_some(own));
        p.rule = part.rules.len() as u32;
        part.rules.push(rule);
        p.tensor = TensorIndex(tensor_of[p.tensor.index()] as u32);
        p.buffer = buffer_of[p.buffer as usize] as u32;
    }
    part.buffers = reorder(&part.buffers, &buffers);
    for m in part.buffers.iter_mut().flat_map(|b| &mut b.members) {
        *m = place_of[*m as usize] as u32;
    }
}

/// The explicit layout of one rank of a layout.
pub fn explicit_rank(layout: &Layout, rank: Rank) -> Layout {
    let buffers: Vec<NamedBuffer> = layout.buffers(rank);
    let number = |v: &View<_>| {
        let name = layout.buffer(rank, v.buffer).unwrap().name;
        buffers.iter().position(|b| b.name == name).unwrap() as u32
    };
    let explicit = |v: View<_>| View {
        tensor: v.tensor,
        buffer: number(&v),
        bounds: v.bounds,
        offset: v.offset,
        strides: v.strides,
        dtype: v.dtype,
        conversion: v.conversion,
    };
    let views = layout.views(rank).into_iter().map(explicit).collect();
    let copy = layout.copy_of(rank).unwrap();
    Layout::from_views(
        rank,
        copy,
        layout.tensors().to_vec(),
        buffers.clone(),
        views,
    )
    .unwrap()
}

/// The whole layout, view by view.
pub fn explicit(layout: &Layout) -> Layout {
    let ranks: Vec<Layout> = layout
        .ranks()
        .iter()
        .map(|&r| explicit_rank(layout, r))
        .collect();
    Layout::merge(&ranks.iter().collect::<Vec<_>>()).unwrap()
}

/// A source and a destination of the same tensors: with granules that no cut of
/// either splits, padding that is zeroed or left, some parts view by view, and
/// ranks that may be on both sides.
pub fn random_pair(d: &mut Dice) -> (Layout, Layout) {
    let mut tensors = random_tensors(d);
    let apart = if d.chance(70) { 40 } else { 0 };
    let mut source = random_layout_of(d, 0, &tensors).spec().clone();
    let mut destination = random_layout_of(d, apart, &tensors).spec().clone();
    // All ranks of a source store a tensor alike.
    let stored = *d.pick(&[None, Some(Dtype::F32), Some(Dtype::F16)]);
    for rule in source.parts.iter_mut().flat_map(|p| &mut p.rules) {
        rule.dtype = stored;
    }
    for part in &mut destination.parts {
        part.padding = *d.pick(&[Padding::Leave, Padding::Zero]);
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    for t in 0..tensors.len() {
        random_granule(d, t, &mut source, &mut destination);
    }
    let mut sides = [source, destination].map(|spec| Layout::new(spec).unwrap());
    let is_partial = |f: &Finding| f.kind == FindingKind::CopyIncomplete;
    if check_pair(&sides[0], &sides[1])
        .findings
        .iter()
        .any(is_partial)
    {
        let mut spec = sides[1].spec().clone();
        spec.parts.iter_mut().for_each(|p| p.copies = None);
        sides[1] = Layout::new(spec).unwrap();
    }
    let [source, destination] = sides.map(|side| match d.chance(30) {
        true => partly_explicit(d, &side),
        false => side,
    });
    (source, destination)
}

/// Gives a tensor a granule along one axis, if no cut splits it.
fn random_granule(d: &mut Dice, t: usize, source: &mut LayoutSpec, destination: &mut LayoutSpec) {
    let shape = source.tensors[t].shape.clone();
    if shape.is_empty() || d.chance(50) {
        return;
    }
    let axis = d.roll(0, shape.len() as u64 - 1) as usize;
    let divisors: Vec<u64> = (2..=shape[axis])
        .filter(|g| shape[axis].is_multiple_of(*g))
        .collect();
    if divisors.is_empty() {
        return;
    }
    // One buffer, or one group, per index: a view of each would split it.
    let is_in_pieces = |spec: &LayoutSpec| {
        spec.parts.iter().any(|part| {
            let placed = part.placements.iter().filter(|p| p.tensor.index() == t);
            let mut rules = placed.map(|p| part.rule(p));
            rules.any(|r| r.split.is_some() || r.grouped.is_some())
        })
    };
    if axis == 0 && (is_in_pieces(source) || is_in_pieces(destination)) {
        return;
    }
    let granule = *d.pick(&divisors);
    let mut with = [source.clone(), destination.clone()];
    with.iter_mut()
        .for_each(|s| s.tensors[t].granule[axis] = granule);
    if with.iter().all(|s| check(s).is_ok()) {
        // One side may say what both keep to.
        let side = d.roll(0, 2);
        for (i, spec) in [source, destination].into_iter().enumerate() {
            if side != i as u64 {
                spec.tensors[t].granule[axis] = granule;
            }
        }
    }
}

/// The same layout with the ranks of its last part, or all, view by view.
fn partly_explicit(d: &mut Dice, layout: &Layout) -> Layout {
    let mut symbolic = layout.spec().clone();
    let first = if d.chance(50) {
        0
    } else {
        symbolic.parts.len() - 1
    };
    let explicit: Vec<Layout> = symbolic
        .parts
        .split_off(first)
        .iter()
        .flat_map(|p| (0..p.ranks.count()).map(|i| p.ranks.rank(i)))
        .map(|rank| explicit_rank(layout, rank))
        .collect();
    let symbolic = Layout::new(symbolic).unwrap();
    let parts = [&symbolic].into_iter().filter(|l| l.rank_count() > 0);
    Layout::merge(&parts.chain(&explicit).collect::<Vec<_>>()).unwrap()
}
