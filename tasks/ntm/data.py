"""Sequences of the five experiments (arXiv 1410.5401, section 4), all of a batch equally long.

Letters: T input steps, A answer steps, B batch, I inputs, O outputs, L vectors, D bits of a vector. Inputs are
(T, B, I) and targets (A, B, O), float32: the answer is what the model says at the last A of the T steps, where
the input is zero; nothing else is scored.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

CONTEXT = 5
"""Bits on which the next bit of an N-gram sequence depends."""
ITEM = 3
"""Vectors of an item of associative recall."""


def random_bits(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Fair bits, float32."""
    return torch.randint(2, shape, generator=generator).float()


def random_symbols(length: int, batch: int, vocabulary: int, generator: torch.Generator) -> Tensor:
    """One-hot symbols (L, B, vocabulary). Symbol 0 stands for "nothing here" and is never drawn."""
    tokens = torch.randint(1, vocabulary, (length, batch), generator=generator)
    return F.one_hot(tokens, vocabulary).float()


def between(low: int, high: int, generator: torch.Generator) -> int:
    """A uniform integer from ``low`` to ``high``, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def copy_bits(vectors: Tensor, start_marker: bool) -> tuple[Tensor, Tensor]:
    """Copy ``vectors`` (L, B, D): they come, then an end marker, then L steps in which to answer.

    Inputs have D channels and one for the end marker, with a channel for a start marker between where there
    is one.
    """
    length, batch, width = vectors.shape
    markers = 1 + start_marker
    inputs = torch.zeros(2 * length + markers, batch, width + markers)
    inputs[start_marker : length + start_marker, :, :width] = vectors
    if start_marker:
        inputs[0, :, width] = 1.0
    inputs[length + start_marker, :, -1] = 1.0
    return inputs, vectors


def copy_symbols(symbols: Tensor) -> tuple[Tensor, Tensor]:
    """Copy one-hot ``symbols`` (L, B, D): they come, then symbol 0 for L steps in which to answer."""
    nothing = torch.zeros_like(symbols)
    nothing[..., 0] = 1.0
    return torch.cat((symbols, nothing)), symbols


def normalised_count(repeats: int, highest: int) -> float:
    """The repeat count with mean 0 and variance 1 over the fixed range 1 to ``highest``.

    Counts beyond the range go on linearly. The statistics of a batch would not do: they hide the count where
    all sequences of a batch are repeated equally often.
    """
    spread = math.sqrt((highest**2 - 1) / 12)
    return (repeats - (highest + 1) / 2) / spread if highest > 1 else 0.0


def repeat_copy(
    vectors: Tensor, repeats: int, highest: int, end: int, *, told: int | None = None
) -> tuple[Tensor, Tensor]:
    """Copy ``vectors`` (L, B, D) ``repeats`` times, then say the end.

    Args:
        vectors: bits or one-hot symbols.
        repeats: copies asked for.
        highest: most copies in training, see :func:`normalised_count`.
        end: outputs beyond D; the first of them is 1 at the answer's last step and 0 before.
        told: the count that the inputs tell where it is more than ``repeats``: the answer is cut off, and its
            last step is no end.

    Returns:
        inputs (L + 1 + A, B, D + 2), with channels for the end of the vectors and for the count, both at step
        L; targets (A, B, D + end), A = L repeats + 1.
    """
    length, batch, width = vectors.shape
    answer = length * repeats + 1
    inputs = torch.zeros(length + 1 + answer, batch, width + 2)
    inputs[:length, :, :width] = vectors
    inputs[length, :, width] = 1.0
    inputs[length, :, width + 1] = normalised_count(told or repeats, highest)
    targets = torch.zeros(answer, batch, width + end)
    targets[:-1, :, :width] = vectors.repeat(repeats, 1, 1)
    targets[-1, :, width] = float(told is None)
    return inputs, targets


def recall(items: int, batch: int, width: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Name one of ``items`` (at least 2); the answer is the item that came after it.

    An item is three vectors of ``width`` bits. Every item comes after an item marker; the query comes between
    two query markers; then three steps in which to answer.

    Returns:
        inputs (4 items + 5 + 3, B, width + 2), targets (3, B, width).
    """
    vectors = random_bits((items, ITEM, batch, width), generator)
    asked = torch.randint(items - 1, (batch,), generator=generator)
    every = torch.arange(batch)
    inputs = torch.zeros((ITEM + 1) * items + 2 * ITEM + 2, batch, width + 2)
    listed = inputs[: (ITEM + 1) * items].unflatten(0, (items, ITEM + 1))
    listed[:, 0, :, width] = 1.0
    listed[:, 1:, :, :width] = vectors
    query = inputs[(ITEM + 1) * items : -ITEM]
    query[[0, -1], :, width + 1] = 1.0
    query[1:-1, :, :width] = vectors[asked, :, every].transpose(0, 1)
    return inputs, vectors[asked + 1, :, every].transpose(0, 1).contiguous()


def ngrams(length: int, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Bits that depend on the last five: every sequence has 32 probabilities of its own, Beta(1/2, 1/2).

    Returns:
        inputs (length - 1, B, 1), the bits without the last; targets (length - 5, B, 1), the bits without
        the first five; the best prediction of these (length - 5, B, 1), the probability of 1 under the
        posterior: (n1 + 1/2) / (n0 + n1 + 1) with the counts of bits that followed the same five so far.
    """
    table = torch.sin(torch.rand(batch, 2**CONTEXT, generator=generator) * math.pi / 2) ** 2
    noise = torch.rand(length, batch, generator=generator)
    every, powers = torch.arange(batch), 2 ** torch.arange(CONTEXT)
    counts = torch.zeros(batch, 2**CONTEXT, 2)
    drawn = (noise[:CONTEXT] < 0.5).long()
    context = (drawn * powers[:, None]).sum(0)  # the newest bit weighs most
    bits, best = list(drawn), []
    for t in range(CONTEXT, length):
        seen = counts[every, context]
        best.append((seen[:, 1] + 0.5) / (seen.sum(1) + 1))
        bit = (noise[t] < table[every, context]).long()
        counts[every, context, bit] += 1
        context = context // 2 + bit * 2 ** (CONTEXT - 1)
        bits.append(bit)
    sequence = torch.stack(bits).float()[..., None]
    return sequence[:-1], sequence[CONTEXT:], torch.stack(best)[..., None]


def priority_sort(vectors: Tensor, kept: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The ``kept`` of ``vectors`` (L, B, D) with the highest priorities, highest first.

    Priorities are uniform in [-1, 1], on a channel beside the bits; then comes an end marker on another one.

    Returns:
        inputs (L + 1 + kept, B, D + 2), targets (kept, B, D).
    """
    length, batch, width = vectors.shape
    priorities = torch.rand(length, batch, generator=generator) * 2 - 1
    inputs = torch.zeros(length + 1 + kept, batch, width + 2)
    inputs[:length, :, :width] = vectors
    inputs[:length, :, width] = priorities
    inputs[length, :, width + 1] = 1.0
    best = priorities.argsort(0, descending=True)[:kept]
    return inputs, vectors.gather(0, best[..., None].expand(-1, -1, width))
