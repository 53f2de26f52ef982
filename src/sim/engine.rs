//! The event loop: nodes come to their steps, flows start, share and end.

use super::SimulateOptions;
use super::fair::Fair;
use super::instance::Instance;
use crate::plan::share_of;
use crate::rank::Rank;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// What came out.
#[derive(Clone, Debug, Default)]
pub struct Simulated {
    /// When everything was in place, or nothing moved any more.
    pub total_ns: u64,
    /// By node, when its last piece of work ended.
    pub node_done_ns: Vec<u64>,
    /// By node, leading steps that were exchanged.
    pub node_steps_done: Vec<u32>,
    /// By step, when its first flow started and its last one ended.
    pub step_spans: Vec<(u64, u64)>,
    /// By link, what it carried.
    pub link_bytes: Vec<u64>,
    pub flow_count: u64,
    /// Times at which rates were computed.
    pub batches: u64,
    /// What everybody waited for, if not everything ended.
    pub stuck: Option<Stuck>,
    /// Begin and end of everything, if it was asked for.
    pub spans: Vec<Span>,
}

/// Why nothing moves any more.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Stuck {
    pub at_ns: u64,
    pub flows_left: u64,
    /// Ranks that wait for each other, each with the step it waits in; or the
    /// chain of waiting that ends at a rank that has failed.
    pub waiting: Vec<(Rank, u32)>,
    /// True if the chain is a circle.
    pub is_deadlock: bool,
}

/// Something that took time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub kind: SpanKind,
    pub node: u32,
    /// The receiver of a flow; else the node itself.
    pub peer: u32,
    pub step: u32,
    pub bytes: u64,
    pub start_ns: u64,
    pub end_ns: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SpanKind {
    Flow,
    Pack,
    Unpack,
    Local,
}

/// A piece of device work of a node; they run in order.
#[derive(Clone, Copy, Debug)]
pub struct Task {
    pub kind: SpanKind,
    pub step: u32,
    pub bytes: u64,
}

/// How far a node is.
#[derive(Default)]
struct NodeState {
    tasks: Vec<Task>,
    /// Tasks that have ended; one more may be running.
    tasks_done: u32,
    is_busy: bool,
    task_start_ns: u64,
    /// By step, the index after the pack or unpack task; 0 if there is none.
    packed_after: Vec<u32>,
    unpacked_after: Vec<u32>,
    /// Steps that the node has come to.
    steps_ready: u32,
    /// Leading steps whose flows have all ended.
    steps_done: u32,
    flows_left: Vec<u32>,
    done_ns: u64,
    has_failed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    TaskEnds(u32),
    FlowStarts(u32),
    Fails(u32),
}

/// One run.
pub struct Engine<'a> {
    instance: &'a Instance,
    options: SimulateOptions,
    pub capacity: Vec<u64>,
    nodes: Vec<NodeState>,
    /// Flows of each node and step, as ranges of `incident`.
    first: Vec<u32>,
    incident: Vec<u32>,
    /// Ends of a flow that have not come to it yet.
    waiting: Vec<u8>,
    left: Vec<u64>,
    rates: Vec<u64>,
    since_ns: Vec<u64>,
    ends_ns: Vec<u64>,
    /// When the later end came to a flow, then when it started.
    started_ns: Vec<u64>,
    active: Vec<u32>,
    timers: BinaryHeap<Reverse<(u64, Timer)>>,
    fair: Fair,
    result: Simulated,
    flows_ended: u64,
}

