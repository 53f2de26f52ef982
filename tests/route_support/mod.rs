//! Delivers any plan through sessions, and small models to plan for.

#![allow(dead_code)]

#[path = "../exec_support/mod.rs"]
pub mod exec_support;
#[path = "../naive/mod.rs"]
pub mod naive;

use exec_support::{Bytes, Carrier, Gate, OLD, SECOND, fake_gpu, meet};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Once};
use weightsync::Rank;
use weightsync::device::Device;
use weightsync::device::deferred::DeferredDevice;
use weightsync::device::host::HostDevice;
use weightsync::exec::*;
use weightsync::layout::Layout;
use weightsync::layout::view::Memory;
use weightsync::plan::Plan;
use weightsync::plan::program::Side;
use weightsync::transport::bootstrap::{Ready, Shm};
use weightsync::transport::loopback::LoopbackHub;
use weightsync::transport::shm::{ShmOptions, ShmTransport};
use weightsync::transport::{Bootstrap, Kind};

/// Cuts of one side of a small Qwen2-like model of four layers.
#[derive(Clone, Copy, Debug, serde::Deserialize)]
pub struct Sizes {
    pub tp: u32,
    pub pp: u32,
    /// Data parallel, or replicas.
    #[serde(alias = "dp")]
    pub replicas: u32,
}

impl Sizes {
    pub fn new(tp: u32, pp: u32, replicas: u32) -> Sizes {
        Sizes { tp, pp, replicas }
    }

    pub fn ranks(self) -> u32 {
        self.tp * self.pp * self.replicas
    }
}

pub const LAYERS: u64 = 4;
const HIDDEN: u64 = 32;
const HEAD: u64 = 8;
const FFN: u64 = 64;
const VOCAB: u64 = 50;

/// The attention of the model, and how finely the finer side cuts it.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    pub heads: u64,
    pub kv_heads: u64,
    /// The larger TP of both sides. While it leaves KV groups whole, query heads
    /// come by group, as a fused and interleaved buffer has them.
    pub tp_max: u32,
}

impl Attention {
    pub fn new(heads: u64, kv_heads: u64, source: Sizes, destination: Sizes) -> Attention {
        Attention {
            heads,
            kv_heads,
            tp_max: source.tp.max(destination.tp),
        }
    }

    fn is_by_group(self) -> bool {
        u64::from(self.tp_max) <= self.kv_heads
    }

    /// Leading dimensions of query weights and biases.
    fn query(self) -> [u64; 2] {
        match self.is_by_group() {
            true => [self.kv_heads, self.heads / self.kv_heads * HEAD],
            false => [self.heads, HEAD],
        }
    }
}

/// How one side stores the three parts of the attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packing {
    /// `[group, (q.. k v), ..]`, where groups are whole; else one by one.
    Interleaved,
    /// `[all q; all k; all v]`.
    Packed,
}

/// The source as a trainer lays it out: stages, then data parallel, then
/// tensor parallel; fused and interleaved where KV heads allow.
pub fn trainer(sizes: Sizes, attention: Attention, ranks: &[u32]) -> Layout {
    let Sizes { tp, pp, replicas } = sizes;
    let mesh = json!([["pp", pp], ["dp", replicas], ["tp", tp]]);
    let meshes = json!({"dense": mesh});
    layout(meshes, "dp", sizes, attention, Packing::Interleaved, ranks)
}

/// The destination as an engine does: replicas of stages of tensor parallel.
pub fn engine(sizes: Sizes, attention: Attention, ranks: &[u32]) -> Layout {
    let Sizes { tp, pp, replicas } = sizes;
    let mesh = json!([["replica", replicas], ["pp", pp], ["tp", tp]]);
    let meshes = json!({"dense": mesh});
    layout(meshes, "replica", sizes, attention, Packing::Packed, ranks)
}

