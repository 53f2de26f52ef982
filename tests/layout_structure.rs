//! Descriptions whose tables do not fit together, and putting layouts together.

use weightsync::layout::dtype::Dtype;
use weightsync::layout::mesh::{Mesh, RankList};
use weightsync::layout::placement::{Buffer, Padding, Part, Placement, Rule};
use weightsync::layout::tensor::{Tensor, TensorIndex};
use weightsync::layout::view::Memory;
use weightsync::layout::views::ExplicitBuilder;
use weightsync::layout::{LAYOUT_BLOB_MAGIC, LAYOUT_BLOB_VERSION, Layout, LayoutSpec, frame};
use weightsync::{Error, Rank, Status};

fn tensor(name: &str) -> Tensor {
    Tensor::new(name, &[8, 4], Dtype::BF16).unwrap()
}

fn part(ranks: RankList) -> Part {
    Part {
        meshes: vec![Mesh::new("m", &[("tp", ranks.count())])],
        ranks,
        copies: None,
        padding: Padding::Leave,
        rules: vec![Rule {
            mesh: 0,
            stage_axis: None,
            cuts: Vec::new(),
            dtype: None,
            order: Default::default(),
            padded: 0,
            split: None,
            grouped: None,
            conversion: None,
        }],
        placements: vec![Placement {
            tensor: TensorIndex(0),
            rule: 0,
            stage: None,
            buffer: 0,
            member: 0,
        }],
        spacers: Vec::new(),
        buffers: vec![Buffer {
            name: "w".into(),
            memory: Memory::Host,
            shared_dims: 0,
            members: vec![0],
        }],
    }
}

fn range(first: u32, count: u32) -> RankList {
    RankList::Range { first, count }
}

fn spec() -> LayoutSpec {
    LayoutSpec {
        tensors: vec![tensor("w.x")],
        parts: vec![part(range(4, 4))],
        ..LayoutSpec::default()
    }
}

fn alias(a: &str, b: &str) -> (String, String) {
    (a.into(), b.into())
}

#[track_caller]
fn refused(change: impl FnOnce(&mut LayoutSpec), words: &[&str]) -> Error {
    let mut s = spec();
    change(&mut s);
    let e = Layout::new(s).unwrap_err();
    for w in words {
        assert!(e.message.contains(w), "no {w:?} in: {e}");
    }
    e
}

#[test]
fn numbers_out_of_range_are_errors() {
    refused(
        |s| s.parts[0].placements[0].tensor.0 = 7,
        &["part of rank 4", "tensor number 7", "1 are declared"],
    );
    refused(
        |s| s.parts[0].placements[0].rule = 3,
        &["rule number 3", "there are 1"],
    );
    refused(
        |s| s.parts[0].placements[0].buffer = 3,
        &["placement 0", "buffer number 3"],
    );
    refused(
        |s| s.parts[0].placements[0].member = 3,
        &["placement 0", "member 3"],
    );
    refused(
        |s| s.parts[0].buffers[0].members = vec![0, 0],
        &["\"w\"", "member 1"],
    );
    refused(
        |s| s.parts[0].buffers[0].members = vec![0, 9],
        &["\"w\"", "placement 9"],
    );
    refused(
        |s| s.parts[0].rules[0].mesh = 2,
        &["rule 0", "mesh number 2"],
    );
    refused(
        |s| s.parts[0].rules[0].stage_axis = Some(5),
        &["stages of rule 0", "axis number 5", "\"m\" has 1 axes"],
    );
    refused(
        |s| s.parts[0].placements[0].stage = Some(0),
        &["\"w.x\" has stage 0", "no stage axis"],
    );
    refused(
        |s| s.parts[0].meshes[0].axes[0].size = 0,
        &["\"m\"", "\"tp\" has size 0"],
    );
    refused(
        |s| s.parts[0].meshes[0].axes[0].size = u32::MAX,
        &["4294967295 positions", "at most 1048576"],
    );
    refused(
        |s| s.parts[0].meshes.push(Mesh::new("m", &[("x", 4)])),
        &["two meshes are named \"m\""],
    );
    refused(|s| s.tensors[0].dtype.lanes = 0, &["\"w.x\"", "lanes 0"]);
    refused(
        |s| s.tensors[0].shape[0] = 1 << 60,
        &["\"w.x\"", "1152921504606846976", "1125899906842624 bytes"],
    );
    refused(
        |s| s.tensors[0].granule[0] = 3,
        &["axis 0 has 8 indices", "granule 3"],
    );
    refused(
        |s| s.tensors[0].name = "{layer}".into(),
        &["{layer} stands for a number"],
    );
    refused(
        |s| s.parts[0].buffers[0].name = "x".repeat(2000),
        &["2000 bytes", "1024"],
    );
    refused(
        |s| s.tensors.push(tensor("w.x")),
        &["\"w.x\" is declared twice"],
    );
}

