//! Every limit of the library, in one place.
//!
//! Inputs beyond a limit are refused with the number that was given and the
//! number that is allowed; nothing is truncated.

#![forbid(unsafe_code)]

/// Ranks in one numbering space.
pub const RANK_COUNT_MAX: u32 = 1 << 20;
/// Axes of a tensor.
pub const DIM_COUNT_MAX: usize = 8;
/// Axes of a mesh.
pub const MESH_AXIS_COUNT_MAX: usize = 8;
/// Canonical tensors of a layout.
pub const TENSOR_COUNT_MAX: usize = 1 << 20;
/// Bytes of a name (tensor, buffer, mesh, axis).
pub const NAME_BYTES_MAX: usize = 1024;
/// Bytes of one tensor.
pub const TENSOR_BYTES_MAX: u64 = 1 << 50;
/// Explicit views in one call or one blob.
pub const VIEW_COUNT_MAX: usize = 1 << 22;
/// Parts of a layout (regions of ranks with their own meshes).
pub const PART_COUNT_MAX: usize = 1 << 16;
/// Boxes that one rank may hold of one tensor.
pub const BOX_COUNT_MAX: usize = 1 << 16;
/// Cells into which the cuts of both sides may divide one box of a tensor.
pub const CELL_COUNT_MAX: u64 = 1 << 20;
/// Bytes of a layout file or of a serialised layout or plan.
pub const FILE_BYTES_MAX: usize = 1 << 28;
/// Entries of one list of a topology.
pub const TOPOLOGY_ENTRY_COUNT_MAX: usize = 1 << 20;
/// Buckets of a plan: so many that the messages of no real model are worth
/// sending any more.
pub const BUCKET_COUNT_MAX: u32 = 1 << 12;
/// Bytes of one control message.
pub const CONTROL_BYTES_MAX: usize = 1 << 26;
/// Bytes of a greeting.
pub const GREETING_BYTES_MAX: usize = 512;
/// Bytes of a rendezvous token.
pub const TOKEN_BYTES_MAX: usize = 256;
/// Plans that one session holds at a time.
pub const PLAN_COUNT_MAX: usize = 4096;
/// Layers of a model's configuration.
pub const MODEL_LAYER_COUNT_MAX: u32 = 1 << 12;
