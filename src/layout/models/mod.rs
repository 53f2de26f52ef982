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

mod assembly;
mod config;
mod engine;
mod family;
mod formula;
mod framework;
mod hazard;
mod hugging_face;
mod inventory;
mod megatron;
mod role;
mod sglang;
mod sizes;
mod vllm;

pub use engine::VOCAB_PADDING;
pub use family::family_names;
pub use framework::{Framework, ModelLayout};
pub use hazard::{Hazard, HazardKind};
pub use hugging_face::HuggingFaceSizes;
pub use inventory::{Axis, Inventory, InventoryTensor, Quantization, StoredGroup, TensorTemplate};
pub use megatron::{ExpertStorage, MegatronSizes, MlaDown, Station};
pub use role::Role;
pub use sglang::SglangSizes;
pub use vllm::VllmSizes;
