//! The plain data of a topology, and what makes it one.

use crate::error::{Error, Result};
use crate::layout::mesh::RankList;
use crate::limits::{NAME_BYTES_MAX, RANK_COUNT_MAX, TOPOLOGY_ENTRY_COUNT_MAX};
use serde::{Deserialize, Serialize};

/// Consecutive hosts that are built alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostGroup {
    /// Hosts; 0, in the last group only, is as many as the ranks need.
    pub count: u32,
    pub gpus: u32,
    /// NICs of a host, a divisor or a multiple of `gpus`: GPUs share a NIC or
    /// have several.
    pub nics: u32,
    /// Of one NIC, each way.
    pub nic_bytes_per_s: u64,
    /// Of one GPU to all others of its NVLink domain together, each way.
    pub nvlink_bytes_per_s: u64,
    /// Consecutive hosts that form one NVLink domain.
    pub domain_hosts: u32,
}

impl Default for HostGroup {
    /// Eight GPUs, a 400 Gb/s NIC for each, NVLink at 450 GB/s.
    fn default() -> HostGroup {
        HostGroup {
            count: 0,
            gpus: 8,
            nics: 8,
            nic_bytes_per_s: 50_000_000_000,
            nvlink_bytes_per_s: 450_000_000_000,
            domain_hosts: 1,
        }
    }
}

/// Ranks on consecutive GPUs, in the order of the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementRun {
    pub ranks: RankList,
    /// The GPU of the first rank, counted over all hosts.
    pub gpu: u32,
    /// Ranks that share a GPU.
    pub ranks_per_gpu: u32,
}

/// Ranks whose links are slower than those of their host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpeedFactor {
    pub ranks: RankList,
    /// Of the NIC's speed, 1 to 100.
    pub nic_percent: u32,
    /// Of the GPU's NVLink speed, 1 to 100.
    pub nvlink_percent: u32,
    /// True if these ranks should send nothing that others hold too.
    pub is_drained: bool,
}

/// A level of the network above the NICs: hosts in cells of `hosts`, each cell
/// with one capacity out and one in. Traffic inside a cell is free.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FabricCut {
    pub name: String,
    /// Consecutive hosts of one cell.
    pub hosts: u32,
    /// True if every rail of these hosts is a cell of its own, as with
    /// rail-optimised leaf switches.
    pub by_rail: bool,
    pub out_bytes_per_s: u64,
    pub in_bytes_per_s: u64,
}

/// The plain data of a topology; [`Topology::new`](super::Topology::new)
/// checks it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopologySpec {
    pub hosts: Vec<HostGroup>,
    /// Empty: source ranks first, then destination ranks, on hosts of their
    /// own.
    pub placement: Vec<PlacementRun>,
    pub speeds: Vec<SpeedFactor>,
    pub cuts: Vec<FabricCut>,
    /// By which every message is late; it occupies no link meanwhile.
    pub latency_ns: u64,
    /// Bytes that a GPU packs or unpacks in a second.
    pub pack_bytes_per_s: u64,
}

/// Latency of a message if nothing else is said: 20 us.
pub const LATENCY_NS_DEFAULT: u64 = 20_000;
/// Packing speed if nothing else is said: reading and writing at four fifths
/// of a Hopper GPU's memory speed.
pub const PACK_BYTES_PER_S_DEFAULT: u64 = 1_340_000_000_000;
/// The highest speed that is believed, so that products stay inside 128 bits.
const SPEED_MAX: u64 = 1 << 50;
/// The longest latency that is believed: a minute.
const LATENCY_NS_MAX: u64 = 60_000_000_000;

impl Default for TopologySpec {
    fn default() -> TopologySpec {
        TopologySpec {
            hosts: vec![HostGroup::default()],
            placement: Vec::new(),
            speeds: Vec::new(),
            cuts: Vec::new(),
            latency_ns: LATENCY_NS_DEFAULT,
            pack_bytes_per_s: PACK_BYTES_PER_S_DEFAULT,
        }
    }
}

impl HostGroup {
    /// Places where a host meets the network: NICs of one GPU count as one
    /// port, GPUs of one NIC share one.
    pub fn ports(&self) -> u32 {
        self.nics.min(self.gpus)
    }

    /// Speed of one port, each way.
    pub fn port_bytes_per_s(&self) -> u64 {
        let each = u64::from(self.nics / self.ports().max(1));
        self.nic_bytes_per_s.saturating_mul(each)
    }

