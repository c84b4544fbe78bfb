"""What a model computed at every tick for samples whose labels are known, and what a rule makes of it.

Letters: B samples, G elements of a label, C predictions, T ticks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ctm_fast.engine import Engine, Halt, Reason
from ctm_fast.engine.inputs import as_array
from ctm_fast.halting.rule import halted

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class HeldOut:
    """Results of all ticks for samples that the model was not trained on; made by :meth:`of` or :meth:`of_engine`.

    Attributes:
        right: how much of its label each sample has right when it ends at each tick, (B, T) integers.
        most: the largest of these: 1, or G where single elements count.
        certainties: (B, 2, T) float32.
        energies: (B, 1, T) float32, or None.
    """

    right: np.ndarray
    most: int
    certainties: np.ndarray
    energies: np.ndarray | None

    @classmethod
    def of(
        cls,
        predictions: Any,
        certainties: Any,
        labels: Any,
        energies: Any = None,
        *,
        count: str | None = None,
    ) -> HeldOut:
        """From what a model or an engine returned for all ticks, arrays or tensors.

        Args:
            predictions: logits (B, C, T).
            certainties: (B, 2, T).
            labels: classes, integers in [0, C) of shape (B,); or (B, G) where the predictions are G groups of C / G
                classes, as parity's.
            energies: (B, 1, T), of a model with an energy head.
            count: with labels (B, G) what accuracy means, which only the caller knows: "samples" whose elements are
                all right, or "elements". Without groups both are the same.

        Raises:
            TypeError, ValueError: "HeldOut: argument must ..., got ...".
        """
        logits, classes = as_array(predictions), as_array(labels)
        if logits.ndim != 3 or 0 in logits.shape:
            raise ValueError(f"HeldOut: predictions must have shape (B, C, T), got {logits.shape}")
        if np.isnan(logits).any():
            raise ValueError("HeldOut: predictions must be numbers, got NaN")
        samples, _, ticks = logits.shape
        right = _right(logits, classes)
        groups = right.shape[1]
        if count not in ("samples", "elements") and (count is not None or groups > 1):
            raise ValueError(f'HeldOut: count must be "samples" or "elements", got {count!r}')
        elements = count == "elements"
        rows = [] if energies is None else [("energies", energies, 1)]
        for name, x, size in (("certainties", certainties, 2), *rows):
            if np.shape(x) != (samples, size, ticks):
                raise ValueError(
                    f"HeldOut: {name} must have shape {(samples, size, ticks)}, got {np.shape(x)}"
                )
        counted = np.asarray(right.sum(1) if elements else right.all(1), np.int64)
        return cls(
            counted,
            groups if elements else 1,
            as_array(certainties).astype(np.float32),
            None if energies is None else as_array(energies).astype(np.float32),
        )

    @classmethod
    def of_engine(cls, engine: Engine, inputs: Any, labels: Any, *, count: str | None = None) -> HeldOut:
        """From all ticks of an engine.

        Args:
            engine: of a model with predictions.
            inputs: an argument of its call or a tuple of them, with any number of samples; split into the largest
                batches that the engine takes.
            labels, count: as for :meth:`of`.

        Raises:
            TypeError, ValueError: "HeldOut: argument must ..., got ..."; and as the engine's call.
        """
        if not isinstance(engine, Engine):
            raise TypeError(f"HeldOut: engine must be an Engine, got {type(engine).__name__}")
        if engine.kind == "rl":
            raise ValueError("HeldOut: engine must make predictions, got one of kind rl")
        found = [engine(*part) for part in batches(engine, inputs)]
        if not found:
            raise ValueError("HeldOut: inputs must hold at least one sample, got none")
        whole = [None if part[0] is None else np.concatenate(part) for part in zip(*found, strict=True)]
        return cls.of(whole[0], whole[1], labels, whole[2], count=count)

    @property
    def total(self) -> int:
        """What all samples together can have right."""
        return len(self.right) * self.most

    @property
    def ticks(self) -> int:
        """T, of a sample that never halts."""
        return self.right.shape[1]

    @property
    def accuracy(self) -> np.ndarray:
        """Of all samples at every tick, (T,)."""
        return self.right.sum(0) / self.total


def _right(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether each element is right at each tick, (B, G, T)."""
    if labels.dtype.kind not in "iu":
        raise TypeError(f"HeldOut: labels must be integers, got {labels.dtype}")
    samples, outputs, ticks = logits.shape
    if labels.ndim not in (1, 2) or len(labels) != samples:
        raise ValueError(
            f"HeldOut: labels must have shape ({samples},) or ({samples}, G), got {labels.shape}"
        )
    groups = 1 if labels.ndim == 1 else labels.shape[1]
    if groups == 0 or outputs % groups:
        raise ValueError(f"HeldOut: labels must have a divisor of {outputs} as second size, got {groups}")
    classes = outputs // groups
    if labels.min() < 0 or labels.max() >= classes:
        outside = labels[(labels < 0) | (labels >= classes)]
        raise ValueError(f"HeldOut: labels must be in [0, {classes}), got {outside[0]}")
    chosen = logits.reshape(samples, groups, classes, ticks).argmax(2)
    return chosen == labels.reshape(samples, groups, 1)


def batches(engine: Engine, inputs: Any, size: int | None = None) -> Iterator[tuple[Any, ...]]:
    """Arguments of an engine's call, at most ``size`` samples at a time, by default as many as it takes."""
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    size = engine._recipe.sizes.batch if size is None else size
    for first in range(0, len(given[0]), size):
        yield tuple(x[first : first + size] for x in given)


class Evaluation(NamedTuple):
    """What a rule gives on held-out samples.

    Attributes:
        accuracy: at the tick at which each sample halts.
        full_accuracy: at the last tick.
        mean_ticks: ticks used.
        percentiles: of the ticks used: {50: ..., 90: ..., 99: ...}.
        reasons: share of the samples by :class:`ctm_fast.engine.Reason`.
        never: share of the samples that no rule stopped, those of ``Reason.LAST_TICK``.
    """

    accuracy: float
    full_accuracy: float
    mean_ticks: float
    percentiles: dict[int, float]
    reasons: dict[Reason, float]
    never: float


def evaluate(halt: Halt, data: HeldOut) -> Evaluation:
    """Accuracy and ticks of a rule on held-out samples."""
    ticks, reason = halted(halt, data.certainties, data.energies)
    right = data.right[np.arange(len(ticks)), ticks - 1]
    reasons = {one: float((reason == one).mean()) for one in Reason}
    return Evaluation(
        float(right.sum() / data.total), float(data.accuracy[-1]), float(ticks.mean()),
        {q: float(np.percentile(ticks, q)) for q in PERCENTILES}, reasons, reasons[Reason.LAST_TICK],
    )  # fmt: skip
