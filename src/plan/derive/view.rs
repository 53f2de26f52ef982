//! Where a box lies in a rank's memory, and how a peer stores it.

use crate::error::{Error, Result};
use crate::layout::dtype::Dtype;
use crate::layout::mesh::MeshSlice;
use crate::layout::placement::{Part, Seat, for_each_box};
use crate::layout::tensor::{Dims, IndexBox, Tensor};
use crate::layout::view::Strides;
use crate::layout::{Layout, Place};
use crate::plan::tables::{ExplicitBox, PlanTensor};
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

/// How a slice of ranks stores a placement: strides do not differ within it.
pub fn slice_view(
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
