"""Transformer encoder layers (arXiv 1706.03762, section 3) whose positional term reaches queries and keys alone.

Shape letters: B batch, L tokens, d ``d_model``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU}


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward network, each with a residual connection and a LayerNorm.

    Parameters have the names and shapes of ``torch.nn.TransformerEncoderLayer``, which this layer equals without a
    positional term.

    Args:
        d_model: width d, a multiple of ``heads``.
        heads: attention heads, at least 1.
        d_feedforward: hidden width of the feed-forward network, at least 1.
        dropout: of attention weights, hidden activations and both residual branches, in [0, 1].
        activation: "relu" or "gelu".
        pre_norm: LayerNorm before each part instead of behind its residual sum.

    Raises:
        ValueError: an argument is outside these.
    """

    def __init__(
        self,
        d_model: int,
        heads: int,
        d_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str = "relu",
        pre_norm: bool = False,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"EncoderLayer: activation must be one of {tuple(ACTIVATIONS)}, got {activation!r}"
            )
        if min(d_model, heads, d_feedforward) < 1 or d_model % heads:
            sizes = f"{d_model}, {heads}, {d_feedforward}"
            raise ValueError(
                f"EncoderLayer: sizes must be at least 1 and d_model a multiple of heads, got {sizes}"
            )
        if not 0 <= dropout <= 1:
            raise ValueError(f"EncoderLayer: dropout must be in [0, 1], got {dropout}")
        self.self_attn = nn.MultiheadAttention(d_model, heads, dropout, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(d_model, d_feedforward), nn.Linear(d_feedforward, d_model)
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.dropout, self.dropout1, self.dropout2 = (nn.Dropout(dropout) for _ in range(3))
        self.activation: nn.Module = ACTIVATIONS[activation]()
        self.pre_norm = pre_norm

    def forward(self, x: Tensor, positional: Tensor | None = None) -> Tensor:
        """Tokens (B, L, d) -> (B, L, d).

        Args:
            x: floating point, of the parameters' dtype.
            positional: what is added to queries and keys before their projection, broadcast against ``x``; values
                go without it.
        """
        if self.pre_norm:
            x = x + self._attend(self.norm1(x), positional)
            return x + self._feed_forward(self.norm2(x))
        x = self.norm1(x + self._attend(x, positional))
        y: Tensor = self.norm2(x + self._feed_forward(x))
        return y

    def _attend(self, x: Tensor, positional: Tensor | None) -> Tensor:
        placed = x if positional is None else x + positional
        attended, _ = self.self_attn(placed, placed, x, need_weights=False)
        y: Tensor = self.dropout1(attended)
        return y

    def _feed_forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.dropout2(self.linear2(self.dropout(self.activation(self.linear1(x)))))
        return y


class Encoder(nn.Module):
    """Encoder layers that share one learnable positional term, with a last LayerNorm where they begin with theirs.

    Args:
        length: tokens L, at least 1.
        layers: how many, at least 1.
        d_model, heads, d_feedforward, dropout, activation, pre_norm: see :class:`EncoderLayer`.

    Raises:
        ValueError: an argument is outside these, or the forward's tokens are not (B, L, d).
    """

    def __init__(
        self,
        length: int,
        layers: int,
        d_model: int,
        heads: int,
        d_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str = "relu",
        pre_norm: bool = False,
    ) -> None:
        super().__init__()
        if min(length, layers) < 1:
            raise ValueError(f"Encoder: length and layers must be at least 1, got {length} and {layers}")
        self.layers = nn.ModuleList(
            EncoderLayer(d_model, heads, d_feedforward, dropout, activation, pre_norm) for _ in range(layers)
        )
        self.positional = nn.Parameter(torch.empty(length, d_model).normal_(std=d_model**-0.5))
        self.norm: nn.Module = nn.LayerNorm(d_model) if pre_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, L, d) -> (B, L, d)."""
        if x.dim() != 3 or x.shape[1:] != self.positional.shape:
            length, width = self.positional.shape
            raise ValueError(f"Encoder: x must have shape (B, {length}, {width}), got {tuple(x.shape)}")
        for layer in self.layers:
            x = layer(x, self.positional)
        y: Tensor = self.norm(x)
        return y
