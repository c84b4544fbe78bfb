"""From a torch model to an engine's recipe and inputs; like all that only ``Engine(model, ...)`` needs, with torch.

What is linear is folded in float64: the query's two projections and its scale, the attention's output projection
and the values' bias into the first synapse layer, temperatures into the neuron-level models. The keys' bias moves
all scores of a query alike and is left out. Letters as in ``ctm_fast.engine.recipe``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ctm_fast import forward
from ctm_fast.acceleration import recognise
from ctm_fast.engine import agreement
from ctm_fast.engine.agreement import Case
from ctm_fast.engine.front_models import with_fronts
from ctm_fast.engine.inputs import Inputs, as_array, real, shaped, whole
from ctm_fast.engine.recipe import Input, Recipe, Sizes, Stage, reason_against
from ctm_fast.loop import plan
from ctm_fast.loop.synapses import SynapsePlan
from ctm_fast.nn.sync import MAX_DECAY

RL_MAX_DECAY = 4.0
ARGUMENTS = {"base": ("x",), "sort": ("x",), "qamnist": ("x", "question"), "rl": ("x",)}  # without the state
RECURRENT_PARTS = ("synapses", "trace_processor")
LEAST_DIMS = {"base": 2, "sort": 2, "qamnist": 3, "rl": 1}  # of the first

Arrays = dict[str, np.ndarray]


def checked(model: nn.Module, example_inputs: Any) -> tuple[str, tuple[Any, ...]]:
    """What the model is, and the example as arguments of its forward.

    Raises:
        TypeError: the model is not a module, or the arguments are not those that it takes.
        ValueError: it is no CTM that the engine can run; the message says why.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"Engine: model must be a torch.nn.Module, got {type(model).__name__}")
    kind = recognise(model)
    if kind is None:
        raise ValueError(f"Engine: model must be a Continuous Thought Machine, got {type(model).__name__}")
    if model.training:
        raise ValueError("Engine: model must be in eval mode (model.eval()), got one in training mode")
    if forward.is_lazy(model):
        raise ValueError("Engine: model must have run once, got one with lazy parameters")
    agreement.require_precision(model)
    example = tensors(model, example_inputs)
    names = (*ARGUMENTS[kind], "state") if kind == "rl" and len(example) > 1 else ARGUMENTS[kind]
    if len(example) != len(names) or not isinstance(example[0], Tensor):
        raise TypeError(f"Engine: example_inputs must be {' and '.join(names)}, got {len(example)} arguments")
    if example[0].dim() < LEAST_DIMS[kind] or 0 in example[0].shape:
        shape = tuple(example[0].shape)
        raise ValueError(f"Engine: example_inputs must hold at least one sample, got shape {shape}")
    return kind, example


def tensors(model: nn.Module, arguments: Any) -> tuple[Any, ...]:
    """Arguments of a forward as tensors where the model is, what is of floating point in its precision.

    Raises ``TypeError`` for what is neither tensor nor array of real numbers.
    """
    like = next(x for x in model.parameters() if x.is_floating_point())
    return tuple(_tensor(x, like) for x in (arguments if isinstance(arguments, tuple) else (arguments,)))


def _tensor(x: Any, like: Tensor) -> Any:
    if isinstance(x, tuple):
        return tuple(_tensor(part, like) for part in x)
    if not isinstance(x, Tensor | np.ndarray):
        raise TypeError(f"Engine: example_inputs must be tensors or arrays, got {type(x).__name__}")
    found = real("example_inputs", x)
    found = found.detach() if isinstance(found, Tensor) else torch.from_numpy(np.array(found))
    return found.to(like.device, like.dtype if found.is_floating_point() else found.dtype)


