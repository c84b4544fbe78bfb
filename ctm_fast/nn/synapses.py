"""Synapse models: the network that connects the neurons (arXiv 2505.05522, section 3.2, eq. 1).

All take the concatenation of the attended input and the post-activations, (B, d_input + d_model), and return
the pre-activations (B, d_model).
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from torch import Tensor, nn


def single_layer_synapses(d_model: int, dropout: float = 0.0) -> nn.Sequential:
    """Dropout, lazy Linear to ``2 d_model``, GLU, LayerNorm: (B, any) -> (B, d_model). Keys ``1.*``, ``3.*``.

    ``dropout`` in [0, 1].
    """
    return nn.Sequential(nn.Dropout(dropout), *_gated_layer(d_model))


def two_layer_synapses(d_model: int, dropout: float = 0.0) -> nn.Sequential:
    """The single layer and a second Linear, GLU, LayerNorm. Keys ``1.*``, ``3.*``, ``4.*`` and ``6.*``."""
    return nn.Sequential(nn.Dropout(dropout), *_gated_layer(d_model), *_gated_layer(d_model))


def _gated_layer(d_model: int) -> list[nn.Module]:
    return [nn.LazyLinear(2 * d_model), nn.GLU(), nn.LayerNorm(d_model)]


def _projection(in_dims: int, out_dims: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Dropout(dropout), nn.Linear(in_dims, out_dims), nn.LayerNorm(out_dims), nn.SiLU())


class SynapseUNET(nn.Module):
    """A U-Net of fully connected layers with a skip connection at every width.

    ``depth`` widths fall linearly from ``out_dims`` to ``minimum_width``; the paper counts ``2 * depth``.

    Args:
        out_dims: width of the input level and of the output (``d_model``).
        depth: number of widths, at least 2.
        minimum_width: width of the bottleneck.
        dropout: dropout probability before every projection but the first, in [0, 1].

    Raises ``ValueError`` for a depth below 2.
    """

    def __init__(self, out_dims: int, depth: int, minimum_width: int = 16, dropout: float = 0.0) -> None:
        super().__init__()
        if depth < 2:
            raise ValueError(f"SynapseUNET: depth must be at least 2, got {depth}")
        self.width_out = out_dims
        self.n_deep = depth
        widths = [int(width) for width in np.linspace(out_dims, minimum_width, depth)]
        self.first_projection = nn.Sequential(nn.LazyLinear(widths[0]), nn.LayerNorm(widths[0]), nn.SiLU())
        self.down_projections = nn.ModuleList()
        self.up_projections = nn.ModuleList()
        self.skip_lns = nn.ModuleList()
        for wide, narrow in pairwise(widths):
            self.down_projections.append(_projection(wide, narrow, dropout))
            self.up_projections.append(_projection(narrow, wide, dropout))
            self.skip_lns.append(nn.LayerNorm(wide))

    def forward(self, x: Tensor) -> Tensor:  # (B, d_input + out_dims) -> (B, out_dims)
        levels = [self.first_projection(x)]
        for down in self.down_projections:
            levels.append(down(levels[-1]))
        y: Tensor = levels[-1]
        for i in reversed(range(len(self.up_projections))):
            y = self.skip_lns[i](self.up_projections[i](y) + levels[i])
        return y
