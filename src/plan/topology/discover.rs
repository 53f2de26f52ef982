//! A topology from what every rank knows of itself.
//!
//! Each rank fills in a [`RankPlace`]; the caller gathers them over any
//! channel it has (`to_bytes` and `from_bytes` make them blobs) and every rank
//! builds the same topology from the same places, in any order.

use super::Topology;
use super::spec::{HostGroup, PlacementRun, TopologySpec};
use crate::error::{Error, Result};
use crate::layout::frame;
use crate::layout::mesh::RankList;
use crate::limits::{NAME_BYTES_MAX, RANK_COUNT_MAX};
use crate::rank::Rank;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const MAGIC: [u8; 8] = *b"WSYNCPLC";
const VERSION: u32 = 1;
const WHAT: &str = "the place of a rank";
/// NICs that one rank may name.
const NIC_COUNT_MAX: usize = 64;

/// Where one rank says that it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankPlace {
    pub rank: Rank,
    /// Equal on all ranks of a host, and on no others.
    pub host: String,
    /// Of the GPU; ranks of one uuid are colocated.
    pub device: String,
    /// Of the NVLink fabric that spans hosts; empty where it does not.
    pub domain: String,
    /// Names of the NICs that this rank's GPU is near to.
    pub nics: Vec<String>,
}

impl RankPlace {
    pub fn to_bytes(&self) -> Vec<u8> {
        let payload = postcard::to_stdvec(self).expect("numbers and names always serialise");
        frame::seal(MAGIC, VERSION, &payload)
    }

    /// Reads what [`to_bytes`](RankPlace::to_bytes) wrote.
    pub fn from_bytes(bytes: &[u8]) -> Result<RankPlace> {
        let payload = frame::open(MAGIC, VERSION, WHAT, bytes)?;
        postcard::from_bytes(payload)
            .map_err(|e| Error::corrupt(format!("{WHAT} cannot be read: {e}")))
    }

    /// Refuses empty host or device names, and names that are too long.
    pub fn validate(&self) -> Result<()> {
        let rank = self.rank;
        if rank.0 >= RANK_COUNT_MAX {
            return Err(Error::limit(format!(
                "rank {rank} is out of range; ranks are 0 to {}",
                RANK_COUNT_MAX - 1
            )));
        }
        if self.host.is_empty() || self.device.is_empty() {
            return Err(Error::invalid(format!(
                "rank {rank} says host \"{}\" and device \"{}\"; neither may be empty",
                self.host, self.device
            ))
            .by(rank));
        }
        let names = [&self.host, &self.device, &self.domain];
        let long = names.into_iter().chain(&self.nics).map(|n| n.len()).max();
        if long > Some(NAME_BYTES_MAX) || self.nics.len() > NIC_COUNT_MAX {
            return Err(Error::limit(format!(
                "rank {rank} names {} NICs and has a name of {} bytes; at most {NIC_COUNT_MAX} and \
                 {NAME_BYTES_MAX} are allowed",
                self.nics.len(),
                long.unwrap_or(0)
            ))
            .by(rank));
        }
        Ok(())
    }
}

/// What the places say about one host.
#[derive(Default)]
struct Host<'a> {
    domain: &'a str,
    /// Devices with their ranks, in order of the lowest rank.
    devices: Vec<(&'a str, Vec<Rank>)>,
    nics: Vec<&'a str>,
}

impl Topology {
    /// The topology of ranks that said where they are. `like` gives what ranks
    /// cannot know: speeds, cuts, latency; its first group of hosts those of
    /// all hosts, its counts and placement are not looked at.
    ///
    /// Fails if a rank speaks twice, a device is on two hosts, or a host in
    /// two domains.
    pub fn discover(places: &[RankPlace], like: &TopologySpec) -> Result<Topology> {
        let mut sorted: Vec<&RankPlace> = places.iter().collect();
        sorted.sort_by_key(|p| p.rank);
        if sorted.is_empty() {
            return Err(Error::invalid("topology: no rank has said where it is"));
        }
        if let Some(w) = sorted.windows(2).find(|w| w[0].rank == w[1].rank) {
            return Err(Error::invalid(format!(
                "topology: rank {} has said twice where it is, on host \"{}\" and on host \"{}\"",
                w[0].rank, w[0].host, w[1].host
            ))
            .by(w[0].rank));
        }
        let shape = like.hosts.first().cloned().unwrap_or_default();
        let hosts = hosts_of(&sorted)?;
        let mut spec = TopologySpec {
            hosts: Vec::new(),
            placement: Vec::new(),
            ..like.clone()
        };
        let mut gpu = 0;
        for host in in_domains(&hosts) {
            gpu = add_hosts(&mut spec, &host, &shape, gpu)?;
        }
        spec.placement = merged(spec.placement);
        Topology::new(spec)
    }
}

