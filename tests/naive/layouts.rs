//! Random layouts over a fixed list of tensors.
#![allow(dead_code)]

use proptest::prelude::*;
use weightsync::layout::cut::{Cut, CutKind};
use weightsync::layout::dtype::Dtype;
use weightsync::layout::mesh::{Mesh, RankList};
use weightsync::layout::placement::{Buffer, CopyAxes, Part, Placement, Rule};
use weightsync::layout::tensor::{Tensor, TensorIndex};
use weightsync::layout::view::{Memory, NamedBuffer, RankViews, View};
use weightsync::layout::{BufferKey, Layout, LayoutSpec};

/// Shapes of the tensors that both sides describe.
pub fn tensors() -> impl Strategy<Value = Vec<Tensor>> {
    let shape = prop::collection::vec(1u64..9, 1..4);
    prop::collection::vec((shape, 0usize..3), 1..5).prop_map(|all| {
        all.iter()
            .enumerate()
            .map(|(i, (shape, d))| {
                let dtype = [Dtype::BF16, Dtype::F32, Dtype::U8][*d];
                // Later ones are of earlier layers.
                Tensor::new(format!("t{i}.{}", 2 - i / 2), shape, dtype).unwrap()
            })
            .collect()
    })
}

/// How one tensor is cut and stored: numbers that any shape can interpret.
#[derive(Clone, Debug)]
pub struct Choice {
    dim: usize,
    axes: [bool; 3],
    kind: usize,
    second: Option<(usize, usize, usize)>,
    stage: Option<u32>,
    transpose: bool,
    pad: bool,
}

pub fn choice() -> impl Strategy<Value = Choice> {
    (
        0usize..3,
        any::<[bool; 3]>(),
        0usize..6,
        prop::option::of((0usize..3, 0usize..3, 0usize..3)),
        prop::option::of(0u32..2),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(dim, axes, kind, second, stage, transpose, pad)| Choice {
            dim,
            axes,
            kind,
            second,
            stage,
            transpose,
            pad,
        })
}

#[derive(Clone, Debug)]
pub struct Side {
    sizes: [u32; 3],
    first: u32,
    choices: Vec<Choice>,
    fuse: bool,
    is_explicit: bool,
    shuffle: bool,
    /// The last tensor is in a second buffer, whole.
    is_last_twice: bool,
}

pub fn side(first: impl Strategy<Value = u32>) -> impl Strategy<Value = Side> {
    (
        [1u32..4, 1u32..3, 1u32..4],
        first,
        prop::collection::vec(choice(), 5),
        any::<bool>(),
        prop::bool::weighted(0.3),
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.2),
    )
        .prop_map(
            |(sizes, first, choices, fuse, is_explicit, shuffle, is_last_twice)| Side {
                sizes,
                first,
                choices,
                fuse,
                is_explicit,
                shuffle,
                is_last_twice,
            },
        )
}

fn kind(k: usize, size: u64, n: u64) -> CutKind {
    match k {
        0 => CutKind::Floor,
        1 => CutKind::Ceil,
        2 => CutKind::Chunk(size.div_ceil(n) + 1),
        3 if size.is_multiple_of(n) => CutKind::Even,
        4 if size.is_multiple_of(2 * n) => CutKind::Blocks(2),
        5 => {
            let mut at: Vec<u64> = (0..=n).map(|i| (i * i * size) / (n * n)).collect();
            at[n as usize] = size;
            CutKind::At(at)
        }
        _ => CutKind::Floor,
    }
}

impl Side {
    /// Sizes of the axes: copies, stages, tensor parallel.
    pub fn sizes(&self) -> [u32; 3] {
        self.sizes
    }

    /// The ranks in mesh order.
    fn ranks(&self) -> Vec<weightsync::Rank> {
        let n = self.sizes.iter().product::<u32>();
        let rank = |i: u32| match self.shuffle {
            true => self.first + 2 * (n - 1 - i),
            false => self.first + i,
        };
        (0..n).map(|i| weightsync::Rank(rank(i))).collect()
    }

    /// One list per copy, laid out `[stage][tensor]`.
    pub fn copies(&self) -> Vec<Vec<weightsync::Rank>> {
        let ranks = self.ranks();
        let n = (self.sizes[1] * self.sizes[2]) as usize;
        ranks.chunks(n).map(<[_]>::to_vec).collect()
    }

    /// The layout these choices make of `tensors`.
    pub fn layout(&self, tensors: &[Tensor]) -> Layout {
        let mesh = Mesh::new(
            "m",
            &[
                ("a", self.sizes[0]),
                ("pp", self.sizes[1]),
                ("tp", self.sizes[2]),
            ],
        );
        let mut part = Part {
            ranks: RankList::Range {
                first: self.first,
                count: self.sizes.iter().product(),
            },
            meshes: vec![mesh.clone()],
            copies: Some(CopyAxes {
                mesh: 0,
                axes: [0].into_iter().collect(),
            }),
            padding: Default::default(),
            rules: Vec::new(),
            placements: Vec::new(),
            spacers: Vec::new(),
            buffers: Vec::new(),
        };
        if self.shuffle {
            part.ranks = RankList::List(self.ranks());
        }
        for (i, t) in tensors.iter().enumerate() {
            self.place(i, t, &mesh, &mut part);
        }
        if self.is_last_twice {
            place_whole(tensors.len() - 1, &mut part);
        }
        // A copy has all of what it has at all.
        let is_cut = part
            .rules
            .iter()
            .any(|r| r.cuts.iter().any(|c| c.axes.contains(&0)));
        if is_cut {
            part.copies = None;
        }
        let mut used: Vec<Tensor> = tensors.to_vec();
        used.sort_by(|a, b| a.name.cmp(&b.name));
        let layout = Layout::new(LayoutSpec {
            tensors: used,
            aliases: Vec::new(),
            parts: vec![part],
            explicit: Vec::new(),
            marks: Default::default(),
        })
        .unwrap();
        if self.is_explicit {
            explicit(&layout)
        } else {
            layout
        }
    }

