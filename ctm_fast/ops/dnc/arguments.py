"""Argument checks of the ``dnc`` ops: once, at the boundary, before any pointer is taken."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ctm_fast.ops import checks
from ctm_fast.ops.dnc.layout import DncLayout, DncState
from ctm_fast.ops.native import compute_dtype


class Beside(NamedTuple):
    """What the arguments of one call have in common with its first: ``like``, called ``first``."""

    op: str
    first: str
    like: Tensor

    def floating(self, name: str, value: object, shape: tuple[int, ...], letters: str) -> Tensor:
        """``value`` if it is a floating-point tensor of this shape, of a dtype that goes with the first."""
        like = self.like
        kind = (like.dtype, like.device)
        if (
            isinstance(value, Tensor)
            and checks.is_dense(value)
            and value.shape == shape
            and (value.dtype, value.device) == kind
        ):
            return value  # a loop of steps never goes further
        found = checks.floating(self.op, name, value)
        checks.rank(self.op, name, found, letters)
        checks.shape(self.op, name, found, shape, letters)
        checks.like(self.op, name, found, self.first, like, checks.computed_alike(like.dtype))
        return found

    def links(self, prefix: str, link: object, link_slots: object, kept: int) -> None:
        """Raise unless ``link`` is dense or, with ``link_slots``, has K of them a slot."""
        batch, slots = self.like.shape[:2]
        if link_slots is None:
            self.floating(f"{prefix}link", link, (batch, slots, slots), "B, N, N")
            return
        self.floating(f"{prefix}link", link, (batch, slots, kept), "B, N, K")
        columns = checks.tensor(self.op, f"{prefix}link_slots", link_slots)
        checks.shape(self.op, f"{prefix}link_slots", columns, (batch, slots, kept), "B, N, K")
        checks.like(self.op, f"{prefix}link_slots", columns, self.first, self.like, (torch.int64,))


def check_step(
    op: str, memory: object, interface: object, state: object, layout: object, steps: bool
) -> tuple[Tensor, Tensor, DncState]:
    """The arguments of a step, or of a sequence, in the compute dtype."""
    if not isinstance(layout, DncLayout):
        raise TypeError(f"{op}: layout must be a DncLayout, got {type(layout).__name__}")
    found = checks.floating(op, "memory", memory)
    checks.rank(op, "memory", found, "B, N, W")
    batch, slots, width = found.shape
    if slots < 1 or width != layout.width:
        raise ValueError(
            f"{op}: memory must have slots of the layout's width W = {layout.width}, got {tuple(found.shape)}"
        )
    beside = Beside(op, "memory", found)
    length = checks.floating(op, "interface", interface).shape[:1] if steps else ()
    letters = "T, B, I" if steps else "B, I"
    raw = beside.floating("interface", interface, (*length, batch, layout.size), letters)
    checked, dtype = _check_state(beside, state, layout), compute_dtype(found.dtype)
    compute = DncState._make(x if x is None or not x.is_floating_point() else x.to(dtype) for x in checked)
    return found.to(dtype), raw.to(dtype), compute


def _check_state(beside: Beside, state: object, layout: DncLayout) -> DncState:
    op, (batch, slots) = beside.op, beside.like.shape[:2]
    if not isinstance(state, DncState):
        raise TypeError(f"{op}: state must be a DncState, got {type(state).__name__}")
    if (layout.sparse is None) != (state.link_slots is None):
        wanted = "None for a dense layout" if layout.sparse is None else "a tensor for a sparse layout"
        raise ValueError(f"{op}: state.link_slots must be {wanted}, got {type(state.link_slots).__name__}")
    beside.links("state.", state.link, state.link_slots, layout.links(slots))
    for name in ("usage", "precedence", "write_weights"):
        beside.floating(f"state.{name}", getattr(state, name), (batch, slots), "B, N")
    beside.floating("state.read_weights", state.read_weights, (batch, layout.read_heads, slots), "B, R, N")
    return state
