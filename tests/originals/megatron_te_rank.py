"""As megatron_rank.py, with the layers of Transformer Engine, which are most trainers' own.

Its Python modules, which name and size the parameters, are the original ones; they ask for a GPU and
for a library of kernels before they make any, and get something that stands for both here.
"""

from __future__ import annotations

import os
import pathlib
import sys
import types
from typing import Any
from unittest.mock import MagicMock

# Where tests/originals/run puts it, away from those who ask whether there is one.
sys.path.append(str(pathlib.Path(sys.prefix) / "transformer_engine"))
# Its own word for: do not load the libraries of CUDA.
os.environ["NVTE_PROJECT_BUILDING"] = "1"

import torch  # noqa: E402


class Kernels(types.ModuleType):
    """Has any function and any type, none of which does anything."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(self, name, MagicMock(name=name))
        return getattr(self, name)


def on_the_cpu(make: Any) -> Any:
    """Makes tensors, also those that are asked for on a GPU."""

    def made(*shape: Any, device: Any = None, **rest: Any) -> Any:
        return make(*shape, device="cpu" if device == "cuda" else device, **rest)

    return made


def pretend() -> None:
    torch.empty = on_the_cpu(torch.empty)
    for name in ("transformer_engine_torch", "transformer_engine.pytorch.onnx_extensions"):
        sys.modules[name] = Kernels(name)
    torch.cuda.is_available = lambda: True
    torch.cuda.current_device = lambda: "cpu"
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    torch.cuda.get_device_properties = lambda *_: types.SimpleNamespace(major=9, minor=0, name="none")
    torch.cuda.Stream = torch.cuda.Event = MagicMock
    import transformer_engine.common

    transformer_engine.common.load_framework_extension = lambda _: None
    import transformer_engine.pytorch

    transformer_engine.pytorch.cpp_extensions.get_cudnn_version = lambda: 91300


pretend()

import megatron_rank  # noqa: E402

megatron_rank.main(has_te=True)
