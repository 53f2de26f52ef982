//! What stragglers and failures do to a plan, by seed.

use super::SimulateOptions;
use super::engine::{Engine, Simulated};
use super::instance::Instance;
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::rank::Rank;
use serde::Serialize;

/// What to do to a plan; equal seeds choose equal ranks and times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StressOptions {
    pub seed: u64,
    /// Ranks whose links are slow.
    pub straggler_count: u32,
    /// Of their full speed, 1 to 100; 0 is 50.
    pub straggler_percent: u32,
    /// Ranks that stop for good at some time before the healthy end.
    pub failure_count: u32,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct StressReport {
    pub seed: u64,
    pub healthy_ns: u64,
    /// When everything was in place, or nothing moved any more.
    pub total_ns: u64,
    pub stragglers: Vec<u32>,
    /// Rank and time of each failure.
    pub failures: Vec<(u32, u64)>,
    /// Destination copies all of whose ranks got everything.
    pub copies_complete: u32,
    pub copies: u32,
    /// The chain of ranks that wait, if something failed.
    pub waiting: Vec<(Rank, u32)>,
}

impl Instance {
    /// Runs with some ranks slow and some dying. `self` is not compressed.
    pub fn stress(&self, plan: &Plan, options: &StressOptions) -> Result<StressReport> {
        let percent = match options.straggler_percent {
            0 => 50,
            p @ 1..=100 => p,
            p => {
                return Err(Error::invalid(format!(
                    "straggler_percent is {p}; it is 1 to 100"
                )));
            }
        };
        let count = self.nodes.len() as u32;
        let wanted = u64::from(options.straggler_count) + u64::from(options.failure_count);
        if wanted > u64::from(count) {
            return Err(Error::invalid(format!(
                "{} stragglers and {} failures are more than the {count} ranks of the plan",
                options.straggler_count, options.failure_count
            )));
        }
        let healthy = self.run(&SimulateOptions::default());
        let mut dice = Dice(options.seed);
        let mut chosen: Vec<u32> = (0..count).collect();
        dice.shuffle(&mut chosen);
        let (stragglers, rest) = chosen.split_at(options.straggler_count as usize);
        let mut engine = Engine::new(self, &SimulateOptions::default());
        let mut slowed = self.own_links(stragglers);
        slowed.sort_unstable();
        slowed.dedup();
        for l in slowed {
            let speed = &mut engine.capacity[l as usize];
            *speed = (u128::from(*speed) * u128::from(percent) / 100).max(1) as u64;
        }
        let mut failures = Vec::new();
        for &n in &rest[..options.failure_count as usize] {
            let at = dice.below(healthy.total_ns.max(1));
            failures.push((self.nodes[n as usize].rank.0, at));
            engine.fail(n, at);
        }
        let ran = engine.run();
        let copies = plan.destination().copy_count();
        Ok(StressReport {
            seed: options.seed,
            healthy_ns: healthy.total_ns,
            total_ns: ran.total_ns,
            stragglers: stragglers
                .iter()
                .map(|&n| self.nodes[n as usize].rank.0)
                .collect(),
            copies_complete: copies - self.torn_copies(plan, &ran, &failures),
            failures,
            copies,
            waiting: ran.stuck.map_or(Vec::new(), |s| s.waiting),
        })
    }

    /// The links that only these nodes load: out of and into each.
    fn own_links(&self, nodes: &[u32]) -> Vec<u32> {
        let mut links = Vec::new();
        for f in &self.flows {
            let path = &self.paths[f.path as usize];
            if nodes.contains(&f.from) {
                links.push(path[0].0);
            }
            if nodes.contains(&f.to) {
                links.push(path[1.min(path.len() - 1)].0);
            }
        }
        links
    }

    fn torn_copies(&self, plan: &Plan, ran: &Simulated, failures: &[(u32, u64)]) -> u32 {
        let mut torn = vec![false; plan.destination().copy_count() as usize];
        for (node, &done) in self.nodes.iter().zip(&ran.node_steps_done) {
            let Some(copy) = plan.copy_of(node.rank) else {
                continue;
            };
            let has_failed = failures.iter().any(|(r, _)| *r == node.rank.0);
            if done < self.step_count || has_failed {
                torn[copy as usize] = true;
            }
        }
        torn.into_iter().filter(|t| *t).count() as u32
    }
}

/// SplitMix64: small, the same everywhere.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    fn shuffle(&mut self, list: &mut [u32]) {
        for i in (1..list.len()).rev() {
            list.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}
