//! Export as GOAL, the text that LogGOPSim and ATLAHS replay.
//!
//! A rank's device works through packing, unpacking and local copies one by
//! one, in the order in which a session enqueues them; the wire runs beside
//! it. Two `calc 0` a step stand for what both wait for:
//!
//! ```text
//!   pack s ──► gate s ──► sends and receives of step s ──► end s ──► unpack s
//!                ▲ gate s-1, end and unpack of the step whose staging s takes over
//! ```

use super::engine::{SpanKind, Task, device_work};
use super::instance::{Instance, Node};
use std::fmt::Write;

impl Instance {
    /// Every rank's program as a GOAL schedule: packing, unpacking and local
    /// copies as `calc` in nanoseconds, one `send` and `recv` per flow with
    /// the step as its tag, and what each waits for.
    pub fn to_goal(&self) -> String {
        let mut text = format!("num_ranks {}\n", self.nodes.len());
        let steps = self.step_count as usize;
        let mut flows = vec![Vec::new(); self.nodes.len() * steps];
        for f in &self.flows {
            let tag = f.from_step;
            let send = format!("send {}b to {} tag {tag}", f.bytes, f.to);
            let receive = format!("recv {}b from {} tag {tag}", f.bytes, f.from);
            flows[f.from as usize * steps + tag as usize].push(send);
            flows[f.to as usize * steps + f.to_step as usize].push(receive);
        }
        for (n, node) in self.nodes.iter().enumerate() {
            let _ = writeln!(text, "\nrank {n} {{");
            let mut schedule = Schedule::new(self, node);
            for (s, flows) in flows[n * steps..(n + 1) * steps].iter().enumerate() {
                schedule.exchange(s, flows);
            }
            schedule.work_until(None);
            text.push_str(&schedule.text);
            text.push_str("}\n");
        }
        text
    }
}

/// The lines of one rank so far; labels count from 1.
struct Schedule<'a> {
    instance: &'a Instance,
    is_serial: bool,
    text: String,
    label: usize,
    /// Device work that is not written yet, in reverse.
    work: Vec<Task>,
    /// The last piece of it that is.
    device: Option<usize>,
    /// By step, the piece that ends packing and unpacking.
    packed: Vec<Option<usize>>,
    unpacked: Vec<Option<usize>>,
    gates: Vec<usize>,
    ends: Vec<usize>,
}

impl<'a> Schedule<'a> {
    fn new(instance: &'a Instance, node: &Node) -> Schedule<'a> {
        let mut work = device_work(node);
        work.reverse();
        let steps = instance.step_count as usize;
        Schedule {
            instance,
            is_serial: node.is_serial,
            text: String::new(),
            label: 0,
            work,
            device: None,
            packed: vec![None; steps],
            unpacked: vec![None; steps],
            gates: Vec::with_capacity(steps),
            ends: Vec::with_capacity(steps),
        }
    }

    /// Flows of step `s`, between its gate and its end.
    fn exchange(&mut self, s: usize, flows: &[String]) {
        self.work_until(Some(s));
        let in_flight = self.instance.steps_in_flight.max(1) as usize;
        let (wire, staging) = match self.is_serial {
            true => (1, 1),
            false => (in_flight, 2),
        };
        let unpacked = |back| s.checked_sub(back).and_then(|b| self.unpacked[b]);
        let waits = [
            self.gates.last().copied(),
            self.packed[s],
            s.checked_sub(wire).map(|b| self.ends[b]),
            unpacked(staging),
        ];
        let gate = self.line("calc 0", &waits);
        let mut done: Vec<_> = vec![Some(gate), self.ends.last().copied()];
        for flow in flows {
            let label = self.line(flow, &[Some(gate)]);
            done.push(Some(label));
        }
        let end = self.line("calc 0", &done);
        self.gates.push(gate);
        self.ends.push(end);
    }

    /// Device work up to the packing of step `s`, or all there is: it waits
    /// for steps before `s` only.
    fn work_until(&mut self, s: Option<usize>) {
        while let Some(task) = self.work.pop_if(|t| s.is_none_or(|s| is_before_gate(t, s))) {
            let step = task.step as usize;
            let reuse = if self.is_serial { 1 } else { 2 };
            let waits = match task.kind {
                SpanKind::Pack => step.checked_sub(reuse).map(|b| self.ends[b]),
                SpanKind::Unpack => Some(self.ends[step]),
                SpanKind::Local | SpanKind::Flow => None,
            };
            let text = format!("calc {}", self.time_ns(task.bytes));
            let label = self.line(&text, &[waits, self.device]);
            self.device = Some(label);
            match task.kind {
                SpanKind::Pack => self.packed[step] = self.device,
                SpanKind::Unpack => self.unpacked[step] = self.device,
                SpanKind::Local | SpanKind::Flow => {}
            }
        }
    }

    fn line(&mut self, text: &str, after: &[Option<usize>]) -> usize {
        self.label += 1;
        let label = self.label;
        let _ = writeln!(self.text, "l{label}: {text}");
        for a in after.iter().flatten() {
            let _ = writeln!(self.text, "l{label} requires l{a}");
        }
        label
    }

    fn time_ns(&self, bytes: u64) -> u64 {
        let speed = u128::from(self.instance.pack_bytes_per_s.max(1));
        (u128::from(bytes) * 1_000_000_000).div_ceil(speed) as u64
    }
}

/// True if a task needs no step from `s` on to have ended.
fn is_before_gate(task: &Task, s: usize) -> bool {
    match task.kind {
        SpanKind::Pack => task.step as usize <= s,
        SpanKind::Unpack | SpanKind::Local | SpanKind::Flow => (task.step as usize) < s,
    }
}
