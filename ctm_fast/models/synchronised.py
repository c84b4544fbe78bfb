"""The synchronisation of a CTM: neurons, decays and recurrence (arXiv 2505.05522, section 3.4).

Shape letters: B batch, D neurons, S synchronised pairs. A model synchronises "out" and mostly "action" too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ctm_fast.models.checks import require
from ctm_fast.nn.sync import (
    Wired,
    clamp_decay_,
    decayed_update,
    pair_indices,
    pair_products,
    representation_size,
    select_neurons,
)

NEURON_SELECT_TYPES = ("first-last", "random", "random-pairing")


class Synchronised(Wired):
    """Parameters, buffers and recurrence of the synchronisations; every piece may be overridden.

    A subclass sets ``d_model``, ``neuron_select_type``, ``n_synch_out`` and ``n_synch_action``, then calls
    :meth:`build_synchronisation`.
    """

    neuron_select_type: str
    n_synch_out: int
    n_synch_action: int
    decay_params_action: nn.Parameter
    decay_params_out: nn.Parameter

    def verify_selection(self) -> None:
        """Raise ``ArgumentError`` unless the selection is known and fits the number of neurons."""
        require(
            self.neuron_select_type in NEURON_SELECT_TYPES,
            f"neuron_select_type must be one of {NEURON_SELECT_TYPES}, got {self.neuron_select_type!r}",
        )
        if self.neuron_select_type == "first-last":
            needed = self.n_synch_out + self.n_synch_action
            require(
                self.d_model >= needed,
                f"d_model must be at least n_synch_out + n_synch_action = {needed}, got {self.d_model}",
            )

    def build_synchronisation(self, n_random_pairing_self: int) -> None:
        """Select the neurons and register the decays: action first, and only if it has neurons, then out."""
        self.neuron_select_type_out, self.neuron_select_type_action = self.get_neuron_select_type()
        self.synch_representation_size_action = self.calculate_synch_representation_size(self.n_synch_action)
        self.synch_representation_size_out = self.calculate_synch_representation_size(self.n_synch_out)
        if self.synch_representation_size_action:
            self.set_synchronisation_parameters("action", self.n_synch_action, n_random_pairing_self)
        self.set_synchronisation_parameters("out", self.n_synch_out, n_random_pairing_self)

    def get_neuron_select_type(self) -> tuple[str, str | None]:
        """Selections of the output and of the action synchronisation, see ``ctm_fast.nn.select_neurons``."""
        if self.neuron_select_type == "first-last":
            return "first", "last"
        return self.neuron_select_type, self.neuron_select_type

    def calculate_synch_representation_size(self, n_synch: int) -> int:
        """Pairs that ``n_synch`` neurons give."""
        dense = self.neuron_select_type == "first-last"
        return representation_size("first" if dense else self.neuron_select_type, n_synch)

    def initialize_left_right_neurons(
        self, synch_type: str, d_model: int, n_synch: int, n_random_pairing_self: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Draw the neurons of one synchronisation, int64 (n_synch,) each."""
        return select_neurons(self._selection(synch_type), d_model, n_synch, n_random_pairing_self)

    def set_synchronisation_parameters(
        self, synch_type: str, n_synch: int, n_random_pairing_self: int = 0
    ) -> None:
        """Register the neurons and the decays of the synchronisation ``synch_type``, "action" or "out"."""
        if self.neuron_select_type == "random-pairing":
            require(
                n_synch > n_random_pairing_self,
                f"n_synch_{synch_type} must exceed n_random_pairing_self={n_random_pairing_self}, "
                f"got {n_synch}",
            )
        left, right = self.initialize_left_right_neurons(
            synch_type, self.d_model, n_synch, n_random_pairing_self
        )
        self.register_buffer(f"{synch_type}_neuron_indices_left", left)
        self.register_buffer(f"{synch_type}_neuron_indices_right", right)
        size = self.calculate_synch_representation_size(n_synch)
        self.register_parameter(f"decay_params_{synch_type}", nn.Parameter(torch.zeros(size)))

    def compute_synchronisation(
        self,
        activated_state: Tensor,
        decay_alpha: Tensor | None,
        decay_beta: Tensor | None,
        r: Tensor,
        synch_type: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Add one tick to a synchronisation (equations 5 to 9).

        Args:
            activated_state: post-activations (B, D).
            decay_alpha, decay_beta: (B, S) of the tick before, None before the first.
            r: decay factors (B, S).
            synch_type: "action" or "out".

        Returns:
            Synchronisation, new alpha and new beta, (B, S) each.
        """
        left, right = self._neurons(synch_type)
        pairs = pair_products(self._selection(synch_type), activated_state, left, right)
        alpha, beta = decayed_update(pairs, decay_alpha, decay_beta, r)
        return alpha / torch.sqrt(beta), alpha, beta

    def synchronisation_pairs(self, synch_type: str) -> tuple[Tensor, Tensor]:
        """Flat neuron indices of every pair of "action" or "out", int64 (S,) each."""
        return pair_indices(self._selection(synch_type), *self._neurons(synch_type))

    def clamp_decays(self) -> None:
        """Bring the decays into [0, 15] in place; the gradient still reaches a decay on a bound."""
        clamp_decay_(self.decay_params_action, self.decay_params_out)

    def _selection(self, synch_type: str) -> str:
        require(synch_type in ("action", "out"), f"synch_type must be 'action' or 'out', got {synch_type!r}")
        selection: str = getattr(self, f"neuron_select_type_{synch_type}")
        return selection

    def _neurons(self, synch_type: str) -> tuple[Tensor, Tensor]:
        left: Tensor = getattr(self, f"{synch_type}_neuron_indices_left")
        right: Tensor = getattr(self, f"{synch_type}_neuron_indices_right")
        return left, right
