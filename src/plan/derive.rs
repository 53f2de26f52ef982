//! The program of one rank, from layouts and decision alone.
//!
//! Nothing is exchanged and no other rank is expanded. The rank walks its own
//! tensors, twice: as needer over the boxes it wants, as holder over the boxes
//! it has. Both walks see the same cells in the same order:
//!
//! ```text
//!   own boxes ─► cells ─► items on a line per (holders, needers) ─► shares
//!             ─► stream per peer ─► buckets ─► messages of pieces
//! ```

use super::cells::{HolderSet, Splitter, StagedSlice};
use super::decision::{Decision, SourceRule};
use super::line::{Line, Share};
use super::piece::{contiguous_from, elements_from, flat_boxes, loops_of};
use super::program::*;
use super::ranks::RankSet;
use super::tables::{ExplicitBox, PlanTensor, Tables, placement};
use super::topology::Topology;
use crate::error::{Error, Result};
use crate::layout::dtype::Dtype;
use crate::layout::mesh::MeshSlice;
use crate::layout::placement::{LocalBuffer, Padding, Part, Seat, for_each_box};
use crate::layout::tensor::{Dims, IndexBox, Span, Tensor, TensorIndex};
use crate::layout::view::Strides;
use crate::layout::{BufferKey, Layout, Place};
use crate::rank::Rank;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3;

/// Alignment of items in packed messages and of cuts inside large items.
const ALIGN_BYTES: u64 = 16;
/// Items below this size are cut at any whole granule.
const ALIGNED_ITEM_BYTES_MIN: u64 = 1024;
/// Alignment of messages in staging.
const STAGING_ALIGN_BYTES: u64 = 256;

/// What a program is derived from.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    pub source: &'a Layout,
    pub destination: &'a Layout,
    pub tables: &'a Tables,
    pub tensors: &'a Arc<[Tensor]>,
    pub decision: &'a Decision,
    #[expect(dead_code, reason = "routes will ask which ranks share a domain")]
    pub topology: &'a Topology,
}

/// Where a cell lies in our memory.
#[derive(Clone, Debug)]
struct OwnView {
    /// Lowest corner of the view's box.
    lo: Dims,
    offset: u64,
    strides: Strides,
    dtype: Dtype,
    /// Local start along a split axis: each index is a buffer of its own.
    split: Option<u32>,
    /// Buffer of an explicit view; symbolic ones come from the placement.
    explicit: Option<u32>,
}

/// The other end's strides, as far as message lists depend on them.
#[derive(Clone, Debug)]
struct PeerView {
    strides: Strides,
    dtype: Dtype,
}

/// A cell of one class, seen from this rank.
#[derive(Clone, Debug)]
struct Cell {
    bounds: IndexBox,
    bytes: u64,
    /// No cut falls inside this many wire bytes.
    unit: u64,
    wire: Dtype,
    own: OwnView,
    holders: HolderSet,
    needers: Needers,
    /// Strides at the other end, per holder slice (when receiving) or the one
    /// needer (when sending); empty means look it up by rank.
    peers: SmallVec<[PeerView; 1]>,
}

#[derive(Clone, Debug)]
enum Needers {
    Slice(StagedSlice),
    Listed(u32),
}

/// One cell of one tensor on its line.
struct Item {
    tensor: u32,
    group: u32,
    template: u32,
    cell: u32,
    /// Buffer of the placement on our side.
    buffer: u32,
    position: u64,
}

/// All items of one (holder set, needer set).
struct Group {
    holders: RankSet,
    needers: RankSet,
    /// Which holder or needer we are; `None` when receiving: we hold it too.
    own: Option<u64>,
    /// All needers, those that hold it too included.
    needer_count: u64,
    bytes: u64,
    items: Vec<u32>,
}

/// A range of an item that goes to or comes from one peer.
#[derive(Clone, Copy)]
struct Raw {
    peer: Rank,
    item: u32,
    from: u64,
    to: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum TemplateKey {
    /// Class, own placement, needing placement (senders).
    Class(u32, u32, u32),
    /// Tensor, own view, demand.
    Tensor(u32, u32, u32),
}

/// One walk over own tensors, as needer or as holder.
struct Walk<'a> {
    inputs: Inputs<'a>,
    rank: Rank,
    direction: Direction,
    templates: Vec<Vec<Cell>>,
    template_of: FxHashMap<TemplateKey, u32>,
    groups: Vec<Group>,
    group_of: FxHashMap<GroupKey, u32>,
    /// Groups per cell of a template at given stages.
    staged: FxHashMap<StagedCell, Arc<[u32]>>,
    items: Vec<Item>,
}

/// A template's number, and the stages it is looked at for.
type StagedCell = (u32, SmallVec<[u32; 4]>);

#[derive(PartialEq, Eq, Hash)]
struct GroupKey {
    holders: SmallVec<[MeshSlice; 1]>,
    listed: Vec<Rank>,
    needers: NeederKey,
}

#[derive(PartialEq, Eq, Hash)]
enum NeederKey {
    Slice(MeshSlice),
    Listed(Vec<Rank>),
}

/// Derives and verifies the program of `rank`.
pub fn derive(inputs: Inputs<'_>, rank: Rank) -> Result<Program> {
    let mut builder = Builder::new(inputs, rank);
    let mut receive = Walk::new(inputs, rank, Direction::Receive);
    receive.collect_needs()?;
    let mut raw = Vec::new();
    let local = receive.shares(&mut raw)?;
    receive.verify(&raw, &local)?;
    builder.add_locals(&receive, &local)?;
    builder.add_messages(&receive, &mut raw)?;

    let mut send = Walk::new(inputs, rank, Direction::Send);
    send.collect_holdings()?;
    raw.clear();
    send.shares(&mut raw)?;
    builder.add_messages(&send, &mut raw)?;
    builder.add_fills();
    Ok(builder.finish())
}