fn layout(
    meshes: Value,
    copies: &str,
    sizes: Sizes,
    attention: Attention,
    packing: Packing,
    ranks: &[u32],
) -> Layout {
    let Attention {
        heads, kv_heads, ..
    } = attention;
    let pp = u64::from(sizes.pp);
    let stages: Vec<u64> = (0..LAYERS).map(|l| l * pp / LAYERS).collect();
    let kv_parts = kv_heads.min(u64::from(sizes.tp));
    let on = |at: u64| json!({"axis": "pp", "at": at});
    let layered = |name: &str, shape: Value, cuts: Value| {
        json!({
            "name": format!("layers.{{layer}}.{name}"), "layers": "all",
            "shape": shape, "dtype": "bf16", "stage": {"axis": "pp", "table": "all"}, "cuts": cuts,
        })
    };
    let rows = json!([{"dim": 0, "axes": ["tp"]}]);
    let columns = json!([{"dim": 1, "axes": ["tp"]}]);
    let kv = json!([{"dim": 0, "axes": ["tp"], "parts": kv_parts}]);
    // Vocabulary chunks that do not nest, with padding.
    let chunk = VOCAB.div_ceil(u64::from(sizes.tp))
        + if packing == Packing::Interleaved {
            3
        } else {
            0
        };
    let vocab = json!([{"dim": 0, "axes": ["tp"], "kind": {"chunk": chunk}, "pad": true}]);
    let [q, q_size] = attention.query();
    let tensors = [
        json!({"name": "embed", "shape": [VOCAB, HIDDEN], "dtype": "bf16", "stage": on(0), "cuts": vocab}),
        json!({"name": "head", "shape": [VOCAB, HIDDEN], "dtype": "bf16", "stage": on(pp - 1), "cuts": vocab}),
        json!({"name": "norm", "shape": [HIDDEN], "dtype": "bf16", "stage": on(pp - 1)}),
        layered("q", json!([q, q_size, HIDDEN]), rows.clone()),
        layered("k", json!([kv_heads, HEAD, HIDDEN]), kv.clone()),
        layered("v", json!([kv_heads, HEAD, HIDDEN]), kv.clone()),
        layered("q_bias", json!([q, q_size]), rows.clone()),
        layered("k_bias", json!([kv_heads, HEAD]), kv.clone()),
        layered("v_bias", json!([kv_heads, HEAD]), kv),
        layered("o", json!([HIDDEN, heads * HEAD]), columns.clone()),
        layered("gate", json!([FFN, HIDDEN]), rows.clone()),
        layered("up", json!([FFN, HIDDEN]), rows),
        layered("down", json!([HIDDEN, FFN]), columns),
        layered("norm1", json!([HIDDEN]), json!([])),
        layered("norm2", json!([HIDDEN]), json!([])),
    ];
    let fuse = |buffer: &str, shared: u64, members: &[&str]| {
        let members: Vec<_> = members
            .iter()
            .map(|m| format!("layers.{{layer}}.{m}"))
            .collect();
        json!({"buffer": format!("layers.{{layer}}.{buffer}"), "layers": "all",
               "shared_dims": shared, "members": members})
    };
    let mut fused = vec![fuse("gate_up", 0, &["gate", "up"])];
    let shared_dims = match (packing, attention.is_by_group()) {
        (Packing::Interleaved, true) => Some(1),
        (Packing::Interleaved, false) => None,
        (Packing::Packed, _) => Some(0),
    };
    if let Some(dims) = shared_dims {
        fused.push(fuse("qkv", dims, &["q", "k", "v"]));
        fused.push(fuse("qkv_bias", dims, &["q_bias", "k_bias", "v_bias"]));
    }
    let file = json!({
        "weightsync_layout": 1,
        "ranks": ranks,
        "meshes": meshes,
        "copies": {"axes": [copies]},
        "stages": {"all": stages},
        "tensors": tensors,
        "fused": fused,
    });
    Layout::from_json(file.to_string().as_bytes()).unwrap()
}

