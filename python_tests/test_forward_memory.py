"""What the fast forward keeps for the backward pass: floats per sample and tick, whatever else grows."""

import pytest
import torch
from foreign_cases import build

import ctm_fast
from ctm_fast.loop import ticks as tick_loop

BATCH, TICKS = 4, (8, 24)


def kept_bytes(model, inputs):
    """Bytes of the storages that autograd saves in a forward, parameters and inputs left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    own |= {x.untyped_storage().data_ptr() for x in inputs if isinstance(x, torch.Tensor)}
    storages = {}

    def keep(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        found = model(*inputs)
    assert found[0].requires_grad
    return sum(storages.values())


def floats_per_tick(name, prepare=ctm_fast.accelerate, **changes):
    """Growth of what is kept, in floats per sample and tick; and the model."""
    found = []
    for ticks in TICKS:
        model, inputs = build(name, BATCH, iterations=ticks, **changes)
        prepare(model)
        with torch.no_grad():
            model(*inputs)
        found.append(kept_bytes(model, inputs) / 4 / BATCH)
    return (found[1] - found[0]) / (TICKS[1] - TICKS[0]), model


def recomputing(model):
    ctm_fast.accelerate(model).recompute_synapses = True


def read_out(model):
    """Output synchronisation and logits, once each, of a sample and tick."""
    return model.decay_params_out.numel() + model.out_dims


def states(model):
    """Pre- and post-activations, and the heads' output where there is attention."""
    return 2 * model.d_model + (model.d_input if model.attention is not None else 0)


@pytest.mark.parametrize("name", ["base", "base-first-last", "base-random-one-head", "base-shallow", "sort"])
def test_one_gated_layer_keeps_its_linear_map_alone(name):
    kept, model = floats_per_tick(name)
    assert kept <= states(model) + 2 * model.d_model + read_out(model) + 1


@pytest.mark.parametrize("name", ["base-unet", "sort-unet"])
def test_a_unet_keeps_every_linear_map_once(name):
    kept, model = floats_per_tick(name)
    maps = [m for m in model.synapses.modules() if isinstance(m, torch.nn.Linear)]
    assert kept <= states(model) + sum(m.out_features for m in maps) + read_out(model) + 1


@pytest.mark.parametrize("name", ["base", "base-unet", "sort"])
def test_with_recomputed_synapses_only_the_states_are_kept(name):
    kept, model = floats_per_tick(name, recomputing)
    assert kept <= states(model) + read_out(model) + 1


@pytest.mark.parametrize(
    "change", [{"memory_length": 40}, {"memory_hidden_dims": 32}], ids=["memory", "hidden"]
)
def test_history_and_hidden_width_cost_nothing_per_tick(change):
    assert floats_per_tick("base", **change)[0] == floats_per_tick("base")[0]


def test_more_tokens_cost_nothing_per_tick():
    found = []
    for ticks in TICKS:
        model, (x,) = build("base", BATCH, iterations=ticks)
        ctm_fast.accelerate(model)(x)
        found.append([kept_bytes(model, (y,)) for y in (x, x[:, :2])])
    assert found[1][0] - found[0][0] == found[1][1] - found[0][1]


def test_dropout_keeps_no_masks():
    assert floats_per_tick("base-unet", dropout=0.3)[0] == floats_per_tick("base-unet")[0]


def test_a_small_part_of_what_the_original_keeps():
    fast, _ = floats_per_tick("base-unet")
    original, _ = floats_per_tick("base-unet", lambda model: model)
    assert original > 5 * fast


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_nothing_is_kept_where_no_backward_can_follow(mode, monkeypatch):
    asked = []
    run_all = tick_loop._forward_ticks
    monkeypatch.setattr(tick_loop, "_forward_ticks", lambda *args: asked.append(args[-1]) or run_all(*args))
    model, inputs = build("base", BATCH)
    ctm_fast.accelerate(model)
    model(*inputs)
    with mode():
        model(*inputs)
        asked.clear()
        model(*inputs)
    assert asked == [False]
    model(*inputs)[0].sum().backward()
    assert asked == [False, True]
