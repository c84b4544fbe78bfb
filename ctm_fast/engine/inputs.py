"""What the recurrent part reads in a call, and the checks of it.

Letters: B batch, T ticks, L tokens of width d, K sets of them, G given inputs of width F, Q question ticks.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ctm_fast.engine.recipe import Recipe

NO_TOKENS = np.empty((0, 0, 0, 0), np.float32)
NO_GIVEN = np.empty((0, 0, 0), np.float32)


class Inputs(NamedTuple):
    """Tick t attends to ``tokens[k]`` for k = ``schedule[t]`` >= 0 and takes ``given[g]`` for -1 - g."""

    tokens: np.ndarray  # (K, B, L, d) float32
    given: np.ndarray  # (G, B, F) float32
    schedule: np.ndarray  # (T) int32

    @classmethod
    def attended(cls, tokens: np.ndarray, ticks: int) -> Inputs:
        """The same tokens (B, L, d) at every tick."""
        return cls(tokens[None], NO_GIVEN, _always(0, ticks))

    @classmethod
    def constant(cls, given: np.ndarray, ticks: int) -> Inputs:
        """The same input (B, F) at every tick."""
        return cls(NO_TOKENS, given[None], _always(-1, ticks))

    @property
    def batch(self) -> int:
        """Samples."""
        return (self.tokens if len(self.tokens) else self.given).shape[1]


@lru_cache(maxsize=64)
def _always(what: int, ticks: int) -> np.ndarray:
    """One schedule for every call: making it anew costs a short call some percent."""
    schedule = np.full(ticks, what, np.int32)
    schedule.flags.writeable = False
    return schedule


def from_arrays(recipe: Recipe, inputs: tuple[Any, ...]) -> Inputs:
    """Inputs of a call from its arrays: see ``ctm_fast.engine.Engine``.

    Raises ``ValueError`` or ``TypeError`` where an array is not what the engine reads.
    """
    n = recipe.sizes
    if recipe.kind == "qamnist":
        return _digits_and_question(recipe, inputs)
    (x,) = _expect(inputs, 1)
    if recipe.kind == "base":
        return Inputs.attended(_checked("tokens", x, (None, None, n.width)), recipe.iterations)
    return Inputs.constant(_checked("x", x, (None, n.features)), recipe.iterations)


def as_array(x: Any) -> np.ndarray:
    """An array, also of a tensor that requires a gradient or lies on another device."""
    return np.asarray(x.detach().cpu() if hasattr(x, "detach") else x)


def chosen(samples: Any, batch: int) -> np.ndarray:
    """Indices in [0, batch) of samples, from indices or a mask (batch,)."""
    found = as_array(samples)
    if found.dtype == np.bool_:
        if found.shape != (batch,):
            raise ValueError(f"Engine: samples must be indices or a mask ({batch},), got shape {found.shape}")
        return np.flatnonzero(found)
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
        raise TypeError(
            f"Engine: samples must be indices or a mask, got {found.dtype} of shape {found.shape}"
        )
    outside = found[(found < 0) | (found >= batch)]
    if outside.size:
        raise IndexError(f"Engine: samples must be in [0, {batch}), got {outside[0]}")
    return found.astype(np.intp)


def _expect(inputs: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    if len(inputs) != count:
        raise TypeError(f"Engine: inputs must be {count} arrays, got {len(inputs)}")
    return inputs


def _checked(name: str, x: Any, shape: tuple[int | None, ...]) -> np.ndarray:
    """``x`` as a float32 array of this shape, where None stands for any size."""
    found = as_array(x)
    if found.dtype != np.float32 and found.dtype.kind not in "fiub":
        raise TypeError(f"Engine: {name} must be an array of real numbers, got {found.dtype}")
    fits = found.ndim == len(shape) and all(b in (None, a) for a, b in zip(found.shape, shape, strict=True))
    if not fits:
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"Engine: {name} must have shape ({expected}), got {found.shape}")
    return np.ascontiguousarray(found, np.float32)


def _digits_and_question(recipe: Recipe, inputs: tuple[Any, ...]) -> Inputs:
    """Tokens (B, digit ticks, L, d) and embedded question (B, Q, d); equal digits in a row are projected once."""
    n = recipe.sizes
    first, second = _expect(inputs, 2)
    digits = _checked("tokens", first, (None, None, None, n.width))
    question = _checked("question", second, (len(digits), None, n.width))
    ticks, asked = digits.shape[1], question.shape[1]
    changed = [t for t in range(ticks) if t == 0 or not np.array_equal(digits[:, t], digits[:, t - 1])]
    sets = np.searchsorted(changed, np.arange(ticks), side="right") - 1
    schedule = [*sets, *(-1 - g for g in range(asked)), *[-1 - asked] * recipe.iterations]
    silence = np.zeros((1, len(digits), n.width), np.float32)
    return Inputs(
        np.ascontiguousarray(digits[:, changed].swapaxes(0, 1)),
        np.ascontiguousarray(np.concatenate((question.swapaxes(0, 1), silence))),
        np.array(schedule, np.int32),
    )


def check(inputs: Inputs, recipe: Recipe) -> None:
    """Raise ``ValueError`` unless the inputs fit into the memory that the engine has."""
    n = recipe.sizes
    batch, (sets, _, tokens, _) = inputs.batch, inputs.tokens.shape
    ticks, given = len(inputs.schedule), len(inputs.given)
    if batch < 1 or (sets and tokens < 1):
        raise ValueError("Engine: inputs must hold at least one sample, got none")
    if batch <= n.batch and ticks <= n.ticks and sets <= n.sets and given <= n.given and tokens <= n.tokens:
        return
    found = {"batch": (batch, n.batch), "ticks": (ticks, n.ticks), "sets of tokens": (sets, n.sets)}
    found |= {"given inputs": (given, n.given), "tokens": (tokens, n.tokens)}
    name, (size, most) = next(item for item in found.items() if item[1][0] > item[1][1])
    raise ValueError(f"Engine: {name} must be at most {most}, that of the example, got {size}")
