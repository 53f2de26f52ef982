//! Every way to be wrong, and what is said about it.

use serde_json::{Value, json};
use weightsync::layout::check::{
    FINDINGS_PER_KIND_MAX, Finding, FindingKind, Inspection, Side, check, check_pair,
};
use weightsync::layout::dtype::Dtype;
use weightsync::layout::tensor::Tensor;
use weightsync::layout::view::Memory;
use weightsync::layout::views::ExplicitBuilder;
use weightsync::layout::{Layout, LayoutSpec};
use weightsync::{Rank, Status};

/// A file over 8 ranks, pp2 x tp4, with these tensors.
fn file(tensors: Value) -> Value {
    json!({
        "weightsync_layout": 1,
        "ranks": {"first": 0, "count": 8},
        "meshes": {"m": [["pp", 2], ["tp", 4]], "e": [["ep", 4], ["etp", 2]]},
        "tensors": tensors,
    })
}

fn tensor(shape: &[u64], more: Value) -> Value {
    let mut t = json!({"name": "w.x", "shape": shape, "dtype": "bf16", "mesh": "m"});
    for (k, v) in more.as_object().unwrap() {
        t[k] = v.clone();
    }
    t
}

fn spec(file: &Value) -> LayoutSpec {
    LayoutSpec::from_json(file.to_string().as_bytes()).unwrap()
}

fn layout(file: &Value) -> Layout {
    Layout::new(spec(file)).unwrap()
}

/// Checks that a file has exactly one finding, of this kind, that says all of
/// `words`, and that `Layout::new` says the same.
#[track_caller]
fn expect(file: &Value, kind: FindingKind, words: &[&str]) -> Finding {
    let spec = spec(file);
    let report = check(&spec);
    assert_eq!(report.findings.len(), 1, "{:#?}", report.findings);
    let f = report.findings[0].clone();
    assert_eq!(f.kind, kind, "{f:#?}");
    for w in words {
        assert!(f.message.contains(w), "no {w:?} in: {}", f.message);
    }
    let e = Layout::new(spec).unwrap_err();
    assert_eq!((e.status, &e.message), (Status::LayoutInvalid, &f.message));
    f
}

#[track_caller]
fn expect_cut(size: u64, cut: Value, kind: FindingKind, words: &[&str]) {
    let f = expect(
        &file(json!([tensor(&[size, 2], json!({"cuts": [cut]}))])),
        kind,
        words,
    );
    assert_eq!((f.tensor.as_str(), f.axis), ("w.x", Some(0)));
    assert!(f.message.contains("tensor \"w.x\""), "{}", f.message);
}

#[test]
fn ill_formed_cuts_are_named_with_their_numbers() {
    use FindingKind::Cut;
    let cut = |kind: Value| json!({"dim": 0, "axes": ["tp"], "kind": kind});
    expect_cut(
        30,
        cut(json!("even")),
        Cut,
        &["axis 0", "30 indices", "4 equal parts (tp 4)", "\"floor\""],
    );
    expect_cut(
        30,
        cut(json!({"chunk": 7})),
        Cut,
        &["4 chunks of 7", "cover only 28", "chunks of 8"],
    );
    expect_cut(
        30,
        cut(json!({"chunk": 0})),
        Cut,
        &["4 chunks of 0", "cover only 0"],
    );
    expect_cut(
        30,
        cut(json!({"at": [0, 10, 30]})),
        Cut,
        &["3 bounds", "4 parts (tp 4) have 5"],
    );
    expect_cut(
        30,
        cut(json!({"at": [0, 10, 9, 20, 30]})),
        Cut,
        &["fall from 10 to 9"],
    );
    expect_cut(
        30,
        cut(json!({"at": [0, 10, 12, 20, 29]})),
        Cut,
        &["from 0 to 29", "from 0 to 30"],
    );
    expect_cut(
        30,
        cut(json!({"at": [1, 10, 12, 20, 30]})),
        Cut,
        &["from 1 to 30"],
    );
    expect_cut(
        30,
        cut(json!({"blocks": 2})),
        Cut,
        &["30 indices", "4 parts (tp 4) of 2 blocks", "4 x 2"],
    );
    expect_cut(30, cut(json!({"blocks": 0})), Cut, &["0 blocks"]);
    let parts = |n: u32| json!({"dim": 0, "axes": ["tp"], "parts": n});
    expect_cut(
        24,
        parts(3),
        Cut,
        &["3 parts over 4 positions (tp 4)", "does not divide"],
    );
    expect_cut(24, parts(0), Cut, &["0 parts"]);
    expect_cut(24, parts(8), Cut, &["8 parts over 4 positions"]);
    expect_cut(
        24,
        json!({"dim": 0, "axes": ["tp", "tp"]}),
        Cut,
        &["\"tp\" twice"],
    );
}

