//! The topology file.
//!
//! ```json
//! { "weightsync_topology": 1,
//!   "hosts": [{"count": 16, "gpus": 8, "nics": 8,
//!              "nic_bytes_per_s": 50000000000,
//!              "nvlink_bytes_per_s": 450000000000}],
//!   "placement": [{"ranks": {"first": 0, "count": 128}, "gpu": 0}],
//!   "speeds": [{"ranks": [17], "nic_percent": 50}],
//!   "latency_ns": 20000 }
//! ```
//!
//! Everything but the version has a default;
//! [`TOPOLOGY_SCHEMA`](super::TOPOLOGY_SCHEMA) documents every field.

use super::Topology;
use super::spec::{
    FabricCut, HostGroup, LATENCY_NS_DEFAULT, PACK_BYTES_PER_S_DEFAULT, PlacementRun, SpeedFactor,
    TopologySpec,
};
use crate::error::{Error, Result, Status};
use crate::layout::mesh::RankList;
use crate::layout::place_in_json;
use crate::limits::FILE_BYTES_MAX;
use crate::rank::Rank;
use serde::{Deserialize, Serialize};

/// The version of the topology file that this library reads and writes.
pub const TOPOLOGY_FILE_VERSION: u32 = 1;

impl Topology {
    /// Reads a topology file.
    ///
    /// Errors name line, field and numbers.
    pub fn from_json(text: &[u8]) -> Result<Topology> {
        Topology::new(TopologySpec::from_json(text)?)
    }

    /// The topology as a topology file.
    pub fn to_json(&self) -> String {
        let doc = FileDoc::of(self.spec());
        let mut text = serde_json::to_string_pretty(&doc).expect("numbers and names serialise");
        text.push('\n');
        text
    }
}

