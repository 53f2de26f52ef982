//! Device meshes as meshes of parts: ranks that several meshes share are one
//! part, and each of its meshes orders them its own way.

use super::doc::{MeshDoc, Nested};
use crate::error::{Error, Result};
use crate::layout::json::Pairs;
use crate::layout::mesh::{Mesh, MeshAxis, RankList};
use crate::limits::{MESH_AXIS_COUNT_MAX, RANK_COUNT_MAX};
use crate::rank::Rank;
use std::collections::{BTreeSet, HashMap};

/// One device mesh of the file.
#[derive(Debug)]
pub(super) struct Grid {
    pub name: String,
    pub names: Vec<String>,
    pub sizes: Vec<u32>,
    /// Row-major.
    pub ranks: Vec<u32>,
    pub part: usize,
    pub mesh: u16,
    /// The axis of the part's mesh that each dimension became.
    pub axes: Vec<u8>,
}

/// All device meshes, and the parts they make.
#[derive(Debug, Default)]
pub(super) struct Grids {
    grids: Vec<Grid>,
    parts: Vec<(RankList, Vec<Mesh>)>,
}

impl Grids {
    pub fn new(meshes: &Pairs<MeshDoc>) -> Result<Grids> {
        let mut out = Grids::default();
        // Each part by its ranks, as the first mesh orders them.
        let mut orders: Vec<HashMap<u32, u32>> = Vec::new();
        for (name, doc) in &meshes.0 {
            let of_mesh = |e: Error| Error {
                message: format!("DTensor file, mesh \"{name}\": {}", e.message),
                ..e
            };
            let mut grid = read(name, doc).map_err(of_mesh)?;
            let known = |order: &HashMap<u32, u32>| {
                let shared = grid.ranks.iter().filter(|r| order.contains_key(r)).count();
                (shared, shared == order.len() && shared == grid.ranks.len())
            };
            let found = orders.iter().position(|o| known(o).0 > 0);
            match found {
                Some(part) if known(&orders[part]).1 => {
                    let mesh = arrange(&mut grid, &orders[part]).map_err(of_mesh)?;
                    grid.part = part;
                    grid.mesh = out.parts[part].1.len() as u16;
                    out.parts[part].1.push(mesh);
                }
                Some(_) => {
                    return Err(of_mesh(Error::layout(
                        "shares some of its ranks, and not all, with another mesh; describe both \
                         over the same ranks, with one more dimension",
                    )));
                }
                None => {
                    let order = (0..).zip(&grid.ranks).map(|(i, &r)| (r, i)).collect();
                    let mesh = arrange(&mut grid, &order).map_err(of_mesh)?;
                    orders.push(order);
                    grid.part = out.parts.len();
                    let ranks = RankList::List(grid.ranks.iter().map(|&r| Rank(r)).collect());
                    out.parts.push((ranks.canonical(), vec![mesh]));
                }
            }
            out.grids.push(grid);
        }
        Ok(out)
    }

    /// Ranks and meshes of each part.
    pub fn parts(&self) -> impl Iterator<Item = (&RankList, &[Mesh])> {
        self.parts.iter().map(|(r, m)| (r, m.as_slice()))
    }

    /// The mesh of this name, or the only one.
    pub fn find(&self, name: Option<&str>) -> Result<&Grid> {
        let found = match name {
            Some(name) => self.grids.iter().find(|g| g.name == name),
            None => self.grids.first().filter(|_| self.grids.len() == 1),
        };
        found.ok_or_else(|| {
            let known: Vec<&str> = self.grids.iter().map(|g| g.name.as_str()).collect();
            match name {
                Some(name) => Error::layout(format!(
                    "there is no mesh \"{name}\"; there is {}",
                    known.join(", ")
                )),
                None => Error::layout(format!(
                    "\"mesh\" is missing, and there is not one mesh but {}",
                    known.len()
                )),
            }
        })
    }
}

