"""Registration of the native and the Triton ``ntm`` ops with torch: schemas, fake kernels, autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ctm_fast.ops import triton
from ctm_fast.ops.grad import refuse_double_backward
from ctm_fast.ops.ntm import native

_STEP = "Tensor memory, Tensor interface, Tensor read_weights, Tensor write_weights, int[] layout, float eps"
_STEP_GRADS = "Tensor? dreads, Tensor? dafter, Tensor? dread, Tensor? dwrite"
_FOUR = "(Tensor, Tensor, Tensor, Tensor)"
_ADDRESS = "Tensor memory, Tensor values, Tensor previous, int shift, int eps_placement, float eps"
_READ = "Tensor memory, Tensor weights"
_WRITE = "Tensor memory, Tensor weights, Tensor erase, Tensor add"
_LIBRARY = torch.library.Library("ctm_fast", "FRAGMENT")
for _schema in (
    f"ntm_step_forward({_STEP}) -> {_FOUR}",
    f"ntm_step_backward({_STEP_GRADS}, {_STEP}) -> {_FOUR}",
    f"ntm_sequence_forward({_STEP}, bool trace) -> {_FOUR}",
    f"ntm_sequence_backward({_STEP_GRADS}, {_STEP}, bool trace) -> {_FOUR}",
    f"ntm_address_forward({_ADDRESS}) -> Tensor",
    f"ntm_address_backward(Tensor grad, {_ADDRESS}) -> (Tensor, Tensor, Tensor)",
    f"ntm_read_forward({_READ}) -> Tensor",
    f"ntm_read_backward(Tensor grad, {_READ}) -> (Tensor, Tensor)",
    f"ntm_write_forward({_WRITE}) -> Tensor",
    f"ntm_write_backward(Tensor grad, {_WRITE}) -> {_FOUR}",
):
    _LIBRARY.define(_schema)
    _LIBRARY.define(_schema.replace("(", f"{triton.SUFFIX}(", 1))


def _fake_forward(
    memory: Tensor, interface: Tensor, read_weights: Tensor, write_weights: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    steps = interface.shape[:-2]
    of = steps if rest[2:] == (True,) else ()
    reads = memory.new_empty(*steps, *read_weights.shape[:2], memory.shape[2])
    weights = (memory.new_empty(*of, *x.shape) for x in (read_weights, write_weights))
    return reads, native.slots_innermost(memory), *weights


def _fake_gradients(memory: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    return (native.slots_innermost(memory), *(x.new_empty(x.shape) for x in others))


class Kernel(NamedTuple):
    """Forward and backward of a registered op, and how many tensors it takes."""

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    fake: Callable[..., Any]
    tensors: int


KERNELS = {
    "ntm_step": Kernel(native.step_forward, native.step_backward, _fake_forward, 4),
    "ntm_sequence": Kernel(native.step_forward, native.step_backward, _fake_forward, 4),
    "ntm_address": Kernel(
        native.address_forward, native.address_backward, lambda _, __, p, *___: p.new_empty(p.shape), 3
    ),
    "ntm_read": Kernel(
        native.read_forward,
        native.read_backward,
        lambda m, w: m.new_empty(m.shape[0], w.shape[1], m.shape[2]),
        2,
    ),
    "ntm_write": Kernel(
        native.write_forward, native.write_backward, lambda m, *_: native.slots_innermost(m), 4
    ),
}


def _register(name: str, kernel: Kernel) -> None:
    def fake_backward(*arguments: Any) -> tuple[Tensor, ...]:
        grads = 4 if kernel.fake is _fake_forward else 1
        return _fake_gradients(*arguments[grads : grads + kernel.tensors])

    _LIBRARY.impl(f"{name}_forward", kernel.forward, "CPU")
    _LIBRARY.impl(f"{name}_backward", kernel.backward, "CPU")
    torch.library.register_fake(f"ctm_fast::{name}_forward", kernel.fake)
    torch.library.register_fake(f"ctm_fast::{name}_backward", fake_backward)
    ways = (f"{name}_forward", f"{name}_backward")
    triton.register(_LIBRARY, "ntm", ways, (kernel.fake, fake_backward))


for _name, _kernel in KERNELS.items():
    _register(_name, _kernel)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backend: str, name: str, *arguments: Any) -> Any:
        count = KERNELS[name].tensors
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*arguments[:count])
        ctx.backend, ctx.name, ctx.rest = backend, name, arguments[count:]
        return _call(backend, name, "forward", arguments)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        refuse_double_backward(ctx.name)
        if all(grad is None for grad in grads):
            return (None,) * len(ctx.needs_input_grad)
        found = _call(ctx.backend, ctx.name, "backward", (*grads, *ctx.saved_tensors, *ctx.rest))
        return (None, None, *found, *(None for _ in ctx.rest))


def _call(backend: str, name: str, way: str, arguments: tuple[Any, ...]) -> Any:
    """Through torch's dispatcher only where somebody traces: it costs more than a step."""
    if torch.compiler.is_compiling():
        return triton.op(f"{name}_{way}", backend)(*arguments)
    if backend == "triton":
        return triton.function("ntm", f"{name}_{way}")(*arguments)
    return getattr(KERNELS[name], way)(*arguments)


def run(backend: str, name: str, *arguments: Any) -> Any:
    """The op ``name`` on "native" or "triton": tensors in the compute dtype, then the rest of its schema."""
    tensors = arguments[: KERNELS[name].tensors]
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return _Fused.apply(backend, name, *arguments)
    return _call(backend, name, "forward", arguments)