#[test]
fn parts_that_straddle_a_mesh_axis_are_refused() {
    let f = json!({
        "weightsync_layout": 1,
        "ranks": {"first": 0, "count": 12},
        "meshes": {"m": [["a", 3], ["b", 4]]},
        "tensors": [tensor(&[24], json!({"cuts": [{"dim": 0, "axes": ["a", "b"], "parts": 2}]}))],
    });
    expect(
        &f,
        FindingKind::Cut,
        &[
            "2 parts over 12 positions (a 3 x b 4)",
            "6 neighbours",
            "\"b\" of size 4",
        ],
    );
}

#[test]
fn axes_are_used_once_and_exist() {
    use FindingKind::Cut;
    let cuts = |c: Value| file(json!([tensor(&[8, 8], json!({"cuts": c}))]));
    let twice = cuts(json!([{"dim": 0, "axes": ["tp"]}, {"dim": 1, "axes": ["tp"]}]));
    expect(
        &twice,
        Cut,
        &["axis 1", "mesh axis \"tp\"", "already cuts axis 0"],
    );
    let staged = file(json!([tensor(
        &[8],
        json!({
            "stage": {"axis": "pp", "at": 0}, "cuts": [{"dim": 0, "axes": ["pp"]}]
        })
    )]));
    expect(&staged, Cut, &["\"pp\"", "already numbers the stages"]);
    expect(
        &cuts(json!([{"dim": 2, "axes": ["tp"]}])),
        Cut,
        &["names axis 2", "has 2 axes"],
    );
    let blocks = cuts(json!([
        {"dim": 0, "axes": ["tp"], "kind": {"blocks": 2}}, {"dim": 0, "axes": ["pp"]}
    ]));
    expect(&blocks, Cut, &["blocks must be the last cut"]);
    let nested = file(json!([tensor(
        &[9],
        json!({
            "cuts": [{"dim": 0, "axes": ["pp"], "kind": "ceil"}, {"dim": 0, "axes": ["tp"]}]
        })
    )]));
    expect(
        &nested,
        Cut,
        &["5 indices left by the cut before", "4 equal parts (tp 4)"],
    );
}

#[test]
fn granules_are_not_split() {
    use FindingKind::Granule;
    let cut = |g: u64, kind: Value| {
        file(json!([tensor(
            &[24],
            json!({
                "granule": [g], "cuts": [{"dim": 0, "axes": ["tp"], "kind": kind}]
            })
        )]))
    };
    for (kind, bound) in [
        (json!("even"), 6),
        (json!("floor"), 6),
        (json!("ceil"), 6),
        (json!({"chunk": 7}), 7),
        (json!({"at": [0, 8, 16, 18, 24]}), 18),
    ] {
        let f = expect(
            &cut(8, kind),
            Granule,
            &["granules of 8", &format!("falls at {bound}")],
        );
        assert_eq!(f.axis, Some(0));
    }
    assert!(check(&spec(&cut(3, json!("even")))).is_ok());
    assert!(check(&spec(&cut(8, json!({"chunk": 8})))).is_ok());
}

#[test]
fn a_cut_over_more_positions_than_there_are_numbers_is_a_finding() {
    let mut wide = file(json!([tensor(
        &[8],
        json!({"cuts": [{"dim": 0, "axes": ["tp", "tp", "tp", "tp"], "parts": 2}]})
    )]));
    wide["ranks"]["count"] = json!(65536);
    wide["meshes"] = json!({"m": [["tp", 65536]]});
    let f = expect(
        &wide,
        FindingKind::Cut,
        &["\"w.x\"", "mesh axis \"tp\" twice"],
    );
    assert_eq!(f.axis, Some(0));
}

#[test]
fn stages_storage_and_sizes_are_checked() {
    let one = |t: Value| file(json!([t]));
    let stage = one(tensor(&[8], json!({"stage": {"axis": "pp", "at": 2}})));
    expect(
        &stage,
        FindingKind::Stage,
        &["\"w.x\"", "stage 2", "stages 0 to 1"],
    );
    let order = one(tensor(&[8, 2], json!({"order": [0, 0]})));
    expect(&order, FindingKind::Storage, &["order [0, 0]", "2 axes"]);
    let split = one(tensor(&[8], json!({"split": 1, "buffer": "w.{local}"})));
    expect(
        &split,
        FindingKind::Storage,
        &["split along axis 1", "has 1 axes"],
    );
    let inner = one(tensor(&[8, 2], json!({"split": 1, "buffer": "w.{local}"})));
    let f = expect(
        &inner,
        FindingKind::Storage,
        &["\"w.x\"", "split along axis 1", "only axis 0"],
    );
    assert_eq!(f.axis, Some(1));
    let name = one(tensor(&[8], json!({"split": 0, "buffer": "w"})));
    expect(
        &name,
        FindingKind::Storage,
        &["buffer \"w\"", "{local} or {global}", "has 0"],
    );
    let huge = one(tensor(
        &[8, 2],
        json!({
            "cuts": [{"dim": 0, "axes": ["tp"], "kind": {"chunk": u64::MAX / 2}, "pad": true}]
        }),
    ));
    expect(
        &huge,
        FindingKind::Storage,
        &["exceeds 1125899906842624 bytes", "9223372036854775807"],
    );
    let stored = one(tensor(&[8], json!({"stored": "i64"})));
    expect(&stored, FindingKind::Dtype, &["bf16", "i64"]);
    let mut mesh = one(tensor(&[8], json!({})));
    mesh["meshes"]["m"] = json!([["pp", 2], ["tp", 3]]);
    expect(
        &mesh,
        FindingKind::Mesh,
        &["\"m\" has 6 positions (pp 2 x tp 3) for 8 ranks"],
    );
}

