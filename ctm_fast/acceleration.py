"""Makes an existing Continuous Thought Machine fast in place: same parameters, same returns, same numbers."""

from __future__ import annotations

import functools
import inspect
import logging
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ctm_fast import backend, forward

logger = logging.getLogger("ctm_fast")

Model = TypeVar("Model", bound=nn.Module)

_RECURRENT = ("iterations", "synapses", "trace_processor", "start_trace", "decay_params_out")
_WIRING = ("out_neuron_indices_left", "out_neuron_indices_right")
_READ_OUT = ("start_activated_state", "output_projector", "prediction_reshaper")
_ATTENTION = (
    "attention", "q_proj", "kv_proj", "decay_params_action", "action_neuron_indices_left",
    "action_neuron_indices_right",
)  # fmt: skip
_NEEDS = {
    "rl": ("start_activated_trace", "backbone", "d_model"),
    "qamnist": (
        *_READ_OUT, *_ATTENTION, "backbone_digit", "index_backbone", "operator_backbone",
        "iterations_for_answering", "iterations_per_question_part",
    ),
    "sort": _READ_OUT,
    "base": (*_READ_OUT, *_ATTENTION, "compute_features"),
}  # fmt: skip
_INPUTS = {"base": 2, "sort": 2, "qamnist": 3, "rl": 3}  # arguments of the published forwards
_classes: dict[tuple[type, str], type] = {}
_TOLERANCE = 1e-3  # of the check on the first call: float32 rounding over a memory's length stays far below
_TOLERANCE_16_BIT = 5e-2
_CHECKED = "_ctm_fast_checked"


def accelerate(model: Model) -> Model:
    """Replace the forward of a CTM, or of every CTM inside ``model``, by the fast one; returns ``model``.

    Recognises the published base, sorting, QAMNIST and reinforcement-learning CTMs, and the fork with an
    energy head, by their attributes, whatever they are called and wherever they come from. Parameters stay
    the same objects, so optimisers keep working; signature, returns, ``track=True``, train and eval mode,
    dropout, the lazy first call, state_dict, deepcopy, pickle and DDP work as before. Submodules of your own,
    with hooks or with parametrizations are called as they are, and so are pieces that a subclass overrides.

    The first call runs the original beside the fast forward on one sample, in eval mode, for at most one tick more
    than the memory is long. If they differ, the model keeps its original forward and the logger ``ctm_fast``
    says so once. Calls with arguments that the published forward does not have run the original.

    Set ``model.recompute_synapses = True`` to keep no synapse activations for the backward pass; they are
    computed again there.

    Models of ``ctm_fast.models`` are fast already and are left alone.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: no CTM was found, and the message says what is missing; or another forward was set on the
            object.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate: model must be a torch.nn.Module, got {type(model).__name__}")
    done = [module for module in model.modules() if _is_ours(module) or _is_accelerated(module)]
    kinds = {module: recognise(module) for module in model.modules() if module not in done}
    found = {module: kind for module, kind in kinds.items() if kind is not None}
    for module in found:
        if "forward" in module.__dict__:
            name = f"{type(module).__name__} with another forward set on the object"
            raise ValueError(f"accelerate: model must run the forward of its class, got {name}")
    for module, kind in found.items():
        module.__class__ = _accelerated(type(module), kind)
    if not found and not done:
        raise ValueError(
            f"accelerate: model must be or contain a Continuous Thought Machine, got {_missing(model)}"
        )
    return model


def restore(model: Model) -> Model:
    """Give every accelerated CTM in ``model`` its own forward back; returns ``model``.

    Does nothing where there is none. Raises ``TypeError`` where ``model`` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"restore: model must be a torch.nn.Module, got {type(model).__name__}")
    for module in model.modules():
        if _is_accelerated(module):
            module.__dict__.pop(_CHECKED, None)
            module.__class__ = type(module).__mro__[1]
    return model


def recognise(model: nn.Module) -> str | None:
    """Which published CTM this is by structure: "base", "sort", "qamnist", "rl", or None."""
    own = "trace_processor" in model._modules  # a wrapper may pass the attributes of its model on
    if not own or not _has(model, _RECURRENT + _WIRING):
        return None
    if _has(model, _NEEDS["rl"]) and not _has(model, ("start_activated_state",)):
        return "rl"
    attends = getattr(model, "attention", None) is not None
    for kind in ("qamnist", "base") if attends else ("sort",):
        if _has(model, _NEEDS[kind]):
            return kind
    return None


def _has(model: nn.Module, names: tuple[str, ...]) -> bool:
    return all(hasattr(model, name) for name in names)


def _missing(model: nn.Module) -> str:
    names = [name for name in _RECURRENT + _WIRING + _NEEDS["sort"] if not hasattr(model, name)]
    attends = getattr(model, "attention", None) is not None
    names += [name for name in _NEEDS["base"] if attends and not hasattr(model, name) and name not in names]
    return f"{type(model).__name__} without {', '.join(names) or 'a known combination of parts'}"


