"""Graph triples as one-hot digits, and the phases of a question in one padded sequence.

Letters: T steps of the longest sequence, B graphs, n triples.

A label from 0 to 999 is three one-hot digits, most significant first; a triple (source, edge, target) is 90
values, and 92 with two flags: a new phase begins; an answer is expected.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

DIGITS = 9
TRIPLE = 10 * DIGITS
INPUTS = TRIPLE + 2
PHASE, ANSWER = TRIPLE, TRIPLE + 1
PLACES = (100, 10, 1)


def digits(labels: Tensor) -> Tensor:
    """Decimal digits of labels (..., 3) in [0, 1000): (..., 9), int64."""
    places = torch.tensor(PLACES, device=labels.device)
    return (labels[..., None] // places % 10).flatten(-2)


def one_hot(labels: Tensor, parts: tuple[bool, bool, bool] = (True, True, True)) -> Tensor:
    """Triples (..., 3) as (..., 90), float32; a part that ``parts`` leaves out is all zero."""
    coded = F.one_hot(digits(labels), 10).float()
    return (coded * torch.tensor(parts).repeat_interleave(3)[:, None]).flatten(-2)


class Sequences:
    """Inputs (T, B, 92), float32, digits (T, B, 9), int64, and a mask (T, B) of a batch, filled by phases.

    Args:
        lengths: steps of each sequence, int64 (B,); T is the largest.
    """

    def __init__(self, lengths: Tensor) -> None:
        steps, batch = int(lengths.max()), len(lengths)
        self.inputs = torch.zeros(steps, batch, INPUTS)
        self.targets = torch.zeros(steps, batch, DIGITS, dtype=torch.int64)
        self.mask = torch.zeros(steps, batch)

    def show(self, start: Tensor, coded: Tensor, counts: Tensor) -> None:
        """Write the first ``counts`` (B,) of coded triples (B, n, 90) from step ``start`` (B,) on."""
        step, row, column = _cells(start, counts, coded.shape[1])
        self.inputs[step, row, :TRIPLE] = coded[row, column]

    def begin(self, step: Tensor) -> None:
        """Flag a new phase at ``step`` (B,)."""
        self.inputs[step, torch.arange(len(step)), PHASE] = 1.0

    def ask(self, start: Tensor, labels: Tensor, counts: Tensor) -> None:
        """Expect the first ``counts`` (B,) of triples (B, n, 3) as answers from step ``start`` (B,) on."""
        step, row, column = _cells(start, counts, labels.shape[1])
        self.begin(start)
        self.inputs[step, row, ANSWER] = 1.0
        self.targets[step, row] = digits(labels)[row, column]
        self.mask[step, row] = 1.0


def _cells(start: Tensor, counts: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    row, column = torch.nonzero(torch.arange(width) < counts[:, None], as_tuple=True)
    return start[row] + column, row, column


def shuffled(labels: Tensor, exists: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The existing triples of (B, E, 3) in random order first, and their number (B,)."""
    order = torch.rand(exists.shape, generator=generator).where(exists, 2.0).argsort(1)
    counts = exists.sum(1)
    order = order[:, : int(counts.max())]
    return labels.gather(1, order[..., None].expand(-1, -1, 3)), counts
