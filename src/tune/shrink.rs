//! Layouts with fewer copies and the same proportions.
//!
//! Data-parallel axes and replicas cut no tensor. Taking one in `f` of their
//! coordinates, on both sides, leaves every shard with holders and needers in
//! the same ratio. Ranks keep their numbers, and so their places.
//!
//! ```text
//!   dense  pp 16 x [dp 3200] x tp 1        the same ranks form the first
//!   expert pp 16 x [edp  50] x ep 64       1/f of each block of 3200
//! ```

use crate::error::{Error, Result};
use crate::layout::mesh::{Mesh, RankList};
use crate::layout::placement::Part;
use crate::layout::{Layout, LayoutSpec};
use crate::plan::decision::PlanOptions;
use crate::plan::topology::{Topology, TopologySpec};
use crate::rank::Rank;
use std::sync::Arc;

/// Ranks up to which nothing is shrunk.
const RANKS_ENOUGH: u32 = 512;
/// Ranks that are planned and simulated at most.
const RANKS_MAX: u32 = 8192;

/// The layouts to try things on.
pub struct Small {
    pub source: Arc<Layout>,
    pub destination: Arc<Layout>,
    pub topology: Option<TopologySpec>,
    pub factor: u32,
}

/// The smallest layouts with the same proportions that are still large enough.
pub fn shrunk(
    source: &Arc<Layout>,
    destination: &Arc<Layout>,
    options: &PlanOptions,
) -> Result<Small> {
    let ranks = source.rank_count() + destination.rank_count();
    let whole = Small {
        source: source.clone(),
        destination: destination.clone(),
        topology: options.topology.clone(),
        factor: 1,
    };
    if ranks <= RANKS_ENOUGH {
        return Ok(whole);
    }
    let is_even = options
        .topology
        .as_ref()
        .is_none_or(|t| t.speeds.is_empty());
    let axes = [axes_of(source), axes_of(destination)];
    let factor = match &axes {
        [Some(a), Some(b)] if is_even => factor(&[(source, a), (destination, b)], ranks),
        _ => 1,
    };
    if ranks / factor > RANKS_MAX {
        return Err(Error::limit(format!(
            "auto simulates at most {RANKS_MAX} ranks, and these {ranks} do not shrink below {}; \
             choose a strategy",
            ranks / factor
        )));
    }
    let [Some(a), Some(b)] = axes else {
        return Ok(whole);
    };
    if factor == 1 {
        return Ok(whole);
    }
    let placed = Topology::new(options.topology.clone().unwrap_or_default())?
        .placed_for(source, destination)?;
    Ok(Small {
        source: Arc::new(part_of(source, &a, factor)?),
        destination: Arc::new(part_of(destination, &b, factor)?),
        topology: Some(placed.spec().clone()),
        factor,
    })
}

/// Per part, the axis of each mesh along which copies are told apart.
type CopyAxis = Vec<Vec<u8>>;

/// `None` if some part has no such axis.
fn axes_of(layout: &Layout) -> Option<CopyAxis> {
    if !layout.explicit().is_empty() {
        return None;
    }
    layout.parts().iter().map(copy_axis).collect()
}

/// An axis of each mesh that no rule cuts or stages by, all of them over equal
/// blocks of ranks, the largest blocks there are.
fn copy_axis(part: &Part) -> Option<Vec<u8>> {
    let first = part.meshes.first()?;
    let mut found: Option<(u64, Vec<u8>)> = None;
    for a in 0..first.axes.len() as u8 {
        let block = block(first, a);
        let same = |m: usize| {
            let mesh = &part.meshes[m];
            let fits = |b: &u8| is_free(part, m, *b) && self::block(mesh, *b) == block;
            (0..mesh.axes.len() as u8).find(fits)
        };
        let axes: Option<Vec<u8>> = (0..part.meshes.len()).map(same).collect();
        if let Some(axes) = axes.filter(|_| is_free(part, 0, a)) {
            let size = u64::from(first.axes[a as usize].size);
            if size > 1 && found.as_ref().is_none_or(|(n, _)| size > *n) {
                found = Some((size, axes));
            }
        }
    }
    found.map(|(_, axes)| axes)
}

/// Neighbours that differ in this axis and the ones inside it.
fn block(mesh: &Mesh, axis: u8) -> u64 {
    let inner = mesh.axes[axis as usize..].iter();
    inner.map(|a| u64::from(a.size)).product()
}

fn is_free(part: &Part, mesh: usize, axis: u8) -> bool {
    part.rules
        .iter()
        .filter(|r| r.mesh as usize == mesh)
        .all(|r| r.stage_axis != Some(axis) && r.cuts.iter().all(|c| !c.axes.contains(&axis)))
}

/// The smallest common divisor of all copy axes that makes the layouts small
/// enough, or else the largest one.
fn factor(sides: &[(&Layout, &CopyAxis)], ranks: u32) -> u32 {
    let sizes = sides.iter().flat_map(|(layout, axes)| {
        let parts = layout.parts().iter().zip(axes.iter());
        parts.flat_map(|(part, axes)| {
            let meshes = part.meshes.iter().zip(axes);
            meshes.map(|(m, &a)| m.axes[a as usize].size)
        })
    });
    let common = sizes.fold(0, gcd);
    let divisors = (1..=common).filter(|f| common % f == 0);
    let enough = divisors.clone().find(|f| ranks / f <= RANKS_ENOUGH);
    enough.or(divisors.max()).unwrap_or(1)
}

fn gcd(a: u32, b: u32) -> u32 {
    match b {
        0 => a,
        _ => gcd(b, a % b),
    }
}

/// The layout with one in `factor` of the copies of each part.
fn part_of(layout: &Layout, axes: &CopyAxis, factor: u32) -> Result<Layout> {
    let mut spec: LayoutSpec = layout.spec().clone();
    for (part, axes) in spec.parts.iter_mut().zip(axes) {
        let kept: Vec<Rank> = {
            let (mesh, axis) = (&part.meshes[0], axes[0] as usize);
            let keep = mesh.axes[axis].size / factor;
            (0..part.ranks.count())
                .filter(|&i| mesh.coords(i)[axis] < keep)
                .map(|i| part.ranks.rank(i))
                .collect()
        };
        for (mesh, &axis) in part.meshes.iter_mut().zip(axes) {
            mesh.axes[axis as usize].size /= factor;
        }
        part.ranks = RankList::List(kept).canonical();
    }
    Layout::new(spec)
}
