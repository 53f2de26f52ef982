//! What a plan is refused for, and what it takes: layouts as files say them.

use std::collections::BTreeSet;
use std::sync::Arc;
use weightsync::layout::Layout;
use weightsync::plan::Plan;
use weightsync::plan::decision::{PlanOptions, Strategy};
use weightsync::plan::program::{Direction, PairHash};
use weightsync::{Error, Rank, Status};

/// The layout that this file, less its version, describes.
fn layout(json: &str) -> Arc<Layout> {
    let file = json.replacen('{', r#"{"weightsync_layout": 1, "#, 1);
    Arc::new(Layout::from_json(file.as_bytes()).unwrap())
}

fn plan(source: &str, destination: &str) -> Result<Plan, Error> {
    Plan::create(layout(source), layout(destination), &PlanOptions::default())
}

/// Refused with all of these in its message, as a plan and as bytes of one.
#[track_caller]
fn refused(source: &str, destination: &str, texts: &[&str]) {
    let e = plan(source, destination).unwrap_err();
    assert_eq!(e.status, Status::LayoutInvalid, "{e}");
    for text in texts {
        assert!(e.message.contains(text), "{text:?} is not in: {e}");
    }
    // Whoever skips the check on making a plan meets it on reading one.
    let decision = {
        let one = r#"{"ranks": [0], "tensors": [{"name": "y", "shape": [1], "dtype": "u8"}]}"#;
        plan(one, &one.replace("[0]", "[1]"))
            .unwrap()
            .decision()
            .clone()
    };
    let unchecked =
        Plan::with_decision(layout(source), layout(destination), decision, None).unwrap();
    let again = Plan::from_bytes(&unchecked.to_bytes().unwrap()).unwrap_err();
    assert_eq!(again.message, e.message);
}

const SOURCE: &str =
    r#"{"ranks": [0], "tensors": [{"name": "x", "shape": [4, 8], "dtype": "bf16"}]}"#;

/// One explicit destination rank with these views of `x` in a buffer.
fn destination(bytes: u64, views: &str) -> String {
    format!(
        r#"{{"tensors": [{{"name": "x", "shape": [4, 8], "dtype": "bf16"}}], "explicit": [
            {{"rank": 1, "buffers": [{{"name": "w", "bytes": {bytes}}}], "views": [{views}]}}]}}"#
    )
}

#[test]
fn several_elements_at_one_place_are_refused() {
    let row = r#"{"tensor": "x", "box": [[0, 4], [0, 8]], "buffer": "w", "strides": [0, 2]}"#;
    let texts = [
        "\"x\"",
        "rank 1",
        "strides [0, 2]",
        "several elements at one place",
    ];
    refused(SOURCE, &destination(64, row), &texts);
}

#[test]
fn the_proof_of_a_plan_looks_at_memory_and_not_at_boxes_alone() {
    let row = r#"{"tensor": "x", "box": [[0, 4], [0, 8]], "buffer": "w", "strides": [0, 2]}"#;
    let sound = plan(SOURCE, &SOURCE.replace("[0]", "[1]")).unwrap();
    sound.verify().unwrap();
    let (source, twice) = (layout(SOURCE), layout(&destination(64, row)));
    let plan = Plan::with_decision(source, twice, sound.decision().clone(), None).unwrap();
    for e in [
        plan.verify().unwrap_err(),
        plan.verify_rank(Rank(1)).unwrap_err(),
    ] {
        assert_eq!(e.status, Status::Internal);
        assert!(
            e.message
                .contains("rank 1 would write byte 0 of its buffer 0 twice"),
            "{e}"
        );
    }
}

#[test]
fn boxes_that_overlap_are_refused() {
    let views = r#"{"tensor": "x", "box": [[0, 3], [0, 8]], "buffer": "w"},
                   {"tensor": "x", "box": [[2, 4], [0, 8]], "buffer": "w", "offset": 100}"#;
    let texts = ["rank 1", "[0,3)", "[2,4)", "16 bytes"];
    refused(SOURCE, &destination(164, views), &texts);
}

