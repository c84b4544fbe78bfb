"""What an engine of a recurrent cell keeps between steps."""

import numpy as np
import pytest
import torch
from cell_cases import CASES, build, same, truth

import ctm_fast
from ctm_fast.engine.cell_recipe import flat

STEPPED = ["ff", "lstm-layers", "split", "heads", "adaptive-rnn", "adaptive-lstm-digits"]


@pytest.mark.parametrize("name", STEPPED)
def test_steps_are_the_sequence(name):
    model, x = build(name)
    engine = ctm_fast.Engine(model, x)
    whole = engine(x)
    engine.reset()
    steps = [engine.step(inputs) for inputs in x]
    assert np.array_equal(np.stack([output for output, _ in steps]), whole.output)
    assert same(steps[-1][1], whole.state)


@pytest.mark.parametrize("name", CASES)
def test_a_state_can_be_put_back(name):
    model, x = build(name)
    engine = ctm_fast.Engine(model, x)
    engine.step(x[0])
    kept = engine.get_state()
    first = [engine.step(inputs) for inputs in x[1:]]
    engine.set_state(kept)
    assert same(engine.get_state(), kept)
    assert same([engine.step(inputs) for inputs in x[1:]], first)
    assert same(engine(x[1:], kept).output, np.stack([output for output, _ in first]))


@pytest.mark.parametrize("name", CASES)
def test_states_of_the_model_are_read(name):
    model, x = build(name)
    engine = ctm_fast.Engine(model, x)
    with torch.no_grad():
        state = model(x[:2]).state
    found = engine(x[2:], state)
    np.testing.assert_allclose(found.output, truth(model, x).output[2:], rtol=1e-4, atol=1e-5)
    for part, shape in zip(found.state, (part.shape for part in flat(state)), strict=True):
        assert part.shape == shape and part.dtype == np.float32


@pytest.mark.parametrize("name", ["ff", "adaptive-lstm"])
def test_an_engine_begins_at_the_models_start(name):
    model, x = build(name)
    engine = ctm_fast.Engine(model, x)
    first = engine.step(x[0])[0]
    np.testing.assert_allclose(first, truth(model, x[:1]).output[0], rtol=1e-4, atol=1e-5)
    engine.reset()
    assert np.array_equal(engine.step(x[0])[0], first)


@pytest.mark.parametrize("name", ["lstm", "adaptive-rnn"])
def test_interleaved_engines_do_not_meet(name):
    model, x = build(name)
    engines = [ctm_fast.Engine(model, x) for _ in range(2)]
    expected = [
        [engine.step(inputs) for inputs in given] for engine, given in zip(engines, (x, -x), strict=True)
    ]
    for engine in engines:
        engine.reset()
    found = [[], []]
    for pair in zip(x, -x, strict=True):
        for to, engine, inputs in zip(found, engines, pair, strict=True):
            to.append(engine.step(inputs))
    assert same(found, expected)


@pytest.mark.parametrize("name", ["lstm", "adaptive-lstm"])
def test_a_returned_state_is_not_written_later(name):
    model, x = build(name)
    engine = ctm_fast.Engine(model, x)
    _, state = engine.step(x[0])
    kept = [part.copy() for part in state]
    engine.step(x[1])
    assert same(state, kept)


def test_fewer_samples_than_the_example():
    model, x = build("heads", batch=4)
    engine = ctm_fast.Engine(model, x)
    whole = engine(x)
    engine.reset(2)
    found = [engine.step(inputs[:2])[0] for inputs in x]
    np.testing.assert_allclose(np.stack(found), whole.output[:, :2], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"^Engine: x must have the state's batch of 2, got 4$"):
        engine.step(x[0])
    with pytest.raises(ValueError, match=r"^Engine: batch must be in \[1, 4\], that of the example, got 5$"):
        engine.reset(5)


@pytest.mark.parametrize("name", ["lstm-layers", "ff", "adaptive-rnn", "adaptive-lstm"])
@pytest.mark.parametrize("samples", [[2], [0, 1], np.array([True, False, True]), []], ids=str)
def test_single_samples_start_anew(name, samples):
    model, x = build(name)
    engine = ctm_fast.Engine(model, x)
    start = engine.get_state()
    engine.step(x[0])
    before = engine.get_state()
    engine.reset(samples=samples)
    renewed = {0, 2} if isinstance(samples, np.ndarray) else set(samples)
    for first, old, found in zip(start, before, engine.get_state(), strict=True):
        for b in range(3):
            pick = b if first.shape[0] == 3 else (slice(None), b)  # of a controller (L, B, C)
            assert np.array_equal(found[pick], (first if b in renewed else old)[pick])


def test_samples_that_are_not_there():
    model, x = build("lstm")
    engine = ctm_fast.Engine(model, x)
    with pytest.raises(IndexError, match=r"^Engine: samples must be in \[0, 3\), got 3$"):
        engine.reset(samples=[3])
    with pytest.raises(
        TypeError, match=r"^Engine: batch must be left out where samples are given, got both$"
    ):
        engine.reset(2, samples=[0])
