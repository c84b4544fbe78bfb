"""The recurrent transformer with NTM memory (RTNTM): a transformer reads its memory and the last few inputs,
recurrent layers carry its state, and heads address the memory as in arXiv 1410.5401.

Shape letters: B batch, T steps, V ``vocabulary``, D ``d_model`` and width of a memory slot, N ``slots``, w
``window``, R ``read_heads``, W ``write_heads``, S ``state_layers``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctm_fast import ops
from ctm_fast.models.checks import (
    check_part,
    check_state,
    in_precision,
    require,
    require_number,
    require_positive,
)
from ctm_fast.models.hub import HubMixin
from ctm_fast.models.ntm_state import MemoryState, NtmTrace
from ctm_fast.models.rtntm_encoder import SteppedEncoder, build_encoder
from ctm_fast.nn.backbones import IndexEmbeddings
from ctm_fast.ops import checks


class RtntmState(NamedTuple):
    """What the steps so far leave for the next one: the last embedded inputs, hidden states, the memory."""

    inputs: Tensor  # (B, P, D), P <= w - 1
    hidden: Tensor  # (S, B, D)
    memory: MemoryState
    steps: int


class RtntmOutput(NamedTuple):
    """What :class:`RTNTM` returns: logits, the state to go on from, and the trace where it was asked for."""

    logits: Tensor  # (B, T, V)
    state: RtntmState
    trace: NtmTrace | None


class TokenEmbedding(nn.Sequential):
    """Two 1x1 convolutions over one-hot tokens, each with batch norm and GELU: int64 (B, T) -> (B, T, D).

    A token outside [0, V) raises ``RuntimeError``.

    Args:
        vocabulary: V.
        d_model: D; the width between the convolutions is (V + D) // 2.
    """

    def __init__(self, vocabulary: int, d_model: int) -> None:
        inner = (vocabulary + d_model) // 2
        first = (nn.Conv1d(vocabulary, inner, 1), nn.BatchNorm1d(inner), nn.GELU())
        second = (nn.Conv1d(inner, d_model, 1), nn.BatchNorm1d(d_model), nn.GELU())
        super().__init__(*first, *second)
        self.vocabulary = vocabulary

    def forward(self, tokens: Tensor) -> Tensor:
        one_hot = F.one_hot(tokens, self.vocabulary).transpose(1, 2)
        embedded: Tensor = super().forward(one_hot.to(next(self.parameters()).dtype))
        return embedded.transpose(1, 2)


class RTNTM(nn.Module, HubMixin):
    """A transformer controller with recurrent state and several read and write heads on an external memory.

    At every step the encoder sees what was read at the step before and the last w embedded inputs. Its output
    at the last position goes through the recurrent layers; the last of them feeds three two-layer perceptrons
    (hidden width D, ReLU): the logits, and the raw parameters of the read and of the write heads for
    ``ops.ntm_step``. Memory and state start at zero, all heads on the first slot.

    In training the batch norm of the embedding mixes all positions; in evaluation the model is causal.

    The encoder, its layers and their self-attention are read, not called: hooks on them do not run, and no
    other module may take their place. All other modules are called.

    Args:
        vocabulary: tokens V.
        d_model: width D of everything and of a slot.
        heads: attention heads; they divide D.
        layers: encoder layers.
        slots: N. No parameter depends on it: it may be changed afterwards.
        window: w, at least 1.
        read_heads, write_heads: R and W.
        state_layers: tanh recurrent layers S.
        dropout: in the encoder, in [0, 1).
        positions: length of a fixed sinusoidal code of the step, added to the embedded inputs; 0 for none.
        order: "previous_read" (a step reads with the weightings of the step before), "read_write" or
            "write_read"; see ``ops.NtmLayout``.
        eps: inside both roots of the cosine, whose gradient at an empty slot is of the order 1 / sqrt(eps).
            The published value is 1e-12.

    Raises:
        ArgumentError: a size below 1, a dropout outside its range, or heads that do not divide D.
    """

    def __init__(
        self,
        vocabulary: int,
        d_model: int,
        heads: int,
        layers: int = 1,
        slots: int = 128,
        window: int = 8,
        read_heads: int = 1,
        write_heads: int = 1,
        state_layers: int = 1,
        dropout: float = 0.0,
        positions: int = 0,
        order: str = "previous_read",
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        require_positive(vocabulary=vocabulary, d_model=d_model, heads=heads, layers=layers, slots=slots)
        require_positive(window=window, state_layers=state_layers)
        require_positive(read_heads=read_heads, write_heads=write_heads)
        require(d_model % heads == 0, f"heads must divide d_model={d_model}, got {heads}")
        require_number(dropout=dropout, positions=positions)
        require(0 <= dropout < 1, f"dropout must lie in [0, 1), got {dropout}")
        require(positions >= 0, f"positions must not be negative, got {positions}")
        self.vocabulary, self.d_model, self.slots, self.window = vocabulary, d_model, slots, window
        self.layout = ops.NtmLayout(read_heads, write_heads, d_model, order=order, add="tanh", eps=eps)
        self.embedding = TokenEmbedding(vocabulary, d_model)
        self.positions = IndexEmbeddings(positions, d_model) if positions else None
        self.encoder = build_encoder(d_model, heads, layers, dropout)
        self.state = nn.ModuleList(nn.RNNCell(d_model, d_model) for _ in range(state_layers))
        self.token_head = _perceptron(d_model, vocabulary)
        addressing = d_model + self.layout.shift + 3
        self.read_head = _perceptron(d_model, read_heads * addressing)
        self.write_head = _perceptron(d_model, write_heads * (addressing + 2 * d_model))

    def initial_state(self, batch: int, slots: int | None = None) -> RtntmState:
        """The state before the first step of ``batch`` samples; ``slots`` replaces the model's N."""
        slots = self.slots if slots is None else slots
        checks.integer("RTNTM", "slots", slots, 1)
        like, width, heads = next(self.parameters()), self.d_model, self.layout
        first = F.one_hot(torch.zeros((), dtype=torch.int64, device=like.device), slots)
        memory = MemoryState(
            memory=like.new_zeros(batch, len(first), width),
            reads=like.new_zeros(batch, heads.read_heads, width),
            read_weights=first.to(like.dtype).repeat(batch, heads.read_heads, 1),
            write_weights=first.to(like.dtype).repeat(batch, heads.write_heads, 1),
        )
        hidden = like.new_zeros(len(self.state), batch, width)
        return RtntmState(like.new_zeros(batch, 0, width), hidden, memory, 0)

    def forward(
        self,
        tokens: Tensor,
        state: RtntmState | None = None,
        *,
        slots: int | None = None,
        trace: bool = False,
    ) -> RtntmOutput:
        """Run T steps.

        Args:
            tokens: int64 (B, T) in [0, V), T at least 1.
            state: what an earlier call returned; None for :meth:`initial_state`.
            slots: N of the initial state where it is not the model's own; not beside a ``state``.
            trace: also return memory and weightings after every step, detached.

        Raises:
            TypeError, ValueError, IndexError: "RTNTM: argument must ..., got ...".
        """
        self._check_tokens(tokens)
        state = self._start(tokens, state, slots)
        inputs = torch.cat((state.inputs, self._embed(tokens, state.steps)), 1)
        encoder = SteppedEncoder(self.encoder, inputs, tokens.shape[1], self.window)
        hidden, memory = state.hidden.unbind(), state.memory
        tops, memories = [], []
        for step in range(tokens.shape[1]):
            hidden = self._recur(encoder.step(step, memory.reads), hidden)
            memory = self._access(hidden[-1], memory)
            tops.append(hidden[-1])
            memories += [memory] if trace else []
        logits = self.token_head(torch.stack(tops, 1))
        kept = inputs[:, max(0, inputs.shape[1] - self.window + 1) :]
        after = RtntmState(kept, torch.stack(hidden), memory, state.steps + tokens.shape[1])
        return RtntmOutput(logits, after, NtmTrace.of(memories) if trace else None)

    def _check_tokens(self, tokens: object) -> None:
        found = checks.tensor("RTNTM", "tokens", tokens)
        if found.dtype != torch.int64:
            raise TypeError(f"RTNTM: tokens must be torch.int64, got {found.dtype}")
        if found.dim() != 2 or found.shape[1] < 1:
            raise ValueError(f"RTNTM: tokens must have shape (B, T), T >= 1, got {tuple(found.shape)}")
        if not (torch.compiler.is_compiling() or found.is_meta):
            checks.indices("RTNTM", "tokens", found, self.vocabulary)

    def _start(self, tokens: Tensor, state: RtntmState | None, slots: int | None) -> RtntmState:
        batch, steps = tokens.shape
        if state is None:
            state = self.initial_state(batch, slots)
        else:
            check_state("RTNTM", state, RtntmState)
            if slots is not None:
                raise ValueError(f"RTNTM: slots must be None beside a state, got {slots}")
            state.memory.check("RTNTM", batch, self.layout)
            check_part(
                "RTNTM", "inputs", state.inputs, (batch, state.inputs.shape[1], self.d_model), "B, P, D"
            )
            check_part("RTNTM", "hidden", state.hidden, (len(self.state), batch, self.d_model), "S, B, D")
            state = in_precision(state, next(self.parameters()))
        if self.positions is not None and state.steps + steps > len(self.positions.embedding):
            raise ValueError(
                f"RTNTM: tokens must end within positions={len(self.positions.embedding)} steps, "
                f"got {state.steps + steps}"
            )
        return state

    def _embed(self, tokens: Tensor, start: int) -> Tensor:
        embedded: Tensor = self.embedding(tokens)
        if self.positions is None:
            return embedded
        return embedded + self.positions(torch.arange(start, start + tokens.shape[1], device=tokens.device))

    def _recur(self, below: Tensor, hidden: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The next hidden states, (B, D) each, from the lowest layer to the highest."""
        new = []
        for cell, old in zip(self.state, hidden, strict=True):
            below = cell(below, old)
            new.append(below)
        return tuple(new)

    def _access(self, hidden: Tensor, memory: MemoryState) -> MemoryState:
        return memory.step(torch.cat((self.read_head(hidden), self.write_head(hidden)), 1), self.layout)


def _perceptron(d_model: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(d_model, d_model), nn.ReLU(), nn.Linear(d_model, outputs))
