"""What PyTorch makes of a small model on one rank, on the CPU with gloo.

    python torch_rank.py CASES.json FOLDER

Run by test_torch_shards.py, one process per rank. The elements of the model are numbered before it
is sharded. For each case every rank writes its local tensors, FOLDER/CASE.RANK.npz, and what PyTorch
says of them, FOLDER/CASE.RANK.json: the text of a DTensor file, and offsets.
"""

from __future__ import annotations

import json
import pathlib
import sys
import traceback
import warnings
from typing import Any, Iterator

warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from gloo import join  # noqa: E402
from torch import nn  # noqa: E402
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh  # noqa: E402
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard  # noqa: E402
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor  # noqa: E402
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset  # noqa: E402
from torch.distributed.tensor.parallel import (  # noqa: E402
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

#: Number of the first element. FSDP1 fills padding with a lower one.
FIRST = 1000

COLUMNS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head")
ROWS = ("o_proj", "down_proj", "embed_tokens")


class Norm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))


def build(shapes: dict[str, list[int]]) -> nn.Module:
    """A model with parameters of those names and shapes, in modules as they are anywhere, numbered
    from FIRST on in that order."""
    root, at = nn.Module(), FIRST
    for name, shape in shapes.items():
        *path, leaf, kind = name.split(".")
        assert kind == "weight", name
        module = root
        for step in path:
            if not hasattr(module, step):
                module.add_module(step, nn.Module())
            module = getattr(module, step)
        made: nn.Module = Norm(*shape) if len(shape) == 1 else nn.Linear(shape[1], shape[0], bias=False)
        if leaf == "embed_tokens":
            made = nn.Embedding(*shape)
        count = int(np.prod(shape))
        made.weight.data.copy_(torch.arange(at, at + count).reshape(shape))
        at += count
        module.add_module(leaf, made)
    return root


def layers(model: nn.Module) -> Iterator[nn.Module]:
    return model.model.layers.children()


def fsdp2(model: nn.Module, mesh: DeviceMesh, case: dict[str, Any]) -> None:
    """A unit per layer and one of the rest; where a case has columns, those parameters along dim 1."""
    columns = case.get("columns", [])
    names = {id(p): name for name, p in model.named_parameters()}
    place = lambda p: Shard(1 if any(c in names.get(id(p), "") for c in columns) else 0)  # noqa: E731
    for unit in [*layers(model), model]:
        fully_shard(unit, mesh=mesh, shard_placement_fn=place if columns else None)


def tensor_parallel(model: nn.Module, mesh: DeviceMesh) -> None:
    plan = {name: ColwiseParallel() for name, _ in model.named_modules() if name.endswith(COLUMNS)}
    plan |= {name: RowwiseParallel() for name, _ in model.named_modules() if name.endswith(ROWS)}
    parallelize_module(model, mesh, plan)


def placed(model: nn.Module, mesh: DeviceMesh, placements: list[list[int | None]]) -> None:
    """The placements given, in turn; None replicates."""
    for i, (name, p) in enumerate(list(model.named_parameters())):
        chosen = placements[i % len(placements)]
        told = [Replicate() if d is None or d >= p.dim() else Shard(d) for d in chosen]
        owner, _, own = name.rpartition(".")
        shard = nn.Parameter(distribute_tensor(p.data, mesh, told))
        model.get_submodule(owner).register_parameter(own, shard)