fn fused(a: Value, b: Value, shared_dims: u8) -> Value {
    let (mut a, mut b) = (a, b);
    a["name"] = json!("q");
    b["name"] = json!("k");
    let mut f = file(json!([a, b]));
    f["fused"] = json!([{"buffer": "qk", "members": ["q", "k"], "shared_dims": shared_dims}]);
    f
}

#[test]
fn fused_members_must_fit() {
    use FindingKind::Fused;
    let cut = |axes: Value| json!({"cuts": [{"dim": 0, "axes": axes}]});
    let by_tp = || tensor(&[8, 2], cut(json!(["tp"])));
    let differ = fused(by_tp(), tensor(&[8, 2], cut(json!(["pp"]))), 1);
    let f = expect(
        &differ,
        Fused,
        &[
            "\"qk\"",
            "\"q\" and \"k\"",
            "axis 0 has 2 local indices in one and 4",
        ],
    );
    assert_eq!((f.axis, f.rank), (Some(0), Some(Rank(0))));
    let sizes = fused(by_tp(), tensor(&[12, 2], cut(json!(["tp"]))), 1);
    expect(&sizes, Fused, &["axis 0 has 2 local indices in one and 3"]);
    // The same cut, worded in another mesh.
    let other = json!({"mesh": "e", "cuts": [{"dim": 0, "axes": ["ep"]}]});
    expect(
        &fused(by_tp(), tensor(&[9, 2], other), 1),
        FindingKind::Cut,
        &["9 indices"],
    );
    let other = json!({"mesh": "e", "cuts": [{"dim": 0, "axes": ["etp"]}]});
    expect(
        &fused(by_tp(), tensor(&[8, 2], other), 1),
        Fused,
        &["2 local indices in one and 4"],
    );
    expect(
        &fused(by_tp(), tensor(&[8], cut(json!(["tp"]))), 2),
        Fused,
        &["share 2 axes", "\"k\" has 1"],
    );
    let order = json!({"order": [1, 0], "cuts": [{"dim": 0, "axes": ["tp"]}]});
    expect(
        &fused(by_tp(), tensor(&[8, 2], order), 1),
        Fused,
        &["order [1, 0]", "come first in memory"],
    );
    let split = json!({"split": 0, "cuts": [{"dim": 0, "axes": ["tp"]}]});
    let mut split = fused(by_tp(), tensor(&[8, 2], split), 1);
    split["fused"][0]["buffer"] = json!("qk.{local}");
    expect(&split, Fused, &["split along different axes"]);
}

#[test]
fn fused_members_must_be_on_the_same_ranks() {
    let at = |axis: &str, stage: u32, mesh: &str| {
        let mut t = tensor(&[8], json!({"stage": {"axis": axis, "at": stage}}));
        t["mesh"] = json!(mesh);
        t
    };
    let mut f = fused(at("pp", 0, "m"), at("ep", 0, "e"), 0);
    expect(
        &f,
        FindingKind::Fused,
        &[
            "stage 0 of mesh \"m\"",
            "stage 0 of mesh \"e\"",
            "same ranks",
        ],
    );
    f["meshes"]["e"] = json!([["ep", 2], ["etp", 4]]);
    assert!(check(&spec(&f)).is_ok(), "pipeline groups coincide");
}

/// Not a mistake: different words for the same extents.
#[test]
fn fused_members_may_be_cut_in_other_words() {
    let by_tp = tensor(&[8, 2], json!({"cuts": [{"dim": 0, "axes": ["tp"]}]}));
    let by_ep = json!({"mesh": "e", "cuts": [{"dim": 0, "axes": ["ep"], "kind": "floor"}]});
    assert!(check(&spec(&fused(by_tp, tensor(&[8, 2], by_ep), 1))).is_ok());
}

