//! One walk over the tensors of a rank, as needer or as holder.
//!
//! A walk finds the cells of every box and puts them on their lines: all items
//! that one set of holders has and one set of needers wants are one *group*,
//! whose items lie end to end as one stream. Every rank that takes part in a
//! group sees the same items at the same positions.

use super::Inputs;
use super::cell::{Cell, Needers};
use super::group::{Group, GroupKey};
use super::view::{OwnView, explicit_own, own_views, view_of};
use crate::error::{Error, Result};
use crate::layout::Place;
use crate::layout::placement::{Part, Placement, Seat};
use crate::layout::tensor::{IndexBox, TensorIndex};
use crate::layout::view::RankViews;
use crate::plan::boxes::{ExplicitBox, ExplicitBoxes};
use crate::plan::cells::Splitter;
use crate::plan::program::{Direction, Side};
use crate::plan::sorting;
use crate::plan::tables::{Glance, PlanTensor, Tables, placement};
use crate::rank::Rank;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

/// One cell of one tensor on its line.
pub struct Item {
    pub tensor: u32,
    pub group: u32,
    /// Index of the cell.
    pub cell: u32,
    /// Buffer of the placement on our side, unless the rank is described view by
    /// view.
    pub buffer: u32,
    pub position: u64,
}

/// Class, own placement (0 for receivers), needing placement.
type PlacedClass = (u32, u32, u32);

/// What a walk has found of one tensor of a kind. As tensors of a kind are cut
/// and stored alike, in the same stages, it holds for the others too.
#[derive(Clone, Copy)]
struct Trace {
    /// Which of the tensor's placements on our side.
    own: u32,
    cell: u32,
    group: u32,
    /// Of the cell.
    bytes: u64,
}

/// One walk over own tensors, as needer or as holder. Ranks at alike places
/// share it: see [`Visit`](super::visit::Visit).
pub struct Walk<'a> {
    pub inputs: Inputs<'a>,
    /// For whom it was made.
    rank: Rank,
    pub direction: Direction,
    pub cells: Vec<Cell>,
    /// The cells of a class.
    cells_of: FxHashMap<PlacedClass, (u32, u32)>,
    pub groups: Vec<Group>,
    pub group_of: FxHashMap<GroupKey, u32>,
    /// Of all kinds, one after the other.
    traces: Vec<Trace>,
    /// Which of them are of a kind.
    traced: Vec<(u32, u32)>,
    pub items: Vec<Item>,
}

