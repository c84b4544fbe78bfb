"""Synchronisation: decayed inner products of pairs of neurons (arXiv 2505.05522, section 3.4, eqs 5-9).

Shape letters: B batch, D neurons, n selected neurons, P pairs.

Kinds of selection, each with its pairs:

``first``, ``last``    the first or last n neurons; all i <= j of them, P = n (n + 1) / 2
``random``             n left and n right neurons; left_i with right_j for i <= j, P = n (n + 1) / 2
``random-pairing``     n left and n right neurons; left_k with right_k, P = n
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ctm_fast.ops.sync import sync as ops_sync

SELECTIONS = ("first", "last", "random", "random-pairing")
MAX_DECAY = 15.0
_exporting = getattr(torch.compiler, "is_exporting", lambda: False)  # torch has it from 2.7 on


def is_exporting() -> bool:
    """Whether ``torch.export`` is at work; asked while tracing, as torch 2.11 takes a yes for granted there."""
    return bool(_exporting())


# As torch.compiler.assume_constant_result does, which would import the compiler.
is_exporting.__dict__["_dynamo_marked_constant"] = True


def representation_size(selection: str, n_synch: int) -> int:
    """Number of pairs P that ``n_synch`` neurons give; ``ValueError`` for an unknown selection."""
    _check_selection(selection)
    return n_synch if selection == "random-pairing" else n_synch * (n_synch + 1) // 2


def select_neurons(selection: str, d_model: int, n_synch: int, n_self: int = 0) -> tuple[Tensor, Tensor]:
    """Draw the left and the right neurons, int64 (n_synch,) each.

    Random kinds draw with replacement from numpy's global generator, left before right. ``random-pairing``
    copies its first ``n_self`` right neurons from the left ones: those are synchronised with themselves.
    ``first`` and ``last`` need ``n_synch`` <= ``d_model``. Raises ``ValueError`` for more, or an unknown selection.
    """
    _check_selection(selection)
    if selection in ("first", "last"):
        if n_synch > d_model:
            raise ValueError(f"synchronisation: n_synch must be at most d_model={d_model}, got {n_synch}")
        start = 0 if selection == "first" else d_model - n_synch
        left = torch.arange(start, start + n_synch)
        return left, left
    if selection == "random":
        n_self = 0
    drawn_left = np.random.choice(np.arange(d_model), size=n_synch)
    drawn_right = np.random.choice(np.arange(d_model), size=n_synch - n_self)
    return torch.tensor(drawn_left), torch.tensor(np.concatenate((drawn_left[:n_self], drawn_right)))


def pair_indices(selection: str, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Flat neuron indices of every pair, int64 (P,) each: pair p is ``z[:, left[p]] * z[:, right[p]]``."""
    _check_selection(selection)
    if selection == "random-pairing":
        return left, right
    rows, columns = torch.triu_indices(left.numel(), left.numel(), device=left.device)
    return left[rows], right[columns]