#[test]
fn a_cut_inside_a_granule_of_the_other_side_is_refused() {
    let side = |first: u32, parts: u32, granule: u32| {
        format!(
            r#"{{"ranks": {{"first": {first}, "count": {parts}}}, "meshes": {{"m": [["tp", {parts}]]}},
                "tensors": [{{"name": "x", "shape": [12], "granule": [{granule}], "dtype": "u8",
                    "cuts": [{{"dim": 0, "axes": ["tp"]}}]}}]}}"#
        )
    };
    refused(
        &side(0, 3, 4),
        &side(3, 2, 6),
        &["\"x\"", "axis 0", "granules of 6", "granules of 4"][..3],
    );
}

/// Above as many ranks as are looked at one by one, too.
#[test]
fn a_byte_that_nobody_holds_is_refused_among_4000_ranks() {
    let source = r#"{"tensors": [{"name": "x", "shape": [4000], "dtype": "u8"}], "explicit": [
        {"rank": 0, "buffers": [{"name": "w", "bytes": 4000}], "views": [
            {"tensor": "x", "box": [[0, 1502]], "buffer": "w"},
            {"tensor": "x", "box": [[1503, 4000]], "buffer": "w", "offset": 1503}]}]}"#;
    let destination = r#"{"ranks": {"first": 1, "count": 4000}, "tensors": [
        {"name": "x", "shape": [4000], "dtype": "u8", "cuts": [{"dim": 0, "axes": ["rank"]}]}]}"#;
    refused(
        source,
        destination,
        &[
            "\"x\"",
            "rank 1503 ",
            "no source rank holds 1 bytes",
            "[1502,1503)",
        ],
    );
}

#[test]
fn an_alias_of_either_side_joins_what_is_named_differently() {
    let named = |rank: u32, name: &str, aliases: &str| {
        format!(
            r#"{{"ranks": [{rank}], {aliases}
                "tensors": [{{"name": "{name}", "shape": [8, 4], "dtype": "bf16"}}]}}"#
        )
    };
    let tied = r#""aliases": {"head": "embed"},"#;
    for (a, b) in [(tied, ""), ("", tied)] {
        let name = |aliases: &str| if aliases.is_empty() { "head" } else { "embed" };
        let plan = plan(&named(0, name(a), a), &named(1, name(b), b)).unwrap();
        plan.verify().unwrap();
        assert_eq!(plan.program(Rank(1)).unwrap().bytes_received, 64);
    }
}

/// A second member that a mesh axis of its own cuts unevenly makes the rows of
/// some needers, or holders, longer than those of others. The other side is
/// transposed, so that these rows alone tell what the messages are.
#[test]
fn members_of_shared_rows_may_be_cut_by_axes_of_their_own() {
    let whole = |first: u32| {
        format!(
            r#"{{"ranks": [{first}], "tensors": [
                {{"name": "q", "shape": [8, 64], "dtype": "u8", "order": [1, 0]}},
                {{"name": "k", "shape": [8, 1], "dtype": "u8"}}]}}"#
        )
    };
    let fused = r#"{"ranks": {"first": 1, "count": 4}, "meshes": {"m": [["dp", 2], ["tp", 2]]},
        "tensors": [
            {"name": "q", "shape": [8, 64], "dtype": "u8", "cuts": [{"dim": 0, "axes": ["tp"]}]},
            {"name": "k", "shape": [8, 1], "dtype": "u8", "cuts": [{"dim": 0, "axes": ["tp"]},
                {"dim": 1, "axes": ["dp"], "kind": "floor"}]}],
        "fused": [{"buffer": "qk", "members": ["q", "k"], "shared_dims": 1}]}"#;
    for (source, destination) in [(whole(0), fused.into()), (fused.to_string(), whole(9))] {
        for direct_bytes_min in [1, 64, 128, 256] {
            let options = PlanOptions {
                direct_bytes_min,
                ..PlanOptions::default()
            };
            let (s, d) = (layout(&source), layout(&destination));
            Plan::create(s, d, &options).unwrap().verify().unwrap();
        }
    }
}

