"""Engine files: the safetensors layout (length, JSON header, arrays), with the sizes in the header's metadata.

The metadata begins with a checksum of the length and of all bytes behind the checksum itself.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ctm_fast.engine import cell_recipe
from ctm_fast.engine.cell_recipe import CellRecipe
from ctm_fast.engine.front import Front, FrontStage
from ctm_fast.engine.limits import number, whole
from ctm_fast.engine.recipe import Question, Recipe, Sizes, Stage, reason_against
from ctm_fast.engine.weights import reason_against_values
from ctm_fast.files import PathLike, replacing

FORMAT, VERSION = "ctm_fast.engine", "2"
DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"), "I32": np.dtype("<i4"), "BF16": np.dtype("<u2"), "I8": np.dtype("i1")
}  # fmt: skip
LENGTH_BYTES = 8
ALIGNMENT = 64
MOST_HEADER_BYTES = 1 << 24
BEFORE_CHECKSUM = b'{"__metadata__": {"checksum": "'
CHECKSUM_DIGITS = 8  # of a CRC-32


def write(path: PathLike, recipe: Recipe | CellRecipe) -> None:
    """Write under a temporary name beside ``path``, then rename."""
    config = recipe.config() if isinstance(recipe, CellRecipe) else _config(recipe)
    header: dict[str, Any] = {
        "__metadata__": {
            "checksum": "0" * CHECKSUM_DIGITS,
            "format": FORMAT,
            "version": VERSION,
            "config": json.dumps(config),
        }
    }
    at = 0
    codes = {dtype: code for code, dtype in DTYPES.items()}
    for name, x in recipe.arrays.items():
        header[name] = {"dtype": codes[x.dtype], "shape": list(x.shape), "data_offsets": [at, at + x.nbytes]}
        at += x.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-(LENGTH_BYTES + len(text)) % ALIGNMENT)
    head = sealed(len(text).to_bytes(LENGTH_BYTES, "little") + text, recipe.arrays.values())
    with replacing(path) as temporary, temporary.open("wb") as stream:
        stream.write(head)
        for x in recipe.arrays.values():
            stream.write(x.tobytes())


def sealed(head: bytes, arrays: Iterable[np.ndarray]) -> bytes:
    """Length and header with the checksum of themselves and of the arrays behind them."""
    first, end = _checksum_place()
    checksum = zlib.crc32(head[end:], zlib.crc32(head[:LENGTH_BYTES]))
    for x in arrays:
        checksum = zlib.crc32(x.tobytes(), checksum)
    return head[:first] + _digits(checksum) + head[end:]


def _checksum_place() -> tuple[int, int]:
    first = LENGTH_BYTES + len(BEFORE_CHECKSUM)
    return first, first + CHECKSUM_DIGITS


def _digits(checksum: int) -> bytes:
    return f"{checksum:0{CHECKSUM_DIGITS}x}".encode()


def _is_sealed(data: bytes) -> bool:
    first, end = _checksum_place()
    checksum = zlib.crc32(memoryview(data)[end:], zlib.crc32(data[:LENGTH_BYTES]))
    return data[LENGTH_BYTES:first] == BEFORE_CHECKSUM and data[first:end] == _digits(checksum)


def read(path: PathLike) -> Recipe | CellRecipe:
    """The recipe in a file. Raises as ``ctm_fast.engine.load``."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"load: path must be a file, got {str(path)!r}")
    data = path.read_bytes()
    header, start = _header(data, path)
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise ValueError(f"load: path must be an engine's file, got another safetensors file: {str(path)!r}")
    if metadata.get("version") != VERSION:
        found = metadata.get("version")
        raise ValueError(f"load: path must be an engine's file of version {VERSION}, got version {found}")
    try:
        reason = None if _is_sealed(data) else "other bytes than were written"
        if not reason:
            arrays = _arrays(data, start, header)
            recipe, reason = _checked_recipe(json.loads(metadata["config"]), arrays)
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        reason = str(error)
    if reason:
        raise ValueError(f"load: path must be a whole engine's file, got {reason}: {str(path)!r}")
    return recipe