#[test]
fn every_rank_is_described_once() {
    let e = refused(
        |s| s.parts.push(part(range(7, 2))),
        &["rank 7 is in two parts"],
    );
    assert_eq!(e.rank, Some(Rank(7)));
    let list = RankList::List(vec![Rank(9), Rank(5)]);
    refused(|s| s.parts.push(part(list)), &["rank 5 is in two parts"]);
    let one = |r| {
        ExplicitBuilder::new(Rank(r), 0)
            .build()
            .unwrap()
            .spec()
            .explicit[0]
            .clone()
    };
    refused(
        |s| s.explicit = vec![one(6)],
        &["rank 6", "an explicit entry"],
    );
    refused(
        |s| s.explicit = vec![one(1), one(1)],
        &["rank 1 has two explicit entries"],
    );
    refused(
        |s| s.parts[0].ranks = range(1 << 20, 4),
        &["rank 1048579 is out of range"],
    );
    refused(
        |s| s.parts[0].ranks = range(u32::MAX, u32::MAX),
        &["out of range"],
    );
    refused(|s| s.parts[0].ranks = range(0, 0), &["empty"]);
    let twice = RankList::List(vec![Rank(1), Rank(2), Rank(1), Rank(3)]);
    refused(|s| s.parts[0].ranks = twice, &["rank 1 is listed twice"]);
}

#[test]
fn ranks_are_found_in_ranges_lists_and_views() {
    let mut s = spec();
    s.parts
        .push(part(RankList::List([20, 3, 1, 2, 9].map(Rank).to_vec())));
    let explicit = ExplicitBuilder::new(Rank(12), 5).build().unwrap();
    s.explicit = explicit.spec().explicit.clone();
    let l = Layout::new(s).unwrap();
    assert_eq!(l.ranks(), [1, 2, 3, 4, 5, 6, 7, 9, 12, 20].map(Rank));
    assert_eq!(l.parts()[0].ranks.count(), 5, "parts by lowest rank");
    let at = |r| l.position(0, Rank(r));
    assert_eq!([20, 3, 1, 2, 9].map(at), [0, 1, 2, 3, 4].map(Some));
    assert_eq!([0, 4, 10, 12, 21].map(at), [None; 5]);
    assert_eq!(l.position(1, Rank(6)), Some(2));
    assert_eq!(l.position(2, Rank(12)), None);
    assert_eq!(l.copy_of(Rank(12)), Some(2));
    assert!(l.place(Rank(8)).is_none());
}

#[test]
fn aliases_are_one_step_long() {
    refused(
        |s| s.aliases = vec![alias("a", "a")],
        &["\"a\" stands for itself"],
    );
    refused(
        |s| s.aliases = vec![alias("a", "b"), alias("b", "c")],
        &["\"a\"", "\"b\"", "alias of \"c\""],
    );
    refused(
        |s| s.aliases = vec![alias("a", "b"), alias("b", "a")],
        &["alias of \"a\""],
    );
    refused(
        |s| s.aliases = vec![alias("a", "b"), alias("a", "c")],
        &["both \"b\" and \"c\""],
    );
    let twin = Tensor::new("head", &[8, 5], Dtype::BF16).unwrap();
    let differ = |s: &mut LayoutSpec| {
        s.tensors.push(twin);
        s.aliases = vec![alias("head", "w.x")];
    };
    refused(
        differ,
        &["\"w.x\"", "alias \"head\" has shape [8, 5]", "[8, 4]"],
    );
    // Declared only under its other name, it still gets the name aliased.
    let mut s = spec();
    s.aliases = vec![alias("w.x", "a"), alias("w.x", "a")];
    let l = Layout::new(s).unwrap();
    assert_eq!(l.tensors()[0].name, "a");
    assert_eq!(l.find_tensor("w.x"), l.find_tensor("a"));
    assert_eq!(l.aliases_of("a").collect::<Vec<_>>(), ["w.x"]);
}

