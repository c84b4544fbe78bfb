"""The base CTM: keys, checks, order of the random draws, lazy loading."""

import re

import numpy as np
import pytest
import torch
from small_ctm import build, pair, shapes, signs
from torch import nn

from ctm_fast.models import ArgumentError

SHARED_KEYS = {
    "start_activated_state": (20,),
    "start_trace": (20, 3),
    "action_neuron_indices_left": (4,),
    "action_neuron_indices_right": (4,),
    "out_neuron_indices_left": (5,),
    "out_neuron_indices_right": (5,),
    **pair("kv_proj.1", 8),
    "attention.in_proj_weight": (24, 8),
    "attention.in_proj_bias": (24,),
    **pair("attention.out_proj", 8, 8),
    "trace_processor.0.0.w1": (3, 4, 20),
    "trace_processor.0.0.b1": (1, 20, 4),
    "trace_processor.0.0.T": (1,),
    "trace_processor.0.2.w1": (2, 2, 20),
    "trace_processor.0.2.b1": (1, 20, 2),
    "trace_processor.0.2.T": (1,),
}


def test_keys_and_shapes_dense():
    model = build()
    model(signs())
    assert shapes(model) == {
        **SHARED_KEYS,
        "decay_params_action": (10,),
        "decay_params_out": (15,),
        "backbone.embedding.weight": (2, 8),
        **pair("positional_embedding.projection", 8, 2),
        **pair("kv_proj.0", 8, 8),
        **pair("q_proj", 8, 10),
        **pair("synapses.1", 40, 28),
        **pair("synapses.3", 20),
        **pair("output_projector.0", 6, 15),
    }


def test_keys_and_shapes_image():
    image = {"backbone_type": "resnet18-1", "positional_embedding_type": "none", "synapse_depth": 2}
    model = build(**image, neuron_select_type="random-pairing", n_random_pairing_self=3)
    model(torch.randn(2, 1, 5, 5))
    found = {key: shape for key, shape in shapes(model).items() if not key.startswith("backbone.")}
    assert found == {
        **SHARED_KEYS,
        "decay_params_action": (4,),
        "decay_params_out": (5,),
        **pair("initial_rgb", 3, 1, 1, 1),
        **pair("kv_proj.0", 8, 64),
        **pair("q_proj", 8, 4),
        **pair("synapses.first_projection.0", 20, 28),
        **pair("synapses.first_projection.1", 20),
        **pair("synapses.down_projections.0.1", 16, 20),
        **pair("synapses.down_projections.0.2", 16),
        **pair("synapses.up_projections.0.1", 20, 16),
        **pair("synapses.up_projections.0.2", 20),
        **pair("synapses.skip_lns.0", 20),
        **pair("output_projector.0", 6, 5),
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"neuron_select_type": "dense"}, "neuron_select_type must be one of"),
        ({"backbone_type": "resnet18"}, "backbone_type must be one of"),
        ({"positional_embedding_type": "sine"}, "positional_embedding_type must be in"),
        ({"backbone_type": "none"}, "positional_embedding_type must be 'none' where backbone_type is 'none'"),
        ({"neuron_select_type": "first-last", "n_synch_out": 17}, "d_model must be at least"),
        (
            {"neuron_select_type": "random-pairing", "n_random_pairing_self": 4},
            "n_synch_action must exceed n_random_pairing_self=4, got 4",
        ),
        ({"memory_length": 0}, "memory_length must be at least 1, got 0"),
        ({"synapse_depth": 0}, "synapse_depth must be at least 1, got 0"),
        ({"d_model": -1}, "d_model must be at least 1, got -1"),
        ({"n_synch_action": 0}, "n_synch_action must select neurons for heads=2, got 0"),
        ({"heads": 3}, "d_input must be a multiple of heads=3, got 8"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else "",
)
@pytest.mark.parametrize("kind", [ValueError, AssertionError], ids=["value", "assertion"])
def test_wrong_arguments(changes, message, kind):
    assert issubclass(ArgumentError, kind)
    with pytest.raises(kind, match=re.escape(message)):
        build(**changes)


def test_without_heads_there_is_no_attention():
    model = build(heads=0)
    assert model.attention is model.q_proj is model.kv_proj is None
    with pytest.raises(ValueError, match="needs heads of at least 1, got a model with heads=0"):
        model.published_forward(signs())


def test_constructor_prints_nothing(capsys):
    build()
    assert capsys.readouterr().out == ""


def drawn_by_hand():
    """The parameters of ``build()`` in the published order of draws."""
    bound = lambda n: n**-0.5  # noqa: E731
    drawn = {"backbone.embedding.weight": nn.Embedding(2, 8).weight}

    def add(name, module):
        drawn.update({f"{name}.{key}": value for key, value in module.state_dict().items()})

    add("positional_embedding.projection", nn.Linear(2, 8))
    add("attention", nn.MultiheadAttention(8, 2))
    drawn["trace_processor.0.0.w1"] = torch.empty(3, 4, 20).uniform_(-bound(7), bound(7))
    drawn["trace_processor.0.2.w1"] = torch.empty(2, 2, 20).uniform_(-bound(4), bound(4))
    drawn["start_activated_state"] = torch.empty(20).uniform_(-bound(20), bound(20))
    drawn["start_trace"] = torch.empty(20, 3).uniform_(-bound(23), bound(23))
    for kind, n in (("action", 4), ("out", 5)):
        for side in ("left", "right"):
            drawn[f"{kind}_neuron_indices_{side}"] = torch.tensor(np.random.choice(np.arange(20), n))
    for name, in_dims, out_dims in (
        ("kv_proj.0", 8, 8),
        ("q_proj", 10, 8),
        ("synapses.1", 28, 40),
        ("output_projector.0", 15, 6),
    ):
        add(name, nn.Linear(in_dims, out_dims))
    return drawn


def test_same_seeds_draw_the_published_model():
    x = signs()
    torch.manual_seed(5)
    np.random.seed(5)
    model = build()
    model(x)
    torch.manual_seed(5)
    np.random.seed(5)
    expected = drawn_by_hand()
    state = model.state_dict()
    torch.testing.assert_close({key: state[key] for key in expected}, expected, rtol=0, atol=0)


def test_unet_draws_down_then_up_per_level():
    torch.manual_seed(5)
    synapses = build(synapse_depth=3, backbone_type="none", positional_embedding_type="none").synapses
    torch.manual_seed(5)
    nn.MultiheadAttention(8, 2)
    for i, (wide, narrow) in enumerate(((20, 18), (18, 16))):
        for projections, layer in (
            (synapses.down_projections, nn.Linear(wide, narrow)),
            (synapses.up_projections, nn.Linear(narrow, wide)),
        ):
            torch.testing.assert_close(projections[i][1].state_dict(), layer.state_dict(), rtol=0, atol=0)


def test_strict_load_into_a_model_that_never_ran():
    x = signs()
    model = build().eval()
    model(x)
    fresh = build().eval()
    fresh.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(fresh.published_forward(x), model.published_forward(x))
