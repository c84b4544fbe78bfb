"""What of a model the native loop can run, read off its modules.

A module is planned only if every leaf is exactly the torch class that the plan stands for, without hooks,
parametrizations or a forward of its own; anything else is called as it is, and the planner returns the reason, a
string. A class that is not ours may compute something else under the same attributes, so its plan counts only
after its output on a random input agreed.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as every_module
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from ctm_fast.loop.synapses import INPUT, Stage, SynapsePlan, Synapses
from ctm_fast.nn.nlm import NeuronLevelModels, SuperLinear
from ctm_fast.nn.synapses import SynapseUNET
from ctm_fast.ops.nlm import reference

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_LEAVES = (nn.Linear, nn.LayerNorm, nn.GLU, nn.SiLU, nn.Dropout, nn.Identity)
_OWN = (*_LEAVES, nn.Sequential, nn.ModuleList, SynapseUNET)
_NOTHING = nn.Identity()
_OTHER_LAYERS = "layers other than the published ones"
_OTHER_PARAMETERS = "parameters of another class"
_OTHER_RESULTS = "other results than the published layers"
MOVED_DECAY, MOVED_DECAY_SPREAD = 6.0, 6.0  # mean and standard deviation, for bounds of 0 and 4 or 15
# By the number of a module that lives, which a compiled graph can look up.
_agreed: dict[int, dict[torch.dtype, bool]] = {}


def parts_of(module: nn.Module) -> list[nn.Module]:
    """The module and all below it; asked at every call, where ``modules()`` would cost several times as much."""
    found = [module]
    for part in found:
        found += [child for child in part._modules.values() if child is not None]
    return found


def why_called(parts: list[nn.Module]) -> str | None:
    """What calling these modules would do beside their mathematics; None if nothing."""
    if any(getattr(every_module, f"_global{hooks}") for hooks in HOOKS):
        return "hooks of all modules"
    for part in parts:
        own = part.__dict__
        if "forward" in own:
            return "a forward set on the object"
        if "parametrizations" in own.get("_modules", ()):
            return "parametrizations"
        if any(map(own.get, HOOKS)):
            return "hooks"
    return None


def are_parameters(*tensors: Tensor | None) -> bool:
    """Whether all are ordinary parameters: a subclass, or what a functional call puts in, has no memory to read."""
    return all(type(x) is nn.Parameter for x in tensors)


def nlm_weights(module: nn.Module) -> tuple[tuple[Tensor, ...], float] | str:
    """Weights (w1, b1, t1[, w2, b2, t2]) and dropout of neuron-level models, or why they must be called."""
    layers, reason = _nlm_layers(module), why_called(parts_of(module))
    if isinstance(layers, str) or reason is not None:
        return reason or str(layers)
    weights = layer_weights(layers)
    rates = {_rate(_part(layer, "dropout")) for layer in layers}
    if len(rates) != 1 or None in rates:
        return _OTHER_LAYERS
    if not are_parameters(*(x for layer in layers for x in layer._parameters.values() if x is not None)):
        return _OTHER_PARAMETERS
    ours = type(module) in (nn.Sequential, NeuronLevelModels)
    ours = ours and all(type(layer) is SuperLinear for layer in layers)
    memory, _, neurons = weights[0].shape
    if not ours and not _agrees(module, _nlm_plan, (neurons, memory)):
        return _OTHER_RESULTS
    return weights, float(rates.pop() or 0.0)


def layer_weights(layers: list[Any]) -> tuple[Tensor, ...]:
    """(w1, b1, t1[, w2, b2, t2]) of neuron-level models."""
    return tuple(x for layer in layers for x in (layer.w1, layer.b1, _temperature(layer)))


def _nlm_plan(module: nn.Module) -> Callable[[Tensor], Tensor]:
    layers = _nlm_layers(module)
    assert not isinstance(layers, str)
    weights = layer_weights(layers)
    return lambda x: reference.nlm(x, *weights)


def _temperature(layer: Any) -> Tensor:
    own: Tensor | None = getattr(layer, "T", None)
    return layer.w1.new_ones(1) if own is None else own


def _part(layer: Any, name: str) -> nn.Module:
    part: nn.Module = getattr(layer, name, _NOTHING)
    return part


def _nlm_layers(module: nn.Module) -> list[Any] | str:
    layers = nlm_layers(module)
    if not isinstance(layers, str) and is_normed(layers):
        return "a LayerNorm"
    return layers


def nlm_layers(module: nn.Module) -> list[Any] | str:
    """The one or two linear layers of neuron-level models as published, or why they are others."""
    body = _children(module)
    if len(body) == 1 and isinstance(body[0], nn.Sequential):
        body = _children(body[0])
    layers: list[Any] = body[0::2][:-1] if len(body) % 2 else []
    if len(layers) not in (1, 2) or any(type(glu) is not nn.GLU for glu in body[1::2]):
        return _OTHER_LAYERS
    if not all(hasattr(layer, name) for layer in layers for name in ("w1", "b1")):
        return _OTHER_LAYERS
    if not {type(_part(layer, "layernorm")) for layer in layers} <= {nn.Identity, nn.LayerNorm}:
        return _OTHER_LAYERS
    if any(layer.w1.dim() != 3 for layer in layers) or layers[-1].w1.shape[1] != 2:
        return _OTHER_LAYERS
    return layers


def is_normed(layers: list[Any]) -> bool:
    """Whether a LayerNorm comes before any of these layers."""
    return any(type(_part(layer, "layernorm")) is nn.LayerNorm for layer in layers)


def _children(module: nn.Module) -> list[Any]:
    return [child for child in module._modules.values() if child is not None]


def active(dropout: nn.Module) -> float:
    """Probability with which a dropout module drops now."""
    return float(dropout.p) if dropout.training else 0.0  # type: ignore[arg-type]


def _rate(module: nn.Module) -> float | None:
    if type(module) is nn.Identity:
        return 0.0
    return active(module) if type(module) is nn.Dropout else None


def synapse_plan(module: nn.Module) -> SynapsePlan | str:
    """Stages of a synapse network, or why it must be called."""
    parts = parts_of(module)
    reason = why_called(parts)
    if reason is not None:
        return reason
    plan = _stages(module)
    if plan is None:
        return _OTHER_LAYERS
    if not are_parameters(*plan.parameters):
        return _OTHER_PARAMETERS
    if not plan.sizes_agree():
        return "sizes that do not fit each other"
    ours = all(type(part) in _OWN for part in parts)
    if not ours and not _agrees(module, _synapse_plan, (plan.parameters[0].shape[1],)):
        return _OTHER_RESULTS
    return plan


def _stages(module: nn.Module) -> SynapsePlan | None:
    return _gated_plan(module) if type(module) is nn.Sequential else _unet_plan(module)


def _synapse_plan(module: nn.Module) -> Callable[[Tensor], Tensor]:
    plan = _stages(module.eval())
    assert plan is not None
    return partial(run_plan, plan)


class _Builder:
    def __init__(self) -> None:
        self.stages: list[Stage] = []
        self.parameters: list[Tensor] = []

    def add(self, *modules: nn.Module) -> int:
        """Index of the first module's weight."""
        index = len(self.parameters)
        for module in modules:
            self.parameters += [module.weight, module.bias]  # type: ignore[list-item]
        return index

    def stage(
        self, kind: str, linear: nn.Module, norm: nn.Module, source: int, dropout: float, **more: Any
    ) -> int:
        index = self.add(linear, norm)
        self.stages.append(Stage(kind, index, index + 2, norm.eps, source, dropout, **more))  # type: ignore[arg-type]
        return len(self.stages) - 1

    def plan(self) -> SynapsePlan:
        return SynapsePlan(tuple(self.stages), tuple(self.parameters))


