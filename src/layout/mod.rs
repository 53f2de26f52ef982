//! Who holds which bytes, and where: the description both sides give.
//!
//! A [`Layout`] describes one side. Its ranks are described symbolically, as
//! *parts* with meshes and rules (O(1) in ranks), or view by view; both may be
//! mixed. A layout is a value: building one sorts and renumbers everything, so
//! descriptions of equal meaning are equal, byte for byte.
//!
//! ```text
//!   part ─ ranks 0..8, mesh pp2 x dp2 x tp2
//!     rule "column": cut axis 0 over tp
//!       placement: q_proj of layer 3, on stage 1, in buffer "layers.3.qkv"
//! ```

#![forbid(unsafe_code)]

pub mod array;
mod canonical;
pub mod check;
pub mod cut;
mod describe;
pub mod dtype;
mod fold;
pub mod frame;
mod index;
mod json;
mod kinds;
pub mod marks;
pub mod mesh;
pub mod models;
mod narrow;
pub mod placement;
mod recast;
mod restrict;
mod safetensors;
pub mod tensor;
mod torch;
pub mod view;
pub mod views;
mod wire;

pub use json::LAYOUT_FILE_VERSION;
pub(crate) use json::place_in_json;
pub use safetensors::SafetensorsFile;
pub use torch::DTENSOR_FILE_VERSION;
pub use wire::{LAYOUT_BLOB_MAGIC, LAYOUT_BLOB_VERSION};

/// The JSON Schema (draft 2020-12) of the layout file.
pub const LAYOUT_SCHEMA: &str = include_str!("layout.schema.json");

use crate::error::{Error, Result};
use crate::rank::Rank;
use index::RankIndex;
use marks::Marks;
use placement::{LocalBuffer, Part, Seat};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use tensor::{Tensor, TensorIndex};
use view::{NamedBuffer, RankViews, View};
use xxhash_rust::xxh3::xxh3_128;

/// The plain data of a layout; [`Layout::new`] puts it in canonical order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayoutSpec {
    /// Canonical tensors; sorted by name in a [`Layout`].
    pub tensors: Vec<Tensor>,
    /// `(alias, name)`: both names mean the same values.
    pub aliases: Vec<(String, String)>,
    pub parts: Vec<Part>,
    pub explicit: Vec<RankViews>,
    pub marks: Marks,
}

/// One side's description, checked and in canonical order.
#[derive(Clone, Debug)]
pub struct Layout {
    spec: LayoutSpec,
    /// First copy index of each part, then of the explicit ranks.
    copy_base: Vec<u32>,
    /// Sorted distinct copy labels of the explicit ranks.
    explicit_copies: Vec<u32>,
    index: RankIndex,
    /// Aliases by the name they stand for, as positions in the table.
    aliases_of: Vec<u32>,
    /// By part and buffer.
    buffer_kinds: Vec<Vec<u32>>,
    shared_tensors: Arc<[Tensor]>,
    digest: OnceLock<u128>,
}

/// Where a rank sits in a layout.
#[derive(Clone, Debug)]
pub enum Place<'a> {
    Part(&'a Part, Seat),
    Explicit(&'a RankViews),
}

/// Names a buffer of one rank within one layout, without spelling the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BufferKey {
    Part { part: u16, buffer: LocalBuffer },
    Explicit { buffer: u32 },
}

impl Layout {
    /// Puts a description in canonical order and checks its structure.
    ///
    /// Ill-formed cuts, split granules and overlaps are errors too; use
    /// [`check`](check::check) to see all of them instead of the first.
    pub fn new(spec: LayoutSpec) -> Result<Layout> {
        let (spec, index) = canonical::canonical(spec)?;
        check::check_canonical(&spec).into_result()?;
        let mut copy_base = Vec::with_capacity(spec.parts.len() + 1);
        let mut copies = 0u32;
        for part in &spec.parts {
            copy_base.push(copies);
            copies += part.copy_count();
        }
        copy_base.push(copies);
        let mut explicit_copies: Vec<u32> = spec.explicit.iter().map(|r| r.copy).collect();
        explicit_copies.sort_unstable();
        explicit_copies.dedup();
        let mut aliases_of: Vec<u32> = (0..spec.aliases.len() as u32).collect();
        let root = |i: u32| &spec.aliases[i as usize].1;
        aliases_of.sort_unstable_by(|&a, &b| root(a).cmp(root(b)).then(a.cmp(&b)));
        Ok(Layout {
            aliases_of,
            buffer_kinds: kinds::of_buffers(&spec),
            shared_tensors: spec.tensors.iter().cloned().collect(),
            digest: OnceLock::new(),
            spec,
            copy_base,
            explicit_copies,
            index,
        })
    }

