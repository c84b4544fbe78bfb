"""The DNC's memory under pytest-benchmark: ``pytest bench --benchmark-enable``. No time is asserted."""

from __future__ import annotations

from typing import Any

import pytest

from bench.dnc import SMALL, case
from bench.row import OWN, REFERENCE, STRONG
from bench.test_nlm import run


@pytest.mark.parametrize("train", [False, True], ids=["infer", "train"])
@pytest.mark.parametrize("provider", [REFERENCE, STRONG, OWN])
def test_dnc(benchmark: Any, train: bool, provider: str) -> None:
    """One step."""
    run(benchmark, case(SMALL, train), provider, f"dnc/{'train' if train else 'infer'}")
