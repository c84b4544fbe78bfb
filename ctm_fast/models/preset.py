"""What a published configuration of a model is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

Arguments = dict[str, Any]


class Preset(NamedTuple):
    """A published model.

    Attributes:
        model: its class.
        arguments: the class's constructor arguments.
        example_shapes: shape of each input for one sample, without the batch dimension.
        actions: discrete actions of the agent around it; 0 where there is no agent.
        batch_dim: where the batch dimension of an input lies; 1 where time comes first.
    """

    model: type[nn.Module]
    arguments: Mapping[str, Any]
    example_shapes: tuple[tuple[int, ...], ...]
    actions: int = 0
    batch_dim: int = 0
