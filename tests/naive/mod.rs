//! A naive reference: whole memories of all ranks, moved element by element
//! with none of the library's copy code.
#![allow(dead_code)]

use std::collections::{BTreeMap, HashMap};
use weightsync::Rank;
use weightsync::layout::Layout;
use weightsync::layout::dtype::Dtype;
use weightsync::layout::tensor::{IndexBox, Tensor};
use weightsync::plan::Plan;
use weightsync::plan::program::{BufferSlot, Direction, Program, Region, Side};

/// Bytes of every buffer of every rank.
pub type World = BTreeMap<(Rank, Side, String), Vec<u8>>;

/// What element `flat` of a tensor holds, byte by byte; never all zero.
pub fn value(name: &str, flat: u64, bytes: usize) -> Vec<u8> {
    let mut x = flat.wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ name
            .bytes()
            .fold(7, |a: u64, b| a.wrapping_mul(31).wrapping_add(u64::from(b)));
    (0..bytes)
        .map(|_| {
            x ^= x >> 29;
            x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
            (x >> 56) as u8 | 1
        })
        .collect()
}

/// What element `flat` of a tensor holds in a dtype: any bytes, or a number that
/// f32, bf16 and f16 all represent.
pub fn element(name: &str, flat: u64, dtype: Dtype) -> Vec<u8> {
    if ![Dtype::F32, Dtype::BF16, Dtype::F16].contains(&dtype) {
        return value(name, flat, dtype.bytes() as usize);
    }
    let hash = value(name, flat, 3);
    let whole = f32::from(128 + hash[0] / 2);
    let scale = (f32::from(hash[1] / 32) - 4.0).exp2();
    let sign = if hash[2] < 128 { 1.0 } else { -1.0 };
    encode(sign * whole * scale, dtype)
}

fn encode(x: f32, dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F16 => half::f16::from_f32(x).to_le_bytes().to_vec(),
        Dtype::BF16 => half::bf16::from_f32(x).to_le_bytes().to_vec(),
        _ => x.to_le_bytes().to_vec(),
    }
}