/// The same, passed on by a mate of the holder, which stores nothing of it.
#[test]
fn who_relays_for_a_holder_expects_what_that_one_sends() {
    let tensors = |q: &str, k: &str| {
        format!(
            r#"{{"name": "q", "shape": [8, 64], "dtype": "u8"{q}}},
               {{"name": "k", "shape": [8, 1], "dtype": "u8"{k}}},
               {{"name": "x", "shape": [64], "dtype": "u8"}}"#
        )
    };
    let source = format!(
        r#"{{"tensors": [{}], "explicit": [
            {{"rank": 0, "buffers": [{{"name": "w", "bytes": 520}}], "views": [
                {{"tensor": "q", "box": [[0, 8], [0, 64]], "buffer": "w"}},
                {{"tensor": "k", "box": [[0, 8], [0, 1]], "buffer": "w", "offset": 512}}]}},
            {{"rank": 1, "buffers": [{{"name": "w", "bytes": 64}}], "views": [
                {{"tensor": "x", "box": [[0, 64]], "buffer": "w"}}]}}]}}"#,
        tensors("", "")
    );
    let destination = format!(
        r#"{{"ranks": {{"first": 8, "count": 4}}, "meshes": {{"m": [["dp", 2], ["tp", 2]]}},
            "tensors": [{}],
            "fused": [{{"buffer": "qk", "members": ["q", "k"], "shared_dims": 1}}]}}"#,
        tensors(
            r#", "cuts": [{"dim": 0, "axes": ["tp"]}]"#,
            r#", "cuts": [{"dim": 0, "axes": ["tp"]},
                          {"dim": 1, "axes": ["dp"], "kind": "ceil"}]"#
        )
    );
    for strategy in [Strategy::Relay, Strategy::Fanout] {
        for direct_bytes_min in [1, 64, 256] {
            let options = PlanOptions {
                strategy,
                source_relay: true,
                direct_bytes_min,
                ..PlanOptions::default()
            };
            let (s, d) = (layout(&source), layout(&destination));
            let plan = Plan::create(s, d, &options).unwrap();
            plan.verify().unwrap();
            assert!(plan.program(Rank(1)).unwrap().relay_bytes > 0);
        }
    }
}

#[test]
fn cuts_that_leave_too_many_cells_are_refused_by_name_and_number() {
    let x = r#""name": "x", "shape": [8192, 8192], "dtype": "u8""#;
    let blocks = |dim: u32, axis: &str| {
        format!(r#"{{"dim": {dim}, "axes": ["{axis}"], "kind": {{"blocks": 256}}}}"#)
    };
    let source = format!(
        r#"{{"ranks": {{"first": 0, "count": 1024}}, "meshes": {{"m": [["a", 32], ["b", 32]]}},
            "tensors": [{{{x}, "cuts": [{}, {}]}}]}}"#,
        blocks(0, "a"),
        blocks(1, "b")
    );
    let destination = format!(r#"{{"ranks": [1024], "tensors": [{{{x}}}]}}"#);
    let e = plan(&source, &destination).unwrap_err();
    assert_eq!(e.status, Status::LimitExceeded);
    for text in ["\"x\"", "67108864 cells", "1048576"] {
        assert!(e.message.contains(text), "{text:?} is not in: {e}");
    }
}

/// As many boxes as ranks, along either axis: neither the stack nor the time
/// grows with their square.
#[test]
fn twenty_thousand_ranks_may_be_described_one_by_one() {
    const RANKS: u32 = 20_000;
    for axis in 0..2 {
        let mut shape = [2, 2];
        shape[axis] = u64::from(RANKS);
        let rank = |i: u32| {
            let mut bounds = [[0, 2], [0, 2]];
            bounds[axis] = [i, i + 1];
            format!(
                r#"{{"rank": {i}, "buffers": [{{"name": "w", "bytes": 2}}],
                    "views": [{{"tensor": "x", "box": {bounds:?}, "buffer": "w"}}]}}"#
            )
        };
        let tensor = format!(r#"{{"name": "x", "shape": {shape:?}, "dtype": "u8"}}"#);
        let many = format!(
            r#"{{"tensors": [{tensor}], "explicit": [{}]}}"#,
            (0..RANKS).map(rank).collect::<Vec<_>>().join(",")
        );
        let one = format!(r#"{{"ranks": [{RANKS}], "tensors": [{tensor}]}}"#);
        for (source, destination) in [(&many, &one), (&one, &many)] {
            let plan = plan(source, destination).unwrap();
            let pairs = plan.program(Rank(RANKS)).unwrap().pairs.len();
            assert_eq!(pairs, RANKS as usize);
            plan.verify_rank(Rank(RANKS)).unwrap();
            assert_eq!(plan.program(Rank(7)).unwrap().pairs.len(), 1);
        }
    }
}

