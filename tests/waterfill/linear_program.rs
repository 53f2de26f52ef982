//! The optimum that water-filling has to reach, by a linear program.

use microlp::{ComparisonOp, OptimizationDirection, Problem};
use std::collections::BTreeMap;

/// Bytes that any of some senders can send.
pub struct Pool {
    pub bytes: f64,
    pub senders: Vec<usize>,
}

/// The least time in which all pools are sent: the largest time of any sender,
/// made as small as can be. Pools that share no sender are solved apart.
pub fn least_time(pools: &[Pool], bytes_per_s: &[f64]) -> f64 {
    let parts = connected(pools, bytes_per_s.len());
    let times = parts.iter().map(|pools| solve(pools, bytes_per_s));
    times.fold(0.0, f64::max)
}

/// Pools in sets that have no sender in common.
fn connected(pools: &[Pool], senders: usize) -> Vec<Vec<&Pool>> {
    let mut root: Vec<usize> = (0..senders).collect();
    fn find(root: &mut [usize], mut i: usize) -> usize {
        while root[i] != i {
            root[i] = root[root[i]];
            i = root[i];
        }
        i
    }
    for p in pools {
        for w in p.senders.windows(2) {
            let (a, b) = (find(&mut root, w[0]), find(&mut root, w[1]));
            root[a] = b;
        }
    }
    let mut parts: BTreeMap<usize, Vec<&Pool>> = BTreeMap::new();
    for p in pools {
        let part = find(&mut root, p.senders[0]);
        parts.entry(part).or_default().push(p);
    }
    parts.into_values().collect()
}

fn solve(pools: &[&Pool], bytes_per_s: &[f64]) -> f64 {
    // In units near 1, which the solver likes.
    let unit = pools.iter().map(|p| p.bytes).fold(1.0, f64::max);
    let fastest = bytes_per_s.iter().copied().fold(1.0, f64::max);
    let mut problem = Problem::new(OptimizationDirection::Minimize);
    let time = problem.add_var(1.0, (0.0, f64::INFINITY));
    let mut sent: BTreeMap<usize, Vec<_>> = BTreeMap::new();
    for pool in pools {
        let shares: Vec<_> = pool
            .senders
            .iter()
            .map(|&s| {
                let share = problem.add_var(0.0, (0.0, f64::INFINITY));
                sent.entry(s).or_default().push((share, 1.0));
                (share, 1.0)
            })
            .collect();
        problem.add_constraint(&shares, ComparisonOp::Eq, pool.bytes / unit);
    }
    for (sender, mut shares) in sent {
        shares.push((time, -bytes_per_s[sender] / fastest));
        problem.add_constraint(&shares, ComparisonOp::Le, 0.0);
    }
    let solution = problem.solve().unwrap().into_solution().unwrap();
    solution.objective() * unit / fastest
}
