//! What `explain` says is what the layouts say and what programs do.

use std::sync::Arc;
use weightsync::Rank;
use weightsync::error::Status;
use weightsync::layout::{BufferKey, Layout, view::View};
use weightsync::plan::Plan;
use weightsync::plan::decision::PlanOptions;
use weightsync::plan::origin::Cell;

fn layout(name: &str) -> Arc<Layout> {
    let bytes = std::fs::read(format!("tests/layouts/{name}.json")).unwrap();
    Arc::new(Layout::from_json(&bytes).unwrap())
}

fn plan(bucket_count: u32) -> Plan {
    let options = PlanOptions {
        bucket_count,
        ..PlanOptions::default()
    };
    Plan::create(
        layout("trainer_tp2_pp2_dp2"),
        layout("inference_2x_tp4"),
        &options,
    )
    .unwrap()
}

/// Every place where a rank of a layout has an element, by its views.
fn places(layout: &Layout, rank: Rank, tensor: &str, index: &[u64]) -> Vec<Cell> {
    let views = layout.views(rank);
    let is_it = |v: &&View<BufferKey>| {
        let name = &layout.tensors()[v.tensor.index()].name;
        layout.resolve_alias(name) == layout.resolve_alias(tensor)
            && v.bounds
                .spans()
                .iter()
                .zip(index)
                .all(|(s, x)| s.lo <= *x && *x < s.hi)
    };
    views
        .iter()
        .filter(is_it)
        .map(|v| {
            let steps = v.bounds.spans().iter().zip(index).zip(&v.strides);
            let away: i64 = steps
                .map(|((s, x), stride)| (x - s.lo) as i64 * stride)
                .sum();
            Cell {
                rank: rank.0,
                buffer: layout.buffer(rank, v.buffer).unwrap().name,
                offset: (v.offset as i64 + away) as u64,
            }
        })
        .collect()
}

#[test]
fn an_element_comes_from_a_holder_and_ends_where_its_rank_wants_it() {
    let plan = plan(3);
    let mut seed = 7u64;
    for t in plan.tensors().iter() {
        for rank in plan.destination().ranks() {
            for _ in 0..4 {
                seed = seed
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                let index: Vec<u64> = t.shape.iter().map(|n| (seed >> 33) % n).collect();
                let wanted = places(plan.destination(), rank, &t.name, &index);
                let origin = match plan.origin(rank, &t.name, &index) {
                    Ok(origin) => origin,
                    Err(e) => {
                        assert_eq!(e.status, Status::NotFound, "{e}");
                        assert!(wanted.is_empty(), "{} {index:?} on {rank}: {e}", t.name);
                        continue;
                    }
                };
                let (first, last) = (&origin.hops[0], &origin.hops[origin.hops.len() - 1]);
                assert!(wanted.contains(&last.to), "{last:?} is none of {wanted:?}");
                let held = places(plan.source(), Rank(first.from.rank), &t.name, &index);
                assert!(held.contains(&first.from), "{first:?} is none of {held:?}");
            }
        }
    }
}

#[test]
fn traffic_adds_up_to_the_report() {
    let plan = plan(4);
    let (report, mut done) = (plan.report().unwrap(), 0);
    let traffic = plan
        .traffic(plan.topology(), plan.participants(), || done += 1)
        .unwrap();
    assert_eq!(done, plan.participants().len());
    let messages: u64 = traffic.steps.iter().map(|s| s.messages).sum();
    assert_eq!(messages, report.messages);
    assert_eq!(traffic.pair_count, report.pairs);
    assert_eq!(traffic.steps.len() as u32, report.steps);
    let sent: u64 = traffic.ranks.iter().map(|r| r.sent_bytes).sum();
    let received: u64 = traffic.ranks.iter().map(|r| r.received_bytes).sum();
    assert_eq!((sent, received), (report.bytes_moved, report.bytes_moved));
    // Messages count the gaps of alignment, loads do not.
    let drawn: u64 = traffic.matrix.bytes.iter().sum();
    assert!(drawn >= sent && drawn < sent + 16 * 100 * report.messages);
    assert!(traffic.pairs.windows(2).all(|w| w[0].bytes >= w[1].bytes));
    assert_eq!(traffic.tensors[0].tensor, "model.embed_tokens.weight");
}

#[test]
fn questions_without_an_answer_are_refused() {
    let plan = plan(1);
    let status = |rank, tensor: &str, index: &[u64]| {
        plan.origin(Rank(rank), tensor, index).unwrap_err().status
    };
    assert_eq!(status(9, "no.such.tensor", &[0]), Status::NotFound);
    assert_eq!(
        status(9, "model.norm.weight", &[0, 0]),
        Status::InvalidArgument
    );
    assert_eq!(
        status(9, "model.norm.weight", &[1 << 40]),
        Status::InvalidArgument
    );
    assert_eq!(status(0, "model.norm.weight", &[0]), Status::NotFound);
}