#[test]
fn buffers_of_one_rank_have_names_of_their_own() {
    use FindingKind::BufferName;
    let named = |name: &str, buffer: &str, more: Value| {
        let mut t = tensor(&[8], more);
        (t["name"], t["buffer"]) = (json!(name), json!(buffer));
        t
    };
    let plain = || json!({});
    let at = |s: u32| json!({"stage": {"axis": "pp", "at": s}});
    let two = file(json!([named("a", "w", plain()), named("b", "w", plain())]));
    expect(
        &two,
        BufferName,
        &["named \"w\"", "\"a\" and \"b\"", "\"fused\""],
    );
    let half = file(json!([named("a", "w", plain()), named("b", "w", at(1))]));
    expect(&half, BufferName, &["named \"w\""]);
    let stages = file(json!([named("a", "w", at(0)), named("b", "w", at(1))]));
    assert!(check(&spec(&stages)).is_ok());
    let mut ep = named("b", "w", json!({"stage": {"axis": "ep", "at": 3}}));
    ep["mesh"] = json!("e");
    let apart = file(json!([named("a", "w", at(0)), ep.clone()]));
    assert!(check(&spec(&apart)).is_ok(), "ep 3 is within pp 1");
    ep["stage"]["at"] = json!(1);
    expect(
        &file(json!([named("a", "w", at(0)), ep])),
        BufferName,
        &["named \"w\""],
    );
    let split = json!({"split": 0, "cuts": [{"dim": 0, "axes": ["tp"]}]});
    let pattern = file(json!([
        named("a", "w.{local}", split.clone()),
        named("b", "w.1", plain())
    ]));
    expect(&pattern, BufferName, &["named \"w.1\""]);
    let beyond = file(json!([
        named("a", "w.{local}", split),
        named("b", "w.2", plain())
    ]));
    assert!(check(&spec(&beyond)).is_ok());
    // One tensor twice in one buffer, cut in two ways.
    let cut = json!({"cuts": [{"dim": 0, "axes": ["tp"]}]});
    let twice = file(json!([named("a", "w", plain()), named("a", "w", cut)]));
    expect(&twice, BufferName, &["\"a\" lies in it twice"]);
    // Twice in the same way is once.
    let same = layout(&file(json!([
        named("a", "w", plain()),
        named("a", "w", plain())
    ])));
    assert_eq!(same.views(Rank(0)).len(), 1);
}

#[test]
fn all_findings_are_reported_up_to_a_cap_per_kind() {
    let bad = |i: usize| {
        let mut t = tensor(&[30], json!({"cuts": [{"dim": 0, "axes": ["tp"]}]}));
        t["name"] = json!(format!("bad.{i}"));
        t
    };
    let count = FINDINGS_PER_KIND_MAX + 7;
    let mut tensors: Vec<Value> = (0..count).map(bad).collect();
    tensors.push(tensor(&[8], json!({"stage": {"axis": "pp", "at": 5}})));
    let spec = spec(&file(json!(tensors)));
    let report = check(&spec);
    assert_eq!(report.findings.len(), FINDINGS_PER_KIND_MAX + 1);
    assert_eq!(report.omitted, 7);
    let e = Layout::new(spec).unwrap_err();
    assert!(e.message.ends_with(&format!("; and {count} more")), "{e}");
}

/// One rank with a buffer of 64 bytes, a tensor [4, 8] of bf16 and one [8] of u8.
fn rank() -> (ExplicitBuilder, u32) {
    let mut b = ExplicitBuilder::new(Rank(7), 0);
    b.tensor(Tensor::new("x", &[4, 8], Dtype::BF16).unwrap());
    b.tensor(Tensor {
        granule: [2].into_iter().collect(),
        ..Tensor::new("y", &[8], Dtype::U8).unwrap()
    });
    let w = b.buffer("w", 64, Memory::Host);
    (b, w)
}

const X: weightsync::layout::tensor::TensorIndex = weightsync::layout::tensor::TensorIndex(0);
const Y: weightsync::layout::tensor::TensorIndex = weightsync::layout::tensor::TensorIndex(1);

#[track_caller]
fn refused(b: ExplicitBuilder, words: &[&str]) {
    let e = b.build().unwrap_err();
    for w in ["rank 7"].iter().chain(words) {
        assert!(e.message.contains(w), "no {w:?} in: {e}");
    }
}

#[test]
fn explicit_views_stay_inside_and_apart() {
    let whole = [(0, 4), (0, 8)];
    let (mut b, w) = rank();
    b.contiguous(X, &whole, w, 0).unwrap();
    b.clone().build().unwrap();
    b.strided(Y, &[(0, 8)], w, 60, &[1], Dtype::U8);
    refused(
        b,
        &["tensor \"y\"", "[60,68)", "buffer \"w\", which has 64"],
    );

    let (mut b, w) = rank();
    b.contiguous(X, &[(0, 4), (2, 10)], w, 0).unwrap();
    refused(b, &["tensor \"x\"", "axis 1", "[2,10)", "8 indices"]);

    let (mut b, w) = rank();
    b.contiguous(Y, &[(2, 7)], w, 0).unwrap();
    refused(b, &["tensor \"y\"", "[2,7)", "at 7", "granule of 2"]);

    let (mut b, w) = rank();
    b.strided(X, &whole, w, 6, &[-2, 8], Dtype::BF16);
    b.clone().build().unwrap();
    b.strided(Y, &[(0, 2)], w, 62, &[1], Dtype::U8);
    refused(
        b,
        &[
            "tensor \"x\"",
            "tensor \"y\"",
            "share 2 bytes",
            "byte 62",
            "alias",
        ],
    );

    let (mut b, w) = rank();
    b.strided(X, &whole, w, 4, &[-2, 8], Dtype::BF16);
    refused(b, &["bytes before its start"]);

    let (mut b, w) = rank();
    b.strided(X, &whole, w, 0, &[i64::MAX, i64::MIN], Dtype::BF16);
    refused(b, &["before its start, or beyond"]);

    let (mut b, w) = rank();
    b.strided(X, &whole, w, 0, &[16, 2], Dtype::from_name("i16").unwrap());
    refused(b, &["bf16", "i16"]);

    let (mut b, w) = rank();
    let far = (0, u64::MAX);
    b.strided(X, &[far, far], w, 0, &[i64::MAX, i64::MAX], Dtype::BF16);
    refused(b, &["axis 0", "and 2 more"]);

    let (mut b, w) = rank();
    b.strided(X, &[(0, 4)], w, 0, &[16], Dtype::BF16);
    refused(b, &["view 0", "2 axes", "the box has 1"]);

    let (mut b, _) = rank();
    b.contiguous(X, &whole, 3, 0).unwrap();
    refused(b, &["buffer number 3", "1 buffers"]);

    let (mut b, w) = rank();
    b.strided(X, &[(3, 1), (0, 8)], w, 0, &[16, 2], Dtype::BF16);
    refused(b, &["axis 0", "[3,1)"]);
}

