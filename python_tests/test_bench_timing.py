"""Interleaving and ratios, bytes kept for backward, comparison of providers."""

from __future__ import annotations

import pytest
import torch

from bench import machine, memory, row, timing
from bench.timing import Effort

QUICK = Effort(least=3, most=3, seconds=0.0, sample_seconds=0.0)


def test_paired_ratio():
    ratio = timing.paired_ratio([10.0, 30.0, 80.0], [1.0, 2.0, 4.0])
    assert ratio.median == 15.0
    assert ratio.low == pytest.approx(12.0)
    assert ratio.high == pytest.approx(18.0)
    assert ratio.pairs == 3


def test_paired_ratio_is_not_the_ratio_of_medians():
    assert timing.paired_ratio([1.0, 100.0, 4.0], [1.0, 100.0, 2.0]).median == 1.0


@pytest.mark.parametrize(("baseline", "own"), [([], []), ([1.0], [1.0, 2.0])], ids=["empty", "unequal"])
def test_paired_ratio_refuses(baseline, own):
    with pytest.raises(ValueError, match="paired_ratio: both must have as many samples"):
        timing.paired_ratio(baseline, own)


@pytest.mark.parametrize(("q", "expected"), [(0.0, 1.0), (0.5, 2.5), (1.0, 4.0)])
def test_quantile(q, expected):
    assert timing.quantile([4.0, 1.0, 3.0, 2.0], q) == expected


def test_interleave_takes_turns():
    calls = []
    samples = timing.interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, QUICK)
    assert "".join(calls).endswith("ababab")
    assert {name: len(values) for name, values in samples.items()} == {"a": 3, "b": 3}


def test_interleave_repeats_fast_calls_and_spares_slow_ones():
    calls = []
    effort = Effort(least=1, most=1, seconds=0.0, sample_seconds=1e-3)
    timing.interleave({"fast": lambda: calls.append(1)}, effort)
    assert len(calls) > 10
    calls.clear()
    timing.interleave({"slow": lambda: calls.append(1)}, effort, {"slow": 1.0})
    assert len(calls) == 1


@pytest.fixture
def _rates(monkeypatch):
    monkeypatch.setattr(machine, "rates", lambda: {"sgemm": 1e9, "copy": 1e9})


class Held(torch.autograd.Function):
    """Keeps 4 MB that no hook sees."""

    @staticmethod
    def forward(ctx, x):
        ctx.buffer = torch.zeros(2**20)
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


@pytest.mark.parametrize("source", ["C library", "profiler"])
def test_live_bytes(source, monkeypatch):
    if source == "profiler":
        monkeypatch.setattr(memory, "_mallinfo2", lambda: None)
    x = torch.randn(2**20, requires_grad=True)
    result, saved_by_tanh, buffer = 3 * [4 * 2**20]

    def forward():
        return Held.apply(torch.tanh(x))

    forward()
    assert memory.live_bytes(forward) == pytest.approx(result + saved_by_tanh + buffer, rel=0.01)


def test_hook_bytes_counts_each_storage_once():
    x, weight = torch.randn(1000, requires_grad=True), torch.randn(1000, requires_grad=True)
    assert memory.hook_bytes(lambda: x * weight + x[:500].sum() * weight) == 2 * 4000 + 4
    module = torch.nn.Linear(10, 10)
    x = torch.randn(3, 10)
    assert memory.hook_bytes(lambda: module(x).relu()) == 4 * 30 + 4 * 30
    assert memory.hook_bytes(lambda: torch.tanh(module.weight).exp()) == 2 * 400
    assert (
        memory.hook_bytes(lambda: module.weight * module.weight, memory.storages_of(module.parameters())) == 0
    )


def provider(values):
    return row.Provider(lambda: None, lambda: [torch.tensor(values)])


def case(reference, strong, own):
    found = {row.REFERENCE: provider(reference), row.STRONG: provider(strong), row.OWN: provider(own)}
    return row.Case(found, compiled=lambda: found[row.REFERENCE])


def test_check_accepts_rounding():
    checked = row.check(case(reference=[1.0, 2.0], strong=[1.0, 2.0], own=[1.0, 2.0 + 1e-6]))
    assert checked.errors[row.STRONG] == 0
    assert 0 < checked.errors[row.OWN] < 1e-6


@pytest.mark.parametrize("wrong", [[1.0, 2.1], [1.0, float("nan")]], ids=["other", "nan"])
def test_nothing_is_timed_where_results_differ(wrong):
    bad = row.Row("kind", "config", (), lambda: case(reference=[1.0, 2.0], strong=[1.0, 2.0], own=wrong))
    with pytest.raises(row.DisagreementError, match="ctm_fast differs from the reference by"):
        row.measure(bad, 0, QUICK)


def test_small_tensors_are_measured_against_large_ones():
    large, noise = torch.tensor([1e3]), torch.tensor([1e-6])
    assert row.disagreement([large, noise], [large, -noise]) < 1e-5
    with pytest.raises(row.DisagreementError, match="1 results instead of 2"):
        row.disagreement([large, noise], [large])


@pytest.mark.usefixtures("_rates")
def test_measure_counts_matrix_products_per_call():
    a = torch.randn(8, 8)

    def provider():
        return row.Provider(lambda: a @ a, lambda: [a @ a])

    built = row.Case(
        {name: provider() for name in (row.REFERENCE, row.STRONG, row.OWN)}, compiled=provider, ticks=2
    )
    result = row.measure(row.Row("kind", "config", (), lambda: built), 0, QUICK)
    seconds = result["seconds"][row.OWN] * 2
    assert result["achieved"]["rate"] * seconds == pytest.approx(2 * 8**3)
    assert result["achieved"]["of"] == "sgemm"
    assert set(result["ratios"]) == {row.REFERENCE, row.STRONG}
    assert result["kept"] == {}


def test_too_large_a_reference_is_refused():
    built = case(reference=[1.0], strong=[1.0], own=[1.0])
    built.estimate = lambda: 15.3e9
    result = row.measure(row.Row("train", "big", (), lambda: built), 0, QUICK)
    assert result["refused"] == "the reference would keep 15.3 GB for backward"
    assert "seconds" not in result


@pytest.mark.usefixtures("_rates")
@pytest.mark.parametrize(
    "outcome", [{"seconds": 1.5}, {"failed": "not compiled in 120 s"}], ids=["in time", "not"]
)
def test_the_compiled_baseline_is_checked_and_run_before_it_is_timed(outcome):
    built, calls = case(reference=[1.0], strong=[1.0], own=[1.0]), []

    def compiled():
        calls.append("compile")
        found = provider([1.0 + 1e-6])
        return row.Provider(lambda: calls.append("run"), lambda: calls.append("check") or found.check())

    built.compiled = compiled
    bench_row = row.Row("kind", "config", (), lambda: built, compiles=True)
    result = row.measure(bench_row, 0, QUICK, lambda *_: outcome)
    assert result["compile"] == outcome
    in_time = "seconds" in outcome
    assert calls[:3] == (["compile", "check", "run"] if in_time else [])
    assert (row.COMPILED in result["ratios"]) == (row.COMPILED in result["errors"]) == in_time
