//! Real models: from a `config.json` and parallel sizes to a layout.
//!
//! An *inventory* is what a model consists of: canonical tensors with named
//! axes and a role each, as its configuration implies them. It knows nothing
//! of ranks. Families are data: each is a small table in `families/`, put
//! together from blocks that many models share.
//!
//! ```text
//!   config.json ─► family (a table) ─► inventory ─┬─► Megatron-core layout
//!                                                 ├─► engine layouts
//!                                                 └─► Hugging Face layout
//! ```
//!
//! A new dense or mixture-of-experts family is one more table.

mod config;
mod engine;
mod family;
mod formula;
mod hazard;
mod inventory;
mod role;
mod sglang;
mod sizes;
mod vllm;

pub use engine::VOCAB_PADDING;
pub use family::family_names;
pub use hazard::{Hazard, HazardKind};
pub use inventory::{Axis, Inventory, InventoryTensor, Quantization, StoredGroup, TensorTemplate};
pub use role::Role;
pub use sglang::SglangSizes;
pub use vllm::VllmSizes;