impl TopologySpec {
    /// Reads a topology file without checking what it says.
    pub fn from_json(text: &[u8]) -> Result<TopologySpec> {
        if text.len() > FILE_BYTES_MAX {
            return Err(Error::limit(format!(
                "the topology file has {} bytes; at most {FILE_BYTES_MAX} are allowed",
                text.len()
            )));
        }
        let file: FileDoc = serde_json::from_slice(text).map_err(|e| {
            let (place, what) = place_in_json(text, &e);
            Error::invalid(format!("topology file, {place}: {what}"))
        })?;
        if file.weightsync_topology != TOPOLOGY_FILE_VERSION {
            return Err(Error::new(
                Status::VersionMismatch,
                format!(
                    "the topology file has version {} in \"weightsync_topology\"; this library \
                     reads version {TOPOLOGY_FILE_VERSION}",
                    file.weightsync_topology
                ),
            ));
        }
        Ok(file.into_spec())
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileDoc {
    weightsync_topology: u32,
    #[serde(default)]
    hosts: Vec<HostDoc>,
    #[serde(default)]
    placement: Vec<PlacementDoc>,
    #[serde(default)]
    speeds: Vec<SpeedDoc>,
    #[serde(default)]
    cuts: Vec<CutDoc>,
    #[serde(default = "latency_ns")]
    latency_ns: u64,
    #[serde(default = "pack_bytes_per_s")]
    pack_bytes_per_s: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HostDoc {
    #[serde(default)]
    count: u32,
    #[serde(default = "gpus")]
    gpus: u32,
    /// One per GPU if absent.
    nics: Option<u32>,
    #[serde(default = "nic_bytes_per_s")]
    nic_bytes_per_s: u64,
    #[serde(default = "nvlink_bytes_per_s")]
    nvlink_bytes_per_s: u64,
    #[serde(default = "one")]
    domain_hosts: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlacementDoc {
    ranks: RanksDoc,
    gpu: u32,
    #[serde(default = "one")]
    ranks_per_gpu: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SpeedDoc {
    ranks: RanksDoc,
    #[serde(default = "hundred")]
    nic_percent: u32,
    #[serde(default = "hundred")]
    nvlink_percent: u32,
    #[serde(default)]
    drained: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CutDoc {
    name: String,
    hosts: u32,
    #[serde(default)]
    by_rail: bool,
    out_bytes_per_s: u64,
    in_bytes_per_s: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected {\"first\": 0, \"count\": 8} or a list of ranks"
)]
enum RanksDoc {
    Range { first: u32, count: u32 },
    List(Vec<Rank>),
}

fn latency_ns() -> u64 {
    LATENCY_NS_DEFAULT
}

fn pack_bytes_per_s() -> u64 {
    PACK_BYTES_PER_S_DEFAULT
}

fn gpus() -> u32 {
    HostGroup::default().gpus
}

fn nic_bytes_per_s() -> u64 {
    HostGroup::default().nic_bytes_per_s
}

fn nvlink_bytes_per_s() -> u64 {
    HostGroup::default().nvlink_bytes_per_s
}

fn one() -> u32 {
    1
}

fn hundred() -> u32 {
    100
}

impl From<RanksDoc> for RankList {
    fn from(doc: RanksDoc) -> RankList {
        match doc {
            RanksDoc::Range { first, count } => RankList::Range { first, count },
            RanksDoc::List(list) => RankList::List(list).canonical(),
        }
    }
}

impl From<&RankList> for RanksDoc {
    fn from(list: &RankList) -> RanksDoc {
        match list {
            RankList::Range { first, count } => RanksDoc::Range {
                first: *first,
                count: *count,
            },
            RankList::List(list) => RanksDoc::List(list.clone()),
        }
    }
}

impl FileDoc {
    fn into_spec(self) -> TopologySpec {
        let mut hosts: Vec<HostGroup> = self
            .hosts
            .into_iter()
            .map(|h| HostGroup {
                count: h.count,
                gpus: h.gpus,
                nics: h.nics.unwrap_or(h.gpus),
                nic_bytes_per_s: h.nic_bytes_per_s,
                nvlink_bytes_per_s: h.nvlink_bytes_per_s,
                domain_hosts: h.domain_hosts,
            })
            .collect();
        if hosts.is_empty() {
            hosts.push(HostGroup::default());
        }
        TopologySpec {
            hosts,
            placement: self
                .placement
                .into_iter()
                .map(|p| PlacementRun {
                    ranks: p.ranks.into(),
                    gpu: p.gpu,
                    ranks_per_gpu: p.ranks_per_gpu,
                })
                .collect(),
            speeds: self
                .speeds
                .into_iter()
                .map(|s| SpeedFactor {
                    ranks: s.ranks.into(),
                    nic_percent: s.nic_percent,
                    nvlink_percent: s.nvlink_percent,
                    is_drained: s.drained,
                })
                .collect(),
            cuts: self
                .cuts
                .into_iter()
                .map(|c| FabricCut {
                    name: c.name,
                    hosts: c.hosts,
                    by_rail: c.by_rail,
                    out_bytes_per_s: c.out_bytes_per_s,
                    in_bytes_per_s: c.in_bytes_per_s,
                })
                .collect(),
            latency_ns: self.latency_ns,
            pack_bytes_per_s: self.pack_bytes_per_s,
        }
    }

    fn of(spec: &TopologySpec) -> FileDoc {
        FileDoc {
            weightsync_topology: TOPOLOGY_FILE_VERSION,
            hosts: spec
                .hosts
                .iter()
                .map(|h| HostDoc {
                    count: h.count,
                    gpus: h.gpus,
                    nics: Some(h.nics),
                    nic_bytes_per_s: h.nic_bytes_per_s,
                    nvlink_bytes_per_s: h.nvlink_bytes_per_s,
                    domain_hosts: h.domain_hosts,
                })
                .collect(),
            placement: spec
                .placement
                .iter()
                .map(|p| PlacementDoc {
                    ranks: (&p.ranks).into(),
                    gpu: p.gpu,
                    ranks_per_gpu: p.ranks_per_gpu,
                })
                .collect(),
            speeds: spec
                .speeds
                .iter()
                .map(|s| SpeedDoc {
                    ranks: (&s.ranks).into(),
                    nic_percent: s.nic_percent,
                    nvlink_percent: s.nvlink_percent,
                    drained: s.is_drained,
                })
                .collect(),
            cuts: spec
                .cuts
                .iter()
                .map(|c| CutDoc {
                    name: c.name.clone(),
                    hosts: c.hosts,
                    by_rail: c.by_rail,
                    out_bytes_per_s: c.out_bytes_per_s,
                    in_bytes_per_s: c.in_bytes_per_s,
                })
                .collect(),
            latency_ns: spec.latency_ns,
            pack_bytes_per_s: spec.pack_bytes_per_s,
        }
    }
}
