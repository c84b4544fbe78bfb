"""What ``ops.sync`` checks on the values of its arguments."""

from __future__ import annotations

import weakref
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


class GatherPlan(NamedTuple):
    """Which pairs every neuron is in."""

    starts: Tensor  # (D + 1), int32: where the entries of each neuron start
    pair: Tensor  # (2P), int32
    other: Tensor  # (2P), int32: the other neuron of the pair


class _Planned(NamedTuple):
    """A plan and what it was made from."""

    source: tuple[int, int, int]
    right: weakref.ref[Tensor]
    plan: GatherPlan


_plans: WeakIdKeyDictionary = WeakIdKeyDictionary()


def checked_pairs(z: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Indices as the kernels take them, int32, checked against D: a bad index never reaches a kernel."""
    return _checked_index("left", left, z.shape[2]), _checked_index("right", right, z.shape[2])


def _checked_index(name: str, index: Tensor, neurons: int) -> Tensor:
    if _is_capturing(index):
        return index.to(torch.int32).contiguous()
    known = _checked.get(index) if index.is_cuda and not index.is_inference() else None
    if known is not None and known.neurons == neurons and known.version == index._version:
        return known.taken
    checks.indices("sync", name, index, neurons)
    if not index.is_cuda or index.is_inference():
        return index.to(torch.int32).contiguous()
    # A tensor made in inference mode has no version: what takes it would read its values every time.
    with torch.inference_mode(False):
        taken = index.to(torch.int32, copy=True).contiguous()
    _checked[index] = _Checked(neurons, index._version, taken)
    return taken


def gather_plan(left: Tensor, right: Tensor, neurons: int) -> GatherPlan:
    """The pairs of every neuron, found once for pairs that stay: a tick of its own would sort them again.

    While a CUDA graph is captured none is kept: its memory is the graph's.
    """
    if left.is_inference() or right.is_inference() or _is_capturing(left):
        return _gather_plan(left, right, neurons)
    source, known = (neurons, left._version, right._version), _plans.get(left)
    if known is None or known.source != source or known.right() is not right:
        with torch.inference_mode(False):
            known = _Planned(source, weakref.ref(right), _gather_plan(left, right, neurons))
        _plans[left] = known
    return known.plan


def _gather_plan(left: Tensor, right: Tensor, neurons: int) -> GatherPlan:
    own, order = torch.sort(torch.cat((left, right)), stable=True)
    ends = torch.arange(neurons + 1, device=left.device, dtype=own.dtype)
    starts = torch.searchsorted(own, ends, out_int32=True)
    return GatherPlan(starts, (order % left.shape[0]).to(torch.int32), torch.cat((right, left))[order])


def _is_capturing(index: Tensor) -> bool:
    return index.is_cuda and torch.cuda.is_current_stream_capturing()
