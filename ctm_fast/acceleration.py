"""Makes an existing Continuous Thought Machine fast in place: same parameters, same returns, same numbers."""

from __future__ import annotations

import copy
import functools
import inspect
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.jit import ScriptModule
from torch.nn.modules.dropout import _DropoutNd

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
_CHECKED = "_ctm_fast_checked"  # in the dictionary of a model: training mode -> whether both forwards agree
_CONTAINERS = (dict, OrderedDict, list, set)


def accelerate(model: Model) -> Model:
    """Replace the forward of a CTM, or of every CTM inside ``model``, by the fast one; returns ``model``.

    Recognises the published base, sorting, QAMNIST and reinforcement-learning CTMs, and the fork with an
    energy head, by their attributes, whatever they are called and wherever they come from. Parameters stay
    the same objects, so optimisers keep working; signature, returns, ``track=True``, train and eval mode,
    dropout, the lazy first call, state_dict, deepcopy, pickle and DDP work as before. Submodules of your own,
    with hooks or with parametrizations are called as they are, and so are pieces that a subclass overrides.

    A forward that wraps an inherited one, by ``super().forward``, stays around the fast one. Otherwise the first call
    in eval mode and the first in training mode run the original beside the fast forward: two samples, without
    dropout, for at most one tick more than the memory is long. If they return something else, or write other
    attributes of the model or of its parts, the original forward stays in that mode and the logger ``ctm_fast``
    warns once. Calls with arguments that the published forward does not have run the original.

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
            module.__class__ = type(module).__bases__[0]
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
    """A subclass of ``cls`` under its own name that runs the fast forward.

    Where the forward of ``cls`` wraps an inherited one, the fast one stands in for that: what the wrapper does
    around it stays.
    """
    if (cls, kind) not in _classes:
        owner = next(c for c in cls.__mro__ if "forward" in c.__dict__ and not forward.wraps_inherited(c))
        if owner is cls:
            _classes[cls, kind] = _subclass(cls, (cls,), kind, forward=_fast_forward(owner, kind))
        else:
            _classes[cls, kind] = _subclass(cls, (cls, _accelerated(owner, kind)), kind)
    return _classes[cls, kind]


def _subclass(cls: type, bases: tuple[type, ...], kind: str, **body: Any) -> type:
    def reduce(self: Any, _protocol: Any) -> Any:
        return _rebuild, (cls, kind), self.__getstate__()

    names = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(cls.__name__, bases, {forward.ACCELERATED: kind, "__reduce_ex__": reduce, **names, **body})


def _rebuild(cls: type, kind: str) -> Any:
    return object.__new__(_accelerated(cls, kind))


def _fast_forward(cls: type, kind: str) -> Callable[..., Any]:
    """The method that runs the fast forward in place of that of ``cls``, wherever the two agree."""
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
        checked = self.__dict__.setdefault(_CHECKED, {})
        if self.training not in checked:
            checked[self.training] = _agrees(self, kind, original, inputs)
        if not checked[self.training]:
            return original(self, *args, **kwargs)
        return getattr(forward, kind)(self, *inputs)

    return fast_forward


def _agrees(model: Any, kind: str, original: Any, inputs: list[Any]) -> bool:
    """Whether both forwards give and write the same on few samples in the mode at hand; says so if not."""
    dtype = model.start_trace.dtype
    samples = [_few(value, dtype) for value in inputs]
    expected, written = _observe(model, original, samples)
    reason = f"it computes something else than the published {kind} CTM"
    try:
        found, own = _observe(model, getattr(forward, kind), samples)
    except Exception as error:  # the forward of a fork must go on where the fast one cannot read its parts
        found, own = None, written
        reason = f"the fast one of the {kind} CTM raised {type(error).__name__}: {error}"
    if written != own:
        reason = f"the fast one does not write the same attributes: {', '.join(sorted(written ^ own))}"
    elif _same(expected, found, _TOLERANCE if torch.finfo(dtype).bits > 16 else _TOLERANCE_16_BIT):
        return True
    mode = "training" if model.training else "eval"
    logger.warning("accelerate: %s keeps its own forward, %s (%s mode)", type(model).__name__, reason, mode)
    return False


def _observe(model: Any, run: Callable[..., Any], inputs: list[Any]) -> tuple[Any, set[str]]:
    """What ``run`` gives without dropout, hooks, autocast and gradients, and the attributes that it writes.

    For at most one tick more than the memory is long. Everything that it writes is undone.
    """
    device = model.start_trace.device.type
    storages = [(parameter, parameter.data) for parameter in model.parameters()]
    names = {part: name for name, part in model.named_modules() if not isinstance(part, ScriptModule)}
    kept = {part: part.__dict__ for part in names}
    try:
        for part, own in kept.items():
            object.__setattr__(part, "__dict__", _stand_in(part, own))
        model.iterations = min(model.iterations, model.start_trace.shape[-1] + 1)
        with torch.no_grad(), torch.random.fork_rng(devices=[]), torch.autocast(device, enabled=False):
            torch.default_generator.manual_seed(0)
            found = run(model, *inputs)
        changed = {(part, key) for part, own in kept.items() for key in _differences(own, part.__dict__)}
        return found, {f"{names[part]}.{key}".lstrip(".") for part, key in changed}
    finally:
        for part, own in kept.items():
            object.__setattr__(part, "__dict__", own)
        for parameter, data in storages:
            parameter.data = data  # the published forward puts clamped decays into storages of their own


def _stand_in(part: nn.Module, own: dict[str, Any]) -> dict[str, Any]:
    """Attributes for a run that must leave the part as it is: containers and buffers of their own, no dropout."""
    found = {key: copy.copy(x) if type(x) in _CONTAINERS else x for key, x in own.items()}
    found["_buffers"] = {key: None if x is None else x.clone() for key, x in own["_buffers"].items()}
    found["_forward_hooks"], found["_forward_pre_hooks"] = OrderedDict(), OrderedDict()
    if isinstance(part, _DropoutNd):
        found["p"] = 0.0
    if isinstance(part, nn.MultiheadAttention):
        found["dropout"] = 0.0
    return found


def _differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names of attributes and buffers that are not as they were."""
    old, new = _attributes(before), _attributes(after)
    return [
        *(old.keys() ^ new.keys()),
        *(key for key in old.keys() & new.keys() if _differs(old[key], new[key])),
    ]


def _attributes(own: dict[str, Any]) -> dict[str, Any]:
    return {key: x for key, x in own.items() if key != "_buffers"} | own["_buffers"]


def _differs(before: Any, after: Any) -> bool:
    """Whether a value is another one now; of a container, whether one of its elements is."""
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        return before is not after and not torch.equal(before, after)
    if type(before) not in _CONTAINERS or type(before) is not type(after):
        return before is not after
    old, new = ([*x, *x.values()] if isinstance(x, dict) else list(x) for x in (before, after))
    return len(old) != len(new) or any(a is not b for a, b in zip(old, new, strict=True))


def _few(value: Any, dtype: torch.dtype) -> Any:
    """The first two samples of every tensor, a batch for BatchNorm; floating-point ones in the model's dtype."""
    if isinstance(value, Tensor) and value.dim():
        return value[:2].to(dtype) if value.is_floating_point() else value[:2]
    return tuple(_few(item, dtype) for item in value) if isinstance(value, tuple | list) else value


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
