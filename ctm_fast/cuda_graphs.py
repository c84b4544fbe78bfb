"""Runs a whole model under CUDA graphs: one launch for its forward, one for its backward.

A small CTM calls hundreds of kernels that the GPU finishes sooner than Python can launch them. A recorded graph
of them is launched as one. What a graph reads and writes has fixed addresses, so a recording holds copies of the
inputs, and whatever it returns is copied out.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ctm_fast.acceleration import recognise
from ctm_fast.loop.plan import HOOKS
from ctm_fast.ops import checks
from ctm_fast.ops.grad import refuse_double_backward

__all__ = ["capture", "release"]

DEVICE = "cuda"

Model = TypeVar("Model", bound=nn.Module)
Found = TypeVar("Found")


def capture(model: Model, *example_inputs: Any, warmups: int = 3) -> Model:
    """Let ``model`` run its forward, and the backward of it, as CUDA graphs; returns ``model``.

    A graph is recorded at the first call in each mode (training or eval, with or without gradients, with or
    without autocast) and replayed from then on. Class, parameters, state_dict, optimisers, gradient accumulation
    and hooks of the model itself go on as before, dropout draws new masks at every replay, and what the model
    returns is a copy that may be kept. The model is called without a graph where a graph would be wrong:

    - arguments of another structure, shape, dtype or device than ``example_inputs``, or given by name, such as
      ``track=True``;
    - a forward with gradients while the one before still waits for its backward;
    - inside ``torch.compile`` and while somebody else captures a graph.

    Graphs are recorded anew after parameters moved, were frozen or thawed, and for another number of ticks
    (``iterations``). After any other change (a submodule replaced, its settings, hooks on it) capture again.

    Args:
        model: any module on one CUDA device that returns tensors in tuples, lists or dictionaries, and neither
            waits for the GPU nor decides by values; the CTMs of ``ctm_fast.models`` and accelerated ones do so but
            for QAMNIST's, whose ticks depend on its digits.
        example_inputs: what the forward will be called with, tensors or nested tuples of them; only structure,
            shape and dtype are read.
        warmups: calls before a recording, at least 1. They leave buffers and random numbers as they were.

    Raises:
        TypeError, ValueError: "capture: argument must ..., got ...".
        RuntimeError: from a backward that runs twice, or after parameters were written to since its forward.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"capture: model must be a torch.nn.Module, got {type(model).__name__}")
    checks.integer("capture", "warmups", warmups, 1)
    release(model)
    _check_model(model)
    device = _device(model)
    leaves, _ = pytree.tree_flatten(example_inputs)
    if not leaves:
        raise ValueError("capture: example_inputs must hold a tensor, got none")
    for x in leaves:
        if not isinstance(x, Tensor):
            raise TypeError(f"capture: example_inputs must hold tensors alone, got {type(x).__name__}")
        if x.device != device:
            raise ValueError(
                f"capture: example_inputs must be on the device of model, {device}, got {x.device}"
            )
    model.__dict__["forward"] = _Captured(model, _signature(example_inputs), warmups)
    return model


def release(model: Model) -> Model:
    """Undo :func:`capture` and free its graphs; returns ``model``. Does nothing where there are none.

    Raises ``TypeError`` where ``model`` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"release: model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model.__dict__.get("forward"), _Captured):
        del model.__dict__["forward"]
    return model


def _check_model(model: nn.Module) -> None:
    name = type(model).__name__
    if "forward" in model.__dict__:
        raise ValueError(
            f"capture: model must run the forward of its class, got {name} with another set on the object"
        )
    for part in model.modules():
        if recognise(part) == "qamnist":
            raise ValueError(
                f"capture: model must not decide by values, got {type(part).__name__}, whose ticks depend on its digits"
            )
        if part is not model and any(vars(part).get(hooks) for hooks in HOOKS):
            raise ValueError(
                f"capture: model must have no hooks on its parts, got one on {type(part).__name__}"
            )
    if any(p._backward_hooks for p in model.parameters()):
        raise ValueError(f"capture: model must have no hooks on its parameters, got {name} with one")


def _device(model: nn.Module) -> torch.device:
    devices = {x.device for x in (*model.parameters(), *model.buffers())}
    if len(devices) != 1 or next(iter(devices)).type != DEVICE:
        found = " and ".join(sorted(map(str, devices))) or "a model without parameters"
        raise ValueError(f"capture: model must be on a CUDA device, got {found}")
    return devices.pop()


def _signature(value: Any) -> Any:
    """What inputs must agree in to run in one graph."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.device
    if isinstance(value, tuple | list):
        return type(value), *map(_signature, value)
    return type(value)


