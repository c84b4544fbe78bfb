"""What a Neural Turing Machine carries from step to step, and what it starts from.

Letters: B batch, N slots, W width of a slot, R read heads, V write heads, T steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ctm_fast import ops
from ctm_fast.models.checks import check_memory, check_part, require

CONSTANT = 1e-6
SPREAD = {"memory": 0.5, "weights": 1.0, "reads": 0.01}
KINDS = {
    "memory": ("constant", "zeros", "random", "learned"),
    "weights": ("learned", "one_hot", "uniform"),
    "read": ("learned", "zeros", "random"),
}

ALIKE = ("constant", "zeros")


class MemoryState(NamedTuple):
    """Memory, what was read last, and the last weightings."""

    memory: Tensor  # (B, N, W)
    reads: Tensor  # (B, R, W)
    read_weights: Tensor  # (B, R, N)
    write_weights: Tensor  # (B, V, N)

    def check(self, model: str, batch: int, layout: ops.NtmLayout) -> None:
        """Raise ``TypeError`` or ``ValueError`` unless it fits a batch and the model's heads."""
        check_memory(model, self.memory, batch, layout.width)
        read, write, slots = layout.read_heads, layout.write_heads, self.memory.shape[1]
        check_part(model, "reads", self.reads, (batch, read, layout.width), "B, R, W")
        check_part(model, "read_weights", self.read_weights, (batch, read, slots), "B, R, N")
        check_part(model, "write_weights", self.write_weights, (batch, write, slots), "B, V, N")

    def step(self, interface: Tensor, layout: ops.NtmLayout) -> MemoryState:
        """The state after one step of all heads, for raw interface vectors (B, P)."""
        found = ops.ntm_step(self.memory, interface, self.read_weights, self.write_weights, layout=layout)
        return MemoryState(found.memory, found.reads, found.read_weights, found.write_weights)


class NtmState(NamedTuple):
    """All that a Neural Turing Machine carries to its next step."""

    controller: tuple[Tensor, ...]
    memory: MemoryState


class NtmTrace(NamedTuple):
    """Weightings and memory after every step, for pictures; detached."""

    read_weights: Tensor  # (T, B, R, N)
    write_weights: Tensor  # (T, B, V, N)
    memory: Tensor  # (T, B, N, W)

    @classmethod
    def of(cls, steps: Sequence[MemoryState]) -> NtmTrace:
        """The trace of the states after every step."""
        return cls(*(torch.stack([getattr(step, name).detach() for step in steps]) for name in cls._fields))


def tells_slots_apart(slots: int, memory: str, weights: str) -> bool:
    """Whether slots ever differ: equal ones under equal weightings stay so."""
    return slots == 1 or weights != "uniform" or memory not in ALIKE


class InitialMemory(nn.Module):
    """Memory, reads and weightings before the first step, the same for every sample.

    Args:
        slots, width, read_heads, write_heads: N, W, R, V.
        memory: "constant" 1e-6 (which arXiv 1807.08518 finds to learn fastest), "zeros", "random": drawn once
            from N(0, 0.5^2), or "learned": tanh of a parameter.
        weights: "learned": softmax of a parameter, "one_hot" on slot 0, or "uniform". Beside a
            constant memory or zeros, uniform weightings would treat all slots alike for ever: refused.
        read: "learned": tanh of a parameter, "zeros", or "random": drawn once from N(0, 0.01^2).

    Raises:
        ArgumentError: an unknown kind, or starts that do not tell several slots apart.
    """

    memory: Tensor  # (N, W)
    weights: Tensor  # (R + V, N), logits where learned
    reads: Tensor  # (R, W)

    def __init__(
        self, slots: int, width: int, read_heads: int, write_heads: int, memory: str, weights: str, read: str
    ) -> None:
        super().__init__()
        kinds = {"memory": memory, "weights": weights, "read": read}
        for name, kind in kinds.items():
            known = KINDS[name]
            require(kind in known, f"{name}_init must be one of {', '.join(known)}, got {kind!r}")
        apart = tells_slots_apart(slots, memory, weights)
        must = f"weights_init must tell slots apart that memory_init={memory!r} does not"
        require(apart, f"{must}, got {weights!r}")
        self.heads = [read_heads, write_heads]
        self._add("memory", memory, torch.full((slots, width), CONSTANT if memory == "constant" else 0.0))
        first = torch.zeros(sum(self.heads), slots)
        first[:, 0] = 1.0
        self._add("weights", weights, first if weights == "one_hot" else torch.full_like(first, 1 / slots))
        self._add("reads", read, torch.zeros(read_heads, width))

    def _add(self, name: str, kind: str, fixed: Tensor) -> None:
        drawn = torch.randn_like(fixed) * SPREAD[name]
        if kind == "learned":
            self.register_parameter(name, nn.Parameter(drawn))
        else:
            random = kind == "random"
            self.register_buffer(name, drawn if random else fixed, persistent=random)

    def forward(self, batch: int) -> MemoryState:
        """The state of ``batch`` samples."""
        memory = self._value(self.memory)
        weights = self.weights.softmax(-1) if isinstance(self.weights, nn.Parameter) else self.weights
        reading, writing = (w.expand(batch, -1, -1) for w in weights.split(self.heads))
        reads = self._value(self.reads)
        return MemoryState(memory.expand(batch, -1, -1), reads.expand(batch, -1, -1), reading, writing)

    @staticmethod
    def _value(tensor: Tensor) -> Tensor:
        return tensor.tanh() if isinstance(tensor, nn.Parameter) else tensor