    fn validate(&self, at: &str, is_last: bool) -> Result<()> {
        let bad = |what: String| Err(Error::invalid(format!("topology: {at}: {what}")));
        if self.count == 0 && !is_last {
            return bad("count is 0; only the last group may grow with the ranks".into());
        }
        if self.gpus == 0 || self.domain_hosts == 0 {
            return bad(format!(
                "a host has {} GPUs and an NVLink domain {} hosts; both are at least 1",
                self.gpus, self.domain_hosts
            ));
        }
        let gpus = u64::from(self.count.max(1)) * u64::from(self.gpus);
        if gpus > u64::from(RANK_COUNT_MAX) {
            return Err(Error::limit(format!(
                "topology: {at}: {} hosts of {} GPUs; at most {RANK_COUNT_MAX} GPUs are allowed",
                self.count, self.gpus
            )));
        }
        let fits = self.nics == 0
            || self.gpus.is_multiple_of(self.nics)
            || self.nics.is_multiple_of(self.gpus);
        if !fits {
            return bad(format!(
                "{} NICs for {} GPUs; one number divides the other",
                self.nics, self.gpus
            ));
        }
        if self.nics != 0 {
            speed(at, "nic_bytes_per_s", self.nic_bytes_per_s)?;
        }
        speed(at, "nvlink_bytes_per_s", self.nvlink_bytes_per_s)
    }
}

impl TopologySpec {
    /// Checks everything that needs no layout.
    pub fn validate(&self) -> Result<()> {
        let lists = [
            self.hosts.len(),
            self.placement.len(),
            self.speeds.len(),
            self.cuts.len(),
        ];
        if let Some(n) = lists.iter().find(|&&n| n > TOPOLOGY_ENTRY_COUNT_MAX) {
            return Err(Error::limit(format!(
                "topology: a list has {n} entries; at most {TOPOLOGY_ENTRY_COUNT_MAX} are allowed"
            )));
        }
        if self.hosts.is_empty() {
            return Err(Error::invalid("topology: there is no group of hosts"));
        }
        for (i, group) in self.hosts.iter().enumerate() {
            group.validate(&format!("hosts[{i}]"), i + 1 == self.hosts.len())?;
        }
        for (i, run) in self.placement.iter().enumerate() {
            run.ranks.validate()?;
            if run.ranks_per_gpu == 0 {
                return Err(Error::invalid(format!(
                    "topology: placement[{i}]: ranks_per_gpu is 0; it is at least 1"
                )));
            }
        }
        for (i, s) in self.speeds.iter().enumerate() {
            s.validate(&format!("speeds[{i}]"))?;
        }
        for (i, c) in self.cuts.iter().enumerate() {
            c.validate(&format!("cuts[{i}]"))?;
        }
        if self.latency_ns > LATENCY_NS_MAX {
            return Err(Error::limit(format!(
                "topology: latency_ns is {}; at most {LATENCY_NS_MAX} are allowed",
                self.latency_ns
            )));
        }
        speed("the top level", "pack_bytes_per_s", self.pack_bytes_per_s)
    }
}

impl SpeedFactor {
    fn validate(&self, at: &str) -> Result<()> {
        self.ranks.validate()?;
        let percents = [
            ("nic_percent", self.nic_percent),
            ("nvlink_percent", self.nvlink_percent),
        ];
        match percents.iter().find(|(_, p)| !(1..=100).contains(p)) {
            None => Ok(()),
            Some((name, p)) => Err(Error::invalid(format!(
                "topology: {at}: {name} is {p}; it is 1 to 100, and a rank that should not send is drained"
            ))),
        }
    }
}

impl FabricCut {
    fn validate(&self, at: &str) -> Result<()> {
        if self.name.is_empty() || self.name.len() > NAME_BYTES_MAX {
            return Err(Error::limit(format!(
                "topology: {at}: the name has {} bytes; 1 to {NAME_BYTES_MAX} are allowed",
                self.name.len()
            )));
        }
        if self.hosts == 0 {
            return Err(Error::invalid(format!(
                "topology: {at} \"{}\": a cell has 0 hosts; it has at least 1",
                self.name
            )));
        }
        for (name, value) in [
            ("out_bytes_per_s", self.out_bytes_per_s),
            ("in_bytes_per_s", self.in_bytes_per_s),
        ] {
            if value == 0 {
                return Err(Error::invalid(format!(
                    "topology: {at} \"{}\": {name} is 0, which disconnects its cells of {} hosts from \
                     each other; leave the cut out if it does not limit",
                    self.name, self.hosts
                )));
            }
            speed(at, name, value)?;
        }
        Ok(())
    }
}

fn speed(at: &str, name: &str, value: u64) -> Result<()> {
    if (1..=SPEED_MAX).contains(&value) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "topology: {at}: {name} is {value}; speeds are 1 to {SPEED_MAX} bytes per second"
    )))
}
