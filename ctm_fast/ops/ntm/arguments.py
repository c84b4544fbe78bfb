"""Argument checks of the ``ntm`` ops: once, at the boundary, before any pointer is taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ctm_fast.ops import checks
from ctm_fast.ops.native import compute_dtype
from ctm_fast.ops.ntm.layout import NtmLayout

MOST_SLOTS = 1024  # of which a Triton program holds vectors in registers


def too_large(memory: Tensor) -> dict[str, str]:
    """By backend, why it cannot take as many slots as ``memory`` (B, N, W) has; nothing where all can."""
    if memory.shape[1] <= MOST_SLOTS:
        return {}
    return {"triton": f"the Triton kernels of ntm take up to {MOST_SLOTS} slots, got {memory.shape[1]}"}


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` in ``dtype``; without a call into torch where it has it, which counts in a step of one sample."""
    return x if x.dtype == dtype else x.to(dtype)


def check_memory(op: str, memory: object) -> Tensor:
    """The memory (B, N, W) with at least one slot and one column."""
    found = checks.floating(op, "memory", memory)
    checks.rank(op, "memory", found, "B, N, W")
    if 0 in found.shape[1:]:
        raise ValueError(f"{op}: memory must have at least one slot of width 1, got {tuple(found.shape)}")
    return found


def check_shape(
    op: str, name: str, value: object, memory: Tensor, expected: tuple[int, ...], letters: str
) -> None:
    """Raise unless ``value`` is a tensor of this shape that goes with the memory."""
    found = checks.floating(op, name, value)
    checks.shape(op, name, found, expected, letters)
    checks.like(op, name, found, "memory", memory, checks.computed_alike(memory.dtype))


class HeadArguments(NamedTuple):
    """Tensors of all heads in the compute dtype, with their head dimension; ``single``: the caller gave one head."""

    memory: Tensor
    parts: tuple[Tensor, ...]
    single: bool


def check_heads(
    op: str, memory: object, parts: Mapping[str, object], letters: Mapping[str, str]
) -> HeadArguments:
    """Arguments by name, every one for one head, as ``letters`` says, or for several: H behind the B.

    The first of them decides which. The letters N, W and H are sizes found before; S is the shift's.
    """
    found = check_memory(op, memory)
    sizes = dict(zip("BNW", found.shape, strict=True))
    first = next(iter(parts))
    leading = checks.floating(op, first, parts[first])
    single = leading.dim() == letters[first].count(",") + 1
    if not single:
        checks.rank(op, first, leading, letters[first].replace("B", "B, H"))
        sizes["H"] = leading.shape[1]
    for name, value in parts.items():
        layout = letters[name] if single else letters[name].replace("B", "B, H")
        if "S" in layout:
            sizes["S"] = _shift_width(op, name, value, layout)
        expected = tuple(sizes[letter] for letter in layout.split(", "))
        check_shape(op, name, value, found, expected, layout)
    dtype = compute_dtype(found.dtype)
    tensors = [cast(value, dtype) for value in parts.values() if isinstance(value, Tensor)]
    return HeadArguments(cast(found, dtype), tuple(x.unsqueeze(1) if single else x for x in tensors), single)


def _shift_width(op: str, name: str, value: object, letters: str) -> int:
    shift = checks.floating(op, name, value)
    checks.rank(op, name, shift, letters)
    width = shift.shape[-1]
    if width % 2 == 0:
        raise ValueError(f"{op}: {name} must have an odd number S of offsets, got {tuple(shift.shape)}")
    return width


def check_step(
    op: str,
    memory: object,
    interface: object,
    read_weights: object,
    write_weights: object,
    layout: object,
    steps: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four tensors of a step, or of a sequence, in the compute dtype."""
    if not isinstance(layout, NtmLayout):
        raise TypeError(f"{op}: layout must be an NtmLayout, got {type(layout).__name__}")
    found = check_memory(op, memory)
    batch, slots, width = found.shape
    if width != layout.width:
        raise ValueError(
            f"{op}: memory must have slots of the layout's width W = {layout.width}, got {tuple(found.shape)}"
        )
    raw = checks.floating(op, "interface", interface)
    expected: tuple[int, ...] = (batch, layout.size)
    if steps:
        checks.rank(op, "interface", raw, "T, B, I")
        expected = (raw.shape[0], *expected)
    check_shape(op, "interface", raw, found, expected, "T, B, I" if steps else "B, I")
    check_shape(op, "read_weights", read_weights, found, (batch, layout.read_heads, slots), "B, R, N")
    check_shape(op, "write_weights", write_weights, found, (batch, layout.write_heads, slots), "B, V, N")
    dtype = compute_dtype(found.dtype)
    assert isinstance(read_weights, Tensor) and isinstance(write_weights, Tensor)
    return cast(found, dtype), cast(raw, dtype), cast(read_weights, dtype), cast(write_weights, dtype)
