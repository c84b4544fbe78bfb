"""The feed-forward baseline for images and mazes: a ResNet with a two-layer head."""

from __future__ import annotations

from torch import Tensor, nn

from ctm_fast.models.checks import require, require_positive
from ctm_fast.models.hub import HubMixin
from ctm_fast.nn.nlm import Squeeze
from ctm_fast.nn.resnet import RESNETS, build_resnet


class FFBaseline(nn.Module, HubMixin):
    """1x1 convolution to RGB, ResNet, average pooling, hidden layer of ``d_model``, ``out_dims`` predictions.

    Args:
        d_model: width of the hidden layer.
        backbone_type: one of ``ctm_fast.nn.RESNETS``.
        out_dims: predictions.
        dropout: before the last layer, in [0, 1].
    """

    def __init__(self, d_model: int, backbone_type: str, out_dims: int, dropout: float = 0) -> None:
        super().__init__()
        require_positive(d_model=d_model, out_dims=out_dims)
        require(
            backbone_type in RESNETS, f"backbone_type must be a ResNet for FFBaseline, got {backbone_type!r}"
        )
        self.d_model, self.backbone_type, self.out_dims = d_model, backbone_type, out_dims
        self.initial_rgb = nn.LazyConv2d(3, 1, 1)
        self.backbone = build_resnet(backbone_type)
        self.output_projector = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            Squeeze(-1),
            Squeeze(-1),
            nn.LazyLinear(d_model),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(d_model, out_dims),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, channels, H, W) -> predictions (B, out_dims)."""
        predictions: Tensor = self.output_projector(self.backbone(self.initial_rgb(x)))
        return predictions