/// Hosts in order of their lowest rank.
fn hosts_of<'a>(places: &[&'a RankPlace]) -> Result<Vec<Host<'a>>> {
    let mut index: BTreeMap<&str, usize> = BTreeMap::new();
    let mut home: BTreeMap<&str, &str> = BTreeMap::new();
    let mut hosts: Vec<Host<'a>> = Vec::new();
    for p in places {
        p.validate()?;
        let at = *home.entry(&p.device).or_insert(&p.host);
        if at != p.host {
            return Err(Error::invalid(format!(
                "topology: device \"{}\" of rank {} is on host \"{}\" and on host \"{at}\"",
                p.device, p.rank, p.host
            ))
            .by(p.rank));
        }
        let i = *index.entry(&p.host).or_insert_with(|| {
            hosts.push(Host {
                domain: &p.domain,
                ..Host::default()
            });
            hosts.len() - 1
        });
        let host = &mut hosts[i];
        if host.domain != p.domain {
            return Err(Error::invalid(format!(
                "topology: rank {} says that host \"{}\" is in NVLink domain \"{}\", another rank \"{}\"",
                p.rank, p.host, p.domain, host.domain
            ))
            .by(p.rank));
        }
        match host.devices.iter_mut().find(|d| d.0 == p.device) {
            Some(d) => d.1.push(p.rank),
            None => host.devices.push((&p.device, vec![p.rank])),
        }
        for nic in &p.nics {
            if !host.nics.contains(&nic.as_str()) {
                host.nics.push(nic);
            }
        }
    }
    Ok(hosts)
}

/// Hosts that share NVLink, together, in order of their lowest rank.
fn in_domains<'h, 'a>(hosts: &'h [Host<'a>]) -> Vec<Vec<&'h Host<'a>>> {
    let mut index: BTreeMap<&str, usize> = BTreeMap::new();
    let mut domains: Vec<Vec<&Host<'_>>> = Vec::new();
    for h in hosts {
        if h.domain.is_empty() {
            domains.push(vec![h]);
            continue;
        }
        let i = *index.entry(h.domain).or_insert_with(|| {
            domains.push(Vec::new());
            domains.len() - 1
        });
        domains[i].push(h);
    }
    domains
}

/// Adds the hosts of one domain and places their ranks; all hosts of a domain
/// count as large as its largest. Returns the next free GPU.
fn add_hosts(
    spec: &mut TopologySpec,
    domain: &[&Host<'_>],
    shape: &HostGroup,
    mut gpu: u32,
) -> Result<u32> {
    let gpus = domain.iter().map(|h| h.devices.len()).max().unwrap_or(1) as u32;
    let nics = domain.iter().map(|h| h.nics.len()).max().unwrap_or(0) as u32;
    // Ranks that name no NIC, or an odd number of them, have one each.
    let nics = match nics {
        n if n > 0 && (gpus.is_multiple_of(n) || n.is_multiple_of(gpus)) => n,
        _ => gpus,
    };
    let group = HostGroup {
        count: domain.len() as u32,
        gpus,
        nics,
        domain_hosts: domain.len() as u32,
        ..shape.clone()
    };
    for host in domain {
        for (i, (_, ranks)) in host.devices.iter().enumerate() {
            spec.placement.push(PlacementRun {
                ranks: RankList::List(ranks.clone()).canonical(),
                gpu: gpu + i as u32,
                ranks_per_gpu: ranks.len() as u32,
            });
        }
        gpu = gpu
            .checked_add(gpus)
            .filter(|&g| g <= RANK_COUNT_MAX)
            .ok_or_else(|| {
                Error::limit(format!(
                    "topology: the hosts have more than {RANK_COUNT_MAX} GPUs"
                ))
            })?;
    }
    match spec.hosts.last_mut() {
        Some(last) if is_alike(last, &group) => last.count += group.count,
        _ => spec.hosts.push(group),
    }
    Ok(gpu)
}

fn is_alike(a: &HostGroup, b: &HostGroup) -> bool {
    let shape = |g: &HostGroup| HostGroup {
        count: 0,
        ..g.clone()
    };
    shape(a) == shape(b)
}

/// Consecutive ranks on consecutive GPUs as one run.
fn merged(placement: Vec<PlacementRun>) -> Vec<PlacementRun> {
    let mut out: Vec<PlacementRun> = Vec::new();
    for p in placement {
        let Some(last) = out.last_mut() else {
            out.push(p);
            continue;
        };
        match (&mut last.ranks, &p.ranks) {
            (
                RankList::Range { first, count },
                RankList::Range {
                    first: next,
                    count: more,
                },
            ) if *first + *count == *next
                && last.ranks_per_gpu == p.ranks_per_gpu
                && last.gpu + *count / last.ranks_per_gpu == p.gpu =>
            {
                *count += more;
            }
            _ => out.push(p),
        }
    }
    out
}