class _Captured:
    """Stands in for the forward of a model: replays recordings of it, or calls it."""

    def __init__(self, model: nn.Module, signature: Any, warmups: int) -> None:
        self.model, self.signature, self.warmups = model, signature, warmups
        self._forget()

    def _forget(self) -> None:
        self.recordings: dict[tuple[Any, ...], _Recording] = {}
        self.modules = list(self.model.modules())
        self.parameters = list(self.model.parameters())
        self.buffers = list(self.model.buffers())
        self.addresses = self._addresses()

    def _addresses(self) -> list[int]:
        return [x.data_ptr() for x in (*self.parameters, *self.buffers)]

    def __getstate__(self) -> dict[str, Any]:
        """A copy of the model records graphs of its own."""
        return {"model": self.model, "signature": self.signature, "warmups": self.warmups}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs or torch.compiler.is_compiling() or _signature(args) != self.signature or _is_capturing():
            return self.plain(*args, **kwargs)
        if "recordings" not in self.__dict__ or self._addresses() != self.addresses:
            self._forget()
        inputs: list[Tensor] = pytree.tree_leaves(args)
        mode = self._mode(inputs)
        recording = self.recordings.get(mode)
        if recording is None:
            recording = self.recordings[mode] = self._record(args)
        if recording.waits():
            return self.plain(*args)
        return recording(inputs, self.parameters)

    def plain(self, *args: Any, **kwargs: Any) -> Any:
        """The forward without a graph."""
        return type(self.model).forward(self.model, *args, **kwargs)

    def _mode(self, inputs: Sequence[Tensor]) -> tuple[Any, ...]:
        """What a recording holds for."""
        autocast = torch.is_autocast_enabled(DEVICE) and torch.get_autocast_dtype(DEVICE)
        learns = [x.requires_grad for x in (*inputs, *self.parameters)] if torch.is_grad_enabled() else []
        training = tuple(part.training for part in self.modules)
        return type(self.model), getattr(self.model, "iterations", None), training, autocast, tuple(learns)

    def _record(self, args: tuple[Any, ...]) -> _Recording:
        gradients = torch.is_grad_enabled()  # inference_mode(False) would turn them on
        with torch.inference_mode(False), torch.set_grad_enabled(gradients):
            recording = _Recording(self.plain, args, self.parameters)
            with _kept(self.buffers, recording.device):
                _warm_up(recording.once, recording.device, self.warmups)
            if self._addresses() == self.addresses:
                recording.record()
                return recording
        raise RuntimeError(
            f"capture: model must leave its parameters where they are, got {type(self.model).__name__}, whose forward "
            "moves some (ctm_fast.accelerate makes the published CTMs write in place)"
        )


class _Call:
    """A forward that a backward may follow, and the versions of the parameters that it read."""

    def __init__(self, versions: list[int]) -> None:
        self.versions, self.done = versions, False


