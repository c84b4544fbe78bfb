"""The engine computes what its model does: every variant, batch and thread count, and random configurations."""

import numpy as np
import pytest
import torch
from engine_cases import assert_as_exact, engine_outputs, eval_model
from foreign_cases import CASES, inputs_for

import ctm_fast

RUNNABLE = [name for name in CASES if name != "base-layernorm"]


@pytest.mark.parametrize("name", RUNNABLE)
def test_engine_equals_the_model(name, simd_level):
    model, inputs = eval_model(name)
    assert_as_exact(ctm_fast.Engine(model, inputs), model, inputs)


@pytest.mark.parametrize("batch", [1, 2, 5, 32])
@pytest.mark.parametrize("name", ["base", "sort-unet", "qamnist", "rl"])
def test_engine_takes_batches_up_to_that_of_the_example(name, batch):
    model, inputs = eval_model(name, batch=32)
    engine = ctm_fast.Engine(model, inputs)
    assert_as_exact(engine, model, inputs_for(model, batch))


@pytest.mark.parametrize("name", ["base", "qamnist", "rl-unet"])
def test_threads_give_the_same_bits(name):
    model, inputs = eval_model(name, batch=7)
    one, three = (ctm_fast.Engine(model, inputs, threads=n) for n in (1, 3))
    for a, b in zip(engine_outputs(one, inputs), engine_outputs(three, inputs), strict=True):
        assert torch.equal(a, b)


def test_a_second_call_gives_the_same_bits():
    model, inputs = eval_model("base-energy")
    engine = ctm_fast.Engine(model, inputs)
    first, second = engine(*inputs), engine(*inputs)
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a, b)
