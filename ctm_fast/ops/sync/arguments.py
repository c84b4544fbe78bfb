"""What ``ops.sync`` checks on the values of its arguments."""

from __future__ import annotations

import torch
from torch import Tensor

from ctm_fast.ops import checks


def checked_pairs(z: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Indices as the kernels take them, int32, checked against D: a bad index never reaches a kernel."""
    checks.indices("sync", "left", left, z.shape[2])
    checks.indices("sync", "right", right, z.shape[2])
    return left.to(torch.int32).contiguous(), right.to(torch.int32).contiguous()
