//! weightsync moves weights from trainer ranks to inference ranks.
//!
//! *Describe* how both sides cut their tensors, *plan* once, look at the plan,
//! then *execute* it after every training step:
//!
//! ```text
//!   source layout ──┐
//!                   ├─► plan ──► program of one rank ──► session ──► request
//!   destination ────┘   (a value: deterministic,         (buffers     (one weight
//!   layout               serialisable, checked)           by name)     version)
//! ```
//!
//! The rooms of the house, imports running down only:
//! `cli, capi -> tune -> sim -> plan -> layout` and `cli, capi -> exec -> plan`,
//! with transports and devices behind traits that take work and return fences.

pub mod capi;
mod crew;
pub mod device;
pub mod env;
pub mod error;
pub mod exec;
pub mod layout;
pub mod limits;
pub mod log;
pub mod plan;
pub mod rank;
pub mod sim;
pub mod transport;
pub mod tune;

pub use error::{Error, Result, Status};
pub use rank::Rank;