/// The layout with every buffer on GPU 0.
pub fn on_gpu(layout: &Layout) -> Layout {
    let mut file: Value = serde_json::from_str(&layout.to_json()).unwrap();
    for part in file["parts"].as_array_mut().unwrap() {
        for tensor in part["tensors"].as_array_mut().unwrap() {
            tensor["memory"] = json!({"device": 0});
        }
    }
    Layout::from_json(file.to_string().as_bytes()).unwrap()
}

/// NCCL for this test alone, with all ranks on GPU 0.
fn alone_on_one_gpu() -> fake_gpu::nccl::Alone {
    static ONCE: Once = Once::new();
    ONCE.call_once(fake_gpu::nccl::share_gpu);
    fake_gpu::nccl::alone()
}

/// Ranks `first..first + count`.
pub fn range(first: u32, count: u32) -> Vec<u32> {
    (first..first + count).collect()
}

/// One rank's memory, by side and name of the buffer.
type Held = BTreeMap<(Side, String), Bytes>;

/// What a rank has to show for a delivery.
#[derive(Debug)]
pub struct Delivered {
    pub rank: Rank,
    pub report: RequestReport,
    /// What the transport has carried, all versions together.
    pub bytes_sent: u64,
    pub bytes_received: u64,
}

/// Devices other than the usual, by rank.
pub type Devices = BTreeMap<Rank, Arc<dyn Device>>;

/// Delivers `versions` versions and compares every destination element after
/// each.
pub fn deliver(plan: &Arc<Plan>, carrier: Carrier, versions: u64) -> Vec<Delivered> {
    let (delivered, wrong) = deliver_with(plan, carrier, versions, &Devices::new());
    assert_eq!(wrong, Vec::<String>::new(), "{carrier:?}");
    delivered
}

/// The same; returns what was wrong, rank by rank.
pub fn deliver_with(
    plan: &Arc<Plan>,
    carrier: Carrier,
    versions: u64,
    devices: &Devices,
) -> (Vec<Delivered>, Vec<String>) {
    let _alone = (carrier == Carrier::Nccl).then(alone_on_one_gpu);
    let count = plan.ranks().last().unwrap().0 + 1;
    let hub = match carrier {
        Carrier::Staged | Carrier::GpuStaged => LoopbackHub::staged(count),
        Carrier::Loopback | Carrier::Shm | Carrier::Gpu | Carrier::Nccl => LoopbackHub::new(count),
    };
    let options = ShmOptions {
        ring_bytes_max: 1 << 20,
        slot_count: 2,
        slot_bytes_max: 4096,
    };
    let bootstrap = |r: u32| -> Box<dyn Bootstrap> {
        match carrier {
            Carrier::Shm => Box::new(Shm::of(ShmTransport::with(Rank(r), options).unwrap())),
            Carrier::Nccl => Box::new(fake_gpu::nccl::bootstrap(r)),
            Carrier::Loopback | Carrier::Staged | Carrier::Gpu | Carrier::GpuStaged => {
                let member = hub.attach(Rank(r)).unwrap();
                Box::new(Ready::new(Kind::Loopback, member))
            }
        }
    };
    let endpoints = meet(count, bootstrap).unwrap();
    let end = Gate::new(count as usize);
    let mut all = std::thread::scope(|scope| {
        let threads: Vec<_> = endpoints
            .into_iter()
            .map(|endpoint| {
                let end = &end;
                scope.spawn(move || {
                    let rank = endpoint.rank();
                    let device = device(carrier, rank, devices);
                    let (report, wrong) = one_rank(plan, &endpoint, device, versions, end);
                    let progress = endpoint.transport().unwrap().progress();
                    let delivered = Delivered {
                        rank,
                        report,
                        bytes_sent: progress.bytes_sent,
                        bytes_received: progress.bytes_received,
                    };
                    (delivered, wrong)
                })
            })
            .collect();
        let joined = threads.into_iter().map(|t| t.join().unwrap());
        joined.collect::<Vec<_>>()
    });
    let wrong = all
        .iter_mut()
        .flat_map(|d| std::mem::take(&mut d.1))
        .collect();
    (all.into_iter().map(|d| d.0).collect(), wrong)
}

