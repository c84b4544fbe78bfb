"""Runs a whole model under CUDA graphs: one launch for its forward, one for its backward.

A small CTM calls hundreds of kernels that the GPU finishes sooner than Python can launch them. A recorded graph
of them is launched as one. What a graph reads and writes has fixed addresses, so a recording holds copies of the
inputs, and whatever it returns is copied out.
"""

from __future__ import annotations

import operator
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
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
Constant = int | None  # bools too: inputs that a recording holds for

Model = TypeVar("Model", bound=nn.Module)


def capture(model: Model, *example_inputs: Any, warmups: int = 3) -> Model:
    """Let ``model`` run its forward, and the backward of it, as CUDA graphs; returns ``model``.

    A graph is recorded at the first call in each mode (training or eval, with or without gradients, with or
    without autocast) and replayed from then on. Class, parameters, state_dict, optimisers, gradient accumulation
    and hooks of the model itself go on as before, dropout draws new masks at every replay, and what the model
    returns is a copy that may be kept. The model is called without a graph where a graph would be wrong:

    - arguments of another structure, shape, dtype or device than ``example_inputs``, other ints, bools or None
      among them, or arguments given by name, such as ``track=True``;
    - a forward with gradients while the one before still waits for its backward;
    - inside ``torch.compile`` and while somebody else captures a graph.

    Graphs are recorded anew after parameters moved, were frozen or thawed, after submodules, parameters or buffers
    were replaced, and for another number of ticks (``iterations``). After any other change (settings of a
    submodule, hooks on it) capture again. A captured forward does not keep its model alive.

    Args:
        model: any module on one CUDA device that returns tensors in tuples, lists or dictionaries, and neither
            waits for the GPU nor decides by values; the CTMs of ``ctm_fast.models`` and accelerated ones do so but
            for QAMNIST's, whose ticks depend on its digits.
        example_inputs: what the forward will be called with, at least one tensor, ints, bools and None, or nested
            tuples, lists and dictionaries of them; of tensors only shape and dtype are read.
        warmups: calls before a recording, at least 1. They leave buffers and random numbers as they were.

    Raises:
        TypeError, ValueError: "capture: argument must ..., got ...".
        RuntimeError: from a call whose model waits for the GPU, after which torch may refuse random numbers there,
            and from a backward that runs twice, or after parameters were written to since its forward.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"capture: model must be a torch.nn.Module, got {type(model).__name__}")
    checks.integer("capture", "warmups", warmups, 1)
    release(model)
    if "forward" in model.__dict__:
        name = f"{type(model).__name__} with another set on the object"
        raise ValueError(f"capture: model must run the forward of its class, got {name}")
    device = _device(model)
    _check_inputs(example_inputs, device)
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


def _check_inputs(inputs: tuple[Any, ...], device: torch.device) -> None:
    leaves = pytree.tree_leaves(inputs, is_leaf=lambda x: not isinstance(x, tuple | list | dict))
    for x in leaves:
        if not isinstance(x, Tensor | Constant):
            must = "capture: example_inputs must hold tensors, ints, bools and None alone"
            raise TypeError(f"{must}, got {type(x).__name__}")
        if isinstance(x, Tensor) and x.device != device:
            must = f"capture: example_inputs must be on the device of model, {device}"
            raise ValueError(f"{must}, got {x.device}")
    if not _tensors(leaves):
        raise ValueError("capture: example_inputs must hold a tensor, got none")


def _check_parts(model: nn.Module) -> None:
    for part in model.modules():
        name = type(part).__name__
        if recognise(part) == "qamnist":
            name += ", whose ticks depend on its digits"
            raise ValueError(f"capture: model must not decide by values, got {name}")
        if part is not model and any(vars(part).get(hooks) for hooks in HOOKS):
            raise ValueError(f"capture: model must have no hooks on its parts, got one on {name}")
        if any(p is not None and p._backward_hooks for p in part._parameters.values()):
            raise ValueError(f"capture: model must have no hooks on its parameters, got {name}")


def _device(model: nn.Module) -> torch.device:
    devices = {x.device for x in (*model.parameters(), *model.buffers())}
    if len(devices) != 1 or next(iter(devices)).type != DEVICE:
        found = " and ".join(sorted(map(str, devices))) or "a model without parameters"
        raise ValueError(f"capture: model must be on a CUDA device, got {found}")
    return devices.pop()


def _tensors(leaves: Sequence[Any]) -> list[Tensor]:
    return [x for x in leaves if isinstance(x, Tensor)]


def _signature(value: Any) -> tuple[Any, ...]:
    """What inputs must agree in to run in one graph."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.device
    if isinstance(value, tuple | list):
        return type(value), *map(_signature, value)
    if isinstance(value, dict):
        return type(value), *((key, _signature(x)) for key, x in value.items())
    return type(value), value if isinstance(value, Constant) else None


def _slots(modules: Sequence[nn.Module]) -> list[Any]:
    """Every parameter, buffer and submodule that ``modules`` hold, and None where they hold none."""
    held = (kind for part in modules for kind in (part._parameters, part._buffers, part._modules))
    return [x for kind in held for x in kind.values()]


