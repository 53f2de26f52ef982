//! How many bytes a set of ranks needs, and how many of them it lacks.
//!
//! Ranks that need and hold the same boxes have one *kind*; sets of the same
//! kinds need the same, so that a thousand equal replicas are counted once.

use super::volume::volume;
use crate::error::Result;
use crate::layout::dtype::Dtype;
use crate::layout::placement::{Part, Seat, for_each_box};
use crate::layout::tensor::IndexBox;
use crate::layout::{Layout, Place};
use crate::plan::Plan;
use crate::plan::boxes::ExplicitBox;
use crate::plan::tables::{PlacementRef, PlanTensor, placement};
use crate::rank::Rank;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::rc::Rc;

type Boxes = Rc<[IndexBox]>;
/// Part (`u16::MAX`: explicit), then the coordinates that matter.
type KindKey = SmallVec<[u32; 12]>;

/// Counts, and remembers what it has counted.
pub struct Demand<'a> {
    plan: &'a Plan,
    sides: [SideKinds<'a>; 2],
    missing: FxHashMap<[Vec<u32>; 2], u64>,
    wire: Vec<u64>,
}

/// The kinds of ranks of one layout.
struct SideKinds<'a> {
    layout: &'a Layout,
    /// Per part and mesh, the axes that cut something or stage it.
    axes: Vec<Vec<u8>>,
    kinds: FxHashMap<KindKey, u32>,
    /// One rank of each kind.
    ranks: Vec<Rank>,
    /// By kind, class and placements on stage.
    boxes: FxHashMap<(u32, u32, u64), Boxes>,
}

impl<'a> Demand<'a> {
    pub fn new(plan: &'a Plan) -> Demand<'a> {
        let wire = plan.tables.tensors.iter().map(|t| wire_bytes(plan, t));
        Demand {
            plan,
            sides: [
                SideKinds::new(&plan.source),
                SideKinds::new(&plan.destination),
            ],
            missing: FxHashMap::default(),
            wire: wire.collect(),
        }
    }

    /// Distinct bytes that these ranks need and none of them holds.
    pub fn missing(&mut self, ranks: &[Rank]) -> Result<u64> {
        let held = self.sides[0].kinds_of(ranks);
        let needed = self.sides[1].kinds_of(ranks);
        self.count([held, needed])
    }

    /// Distinct bytes that these ranks need.
    pub fn needed(&mut self, ranks: &[Rank]) -> Result<u64> {
        let needed = self.sides[1].kinds_of(ranks);
        self.count([Vec::new(), needed])
    }

    pub fn is_on_both_sides(&mut self, ranks: &[Rank]) -> bool {
        let is_in = |l: &Layout| ranks.iter().any(|&r| l.place(r).is_some());
        is_in(self.sides[0].layout) && is_in(self.sides[1].layout)
    }

    fn count(&mut self, key: [Vec<u32>; 2]) -> Result<u64> {
        if key[1].is_empty() {
            return Ok(0);
        }
        if let Some(&bytes) = self.missing.get(&key) {
            return Ok(bytes);
        }
        let mut volumes: FxHashMap<(u32, Vec<u64>), u64> = FxHashMap::default();
        let mut bytes = 0u64;
        for (i, tensor) in self.plan.tables.tensors.iter().enumerate() {
            let elements = self.elements(tensor, &key, &mut volumes);
            bytes = bytes.saturating_add(elements.saturating_mul(self.wire[i]));
        }
        self.missing.insert(key, bytes);
        Ok(bytes)
    }

    fn elements(
        &mut self,
        tensor: &PlanTensor,
        key: &[Vec<u32>; 2],
        volumes: &mut FxHashMap<(u32, Vec<u64>), u64>,
    ) -> u64 {
        let [sources, destinations] = &mut self.sides;
        let is_regular = tensor.explicit_holders.is_empty() && tensor.explicit_needers.is_empty();
        let masks = |side: &SideKinds<'_>, kinds: &[u32], refs: &[PlacementRef]| -> Vec<u64> {
            let mask = |k: &u32| side.on_stage(*k, refs);
            kinds.iter().map(mask).collect()
        };
        let held = masks(sources, &key[0], &tensor.holders);
        let needed = masks(destinations, &key[1], &tensor.needers);
        let stages: Vec<u64> = held.iter().chain(&needed).copied().collect();
        let known = volumes.get(&(tensor.class, stages.clone()));
        if let Some(&v) = known.filter(|_| is_regular) {
            return v;
        }
        let mut less: Vec<Boxes> = Vec::new();
        for (&k, &mask) in key[0].iter().zip(&held) {
            less.push(sources.boxes(k, mask, tensor, &tensor.holders, &tensor.explicit_holders));
        }
        let mut wanted: Vec<Boxes> = Vec::new();
        for (&k, &mask) in key[1].iter().zip(&needed) {
            let boxes =
                destinations.boxes(k, mask, tensor, &tensor.needers, &tensor.explicit_needers);
            wanted.push(boxes);
        }
        let flat = |all: &'_ [Boxes]| -> Vec<IndexBox> {
            all.iter().flat_map(|b| b.iter().cloned()).collect()
        };
        let (wanted, less) = (flat(&wanted), flat(&less));
        let elements = volume(
            &wanted.iter().collect::<Vec<_>>(),
            &less.iter().collect::<Vec<_>>(),
        );
        if is_regular {
            volumes.insert((tensor.class, stages), elements);
        }
        elements
    }
}

