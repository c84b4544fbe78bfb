"""The base CTM: keys, checks, tick order, outputs, decays, lazy loading, overriding."""

import copy
import pickle
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ctm_fast.models import ArgumentError, ContinuousThoughtMachine

SMALL: dict[str, Any] = {
    "iterations": 4,
    "d_model": 20,
    "d_input": 8,
    "heads": 2,
    "n_synch_out": 5,
    "n_synch_action": 4,
    "synapse_depth": 1,
    "memory_length": 3,
    "deep_nlms": True,
    "memory_hidden_dims": 2,
    "do_layernorm_nlm": False,
    "backbone_type": "parity_backbone",
    "positional_embedding_type": "custom-rotational-1d",
    "out_dims": 6,
    "prediction_reshaper": [3, 2],
    "neuron_select_type": "random",
}


def build(**changes):
    return ContinuousThoughtMachine(**{**SMALL, **changes})


def signs(batch=2, length=6):
    return torch.randint(0, 2, (batch, length)) * 2.0 - 1


def shapes(model):
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def pair(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


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


def test_plain_outputs():
    predictions, certainties, synchronisation = build().published_forward(signs(batch=3))
    assert (predictions.shape, predictions.dtype) == ((3, 6, 4), torch.float32)
    assert (certainties.shape, certainties.dtype) == ((3, 2, 4), torch.float32)
    assert synchronisation.shape == (3, 15)
    torch.testing.assert_close(certainties.sum(1), torch.ones(3, 4))


def test_predictions_are_float32_in_a_float64_model():
    predictions, certainties, synchronisation = build().double().published_forward(signs().double())
    assert (predictions.dtype, certainties.dtype) == (torch.float32, torch.float32)
    assert synchronisation.dtype == torch.float64


def test_tracked_outputs():
    model = build().eval()
    x = signs(batch=3)
    predictions, certainties, both, pre, post, attention = model.published_forward(x, track=True)
    plain = model.published_forward(x)
    torch.testing.assert_close((predictions, certainties), plain[:2])
    assert [type(a) for a in (*both, pre, post, attention)] == [np.ndarray] * 5
    assert [a.shape for a in both] == [(4, 3, 15), (4, 3, 10)]
    assert pre.shape == post.shape == (4, 3, 20)
    assert attention.shape == (4, 3, 2, 1, 6)
    np.testing.assert_allclose(both[0][-1], plain[2].detach())
    np.testing.assert_allclose(attention.sum(-1), 1, rtol=1e-5)


def naive_synchronisation(history, pairs, decay):
    """Every pair's decayed sum over a history (K, B, D)."""
    ages = torch.arange(len(history) - 1, -1, -1, dtype=decay.dtype)
    columns = []
    for p, (i, j) in enumerate(pairs):
        weights = torch.exp(-decay[p] * ages)
        columns.append((weights[:, None] * history[:, :, i] * history[:, :, j]).sum(0) / weights.sum().sqrt())
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize(
    "selection",
    [
        {"neuron_select_type": "first-last"},
        {"neuron_select_type": "random"},
        {"neuron_select_type": "random-pairing", "n_random_pairing_self": 2},
    ],
    ids=["first-last", "random", "random-pairing"],
)
def test_synchronisation_is_a_decayed_sum_over_all_ticks(selection):
    model = build(**selection).double().eval()
    for decay in (model.decay_params_action, model.decay_params_out):
        nn.init.uniform_(decay, 0, 1.5)
    _, _, (out, action), _, post, _ = model.published_forward(signs().double(), track=True)
    start = model.start_activated_state.detach().expand(1, 2, -1)
    states = torch.cat((start, torch.from_numpy(post)))
    for kind, tracked in (("out", out), ("action", action)):
        left, right = (getattr(model, f"{kind}_neuron_indices_{side}").tolist() for side in ("left", "right"))
        pairs = [(left[i], right[j]) for i in range(len(left)) for j in range(i, len(left))]
        if selection["neuron_select_type"] == "random-pairing":
            pairs = list(zip(left, right, strict=True))
        decay = getattr(model, f"decay_params_{kind}").detach()
        for tick in range(model.iterations):
            seen = states[: tick + (2 if kind == "out" else 1)]
            torch.testing.assert_close(
                torch.from_numpy(tracked[tick]), naive_synchronisation(seen, pairs, decay)
            )


def test_synapses_read_attention_first_and_the_state_second():
    model = build().eval()
    x = signs()
    model(x)
    attended, inputs = [], []
    model.attention.register_forward_hook(lambda *call: attended.append(call[-1][0]))
    model.synapses.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    _, _, _, pre, post, _ = model.published_forward(x, track=True)
    for tick in range(4):
        torch.testing.assert_close(inputs[tick][:, :8], attended[tick][:, 0])
        before = model.start_activated_state.expand(2, -1) if tick == 0 else torch.from_numpy(post[tick - 1])
        torch.testing.assert_close(inputs[tick][:, 8:], before)
        torch.testing.assert_close(model.synapses(inputs[tick]), torch.from_numpy(pre[tick]))


def test_neuron_level_models_read_the_last_pre_activations():
    model = build(iterations=5).eval()
    _, _, _, pre, post, _ = model.published_forward(signs(), track=True)
    start = model.start_trace.detach().permute(1, 0).unsqueeze(1).expand(-1, 2, -1)
    history = torch.cat((start, torch.from_numpy(pre)))
    for tick in range(5):
        window = history[tick + 1 : tick + 4].permute(1, 2, 0)
        torch.testing.assert_close(model.trace_processor(window), torch.from_numpy(post[tick]))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_decays_are_clamped_in_their_storage(mode):
    model = build()
    model(signs())
    with torch.no_grad():
        model.decay_params_out.uniform_(-4, 30)
        expected = model.decay_params_out.clamp(0, 15)
    address = model.decay_params_out.data_ptr()
    with mode():
        model.published_forward(signs())
    torch.testing.assert_close(model.decay_params_out.detach(), expected, rtol=0, atol=0)
    assert model.decay_params_out.data_ptr() == address
    assert not model.decay_params_out.is_inference()
    predictions, *_ = model.published_forward(signs())
    predictions.square().sum().backward()
    assert (model.decay_params_out.grad[expected == 0] != 0).all()


def test_two_forwards_before_their_backwards():
    model = build().eval()
    x, y = signs(), signs()
    alone = torch.autograd.grad(model.published_forward(x)[0].sum(), model.decay_params_out)[0]
    first = model.published_forward(x)[0]
    model.published_forward(y)
    torch.testing.assert_close(torch.autograd.grad(first.sum(), model.decay_params_out)[0], alone)


def test_iterations_may_change():
    model = build().eval()
    x = signs()
    long = model.published_forward(x)[0]
    model.iterations = 2
    torch.testing.assert_close(model.published_forward(x)[0], long[..., :2])


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 2)], ids=str)
def test_odd_image_sizes(size):
    model = build(backbone_type="resnet18-1", positional_embedding_type="learnable-fourier").eval()
    predictions, *_ = model.published_forward(torch.randn(1, 3, *size))
    assert predictions.isfinite().all()
    assert model.kv_features.shape[2:] == tuple((n + 1) // 2 for n in size)
    assert not model.kv_features.requires_grad


def test_a_sample_does_not_depend_on_its_batch():
    model = build().eval()
    x = signs(batch=3)
    torch.testing.assert_close(model.published_forward(x)[0][1:2], model.published_forward(x[1:2])[0])


def test_energy_head():
    model = build(energy_head_enabled=True, energy_hidden_dim=7)
    _, _, energies = model.published_forward(signs(batch=3))
    assert (energies.shape, energies.dtype) == ((3, 1, 4), torch.float32)
    assert {key: tuple(p.shape) for key, p in model.energy_head.named_parameters()} == {
        **pair("0", 7, 15),
        **pair("2", 1, 7),
    }
    assert len(model.published_forward(signs(), track=True)) == 6
    energies.sum().backward()
    assert model.energy_head[0].weight.grad is not None


class Louder(ContinuousThoughtMachine):
    """Overrides the pieces that users override."""

    def get_synapses(self, synapse_depth, d_model, dropout):
        return nn.Sequential(nn.LazyLinear(d_model), nn.Tanh())

    def compute_features(self, x):
        return 2 * super().compute_features(x)

    def compute_certainty(self, current_prediction):
        return torch.full((len(current_prediction), 2), 0.5)

    def compute_synchronisation(self, activated_state, decay_alpha, decay_beta, r, synch_type):
        s, alpha, beta = super().compute_synchronisation(
            activated_state, decay_alpha, decay_beta, r, synch_type
        )
        return 0 * s, alpha, beta


def test_overridden_pieces_are_used():
    model: Any = Louder(**SMALL)
    _, certainties, synchronisation = model.published_forward(signs())
    assert (certainties == 0.5).all()
    assert (synchronisation == 0).all()
    assert isinstance(model.synapses[1], nn.Tanh)


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
def test_copies_after_a_forward(clone):
    model = build(positional_embedding_type="none")
    x = signs()
    model(x)
    torch.testing.assert_close(clone(model).published_forward(x), model.published_forward(x))
