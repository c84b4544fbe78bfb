"""Widths of an engine's weights: float32, bfloat16, or int8 with one scale for each output.

The weights of the linear maps that a tick reads and of the neuron-level models can be narrow; biases, LayerNorms,
decays and the keys' and values' map stay float32, and so does everything that is computed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

FLOAT32, BFLOAT16, INT8 = WIDTHS = (
    "float32",
    "bfloat16",
    "int8",
)  # in the order of WeightType in csrc/engine.h

MATRICES = (
    "query",
    "from_given",
    "project",
    "energy",
)  # (outputs, inputs), as is stage0.weight, stage1.weight, ...
MODELS = ("w1", "w2")  # (inputs, outputs, neurons)

SCALE = ".scale"  # behind the name of an int8 array: that of its scales
MOST_INT8 = 127
MOST_SCALE = np.nextafter(
    np.float32(np.finfo(np.float32).max / MOST_INT8), np.float32(0)
)  # 127 times it is finite

EXPONENT = 0x7F80  # bits of a bfloat16 that all are one where it is not finite

Arrays = dict[str, np.ndarray]


class Difference(NamedTuple):
    """What narrow weights change in an engine's results: ||narrow - float32|| / ||float32||.

    Attributes:
        predictions, certainties: None for a model that has none.
        synchronisation: that of the last tick.
        argmaxes: softmaxes, of all samples and ticks, whose largest prediction is another one.
        softmaxes: of how many.
    """

    predictions: float | None
    certainties: float | None
    synchronisation: float
    argmaxes: int
    softmaxes: int


def check(op: str, width: Any) -> None:
    """Raise ``ValueError`` unless this is one of ``WIDTHS``."""
    if width not in WIDTHS:
        raise ValueError(f"{op}: weights must be one of {', '.join(WIDTHS)}, got {width!r}")


def is_weights(name: str) -> bool:
    """Whether the array of this name can be narrow."""
    return name in MATRICES + MODELS or (name.startswith("stage") and name.endswith(".weight"))


def dtype_of(name: str, width: str) -> np.dtype[Any]:
    """What the array of this name holds; bfloat16 as its bits."""
    narrow = {BFLOAT16: np.uint16, INT8: np.int8}
    return np.dtype(narrow.get(width, np.float32) if is_weights(name) else np.float32)


def scale_shapes(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shapes of the scales of int8 weights, by name."""
    return {
        name + SCALE: shape[1:] if name in MODELS else shape[:1]
        for name, shape in shapes.items()
        if is_weights(name)
    }


def narrowed(arrays: Arrays, width: str) -> Arrays:
    """Float32 arrays with weights of this width.

    Raises:
        ValueError: weights hold NaN or infinity.
    """
    found: Arrays = {}
    for name, x in arrays.items():
        if width == FLOAT32 or not is_weights(name):
            found[name] = x
            continue
        if not np.isfinite(x).all():
            raise ValueError(f"Engine: weights must be finite to be {width}, got NaN or infinity in {name}")
        if width == BFLOAT16:
            found[name] = to_bfloat16(x)
        else:
            found[name], found[name + SCALE] = to_int8(x, _inputs_axis(name))
    return found


def widened(arrays: Arrays, width: str) -> Arrays:
    """Float32 arrays of the values that arrays of this width stand for."""
    found: Arrays = {}
    for name, x in arrays.items():
        if width == BFLOAT16 and is_weights(name):
            found[name] = (x.astype(np.uint32) << 16).view(np.float32)
        elif width == INT8 and is_weights(name):
            found[name] = x * np.expand_dims(arrays[name + SCALE], _inputs_axis(name))
        elif not name.endswith(SCALE):
            found[name] = x
    return found


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """Bits of the nearest bfloat16, ties to even; what would overflow is the largest finite one."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where((rounded & 0x7FFF) == 0x7F80, rounded - 1, rounded).astype(np.uint16)


def to_int8(x: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Multiples of a scale, max|x| / 127 along an axis, and the scales without it.

    Where that is no normal number all multiples are zero: the engine flushes denormals.
    """
    scale = (np.abs(x).max(axis, initial=0.0) / MOST_INT8).astype(np.float32)
    scale = np.where(scale < np.finfo(np.float32).tiny, np.float32(0), np.minimum(scale, MOST_SCALE))
    divisor = np.expand_dims(np.where(scale == 0, np.float32(np.inf), scale), axis)
    multiples = np.clip(np.rint(x / divisor), -MOST_INT8, MOST_INT8)
    return multiples.astype(np.int8), scale


def _inputs_axis(name: str) -> int:
    return 0 if name in MODELS else 1


def reason_against_values(arrays: Arrays) -> str | None:
    """Why these arrays of a file, weights of any width among them, hold no numbers to compute with, or None."""
    for name, x in arrays.items():
        finite = (x & EXPONENT) != EXPONENT if x.dtype == np.uint16 else np.isfinite(x)
        if not finite.all():
            return f"NaN or infinity in {name}"
    return None


def reason_against_scales(arrays: Arrays) -> str | None:
    """Why the scales among these arrays are none, or None."""
    for name, x in arrays.items():
        if name.endswith(SCALE) and not (np.isfinite(x) & (x >= 0)).all():
            return f"{name} that are negative or not finite"
    return None
