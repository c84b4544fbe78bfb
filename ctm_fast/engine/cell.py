"""Engines of recurrent cells, step by step: the Neural Turing Machine, and adaptive computation time.

Letters: T steps, B batch, I inputs, O outputs, L layers of width C, N slots of width W, R read and V write heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ctm_fast import _C
from ctm_fast.engine import weights as widths
from ctm_fast.engine.base import BaseEngine, integer
from ctm_fast.engine.cell_recipe import CellRecipe
from ctm_fast.engine.inputs import as_array, held, parts_of, real

if TYPE_CHECKING:
    from torch import nn

State = tuple[np.ndarray, ...]

STATE = ("hidden", "cell", "memory", "reads", "read_weights", "write_weights")  # the order of csrc/cell.h
LETTERS = {2: "B", 3: "T, B"}


class CellResult(NamedTuple):
    """What a call returns, as NumPy arrays; of a single input without T.

    Attributes:
        output: (T, B, O) float32: logits, or log-probabilities of digits.
        state: after the last step, see :class:`CellEngine`.
        ticks: ticks that each step took (T, B), int32; None of a Neural Turing Machine.
        remainders: weight of each step's last tick (T, B), float32; None likewise. Ticks and remainder together are
            what pondering costs (arXiv 1603.08983, eq. 12). A network without adaptive time takes one tick and has a
            remainder of 0.
    """

    output: np.ndarray
    state: State
    ticks: np.ndarray | None
    remainders: np.ndarray | None


class CellEngine(BaseEngine[CellRecipe]):
    """A recurrent cell in inference, on the CPU in float32; ``ctm_fast.Engine`` makes one of such a model.

    Weights are packed once. A call allocates no native memory, takes no lock and leaves the GIL; it runs on the
    calling thread. An engine runs one call at a time: threads that call at once need one each. In an adaptive step a
    sample that has halted costs no more time.

    Args:
        model: ``ctm_fast.models.NTM``, ``AdaptiveRNN`` or ``AdaptiveLSTM``, in eval mode, in float32 or float64. Later
            changes of it are not seen.
        example_inputs: an input of its forward, tensor or array, with the largest batch that the engine will see. The
            model's and the engine's results for it, and for its first sample alone, must agree.
        threads, weights: 1 and "float32".

    The state between two steps is a tuple of float32 arrays, of which a model lacks some:

    - hidden and cell state, (L, B, C) of a controller, (B, C) of an adaptive network;
    - memory (B, N, W), reads (B, R, W), read weightings (B, R, N) and write weightings (B, V, N).

    Raises:
        TypeError, ValueError: "Engine: argument must ..., got ...".
    """

    def __init__(
        self, model: nn.Module, example_inputs: Any, threads: int = 1, weights: str = widths.FLOAT32
    ) -> None:
        from ctm_fast.engine import agreement, cell_extract

        recipe, expected = cell_extract.extract(model, example_inputs)
        self._prepare(recipe, threads, weights)
        for arguments, wanted in expected:
            agreement.compare(wanted, self._outputs(*arguments))
        self.reset()

    def _outputs(self, x: Any) -> list[np.ndarray]:
        """What ``cell_extract.outputs`` gives of the model."""
        found = self(x)
        outputs = [found.output, *found.state]
        if found.ticks is not None and found.remainders is not None:
            pondered = found.ticks + found.remainders if self._recipe.adaptive else found.remainders
            outputs += [found.ticks, pondered]
        return outputs

    @classmethod
    def _from_recipe(cls, recipe: CellRecipe, threads: int, weights: str) -> CellEngine:
        engine = cls.__new__(cls)
        engine._prepare(recipe, threads, weights)
        return engine

    def _prepare(self, recipe: CellRecipe, threads: int, weights: str) -> None:
        integer("Engine", "threads", threads)
        for name, wanted, found in (("threads", 1, threads), ("weights", widths.FLOAT32, weights)):
            if found != wanted:
                raise ValueError(
                    f"Engine: {name} must be {wanted} for a model of kind {recipe.kind}, got {found}"
                )
        self._recipe = recipe
        self._native = _C.Cell(recipe.sizes, recipe.numbers, recipe.arrays)
        self._resize(recipe.sizes.batch)
        self.computed = 0

    def __call__(self, x: Any, state: Any = None) -> CellResult:
        """Run all steps of a sequence; the engine then goes on from the state after it.

        Args:
            x: (T, B, I), T at least 1; of an adaptive network also one input (B, I).
            state: as of :meth:`set_state`; None for the model's start.

        ``computed`` then holds the number of ticks of all samples together that were computed.
        """
        inputs = self._read(x, (2, 3) if self.kind == "adaptive" else (3,))
        if state is None:
            self.reset(inputs.shape[-2])
        else:
            self.set_state(state)
        return self._run(inputs)

    def _start(self) -> None:
        self._native.reset(self._batch)

    def _restart(self, samples: np.ndarray) -> None:
        (_, before), (_, start) = self._state(), self._state()
        self._native.get_state(self._batch, before)
        self._native.reset(self._batch)
        self._native.get_state(self._batch, start)
        for name, part, first in zip(STATE, before, start, strict=True):
            if part is not None and first is not None:
                of_samples = (slice(None), samples) if part.ndim == 3 and name in STATE[:2] else samples
                part[of_samples] = first[of_samples]
        self._native.set_state(self._batch, before)

    def step(self, x: Any) -> tuple[np.ndarray, State]:
        """One step: output (B, O) and state after it.

        Args:
            x: (B, I); B as of the last :meth:`reset` or :meth:`set_state`.
        """
        found = self._run(self._read(x, (2,)))
        return found.output, found.state

    def get_state(self) -> State:
        """Copies of the parts of the state."""
        state, given = self._state()
        self._native.get_state(self._batch, given)
        return state

    def set_state(self, state: Any) -> None:
        """Continue from a state as :meth:`get_state` returns it, or as the model does."""
        names = list(self._shapes)
        parts = parts_of(state, len(names))
        first = real(f"state's {names[0]}", parts[0])
        batch = first.shape[-2 if self._recipe.sizes.states else 0] if first.ndim > 1 else 0
        given = {}
        for (name, shape), part in zip(self._recipe.state_shapes(batch).items(), parts, strict=True):
            found = held(f"state's {name}", part, shape)
            given[name] = np.ascontiguousarray(found.swapaxes(1, 2) if name == "memory" else found)
        self._resize(batch)
        self._native.set_state(batch, tuple(given.get(name) for name in STATE))

    def _resize(self, batch: int) -> None:
        super()._resize(batch)
        self._shapes = self._recipe.state_shapes(batch)

    def _read(self, x: Any, ranks: tuple[int, ...]) -> np.ndarray:
        found, inputs = as_array(real("x", x)), self._recipe.sizes.inputs
        if found.ndim not in ranks or found.shape[-1] != inputs or len(found) < 1:
            expected = " or ".join(f"({LETTERS[rank]}, {inputs})" for rank in ranks)
            raise ValueError(f"Engine: x must have shape {expected}, got {found.shape}")
        return np.ascontiguousarray(found, np.float32)

    def _state(self) -> tuple[State, tuple[np.ndarray | None, ...]]:
        """Memory for the state, as it is returned and as native code fills it."""
        given = {}
        for name, shape in self._shapes.items():
            given[name] = np.empty(shape if name != "memory" else (shape[0], shape[2], shape[1]), np.float32)
        state = tuple(part.swapaxes(1, 2) if name == "memory" else part for name, part in given.items())
        return state, tuple(given.get(name) for name in STATE)

    def _run(self, x: np.ndarray) -> CellResult:
        n, batch = self._recipe.sizes, x.shape[-2]
        self._require_batch(batch)
        output = np.empty((*x.shape[:-1], n.outputs), np.float32)
        ticks = np.empty(x.shape[:-1], np.int32) if n.most else None
        remainders = np.empty(x.shape[:-1], np.float32) if n.most else None
        state, given = self._state()
        steps = len(x) if x.ndim == 3 else 1
        self.computed = self._native.run(batch, steps, x, (output, ticks, remainders), given)
        if self.computed < 0:
            raise ValueError("Engine: x must be finite, got NaN or infinity")
        if remainders is not None and not self._recipe.adaptive:
            remainders.fill(0)
        return CellResult(output, state, ticks, remainders)
