"""Parity of one vector, given all at once (arXiv 1603.08983, section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from tasks.adaptive.config import PAPER, PUBLISHED, QUICK, AdaptiveConfig, require_range
from tasks.adaptive.sequences import uniform
from tasks.adaptive.task import AdaptiveTask, Sample
from tasks.config import require_positive
from tasks.task import Batch


@dataclass(frozen=True, kw_only=True)
class ParityConfig(AdaptiveConfig):
    """Model and data of one run."""

    values: int = 64
    """Length of a vector."""
    fewest_nonzeros: int = 1
    """Fewest values that are not zero."""
    most_nonzeros: int = 64
    """Most values that are not zero; the level of the curriculum."""
    counted: Literal["ones", "nonzeros"] = "ones"
    """Whose parity is asked: that of the +1 (the paper) or of all that is not zero."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "values")
        require_range(self, "fewest_nonzeros", "most_nonzeros", 0, self.values)


def parities(
    nonzeros: Tensor, values: int, counted: Literal["ones", "nonzeros"], generator: torch.Generator
) -> Batch:
    """Vectors of +1, -1 and 0, and whether an odd number of them is +1 (or not zero).

    Args:
        nonzeros: how many values of each vector are not zero, int64 (B,), in [0, values].
        values: I, the length of the vectors.
        counted: "ones" asks for the parity of the +1, "nonzeros" for that of both signs.
        generator: source of places and signs.

    Returns:
        a batch with T = A = 1 and two classes; the difficulty is the number of non-zeros.
    """
    batch = len(nonzeros)
    places = torch.rand(batch, values, generator=generator).argsort(1) < nonzeros[:, None]
    inputs = (2.0 * uniform(0, 1, (batch, values), generator) - 1.0) * places
    count = (inputs > 0).sum(1) if counted == "ones" else nonzeros
    return inputs[None], (count % 2).view(1, batch, 1), torch.ones(1, batch, dtype=torch.bool), nonzeros[None]


_PAPER = ParityConfig(**PAPER, cell="rnn", hidden_size=128, batch_size=128, time_penalty=0.01)
PRESETS: dict[str, ParityConfig] = {
    "quick": replace(
        _PAPER,
        **(QUICK | {"track_every": 250, "save_every": 250}),
        cell="lstm",
        values=16,
        most_nonzeros=16,
        input_scale=4.0,
        batch_size=256,
        time_penalty=0.001,
        max_steps=20,
        halting_bias=-2.0,  # many steps from the start: where the first inputs get few, learning stalls
        curriculum_goal=0.85,
        training_iterations=6000,
        log_every=50,
    ),
    "published": ParityConfig(
        **PUBLISHED,
        cell="rnn",
        hidden_size=2000,
        batch_size=128,
        lr=1e-3,
        time_penalty=0.002,
        max_steps=20,
        counted="nonzeros",
        fewest_nonzeros=0,
        curriculum_goal=0.85,
    ),
    "paper": _PAPER,
}


class AdaptiveParity(AdaptiveTask[ParityConfig]):
    """Say whether an odd number of values is +1, after as much computation as it takes."""

    name = "act_parity"
    config_class = ParityConfig
    presets = PRESETS
    difficulty = "values that are not zero"

    @property
    def input_size(self) -> int:
        return self.config.values

    def levels(self) -> range:
        return range(max(1, self.config.fewest_nonzeros), self.config.most_nonzeros + 1)

    def sample(self, size: int, level: int, generator: torch.Generator) -> Batch:
        return self._draw(size, self.config.fewest_nonzeros, level, generator)

    def beyond(self) -> Mapping[str, Sample]:
        c = self.config
        if c.most_nonzeros == c.values:
            return {}
        return {"more_nonzeros": lambda size, g: self._draw(size, c.most_nonzeros + 1, c.values, g)}

    def _draw(self, size: int, fewest: int, most: int, generator: torch.Generator) -> Batch:
        nonzeros = uniform(fewest, most, (size,), generator)
        return parities(nonzeros, self.config.values, self.config.counted, generator)