def _is_layer(linear: nn.Module, norm: nn.Module) -> bool:
    """A biased linear map and an affine LayerNorm over one dimension."""
    return (
        type(linear) is nn.Linear and linear.bias is not None and type(norm) is nn.LayerNorm
        and len(norm.normalized_shape) == 1 and norm.weight is not None and norm.bias is not None
    )  # fmt: skip


def _gated_plan(module: nn.Module) -> SynapsePlan | None:
    """[Dropout,] Linear, GLU, LayerNorm, once or more."""
    parts = _children(module)
    dropout = active(parts.pop(0)) if parts and type(parts[0]) is nn.Dropout else 0.0
    if not parts or len(parts) % 3:
        return None
    builder = _Builder()
    for i in range(0, len(parts), 3):
        linear, glu, norm = parts[i : i + 3]
        if not _is_layer(linear, norm) or type(glu) is not nn.GLU:
            return None
        builder.stage("glu", linear, norm, i // 3 - 1, 0.0 if i else dropout)
    return builder.plan()


def _unet_plan(module: nn.Module) -> SynapsePlan | None:
    """first_projection, down_projections, up_projections, skip_lns as in ``ctm_fast.nn.SynapseUNET``."""
    names = ["first_projection", "down_projections", "up_projections", "skip_lns"]
    if [name for name, _ in module.named_children()] != names:
        return None
    first, downs, ups, norms = _children(module)
    linear, norm, act = _three(first)
    if not _is_layer(linear, norm) or type(act) is not nn.SiLU:
        return None
    builder = _Builder()
    levels = [builder.stage("silu", linear, norm, INPUT, 0.0)]
    for down in _children(downs):
        layer = _dropped_layer(down)
        if layer is None:
            return None
        levels.append(builder.stage("silu", layer[0], layer[1], levels[-1], layer[2]))
    last = levels[-1]
    for i, up in reversed(list(enumerate(_children(ups)))):
        layer, outer = _dropped_layer(up), norms[i]
        if layer is None or type(outer) is not nn.LayerNorm or outer.weight is None or outer.bias is None:
            return None
        index = builder.add(outer)
        last = builder.stage(
            "skip", layer[0], layer[1], last, layer[2], skip=levels[i], outer=index, outer_eps=outer.eps
        )
    return builder.plan()


def _three(module: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module]:
    parts = _children(module)
    return (parts[0], parts[1], parts[2]) if len(parts) == 3 else (_NOTHING, _NOTHING, _NOTHING)


def _dropped_layer(module: nn.Module) -> tuple[nn.Module, nn.Module, float] | None:
    parts = _children(module)
    if len(parts) != 4 or type(parts[0]) is not nn.Dropout or type(parts[3]) is not nn.SiLU:
        return None
    return (parts[1], parts[2], active(parts[0])) if _is_layer(parts[1], parts[2]) else None


def run_plan(plan: SynapsePlan, x: Tensor) -> Tensor:
    """The plan on whole inputs (R, d + D), outside autograd."""
    parameters = [p.detach().contiguous() for p in plan.parameters]
    synapses = Synapses(plan.stages, parameters, 0, None, x.shape[0], 1)
    linear = [x.new_empty(x.shape[0], synapses.linear_width(i)) for i in range(len(plan.stages))]
    out = x.new_empty(x.shape[0], synapses.widths[-1])
    synapses.forward(linear, None, x, None, 0, out)
    return out


def move(module: nn.Module) -> None:
    """Move every parameter by a fixed random tenth of its size, decays to beyond both of their bounds.

    Where biases are 0 and divisors 1, as at the start of training, different formulas agree.
    """
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, device="cpu").to(parameter)
            if "decay_params" in name:
                parameter.copy_(MOVED_DECAY + MOVED_DECAY_SPREAD * noise)
            else:
                parameter.add_(0.1 * noise * (parameter.square().mean().sqrt() + 0.1))


