"""What ``ops.sync`` checks on the values of its arguments."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ctm_fast.ops import checks


class _Checked(NamedTuple):
    """An index as the kernels take it, and what it was made from."""

    neurons: int
    version: int
    taken: Tensor


# Reading the values of an index makes a GPU wait for its host, so there each is read once until it is written to,
# and while a CUDA graph is captured none is: the calls that warm it up have read them. The graph converts the index
# itself, so that it goes on with what is written to it later.
_checked: WeakIdKeyDictionary = WeakIdKeyDictionary()


def checked_pairs(z: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Indices as the kernels take them, int32, checked against D: a bad index never reaches a kernel."""
    return _checked_index("left", left, z.shape[2]), _checked_index("right", right, z.shape[2])


def _checked_index(name: str, index: Tensor, neurons: int) -> Tensor:
    if index.is_cuda and torch.cuda.is_current_stream_capturing():
        return index.to(torch.int32).contiguous()
    known = _checked.get(index) if index.is_cuda and not index.is_inference() else None
    if known is not None and known.neurons == neurons and known.version == index._version:
        return known.taken
    checks.indices("sync", name, index, neurons)
    made = index.to(torch.int32).contiguous()
    if index.is_cuda and not index.is_inference():
        _checked[index] = _Checked(neurons, index._version, made.clone() if made is index else made)
    return made
