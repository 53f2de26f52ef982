//! What is simulated: flows between nodes over links, and each node's own
//! work. Made from the programs of a plan, or by hand.

use super::SimulateOptions;
use super::engine::{Engine, Simulated};
use super::network::{Link, Network, Path};
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::plan::program::{Direction, Program};
use crate::plan::topology::{Site, Topology};
use crate::rank::Rank;
use rustc_hash::FxHashMap;

/// Ranks that are simulated one by one, at most.
pub const SIMULATED_RANK_COUNT_MAX: usize = 1 << 14;

/// One rank, or a class of ranks that all do the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    pub rank: Rank,
    /// Ranks of the class.
    pub count: u32,
    /// Bytes that are packed before, unpacked after, and copied within the
    /// rank during each step.
    pub pack: Vec<u64>,
    pub unpack: Vec<u64>,
    pub local: Vec<u64>,
    /// True if each step waits for the one before to be in place.
    pub is_serial: bool,
}

/// Bytes from one node to another, in one step of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    pub from: u32,
    pub to: u32,
    pub from_step: u32,
    pub to_step: u32,
    pub bytes: u64,
    /// Index into [`Instance::paths`].
    pub path: u32,
}

/// A whole problem for the simulator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Instance {
    pub links: Vec<Link>,
    pub nodes: Vec<Node>,
    pub paths: Vec<Path>,
    pub flows: Vec<Flow>,
    pub step_count: u32,
    pub latency_ns: u64,
    pub pack_bytes_per_s: u64,
    /// Steps of a node that may be on the wire at a time.
    pub steps_in_flight: u32,
}

/// Steps of a rank on the wire at a time: staging is double-buffered.
pub const STEPS_IN_FLIGHT: u32 = 2;

impl Instance {
    /// The programs of all ranks of a plan, on a topology that has them placed.
    pub fn of_plan(plan: &Plan, topology: &Topology) -> Result<Instance> {
        Ok(Instance::of_plan_with_staging(plan, topology)?.0)
    }

    /// The same, and the staging of the rank that has most.
    pub fn of_plan_with_staging(plan: &Plan, topology: &Topology) -> Result<(Instance, u64)> {
        let ranks = plan.participants();
        if ranks.len() > SIMULATED_RANK_COUNT_MAX {
            return Err(Error::limit(format!(
                "the plan has {} ranks; at most {SIMULATED_RANK_COUNT_MAX} are simulated one by one, \
                 and the report of a larger plan has a time predicted from a smaller one",
                ranks.len()
            )));
        }
        let mut builder = Builder::new(plan, topology, ranks)?;
        let mut staging = 0;
        let mut at = 0..;
        plan.each_program(ranks, |program| {
            staging = staging.max(program.memory_bytes());
            builder.add(at.next().unwrap_or_default(), &program)
        })?;
        Ok((builder.finish()?, staging))
    }

    /// Runs to the end, or until nothing moves any more.
    pub fn run(&self, options: &SimulateOptions) -> Simulated {
        Engine::new(self, options).run()
    }

    /// How long the busiest link would take on its own.
    pub fn busiest_ns(&self) -> u64 {
        let longest = self.times_ns().max().unwrap_or(0);
        longest.min(u128::from(u64::MAX)) as u64
    }

    /// The link that takes longest on its own, the first of equals.
    pub fn busiest(&self) -> Option<usize> {
        let times = self.times_ns().enumerate();
        let longest = times.max_by_key(|&(i, ns)| (ns, std::cmp::Reverse(i)));
        longest.map(|(i, _)| i)
    }

    /// How long each link would take on its own.
    fn times_ns(&self) -> impl Iterator<Item = u128> {
        self.links.iter().zip(self.loads()).map(|(link, bytes)| {
            u128::from(bytes) * 1_000_000_000 / u128::from(link.bytes_per_s.max(1))
        })
    }

    /// Bytes that each link carries in all.
    pub fn loads(&self) -> Vec<u64> {
        let mut loads = vec![0u64; self.links.len()];
        for f in &self.flows {
            for &(link, weight) in &self.paths[f.path as usize] {
                loads[link as usize] += f.bytes * u64::from(weight);
            }
        }
        loads
    }
}

