"""The numerical contract of the ops, and what a case of one is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

Inputs = dict[str, Tensor]
Evaluate = Callable[[Inputs], dict[str, Tensor]]


class Op(NamedTuple):
    """A public op.

    ``run`` is the function; ``inputs`` draws its arguments for given sizes; ``outputs`` names what it returns;
    ``arguments`` gives those of the registered ``torch.ops.ctm_fast.<op>_forward`` for inputs and options;
    ``wanted`` lists the flags that the registered backward takes behind them; ``saved`` the places of the
    forward's results that it takes behind these. ``bounded`` names arguments that have no infinite values.
    """

    run: Callable[..., Any]
    inputs: Callable[..., Inputs]
    outputs: tuple[str, ...]
    arguments: Callable[[Inputs, Mapping[str, Any]], tuple[Any, ...]]
    wanted: tuple[tuple[bool, ...], ...] = ((),)
    saved: tuple[int, ...] = ()
    bounded: tuple[str, ...] = ()


OPS: dict[str, Op] = {}
DRAWS = 8  # of random inputs that :func:`breaches` joins
SLACK = 1.0  # on its bounds; more than that for fewer draws, which tell wrong from right but not rounding from rounding


@dataclass(frozen=True, eq=False)
class OpCase:
    """One call of an op: sizes and keyword arguments, with a readable name.

    Inputs and results are on the CPU. The op runs on ``device``, the reference in float64, which is the truth, on the
    CPU.
    """

    op: str
    name: str
    sizes: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"

    def __str__(self) -> str:
        return f"{self.op}-{self.name}" + ("" if self.device == "cpu" else f"-{self.device}")

    def on(self, device: str) -> OpCase:
        """The same case on another device."""
        return replace(self, device=device)

    def placed(self, inputs: Inputs, backend: str | None = None) -> Inputs:
        """``inputs`` with their strides where ``backend`` runs on them."""
        exact = backend == "reference" and any(x.dtype == torch.float64 for x in inputs.values())
        return (
            inputs if exact or self.device == "cpu" else {k: moved(x, self.device) for k, x in inputs.items()}
        )

    def inputs(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> Inputs:
        """Arguments by name in the order of the signature, on the CPU; floating-point ones of ``dtype``."""
        return OPS[self.op].inputs(*self.sizes, dtype=dtype, generator=torch.Generator().manual_seed(seed))

    def run(self, inputs: Inputs, backend: str | None = None) -> dict[str, Tensor]:
        """The op's outputs by name."""
        op = OPS[self.op]
        found = op.run(*self.placed(inputs, backend).values(), **self.options, backend=backend)
        outputs = found if isinstance(found, tuple) else (found,)
        back = outputs if self.device == "cpu" else tuple(y.cpu() for y in outputs)
        return dict(zip(op.outputs, back, strict=True))

    def evaluate(self, inputs: Inputs, backend: str | None = None) -> dict[str, Tensor]:
        """Outputs, and gradients of floating-point arguments as ``"d " + name`` for one fixed cotangent."""
        leaves = {name: leaf(value) for name, value in inputs.items()}
        outputs = self.run(leaves, backend)
        wanted = {name: x for name, x in leaves.items() if x.requires_grad}
        grads = torch.autograd.grad(
            list(outputs.values()), list(wanted.values()), cotangents(outputs.values())
        )
        found = {name: y.detach() for name, y in outputs.items()}
        return found | {f"d {name}": g for name, g in zip(wanted, grads, strict=True)}


def cotangents(outputs: Iterable[Tensor]) -> list[Tensor]:
    """Gradients to start a backward pass from; exact in bfloat16, so the same numbers in every dtype."""
    generator = torch.Generator().manual_seed(1)
    drawn = ((y, torch.randn(y.shape, generator=generator, device="cpu")) for y in outputs)
    return [x.to(torch.bfloat16).to(y.device, y.dtype) for y, x in drawn]


def moved(x: Tensor, device: str) -> Tensor:
    """``x`` on ``device`` with the same strides, through autograd."""
    placed = x.to(device)
    if placed.stride() == x.stride():
        return placed
    strided = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device)
    return strided.copy_(placed)


def upcast(inputs: Inputs) -> Inputs:
    """The same numbers in float64."""
    return {k: x.double() if x.is_floating_point() else x for k, x in inputs.items()}


def relative_error(found: Tensor, truth: Tensor) -> float:
    """||found - truth|| / ||truth||; the absolute error where the truth is zero."""
    scale = truth.double().norm().item() or 1.0
    return (found.double() - truth.double()).norm().item() / scale


def error_bound(plain: float, dtype: torch.dtype) -> float:
    """The largest relative error allowed where plain PyTorch makes ``plain`` in the same dtype."""
    return max(2 * plain, 4 * torch.finfo(dtype).eps)


def breaches(
    draw: Callable[[torch.dtype, int], Inputs],
    fast: Evaluate,
    plain: Evaluate,
    dtype: torch.dtype,
    draws: int | None = None,
) -> dict[str, tuple[float, float]]:
    """Results of ``fast`` that break the numerical contract: name -> (relative error, bound).

    The truth is ``plain`` in float64 on the same numbers. A result is judged over several draws joined
    (:data:`DRAWS` unless given): a scalar's gradient of one draw can cancel by chance. In float64, plain
    PyTorch's error is its error in float32 scaled by the ratio of the units, and the truth itself is that far
    from the exact result.
    """
    draws = DRAWS if draws is None else draws
    measured = torch.float32 if dtype == torch.float64 else dtype
    scale = torch.finfo(dtype).eps / torch.finfo(measured).eps
    errors = _joined_errors(draw, fast, plain, dtype, draws)
    bounds = {}
    for name, error in _joined_errors(draw, plain, plain, measured, draws).items():
        bounds[name] = error_bound(error * scale, dtype) + (error * scale if dtype == torch.float64 else 0.0)
    return {
        name: (error, bounds[name]) for name, error in errors.items() if not error <= SLACK * bounds[name]
    }


def _joined_errors(
    draw: Callable[[torch.dtype, int], Inputs], run: Evaluate, plain: Evaluate, dtype: torch.dtype, draws: int
) -> dict[str, float]:
    inputs = [draw(dtype, seed) for seed in range(draws)]
    found, truth = [run(x) for x in inputs], [plain(upcast(x)) for x in inputs]
    return {
        name: relative_error(torch.stack([f[name] for f in found]), torch.stack([t[name] for t in truth]))
        for name in truth[0]
    }


def padded(x: Tensor) -> Tensor:
    """``x`` (rows, width) with a row stride beyond its width; NaN lies between the rows."""
    wide = x.new_full((x.shape[0], x.shape[1] + 3), float("nan"))
    wide[:, : x.shape[1]] = x
    return wide[:, : x.shape[1]]


def leaf(x: Tensor) -> Tensor:
    """The same numbers as a leaf that takes gradients where it can."""
    return x.detach().requires_grad_(x.is_floating_point())
