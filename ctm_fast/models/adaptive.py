"""Recurrent networks with adaptive computation time (arXiv 1603.08983).

Shape letters: T timesteps, B batch, I inputs, H hidden width, G gates (H, or 4H of an LSTM), O outputs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctm_fast import ops
from ctm_fast.models.checks import check_precision, in_precision, require, require_number, require_positive
from ctm_fast.models.dispatch import is_plain
from ctm_fast.models.hub import HubMixin
from ctm_fast.ops import checks

PAPER = "https://arxiv.org/abs/1603.08983"
TAGS = ["adaptive-computation-time"]
SMALLEST_PROBABILITY = 1e-10

State = tuple[Tensor, ...]


class AdaptiveOutput(NamedTuple):
    """What a network with adaptive computation time returns; a single input has no T.

    Attributes:
        output: (T, B, O): logits, or log-probabilities of digit heads; zeros where padded.
        ponder: substeps plus remainder (T, B); 0 where padded, and everywhere without adaptive time.
        steps: substeps taken (T, B), int64; 0 where padded.
        state: hidden state (B, H), or hidden and cell state of an LSTM, to go on from.
        cost: the scalar that the loss adds, times a time penalty: ``ops.ponder_cost`` of ``ponder``.
    """

    output: Tensor
    ponder: Tensor
    steps: Tensor
    state: Any
    cost: Tensor


class AdaptiveRecurrent(nn.Module, HubMixin):
    """A recurrent cell that takes a number of substeps of its own choice at every timestep.

    The cell sees its input and a flag that is 1 at the first substep; a unit on its hidden state gives the
    halting probability. Hidden and cell state, and the output, are means over the substeps weighted as in
    ``ops.adaptive_halting``.

    Args:
        input_size: inputs I.
        output_size: outputs O.
        hidden_size: width H of the cell.
        epsilon: a sample halts when its probabilities sum to 1 - epsilon; in [0, 1).
        max_steps: limit on the substeps of a timestep.
        ponder: how ``cost`` reduces ponder: ``"sum"`` over time (the paper), or ``"mean"``.
        adaptive: False takes one step per timestep, without flag and halting unit.
        halting_bias: initial bias of the halting unit; higher means fewer substeps at the start.
        digit_classes: 0 mixes the substeps' logits. Otherwise the output consists of digits of so many
            classes whose probabilities are mixed, and ``output`` is their log(p + 1e-10).

    Cell and halting unit are read, not called, unless one has hooks or parametrizations, or is another module
    in the place of torch's own: then every substep calls them.

    State-dict keys: ``cell.{weight_ih,weight_hh,bias_ih,bias_hh}`` with the flag as the last input,
    ``halting.{weight,bias}``, ``readout.{weight,bias}``.
    """

    cell_type: type[nn.RNNCell | nn.LSTMCell]

    def __init__(
        self,
        input_size: int,
        output_size: int,
        hidden_size: int,
        *,
        epsilon: float = 0.01,
        max_steps: int = 100,
        ponder: str = "sum",
        adaptive: bool = True,
        halting_bias: float = 1.0,
        digit_classes: int = 0,
    ) -> None:
        super().__init__()
        require_positive(input_size=input_size, output_size=output_size, hidden_size=hidden_size)
        require_positive(max_steps=max_steps)
        require_number(epsilon=epsilon, halting_bias=halting_bias, digit_classes=digit_classes)
        require(0 <= epsilon < 1, f"epsilon must be in [0, 1), got {epsilon}")
        require(ponder in ("sum", "mean"), f"ponder must be 'sum' or 'mean', got {ponder!r}")
        require(
            digit_classes == 0 or (digit_classes > 0 and output_size % digit_classes == 0),
            f"digit_classes must be 0 or divide output_size {output_size}, got {digit_classes}",
        )
        self.input_size, self.output_size, self.hidden_size = input_size, output_size, hidden_size
        self.epsilon, self.max_steps, self.ponder = epsilon, max_steps, ponder
        self.adaptive, self.digit_classes = adaptive, digit_classes
        self.cell = self.cell_type(input_size + adaptive, hidden_size)
        self.readout = nn.Linear(hidden_size, output_size)
        if adaptive:
            self.halting = nn.Linear(hidden_size, 1)
            nn.init.constant_(self.halting.bias, halting_bias)

    def forward(self, x: Tensor, mask: Tensor | None = None, state: Any = None) -> AdaptiveOutput:
        """Run over a sequence (T, B, I) or a single input (B, I).

        Args:
            x: inputs, T >= 1.
            mask: bool (T, B) or (B), False where padded: no substep, the state stays. None means no padding.
            state: from an earlier call; None means zeros.

        Raises:
            TypeError, ValueError: "AdaptiveRNN: argument must ..., got ...", of an LSTM accordingly.
        """
        self._check(x, mask)
        if x.dim() == 2:
            found = self.forward(x[None], None if mask is None else mask[None], state)
            return found._replace(output=found.output[0], ponder=found.ponder[0], steps=found.steps[0])
        states = self._start(x, state)
        run = self._plain
        if self.adaptive:
            readable = is_plain(self.cell_type, self.cell) and is_plain(nn.Linear, self.halting)
            run = self._adaptive if readable else self._called
        output, ponder, steps, states = run(x, states, mask)
        if mask is not None:
            output = torch.where(mask[..., None], output, torch.zeros_like(output))
        cost = ops.ponder_cost(ponder, mask, reduction=self.ponder)
        return AdaptiveOutput(output, ponder, steps, states[0] if len(states) == 1 else states, cost)

    def _projected(self, x: Tensor) -> Tensor:
        """The input's part of the gates of all timesteps, (T, B, G): substeps differ in the flag alone."""
        weight = self.cell.weight_ih[:, : self.input_size]
        return F.linear(x, weight, self.cell.bias_ih + self.cell.bias_hh)

    def _adaptive(self, x: Tensor, state: State, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, State]:
        found = ops.adaptive_recurrence(
            self._projected(x),
            state[0],
            state[1] if len(state) == 2 else None,
            self.cell.weight_ih[:, -1],
            self.cell.weight_hh,
            self.halting.weight[0],
            self.halting.bias,
            epsilon=self.epsilon,
            max_steps=self.max_steps,
            mask=mask,
            rows=self.digit_classes > 0,
        )
        last = (found.hidden[-1],) if found.cell is None else (found.hidden[-1], found.cell)
        if not self.digit_classes:
            return self.readout(found.hidden), found.ponder, found.steps, last
        values = self._probabilities(found.rows)
        batch = found.steps.numel()
        mixed = ops.halting_mean(values, found.weights, found.samples, batch=batch)
        output = torch.log(mixed.view(*found.steps.shape, self.output_size) + SMALLEST_PROBABILITY)
        return output, found.ponder, found.steps, last

    def _called(self, x: Tensor, state: State, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, State]:
        """:meth:`_adaptive` by calls of cell and halting unit in every substep."""
        found = []
        for t, inputs in enumerate(x):
            padding = None if mask is None else mask[t]
            limits: dict[str, Any] = {"epsilon": self.epsilon, "max_steps": self.max_steps, "mask": padding}
            found.append(ops.adaptive_halting(self._substep, inputs, state, **limits))
            state = found[-1].state
        ponder, steps = torch.stack([f.ponder for f in found]), torch.stack([f.steps for f in found])
        if self.digit_classes:
            output = torch.log(torch.stack([f.output[0] for f in found]) + SMALLEST_PROBABILITY)
        else:
            output = self.readout(torch.stack([f.state[0] for f in found]))
        return output, ponder, steps, state

    def _substep(self, inputs: Tensor, state: State, first: bool) -> tuple[State, State, Tensor]:
        seen = torch.cat((inputs, inputs.new_full((len(inputs), 1), float(first))), 1)
        hidden = self.cell(seen, state if len(state) == 2 else state[0])
        state = (hidden,) if isinstance(hidden, Tensor) else hidden
        output = (self._probabilities(state[0]),) if self.digit_classes else ()
        return output, state, torch.sigmoid(self.halting(state[0])).squeeze(1)

    def _plain(self, x: Tensor, state: State, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, State]:
        hidden = []
        for t, inputs in enumerate(x):
            found = self.cell(inputs, state if len(state) == 2 else state[0])
            new = (found,) if isinstance(found, Tensor) else found
            if mask is not None:
                new = tuple(torch.where(mask[t, :, None], a, b) for a, b in zip(new, state, strict=True))
            state = new
            hidden.append(state[0])
        stacked = torch.stack(hidden)
        steps = stacked.new_ones(stacked.shape[:2], dtype=torch.int64) if mask is None else mask.long()
        if self.digit_classes:
            output = torch.log(self._probabilities(stacked) + SMALLEST_PROBABILITY)
        else:
            output = self.readout(stacked)
        return output, stacked.new_zeros(steps.shape), steps, state

    def _probabilities(self, hidden: Tensor) -> Tensor:
        """Probabilities of the digits' classes: (..., H) to (..., O)."""
        digits = self.output_size // self.digit_classes
        return self.readout(hidden).unflatten(-1, (digits, self.digit_classes)).softmax(-1).flatten(-2)

    def _start(self, x: Tensor, state: Any) -> State:
        shape = (x.shape[1], self.hidden_size)
        parts = 2 if self.cell_type is nn.LSTMCell else 1
        if state is None:
            return tuple(x.new_zeros(shape) for _ in range(parts))
        found = tuple(state) if isinstance(state, tuple | list) else (state,)
        for part in found:
            checks.floating(self._name, "state", part)
        if [part.shape for part in found] != [torch.Size(shape)] * parts:
            shapes = ", ".join(str(tuple(part.shape)) for part in found)
            raise ValueError(f"{self._name}: state must be {parts} of shape (B, H) = {shape}, got {shapes}")
        return in_precision(found, self.readout.weight)

    def _check(self, x: Tensor, mask: Tensor | None) -> None:
        checks.floating(self._name, "x", x)
        if x.dim() not in (2, 3) or x.shape[-1] != self.input_size or x.shape[0] < x.dim() - 2:
            raise ValueError(
                f"{self._name}: x must have shape (T, B, {self.input_size}) with T >= 1 or "
                f"(B, {self.input_size}), got {tuple(x.shape)}"
            )
        check_precision(self._name, x, self.readout.weight)
        if mask is None:
            return
        checks.tensor(self._name, "mask", mask)
        if mask.dtype != torch.bool or mask.shape != x.shape[:-1]:
            raise ValueError(
                f"{self._name}: mask must be bool of shape {tuple(x.shape[:-1])}, got {mask.dtype} "
                f"{tuple(mask.shape)}"
            )

    @property
    def _name(self) -> str:
        return type(self).__name__


class AdaptiveRNN(AdaptiveRecurrent, paper_url=PAPER, tags=TAGS):
    """A tanh RNN with adaptive computation time; arguments and keys as of :class:`AdaptiveRecurrent`."""

    cell_type = nn.RNNCell


class AdaptiveLSTM(AdaptiveRecurrent, paper_url=PAPER, tags=TAGS):
    """An LSTM with adaptive computation time; arguments and keys as of :class:`AdaptiveRecurrent`."""

    cell_type = nn.LSTMCell
