"""Neuron-level models, synapses and certainty against naive loops, with their keys."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from ctm_fast.nn import (
    NeuronLevelModels,
    SuperLinear,
    SynapseUNET,
    certainty,
    certainty_over_ticks,
    normalised_entropy,
    single_layer_synapses,
    two_layer_synapses,
)
from ctm_fast.nn.certainty import CertaintyOverTicks


def shapes(module):
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def test_super_linear_is_one_linear_map_per_neuron():
    layer = SuperLinear(in_dims=3, out_dims=2, N=4, T=2.5, do_norm=True).double()
    nn.init.normal_(layer.b1)
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    y = layer(x)
    for n in range(4):
        own = layer.layernorm(x[:, n]) @ layer.w1[:, :, n] + layer.b1[0, n]
        torch.testing.assert_close(y[:, n], own / 2.5)


def test_super_linear_with_one_output_drops_the_dimension():
    assert SuperLinear(in_dims=3, out_dims=1, N=4)(torch.randn(2, 4, 3)).shape == (2, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_dims": 0, "out_dims": 2, "N": 4}, "sizes must be at least 1, got 0, 2, 4"),
        ({"in_dims": 3, "out_dims": 2, "N": 4, "dropout": -0.1}, r"dropout must be in \[0, 1\], got -0.1"),
    ],
    ids=["size", "dropout"],
)
def test_super_linear_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SuperLinear(**arguments)


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        (
            {"deep": True},
            {
                "0.0.w1": (5, 6, 7),
                "0.0.b1": (1, 7, 6),
                "0.0.T": (1,),
                "0.2.w1": (3, 2, 7),
                "0.2.b1": (1, 7, 2),
                "0.2.T": (1,),
            },
        ),
        ({"deep": False}, {"0.0.w1": (5, 2, 7), "0.0.b1": (1, 7, 2), "0.0.T": (1,)}),
        (
            {"deep": False, "do_layernorm": True},
            {
                "0.0.w1": (5, 2, 7),
                "0.0.b1": (1, 7, 2),
                "0.0.T": (1,),
                "0.0.layernorm.weight": (5,),
                "0.0.layernorm.bias": (5,),
            },
        ),
    ],
    ids=["deep", "shallow", "layernorm"],
)
def test_neuron_level_models_keys(arguments, keys):
    models = NeuronLevelModels(d_model=7, memory_length=5, memory_hidden_dims=3, **arguments)
    assert shapes(models) == keys
    assert models(torch.randn(2, 7, 5)).shape == (2, 7)


def test_deep_neuron_level_model_is_two_gated_layers():
    models = NeuronLevelModels(d_model=2, memory_length=3, memory_hidden_dims=2).double()
    first, second = models.get_submodule("0.0"), models.get_submodule("0.2")
    assert isinstance(first, SuperLinear)
    assert isinstance(second, SuperLinear)
    history = torch.randn(1, 2, 3, dtype=torch.float64)
    for n in range(2):
        h: Any = [sum(history[0, n, i] * first.w1[i, o, n] for i in range(3)) for o in range(4)]
        g = [h[k] * torch.sigmoid(h[k + 2]) for k in range(2)]
        y: Any = [sum(g[i] * second.w1[i, o, n] for i in range(2)) for o in range(2)]
        torch.testing.assert_close(models(history)[0, n], y[0] * torch.sigmoid(y[1]))


def test_neuron_level_models_drop_inputs_in_training_only():
    models = NeuronLevelModels(d_model=64, memory_length=8, memory_hidden_dims=4, dropout=0.5)
    history = torch.randn(4, 64, 8)
    assert not torch.equal(models(history), models(history))
    models.eval()
    assert torch.equal(models(history), models(history))


@pytest.mark.parametrize(
    ("width", "depth", "widths"),
    [(256, 5, [256, 196, 136, 76, 16]), (512, 4, [512, 346, 181, 16]), (17, 2, [17, 16])],
    ids=["D256-k5", "D512-k4", "D17-k2"],
)
def test_unet_widths(width, depth, widths):
    unet: Any = SynapseUNET(width, depth)
    assert [layer[1].in_features for layer in unet.down_projections] == widths[:-1]
    assert [layer[1].out_features for layer in unet.down_projections] == widths[1:]
    assert [layer[1].out_features for layer in unet.up_projections] == widths[:-1]
    assert unet(torch.randn(2, 5)).shape == (2, width)


def test_unet_follows_its_equations():
    unet: Any = SynapseUNET(24, 3).double()
    u = torch.randn(2, 6, dtype=torch.float64)
    x0 = unet.first_projection(u)
    x1 = unet.down_projections[0](x0)
    x2 = unet.down_projections[1](x1)
    y = unet.skip_lns[1](unet.up_projections[1](x2) + x1)
    y = unet.skip_lns[0](unet.up_projections[0](y) + x0)
    torch.testing.assert_close(unet(u), y)


def test_unet_keys():
    unet = SynapseUNET(20, 2)
    unet(torch.randn(1, 7))
    pair = lambda name, shape: {f"{name}.weight": shape, f"{name}.bias": shape[:1]}  # noqa: E731
    assert shapes(unet) == {
        **pair("first_projection.0", (20, 7)),
        **pair("first_projection.1", (20,)),
        **pair("down_projections.0.1", (16, 20)),
        **pair("down_projections.0.2", (16,)),
        **pair("up_projections.0.1", (20, 16)),
        **pair("up_projections.0.2", (20,)),
        **pair("skip_lns.0", (20,)),
    }


@pytest.mark.parametrize(
    ("build", "indices"),
    [(single_layer_synapses, ["1", "3"]), (two_layer_synapses, ["1", "3", "4", "6"])],
    ids=["one", "two"],
)
def test_gated_synapses_keys(build, indices):
    synapses = build(8)
    assert synapses(torch.randn(2, 11)).shape == (2, 8)
    assert sorted({key.split(".")[0] for key in synapses.state_dict()}) == indices


def test_unet_needs_two_levels():
    with pytest.raises(ValueError, match="depth must be at least 2, got 1"):
        SynapseUNET(16, 1)


def entropy_by_hand(logits):
    p = [math.exp(x) for x in logits]
    p = [x / sum(p) for x in p]
    return -sum(x * math.log(x) for x in p) / math.log(len(p))


def test_normalised_entropy_by_hand():
    logits = torch.randn(3, 4, 5, dtype=torch.float64)
    expected = [sum(entropy_by_hand(row.tolist()) for row in sample) / 4 for sample in logits]
    torch.testing.assert_close(normalised_entropy(logits), torch.tensor(expected, dtype=torch.float64))


def test_entropy_of_extremes():
    assert normalised_entropy(torch.zeros(1, 7)).item() == pytest.approx(1)
    assert normalised_entropy(torch.tensor([[100.0, 0, 0]])).item() == pytest.approx(0, abs=1e-6)
    assert normalised_entropy(torch.zeros(1, 1)).isnan()


@pytest.mark.parametrize("reshaper", [[-1], [3, 4], [2, 3, 2]], ids=str)
def test_certainty_of_all_ticks_is_that_of_each(reshaper):
    predictions = torch.randn(2, 12, 5, requires_grad=True)
    each = torch.stack([certainty(predictions[..., t], reshaper) for t in range(5)], dim=-1)
    torch.testing.assert_close(certainty_over_ticks(predictions, reshaper), each)
    own = CertaintyOverTicks.apply(predictions.permute(2, 0, 1), tuple(reshaper))
    torch.testing.assert_close(own, each)
    weight = torch.randn_like(each)
    expected, found = (torch.autograd.grad((x * weight).sum(), predictions)[0] for x in (each, own))
    torch.testing.assert_close(found, expected)
