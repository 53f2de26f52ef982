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
    let tensor = r#""name": "w", "shape": [5, 3], "dtype": "u8""#;
    let source = format!(
        r#"{{"weightsync_layout": 1, "ranks": {{"first": 0, "count": 1}},
            "tensors": [{{{tensor}}}]}}"#
    );
    let destination = format!(
        r#"{{"weightsync_layout": 1, "ranks": {{"first": 1, "count": 6}}, {padding}
            "meshes": {{"m": [["rows", 3], ["cols", 2]]}},
            "tensors": [{{{tensor}, "cuts": [
                {{"dim": 0, "axes": ["rows"], "kind": {{"chunk": 3}}, "pad": true}},
                {{"dim": 1, "axes": ["cols"], "kind": "ceil", "pad": true}}]}}]}}"#
    );
    let layout = |json: &str| Arc::new(Layout::from_json(json.as_bytes()).unwrap());
    let (source, destination) = (layout(&source), layout(&destination));
    let plan = Arc::new(Plan::create(source, destination, &PlanOptions::default()).unwrap());
    let endpoints = meet_loopback(7);
    std::thread::scope(|scope| {
        let ranks: Vec<_> = endpoints
            .into_iter()
            .map(|endpoint| {
                let plan = plan.clone();
                scope.spawn(move || one_rank(&endpoint, plan))
            })
            .collect();
        let mut held = ranks.into_iter().map(|r| r.join().unwrap());
        held.next();
        held.collect()
    })
}

fn one_rank(endpoint: &Endpoint, plan: Arc<Plan>) -> Vec<u8> {
    let device = Arc::new(HostDevice::new().unwrap());
    let session = Session::new(endpoint, device, SessionOptions::default()).unwrap();
    let (side, memory) = match endpoint.rank().0 {
        0 => (Side::Source, (1..=15).collect::<Vec<u8>>()),
        _ => (Side::Destination, vec![OLD; 6]),
    };
    let range = MemoryRange {
        address: memory.as_ptr().expose_provenance(),
        bytes: memory.len() as u64,
    };
    session
        .bind(side, "w", range, weightsync::layout::view::Memory::Host)
        .unwrap();
    let slot = session.load(plan).unwrap();
    let request = Request::new(&session, slot).unwrap();
    request.submit(&options(1)).unwrap();
    assert_eq!(request.wait(20 * SECOND), Ok(State::Done));
    let outcome = Some((Outcome::Complete, Outcome::Complete));
    assert_eq!(request.outcome(), outcome);
    endpoint.finalize(20 * SECOND).unwrap();
    std::hint::black_box(memory)
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