/// The digest items of `rank`: `(source, destination)`, with the program whose
/// buffers and loops their regions name.
pub fn digests(inputs: Inputs<'_>, program: &mut Program, alike_copies: u64) -> Result<()> {
    let rank = program.rank;
    let mut builder = Builder::resume(inputs, std::mem::take(program));
    let mut send = Walk::new(inputs, rank, Direction::Send);
    send.collect_holdings()?;
    builder.add_source_digests(&send, alike_copies);
    let mut receive = Walk::new(inputs, rank, Direction::Receive);
    receive.collect_needs()?;
    builder.add_destination_digests(&receive);
    *program = builder.program;
    Ok(())
}

impl<'a> Walk<'a> {
    fn new(inputs: Inputs<'a>, rank: Rank, direction: Direction) -> Walk<'a> {
        Walk {
            inputs,
            rank,
            direction,
            templates: Vec::new(),
            template_of: FxHashMap::default(),
            groups: Vec::new(),
            group_of: FxHashMap::default(),
            staged: FxHashMap::default(),
            items: Vec::new(),
        }
    }

    fn splitter(&self, tensor: &'a PlanTensor) -> Splitter<'a> {
        Splitter {
            source: self.inputs.source,
            destination: self.inputs.destination,
            tensor,
        }
    }

    /// Items for every box this rank needs, in order.
    fn collect_needs(&mut self) -> Result<()> {
        let inputs = self.inputs;
        match inputs.destination.place(self.rank) {
            None => Ok(()),
            Some(Place::Part(part, seat)) => {
                for (t, tensor) in inputs.tables.tensors.iter().enumerate() {
                    for (j, r) in tensor.needers.iter().enumerate() {
                        let p = &part.placements[r.placement as usize];
                        if r.part == seat.part && part.is_on_stage(p, &seat) {
                            self.need_symbolic(t as u32, j as u32, part, &seat)?;
                        }
                    }
                }
                Ok(())
            }
            Some(Place::Explicit(_)) => {
                for (t, tensor) in inputs.tables.tensors.iter().enumerate() {
                    for (j, e) in tensor.explicit_needers.iter().enumerate() {
                        if let Some(view) = view_of(e, self.rank) {
                            self.need_listed(t as u32, j as u32, e, view)?;
                        }
                    }
                }
                Ok(())
            }
        }
    }

    fn need_symbolic(&mut self, t: u32, j: u32, part: &Part, seat: &Seat) -> Result<()> {
        let tensor = &self.inputs.tables.tensors[t as usize];
        let p = &part.placements[tensor.needers[j as usize].placement as usize];
        let key = if tensor.explicit_holders.is_empty() {
            TemplateKey::Class(tensor.class, j, 0)
        } else {
            TemplateKey::Tensor(t, j, 0)
        };
        let template = match self.template_of.get(&key) {
            Some(&id) => id,
            None => {
                let mut cells = Vec::new();
                for (bounds, own) in own_views(part, p, seat, self.inputs.destination.tensors())? {
                    for c in self.splitter(tensor).cells(&bounds, None) {
                        let needers = self.splitter(tensor).needers(j as usize, &c);
                        cells.push(self.cell(tensor, c, own.clone(), Needers::Slice(needers))?);
                    }
                }
                self.add_template(key, cells)
            }
        };
        self.add_items(t, template, p.buffer)
    }

    fn need_listed(&mut self, t: u32, j: u32, e: &ExplicitBox, view: u32) -> Result<()> {
        let tensor = &self.inputs.tables.tensors[t as usize];
        let own = explicit_own(self.inputs.destination, self.rank, view)?;
        let mut cells = Vec::new();
        for c in self.splitter(tensor).cells(&e.bounds, None) {
            cells.push(self.cell(tensor, c, own.clone(), Needers::Listed(j))?);
        }
        let template = self.add_template(TemplateKey::Tensor(t, u32::MAX, j), cells);
        self.add_items(t, template, 0)
    }

    /// Items for every box this rank holds and somebody needs, in order.
    fn collect_holdings(&mut self) -> Result<()> {
        let inputs = self.inputs;
        let Some(place) = inputs.source.place(self.rank) else {
            return Ok(());
        };
        for (t, tensor) in inputs.tables.tensors.iter().enumerate() {
            let demands = tensor.needers.len() + tensor.explicit_needers.len();
            match &place {
                Place::Part(part, seat) => {
                    // Where two placements of one rank hold a cell, the first
                    // one sends it.
                    let mut earlier: SmallVec<[u32; 2]> = SmallVec::new();
                    for (k, r) in tensor.holders.iter().enumerate() {
                        let p = &part.placements[r.placement as usize];
                        if r.part != seat.part || !part.is_on_stage(p, seat) {
                            continue;
                        }
                        for j in 0..demands {
                            self.hold_symbolic(t as u32, k as u32, j, &earlier, part, seat)?;
                        }
                        earlier.push(k as u32);
                    }
                }
                Place::Explicit(_) => {
                    let views: SmallVec<[(usize, u32); 4]> = tensor
                        .explicit_holders
                        .iter()
                        .enumerate()
                        .filter_map(|(k, e)| view_of(e, self.rank).map(|v| (k, v)))
                        .collect();
                    for j in 0..demands {
                        self.hold_listed(t as u32, j, &views)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn hold_symbolic(
        &mut self,
        t: u32,
        k: u32,
        j: usize,
        earlier: &[u32],
        part: &Part,
        seat: &Seat,
    ) -> Result<()> {
        let tensor = &self.inputs.tables.tensors[t as usize];
        let p = &part.placements[tensor.holders[k as usize].placement as usize];
        let is_regular = tensor.explicit_holders.is_empty() && earlier.is_empty();
        let key = if is_regular && j < tensor.needers.len() {
            TemplateKey::Class(tensor.class, k, j as u32)
        } else {
            TemplateKey::Tensor(t, k, j as u32)
        };
        if let Some(&id) = self.template_of.get(&key) {
            return self.add_items(t, id, p.buffer);
        }
        let mut covered = Vec::new();
        for &e in earlier {
            let q = &part.placements[tensor.holders[e as usize].placement as usize];
            let views = own_views(part, q, seat, self.inputs.source.tensors())?;
            covered.extend(views.into_iter().map(|v| v.0));
        }
        let mut cells = Vec::new();
        for (bounds, own) in own_views(part, p, seat, self.inputs.source.tensors())? {
            self.held_cells(tensor, j, &bounds, &own, &covered, &mut cells)?;
        }
        let id = self.add_template(key, cells);
        self.add_items(t, id, p.buffer)
    }

    fn hold_listed(&mut self, t: u32, j: usize, views: &[(usize, u32)]) -> Result<()> {
        let tensor = &self.inputs.tables.tensors[t as usize];
        let mut covered = Vec::new();
        let mut cells = Vec::new();
        for &(k, view) in views {
            let bounds = &tensor.explicit_holders[k].bounds;
            let own = explicit_own(self.inputs.source, self.rank, view)?;
            self.held_cells(tensor, j, bounds, &own, &covered, &mut cells)?;
            covered.push(bounds.clone());
        }
        let id = self.add_template(TemplateKey::Tensor(t, u32::MAX, j as u32), cells);
        self.add_items(t, id, 0)
    }

    /// The cells of demand `j` inside a box we hold, less what is `covered`.
    fn held_cells(
        &self,
        tensor: &'a PlanTensor,
        j: usize,
        held: &IndexBox,
        own: &OwnView,
        covered: &[IndexBox],
        out: &mut Vec<Cell>,
    ) -> Result<()> {
        let s = self.splitter(tensor);
        let boxes = if j >= tensor.needers.len() {
            let e = &tensor.explicit_needers[j - tensor.needers.len()];
            s.cells(&e.bounds, Some(held))
        } else if tensor.explicit_holders.is_empty() {
            s.grid(held, Some(j))
        } else {
            let needed = s.needed_boxes(j, held);
            needed.iter().flat_map(|d| s.cells(d, Some(held))).collect()
        };
        for c in boxes {
            if covered.iter().any(|b| b.contains(&c)) {
                continue;
            }
            let needers = match j.checked_sub(tensor.needers.len()) {
                None => Needers::Slice(s.needers(j, &c)),
                Some(listed) => Needers::Listed(listed as u32),
            };
            out.push(self.cell(tensor, c, own.clone(), needers)?);
        }
        Ok(())
    }

    fn cell(
        &self,
        tensor: &'a PlanTensor,
        bounds: IndexBox,
        own: OwnView,
        needers: Needers,
    ) -> Result<Cell> {
        let s = self.splitter(tensor);
        let holders = s.holders(&bounds);
        let there = self.needer_view(tensor, &needers)?;
        let wire = Dtype::wire(tensor.source_dtype, there.dtype);
        if !tensor.source_dtype.converts_to(there.dtype) {
            return Err(Error::layout(format!(
                "tensor \"{}\" is {} on the source and {} on the destination; \
                 only f32, f16 and bf16 convert into each other",
                self.name(tensor),
                tensor.source_dtype,
                there.dtype
            )));
        }
        let peers = match self.direction {
            Direction::Send => [there].into_iter().collect(),
            Direction::Receive => self.holder_views(tensor, &holders)?,
        };
        let bytes = bounds.elements() * wire.bytes();
        Ok(Cell {
            unit: cut_unit(&bounds, &tensor.granule, wire, bytes),
            bounds,
            bytes,
            wire,
            own,
            holders,
            needers,
            peers,
        })
    }

    fn name(&self, tensor: &PlanTensor) -> &str {
        &self.inputs.destination.tensors()[tensor.destination.index()].name
    }

    /// How the needers of a demand store it: alike on all of a slice.
    fn needer_view(&self, tensor: &PlanTensor, needers: &Needers) -> Result<PeerView> {
        let layout = self.inputs.destination;
        match needers {
            Needers::Slice(s) => {
                let (part, p) = placement(layout, tensor.needers[s.placement as usize]);
                Ok(slice_view(layout, part, p, &s.slice))
            }
            Needers::Listed(j) => {
                let e = &tensor.explicit_needers[*j as usize];
                let (rank, view) = e.ranks[0];
                let own = explicit_own(layout, rank, view)?;
                Ok(PeerView {
                    strides: own.strides,
                    dtype: own.dtype,
                })
            }
        }
    }

    fn holder_views(
        &self,
        tensor: &PlanTensor,
        holders: &HolderSet,
    ) -> Result<SmallVec<[PeerView; 1]>> {
        let layout = self.inputs.source;
        Ok(holders
            .slices
            .iter()
            .map(|s| {
                let (part, p) = placement(layout, tensor.holders[s.placement as usize]);
                slice_view(layout, part, p, &s.slice)
            })
            .collect())
    }

    fn add_template(&mut self, key: TemplateKey, mut cells: Vec<Cell>) -> u32 {
        cells.sort_by(|a, b| a.bounds.cmp(&b.bounds));
        let id = self.templates.len() as u32;
        self.templates.push(cells);
        self.template_of.insert(key, id);
        id
    }

    /// Puts one tensor's cells on their lines.
    fn add_items(&mut self, t: u32, template: u32, buffer: u32) -> Result<()> {
        if self.templates[template as usize].is_empty() {
            return Ok(());
        }
        let groups = self.groups_of(t, template)?;
        for (c, &g) in groups.iter().enumerate() {
            let bytes = self.templates[template as usize][c].bytes;
            let group = &mut self.groups[g as usize];
            group.items.push(self.items.len() as u32);
            self.items.push(Item {
                tensor: t,
                group: g,
                template,
                cell: c as u32,
                buffer,
                position: group.bytes,
            });
            group.bytes = group
                .bytes
                .checked_add(bytes)
                .ok_or_else(|| Error::limit("the bytes on one line exceed 64 bits".to_string()))?;
        }
        Ok(())
    }

    /// The groups of a template's cells at the stages of tensor `t`.
    fn groups_of(&mut self, t: u32, template: u32) -> Result<Arc<[u32]>> {
        let tensor = &self.inputs.tables.tensors[t as usize];
        let stage = |layout: &Layout, r| placement(layout, r).1.stage.unwrap_or(u32::MAX);
        let mut stages: SmallVec<[u32; 4]> = SmallVec::new();
        stages.extend(tensor.holders.iter().map(|r| stage(self.inputs.source, *r)));
        stages.extend(
            tensor
                .needers
                .iter()
                .map(|r| stage(self.inputs.destination, *r)),
        );
        if let Some(g) = self.staged.get(&(template, stages.clone())) {
            return Ok(g.clone());
        }
        let count = self.templates[template as usize].len();
        let mut groups = Vec::with_capacity(count);
        for c in 0..count {
            groups.push(self.group(tensor, template, c)?);
        }
        let groups: Arc<[u32]> = groups.into();
        self.staged.insert((template, stages), groups.clone());
        Ok(groups)
    }

    fn group(&mut self, tensor: &PlanTensor, template: u32, c: usize) -> Result<u32> {
        let (source, destination) = (self.inputs.source, self.inputs.destination);
        let cell = &self.templates[template as usize][c];
        let key = GroupKey {
            holders: cell
                .holders
                .slices
                .iter()
                .map(|s| {
                    s.at(placement(source, tensor.holders[s.placement as usize])
                        .1
                        .stage)
                })
                .collect(),
            listed: cell.holders.listed.iter().map(|e| e.0).collect(),
            needers: match &cell.needers {
                Needers::Slice(s) => NeederKey::Slice(
                    s.at(placement(destination, tensor.needers[s.placement as usize])
                        .1
                        .stage),
                ),
                Needers::Listed(j) => NeederKey::Listed(
                    tensor.explicit_needers[*j as usize]
                        .ranks
                        .iter()
                        .map(|e| e.0)
                        .collect(),
                ),
            },
        };
        if let Some(&g) = self.group_of.get(&key) {
            return Ok(g);
        }
        let holders = RankSet::union(source, &key.holders, &key.listed);
        if holders.is_empty() {
            return Err(Error::layout(format!(
                "tensor \"{}\": box {} is needed and held by no source rank",
                self.name(tensor),
                cell.bounds
            )));
        }
        let needers = match &key.needers {
            NeederKey::Slice(s) => RankSet::union(destination, std::slice::from_ref(s), &[]),
            NeederKey::Listed(v) => RankSet::union(destination, &[], v),
        };
        let needer_count = needers.len();
        let needers = needers.less(destination, &holders, source);
        let own = match self.direction {
            Direction::Receive => needers.index_of(destination, self.rank),
            Direction::Send => holders.index_of(source, self.rank),
        };
        let id = self.groups.len() as u32;
        self.groups.push(Group {
            holders,
            needers,
            own,
            needer_count,
            bytes: 0,
            items: Vec::new(),
        });
        self.group_of.insert(key, id);
        Ok(id)
    }

    fn cell_of(&self, item: &Item) -> &Cell {
        &self.templates[item.template as usize][item.cell as usize]
    }

    /// Cuts every line; returns the items that are local.
    fn shares(&self, raw: &mut Vec<Raw>) -> Result<Vec<u32>> {
        let mut local = Vec::new();
        for group in &self.groups {
            let Some(own) = group.own else {
                local.extend(&group.items);
                continue;
            };
            if group.needers.is_empty() {
                continue;
            }
            match self.inputs.decision.source_rule {
                SourceRule::Wrap => self.wrap(group, own, raw),
                SourceRule::Rotate => self.rotate(group, own, raw),
            }
        }
        local.sort_unstable();
        Ok(local)
    }

    fn wrap(&self, group: &Group, own: u64, raw: &mut Vec<Raw>) {
        let line = Line {
            bytes: group.bytes,
            holders: group.holders.len(),
            needers: group.needers.len(),
        };
        let mut add = |share: Share| {
            let peer = match self.direction {
                Direction::Receive => group.holders.nth(self.inputs.source, share.holder),
                Direction::Send => group.needers.nth(self.inputs.destination, share.needer),
            };
            self.add_share(group, share, peer, raw);
        };
        match self.direction {
            Direction::Receive => line.shares_of_needer(own, &mut add),
            Direction::Send => line.shares_of_holder(own, &mut add),
        }
    }

    /// The items, whole or cut, of one share of the stream.
    fn add_share(&self, group: &Group, share: Share, peer: Rank, raw: &mut Vec<Raw>) {
        let first = group
            .items
            .partition_point(|&i| self.items[i as usize].position <= share.from)
            .saturating_sub(1);
        for &i in &group.items[first..] {
            let item = &self.items[i as usize];
            if item.position >= share.to {
                break;
            }
            let cell = self.cell_of(item);
            let round = |at: u64| {
                let inside = at.saturating_sub(item.position).min(cell.bytes);
                match inside == cell.bytes {
                    true => inside,
                    false => inside / cell.unit * cell.unit,
                }
            };
            let (from, to) = (round(share.from), round(share.to));
            if from < to {
                raw.push(Raw {
                    peer,
                    item: i,
                    from,
                    to,
                });
            }
        }
    }

    /// Whole items, the holder moving on by one with each item and needer.
    fn rotate(&self, group: &Group, own: u64, raw: &mut Vec<Raw>) {
        let (n, needers) = (group.holders.len(), group.needers.len());
        for (t, &i) in group.items.iter().enumerate() {
            let t = t as u64 % n;
            let to = self.cell_of(&self.items[i as usize]).bytes;
            let mut add = |peer| {
                raw.push(Raw {
                    peer,
                    item: i,
                    from: 0,
                    to,
                });
            };
            match self.direction {
                Direction::Receive => {
                    add(group.holders.nth(self.inputs.source, (own + t) % n));
                }
                Direction::Send => {
                    let mut g = (own + n - t) % n;
                    while g < needers {
                        add(group.needers.nth(self.inputs.destination, g));
                        g += n;
                    }
                }
            }
        }
    }

    /// Every needed byte comes exactly once: each item is tiled by its pieces,
    /// and the items tile the boxes of this rank.
    fn verify(&self, raw: &[Raw], local: &[u32]) -> Result<()> {
        let mut covered = vec![0u64; self.items.len()];
        for r in raw {
            covered[r.item as usize] += r.to - r.from;
        }
        for &i in local {
            covered[i as usize] += self.cell_of(&self.items[i as usize]).bytes;
        }
        for (item, &bytes) in self.items.iter().zip(&covered) {
            let cell = self.cell_of(item);
            if bytes != cell.bytes {
                return Err(Error::internal(format!(
                    "tensor \"{}\": box {} of rank {} would get {bytes} of {} bytes",
                    self.name(&self.inputs.tables.tensors[item.tensor as usize]),
                    cell.bounds,
                    self.rank,
                    cell.bytes
                )));
            }
        }
        Ok(())
    }
}

/// The view index of `rank` among the ranks of an explicit box.
fn view_of(e: &ExplicitBox, rank: Rank) -> Option<u32> {
    let i = e.ranks.binary_search_by_key(&rank, |x| x.0).ok()?;
    Some(e.ranks[i].1)
}

/// The boxes a placement gives this seat, each with where it lies.
fn own_views(
    part: &Part,
    p: &crate::layout::placement::Placement,
    seat: &Seat,
    tensors: &[Tensor],
) -> Result<Vec<(IndexBox, OwnView)>> {
    let rule = part.rule(p);
    if rule.split.is_some_and(|d| d != 0) {
        return Err(Error::new(
            crate::error::Status::Unsupported,
            format!(
                "tensor \"{}\": only axis 0 can be stored as one buffer per index",
                tensors[p.tensor.index()].name
            ),
        ));
    }
    let axes = part.local_axes(p, seat, tensors);
    let (offset, strides) = part.storage(p, seat, tensors);
    let dtype = rule.stored_dtype(&tensors[p.tensor.index()]);
    let mut out = Vec::new();
    for_each_box(&axes, |bounds, local| {
        let at: i64 = local
            .iter()
            .zip(&strides)
            .map(|(&l, &s)| l as i64 * s)
            .sum();
        out.push((
            bounds.clone(),
            OwnView {
                lo: bounds.spans().iter().map(|s| s.lo).collect(),
                offset: offset.wrapping_add_signed(at),
                strides: strides.clone(),
                dtype,
                split: rule.split.map(|d| local[d as usize] as u32),
                explicit: None,
            },
        ));
    });
    Ok(out)
}

fn explicit_own(layout: &Layout, rank: Rank, view: u32) -> Result<OwnView> {
    let explicit = layout.explicit();
    let r = explicit
        .binary_search_by_key(&rank, |r| r.rank)
        .map_err(|_| Error::internal(format!("rank {rank} has no views")))?;
    let v = &explicit[r].views[view as usize];
    Ok(OwnView {
        lo: v.bounds.spans().iter().map(|s| s.lo).collect(),
        offset: v.offset,
        strides: v.strides.clone(),
        dtype: v.dtype,
        split: None,
        explicit: Some(v.buffer),
    })
}

/// How a slice of ranks stores a placement: strides do not differ within it.
fn slice_view(
    layout: &Layout,
    part: &Part,
    p: &crate::layout::placement::Placement,
    slice: &MeshSlice,
) -> PeerView {
    let mesh = &part.meshes[slice.mesh as usize];
    let seat = part.seat(slice.part, slice.nth(mesh, 0));
    let rule = part.rule(p);
    PeerView {
        strides: part.storage(p, &seat, layout.tensors()).1,
        dtype: rule.stored_dtype(&layout.tensors()[p.tensor.index()]),
    }
}

/// Wire bytes that no cut may split: whole granules, and 16-byte steps where
/// the item is large enough.
fn cut_unit(bounds: &IndexBox, granule: &[u64], wire: Dtype, bytes: u64) -> u64 {
    let first = granule.iter().position(|&g| g > 1);
    let unit = match first {
        None => wire.bytes(),
        Some(d) => granule[d] * elements_from(bounds, d + 1) * wire.bytes(),
    };
    if bytes < ALIGNED_ITEM_BYTES_MIN {
        return unit;
    }
    let mut gcd = (unit, ALIGN_BYTES);
    while gcd.1 != 0 {
        gcd = (gcd.1, gcd.0 % gcd.1);
    }
    unit / gcd.0 * ALIGN_BYTES
}

/// Assembles the program.
struct Builder<'a> {
    inputs: Inputs<'a>,
    program: Program,
    slots: FxHashMap<BufferUse, BufferSlot>,
    loops: SmallVec<[Loop; 8]>,
}

impl<'a> Builder<'a> {
    fn new(inputs: Inputs<'a>, rank: Rank) -> Builder<'a> {
        Builder {
            inputs,
            program: Program {
                rank,
                buffers: Vec::new(),
                loops: Vec::new(),
                pieces: Vec::new(),
                messages: Vec::new(),
                locals: Vec::new(),
                fills: Vec::new(),
                steps: Vec::new(),
                tensors: inputs.tensors.clone(),
                digest_source: Vec::new(),
                digest_destination: Vec::new(),
                staging_bytes: 0,
                relay_bytes: 0,
                bytes_sent: 0,
                bytes_received: 0,
                bytes_local: 0,
                pair_balance: 0,
            },
            slots: FxHashMap::default(),
            loops: SmallVec::new(),
        }
    }

    /// Goes on with a finished program.
    fn resume(inputs: Inputs<'a>, program: Program) -> Builder<'a> {
        let slots = program.buffers.iter().enumerate();
        Builder {
            inputs,
            slots: slots.map(|(i, u)| (*u, BufferSlot(i as u32))).collect(),
            program,
            loops: SmallVec::new(),
        }
    }

    /// Every element counts at its lowest holder only, so that holders which
    /// have drifted apart are seen.
    fn add_source_digests(&mut self, walk: &Walk<'a>, alike_copies: u64) {
        let part = self.part_of(Side::Source);
        for item in &walk.items {
            let cell = walk.cell_of(item);
            let group = &walk.groups[item.group as usize];
            if group.own != Some(0) {
                continue;
            }
            let is_once = matches!(&cell.needers, Needers::Slice(s) if s.placement == 0)
                || matches!(cell.needers, Needers::Listed(_));
            for b in split_boxes(&cell.bounds, cell.own.split.is_some()) {
                let region = self.region(Side::Source, part, item.buffer, &cell.own, &b);
                self.program.digest_source.push(DigestItem {
                    tensor: TensorIndex(item.tensor),
                    bounds: b,
                    region,
                    dtype: cell.peers[0].dtype,
                    is_once,
                    weight: group.needer_count / alike_copies,
                });
            }
        }
    }

    fn add_destination_digests(&mut self, walk: &Walk<'a>) {
        let part = self.part_of(Side::Destination);
        for item in &walk.items {
            let cell = walk.cell_of(item);
            for b in split_boxes(&cell.bounds, cell.own.split.is_some()) {
                let region = self.region(Side::Destination, part, item.buffer, &cell.own, &b);
                self.program.digest_destination.push(DigestItem {
                    tensor: TensorIndex(item.tensor),
                    bounds: b,
                    region,
                    dtype: cell.own.dtype,
                    is_once: false,
                    weight: 1,
                });
            }
        }
    }

    fn slot(&mut self, side: Side, key: BufferKey) -> BufferSlot {
        let buffers = &mut self.program.buffers;
        *self
            .slots
            .entry(BufferUse { side, key })
            .or_insert_with_key(|u| {
                buffers.push(*u);
                BufferSlot(buffers.len() as u32 - 1)
            })
    }

    /// The region of `bounds` in an own view. `bounds` spans one index of a
    /// split axis.
    fn region(
        &mut self,
        side: Side,
        part: u16,
        buffer: u32,
        own: &OwnView,
        bounds: &IndexBox,
    ) -> Region {
        let key = match own.explicit {
            Some(buffer) => BufferKey::Explicit { buffer },
            None => BufferKey::Part {
                part,
                buffer: LocalBuffer {
                    buffer,
                    split: own.split.map(|local| {
                        let global = bounds.0[0].lo;
                        (local + (global - own.lo[0]) as u32, global as u32)
                    }),
                },
            },
        };
        let slot = self.slot(side, key);
        let at: i64 = bounds
            .spans()
            .iter()
            .zip(&own.lo)
            .zip(&own.strides)
            .map(|((s, &lo), &stride)| (s.lo - lo) as i64 * stride)
            .sum();
        let element = own.dtype.bytes();
        let run = loops_of(bounds, &own.strides, element, &mut self.loops);
        let first = self.program.loops.len() as u32;
        self.program.loops.extend_from_slice(&self.loops);
        Region {
            slot,
            offset: own.offset.wrapping_add_signed(at),
            dtype: own.dtype,
            run,
            loops: (first, self.program.loops.len() as u32),
        }
    }

    /// Copies within the rank: all of them belong to the first step.
    fn add_locals(&mut self, walk: &Walk<'a>, local: &[u32]) -> Result<()> {
        let inputs = self.inputs;
        for &i in local {
            let item = &walk.items[i as usize];
            let cell = walk.cell_of(item);
            let tensor = &inputs.tables.tensors[item.tensor as usize];
            let (own, part, buffer) =
                holding_view(inputs.source, self.program.rank, tensor, &cell.bounds)?;
            let here = self.part_of(Side::Destination);
            for b in split_boxes(
                &cell.bounds,
                own.split.is_some() || cell.own.split.is_some(),
            ) {
                let source = self.region(Side::Source, part, buffer, &own, &b);
                let destination = self.region(Side::Destination, here, item.buffer, &cell.own, &b);
                let bytes = b.elements() * cell.own.dtype.bytes();
                self.program.bytes_local += bytes;
                self.program.locals.push(LocalCopy {
                    tensor: TensorIndex(item.tensor),
                    bounds: b,
                    source,
                    destination,
                    bytes,
                });
            }
        }
        Ok(())
    }

    fn part_of(&self, side: Side) -> u16 {
        let layout = match side {
            Side::Source => self.inputs.source,
            Side::Destination => self.inputs.destination,
        };
        match layout.place(self.program.rank) {
            Some(Place::Part(_, seat)) => seat.part,
            _ => 0,
        }
    }

    /// Streams per peer, cut into buckets, as messages.
    fn add_messages(&mut self, walk: &Walk<'a>, raw: &mut [Raw]) -> Result<()> {
        raw.sort_unstable_by_key(|r| (r.peer, r.item, r.from));
        let side = match walk.direction {
            Direction::Send => Side::Source,
            Direction::Receive => Side::Destination,
        };
        let part = self.part_of(side);
        let mut rest = &*raw;
        while let Some(first) = rest.first() {
            let n = rest.partition_point(|r| r.peer == first.peer);
            let (stream, after) = rest.split_at(n);
            self.add_stream(walk, side, part, first.peer, stream)?;
            rest = after;
        }
        Ok(())
    }

    fn add_stream(
        &mut self,
        walk: &Walk<'a>,
        side: Side,
        part: u16,
        peer: Rank,
        raws: &[Raw],
    ) -> Result<()> {
        let total: u64 = raws.iter().map(|r| r.to - r.from).sum();
        let buckets = u64::from(self.inputs.decision.bucket_count);
        let bound = |b: u64| (u128::from(b) * u128::from(total) / u128::from(buckets)) as u64;
        let mut stream = Stream::new(walk, side, part, peer, self.program.rank);
        let mut position = 0;
        for r in raws {
            let cell = walk.cell_of(&walk.items[r.item as usize]);
            stream.hash_piece(r);
            let mut from = r.from;
            while from < r.to {
                // Where this bucket ends inside the piece, on a whole unit.
                let end = bound(u64::from(stream.bucket) + 1);
                let inside = r.from + end.saturating_sub(position);
                let cut = match inside >= r.to {
                    true => r.to,
                    false => (inside / cell.unit * cell.unit).max(from),
                };
                self.add_range(&mut stream, r.item, from, cut);
                from = cut;
                if inside < r.to {
                    self.close_bucket(&mut stream);
                }
            }
            position += r.to - r.from;
            while u64::from(stream.bucket) + 1 < buckets
                && position >= bound(u64::from(stream.bucket) + 1)
            {
                self.close_bucket(&mut stream);
            }
        }
        self.close_bucket(&mut stream);
        let hash = stream.hash.digest128();
        let p = &mut self.program;
        match walk.direction {
            Direction::Send => {
                p.bytes_sent += total;
                p.pair_balance = p.pair_balance.wrapping_add(hash);
            }
            Direction::Receive => {
                p.bytes_received += total;
                p.pair_balance = p.pair_balance.wrapping_sub(hash);
            }
        }
        Ok(())
    }

    /// A byte range of an item: long runs become messages of their own, the
    /// rest joins the packed message of the bucket.
    fn add_range(&mut self, stream: &mut Stream<'_, 'a>, item: u32, from: u64, to: u64) {
        if from >= to {
            return;
        }
        let walk = stream.walk;
        let cell = walk.cell_of(&walk.items[item as usize]);
        let there = walk.peer_view(&walk.items[item as usize], stream.peer);
        let element = cell.wire.bytes();
        let direct_min = self.inputs.decision.direct_bytes_min;
        flat_boxes(&cell.bounds, from / element, to / element, &mut |b| {
            let first = run_axis(b, cell.wire, &cell.own.strides, cell.own.dtype).min(run_axis(
                b,
                cell.wire,
                &there.strides,
                there.dtype,
            ));
            let is_long = first <= b.0.len() && elements_from(b, first) * element >= direct_min;
            if !is_long {
                stream.packed.push((b.clone(), item));
                return;
            }
            each_run(b, first, &mut |run| {
                let start = self.program.pieces.len() as u32;
                self.add_pieces(stream, item, run, 0);
                self.add_message(stream, start, run.elements() * element);
            });
        });
    }

    /// Ends the current bucket of a stream: what was not long enough for a
    /// message of its own travels in one packed message.
    fn close_bucket(&mut self, stream: &mut Stream<'_, 'a>) {
        let start = self.program.pieces.len() as u32;
        let (mut at, mut end) = (0u64, 0);
        let packed = std::mem::take(&mut stream.packed);
        for (bounds, item) in &packed {
            let element = stream
                .walk
                .cell_of(&stream.walk.items[*item as usize])
                .wire
                .bytes();
            self.add_pieces(stream, *item, bounds, at);
            end = at + bounds.elements() * element;
            at = end.next_multiple_of(ALIGN_BYTES);
        }
        if end > 0 {
            self.add_message(stream, start, end);
        }
        stream.packed = packed;
        stream.packed.clear();
        stream.bucket += 1;
    }

    /// The pieces of a box, one unless our side stores it in several buffers.
    fn add_pieces(&mut self, stream: &Stream<'_, 'a>, item: u32, bounds: &IndexBox, at: u64) {
        let item = &stream.walk.items[item as usize];
        let cell = stream.walk.cell_of(item);
        let mut at = at;
        for b in split_boxes(bounds, cell.own.split.is_some()) {
            let region = self.region(stream.side, stream.part, item.buffer, &cell.own, &b);
            let bytes = b.elements() * cell.wire.bytes();
            self.program.pieces.push(Piece {
                tensor: TensorIndex(item.tensor),
                bounds: b,
                region,
                at,
                bytes,
                wire: cell.wire,
            });
            at += bytes;
        }
    }

    fn add_message(&mut self, stream: &mut Stream<'_, 'a>, start: u32, bytes: u64) {
        let p = &mut self.program;
        let pieces = &p.pieces[start as usize..];
        let is_direct = match pieces {
            [one] => one.region.dtype == one.wire && one.region.loops.0 == one.region.loops.1,
            _ => false,
        };
        stream.hash.update(&bytes.to_le_bytes());
        stream.hash.update(&stream.bucket.to_le_bytes());
        p.messages.push(Message {
            peer: stream.peer,
            direction: stream.walk.direction,
            step: stream.bucket,
            stage: 0,
            bucket: stream.bucket,
            bytes,
            pieces: (start, p.pieces.len() as u32),
            is_direct,
            staging: 0,
        });
    }

    /// Destination padding, where the layout asks for zeros.
    fn add_fills(&mut self) {
        let inputs = self.inputs;
        let Some(Place::Part(part, seat)) = inputs.destination.place(self.program.rank) else {
            return;
        };
        if part.padding != Padding::Zero {
            return;
        }
        let tensors = inputs.destination.tensors();
        for tensor in &inputs.tables.tensors {
            for r in tensor.needers.iter().filter(|r| r.part == seat.part) {
                let p = &part.placements[r.placement as usize];
                if part.rule(p).padded != 0 && part.is_on_stage(p, &seat) {
                    self.fill_padding(part, p, &seat, tensors);
                }
            }
        }
    }

    fn fill_padding(
        &mut self,
        part: &Part,
        p: &crate::layout::placement::Placement,
        seat: &Seat,
        tensors: &[Tensor],
    ) {
        let rule = part.rule(p);
        let axes = part.local_axes(p, seat, tensors);
        let (offset, strides) = part.storage(p, seat, tensors);
        for (d, axis) in axes.iter().enumerate() {
            if axis.extent <= axis.len() {
                continue;
            }
            // Used on the axes before, padding on this one, all on the rest.
            let slab = IndexBox(
                axes.iter()
                    .enumerate()
                    .map(|(e, a)| match e.cmp(&d) {
                        std::cmp::Ordering::Less => Span::new(0, a.len()),
                        std::cmp::Ordering::Equal => Span::new(a.len(), a.extent),
                        std::cmp::Ordering::Greater => Span::new(0, a.extent),
                    })
                    .collect(),
            );
            if slab.is_empty() {
                continue;
            }
            let own = OwnView {
                lo: axes.iter().map(|_| 0).collect(),
                offset,
                strides: strides.clone(),
                dtype: rule.stored_dtype(&tensors[p.tensor.index()]),
                split: None,
                explicit: None,
            };
            let region = self.region(Side::Destination, seat.part, p.buffer, &own, &slab);
            self.program.fills.push(region);
        }
    }

    /// Orders messages by step, lays out staging, and closes the program.
    fn finish(mut self) -> Program {
        let p = &mut self.program;
        p.messages.sort_by_key(|m| (m.step, m.peer, m.direction));
        let mut half = 0;
        let mut first = 0u32;
        for step in 0..self.inputs.decision.bucket_count {
            let n = p.messages[first as usize..].partition_point(|m| m.step == step) as u32;
            let mut at = 0;
            for m in &mut p.messages[first as usize..(first + n) as usize] {
                if !m.is_direct {
                    m.staging = at;
                    at = (at + m.bytes).next_multiple_of(STAGING_ALIGN_BYTES);
                }
            }
            half = half.max(at);
            p.steps.push(Step {
                messages: (first, first + n),
                locals: match step {
                    0 => (0, p.locals.len() as u32),
                    _ => (0, 0),
                },
                staging_bytes: at,
            });
            first += n;
        }
        // Two steps are in flight: odd ones use the second half.
        for m in &mut p.messages {
            if !m.is_direct && m.step % 2 == 1 {
                m.staging += half;
            }
        }
        p.staging_bytes = half * u64::from(self.inputs.decision.bucket_count.min(2));
        self.program
    }
}

/// One pair's stream while it is cut into messages.
struct Stream<'w, 'a> {
    walk: &'w Walk<'a>,
    side: Side,
    part: u16,
    peer: Rank,
    bucket: u32,
    packed: Vec<(IndexBox, u32)>,
    /// What both ends must agree on.
    hash: Xxh3,
}

impl<'w, 'a> Stream<'w, 'a> {
    fn new(walk: &'w Walk<'a>, side: Side, part: u16, peer: Rank, own: Rank) -> Stream<'w, 'a> {
        let mut hash = Xxh3::new();
        let (from, to) = match walk.direction {
            Direction::Send => (own, peer),
            Direction::Receive => (peer, own),
        };
        hash.update(&from.0.to_le_bytes());
        hash.update(&to.0.to_le_bytes());
        Stream {
            walk,
            side,
            part,
            peer,
            bucket: 0,
            packed: Vec::new(),
            hash,
        }
    }

    fn hash_piece(&mut self, r: &Raw) {
        let item = &self.walk.items[r.item as usize];
        let cell = self.walk.cell_of(item);
        self.hash.update(&item.tensor.to_le_bytes());
        self.hash.update(&r.from.to_le_bytes());
        self.hash.update(&r.to.to_le_bytes());
        for s in cell.bounds.spans() {
            self.hash.update(&s.lo.to_le_bytes());
            self.hash.update(&s.hi.to_le_bytes());
        }
    }
}

impl Walk<'_> {
    /// How the peer of a piece stores it.
    fn peer_view(&self, item: &Item, peer: Rank) -> PeerView {
        let cell = self.cell_of(item);
        if let [one] = cell.peers.as_slice()
            && (cell.holders.listed.is_empty() || self.direction == Direction::Send)
        {
            return one.clone();
        }
        // Several kinds of holders: the peer's own first view tells.
        let tensor = &self.inputs.tables.tensors[item.tensor as usize];
        match holding_view(self.inputs.source, peer, tensor, &cell.bounds) {
            Ok((own, _, _)) => PeerView {
                strides: own.strides,
                dtype: own.dtype,
            },
            Err(_) => cell.peers[0].clone(),
        }
    }
}

/// The first view of source rank `rank` that holds `bounds`: where it lies,
/// and the part and buffer of its placement.
fn holding_view(
    source: &Layout,
    rank: Rank,
    tensor: &PlanTensor,
    bounds: &IndexBox,
) -> Result<(OwnView, u16, u32)> {
    match source.place(rank) {
        Some(Place::Part(part, seat)) => {
            for r in tensor.holders.iter().filter(|r| r.part == seat.part) {
                let p = &part.placements[r.placement as usize];
                if !part.is_on_stage(p, &seat) {
                    continue;
                }
                for (b, own) in own_views(part, p, &seat, source.tensors())? {
                    if b.contains(bounds) {
                        return Ok((own, seat.part, p.buffer));
                    }
                }
            }
        }
        Some(Place::Explicit(_)) => {
            for e in &tensor.explicit_holders {
                if let (true, Some(view)) = (e.bounds.contains(bounds), view_of(e, rank)) {
                    return Ok((explicit_own(source, rank, view)?, 0, 0));
                }
            }
        }
        None => {}
    }
    Err(Error::internal(format!(
        "rank {rank} was to send box {bounds} and holds no view of it"
    )))
}

/// The axis from which on a box is one run in memory and on the wire; past the
/// last axis where a conversion stands between.
fn run_axis(bounds: &IndexBox, wire: Dtype, strides: &[i64], dtype: Dtype) -> usize {
    match dtype == wire {
        true => contiguous_from(bounds, strides, dtype.bytes()),
        false => bounds.0.len() + 1,
    }
}

/// Calls `f` with the contiguous runs of a box: one index on every axis
/// before `first`, all of the rest.
fn each_run(bounds: &IndexBox, first: usize, f: &mut impl FnMut(&IndexBox)) {
    let mut run = bounds.clone();
    for d in 0..first {
        run.0[d].hi = run.0[d].lo + 1;
    }
    loop {
        f(&run);
        let mut d = first;
        loop {
            if d == 0 {
                return;
            }
            d -= 1;
            if run.0[d].hi < bounds.0[d].hi {
                run.0[d] = Span::new(run.0[d].lo + 1, run.0[d].hi + 1);
                break;
            }
            run.0[d] = Span::new(bounds.0[d].lo, bounds.0[d].lo + 1);
        }
    }
}

/// The box itself, or one box per index of axis 0 where that axis is split.
fn split_boxes(bounds: &IndexBox, is_split: bool) -> SmallVec<[IndexBox; 1]> {
    if !is_split {
        return std::iter::once(bounds.clone()).collect();
    }
    (bounds.0[0].lo..bounds.0[0].hi)
        .map(|i| {
            let mut b = bounds.clone();
            b.0[0] = Span::new(i, i + 1);
            b
        })
        .collect()
}
