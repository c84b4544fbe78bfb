"""The CTM of the published MNIST tutorial: a small backbone and the plainest form of every other part.

Shape letters as in ``ctm_fast.models.ctm``.
"""

from __future__ import annotations

from torch import nn

from ctm_fast.models.ctm import ContinuousThoughtMachine
from ctm_fast.nn.backbones import MNISTBackbone
from ctm_fast.nn.nlm import Squeeze, SuperLinear
from ctm_fast.nn.synapses import single_layer_synapses


class ContinuousThoughtMachineMNIST(ContinuousThoughtMachine):
    """A CTM that classifies images (B, C, H, W): two convolutions, then attention over their H / 4 x W / 4 grid.

    One gated synapse layer, two-layer neuron-level models without temperatures, first-last synchronisation, no
    positional embedding, no dropout. Arguments as for :class:`ContinuousThoughtMachine`; its forward and returns.
    """

    def __init__(
        self, iterations: int, d_model: int, d_input: int, heads: int, n_synch_out: int, n_synch_action: int,
        memory_length: int, memory_hidden_dims: int, out_dims: int,
    ) -> None:  # fmt: skip
        super().__init__(
            iterations, d_model, d_input, heads, n_synch_out, n_synch_action, synapse_depth=1,
            memory_length=memory_length, deep_nlms=True, memory_hidden_dims=memory_hidden_dims,
            do_layernorm_nlm=False, backbone_type="none", positional_embedding_type="none", out_dims=out_dims,
            neuron_select_type="first-last",
        )  # fmt: skip

    def set_backbone(self) -> None:
        """The two convolutions, keys ``backbone.{0,1,4,5}``."""
        self.backbone = MNISTBackbone(self.d_input).layers

    def get_synapses(self, synapse_depth: int, d_model: int, dropout: float) -> nn.Module:
        """One gated layer, keys ``synapses.{0,2}``."""
        return nn.Sequential(*list(single_layer_synapses(d_model, dropout).children())[1:])

    def get_neuron_level_models(
        self, deep_nlms: bool, do_layernorm_nlm: bool, memory_length: int, memory_hidden_dims: int, d_model: int,
        dropout: float,
    ) -> nn.Module:  # fmt: skip
        """The neuron-level models, keys ``trace_processor.{0,2}.{w1,b1}``."""
        return nn.Sequential(
            SuperLinear(memory_length, 2 * memory_hidden_dims, d_model, T=None), nn.GLU(-1),
            SuperLinear(memory_hidden_dims, 2, d_model, T=None), nn.GLU(-1), Squeeze(-1),
        )  # fmt: skip
