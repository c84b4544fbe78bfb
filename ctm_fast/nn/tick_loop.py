"""The recurrent part of a CTM as one module (arXiv 2505.05522, section 3), for models of your own.

Shape letters: B batch, T ticks, D neurons, d input width, M memory length, h heads, L tokens, P action pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ctm_fast.loop import run
from ctm_fast.nn.nlm import NeuronLevelModels
from ctm_fast.nn.synapses import SynapseUNET, single_layer_synapses
from ctm_fast.nn.sync import Synchronisation, clamp_decay_


class TickLoopOutput(NamedTuple):
    """What T ticks leave behind.

    Attributes:
        activations: post-activations z_1 ... z_T, (T, B, D).
        pre_activations: what the synapses put out, (T, B, D).
        state: post-activations (B, D) and pre-activation history (B, D, M) to go on from.
        attention: weights (T, B, h, 1, L) where asked for.
    """

    activations: Tensor
    pre_activations: Tensor
    state: tuple[Tensor, Tensor]
    attention: Tensor | None


class TickLoop(nn.Module):
    """Synapses, neuron-level models and, with heads, attention that is queried by a synchronisation.

    Every tick reads an input (B, d): what the attention finds among tokens, or what is given. On the CPU in
    float32 and float64 all ticks run in one native loop with a hand-written backward pass; elsewhere, under
    autocast, and for synapses or neuron-level models of your own the modules are called tick by tick.

    Args:
        d_model: neurons D.
        d_input: width d of a tick's input, and of the tokens.
        memory_length: history M that each neuron-level model sees.
        memory_hidden_dims: hidden width of the neuron-level models, 0 for a linear layer alone.
        synapse_depth: 1 for one gated layer, more for a U-Net of that many widths.
        heads: attention heads, a divisor of ``d_input``; 0 for inputs without attention.
        n_synch: neurons selected for the synchronisation that queries the attention.
        selection: one of :data:`ctm_fast.nn.sync.SELECTIONS`.
        dropout: in synapses and attention, in [0, 1].
        dropout_nlm: in the neuron-level models; None means ``dropout``.
        synapses: a module of your own, (B, d + D) -> (B, D), the input first.
        neuron_level_models: a module of your own, (B, D, M) -> (B, D), the newest history last.

    The same inputs give the same bits on every run. Another number of threads may round the last bits otherwise where
    a product is torch's: of the keys and values, and in loops of so few ticks and samples that packing the
    synapses' weights does not pay.

    ``recompute_synapses = True`` on the object keeps no synapse activations for the backward pass.

    >>> loop = TickLoop(d_model=64, d_input=16, memory_length=8, heads=4, n_synch=16)
    >>> readout = Synchronisation(d_model=64, n_synch=32)
    >>> out = loop(torch.randn(2, 10, 16), ticks=5)
    >>> readout(out.activations)[0].shape
    torch.Size([5, 2, 32])
    """

    recompute_synapses = False

    def __init__(
        self,
        d_model: int,
        d_input: int,
        memory_length: int,
        memory_hidden_dims: int = 4,
        synapse_depth: int = 1,
        heads: int = 0,
        n_synch: int = 0,
        selection: str = "random-pairing",
        dropout: float = 0.0,
        dropout_nlm: float | None = None,
        *,
        synapses: nn.Module | None = None,
        neuron_level_models: nn.Module | None = None,
    ) -> None:
        super().__init__()
        sizes = {"d_model": d_model, "d_input": d_input, "memory_length": memory_length}
        for name, value in {**sizes, "synapse_depth": synapse_depth}.items():
            _require(value >= 1, f"{name} must be at least 1, got {value}")
        _require(memory_hidden_dims >= 0, f"memory_hidden_dims must be at least 0, got {memory_hidden_dims}")
        _require(heads >= 0, f"heads must be at least 0, got {heads}")
        _require(not heads or d_input % heads == 0, f"heads must divide d_input={d_input}, got {heads}")
        _require(not heads or n_synch >= 1, f"n_synch must be at least 1 for heads={heads}, got {n_synch}")
        self.d_model, self.d_input, self.memory_length, self.heads = d_model, d_input, memory_length, heads
        if synapses is None:
            synapses = _synapses(d_model, d_input, synapse_depth, dropout)
        if neuron_level_models is None:
            rate, deep = dropout if dropout_nlm is None else dropout_nlm, memory_hidden_dims > 0
            neuron_level_models = NeuronLevelModels(
                d_model, memory_length, memory_hidden_dims, deep, dropout=rate
            )
        self.synapses, self.neuron_level_models = synapses, neuron_level_models
        self.start_activated_state = nn.Parameter(_start(d_model))
        self.start_history = nn.Parameter(_start(d_model, memory_length))
        self.synchronisation = self.q_proj = self.attention = None
        if heads:
            self.synchronisation = Synchronisation(d_model, n_synch, selection)
            self.q_proj = nn.Linear(self.synchronisation.decay_params.numel(), d_input)
            self.attention = nn.MultiheadAttention(d_input, heads, dropout, batch_first=True)

    def forward(
        self,
        inputs: Tensor,
        ticks: int | None = None,
        *,
        state: tuple[Tensor, Tensor] | None = None,
        track: bool = False,
    ) -> TickLoopOutput:
        """Run the ticks.

        Args:
            inputs: with heads, tokens (B, L, d) to attend to. Without, one input (B, d) for all ticks, or one
                per tick, (T, B, d).
            ticks: T, at least 1; may be left out where ``inputs`` has one input per tick.
            state: post-activations (B, D) and history (B, D, M) to go on from, instead of the learned start.
                The synchronisation that queries the attention starts anew.
            track: also return the attention weights.

        Raises:
            ValueError: "TickLoop: argument must ..., got ...".
        """
        batch, schedule = self._schedule(inputs, ticks)
        z, history = self._start(batch) if state is None else state
        _require(z.shape == (batch, self.d_model), _shape("state[0]", (batch, self.d_model), z))
        expected = (batch, self.d_model, self.memory_length)
        _require(history.shape == expected, _shape("state[1]", expected, history))
        tokens, given = ([inputs], None) if self.heads else ([], inputs.reshape(-1, batch, self.d_input))
        found = run.run_ticks(
            self._parts(), schedule, z, history, tokens, given, track=track, recompute=self.recompute_synapses
        )
        window = found.history[-self.memory_length :].permute(1, 2, 0)
        return TickLoopOutput(found.post, found.pre, (found.z[-1], window), found.attention)

    def _schedule(self, inputs: Tensor, ticks: int | None) -> tuple[int, tuple[int, ...]]:
        """Batch, and what each tick reads in the terms of :func:`ctm_fast.loop.run.run_ticks`."""
        one_each = not self.heads and inputs.dim() == 3
        letters = "(B, L, d)" if self.heads else "(B, d) or (T, B, d)"
        fits = inputs.dim() in ((3,) if self.heads else (2, 3)) and inputs.shape[-1] == self.d_input
        _require(fits, f"inputs must be {letters} with d = {self.d_input}, got {tuple(inputs.shape)}")
        count = len(inputs) if one_each and ticks is None else ticks
        _require(count is not None and count >= 1, f"ticks must be at least 1, got {count}")
        assert count is not None
        if not one_each:
            return inputs.shape[0], (0 if self.heads else -1,) * count
        _require(count == len(inputs), f"ticks must be the {len(inputs)} of inputs (T, B, d), got {count}")
        return inputs.shape[1], tuple(-1 - t for t in range(count))

    def _start(self, batch: int) -> tuple[Tensor, Tensor]:
        return self.start_activated_state.expand(batch, -1), self.start_history.expand(batch, -1, -1)

    def _parts(self) -> run.Parts:
        if self.synchronisation is None:
            return run.Parts(self.synapses, self.neuron_level_models)
        decay = self.synchronisation.decay_params
        clamp_decay_(decay)
        left, right = self.synchronisation.pair_indices()
        return run.Parts(
            self.synapses, self.neuron_level_models, self.q_proj, self.attention, left, right, decay
        )


def _synapses(d_model: int, d_input: int, depth: int, dropout: float) -> nn.Module:
    module = (
        single_layer_synapses(d_model, dropout)
        if depth == 1
        else SynapseUNET(d_model, depth, dropout=dropout)
    )
    with torch.no_grad():
        module.eval()(torch.zeros(1, d_input + d_model))  # gives the lazy layer its size
    return module.train()


def _start(*shape: int) -> Tensor:
    bound = sum(shape) ** -0.5
    return torch.empty(shape).uniform_(-bound, bound)


def _shape(name: str, expected: tuple[int, ...], found: Tensor) -> str:
    return f"{name} must have shape {expected}, got {tuple(found.shape)}"


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(f"TickLoop: {message}")