fn device(carrier: Carrier, rank: Rank, devices: &Devices) -> Arc<dyn Device> {
    match (devices.get(&rank), carrier) {
        (Some(device), _) => device.clone(),
        (None, Carrier::Staged) => Arc::new(DeferredDevice::pumped(u64::from(rank.0)).unwrap()),
        (None, Carrier::Loopback | Carrier::Shm) => Arc::new(HostDevice::new().unwrap()),
        (None, Carrier::Gpu | Carrier::GpuStaged | Carrier::Nccl) => fake_gpu::device(),
    }
}

fn one_rank(
    plan: &Arc<Plan>,
    endpoint: &Endpoint,
    device: Arc<dyn Device>,
    versions: u64,
    end: &Gate,
) -> (RequestReport, Vec<String>) {
    let rank = endpoint.rank();
    let session = Session::new(endpoint, device, SessionOptions::default()).unwrap();
    let mut held = Held::new();
    for side in [Side::Source, Side::Destination] {
        for b in plan.layout(side).buffers(rank) {
            let gpu = (b.memory != Memory::Host).then(fake_gpu::device);
            let bytes = Bytes::new(b.bytes, gpu.as_ref());
            let bound = session.bind(side, &b.name, bytes.range(), b.memory);
            bound.unwrap();
            held.insert((side, b.name), bytes);
        }
    }
    let slot = session.load(plan.clone()).unwrap();
    let request = Request::new(&session, slot).unwrap();
    let mut wrong = Vec::new();
    for version in 1..=versions {
        let mut image = image(Side::Source, &held);
        each_element(plan, Side::Source, rank, |name, at, value| {
            let value = value(version);
            image.get_mut(name).unwrap()[at..][..value.len()].copy_from_slice(&value);
        });
        for (name, bytes) in image {
            held[&(Side::Source, name)].put(&bytes);
        }
        let options = RequestOptions {
            version,
            flags: if version % 2 == 0 { FLAG_VERIFY } else { 0 },
            ..RequestOptions::default()
        };
        request.submit(&options).unwrap();
        match request.wait(60 * SECOND) {
            Ok(state) => assert_eq!(state, State::Done),
            Err(e) => wrong.push(format!("rank {rank} version {version}: {e}")),
        }
        let mut bad = 0;
        let image = self::image(Side::Destination, &held);
        each_element(plan, Side::Destination, rank, |name, at, value| {
            let value = value(version);
            bad += u64::from(image[name][at..][..value.len()] != value);
        });
        if bad > 0 {
            wrong.push(format!("rank {rank} version {version}: {bad} elements"));
        }
        end.wait();
    }
    (request.report(), wrong)
}

/// What the buffers of one side hold, by name.
fn image(side: Side, held: &Held) -> BTreeMap<String, Vec<u8>> {
    let of_side = held.iter().filter(|((of, _), _)| *of == side);
    of_side
        .map(|((_, name), bytes)| (name.clone(), bytes.get()))
        .collect()
}

/// Calls `f(buffer, byte, value of a version)` for each element of one side
/// of a rank.
fn each_element(
    plan: &Plan,
    side: Side,
    rank: Rank,
    mut f: impl FnMut(&str, usize, &dyn Fn(u64) -> Vec<u8>),
) {
    let layout = plan.layout(side);
    for v in layout.views(rank) {
        let name = layout.buffer(rank, v.buffer).unwrap().name;
        let tensor = &layout.tensors()[v.tensor.index()];
        for i in naive::indices(&v.bounds) {
            let at = i.iter().zip(v.bounds.spans()).zip(&v.strides);
            let at = at.map(|((x, s), stride)| (x - s.lo) as i64 * stride);
            let at = v.offset as i64 + at.sum::<i64>();
            let flat = naive::flat_index(tensor, &i);
            let n = v.dtype.bytes() as usize;
            let value = |version: u64| {
                let value = naive::value(&format!("{version} {}", tensor.name), flat, n);
                assert_ne!(value, vec![OLD; n]);
                value
            };
            f(&name, at as usize, &value);
        }
    }
}
