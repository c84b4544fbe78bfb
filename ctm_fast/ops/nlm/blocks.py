"""Block sizes of the Triton kernels of ``ops.nlm``: a pure function of the sizes, nothing is tuned at run time."""

from __future__ import annotations

from typing import NamedTuple

from ctm_fast.ops.triton import block


class Limits(NamedTuple):
    """What the registers of a kernel hold without spilling."""

    rows: int
    """Of a block, where sums have 32 bits; half as many of 64 bits."""
    memory: int | None
    """Steps of memory in a block of gradients, if the kernel has any."""
    elements: int
    """Of a block per warp, where sums have 32 bits."""


LIMITS = {
    "forward_kernel": Limits(64, None, 1152),
    "input_kernel": Limits(64, 16, 1152),
    "weight_kernel": Limits(32, 32, 512),
}
INPUTS = 16  # of the first layer, multiplied at once; fewer are no matrix product in Triton 3.6
MOST_HIDDEN = 64


def blocks(kernel: str, rows: int, memory: int, hidden: int, wide: bool) -> dict[str, int]:
    """Rows, inputs, steps of memory and hidden units of a block, and warps; ``wide`` elements have 64 bits."""
    most, words = LIMITS[kernel], 2 if wide else 1
    r, h = block(rows, 16, most.rows // words), block(hidden, INPUTS // 2, MOST_HIDDEN)
    sizes = {"BLOCK_R": r, "BLOCK_K": INPUTS, "BLOCK_H": h}
    m = block(memory, 8, min(32, 1024 // h) if wide else most.memory or INPUTS)
    if most.memory is not None:
        sizes["BLOCK_M"] = m
    return sizes | {"num_warps": block(r * (2 * h + m) * words // most.elements, 2, 8)}
