"""What the Triton kernels of the tick loop are compiled for."""

from __future__ import annotations

from typing import Any

from ctm_fast.testing.kernels import Kernel

NORMS = {"EPS": 1e-5, "OUTER_EPS": 1e-5}
# Of synapse stages: parity, mazes large, imagenet.
WIDTHS = ((1024, "float32"), (2048, "float32"), (4096, "float32"), (1024, "float64"))
HEADS = ((64, 64), (32, 225))  # width of a head and tokens: parity, mazes large


def _pointwise() -> list[Kernel]:
    from ctm_fast.loop.triton import row_sizes

    found = []
    for width, dtype in WIDTHS:
        sizes: dict[str, Any] = {**_named(row_sizes(width)), "dtypes": (dtype,)}
        found.append(_kernel("skip_backward_kernel", 9, 7, **NORMS, **sizes))
        for kind in ("glu", "silu", "skip"):
            found.append(_kernel("pointwise_kernel", 7, 5, KIND=kind, **NORMS, **sizes))
        for kind in ("glu", "silu"):
            found.append(_kernel("pointwise_backward_kernel", 7, 6, KIND=kind, EPS=NORMS["EPS"], **sizes))
    return found


def _kernel(name: str, pointers: int, strides: int, **sizes: Any) -> Kernel:
    return Kernel(name, " ".join("f" * pointers), " ".join(["i32"] * strides), **sizes)


def _attend() -> list[Kernel]:
    from ctm_fast.loop.triton import tile_sizes

    found = []
    for head, tokens in HEADS:
        for dtype in ("float32", "float64"):
            sizes: dict[str, Any] = {"DROP": True, **_named(tile_sizes(head, tokens, dtype == "float64"))}
            sizes["dtypes"], masks = (dtype,), "i32 i64 fp32 i32 i32 i32"
            found.append(Kernel("attend_kernel", "f f f f f i64", f"{masks} i32 i32", **sizes))
            found.append(
                Kernel("attend_backward_kernel", "f f f f f f f f i64", f"{masks} i32 i32 i32", **sizes)
            )
    return found


def _named(sizes: dict[str, int]) -> dict[str, int]:
    return {"warps" if key == "num_warps" else key: value for key, value in sizes.items()}


KERNELS = (
    *_pointwise(),
    *_attend(),
    Kernel("dropout_kernel", "f i64 f", "i32 i64 fp32 i32 i32 i32", BLOCK=1024),
    Kernel("pairs_kernel", "f i32 i32 f f f f", "i32 i32 i32 i32", BLOCK=256),
    Kernel("pairs_backward_kernel", "f f f f f", "i32", BLOCK=256),
)