def extract(
    model: nn.Module, kind: str, example: tuple[Any, ...]
) -> tuple[Recipe, Callable[..., Inputs], list[Case]]:
    """The recipe of a model, its features, and what the model gives; ``example`` is of the largest sizes.

    Raises ``ValueError`` where it is no model that the engine can run; the message says why.
    """
    expected = agreement.cases(partial(agreement.outputs, model, kind), example)
    recipe = _recipe(model, kind, _without_gradients(model, kind)(*example))
    if kind == "sort":
        features: Callable[..., Inputs] = partial(_given, recipe.iterations)
    else:
        kept = copy_of(model, () if forward.overridden(model, "compute_features") else RECURRENT_PARTS)
        recipe, features = with_fronts(recipe, kept, example, _without_gradients(kept, kind))
    reason = reason_against(recipe)
    if reason:
        raise ValueError(f"Engine: model must have sizes that fit each other, got {reason}")
    return recipe, _like_example(kind, example, features), expected


def _without_gradients(model: nn.Module, kind: str) -> Callable[..., Inputs]:
    """The function that runs everything before the recurrent part in torch."""

    def run(*arguments: Any) -> Inputs:
        with torch.no_grad():
            return _FEATURES[kind](model, *arguments)

    return run


def copy_of(model: nn.Module, without: tuple[str, ...] = ()) -> Any:
    """A copy in eval mode, without gradients and without some parts, that no later change of the model reaches."""
    memo: dict[int, Any] = {id(getattr(model, name)): nn.Identity() for name in without}
    for part in model.modules():  # what an earlier call left there within autograd cannot be copied as it is
        memo |= {id(x): x.detach() for x in vars(part).values() if isinstance(x, Tensor) and not x.is_leaf}
    return copy.deepcopy(model, memo).eval().requires_grad_(False)


def _like_example(
    kind: str, example: tuple[Any, ...], features: Callable[..., Inputs]
) -> Callable[..., Inputs]:
    """Features of arguments that are checked: as many as the example's, with as many dimensions and of like dtypes."""
    fixed, names = kind in ("sort", "rl"), ARGUMENTS[kind]
    expected = [
        (Input(name, (None, *x.shape[1:]) if fixed else (None,) * x.dim(), ""), x.shape[1:], x.dtype)
        for name, x in zip(names, example, strict=False)
    ]

    def run(*arguments: Any) -> Inputs:
        if len(arguments) != len(names):
            raise TypeError(f"Engine: inputs must be {' and '.join(names)}, got {len(arguments)} arguments")
        given = [_like(what, dtype, x) for (what, _, dtype), x in zip(expected, arguments, strict=True)]
        try:
            return features(*given)
        except RuntimeError as error:
            for (what, shape, _), x in zip(expected, given, strict=True):
                if x.shape[1:] != shape:
                    must = f"Engine: {what.name} must have a shape that the model takes, as {tuple(shape)}"
                    raise ValueError(f"{must} of a sample, got {tuple(x.shape[1:])}") from error
            raise

    return run


def _like(expected: Input, dtype: torch.dtype, x: Any) -> Tensor:
    """A tensor of the expected shape on the CPU; of this dtype if that is of floating point, else of whole numbers."""
    found = shaped(expected, x)
    found = found if isinstance(found, Tensor) else torch.from_numpy(np.array(found))
    if dtype.is_floating_point:
        return found.to("cpu", dtype)
    return torch.from_numpy(whole(expected.name, as_array(found))) if found.is_floating_point() else found


def _recipe(model: Any, kind: str, inputs: Inputs) -> Recipe:
    synapses = plan.synapse_plan(model.synapses)
    attends = kind in ("base", "qamnist")
    attention = plan.why_attention_is_called(model.q_proj, model.attention) if attends else None
    for name, found in {"synapses": synapses, "attention": attention}.items():
        if isinstance(found, str):
            raise ValueError(f"Engine: model must have the published {name}, got {found}")
    for name in ("compute_synchronisation", "compute_certainty"):
        if forward.overridden(model, name):
            raise ValueError(f"Engine: model must have the published {name}, got a method of its own")
    assert isinstance(synapses, SynapsePlan)
    arrays = (
        _models(model.trace_processor)
        | _starts(model, kind)
        | _synapses(model if attends else None, synapses, inputs)
    )
    if attends:
        arrays |= _query(model)
    arrays |= _output(model, kind)
    stages = _stages(synapses, arrays["stage0.weight"].shape[1])
    arrays = {
        name: np.ascontiguousarray(x, np.int32 if x.dtype == np.int32 else np.float32)
        for name, x in arrays.items()
    }
    iterations = model.iterations_for_answering if kind == "qamnist" else model.iterations
    return Recipe(kind, int(iterations), _sizes(model, kind, inputs, arrays), stages, arrays)