pub(super) struct Builder<'a> {
    ranks: &'a [Rank],
    sites: Vec<Site>,
    network: Network<'a>,
    path_of: FxHashMap<(u32, u32), u32>,
    flow_of: FxHashMap<(u32, u32, u32), u32>,
    /// Bytes each flow has been announced with by its receiver.
    pub(super) expected: Vec<u64>,
    pub(super) instance: Instance,
}

impl<'a> Builder<'a> {
    pub(super) fn new(
        plan: &Plan,
        topology: &'a Topology,
        ranks: &'a [Rank],
    ) -> Result<Builder<'a>> {
        let mut sites = Vec::with_capacity(ranks.len());
        for &rank in ranks {
            sites.push(topology.site(rank).ok_or_else(|| {
                Error::invalid(format!("topology: rank {rank} has no place")).by(rank)
            })?);
        }
        Ok(Builder {
            ranks,
            sites,
            network: Network::new(topology),
            path_of: FxHashMap::default(),
            flow_of: FxHashMap::default(),
            expected: Vec::new(),
            instance: Instance {
                step_count: plan.step_count(),
                latency_ns: topology.latency_ns(),
                pack_bytes_per_s: topology.pack_bytes_per_s(),
                steps_in_flight: STEPS_IN_FLIGHT,
                ..Instance::default()
            },
        })
    }

    pub(super) fn add(&mut self, at: u32, program: &Program) -> Result<()> {
        let steps = self.instance.step_count as usize;
        let mut node = Node {
            rank: program.rank,
            count: 1,
            pack: vec![0; steps],
            unpack: vec![0; steps],
            local: vec![0; steps],
            is_serial: program.forwards(),
        };
        for (s, step) in program.steps.iter().enumerate() {
            node.local[s] = program.locals_of(step).iter().map(|l| l.bytes).sum();
        }
        for m in &program.messages {
            let peer = self.ranks.binary_search(&m.peer).map_err(|_| {
                Error::internal(format!(
                    "rank {} has peer {}, which takes no part",
                    program.rank, m.peer
                ))
            })? as u32;
            let (from, to) = match m.direction {
                Direction::Send => (at, peer),
                Direction::Receive => (peer, at),
            };
            let staged = match m.direction {
                Direction::Send => &mut node.pack,
                Direction::Receive => &mut node.unpack,
            };
            if !m.is_direct && !m.is_packed_before {
                let pieces = program.pieces_of(m).iter();
                staged[m.step() as usize] += pieces.map(|p| p.bytes).sum::<u64>();
            }
            let flow = self.flow(from, to, m.step());
            match m.direction {
                Direction::Send => self.instance.flows[flow].bytes += m.bytes,
                Direction::Receive => self.expected[flow] += m.bytes,
            }
        }
        self.instance.nodes.push(node);
        Ok(())
    }

    fn flow(&mut self, from: u32, to: u32, step: u32) -> usize {
        if let Some(&f) = self.flow_of.get(&(from, to, step)) {
            return f as usize;
        }
        let path = match self.path_of.get(&(from, to)) {
            Some(&p) => p,
            None => {
                let (a, b) = (self.sites[from as usize], self.sites[to as usize]);
                self.instance.paths.push(self.network.path(&a, &b));
                let p = self.instance.paths.len() as u32 - 1;
                self.path_of.insert((from, to), p);
                p
            }
        };
        let f = self.instance.flows.len() as u32;
        self.instance.flows.push(Flow {
            from,
            to,
            from_step: step,
            to_step: step,
            bytes: 0,
            path,
        });
        self.expected.push(0);
        self.flow_of.insert((from, to, step), f);
        f as usize
    }

    pub(super) fn finish(self) -> Result<Instance> {
        for (flow, expected) in self.instance.flows.iter().zip(&self.expected) {
            if flow.bytes != *expected {
                let rank = |i: u32| self.ranks[i as usize];
                return Err(Error::internal(format!(
                    "in step {} rank {} sends {} bytes to rank {}, which expects {expected}",
                    flow.from_step,
                    rank(flow.from),
                    flow.bytes,
                    rank(flow.to)
                )));
            }
        }
        Ok(Instance {
            links: self.network.links,
            ..self.instance
        })
    }
}
