"""Whether the fast forward can stand in for the forward of a model that somebody else wrote.

Both run on deep copies with all parameters moved: at its start a model is too tame to tell formulas apart.
"""

from __future__ import annotations

import copy
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.jit import ScriptModule
from torch.nn.modules.dropout import _DropoutNd

from ctm_fast import forward
from ctm_fast.loop import plan, run
from ctm_fast.restoration import restore

# Of a result's norm: rounding over all ticks stays far below. A published float64 model returns float32 predictions.
_TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}
_TOLERANCE_OF_ROUNDED = 1e-5
_SMALL = (
    1e-4  # a gradient this much smaller than the largest is measured against that: it may be rounding alone
)
# What the fast forwards run, as modules or in the native loop; dropout in another place is a difference.
_PARTS = (
    "synapses", "trace_processor", "attention", "q_proj", "kv_proj", "output_projector", "energy_head", "backbone",
    "initial_rgb", "positional_embedding", "backbone_digit", "index_backbone", "operator_backbone",
)  # fmt: skip
_CONTAINERS = (dict, OrderedDict, list, set)


class Observed(NamedTuple):
    """What one forward gave.

    Attributes:
        found: outputs by place, and gradients by name; what is no tensor or number, as it is.
        written: names of the attributes that it wrote.
    """

    found: dict[str, Any]
    written: set[str]


def why_not(model: Any, kind: str, original: Callable[..., Any], inputs: list[Any]) -> str:
    """Why the fast forward of ``kind`` cannot stand in for ``original`` in the mode at hand; empty if it can."""
    dtype = model.start_trace.dtype
    reason = ""
    for precision in dict.fromkeys((torch.float64, dtype)):
        for count in (2, None):  # it may need the batch that it was given
            samples = [_first(value, count, precision) for value in inputs]
            try:
                expected = observe(model, original, samples, precision)
            except Exception as error:  # no copy of the model, or a wrong call, which raises on the model too
                reason = reason or f"it cannot be checked on a copy: {type(error).__name__}: {error}"
                continue
            try:
                own = observe(model, getattr(forward, kind), samples, precision)
            except (
                Exception
            ) as error:  # the forward of a fork must go on where the fast one cannot read its parts
                return f"the fast one of the {kind} CTM raised {type(error).__name__}: {error}"
            return _difference(expected, own, kind, precision, dtype)
    return reason


def _difference(
    expected: Observed, own: Observed, kind: str, precision: torch.dtype, dtype: torch.dtype
) -> str:
    if expected.written != own.written:
        names = ", ".join(sorted(expected.written ^ own.written))
        return f"the fast one does not write the same attributes: {names}"
    if expected.found.keys() == own.found.keys():
        largest = _largest_gradient(expected.found)
        same = _Comparison(precision, {torch.float32, precision} if dtype == torch.float32 else set())
        if all(
            same(x, own.found[k], largest if k.startswith("d ") else 0.0) for k, x in expected.found.items()
        ):
            return ""
    return f"it computes something else than the published {kind} CTM"


def observe(
    model: Any, forward_of: Callable[..., Any], inputs: list[Any], precision: torch.dtype
) -> Observed:
    """Run ``forward_of`` on a copy of ``model``, and its backward where gradients are enabled."""
    tried = _copied(model, precision)
    given = _leaves(inputs)
    names = {part: name for name, part in tried.named_modules() if not isinstance(part, ScriptModule)}
    before = {part: _attributes(part) for part in names}
    device = model.start_trace.device
    with _undisturbed(device), torch.autocast(device.type, enabled=False):
        found = _flat(forward_of(tried, *given))
        changed = [(part, key) for part in names for key in _differences(before[part], _attributes(part))]
        found |= _gradients(tried, given, found)
    return Observed(found, {f"{names[part]}.{key}".lstrip(".") for part, key in changed})


