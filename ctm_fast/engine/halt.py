"""When a sample stops thinking, and what an engine returns. Letters: B batch, T ticks, C predictions, S pairs."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np

MOST_COUNT = 2**31 - 1
NEVER = (math.inf, -math.inf, -1.0, 1, 1, False)  # thresholds that nothing meets


class Reason(IntEnum):
    """Why a sample stopped; the first of several that hold at its last tick."""

    LAST_TICK = 0
    CERTAINTY = 1
    ENERGY = 2
    CONVERGENCE = 3


class EngineResult(NamedTuple):
    """What a call returns, as NumPy arrays; a halted sample's last values repeat.

    Attributes:
        predictions: (B, C, T) float32; None from a model for reinforcement learning.
        certainties: (B, 2, T) float32, [normalised entropy, 1 - entropy]; None likewise.
        energies: (B, 1, T) float32; None without an energy head.
        synchronisation: output synchronisation of each sample's last tick, (B, S) float32.
        ticks: ticks that each sample used, (B,) int32.
        reason: :class:`Reason` of each sample, (B,) int32.
    """

    predictions: np.ndarray | None
    certainties: np.ndarray | None
    energies: np.ndarray | None
    synchronisation: np.ndarray
    ticks: np.ndarray
    reason: np.ndarray


@dataclass(frozen=True)
class Halt:
    """Stop a sample after the first tick at which a rule has held for ``patience`` ticks in a row.

    Args:
        certainty: stop at 1 - normalised entropy >= this, in [0, 1].
        energy: stop at an energy < this.
        delta: stop where the energy moved by less than this since the tick before; above 0.
        min_ticks: never stop after fewer ticks, at least 1.
        patience: ticks in a row for which a rule must hold, those before ``min_ticks`` included; at least 1.

    A rule that is None is off. A NaN meets no rule. Raises ``TypeError`` for what is no number, and ``ValueError`` for
    values outside these.

    >>> Halt(certainty=0.9, min_ticks=5, patience=2).certainty
    0.9
    """

    certainty: float | None = None
    energy: float | None = None
    delta: float | None = None
    min_ticks: int = 1
    patience: int = 1

    def __post_init__(self) -> None:
        if self.certainty is None and self.energy is None and self.delta is None:
            raise ValueError("Halt: one of certainty, energy and delta must be given, got none")
        for name in ("certainty", "energy", "delta"):
            _require_number(name, getattr(self, name))
        if self.certainty is not None and not 0 <= self.certainty <= 1:
            raise ValueError(f"Halt: certainty must be in [0, 1], got {self.certainty}")
        if self.energy is not None and math.isnan(self.energy):
            raise ValueError(f"Halt: energy must be a number, got {self.energy}")
        if self.delta is not None and not self.delta > 0:
            raise ValueError(f"Halt: delta must be above 0, got {self.delta}")
        for name in ("min_ticks", "patience"):
            _require_count(name, getattr(self, name))

    @classmethod
    def energy_convergence(
        cls,
        energy_threshold: float = 1.0,
        delta_threshold: float = 0.01,
        *,
        min_ticks: int = 1,
        patience: int = 1,
    ) -> Halt:
        """The rule of energy-based halting: E[t] < energy_threshold, or |E[t] - E[t - 1]| < delta_threshold from the
        second tick on. With ``min_ticks`` and ``patience`` of 1 it is exactly the published one.
        """
        return cls(None, energy_threshold, delta_threshold, min_ticks, patience)

    def native(self) -> tuple[float, float, float, int, int, bool]:
        """As the kernel takes it."""
        rules = (self.certainty, self.energy, self.delta)
        certainty, energy, delta = (n if x is None else float(x) for x, n in zip(rules, NEVER, strict=False))
        return certainty, energy, delta, int(self.min_ticks), int(self.patience), True


def _require_number(name: str, x: Any) -> None:
    if x is None:
        return
    try:
        float("" if isinstance(x, str | bytes) else x)
    except (TypeError, ValueError):
        raise TypeError(f"Halt: {name} must be a number, got {type(x).__name__}") from None


def _require_count(name: str, x: Any) -> None:
    try:
        count = operator.index(x)
    except TypeError:
        raise TypeError(f"Halt: {name} must be an integer, got {type(x).__name__}") from None
    if count < 1:
        raise ValueError(f"Halt: {name} must be at least 1, got {count}")
    if count > MOST_COUNT:
        raise ValueError(f"Halt: {name} must be at most {MOST_COUNT}, got {count}")
