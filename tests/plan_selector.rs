//! Plans of a part: by name, layer, expert, mark and copy.

use std::collections::BTreeSet;
use std::sync::Arc;
use weightsync::layout::Layout;
use weightsync::layout::models::{Inventory, SglangSizes, VllmSizes};
use weightsync::plan::decision::PlanOptions;
use weightsync::plan::program::{Direction, Side};
use weightsync::plan::{Plan, Selector};
use weightsync::{Rank, Status};

const CONFIG: &str = r#"{"architectures": ["DeepseekV3ForCausalLM"], "hidden_size": 16,
    "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 100, "intermediate_size": 32,
    "moe_intermediate_size": 8, "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2,
    "first_k_dense_replace": 1, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 2, "v_head_dim": 4, "num_nextn_predict_layers": 1}"#;

/// One rank that holds everything, for three copies of two ranks.
fn plan() -> Plan {
    let model = Inventory::from_config(CONFIG.as_bytes()).unwrap();
    let whole = Layout::hugging_face(&model, &Default::default(), 0).unwrap();
    let sizes = VllmSizes {
        tp: 2,
        ep: true,
        replicas: 3,
        ..VllmSizes::default()
    };
    let engines = Layout::vllm(&model, &[sizes], 1).unwrap();
    Plan::create(Arc::new(whole), Arc::new(engines), &PlanOptions::default()).unwrap()
}

fn names(plan: &Plan) -> BTreeSet<String> {
    plan.tensors().iter().map(|t| t.name.clone()).collect()
}

fn received(plan: &Plan, rank: u32) -> u64 {
    let program = plan.program(Rank(rank)).unwrap();
    let own = program
        .messages
        .iter()
        .filter(|m| m.direction == Direction::Receive);
    own.map(|m| m.bytes).sum()
}

#[test]
fn layers_are_the_first_number_of_a_name() {
    let part = plan()
        .select(&Selector {
            layers: vec![(0, 1), (2, 3)],
            ..Selector::default()
        })
        .unwrap();
    let names = names(&part);
    assert!(names.contains("model.layers.0.mlp.gate_proj.weight"));
    assert!(names.contains("model.layers.2.mlp.experts.gate_proj.weight"));
    assert!(
        names
            .iter()
            .all(|n| n.starts_with("model.layers.0.") || n.starts_with("model.layers.2."))
    );
    part.verify().unwrap();
}

#[test]
fn experts_are_indices_of_an_axis_and_move_alone() {
    let whole = plan();
    let only = Selector {
        include: vec!["*.experts.*".into()],
        ..Selector::default()
    };
    let all = whole.select(&only).unwrap();
    let part = whole
        .select(&Selector {
            experts: vec![(1, 2), (2, 3), (6, 7)],
            ..Selector::default()
        })
        .unwrap();
    part.verify().unwrap();
    assert_eq!(names(&part), names(&all));
    // Experts 0..4 are on the first rank of each copy, 4..8 on the second.
    let one = received(&all, 1) / 4;
    assert_eq!((received(&part, 1), received(&part, 2)), (2 * one, one));
    // Their places in memory are the old ones.
    for rank in [1, 2] {
        let old = whole.layout(Side::Destination).views(Rank(rank));
        let new = part.layout(Side::Destination).views(Rank(rank));
        for v in new.iter().filter(|v| v.bounds.spans().len() == 3) {
            let name = &part.layout(Side::Destination).tensors()[v.tensor.index()].name;
            let tensor = whole.layout(Side::Destination).find_tensor(name).unwrap();
            let was = old
                .iter()
                .find(|o| o.tensor == tensor && o.bounds.contains(&v.bounds))
                .unwrap();
            let ahead = v.bounds.0[0].lo - was.bounds.0[0].lo;
            assert_eq!(
                v.offset,
                was.offset + ahead * was.strides[0] as u64,
                "{name}"
            );
            assert_eq!(v.strides, was.strides);
        }
    }
    let e = whole
        .select(&Selector {
            experts: vec![(7, 9)],
            ..Selector::default()
        })
        .unwrap_err();
    assert_eq!(e.status, Status::NotFound);
    assert!(
        e.message.contains("no experts 7 to 8") && e.message.contains("has 8"),
        "{e}"
    );
}

