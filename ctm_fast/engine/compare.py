"""What narrow weights change: results of two engines side by side, and the command that reports it."""

from __future__ import annotations

import argparse
import sys
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ctm_fast.engine import weights
from ctm_fast.engine.cell import CellEngine
from ctm_fast.engine.engine import Engine, load
from ctm_fast.engine.front import Front
from ctm_fast.engine.halt import EngineResult
from ctm_fast.engine.recipe import Input, Recipe
from ctm_fast.engine.weights import Difference

USAGE = 2  # exit status where the arguments are at fault, that of argparse


def results(engine: Engine, inputs: tuple[Any, ...]) -> EngineResult:
    """Of one call; a stateful engine starts from its learned start, which it is left with."""
    if engine.kind != "rl":
        return engine(*inputs)
    engine.reset(len(inputs[0]))
    synchronisation, _ = engine.step(inputs[0])
    engine.reset()
    nothing = np.zeros(len(synchronisation), np.int32)
    return EngineResult(None, None, None, synchronisation, nothing, nothing)


def difference(exact: EngineResult, narrow: EngineResult, group: int) -> Difference:
    """Of two results for the same inputs; ``group`` predictions (B, C, T) share a softmax."""
    synchronisation = _relative(exact.synchronisation, narrow.synchronisation)
    if exact.predictions is None or narrow.predictions is None:
        return Difference(None, None, synchronisation, 0, 0)
    first, second = (_choices(x, group) for x in (exact.predictions, narrow.predictions))
    return Difference(
        _relative(exact.predictions, narrow.predictions), _relative(exact.certainties, narrow.certainties),
        synchronisation, int((first != second).sum()), first.size,
    )  # fmt: skip


def _choices(predictions: np.ndarray, group: int) -> np.ndarray:
    batch, classes, ticks = predictions.shape
    return predictions.reshape(batch, classes // group, group, ticks).argmax(2)


def _relative(exact: Any, narrow: Any) -> float:
    """In float64; NaN where one of them is not finite."""
    truth = np.asarray(exact, np.float64)
    norm = max(float(np.linalg.norm(truth)), float(np.finfo(np.float64).tiny))
    return float(np.linalg.norm(narrow - truth)) / norm


def random_inputs(recipe: Recipe, seed: int) -> tuple[np.ndarray, ...]:
    """Of the largest sizes that an engine takes: normal numbers, signs, or indices below their ends."""
    n, draw = recipe.sizes, np.random.default_rng(seed)
    if recipe.kind != "qamnist":
        (expected,) = recipe.inputs
        return (_drawn(expected, (n.batch, n.tokens), recipe.tokens_front or recipe.given_front, draw),)
    asked = n.given - 1  # the last input given is silence
    ticks = n.ticks - recipe.iterations - asked
    first, second = recipe.inputs
    digits = _drawn(first, (n.batch, n.sets, n.tokens), recipe.tokens_front, draw)
    question = recipe.question
    if question is None:
        return digits[:, np.arange(ticks) * n.sets // ticks], _drawn(second, (n.batch, asked), None, draw)
    operator = np.arange(asked) // question.ticks % 2 == 1
    positions, operators = (draw.integers(0, end, (n.batch, asked)) for end in question[:2])
    return digits[:, np.arange(ticks) * n.sets // ticks], np.where(operator, -1 - operators, positions)


def _drawn(
    expected: Input, free: tuple[int, ...], front: Front | None, draw: np.random.Generator
) -> np.ndarray:
    """An array of the expected shape, where ``free`` are its free sizes in order."""
    sizes = iter(free)
    shape = tuple(next(sizes) if size is None else size for size in expected.shape)
    if front is not None and front.reads == "indices":
        return draw.integers(0, front.ends, shape)
    x = draw.standard_normal(shape, np.float32)
    return np.sign(x) if front is not None and front.reads == "signs" else x


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m ctm_fast.engine compare FILE``: print what narrow weights change in an engine of float32 weights."""
    command = argparse.ArgumentParser(prog="python -m ctm_fast.engine", description=main.__doc__)
    compare = command.add_subparsers(required=True).add_parser(
        "compare", help="float32 against narrow weights"
    )
    compare.add_argument("file", type=Path, help="engine's file with float32 weights")
    compare.add_argument("--weights", choices=weights.WIDTHS[1:], help="width to compare, both by default")
    compare.add_argument(
        "--inputs", type=Path, help="NPZ file of the call's arrays in order, random by default"
    )
    compare.add_argument("--seed", type=int, default=0, help="of random inputs")
    options = command.parse_args(arguments)
    try:
        lines = report(options.file, options.weights, options.inputs, options.seed)
    except (IndexError, OSError, TypeError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return USAGE
    except MemoryError:
        sys.stderr.write("compare: file must be of an engine that fits into memory, got a larger one\n")
        return USAGE
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def report(file: Path, width: str | None, inputs: Path | None, seed: int) -> list[str]:
    """Lines of the command: what each width changes, and the bytes of its weights.

    Raises:
        FileNotFoundError, IndexError, TypeError, ValueError: as loading and calling do; the file has narrow weights
            already, or is of a cell; the inputs are no arrays that the engine takes.
    """
    engine = load(file)
    if isinstance(engine, CellEngine):
        raise ValueError(
            f"compare: file must be of a CTM, got a cell of kind {engine.kind}, whose weights are float32 only"
        )
    if engine.weights != weights.FLOAT32:
        raise ValueError(f"compare: file must hold float32 weights, got {engine.weights}")
    arrays = random_inputs(engine._recipe, seed) if inputs is None else _arrays(inputs, engine)
    exact, before = results(engine, arrays), engine._recipe.nbytes
    source = f"random inputs of seed {seed}" if inputs is None else str(inputs)
    lines = [f"On {source}, relative to float32 with {before / 1e6:.2f} MB of arrays:"]
    for name in weights.WIDTHS[1:] if width is None else (width,):
        narrow = load(file, weights=name)
        found = difference(exact, results(narrow, arrays), engine._recipe.sizes.group)
        lines.append(f"{name}, {narrow._recipe.nbytes / 1e6:.2f} MB: {sentence(found)}")
    return lines


def _arrays(path: Path, engine: Engine) -> tuple[np.ndarray, ...]:
    """Those of an NPZ file, as many as the engine takes."""
    names = [expected.name for expected in engine.inputs]
    with path.open("rb") as stream:
        try:
            found = _archived(stream)
        except (EOFError, RuntimeError, SyntaxError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(
                f"compare: inputs must be a whole NPZ file, got {str(path)!r}: {error}"
            ) from error
    if len(found) != len(names) or any(np.ndim(x) == 0 for x in found):
        shapes = ", ".join(str(np.shape(x)) for x in found)
        raise ValueError(
            f"compare: inputs must be arrays of {' and '.join(names)}, got {len(found)} of shapes {shapes}"
        )
    return found


def _archived(stream: BinaryIO) -> tuple[np.ndarray, ...]:
    if not zipfile.is_zipfile(stream):
        raise ValueError("no archive")
    stream.seek(0)
    with np.load(stream) as archive:
        return tuple(archive.values())


def sentence(found: Difference) -> str:
    """A difference in words."""
    parts = [
        f"{name} differ by {value:.2g}"
        for name, value in zip(("predictions", "certainties", "synchronisation"), found[:3], strict=True)
        if value is not None
    ]
    chosen = f", {found.argmaxes} of {found.softmaxes} argmaxes" if found.softmaxes else ""
    return ", ".join(parts) + chosen