class _Captured:
    """Stands in for the forward of a model, and is held by it alone: replays recordings of it, or calls it."""

    def __init__(self, model: nn.Module, signature: tuple[Any, ...], warmups: int) -> None:
        self.__setstate__((model, signature, warmups))
        self._forget()

    @property
    def model(self) -> nn.Module:
        """The model, or ``RuntimeError`` where nobody holds it any more."""
        model = self.reference()
        if model is None:
            raise RuntimeError("capture: model must be kept as long as its forward is called, got one freed")
        return model

    def _forget(self) -> None:
        _check_parts(self.model)
        self.recordings: dict[tuple[Any, ...], _Recording] = {}
        self.parts = list(self.model.modules())[1:]
        self.slots = _slots((self.model, *self.parts))
        self.parameters = list(self.model.parameters())
        self.buffers = list(self.model.buffers())
        self.addresses = self._addresses()

    def _addresses(self) -> list[int]:
        return [x.data_ptr() for x in (*self.parameters, *self.buffers)]

    def _is_unchanged(self) -> bool:
        """Whether the model holds the same objects at the same addresses as when it was read last."""
        slots = _slots((self.model, *self.parts))
        same = len(slots) == len(self.slots) and all(map(operator.is_, slots, self.slots))
        return same and self._addresses() == self.addresses

    def __getstate__(self) -> tuple[Any, ...]:
        """A copy of the model records graphs of its own."""
        return self.model, self.signature, self.warmups

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        model, self.signature, self.warmups = state
        self.reference = weakref.ref(model)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        elsewhere = torch.compiler.is_compiling() or torch.cuda.is_current_stream_capturing()
        if kwargs or elsewhere or _signature(args) != self.signature:
            return self.plain(*args, **kwargs)
        if "recordings" not in self.__dict__ or not self._is_unchanged():
            self._forget()
        inputs = _tensors(pytree.tree_leaves(args))
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
        training = tuple(part.training for part in (self.model, *self.parts))
        return type(self.model), getattr(self.model, "iterations", None), training, autocast, tuple(learns)

    def _record(self, args: tuple[Any, ...]) -> _Recording:
        gradients = torch.is_grad_enabled()  # inference_mode(False) would turn them on
        with torch.inference_mode(False), torch.set_grad_enabled(gradients):
            recording = _Recording(args, self.parameters)
            with _kept(self.buffers, recording.device):
                warm_up(partial(recording.once, self.plain), recording.device, self.warmups)
            name = type(self.model).__name__
            if self._is_unchanged():
                with _explained(name):
                    recording.record(self.plain)
                return recording
        name += ", whose forward moves some (ctm_fast.accelerate makes the published CTMs write in place)"
        raise RuntimeError(f"capture: model must leave its parameters where they are, got {name}")


def _own(x: Tensor) -> Tensor:
    """A copy that requires a gradient where ``x`` does."""
    return x.detach().clone().requires_grad_(x.requires_grad)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Says what the model ``name`` did where CUDA refuses to record it."""
    outside = sys.exception()
    try:
        yield
    except RuntimeError as error:
        first: BaseException = error  # the end of a recording that was broken off raises once more
        while first.__context__ not in (None, outside):
            first = first.__context__
        said = str(first).partition("\n")[0]
        if "captur" not in said:
            raise
        must = "neither wait for the GPU nor send it values of the host"
        raise RuntimeError(f"capture: model must {must}, got {name}: {said}") from error


@dataclass
class _Call:
    """A forward that a backward may follow, and the versions of the parameters that it read."""

    versions: list[int]
    done: bool = False


class _Recording:
    """The graphs of one mode, with what they read and write."""

    def __init__(self, args: tuple[Any, ...], parameters: Sequence[Tensor]) -> None:
        self.arguments = pytree.tree_map_only(Tensor, _own, args)
        self.inputs = _tensors(pytree.tree_leaves(self.arguments))
        self.device = self.inputs[0].device
        given = (*self.inputs, *parameters) if torch.is_grad_enabled() else ()
        self.learns = [x.requires_grad for x in given]
        self.leaves = [x for x in given if x.requires_grad]
        self.outputs: list[Any] = []
        self.upward: list[Tensor] = []
        self.latest: Callable[[], _Call | None] = lambda: None

    def run(self, forward: Callable[..., Any]) -> list[Any]:
        """``forward`` on the recording's own inputs, outside of whatever autocast has kept of the parameters."""
        torch.clear_autocast_cache()
        arguments = pytree.tree_map(lambda x: x, self.arguments)  # in containers that the model may write to
        found = forward(*arguments)
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

    def once(self, forward: Callable[..., Any]) -> None:
        """One call of all that will be recorded."""
        self.run(forward)
        self.upward = [torch.zeros_like(y) for y in self.differentiable()]
        if self.upward:
            self.run_backward()

    def record(self, forward: Callable[..., Any]) -> None:
        """Record the graphs; both have one pool of memory, which no other recording may write to."""
        self.outputs, record = [], recorder(self.device)
        self.forward_graph, _ = record(partial(self.run, forward))
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
            raise RuntimeError("capture: backward must run once for a forward, got a second")
        if ctx.call.versions != [p._version for p in ctx.parameters]:
            raise RuntimeError("capture: backward must run before the parameters of its forward change")
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


def warm_up(run: Callable[[], object], device: torch.device, times: int) -> None:
    """Call ``run`` on a stream of its own: what libraries set up at first calls must not be recorded."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.device(device), torch.cuda.stream(stream):
        for _ in range(times):
            run()
    torch.cuda.current_stream(device).wait_stream(stream)


def recorder(device: torch.device) -> Callable[[Callable[[], Any]], tuple[Any, Any]]:
    """A function that records what it calls: the graph and what the call returned; one pool for all its graphs."""
    pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)

    def record(run: Callable[[], Any]) -> tuple[Any, Any]:
        graph = torch.cuda.CUDAGraph()
        own = "thread_local"  # other threads, such as a loader's that pins memory, may go on meanwhile
        recorded = torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode=own)
        # The stream outside is set again by torch.cuda.stream: a recording that was broken off does not do it.
        with torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)), recorded:
            found = run()
        return graph, found

    return record
