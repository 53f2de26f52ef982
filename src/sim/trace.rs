//! Export as a Chrome trace, for Perfetto or `chrome://tracing`.

use super::engine::{Simulated, SpanKind};
use super::instance::Instance;
use serde_json::{Value, json};

/// Rows of a rank: what it sends, receives, and does itself.
const SEND: u32 = 0;
const RECEIVE: u32 = 1;
const DEVICE: u32 = 2;

impl Simulated {
    /// The run as a Chrome trace: one process per rank, one row each for
    /// sending, receiving and device work. Empty unless the run was traced.
    pub fn to_chrome_trace(&self, instance: &Instance) -> String {
        let rank = |n: u32| instance.nodes[n as usize].rank.0;
        let mut events: Vec<Value> = Vec::new();
        for n in 0..instance.nodes.len() as u32 {
            events.push(json!({"ph": "M", "name": "process_name", "pid": rank(n),
                "args": {"name": format!("rank {}", rank(n))}}));
            for (tid, name) in [(SEND, "send"), (RECEIVE, "receive"), (DEVICE, "device")] {
                events.push(
                    json!({"ph": "M", "name": "thread_name", "pid": rank(n), "tid": tid,
                    "args": {"name": name}}),
                );
            }
        }
        for (id, s) in self.spans.iter().enumerate() {
            let (from, to) = (rank(s.node), rank(s.peer));
            let args = json!({"step": s.step, "bytes": s.bytes});
            let mut add = |pid: u32, tid: u32, name: String| {
                // Flows of one row overlap: asynchronous events may.
                let category = ["send", "receive", "device"][tid as usize];
                let at = |ns: u64| ns as f64 / 1000.0;
                let mut begin = json!({"ph": "b", "cat": category, "id": 2 * id + tid as usize % 2,
                    "name": name, "pid": pid, "tid": tid, "ts": at(s.start_ns), "args": args});
                if tid == DEVICE {
                    begin["ph"] = json!("X");
                    begin["dur"] = json!(at(s.end_ns - s.start_ns));
                    events.push(begin);
                    return;
                }
                let end = json!({"ph": "e", "cat": category, "id": begin["id"], "name": name,
                    "pid": pid, "tid": tid, "ts": at(s.end_ns)});
                events.extend([begin, end]);
            };
            match s.kind {
                SpanKind::Flow => {
                    add(from, SEND, format!("step {} to {to}", s.step));
                    add(to, RECEIVE, format!("step {} from {from}", s.step));
                }
                SpanKind::Pack => add(from, DEVICE, format!("pack {}", s.step)),
                SpanKind::Unpack => add(from, DEVICE, format!("unpack {}", s.step)),
                SpanKind::Local => add(from, DEVICE, "local copies".into()),
            }
        }
        json!({"displayTimeUnit": "ms", "traceEvents": events}).to_string()
    }
}
