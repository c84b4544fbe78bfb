"""The transformer encoder of the RTNTM, computed for its last position only, one step after the other.

What does not depend on the read vectors is computed for all steps at once: the windows of embedded inputs and
the first layer's queries, keys and values of them. The last layer computes one query per step. The result is
that of the whole encoder at its last position.

Shape letters: B batch, T steps, D width, h attention heads, d = D / h, w ``window``, R read vectors, L tokens
of a step's context (R and at most w), Q queries (L, or 1 in the last layer).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def build_encoder(d_model: int, heads: int, layers: int, dropout: float) -> nn.TransformerEncoder:
    """Pre-norm encoder with feed-forward width 4 D, ReLU, batch first, and a layer norm at its end."""
    layer = nn.TransformerEncoderLayer(
        d_model, heads, 4 * d_model, dropout, batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(d_model), enable_nested_tensor=False)


class SteppedEncoder:
    """An encoder over [read vectors | last w embedded inputs], step by step, at its last position.

    Args:
        encoder: of :func:`build_encoder`; not copied.
        inputs: (B, P + T, D), embedded inputs: P <= w - 1 earlier ones, then those of the T steps.
        steps: T.
        window: w, at least 1. Near the start of a sequence a step sees the inputs that there are.
    """

    def __init__(self, encoder: nn.TransformerEncoder, inputs: Tensor, steps: int, window: int) -> None:
        self.norm = encoder.norm or nn.Identity()
        self.first, *self.others = [_Layer(layer) for layer in encoder.layers]
        missing = window - 1 - (inputs.shape[1] - steps)
        self.absent = [max(0, missing - step) for step in range(steps)]
        normed = self.first.norm(inputs)
        query = self.first.query(normed)
        self.pairs = _windows(self.first.pair(normed), missing, window)
        if self.others:
            self.queries, self.tokens = _windows(query, missing, window), _windows(inputs, missing, window)
        else:
            self.queries = query[:, -steps:].split(1, 1)
            self.tokens = inputs[:, -steps:].split(1, 1)

    def step(self, step: int, reads: Tensor) -> Tensor:
        """Encoder output of ``step`` at the position of its own input: read vectors (B, R, D) -> (B, D)."""
        seen = slice(self.absent[step], None)
        normed = self.first.norm(reads)
        pair = torch.cat((self.first.pair(normed), self.pairs[step][:, seen]), 1)
        query, tokens = self.queries[step], self.tokens[step]
        if self.others:
            query = torch.cat((self.first.query(normed), query[:, seen]), 1)
            tokens = torch.cat((reads, tokens[:, seen]), 1)
        tokens = self.first.mix(tokens, query, pair)
        for layer in self.others:
            normed = layer.norm(tokens)
            pair = layer.pair(normed)
            if layer is self.others[-1]:
                tokens, normed = tokens[:, -1:], normed[:, -1:]
            tokens = layer.mix(tokens, layer.query(normed), pair)
        output: Tensor = self.norm(tokens.squeeze(1))
        return output


class _Layer:
    """The halves of one pre-norm encoder layer: projections before the attention, everything after it."""

    def __init__(self, layer: nn.TransformerEncoderLayer) -> None:
        self.layer, self.norm, attention = layer, layer.norm1, layer.self_attn
        self.out_proj, self.heads = attention.out_proj, attention.num_heads
        self.dropout = attention.dropout if layer.training else 0.0
        scale, width = attention.head_dim**-0.5, attention.embed_dim
        weight, self.pair_weight = attention.in_proj_weight.split((width, 2 * width))
        bias, self.pair_bias = attention.in_proj_bias.split((width, 2 * width))
        self.query_weight, self.query_bias = weight * scale, bias * scale

    def query(self, normed: Tensor) -> Tensor:
        """Scaled queries (B, L, h, d) of normalised tokens (B, L, D)."""
        return F.linear(normed, self.query_weight, self.query_bias).unflatten(-1, (self.heads, -1))

    def pair(self, normed: Tensor) -> Tensor:
        """Keys and values (B, L, 2, h, d) of normalised tokens (B, L, D)."""
        return F.linear(normed, self.pair_weight, self.pair_bias).unflatten(-1, (2, self.heads, -1))

    def mix(self, tokens: Tensor, query: Tensor, pair: Tensor) -> Tensor:
        """Layer output (B, Q, D) of tokens (B, Q, D) that attend with queries (B, Q, h, d) to keys and values
        (B, L, 2, h, d).
        """
        layer, (key, value) = self.layer, pair.unbind(2)
        attended = _attend(query, key, value, self.dropout).flatten(2)
        tokens = tokens + layer.dropout1(self.out_proj(attended))
        hidden = layer.dropout(layer.activation(layer.linear1(layer.norm2(tokens))))
        return tokens + layer.dropout2(layer.linear2(hidden))


def _attend(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """Attention of scaled queries (B, Q, h, d), on the CPU faster by plain products where there is one."""
    if query.shape[1] == 1:
        weights = F.dropout((query * key).sum(-1, keepdim=True).softmax(1), dropout, dropout > 0)
        return (weights * value).sum(1, keepdim=True)
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=1.0).transpose(1, 2)


def _windows(inputs: Tensor, missing: int, window: int) -> tuple[Tensor, ...]:
    """The w inputs (B, w, ...) that each step sees; the first ``missing`` of step 0 and so on are zeros."""
    padded = torch.cat((inputs.new_zeros(inputs.shape[0], missing, *inputs.shape[2:]), inputs), 1)
    return padded.unfold(1, window, 1).movedim(-1, 2).unbind(1)