def _agrees(
    module: nn.Module, plan: Callable[[nn.Module], Callable[[Tensor], Tensor]], width: tuple[int, ...]
) -> bool:
    """Whether a foreign module without dropout gives what its plan gives, in eval and in train mode; asked once per
    module and dtype. While ``torch.compile`` traces it, one that was not asked before does not agree.
    """
    weight = next(module.parameters())
    if not torch.compiler.is_compiling():
        if id(module) not in _agreed:
            _agreed[id(module)] = {}
            weakref.finalize(module, _agreed.pop, id(module), None)
        answers = _agreed[id(module)]
        if weight.dtype not in answers:
            answers[weight.dtype] = _gives_the_same(module, plan, width)
    return _agreed.get(id(module), {}).get(weight.dtype, False)


def _gives_the_same(
    module: nn.Module, plan: Callable[[nn.Module], Callable[[Tensor], Tensor]], width: tuple[int, ...]
) -> bool:
    """Compares a module with its plan on the CPU: a copy in float64 with its parameters moved."""
    try:
        copied = copy.deepcopy(module).cpu().double()
    except Exception:  # whatever a foreign module does not let itself be copied for
        return False
    move(copied)
    x = torch.randn(2, *width, generator=torch.Generator().manual_seed(0), device="cpu").double()
    with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.random.fork_rng(devices=[]):
        found = plan(copied)(x)
        return all(_close(_in_mode(copied, x, train), found) for train in (False, True))


def _in_mode(module: nn.Module, x: Tensor, train: bool) -> Any:
    modes = [(part, part.training) for part in module.modules()]
    for part, _ in modes:
        part.training = train and type(part) is not nn.Dropout
    try:
        return module(x)
    finally:
        for part, training in modes:
            part.training = training


def _close(expected: Any, found: Tensor) -> bool:
    same = isinstance(expected, Tensor) and expected.shape == found.shape and expected.dtype == found.dtype
    return same and torch.allclose(expected, found, rtol=1e-8, atol=1e-10, equal_nan=True)


def why_attention_is_called(q_proj: nn.Module | None, attention: nn.Module | None) -> str | None:
    """Why query projection and attention cannot be taken apart into their matrices; None if they can."""
    published = (
        type(q_proj) is nn.Linear and q_proj.bias is not None
        and type(attention) is nn.MultiheadAttention and attention.in_proj_weight is not None
        and attention.in_proj_bias is not None and attention.bias_k is None
        and not attention.add_zero_attn and type(attention.out_proj) is NonDynamicallyQuantizableLinear
        and attention.out_proj.bias is not None and attention.batch_first
    )  # fmt: skip
    parts = [part for module in (q_proj, attention) if module is not None for part in parts_of(module)]
    reason = why_called(parts)
    if reason is not None or not published:
        return reason or _OTHER_LAYERS
    plain = are_parameters(*(x for part in parts for x in part._parameters.values() if x is not None))
    return None if plain else _OTHER_PARAMETERS


def attention_dropout(attention: nn.Module | None) -> float:
    """Probability with which a plain attention drops its weights now."""
    return (
        float(attention.dropout)
        if isinstance(attention, nn.MultiheadAttention) and attention.training
        else 0.0
    )