#[test]
fn interleaved_views_do_not_overlap_however_many_runs_they_have() {
    let rows = 1u64 << 22;
    let mut b = ExplicitBuilder::new(Rank(0), 0);
    let w = b.buffer("gate_up", rows * 8, Memory::Host);
    for (i, name) in ["gate", "up"].into_iter().enumerate() {
        let t = b.tensor(Tensor::new(name, &[rows, 2], Dtype::BF16).unwrap());
        b.strided(
            t,
            &[(0, rows), (0, 2)],
            w,
            4 * i as u64,
            &[8, 2],
            Dtype::BF16,
        );
    }
    b.clone().build().unwrap();
    // Pitches without anything in common, and too many runs to look at.
    let z = b.tensor(Tensor::new("z", &[rows / 2], Dtype::U8).unwrap());
    b.strided(z, &[(0, rows / 2)], w, 0, &[13], Dtype::U8);
    let e = b.build().unwrap_err();
    assert!(e.message.contains("could not be shown"), "{e}");
}

#[test]
fn a_destination_writes_nothing_twice() {
    let source = |b: ExplicitBuilder| b.build().unwrap();
    let (mut s, w) = rank();
    s.contiguous(X, &[(0, 4), (0, 8)], w, 0).unwrap();
    let s = source(s);
    let twice = |b: ExplicitBuilder, words: &[&str]| {
        let d = b.build().unwrap();
        let report = check_pair(&s, &d);
        assert_eq!(report.findings.len(), 1, "{:#?}", report.findings);
        let f = &report.findings[0];
        assert_eq!(
            (f.kind, f.side),
            (FindingKind::WrittenTwice, Some(Side::Destination))
        );
        for w in words {
            assert!(f.message.contains(w), "no {w:?} in: {}", f.message);
        }
        assert!(
            check_pair(&d, &s).is_ok(),
            "a source may hold anything twice"
        );
    };
    let wide = || {
        let (mut b, _) = rank();
        let w = b.buffer("wide", 1024, Memory::Host);
        (b, w)
    };
    let (mut b, w) = wide();
    b.strided(X, &[(0, 4), (0, 8)], w, 0, &[0, 2], Dtype::BF16);
    twice(
        b,
        &["rank 7", "\"x\"", "[0, 2]", "several elements at one place"],
    );

    let (mut b, w) = wide();
    b.contiguous(X, &[(0, 3), (0, 8)], w, 0).unwrap();
    b.contiguous(X, &[(2, 4), (0, 8)], w, 100).unwrap();
    twice(
        b,
        &[
            "{[0,3), [0,8)}",
            "{[2,4), [0,8)}",
            "{[2,3), [0,8)}",
            "16 bytes",
        ],
    );

    // The same place twice.
    let (mut b, w) = wide();
    b.contiguous(X, &[(0, 3), (0, 8)], w, 0).unwrap();
    b.contiguous(X, &[(2, 4), (0, 8)], w, 32).unwrap();
    twice(b, &["16 bytes"]);

    // A second place that is meant.
    let (mut b, w) = wide();
    b.contiguous(X, &[(0, 4), (0, 8)], w, 0).unwrap();
    b.contiguous(X, &[(0, 4), (0, 8)], w, 100).unwrap();
    assert!(check_pair(&s, &b.build().unwrap()).is_ok());
}

