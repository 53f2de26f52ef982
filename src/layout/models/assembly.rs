//! Putting a part together from placements that say where they lie.

use crate::layout::mesh::{Mesh, RankList};
use crate::layout::placement::{Buffer, CopyAxes, Padding, Part, Placement, Rule};
use crate::layout::tensor::TensorIndex;
use crate::layout::view::Memory;
use std::collections::BTreeMap;

/// The local parameter that a tensor is in, and which member of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Home {
    pub buffer: String,
    /// Members lie in this order.
    pub place: u8,
    /// Axes, outermost in memory first, that the members share.
    pub shared_dims: u8,
}

impl Home {
    /// A parameter of its own.
    pub fn own(buffer: impl Into<String>) -> Home {
        Home::member(buffer, 0)
    }

    /// One of several that lie end to end.
    pub fn member(buffer: impl Into<String>, place: u8) -> Home {
        Home {
            buffer: buffer.into(),
            place,
            shared_dims: 0,
        }
    }
}

/// The axes that members share, and the members by place.
type Members = (u8, Vec<(u8, u32)>);

/// A part under construction.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    rules: Vec<Rule>,
    placements: Vec<Placement>,
    /// By name and stage.
    buffers: BTreeMap<(String, Option<u32>), Members>,
}

impl Assembly {
    /// Puts a tensor into its home on a stage; `None` is every stage.
    pub fn place(&mut self, tensor: TensorIndex, rule: &Rule, stage: Option<u32>, home: Home) {
        let number = match self.rules.iter().position(|r| r == rule) {
            Some(n) => n,
            None => {
                self.rules.push(rule.clone());
                self.rules.len() - 1
            }
        };
        let fresh = (home.shared_dims, Vec::new());
        let (_, members) = self.buffers.entry((home.buffer, stage)).or_insert(fresh);
        members.push((home.place, self.placements.len() as u32));
        self.placements.push(Placement {
            tensor,
            rule: number as u32,
            stage,
            buffer: 0,
            member: 0,
        });
    }

    /// The part, over these ranks.
    pub fn part(mut self, ranks: RankList, meshes: Vec<Mesh>, copies: Option<CopyAxes>) -> Part {
        let mut buffers = Vec::with_capacity(self.buffers.len());
        for ((name, _), (shared_dims, mut members)) in self.buffers {
            members.sort_unstable();
            for (k, &(_, p)) in members.iter().enumerate() {
                let placement = &mut self.placements[p as usize];
                placement.buffer = buffers.len() as u32;
                placement.member = k as u16;
            }
            buffers.push(Buffer {
                name,
                memory: Memory::Host,
                shared_dims,
                members: members.into_iter().map(|(_, p)| p).collect(),
            });
        }
        Part {
            ranks,
            meshes,
            copies,
            padding: Padding::Leave,
            rules: self.rules,
            placements: self.placements,
            spacers: Vec::new(),
            buffers,
        }
    }
}
