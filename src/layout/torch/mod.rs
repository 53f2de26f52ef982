//! What PyTorch says of a sharded model: device meshes, placements, and the
//! flat parameters of the older FSDP.
//!
//! ```json
//! { "weightsync_dtensor": 1,
//!   "meshes": {"world": {"names": ["dp", "tp"], "ranks": [[0, 1], [2, 3]]}},
//!   "tensors": [
//!     {"name": "model.layers.0.mlp.up_proj.weight", "shape": [64, 16], "dtype": "f32",
//!      "mesh": "world", "placements": ["_StridedShard(dim=0, sf=2)", "Shard(dim=0)"]} ] }
//! ```
//!
//! Meshes are `DeviceMesh.mesh_dim_names` with `DeviceMesh.mesh.tolist()`, or,
//! where ranks count up, `"shape"` with `"first"`; placements are as Python
//! prints them, one per mesh dimension. Tensors keep the names and shapes they
//! have there; [`Layout::recast`] tells the same in a model's canonical ones.
//! Buffers have the names of the tensors and are the local tensors, stored
//! row-major without gaps. Globs in `"frozen"` mark what is not trained.
//!
//! `Shard` cuts as `torch.chunk` does, in ceil-sized chunks with empty ones at
//! the end; `_StridedShard` is a shard that was taken after some of those on
//! its right, as FSDP2 takes its shard of what tensor parallelism left.

mod doc;
mod flat;
mod grid;
mod placement;

use super::cut::Cut;
use super::marks::Marks;
use super::placement::{Buffer, Padding, Part, Placement, Rule};
use super::tensor::{Tensor, TensorIndex};
use super::view::Memory;
use super::{Layout, LayoutSpec, place_in_json};
use crate::error::{Error, Result, Status};
use crate::limits::FILE_BYTES_MAX;
use doc::{FileDoc, TensorDoc};
use grid::Grids;
use std::collections::HashMap;

/// The version of the DTensor file that this library reads.
pub const DTENSOR_FILE_VERSION: u32 = 1;

impl Layout {
    /// Reads what PyTorch says of a sharded model.
    pub fn from_dtensor(text: &[u8]) -> Result<Layout> {
        if text.len() > FILE_BYTES_MAX {
            return Err(Error::limit(format!(
                "the DTensor file has {} bytes; at most {FILE_BYTES_MAX} are allowed",
                text.len()
            )));
        }
        let file: FileDoc = serde_json::from_slice(text).map_err(|e| {
            let (place, what) = place_in_json(text, &e);
            Error::layout(format!("DTensor file, {place}: {what}"))
        })?;
        if file.weightsync_dtensor != DTENSOR_FILE_VERSION {
            return Err(Error::new(
                Status::VersionMismatch,
                format!(
                    "the DTensor file has version {} in \"weightsync_dtensor\"; this library \
                     reads version {DTENSOR_FILE_VERSION}",
                    file.weightsync_dtensor
                ),
            ));
        }
        let grids = Grids::new(&file.meshes)?;
        let sharded = read_tensors(&file, &grids)?;
        match file.flat.is_empty() {
            true => Layout::new(sharded),
            false => flat::with_flat(sharded, &file.flat, &grids),
        }
    }
}

fn of_tensor(name: &str, e: Error) -> Error {
    Error {
        message: format!("DTensor file, tensor \"{name}\": {}", e.message),
        ..e
    }
}

/// The tensors with placements, as one part per set of ranks.
fn read_tensors(file: &FileDoc, grids: &Grids) -> Result<LayoutSpec> {
    let mut spec = LayoutSpec {
        aliases: file.aliases.0.clone(),
        marks: Marks {
            frozen: file.frozen.clone(),
            ..Marks::default()
        },
        ..LayoutSpec::default()
    };
    let mut numbers: HashMap<&str, TensorIndex> = HashMap::new();
    let mut parts: Vec<PartBuilder> = grids.parts().map(|_| PartBuilder::default()).collect();
    for t in &file.tensors {
        let tensor = t.tensor()?;
        let placed = place(t, &tensor, grids).map_err(|e| of_tensor(&t.name, e))?;
        let number = match numbers.get(t.name.as_str()) {
            None => {
                let n = TensorIndex(spec.tensors.len() as u32);
                numbers.insert(&t.name, n);
                spec.tensors.push(tensor);
                n
            }
            Some(&n) if spec.tensors[n.index()] == tensor => n,
            Some(_) => {
                return Err(of_tensor(
                    &t.name,
                    Error::layout("is given twice, with another shape or dtype"),
                ));
            }
        };
        parts[placed.part].add(number, placed, t);
    }
    for (builder, (ranks, meshes)) in parts.into_iter().zip(grids.parts()) {
        if builder.placements.is_empty() {
            continue;
        }
        spec.parts.push(Part {
            ranks: ranks.clone(),
            meshes: meshes.to_vec(),
            copies: None,
            padding: Padding::Leave,
            rules: builder.rules,
            placements: builder.placements,
            spacers: Vec::new(),
            buffers: builder.buffers,
        });
    }
    Ok(spec)
}

/// Where a tensor is, and how it is cut.
struct Placed {
    part: usize,
    mesh: u16,
    cuts: Vec<Cut>,
}

fn place(t: &TensorDoc, tensor: &Tensor, grids: &Grids) -> Result<Placed> {
    let grid = grids.find(t.mesh.as_deref())?;
    let placements = t
        .placements
        .iter()
        .map(|p| p.parse())
        .collect::<Result<Vec<placement::Placement>>>()?;
    let mut cuts = placement::cuts(&placements, &grid.sizes, &tensor.shape)?;
    for c in &mut cuts {
        for a in &mut c.axes {
            *a = grid.axes[*a as usize];
        }
    }
    Ok(Placed {
        part: grid.part,
        mesh: grid.mesh,
        cuts,
    })
}

#[derive(Default)]
struct PartBuilder {
    rules: Vec<Rule>,
    numbers: HashMap<Rule, u32>,
    placements: Vec<Placement>,
    buffers: Vec<Buffer>,
}

impl PartBuilder {
    fn add(&mut self, tensor: TensorIndex, placed: Placed, t: &TensorDoc) {
        let rule = Rule {
            mesh: placed.mesh,
            stage_axis: None,
            cuts: placed.cuts,
            dtype: t.stored.map(|d| d.0),
            order: Default::default(),
            padded: 0,
            split: None,
            grouped: None,
            conversion: None,
        };
        let next = self.rules.len() as u32;
        let rule = *self.numbers.entry(rule.clone()).or_insert_with(|| {
            self.rules.push(rule);
            next
        });
        let number = self.placements.len() as u32;
        self.placements.push(Placement {
            tensor,
            rule,
            stage: None,
            buffer: number,
            member: 0,
        });
        self.buffers.push(Buffer {
            name: t.buffer.clone().unwrap_or_else(|| t.name.clone()),
            memory: Memory::Host,
            shared_dims: 0,
            members: vec![number],
        });
    }
}