#[test]
fn pairs_are_compared_name_by_name() {
    let t = |name: &str, shape: &[u64], more: Value| {
        let mut t = tensor(shape, more);
        t["name"] = json!(name);
        t
    };
    let plain = || json!({});
    let s = layout(&file(json!([
        t("a", &[8, 4], plain()),
        t("b", &[8], plain()),
        t("c", &[8], json!({"dtype": "i64"})),
        t("only_source", &[8], plain()),
        t("heads", &[8], json!({"granule": [4]}))
    ])));
    let mut f = file(json!([
        t("a", &[8, 6], plain()),
        t("b", &[8, 1], plain()),
        t("c", &[8], json!({"dtype": "f32"})),
        t("only_destination", &[16], plain()),
        t("heads", &[8], json!({"cuts": [{"dim": 0, "axes": ["tp"]}]}))
    ]));
    f["ranks"] = json!({"first": 8, "count": 8});
    let report = check_pair(&s, &layout(&f));
    let said: Vec<(FindingKind, &str)> = report
        .findings
        .iter()
        .map(|f| (f.kind, f.tensor.as_str()))
        .collect();
    use FindingKind::*;
    assert_eq!(
        said,
        [
            (Shape, "a"),
            (Shape, "b"),
            (Dtype, "c"),
            (Granule, "heads"),
            (MissingOnSource, "only_destination"),
            (MissingOnDestination, "only_source"),
        ]
    );
    let words = [
        "axis 1 has 4 indices on the source and 6 on the destination",
        "shape [8] on the source and [8, 1]",
        "as i64 on rank 0 and the destination as f32 on rank 8",
        "of the destination: axis 0 has granules of 4 indices",
        "needs 32 bytes",
        "holds 16 bytes",
    ];
    for (f, w) in report.findings.iter().zip(words) {
        assert!(f.message.contains(w), "no {w:?} in: {}", f.message);
    }
    assert_eq!(report.source_only, ["only_source"]);
    assert_eq!(report.destination_only, ["only_destination"]);
    assert_eq!((report.destination.tensors, report.source.tensors), (5, 5));
    assert!(!report.is_ok());
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["findings"][3]["kind"], "granule");
    assert_eq!(json["findings"][3]["side"], "destination");
    assert_eq!(json["source"]["tensors"], 5);
}

#[test]
fn aliases_join_names_within_and_across_sides() {
    let t = |name: &str| json!({"name": name, "shape": [8, 4], "dtype": "bf16", "mesh": "m"});
    let mut tied = file(json!([t("embed"), t("head")]));
    tied["aliases"] = json!({"head": "embed"});
    let tied = layout(&tied);
    assert_eq!(tied.tensors().len(), 1);
    assert_eq!(tied.views(Rank(0)).len(), 2, "two places for one tensor");
    let head = layout(&file(json!([t("head")])));
    let both = layout(&file(json!([t("embed"), t("head")])));
    assert!(check_pair(&tied, &head).is_ok());
    assert!(check_pair(&tied, &both).is_ok());
    assert!(check_pair(&head, &tied).is_ok());
    let report = check_pair(&both, &tied);
    assert_eq!(report.findings.len(), 1);
    assert!(
        report.findings[0].message.contains("an alias of \"embed\""),
        "{report:#?}"
    );
}

#[test]
fn bytes_that_nobody_holds_are_named_by_rank_and_box() {
    let rank = |r: u32, cols: (u64, u64)| {
        let mut b = ExplicitBuilder::new(Rank(r), 0);
        let x = b.tensor(Tensor::new("x", &[4, 8], Dtype::BF16).unwrap());
        let w = b.buffer("w", 64, Memory::Host);
        b.contiguous(x, &[(0, 4), cols], w, 0).unwrap();
        b.build().unwrap()
    };
    let source = Layout::merge(&[&rank(0, (0, 3)), &rank(1, (4, 8))]).unwrap();
    let whole = layout(&file(
        json!([{"name": "x", "shape": [4, 8], "dtype": "bf16", "mesh": "m",
        "cuts": [{"dim": 1, "axes": ["tp"]}]}]),
    ));
    for (d, on) in [(whole, "rank 1"), (rank(5, (2, 4)), "rank 5")] {
        let report = check_pair(&source, &d);
        let f = &report.findings[0];
        assert_eq!(
            (f.kind, f.bytes, f.axis),
            (FindingKind::NeverHeld, 8, Some(1))
        );
        for w in ["\"x\"", on, "8 bytes, such as {[0,4), [3,4)}"] {
            assert!(f.message.contains(w), "no {w:?} in: {}", f.message);
        }
        assert_eq!(
            report.destination.matched_bytes,
            report.destination.bytes - 8
        );
    }
    let report = check_pair(&source, &rank(5, (4, 8)));
    assert!(report.is_ok());
    assert_eq!(report.findings[0].kind, FindingKind::SourceHole);
}

#[test]
fn a_copy_that_has_only_some_of_a_tensor_is_named() {
    let source = layout(&file(json!([tensor(&[8, 4], json!({}))])));
    let check = |cut: Value, copies: Value| {
        let mut f = file(json!([tensor(&[8, 4], cut)]));
        f["ranks"] = json!({"first": 8, "count": 8});
        f["meshes"] = json!({"m": [["dp", 2], ["tp", 4]], "experts": [["ep", 8]]});
        if !copies.is_null() {
            f["copies"] = copies;
        }
        check_pair(&source, &layout(&f)).findings
    };
    let by = |axes: &[&str], mesh: &str| json!({"mesh": mesh, "cuts": [{"dim": 0, "axes": axes}]});
    let dp = || json!({"mesh": "m", "axes": ["dp"]});
    assert_eq!(check(by(&["tp"], "m"), dp()), []);
    assert_eq!(check(by(&["dp", "tp"], "m"), Value::Null), []);
    let [f] = &check(by(&["dp", "tp"], "m"), dp())[..] else {
        panic!("one finding");
    };
    assert_eq!(f.kind, FindingKind::CopyIncomplete);
    assert_eq!(f.rank, Some(Rank(8)));
    assert!(f.message.contains("4 of its 8 parts"), "{f:?}");
    assert!(f.message.contains("\"dp\""), "{f:?}");
    // Through another mesh over the same ranks.
    let [f] = &check(by(&["ep"], "experts"), dp())[..] else {
        panic!("one finding");
    };
    assert!(f.message.contains("4 of its 8 parts"), "{f:?}");
}

