"""From a torch model to the recipe of its recurrent cell. Letters as in ``ctm_fast.engine.cell_recipe``."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ctm_fast.engine import agreement
from ctm_fast.engine.agreement import Case
from ctm_fast.engine.cell_recipe import CellRecipe, Numbers, Sizes, flat, reason_against
from ctm_fast.engine.extract import tensors
from ctm_fast.models import NTM
from ctm_fast.models.adaptive import AdaptiveRecurrent
from ctm_fast.models.dispatch import is_plain
from ctm_fast.models.ntm_controller import CONTROLLERS, LayerWeights
from ctm_fast.models.ntm_heads import LinearHeads, SplitHeads

Arrays = dict[str, np.ndarray]


def is_cell(model: object) -> bool:
    """Whether an engine of this model is one of a cell."""
    return isinstance(model, NTM | AdaptiveRecurrent)


def extract(model: Any, example_inputs: Any) -> tuple[CellRecipe, list[Case]]:
    """The recipe of a model, and what it gives for an input of its forward, of the largest batch.

    Raises:
        TypeError: the example is not one tensor or array.
        ValueError: parts of the model are others than this package builds; the message says which.
    """
    if model.training:
        raise ValueError("Engine: model must be in eval mode (model.eval()), got one in training mode")
    agreement.require_precision(model)
    example = tensors(model, example_inputs)
    if len(example) != 1 or not isinstance(example[0], Tensor):
        found = ", ".join(type(x).__name__ for x in example)
        raise TypeError(f"Engine: example_inputs must be one tensor, got ({found})")
    shape = tuple(example[0].shape)
    if len(shape) not in (2, 3) or 0 in shape:
        raise ValueError(f"Engine: example_inputs must have shape (T, B, I) or (B, I), got {shape}")
    return _recipe(model, shape[-2]), agreement.cases(partial(outputs, model), example, -2)


def _recipe(model: Any, batch: int) -> CellRecipe:
    kind = "ntm" if isinstance(model, NTM) else "adaptive"
    with torch.no_grad():
        sizes, numbers, arrays = (_ntm if kind == "ntm" else _adaptive)(model, batch)
    arrays = {name: np.ascontiguousarray(x, np.float32) for name, x in arrays.items()}
    recipe = CellRecipe(kind, kind == "adaptive" and model.adaptive, sizes, numbers, arrays)
    reason = reason_against(recipe)
    if reason:
        raise ValueError(f"Engine: model must have sizes that fit each other, got {reason}")
    return recipe


def outputs(model: Any, x: Tensor) -> list[Tensor]:
    """What an engine must give: the output, the parts of the state, and of an adaptive network steps and pondering."""
    found = model(x)
    pondered = [found.steps, found.ponder] if isinstance(model, AdaptiveRecurrent) else []
    return [found.output, *flat(found.state), *pondered]


def _array(x: Tensor) -> np.ndarray:
    return x.detach().cpu().double().numpy()


def _require_plain(name: str, kind: type[nn.Module], *modules: nn.Module) -> None:
    if not is_plain(kind, *modules):
        expected = f"torch.nn.{kind.__name__} without hooks and parametrizations"
        raise ValueError(f"Engine: model must have {name} of {expected}, got another")


def _ntm(model: NTM, batch: int) -> tuple[Sizes, Numbers, Arrays]:
    controller, heads, layout = model.controller, model.heads, model.layout
    if type(controller) not in CONTROLLERS.values() or not controller.is_plain():
        raise ValueError(
            "Engine: model must have a controller of torch's layers without hooks and parametrizations, "
            f"got {type(controller).__name__}"
        )
    start = model.initial_state(1).memory
    arrays = {name: _array(x[0]) for name, x in start._asdict().items()}
    arrays["memory"] = arrays["memory"].T
    arrays |= _layers(controller.weights(), controller.inputs) | _heads(heads)
    split = isinstance(heads, SplitHeads)
    outputs = heads.sizes[1] if isinstance(heads, SplitHeads) else heads.to_output.out_features
    read, write, shift, order, cosine, key, add, one_plus, shared = layout.encoded
    sizes = Sizes(
        batch, controller.inputs, controller.size, controller.layers, outputs, controller.states,
        start.memory.shape[1], layout.width, read, write, shift, order, cosine, key, add, one_plus, shared,
        controller.fed_back, int(split),
    )  # fmt: skip
    return sizes, Numbers(layout.eps, math.inf if model.clip is None else model.clip), arrays


def _heads(heads: LinearHeads | SplitHeads) -> Arrays:
    if type(heads) is SplitHeads:
        return {"temperature": _array(heads.temperature).reshape(1)}
    if type(heads) is not LinearHeads:
        raise ValueError(f"Engine: model must have the published heads, got {type(heads).__name__}")
    _require_plain("heads", nn.Linear, heads.to_interface, heads.to_output)
    found = {"interface": _array(heads.to_interface.weight), "output": _array(heads.to_output.weight)}
    found["interface_bias"] = _array(heads.to_interface.bias)
    return found | {"output_bias": _array(heads.to_output.bias)}


def _layers(layers: list[LayerWeights], inputs: int) -> Arrays:
    found = {"from_input": _array(layers[0].inputs[:, :inputs])}
    for i, layer in enumerate(layers):
        parts = [_array(layer.inputs)[:, 0 if i else inputs :]]
        if layer.recurrent is not None:
            parts.append(_array(layer.recurrent))
        found |= {f"layer{i}.recurrent": np.concatenate(parts, 1), f"layer{i}.bias": _array(layer.bias)}
    return found


def _adaptive(model: AdaptiveRecurrent, batch: int) -> tuple[Sizes, Numbers, Arrays]:
    cell: Any = model.cell
    _require_plain("a cell", model.cell_type, cell)
    _require_plain("a readout", nn.Linear, model.readout)
    weight, inputs, width = _array(cell.weight_ih), model.input_size, model.hidden_size
    arrays = {
        "from_input": weight[:, :inputs], "layer0.recurrent": _array(cell.weight_hh),
        "layer0.bias": _array(cell.bias_ih) + _array(cell.bias_hh),
        "output": _array(model.readout.weight), "output_bias": _array(model.readout.bias),
        "flag": np.zeros(len(weight)), "halting": np.zeros(width), "halting_bias": np.zeros(1),
    }  # fmt: skip
    most = 1
    if model.adaptive:
        _require_plain("a halting unit", nn.Linear, model.halting)
        arrays |= {"flag": weight[:, inputs], "halting": _array(model.halting.weight)[0]}
        arrays["halting_bias"], most = _array(model.halting.bias), model.max_steps
    sizes = Sizes(
        batch, inputs, width, 1, model.output_size, 2 if model.cell_type is nn.LSTMCell else 1,
        most=most, classes=model.digit_classes,
    )  # fmt: skip
    return sizes, Numbers(threshold=1 - model.epsilon), arrays
