"""What one rank of Megatron-core has, by its own modules, on the CPU with gloo.

    python megatron_rank.py CASES.json FOLDER

Run by test_megatron.py, one process per rank. For each case it writes
FOLDER/CASE.RANK.json: name, shape, dtype and pieces of every parameter and
buffer. A piece is what `sharded_state_dict` says of some of its elements: the
global tensor, its shape, where the piece starts, and which elements of the
local tensor it is.
"""

from __future__ import annotations

import json
import pathlib
import re
import sys
import traceback
import warnings
from typing import Any

warnings.filterwarnings("ignore")

import torch  # noqa: E402
from gloo import join  # noqa: E402
from megatron.core import parallel_state  # noqa: E402
from megatron.core.dist_checkpointing import ShardedTensor  # noqa: E402
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory  # noqa: E402
from megatron.core.models.gpt import GPTModel  # noqa: E402
from megatron.core.models.gpt.gpt_layer_specs import (  # noqa: E402
    get_gpt_decoder_block_spec,
    get_gpt_mtp_block_spec,
)
from megatron.core.tensor_parallel import ColumnParallelLinear  # noqa: E402
from megatron.core.transformer import (  # noqa: E402
    MLATransformerConfig,
    TransformerConfig,
    multi_latent_attention,
)
from megatron.core.transformer.attention import SelfAttention  # noqa: E402
from megatron.core.transformer.mlp import MLP  # noqa: E402
from megatron.core.transformer.module import Float16Module  # noqa: E402
from megatron.core.transformer.moe import experts as moe_experts  # noqa: E402
from megatron.core.transformer.moe.router import TopKRouter  # noqa: E402

Config = dict[str, Any]


def pretend_to_have_a_gpu() -> None:
    """Where the modules want one for memory or for a kernel that is not run."""
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    torch.cuda.current_device = lambda: "cpu"
    for name in ("TELinear", "TEColumnParallelLinear"):
        if not isinstance(getattr(multi_latent_attention, name), type):
            setattr(multi_latent_attention, name, type(name, (), {}))
    if hasattr(moe_experts, "gg"):
        moe_experts.gg.assert_grouped_gemm_is_available = lambda: None


class Scores(torch.nn.Module):
    """Where only Transformer Engine's attention does: for latent heads, and over contexts. It has no
    parameters there, and nothing here runs it."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()


def attention(c: Config, sizes: Config) -> dict[str, Any]:
    if "kv_lora_rank" in c:
        fused = dict(mla_down_proj_fusion=True) if sizes.get("mla_down") == "fused" else {}
        return dict(
            **fused,
            multi_latent_attention=True,
            q_lora_rank=c["q_lora_rank"],
            kv_lora_rank=c["kv_lora_rank"],
            qk_head_dim=c["qk_nope_head_dim"],
            qk_pos_emb_head_dim=c["qk_rope_head_dim"],
            v_head_dim=c["v_head_dim"],
            qk_layernorm=True,
        )
    heads = c["num_attention_heads"]
    return dict(
        num_query_groups=c["num_key_value_heads"],
        kv_channels=c.get("head_dim", c["hidden_size"] // heads),
        add_qkv_bias=c["model_type"] == "qwen2" or bool(c.get("attention_bias")),
        qk_layernorm=c["model_type"].startswith("qwen3") or bool(c.get("use_qk_norm")),
        softmax_type="learnable" if c["model_type"] == "gpt_oss" else "vanilla",
    )


def experts_of(c: Config) -> int | None:
    return c.get("num_experts", c.get("n_routed_experts", c.get("num_local_experts")))


def mixture(c: Config, sizes: Config) -> dict[str, Any]:
    if experts_of(c) is None:
        return {}
    layers, dense = c["num_hidden_layers"], c.get("first_k_dense_replace", 0)
    rows = c.get("moe_intermediate_size", c["intermediate_size"])
    has_bias = "n_shared_experts" in c
    old = dict(moe_use_legacy_grouped_gemm=True) if sizes.get("experts") == "grouped" else {}
    return dict(
        num_moe_experts=experts_of(c),
        moe_ffn_hidden_size=rows,
        moe_router_topk=min(c["num_experts_per_tok"], experts_of(c)),
        moe_layer_freq=[int(i >= dense) for i in range(layers)],
        moe_shared_expert_intermediate_size=rows * c["n_shared_experts"] if has_bias else None,
        moe_router_score_function="sigmoid" if has_bias else "softmax",
        moe_router_enable_expert_bias=has_bias,
        moe_grouped_gemm=sizes.get("experts", "per_expert") != "sequential",
        **old,
    )


def uneven_stages(sizes: Config) -> dict[str, Any]:
    if "pp_layers" not in sizes:
        return {}
    first, last = sizes["pp_layers"]
    return dict(
        num_layers_in_first_pipeline_stage=first, num_layers_in_last_pipeline_stage=last
    )


def parallel_sizes(sizes: Config) -> dict[str, Any]:
    """As the model's configuration and the process groups both have them."""
    vpp = sizes.get("vpp", 1)
    return {
        "tensor_model_parallel_size": sizes.get("tp", 1),
        "context_parallel_size": sizes.get("cp", 1),
        "pipeline_model_parallel_size": sizes.get("pp", 1),
        "virtual_pipeline_model_parallel_size": vpp if vpp > 1 else None,
        "expert_model_parallel_size": sizes.get("ep", 1),
        "expert_tensor_parallel_size": sizes.get("etp", 1),
    }