#[test]
fn a_copy_of_views_that_lacks_what_another_has_is_named() {
    let source = layout(&file(json!([tensor(&[8, 4], json!({}))])));
    let rank = |rank: u32, copy: u32, rows: [u64; 2]| {
        json!({"rank": rank, "copy": copy, "buffers": [{"name": "w", "bytes": 64}],
               "views": [{"tensor": "w.x", "buffer": "w", "offset": 0,
                          "box": [rows, [0, 4]]}]})
    };
    let check = |ranks: Value| {
        let declared = json!([{"name": "w.x", "shape": [8, 4], "dtype": "bf16"}]);
        let f = json!({"weightsync_layout": 1, "tensors": declared,
                       "explicit": ranks});
        check_pair(&source, &layout(&f)).findings
    };
    let (low, high) = ([0, 4], [4, 8]);
    let whole = json!([
        rank(10, 5, low),
        rank(11, 5, high),
        rank(12, 6, low),
        rank(13, 6, high)
    ]);
    assert_eq!(check(whole), []);
    let [f] = &check(json!([
        rank(10, 5, low),
        rank(11, 5, high),
        rank(12, 6, high)
    ]))[..] else {
        panic!("one finding");
    };
    assert_eq!(f.kind, FindingKind::CopyIncomplete);
    assert_eq!((f.rank, f.bytes), (Some(Rank(12)), 32));
    assert!(f.message.contains("copy 6"), "{f:?}");
}

/// A granule that does not fit its axis is one finding, and hides no other.
#[test]
fn granules_that_do_not_fit_are_findings_beside_others() {
    let named = |name: &str, more: Value| {
        let mut t = tensor(&[30, 6], more);
        t["name"] = json!(name);
        t
    };
    let found = check(&spec(&file(json!([
        named("a", json!({"granule": [4, 0]})),
        named("b", json!({"granule": [7, 1]})),
        named("c", json!({"cuts": [{"dim": 0, "axes": ["tp"]}]})),
    ]))));
    let of = |f: &Finding| (f.kind, f.tensor.clone(), f.axis);
    let found: Vec<_> = found.findings.iter().map(of).collect();
    let expected = [
        (FindingKind::Granule, "a".to_string(), Some(0)),
        (FindingKind::Granule, "a".into(), Some(1)),
        (FindingKind::Granule, "b".into(), Some(0)),
        (FindingKind::Cut, "c".into(), Some(0)),
    ];
    assert_eq!(found, expected);
}

/// Every axis and rank that a finding can name, it does.
#[test]
fn findings_between_layouts_name_the_lowest_rank_and_the_axis() {
    let side = |first: u32, tensors: Value| {
        let mut f = file(tensors);
        f["ranks"]["first"] = json!(first);
        f
    };
    let named = |name: &str, more: Value| {
        let mut t = tensor(&[8, 4], more);
        t["name"] = json!(name);
        t
    };
    // Of the second stage only: ranks 4 on.
    let late = json!({"stage": {"axis": "pp", "at": 1}});
    let only = |name: &str| named(name, late.clone());
    let both = || named("both", json!({}));
    let source = layout(&side(0, json!([both(), only("kept")])));
    let mut wanting = side(
        100,
        json!([
            named("both", json!({"cuts": [{"dim": 1, "axes": ["pp"]}]})),
            only("wanted")
        ]),
    );
    wanting["copies"] = json!({"mesh": "m", "axes": ["pp"]});
    let report = check_pair(&source, &layout(&wanting));
    let found = |kind: FindingKind| report.findings.iter().find(|f| f.kind == kind).unwrap();
    let missing = found(FindingKind::MissingOnSource);
    assert_eq!(
        (missing.tensor.as_str(), missing.rank),
        ("wanted", Some(Rank(104)))
    );
    let unused = found(FindingKind::MissingOnDestination);
    assert_eq!(
        (unused.tensor.as_str(), unused.rank),
        ("kept", Some(Rank(4)))
    );
    let partial = found(FindingKind::CopyIncomplete);
    assert_eq!((partial.axis, partial.rank), (Some(1), Some(Rank(100))));
}

