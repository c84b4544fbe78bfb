"""What the recurrent part reads in a call, and the checks of it.

Letters: B batch, T ticks, L tokens of width d, K sets of them, G given inputs of width F, Q question ticks.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ctm_fast.engine.cell_recipe import flat
from ctm_fast.engine.front import Front
from ctm_fast.engine.recipe import Input, Question, Recipe

NO_TOKENS = np.empty((0, 0, 0, 0), np.float32)
NO_GIVEN = np.empty((0, 0, 0), np.float32)


class Inputs(NamedTuple):
    """Tick t attends to ``tokens[k]`` for k = ``schedule[t]`` >= 0 and takes ``given[g]`` for -1 - g.

    ``raw``: tokens and given inputs are what the engine's fronts read, where it has them.
    """

    tokens: np.ndarray  # (K, B, L, d) float32; raw (K, B, ...)
    given: np.ndarray  # (G, B, F) float32; raw (G, B, ...)
    schedule: np.ndarray  # (T) int32
    length: int  # L; 0 without tokens
    raw: bool = False

    @classmethod
    def attended(cls, tokens: np.ndarray, ticks: int) -> Inputs:
        """The same tokens (B, L, d) at every tick."""
        return cls(tokens[None], NO_GIVEN, _always(0, ticks), tokens.shape[1])

    @classmethod
    def constant(cls, given: np.ndarray, ticks: int) -> Inputs:
        """The same input (B, F) at every tick."""
        return cls(NO_TOKENS, given[None], _always(-1, ticks), 0)

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
    """Inputs of a call from its arrays, which ``recipe.inputs`` describes.

    Raises ``TypeError``, ``ValueError`` or ``IndexError`` where an array is not what the engine reads.
    """
    if len(inputs) != len(recipe.inputs):
        names = " and ".join(expected.name for expected in recipe.inputs)
        raise TypeError(f"Engine: inputs must be {names}, got {len(inputs)} arrays")
    if recipe.kind == "qamnist":
        digits = fitting(recipe.inputs[0], inputs[0])
        changed, seen = _changes(digits)
        return questioned(recipe, digits[:, changed].swapaxes(0, 1), seen, inputs[1])
    expected = recipe.inputs[0]
    found = fitting(expected, inputs[0])
    if recipe.kind == "base":
        tokens = read(expected.name, recipe.tokens_front, found)
        length = tokens.shape[1] if recipe.tokens_front is None else recipe.sizes.tokens
        return Inputs(tokens[None], NO_GIVEN, _always(0, recipe.iterations), length, True)
    given = read(expected.name, recipe.given_front, found)
    return Inputs(NO_TOKENS, given[None], _always(-1, recipe.iterations), 0, True)


def questioned(recipe: Recipe, sets: np.ndarray, seen: list[int], question: Any) -> Inputs:
    """Inputs of QAMNIST from sets (K, B, ...) of digits, the one that each digit tick sees, and the question (B, Q)."""
    sets = read(recipe.inputs[0].name, recipe.tokens_front, sets)
    asked = fitting(recipe.inputs[1], question)
    if len(asked) != sets.shape[1]:
        raise ValueError(f"Engine: question must have the batch of {sets.shape[1]}, got {len(asked)}")
    ticks = asked.shape[1]
    if recipe.question is not None:
        given = _question_rows(recipe.question, asked)
    else:
        silence = np.zeros((1, len(asked), recipe.sizes.features), np.float32)
        given = np.concatenate((np.asarray(asked, np.float32).swapaxes(0, 1), silence))
    schedule = [*seen, *(-1 - g for g in range(ticks)), *[-1 - ticks] * recipe.iterations]
    length = sets.shape[2] if recipe.tokens_front is None else recipe.sizes.tokens
    return Inputs(sets, np.ascontiguousarray(given), np.array(schedule, np.int32), length, True)


def _changes(digits: np.ndarray) -> tuple[list[int], list[int]]:
    """The ticks at which digits (B, ticks, ...) change, the first among them, and which of these each tick sees."""
    ticks = digits.shape[1]
    changed = [t for t in range(ticks) if t == 0 or not np.array_equal(digits[:, t], digits[:, t - 1])]
    return changed, (np.searchsorted(changed, np.arange(ticks), side="right") - 1).tolist()


def _question_rows(n: Question, asked: np.ndarray) -> np.ndarray:
    """Rows (Q + 1, B) of the question's table: those of the tokens (B, Q), and the last one's silence."""
    tokens = whole("question", asked)
    operator = np.arange(tokens.shape[1]) // n.ticks % 2 == 1
    rows = np.where(operator, -1 - tokens, tokens)
    for kind, part, end in (("positions", ~operator, n.positions), ("operators", operator, n.operators)):
        low, high = (0, end - 1) if kind == "positions" else (-end, -1)
        wrong = tokens[:, part][(rows[:, part] < 0) | (rows[:, part] >= end)]
        if wrong.size:
            raise IndexError(f"Engine: question must hold {kind} in [{low}, {high}], got {wrong[0]}")
    silence = np.full((1, len(tokens)), n.rows - 1)
    return np.concatenate(((rows + operator * n.positions).T, silence)).astype(np.int32)


def as_array(x: Any) -> np.ndarray:
    """An array, also of a tensor that requires a gradient or lies on another device."""
    if hasattr(x, "detach"):
        x = x.detach().cpu()
        x = x.float() if x.is_floating_point() else x
    return np.asarray(x)


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


def real(name: str, x: Any) -> Any:
    """A tensor as it is, anything else as an array. Raises ``TypeError`` unless it holds real numbers."""
    must = f"Engine: {name} must be an array of real numbers, got"
    try:
        found = x if hasattr(x, "detach") else np.asarray(x)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{must} {type(x).__name__}") from error
    if getattr(found.dtype, "is_complex", False) or getattr(found.dtype, "kind", "f") not in "fiub":
        raise TypeError(f"{must} {str(found.dtype).removeprefix('torch.')}")
    return found


def shaped(expected: Input, x: Any) -> Any:
    """A tensor as it is, anything else as an array: of real numbers and the expected shape."""
    found, shape = real(expected.name, x), expected.shape
    if found.ndim != len(shape) or any(b not in (None, a) for a, b in zip(found.shape, shape, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"Engine: {expected.name} must have shape ({wanted}), got {tuple(found.shape)}")
    return found


def fitting(expected: Input, x: Any) -> np.ndarray:
    """``x`` as an array of real numbers of the expected shape."""
    return as_array(shaped(expected, x))


def parts_of(state: Any, count: int) -> list[Any]:
    """The arrays of a state, a nested tuple or list of ``count`` of them, or the only one."""
    if not isinstance(state, tuple | list) and count > 1:
        raise TypeError(f"Engine: state must be a tuple of {count} arrays, got {type(state).__name__}")
    found = flat(state)
    if len(found) != count:
        raise ValueError(f"Engine: state must be {count} arrays, got {len(found)}")
    return found


def held(name: str, x: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A part of a state as float32, of this shape and finite."""
    found = as_array(real(name, x))
    if found.shape != shape:
        raise ValueError(f"Engine: {name} must have shape {shape}, got {found.shape}")
    if not np.isfinite(found).all():
        raise ValueError(f"Engine: {name} must be finite, got NaN or infinity")
    most = float(np.abs(found).max(initial=0))
    if most > float(np.finfo(np.float32).max):
        raise ValueError(f"Engine: {name} must hold numbers of float32, got {most:g}")
    return found.astype(np.float32)


