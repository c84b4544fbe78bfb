"""Rows of single operations of the memories: addressing, reading, writing, allocation and temporal links.

The Neural Turing Machine's have 128 slots of width 20 and one head (arXiv 1410.5401, table 1), those of the
Differentiable Neural Computer 64 slots and four read heads. The reference is the plain PyTorch backend.

Letters: B batch, N slots, W width of a slot, R read heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.baselines import dnc, ntm
from bench.memory import storages_of
from bench.row import OWN, REFERENCE, STRONG, Case, Provider, Row, inferred, trained
from ctm_fast import ops

N, W = 128, 20
SLOTS, R = 64, 4

Forward = Callable[..., Any]


class Problem(NamedTuple):
    """Arguments of an op, the op, and the same in strong eager form."""

    arguments: list[Tensor]
    op: Forward
    strong: Forward


def address(batch: int) -> Problem:
    """One head."""
    distributions = [torch.randn(batch, 1, size).softmax(2) for size in (3, N)]
    key, beta, gate, gamma = torch.randn(batch, 1, W), *torch.rand(3, batch, 1).unbind(0)
    given = [torch.randn(batch, N, W), key, 5 * beta, gate, distributions[0], 1 + gamma, distributions[1]]
    return Problem(given, ops.ntm_address, ntm.strong_address)


def read(batch: int) -> Problem:
    """One head."""
    given = [torch.randn(batch, N, W), torch.randn(batch, 1, N).softmax(2)]
    return Problem(given, ops.ntm_read, lambda memory, weights: torch.bmm(weights, memory))


def write(batch: int) -> Problem:
    """One head."""
    weights, erase = torch.randn(batch, 1, N).softmax(2), torch.rand(batch, 1, W)
    given = [torch.randn(batch, N, W), weights, erase, torch.randn(batch, 1, W)]
    return Problem(given, ops.ntm_write, ntm.strong_write)


def allocation(batch: int) -> Problem:
    """Usages that all differ."""
    return Problem([torch.rand(batch, SLOTS)], ops.dnc_allocation, partial(dnc.allocation, eps=1e-6))


def link(batch: int) -> Problem:
    """Dense links."""
    weights = torch.randn(batch, 2 + R, SLOTS).softmax(2)
    given = [torch.rand(batch, SLOTS, SLOTS) / SLOTS, weights[:, 0], weights[:, 1], weights[:, 2:]]
    return Problem(given, _link, partial(dnc.links, kept=dnc.off_diagonal(given[0])))


def _link(*given: Tensor, backend: str | None = None) -> tuple[Tensor, ...]:
    return ops.dnc_link(*given, backend=backend)[:4]


OPS = {
    "ntm-address": (address, f"N{N} W{W}"),
    "ntm-read": (read, f"N{N} W{W}"),
    "ntm-write": (write, f"N{N} W{W}"),
    "dnc-allocation": (allocation, f"N{SLOTS}"),
    "dnc-link": (link, f"N{SLOTS} R{R}"),
}


def case(problem: Callable[[int], Problem], batch: int, training: bool) -> Case:
    """One call of an op, with ``training`` also its backward."""
    p = problem(batch)
    leaves = [x.clone().requires_grad_() for x in p.arguments]
    gradients = [torch.randn_like(y) for y in _all(p.op(*leaves))]

    def provider(forward: Forward) -> Provider:
        def run() -> Sequence[Tensor]:
            return _all(forward(*leaves))

        return trained(run, leaves, gradients) if training else inferred(run)

    reference = partial(p.op, backend="reference")
    forwards: dict[str, Forward] = {REFERENCE: reference, STRONG: p.strong, OWN: p.op}
    passes = 3 if training else 1
    return Case(
        {name: provider(forward) for name, forward in forwards.items()},
        compiled=lambda mode=None: provider(torch.compile(reference, mode=mode)),
        moved_bytes=float(passes * sum(x.nbytes for x in (*leaves, *gradients))),
        excluded=storages_of(leaves),
    )


def _all(found: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else list(found)


def rows() -> list[Row]:
    """Every op at batch 1 and 32, forward and training."""
    found = []
    for name, (problem, sizes) in OPS.items():
        for kind, training in ((name, False), (f"{name}-train", True)):
            for batch in (1, 32):
                word, build = name.split("-")[0], partial(case, problem, batch, training)
                found.append(Row(kind, f"{sizes} B{batch}", (word,), build))
    return found
