"""The base CTM's ticks: order, outputs, synchronisation, decays, overriding."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from small_ctm import SMALL, build, pair, signs
from torch import nn

from ctm_fast.models import ContinuousThoughtMachine


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
