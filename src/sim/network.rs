//! The links that flows share, and which of them a pair uses.

use crate::error::{Error, Result};
use crate::plan::topology::{Site, Topology};
use crate::rank::Rank;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

/// What a link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkKind {
    NicOut,
    NicIn,
    NvlinkOut,
    NvlinkIn,
    /// Out of a cell of a cut of the network.
    CutOut,
    CutIn,
    /// Between ranks of one GPU.
    Memory,
}

impl LinkKind {
    pub const fn name(self) -> &'static str {
        match self {
            LinkKind::NicOut => "NIC out",
            LinkKind::NicIn => "NIC in",
            LinkKind::NvlinkOut => "NVLink out",
            LinkKind::NvlinkIn => "NVLink in",
            LinkKind::CutOut => "cut out",
            LinkKind::CutIn => "cut in",
            LinkKind::Memory => "memory",
        }
    }
}

/// One direction of something with a capacity.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Link {
    pub kind: LinkKind,
    /// The port, GPU or cell.
    pub place: String,
    pub bytes_per_s: u64,
}

impl std::fmt::Display for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {}", self.kind.name(), self.place)
    }
}

/// The links that bytes from one rank to another cross, in the order in which
/// they do: memory alone within a GPU, NVLink within a domain, else the NICs
/// with the cuts of the network between them.
///
/// Fails if a rank has no place.
pub fn links_between(topology: &Topology, from: Rank, to: Rank) -> Result<Vec<Link>> {
    let site = |rank: Rank| {
        let unplaced = || Error::invalid(format!("topology: rank {rank} has no place")).by(rank);
        topology.site(rank).ok_or_else(unplaced)
    };
    let (from, to) = (site(from)?, site(to)?);
    let mut network = Network::new(topology);
    let path = network.path(&from, &to);
    let crossed = network.in_travel_order(&path);
    Ok(crossed.map(|l| network.links[l as usize].clone()).collect())
}

/// Links of one pair and how many of its flows each carries: 1 but for
/// classes of ranks.
pub type Path = SmallVec<[(u32, u32); 4]>;

/// Links in the order in which pairs first use them.
pub struct Network<'a> {
    topology: &'a Topology,
    pub links: Vec<Link>,
    index: FxHashMap<(LinkKind, u32, u64), u32>,
}

impl<'a> Network<'a> {
    pub fn new(topology: &'a Topology) -> Network<'a> {
        Network {
            topology,
            links: Vec::new(),
            index: FxHashMap::default(),
        }
    }

    /// The links from one site to another.
    pub fn path(&mut self, from: &Site, to: &Site) -> Path {
        if from.gpu == to.gpu {
            let speed = self.topology.pack_bytes_per_s();
            return self.one(LinkKind::Memory, from, speed);
        }
        if from.domain == to.domain {
            let mut path = self.one(LinkKind::NvlinkOut, from, from.nvlink_bytes_per_s);
            path.extend(self.one(LinkKind::NvlinkIn, to, to.nvlink_bytes_per_s));
            return path;
        }
        let mut path = self.one(LinkKind::NicOut, from, from.nic_bytes_per_s);
        path.extend(self.one(LinkKind::NicIn, to, to.nic_bytes_per_s));
        for cut in 0..self.topology.cuts().len() {
            let (a, b) = (self.topology.cell(cut, from), self.topology.cell(cut, to));
            if a != b {
                path.push((self.cut(LinkKind::CutOut, cut, a), 1));
                path.push((self.cut(LinkKind::CutIn, cut, b), 1));
            }
        }
        path
    }

    /// Out of ever larger cells of the network, then into ever smaller ones.
    fn in_travel_order(&self, path: &Path) -> impl Iterator<Item = u32> + use<> {
        let size = |cut: u32| {
            let cut = &self.topology.cuts()[cut as usize];
            2 * i64::from(cut.hosts) - i64::from(cut.by_rail)
        };
        let mut keyed: Vec<((u32, i64), u32)> = Vec::new();
        for (&(kind, cut, _), &link) in &self.index {
            if path.iter().all(|&(l, _)| l != link) {
                continue;
            }
            let when = match kind {
                LinkKind::NicOut | LinkKind::NvlinkOut | LinkKind::Memory => (0, 0),
                LinkKind::CutOut => (1, size(cut)),
                LinkKind::CutIn => (2, -size(cut)),
                LinkKind::NicIn | LinkKind::NvlinkIn => (3, 0),
            };
            keyed.push((when, link));
        }
        keyed.sort_unstable();
        keyed.into_iter().map(|(_, link)| link)
    }

    fn one(&mut self, kind: LinkKind, site: &Site, speed: u64) -> Path {
        let (key, place) = match kind {
            LinkKind::NicOut | LinkKind::NicIn => (site.port.unwrap_or(u32::MAX), "rail"),
            _ => (site.gpu, "GPU"),
        };
        let id = self.link((kind, 0, u64::from(key)), speed, || {
            let local = match place {
                "rail" => site.rail,
                _ => site.gpu,
            };
            format!("host {}, {place} {local}", site.host)
        });
        SmallVec::from_slice(&[(id, 1)])
    }

    fn cut(&mut self, kind: LinkKind, cut: usize, cell: u64) -> u32 {
        let c = &self.topology.cuts()[cut];
        let speed = match kind {
            LinkKind::CutOut => c.out_bytes_per_s,
            _ => c.in_bytes_per_s,
        };
        let name = match c.by_rail {
            true => format!("\"{}\", cell {}, rail {}", c.name, cell >> 32, cell as u32),
            false => format!("\"{}\", cell {cell}", c.name),
        };
        self.link((kind, cut as u32, cell), speed, || name)
    }

    fn link(
        &mut self,
        key: (LinkKind, u32, u64),
        bytes_per_s: u64,
        place: impl FnOnce() -> String,
    ) -> u32 {
        let links = &mut self.links;
        *self.index.entry(key).or_insert_with(|| {
            links.push(Link {
                kind: key.0,
                place: place(),
                bytes_per_s,
            });
            links.len() as u32 - 1
        })
    }
}