def _sizes(model: Any, kind: str, inputs: Inputs, arrays: Arrays) -> Sizes:
    memory, outputs, neurons = arrays["w1"].shape
    attends, classes = "query" in arrays, 0
    group = 0
    if kind != "rl":
        classes = arrays["project"].shape[0]
        group = _group(classes, tuple(model.prediction_reshaper))
    sets, batch, tokens = inputs.tokens.shape[:3]
    given, given_batch, features = inputs.given.shape
    return Sizes(
        batch=batch or given_batch, ticks=len(inputs.schedule), neurons=neurons, memory=memory, hidden=outputs // 2,
        deep=int("w2" in arrays),
        normed=int("eps" in arrays), width=model.attention.embed_dim if attends else 0,
        heads=model.attention.num_heads if attends else 0, tokens=tokens, sets=sets,
        action=len(arrays["action_factor"]) if attends else 0, features=features, given=given,
        pairs=len(arrays["factor"]), classes=classes, group=group,
        energy=len(arrays.get("head", ())), stateful=int(kind == "rl"),
    )  # fmt: skip


def _group(classes: int, reshaper: tuple[int, ...]) -> int:
    """Predictions of one softmax."""
    last = reshaper[-1]
    return classes // math.prod(reshaper[:-1]) if last == -1 else last


def _array(x: Tensor) -> np.ndarray:
    return x.detach().cpu().double().numpy()


def _models(module: nn.Module) -> Arrays:
    """Neuron-level models without temperatures and without the affine part of their LayerNorms."""
    layers, reason = plan.nlm_layers(module), plan.why_called(plan.parts_of(module))
    if not isinstance(layers, str) and reason is None and not plan.is_normed(layers):
        planned = plan.nlm_weights(module)
        reason = planned if isinstance(planned, str) else None
    if isinstance(layers, str) or reason is not None:
        raise ValueError(f"Engine: model must have the published neuron-level models, got {reason or layers}")
    found: Arrays = {}
    weights = [_array(x) for x in plan.layer_weights(layers)]
    for i, layer in enumerate(layers):
        w, b, t = weights[3 * i : 3 * i + 3]
        if plan.is_normed([layer]):
            b = b + np.einsum("i,ion->no", _array(layer.layernorm.bias), w)
            w = w * _array(layer.layernorm.weight)[:, None, None]
        found |= {f"w{i + 1}": w / t, f"b{i + 1}": b[0] / t}
    if plan.is_normed(layers):
        found["eps"] = np.array([layer.layernorm.eps for layer in layers])
    return found


def _starts(model: Any, kind: str) -> Arrays:
    found = {"start": _array(model.start_trace).T}
    if kind == "rl":
        return found | {"start_post": _array(model.start_activated_trace).T}
    return found | {"z0": _array(model.start_activated_state)}


def _synapses(model: Any, p: SynapsePlan, inputs: Inputs) -> Arrays:
    """The stages' parameters, the first over [heads | z]; and the map of given inputs."""
    found: Arrays = {}
    for i, s in enumerate(p.stages):
        names = {"weight": s.linear, "bias": s.linear + 1, "norm": s.norm, "norm_bias": s.norm + 1}
        if s.kind == "skip":
            names |= {"outer": s.outer, "outer_bias": s.outer + 1}
        found |= {f"stage{i}.{name}": _array(p.parameters[at]) for name, at in names.items()}
    weight, bias = found["stage0.weight"], found["stage0.bias"]
    x, z = np.split(weight, [weight.shape[1] - p.outputs], axis=1)
    if inputs.given.size:
        found |= {"from_given": x, "given_bias": bias}
    found["stage0.weight"] = z
    if model is not None:
        a = model.attention
        out, values_bias = _array(a.out_proj.weight), _array(a.in_proj_bias)[2 * a.embed_dim :]
        found["stage0.weight"] = np.concatenate((x @ out, z), 1)
        found["stage0.bias"] = bias + x @ (out @ values_bias + _array(a.out_proj.bias))
    return found


