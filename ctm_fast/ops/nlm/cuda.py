"""The backend "native" of ``ops.nlm`` on a GPU: the CUDA C++ forward, beside the backward of the Triton kernels.

The forward takes the models of two layers whose memory length and hidden width it was compiled for, in float32;
a call with dropout runs the Triton kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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


def nlm_forward(*arguments: Any) -> Tensor:
    """The registered forward: history, weights, dropout and seed; shapes as those of the public op."""
    return triton.forward_by(run_forward, *arguments)