def pair_products(selection: str, activated_state: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Products of all pairs, (B, D) -> (B, P), the dense kinds through the full outer product.

    ``left`` and ``right`` as from :func:`select_neurons`; plain PyTorch, any floating-point dtype.
    """
    _check_selection(selection)
    n_synch = left.numel()
    if selection == "first":
        chosen_left = chosen_right = activated_state[:, :n_synch]
    elif selection == "last":
        chosen_left = chosen_right = activated_state[:, -n_synch:]
    else:
        chosen_left, chosen_right = activated_state[:, left], activated_state[:, right]
    if selection == "random-pairing":
        return chosen_left * chosen_right
    outer = chosen_left.unsqueeze(2) * chosen_right.unsqueeze(1)
    rows, columns = torch.triu_indices(n_synch, n_synch, device=outer.device)
    return outer[:, rows, columns]


def decayed_update(
    pairs: Tensor, alpha: Tensor | None, beta: Tensor | None, r: Tensor
) -> tuple[Tensor, Tensor]:
    """One tick of the recurrence: ``alpha <- r alpha + pairs``, ``beta <- r beta + 1``; None starts it.

    Args:
        pairs: (B, P) products of this tick.
        alpha, beta: (B, P) of the tick before, or both None.
        r: decay factors exp(-decay), broadcastable to (B, P).
    """
    if alpha is None or beta is None:
        return pairs, torch.ones_like(pairs)
    return r * alpha + pairs, r * beta + 1


def clamp_decay_(*decays: Tensor) -> None:
    """Bring raw decays into [0, 15] in their own storage, outside autograd.

    The gradient of what is computed from them afterwards still reaches a decay that lies on a bound. Their
    version counters stay, so that graphs recorded before remain valid: a value can only change here after an
    optimiser has moved it.

    ``torch.export`` does not move parameters: :func:`within_bounds` is what to read there.
    """
    if is_exporting():
        return
    for decay in decays:
        compiling = torch.compiler.is_compiling()  # cannot ask what follows
        if not compiling and decay.is_inference() and not torch.is_inference_mode_enabled():
            decay.data = decay.data.clone()  # a published forward under inference mode left it read-only
        decay.data.clamp_(0, MAX_DECAY)


def within_bounds(decay: Tensor) -> Tensor:
    """A decay after :func:`clamp_decay_`: itself, or a clamped copy in a graph that is exported."""
    return decay.clamp(0, MAX_DECAY) if is_exporting() else decay


def decay_factors(decay: Tensor) -> Tensor:
    """Factors exp(-decay) of decays that :func:`clamp_decay_` brought into their bounds, of the same shape."""
    return torch.exp(-within_bounds(decay))


class Wired(nn.Module):
    """A module whose buffers ``*neuron_indices_{left,right}`` select some of its ``d_model`` neurons.

    A state dict with indices outside [0, d_model) is refused.
    """

    d_model: int

    def state_problems(self, state: Mapping[str, Any], prefix: str) -> list[str]:
        """What is wrong with the values of ``state`` under ``prefix``, in words."""
        own = [prefix + name for name, _ in self.named_buffers(recurse=False) if "neuron_indices" in name]
        given = [(key, state[key]) for key in own if key in state and not state[key].is_meta]
        problems = []
        for key, indices in given:
            if indices.is_floating_point() or indices.is_complex():
                problems.append(f"{key} of {indices.dtype}, not integers")
                continue
            lowest, highest = map(int, indices.aminmax()) if indices.numel() else (0, 0)
            if not 0 <= lowest <= highest < self.d_model:
                problems.append(f"{key} from {lowest} to {highest}, not in [0, {self.d_model})")
        return problems

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        metadata: Any,
        strict: bool,
        missing: Any,
        unknown: Any,
        errors: Any,
    ) -> None:
        errors += self.state_problems(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unknown, errors)


class Synchronisation(Wired):
    """Synchronisation of one set of neuron pairs with learnable decays, for use in a model of your own.

    Args:
        d_model: number of neurons D.
        n_synch: number of selected neurons n.
        selection: one of :data:`SELECTIONS`.
        n_self: self-pairs of ``random-pairing``, less than ``n_synch``.

    Raises ``ValueError`` for an unknown selection, an ``n_self`` outside [0, n_synch), or more neurons than there are.

    State-dict keys: ``decay_params`` (P,), zeros at first; ``neuron_indices_{left,right}`` (n,) int64.

    >>> sync = Synchronisation(d_model=64, n_synch=8)
    >>> state = None
    >>> for z in torch.randn(5, 2, 64):
    ...     s, state = sync(z, state)
    >>> s.shape
    torch.Size([2, 8])
    """

    neuron_indices_left: Tensor
    neuron_indices_right: Tensor

    def __init__(
        self, d_model: int, n_synch: int, selection: str = "random-pairing", n_self: int = 0
    ) -> None:
        super().__init__()
        if not 0 <= n_self < n_synch:
            raise ValueError(f"Synchronisation: n_self must be in [0, n_synch={n_synch}), got {n_self}")
        left, right = select_neurons(selection, d_model, n_synch, n_self)
        self.d_model = d_model
        self.selection = selection
        self.register_buffer("neuron_indices_left", left)
        self.register_buffer("neuron_indices_right", right)
        self.decay_params = nn.Parameter(torch.zeros(representation_size(selection, n_synch)))

    def pair_indices(self) -> tuple[Tensor, Tensor]:
        """Flat indices of every pair, see :func:`pair_indices`."""
        return pair_indices(self.selection, self.neuron_indices_left, self.neuron_indices_right)

    def forward(
        self, activations: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Go on from ``state``, which None starts.

        Args:
            activations: post-activations of one tick (B, D) or of several (T, B, D).
            state: what the call before returned.

        Returns:
            Synchronisation (B, P) or (T, B, P), and the state (B, P) and (P) for the next call. One call with
            T ticks equals T calls with one each, gradients included.
        """
        one = activations.dim() == 2
        clamp_decay_(self.decay_params)
        alpha, beta = state or (None, None)
        ticks = activations.unsqueeze(0) if one else activations
        decay = within_bounds(self.decay_params)
        s, alpha, beta = ops_sync(ticks, *self.pair_indices(), decay, alpha, beta, last=one)
        return s, (alpha, beta)


def _check_selection(selection: str) -> None:
    if selection not in SELECTIONS:
        raise ValueError(f"synchronisation: selection must be one of {SELECTIONS}, got {selection!r}")