def transformer_config(c: Config, sizes: Config) -> TransformerConfig:
    dtype = getattr(torch, c["torch_dtype"])
    kind = MLATransformerConfig if "kv_lora_rank" in c else TransformerConfig
    return kind(
        num_layers=c["num_hidden_layers"],
        hidden_size=c["hidden_size"],
        num_attention_heads=c["num_attention_heads"],
        ffn_hidden_size=c["intermediate_size"],
        add_bias_linear=c["model_type"] == "gpt_oss",
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        normalization="RMSNorm",
        **parallel_sizes(sizes),
        mtp_num_layers=c.get("num_nextn_predict_layers") or None,
        bf16=dtype == torch.bfloat16,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        use_cpu_initialization=True,
        perform_initialization=False,
        gradient_accumulation_fusion=False,
        **attention(c, sizes),
        **mixture(c, sizes),
        **uneven_stages(sizes),
    )


def chunk_of(
    c: Config, sizes: Config, config: TransformerConfig, chunk: int | None, has_te: bool
) -> GPTModel:
    """The model chunk of this rank with that number; None if there is one."""
    common = dict(use_transformer_engine=has_te, vp_stage=chunk)
    block = get_gpt_decoder_block_spec(config, normalization="RMSNorm", **common)
    if not has_te and (config.multi_latent_attention or config.context_parallel_size > 1):
        for layer in block.layer_specs:
            layer.submodules.self_attention.submodules.core_attention = Scores
    mtp = None
    if config.mtp_num_layers:
        mtp = get_gpt_mtp_block_spec(config, spec=block, **common)
    unit = sizes.get("vocab_multiple", 128) * config.tensor_model_parallel_size
    place = dict(ignore_virtual=chunk is None, vp_stage=chunk)
    return GPTModel(
        config=config,
        transformer_layer_spec=block,
        vocab_size=-(-c["vocab_size"] // unit) * unit,
        max_sequence_length=32,
        pre_process=parallel_state.is_pipeline_first_stage(**place),
        post_process=parallel_state.is_pipeline_last_stage(**place),
        share_embeddings_and_output_weights=c["tie_word_embeddings"],
        position_embedding_type="rope",
        mtp_block_spec=mtp,
        vp_stage=chunk,
    )


def pieces(model: GPTModel) -> dict[str, list[dict[str, Any]]]:
    """By local name, what the modules say of every element's place in the whole."""
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data.copy_(torch.arange(tensor.numel()).reshape(tensor.shape))
    metadata = {"non_homogeneous_layers": True}
    found: dict[str, list[dict[str, Any]]] = {}
    for name, told in model.sharded_state_dict(metadata=metadata).items():
        built = told.build() if isinstance(told, ShardedTensorFactory) else told
        shards = built if isinstance(built, list) else [built]
        found[name] = [piece(s) for s in shards if isinstance(s, ShardedTensor)]
    return found


def piece(s: ShardedTensor) -> dict[str, Any]:
    # Axes of one index in front number layers or experts.
    return dict(
        key=s.key,
        of=list(s.global_shape),
        at=list(s.global_offset),
        shape=[*([1] * (len(s.global_shape) - s.data.dim())), *s.data.shape],
        elements=s.data.flatten().to(torch.int64).tolist(),
    )


@torch.no_grad()
def reads(model: GPTModel) -> list[dict[str, list[int]]]:
    """For each attention, the rows of the whole linear_qkv that it takes for its query, key and value."""
    found = [m for m in model.modules() if isinstance(m, SelfAttention)]
    # Transformer Engine's do not run without a GPU.
    return [read(m) for m in found if isinstance(m.linear_qkv, ColumnParallelLinear)]


def read(attention: SelfAttention) -> dict[str, list[int]]:
    linear = attention.linear_qkv
    rows = len(linear.weight)
    # Each row's output is its number, if the input is one in front and zero else.
    linear.weight.data.zero_()
    first = rows * parallel_state.get_tensor_model_parallel_rank()
    linear.weight.data[:, 0] = torch.arange(first, first + rows)
    if linear.bias is not None:
        linear.bias.data.zero_()
    hidden = torch.zeros(1, 1, linear.weight.shape[1])
    hidden[..., 0] = 1
    norms = attention.q_layernorm, attention.k_layernorm
    attention.q_layernorm = attention.k_layernorm = None
    told = attention.get_query_key_value_tensors(hidden)
    attention.q_layernorm, attention.k_layernorm = norms
    return {name: t.flatten().to(torch.int64).tolist() for name, t in zip("qkv", told)}


@torch.no_grad()
def gates(model: GPTModel) -> list[dict[str, float]]:
    """For each dense MLP, how much comes out if the first half of linear_fc1 is far below zero, where
    the activation is nothing, and if the second half is."""
    found = [m for m in model.modules() if type(m) is MLP]
    return [gate(m) for m in found if isinstance(m.linear_fc1, ColumnParallelLinear)]


def gate(mlp: MLP) -> dict[str, float]:
    weights = mlp.linear_fc1.weight.data
    half = len(weights) // 2
    mlp.linear_fc2.weight.data.fill_(1)
    hidden = torch.zeros(1, 1, weights.shape[1])
    hidden[..., 0] = 1
    out = {}
    for name, low in (("first", slice(None, half)), ("second", slice(half, None))):
        weights.fill_(1)
        weights[low] = -100
        told, _ = mlp(hidden)
        out[name] = float(told.abs().max())
    return out


def persistent(model: torch.nn.Module, name: str) -> bool:
    owner, _, own = name.rpartition(".")
    return own not in model.get_submodule(owner)._non_persistent_buffers_set


def as_trained(config: TransformerConfig, model: GPTModel) -> GPTModel:
    """In the dtypes that training has, which Megatron gets by wrapping the model."""
    if config.bf16:
        Float16Module(config, model)
        # What a router does when it is first used.
        for router in model.modules():
            if isinstance(router, TopKRouter):
                router._maintain_float32_expert_bias()
    return model


def tensors(model: GPTModel) -> dict[str, dict[str, Any]]:
    found = {}
    for kind, all_ in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, t in all_:
            found[name] = dict(
                shape=list(t.shape),
                strides=[n * t.element_size() for n in t.stride()],
                dtype=str(t.dtype).removeprefix("torch."),
                persistent=kind == "parameter" or persistent(model, name),
            )
    return found


def told_of(config: TransformerConfig, model: GPTModel) -> dict[str, Any]:
    found = tensors(as_trained(config, model))
    # Elements are numbered next, which bfloat16 cannot count.
    model.float()
    others = []
    for name, list_ in pieces(model).items():
        # A fused tensor is told in its parts.
        home = name if name in found else re.sub(r"linear_(q|kv)_down_proj", "linear_qkv_down_proj", name)
        if home in found:
            found[home].setdefault("pieces", []).extend(list_)
        else:
            others.append(name)
    return {"tensors": found, "others": others, "reads": reads(model), "gates": gates(model)}


def tell(c: Config, sizes: Config, has_te: bool) -> dict[str, Any]:
    vpp = sizes.get("vpp", 1)
    parallel_state.initialize_model_parallel(
        **parallel_sizes(sizes),
        order=sizes.get("order", "tp-cp-ep-dp-pp"),
    )
    config = transformer_config(c, sizes)
    if vpp == 1:
        return told_of(config, chunk_of(c, sizes, config, None, has_te))
    chunks = [told_of(config, chunk_of(c, sizes, config, i, has_te)) for i in range(vpp)]
    return {
        "tensors": {f"model{i}.{n}": t for i, told in enumerate(chunks) for n, t in told["tensors"].items()},
        "others": [name for told in chunks for name in told["others"]],
        "reads": [read for told in chunks for read in told["reads"]],
        "gates": [gate for told in chunks for gate in told["gates"]],
    }


def main(has_te: bool = False) -> None:
    cases, folder = json.loads(pathlib.Path(sys.argv[1]).read_text()), pathlib.Path(sys.argv[2])
    rank = join()
    pretend_to_have_a_gpu()
    for name, (config, sizes) in cases.items():
        try:
            out: Any = tell(config, sizes, has_te)
        except Exception:
            out = {"error": traceback.format_exc()}
        finally:
            parallel_state.destroy_model_parallel()
        (folder / f"{name}.{rank}.json").write_text(json.dumps(out))
        # Whoever failed earlier waits here for the others.
        torch.distributed.barrier()


if __name__ == "__main__":
    main()
