"""Block sizes of the Triton kernels of ``ops.nlm``: a pure function of the sizes, nothing is tuned at run time."""

from __future__ import annotations

from ctm_fast.ops.triton import block

MOST_HIDDEN = 64
MOST_MEMORY = {"forward_kernel": 32, "input_kernel": 16, "weight_kernel": 32}
ELEMENTS = 1024  # of the widest tile, per warp


def blocks(kernel: str, rows: int, memory: int, hidden: int, wide: bool) -> dict[str, int]:
    """Rows, steps of memory and hidden units of a block, and warps; ``wide`` elements have 64 bits."""
    r, h = block(rows, 16, 32 if wide else 64), block(hidden, 4, MOST_HIDDEN)
    sizes = {"BLOCK_R": r, "BLOCK_M": block(memory, 8, MOST_MEMORY[kernel]), "BLOCK_H": h}
    return sizes | {"num_warps": block(2 * r * h // ELEMENTS, 1, 8)}
