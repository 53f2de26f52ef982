//! The same problem with one node for all ranks that do the same.
//!
//! Nodes and links start with a colour for what they are; flows get theirs
//! from both ends, steps, bytes and links; nodes and links again from their
//! flows; until no colour splits any more. Ranks of one colour then see the
//! same rates at all times, so one of them stands for all, and a link carries
//! as many flows of a class as one link of its class did.

use super::SimulateOptions;
use super::engine::Simulated;
use super::instance::{Flow, Instance, Node};
use super::network::Path;
use rustc_hash::{FxHashMap, FxHashSet};
use std::borrow::Cow;
use xxhash_rust::xxh3::xxh3_64;

/// Flows whose bytes differ by less than this fraction count as the larger.
const ALIKE_FRACTION: u64 = 1024;
/// Rounds of colouring, at most; stopping early is never reached in practice
/// and would be noticed, since classes must be stable.
const ROUNDS_MAX: usize = 64;

/// Instances of fewer flows are simulated as they are.
const EXACT_FLOW_COUNT: usize = 4096;
/// Quanta that a step of a bound is cut into where an instance stays large.
const STEP_QUANTA: u64 = 256;

impl Instance {
    /// Runs an instance of any size: as it is, by classes, or with rates that
    /// change only every so often. `lower_ns` is a bound, to tell how often.
    pub fn run_fast(&self, lower_ns: u64) -> Simulated {
        if self.flows.len() <= EXACT_FLOW_COUNT {
            return self.run(&SimulateOptions::default());
        }
        let ran = self.compressed().run_roughly(lower_ns, STEP_QUANTA);
        Simulated {
            flow_count: self.flows.len() as u64,
            ..ran
        }
    }

    /// What [`run_fast`](Instance::run_fast) runs, and the node in it that
    /// stands for each node.
    pub(super) fn compressed_if_large(&self) -> (Cow<'_, Instance>, Vec<u32>) {
        if self.flows.len() <= EXACT_FLOW_COUNT {
            let each = (0..self.nodes.len() as u32).collect();
            return (Cow::Borrowed(self), each);
        }
        let (small, class_of) = self.with_classes();
        (Cow::Owned(small), class_of)
    }

    /// Runs an instance as it is; of many flows, rates change only `quanta`
    /// times in a step of the bound `lower_ns`.
    pub fn run_roughly(&self, lower_ns: u64, quanta: u64) -> Simulated {
        self.run(&SimulateOptions {
            quantum_ns: self.quantum_of(lower_ns, quanta),
            ..SimulateOptions::default()
        })
    }

    /// How often rates change in [`run_fast`](Instance::run_fast).
    pub(super) fn quantum_ns(&self, lower_ns: u64) -> u64 {
        self.quantum_of(lower_ns, STEP_QUANTA)
    }

    fn quantum_of(&self, lower_ns: u64, quanta: u64) -> u64 {
        match self.flows.len() > EXACT_FLOW_COUNT {
            true => lower_ns / (u64::from(self.step_count) * quanta),
            false => 0,
        }
    }

    /// A smaller instance that takes the same time: exact where flows have
    /// equal bytes, at most a thousandth slower where they nearly have.
    pub fn compressed(&self) -> Instance {
        self.with_classes().0
    }

    /// The smaller instance, and the node in it that stands for each node.
    fn with_classes(&self) -> (Instance, Vec<u32>) {
        let mut even = self.clone();
        even.make_alike();
        let colors = Colors::of(&even);
        let nodes = Classes::of(&colors.nodes);
        (even.quotient(&colors, &nodes), nodes.of)
    }

    /// Rounds the bytes of flows and of device work up to the next larger ones
    /// that are nearly equal.
    fn make_alike(&mut self) {
        let mut all: Vec<u64> = self.flows.iter().map(|f| f.bytes).collect();
        for n in &self.nodes {
            all.extend(n.pack.iter().chain(&n.unpack).chain(&n.local));
        }
        let map = alike(all);
        for f in &mut self.flows {
            f.bytes = map[&f.bytes];
        }
        for n in &mut self.nodes {
            let work = n.pack.iter_mut().chain(&mut n.unpack).chain(&mut n.local);
            for b in work {
                *b = map[b];
            }
        }
    }

