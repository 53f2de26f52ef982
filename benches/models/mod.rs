//! DeepSeek-V3-like layouts: 1,025 canonical tensors, 671 billion parameters.
#![allow(dead_code)]

use weightsync::layout::cut::{Cut, CutKind};
use weightsync::layout::dtype::Dtype;
use weightsync::layout::mesh::{Mesh, RankList};
use weightsync::layout::placement::{Buffer, CopyAxes, Part, Placement, Rule};
use weightsync::layout::tensor::{Tensor, TensorIndex};
use weightsync::layout::view::Memory;
use weightsync::layout::{Layout, LayoutSpec};

const LAYERS: u64 = 61;
const HIDDEN: u64 = 7168;
const EXPERTS: u64 = 256;

/// Name, shape, and what it is for cutting purposes.
fn inventory() -> Vec<(String, Vec<u64>, Kind, Option<u64>)> {
    let mut all = vec![
        (
            "model.embed_tokens.weight".into(),
            vec![129_280, HIDDEN],
            Kind::Column,
            Some(0),
        ),
        (
            "model.norm.weight".into(),
            vec![HIDDEN],
            Kind::Whole,
            Some(LAYERS - 1),
        ),
        (
            "lm_head.weight".into(),
            vec![129_280, HIDDEN],
            Kind::Column,
            Some(LAYERS - 1),
        ),
    ];
    for l in 0..LAYERS {
        let mut add = |name: &str, shape: &[u64], kind| {
            all.push((
                format!("model.layers.{l}.{name}"),
                shape.to_vec(),
                kind,
                Some(l),
            ));
        };
        add("input_layernorm.weight", &[HIDDEN], Kind::Whole);
        add("post_attention_layernorm.weight", &[HIDDEN], Kind::Whole);
        add("self_attn.q_a_proj.weight", &[1536, HIDDEN], Kind::Whole);
        add("self_attn.q_a_layernorm.weight", &[1536], Kind::Whole);
        add("self_attn.q_b_proj.weight", &[24_576, 1536], Kind::Column);
        add(
            "self_attn.kv_a_proj_with_mqa.weight",
            &[576, HIDDEN],
            Kind::Whole,
        );
        add("self_attn.kv_a_layernorm.weight", &[512], Kind::Whole);
        add("self_attn.kv_b_proj.weight", &[32_768, 512], Kind::Column);
        add("self_attn.o_proj.weight", &[HIDDEN, 16_384], Kind::Row);
        if l < 3 {
            add("mlp.gate_proj.weight", &[18_432, HIDDEN], Kind::Column);
            add("mlp.up_proj.weight", &[18_432, HIDDEN], Kind::Column);
            add("mlp.down_proj.weight", &[HIDDEN, 18_432], Kind::Row);
            continue;
        }
        add("mlp.gate.weight", &[EXPERTS, HIDDEN], Kind::Whole);
        add("mlp.gate.e_score_correction_bias", &[EXPERTS], Kind::Whole);
        add(
            "mlp.experts.gate_proj.weight",
            &[EXPERTS, 2048, HIDDEN],
            Kind::Expert,
        );
        add(
            "mlp.experts.up_proj.weight",
            &[EXPERTS, 2048, HIDDEN],
            Kind::Expert,
        );
        add(
            "mlp.experts.down_proj.weight",
            &[EXPERTS, HIDDEN, 2048],
            Kind::Expert,
        );
        add(
            "mlp.shared_experts.gate_proj.weight",
            &[2048, HIDDEN],
            Kind::Column,
        );
        add(
            "mlp.shared_experts.up_proj.weight",
            &[2048, HIDDEN],
            Kind::Column,
        );
        add(
            "mlp.shared_experts.down_proj.weight",
            &[HIDDEN, 2048],
            Kind::Row,
        );
    }
    all.sort();
    all
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Whole,
    Column,
    Row,
    Expert,
}

/// One side: dense mesh `pp x dp x tp`, expert mesh `pp x edp x ep` over the
/// same ranks. With `copies`, `dp` numbers the replicas.
pub fn deepseek(first: u32, pp: u32, dp: u32, tp: u32, ep: u32, copies: bool) -> Layout {
    let tensors: Vec<Tensor> = inventory()
        .iter()
        .map(|(n, s, _, _)| Tensor::new(n, s, Dtype::BF16).unwrap())
        .collect();
    assert_eq!(tensors.len(), 1025);
    let per_stage = dp * tp;
    let rule = |mesh, cuts: Vec<Cut>| Rule {
        mesh,
        stage_axis: Some(0),
        cuts,
        dtype: None,
        order: Default::default(),
        padded: 0,
        split: None,
        grouped: None,
        conversion: None,
    };
    let cut = |dim, axis| Cut {
        dim,
        axes: [axis].into_iter().collect(),
        kind: CutKind::Even,
        parts: None,
    };
    let mut part = Part {
        ranks: RankList::Range {
            first,
            count: pp * per_stage,
        },
        meshes: vec![
            Mesh::new("dense", &[("pp", pp), ("dp", dp), ("tp", tp)]),
            Mesh::new("expert", &[("pp", pp), ("edp", per_stage / ep), ("ep", ep)]),
        ],
        copies: copies.then(|| CopyAxes {
            mesh: 0,
            axes: [1].into_iter().collect(),
        }),
        padding: Default::default(),
        rules: vec![
            rule(0, vec![]),
            rule(0, vec![cut(0, 2)]),
            rule(0, vec![cut(1, 2)]),
            rule(1, vec![cut(0, 2)]),
        ],
        placements: Vec::new(),
        spacers: Vec::new(),
        buffers: Vec::new(),
    };
    for (i, (name, _, kind, layer)) in inventory().iter().enumerate() {
        let stage = layer.map(|l| (l * u64::from(pp) / LAYERS) as u32);
        part.placements.push(Placement {
            tensor: TensorIndex(i as u32),
            rule: *kind as u32,
            stage,
            buffer: i as u32,
            member: 0,
        });
        part.buffers.push(Buffer {
            name: name.clone(),
            memory: Memory::Host,
            shared_dims: 0,
            members: vec![i as u32],
        });
    }
    Layout::new(LayoutSpec {
        tensors,
        aliases: Vec::new(),
        parts: vec![part],
        explicit: Vec::new(),
        marks: Default::default(),
    })
    .unwrap()
}
