"""accelerate on models of somebody else: the same outputs, gradients and tracks."""

import logging
import statistics

import pytest
import torch
from foreign_cases import CASES, agree, assert_close, build, copies, evaluate, tensors

import ctm_fast
from ctm_fast.testing import error_bound

DRAWS, MORE_DRAWS = 5, 30


@pytest.fixture(autouse=True)
def _nothing_falls_back(caplog):
    """Every model here is accelerated: a fallback would compare the original with itself."""
    with caplog.at_level(logging.WARNING, "ctm_fast"):
        yield
    assert not caplog.records


@pytest.mark.parametrize("batch", [1, 3, 17])
@pytest.mark.parametrize("name", CASES)
def test_float64(name, batch):
    model, inputs = build(name, batch)
    original, fast = copies(model, 2)
    agree(original, ctm_fast.accelerate(fast), inputs)


@pytest.mark.parametrize("name", CASES)
def test_float32(name):
    few = beyond_contract(name, DRAWS)
    assert not few or beyond_contract(name, MORE_DRAWS) == {}


def beyond_contract(name, draws):
    """Error and bound of every tensor whose error exceeds the numerical contract."""
    runs = [float32_runs(name, seed) for seed in range(draws)]
    truths, plain, fast = zip(*runs, strict=True)
    bounds = {key: error_bound(typical_error(plain, truths, key), torch.float32) for key in truths[0]}
    errors = {key: typical_error(fast, truths, key) for key in truths[0]}
    return {key: (errors[key], bounds[key]) for key in errors if not errors[key] <= bounds[key]}


def float32_runs(name, seed):
    """The original in float64 and in float32, and the fast forward in float32."""
    model, inputs = build(name, 5, seed)
    exact, plain, fast = copies(model, 3)
    truth, expected = evaluate(exact, inputs, torch.float64), evaluate(plain, inputs)
    found = evaluate(ctm_fast.accelerate(fast), inputs)
    assert truth.keys() == expected.keys() == found.keys()
    return truth, expected, found


def typical_error(found, truths, key):
    """Median error over the draws relative to the typical norm: a gradient may nearly cancel in one draw."""
    scale = statistics.fmean(truth[key].double().norm().item() ** 2 for truth in truths) ** 0.5 or 1.0
    pairs = ((y[key].double(), truth[key].double()) for y, truth in zip(found, truths, strict=True))
    return statistics.median((y - truth).norm().item() for y, truth in pairs) / scale


@pytest.mark.parametrize("name", CASES)
def test_track(name):
    model, inputs = build(name)
    original, fast = copies(model.eval(), 2)
    truth = tensors(original(*inputs, track=True))
    found = tensors(ctm_fast.accelerate(fast)(*inputs, True))
    assert [(y.dtype, y.shape) for y in found.values()] == [(y.dtype, y.shape) for y in truth.values()]
    assert_close(found, truth, 1e-5)
