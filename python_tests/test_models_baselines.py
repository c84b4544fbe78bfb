"""The LSTM and feed-forward baselines."""

from typing import Any

import numpy as np
import pytest
import torch

from ctm_fast.models import FFBaseline, LSTMBaseline, LSTMBaselineQAMNIST, LSTMBaselineRL


def shapes(model):
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def pair(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def build_lstm(**changes):
    arguments = {"iterations": 3, "d_model": 9, "d_input": 8, "heads": 2, "backbone_type": "parity_backbone"}
    arguments |= {"num_layers": 2, "positional_embedding_type": "custom-rotational-1d", "out_dims": 6}
    return LSTMBaseline(**{**arguments, "prediction_reshaper": [3, 2], **changes})


def test_lstm_keys_and_shapes():
    model = build_lstm()
    model(torch.ones(2, 5))
    assert shapes(model) == {
        "start_hidden_state": (2, 9),
        "start_cell_state": (2, 9),
        "backbone.embedding.weight": (2, 8),
        **pair("positional_embedding.projection", 8, 2),
        **pair("kv_proj.0", 8, 8),
        **pair("kv_proj.1", 8),
        **pair("q_proj", 8, 9),
        "attention.in_proj_weight": (24, 8),
        "attention.in_proj_bias": (24,),
        **pair("attention.out_proj", 8, 8),
        "lstm.weight_ih_l0": (36, 8),
        "lstm.weight_hh_l0": (36, 9),
        "lstm.bias_ih_l0": (36,),
        "lstm.bias_hh_l0": (36,),
        "lstm.weight_ih_l1": (36, 9),
        "lstm.weight_hh_l1": (36, 9),
        "lstm.bias_ih_l1": (36,),
        "lstm.bias_hh_l1": (36,),
        **pair("output_projector.0", 6, 9),
    }
    assert model.start_hidden_state.abs().max() <= 1 / 3


def test_lstm_queries_with_its_top_layer():
    model = build_lstm().eval()
    x = torch.ones(2, 5)
    predictions, certainties, none, zeros, post, attention = model(x, track=True)
    assert none is None
    assert (predictions.shape, certainties.shape) == ((2, 6, 3), (2, 2, 3))
    assert zeros.shape == post.shape == (3, 2, 9)
    assert not zeros.any()
    assert attention.shape == (3, 2, 2, 1, 5)
    queries = torch.cat((model.start_hidden_state[-1].expand(1, 2, -1), torch.from_numpy(post)))
    kv = model.compute_features(x)
    for tick in range(3):
        weights = model.attend(queries[tick], kv)[1]
        np.testing.assert_allclose(attention[tick], weights.detach(), rtol=1e-5)
        expected = model.output_projector(queries[tick + 1])
        torch.testing.assert_close(predictions[..., tick], expected)


def test_lstm_trains():
    model = build_lstm()
    predictions, _, none = model(torch.ones(2, 5))
    assert none is None
    predictions.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 0}, "heads must be at least 1, got 0"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"backbone_type": "vgg"}, "backbone_type must be one of"),
    ],
    ids=["heads", "layers", "backbone"],
)
def test_lstm_wrong_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        build_lstm(**changes)


def test_lstm_qamnist_projects_its_question():
    model: Any = LSTMBaselineQAMNIST(1, 9, 8, 2, 10, 1, 1, 2)
    x, z = torch.randn(2, 2, 1, 32, 32), torch.tensor([[0, -2, 1]] * 2)
    predictions, certainties, none, zeros, post, attention, embeddings = model(x, z, track=True)
    assert none is None
    assert (predictions.shape, certainties.shape) == ((2, 10, 7), (2, 2, 7))
    assert zeros.shape == post.shape == (7, 2, 9)
    assert attention.shape == (2, 2, 2, 1, 64)
    question = torch.stack(
        [
            model.index_backbone(z[:, 0]),
            model.operator_backbone(z[:, 1]),
            model.index_backbone(z[:, 2]),
        ]
    )
    torch.testing.assert_close(torch.from_numpy(embeddings), model.kv_proj(question).detach())
    assert {"lstm_cell.weight_ih", "start_hidden_state", "start_cell_state"} <= set(model.state_dict())


@pytest.mark.parametrize(
    ("backbone", "observation", "features"),
    [
        ("classic-control-backbone", torch.randn(2, 4), 8),
        ("navigation-backbone", torch.randint(0, 3, (2, 7, 7, 3)), 8 * 49),
    ],
    ids=["classic-control", "navigation"],
)
def test_lstm_rl(backbone, observation, features):
    model = LSTMBaselineRL(iterations=2, d_model=9, d_input=8, backbone_type=backbone)
    hidden, (h, c), pre, post = model(observation, model.initial_state(2), track=True)
    assert hidden.shape == h.shape == c.shape == (2, 9)
    assert pre.shape == post.shape == (2, 2, 9)
    assert model.lstm_cell.weight_ih.shape == (36, features)


def test_lstm_rl_wrong_backbone():
    with pytest.raises(ValueError, match=r"backbone_type must be one of .*, got 'none'"):
        LSTMBaselineRL(1, 9, 8, "none")


def test_ff():
    model = FFBaseline(d_model=7, backbone_type="resnet18-1", out_dims=5)
    assert model(torch.randn(2, 1, 9, 9)).shape == (2, 5)
    found = {key: shape for key, shape in shapes(model).items() if not key.startswith("backbone.")}
    assert found == {
        **pair("initial_rgb", 3, 1, 1, 1),
        **pair("output_projector.3", 7, 64),
        **pair("output_projector.6", 5, 7),
    }


def test_ff_needs_a_resnet():
    with pytest.raises(ValueError, match="backbone_type must be a ResNet for FFBaseline, got 'none'"):
        FFBaseline(7, "none", 5)
