//! From a canonical description to a layout file. Every tensor is written on
//! its own first; then [`fold`](super::fold) joins the layers that are alike.

use super::LAYOUT_FILE_VERSION;
use super::doc::{
    BufferDoc, Choice, CopiesDoc, CutDoc, DtypeDoc, ExplicitDoc, FileDoc, FusedDoc, KindDoc,
    PaddingDoc, Pairs, PartDoc, RangeDoc, StageDoc, TensorDoc, ViewDoc, memory_doc,
};
use crate::layout::LayoutSpec;
use crate::layout::cut::{Cut, CutKind};
use crate::layout::mesh::{Mesh, RankList};
use crate::layout::placement::{Buffer, Padding, Part, Placement, Rule};
use crate::layout::tensor::Tensor;
use crate::layout::view::{RankViews, View};
use std::collections::HashSet;

pub(super) fn write(spec: &LayoutSpec) -> String {
    let file = FileDoc {
        weightsync_layout: LAYOUT_FILE_VERSION,
        aliases: Pairs(spec.aliases.clone()),
        frozen: spec.marks.frozen.clone(),
        draft: spec.marks.draft.clone(),
        parts: spec
            .parts
            .iter()
            .map(|p| {
                let mut doc = part(p, &spec.tensors);
                super::fold::fold(&mut doc);
                doc
            })
            .collect(),
        explicit: spec
            .explicit
            .iter()
            .map(|r| explicit(r, &spec.tensors))
            .collect(),
        tensors: declarations(spec),
        ..FileDoc::default()
    };
    let compact = serde_json::to_string(&file).expect("strings and numbers always serialise");
    super::pretty::pretty(&compact)
}

/// The tensors that no part declares.
fn declarations(spec: &LayoutSpec) -> Vec<TensorDoc> {
    let mut placed = vec![false; spec.tensors.len()];
    for part in &spec.parts {
        for p in part.placements.iter().chain(&part.spacers) {
            placed[p.tensor.index()] = true;
        }
    }
    let rest = spec
        .tensors
        .iter()
        .zip(placed)
        .filter(|(_, placed)| !placed);
    rest.map(|(t, _)| declaration(t)).collect()
}

fn declaration(t: &Tensor) -> TensorDoc {
    let plain = t.granule.iter().all(|&g| g == 1);
    TensorDoc {
        name: t.name.clone(),
        shape: Some(t.shape.to_vec()),
        dtype: Some(DtypeDoc(t.dtype)),
        granule: (!plain).then(|| t.granule.to_vec()),
        ..TensorDoc::default()
    }
}

fn part(p: &Part, tensors: &[Tensor]) -> PartDoc {
    let placed = p.placements.iter().map(|x| placement(p, x, tensors));
    let spacers = p.spacers.iter().map(|x| TensorDoc {
        spacer: true,
        ..placement(p, x, tensors)
    });
    PartDoc {
        ranks: Some(ranks(&p.ranks)),
        meshes: Pairs(p.meshes.iter().map(mesh).collect()),
        copies: p.copies.as_ref().map(|c| {
            let mesh = &p.meshes[c.mesh as usize];
            CopiesDoc {
                mesh: Some(mesh.name.clone()),
                axes: axes(&c.axes, mesh),
            }
        }),
        padding: match p.padding {
            Padding::Leave => None,
            Padding::Zero => Some(PaddingDoc::Zero),
        },
        stages: Pairs::default(),
        local_layers: Pairs::default(),
        tensors: placed.chain(spacers).collect(),
        fused: fused(p, tensors),
    }
}

fn ranks(r: &RankList) -> Choice {
    match r {
        RankList::Range { first, count } => Choice::Range(RangeDoc {
            first: *first,
            count: *count,
        }),
        RankList::List(v) => Choice::List(v.iter().map(|r| r.0).collect()),
    }
}

fn mesh(m: &Mesh) -> (String, Vec<(String, u32)>) {
    let axes = m.axes.iter().map(|a| (a.name.clone(), a.size));
    (m.name.clone(), axes.collect())
}

fn axes(numbers: &[u8], mesh: &Mesh) -> Vec<String> {
    let name = |&a: &u8| mesh.axes[a as usize].name.clone();
    numbers.iter().map(name).collect()
}

