"""The engine computes what its model does: every variant, batch and thread count, and random configurations."""

import copy

import numpy as np
import pytest
import small_ctm
import torch
from engine_cases import assert_as_exact, engine_outputs, eval_model
from foreign_cases import CASES, inputs_for

import ctm_fast
from ctm_fast.models import presets


@pytest.mark.parametrize("name", CASES)
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


OUR_OWN = {
    "plain": {},
    "unet": {"synapse_depth": 3},
    "shallow": {"deep_nlms": False, "neuron_select_type": "first-last"},
    "energy": {"energy_head_enabled": True, "neuron_select_type": "random-pairing"},
    "layernorm": {"do_layernorm_nlm": True, "memory_length": 7, "memory_hidden_dims": 5},
}


@pytest.mark.parametrize("changes", OUR_OWN.values(), ids=OUR_OWN)
def test_our_own_model(changes):
    torch.manual_seed(0)
    model, x = small_ctm.build(**changes), (small_ctm.signs(4),)
    with torch.no_grad():
        model(*x)
    assert_as_exact(ctm_fast.Engine(model.eval(), x), model, x)


PRESETS = [
    "parity_ctm_10_5",
    "mnist_ctm_15_10",
    "sort_ctm",
    "qamnist_ctm_1",
    "cartpole_ctm_2",
    "acrobot_ctm_1",
]


@pytest.mark.parametrize("name", PRESETS)
def test_published_presets(name):
    torch.manual_seed(0)
    model, inputs = presets.build(name).eval(), presets.example_inputs(name, batch=2)
    if hasattr(model, "recurrent_model"):
        model = model.recurrent_model
        inputs = (*inputs, tuple(torch.randn(2, model.d_model, model.memory_length) for _ in range(2)))
    with torch.no_grad():
        model(*inputs)
    assert_as_exact(ctm_fast.Engine(model, inputs), model, inputs)


@pytest.mark.parametrize("name", ["base-energy", "sort", "qamnist", "rl"])
def test_an_accelerated_model(name):
    model, inputs = eval_model(name)
    plain = copy.deepcopy(model)
    fast = ctm_fast.accelerate(model)
    assert_as_exact(ctm_fast.Engine(fast, inputs), plain, inputs)


def test_a_second_call_gives_the_same_bits():
    model, inputs = eval_model("base-energy")
    engine = ctm_fast.Engine(model, inputs)
    first, second = engine(*inputs), engine(*inputs)
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a, b)


def random_sizes(seed):
    """A name of ``CASES`` and changes of its sizes: odd widths, every kind of selection, one or many of anything."""
    draw = np.random.default_rng(seed)
    name = str(draw.choice(["base", "base-energy", "sort", "qamnist", "rl"]))
    heads = int(draw.integers(1, 5))
    depth = int(draw.integers(1, 5))
    sizes = {
        "d_model": int(draw.integers(48, 150)), "memory_length": int(draw.integers(1, 20)), "synapse_depth": depth,
        "memory_hidden_dims": int(draw.integers(1, 12)), "deep_nlms": bool(draw.integers(2)),
        "n_synch_out": int(draw.integers(1, 20)), "iterations": int(draw.integers(1, 12)),
    }  # fmt: skip
    # Of two values a LayerNorm leaves little but the sign of their difference.
    enough = min(sizes["memory_length"], sizes["memory_hidden_dims"]) >= 4
    sizes["do_layernorm_nlm"] = enough and bool(draw.integers(2))
    if name in ("base", "base-energy", "qamnist"):
        sizes |= {"heads": heads, "d_input": heads * int(draw.integers(1, 20))}
        sizes |= {"n_synch_action": int(draw.integers(1, 20))}
    if name != "rl":
        sizes["neuron_select_type"] = str(draw.choice(["first-last", "random", "random-pairing"]))
    if name.startswith("base"):
        sizes |= {
            "out_dims": 12,
            "prediction_reshaper": [(-1,), (3, 4), (6, 2), (2, 2, 3)][int(draw.integers(4))],
        }
    return name, sizes


@pytest.mark.parametrize("seed", range(40))
def test_random_configurations(seed):
    name, sizes = random_sizes(seed)
    batch, threads = 1 + seed % 9, 1 + seed % 3
    model, inputs = eval_model(name, batch=batch, seed=seed, **sizes)
    assert_as_exact(ctm_fast.Engine(model, inputs, threads=threads), model, inputs)
