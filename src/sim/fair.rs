//! Max-min fair rates by progressive filling.
//!
//! The link with the least to give to each of its flows fixes them; what they
//! leave elsewhere is shared by the rest; and so on.

use super::instance::Instance;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Buffers that are used again and again.
#[derive(Default)]
pub struct Fair {
    left: Vec<u64>,
    /// Flows not yet fixed, by weight.
    open: Vec<u64>,
    /// Where the flows of a link begin in `users`, and how far they are filled.
    start: Vec<u32>,
    fill: Vec<u32>,
    users: Vec<u32>,
    touched: Vec<u32>,
    heap: BinaryHeap<Reverse<(u64, u32)>>,
}

impl Fair {
    pub fn new(links: usize) -> Fair {
        Fair {
            left: vec![0; links],
            open: vec![0; links],
            start: vec![0; links],
            fill: vec![0; links],
            ..Fair::default()
        }
    }

    /// Writes the rate of every flow of `active`, in bytes per second.
    pub fn rates(
        &mut self,
        instance: &Instance,
        capacity: &[u64],
        active: &[u32],
        rates: &mut [u64],
    ) {
        self.collect(instance, capacity, active);
        for &f in active {
            rates[f as usize] = 0;
        }
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
                let f = self.users[i as usize];
                if rates[f as usize] != 0 {
                    continue;
                }
                rates[f as usize] = rate;
                for &(k, weight) in &instance.paths[instance.flows[f as usize].path as usize] {
                    let k = k as usize;
                    self.open[k] -= u64::from(weight);
                    self.left[k] = self.left[k].saturating_sub(rate * u64::from(weight));
                }
            }
        }
        for &l in &self.touched {
            self.fill[l as usize] = 0;
            self.open[l as usize] = 0;
        }
        self.touched.clear();
    }

    /// Flows by link, and the links by what they can give.
    fn collect(&mut self, instance: &Instance, capacity: &[u64], active: &[u32]) {
        for &f in active {
            for &(l, weight) in &instance.paths[instance.flows[f as usize].path as usize] {
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
        for &f in active {
            for &(l, _) in &instance.paths[instance.flows[f as usize].path as usize] {
                let l = l as usize;
                self.users[self.fill[l] as usize] = f;
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
