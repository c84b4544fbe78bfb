"""Backbones other than the ResNets: what turns the input into features.

Shape letters: B batch, d feature width (``d_input``), L tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ctm_fast.nn.resnet import RESNETS, build_resnet, resnet_width

BACKBONES = (*RESNETS, "shallow-wide", "parity_backbone", "none")
RL_BACKBONES = ("navigation-backbone", "classic-control-backbone")


class ShallowWide(nn.Module):
    """Two wide gated convolutions: (B, C, H, W) -> (B, 2048, H', W') with H' = ceil(H / 2).

    C is taken from the first input.
    """

    WIDTH = 2048

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LazyConv2d(2 * self.WIDTH, kernel_size=3, stride=2, padding=1),
            nn.GLU(dim=1),
            nn.BatchNorm2d(self.WIDTH),
            nn.Conv2d(self.WIDTH, 2 * self.WIDTH, kernel_size=3, padding=1, groups=32),
            nn.GLU(dim=1),
            nn.BatchNorm2d(self.WIDTH),
        )

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.layers(x)
        return features


class ParityBackbone(nn.Module):
    """Embedding of +-1 values: (B, L) of any dtype -> (B, d, L); row 1 embeds +1, row 0 everything else."""

    def __init__(self, d_embedding: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(2, d_embedding)

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.embedding((x == 1).long())
        return tokens.transpose(1, 2)


class MNISTBackbone(nn.Module):
    """Twice 3x3 convolution, BatchNorm, ReLU and 2x2 pooling: (B, C, H, W) -> (B, d, H / 4, W / 4).

    C is taken from the first input; sizes round down.
    """

    def __init__(self, d_input: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            convolution = nn.LazyConv2d(d_input, kernel_size=3, stride=1, padding=1)
            layers += [convolution, nn.BatchNorm2d(d_input), nn.ReLU(), nn.MaxPool2d(2, 2)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.layers(x)
        return features


def _gated(d_input: int, first: nn.Module | None = None) -> list[nn.Module]:
    return [first or nn.LazyLinear(2 * d_input), nn.GLU(), nn.LayerNorm(d_input)]


class ClassicControlBackbone(nn.Module):
    """Two gated linear layers over a flat observation: (B, ...), floating point -> (B, d)."""

    def __init__(self, d_input: int) -> None:
        super().__init__()
        self.input_projector = nn.Sequential(nn.Flatten(), *_gated(d_input), *_gated(d_input))

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.input_projector(x)
        return features


class MiniGridBackbone(nn.Module):
    """A MiniGrid view's object, colour, state and position: (B, G, G, 3) integers -> (B, G, G, d).

    Objects in [0, 11), colours in [0, 6), states in [0, 3); torch raises ``IndexError`` elsewhere.

    Args:
        d_input: feature width d.
        grid_size: cells G along each side of the view.
        d_embedding: width of each of the four embeddings.
    """

    OBJECTS, COLOURS, STATES = 11, 6, 3

    position_ids: Tensor

    def __init__(self, d_input: int, grid_size: int = 7, d_embedding: int = 8) -> None:
        super().__init__()
        self.object_embedding = nn.Embedding(self.OBJECTS, d_embedding)
        self.color_embedding = nn.Embedding(self.COLOURS, d_embedding)
        self.state_embedding = nn.Embedding(self.STATES, d_embedding)
        self.position_embedding = nn.Embedding(grid_size**2, d_embedding)
        positions = torch.arange(grid_size**2).view(grid_size, grid_size)
        self.register_buffer("position_ids", positions, persistent=False)
        self.project_to_d_projection = nn.Sequential(
            *_gated(d_input, nn.Linear(4 * d_embedding, 2 * d_input)),
            *_gated(d_input, nn.Linear(d_input, 2 * d_input)),
        )

    def forward(self, x: Tensor) -> Tensor:
        objects, colours, states = x.long().unbind(-1)
        embedded = [
            self.object_embedding(objects),
            self.color_embedding(colours),
            self.state_embedding(states),
        ]
        position = self.position_embedding(self.position_ids).expand(x.shape[0], -1, -1, -1)
        features: Tensor = self.project_to_d_projection(torch.cat((*embedded, position), dim=-1))
        return features


class IndexEmbeddings(nn.Module):
    """Fixed sinusoidal table: int64 indices (B,) in [0, max_length) -> (B, d).

    Buffer ``embedding`` (max_length, d). An index beyond the table raises ``IndexError``.
    """

    embedding: Tensor

    def __init__(self, max_length: int, d_input: int) -> None:
        super().__init__()
        position = torch.arange(max_length, dtype=torch.float32).unsqueeze(1)
        frequency = torch.exp(
            torch.arange(0, d_input, 2, dtype=torch.float32) * (-math.log(10000.0) / d_input)
        )
        table = torch.zeros(max_length, d_input)
        table[:, 0::2] = torch.sin(position * frequency)
        table[:, 1::2] = torch.cos(position * frequency)[:, : d_input // 2]
        self.register_buffer("embedding", table)

    def forward(self, x: Tensor) -> Tensor:
        return self.embedding[x]


class OperatorEmbeddings(nn.Module):
    """Learnable embedding of int64 operator tokens: -1 is row 0, -2 is row 1; (B,) -> (B, d).

    A token outside [-num_operators, -1] raises ``IndexError``.
    """

    def __init__(self, num_operators: int, d_input: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_operators, d_input)

    def forward(self, x: Tensor) -> Tensor:
        embedded: Tensor = self.embedding(-x - 1)
        return embedded


def backbone_width(backbone_type: str, d_input: int) -> int | None:
    """Feature channels of a backbone; None for ``"none"``, whose features are the input itself."""
    if backbone_type == "none":
        return None
    if backbone_type == "parity_backbone":
        return d_input
    return ShallowWide.WIDTH if backbone_type == "shallow-wide" else resnet_width(backbone_type)


def build_backbone(backbone_type: str, d_input: int) -> nn.Module:
    """The backbone named ``backbone_type``, one of :data:`BACKBONES` or :data:`RL_BACKBONES`.

    ResNets and "shallow-wide" have widths of their own, the others ``d_input``; see :func:`backbone_width`.
    Raises ``ValueError`` for an unknown name.
    """
    if backbone_type == "none":
        return nn.Identity()
    if backbone_type == "shallow-wide":
        return ShallowWide()
    if backbone_type == "parity_backbone":
        return ParityBackbone(d_input)
    if backbone_type == "classic-control-backbone":
        return ClassicControlBackbone(d_input)
    if backbone_type == "navigation-backbone":
        return MiniGridBackbone(d_input)
    return build_resnet(backbone_type)