#[test]
fn what_is_written_twice_names_the_axis() {
    let w = Tensor::new("w", &[8, 4], Dtype::BF16).unwrap();
    let source = {
        let mut b = ExplicitBuilder::new(Rank(0), 0);
        let t = b.tensor(w.clone());
        let buffer = b.buffer("w", 64, Memory::Host);
        b.contiguous(t, &[(0, 8), (0, 4)], buffer, 0).unwrap();
        b.build().unwrap()
    };
    /// Ranges, where they begin in the buffer, and strides.
    type Strided<'a> = (&'a [(u64, u64)], u64, &'a [i64]);
    let axis = |views: &[Strided<'_>]| {
        let mut b = ExplicitBuilder::new(Rank(1), 0);
        let t = b.tensor(w.clone());
        let buffer = b.buffer("w", 200, Memory::Host);
        for (ranges, offset, strides) in views {
            b.strided(t, ranges, buffer, *offset, strides, Dtype::BF16);
        }
        let report = check_pair(&source, &b.build().unwrap());
        let twice = |f: &&Finding| f.kind == FindingKind::WrittenTwice;
        report.findings.iter().find(twice).unwrap().axis
    };
    assert_eq!(axis(&[(&[(0, 8), (0, 4)], 0, &[8, 0])]), Some(1));
    assert_eq!(axis(&[(&[(0, 8), (0, 4)], 0, &[6, 2])]), Some(0));
    let upper = (&[(0, 5), (0, 4)][..], 0, &[8, 2][..]);
    assert_eq!(axis(&[upper, (&[(4, 8), (0, 4)], 100, &[8, 2])]), Some(0));
}

/// Errors of one tensor hide nothing about the others.
#[test]
fn the_pair_is_looked_at_less_the_tensors_with_errors() {
    let named = |name: &str, size: u64, cut: Value| {
        let mut t = tensor(&[size], cut);
        t["name"] = json!(name);
        t
    };
    let cut = || json!({"cuts": [{"dim": 0, "axes": ["tp"]}]});
    let source = spec(&file(json!([
        named("uneven", 30, cut()),
        named("only_source", 8, json!({})),
        named("long", 8, json!({})),
    ])));
    let mut wanting = file(json!([
        named("uneven", 30, json!({})),
        named("only_destination", 8, json!({})),
        named("long", 9, json!({})),
    ]));
    wanting["ranks"]["first"] = json!(8);
    let found = Inspection::of(&source, Some(&spec(&wanting))).unwrap();
    assert_eq!(found.source.errors, 1);
    assert_eq!(found.unpaired, ["uneven"]);
    let pair = found.pair.unwrap();
    let kinds: Vec<FindingKind> = pair.findings.iter().map(|f| f.kind).collect();
    let expected = [
        FindingKind::Shape,
        FindingKind::MissingOnSource,
        FindingKind::MissingOnDestination,
    ];
    assert_eq!(kinds, expected);
    assert_eq!(found.errors, 4);
}

#[test]
fn tables_that_do_not_fit_are_one_finding() {
    let mut s = spec(&file(json!([tensor(&[8], json!({}))])));
    s.parts[0].placements[0].rule = 9;
    let report = check(&s);
    assert_eq!(report.findings[0].kind, FindingKind::Structure);
    assert!(
        report.findings[0].message.contains("rule number 9"),
        "{report:#?}"
    );
}

#[test]
fn groups_are_whole_and_their_members_alike() {
    let grouped = |rows: [u64; 2], groups: u64, more: Value| {
        let mut f = fused(
            tensor(&[rows[0], 2], more.clone()),
            tensor(&[rows[1], 2], more),
            0,
        );
        f["fused"][0]["groups"] = json!(groups);
        f
    };
    // Both members are told.
    let found = |file: &Value, kind: FindingKind, words: &[&str]| {
        let report = check(&spec(file));
        let says = |f: &Finding| f.kind == kind && words.iter().all(|w| f.message.contains(w));
        assert!(report.findings.iter().any(says), "{:#?}", report.findings);
    };
    let by_tp = || json!({"cuts": [{"dim": 0, "axes": ["tp"]}]});
    // Two groups per rank: q q k | q q k.
    let sound = layout(&grouped([32, 16], 8, by_tp()));
    let k = sound.find_tensor("k").unwrap();
    let views = sound.views(Rank(0));
    let offsets: Vec<u64> = views
        .iter()
        .filter(|v| v.tensor == k)
        .map(|v| v.offset)
        .collect();
    assert_eq!(offsets, [16, 40]);
    // 12 groups of 4 and 2 rows over 4 ranks would be 3 each; 6 would cut one.
    found(
        &grouped([24, 12], 6, by_tp()),
        FindingKind::Granule,
        &["lie in groups in a fused buffer", "granules of 4 indices"],
    );
    let order = json!({"order": [1, 0], "cuts": [{"dim": 0, "axes": ["tp"]}]});
    found(
        &grouped([32, 16], 8, order),
        FindingKind::Storage,
        &["lies in groups in a fused buffer", "order"],
    );
    let mut shared = grouped([32, 16], 8, by_tp());
    shared["fused"][0]["shared_dims"] = json!(1);
    found(&shared, FindingKind::Fused, &["groups share none"]);
    let e = LayoutSpec::from_json(grouped([30, 16], 8, by_tp()).to_string().as_bytes());
    let e = e.unwrap_err();
    assert!(
        e.message
            .contains("30 indices on axis 0, not a multiple of 8 groups"),
        "{e}"
    );
}