impl<'a> SideKinds<'a> {
    fn new(layout: &'a Layout) -> SideKinds<'a> {
        SideKinds {
            layout,
            axes: layout.parts().iter().map(Part::axes_in_use).collect(),
            kinds: FxHashMap::default(),
            ranks: Vec::new(),
            boxes: FxHashMap::default(),
        }
    }

    /// The kinds among `ranks`, each once, ascending.
    fn kinds_of(&mut self, ranks: &[Rank]) -> Vec<u32> {
        let mut all: Vec<u32> = ranks.iter().filter_map(|&r| self.kind(r)).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    fn kind(&mut self, rank: Rank) -> Option<u32> {
        let mut key = KindKey::new();
        match self.layout.place(rank)? {
            Place::Explicit(_) => key.extend([u32::MAX, rank.0]),
            Place::Part(_, seat) => {
                key.push(u32::from(seat.part));
                for (mesh, mask) in self.axes[seat.part as usize].iter().enumerate() {
                    let coords = seat.coords[mesh].iter().enumerate();
                    key.extend(coords.filter(|(a, _)| mask >> a & 1 == 1).map(|(_, c)| *c));
                }
            }
        }
        let next = self.ranks.len() as u32;
        let kind = *self.kinds.entry(key).or_insert(next);
        if kind == next {
            self.ranks.push(rank);
        }
        Some(kind)
    }

    /// Bit by bit, which placements have ranks of a kind on their stage; all
    /// ones where there are more than fit.
    fn on_stage(&self, kind: u32, refs: &[PlacementRef]) -> u64 {
        let Some(Place::Part(part, seat)) = self.layout.place(self.ranks[kind as usize]) else {
            return 0;
        };
        let is_on = |r: &PlacementRef| is_on_stage(part, &seat, r);
        refs.iter()
            .take(64)
            .enumerate()
            .fold(0, |mask, (i, r)| mask | u64::from(is_on(r)) << i)
    }

    fn boxes(
        &mut self,
        kind: u32,
        mask: u64,
        tensor: &PlanTensor,
        refs: &[PlacementRef],
        explicit: &[ExplicitBox],
    ) -> Boxes {
        let rank = self.ranks[kind as usize];
        let layout = self.layout;
        let make = || boxes_of(layout, rank, refs, explicit);
        if !explicit.is_empty() || refs.len() > 64 {
            return make();
        }
        let key = (kind, tensor.class, mask);
        self.boxes.entry(key).or_insert_with(make).clone()
    }
}

/// The boxes that `rank` holds or needs of a tensor.
fn boxes_of(layout: &Layout, rank: Rank, refs: &[PlacementRef], explicit: &[ExplicitBox]) -> Boxes {
    let mut out = Vec::new();
    match layout.place(rank) {
        None => {}
        Some(Place::Explicit(_)) => {
            let mine = explicit
                .iter()
                .filter(|e| e.ranks.binary_search_by_key(&rank, |x| x.0).is_ok());
            out.extend(mine.map(|e| e.bounds.clone()));
        }
        Some(Place::Part(part, seat)) => {
            for r in refs.iter().filter(|r| is_on_stage(part, &seat, r)) {
                let p = &part.placements[r.placement as usize];
                let axes = part.local_axes(p, &seat, layout.tensors());
                for_each_box(&axes, |b, _| out.push(b.clone()));
            }
        }
    }
    out.into()
}

fn is_on_stage(part: &Part, seat: &Seat, r: &PlacementRef) -> bool {
    r.part == seat.part && part.is_on_stage(&part.placements[r.placement as usize], seat)
}

/// Bytes of an element on the wire: of the narrowest dtype on any side.
pub fn wire_bytes(plan: &Plan, tensor: &PlanTensor) -> u64 {
    let symbolic = tensor.needers.iter().map(|r| {
        let (part, p) = placement(&plan.destination, *r);
        part.rule(p)
            .stored_dtype(&plan.destination.tensors()[tensor.destination.index()])
    });
    let stored = symbolic.chain(tensor.explicit_needers.iter().map(|e| e.dtype));
    stored
        .map(|d: Dtype| Dtype::wire(tensor.source_dtype, d).bytes())
        .min()
        .unwrap_or(0)
}
