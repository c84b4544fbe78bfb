"""Differentiable Neural Computer (Graves et al., Nature 538, 471-476, 2016).

Letters: T steps, B batch, I inputs, O outputs, N slots, W width of a slot, R read heads, C controller size, P
size of the interface vector.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ctm_fast import ops
from ctm_fast.models.checks import (
    check_inputs,
    check_memory,
    check_part,
    check_state,
    in_precision,
    require,
    require_bound,
    require_number,
    require_positive,
)
from ctm_fast.models.dnc_controller import CONTROLLERS
from ctm_fast.models.hub import HubMixin
from ctm_fast.models.ntm_controller import Controller
from ctm_fast.models.ntm_heads import LinearHeads


class DncNetworkState(NamedTuple):
    """All that a Differentiable Neural Computer carries to its next step."""

    controller: tuple[Tensor, ...]
    memory: Tensor  # (B, N, W)
    reads: Tensor  # (B, R, W)
    addressing: ops.DncState


class DncTrace(NamedTuple):
    """What happened at every step, for pictures; detached."""

    usage: Tensor  # (T, B, N), before the write
    allocation: Tensor  # (T, B, N)
    write_weights: Tensor  # (T, B, N)
    read_weights: Tensor  # (T, B, R, N)
    allocation_gate: Tensor  # (T, B)
    write_gate: Tensor  # (T, B)
    free_gates: Tensor  # (T, B, R)
    read_modes: Tensor  # (T, B, R, 3): backward, content, forward


class DncOutput(NamedTuple):
    """What :class:`DNC` returns: outputs, the state to go on from, and the trace where it was asked for."""

    output: Tensor  # (T, B, O)
    state: DncNetworkState
    trace: DncTrace | None


class DNC(nn.Module, HubMixin):
    """A controller with a memory of N slots that it allocates, writes, frees, and reads in order of writing.

    At every step the controller sees the input and what was read at the step before; a linear map of its
    output gives the interface vector of W R + 3 W + 5 R + 3 values for ``ops.dnc_step``; the output is a
    linear map of the controller's output and this step's reads.

    Args:
        input_size, output_size: I, O.
        controller: "lstm", "gru" or "ff" (tanh layers without state).
        controller_size: C, units of each layer.
        controller_layers: layers of the controller.
        slots, width, read_heads: N, W, R.
        sparse: temporal links kept per slot, at most N; None keeps the N x N matrix.
        clip: outputs are clamped to [-clip, clip]; None for no bound. The controller's output lies within
            [-1, 1] by itself.
        bypass_dropout: dropout on the controller's output where it goes straight to the model's output, in
            [0, 1): what is read then counts for more (arXiv 1807.02658).
        detach_writes: no gradient from the usage into the last write weighting, as in DeepMind's code.

    Raises:
        ArgumentError: a size below 1, an unknown controller, more links than slots, a bound that is not
            positive, or a dropout outside [0, 1).
        TypeError: a size or a bound that is no number.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        controller: str = "lstm",
        controller_size: int = 64,
        controller_layers: int = 1,
        slots: int = 16,
        width: int = 16,
        read_heads: int = 4,
        sparse: int | None = None,
        clip: float | None = 20.0,
        bypass_dropout: float = 0.0,
        detach_writes: bool = False,
    ) -> None:
        super().__init__()
        require_positive(input_size=input_size, output_size=output_size, controller_size=controller_size)
        require_positive(controller_layers=controller_layers, slots=slots, width=width, read_heads=read_heads)
        known = ", ".join(CONTROLLERS)
        require(controller in CONTROLLERS, f"controller must be one of {known}, got {controller!r}")
        kept = slots if sparse is None else sparse
        require_positive(sparse=kept)
        require(kept <= slots, f"sparse must be None or lie in [1, slots={slots}], got {sparse}")
        require_bound("clip", clip)
        require_number(bypass_dropout=bypass_dropout)
        require(0 <= bypass_dropout < 1, f"bypass_dropout must lie in [0, 1), got {bypass_dropout}")
        self.input_size, self.output_size, self.slots, self.clip = input_size, output_size, slots, clip
        self.bypass = nn.Dropout(bypass_dropout)
        self.layout = ops.DncLayout(read_heads, width, sparse=sparse, detach_writes=detach_writes)
        self.controller: Controller = CONTROLLERS[controller](
            input_size, read_heads * width, controller_size, controller_layers
        )
        self.heads = LinearHeads(controller_size, self.layout.size, (read_heads, width), output_size)

    def initial_state(self, batch: int) -> DncNetworkState:
        """Zeros for ``batch`` samples, as everything is before the first step."""
        like = self.heads.to_output.weight
        memory = like.new_zeros(batch, self.slots, self.layout.width)
        addressing = self.layout.initial_state(batch, self.slots, dtype=like.dtype, device=like.device)
        reads = like.new_zeros(batch, self.layout.read_heads, self.layout.width)
        return DncNetworkState(self.controller.initial(batch, like), memory, reads, addressing)

    def forward(self, x: Tensor, state: DncNetworkState | None = None, *, trace: bool = False) -> DncOutput:
        """Run T steps.

        Args:
            x: (T, B, I), floating point; T at least 1. Steps without input are zeros.
            state: what an earlier call returned; None for :meth:`initial_state`.
            trace: also return weightings, usage and gates of every step.

        Raises:
            TypeError, ValueError: "DNC: argument must ..., got ...".
        """
        check_inputs("DNC", x, self.input_size, self.heads.to_output.weight)
        state = self._start(x.shape[1], state)
        step = self.controller.stepper(x)
        layers, (_, memory, read, addressing) = self.controller.split(state.controller), state
        outputs, reads, record = [], [], []
        for t in range(len(x)):
            hidden, layers = step(t, read.flatten(1), layers)
            interface = self.heads.interface(hidden)
            read, memory, addressing = ops.dnc_step(memory, interface, addressing, layout=self.layout)
            outputs.append(hidden)
            reads.append(read)
            if trace:
                record.append((interface.detach(), addressing.detach()))
        output = self.heads.output(self.bypass(torch.stack(outputs)), torch.stack(reads))
        if self.clip is not None:
            output = output.clamp(-self.clip, self.clip)
        state = DncNetworkState(self.controller.join(layers), memory, read, addressing)
        return DncOutput(output, state, self._trace(record) if trace else None)

    def _start(self, batch: int, state: DncNetworkState | None) -> DncNetworkState:
        if state is None:
            return self.initial_state(batch)
        check_state("DNC", state, DncNetworkState)
        heads, width = self.layout.read_heads, self.layout.width
        check_memory("DNC", state.memory, batch, width)
        check_part("DNC", "reads", state.reads, (batch, heads, width), "B, R, W")
        self.controller.check("DNC", state.controller, batch)
        return in_precision(state, self.heads.to_output.weight)

    def _trace(self, record: list[tuple[Tensor, ops.DncState]]) -> DncTrace:
        parts = self.layout.split(torch.stack([interface for interface, _ in record]))
        usage = torch.stack([state.usage for _, state in record])
        free = ops.dnc_allocation(usage.flatten(0, 1), eps=self.layout.usage_eps).view_as(usage)
        return DncTrace(
            usage,
            free,
            torch.stack([state.write_weights for _, state in record]),
            torch.stack([state.read_weights for _, state in record]),
            parts.allocation_gate,
            parts.write_gate,
            parts.free_gates,
            parts.read_modes,
        )