fn read(name: &str, doc: &MeshDoc) -> Result<Grid> {
    let (sizes, ranks) = match (&doc.ranks, &doc.shape) {
        (Some(nested), None) => {
            let mut sizes = Vec::new();
            let mut ranks = Vec::new();
            unnest(nested, 0, &mut sizes, &mut ranks)?;
            (sizes, ranks)
        }
        (None, Some(shape)) => {
            let count = shape
                .iter()
                .try_fold(1u32, |a, &n| a.checked_mul(n))
                .filter(|n| {
                    n.checked_add(doc.first)
                        .is_some_and(|n| n <= RANK_COUNT_MAX)
                });
            let Some(count) = count else {
                return Err(Error::limit(format!(
                    "has shape {shape:?} from rank {} on; ranks are 0 to {}",
                    doc.first,
                    RANK_COUNT_MAX - 1
                )));
            };
            (shape.clone(), (doc.first..doc.first + count).collect())
        }
        _ => {
            return Err(Error::layout(
                "has either \"ranks\", as nested lists, or \"shape\" and \"first\"",
            ));
        }
    };
    if sizes.len() != doc.names.len() {
        return Err(Error::layout(format!(
            "has {} names for {} dimensions",
            doc.names.len(),
            sizes.len()
        )));
    }
    if sizes.is_empty() || sizes.len() > MESH_AXIS_COUNT_MAX || sizes.contains(&0) {
        return Err(Error::layout(format!(
            "has dimensions {sizes:?}; 1 to {MESH_AXIS_COUNT_MAX} of at least 1 are allowed"
        )));
    }
    let unique: BTreeSet<&u32> = ranks.iter().collect();
    if unique.len() < ranks.len() {
        return Err(Error::layout("has a rank twice"));
    }
    Ok(Grid {
        name: name.into(),
        names: doc.names.clone(),
        sizes,
        ranks,
        part: 0,
        mesh: 0,
        axes: Vec::new(),
    })
}

fn unnest(n: &Nested, depth: usize, sizes: &mut Vec<u32>, ranks: &mut Vec<u32>) -> Result<()> {
    match n {
        Nested::Rank(r) if depth == sizes.len() => {
            ranks.push(*r);
            Ok(())
        }
        Nested::List(list) if depth <= sizes.len() && depth < MESH_AXIS_COUNT_MAX => {
            let len = list.len() as u32;
            if depth == sizes.len() && ranks.is_empty() {
                sizes.push(len);
            }
            match sizes.get(depth) {
                Some(&n) if n == len => list
                    .iter()
                    .try_for_each(|x| unnest(x, depth + 1, sizes, ranks)),
                _ => Err(Error::layout("has lists of different lengths in \"ranks\"")),
            }
        }
        _ => Err(Error::layout("has lists of different depths in \"ranks\"")),
    }
}

/// The mesh of a part whose positions are `order`, with the dimensions of the
/// device mesh in the order in which they step through it.
fn arrange(grid: &mut Grid, order: &HashMap<u32, u32>) -> Result<Mesh> {
    let position = |i: usize| u64::from(order[&grid.ranks[i]]);
    let mut strides = vec![0u64; grid.sizes.len()];
    let mut step = 1usize;
    for (i, &n) in grid.sizes.iter().enumerate().rev() {
        strides[i] = match n {
            1 => 0,
            _ => position(step).wrapping_sub(position(0)),
        };
        step *= n as usize;
    }
    let mut axes: Vec<usize> = (0..grid.sizes.len()).collect();
    axes.sort_unstable_by_key(|&i| std::cmp::Reverse((strides[i], usize::MAX - i)));
    let regular = || {
        let mut step = 1u64;
        for &i in axes.iter().rev().filter(|&&i| grid.sizes[i] > 1) {
            if strides[i] != step {
                return false;
            }
            step *= u64::from(grid.sizes[i]);
        }
        (0..grid.ranks.len()).all(|flat| {
            let mut rest = flat;
            let mut want = 0;
            for (i, &n) in grid.sizes.iter().enumerate().rev() {
                want += (rest % n as usize) as u64 * strides[i];
                rest /= n as usize;
            }
            want == position(flat)
        })
    };
    if !regular() {
        return Err(Error::layout(
            "orders its ranks unlike any reordering of the dimensions of the first mesh over the \
             same ranks",
        ));
    }
    let axis = |&i: &usize| MeshAxis {
        name: grid.names[i].clone(),
        size: grid.sizes[i],
    };
    let mesh = Mesh {
        name: grid.name.clone(),
        axes: axes.iter().map(axis).collect(),
    };
    let of = |i: usize| axes.iter().position(|&a| a == i).unwrap_or(0) as u8;
    grid.axes = (0..grid.sizes.len()).map(of).collect();
    Ok(mesh)
}