fn placement(part: &Part, p: &Placement, tensors: &[Tensor]) -> TensorDoc {
    let tensor = &tensors[p.tensor.index()];
    let rule = part.rule(p);
    let mesh = part.mesh(rule);
    let buffer = &part.buffers[p.buffer as usize];
    let stage = rule.stage_axis.zip(p.stage).map(|(axis, stage)| StageDoc {
        axis: mesh.axes[axis as usize].name.clone(),
        table: None,
        at: Some(Choice::One(stage)),
    });
    let is_default =
        buffer.members.len() == 1 && buffer.name == tensor.name && rule.split.is_none();
    TensorDoc {
        mesh: Some(mesh.name.clone()),
        stage,
        cuts: cuts(rule, mesh),
        stored: rule.dtype.map(DtypeDoc),
        order: rule.order.to_vec(),
        split: rule.split,
        buffer: (!is_default).then(|| buffer.name.clone()),
        memory: memory_doc(buffer.memory),
        ..declaration(tensor)
    }
}

fn cuts(rule: &Rule, mesh: &Mesh) -> Vec<CutDoc> {
    let is_last = |i: usize| {
        rule.cuts
            .get(i + 1)
            .is_none_or(|c| c.dim != rule.cuts[i].dim)
    };
    let cut = |(i, c): (usize, &Cut)| CutDoc {
        dim: c.dim,
        axes: axes(&c.axes, mesh),
        kind: match &c.kind {
            CutKind::Even => KindDoc::Even,
            CutKind::Floor => KindDoc::Floor,
            CutKind::Ceil => KindDoc::Ceil,
            CutKind::Chunk(n) => KindDoc::Chunk(*n),
            CutKind::At(bounds) => KindDoc::At(bounds.clone()),
            CutKind::Blocks(n) => KindDoc::Blocks(*n),
        },
        parts: c.parts,
        pad: is_last(i) && rule.padded & (1 << c.dim) != 0,
    };
    rule.cuts.iter().enumerate().map(cut).collect()
}

fn fused(part: &Part, tensors: &[Tensor]) -> Vec<FusedDoc> {
    let name = |&m: &u32| tensors[part.member(m).tensor.index()].name.clone();
    let groups = |b: &Buffer| {
        let first = part.member(*b.members.first()?);
        let size = part.rule(first).grouped?.size;
        Some(tensors[first.tensor.index()].shape[0] / size)
    };
    let entry = |b: &Buffer| FusedDoc {
        buffer: b.name.clone(),
        layers: None,
        table: None,
        shared_dims: b.shared_dims,
        groups: groups(b),
        members: b.members.iter().map(name).collect(),
    };
    let is_fused = |b: &&Buffer| b.members.len() > 1 || b.shared_dims > 0;
    let mut seen = HashSet::new();
    let mut out: Vec<FusedDoc> = part.buffers.iter().filter(is_fused).map(entry).collect();
    // Stages that name their buffers alike share one entry.
    out.retain(|f| seen.insert((f.buffer.clone(), f.shared_dims, f.groups, f.members.clone())));
    out
}

fn explicit(r: &RankViews, tensors: &[Tensor]) -> ExplicitDoc {
    let buffer = |b: &crate::layout::view::NamedBuffer| BufferDoc {
        name: b.name.clone(),
        bytes: b.bytes,
        memory: memory_doc(b.memory),
    };
    ExplicitDoc {
        rank: r.rank.0,
        copy: r.copy,
        buffers: r.buffers.iter().map(buffer).collect(),
        views: r.views.iter().map(|v| view(v, r, tensors)).collect(),
    }
}

fn view(v: &View, r: &RankViews, tensors: &[Tensor]) -> ViewDoc {
    let tensor = &tensors[v.tensor.index()];
    ViewDoc {
        tensor: tensor.name.clone(),
        bounds: v.bounds.spans().iter().map(|s| (s.lo, s.hi)).collect(),
        buffer: r.buffers[v.buffer as usize].name.clone(),
        offset: v.offset,
        strides: Some(v.strides.to_vec()),
        dtype: (v.dtype != tensor.dtype).then_some(DtypeDoc(v.dtype)),
    }
}
