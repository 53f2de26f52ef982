//! Which buffers of a layout are of equal structure.
//!
//! The layers of a model are stored alike, buffer by buffer. What is worked out
//! for a buffer of one kind holds for all of its kind.

use super::LayoutSpec;
use super::placement::Placement;
use rustc_hash::FxHashMap;

/// Numbers by part and buffer, equal for buffers that have tensors of the same
/// rules, dtype size and shape in the same order.
pub fn of_buffers(spec: &LayoutSpec) -> Vec<Vec<u32>> {
    let mut known: FxHashMap<Vec<u64>, u32> = FxHashMap::default();
    let mut key = Vec::new();
    let mut by_part = Vec::new();
    for part in &spec.parts {
        let mut numbers = Vec::with_capacity(part.buffers.len());
        for b in &part.buffers {
            key.clear();
            key.push(u64::from(b.shared_dims));
            for &m in &b.members {
                let p: &Placement = part.member(m);
                let tensor = &spec.tensors[p.tensor.index()];
                key.push(u64::from(p.rule));
                key.push(tensor.dtype.bytes());
                key.extend(&tensor.shape);
                key.push(u64::MAX);
            }
            let next = known.len() as u32;
            numbers.push(match known.get(&key) {
                Some(&number) => number,
                None => *known.entry(key.clone()).or_insert(next),
            });
        }
        by_part.push(numbers);
    }
    by_part
}
