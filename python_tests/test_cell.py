"""Engines of recurrent cells compute what their models do."""

import numpy as np
import pytest
import torch
from cell_cases import CASES, assert_as_exact, build

import ctm_fast
from ctm_fast.engine import CellEngine
from ctm_fast.models import NTM, presets


@pytest.mark.parametrize(("steps", "batch"), [(1, 1), (20, 3)])
@pytest.mark.parametrize("name", CASES)
def test_engine_equals_the_model(name, steps, batch, simd_level):
    model, x = build(name, batch, steps)
    engine = ctm_fast.Engine(model, x)
    assert isinstance(engine, CellEngine)
    assert engine.kind == name.split("-")[0] if name.startswith("adaptive") else engine.kind == "ntm"
    exact, found = assert_as_exact(engine, model, x)
    if engine.kind == "ntm":
        assert found.ticks is found.remainders is None
        assert engine.computed == steps * batch
        return
    np.testing.assert_array_equal(found.ticks, exact.steps)
    ponder = found.ticks + found.remainders if model.adaptive else found.remainders
    np.testing.assert_allclose(ponder, exact.ponder, atol=1e-5)


@pytest.mark.parametrize("name", ["lstm", "split", "adaptive-rnn", "adaptive-lstm-digits"])
@pytest.mark.parametrize("batch", [1, 2, 7, 16])
def test_batches_up_to_that_of_the_example(name, batch):
    model, x = build(name, batch=16)
    assert_as_exact(ctm_fast.Engine(model, x), model, x[:, :batch])


@pytest.mark.parametrize("placement", ["root", "root_product", "norm", "product", "clamp", "operands"])
@pytest.mark.parametrize("eps", [1e-6, 1e-2])
def test_cosines_are_kept_finite_as_the_model_does(placement, eps):
    model, x = build("ff", eps_placement=placement, eps=eps)
    assert_as_exact(ctm_fast.Engine(model, x), model, x)


@pytest.mark.parametrize("seed", range(24))
def test_random_memories(seed):
    draw = np.random.default_rng(seed)
    shift = int(draw.choice([1, 3, 5]))
    torch.manual_seed(seed)
    model = NTM(
        int(draw.integers(1, 40)), int(draw.integers(1, 40)), controller=str(draw.choice(["ff", "rnn", "lstm"])),
        controller_size=int(draw.integers(1, 70)), controller_layers=int(draw.integers(1, 4)),
        controller_sees_reads=bool(draw.integers(2)), slots=int(draw.integers(shift, 70)),
        width=int(draw.integers(1, 30)), read_heads=int(draw.integers(1, 5)), write_heads=int(draw.integers(1, 5)),
        shift=shift, order=str(draw.choice(["write_read", "read_write", "previous_read"])),
        add=str(draw.choice(["linear", "tanh", "sigmoid"])), shared_weights=bool(draw.integers(2)),
    ).eval()  # fmt: skip
    x = torch.randn(int(draw.integers(1, 9)), int(draw.integers(1, 6)), model.input_size)
    assert_as_exact(ctm_fast.Engine(model, x), model, x)


@pytest.mark.parametrize("name", ["adaptive-rnn", "adaptive-lstm"])
@pytest.mark.parametrize("epsilon", [0.0, 0.01, 0.5])
@pytest.mark.parametrize(("most", "bias"), [(1, 0.0), (2, -1.0), (20, -3.0), (100, -6.0)])
def test_ponder(name, epsilon, most, bias):
    model, x = build(name, batch=5, epsilon=epsilon, max_steps=most, halting_bias=bias, hidden_size=40)
    engine = ctm_fast.Engine(model, x)
    exact, found = assert_as_exact(engine, model, x)
    np.testing.assert_array_equal(found.ticks, exact.steps)
    np.testing.assert_allclose(found.ticks + found.remainders, exact.ponder, atol=1e-5 * most)


def test_halted_samples_are_not_computed():
    model, x = build("adaptive-rnn", batch=16, steps=6)
    engine = ctm_fast.Engine(model, x)
    ticks = engine(x).ticks
    assert engine.computed == ticks.sum() < ticks.max(1).sum() * 16


@pytest.mark.parametrize("name", ["adaptive-rnn", "adaptive-lstm", "adaptive-rnn-digits"])
def test_a_sample_does_not_depend_on_the_others(name):
    model, x = build(name, batch=5)
    engine = ctm_fast.Engine(model, x)
    together = engine(x)
    for b in range(5):
        alone = engine(x[:, b : b + 1])
        np.testing.assert_array_equal(alone.ticks[:, 0], together.ticks[:, b])
        np.testing.assert_allclose(alone.output[:, 0], together.output[:, b], atol=1e-5)


def test_single_inputs_have_no_time():
    model, x = build("adaptive-lstm", steps=1)
    engine = ctm_fast.Engine(model, x[0])
    sequence, single = engine(x), engine(x[0])
    assert single.output.shape == (3, 5)
    np.testing.assert_array_equal(single.output, sequence.output[0])
    np.testing.assert_array_equal(single.ticks, sequence.ticks[0])


@pytest.mark.parametrize("name", ["ntm_copy_ff", "ntm_sort_lstm", "ntm_copy_split", "adaptive_logic_paper"])
def test_published_presets(name):
    torch.manual_seed(0)
    model, (x,) = presets.build(name).eval(), presets.example_inputs(name, batch=2)
    assert_as_exact(ctm_fast.Engine(model, x[:3]), model, x[:3])
