"""The Neural Turing Machine's memory under pytest-benchmark: ``pytest bench --benchmark-enable``."""

from __future__ import annotations

from typing import Any

import pytest

from bench.ntm import case
from bench.row import OWN, REFERENCE, STRONG
from bench.test_nlm import run


@pytest.mark.parametrize("batch", [1, 32], ids=lambda b: f"B{b}")
@pytest.mark.parametrize("provider", [REFERENCE, STRONG, OWN])
def test_sequence(benchmark: Any, batch: int, provider: str) -> None:
    """40 steps forward and backward in one call."""
    run(benchmark, case(batch, training=True, whole=True), provider, f"ntm-sequence-train/B{batch}")
