"""Argument checks shared by ``nlm`` and its loop form."""

from __future__ import annotations

import torch
from torch import Tensor

from ctm_fast.ops import checks, cuda
from ctm_fast.ops.native import draw_seed

Weights = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]


def check_weights(op: str, w1: object, b1: object, t1: object, w2: object, b2: object, t2: object) -> Weights:
    """The weights of both layers with consistent shapes, dtype and device, or TypeError/ValueError."""
    first = [checks.floating(op, name, x) for name, x in (("w1", w1), ("b1", b1), ("t1", t1))]
    checks.rank(op, "w1", first[0], "M, 2H, D")
    memory, outputs, neurons = first[0].shape
    if outputs % 2 or outputs == 0:
        got = tuple(first[0].shape)
        raise ValueError(f"{op}: w1 must have an even, positive number of outputs (M, 2H, D), got {got}")
    deep = [x is not None for x in (w2, b2, t2)]
    if any(deep) != all(deep):
        given = [name for name, x in zip(("w2", "b2", "t2"), deep, strict=True) if x]
        raise ValueError(
            f"{op}: w2, b2, t2 must be given together or not at all, got {', '.join(given)} alone"
        )
    if not any(deep) and outputs != 2:
        raise ValueError(f"{op}: w1 must have 2 outputs where there is no second layer, got {outputs}")
    second = (
        [checks.floating(op, name, x) for name, x in (("w2", w2), ("b2", b2), ("t2", t2))]
        if all(deep)
        else []
    )
    expected = [
        (memory, outputs, neurons),
        (1, neurons, outputs),
        (1,),
        (outputs // 2, 2, neurons),
        (1, neurons, 2),
        (1,),
    ]
    letters = ["M, 2H, D", "1, D, 2H", "1", "H, 2, D", "1, D, 2", "1"]
    names = ["w1", "b1", "t1", "w2", "b2", "t2"]
    for name, value, size, text in zip(names, first + second, expected, letters, strict=False):
        checks.shape(op, name, value, size, text)
        checks.like(op, name, value, "w1", first[0], (first[0].dtype,))
    w2_, b2_, t2_ = second or (None, None, None)
    return (first[0], first[1], first[2], w2_, b2_, t2_)


def check(op: str, history: object, *weights: object) -> Weights:
    """The weights, checked by themselves and against ``history`` (B, D, M)."""
    x = checks.floating(op, "history", history)
    checks.rank(op, "history", x, "B, D, M")
    w1 = checks.floating(op, "w1", weights[0])  # before the others, which are held to it
    checks.like(op, "w1", w1, "history", x, checks.compute_dtypes(x.dtype))
    checked = check_weights(op, *weights)
    memory, _, neurons = w1.shape
    checks.shape(op, "history", x, (x.shape[0], neurons, memory), "B, D, M")
    return checked


def check_dropout(op: str, p: float, seed: int | Tensor | None, device: torch.device) -> Tensor | None:
    """The seed as an int64 tensor (1), or None where nothing is dropped; bad arguments raise either way.

    A seed that is no tensor comes to be on ``device``.
    """
    checks.number(op, "dropout", p)
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"{op}: dropout must be in [0, 1], got {p}")
    if seed is not None:
        seed = _as_seed(op, seed, device)
    if p == 0.0:
        return None
    return draw_seed(device) if seed is None else seed


def _as_seed(op: str, seed: object, device: torch.device) -> Tensor:
    if isinstance(seed, int) and not isinstance(seed, bool):
        if not -(2**63) <= seed < 2**63:
            raise ValueError(f"{op}: seed must fit 64 signed bits, got {seed}")
        return torch.full((1,), seed, dtype=torch.int64, device=device)
    expected = f"{op}: seed must be an int or an int64 tensor with one element"
    if not isinstance(seed, Tensor):
        raise TypeError(f"{expected}, got {type(seed).__name__}")
    checks.tensor(op, "seed", seed)
    checks.values(op, "seed", seed)
    if seed.dtype != torch.int64 or seed.numel() != 1:
        raise TypeError(f"{expected}, got {seed.dtype} of shape {tuple(seed.shape)}")
    return seed.reshape(1)


def refusals(w1: Tensor, w2: Tensor | None) -> dict[str, str]:
    """Why the backend "native" has no kernel for these weights on a GPU; empty if it has one.

    Nothing of the module is asked while ``torch.compile`` traces: then the kernel itself refuses.
    """
    module = cuda.extension() if w1.is_cuda and not torch.compiler.is_compiling() else None
    if module is None:  # on the CPU it takes all, and a module that was not built is said of every model
        return {}
    memory, hidden = w1.shape[0], w1.shape[1] // 2
    if w2 is not None and (memory, hidden) in module.nlm_models():
        return {}
    kind = "deep" if w2 is not None else "linear"
    return {"native": f"there is no CUDA kernel for {kind} models of M = {memory}, H = {hidden}"}
