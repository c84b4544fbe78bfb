"""Neuron-level models: a private network per neuron over its own history (arXiv 2505.05522, section 3.3).

Shape letters: B batch, N neurons, M history (``memory_length``), H hidden width (``memory_hidden_dims``).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Squeeze(nn.Module):
    """Remove dimension ``dim`` where its size is one."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return x.squeeze(self.dim)


class SuperLinear(nn.Module):
    """``N`` independent linear maps, one per neuron, with a shared learnable temperature.

    ``y[b, n, o] = (sum_i norm(drop(x))[b, n, i] * w1[i, o, n] + b1[0, n, o]) / T``

    Args:
        in_dims: inputs per neuron.
        out_dims: outputs per neuron; with one output the last dimension is dropped.
        N: number of neurons.
        T: initial temperature; None for maps without one.
        do_norm: normalise the inputs of each neuron with one LayerNorm shared by all neurons.
        dropout: probability of dropping an input, in [0, 1].

    Parameters ``w1`` (in_dims, out_dims, N) start uniform in +-1/sqrt(in_dims + out_dims), ``b1``
    (1, N, out_dims) at zero, ``T`` (1,) at ``T``.
    """

    def __init__(
        self, in_dims: int, out_dims: int, N: int, T: float | None = 1.0, do_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if min(in_dims, out_dims, N) < 1:
            raise ValueError(f"SuperLinear: sizes must be at least 1, got {in_dims}, {out_dims}, {N}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"SuperLinear: dropout must be in [0, 1], got {dropout}")
        self.in_dims = in_dims
        self.dropout: nn.Module = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        self.layernorm: nn.Module = nn.LayerNorm(in_dims) if do_norm else nn.Identity()
        bound = 1 / math.sqrt(in_dims + out_dims)
        self.w1 = nn.Parameter(torch.empty(in_dims, out_dims, N).uniform_(-bound, bound))
        self.b1 = nn.Parameter(torch.zeros(1, N, out_dims))
        temperature = torch.tensor([T], dtype=torch.get_default_dtype()) if T is not None else None
        self.T = nn.Parameter(temperature) if temperature is not None else None

    def forward(self, x: Tensor) -> Tensor:  # (B, N, in_dims) -> (B, N, out_dims) or (B, N)
        x = self.layernorm(self.dropout(x))
        y = torch.einsum("bni,ion->bno", x, self.w1) + self.b1
        return y.squeeze(-1) / self.T if self.T is not None else y.squeeze(-1)


class NeuronLevelModels(nn.Sequential):
    """All neurons' models as one module: history (B, N, M) -> post-activations (B, N).

    Deep: SuperLinear(M -> 2H), GLU, SuperLinear(H -> 2), GLU. Shallow: SuperLinear(M -> 2), GLU.
    State-dict keys: ``0.0.{w1,b1,T}`` and, when deep, ``0.2.{w1,b1,T}``.

    Args:
        d_model: number of neurons N.
        memory_length: history length M, at least 1; the last column is the newest.
        memory_hidden_dims: hidden width H; only read when ``deep``.
        deep: two layers instead of one.
        do_layernorm: LayerNorm before each layer.
        dropout: dropout probability before each layer.
    """

    def __init__(
        self,
        d_model: int,
        memory_length: int,
        memory_hidden_dims: int = 4,
        deep: bool = True,
        do_layernorm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        def layer(in_dims: int, out_dims: int) -> list[nn.Module]:
            linear = SuperLinear(in_dims, out_dims, N=d_model, do_norm=do_layernorm, dropout=dropout)
            return [linear, nn.GLU(dim=-1)]

        if deep:
            layers = layer(memory_length, 2 * memory_hidden_dims) + layer(memory_hidden_dims, 2)
        else:
            layers = layer(memory_length, 2)
        super().__init__(nn.Sequential(*layers, Squeeze(-1)))
