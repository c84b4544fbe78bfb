"""Positional embeddings that are added to the backbone's features (arXiv 2505.05522, appendix).

Each takes the features, (B, C, H, W) or (B, C, L), reads only their shape and device, and returns something
that broadcasts against them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

POSITIONAL_EMBEDDINGS = (
    "learnable-fourier",
    "multi-learnable-fourier",
    "custom-rotational",
    "custom-rotational-1d",
    "none",
)


class LearnableFourierPositionalEncoding(nn.Module):
    """Learnable Fourier features of the cell's coordinates in [0, 1]^2, through a small gated MLP.

    An axis with a single cell has coordinate 0.

    Args:
        d_model: channels C of the features.
        gamma: length scale; the frequencies start normal with standard deviation ``gamma ** -2``.
    """

    FOURIER, HIDDEN = 256, 128

    def __init__(self, d_model: int, gamma: float = 1 / 2.5) -> None:
        super().__init__()
        self.Wr = nn.Linear(2, self.FOURIER // 2, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(self.FOURIER, self.HIDDEN),
            nn.GLU(),
            nn.Linear(self.HIDDEN // 2, d_model),
            nn.LayerNorm(d_model),
        )
        nn.init.normal_(self.Wr.weight, mean=0, std=gamma**-2)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C, H, W)
        if x.dim() != 4:
            raise ValueError(f"learnable-fourier: features must be (B, C, H, W), got {tuple(x.shape)}")
        batch, _, height, width = x.shape
        rows = torch.arange(height, device=x.device, dtype=self.Wr.weight.dtype) / max(height - 1, 1)
        columns = torch.arange(width, device=x.device, dtype=self.Wr.weight.dtype) / max(width - 1, 1)
        y, x_ = torch.meshgrid(rows, columns, indexing="ij")
        angles = self.Wr(torch.stack((x_, y), dim=-1))
        features = torch.cat((torch.cos(angles), torch.sin(angles)), dim=-1) / math.sqrt(self.FOURIER)
        embedding: Tensor = self.mlp(features)
        return embedding.permute(2, 0, 1).expand(batch, -1, -1, -1)


class MultiLearnableFourierPositionalEncoding(nn.Module):
    """Ten learnable Fourier embeddings with length scales 1.0 ... 0.1, mixed by a learnable softmax.

    Args:
        d_model: channels C of the features, which must be (B, C, H, W) (``ValueError``).
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        gammas = torch.linspace(1.0, 0.1, 10).tolist()
        self.embedders = nn.ModuleList(LearnableFourierPositionalEncoding(d_model, gamma) for gamma in gammas)
        self.combination = nn.Parameter(torch.ones(len(gammas)))

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C, H, W)
        weights = torch.softmax(self.combination, dim=-1)
        embeddings = torch.stack([embedder(x) for embedder in self.embedders], dim=-1)
        return (embeddings * weights).sum(-1)


class CustomRotationalEmbedding(nn.Module):
    """A learnable vector rotated by 0 ... 180 degrees along each axis; a cell gets both, projected.

    Height and width may differ; the published model handles square features only.

    Args:
        d_model: channels C of the features, which must be (B, C, H, W) (``ValueError``).
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.start_vector = nn.Parameter(torch.tensor([0.0, 1.0]))
        self.projection = nn.Sequential(nn.Linear(4, d_model))

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (1, C, H, W)
        if x.dim() != 4:
            raise ValueError(f"custom-rotational: features must be (B, C, H, W), got {tuple(x.shape)}")
        height, width = x.shape[-2:]
        rows = (_rotations(height, self.start_vector) @ self.start_vector).unsqueeze(1).expand(-1, width, -1)
        columns = (
            (_rotations(width, self.start_vector) @ self.start_vector).unsqueeze(0).expand(height, -1, -1)
        )
        embedding: Tensor = self.projection(torch.cat((rows, columns), dim=-1))
        return embedding.permute(2, 0, 1).unsqueeze(0)


class CustomRotationalEmbedding1D(nn.Module):
    """The vector (0, 1) rotated by 0 ... 180 degrees along the token axis, projected to the feature width.

    Args:
        d_model: channels C of the features, which must be (B, C, L) (``ValueError``).
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.projection = nn.Linear(2, d_model)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, L) -> (B, C, L)
        if x.dim() != 3:
            raise ValueError(f"custom-rotational-1d: features must be (B, C, L), got {tuple(x.shape)}")
        rotated = _rotations(x.shape[-1], self.projection.weight)[:, :, 1]
        embedding: Tensor = self.projection(rotated)
        return embedding.t().expand(x.shape[0], -1, -1)


def _rotations(count: int, like: Tensor) -> Tensor:
    """Rotation matrices (count, 2, 2) of angles evenly spaced over 0 ... 180 degrees, ends included."""
    angles = torch.deg2rad(torch.linspace(0, 180, count, device=like.device, dtype=like.dtype))
    cos, sin = torch.cos(angles), torch.sin(angles)
    return torch.stack((torch.stack((cos, -sin), dim=-1), torch.stack((sin, cos), dim=-1)), dim=-2)


def no_positional_embedding(_: Tensor) -> int:
    """The embedding ``"none"``: adds zero."""
    return 0


def build_positional_embedding(kind: str, d_backbone: int | None) -> Callable[[Tensor], Any]:
    """The positional embedding ``kind`` for ``d_backbone`` channels; "none" is a plain function giving 0.

    Raises ``ValueError`` unless ``kind`` is one of :data:`POSITIONAL_EMBEDDINGS`.
    """
    builders: dict[str, Callable[[Any], nn.Module]] = {
        "learnable-fourier": LearnableFourierPositionalEncoding,
        "multi-learnable-fourier": MultiLearnableFourierPositionalEncoding,
        "custom-rotational": CustomRotationalEmbedding,
        "custom-rotational-1d": CustomRotationalEmbedding1D,
    }
    if kind == "none":
        return no_positional_embedding
    if kind not in builders:
        raise ValueError(f"positional_embedding_type must be one of {POSITIONAL_EMBEDDINGS}, got {kind!r}")
    return builders[kind](d_backbone)