impl<'a> Engine<'a> {
    pub fn new(instance: &'a Instance, options: &SimulateOptions) -> Engine<'a> {
        let flows = instance.flows.len();
        let (first, incident) = by_node_and_step(instance);
        let mut engine = Engine {
            instance,
            options: *options,
            capacity: instance.links.iter().map(|l| l.bytes_per_s).collect(),
            nodes: instance.nodes.iter().map(node_state).collect(),
            first,
            incident,
            waiting: vec![2; flows],
            left: instance.flows.iter().map(|f| f.bytes).collect(),
            rates: vec![0; flows],
            since_ns: vec![0; flows],
            ends_ns: vec![u64::MAX; flows],
            started_ns: vec![0; flows],
            active: Vec::new(),
            timers: BinaryHeap::new(),
            fair: Fair::new(instance),
            result: Simulated {
                flow_count: flows as u64,
                link_bytes: instance.loads(),
                step_spans: vec![(u64::MAX, 0); instance.step_count as usize],
                ..Simulated::default()
            },
            flows_ended: 0,
        };
        for (n, state) in engine.nodes.iter_mut().enumerate() {
            for s in 0..instance.step_count as usize {
                let at = n * instance.step_count as usize + s;
                state.flows_left[s] = engine.first[at + 1] - engine.first[at];
            }
        }
        engine
    }

    /// A node stops for good.
    pub fn fail(&mut self, node: u32, at_ns: u64) {
        self.timers.push(Reverse((at_ns, Timer::Fails(node))));
    }

    pub fn run(mut self) -> Simulated {
        for n in 0..self.nodes.len() as u32 {
            self.advance(n, 0);
        }
        while let Some(now) = self.next_event() {
            let until = now.saturating_add(self.options.quantum_ns);
            self.fire(until);
            self.share(until);
            self.result.batches += 1;
        }
        self.finish()
    }

    fn next_event(&self) -> Option<u64> {
        let timer = self.timers.peek().map(|t| t.0.0);
        let flow = self.active.iter().map(|&f| self.ends_ns[f as usize]).min();
        match (timer, flow) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Everything that happens up to `until`, in order.
    fn fire(&mut self, until: u64) {
        let mut ended: Vec<(u64, u32)> = Vec::new();
        let ends = &self.ends_ns;
        self.active.retain(|&f| {
            let at = ends[f as usize];
            if at <= until {
                ended.push((at, f));
            }
            at > until
        });
        ended.sort_unstable();
        for (at, f) in ended {
            self.flow_ended(f, at);
        }
        while let Some(&Reverse((at, timer))) = self.timers.peek() {
            if at > until {
                break;
            }
            self.timers.pop();
            match timer {
                Timer::TaskEnds(n) => self.task_ended(n, at),
                Timer::FlowStarts(f) => self.flow_started(f, at),
                Timer::Fails(n) => self.nodes[n as usize].has_failed = true,
            }
        }
    }

    fn flow_started(&mut self, f: u32, at: u64) {
        let flow = &self.instance.flows[f as usize];
        let span = &mut self.result.step_spans[flow.from_step as usize];
        span.0 = span.0.min(at);
        self.started_ns[f as usize] = at;
        self.since_ns[f as usize] = at;
        if self.left[f as usize] == 0 {
            self.flow_ended(f, at);
        } else {
            self.active.push(f);
        }
    }

    fn flow_ended(&mut self, f: u32, at: u64) {
        let flow = self.instance.flows[f as usize];
        self.left[f as usize] = 0;
        self.flows_ended += 1;
        let span = &mut self.result.step_spans[flow.from_step as usize];
        span.1 = span.1.max(at);
        if self.options.trace {
            self.result.spans.push(Span {
                kind: SpanKind::Flow,
                node: flow.from,
                peer: flow.to,
                step: flow.from_step,
                bytes: flow.bytes,
                start_ns: self.started_ns[f as usize],
                end_ns: at,
            });
        }
        for (n, s) in [(flow.from, flow.from_step), (flow.to, flow.to_step)] {
            let node = &mut self.nodes[n as usize];
            node.flows_left[s as usize] -= 1;
            node.done_ns = node.done_ns.max(at);
            if node.flows_left[s as usize] == 0 && node.steps_done == s {
                self.advance(n, at);
            }
        }
    }

    fn task_ended(&mut self, n: u32, at: u64) {
        let node = &mut self.nodes[n as usize];
        if node.has_failed {
            return;
        }
        let task = node.tasks[node.tasks_done as usize];
        node.tasks_done += 1;
        node.is_busy = false;
        node.done_ns = node.done_ns.max(at);
        if self.options.trace {
            let start_ns = node.task_start_ns;
            self.result.spans.push(Span {
                kind: task.kind,
                node: n,
                peer: n,
                step: task.step,
                bytes: task.bytes,
                start_ns,
                end_ns: at,
            });
        }
        self.advance(n, at);
    }

    /// Does what a node can do now: counts finished steps, starts device work,
    /// comes to further steps.
    fn advance(&mut self, n: u32, now: u64) {
        let steps = self.instance.step_count;
        if self.nodes[n as usize].has_failed {
            return;
        }
        // Inside a quantum, events of other nodes come out of order.
        let now = now.max(self.nodes[n as usize].done_ns);
        loop {
            let node = &mut self.nodes[n as usize];
            while node.steps_done < node.steps_ready
                && node.flows_left[node.steps_done as usize] == 0
            {
                node.steps_done += 1;
            }
            self.start_task(n, now);
            let step = self.nodes[n as usize].steps_ready;
            if step == steps || !self.is_ready(n, step) {
                return;
            }
            self.nodes[n as usize].steps_ready += 1;
            self.come_to(n, step, now);
        }
    }

    /// Both ends of a flow have to come to it.
    fn come_to(&mut self, n: u32, step: u32, now: u64) {
        let at = n as usize * self.instance.step_count as usize + step as usize;
        for i in self.first[at]..self.first[at + 1] {
            let f = self.incident[i as usize];
            self.waiting[f as usize] -= 1;
            let came = self.started_ns[f as usize].max(now);
            self.started_ns[f as usize] = came;
            if self.waiting[f as usize] == 0 {
                let start = came + self.instance.latency_ns;
                self.timers.push(Reverse((start, Timer::FlowStarts(f))));
            }
        }
    }

    fn start_task(&mut self, n: u32, now: u64) {
        let is_serial = self.instance.nodes[n as usize].is_serial;
        let node = &mut self.nodes[n as usize];
        let Some(task) = node.tasks.get(node.tasks_done as usize) else {
            return;
        };
        let s = task.step;
        let may_start = match task.kind {
            // The half of staging that a step packs into was sent from two
            // steps before.
            SpanKind::Pack if is_serial => node.steps_done >= s,
            SpanKind::Pack => node.steps_done + 1 >= s,
            SpanKind::Unpack => node.steps_done > s,
            SpanKind::Local | SpanKind::Flow => true,
        };
        if node.is_busy || !may_start {
            return;
        }
        node.is_busy = true;
        node.task_start_ns = now;
        let speed = u128::from(self.instance.pack_bytes_per_s.max(1));
        let time = (u128::from(task.bytes) * 1_000_000_000).div_ceil(speed) as u64;
        self.timers.push(Reverse((now + time, Timer::TaskEnds(n))));
    }

    fn is_ready(&self, n: u32, step: u32) -> bool {
        let node = &self.nodes[n as usize];
        let is_past = |after: &[u32], s: u32| node.tasks_done >= after[s as usize];
        if !is_past(&node.packed_after, step) {
            return false;
        }
        if self.instance.nodes[n as usize].is_serial {
            return node.steps_done >= step
                && (step == 0 || is_past(&node.unpacked_after, step - 1));
        }
        node.steps_done + self.instance.steps_in_flight.max(1) > step
            && (step < 2 || is_past(&node.unpacked_after, step - 2))
    }

    /// New rates for all flows on the wire, from `now` on.
    fn share(&mut self, now: u64) {
        let nodes = &self.nodes;
        let flows = &self.instance.flows;
        let dead = |n: u32| nodes[n as usize].has_failed;
        if nodes.iter().any(|n| n.has_failed) {
            self.active.retain(|&f| {
                let flow = &flows[f as usize];
                !dead(flow.from) && !dead(flow.to)
            });
        }
        for &f in &self.active {
            let i = f as usize;
            if now <= self.since_ns[i] {
                continue;
            }
            let moved = share_of(self.rates[i], now - self.since_ns[i], 1_000_000_000);
            self.left[i] -= moved.min(self.left[i] - 1);
            self.since_ns[i] = now;
        }
        self.fair
            .rates(&self.capacity, &self.active, &mut self.rates);
        for &f in &self.active {
            let i = f as usize;
            // Flows that joined within the quantum wait for its end.
            self.since_ns[i] = now;
            let rate = self.rates[i].max(1);
            let time = match self.left[i].checked_mul(1_000_000_000) {
                Some(product) => product.div_ceil(rate),
                None => {
                    let product = u128::from(self.left[i]) * 1_000_000_000;
                    product.div_ceil(u128::from(rate)) as u64
                }
            };
            self.ends_ns[i] = now.saturating_add(time);
        }
    }

    fn finish(mut self) -> Simulated {
        let r = &mut self.result;
        r.node_done_ns = self.nodes.iter().map(|n| n.done_ns).collect();
        r.node_steps_done = self.nodes.iter().map(|n| n.steps_done).collect();
        r.total_ns = r.node_done_ns.iter().copied().max().unwrap_or(0);
        for span in &mut r.step_spans {
            span.0 = span.0.min(span.1);
        }
        let left = r.flow_count - self.flows_ended;
        if left > 0 {
            let (waiting, is_deadlock) = self.chain();
            self.result.stuck = Some(Stuck {
                at_ns: self.result.total_ns,
                flows_left: left,
                waiting,
                is_deadlock,
            });
        }
        self.result
    }

    /// Follows who waits for whom from the first node that waits.
    fn chain(&self) -> (Vec<(Rank, u32)>, bool) {
        let steps = self.instance.step_count;
        let unfinished = |n: &NodeState| n.steps_done < steps && !n.has_failed;
        let Some(mut n) = self.nodes.iter().position(unfinished) else {
            return (Vec::new(), false);
        };
        let mut seen: Vec<usize> = Vec::new();
        loop {
            if let Some(i) = seen.iter().position(|&x| x == n) {
                let ring = seen.split_off(i);
                return (ring.iter().map(|&x| self.waits(x)).collect(), true);
            }
            seen.push(n);
            match self.blocker(n) {
                Some(next) => n = next,
                None => return (seen.iter().map(|&x| self.waits(x)).collect(), false),
            }
        }
    }

    fn waits(&self, n: usize) -> (Rank, u32) {
        (self.instance.nodes[n].rank, self.nodes[n].steps_done)
    }

    /// A node that a node's first unfinished step waits for.
    fn blocker(&self, n: usize) -> Option<usize> {
        let node = &self.nodes[n];
        let steps = self.instance.step_count;
        if node.has_failed || node.steps_done == steps {
            return None;
        }
        let at = n * steps as usize + node.steps_done as usize;
        let flows = &self.incident[self.first[at] as usize..self.first[at + 1] as usize];
        let open = flows.iter().find(|&&f| self.left[f as usize] > 0)?;
        let flow = &self.instance.flows[*open as usize];
        let other = if flow.from as usize == n {
            flow.to
        } else {
            flow.from
        };
        Some(other as usize)
    }
}

/// The device work of a node, in the order in which a session enqueues it.
pub fn device_work(node: &super::Node) -> Vec<Task> {
    let steps = node.pack.len();
    let mut tasks = Vec::new();
    let mut add = |kind, bytes: &[u64], step: usize| {
        if let Some(&bytes) = bytes.get(step).filter(|&&bytes| bytes > 0) {
            let step = step as u32;
            tasks.push(Task { kind, step, bytes });
        }
    };
    // A rank that forwards nothing packs a step ahead.
    let ahead = usize::from(!node.is_serial);
    for s in 0..steps {
        if s == 0 {
            add(SpanKind::Pack, &node.pack, 0);
        }
        if s > 0 || ahead > 0 {
            add(SpanKind::Pack, &node.pack, s + ahead);
        }
        add(SpanKind::Unpack, &node.unpack, s);
        add(SpanKind::Local, &node.local, s);
    }
    tasks
}

fn node_state(node: &super::Node) -> NodeState {
    let steps = node.pack.len();
    let mut state = NodeState {
        tasks: device_work(node),
        packed_after: vec![0; steps],
        unpacked_after: vec![0; steps],
        flows_left: vec![0; steps],
        ..NodeState::default()
    };
    for (after, task) in (1u32..).zip(&state.tasks) {
        match task.kind {
            SpanKind::Pack => state.packed_after[task.step as usize] = after,
            SpanKind::Unpack => state.unpacked_after[task.step as usize] = after,
            SpanKind::Local | SpanKind::Flow => {}
        }
    }
    state
}

/// Flows of each node and step: ranges, and the flows.
fn by_node_and_step(instance: &Instance) -> (Vec<u32>, Vec<u32>) {
    let steps = instance.step_count as usize;
    let cells = instance.nodes.len() * steps;
    let ends = |f: &super::Flow| {
        [
            f.from as usize * steps + f.from_step as usize,
            f.to as usize * steps + f.to_step as usize,
        ]
    };
    let mut first = vec![0u32; cells + 1];
    for f in &instance.flows {
        for at in ends(f) {
            first[at + 1] += 1;
        }
    }
    for i in 0..cells {
        first[i + 1] += first[i];
    }
    let mut fill = first.clone();
    let mut incident = vec![0u32; 2 * instance.flows.len()];
    for (i, f) in instance.flows.iter().enumerate() {
        for at in ends(f) {
            incident[fill[at] as usize] = i as u32;
            fill[at] += 1;
        }
    }
    (first, incident)
}
