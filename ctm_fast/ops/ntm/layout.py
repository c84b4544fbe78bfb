"""What an interface vector of the Neural Turing Machine holds, and which known variant reads it how."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ctm_fast.ops import checks

ORDERS = ("write_read", "read_write", "previous_read")
KEYS = ("linear", "tanh")
ADDS = ("linear", "tanh", "sigmoid")
STRENGTHS = ("softplus", "oneplus")
SMALLEST_FACTOR = 1e-18  # whose square float32 still holds
EPS_PLACEMENTS = ("root", "root_product", "norm", "product", "clamp", "operands")


class NtmHeads(NamedTuple):
    """The activated parts of an interface vector; H heads in all, read heads first, V of them write heads.

    Attributes:
        key: (..., H, W).
        beta: (..., H), the strength of the key, at least 0.
        gate: (..., H), in [0, 1]; 0 keeps the previous weighting.
        shift: (..., H, S), a distribution over the offsets -(S // 2) to S // 2.
        gamma: (..., H), the exponent of the sharpening, at least 1.
        erase: (..., V, W), in [0, 1].
        add: (..., V, W).
    """

    key: Tensor
    beta: Tensor
    gate: Tensor
    shift: Tensor
    gamma: Tensor
    erase: Tensor
    add: Tensor


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), exact to double precision for any x."""
    return functional.softplus(x, threshold=40.0)


def _activated(x: Tensor, name: str) -> Tensor:
    if name == "linear":
        return x
    return torch.tanh(x) if name == "tanh" else torch.sigmoid(x)


@dataclass(frozen=True)
class NtmLayout:
    """The heads of a Neural Turing Machine (arXiv 1410.5401) and how their raw interface vector is read.

    The vector holds head by head, read heads first: key W, beta 1, gate 1, shift S, gamma 1, and for a write
    head also erase W, add W.

    Attributes:
        read_heads, write_heads: R and V, at least one each.
        width: W, the width of a slot.
        shift: S, how many offsets a head can shift by; odd, and may exceed the number of slots.
        order: ``"write_read"``: write heads address and write the memory, then read heads address and read
            the new one. ``"read_write"``: all heads address the incoming memory, which is read, then written.
            ``"previous_read"``: the incoming memory is read with the incoming weights, then as before.
        key, add: activation of the keys (``"linear"`` or ``"tanh"``) and of the add vectors (also
            ``"sigmoid"``).
        strength: beta is ``"softplus"`` of the raw value, or ``"oneplus"``, one more.
        eps, eps_placement: as in :func:`ntm_address`.
        shared_weights: every head goes on from one previous weighting, that of the last write head.
        encoded: what the kernels need to know beside ``width`` and ``eps``; follows from the others.
    """

    read_heads: int
    write_heads: int
    width: int
    shift: int = 3
    order: str = "write_read"
    key: str = "linear"
    add: str = "linear"
    strength: str = "softplus"
    eps: float = 1e-6
    eps_placement: str = "root"
    shared_weights: bool = False
    encoded: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("read_heads", "write_heads", "width", "shift"):
            checks.integer("NtmLayout", name, getattr(self, name), 1)
        if self.shift % 2 == 0:
            raise ValueError(f"NtmLayout: shift must be odd, got {self.shift}")
        choices = {"order": ORDERS, "key": KEYS, "add": ADDS, "strength": STRENGTHS}
        for name, known in choices.items():
            check_choice("NtmLayout", name, getattr(self, name), known)
        checks.flag("NtmLayout", "shared_weights", self.shared_weights)
        check_eps("NtmLayout", self.eps, self.eps_placement)
        object.__setattr__(self, "encoded", self._encode())

    @property
    def heads(self) -> int:
        """H = R + V."""
        return self.read_heads + self.write_heads

    @property
    def size(self) -> int:
        """I, the length of an interface vector."""
        return self.heads * (self.width + self.shift + 3) + 2 * self.width * self.write_heads

    def _encode(self) -> tuple[int, ...]:
        return (
            self.read_heads, self.write_heads, self.shift, ORDERS.index(self.order),
            EPS_PLACEMENTS.index(self.eps_placement), ADDS.index(self.key), ADDS.index(self.add),
            int(self.strength == "oneplus"), int(self.shared_weights),
        )  # fmt: skip

    def split(self, interface: Tensor) -> NtmHeads:  # (..., I)
        """The activated parts of raw interface vectors, in plain torch and in the dtype of ``interface``.

        Raises ``ValueError`` unless the last dimension is ``size``.
        """
        if interface.dim() < 1 or interface.shape[-1] != self.size:
            raise ValueError(
                f"NtmLayout.split: interface must have shape (..., I) with I = {self.size}, "
                f"got {tuple(interface.shape)}"
            )
        head, width = self.width + self.shift + 3, self.width
        reads, writes = interface.tensor_split([self.read_heads * head], -1)
        reads = reads.unflatten(-1, (self.read_heads, head))
        writes = writes.unflatten(-1, (self.write_heads, head + 2 * width))
        addressing, erase, add = writes.split((head, width, width), -1)
        parts = torch.cat((reads, addressing), -2).split((width, 1, 1, self.shift, 1), -1)
        key, beta, gate, shift, gamma = parts
        strength = softplus(beta.squeeze(-1))
        return NtmHeads(
            key=_activated(key, self.key),
            beta=strength + 1 if self.strength == "oneplus" else strength,
            gate=torch.sigmoid(gate.squeeze(-1)),
            shift=torch.softmax(shift, -1),
            gamma=1 + softplus(gamma.squeeze(-1)),
            erase=torch.sigmoid(erase),
            add=_activated(add, self.add),
        )


def check_choice(op: str, name: str, value: object, known: tuple[str, ...]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``known``."""
    if value not in known:
        raise ValueError(f"{op}: {name} must be one of {known}, got {value!r}")


def check_eps(op: str, eps: float, placement: object) -> None:
    """Raise unless ``eps`` is a positive finite number that serves a known ``placement`` in float32."""
    checks.number(op, "eps", eps)
    if not 0.0 < eps < float("inf"):
        raise ValueError(f"{op}: eps must be positive and finite, got {eps}")
    check_choice(op, "eps_placement", placement, EPS_PLACEMENTS)
    if placement in ("norm", "clamp") and eps < SMALLEST_FACTOR:
        raise ValueError(
            f"{op}: eps must be at least {SMALLEST_FACTOR} where placed as {placement!r}, got {eps}"
        )