def read(name: str, front: Front | None, found: np.ndarray) -> np.ndarray:
    """What a front reads of an array that fits: float32 numbers or int32 rows of its table."""
    if front is None or front.reads == "floats":
        return np.ascontiguousarray(found, np.float32)
    if front.reads == "signs":
        if not np.isfinite(found).all():
            raise ValueError("Engine: inputs must be finite, got NaN or infinity")
        return np.ascontiguousarray(found == 1, np.int32)
    indices_of, start = whole(name, found).reshape(*found.shape[:-1], -1, len(front.ends)), 0
    rows = np.empty(indices_of.shape, np.int32)
    for column, end in enumerate(front.ends):
        indices = indices_of[..., column]
        if indices.size and not 0 <= indices.min() <= indices.max() < end:
            wrong = indices.min() if indices.min() < 0 else indices.max()
            raise IndexError(f"Engine: {name} must hold indices in [0, {end}), got {wrong}")
        rows[..., column] = indices + start
        start += end
    return rows


def whole(name: str, x: np.ndarray) -> np.ndarray:
    """``x`` as signed integers; what is of floating point must be whole and no larger than 2^31."""
    if x.dtype.kind == "f" and not ((np.abs(x) <= 1 << 31) & (np.floor(x) == x)).all():
        raise ValueError(f"Engine: {name} must hold whole numbers, got others")
    return x.astype(np.int64)


def check(inputs: Inputs, recipe: Recipe) -> None:
    """Raise ``ValueError`` unless the inputs fit into the memory that the engine has."""
    n = recipe.sizes
    batch, sets, tokens = inputs.batch, len(inputs.tokens), inputs.length
    ticks, given = len(inputs.schedule), len(inputs.given)
    if batch < 1 or (sets and tokens < 1):
        raise ValueError("Engine: inputs must hold at least one sample, got none")
    if batch <= n.batch and ticks <= n.ticks and sets <= n.sets and given <= n.given and tokens <= n.tokens:
        return
    found = {"batch": (batch, n.batch), "ticks": (ticks, n.ticks), "sets of tokens": (sets, n.sets)}
    found |= {"given inputs": (given, n.given), "tokens": (tokens, n.tokens)}
    name, (size, most) = next(item for item in found.items() if item[1][0] > item[1][1])
    raise ValueError(f"Engine: {name} must be at most {most}, that of the example, got {size}")
