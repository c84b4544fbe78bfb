"""What an engine of a recurrent cell is made of: the Neural Turing Machine, and adaptive computation time.

Letters: B batch, I inputs, C width of a layer, L layers, G gates (C, or 4 C of an LSTM), O outputs, N slots of
width W, R read and V write heads, P interface vector, F reads that are fed back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ctm_fast.engine.front import Shapes
from ctm_fast.engine.limits import MOST_ELEMENTS, SIZE_END, is_eps, number, whole

KINDS = ("ntm", "adaptive")

ORDERS, COSINES, KEYS, ADDS = 3, 6, 2, 3  # how many of each csrc/ntm.h has


class Sizes(NamedTuple):
    """In the order of csrc/cell.h."""

    batch: int  # at most
    inputs: int
    width: int
    layers: int
    outputs: int
    states: int  # of a layer: 2 of an LSTM, 1 of tanh units that see their own, 0 of others
    slots: int = 0
    slot_width: int = 0
    read: int = 0
    write: int = 0
    shift: int = 0
    order: int = 0
    cosine: int = 0
    key: int = 0
    add: int = 0
    one_plus: int = 0
    shared: int = 0
    fed_back: int = 0
    split: int = 0
    most: int = 0  # ticks of an adaptive step
    classes: int = 0  # of a digit; 0 for logits

    @property
    def gates(self) -> int:
        """G."""
        return self.width * (4 if self.states == 2 else 1)

    @property
    def interface(self) -> int:
        """P."""
        heads = self.read + self.write
        return heads * (self.slot_width + self.shift + 3) + 2 * self.slot_width * self.write


class Numbers(NamedTuple):
    """In the order of csrc/cell.h."""

    eps: float = 0.0  # of the cosine
    clip: float = math.inf  # of interface vector and output
    threshold: float = 1.0  # of the sum of halting probabilities


@dataclass(frozen=True)
class CellRecipe:
    """An engine of a cell before it is packed. ``adaptive``: whether its ticks are counted."""

    kind: str
    adaptive: bool
    sizes: Sizes
    numbers: Numbers
    arrays: dict[str, np.ndarray]

    def state_shapes(self, batch: int) -> Shapes:
        """Shape of every part of the state by name, in the order of csrc/cell.h."""
        n = self.sizes
        layers = (batch, n.width) if self.kind == "adaptive" else (n.layers, batch, n.width)
        found: Shapes = dict.fromkeys(("hidden", "cell")[: n.states], layers)
        if self.kind == "ntm":
            found |= {"memory": (batch, n.slots, n.slot_width), "reads": (batch, n.read, n.slot_width)}
            found |= {"read_weights": (batch, n.read, n.slots), "write_weights": (batch, n.write, n.slots)}
        return found

    def config(self) -> dict[str, Any]:
        """All but the arrays, as JSON holds it."""
        numbers = {name: x if math.isfinite(x) else None for name, x in self.numbers._asdict().items()}
        return {
            "kind": self.kind,
            "adaptive": self.adaptive,
            "sizes": self.sizes._asdict(),
            "numbers": numbers,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], arrays: dict[str, np.ndarray]) -> CellRecipe:
        """The inverse of :meth:`config`."""
        if type(config["adaptive"]) is not bool:
            raise ValueError(f"{config['adaptive']!r} where a truth value belongs")
        sizes = Sizes(**{name: whole(value) for name, value in config["sizes"].items()})
        numbers = {name: math.inf if x is None else number(x) for name, x in config["numbers"].items()}
        return cls(config["kind"], config["adaptive"], sizes, Numbers(**numbers), arrays)


def shapes_of(n: Sizes) -> Shapes:
    """Shape of every array by name; all are float32."""
    found: Shapes = {"from_input": (n.gates, n.inputs)}
    kept = n.width if n.states else 0
    for i in range(n.layers):
        below = n.width if i else n.fed_back
        found |= {f"layer{i}.recurrent": (n.gates, below + kept), f"layer{i}.bias": (n.gates,)}
    if n.split:
        found["temperature"] = (1,)
    else:
        found |= {"output": (n.outputs, n.width + n.read * n.slot_width), "output_bias": (n.outputs,)}
    if n.most:
        return found | {"flag": (n.gates,), "halting": (n.width,), "halting_bias": (1,)}
    if not n.split:
        found |= {"interface": (n.interface, n.width), "interface_bias": (n.interface,)}
    found |= {"memory": (n.slot_width, n.slots), "reads": (n.read, n.slot_width)}
    return found | {"read_weights": (n.read, n.slots), "write_weights": (n.write, n.slots)}


def reason_against(recipe: CellRecipe) -> str | None:
    """Why no engine can be made of this, or None."""
    n = recipe.sizes
    least = min(n.batch, n.inputs, n.width, n.layers, n.outputs)
    if not all(0 <= x < SIZE_END for x in n) or least < 1 or n.states > 2:
        return "sizes of zero or out of their range"
    if n.layers > len(recipe.arrays):
        return "missing layers"
    reason = _against_ntm(n) if recipe.kind == "ntm" else _against_adaptive(n)
    eps, clip, threshold = recipe.numbers
    if not reason and not (is_eps(eps) and clip > 0 and 0 < threshold <= 1):
        reason = "numbers out of their ranges"
    return reason or _against_arrays(recipe)


def _against_ntm(n: Sizes) -> str | None:
    if min(n.slots, n.slot_width, n.read, n.write) < 1 or not 1 <= n.shift <= n.slots or n.shift % 2 == 0:
        return "sizes of a memory that do not fit each other"
    variants = (n.order < ORDERS, n.cosine < COSINES, n.key < KEYS, n.add < ADDS)
    if not all(variants) or max(n.one_plus, n.shared, n.split) > 1:
        return "an unknown variant of a memory"
    fed_back = n.slot_width if n.split else n.read * n.slot_width
    if n.fed_back not in (0, fed_back) or (n.split and n.width != n.interface + n.outputs):
        return "heads that do not fit the controller"
    return "sizes of another kind than ntm" if n.most or n.classes else None


def _against_adaptive(n: Sizes) -> str | None:
    if n.layers != 1 or not n.states or any(n[Sizes._fields.index("slots") : Sizes._fields.index("most")]):
        return "sizes of another kind than adaptive"
    if n.most < 1 or (n.classes and n.outputs % n.classes):
        return "ticks or digits out of their ranges"
    return None


def _against_arrays(recipe: CellRecipe) -> str | None:
    shapes = shapes_of(recipe.sizes)
    if shapes.keys() != recipe.arrays.keys():
        different = sorted(shapes.keys() ^ recipe.arrays.keys())
        return f"missing or further arrays: {', '.join(different[:5])}"
    for name, shape in shapes.items():
        found = recipe.arrays[name]
        if found.shape != shape or found.dtype != np.float32:
            return f"{name} of shape {found.shape} and {found.dtype} where {shape} and float32 belong"
    elements = recipe.sizes.batch * sum(math.prod(shape) for shape in shapes.values())
    return "sizes beyond any memory" if elements > MOST_ELEMENTS else None


def flat(state: Any) -> list[Any]:
    """The arrays or tensors of a nested state, in order."""
    return [x for part in state for x in flat(part)] if isinstance(state, tuple | list) else [state]
