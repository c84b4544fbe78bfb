"""The engine of a model on a GPU: inputs to device, ticks and results to the host as one CUDA graph.

Inside the graph the ticks run as in any inference there: few samples in the one kernel that holds them all, more in
the loop over Triton's kernels. A GPU does not stop for single samples: rules of halting are applied to the results
of all ticks. Letters: B batch, T ticks, D neurons, M memory length, S pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ctm_fast import cuda_graphs, forward
from ctm_fast.engine import agreement, extract
from ctm_fast.engine.base import integer
from ctm_fast.engine.engine import Engine, State
from ctm_fast.engine.halt import EngineResult, Halt, Reason
from ctm_fast.engine.inputs import shaped
from ctm_fast.engine.recipe import Input
from ctm_fast.engine.weights import FLOAT32
from ctm_fast.halting import halted

WARM_UPS = 3
MOST_GRAPHS = 16  # of other shapes, each with memory of its own

Shapes = tuple[tuple[int, ...], ...]
Function = TypeVar("Function", bound=Callable[..., Any])


def _for_good(function: Function) -> Function:
    """Lets tensors that a call makes or writes to be used by any later one: no gradients, no inference mode."""
    return torch.inference_mode(False)(torch.no_grad()(function))


class CudaEngine(Engine):
    """What ``Engine(model, example_inputs)`` makes of a model on a CUDA device.

    It is called with what the model's forward takes, NumPy arrays or tensors, each of at most the example's size in
    every dimension; the first call with other shapes records a graph for them. A GPU does not stop for single samples:
    halting is applied to the results of all ticks, and ``computed`` says so. A QAMNIST model, whose ticks depend on its
    digits, runs without a graph. A file from :meth:`save` is an engine's for the CPU.
    """

    _native: Any  # the histories of a stateful model

    @_for_good
    def __init__(
        self, model: nn.Module, example_inputs: Any, threads: int = 1, weights: str = FLOAT32
    ) -> None:
        if integer("Engine", "threads", threads) != 1:
            raise ValueError(f"Engine: threads must be 1 for a model on a GPU, got {threads}")
        if weights != FLOAT32:
            raise ValueError(f"Engine: weights must be float32 for a model on a GPU, got {weights!r}")
        kind, example = extract.checked(model, example_inputs)
        self._recipe, _, expected = extract.extract(model, kind, example)
        self._model = extract.copy_of(model)
        self._example: tuple[Tensor, ...] = example[:1] if self.kind == "rl" else example
        self._batch = self._recipe.sizes.batch  # of the state
        if self.kind == "rl":
            self._native = _Histories(self._model, self._batch)
        self._calls: dict[Shapes, _Call] = {}
        self.computed = 0
        agreement.verify(self, model, expected)

    @property
    def inputs(self) -> tuple[Input, ...]:
        """What the model's forward takes."""
        named = zip(("x", "question"), self._example, strict=False)
        return tuple(Input(name, (None,) * x.dim(), str(x.dtype).removeprefix("torch.")) for name, x in named)

    @_for_good
    def _think(self, inputs: tuple[Any, ...], halt: Halt | None) -> EngineResult:
        call, arrays = self._call(inputs)
        predictions, certainties, energies, last = call(arrays)
        batch, _, ticks = predictions.shape
        self.computed = batch * ticks
        if halt is None:
            used, reason = np.full(batch, ticks, np.int32), np.full(batch, Reason.LAST_TICK, np.int32)
            return EngineResult(predictions, certainties, energies, last, used, reason)
        used, reason = halted(halt, certainties, energies)
        seen = np.minimum(np.arange(ticks), used[:, None] - 1)[:, None]
        predictions, certainties = (np.take_along_axis(x, seen, 2) for x in (predictions, certainties))
        energies = None if energies is None else np.take_along_axis(energies, seen, 2)
        return EngineResult(predictions, certainties, energies, call.at(used - 1), used, reason)

    @_for_good
    def step(self, x: Any) -> tuple[np.ndarray, State]:
        self._require_state("step")
        call, arrays = self._call((x,))
        self._require_batch(len(arrays[0]))
        synchronisation, pre, post = call(arrays)
        self.computed = len(synchronisation) * self._recipe.iterations
        return synchronisation, (pre, post)

    def _call(self, inputs: tuple[Any, ...]) -> tuple[_Call, list[Any]]:
        """The recorded call for inputs of these shapes, and them."""
        taken = self.inputs
        if len(inputs) != len(taken):
            names = " and ".join(expected.name for expected in taken)
            raise TypeError(f"Engine: inputs must be {names}, got {len(inputs)} arguments")
        found = [_checked(*each) for each in zip(taken, inputs, self._example, strict=True)]
        shapes = tuple(tuple(x.shape) for x in found)
        if shapes not in self._calls:
            if len(self._calls) == MOST_GRAPHS:
                del self._calls[next(iter(self._calls))]
            self._calls[shapes] = self._record(shapes)
        return self._calls[shapes], found

    def _record(self, shapes: Shapes) -> _Call:
        model, kind = self._model, self.kind
        given = [x.new_zeros(shape) for x, shape in zip(self._example, shapes, strict=True)]
        if kind != "rl":
            return _Call(partial(_think, model, kind, given), given, recorded=kind != "qamnist")
        with self._native.unchanged():
            return _Call(partial(self._native.advance, model, *given), given)