def _header(data: bytes, path: Path) -> tuple[dict[str, Any], int]:
    """The JSON header, and where the arrays begin."""
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    start = LENGTH_BYTES + length
    if len(data) < LENGTH_BYTES or length > MOST_HEADER_BYTES or start > len(data):
        raise ValueError(f"load: path must be an engine's file, got a damaged or foreign one: {str(path)!r}")
    try:
        header = json.loads(data[LENGTH_BYTES:start])
    except (RecursionError, ValueError):
        header = None
    if not isinstance(header, dict):
        raise ValueError(f"load: path must be an engine's file, got a damaged or foreign one: {str(path)!r}")
    return header, start


def _arrays(data: bytes, start: int, header: dict[str, Any]) -> dict[str, np.ndarray]:
    """Arrays that lie one behind the other, from the header's end to the file's."""
    found, at = {}, start
    for name, entry in header.items():
        dtype, shape = DTYPES[entry["dtype"]], tuple(whole(size) for size in entry["shape"])
        count = math.prod(shape)
        end = at + count * dtype.itemsize
        if min(shape, default=0) < 0 or entry["data_offsets"] != [at - start, end - start] or end > len(data):
            raise ValueError(f"arrays that do not fill it, {name} among them")
        native = np.frombuffer(data, dtype, count, at).reshape(shape)
        found[name], at = native.astype(dtype.newbyteorder("=")), end
    if at != len(data):
        raise ValueError("arrays that do not fill it")
    return found


def _checked_recipe(
    config: dict[str, Any], arrays: dict[str, np.ndarray]
) -> tuple[Recipe | CellRecipe, str | None]:
    """A recipe of either kind, and the reason against it."""
    if config["kind"] in cell_recipe.KINDS:
        cell = CellRecipe.from_config(config, arrays)
        return cell, cell_recipe.reason_against(cell) or reason_against_values(arrays)
    recipe = _recipe(config, arrays)
    return recipe, reason_against(recipe) or reason_against_values(arrays)


def _config(recipe: Recipe) -> dict[str, Any]:
    config = {"kind": recipe.kind, "iterations": recipe.iterations, "sizes": recipe.sizes._asdict()}
    config |= {"stages": [stage._asdict() for stage in recipe.stages], "weights": recipe.weights}
    config["fronts"] = {name: _front_config(front) for name, front in recipe.fronts.items()}
    config["question"] = recipe.question._asdict() if recipe.question is not None else None
    return config


def _recipe(config: dict[str, Any], arrays: dict[str, np.ndarray]) -> Recipe:
    sizes = Sizes(**{name: whole(value) for name, value in config["sizes"].items()})
    stages = tuple(_stage(**stage) for stage in config["stages"])
    fronts = {name: _front(**x) if x is not None else None for name, x in config["fronts"].items()}
    question = config["question"]
    if question is not None:
        question = Question(**{name: whole(value) for name, value in question.items()})
    iterations = whole(config["iterations"])
    return Recipe(
        config["kind"], iterations, sizes, stages, arrays, config["weights"], question=question, **fronts
    )


def _stage(kind: str, eps: float, outer_eps: float, **sizes: int) -> Stage:
    return Stage(
        kind, eps=number(eps), outer_eps=number(outer_eps), **{k: whole(v) for k, v in sizes.items()}
    )


def _front_config(front: Front | None) -> dict[str, Any] | None:
    if front is None:
        return None
    return {**vars(front), "stages": [stage._asdict() for stage in front.stages]}


def _front(name: str, reads: str, shape: list[int], ends: list[int], stages: list[dict[str, Any]]) -> Front:
    sizes, ends_ = tuple(whole(size) for size in shape), tuple(whole(end) for end in ends)
    return Front(name, reads, sizes, ends_, tuple(_front_stage(**stage) for stage in stages))


def _front_stage(kind: str, eps: float, **sizes: int) -> FrontStage:
    return FrontStage(kind, eps=number(eps), **{k: whole(v) for k, v in sizes.items()})
