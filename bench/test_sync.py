"""Synchronisation under pytest-benchmark: ``pytest bench --benchmark-enable``. No time is asserted."""

from __future__ import annotations

from typing import Any

import pytest

from bench.row import OWN, REFERENCE, STRONG
from bench.sync import SELECTIONS, Selection, case
from bench.test_nlm import run


@pytest.mark.parametrize("selection", SELECTIONS, ids=lambda s: f"P{s.P}")
@pytest.mark.parametrize("provider", [REFERENCE, STRONG, OWN])
def test_sync(benchmark: Any, selection: Selection, provider: str) -> None:
    """50 ticks forward and backward."""
    run(benchmark, case(selection), provider, f"sync/P{selection.P}")
