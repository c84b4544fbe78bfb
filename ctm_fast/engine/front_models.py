"""The fronts of the published models: as much of what lies before the recurrent part as an engine can compute.

Letters as in ``ctm_fast.engine.inputs``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ctm_fast.engine import inputs
from ctm_fast.engine.front_extract import Builder, UnknownLayerError, array
from ctm_fast.engine.inputs import Inputs
from ctm_fast.engine.recipe import Question, Recipe

Features = Callable[..., Inputs]


class Found(NamedTuple):
    """A finished program, and the modules that run in torch before it."""

    program: Builder
    before: list[Any]


def with_fronts(
    recipe: Recipe, model: Any, example: tuple[Any, ...], behind: Features
) -> tuple[Recipe, Features]:
    """The recipe with the fronts that were found, and the features that use them.

    ``behind`` gives what the recurrent part reads. It remains for inputs of another shape than the example's, and where
    nothing was found.
    """
    tokens, given, question = _found(recipe, model, example)
    if tokens is None and given is None:
        return recipe, behind
    fronts: dict[str, Any] = {"question": question}
    arrays = dict(recipe.arrays)
    for prefix, found in (("tokens_front", tokens), ("given_front", given)):
        if found is not None:
            fronts[prefix], own = found.program.front(prefix)
            arrays |= {name: np.ascontiguousarray(x, np.float32) for name, x in own.items()}
    recipe = dataclasses.replace(recipe, arrays=arrays, **fronts)
    before = (tokens or given).before  # type: ignore[union-attr]
    return recipe, _raw(recipe, before, behind)


def _found(
    recipe: Recipe, model: Any, example: tuple[Any, ...]
) -> tuple[Found | None, Found | None, Question | None]:
    """Programs of the tokens and of the given inputs."""
    if recipe.kind == "base":
        parts = [getattr(model, name, None) for name in ("initial_rgb", "backbone")]
        return _attended(model, [part for part in parts if part is not None], example[0]), None, None
    if recipe.kind == "rl":
        return None, _constant(model, example[0]), None
    if recipe.kind == "qamnist":
        tokens, (given, question) = _attended(model, [model.backbone_digit], example[0][:, 0]), _asked(model)
        if tokens is not None and given is not None:
            return tokens, given, question
    return None, None, None


def _raw(recipe: Recipe, before: list[Any], behind: Features) -> Features:
    """Features that stop where the fronts begin."""
    front = recipe.tokens_front or recipe.given_front
    assert front is not None

    def run(*arguments: Any) -> Inputs:
        x = arguments[0]
        with torch.no_grad():
            if recipe.kind != "qamnist":
                given = _through(before, x)
                fits = given.shape[1:] == front.shape
                return inputs.from_arrays(recipe, (given,)) if fits else behind(*arguments)
            changed = [t for t in range(x.shape[1]) if t == 0 or not torch.equal(x[:, t], x[:, t - 1])]
            sets = [_through(before, x[:, t]) for t in changed]
        if not sets or sets[0].shape[1:] != front.shape:
            return behind(*arguments)
        seen = (np.searchsorted(changed, np.arange(x.shape[1]), side="right") - 1).tolist()
        return inputs.questioned(recipe, inputs.as_array(torch.stack(sets)), seen, arguments[1])

    return run


def _through(modules: list[Any], x: Tensor) -> Tensor:
    for module in modules:
        x = module(x)
    return x


def _attended(model: Any, backbone: list[Any], x: Tensor) -> Found | None:
    """The tokens (B, L, d) behind backbone, positional embedding and key-value projection."""
    with torch.no_grad():
        tokens = model.compute_features(x)
        try:
            features = _through(backbone, x)
            layout = next(_agreeing(model, features, tokens), None)
        except Exception:  # parts that a compute_features of one's own has no use for need not fit this input
            return None
    if layout is None:
        return None
    for name, before in (("x", []), ("features", backbone)):
        given = x if name == "x" else features
        program = Builder(name, tuple(given.shape[1:]))
        try:
            for module in backbone if name == "x" else ():
                program.module(module)
            _arrange(program, layout)
            program.module(model.kv_proj)
        except UnknownLayerError:
            continue
        if program.stages and program.shape == tuple(tokens.shape[1:]):
            return Found(program, before)
    return None


class _Layout(NamedTuple):
    """How features become what the key-value projection reads."""

    channels_first: bool
    position: Tensor | None  # of one sample, as the features


def _agreeing(model: Any, features: Tensor, tokens: Tensor) -> Iterator[_Layout]:
    """The layouts that give the model's tokens for the example."""
    embedding = getattr(model, "positional_embedding", None)
    position = embedding(features) if callable(embedding) else None
    if isinstance(position, Tensor):
        if not torch.equal(position, embedding(torch.zeros_like(features))):  # type: ignore[misc]
            return
        position = position.expand(features.shape)[0]
    else:
        position = None
    if features.dim() > 2:
        placed = features if position is None else features + position
        if _gives(model.kv_proj, placed.flatten(2).transpose(1, 2), tokens):
            yield _Layout(True, position)
    if features.dim() == 3 and _gives(model.kv_proj, features, tokens):
        yield _Layout(False, None)


def _gives(kv_proj: Any, x: Tensor, tokens: Tensor) -> bool:
    try:
        found = kv_proj(x)
    except Exception:  # x is of another width
        return False
    return found.shape == tokens.shape and torch.allclose(found, tokens, rtol=1e-4, atol=1e-5)


def _arrange(program: Builder, layout: _Layout) -> None:
    if not layout.channels_first:
        return
    channels, *grid = program.shape
    program.shape = (channels, int(np.prod(grid)))
    program.turn()
    if layout.position is not None:
        program.add(array(layout.position).reshape(channels, -1).T)


def _constant(model: Any, x: Tensor) -> Found | None:
    """The features (B, F) behind the backbone."""
    program = Builder("x", tuple(x.shape[1:]))
    try:
        program.module(model.backbone)
    except UnknownLayerError:
        return None
    return Found(program, []) if program.stages else None


def _asked(model: Any) -> tuple[Found | None, Question | None]:
    """The embedded question: one table of positions, operators and silence."""
    positions = getattr(model.index_backbone, "embedding", None)
    operators = getattr(model.operator_backbone, "embedding", None)
    if not isinstance(positions, Tensor) or type(operators) is not nn.Embedding:
        return None, None
    device, count = positions.device, operators.num_embeddings
    with torch.no_grad():
        first = model.index_backbone(torch.arange(len(positions), device=device))
        second = model.operator_backbone(-1 - torch.arange(count, device=device))
    table = torch.cat((first, second, torch.zeros_like(first[:1])))
    question = Question(len(positions), count, int(model.iterations_per_question_part))
    program = Builder("question", (1,))
    program.embed("indices", (question.rows,), array(table), (1,))
    return Found(program, []), question
