//! The tensors of a plan in layer order, end to end.
//!
//! ```text
//!   embeddings | layer 0 | layer 1 | ..  | layer n | norm, head
//!   bucket 0        | bucket 1        | bucket 2        | ..
//! ```
//!
//! Bucket `b` of `K` is the `b`-th `K`-th part of this line, the same for all
//! pairs: whoever forwards a byte has received it with its bucket. A cut inside
//! a tensor cuts each of its cells at the same fraction, on whole units.

use super::tables::Tables;
use crate::layout::Layout;
use crate::layout::dtype::Dtype;

/// Where each tensor lies on the line; empty where another order is taken.
#[derive(Debug, Default)]
pub struct LayerLine {
    /// Begin and end of each tensor of the plan, in wire bytes.
    spans: Vec<(u128, u128)>,
    bytes: u128,
}

/// The item whose buckets are wanted.
#[derive(Clone, Copy)]
pub struct LayerItem {
    pub tensor: u32,
    pub bytes: u64,
    /// No cut falls inside this many bytes.
    pub unit: u64,
}

impl LayerLine {
    pub fn new(tables: &Tables, destination: &Layout) -> LayerLine {
        let tensor = |t: u32| {
            let joined = &tables.tensors[t as usize];
            let tensor = &destination.tensors()[joined.destination.index()];
            let wire = Dtype::wire(joined.source_dtype, tensor.dtype);
            let elements = tensor.shape.iter().map(|&n| u128::from(n));
            (
                tensor,
                elements.product::<u128>() * u128::from(wire.bytes()),
            )
        };
        let mut order: Vec<u32> = (0..tables.tensors.len() as u32).collect();
        order.sort_unstable_by_key(|&t| (place_of(&tensor(t).0.name), t));
        let mut line = LayerLine {
            spans: vec![(0, 0); order.len()],
            bytes: 0,
        };
        for t in order {
            let end = line.bytes + tensor(t).1;
            line.spans[t as usize] = (line.bytes, end);
            line.bytes = end;
        }
        line
    }

    /// Calls `f` with bucket and range of each part of bytes `[from, to)` of
    /// an item.
    pub fn cut(
        &self,
        item: LayerItem,
        buckets: u32,
        (from, to): (u64, u64),
        mut f: impl FnMut(u32, u64, u64),
    ) {
        let (start, end) = self.spans[item.tensor as usize];
        let inside = |bucket: u128| {
            let cut = (bucket + 1) * self.bytes / u128::from(buckets);
            if cut >= end {
                return item.bytes;
            }
            let bytes = cut.saturating_sub(start) * u128::from(item.bytes) / (end - start);
            bytes as u64 / item.unit * item.unit
        };
        let mut at = from;
        let mut bucket = (start * u128::from(buckets) / self.bytes.max(1)).saturating_sub(1);
        while at < to {
            let end = inside(bucket).min(to);
            if at < end {
                f(bucket as u32, at, end);
                at = end;
            }
            bucket += 1;
        }
    }
}

/// The layer that a tensor belongs to: the first component of its name that is
/// a number.
pub fn layer_of(name: &str) -> Option<u32> {
    name.split('.').find_map(|c| c.parse().ok())
}

/// Embeddings, then layers, then whatever has no number.
fn place_of(name: &str) -> (u8, u32) {
    match layer_of(name) {
        Some(layer) => (1, layer),
        None if name.contains("embed") => (0, 0),
        None => (2, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn embeddings_come_first_and_the_head_last() {
        let mut names = [
            "lm_head.weight",
            "model.layers.10.mlp",
            "model.embed_tokens.weight",
            "model.layers.9.mlp",
            "model.norm.weight",
        ];
        names.sort_by_key(|n| place_of(n));
        let want = [
            "model.embed_tokens.weight",
            "model.layers.9.mlp",
            "model.layers.10.mlp",
            "lm_head.weight",
            "model.norm.weight",
        ];
        assert_eq!(names, want);
    }

    proptest! {
        #[test]
        fn parts_tile_every_range_in_order(
            sizes in prop::collection::vec(1u64..200, 1..8),
            buckets in 1u32..20,
            unit in 1u64..9,
            a in 0u64..200,
            b in 0u64..200,
        ) {
            let mut line = LayerLine::default();
            for &n in &sizes {
                let start = line.bytes;
                line.bytes += u128::from(n);
                line.spans.push((start, line.bytes));
            }
            let mut last = 0;
            for (t, &bytes) in sizes.iter().enumerate() {
                let item = LayerItem { tensor: t as u32, bytes, unit };
                let range = (a.min(b).min(bytes), a.max(b).min(bytes));
                let mut at = range.0;
                line.cut(item, buckets, range, |bucket, from, to| {
                    assert_eq!(from, at);
                    assert!(last <= bucket && bucket < buckets && from < to);
                    (at, last) = (to, bucket);
                });
                prop_assert_eq!(at, range.1);
            }
        }
    }
}