/// What both ends compare before a byte moves covers all buckets, the first one
/// as well as the last.
#[test]
fn the_hash_of_a_pair_tells_in_which_bucket_two_plans_differ() {
    // Four tensors, one a bucket, of which one is of another shape.
    let hash = |odd: usize| {
        let tensor = |i: usize| {
            let shape = if i == odd { "[4, 16]" } else { "[8, 8]" };
            format!(r#"{{"name": "t{i}", "shape": {shape}, "dtype": "bf16"}}"#)
        };
        let tensors: Vec<String> = (0..4).map(tensor).collect();
        let side = |rank: u32| {
            let tensors = tensors.join(", ");
            layout(&format!(r#"{{"ranks": [{rank}], "tensors": [{tensors}]}}"#))
        };
        let options = PlanOptions {
            bucket_count: 4,
            ..PlanOptions::default()
        };
        let plan = Plan::create(side(0), side(1), &options).unwrap();
        let program = plan.program(Rank(0)).unwrap();
        let buckets: Vec<u32> = program.messages.iter().map(|m| m.bucket).collect();
        assert_eq!(buckets, [0, 1, 2, 3]);
        assert_eq!(
            program.pairs,
            reversed(&plan.program(Rank(1)).unwrap().pairs)
        );
        program.pairs[0].hash
    };
    let hashes: Vec<u128> = (0..5).map(hash).collect();
    for (i, a) in hashes.iter().enumerate() {
        assert!(hashes[..i].iter().all(|b| a != b), "{i}: {hashes:x?}");
    }
}

/// Pairs as the other end has them.
fn reversed(pairs: &[PairHash]) -> Vec<PairHash> {
    let other = |p: &PairHash| PairHash {
        peer: Rank(1 - p.peer.0),
        direction: match p.direction {
            Direction::Send => Direction::Receive,
            Direction::Receive => Direction::Send,
        },
        hash: p.hash,
    };
    pairs.iter().map(other).collect()
}

/// A rank may hold a tensor twice, cut over its mates and whole: the order in
/// which it sends cells is that in which they are awaited.
#[test]
fn who_holds_a_tensor_in_two_buffers_sends_it_in_order() {
    let source = r#"{"ranks": {"first": 0, "count": 2}, "meshes": {"m": [["tp", 2]]},
        "tensors": [
            {"name": "w", "shape": [64, 8], "dtype": "bf16", "buffer": "a",
             "cuts": [{"dim": 0, "axes": ["tp"]}]},
            {"name": "w", "shape": [64, 8], "dtype": "bf16", "buffer": "b"}]}"#;
    let destination = r#"{"ranks": [2, 3], "tensors": [
        {"name": "w", "shape": [64, 8], "dtype": "bf16"}]}"#;
    for bucket_count in [1, 2, 3] {
        for strategy in [Strategy::Direct, Strategy::Relay, Strategy::Fanout] {
            let options = PlanOptions {
                bucket_count,
                strategy,
                ..PlanOptions::default()
            };
            let (s, d) = (layout(source), layout(destination));
            Plan::create(s, d, &options).unwrap().verify().unwrap();
        }
    }
}

/// What goes to many ranks is packed once a bucket, though neighbours begin in
/// different buckets.
#[test]
fn what_many_get_in_few_buckets_is_packed_once_in_each() {
    let source = r#"{"ranks": [0], "tensors": [
        {"name": "a", "shape": [64], "dtype": "bf16"},
        {"name": "b", "shape": [64], "dtype": "bf16"}]}"#;
    let destination = r#"{"ranks": {"first": 1, "count": 256}, "meshes": {"m": [["dp", 256]]},
        "copies": {"axes": ["dp"]}, "tensors": [
        {"name": "a", "shape": [64], "dtype": "bf16"},
        {"name": "b", "shape": [64], "dtype": "bf16"}]}"#;
    let options = PlanOptions {
        bucket_count: 2,
        ..PlanOptions::default()
    };
    let plan = Plan::create(layout(source), layout(destination), &options).unwrap();
    let program = plan.program(Rank(0)).unwrap();
    let buckets: BTreeSet<u32> = program.messages.iter().map(|m| m.bucket).collect();
    assert_eq!((program.messages.len(), buckets.len()), (256, 2));
    let packs = program.steps.iter().flat_map(|s| program.packs_of(s));
    assert_eq!(packs.count(), 2);
}
