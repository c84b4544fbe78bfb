"""Running sums of numbers of several digits (arXiv 1603.08983, section 3.3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.adaptive.config import PAPER, PUBLISHED, QUICK, AdaptiveConfig, require_range
from tasks.adaptive.sequences import UNASKED, uniform, within
from tasks.adaptive.task import AdaptiveTask, Sample
from tasks.errors import require
from tasks.task import Batch

DIGITS = 5  # places of a number
PLACES = 6  # places of a sum
END = 10
MOST_NUMBERS = 10  # whose sum still has six digits


@dataclass(frozen=True, kw_only=True)
class AdditionConfig(AdaptiveConfig):
    """Model and data of one run."""

    shortest: int = 1
    """Fewest numbers of a sequence."""
    longest: int = 5
    """Most numbers of a sequence, at least 2 for the first has no target; the level of the curriculum."""
    most_digits: int = 5
    """Most digits of a number."""
    mix_probabilities: bool = False
    """Mix the probabilities that the steps give each digit instead of their logits."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(2 <= self.longest <= MOST_NUMBERS, "longest", f"lie in [2, {MOST_NUMBERS}]", self.longest)
        require_range(self, "shortest", "longest", 1, MOST_NUMBERS)
        digits = self.most_digits
        require(1 <= digits <= DIGITS, "most_digits", f"lie in [1, {DIGITS}]", digits)


def sums(lengths: Tensor, fewest: int, most: int, generator: torch.Generator) -> Batch:
    """Sequences of numbers and, from the second on, the sum of all so far.

    Args:
        lengths: numbers per sequence, int64 (B,), in [1, 10].
        fewest, most: range of the number of digits, within [1, 5].
        generator: source of numbers.

    Returns:
        a batch with I = 50 (five one-hot digits, most significant first, zeros where there are fewer), A = 6
        digits of the sum from the left and 11 classes, the last of which ends the number; the difficulty is
        the number of digits of the number added.
    """
    mask = within(lengths, int(lengths.max())).T
    counts = uniform(fewest, most, tuple(mask.shape), generator)
    digits = uniform(0, 9, (*mask.shape, DIGITS), generator)
    used = within(counts, DIGITS) & mask[..., None]
    inputs = (F.one_hot(digits, 10) * used[..., None]).flatten(2).float()
    value = (digits * used * 10 ** (counts[..., None] - 1 - torch.arange(DIGITS)).clamp(min=0)).sum(-1)
    asked = mask.clone()
    asked[0] = False
    return inputs, written(value.cumsum(0)).where(asked[..., None], UNASKED), mask, counts


def written(number: Tensor) -> Tensor:
    """The decimal digits (..., 6) of int64 numbers (...) below 10^6 from the left, then ``END``."""
    powers = 10 ** torch.arange(PLACES)
    length = (number[..., None] >= powers).sum(-1, keepdim=True).clamp(min=1)
    place = length - 1 - torch.arange(PLACES)
    return torch.where(place >= 0, number[..., None] // powers[place.clamp(min=0)] % 10, END)


_PAPER = AdditionConfig(**PAPER, cell="lstm", hidden_size=512, batch_size=32, time_penalty=0.01, max_steps=20)
PRESETS: dict[str, AdditionConfig] = {
    "quick": replace(
        _PAPER,
        **QUICK,
        longest=3,
        most_digits=2,
        hidden_size=256,
        time_penalty=1e-3,
        training_iterations=5_000,
    ),
    "published": AdditionConfig(
        **PUBLISHED,
        cell="lstm",
        hidden_size=1024,
        batch_size=32,
        lr=1e-4,
        weight_decay=1e-6,
        gradient_clipping=1.0,
        time_penalty=0.001,
        max_steps=20,
        mix_probabilities=True,
        shortest=2,
        training_iterations=100_000,
        curriculum_goal=0.95,
    ),
    "paper": _PAPER,
}


class AdaptiveAddition(AdaptiveTask[AdditionConfig]):
    """Add up numbers of several digits, after as much computation as it takes."""

    name = "act_addition"
    config_class = AdditionConfig
    presets = PRESETS
    difficulty = "digits of the number added"
    input_size = 10 * DIGITS
    answers = PLACES
    classes = END + 1

    @property
    def digit_classes(self) -> int:
        return self.classes if self.config.mix_probabilities else 0

    def counted(self, targets: Tensor) -> Tensor:
        """The digits of the sums, not the ends that fill the other places."""
        return super().counted(targets) & (targets != END)

    def levels(self) -> range:
        return range(max(2, self.config.shortest), self.config.longest + 1)

    def sample(self, size: int, level: int, generator: torch.Generator) -> Batch:
        return self._draw(size, (self.config.shortest, level), (1, self.config.most_digits), generator)

    def evaluation_batches(self) -> Iterator[Batch]:
        """Sequences of two numbers or more: one number alone has no answer to be wrong."""
        c = self.config
        lengths = (max(2, c.shortest), c.longest)
        return self._fixed(lambda size, g: self._draw(size, lengths, (1, c.most_digits), g))

    def beyond(self) -> Mapping[str, Sample]:
        c = self.config
        sets: dict[str, Sample] = {}
        if c.longest < MOST_NUMBERS:
            longer = (c.longest + 1, min(2 * c.longest, MOST_NUMBERS))
            sets["longer"] = lambda size, g: self._draw(size, longer, (1, c.most_digits), g)
        if c.most_digits < DIGITS:
            more = (c.most_digits + 1, DIGITS)
            sets["more_digits"] = lambda size, g: self._draw(size, (2, c.longest), more, g)
        return sets

    def _draw(
        self, size: int, lengths: tuple[int, int], digits: tuple[int, int], generator: torch.Generator
    ) -> Batch:
        return sums(uniform(*lengths, (size,), generator), *digits, generator)
