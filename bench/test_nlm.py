"""Neuron-level models under pytest-benchmark: ``pytest bench --benchmark-enable``. No time is asserted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.nlm import BATCHED, SINGLE, Size, op_case, tick_case, train_case
from bench.row import OWN, REFERENCE, STRONG, Case

PROVIDERS = [REFERENCE, STRONG, OWN]
SIZES = pytest.mark.parametrize("size", [*BATCHED, SINGLE], ids=str)


def run(benchmark: Any, case: Case, provider: str, group: str) -> None:
    """Time one provider; ``group`` puts the providers of a row side by side."""
    benchmark.group = group
    benchmark.extra_info.update(ticks=case.ticks, threads=torch.get_num_threads())
    case.providers[provider].run()
    benchmark(case.providers[provider].run)


@SIZES
@pytest.mark.parametrize("provider", PROVIDERS)
def test_op(benchmark: Any, size: Size, provider: str) -> None:
    """The op on one window, packing included."""
    run(benchmark, op_case(size), provider, f"nlm-op/{size}")


@SIZES
@pytest.mark.parametrize("provider", PROVIDERS)
def test_ticks(benchmark: Any, size: Size, provider: str) -> None:
    """50 ticks of the loop form on packed weights."""
    run(benchmark, tick_case(size), provider, f"nlm-tick/{size}")


@SIZES
@pytest.mark.parametrize("provider", PROVIDERS)
def test_train(benchmark: Any, size: Size, provider: str) -> None:
    """50 ticks forward and backward."""
    run(benchmark, train_case(size), provider, f"nlm-train/{size}")