    fn quotient(&self, colors: &Colors, nodes: &Classes) -> Instance {
        let links = Classes::of(&colors.links);
        let flows = Classes::of(&colors.flows);
        // How many flows of its class share each link of a representative.
        let mut shared: FxHashMap<(u32, u32), u32> = FxHashMap::default();
        for &f in &flows.first {
            for &(l, _) in &self.paths[self.flows[f as usize].path as usize] {
                shared.insert((flows.of[f as usize], l), 0);
            }
        }
        for (f, flow) in self.flows.iter().enumerate() {
            for &(l, weight) in &self.paths[flow.path as usize] {
                if let Some(n) = shared.get_mut(&(flows.of[f], l)) {
                    *n += weight;
                }
            }
        }
        let mut out = Instance {
            links: links
                .first
                .iter()
                .map(|&l| self.links[l as usize].clone())
                .collect(),
            nodes: nodes
                .first
                .iter()
                .map(|&n| self.nodes[n as usize].clone())
                .collect(),
            paths: Vec::with_capacity(flows.first.len()),
            flows: Vec::with_capacity(flows.first.len()),
            ..*self
        };
        for node in &mut out.nodes {
            node.count = 0;
        }
        for (n, node) in self.nodes.iter().enumerate() {
            out.nodes[nodes.of[n] as usize].count += node.count;
        }
        for &f in &flows.first {
            let flow = self.flows[f as usize];
            let mut path = Path::new();
            for &(l, _) in &self.paths[flow.path as usize] {
                path.push((links.of[l as usize], shared[&(flows.of[f as usize], l)]));
            }
            out.paths.push(path);
            out.flows.push(Flow {
                from: nodes.of[flow.from as usize],
                to: nodes.of[flow.to as usize],
                path: out.paths.len() as u32 - 1,
                ..flow
            });
        }
        out
    }
}

/// Each value with the largest one that it is alike to.
fn alike(mut all: Vec<u64>) -> FxHashMap<u64, u64> {
    all.sort_unstable();
    all.dedup();
    let mut top = 0;
    let mut map = FxHashMap::default();
    for &v in all.iter().rev() {
        if top - v.min(top) >= top.div_ceil(ALIKE_FRACTION) || v > top {
            top = v;
        }
        map.insert(v, top);
    }
    map
}

/// Numbers of classes, in the order of their first members.
struct Classes {
    of: Vec<u32>,
    first: Vec<u32>,
}

impl Classes {
    fn of(colors: &[u64]) -> Classes {
        let mut known: FxHashMap<u64, u32> = FxHashMap::default();
        let mut first = Vec::new();
        let of = colors.iter().enumerate().map(|(i, c)| {
            *known.entry(*c).or_insert_with(|| {
                first.push(i as u32);
                first.len() as u32 - 1
            })
        });
        let of = of.collect();
        Classes { of, first }
    }
}

struct Colors {
    nodes: Vec<u64>,
    links: Vec<u64>,
    flows: Vec<u64>,
}

impl Colors {
    fn of(instance: &Instance) -> Colors {
        let mut colors = Colors {
            nodes: instance.nodes.iter().map(node_color).collect(),
            links: instance
                .links
                .iter()
                .map(|l| mix(&[l.kind as u64, l.bytes_per_s]))
                .collect(),
            flows: vec![0; instance.flows.len()],
        };
        let mut count = 0;
        for _ in 0..ROUNDS_MAX {
            colors.refine(instance);
            let now = distinct(&colors.nodes) + distinct(&colors.links);
            if now == count {
                break;
            }
            count = now;
        }
        colors
    }

    fn refine(&mut self, instance: &Instance) {
        // Sums of mixed colours do not depend on the order of flows.
        let mut nodes: Vec<u64> = vec![0; self.nodes.len()];
        let mut links: Vec<u64> = vec![0; self.links.len()];
        for (f, flow) in instance.flows.iter().enumerate() {
            let path = &instance.paths[flow.path as usize];
            let mut color = mix(&[
                self.nodes[flow.from as usize],
                self.nodes[flow.to as usize],
                u64::from(flow.from_step) << 32 | u64::from(flow.to_step),
                flow.bytes,
            ]);
            for &(l, weight) in path {
                color = mix(&[color, self.links[l as usize], u64::from(weight)]);
            }
            self.flows[f] = color;
            let (from, to) = (&[color, 1], &[color, 2]);
            nodes[flow.from as usize] = nodes[flow.from as usize].wrapping_add(mix(from));
            nodes[flow.to as usize] = nodes[flow.to as usize].wrapping_add(mix(to));
            for (i, &(l, _)) in (3u64..).zip(path) {
                links[l as usize] = links[l as usize].wrapping_add(mix(&[color, i]));
            }
        }
        for (old, sum) in self.nodes.iter_mut().zip(nodes) {
            *old = mix(&[*old, sum]);
        }
        for (old, sum) in self.links.iter_mut().zip(links) {
            *old = mix(&[*old, sum]);
        }
    }
}

fn node_color(n: &Node) -> u64 {
    let mut color = u64::from(n.is_serial);
    for work in [&n.pack, &n.unpack, &n.local] {
        for b in work {
            color = mix(&[color, *b]);
        }
    }
    color
}

fn distinct(colors: &[u64]) -> usize {
    colors.iter().collect::<FxHashSet<_>>().len()
}

fn mix(words: &[u64]) -> u64 {
    let mut bytes = [0u8; 32];
    for (slot, w) in bytes.chunks_exact_mut(8).zip(words) {
        slot.copy_from_slice(&w.to_le_bytes());
    }
    xxh3_64(&bytes[..8 * words.len()])
}
