"""Makes an existing Continuous Thought Machine fast in place: same parameters, same returns, same numbers."""

from __future__ import annotations

import functools
import inspect
import logging
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from ctm_fast import forward
from ctm_fast.check import why_not
from ctm_fast.restoration import CHECKED, is_accelerated, restore

__all__ = ["accelerate", "restore"]

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
_checking = threading.RLock()  # reentrant: a backbone may be or hold another accelerated model


def accelerate(model: Model) -> Model:
    """Replace the forward of a CTM, or of every CTM inside ``model``, by the fast one; returns ``model``.

    Recognises the published base, sorting, QAMNIST and reinforcement-learning CTMs, and the fork with an
    energy head, by their attributes, whatever they are called and wherever they come from. Parameters stay
    the same objects, so optimisers keep working; signature, returns, ``track=True``, train and eval mode,
    dropout, the lazy first call, state_dict, deepcopy, pickle and DDP work as before. Submodules of your own,
    with hooks or with parametrizations are called as they are, and so are pieces that a subclass overrides.

    A forward that wraps an inherited one, by ``super().forward``, stays around the fast one. Otherwise the first use of
    each mode (eval or training, with or without ``track``, with or without gradients) runs the original beside the fast
    forward on deep copies of the model, in float64 where it runs there: all its ticks, two samples (the whole batch
    where the original does not run on two), every parameter moved a little and the decays beyond their bounds, without
    hooks and without the dropout of the published parts. For that moment there are several models in memory, and calls
    from other threads wait. If outputs or gradients differ, or other attributes of the model or of its parts are
    written, or if the check cannot run, the original forward stays in that mode and the logger ``ctm_fast`` warns once.
    Calls with arguments that the published forward does not have run the original, and so do models with
    parametrizations of their own, ``torch.jit.trace`` and ``torch.export``.

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
    done = [module for module in model.modules() if _is_ours(module) or is_accelerated(module)]
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
    own = any({"__reduce__", "__reduce_ex__"} & vars(base).keys() for base in cls.__mro__[:-1])

    def reduce(self: Any, _protocol: Any) -> Any:
        if not own:
            return _rebuild, (cls, kind), self.__getstate__()
        plain: Any = object.__new__(cls)  # pickled by the method of its own
        plain.__dict__.update({key: value for key, value in vars(self).items() if key != CHECKED})
        return accelerate, (plain,)

    names = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(cls.__name__, bases, {forward.ACCELERATED: kind, "__reduce_ex__": reduce, **names, **body})


def _rebuild(cls: type, kind: str) -> Any:
    return object.__new__(_accelerated(cls, kind))


def _fast_forward(cls: type, kind: str) -> Callable[..., Any]:
    """The method that runs the fast forward in place of that of ``cls``, wherever the two agree."""
    original = cls.forward  # type: ignore[attr-defined]
    signature = inspect.signature(original)
    named = [
        x.name
        for x in signature.parameters.values()
        if x.kind in (x.POSITIONAL_ONLY, x.POSITIONAL_OR_KEYWORD)
    ]
    if len(named) < _INPUTS[kind]:
        logger.warning("accelerate: %s keeps its own forward, it takes fewer arguments by name", cls.__name__)
        return original  # type: ignore[no-any-return]
    own, *names = named[: _INPUTS[kind] + 1]
    defaults = {name: signature.parameters[name].default for name in names}

    @functools.wraps(original)
    def fast_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if forward.takes_published(self) or "parametrizations" in self._modules:
            return original(self, *args, **kwargs)
        if forward.is_traced(self) and (inputs := _traced_inputs(self, kind, defaults, args, kwargs)):
            return getattr(forward, kind)(self, *inputs)
        return fast_or_original(self, *args, **kwargs)

    @torch.compiler.disable
    def fast_or_original(self: Any, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(self, *args, **kwargs)
        further = bound.arguments.keys() - {own, *names}
        bound.apply_defaults()
        inputs = [bound.arguments[name] for name in names]
        if further or not _is_published_call(self, kind, inputs):
            return original(self, *args, **kwargs)
        checked = self.__dict__.setdefault(CHECKED, {})
        mode = _mode(self, kind, inputs)
        if mode not in checked:
            with _checking:
                if mode not in checked and (reason := why_not(self, kind, original, inputs)):
                    found = original(self, *args, **kwargs)  # a call that raises here too decides nothing
                    checked[mode] = False
                    _say(self, mode, reason)
                    return found
                checked.setdefault(mode, True)
        if not checked[mode]:
            return original(self, *args, **kwargs)
        return getattr(forward, kind)(self, *inputs)

    return fast_forward


def _traced_inputs(
    model: nn.Module, kind: str, defaults: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[Any]:
    """Arguments of a fast forward in a compiled graph; none where a call outside of it has to decide."""
    given = defaults | dict(zip(defaults, args, strict=False)) | kwargs
    if len(args) > len(defaults) or given.keys() != defaults.keys():
        return []
    inputs = [*given.values()]
    agrees = model.__dict__.get(CHECKED, {}).get(_mode(model, kind, inputs), False)
    return inputs if agrees and _is_published_call(model, kind, inputs) else []


def _is_published_call(model: Any, kind: str, inputs: list[Any]) -> bool:
    return isinstance(_track(kind, inputs), int | None) and (kind == "qamnist" or model.iterations >= 1)


def _track(kind: str, inputs: list[Any]) -> Any:
    return inputs[-1] if len(inputs) == _INPUTS[kind] else False


def _mode(model: nn.Module, kind: str, inputs: list[Any]) -> tuple[bool, bool, bool]:
    """What the check of a forward holds for: training, tracked, with gradients."""
    return model.training, bool(_track(kind, inputs)), torch.is_grad_enabled()


def _say(model: nn.Module, mode: tuple[bool, bool, bool], reason: str) -> None:
    training, track, gradients = mode
    name = ("training" if training else "eval") + " mode" + (", tracked" if track else "")
    name += "" if gradients else ", without gradients"
    logger.warning("accelerate: %s keeps its own forward, %s (%s)", type(model).__name__, reason, name)