def _stages(p: SynapsePlan, inputs: int) -> tuple[Stage, ...]:
    widths = [p.parameters[s.norm].shape[0] for s in p.stages]
    return tuple(
        Stage(
            s.kind, width, inputs if s.source < 0 else widths[s.source], s.source, s.skip, s.eps, s.outer_eps
        )
        for s, width in zip(p.stages, widths, strict=True)
    )


def _query(model: Any) -> Arrays:
    a = model.attention
    d, weight, bias = a.embed_dim, _array(a.in_proj_weight), _array(a.in_proj_bias)
    scale = (d // a.num_heads) ** -0.5
    query, keys_values = weight[:d] * scale, weight[d:]
    left, right = forward.pairs(model, "action")
    return {
        "query": query @ _array(model.q_proj.weight),
        "query_bias": query @ _array(model.q_proj.bias) + bias[:d] * scale,
        "keys_values": keys_values, "action_left": left.cpu().numpy(), "action_right": right.cpu().numpy(),
        "action_factor": _factor(model.decay_params_action, MAX_DECAY),
    }  # fmt: skip


def _factor(decay: Tensor, most: float) -> np.ndarray:
    return np.exp(-np.clip(_array(decay), 0.0, most))


def _output(model: Any, kind: str) -> Arrays:
    offset = model.d_model - model.out_neuron_indices_left.numel() if kind == "rl" else 0
    left, right = forward.pairs(model, "out", offset)
    found = {"left": left.cpu().numpy(), "right": right.cpu().numpy()}
    found["factor"] = _factor(model.decay_params_out, RL_MAX_DECAY if kind == "rl" else MAX_DECAY)
    if kind == "rl":
        return found
    (projector,) = _linear_parts(model.output_projector, "output_projector", (nn.Linear,))
    found |= {"project": _array(projector.weight), "project_bias": _array(projector.bias)}
    head = getattr(model, "energy_head", None)
    if head is not None:
        hidden, _, last = _linear_parts(head, "energy_head", (nn.Linear, nn.SiLU, nn.Linear))
        found |= {"energy": _array(hidden.weight), "energy_bias": _array(hidden.bias)}
        found |= {"head": _array(last.weight)[0], "head_bias": _array(last.bias)}
    return found


def _linear_parts(module: nn.Module, name: str, expected: tuple[type, ...]) -> list[Any]:
    """The leaves of a module that is exactly these layers, with biases and without hooks."""
    leaves = [part for part in plan.parts_of(module) if type(part) is not nn.Sequential]
    plain = plan.why_called(plan.parts_of(module)) is None and tuple(map(type, leaves)) == expected
    if not plain or any(part.bias is None for part in leaves if isinstance(part, nn.Linear)):
        layers = ", ".join(kind.__name__ for kind in expected)
        raise ValueError(f"Engine: model must have {name} of the layers {layers}, got others")
    return leaves


def _numpy(x: Tensor) -> np.ndarray:
    return np.ascontiguousarray(x.detach().cpu().float().numpy())


def _base(model: Any, x: Tensor) -> Inputs:
    return Inputs.attended(_numpy(model.compute_features(x)), model.iterations)


def _sort(model: Any, x: Tensor) -> Inputs:
    return _given(model.iterations, x)


def _given(iterations: int, x: Tensor) -> Inputs:
    return Inputs.constant(_numpy(x), iterations)


def _qamnist(model: Any, x: Tensor, z: Tensor) -> Inputs:
    tokens, schedule = forward._digits(model, x)
    given, question = forward._question(model, x, z)
    schedule = [*schedule, *(-1 - g for g in range(question))]
    schedule += [-1 - question] * model.iterations_for_answering
    sets = _numpy(torch.stack(tokens))
    return Inputs(sets, _numpy(given), np.array(schedule, np.int32), sets.shape[2])


def _rl(model: Any, x: Tensor, *_: Any) -> Inputs:
    return Inputs.constant(_numpy(model.backbone(x).flatten(1)), model.iterations)


_FEATURES: dict[str, Callable[..., Inputs]] = {"base": _base, "sort": _sort, "qamnist": _qamnist, "rl": _rl}
