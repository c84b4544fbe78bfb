"""The engine's Python face. Letters: B batch, T ticks, D neurons, M memory length, C predictions, S pairs."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ctm_fast import _C
from ctm_fast.engine import file
from ctm_fast.engine import weights as widths
from ctm_fast.engine.base import BaseEngine, integer
from ctm_fast.engine.cell import CellEngine
from ctm_fast.engine.cell_recipe import CellRecipe
from ctm_fast.engine.halt import NEVER, EngineResult, Halt
from ctm_fast.engine.inputs import Inputs, check, from_arrays, held, parts_of, real
from ctm_fast.engine.recipe import Input, Recipe
from ctm_fast.files import PathLike

if TYPE_CHECKING:
    from torch import nn

State = tuple[np.ndarray, np.ndarray]
DEVICE = "cuda"


class Engine(BaseEngine[Recipe]):
    """A CTM in inference: all ticks in one native call, on the CPU in float32.

    Weights are packed once. A call allocates no native memory, takes no lock and leaves the GIL; it runs on the
    calling thread and, with more ``threads``, on others that share the batch. An engine runs one call at a time:
    threads that call at once need one each.

    Args:
        model: a base, sorting, QAMNIST or reinforcement-learning CTM of this package or of the published structure,
            in eval mode, in float32 or float64. Later changes of it are not seen.
        example_inputs: arguments of its forward, a tensor or array or a tuple of them, with the largest batch, number
            of tokens and ticks that the engine will see. All outputs of the model and the engine for them, and for the
            first sample alone, must agree within a relative 1e-4; for reinforcement learning those of two steps.
        threads: at least 1. With more, an engine runs only in the process that made it, not in a fork of that.
        weights: "float32"; or "bfloat16" (rounded to nearest) or "int8" (one scale for each output, of neuron-level
            models for each neuron's outputs), where a tick takes as long as reading its weights. They are widened while
            they are read: activations and sums stay float32. With these, the float32 engine is compared with the model
            and then the narrow one with it.

    Call an engine with torch tensors as the model, or with NumPy arrays of what :attr:`inputs` names; an engine from a
    file takes arrays. What lies before the recurrent part runs natively as well, as far as it is made of layers that
    the engine knows; what lies before these runs in torch, in a copy of the model, and gives what arrays hold:

    - "x": the model's input. Sorting; the parity backbone, no backbone, or one of known layers; the backbones of
      reinforcement learning. Values as the model takes them: observations, signs, or whole numbers that are embedded.
    - "features" of the backbone, where that has other layers, such as convolutions: (B, C, H, W) for image models,
      (B, digit ticks, C, H, W) for QAMNIST, (B, F) behind a backbone for reinforcement learning. Positional embedding
      and key-value projection follow natively.
    - "question" of QAMNIST: tokens (B, question ticks), positions from 0 and operators from -1 down.
    - "tokens" (B, L, d) behind the key-value projection, and for QAMNIST (B, digit ticks, L, d) with an embedded
      "question" (B, question ticks, d), where the model brings them about otherwise.

    Known layers: Linear, LayerNorm, GLU, ReLU, GELU (exact), SiLU, Tanh, Embedding, Flatten, Identity, Dropout,
    TransformerEncoderLayer and TransformerEncoder (with ``batch_first``), ``ctm_fast.nn.EncoderLayer`` and ``Encoder``,
    in any ``nn.Sequential`` of them. Every sample has the shape of the example's; tokens may be fewer. Tensors of
    another shape go through that copy up to the recurrent part, as far as they fit the example. An engine is copied by
    :meth:`save` and :func:`load`.

    A model on a CUDA device makes an engine there: inputs, ticks and results are one CUDA graph, arrays are what the
    model's forward takes, and halting is applied to the results of all ticks. A Neural Turing Machine or a network with
    adaptive computation time makes a :class:`ctm_fast.engine.CellEngine`.

    Attributes:
        difference: what narrow weights change on the example, measured when the engine was made of a model; None of
            float32 weights, and of an engine from a file: ``python -m ctm_fast.engine compare`` reports it there.

    Raises:
        TypeError, ValueError: "Engine: argument must ..., got ...".
        IndexError: a call's index lies outside its table.
    """

    difference: widths.Difference | None = None

    def __new__(cls, model: Any, *arguments: Any, **named: Any) -> Any:
        kind = _class_for(model) if cls is Engine else cls
        return object.__new__(kind) if issubclass(kind, Engine) else kind(model, *arguments, **named)

    def __init__(
        self, model: nn.Module, example_inputs: Any, threads: int = 1, weights: str = widths.FLOAT32
    ) -> None:
        from ctm_fast.engine import agreement, extract

        widths.check("Engine", weights)
        kind, example = extract.checked(model, example_inputs)
        recipe, features, expected = extract.extract(model, kind, example)
        self._prepare(recipe, features, threads)
        agreement.verify(self, model, expected)
        if weights != widths.FLOAT32:
            self._narrow(weights, example)

    def _narrow(self, width: str, example: tuple[Any, ...]) -> None:
        from ctm_fast.engine import compare

        exact = compare.results(self, example)
        self._prepare(self._recipe.narrowed(width), self._features, self._threads)
        self.difference = compare.difference(exact, compare.results(self, example), self._recipe.sizes.group)

    @classmethod
    def _from_recipe(cls, recipe: Recipe, threads: int) -> Engine:
        engine = object.__new__(cls)
        engine._prepare(recipe, None, threads)
        return engine

    def _prepare(self, recipe: Recipe, features: Callable[..., Inputs] | None, threads: int) -> None:
        if integer("Engine", "threads", threads) < 1:
            raise ValueError(f"Engine: threads must be at least 1, got {threads}")
        self._recipe, self._features, self._threads = recipe, features, min(threads, recipe.sizes.batch)
        self._process = os.getpid()
        sizes = (*recipe.sizes, self._threads, widths.WIDTHS.index(recipe.weights))
        fronts = [front.native_stages() if front is not None else [] for front in recipe.fronts.values()]
        self._native = _C.Engine(sizes, recipe.native_stages(), fronts, recipe.arrays)
        self._batch = recipe.sizes.batch  # of the state
        self.computed = 0

    @property
    def weights(self) -> str:
        """Their width: "float32", "bfloat16" or "int8"."""
        return self._recipe.weights

    @property
    def inputs(self) -> tuple[Input, ...]:
        """Name, shape and dtype of every array that a call takes, without a state."""
        return self._recipe.inputs

    def __call__(self, *inputs: Any, halt: Halt | None = None) -> EngineResult:
        """Run all ticks, or until every sample has halted.

        Args:
            inputs: see the class. For reinforcement learning (x, (pre, post)) with histories (B, D, M), which replace
                those that the engine keeps: :meth:`step` goes on from what this call leaves.
            halt: when samples stop; those that did no longer cost time. None runs all ticks.

        ``computed`` then holds the number of ticks of all samples together that were computed.

        Raises:
            RuntimeError: another call of this engine runs, or it has several threads and this is a fork of the process
                that made it.
        """
        if self._recipe.sizes.stateful:
            return self._call_stateful(*inputs, halt=halt)
        if halt is not None and not isinstance(halt, Halt):
            raise TypeError(f"Engine: halt must be a Halt or None, got {type(halt).__name__}")
        if halt is not None and self._recipe.sizes.energy == 0 and (halt.energy, halt.delta) != (None, None):
            raise ValueError(
                "Engine: halt must have no rule for energies, got one for a model without energy head"
            )
        return self._think(inputs, halt)

    def _think(self, inputs: tuple[Any, ...], halt: Halt | None) -> EngineResult:
        read = self._read(inputs)
        n, batch, ticks = self._recipe.sizes, read.batch, len(read.schedule)
        predictions = np.empty((ticks, batch, n.classes), np.float32)
        certainties = np.empty((ticks, batch, 2), np.float32)
        energies = np.empty((ticks, batch, 1), np.float32) if n.energy else None
        synchronisation = np.empty((batch, n.pairs), np.float32)
        used, reason = np.empty(batch, np.int32), np.empty(batch, np.int32)
        outputs = (predictions, certainties, energies, synchronisation, used, reason)
        self._run(read, halt.native() if halt is not None else NEVER, (*outputs, None, None))
        return EngineResult(
            _by_sample(predictions), _by_sample(certainties), _by_sample(energies) if energies is not None else None,
            synchronisation, used, reason,
        )  # fmt: skip

    def _read(self, inputs: tuple[Any, ...]) -> Inputs:
        """Checked inputs of a call: by the model's features for tensors, as they are for arrays."""
        if self._features is not None and inputs and hasattr(inputs[0], "detach"):
            read = self._features(*inputs)
        else:
            read = from_arrays(self._recipe, inputs)
        check(read, self._recipe)
        return read

    def _run(self, read: Inputs, halt: tuple[Any, ...], outputs: tuple[np.ndarray | None, ...]) -> None:
        if self._threads > 1 and os.getpid() != self._process:
            raise RuntimeError(
                "Engine: an engine with threads must run in the process that made it, got a fork of it"
            )
        counts = (read.batch, len(read.schedule), read.length, len(read.tokens), len(read.given), read.raw)
        self.computed = self._native.run(counts, read[:3], halt, outputs)
        if self.computed < 0:
            raise ValueError("Engine: inputs must be finite, got NaN or infinity")

    # What is kept between the calls of a model for reinforcement learning.

    def _start(self) -> None:
        self._native.set_state(self._batch, None, None)

    def _restart(self, samples: np.ndarray) -> None:
        pre, post = self._histories()
        self._native.get_state(self._batch, pre, post)
        pre[samples], post[samples] = (self._recipe.arrays[name] for name in ("start", "start_post"))
        self._native.set_state(self._batch, pre, post)

    def step(self, x: Any) -> tuple[np.ndarray, State]:
        """All ticks on one observation: (output synchronisation (B, S), state after it).

        Args:
            x: an observation as a tensor, or the array that :attr:`inputs` describes; B as of the last :meth:`reset`
                or :meth:`set_state`.
        """
        self._require_state("step")
        read = self._read((x,))
        self._require_batch(read.batch)
        synchronisation = np.empty((read.batch, self._recipe.sizes.pairs), np.float32)
        pre, post = self._histories()
        self._run(read, NEVER, (None, None, None, synchronisation, None, None, pre, post))
        return synchronisation, (pre.transpose(0, 2, 1), post.transpose(0, 2, 1))

    def get_state(self) -> State:
        """Histories of pre- and post-activations, copies of shape (B, D, M), the newest last."""
        self._require_state("get_state")
        pre, post = self._histories()
        self._native.get_state(self._batch, pre, post)
        return pre.transpose(0, 2, 1), post.transpose(0, 2, 1)

    def _histories(self) -> State:
        """Memory for them, (B, M, D)."""
        shape = (self._batch, self._recipe.sizes.memory, self._recipe.sizes.neurons)
        return np.empty(shape, np.float32), np.empty(shape, np.float32)

    def set_state(self, state: tuple[Any, Any]) -> None:
        """Continue from histories (B, D, M) as :meth:`get_state` returns them."""
        self._require_state("set_state")
        parts = parts_of(state, 2)
        batch = (*real("state[0]", parts[0]).shape, 0)[0]
        shape = batch, self._recipe.sizes.neurons, self._recipe.sizes.memory
        histories = [held(f"state[{i}]", part, shape) for i, part in enumerate(parts)]
        self._resize(batch)
        self._native.set_state(batch, *(np.ascontiguousarray(x.transpose(0, 2, 1)) for x in histories))

    def _require_state(self, name: str) -> None:
        if not self._recipe.sizes.stateful:
            raise TypeError(
                f"Engine: {name} must be called for a stateful model, got one of kind {self._recipe.kind}"
            )

    def _call_stateful(self, *inputs: Any, halt: Halt | None) -> EngineResult:
        if halt is not None:
            raise ValueError("Engine: halt must be None for a model without predictions, got rules")
        if len(inputs) != 2:
            raise TypeError(f"Engine: inputs must be an observation and a state, got {len(inputs)} arguments")
        self.set_state(inputs[1])
        synchronisation, _ = self.step(inputs[0])
        used = np.full(len(synchronisation), self._recipe.iterations, np.int32)
        return EngineResult(None, None, None, synchronisation, used, np.zeros_like(used))


def _class_for(model: Any) -> type[Any]:
    """The engine for the kind and the device of ``model``."""
    if not hasattr(model, "parameters"):
        return Engine
    from ctm_fast.engine import cell_extract

    if cell_extract.is_cell(model):
        return CellEngine
    if any(p.device.type == DEVICE for p in model.parameters()):
        from ctm_fast.engine.cuda import CudaEngine

        return CudaEngine
    return Engine


def _by_sample(x: np.ndarray) -> np.ndarray:
    """(T, B, n) -> (B, n, T)."""
    return x.transpose(1, 2, 0)


def load(path: PathLike, threads: int = 1, weights: str | None = None) -> Any:
    """Read an engine that ``save`` wrote: an :class:`Engine`, or a :class:`CellEngine` of the kinds "ntm" and
    "adaptive".

    Args:
        threads: at least 1.
        weights: the width to convert float32 weights to, see :class:`Engine`; None keeps that of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or not of an engine, or has narrow weights of another width.
    """
    recipe = file.read(path)
    if isinstance(recipe, CellRecipe):
        return CellEngine._from_recipe(recipe, threads, weights or widths.FLOAT32)
    if weights is not None:
        widths.check("load", weights)
        recipe = recipe.narrowed(weights)
    return Engine._from_recipe(recipe, threads)