    fn place(&self, i: usize, t: &Tensor, mesh: &Mesh, part: &mut Part) {
        let c = &self.choices[i];
        let n = t.shape.len();
        let staged = c.stage.is_some();
        let axes: Vec<u8> = (0..3u8)
            .filter(|&a| c.axes[a as usize] && !(staged && a == 1))
            .collect();
        let mut cuts = Vec::new();
        let width = |axes: &[u8]| -> u64 {
            axes.iter()
                .map(|&a| u64::from(mesh.axes[a as usize].size))
                .product()
        };
        let dim = c.dim % n;
        if !axes.is_empty() {
            cuts.push(Cut {
                dim: dim as u8,
                axes: axes.iter().copied().collect(),
                kind: kind(c.kind, t.shape[dim], width(&axes)),
                parts: None,
            });
        }
        if let Some((d2, a2, k2)) = c.second {
            let (d2, a2) = (d2 % n, a2 as u8);
            let taken = axes.contains(&a2) || (staged && a2 == 1);
            let nests = cuts.iter().any(|x| x.dim as usize == d2);
            let k2 = if nests { k2 % 2 } else { k2 };
            let first_blocks = cuts.iter().any(|x| matches!(x.kind, CutKind::Blocks(_)));
            let is_block_in_block = nests && first_blocks;
            if !taken && !is_block_in_block {
                cuts.push(Cut {
                    dim: d2 as u8,
                    axes: [a2].into_iter().collect(),
                    kind: kind(k2, t.shape[d2], width(&[a2])),
                    parts: None,
                });
            }
        }
        cuts.sort_by_key(|c| c.dim);
        let rule = part.rules.len() as u32;
        part.rules.push(Rule {
            mesh: 0,
            stage_axis: staged.then_some(1),
            padded: if c.pad { 0xff } else { 0 },
            cuts,
            dtype: None,
            order: if c.transpose {
                (0..n as u8).rev().collect()
            } else {
                Default::default()
            },
            split: None,
            grouped: None,
            conversion: None,
        });
        // Neighbours on one stage may share a buffer.
        let fused = (self.fuse && i > 0)
            .then(|| part.buffers.len() as u32 - 1)
            .filter(|&b| {
                let m = part.buffers[b as usize].members[0];
                part.placements[m as usize].stage == c.stage.map(|s| s % self.sizes[1])
                    && part.rules[part.placements[m as usize].rule as usize]
                        .stage_axis
                        .is_some()
                        == staged
            });
        let buffer = fused.unwrap_or(part.buffers.len() as u32);
        if fused.is_none() {
            part.buffers.push(Buffer {
                name: format!("b{i}"),
                memory: Memory::Host,
                shared_dims: 0,
                members: Vec::new(),
            });
        }
        let member = part.buffers[buffer as usize].members.len() as u16;
        part.buffers[buffer as usize].members.push(i as u32);
        part.placements.push(Placement {
            tensor: TensorIndex(i as u32),
            rule,
            stage: c.stage.map(|s| s % self.sizes[1]),
            buffer,
            member,
        });
    }
}

/// Places the last tensor once more, in a buffer of its own.
fn place_whole(last: usize, part: &mut Part) {
    part.rules.push(Rule {
        mesh: 0,
        stage_axis: None,
        padded: 0,
        cuts: Vec::new(),
        dtype: None,
        order: Default::default(),
        split: None,
        grouped: None,
        conversion: None,
    });
    part.buffers.push(Buffer {
        name: "whole".to_string(),
        memory: Memory::Host,
        shared_dims: 0,
        members: vec![part.placements.len() as u32],
    });
    part.placements.push(Placement {
        tensor: TensorIndex(last as u32),
        rule: part.rules.len() as u32 - 1,
        stage: None,
        buffer: part.buffers.len() as u32 - 1,
        member: 0,
    });
}

/// The same description, view by view.
pub fn explicit(layout: &Layout) -> Layout {
    let explicit = layout
        .ranks()
        .into_iter()
        .map(|rank| {
            let mut buffers: Vec<(BufferKey, NamedBuffer)> = Vec::new();
            let mut views: Vec<View> = Vec::new();
            for v in layout.views(rank) {
                let at = buffers
                    .iter()
                    .position(|b| b.0 == v.buffer)
                    .unwrap_or_else(|| {
                        buffers.push((v.buffer, layout.buffer(rank, v.buffer).unwrap()));
                        buffers.len() - 1
                    });
                views.push(View {
                    tensor: v.tensor,
                    bounds: v.bounds,
                    buffer: at as u32,
                    offset: v.offset,
                    strides: v.strides,
                    dtype: v.dtype,
                    conversion: None,
                });
            }
            RankViews {
                rank,
                copy: layout.copy_of(rank).unwrap(),
                buffers: buffers.into_iter().map(|b| b.1).collect(),
                views,
            }
        })
        .collect();
    Layout::new(LayoutSpec {
        tensors: layout.tensors().to_vec(),
        aliases: Vec::new(),
        parts: Vec::new(),
        explicit,
        marks: Default::default(),
    })
    .unwrap()
}
