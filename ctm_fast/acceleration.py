"""Makes an existing Continuous Thought Machine fast in place: same parameters, same returns, same numbers."""

from __future__ import annotations

import copy
import functools
import inspect
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.jit import ScriptModule
from torch.nn.modules.dropout import _DropoutNd

from ctm_fast import forward
from ctm_fast.loop import plan, run

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
_TOLERANCE = 1e-3  # of the check on first use: float32 rounding over all ticks stays far below
_TOLERANCE_16_BIT = 5e-2
_CHECKED = "_ctm_fast_checked"  # in the dictionary of a model: (training, track) -> whether both agree
_CONTAINERS = (dict, OrderedDict, list, set)
_checking = threading.RLock()  # reentrant: a backbone may be or hold another accelerated model


def accelerate(model: Model) -> Model:
    """Replace the forward of a CTM, or of every CTM inside ``model``, by the fast one; returns ``model``.

    Recognises the published base, sorting, QAMNIST and reinforcement-learning CTMs, and the fork with an
    energy head, by their attributes, whatever they are called and wherever they come from. Parameters stay
    the same objects, so optimisers keep working; signature, returns, ``track=True``, train and eval mode,
    dropout, the lazy first call, state_dict, deepcopy, pickle and DDP work as before. Submodules of your own,
    with hooks or with parametrizations are called as they are, and so are pieces that a subclass overrides.

    A forward that wraps an inherited one, by ``super().forward``, stays around the fast one. Otherwise the first use of
    each mode (eval or training, with or without ``track``) runs the original beside the fast forward on a deep copy of
    the model: all its ticks, two samples (the whole batch where the original does not run on two), without dropout and
    hooks. For that moment there are two models in memory, and calls from other threads wait. If the two return
    something else, or write other attributes of the model or of its parts, or if the check cannot run, the original
    forward stays in that mode and the logger ``ctm_fast`` warns once. Calls with arguments that the published forward
    does not have run the original, and so do ``torch.jit.trace`` and ``torch.export``.

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

    @functools.wraps(original)
    def fast_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if forward.takes_published(self):
            return original(self, *args, **kwargs)
        return fast_or_original(self, *args, **kwargs)

    @torch.compiler.disable
    def fast_or_original(self: Any, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(self, *args, **kwargs)
        further = bound.arguments.keys() - {own, *names}
        bound.apply_defaults()
        inputs = [bound.arguments[name] for name in names]
        track = inputs[-1] if len(inputs) == _INPUTS[kind] else False
        if further or not isinstance(track, int | None):
            return original(self, *args, **kwargs)
        checked, mode = self.__dict__.setdefault(_CHECKED, {}), (self.training, bool(track))
        if mode not in checked:
            with _checking:
                if mode not in checked and (reason := _why_not(self, kind, original, inputs)):
                    found = original(self, *args, **kwargs)  # a call that raises here too decides nothing
                    checked[mode] = False
                    _say(self, mode, reason)
                    return found
                checked.setdefault(mode, True)
        if not checked[mode]:
            return original(self, *args, **kwargs)
        return getattr(forward, kind)(self, *inputs)

    return fast_forward


def _say(model: nn.Module, mode: tuple[bool, bool], reason: str) -> None:
    name = ("training" if mode[0] else "eval") + " mode" + (", tracked" if mode[1] else "")
    logger.warning("accelerate: %s keeps its own forward, %s (%s)", type(model).__name__, reason, name)


def _why_not(model: Any, kind: str, original: Any, inputs: list[Any]) -> str:
    """Why the fast forward cannot stand in for the original in the mode at hand; empty if it can."""
    dtype = model.start_trace.dtype
    samples = [_first(value, 2, dtype) for value in inputs]
    try:
        expected, written = _observe(model, original, samples)
    except Exception:  # it may need the batch that it was given
        samples = [_first(value, None, dtype) for value in inputs]
        try:
            expected, written = _observe(model, original, samples)
        except Exception as error:  # no copy of the model, or a wrong call, which raises on the model too
            return f"it cannot be checked on a copy: {type(error).__name__}: {error}"
    try:
        found, own = _observe(model, getattr(forward, kind), samples)
    except Exception as error:  # the forward of a fork must go on where the fast one cannot read its parts
        return f"the fast one of the {kind} CTM raised {type(error).__name__}: {error}"
    if written != own:
        return f"the fast one does not write the same attributes: {', '.join(sorted(written ^ own))}"
    if _same(expected, found, _TOLERANCE if torch.finfo(dtype).bits > 16 else _TOLERANCE_16_BIT):
        return ""
    return f"it computes something else than the published {kind} CTM"


def _observe(model: Any, forward_of: Callable[..., Any], inputs: list[Any]) -> tuple[Any, set[str]]:
    """What ``forward_of`` gives on a copy of ``model`` without dropout, hooks, autocast and gradients, and the
    attributes that it writes.
    """
    tried = _copied(model)
    names = {part: name for name, part in tried.named_modules() if not isinstance(part, ScriptModule)}
    before = {part: _attributes(part) for part in names}
    device = model.start_trace.device.type
    with torch.no_grad(), torch.random.fork_rng(devices=[]), torch.autocast(device, enabled=False):
        torch.default_generator.manual_seed(0)
        found = forward_of(tried, *inputs)
    changed = [(part, key) for part in names for key in _differences(before[part], _attributes(part))]
    return found, {f"{names[part]}.{key}".lstrip(".") for part, key in changed}


def _copied(model: Any) -> Any:
    """A deep copy with its own forward, without hooks and dropout, of which no message is logged."""
    memo: dict[int, Any] = {}
    for part in model.modules():
        memo |= {id(vars(part)[hooks]): OrderedDict() for hooks in plan.HOOKS if hooks in vars(part)}
        # What an earlier forward left cannot be copied with its graph.
        memo |= {id(x): x.detach().clone() for x in _tensors(vars(part)) if not x.is_leaf}
    tried = restore(copy.deepcopy(model, memo))
    for part in tried.modules():
        if isinstance(part, _DropoutNd):
            part.p = 0.0
        if isinstance(part, nn.MultiheadAttention):
            part.dropout = 0.0
    run.say_nothing(tried.synapses)
    return tried


def _tensors(value: Any) -> list[Tensor]:
    """The tensors in nested containers."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [x for item in value for x in _tensors(item)] if isinstance(value, list | tuple | set) else []


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Names of attributes and buffers that are not as they were."""
    return [
        *(old.keys() ^ new.keys()),
        *(key for key in old.keys() & new.keys() if _differs(old[key], new[key])),
    ]


def _attributes(part: nn.Module) -> dict[str, Any]:
    """Attributes and buffers, such that writing into a container or buffer of ``part`` does not write here."""
    own = {key: copy.copy(x) if type(x) in _CONTAINERS else x for key, x in vars(part).items()}
    buffers = own.pop("_buffers")
    return own | {key: None if x is None else x.clone() for key, x in buffers.items()}


def _differs(before: Any, after: Any) -> bool:
    """Whether a value is another one now; of a container, whether one of its elements is."""
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        return before is not after and not torch.equal(before, after)
    if type(before) not in _CONTAINERS or type(before) is not type(after):
        return before is not after
    old, new = ([*x, *x.values()] if isinstance(x, dict) else list(x) for x in (before, after))
    return len(old) != len(new) or any(a is not b for a, b in zip(old, new, strict=True))


def _first(value: Any, count: int | None, dtype: torch.dtype) -> Any:
    """The first samples of every tensor, floating-point ones in the model's dtype; ``None`` takes all."""
    if isinstance(value, Tensor) and value.dim():
        return value[:count].to(dtype) if value.is_floating_point() else value[:count]
    return tuple(_first(item, count, dtype) for item in value) if isinstance(value, tuple | list) else value


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