def _gradients(tried: nn.Module, inputs: list[Any], found: dict[str, Any]) -> dict[str, Tensor]:
    """Gradients of all parameters and inputs for one cotangent, zero where there is none, by name."""
    outputs = [y for y in found.values() if isinstance(y, Tensor) and y.requires_grad]
    leaves = dict(tried.named_parameters()) | _flat(inputs, "input")
    leaves = {key: x for key, x in leaves.items() if isinstance(x, Tensor) and x.requires_grad}
    if not outputs or not leaves:
        return {}
    generator = torch.Generator().manual_seed(1)
    upward = [torch.randn(y.shape, generator=generator, device="cpu").to(y) for y in outputs]
    grads = torch.autograd.grad(
        outputs, list(leaves.values()), upward, allow_unused=True, materialize_grads=True
    )
    return {f"d {key}": grad for key, grad in zip(leaves, grads, strict=True)}


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """The same random numbers for every run, the generators afterwards as they were, no hooks on saved tensors."""
    arrays, plain = np.random.get_state(), random.getstate()
    unseen = torch.autograd.graph.saved_tensors_hooks(_itself, _itself)  # by hooks of the caller
    with unseen, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        try:
            yield
        finally:
            np.random.set_state(arrays)
            random.setstate(plain)


def _itself(x: Tensor) -> Tensor:
    return x


def _copied(model: Any, precision: torch.dtype) -> Any:
    """A deep copy with its own forward, moved parameters, no hooks and no dropout in its published parts, of which no
    message is logged.
    """
    memo: dict[int, Any] = {}
    for part in model.modules():
        memo |= {id(vars(part)[hooks]): OrderedDict() for hooks in plan.HOOKS if hooks in vars(part)}
        # What an earlier forward left cannot be copied with its graph.
        memo |= {id(x): x.detach().clone() for x in _tensors(vars(part)) if not x.is_leaf}
    tried = restore(copy.deepcopy(model, memo)).to(precision)
    for name in _PARTS:
        _stop_dropout(getattr(tried, name, None))
    plan.move(tried)
    run.say_nothing(tried.synapses)
    return tried


def _stop_dropout(module: Any) -> None:
    for part in module.modules() if isinstance(module, nn.Module) else ():
        if isinstance(part, _DropoutNd):
            part.p = 0.0
        if isinstance(part, nn.MultiheadAttention):
            part.dropout = 0.0


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
    """The first samples of every tensor, floating-point ones in ``dtype``; ``None`` takes all."""
    if isinstance(value, Tensor) and value.dim():
        return value[:count].to(dtype) if value.is_floating_point() else value[:count]
    return tuple(_first(item, count, dtype) for item in value) if isinstance(value, tuple | list) else value


def _leaves(value: Any) -> Any:
    """Copies that take gradients where the given tensors do."""
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    return type(value)(map(_leaves, value)) if isinstance(value, tuple | list) else value


def _flat(value: Any, place: str = "output") -> dict[str, Any]:
    """Nested returns by place: numbers and arrays as tensors, anything else as it is."""
    if isinstance(value, tuple | list):
        parts = (_flat(item, f"{place}[{i}]") for i, item in enumerate(value))
        return {f"{place} of": len(value)} | {key: x for part in parts for key, x in part.items()}
    known = isinstance(value, np.ndarray | np.generic | int | float | complex)
    return {place: torch.as_tensor(value) if known else value}


def _largest_gradient(found: dict[str, Any]) -> float:
    return max((float(x.norm()) for key, x in found.items() if key.startswith("d ")), default=0.0)


class _Comparison(NamedTuple):
    """Whether results of a run in ``precision`` are the same up to rounding.

    ``interchangeable`` dtypes are one in the model's own: float32 that a forward asks for by name.
    """

    precision: torch.dtype
    interchangeable: set[torch.dtype]

    def __call__(self, expected: Any, found: Any, largest: float) -> bool:
        """Compare two results; ``largest`` is the norm of the largest gradient where they are gradients."""
        if not (isinstance(expected, Tensor) and isinstance(found, Tensor)):
            return (expected is None and found is None) or (isinstance(expected, int) and expected == found)
        if any(getattr(expected, name) != getattr(found, name) for name in ("shape", "requires_grad")):
            return False
        dtypes = {expected.dtype, found.dtype}
        if len(dtypes) > 1 and dtypes != self.interchangeable:
            return False
        tolerance = _TOLERANCES[self.precision]
        if dtypes != {self.precision}:
            tolerance = max(tolerance, _TOLERANCE_OF_ROUNDED)
        a, b = expected.detach().double(), found.detach().double()
        equal = (a == b) | (torch.isnan(a) & torch.isnan(b))  # infinities and NaN have no difference
        scale = max(float(a.nan_to_num(0.0, 0.0, 0.0).norm()), _SMALL * largest)
        return bool(torch.where(equal, 0.0, a - b).norm() <= tolerance * scale)
