"""Small layouts that several tests use."""

from __future__ import annotations

from typing import Any


def layout(first: int, count: int, dim: int, shape: Any = (6, 8), dtype: str = "f32") -> Any:
    """A matrix `w` cut along `dim` over `count` ranks, as a layout file says it."""
    return {
        "weightsync_layout": 1,
        "ranks": {"first": first, "count": count},
        "meshes": {"m": [["tp", count]]},
        "tensors": [
            {
                "name": "w",
                "shape": list(shape),
                "dtype": dtype,
                "cuts": [{"dim": dim, "axes": ["tp"]}],
            }
        ],
    }