#[test]
fn equal_meaning_gives_equal_data() {
    let l = Layout::new(spec()).unwrap();
    let mut s = spec();
    s.parts[0].ranks = RankList::List([4, 5, 6, 7].map(Rank).to_vec());
    s.parts[0].rules[0].dtype = Some(Dtype::BF16);
    s.parts[0].rules[0].order = [0, 1].into_iter().collect();
    s.parts[0].rules[0].padded = 0xff;
    s.parts[0].rules[0].stage_axis = Some(0);
    s.parts[0].buffers[0].shared_dims = 1;
    let unused = s.parts[0].rules[0].clone();
    s.parts[0].rules.insert(0, unused);
    s.parts[0].placements[0].rule = 1;
    assert_eq!(Layout::new(s).unwrap().spec(), l.spec());
}

fn blob(rank: u32, name: &str, shape: &[u64], dtype: Dtype) -> Layout {
    let mut b = ExplicitBuilder::new(Rank(rank), 0);
    let t = b.tensor(Tensor::new(name, shape, dtype).unwrap());
    let w = b.buffer("w", 1024, Memory::Host);
    let whole: Vec<(u64, u64)> = shape.iter().map(|&n| (0, n)).collect();
    b.contiguous(t, &whole, w, 0).unwrap();
    b.build().unwrap()
}

#[test]
fn layouts_that_disagree_are_not_merged() {
    let one = blob(1, "x", &[4, 2], Dtype::BF16);
    let told = |other: &Layout, words: &[&str]| {
        let e = Layout::merge(&[&one, other]).unwrap_err();
        for w in words {
            assert!(e.message.contains(w), "no {w:?} in: {e}");
        }
    };
    told(
        &blob(2, "x", &[4, 3], Dtype::BF16),
        &[
            "\"x\"",
            "layout of rank 2 has shape [4, 3]",
            "rank 1 has shape [4, 2]",
        ],
    );
    told(
        &blob(2, "x", &[4, 2], Dtype::F32),
        &["\"x\"", "\"f32\"", "\"bf16\""],
    );
    told(&one, &["rank 1 has two explicit entries"]);
    let both = Layout::merge(&[&one, &blob(0, "y", &[2], Dtype::F32)]).unwrap();
    assert_eq!(both.ranks(), [Rank(0), Rank(1)]);
    assert_eq!(both.tensors().len(), 2);
    assert_eq!(Layout::merge(&[]).unwrap().rank_count(), 0);
    let parts = Layout::merge(&[&both, &Layout::new(spec()).unwrap()]).unwrap();
    assert_eq!(parts.rank_count(), 6);
    assert_eq!(parts.tensors()[0].name, "w.x");
    assert_eq!(parts.views(Rank(4))[0].tensor, TensorIndex(0));
}

#[test]
fn blobs_are_checked_like_any_description() {
    let good = Layout::new(spec()).unwrap().to_bytes();
    let mut payload = good[frame::HEADER_BYTES..].to_vec();
    payload.push(0);
    let longer = frame::seal(LAYOUT_BLOB_MAGIC, LAYOUT_BLOB_VERSION, &payload);
    let e = Layout::from_bytes(&longer).unwrap_err();
    assert_eq!(e.status, Status::Corrupt);
    assert!(e.message.contains("1 more bytes"), "{e}");
    let foreign = frame::seal(*b"WSYNCPLN", 1, b"");
    assert_eq!(
        Layout::from_bytes(&foreign).unwrap_err().status,
        Status::Corrupt
    );
    let newer = frame::seal(LAYOUT_BLOB_MAGIC, LAYOUT_BLOB_VERSION + 1, b"");
    assert_eq!(
        Layout::from_bytes(&newer).unwrap_err().status,
        Status::VersionMismatch
    );
    // A length far beyond the bytes there are.
    let hungry = frame::seal(
        LAYOUT_BLOB_MAGIC,
        LAYOUT_BLOB_VERSION,
        &[0xff, 0xff, 0xff, 0xff, 0x0f],
    );
    assert_eq!(
        Layout::from_bytes(&hungry).unwrap_err().status,
        Status::Corrupt
    );
}
