"""Adaptive computation time in plain torch: the meaning of the halting ops, any dtype and device.

Letters: B samples, R rows (one per substep of a sample), S substeps of the sample that takes most.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ctm_fast.ops import checks


def substeps(samples: Tensor, batch: int) -> Tensor:
    """Which substep of its sample every row is, (R): the rows of one sample follow each other in time."""
    order = torch.argsort(samples, stable=True)
    counts = torch.bincount(samples, minlength=batch)
    starts = counts.cumsum(0) - counts
    found = torch.empty_like(samples)
    found[order] = torch.arange(samples.shape[0], device=samples.device) - starts[samples[order]]
    return found


def halting_weights(
    probabilities: Tensor,  # (R)
    samples: Tensor,  # (R)
    batch: int,
    epsilon: float,
    force_halt: bool,
) -> tuple[Tensor, Tensor]:  # (R), (B)
    """The recurrence over substeps, all samples at once."""
    checks.indices("halting_weights", "samples", samples, batch)
    n = substeps(samples, batch)
    most = int(n.max()) + 1 if n.numel() else 0
    grid = probabilities.new_zeros(most, batch).index_put((n, samples), probabilities)
    given = torch.zeros(most + 1, batch, dtype=torch.bool, device=samples.device)
    given[n, samples] = True
    total = remainder = steps = grid[:0].sum(0)  # zeros with a graph, also without rows
    running = torch.ones(batch, dtype=torch.bool, device=samples.device)
    weights = []
    for h, here, further in zip(grid, given[:-1], given[1:], strict=True):
        runs = running & here
        ends = runs & ((total + h >= 1 - epsilon) | (~further if force_halt else torch.zeros_like(here)))
        remainder = torch.where(ends, 1 - total, remainder)
        weights.append(torch.where(ends, 1 - total, torch.where(runs, h, torch.zeros_like(h))))
        total = torch.where(runs & ~ends, total + h, total)
        steps = steps + runs
        running = running & ~ends
    return torch.stack(weights)[n, samples] if weights else probabilities.clone(), steps + remainder


def halting_mean(values: Tensor, weights: Tensor, samples: Tensor, batch: int) -> Tensor:
    """Sums of weighted rows: values (R, D) -> (B, D)."""
    checks.indices("halting_mean", "samples", samples, batch)
    return values.new_zeros(batch, values.shape[1]).index_add(0, samples, values * weights[:, None])
