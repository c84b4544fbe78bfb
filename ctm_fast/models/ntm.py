"""Neural Turing Machine (Graves, Wayne and Danihelka, arXiv 1410.5401).

Letters: T steps, B batch, I inputs, O outputs, N slots, W width of a slot, R read heads, V write heads, C
controller size, P size of the interface vector.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ctm_fast import ops
from ctm_fast.models import ntm_loop
from ctm_fast.models.checks import (
    check_inputs,
    check_state,
    in_precision,
    require,
    require_bound,
    require_positive,
)
from ctm_fast.models.hub import HubMixin
from ctm_fast.models.ntm_controller import CONTROLLERS, Controller
from ctm_fast.models.ntm_heads import LinearHeads, SplitHeads
from ctm_fast.models.ntm_state import InitialMemory, MemoryState, NtmState, NtmTrace

Steps = list[MemoryState]

XAVIER_GAIN = 2.0
OPTIONS = ("order", "key", "add", "strength", "eps", "eps_placement", "shared_weights")


class NtmOutput(NamedTuple):
    """What :class:`NTM` returns: outputs, the state to go on from, and the trace where it was asked for."""

    output: Tensor  # (T, B, O)
    state: NtmState
    trace: NtmTrace | None


class NTM(nn.Module, HubMixin):
    """A controller that reads from and writes to N slots of memory through attention.

    At every step the controller sees the input and what was read at the step before; a linear map of its
    output gives the interface vector, from which the heads address, read and write (``ops.ntm_step``); the
    output is a linear map of the controller's output and this step's reads.

    Args:
        input_size, output_size: I, O.
        controller: "lstm", "rnn" (tanh) or "ff" (tanh layers without state).
        controller_size: C; None only with ``split_hidden``, where it follows from the heads.
        controller_layers: layers of the controller.
        controller_sees_reads: False for a controller of the inputs alone: the interface vectors of a whole
            sequence are then known beforehand, and the memory part is one call of ``ops.ntm_sequence``.
        slots, width, read_heads, write_heads: N, W, R, V.
        shift: S, odd: a head shifts by -(S // 2) to S // 2 slots.
        memory_init: "constant" (1e-6), "zeros", "random" or "learned".
        weights_init: "learned", "one_hot" or "uniform".
        read_init: "learned", "zeros" or "random"; see ``InitialMemory`` for all three.
        clip: interface vector and output are clamped to [-clip, clip]; None for no bound.
        split_hidden: nothing between controller and heads: the controller's output itself is the interface
            vector followed by the output, which is multiplied by one learnable temperature (5 at the start),
            and the controller sees only what the last read head read. Its weights start Xavier uniform with
            gain 2, its biases at zero.
        **layout: further fields of ``ops.NtmLayout``: order, key, add, strength, eps, eps_placement,
            shared_weights. Keys and add vectors pass through tanh unless given.

    Raises:
        ArgumentError: a size below 1, an even shift, fewer slots than the shift is wide, an unknown name, starts
            that do not tell the slots apart, or a bound that is not positive.
        TypeError: a size or a bound that is no number, or an option that there is not.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        controller: str = "lstm",
        controller_size: int | None = 100,
        controller_layers: int = 1,
        controller_sees_reads: bool = True,
        slots: int = 128,
        width: int = 20,
        read_heads: int = 1,
        write_heads: int = 1,
        shift: int = 3,
        memory_init: str = "constant",
        weights_init: str = "learned",
        read_init: str = "learned",
        clip: float | None = 20.0,
        split_hidden: bool = False,
        **layout: Any,
    ) -> None:
        super().__init__()
        require_positive(input_size=input_size, output_size=output_size, controller_layers=controller_layers)
        require_positive(slots=slots, width=width, read_heads=read_heads, write_heads=write_heads)
        for name in layout.keys() - set(OPTIONS):
            raise TypeError(f"NTM: options must be among {', '.join(OPTIONS)}, got {name!r}")
        require_positive(shift=shift)
        require(shift % 2 == 1, f"shift must be odd, got {shift}")
        require(slots >= shift, f"slots must be at least shift={shift}, got {slots}")
        require_bound("clip", clip)
        self.input_size, self.output_size, self.clip = input_size, output_size, clip
        self.controller_sees_reads = controller_sees_reads
        heads = {"read_heads": read_heads, "write_heads": write_heads, "width": width, "shift": shift}
        self.layout = ops.NtmLayout(**{"key": "tanh", "add": "tanh", **heads, **layout})
        self.start = InitialMemory(
            slots, width, read_heads, write_heads, memory_init, weights_init, read_init
        )
        self.heads: LinearHeads | SplitHeads
        if split_hidden:
            require(controller_size is None, f"controller_size must be None, got {controller_size}")
            self.heads, fed_back = SplitHeads(self.layout.size, output_size), width
            controller_size = self.layout.size + output_size
        else:
            require(controller_size is not None, "controller_size must be given without split_hidden")
            assert controller_size is not None
            require_positive(controller_size=controller_size)
            reads, fed_back = (read_heads, width), read_heads * width
            self.heads = LinearHeads(controller_size, self.layout.size, reads, output_size)
        known = ", ".join(CONTROLLERS)
        require(controller in CONTROLLERS, f"controller must be one of {known}, got {controller!r}")
        self.controller: Controller = CONTROLLERS[controller](
            input_size, fed_back if controller_sees_reads else 0, controller_size, controller_layers
        )
        if split_hidden:
            self._reset_controller()

    def _reset_controller(self) -> None:
        for parameter in self.controller.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter, XAVIER_GAIN)
            else:
                nn.init.zeros_(parameter)

    def initial_state(self, batch: int) -> NtmState:
        """The state before the first step of ``batch`` samples."""
        memory = self.start(batch)
        return NtmState(self.controller.initial(batch, memory.memory), memory)

    def forward(self, x: Tensor, state: NtmState | None = None, *, trace: bool = False) -> NtmOutput:
        """Run T steps.

        Args:
            x: (T, B, I), floating point; T at least 1. Steps without input are zeros.
            state: what an earlier call returned; None for :meth:`initial_state`.
            trace: also return weightings and memory after every step.

        Raises:
            TypeError, ValueError: "NTM: argument must ..., got ...".
        """
        check_inputs("NTM", x, self.input_size, next(self.controller.parameters()))
        state = self._start(x.shape[1], state)
        steps: Steps = []
        if not (self.controller_sees_reads or trace):
            hidden, reads, state = self._sequence(x, state)
        elif not trace and ntm_loop.usable(self.controller, self.heads, state.memory.memory):
            assert isinstance(self.heads, LinearHeads)
            hidden, reads, state = ntm_loop.run(self.controller, self.heads, self.layout, self.clip, x, state)
        else:
            hidden, reads, state, steps = self._steps(x, state, trace)
        output = self._clamp(self.heads.output(hidden, reads))
        return NtmOutput(output, state, NtmTrace.of(steps) if trace else None)

    def _start(self, batch: int, state: NtmState | None) -> NtmState:
        if state is None:
            return self.initial_state(batch)
        check_state("NTM", state, NtmState)
        state.memory.check("NTM", batch, self.layout)
        self.controller.check("NTM", state.controller, batch)
        return in_precision(state, next(self.controller.parameters()))

    def _sequence(self, x: Tensor, state: NtmState) -> tuple[Tensor, Tensor, NtmState]:
        """Controller first, then the memory part of all steps in one call."""
        hidden, controller = self.controller.sequence(x, state.controller)
        before = state.memory
        after = ops.ntm_sequence(
            before.memory,
            self._clamp(self.heads.interface(hidden)),
            before.read_weights,
            before.write_weights,
            layout=self.layout,
        )
        memory = MemoryState(after.memory, after.reads[-1], after.read_weights, after.write_weights)
        return hidden, after.reads, NtmState(controller, memory)

    def _steps(self, x: Tensor, state: NtmState, trace: bool) -> tuple[Tensor, Tensor, NtmState, Steps]:
        step = self.controller.stepper(x)
        layers, memory = self.controller.split(state.controller), state.memory
        outputs, reads, steps = [], [], []
        for t in range(len(x)):
            hidden, layers = step(t, self._seen(memory.reads), layers)
            memory = memory.step(self._clamp(self.heads.interface(hidden)), self.layout)
            outputs.append(hidden)
            reads.append(memory.reads)
            if trace:
                steps.append(memory)
        state = NtmState(self.controller.join(layers), memory)
        return torch.stack(outputs), torch.stack(reads), state, steps

    def _seen(self, reads: Tensor) -> Tensor:
        return self.heads.fed_back(reads) if self.controller_sees_reads else reads.new_zeros(len(reads), 0)

    def _clamp(self, values: Tensor) -> Tensor:
        return values if self.clip is None else values.clamp(-self.clip, self.clip)
