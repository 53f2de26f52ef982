//! What stands between the ranks: hosts, NVLink domains, NICs and cuts.
//!
//! A topology is described, never enumerated: groups of equal hosts, runs of
//! ranks on consecutive GPUs, and the few exceptions. Where a rank sits is
//! arithmetic, at any number of ranks:
//!
//! ```text
//!   hosts   16 x { 8 GPUs, 8 NICs of 50 GB/s, NVLink 450 GB/s per GPU }
//!           │
//!   GPU 13 ─┼─ host 1 ─ NVLink domain 1 (domain_hosts = 1)
//!           └─ port 13 ─ rail 5 ─ leaf 0 of "pods", 8 hosts each
//! ```
//!
//! All speeds are bytes per second and all times nanoseconds, as integers, so
//! that what is decided from them is the same on every machine. The default
//! is [`Topology::default_for`].

mod discover;
mod json;
mod site;
mod spec;

pub use discover::RankPlace;
pub use json::TOPOLOGY_FILE_VERSION;
pub use site::{Site, Topology};
pub use spec::{FabricCut, HostGroup, PlacementRun, SpeedFactor, TopologySpec};

/// The JSON Schema (draft 2020-12) of the topology file.
pub const TOPOLOGY_SCHEMA: &str = include_str!("topology.schema.json");