def shard(case: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", tuple(case["mesh"].values()), mesh_dim_names=tuple(case["mesh"]))
    kind = case["kind"]
    if kind == "placed":
        placed(model, mesh, case["placements"])
    else:
        if kind == "tensor parallel":
            tensor_parallel(model, mesh["tp"])
        rest = tuple(name for name in case["mesh"] if name != "tp")
        if rest:
            fsdp2(model, mesh[rest] if len(rest) > 1 else mesh[rest[0]], case)
    return tensors_of(model, mesh)


def tensors_of(model: nn.Module, mesh: DeviceMesh) -> dict[str, Any]:
    """The DTensor file of a model, as docs/vllm.md has it, with what else there is to compare."""
    tensors, local, offsets = [], {}, {}
    for name, p in model.named_parameters():
        assert isinstance(p, DTensor), f"{name} is no DTensor"
        # As both of Python's spellings, in turn.
        spell = (repr, str)[len(tensors) % 2]
        tensors.append(dict(
            name=name, shape=list(p.shape), dtype=str(p.dtype),
            placements=[spell(told) for told in over_whole(mesh, p)],
        ))
        local[name] = p.to_local().detach().numpy()
        shape, at = compute_local_shape_and_global_offset(p.shape, p.device_mesh, p.placements)
        offsets[name] = dict(shape=list(shape), at=list(at))
    whole = {"names": list(mesh.mesh_dim_names), "ranks": mesh.mesh.tolist()}
    file = {"weightsync_dtensor": 1, "meshes": {"world": whole}, "tensors": tensors}
    return {"file": file, "local": local, "offsets": offsets}


def over_whole(mesh: DeviceMesh, p: DTensor) -> list[Any]:
    """Its placements over the whole mesh: along dimensions that its own lacks it is replicated."""
    own = dict(zip(p.device_mesh.mesh_dim_names, p.placements))
    return [own.get(name, Replicate()) for name in mesh.mesh_dim_names]


def flatten(case: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """FSDP1: a flat parameter per layer, and one of the rest."""
    mesh = init_device_mesh("cpu", tuple(case["mesh"].values()), mesh_dim_names=tuple(case["mesh"]))
    options = dict(device_mesh=mesh, use_orig_params=case["original"], device_id=torch.device("cpu"))
    if len(case["mesh"]) > 1:
        from torch.distributed.fsdp import ShardingStrategy

        options["sharding_strategy"] = ShardingStrategy.HYBRID_SHARD
    for i, layer in enumerate(list(layers(model))):
        setattr(model.model.layers, str(i), FullyShardedDataParallel(layer, **options))
    whole = FullyShardedDataParallel(model, **options)
    flats, local = [], {}
    for module in FullyShardedDataParallel.fsdp_modules(whole):
        flat, prefix = module._handle.flat_param, prefix_of(whole, module)
        name = f"{prefix}_flat_param"
        flats.append(dict(
            name=name, dtype=str(flat.dtype), over=list(case["mesh"])[-1],
            elements=flat._unpadded_unsharded_size.numel(), parameters=list(parameters_of(flat, prefix)),
        ))
        local[name] = flat.detach().numpy().copy()
    names = list(case["mesh"])
    file = {
        "weightsync_dtensor": 1,
        "meshes": {"world": {"names": names, "ranks": mesh.mesh.tolist()}},
        "flat": flats,
    }
    return {"file": file, "local": local, "offsets": {}}


def prefix_of(whole: nn.Module, module: nn.Module) -> str:
    name = next(n for n, m in whole.named_modules() if m is module)
    clean = name.replace("_fsdp_wrapped_module.", "").removesuffix("_fsdp_wrapped_module")
    return f"{clean}." if clean else ""


def parameters_of(flat: Any, prefix: str) -> Iterator[dict[str, Any]]:
    """Name, shape and place of each parameter; gaps are padding that aligns the next one."""
    at, fqns, shapes = 0, iter(flat._fqns), iter(flat._shapes)
    for count, is_padding in zip(flat._numels_with_padding, flat._is_padding_mask):
        if not is_padding:
            name = next(fqns).replace("_fsdp_wrapped_module.", "")
            yield dict(name=prefix + name, shape=list(next(shapes)), offset=at)
        at += count


def main() -> None:
    cases, folder = json.loads(pathlib.Path(sys.argv[1]).read_text()), pathlib.Path(sys.argv[2])
    rank = join()
    for name, case in cases.items():
        try:
            model = build(case["shapes"])
            told = flatten(case, model) if case["kind"] == "fsdp1" else shard(case, model)
            np.savez(folder / f"{name}.{rank}.npz", **told.pop("local"))
            out = told
        except Exception:
            out = {"error": traceback.format_exc()}
        (folder / f"{name}.{rank}.json").write_text(json.dumps(out))
        # Whoever failed earlier waits here for the others.
        torch.distributed.barrier()


main()
