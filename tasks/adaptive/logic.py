"""Chains of logic gates, where every vector also uses the answer before (arXiv 1603.08983, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.adaptive.config import PAPER, PUBLISHED, QUICK, AdaptiveConfig, require_range
from tasks.adaptive.sequences import UNASKED, uniform, within
from tasks.adaptive.task import AdaptiveTask, Sample
from tasks.task import Batch

SLOTS = 10
GATES = {  # outcome for (p, q) = (0, 0), (0, 1), (1, 0), (1, 1)
    "nor": (1, 0, 0, 0),
    "not_p_and_q": (0, 1, 0, 0),
    "p_and_not_q": (0, 0, 1, 0),
    "xor": (0, 1, 1, 0),
    "nand": (1, 1, 1, 0),
    "and": (0, 0, 0, 1),
    "xnor": (1, 0, 0, 1),
    "if_then": (1, 1, 0, 1),
    "then_if": (1, 0, 1, 1),
    "or": (0, 1, 1, 1),
}
PAPER_ORDER = tuple(GATES)
ORDERS = {"paper": PAPER_ORDER, "published": (*PAPER_ORDER[:7], "then_if", "if_then", "or")}
GateOrder = Literal["paper", "published"]


@dataclass(frozen=True, kw_only=True)
class LogicConfig(AdaptiveConfig):
    """Model and data of one run."""

    shortest: int = 1
    """Fewest vectors of a sequence."""
    longest: int = 10
    """Most vectors of a sequence."""
    fewest_gates: int = 1
    """Fewest gates of a vector."""
    most_gates: int = 10
    """Most gates of a vector."""
    curriculum_of: Literal["length", "gates", "both"] = "length"
    """What the level of the curriculum is the most of: vectors, gates, or both at once."""
    gate_order: GateOrder = "paper"
    """Order of the gates in their one-hot code; the published code swaps "if then" and "then if"."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, "shortest", "longest", 1, 1000)
        require_range(self, "fewest_gates", "most_gates", 1, SLOTS)


def gate_chains(
    lengths: Tensor, fewest: int, most: int, order: GateOrder, generator: torch.Generator
) -> Batch:
    """Sequences of vectors that hold two bits and up to ten gates.

    A vector's gates are applied one after the other, ``r[i + 1] = gate[i](p=r[i], q=r[i - 1])``, from its two
    bits ``r[0]`` and ``r[1]``; the last result is its answer. ``r[0]`` of every vector but the first is the
    answer before, and is 0 in the input.

    Args:
        lengths: vectors per sequence, int64 (B,), at least 1.
        fewest, most: range of the number of gates, within [1, 10].
        order: which gate each place of a one-hot code stands for, a key of ``ORDERS``.
        generator: source of bits and gates.

    Returns:
        a batch with I = 102 (two bits, ten slots of a ten-way code, zeros where unused), A = 1 and two
        classes; the difficulty is the number of gates.
    """
    mask = within(lengths, int(lengths.max())).T
    steps, batch = mask.shape
    first, second = uniform(0, 1, (2, steps, batch), generator)
    first[1:] = 0
    counts = uniform(fewest, most, (steps, batch), generator)
    gates = uniform(0, len(GATES) - 1, (steps, batch, SLOTS), generator)
    used = within(counts, SLOTS)
    codes = F.one_hot(gates, len(GATES)) * used[..., None]
    inputs = torch.cat((torch.stack((first, second), -1), codes.flatten(2)), -1) * mask[..., None]
    answers = [first[0]]
    for outcomes in _outcomes(second, gates, used, order):
        answers.append(outcomes.gather(0, answers[-1][None])[0])
    targets = torch.stack(answers[1:]).where(mask, UNASKED)
    return inputs.float(), targets[..., None], mask, counts


def _outcomes(second: Tensor, gates: Tensor, used: Tensor, order: GateOrder) -> tuple[Tensor, ...]:
    """Answers (2, B) of each of T vectors if ``r[0]`` were 0 and if it were 1."""
    table = torch.tensor([GATES[name] for name in ORDERS[order]])
    before = torch.tensor([0, 1]).view(2, 1, 1).expand(2, *second.shape)
    now = second.expand_as(before)
    for slot in range(SLOTS):
        result, live = table[gates[..., slot], 2 * now + before], used[..., slot]
        before, now = torch.where(live, now, before), torch.where(live, result, now)
    return now.unbind(1)


_PAPER = LogicConfig(**PAPER, cell="lstm", hidden_size=128, batch_size=16, time_penalty=0.01)
PRESETS: dict[str, LogicConfig] = {
    "quick": replace(
        _PAPER,
        **QUICK,
        longest=5,
        most_gates=3,
        input_scale=4.0,
        batch_size=256,
        time_penalty=0.005,
        max_steps=10,
        curriculum_of="both",
        curriculum_goal=0.9,
        training_iterations=2500,
    ),
    "published": LogicConfig(
        **PUBLISHED,
        cell="lstm",
        hidden_size=300,
        batch_size=16,
        lr=1e-3,
        time_penalty=0.01,
        gate_order="published",
        training_iterations=100_000,
        curriculum_goal=0.75,
    ),
    "paper": _PAPER,
}


class AdaptiveLogic(AdaptiveTask[LogicConfig]):
    """Give the outcome of chains of logic gates, after as much computation as it takes."""

    name = "act_logic"
    config_class = LogicConfig
    presets = PRESETS
    difficulty = "gates of a vector"
    input_size = 2 + SLOTS * len(GATES)

    def levels(self) -> range:
        c = self.config
        spans = {"length": (c.shortest, c.longest), "gates": (c.fewest_gates, c.most_gates)}
        used = [span for name, span in spans.items() if c.curriculum_of in (name, "both")]
        return range(min(first for first, _ in used), max(last for _, last in used) + 1)

    def sample(self, size: int, level: int, generator: torch.Generator) -> Batch:
        c = self.config
        length, gates = c.longest, c.most_gates
        if c.curriculum_of in ("length", "both"):
            length = max(c.shortest, min(level, c.longest))
        if c.curriculum_of in ("gates", "both"):
            gates = max(c.fewest_gates, min(level, c.most_gates))
        return self._draw(size, (c.shortest, length), (c.fewest_gates, gates), generator)

    def beyond(self) -> Mapping[str, Sample]:
        c = self.config
        lengths, gates = (c.shortest, c.longest), (c.fewest_gates, c.most_gates)
        sets: dict[str, Sample] = {
            "longer": lambda size, g: self._draw(size, (c.longest + 1, 2 * c.longest), gates, g)
        }
        if c.most_gates < SLOTS:
            more = (c.most_gates + 1, min(2 * c.most_gates, SLOTS))
            sets["more_gates"] = lambda size, g: self._draw(size, lengths, more, g)
        return sets

    def _draw(
        self, size: int, lengths: tuple[int, int], gates: tuple[int, int], generator: torch.Generator
    ) -> Batch:
        return gate_chains(uniform(*lengths, (size,), generator), *gates, self.config.gate_order, generator)
