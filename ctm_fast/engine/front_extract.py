"""From torch modules to an engine's front.

What is linear is folded in float64: a linear map into the table of the embedding before it, the scale of an attention's
queries and the positional term of queries and keys into their projection. A module counts only if it is exactly of its
class, without hooks, parametrizations or a forward of its own; of another class with the same parts only if it gave
the same results.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ctm_fast.engine.front import Front, FrontStage
from ctm_fast.loop import plan
from ctm_fast.nn.backbones import ClassicControlBackbone, MiniGridBackbone, ParityBackbone
from ctm_fast.nn.encoder import Encoder, EncoderLayer

MOST_FOLDED = 1024  # rows of a table that a linear map is folded into
POINTWISE = {nn.ReLU: "relu", nn.SiLU: "silu", nn.Tanh: "tanh"}
FUNCTIONS = {functional.relu: "relu", functional.gelu: "gelu"}
NOTHING = (nn.Identity, nn.Dropout)

Shape = tuple[int, ...]


class UnknownLayerError(Exception):
    """No stage computes what a module does."""


def array(x: Tensor) -> np.ndarray:
    """A parameter or buffer in float64."""
    return x.detach().cpu().double().numpy()


class Builder:
    """A program over samples of one shape, stage by stage; ``shape`` is what the last one gave."""

    def __init__(self, name: str, shape: Shape) -> None:
        self.name, self.given, self.shape = name, shape, shape
        self.reads = "floats"
        self.ends: Shape = ()
        self.stages: list[FrontStage] = []
        self.arrays: list[dict[str, np.ndarray]] = []

    def front(self, prefix: str) -> tuple[Front, dict[str, np.ndarray]]:
        """The front and its arrays by name."""
        named = {f"{prefix}{i}.{name}": x for i, found in enumerate(self.arrays) for name, x in found.items()}
        return Front(self.name, self.reads, self.given, self.ends, tuple(self.stages)), named

    def stage(
        self, kind: str, width: int = 0, number: int = 0, eps: float = 0.0, **arrays: np.ndarray
    ) -> None:
        """Append a stage that gives rows of ``width``, by default as wide as they are."""
        if not self.shape:
            raise UnknownLayerError
        *rows, inputs = self.shape
        width = width or inputs
        self.stages.append(FrontStage(kind, math.prod(rows), inputs, width, number, eps))
        self.arrays.append(arrays)
        self.shape = (*rows, width)

    def embed(self, reads: str, ends: Shape, table: np.ndarray, rows: Shape) -> None:
        """Begin with the sum of a row of ``table`` for every column of ``ends``."""
        if self.stages:
            raise UnknownLayerError
        self.reads, self.ends, width = reads, ends, table.shape[1]
        self.stages.append(FrontStage("embed", math.prod(rows), len(ends), width, len(table)))
        self.arrays.append({"weight": table})
        self.shape = (*rows, width)

    def add(self, constant: np.ndarray) -> None:
        """Add what broadcasts against a sample."""
        *rows, width = self.shape
        self.stage("add", weight=np.broadcast_to(constant, self.shape).reshape(math.prod(rows), width))

    def linear(self, weight: np.ndarray, bias: np.ndarray | None) -> None:
        """A linear map of every row, folded into a small table if nothing but that comes before it."""
        bias = np.zeros(len(weight)) if bias is None else bias
        kinds = [s.kind for s in self.stages]
        small = kinds in (["embed"], ["embed", "add"]) and self.stages[0].number <= MOST_FOLDED
        if small and self.shape[-1] == self.stages[0].width:  # no rows were put together in between
            self._fold(weight, bias)
        else:
            self.stage("linear", len(weight), weight=weight, bias=bias)

    def _fold(self, weight: np.ndarray, bias: np.ndarray) -> None:
        constant = self.arrays[1]["weight"] if len(self.stages) == 2 else None
        table, rows = self.arrays[0]["weight"] @ weight.T, self.shape[:-1]
        self.stages.clear()
        self.arrays.clear()
        if constant is None:
            table[: self.ends[0]] += bias  # of one column
        self.embed(self.reads, self.ends, table, rows)
        if constant is not None:
            self.add((constant @ weight.T + bias).reshape(self.shape))

    def turn(self) -> None:
        """(rows, columns) -> (columns, rows)."""
        if len(self.shape) != 2:
            raise UnknownLayerError
        rows, columns = self.shape
        if self.stages and self.stages[-1].kind == "turn":
            self.stages.pop()
            self.arrays.pop()
        else:
            self.stage("turn", rows)
        self.shape = (columns, rows)

    def module(self, module: nn.Module) -> None:
        """Append what a module computes. Raises :class:`UnknownLayerError`."""
        parts = plan.parts_of(module)
        if plan.why_called(parts) is not None or any(part.training for part in parts):
            raise UnknownLayerError
        self._module(module)

    def _module(self, module: Any) -> None:
        kind = type(module)
        if kind in POINTWISE:
            self.stage(POINTWISE[kind])
        elif kind in BUILDERS:
            BUILDERS[kind](self, module)
        elif kind not in NOTHING:
            self._module(_stand_in(module, self.shape))

    def each(self, modules: Any) -> None:
        """One module after the other."""
        for module in modules:
            self._module(module)


def _linear(b: Builder, module: Any) -> None:
    b.linear(array(module.weight), array(module.bias) if module.bias is not None else None)


def _norm(b: Builder, module: Any) -> None:
    if module.normalized_shape != b.shape[-1:]:
        raise UnknownLayerError
    width = b.shape[-1]
    weight = np.ones(width) if module.weight is None else array(module.weight)
    bias = np.zeros(width) if module.bias is None else array(module.bias)
    b.stage("norm", eps=module.eps, weight=weight, bias=bias)


def _glu(b: Builder, module: Any) -> None:
    if module.dim not in (-1, len(b.shape)) or not b.shape or b.shape[-1] % 2:
        raise UnknownLayerError
    b.stage("glu", b.shape[-1] // 2)


def _gelu(b: Builder, module: Any) -> None:
    if module.approximate != "none":
        raise UnknownLayerError
    b.stage("gelu")


def _flatten(b: Builder, module: Any) -> None:
    dimensions = len(b.shape) + 1
    first, last = (d % dimensions for d in (module.start_dim, module.end_dim))
    if first < 1:
        raise UnknownLayerError
    b.shape = (*b.shape[: first - 1], math.prod(b.shape[first - 1 : last]), *b.shape[last:])


def _embedding(b: Builder, module: Any) -> None:
    if module.max_norm is not None:
        raise UnknownLayerError
    b.embed("indices", (module.num_embeddings,), array(module.weight), b.shape)


def _parity(b: Builder, module: Any) -> None:
    if len(b.shape) != 1 or module.embedding.num_embeddings != 2 or module.embedding.max_norm is not None:
        raise UnknownLayerError
    b.embed("signs", (2,), array(module.embedding.weight), b.shape)
    b.turn()


def _minigrid(b: Builder, module: Any) -> None:
    """Embeddings side by side and a linear map of them are a sum of rows."""
    tables = [
        module.object_embedding,
        module.color_embedding,
        module.state_embedding,
        module.position_embedding,
    ]
    first, *others = module.project_to_d_projection
    widths = [table.embedding_dim for table in tables]
    plain = all(type(table) is nn.Embedding and table.max_norm is None for table in tables)
    if not plain or type(first) is not nn.Linear or first.in_features != sum(widths) or first.bias is None:
        raise UnknownLayerError
    parts = np.split(array(first.weight), np.cumsum(widths)[:-1], axis=1)
    *folded, positions = (array(t.weight) @ part.T for t, part in zip(tables, parts, strict=True))
    if len(b.shape) != 3 or b.shape[2] != len(folded) or math.prod(b.shape[:2]) != len(positions):
        raise UnknownLayerError
    rows = b.shape[:2]
    b.embed("indices", tuple(len(table) for table in folded), np.concatenate(folded), rows)
    b.add((positions + array(first.bias)).reshape(*rows, -1))
    b.each(others)


def _stand_in(module: nn.Module, shape: Shape) -> nn.Module:
    """Our backbone around the parts of a foreign one that gives the same results; an error without any."""
    names = {name for name, _ in module.named_children()}
    for kind, own in BACKBONE_PARTS.items():
        if names == own:
            try:
                copied = copy.deepcopy(module).cpu().double()
                plan.move(copied)
                x = _sample(kind, copied, shape)
                with torch.no_grad():
                    same = torch.allclose(copied(x), _around(kind, copied, shape)(x), rtol=1e-8, atol=1e-10)
            except Exception as error:  # whatever a foreign module does with an input that is not its own
                raise UnknownLayerError from error
            if same:
                return _around(kind, module, shape)
    raise UnknownLayerError


def _around(kind: type[nn.Module], module: nn.Module, shape: Shape) -> nn.Module:
    """A backbone of ours with the children of ``module``."""
    ours: Any = kind.__new__(kind)
    nn.Module.__init__(ours)
    for name, child in module.named_children():
        ours.add_module(name, child)
    if kind is MiniGridBackbone:
        ours.position_ids = torch.arange(math.prod(shape[:2])).view(shape[:2])
    return ours.eval()  # type: ignore[no-any-return]


def _sample(kind: type[nn.Module], module: Any, shape: Shape) -> Tensor:
    """An input (3, ...) of a backbone on which other formulas would show."""
    generator = torch.Generator().manual_seed(0)
    if kind is ParityBackbone:
        return torch.randint(-1, 3, (3, *shape), generator=generator).double()
    if kind is ClassicControlBackbone:
        return torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    tables = (module.object_embedding, module.color_embedding, module.state_embedding)
    columns = [torch.randint(t.num_embeddings, (3, *shape[:2]), generator=generator) for t in tables]
    return torch.stack(columns, -1)


def _attention(b: Builder, module: Any, positional: np.ndarray | None) -> None:
    """Multi-head self-attention, its queries and keys of x + positional."""
    weight = module.in_proj_weight
    plain = weight is not None and module.batch_first and module.bias_k is None and not module.add_zero_attn
    if not plain or len(b.shape) != 2:
        raise UnknownLayerError
    d, heads = module.embed_dim, module.num_heads
    scale = np.repeat([(d // heads) ** -0.5, 1.0, 1.0], d)
    into = array(weight) * scale[:, None]
    bias = np.zeros(3 * d) if module.in_proj_bias is None else array(module.in_proj_bias) * scale
    b.linear(into, bias)
    if positional is not None:
        placed = positional @ into.T
        placed[..., 2 * d :] = 0.0
        b.add(placed)
    b.stage("attend", d, heads)
    _linear(b, module.out_proj)


def _encoder_layer(b: Builder, layer: Any, positional: np.ndarray | None = None) -> None:
    """Of torch or of ours: their parts have the same names."""
    before = layer.norm_first if isinstance(layer, nn.TransformerEncoderLayer) else layer.pre_norm

    def attend() -> None:
        _attention(b, layer.self_attn, positional)

    def feed_forward() -> None:
        _linear(b, layer.linear1)
        activation = layer.activation
        if activation in FUNCTIONS:
            b.stage(FUNCTIONS[activation])
        else:
            b._module(activation)
        _linear(b, layer.linear2)

    for part, norm in ((attend, layer.norm1), (feed_forward, layer.norm2)):
        b.stage("keep")
        if before:
            _norm(b, norm)
        part()
        b.stage("residual")
        if not before:
            _norm(b, norm)


def _encoder(b: Builder, module: Any) -> None:
    positional = array(module.positional) if isinstance(module, Encoder) else None
    if positional is not None and positional.shape != b.shape:
        raise UnknownLayerError
    for layer in module.layers:
        if type(layer) not in (EncoderLayer, nn.TransformerEncoderLayer):
            raise UnknownLayerError
        _encoder_layer(b, layer, positional)
    if module.norm is not None:
        b._module(module.norm)


BUILDERS: dict[type, Callable[[Builder, Any], None]] = {
    nn.Sequential: Builder.each,
    nn.Linear: _linear,
    nn.LayerNorm: _norm,
    nn.GLU: _glu,
    nn.GELU: _gelu,
    nn.Flatten: _flatten,
    nn.Embedding: _embedding,
    nn.TransformerEncoderLayer: _encoder_layer,
    nn.TransformerEncoder: _encoder,
    EncoderLayer: _encoder_layer,
    Encoder: _encoder,
    ParityBackbone: _parity,
    MiniGridBackbone: _minigrid,
    ClassicControlBackbone: lambda b, module: b._module(module.input_projector),
}
BACKBONE_PARTS: dict[type[nn.Module], set[str]] = {
    ParityBackbone: {"embedding"},
    ClassicControlBackbone: {"input_projector"},
    MiniGridBackbone: {
        *(f"{name}_embedding" for name in ("object", "color", "state", "position")), "project_to_d_projection",
    },
}  # fmt: skip