/// One element in another dtype.
fn cast(bytes: &[u8], from: Dtype, to: Dtype) -> Vec<u8> {
    if from == to {
        return bytes.to_vec();
    }
    let x = match (from, bytes) {
        (Dtype::F16, &[a, b]) => half::f16::from_le_bytes([a, b]).to_f32(),
        (Dtype::BF16, &[a, b]) => half::bf16::from_le_bytes([a, b]).to_f32(),
        (Dtype::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
        _ => panic!("{from} does not convert to {to}"),
    };
    encode(x, to)
}

/// Every index of a box in row-major order.
pub fn indices(b: &IndexBox) -> Vec<Vec<u64>> {
    (0..b.elements())
        .map(|k| {
            let mut rest = k;
            let mut i = vec![0; b.0.len()];
            for d in (0..b.0.len()).rev() {
                i[d] = b.0[d].lo + rest % b.0[d].len();
                rest /= b.0[d].len();
            }
            i
        })
        .collect()
}

pub fn flat_index(tensor: &Tensor, i: &[u64]) -> u64 {
    i.iter().zip(&tensor.shape).fold(0, |a, (x, n)| a * n + x)
}

/// Memory of one side: source buffers hold the values, destination ones 0xEE.
pub fn memory(layout: &Layout, side: Side, world: &mut World) {
    for rank in layout.ranks() {
        for b in layout.buffers(rank) {
            world.insert((rank, side, b.name), vec![0xEE; b.bytes as usize]);
        }
    }
    if side == Side::Source {
        each_element(layout, |rank, buffer, at, tensor, flat, dtype| {
            let v = element(&tensor.name, flat, dtype);
            let n = v.len();
            world.get_mut(&(rank, side, buffer.to_string())).unwrap()[at..at + n]
                .copy_from_slice(&v);
        });
    }
}

/// Calls `f(rank, buffer, byte, tensor, flat index, dtype)` for every element
/// of every view.
pub fn each_element(layout: &Layout, mut f: impl FnMut(Rank, &str, usize, &Tensor, u64, Dtype)) {
    for rank in layout.ranks() {
        for v in layout.views(rank) {
            let name = layout.buffer(rank, v.buffer).unwrap().name;
            let tensor = &layout.tensors()[v.tensor.index()];
            for i in indices(&v.bounds) {
                let at: i64 = v.offset as i64
                    + i.iter()
                        .zip(v.bounds.spans())
                        .zip(&v.strides)
                        .map(|((x, s), st)| (x - s.lo) as i64 * st)
                        .sum::<i64>();
                let flat = flat_index(tensor, &i);
                f(rank, &name, at as usize, tensor, flat, v.dtype);
            }
        }
    }
}

/// Byte offsets of a region's elements, in order.
pub fn offsets(p: &Program, r: &Region) -> Vec<usize> {
    let mut out = vec![r.offset as i64];
    for l in p.loops_of(r) {
        out = out
            .iter()
            .flat_map(|o| (0..l.count as i64).map(move |i| o + i * l.stride))
            .collect();
    }
    let element = r.dtype.bytes() as i64;
    out.iter()
        .flat_map(|o| (0..r.run as i64).map(move |i| (o + i * element) as usize))
        .collect()
}

/// Runs a plan: step by step, message by message, element by element.
pub fn run(plan: &Plan, world: &mut World) {
    let programs: BTreeMap<Rank, Program> = plan
        .ranks()
        .into_iter()
        .map(|r| (r, plan.program(r).unwrap()))
        .collect();
    for (&rank, p) in &programs {
        world.insert(relay(rank), vec![0; p.relay_bytes as usize]);
    }
    let name = |rank: Rank, p: &Program, r: &Region| {
        if r.slot == BufferSlot::RELAY {
            return relay(rank);
        }
        let used = &p.buffers[r.slot.0 as usize];
        (rank, used.side, plan.buffer(rank, used).unwrap().name)
    };
    for step in 0..plan.step_count() {
        let mut wires: HashMap<(Rank, Rank), Vec<Vec<u8>>> = HashMap::new();
        for (&rank, p) in &programs {
            let s = &p.steps[step as usize];
            for l in p.locals_of(s) {
                let from: Vec<u8> = {
                    let m = &world[&name(rank, p, &l.source)];
                    let n = l.source.dtype.bytes() as usize;
                    let at = offsets(p, &l.source);
                    at.iter().flat_map(|&o| m[o..o + n].to_vec()).collect()
                };
                put(
                    p,
                    &l.destination,
                    l.source.dtype,
                    &from,
                    world.get_mut(&name(rank, p, &l.destination)).unwrap(),
                );
            }
            for m in p
                .messages_of(s)
                .iter()
                .filter(|m| m.direction == Direction::Send)
            {
                let mut bytes = vec![0u8; m.bytes as usize];
                for x in p.pieces_of(m) {
                    let memory = &world[&name(rank, p, &x.region)];
                    let n = x.wire.bytes() as usize;
                    let stored = x.region.dtype;
                    for (k, o) in offsets(p, &x.region).into_iter().enumerate() {
                        let to = x.at as usize + k * n;
                        let own = &memory[o..o + stored.bytes() as usize];
                        bytes[to..to + n].copy_from_slice(&cast(own, stored, x.wire));
                    }
                }
                wires.entry((rank, m.peer)).or_default().push(bytes);
            }
        }
        for (&rank, p) in &programs {
            let s = &p.steps[step as usize];
            let mut next: HashMap<Rank, usize> = HashMap::new();
            for m in p
                .messages_of(s)
                .iter()
                .filter(|m| m.direction == Direction::Receive)
            {
                let i = next.entry(m.peer).or_default();
                let bytes = &wires[&(m.peer, rank)][*i];
                *i += 1;
                assert_eq!(bytes.len() as u64, m.bytes);
                for x in p.pieces_of(m) {
                    let part = &bytes[x.at as usize..(x.at + x.bytes) as usize];
                    put(
                        p,
                        &x.region,
                        x.wire,
                        part,
                        world.get_mut(&name(rank, p, &x.region)).unwrap(),
                    );
                }
            }
        }
    }
}

/// Memory of a rank for what it only passes on.
fn relay(rank: Rank) -> (Rank, Side, String) {
    (rank, Side::Destination, "(relay)".to_string())
}

/// Writes elements that come as `wire` where a region has them.
fn put(p: &Program, r: &Region, wire: Dtype, from: &[u8], memory: &mut [u8]) {
    let n = r.dtype.bytes() as usize;
    let elements = from.chunks(wire.bytes() as usize);
    let from: Vec<u8> = elements.flat_map(|e| cast(e, wire, r.dtype)).collect();
    for (k, o) in offsets(p, r).into_iter().enumerate() {
        let is_first = r.slot == BufferSlot::RELAY || memory[o..o + n] == vec![0xEE; n];
        assert!(is_first, "byte {o} is written twice");
        memory[o..o + n].copy_from_slice(&from[k * n..(k + 1) * n]);
    }
}

/// Every element of every destination view holds its value.
pub fn check(layout: &Layout, world: &World) -> Result<(), String> {
    let mut wrong = None;
    each_element(layout, |rank, buffer, at, tensor, flat, dtype| {
        let want = element(&tensor.name, flat, dtype);
        let got = &world[&(rank, Side::Destination, buffer.to_string())][at..at + want.len()];
        if got != want && wrong.is_none() {
            wrong = Some(format!(
                "rank {rank} buffer {buffer} byte {at}: tensor {} element {flat} is {got:?}",
                tensor.name
            ));
        }
    });
    wrong.map_or(Ok(()), Err)
}
