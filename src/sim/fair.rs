//! Max-min fair rates by progressive filling.
//!
//! The link with the least to give to each of its flows fixes them; what they
//! leave elsewhere is shared by the rest; and so on.
//!
//! This is where the time of a large simulation goes, and it goes into memory:
//! links of paths lie end to end, and flows on the wire are numbered anew.

use super::instance::Instance;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

/// What rates are computed from, and buffers that are used again and again.
#[derive(Default)]
pub struct Fair {
    /// By flow, its path; by path, where its links begin; links and weights.
    path: Vec<u32>,
    first: Vec<u32>,
    hops: Vec<(u32, u32)>,
    left: Vec<u64>,
    /// Flows not yet fixed, by weight.
    open: Vec<u64>,
    /// Where the flows of a link begin in `users`, and how far they are filled.
    start: Vec<u32>,
    fill: Vec<u32>,
    /// Flows on the wire, by their places among these.
    users: Vec<u32>,
    /// By place: a range of `hops`, and the rate, 0 if not yet fixed.
    route: Vec<(u32, u32)>,
    rate: Vec<u64>,
    /// Links in use.
    touched: Vec<u32>,
    heap: BinaryHeap<Reverse<(u64, u32)>>,
}

impl Fair {
    pub fn new(instance: &Instance) -> Fair {
        let links = instance.links.len();
        let mut fair = Fair {
            path: instance.flows.iter().map(|f| f.path).collect(),
            left: vec![0; links],
            open: vec![0; links],
            start: vec![0; links],
            fill: vec![0; links],
            ..Fair::default()
        };
        fair.first.push(0);
        for path in &instance.paths {
            fair.hops.extend(path.iter().copied());
            fair.first.push(fair.hops.len() as u32);
        }
        fair
    }

    /// Writes the rate of every flow of `active`, in bytes per second.
    pub fn rates(&mut self, capacity: &[u64], active: &[u32], rates: &mut [u64]) {
        self.collect(capacity, active);
        while let Some(Reverse((share, link))) = self.heap.pop() {
            let l = link as usize;
            if self.open[l] == 0 {
                continue;
            }
            // Flows fixed meanwhile took no more than their share.
            let now = self.left[l] / self.open[l];
            if now > share {
                self.heap.push(Reverse((now, link)));
                continue;
            }
            let rate = now.max(1);
            for i in self.start[l]..self.fill[l] {
                let flow = self.users[i as usize] as usize;
                if self.rate[flow] != 0 {
                    continue;
                }
                self.rate[flow] = rate;
                for &(k, weight) in &self.hops[range(self.route[flow])] {
                    let k = k as usize;
                    self.open[k] -= u64::from(weight);
                    self.left[k] = self.left[k].saturating_sub(rate * u64::from(weight));
                }
            }
        }
        for (&f, &rate) in active.iter().zip(&self.rate) {
            rates[f as usize] = rate;
        }
        for &l in &self.touched {
            self.fill[l as usize] = 0;
            self.open[l as usize] = 0;
        }
        self.touched.clear();
    }

    /// Flows by link, and the links by what they can give.
    fn collect(&mut self, capacity: &[u64], active: &[u32]) {
        self.rate.clear();
        self.rate.resize(active.len(), 0);
        self.route.clear();
        for &f in active {
            let path = self.path[f as usize] as usize;
            let route = (self.first[path], self.first[path + 1]);
            self.route.push(route);
            for &(l, weight) in &self.hops[range(route)] {
                let at = l as usize;
                if self.fill[at] == 0 {
                    self.touched.push(l);
                    self.left[at] = capacity[at];
                }
                self.fill[at] += 1;
                self.open[at] += u64::from(weight);
            }
        }
        let mut at = 0;
        for &l in &self.touched {
            let l = l as usize;
            self.start[l] = at;
            at += self.fill[l];
            self.fill[l] = self.start[l];
        }
        self.users.resize(at as usize, 0);
        for (i, &route) in (0..).zip(&self.route) {
            for &(l, _) in &self.hops[range(route)] {
                let l = l as usize;
                self.users[self.fill[l] as usize] = i;
                self.fill[l] += 1;
            }
        }
        let mut heap = std::mem::take(&mut self.heap).into_vec();
        heap.clear();
        heap.extend(self.touched.iter().map(|&l| {
            let share = self.left[l as usize] / self.open[l as usize];
            Reverse((share, l))
        }));
        self.heap = heap.into();
    }
}

fn range(r: (u32, u32)) -> Range<usize> {
    r.0 as usize..r.1 as usize
}
