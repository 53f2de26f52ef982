//! Where a box lies in a rank's memory, and how a peer stores it.

use crate::error::{Error, Result};
use crate::layout::cut::{Cut, CutKind};
use crate::layout::dtype::Dtype;
use crate::layout::mesh::MeshSlice;
use crate::layout::placement::{Part, Placement, Seat, for_each_box};
use crate::layout::tensor::{Dims, IndexBox, Tensor};
use crate::layout::view::Strides;
use crate::layout::{Layout, Place};
use crate::plan::boxes::ExplicitBox;
use crate::plan::tables::{PlacementRef, PlanTensor, placement};
use crate::rank::Rank;

/// Where a cell lies in our memory.
#[derive(Clone, Debug)]
pub struct OwnView {
    /// Lowest corner of the view's box.
    pub lo: Dims,
    pub offset: u64,
    pub strides: Strides,
    pub dtype: Dtype,
    /// Local start along a split axis: each index is a buffer of its own.
    pub split: Option<u32>,
    /// Buffer of an explicit view; symbolic ones come from the placement.
    pub explicit: Option<u32>,
}

impl OwnView {
    /// Bytes from the start of the buffer to where a box inside the view begins.
    pub fn offset_of(&self, bounds: &IndexBox) -> u64 {
        let axes = bounds.spans().iter().zip(&self.lo).zip(&self.strides);
        let at: i64 = axes
            .map(|((s, &lo), &stride)| (s.lo - lo) as i64 * stride)
            .sum();
        self.offset.wrapping_add_signed(at)
    }
}

/// The other end's strides, as far as message lists depend on them.
#[derive(Clone, Debug)]
pub struct PeerView {
    pub strides: Strides,
    pub dtype: Dtype,
}

/// The view index of `rank` among the ranks of an explicit box.
pub fn view_of(e: &ExplicitBox, rank: Rank) -> Option<u32> {
    let i = e.ranks.binary_search_by_key(&rank, |x| x.0).ok()?;
    Some(e.ranks[i].1)
}

/// The boxes a placement gives this seat, each with where it lies.
pub fn own_views(
    part: &Part,
    p: &Placement,
    seat: &Seat,
    tensors: &[Tensor],
) -> Result<Vec<(IndexBox, OwnView)>> {
    let rule = part.rule(p);
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

pub fn explicit_own(layout: &Layout, rank: Rank, view: u32) -> Result<OwnView> {
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

/// How the first rank of a slice stores a placement.
pub fn slice_view(layout: &Layout, part: &Part, p: &Placement, slice: &MeshSlice) -> PeerView {
    let mesh = &part.meshes[slice.mesh as usize];
    let seat = part.seat(slice.part, slice.nth(mesh, 0));
    seat_view(layout, part, p, &seat)
}

/// True if all ranks of a slice that holds one box of a placement store it with
/// the same strides. Members that share axes with it widen its rows, and may be
/// cut where the placement is not:
///
/// ```text
///   q cut over tp, k over tp and dp     [ q q q k ]  [ q q q k k ]
/// ```
pub fn is_stored_alike(part: &Part, p: &Placement, slice: &MeshSlice) -> bool {
    let buffer = &part.buffers[p.buffer as usize];
    let shared = usize::from(buffer.shared_dims);
    if shared == 0 || buffer.members.len() < 2 {
        return true;
    }
    let is_fixed = |axis: &u8| slice.ranges[*axis as usize].1 - slice.ranges[*axis as usize].0 == 1;
    buffer.members.iter().all(|&m| {
        let rule = part.rule(part.member(m));
        let is_same = |cut: &Cut| {
            matches!(cut.kind, CutKind::Even | CutKind::Blocks(_))
                || (rule.mesh == slice.mesh && cut.axes.iter().all(is_fixed))
        };
        let is_shared = |dim: u8| match rule.order.is_empty() {
            true => usize::from(dim) < shared,
            false => rule.order.iter().take(shared).any(|&d| d == dim),
        };
        rule.cuts.iter().all(|c| is_shared(c.dim) || is_same(c))
    })
}

/// How `rank` stores what it needs through a symbolic placement.
pub fn needing_view(destination: &Layout, needer: PlacementRef, rank: Rank) -> Option<PeerView> {
    let position = destination.position(needer.part.into(), rank)?;
    let (part, p) = placement(destination, needer);
    let seat = part.seat(needer.part, position);
    Some(seat_view(destination, part, p, &seat))
}

fn seat_view(layout: &Layout, part: &Part, p: &Placement, seat: &Seat) -> PeerView {
    let tensors = layout.tensors();
    PeerView {
        strides: part.storage(p, seat, tensors).1,
        dtype: part.rule(p).stored_dtype(&tensors[p.tensor.index()]),
    }
}

/// The first view of source rank `rank` that holds `bounds`: where it lies,
/// and the part and buffer of its placement.
pub fn holding_view(
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
            let boxes = &tensor.explicit_holders;
            for e in boxes.near(bounds).into_iter().map(|k| &boxes[k]) {
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
