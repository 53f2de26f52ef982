//! A topology from what every rank knows of itself.
//!
//! Each rank fills in a [`RankPlace`]; the caller gathers them over any
//! channel it has (`to_bytes` and `from_bytes` make them blobs) and every rank
//! builds the same topology from the same places, in any order.
//!
//! NICs of one name are one rail on all hosts, rails are in the order of these
//! names, and a GPU is on the rail of the first NIC that it is near to,
//! whatever the numbers of its ranks:
//!
//! ```text
//!   host A   rank 0 near mlx5_10   rank 1 near mlx5_2   ─► rank 1 rail 0
//!   host B   rank 2 near mlx5_2    rank 3 near mlx5_10  ─► rank 2 rail 0
//! ```

use super::Topology;
use super::spec::{HostGroup, PlacementRun, TopologySpec};
use crate::error::{Error, Result};
use crate::layout::frame;
use crate::layout::mesh::RankList;
use crate::limits::{NAME_BYTES_MAX, RANK_COUNT_MAX};
use crate::plan::sorting;
use crate::rank::Rank;
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
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
    /// Names of the NICs that this rank's GPU is near to; those of one name
    /// are one rail.
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
    /// In order of the lowest rank.
    devices: Vec<Device<'a>>,
    /// In order of their names.
    nics: Vec<&'a str>,
}

/// What they say about one device.
struct Device<'a> {
    name: &'a str,
    ranks: Vec<Rank>,
    /// The first NIC that it is near to, by name.
    nic: Option<&'a str>,
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
        sorting::sort(&mut sorted, |a, b| a.rank.cmp(&b.rank));
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
        let rails = Rails::of(&hosts);
        let mut spec = TopologySpec {
            hosts: Vec::new(),
            placement: Vec::new(),
            ..like.clone()
        };
        let mut gpu = 0;
        for host in in_domains(&hosts) {
            gpu = add_hosts(&mut spec, &host, &rails, &shape, gpu)?;
        }
        spec.placement = merged(spec.placement);
        Topology::new(spec)
    }
}

impl<'a> Host<'a> {
    fn add_device(&mut self, place: &'a RankPlace) {
        let nics = || place.nics.iter().map(String::as_str);
        self.nics.extend(nics());
        let i = match self.devices.iter().position(|d| d.name == place.device) {
            Some(i) => i,
            None => {
                self.devices.push(Device {
                    name: &place.device,
                    ranks: Vec::new(),
                    nic: None,
                });
                self.devices.len() - 1
            }
        };
        let device = &mut self.devices[i];
        device.ranks.push(place.rank);
        device.nic = device
            .nic
            .into_iter()
            .chain(nics())
            .min_by(|a, b| by_number(a, b));
    }

    /// Which of the host's `gpus` GPUs each device is: the first free one on
    /// the rail it is near to; where there is none, any that is free.
    fn slots(&self, gpus: u32, rails: &[&str], ports: u32) -> Vec<u32> {
        let mut is_free = vec![true; gpus as usize];
        let rail = |d: &Device<'_>| {
            let at = rails.iter().position(|n| Some(*n) == d.nic)? as u32;
            // Several NICs of one GPU are one rail.
            Some(u64::from(at) * u64::from(ports) / rails.len() as u64)
        };
        let mut slots: Vec<Option<u32>> = vec![None; self.devices.len()];
        for (slot, device) in slots.iter_mut().zip(&self.devices) {
            let is_on = |i: &u32| {
                is_free[*i as usize]
                    && rail(device) == Some(u64::from(*i) * u64::from(ports) / u64::from(gpus))
            };
            *slot = (0..gpus).find(is_on);
            if let Some(i) = *slot {
                is_free[i as usize] = false;
            }
        }
        let mut rest = (0..gpus).filter(|&i| is_free[i as usize]);
        let placed = slots.into_iter().map(|s| s.or_else(|| rest.next()));
        placed.map(|s| s.unwrap_or(0)).collect()
    }
}

/// As people count: `mlx5_2` before `mlx5_10`.
fn by_number(a: &str, b: &str) -> Ordering {
    numbered(a).cmp(&numbered(b)).then_with(|| a.cmp(b))
}

/// The parts of a name: text, and the number after it as length and digits.
fn numbered(name: &str) -> Vec<(&str, usize, &str)> {
    let mut parts = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let at = rest.find(|c: char| c.is_ascii_digit());
        let (text, tail) = rest.split_at(at.unwrap_or(rest.len()));
        let end = tail.find(|c: char| !c.is_ascii_digit());
        let (digits, next) = tail.split_at(end.unwrap_or(tail.len()));
        let digits = digits.trim_start_matches('0');
        parts.push((text, digits.len(), digits));
        rest = next;
    }
    parts
}

/// What hosts have in common whose NICs have the same names.
#[derive(Default)]
struct Rails<'a> {
    /// In order; empty if hosts do not agree.
    names: Vec<&'a str>,
    /// GPUs of the host that shows most.
    gpus: u32,
}

impl<'a> Rails<'a> {
    fn of(hosts: &[Host<'a>]) -> Rails<'a> {
        let mut names: Vec<&str> = hosts.iter().flat_map(|h| h.nics.iter().copied()).collect();
        names.sort_unstable_by(|a, b| by_number(a, b));
        names.dedup();
        let agree = hosts.iter().any(|h| h.nics.len() == names.len());
        if names.is_empty() || !agree {
            return Rails::default();
        }
        let gpus = hosts.iter().map(|h| h.devices.len()).max().unwrap_or(1);
        Rails {
            names,
            gpus: gpus as u32,
        }
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
        host.add_device(p);
    }
    for host in &mut hosts {
        host.nics.sort_unstable_by(|a, b| by_number(a, b));
        host.nics.dedup();
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

/// Adds the hosts of one domain and places their ranks; all hosts of a domain,
/// and all whose NICs have the same names, count as large as the largest. Returns the next free GPU.
fn add_hosts(
    spec: &mut TopologySpec,
    domain: &[&Host<'_>],
    rails: &Rails<'_>,
    shape: &HostGroup,
    mut gpu: u32,
) -> Result<u32> {
    let gpus = domain.iter().map(|h| h.devices.len()).max().unwrap_or(1) as u32;
    let gpus = gpus.max(rails.gpus);
    let nics = match rails.names.len() {
        0 => domain.iter().map(|h| h.nics.len()).max().unwrap_or(0),
        all => all,
    } as u32;
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
        let names = match rails.names.is_empty() {
            true => &host.nics,
            false => &rails.names,
        };
        let slots = host.slots(gpus, names, group.ports());
        for (slot, device) in slots.into_iter().zip(&host.devices) {
            spec.placement.push(PlacementRun {
                ranks: RankList::List(device.ranks.clone()).canonical(),
                gpu: gpu + slot,
                ranks_per_gpu: device.ranks.len() as u32,
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
