"""From the input to keys and values: shared by the CTM and its LSTM baseline.

Shape letters: B batch, C backbone channels, L tokens, d ``d_input``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ctm_fast.models.checks import require
from ctm_fast.models.hub import HubMixin
from ctm_fast.nn.backbones import BACKBONES, backbone_width, build_backbone
from ctm_fast.nn.positional import POSITIONAL_EMBEDDINGS, build_positional_embedding
from ctm_fast.nn.resnet import RESNETS


def verify_features(backbone_type: str, positional_embedding_type: str) -> None:
    """Raise ``ArgumentError`` unless both names are known and fit each other."""
    require(backbone_type in BACKBONES, f"backbone_type must be one of {BACKBONES}, got {backbone_type!r}")
    require(
        positional_embedding_type in POSITIONAL_EMBEDDINGS,
        f"positional_embedding_type must be in {POSITIONAL_EMBEDDINGS}, got {positional_embedding_type!r}",
    )
    require(
        backbone_type != "none" or positional_embedding_type == "none",
        "positional_embedding_type must be 'none' where backbone_type is 'none', "
        f"got {positional_embedding_type!r}",
    )


def uniform_parameter(*shape: int, fan: int | None = None) -> nn.Parameter:
    """A learnable start state, uniform in +-sqrt(1 / fan); ``fan`` is the sum of the shape unless given."""
    bound = (1 / (fan or sum(shape))) ** 0.5
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


class AttendedFeatures(nn.Module, HubMixin):
    """Backbone, positional embedding, key-value projection and attention with one query.

    A subclass sets ``backbone_type``, ``positional_embedding_type`` and ``d_input``, then calls
    :meth:`build_features` and :meth:`build_attention`. Every piece may be overridden.
    """

    backbone_type: str
    positional_embedding_type: str
    d_input: int
    kv_features: Tensor  # (B, C, H, W) or (B, C, L) of the last forward, outside autograd
    positional_embedding: Callable[[Tensor], Any]
    kv_proj: nn.Module | None
    q_proj: nn.Module | None
    attention: nn.MultiheadAttention | None

    def build_features(self) -> None:
        """Make ``initial_rgb``, ``backbone`` and ``positional_embedding``."""
        d_backbone = self.get_d_backbone()
        self.set_initial_rgb()
        self.set_backbone()
        self.positional_embedding = self.get_positional_embedding(d_backbone)

    def build_attention(self, heads: int, dropout: float) -> None:
        """Make ``kv_proj``, ``q_proj`` and ``attention``; all None without heads."""
        require(heads >= 0, f"heads must be at least 0, got {heads}")
        require(
            not heads or self.d_input % heads == 0,
            f"d_input must be a multiple of heads={heads}, got {self.d_input}",
        )
        self.kv_proj = self.q_proj = self.attention = None
        if heads:
            self.kv_proj = nn.Sequential(nn.LazyLinear(self.d_input), nn.LayerNorm(self.d_input))
            self.q_proj = nn.LazyLinear(self.d_input)
            self.attention = nn.MultiheadAttention(self.d_input, heads, dropout, batch_first=True)

    def set_initial_rgb(self) -> None:
        """1x1 convolution to three channels before a ResNet, nothing before any other backbone."""
        is_resnet = self.backbone_type in RESNETS
        self.initial_rgb: nn.Module = nn.LazyConv2d(3, 1, 1) if is_resnet else nn.Identity()

    def get_d_backbone(self) -> int | None:
        """Channels of the backbone's features."""
        return backbone_width(self.backbone_type, self.d_input)

    def set_backbone(self) -> None:
        """Make the backbone that ``backbone_type`` names."""
        self.backbone = build_backbone(self.backbone_type, self.d_input)

    def get_positional_embedding(self, d_backbone: int | None) -> Callable[[Tensor], Any]:
        """The positional embedding that ``positional_embedding_type`` names."""
        return build_positional_embedding(self.positional_embedding_type, d_backbone)

    def compute_features(self, x: Tensor) -> Tensor:
        """Input (B, ...) -> the tokens (B, L, d) that are attended to."""
        features = self.backbone(self.initial_rgb(x))
        self.kv_features = features.detach()
        tokens = (features + self.positional_embedding(features)).flatten(2).transpose(1, 2)
        kv: Tensor = self._part("kv_proj")(tokens)
        return kv

    def attend(self, query: Tensor, kv: Tensor) -> tuple[Tensor, Tensor]:
        """What a query (B, Q) reads from kv (B, L, d): (B, d), and each head's weights (B, heads, 1, L)."""
        q = self._part("q_proj")(query).unsqueeze(1)
        out, weights = self._part("attention")(q, kv, kv, average_attn_weights=False, need_weights=True)
        return out.squeeze(1), weights

    def _part(self, name: str) -> nn.Module:
        part: nn.Module | None = getattr(self, name)
        if part is None:
            raise ValueError(
                f"{type(self).__name__}: {name} needs heads of at least 1, got a model with heads=0"
            )
        return part
