"""What an interface vector and a state of the Differentiable Neural Computer hold.

Letters: B batch, N slots, W width of a slot, R read heads, K links kept per slot, I length of the interface.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ctm_fast.ops import checks
from ctm_fast.ops.ntm.layout import STRENGTHS, check_choice, check_eps, softplus


class DncInterface(NamedTuple):
    """The activated parts of an interface vector.

    Attributes:
        read_keys: (..., R, W).
        read_strengths: (..., R), at least 1 (``"oneplus"``) or 0 (``"softplus"``).
        write_key: (..., W).
        write_strength: (...).
        erase: (..., W), in [0, 1].
        write_vector: (..., W).
        free_gates: (..., R), in [0, 1]; 1 frees what the head has just read.
        allocation_gate: (...), in [0, 1]; 1 writes where the memory is free, 0 by content.
        write_gate: (...), in [0, 1]; 0 writes nothing.
        read_modes: (..., R, 3), distributions over backward, content and forward.
    """

    read_keys: Tensor
    read_strengths: Tensor
    write_key: Tensor
    write_strength: Tensor
    erase: Tensor
    write_vector: Tensor
    free_gates: Tensor
    allocation_gate: Tensor
    write_gate: Tensor
    read_modes: Tensor


class DncState(NamedTuple):
    """What a step goes on from beside the memory.

    Attributes:
        usage: (B, N), in [0, 1].
        link: (B, N, N), ``link[:, i, j]``: how far slot i was written right after slot j. Of a sparse layout
            (B, N, K): the K largest of every row.
        precedence: (B, N), how far a slot was the last one written.
        write_weights: (B, N) of the step before.
        read_weights: (B, R, N) of the step before.
        link_slots: (B, N, K) int64, the columns j of ``link``, ascending in every row; None where it is dense.
    """

    usage: Tensor
    link: Tensor
    precedence: Tensor
    write_weights: Tensor
    read_weights: Tensor
    link_slots: Tensor | None = None

    def detach(self) -> DncState:
        """The same numbers without their history."""
        return DncState._make(x if x is None else x.detach() for x in self)


@dataclass(frozen=True)
class DncLayout:
    """The heads of a Differentiable Neural Computer (Nature 538, 471-476) and how its raw interface is read.

    The vector holds, in the paper's order: read keys R * W, read strengths R, write key W, write strength 1,
    erase W, write vector W, free gates R, allocation gate 1, write gate 1, read modes 3 R (head by head:
    backward, content, forward).

    Attributes:
        read_heads: R, at least one.
        width: W, the width of a slot.
        sparse: K, how many links are kept per slot; None keeps all N * N.
        eps: positive, inside both roots of the cosine; keeps it and its gradient finite at zero.
        usage_eps: in [0, 1); allocation squeezes the usage to [usage_eps, 1].
        strength: a key's strength is ``"oneplus"``, 1 + softplus of the raw value, or ``"softplus"``.
        detach_writes: no gradient flows from the usage into the write weighting of the step before, as in
            DeepMind's published code; the paper's equations have it.
    """

    read_heads: int
    width: int
    sparse: int | None = None
    eps: float = 1e-6
    usage_eps: float = 1e-6
    strength: str = "oneplus"
    detach_writes: bool = False

    def __post_init__(self) -> None:
        sizes = {"read_heads": self.read_heads, "width": self.width}
        if self.sparse is not None:
            sizes["sparse"] = self.sparse
        for name, value in sizes.items():
            checks.integer("DncLayout", name, value, 1)
        check_eps("DncLayout", self.eps, "root")
        check_usage_eps("DncLayout", "usage_eps", self.usage_eps)
        check_choice("DncLayout", "strength", self.strength, STRENGTHS)
        checks.flag("DncLayout", "detach_writes", self.detach_writes)

    @property
    def size(self) -> int:
        """I, the length of an interface vector."""
        return self.read_heads * (self.width + 5) + 3 * self.width + 3

    def links(self, slots: int) -> int:
        """How many links a slot of N has: K, at most N; all N of a dense layout."""
        return slots if self.sparse is None else min(self.sparse, slots)

    def split(self, interface: Tensor) -> DncInterface:  # (..., I)
        """The activated parts of raw interface vectors, in plain torch and in the dtype of ``interface``.

        Raises ``ValueError`` unless the last dimension is ``size``.
        """
        if interface.dim() < 1 or interface.shape[-1] != self.size:
            raise ValueError(
                f"DncLayout.split: interface must have shape (..., I) with I = {self.size}, "
                f"got {tuple(interface.shape)}"
            )
        heads, width = self.read_heads, self.width
        sizes = (heads * width, heads, width, 1, width, width, heads, 1, 1, 3 * heads)
        raw = DncInterface(*interface.split(sizes, -1))
        return DncInterface(
            read_keys=raw.read_keys.unflatten(-1, (heads, width)),
            read_strengths=self._strength(raw.read_strengths),
            write_key=raw.write_key,
            write_strength=self._strength(raw.write_strength.squeeze(-1)),
            erase=torch.sigmoid(raw.erase),
            write_vector=raw.write_vector,
            free_gates=torch.sigmoid(raw.free_gates),
            allocation_gate=torch.sigmoid(raw.allocation_gate.squeeze(-1)),
            write_gate=torch.sigmoid(raw.write_gate.squeeze(-1)),
            read_modes=torch.softmax(raw.read_modes.unflatten(-1, (heads, 3)), -1),
        )

    def _strength(self, raw: Tensor) -> Tensor:
        return softplus(raw) + 1 if self.strength == "oneplus" else softplus(raw)

    def initial_state(
        self,
        batch: int,
        slots: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> DncState:
        """Zeros for N ``slots``; a sparse layout starts with links of strength zero to the first K slots.

        Raises ``ValueError`` for no slots or a negative batch, ``TypeError`` where either is no int.
        """
        checks.integer("DncLayout.initial_state", "batch", batch, 0)
        checks.integer("DncLayout.initial_state", "slots", slots, 1)
        kept = self.links(slots)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(batch, *shape, dtype=dtype, device=device)

        first = torch.arange(kept, device=device).expand(batch, slots, kept)
        return DncState(
            usage=zeros(slots),
            link=zeros(slots, kept),
            precedence=zeros(slots),
            write_weights=zeros(slots),
            read_weights=zeros(self.read_heads, slots),
            link_slots=None if self.sparse is None else first.contiguous(),
        )


def check_usage_eps(op: str, name: str, value: float) -> None:
    """``TypeError`` unless ``value`` is a number, ``ValueError`` unless it is in [0, 1)."""
    checks.number(op, name, value)
    if not 0 <= value < 1:
        raise ValueError(f"{op}: {name} must be in [0, 1), got {value}")