def _is_ours(module: nn.Module) -> bool:
    return hasattr(type(module), "published_forward") and any(
        cls.__module__.startswith("ctm_fast.models") for cls in type(module).__mro__
    )


def _is_accelerated(module: nn.Module) -> bool:
    return forward.ACCELERATED in type(module).__dict__


def _accelerated(cls: type, kind: str) -> type:
    """A subclass of ``cls`` under its own name whose forward is the fast one."""
    if (cls, kind) in _classes:
        return _classes[cls, kind]
    original = cls.forward  # type: ignore[attr-defined]
    signature = inspect.signature(original)
    own, *names = list(signature.parameters)[: _INPUTS[kind] + 1]

    @torch.compiler.disable
    @functools.wraps(original)
    def fast_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if backend.selected() == "reference" or forward.is_lazy(self):
            return original(self, *args, **kwargs)
        bound = signature.bind(self, *args, **kwargs)
        if bound.arguments.keys() - {own, *names}:
            return original(self, *args, **kwargs)
        bound.apply_defaults()
        inputs = [bound.arguments[name] for name in names]
        if _CHECKED not in self.__dict__:
            self.__dict__[_CHECKED] = _agrees(self, kind, original, inputs)
        if not self.__dict__[_CHECKED]:
            return original(self, *args, **kwargs)
        return getattr(forward, kind)(self, *inputs)

    def reduce(self: Any, _protocol: Any) -> Any:
        return _rebuild, (cls, kind), self.__getstate__()

    body = {
        forward.ACCELERATED: kind, "forward": fast_forward, "__reduce_ex__": reduce,
        "__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__,
    }  # fmt: skip
    _classes[cls, kind] = type(cls.__name__, (cls,), body)
    return _classes[cls, kind]


def _rebuild(cls: type, kind: str) -> Any:
    return object.__new__(_accelerated(cls, kind))


def _agrees(model: Any, kind: str, original: Any, inputs: list[Any]) -> bool:
    """Whether both forwards give the same on one sample in eval mode; says so if not."""
    dtype = model.start_trace.dtype
    sample = [_first(value, dtype) for value in inputs]
    reason = f"it computes something else than the published {kind} CTM"
    with _probed(model):
        expected = original(model, *sample)
        try:
            found = getattr(forward, kind)(model, *sample)
        except (
            Exception
        ) as error:  # the forward of a fork must go on where the fast one cannot read its parts
            found, reason = None, f"the fast one of the {kind} CTM raised {type(error).__name__}: {error}"
    if _same(expected, found, _TOLERANCE if torch.finfo(dtype).bits > 16 else _TOLERANCE_16_BIT):
        return True
    logger.warning("accelerate: %s keeps its own forward, %s", type(model).__name__, reason)
    return False


@contextmanager
def _probed(model: Any) -> Iterator[None]:
    """A memory's length of ticks, eval mode, no autocast, no hooks, no gradients; all as before afterwards."""
    device = model.start_trace.device.type
    kept = {key: model.__dict__[key] for key in ("iterations", "kv_features") if key in model.__dict__}
    storages = [(parameter, parameter.data) for parameter in model.parameters()]
    parts = [(part, part.training, part._forward_hooks, part._forward_pre_hooks) for part in model.modules()]
    try:
        for part, *_ in parts:
            part.training = False
            part._forward_hooks, part._forward_pre_hooks = OrderedDict(), OrderedDict()
        model.iterations = min(model.iterations, model.start_trace.shape[-1] + 1)
        with torch.no_grad(), torch.random.fork_rng(devices=[]), torch.autocast(device, enabled=False):
            yield
    finally:
        for part, *before in parts:
            part.training, part._forward_hooks, part._forward_pre_hooks = before
        for parameter, data in storages:
            parameter.data = data  # the published forward puts clamped decays into storages of their own
        model.__dict__.update(kept)


def _first(value: Any, dtype: torch.dtype) -> Any:
    """The first sample of every tensor, floating-point ones in the dtype of the model."""
    if isinstance(value, Tensor) and value.dim():
        return value[:1].to(dtype) if value.is_floating_point() else value[:1]
    return tuple(_first(item, dtype) for item in value) if isinstance(value, tuple | list) else value


def _same(expected: Any, found: Any, tolerance: float) -> bool:
    if isinstance(expected, tuple | list):
        if not isinstance(found, tuple | list) or len(expected) != len(found):
            return False
        return all(_same(a, b, tolerance) for a, b in zip(expected, found, strict=True))
    if found is None:
        return False
    a, b = torch.as_tensor(expected), torch.as_tensor(found)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance, equal_nan=True)
