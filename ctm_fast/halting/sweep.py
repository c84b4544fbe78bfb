"""All thresholds of a rule at once: where every one of them stops every sample.

Raising a rule's threshold past a score moves single samples to later ticks. These moves, sorted by their score, hold
the ticks and the accuracy of every threshold. Letters: B samples, T ticks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ctm_fast.halting.rule import NO_SCORE, RULES, least_in_a_row, score_at, threshold_at


class Candidates(NamedTuple):
    """Rules, and what each gives; the columns of ``rules`` are RULES (NaN: off), min_ticks and patience."""

    rules: np.ndarray  # (N, 5) float64
    ticks: np.ndarray  # (N,) of all samples together
    right: np.ndarray  # (N,) likewise

    def take(self, chosen: np.ndarray) -> Candidates:
        """Those of a mask or of indices."""
        return Candidates(*(x[chosen] for x in self))

    def undominated(self) -> Candidates:
        """Those that no other beats in both, the fewest ticks first; of equal ones the first."""
        ordered = self.take(np.lexsort((-self.right, self.ticks)))
        before = np.maximum.accumulate(np.concatenate(([-1], ordered.right[:-1])))
        return ordered.take(ordered.right > before)


class Sweep:
    """One rule with min_ticks and patience, over all its thresholds."""

    def __init__(self, rule: str, scores: np.ndarray, min_ticks: int, patience: int) -> None:
        self.rule, self.options = rule, (min_ticks, patience)
        least = least_in_a_row(scores, min_ticks, patience)
        self._best = np.maximum.accumulate(np.minimum(least, 1) if rule == "certainty" else least, 1)
        samples, last = len(scores), scores.shape[1] - 1
        before = np.concatenate((np.full((samples, 1), NO_SCORE), self._best[:, :-1]), 1)
        sample, tick = np.nonzero(self._best > before)  # with a threshold of this score a sample stops here
        score, then = self._best[sample, tick], np.full(len(tick), last)
        then[:-1] = np.where(sample[1:] == sample[:-1], tick[1:], last)  # with a higher one there
        self._first = np.full(samples, last)
        starts = np.flatnonzero(np.diff(sample, prepend=-1))
        self._first[sample[starts]] = tick[starts]
        order = np.argsort(score, kind="stable")
        self._sample, self._tick, self._then, self._score = (x[order] for x in (sample, tick, then, score))

    def stops(self, threshold: float) -> np.ndarray:
        """Index of the tick at which each sample stops, the last one where it never does, (B,)."""
        met = self._best >= score_at(self.rule, threshold)
        return np.where(met.any(1), met.argmax(1), met.shape[1] - 1)

    def candidates(self, right: np.ndarray, others: dict[str, float], latest: np.ndarray) -> Candidates:
        """What the thresholds give together with other rules, of which ``latest`` (B,) are the stops."""
        moved = self._tick < latest[self._sample]
        sample, tick, score = self._sample[moved], self._tick[moved], self._score[moved]
        then, first = np.minimum(self._then[moved], latest[sample]), np.minimum(self._first, latest)
        ticks = (first + 1).sum() + _sum_before(then - tick)
        correct = right[np.arange(len(right)), first].sum() + _sum_before(
            right[sample, then] - right[sample, tick]
        )
        _, lowest = np.unique(score, return_index=True)
        lowest = lowest[_possible(self.rule, score[lowest])]
        rules = np.full((len(lowest), len(RULES) + 2), np.nan)
        rules[:, len(RULES) :] = self.options
        for name, threshold in others.items():
            rules[:, RULES.index(name)] = threshold
        rules[:, RULES.index(self.rule)] = [threshold_at(self.rule, x) for x in score[lowest]]
        return Candidates(rules, ticks[lowest], correct[lowest]).undominated()


def _sum_before(x: np.ndarray) -> np.ndarray:
    """What the entries before each one sum up to."""
    return np.cumsum(x) - x


def _possible(rule: str, scores: np.ndarray) -> np.ndarray:
    """Which scores a threshold of the rule can have."""
    return scores >= 0 if rule == "certainty" else np.isfinite(scores) | (scores > 0)
