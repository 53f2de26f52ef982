//! Padding: memory of a destination that belongs to no box is zeroed or left,
//! as the layout says, also on ranks that have nothing but padding.

mod exec_support;

use exec_support::*;
use std::sync::Arc;
use weightsync::device::MemoryRange;
use weightsync::device::host::HostDevice;
use weightsync::exec::*;
use weightsync::layout::Layout;
use weightsync::plan::Plan;
use weightsync::plan::decision::PlanOptions;
use weightsync::plan::program::Side;

const OLD: u8 = 0x5a;

/// Delivers `w` (5 x 3, bytes 1 to 15) from rank 0 to ranks 1 to 6, cut into
/// 3 x 2 padded chunks; returns what these hold in the end.
fn deliver(padding: &str) -> Vec<Vec<u8>> {
    let destination = format!(
        r#"{{"weightsync_layout": 1, "ranks": {{"first": 1, "count": 6}}, {padding}
            "meshes": {{"m": [["rows", 3], ["cols", 2]]}},
            "tensors": [{{{TENSOR}, "cuts": [
                {{"dim": 0, "axes": ["rows"], "kind": {{"chunk": 3}}, "pad": true}},
                {{"dim": 1, "axes": ["cols"], "kind": "ceil", "pad": true}}]}}]}}"#
    );
    deliver_to(6, &destination, &[("w", 6)])
}

const TENSOR: &str = r#""name": "w", "shape": [5, 3], "dtype": "u8""#;

/// Delivers `w` from rank 0 to ranks 1 to `count`, each with these buffers;
/// returns what they hold in the end, buffer after buffer.
fn deliver_to(count: u32, destination: &str, buffers: &[(&str, usize)]) -> Vec<Vec<u8>> {
    let source = format!(
        r#"{{"weightsync_layout": 1, "ranks": {{"first": 0, "count": 1}},
            "tensors": [{{{TENSOR}}}]}}"#
    );
    let layout = |json: &str| Arc::new(Layout::from_json(json.as_bytes()).unwrap());
    let (source, destination) = (layout(&source), layout(destination));
    let plan = Arc::new(Plan::create(source, destination, &PlanOptions::default()).unwrap());
    let endpoints = meet_loopback(count + 1);
    std::thread::scope(|scope| {
        let ranks: Vec<_> = endpoints
            .into_iter()
            .map(|endpoint| {
                let plan = plan.clone();
                scope.spawn(move || one_rank(&endpoint, plan, buffers))
            })
            .collect();
        let mut held = ranks.into_iter().map(|r| r.join().unwrap());
        held.next();
        held.collect()
    })
}

fn one_rank(endpoint: &Endpoint, plan: Arc<Plan>, buffers: &[(&str, usize)]) -> Vec<u8> {
    let device = Arc::new(HostDevice::new().unwrap());
    let session = Session::new(endpoint, device, SessionOptions::default()).unwrap();
    let (side, memory) = match endpoint.rank().0 {
        0 => (Side::Source, vec![("w", (1..=15).collect::<Vec<u8>>())]),
        _ => {
            let old = buffers
                .iter()
                .map(|&(name, bytes)| (name, vec![OLD; bytes]));
            (Side::Destination, old.collect())
        }
    };
    for (name, bytes) in &memory {
        let range = MemoryRange {
            address: bytes.as_ptr().expose_provenance(),
            bytes: bytes.len() as u64,
        };
        session
            .bind(side, name, range, weightsync::layout::view::Memory::Host)
            .unwrap();
    }
    let slot = session.load(plan).unwrap();
    let request = Request::new(&session, slot).unwrap();
    request.submit(&options(1)).unwrap();
    assert_eq!(request.wait(20 * SECOND), Ok(State::Done));
    let outcome = Some((Outcome::Complete, Outcome::Complete));
    assert_eq!(request.outcome(), outcome);
    endpoint.finalize(20 * SECOND).unwrap();
    let memory = std::hint::black_box(memory);
    memory.into_iter().flat_map(|m| m.1).collect()
}

#[test]
fn padding_is_zeroed_where_the_layout_says_so() {
    let held = deliver(r#""padding": "zero","#);
    let expected = [
        // Rows 0 to 2, columns 0 to 1 and 2.
        vec![1, 2, 4, 5, 7, 8],
        vec![3, 0, 6, 0, 9, 0],
        // Rows 3 and 4.
        vec![10, 11, 13, 14, 0, 0],
        vec![12, 0, 15, 0, 0, 0],
        // None at all.
        vec![0; 6],
        vec![0; 6],
    ];
    assert_eq!(held, expected);
}

#[test]
fn padding_is_left_alone_otherwise() {
    const O: u8 = OLD;
    let held = deliver("");
    let expected = [
        vec![1, 2, 4, 5, 7, 8],
        vec![3, O, 6, O, 9, O],
        vec![10, 11, 13, 14, O, O],
        vec![12, O, 15, O, O, O],
        vec![O; 6],
        vec![O; 6],
    ];
    assert_eq!(held, expected);
}

/// Stored as one buffer per row, each row has padding of its own.
#[test]
fn padding_of_split_storage_is_zeroed_buffer_by_buffer() {
    let destination = format!(
        r#"{{"weightsync_layout": 1, "ranks": {{"first": 1, "count": 2}}, "padding": "zero",
            "meshes": {{"m": [["cols", 2]]}},
            "tensors": [{{{TENSOR}, "split": 0, "buffer": "w.{{local}}", "cuts": [
                {{"dim": 1, "axes": ["cols"], "kind": "ceil", "pad": true}}]}}]}}"#
    );
    let rows = ["w.0", "w.1", "w.2", "w.3", "w.4"].map(|name| (name, 2));
    let expected = [
        vec![1, 2, 4, 5, 7, 8, 10, 11, 13, 14],
        vec![3, 0, 6, 0, 9, 0, 12, 0, 15, 0],
    ];
    assert_eq!(deliver_to(2, &destination, &rows), expected);
}
