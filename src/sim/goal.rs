//! Export as GOAL, the text that LogGOPSim and ATLAHS replay.

use super::instance::Instance;
use std::fmt::Write;

impl Instance {
    /// Every rank's program as a GOAL schedule: packing and unpacking as
    /// `calc` in nanoseconds, one `send` and `recv` per flow with the step as
    /// its tag, and what each waits for.
    pub fn to_goal(&self) -> String {
        let mut out = format!("num_ranks {}\n", self.nodes.len());
        let steps = self.step_count as usize;
        let mut sends = vec![Vec::new(); self.nodes.len() * steps];
        let mut receives = sends.clone();
        for (i, f) in self.flows.iter().enumerate() {
            sends[f.from as usize * steps + f.from_step as usize].push(i);
            receives[f.to as usize * steps + f.to_step as usize].push(i);
        }
        for (n, node) in self.nodes.iter().enumerate() {
            let _ = writeln!(out, "\nrank {n} {{");
            let mut list = Schedule::default();
            for s in 0..steps {
                let at = n * steps + s;
                let before = list.gate(s, node.is_serial, self.steps_in_flight.max(1) as usize);
                let packed = list.calc(&mut out, self.time_ns(node.pack[s]), &before, list.device);
                let begin = packed.map_or(before, |p| vec![p]);
                let mut done = Vec::new();
                for &i in &sends[at] {
                    let f = &self.flows[i];
                    let text = format!("send {}b to {} tag {s}", f.bytes, f.to);
                    done.push(list.line(&mut out, &text, &begin));
                }
                for &i in &receives[at] {
                    let f = &self.flows[i];
                    let text = format!("recv {}b from {} tag {}", f.bytes, f.from, f.from_step);
                    done.push(list.line(&mut out, &text, &begin));
                }
                let unpacked = list.calc(
                    &mut out,
                    self.time_ns(node.unpack[s]),
                    &done,
                    packed.or(list.device),
                );
                list.device = unpacked.or(packed).or(list.device);
                if let Some(u) = unpacked {
                    done.push(u);
                }
                list.steps.push(done);
            }
            out.push_str("}\n");
        }
        out
    }

    fn time_ns(&self, bytes: u64) -> u64 {
        let speed = u128::from(self.pack_bytes_per_s.max(1));
        (u128::from(bytes) * 1_000_000_000).div_ceil(speed) as u64
    }
}

/// The lines of one rank so far.
#[derive(Default)]
struct Schedule {
    labels: usize,
    /// The last piece of device work.
    device: Option<usize>,
    /// What ends each step.
    steps: Vec<Vec<usize>>,
}

impl Schedule {
    /// What step `s` waits for.
    fn gate(&self, s: usize, is_serial: bool, in_flight: usize) -> Vec<usize> {
        let back = if is_serial { 1 } else { in_flight };
        s.checked_sub(back)
            .map_or(Vec::new(), |b| self.steps[b].clone())
    }

    fn line(&mut self, out: &mut String, text: &str, after: &[usize]) -> usize {
        self.labels += 1;
        let label = self.labels;
        let _ = writeln!(out, "l{label}: {text}");
        for a in after {
            let _ = writeln!(out, "l{label} requires l{a}");
        }
        label
    }

    fn calc(
        &mut self,
        out: &mut String,
        time_ns: u64,
        after: &[usize],
        device: Option<usize>,
    ) -> Option<usize> {
        if time_ns == 0 {
            return None;
        }
        let mut after = after.to_vec();
        after.extend(device);
        after.sort_unstable();
        after.dedup();
        Some(self.line(out, &format!("calc {time_ns}"), &after))
    }
}