    pub fn spec(&self) -> &LayoutSpec {
        &self.spec
    }

    pub fn tensors(&self) -> &[Tensor] {
        &self.spec.tensors
    }

    /// The same, to be held by what outlives the layout.
    pub fn shared_tensors(&self) -> &Arc<[Tensor]> {
        &self.shared_tensors
    }

    /// 128 bits over the description: equal for equal layouts. Computed once.
    pub fn digest(&self) -> Result<u128> {
        if let Some(&digest) = self.digest.get() {
            return Ok(digest);
        }
        let text = postcard::to_stdvec(&self.spec)
            .map_err(|e| Error::internal(format!("a layout cannot be written: {e}")))?;
        Ok(*self.digest.get_or_init(|| xxh3_128(&text)))
    }

    /// By part and buffer, numbers that are equal for buffers of equal structure:
    /// tensors of the same rules, dtype size and shape in the same order.
    pub fn buffer_kinds(&self) -> &[Vec<u32>] {
        &self.buffer_kinds
    }

    pub fn parts(&self) -> &[Part] {
        &self.spec.parts
    }

    /// Explicitly described ranks, ascending.
    pub fn explicit(&self) -> &[RankViews] {
        &self.spec.explicit
    }

    /// The tensor with this name, or the one it is an alias of.
    pub fn find_tensor(&self, name: &str) -> Option<TensorIndex> {
        let name = self.resolve_alias(name);
        self.spec
            .tensors
            .binary_search_by(|t| t.name.as_str().cmp(name))
            .ok()
            .map(|i| TensorIndex(i as u32))
    }

    /// The tensor of this layout that means the same values as `tensor` of
    /// `other`: the one of its name, or else of one of its aliases there.
    pub fn find_counterpart(&self, other: &Layout, tensor: TensorIndex) -> Option<TensorIndex> {
        let name = &other.tensors().get(tensor.index())?.name;
        self.find_tensor(name).or_else(|| {
            let mut aliases = other.aliases_of(name);
            aliases.find_map(|alias| self.find_tensor(alias))
        })
    }

    /// The aliases that stand for `name`, sorted.
    pub fn aliases_of(&self, name: &str) -> impl Iterator<Item = &str> {
        let of = |i: u32| &self.spec.aliases[i as usize];
        let from = self
            .aliases_of
            .partition_point(|&i| of(i).1.as_str() < name);
        let count = self.aliases_of[from..].partition_point(|&i| of(i).1 == name);
        self.aliases_of[from..from + count]
            .iter()
            .map(move |&i| of(i).0.as_str())
    }

    /// The name that `name` stands for.
    pub fn resolve_alias<'a>(&'a self, name: &'a str) -> &'a str {
        let aliases = &self.spec.aliases;
        match aliases.binary_search_by(|(alias, _)| alias.as_str().cmp(name)) {
            Ok(i) => &aliases[i].1,
            Err(_) => name,
        }
    }