#[test]
fn copies_are_taken_out_and_numbered_anew() {
    let whole = plan();
    let part = whole
        .select(&Selector {
            copies: vec![0, 2],
            ..Selector::default()
        })
        .unwrap();
    part.verify().unwrap();
    assert_eq!(part.destination().copy_count(), 2);
    assert_eq!(part.destination().ranks(), [1, 2, 5, 6].map(Rank));
    assert_eq!(part.copy_of(Rank(5)), Some(1));
    assert_eq!(part.participants(), [0, 1, 2, 5, 6].map(Rank));
    for rank in [1, 6] {
        assert_eq!(received(&part, rank), received(&whole, rank));
        let buffers = |p: &Plan| p.destination().buffers(Rank(rank));
        assert_eq!(buffers(&part), buffers(&whole));
    }
    assert_ne!(part.fingerprint(), whole.fingerprint());
    let read = Plan::from_bytes(&part.to_bytes().unwrap()).unwrap();
    assert_eq!(read.fingerprint(), part.fingerprint());
    let e = whole
        .select(&Selector {
            copies: vec![3],
            ..Selector::default()
        })
        .unwrap_err();
    assert_eq!(
        (e.status, e.message.contains("no copy 3; the layout has 3")),
        (Status::NotFound, true)
    );
}

#[test]
fn copies_of_a_part_with_several_meshes_are_told_apart_too() {
    let model = Inventory::from_config(CONFIG.as_bytes()).unwrap();
    let sizes = SglangSizes {
        tp: 4,
        dp: 2,
        ep: 2,
        replicas: 2,
        ..SglangSizes::default()
    };
    let engines = Layout::sglang(&model, &[sizes], 1).unwrap();
    let one = engines.only_copies(&[1]).unwrap();
    assert_eq!(one.ranks(), [5, 6, 7, 8].map(Rank));
    assert!(one.explicit().is_empty());
    for rank in 5..9 {
        assert_eq!(one.buffers(Rank(rank)), engines.buffers(Rank(rank)));
        let boxes = |l: &Layout| -> BTreeSet<String> {
            let name =
                |t: weightsync::layout::tensor::TensorIndex| l.tensors()[t.index()].name.clone();
            l.views(Rank(rank))
                .iter()
                .map(|v| format!("{} {} {}", name(v.tensor), v.bounds, v.offset))
                .collect()
        };
        assert_eq!(boxes(&one), boxes(&engines));
    }
}

#[test]
fn a_draft_and_what_is_trained_are_marked() {
    let whole = plan();
    let draft = whole
        .select(&Selector {
            draft: Some(true),
            ..Selector::default()
        })
        .unwrap();
    let model = whole
        .select(&Selector {
            draft: Some(false),
            ..Selector::default()
        })
        .unwrap();
    assert!(
        names(&draft)
            .iter()
            .all(|n| n.starts_with("model.layers.3."))
    );
    assert!(names(&draft).contains("model.layers.3.eh_proj.weight"));
    assert!(names(&draft).is_disjoint(&names(&model)));
    assert_eq!(
        draft.tensors().len() + model.tensors().len(),
        whole.tensors().len()
    );

    let layout = |first: u32, marks: &str| {
        let text = format!(
            r#"{{"weightsync_layout": 1, {marks} "ranks": {{"first": {first}, "count": 1}}, "tensors": [
                {{"name": "vision.w", "shape": [4], "dtype": "f32"}},
                {{"name": "text.w", "shape": [4], "dtype": "f32"}}]}}"#
        );
        Arc::new(Layout::from_json(text.as_bytes()).unwrap())
    };
    let source = layout(0, r#""frozen": ["vision.*"],"#);
    // Marks survive files and blobs.
    let again = Layout::from_json(source.to_json().as_bytes()).unwrap();
    assert_eq!(again.spec(), source.spec());
    assert_eq!(
        Layout::from_bytes(&source.to_bytes()).unwrap().spec(),
        source.spec()
    );
    let plan = Plan::create(source, layout(1, ""), &PlanOptions::default()).unwrap();
    let trained = plan
        .select(&Selector {
            trainable: Some(true),
            ..Selector::default()
        })
        .unwrap();
    assert_eq!(names(&trained), BTreeSet::from(["text.w".to_string()]));
    let rest = plan
        .select(&Selector {
            trainable: Some(false),
            ..Selector::default()
        })
        .unwrap();
    assert_eq!(names(&rest), BTreeSet::from(["vision.w".to_string()]));
    let e = plan
        .select(&Selector {
            draft: Some(true),
            ..Selector::default()
        })
        .unwrap_err();
    assert!(e.message.contains("draft true"), "{e}");
}

