//! From an instance of one bucket to one of many: every flow and every piece
//! of device work of stage `s` is spread evenly over steps `s, s + 1, ..`.

use crate::sim::{Flow, Instance, Node};

/// The instance with `count` buckets instead of one.
pub fn bucketed(one: &Instance, count: u32) -> Instance {
    let steps = one.step_count + count - 1;
    let mut out = Instance {
        links: one.links.clone(),
        paths: one.paths.clone(),
        nodes: one.nodes.iter().map(|n| spread_node(n, count)).collect(),
        flows: Vec::with_capacity(one.flows.len() * count as usize),
        step_count: steps,
        ..*one
    };
    for f in &one.flows {
        for (b, bytes) in (0..count).zip(parts(f.bytes, count)) {
            out.flows.push(Flow {
                from_step: f.from_step + b,
                to_step: f.to_step + b,
                bytes,
                ..*f
            });
        }
    }
    out
}

fn spread_node(n: &Node, count: u32) -> Node {
    let spread = |work: &[u64]| {
        let mut out = vec![0; work.len() + count as usize - 1];
        for (s, &bytes) in work.iter().enumerate() {
            for (b, part) in parts(bytes, count).enumerate() {
                out[s + b] += part;
            }
        }
        out
    };
    let mut local = n.local.clone();
    local.resize(n.local.len() + count as usize - 1, 0);
    Node {
        pack: spread(&n.pack),
        unpack: spread(&n.unpack),
        local,
        ..n.clone()
    }
}

/// `bytes` in `count` equal parts, whole bytes.
fn parts(bytes: u64, count: u32) -> impl Iterator<Item = u64> {
    let at = move |b: u32| (u128::from(bytes) * u128::from(b) / u128::from(count)) as u64;
    (0..count).map(move |b| at(b + 1) - at(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_add_up() {
        for (bytes, count) in [(0, 1), (7, 3), (1 << 40, 64), (3, 8)] {
            assert_eq!(parts(bytes, count).sum::<u64>(), bytes);
            assert_eq!(parts(bytes, count).count() as u32, count);
        }
    }
}
