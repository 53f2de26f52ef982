"""Names and shapes of one rank of Megatron-core's own GPTModel, as JSON.

Run by test_names.py, one process per rank, on the CPU with gloo.
"""

from __future__ import annotations

import json
import os
import sys
import warnings

warnings.filterwarnings("ignore")

import torch  # noqa: E402
from megatron.core import parallel_state  # noqa: E402
from megatron.core.models.gpt import GPTModel  # noqa: E402
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec  # noqa: E402
from megatron.core.transformer import TransformerConfig  # noqa: E402


# Embeddings shared between stages are summed on the GPU; here, where they are.
torch.Tensor.cuda = lambda self, *args, **kwargs: self


def main() -> None:
    case = json.loads(sys.argv[1])
    model, sizes = case["config"], case["sizes"]
    torch.distributed.init_process_group(
        "gloo", rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"])
    )
    tp, pp = sizes.get("tp", 1), sizes.get("pp", 1)
    ep, etp = sizes.get("ep", 1), sizes.get("etp", 1)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        expert_model_parallel_size=ep,
        expert_tensor_parallel_size=etp,
    )
    experts = model.get("num_experts")
    config = TransformerConfig(
        num_layers=model["num_hidden_layers"],
        hidden_size=model["hidden_size"],
        num_attention_heads=model["num_attention_heads"],
        num_query_groups=model["num_key_value_heads"],
        kv_channels=model["head_dim"],
        ffn_hidden_size=model["intermediate_size"],
        moe_ffn_hidden_size=model.get("moe_intermediate_size"),
        num_moe_experts=experts,
        moe_router_topk=model.get("num_experts_per_tok", 2),
        add_bias_linear=False,
        add_qkv_bias=model["model_type"] == "qwen2",
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        normalization="RMSNorm",
        qk_layernorm=model["model_type"].startswith("qwen3"),
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        expert_model_parallel_size=ep,
        expert_tensor_parallel_size=etp,
        pipeline_dtype=torch.float32,
        params_dtype=torch.float32,
        use_cpu_initialization=True,
        perform_initialization=False,
        gradient_accumulation_fusion=False,
    )
    spec = get_gpt_layer_local_spec(
        num_experts=experts,
        moe_grouped_gemm=False,
        qk_layernorm=config.qk_layernorm,
        normalization="RMSNorm",
    )
    unit = 128 * tp
    vocab = -(-model["vocab_size"] // unit) * unit
    module = GPTModel(
        config=config,
        transformer_layer_spec=spec,
        vocab_size=vocab,
        max_sequence_length=32,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        share_embeddings_and_output_weights=model["tie_word_embeddings"],
        position_embedding_type="rope",
    )
    print(json.dumps({name: list(p.shape) for name, p in module.named_parameters()}))


main()