#[test]
fn what_is_selected_adds_up() {
    let whole = plan();
    let both = Selector {
        layers: vec![(1, 3)],
        experts: vec![(0, 4)],
        copies: vec![1],
        exclude: vec!["*down_proj*".into()],
        ..Selector::default()
    };
    let part = whole.select(&both).unwrap();
    part.verify().unwrap();
    assert_eq!(part.tensors().len(), 4);
    assert_eq!(part.destination().ranks(), [3, 4].map(Rank));
    // Selecting step by step gives the same bytes.
    let steps = whole
        .select(&Selector {
            copies: vec![1],
            ..Selector::default()
        })
        .and_then(|p| {
            p.select(&Selector {
                experts: vec![(0, 4)],
                ..Selector::default()
            })
        })
        .and_then(|p| {
            p.select(&Selector {
                layers: vec![(1, 3)],
                exclude: both.exclude.clone(),
                ..Selector::default()
            })
        })
        .unwrap();
    assert_eq!(received(&steps, 3), received(&part, 3));
    let e = whole
        .select(&Selector {
            layers: vec![(2, 2)],
            ..Selector::default()
        })
        .unwrap_err();
    assert!(e.message.contains("2..2 of a selector is empty"), "{e}");
}

/// Selectors of equal meaning make one plan, however they are written.
#[test]
fn the_way_a_selector_is_written_does_not_matter() {
    let whole = plan();
    let fingerprint = |s: Selector| whole.select(&s).unwrap().fingerprint();
    let by_name = |include: &[&str], exclude: &[&str]| {
        let globs = |all: &[&str]| all.iter().map(|g| g.to_string()).collect();
        fingerprint(Selector {
            include: globs(include),
            exclude: globs(exclude),
            ..Selector::default()
        })
    };
    let one = by_name(&["*mlp*", "*attn*"], &["*gate*", "*up*"]);
    assert_eq!(
        one,
        by_name(&["*attn*", "*mlp*", "*mlp*"], &["*up*", "*gate*", "*up*"])
    );
    assert_ne!(one, by_name(&["*mlp*", "*attn*"], &["*gate*"]));
    let by_layer = |layers: &[(u32, u32)]| {
        fingerprint(Selector {
            layers: layers.to_vec(),
            ..Selector::default()
        })
    };
    let one = by_layer(&[(0, 2)]);
    for same in [&[(0, 1), (1, 2)][..], &[(1, 2), (0, 1)], &[(0, 2), (0, 1)]] {
        assert_eq!(by_layer(same), one, "{same:?}");
    }
    let by_expert = |experts: &[(u32, u32)]| {
        fingerprint(Selector {
            experts: experts.to_vec(),
            ..Selector::default()
        })
    };
    assert_eq!(by_expert(&[(0, 2)]), by_expert(&[(1, 2), (0, 1), (0, 2)]));
    let by_copy = |copies: &[u32]| {
        fingerprint(Selector {
            copies: copies.to_vec(),
            ..Selector::default()
        })
    };
    assert_eq!(by_copy(&[0, 2]), by_copy(&[2, 0, 2]));
}