class _Recording:
    """The graphs of one mode, with what they read and write."""

    def __init__(
        self, forward: Callable[..., Any], args: tuple[Any, ...], parameters: Sequence[Tensor]
    ) -> None:
        leaves, self.structure = pytree.tree_flatten(args)
        self.forward = forward
        self.inputs = [x.detach().clone().requires_grad_(x.requires_grad) for x in leaves]
        self.device = self.inputs[0].device
        given = (*self.inputs, *parameters) if torch.is_grad_enabled() else ()
        self.learns = [x.requires_grad for x in given]
        self.leaves = [x for x in given if x.requires_grad]
        self.outputs: list[Any] = []
        self.upward: list[Tensor] = []
        self.latest: Callable[[], _Call | None] = lambda: None

    def run(self) -> list[Any]:
        """The forward on the recording's own inputs, outside of whatever autocast has kept of the parameters."""
        torch.clear_autocast_cache()
        found = self.forward(*pytree.tree_unflatten(self.inputs, self.structure))
        torch.clear_autocast_cache()
        self.outputs, self.returned = pytree.tree_flatten(found)
        odd = [type(y).__name__ for y in self.outputs if not isinstance(y, Tensor | None)]
        if odd:
            raise ValueError(f"capture: model must return tensors alone, got {', '.join(odd)}")
        return self.outputs

    def differentiable(self) -> list[Tensor]:
        """Outputs that depend on a leaf."""
        return [y for y in self.outputs if y is not None and y.requires_grad]

    def run_backward(self) -> tuple[Tensor | None, ...]:
        """Gradients of the leaves from ``upward``, as outside of autocast."""
        with torch.autocast(self.device.type, enabled=False):
            return torch.autograd.grad(self.differentiable(), self.leaves, self.upward, allow_unused=True)

    def once(self) -> None:
        """One call of all that will be recorded."""
        self.run()
        self.upward = [torch.zeros_like(y) for y in self.differentiable()]
        if self.upward:
            self.run_backward()

    def record(self) -> None:
        """Record the graphs; both have one pool of memory, which no other recording may write to."""
        self.outputs, record = [], _recorder(self.device)
        self.forward_graph, _ = record(self.run)
        self.returns = [y.detach() if y is not None else None for y in self.outputs]
        self.is_differentiable = [y is not None and y.requires_grad for y in self.outputs]
        if self.upward:
            self.backward_graph, self.grads = record(self.run_backward)
        self.outputs = []  # and with them the autograd graph, of which the recorded one is a copy

    def waits(self) -> bool:
        """Whether the last forward may still need for its backward what another would write over."""
        call = self.latest()
        return call is not None and not call.done

    def __call__(self, inputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Any:
        if self.upward:
            call = _Call([p._version for p in parameters])
            self.latest = weakref.ref(call)
            found = _Replay.apply(self, call, *inputs, *parameters)
        else:
            with torch.no_grad():
                found = self.replay(inputs)
        return pytree.tree_unflatten(list(found), self.returned)

    def replay(self, inputs: Sequence[Tensor]) -> tuple[Any, ...]:
        """Copies of the outputs for these inputs."""
        for own, x in zip(self.inputs, inputs, strict=True):
            own.copy_(x)
        self.forward_graph.replay()
        return tuple(y.clone() if y is not None else None for y in self.returns)

    def replay_backward(self, upward: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Copies of the gradients of inputs and parameters for those of the outputs."""
        wanted = (g for g, known in zip(upward, self.is_differentiable, strict=True) if known)
        for upward_of, g in zip(self.upward, wanted, strict=True):
            upward_of.zero_() if g is None else upward_of.copy_(g)
        self.backward_graph.replay()
        own = [g for g in self.grads if g is not None]
        copies = [torch.empty_like(g) for g in own]
        torch._foreach_copy_(copies, own)  # one kernel for all
        copied, found = iter(copies), iter(self.grads)
        return [next(copied) if learns and next(found) is not None else None for learns in self.learns]


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, recording: _Recording, call: _Call, *given: Tensor) -> Any:
        ctx.set_materialize_grads(False)
        inputs, ctx.parameters = given[: len(recording.inputs)], given[len(recording.inputs) :]
        ctx.recording, ctx.call = recording, call
        found = recording.replay(inputs)
        fixed = (y for y, known in zip(found, recording.is_differentiable, strict=True) if not known)
        ctx.mark_non_differentiable(*(y for y in fixed if y is not None))
        return found

    @staticmethod
    def backward(ctx: Any, *upward: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        refuse_double_backward("capture")
        if ctx.call.done:
            raise RuntimeError(
                "capture: backward must run once for a forward, got a second; release the model"
            )
        if ctx.call.versions != [p._version for p in ctx.parameters]:
            raise RuntimeError(
                "capture: backward must run before the parameters of its forward are written to"
            )
        ctx.call.done = True
        return (None, None, *ctx.recording.replay_backward(upward))


@contextmanager
def _kept(buffers: Sequence[Tensor], device: torch.device) -> Iterator[None]:
    """Buffers and random number generators are afterwards as they were."""
    before = [x.detach().clone() for x in buffers]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
    with torch.no_grad():
        for x, value in zip(buffers, before, strict=True):
            x.copy_(value)


def _is_capturing() -> bool:
    return torch.cuda.is_current_stream_capturing()


def _warm_up(run: Callable[[], None], device: torch.device, times: int) -> None:
    """Call ``run`` on a stream of its own: what libraries set up at first calls must not be recorded."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.device(device), torch.cuda.stream(stream):
        for _ in range(times):
            run()
    torch.cuda.current_stream(device).wait_stream(stream)


def _recorder(device: torch.device) -> Callable[[Callable[[], Found]], tuple[Any, Found]]:
    """A function that records what it calls: the graph and what the call returned; one pool for all its graphs."""
    pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)

    def record(run: Callable[[], Found]) -> tuple[Any, Found]:
        graph = torch.cuda.CUDAGraph()
        own = "thread_local"  # other threads, such as a loader's that pins memory, may go on meanwhile
        recorded = torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode=own)
        with torch.cuda.device(device), recorded:
            found = run()
        return graph, found

    return record