def _checked(expected: Input, x: Any, most: Tensor) -> Any:
    """``x`` as a tensor or an array that fits into the example's."""
    found = shaped(expected, x)
    if not all(1 <= size <= up for size, up in zip(found.shape, most.shape, strict=True)):
        must = f"Engine: {expected.name} must have a shape from 1 to {tuple(most.shape)}"
        raise ValueError(f"{must}, got {tuple(found.shape)}")
    if _is_floating(found) and not _is_floating(most):
        raise TypeError(f"Engine: {expected.name} must be of a dtype like {most.dtype}, got {found.dtype}")
    return found


def _think(model: nn.Module, kind: str, given: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """Predictions, certainties, energies, the last synchronisation (B, S), and that of every tick (T, B, S)."""
    *found, synchronisation = forward.every_tick(model, kind, *given)
    return *found, synchronisation[-1], synchronisation


def _are_finite(given: Sequence[Tensor]) -> Tensor:
    return torch.stack([x.isfinite().all() for x in given]).all()


def _is_floating(x: Any) -> bool:
    return x.dtype.is_floating_point if isinstance(x, Tensor) else x.dtype.kind == "f"


class _Call:
    """A recorded call: what ``run`` computes of ``given``, as arrays; the last of its results stays on the GPU."""

    def __init__(
        self, run: Callable[[], Sequence[Tensor | None]], given: list[Tensor], recorded: bool = True
    ) -> None:
        self.run, self.given, self.device = run, given, given[0].device
        self.staged = [self._host(x.shape, x.dtype) for x in given]
        self.results = self._host(torch.Size((0,)), torch.float32)
        self.replay: Callable[[], object] = self._once
        if recorded:
            cuda_graphs.warm_up(self._once, self.device, WARM_UPS)
            graph, _ = cuda_graphs.recorder(self.device)(self._once)
            self.replay = graph.replay

    def _host(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Memory that the GPU copies from and to by itself."""
        return torch.empty(shape, dtype=dtype, pin_memory=self.device.type == "cuda")

    def _once(self) -> tuple[()]:
        *found, self.kept = self.run()
        self.shapes = [None if x is None else x.shape for x in found]
        every = (_are_finite(self.given).view(1), *(x.flatten() for x in found if x is not None))
        results = torch.cat([x.float() for x in every])
        if self.results.shape != results.shape:
            self.results = self._host(results.shape, torch.float32)
        self.results.copy_(results, non_blocking=True)
        return ()

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        """The results for inputs of the recorded shapes, None where the model has none.

        Raises ``ValueError`` for NaN and infinity.
        """
        for own, staged, x in zip(self.given, self.staged, inputs, strict=True):
            if isinstance(x, Tensor):
                own.copy_(x)
            else:
                np.copyto(staged.numpy(), x, casting="unsafe")
                own.copy_(staged, non_blocking=True)
        self.replay()
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
        finite, *flat = np.split(self.results.numpy().copy(), self._starts())
        if not finite.all():
            raise ValueError("Engine: inputs must be finite, got NaN or infinity")
        parts = iter(flat)
        return [None if shape is None else next(parts).reshape(shape) for shape in self.shapes]

    def _starts(self) -> np.ndarray:
        """Where the results begin in their vector, behind whether the inputs are finite."""
        return np.cumsum([1, *(shape.numel() for shape in self.shapes if shape is not None)])[:-1]

    def at(self, tick: np.ndarray) -> np.ndarray:
        """Row ``tick[b]`` of what was kept (T, B, S), for each sample b."""
        assert self.kept is not None
        ticks = torch.from_numpy(tick.astype(np.int64)).to(self.device)
        return self.kept[ticks, torch.arange(len(tick), device=self.device)].float().cpu().numpy()


class _Histories:
    """Pre- and post-activations (B, D, M) on the GPU, where a graph reads and writes them."""

    def __init__(self, model: Any, batch: int) -> None:
        self.start = [x.detach().clone() for x in (model.start_trace, model.start_activated_trace)]
        self.held = [x.expand(batch, -1, -1).clone() for x in self.start]

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """The histories are afterwards as they were."""
        before = [x.clone() for x in self.held]
        yield
        for own, x in zip(self.held, before, strict=True):
            own.copy_(x)

    def advance(self, model: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        """The synchronisation, and the histories after it, which stay as they were where ``x`` is not finite."""
        pre, post = (history[: len(x)] for history in self.held)
        synchronisation, found = forward.rl(model, x, (pre, post))
        fine = _are_finite([x])
        for own, new in zip((pre, post), found, strict=True):
            own.copy_(torch.where(fine, new, own))
        return synchronisation, pre, post, synchronisation

    # As the extension has them: arrays (B, M, D), None for the start.

    @_for_good
    def set_state(self, batch: int, *histories: np.ndarray | None) -> None:
        for own, x, start in zip(self.held, histories, self.start, strict=True):
            own[:batch] = start if x is None else torch.from_numpy(x).transpose(1, 2).to(own.device)

    def get_state(self, batch: int, *histories: np.ndarray) -> None:
        for own, x in zip(self.held, histories, strict=True):
            x[:] = own[:batch].transpose(1, 2).cpu().numpy()