    /// Where `rank` sits, if it takes part.
    pub fn place(&self, rank: Rank) -> Option<Place<'_>> {
        let (part, position) = self.index.find(rank)?;
        Some(match self.spec.parts.get(part) {
            Some(p) => Place::Part(p, p.seat(part as u16, position)),
            None => Place::Explicit(&self.spec.explicit[position as usize]),
        })
    }

    /// The part of `rank`; none for ranks described view by view.
    pub fn part_of(&self, rank: Rank) -> Option<u16> {
        let (part, _) = self.index.find(rank)?;
        (part < self.spec.parts.len()).then_some(part as u16)
    }

    /// The mesh position of `rank` in part `part`.
    pub fn position(&self, part: usize, rank: Rank) -> Option<u32> {
        let (found, position) = self.index.find(rank)?;
        (found == part && part < self.spec.parts.len()).then_some(position)
    }

    /// Every rank of the layout, ascending.
    pub fn ranks(&self) -> Vec<Rank> {
        self.index.ranks().collect()
    }

    /// The same as ranges, apart from each other: as many as the layout has
    /// gaps, not as it has ranks.
    pub fn rank_ranges(&self) -> Vec<Range<u32>> {
        self.index.ranges()
    }

    /// The lowest rank of the layout.
    pub fn lowest_rank(&self) -> Option<Rank> {
        self.index.ranks().next()
    }

    /// Number of ranks.
    pub fn rank_count(&self) -> u32 {
        let symbolic: u32 = self.spec.parts.iter().map(|p| p.ranks.count()).sum();
        symbolic + self.spec.explicit.len() as u32
    }

    /// Number of copies (replicas).
    pub fn copy_count(&self) -> u32 {
        self.copy_base.last().copied().unwrap_or(0) + self.explicit_copies.len() as u32
    }

    /// The copy that `rank` belongs to.
    pub fn copy_of(&self, rank: Rank) -> Option<u32> {
        match self.place(rank)? {
            Place::Part(part, seat) => {
                Some(self.copy_base[seat.part as usize] + part.copy_at(seat.position))
            }
            Place::Explicit(r) => {
                let i = self.explicit_copies.binary_search(&r.copy).ok()?;
                Some(self.copy_base[self.spec.parts.len()] + i as u32)
            }
        }
    }

    /// Every view of one rank, by tensor.
    pub fn views(&self, rank: Rank) -> Vec<View<BufferKey>> {
        match self.place(rank) {
            None => Vec::new(),
            Some(Place::Explicit(r)) => r.views.iter().map(explicit_view).collect(),
            Some(Place::Part(part, seat)) => part
                .placements
                .iter()
                .flat_map(|p| part.views(p, &seat, &self.spec.tensors))
                .map(|v| symbolic_view(v, seat.part))
                .collect(),
        }
    }

    /// Name, size and memory kind of a buffer of `rank`.
    pub fn buffer(&self, rank: Rank, key: BufferKey) -> Option<NamedBuffer> {
        match (self.place(rank)?, key) {
            (Place::Explicit(r), BufferKey::Explicit { buffer }) => {
                r.buffers.get(buffer as usize).cloned()
            }
            (Place::Part(part, seat), BufferKey::Part { buffer, .. }) => {
                let b = part.buffers.get(buffer.buffer as usize)?;
                Some(NamedBuffer {
                    name: part.buffer_name(buffer),
                    bytes: part.buffer_bytes(buffer.buffer, &seat, &self.spec.tensors),
                    memory: b.memory,
                })
            }
            _ => None,
        }
    }

    /// Every buffer that a rank must bind, by name.
    pub fn buffers(&self, rank: Rank) -> Vec<NamedBuffer> {
        let mut keys: Vec<BufferKey> = self.views(rank).iter().map(|v| v.buffer).collect();
        keys.sort_unstable();
        keys.dedup();
        let mut out: Vec<NamedBuffer> = keys
            .into_iter()
            .filter_map(|k| self.buffer(rank, k))
            .collect();
        out.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        out
    }
}

fn explicit_view(v: &View) -> View<BufferKey> {
    View {
        tensor: v.tensor,
        bounds: v.bounds.clone(),
        buffer: BufferKey::Explicit { buffer: v.buffer },
        offset: v.offset,
        strides: v.strides.clone(),
        dtype: v.dtype,
        conversion: v.conversion.clone(),
    }
}

fn symbolic_view(v: View<LocalBuffer>, part: u16) -> View<BufferKey> {
    View {
        tensor: v.tensor,
        bounds: v.bounds,
        buffer: BufferKey::Part {
            part,
            buffer: v.buffer,
        },
        offset: v.offset,
        strides: v.strides,
        dtype: v.dtype,
        conversion: v.conversion,
    }
}
