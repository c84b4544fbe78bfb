"""The backend "native" of ``ops.nlm`` on a GPU: the CUDA C++ forward, beside the backward of the Triton kernels.

The forward takes the models of two layers whose memory length and hidden width it was compiled for, in float32;
a call with dropout runs the Triton kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ctm_fast.ops import cuda
from ctm_fast.ops.native import Drop
from ctm_fast.ops.nlm import triton
from ctm_fast.ops.nlm.triton import buffer, drop_args, nlm_backward, pack, run_backward, unpack

if TYPE_CHECKING:
    from ctm_fast.ops.nlm.autograd import Shape

__all__ = [
    "buffer", "drop_args", "nlm_backward", "nlm_forward", "pack", "run_backward", "unpack",
]  # fmt: skip


def run_forward(
    shape: Shape, drop: Drop, packed: Tensor, x: Tensor, strides: tuple[int, ...], z: Tensor
) -> None:
    """As :func:`ctm_fast.ops.nlm.triton.run_forward`."""
    if drop[0]:
        triton.run_forward(shape, drop, packed, x, strides, z)
        return
    cuda.extension().nlm_forward(
        shape[:4], packed.data_ptr(), x.data_ptr(), strides, z.data_ptr(), *cuda.place(x)
    )


def nlm_forward(
    history: Tensor, w1: Tensor, b1: Tensor, t1: Tensor, w2: Tensor | None, b2: Tensor | None,
    t2: Tensor | None, dropout: float, seed: Tensor | None,
) -> Tensor:  # fmt: skip
    """The registered forward; shapes as those of the public op."""
    z = history.new_empty(history.shape[:2])
    shape = (*history.shape, w1.shape[1] // 2, w2 is not None)
    packed = pack(w1, b1, t1, w2, b2, t2)
    run_forward(shape, drop_args(dropout, seed), packed, history, history.stride(), z)
    return z