impl<'a> Walk<'a> {
    /// The walk over what `rank` needs, or over what it holds and somebody
    /// needs.
    pub fn over(inputs: Inputs<'a>, rank: Rank, direction: Direction) -> Result<Walk<'a>> {
        let mut walk = Walk::new(inputs, rank, direction)?;
        walk.make_room();
        walk.collect(0..inputs.tables.tensors.len() as u32)?;
        Ok(walk)
    }

    /// What `rank` needs of one tensor of each kind.
    pub fn over_kinds(inputs: Inputs<'a>, rank: Rank) -> Result<Walk<'a>> {
        let mut walk = Walk::new(inputs, rank, Direction::Receive)?;
        walk.collect(inputs.tables.kinds.iter().map(|k| k.first))?;
        Ok(walk)
    }

    /// One without items.
    fn new(inputs: Inputs<'a>, rank: Rank, direction: Direction) -> Result<Walk<'a>> {
        let layout = match direction {
            Direction::Receive => inputs.destination,
            Direction::Send => inputs.source,
        };
        let place = layout.place(rank);
        let mut walk = Walk {
            inputs,
            rank,
            direction,
            cells: Vec::new(),
            cells_of: FxHashMap::default(),
            groups: Vec::new(),
            group_of: FxHashMap::default(),
            traces: Vec::new(),
            traced: Vec::new(),
            items: Vec::new(),
        };
        if let Some(place) = &place {
            walk.find_kinds(place)?;
        }
        Ok(walk)
    }

    /// The side that it is over.
    pub fn side(&self) -> Side {
        match self.direction {
            Direction::Send => Side::Source,
            Direction::Receive => Side::Destination,
        }
    }

    pub fn splitter(&self, tensor: &'a PlanTensor) -> Splitter<'a> {
        Splitter {
            source: self.inputs.source,
            destination: self.inputs.destination,
            tensor,
        }
    }

    /// Finds of each kind what this rank needs, or holds for somebody.
    fn find_kinds(&mut self, place: &Place<'a>) -> Result<()> {
        let Tables { tensors, kinds, .. } = self.inputs.tables;
        self.traced.reserve(kinds.len());
        for kind in kinds {
            let tensor = &tensors[kind.first as usize];
            let first = self.traces.len() as u32;
            match self.direction {
                Direction::Receive => self.find_needs(tensor, place)?,
                Direction::Send => self.find_holdings(tensor, place)?,
            }
            self.put_in_order(first);
            self.traced.push((first, self.traces.len() as u32));
        }
        Ok(())
    }

    /// Room for the items of all tensors: a kind has as many of each as tensors.
    fn make_room(&mut self) {
        let mut counts = vec![0; self.groups.len()];
        for (kind, &(first, end)) in self.inputs.tables.kinds.iter().zip(&self.traced) {
            for trace in &self.traces[first as usize..end as usize] {
                counts[trace.group as usize] += kind.count as usize;
            }
        }
        self.items.reserve(counts.iter().sum());
        for (group, count) in self.groups.iter_mut().zip(counts) {
            group.items.reserve_exact(count);
        }
    }

    /// Puts the cells of some tensors on their lines, in order.
    fn collect(&mut self, tensors: impl Iterator<Item = u32>) -> Result<()> {
        if self.traces.is_empty() {
            return Ok(());
        }
        let Tables {
            tensors: all,
            glances,
            ..
        } = self.inputs.tables;
        let side = self.side();
        let (traced, traces) = (&self.traced[..], &self.traces[..]);
        let (groups, items) = (&mut self.groups[..], &mut self.items);
        for t in tensors {
            let Glance { kind, buffers } = glances[t as usize];
            let (first, end) = traced[kind as usize];
            for trace in &traces[first as usize..end as usize] {
                let group = &mut groups[trace.group as usize];
                group.items.push(items.len() as u32);
                items.push(Item {
                    tensor: t,
                    group: trace.group,
                    cell: trace.cell,
                    buffer: match trace.own {
                        0 => buffers[side as usize],
                        own => buffer_of(self.inputs, side, &all[t as usize], own),
                    },
                    position: group.bytes,
                });
                let bytes = group.bytes.checked_add(trace.bytes);
                group.bytes = bytes.ok_or_else(|| {
                    Error::limit("the bytes on one line exceed 64 bits".to_string())
                })?;
            }
        }
        Ok(())
    }

    /// Puts what was found of a kind in the order that needers have it in: two
    /// placements of a rank may hold cells of one demand by turns.
    fn put_in_order(&mut self, first: u32) {
        let cells = &self.cells;
        let cell = |t: &Trace| &cells[t.cell as usize];
        let order = |t: &Trace| (cell(t).needers.demand(), &cell(t).bounds);
        let traces = &mut self.traces[first as usize..];
        sorting::sort(traces, |a, b| order(a).cmp(&order(b)));
    }

    /// What this rank needs of the first tensor of a kind.
    fn find_needs(&mut self, tensor: &'a PlanTensor, place: &Place<'a>) -> Result<()> {
        match place {
            Place::Part(part, seat) => {
                for (j, r) in tensor.needers.iter().enumerate() {
                    let p = &part.placements[r.placement as usize];
                    if r.part == seat.part && part.is_on_stage(p, seat) {
                        self.need_symbolic(tensor, j as u32, part, seat)?;
                    }
                }
            }
            Place::Explicit(r) => {
                let boxes = &tensor.explicit_needers;
                for (j, view) in views_in(boxes, r, tensor.destination) {
                    self.need_listed(tensor, j as u32, &boxes[j], view)?;
                }
            }
        }
        Ok(())
    }

    fn need_symbolic(
        &mut self,
        tensor: &'a PlanTensor,
        j: u32,
        part: &Part,
        seat: &Seat,
    ) -> Result<()> {
        let p = &part.placements[tensor.needers[j as usize].placement as usize];
        let key = (tensor.class, 0, j);
        let is_regular = tensor.explicit_holders.is_empty();
        let known = self.cells_of.get(&key).filter(|_| is_regular);
        let cells = match known {
            Some(&cells) => cells,
            None => {
                let mut cells = Vec::new();
                for (bounds, own) in own_views(part, p, seat, self.inputs.destination.tensors())? {
                    for c in self.splitter(tensor).cells(&bounds, None)? {
                        let needers = self.splitter(tensor).needers(j as usize, &c);
                        cells.push(self.cell(tensor, c, own.clone(), Needers::Slice(needers))?);
                    }
                }
                let cells = self.add_cells(cells);
                if is_regular {
                    self.cells_of.insert(key, cells);
                }
                cells
            }
        };
        self.trace(tensor, j, cells)
    }

    fn need_listed(
        &mut self,
        tensor: &'a PlanTensor,
        j: u32,
        e: &ExplicitBox,
        view: u32,
    ) -> Result<()> {
        let own = explicit_own(self.inputs.destination, self.rank, view)?;
        let mut cells = Vec::new();
        for c in self.splitter(tensor).cells(&e.bounds, None)? {
            cells.push(self.cell(tensor, c, own.clone(), Needers::Listed(j))?);
        }
        let cells = self.add_cells(cells);
        self.trace(tensor, 0, cells)
    }

    /// What this rank holds of the first tensor of a kind and somebody needs.
    fn find_holdings(&mut self, tensor: &'a PlanTensor, place: &Place<'a>) -> Result<()> {
        match place {
            Place::Part(part, seat) => {
                // Where two placements of one rank hold a cell, the first one
                // sends it.
                let mut earlier: SmallVec<[u32; 2]> = SmallVec::new();
                for (k, r) in tensor.holders.iter().enumerate() {
                    let p = &part.placements[r.placement as usize];
                    if r.part != seat.part || !part.is_on_stage(p, seat) {
                        continue;
                    }
                    for j in self.demands_on(tensor, part, p, seat)? {
                        self.hold_symbolic(tensor, (k as u32, j), &earlier, part, seat)?;
                    }
                    earlier.push(k as u32);
                }
            }
            Place::Explicit(r) => {
                let boxes = &tensor.explicit_holders;
                let views = views_in(boxes, r, tensor.source);
                let held = views.iter().map(|&(k, _)| &boxes[k].bounds);
                for j in demands_near(tensor, held) {
                    self.hold_listed(tensor, j, &views)?;
                }
            }
        }
        Ok(())
    }

    /// The demands that may want some of what a placement holds here.
    fn demands_on(
        &self,
        tensor: &PlanTensor,
        part: &Part,
        p: &Placement,
        seat: &Seat,
    ) -> Result<Vec<usize>> {
        if tensor.explicit_needers.is_empty() {
            return Ok((0..tensor.needers.len()).collect());
        }
        let held = own_views(part, p, seat, self.inputs.source.tensors())?;
        Ok(demands_near(tensor, held.iter().map(|v| &v.0)))
    }

    fn hold_symbolic(
        &mut self,
        tensor: &'a PlanTensor,
        (k, j): (u32, usize),
        earlier: &[u32],
        part: &Part,
        seat: &Seat,
    ) -> Result<()> {
        let key = (tensor.class, k, j as u32);
        let is_regular =
            tensor.explicit_holders.is_empty() && earlier.is_empty() && j < tensor.needers.len();
        let known = self.cells_of.get(&key).filter(|_| is_regular);
        let cells = match known {
            Some(&cells) => cells,
            None => {
                let cells = self.placed_cells(tensor, (k, j), earlier, part, seat)?;
                let cells = self.add_cells(cells);
                if is_regular {
                    self.cells_of.insert(key, cells);
                }
                cells
            }
        };
        self.trace(tensor, k, cells)
    }

    /// The cells of demand `j` in what placement `k` holds here, less what
    /// `earlier` ones do.
    fn placed_cells(
        &self,
        tensor: &'a PlanTensor,
        (k, j): (u32, usize),
        earlier: &[u32],
        part: &Part,
        seat: &Seat,
    ) -> Result<Vec<Cell>> {
        let placed = |k: u32| &part.placements[tensor.holders[k as usize].placement as usize];
        let views = |k| own_views(part, placed(k), seat, self.inputs.source.tensors());
        let mut covered = Vec::new();
        for &e in earlier {
            covered.extend(views(e)?.into_iter().map(|v| v.0));
        }
        let mut cells = Vec::new();
        for (bounds, own) in views(k)? {
            self.held_cells(tensor, j, &bounds, &own, &covered, &mut cells)?;
        }
        Ok(cells)
    }

    fn hold_listed(
        &mut self,
        tensor: &'a PlanTensor,
        j: usize,
        views: &[(usize, u32)],
    ) -> Result<()> {
        let mut covered = Vec::new();
        let mut cells = Vec::new();
        for &(k, view) in views {
            let bounds = &tensor.explicit_holders[k].bounds;
            let own = explicit_own(self.inputs.source, self.rank, view)?;
            self.held_cells(tensor, j, bounds, &own, &covered, &mut cells)?;
            covered.push(bounds.clone());
        }
        let cells = self.add_cells(cells);
        self.trace(tensor, 0, cells)
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
            s.cells(&e.bounds, Some(held))?
        } else if tensor.explicit_holders.is_empty() {
            s.grid(held, Some(j))?
        } else {
            let mut cells = Vec::new();
            for d in s.needed_boxes(j, held)? {
                cells.extend(s.cells(&d, Some(held))?);
            }
            cells
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

    pub fn name(&self, tensor: &PlanTensor) -> &str {
        &self.inputs.destination.tensors()[tensor.destination.index()].name
    }

    fn add_cells(&mut self, mut cells: Vec<Cell>) -> (u32, u32) {
        // No two have the same bounds.
        cells.sort_unstable_by(|a, b| a.bounds.cmp(&b.bounds));
        let first = self.cells.len() as u32;
        self.cells.append(&mut cells);
        (first, self.cells.len() as u32)
    }

    /// Notes which groups some cells of a kind of tensors are in.
    fn trace(&mut self, tensor: &PlanTensor, own: u32, cells: (u32, u32)) -> Result<()> {
        for cell in cells.0..cells.1 {
            let group = self.group(tensor, cell as usize)?;
            self.traces.push(Trace {
                own,
                cell,
                group,
                bytes: self.cells[cell as usize].bytes,
            });
        }
        Ok(())
    }

    pub fn cell_of(&self, item: &Item) -> &Cell {
        &self.cells[item.cell as usize]
    }
}

/// The buffer of a placement of a tensor.
fn buffer_of(inputs: Inputs<'_>, side: Side, tensor: &PlanTensor, own: u32) -> u32 {
    let (layout, placed) = match side {
        Side::Source => (inputs.source, &tensor.holders),
        Side::Destination => (inputs.destination, &tensor.needers),
    };
    placement(layout, placed[own as usize]).1.buffer
}

/// The demands that may want some of `held`: all placements, and the explicit
/// boxes that overlap it.
fn demands_near<'b>(tensor: &PlanTensor, held: impl Iterator<Item = &'b IndexBox>) -> Vec<usize> {
    let placed = tensor.needers.len();
    let mut near: Vec<usize> = held
        .flat_map(|b| tensor.explicit_needers.near(b))
        .map(|j| placed + j)
        .collect();
    near.sort_unstable();
    near.dedup();
    (0..placed).chain(near).collect()
}

/// Which boxes are those of an explicit rank's views of `tensor`, and of which
/// view.
fn views_in(
    boxes: &ExplicitBoxes,
    r: &RankViews,
    tensor: TensorIndex,
) -> SmallVec<[(usize, u32); 4]> {
    let first = r.views.partition_point(|v| v.tensor < tensor);
    let own = r.views[first..].iter().take_while(|v| v.tensor == tensor);
    let mut found: SmallVec<[(usize, u32); 4]> = SmallVec::new();
    for v in own {
        let near = boxes.near(&v.bounds).into_iter();
        found.extend(near.filter_map(|k| Some((k, view_of(&boxes[k], r.rank)?))));
    }
    found.sort_unstable();
    found.dedup();
    found
}
