"""What of a model the native loop can run, read off its modules.

A module is planned only if every leaf is exactly the torch class that the plan stands for, without hooks,
parametrizations or a forward of its own; anything else is called as it is. A class that is not ours may
compute something else under the same attributes, so its plan counts only after its output on a random input
agreed.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as every_module
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from ctm_fast.loop.synapses import INPUT, Stage, SynapsePlan, Synapses
from ctm_fast.nn.nlm import NeuronLevelModels, SuperLinear
from ctm_fast.nn.synapses import SynapseUNET
from ctm_fast.ops.nlm import reference

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_LEAVES = (nn.Linear, nn.LayerNorm, nn.GLU, nn.SiLU, nn.Dropout, nn.Identity)
_OWN = (*_LEAVES, nn.Sequential, nn.ModuleList, SynapseUNET)
_NOTHING = nn.Identity()
_agreed: weakref.WeakKeyDictionary[nn.Module, dict[torch.dtype, bool]] = weakref.WeakKeyDictionary()


def is_plain(module: nn.Module) -> bool:
    """Whether calling the parts by their mathematics skips nothing that calling the module would do."""
    if any(getattr(every_module, f"_global{hooks}") for hooks in _HOOKS):
        return False
    return all(_untouched(part.__dict__) for part in module.modules())


def are_parameters(*tensors: Tensor | None) -> bool:
    """Whether all are ordinary parameters: a subclass, or what a functional call puts in, has no memory to read."""
    return all(type(x) is nn.Parameter for x in tensors)


def _untouched(own: dict[str, Any]) -> bool:
    """Whether a module with these attributes has neither hooks nor parametrizations nor another forward."""
    if "forward" in own or "parametrizations" in own["_modules"]:
        return False
    return not any(own.get(hooks) for hooks in _HOOKS)


def nlm_weights(module: nn.Module) -> tuple[tuple[Tensor, ...], float] | None:
    """Weights (w1, b1, t1[, w2, b2, t2]) and dropout of neuron-level models; None if they must be called."""
    layers = _nlm_layers(module)
    if layers is None or not is_plain(module):
        return None
    weights = tuple(x for layer in layers for x in (layer.w1, layer.b1, _temperature(layer)))
    rates = {_rate(_part(layer, "dropout")) for layer in layers}
    if len(rates) != 1 or None in rates or not all(are_parameters(*layer.parameters()) for layer in layers):
        return None
    ours = type(module) in (nn.Sequential, NeuronLevelModels)
    ours = ours and all(type(layer) is SuperLinear for layer in layers)
    memory, _, neurons = weights[0].shape
    if not ours and not _agrees(module, lambda x: reference.nlm(x, *weights), (neurons, memory)):
        return None
    return weights, float(rates.pop() or 0.0)


def _temperature(layer: Any) -> Tensor:
    own: Tensor | None = getattr(layer, "T", None)
    return layer.w1.new_ones(1) if own is None else own


def _part(layer: Any, name: str) -> nn.Module:
    part: nn.Module = getattr(layer, name, _NOTHING)
    return part


def _nlm_layers(module: nn.Module) -> list[Any] | None:
    body = list(module.children())
    if len(body) == 1 and isinstance(body[0], nn.Sequential):
        body = list(body[0].children())
    layers: list[Any] = body[0::2][:-1] if len(body) % 2 else []
    if len(layers) not in (1, 2) or any(type(glu) is not nn.GLU for glu in body[1::2]):
        return None
    if not all(hasattr(layer, name) for layer in layers for name in ("w1", "b1")):
        return None
    if any(type(_part(layer, "layernorm")) is not nn.Identity for layer in layers):
        return None
    if any(layer.w1.dim() != 3 for layer in layers) or layers[-1].w1.shape[1] != 2:
        return None
    return layers


def active(dropout: nn.Module) -> float:
    """Probability with which a dropout module drops now."""
    return float(dropout.p) if dropout.training else 0.0  # type: ignore[arg-type]


def _rate(module: nn.Module) -> float | None:
    if type(module) is nn.Identity:
        return 0.0
    return active(module) if type(module) is nn.Dropout else None


def synapse_plan(module: nn.Module) -> SynapsePlan | None:
    """Stages of a synapse network, or None if it must be called."""
    if not is_plain(module):
        return None
    plan = _gated_plan(module) if type(module) is nn.Sequential else _unet_plan(module)
    if plan is None or not are_parameters(*plan.parameters) or not plan.sizes_agree():
        return None
    ours = all(type(part) in _OWN for part in module.modules())
    if not ours and not _agrees(module, lambda x: run_plan(plan, x), (plan.parameters[0].shape[1],)):
        return None
    return plan


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
    parts = list(module.children())
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
    first, downs, ups, norms = module.children()
    linear, norm, act = _three(first)
    if not _is_layer(linear, norm) or type(act) is not nn.SiLU:
        return None
    builder = _Builder()
    levels = [builder.stage("silu", linear, norm, INPUT, 0.0)]
    for down in downs.children():
        layer = _dropped_layer(down)
        if layer is None:
            return None
        levels.append(builder.stage("silu", layer[0], layer[1], levels[-1], layer[2]))
    last = levels[-1]
    for i, up in reversed(list(enumerate(ups.children()))):
        layer, outer = _dropped_layer(up), norms[i]  # type: ignore[index]
        if layer is None or type(outer) is not nn.LayerNorm or outer.weight is None or outer.bias is None:
            return None
        index = builder.add(outer)
        last = builder.stage(
            "skip", layer[0], layer[1], last, layer[2], skip=levels[i], outer=index, outer_eps=outer.eps
        )
    return builder.plan()


def _three(module: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module]:
    parts = list(module.children())
    return (parts[0], parts[1], parts[2]) if len(parts) == 3 else (_NOTHING, _NOTHING, _NOTHING)


def _dropped_layer(module: nn.Module) -> tuple[nn.Module, nn.Module, float] | None:
    parts = list(module.children())
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


def _agrees(module: nn.Module, plan: Any, shape: tuple[int, ...]) -> bool:
    """Whether a foreign module without dropout gives what its plan gives, in eval and in train mode; asked once per
    module and dtype.
    """
    answers = _agreed.setdefault(module, {})
    weight = next(module.parameters())
    if weight.dtype not in answers:
        x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(weight)
        device = weight.device.type
        with torch.no_grad(), torch.autocast(device, enabled=False), torch.random.fork_rng(devices=[]):
            found = plan(x)
            answers[weight.dtype] = all(_close(_in_mode(module, x, train), found) for train in (False, True))
    return answers[weight.dtype]


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
    same = isinstance(expected, Tensor) and expected.shape == found.shape
    return same and torch.allclose(expected, found, rtol=1e-4, atol=1e-4, equal_nan=True)


def attention_is_plain(q_proj: nn.Module | None, attention: nn.Module | None) -> bool:
    """Whether query projection and attention can be taken apart into their matrices."""
    return (
        type(q_proj) is nn.Linear and q_proj.bias is not None
        and type(attention) is nn.MultiheadAttention and attention.in_proj_weight is not None
        and attention.in_proj_bias is not None and attention.bias_k is None
        and not attention.add_zero_attn and type(attention.out_proj) is NonDynamicallyQuantizableLinear
        and attention.out_proj.bias is not None and attention.batch_first
        and is_plain(q_proj) and is_plain(attention)
        and are_parameters(*q_proj.parameters(), *attention.parameters())
    )  # fmt: skip


def attention_dropout(attention: nn.Module | None) -> float:
    """Probability with which a plain attention drops its weights now."""
    return (
        float(attention.dropout)
        if isinstance(attention, nn.MultiheadAttention) and attention.training
        else 0.0
    )
