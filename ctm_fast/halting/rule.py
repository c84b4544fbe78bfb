"""The rule of halting on stored results: what an engine does, for all samples and ticks at once.

Letters: B samples, T ticks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ctm_fast.engine.halt import Halt, Reason
from ctm_fast.engine.inputs import as_array

TINY = np.finfo(np.float32).tiny  # smaller numbers are zero in an engine
NO_SCORE = np.float32(-np.inf)  # of a tick at which no threshold is met
RULES = ("certainty", "energy", "delta")  # in the order of Reason behind the last tick


class Halted(NamedTuple):
    """When samples stop.

    Attributes:
        ticks: that each sample uses, (B,) int32.
        reason: :class:`ctm_fast.engine.Reason` of each, (B,) int32.
    """

    ticks: np.ndarray
    reason: np.ndarray


def halted(halt: Halt, certainties: Any, energies: Any = None) -> Halted:
    """When samples stop under ``halt``, from what was computed at all ticks: exactly as an engine stops them.

    Args:
        halt: the rules.
        certainties: (B, 2, T), [normalised entropy, 1 - entropy], array or tensor; computed with float32.
        energies: (B, 1, T); needed for rules on energies.

    Raises:
        TypeError, ValueError: "halted: argument must ..., got ...".
    """
    if not isinstance(halt, Halt):
        raise TypeError(f"halted: halt must be a Halt, got {type(halt).__name__}")
    scores = scores_of("halted", certainties, energies)
    given = {name: getattr(halt, name) for name in RULES if getattr(halt, name) is not None}
    if missing := [name for name in given if name not in scores]:
        raise ValueError(f"halted: energies must be given for a rule of {missing[0]}, got none")
    samples, ticks = scores["certainty"].shape
    held = np.zeros((len(RULES), samples, ticks), bool)
    for name, threshold in given.items():
        # What held for `patience` ticks in a row is what the least score of them meets.
        least = least_in_a_row(scores[name], halt.min_ticks, halt.patience)
        held[RULES.index(name)] = least >= score_at(name, threshold)
    ends = np.asarray(held.any(0))
    stopped, last = ends.any(1), np.where(ends.any(1), ends.argmax(1), ticks - 1)
    reason = 1 + held[:, np.arange(samples), last].argmax(0)
    return Halted((last + 1).astype(np.int32), np.where(stopped, reason, Reason.LAST_TICK).astype(np.int32))


def scores_of(op: str, certainties: Any, energies: Any) -> dict[str, np.ndarray]:
    """A score (B, T) by rule: a rule holds at a tick where its score is at least its threshold's, see ``score_at``."""
    certainty = _rows(op, "certainties", certainties, 2)[:, 1]
    found = {"certainty": certainty}
    if energies is not None:
        energy = _rows(op, "energies", energies, 1)[:, 0]
        if energy.shape != certainty.shape:
            expected = (len(certainty), 1, certainty.shape[1])
            raise ValueError(f"{op}: energies must have shape {expected}, got {np.shape(energies)}")
        with np.errstate(invalid="ignore", over="ignore"):
            moved = _flushed(np.abs(np.diff(energy, axis=1)))
        never = np.full((len(energy), 1), np.nan, np.float32)
        found |= {"energy": -energy, "delta": -np.concatenate((never, moved), 1)}
    return {name: np.where(np.isnan(x), NO_SCORE, x) for name, x in found.items()}


def _rows(op: str, name: str, x: Any, rows: int) -> np.ndarray:
    """As float32 (B, rows, T), with numbers that an engine takes for zero as zero."""
    found = as_array(x)
    if found.ndim != 3 or found.shape[1] != rows or 0 in found.shape:
        raise ValueError(f"{op}: {name} must have shape (B, {rows}, T), got {found.shape}")
    return _flushed(found.astype(np.float32))


def _flushed(x: Any) -> Any:
    return np.where(np.abs(x) < TINY, np.float32(0), x)


def score_at(rule: str, threshold: float) -> np.float32:
    """The least score that meets a threshold; NaN where none does."""
    with np.errstate(over="ignore"):
        limit = _flushed(np.float32(threshold))
    if rule == "certainty":
        return np.float32(limit)
    below = np.nextafter(limit, NO_SCORE, dtype=np.float32)  # these rules want less than their threshold
    if abs(below) < TINY:
        below = np.float32(0) if limit > 0 else np.float32(-TINY)
    return np.float32(np.nan) if limit == NO_SCORE else -below


def threshold_at(rule: str, score: np.float32) -> float:
    """The threshold that exactly the scores from ``score`` on meet: the inverse of :func:`score_at`."""
    if rule == "certainty":
        return float(score)
    above = np.nextafter(-score, np.float32(np.inf), dtype=np.float32)
    if abs(above) < TINY:
        above = np.float32(0) if score > 0 else TINY
    return float(above)


def least_in_a_row(scores: np.ndarray, min_ticks: int, patience: int) -> np.ndarray:
    """The least of the last ``patience`` scores (B, T) at every tick; ``NO_SCORE`` where a sample may not stop yet."""
    least = np.full_like(scores, NO_SCORE)
    ticks = scores.shape[1]
    if patience <= ticks:
        windows = np.lib.stride_tricks.sliding_window_view(scores, patience, axis=1)
        least[:, patience - 1 :] = windows.min(-1)
    least[:, : min(min_ticks, ticks + 1) - 1] = NO_SCORE
    return least
