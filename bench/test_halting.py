"""Adaptive computation time under pytest-benchmark: ``pytest bench --benchmark-enable``. No time is asserted."""

from __future__ import annotations

from typing import Any

import pytest

from bench.halting import LOGIC, PARITY, Config, case
from bench.row import OWN, REFERENCE, STRONG
from bench.test_nlm import run


@pytest.mark.parametrize("config", [PARITY, LOGIC], ids=lambda c: c.preset)
@pytest.mark.parametrize("provider", [REFERENCE, STRONG, OWN])
def test_train(benchmark: Any, config: Config, provider: str) -> None:
    """A training step."""
    run(benchmark, case(config, training=True), provider, f"train/{config.title}")
