"""Transformer encoder layers against those of torch, and their positional term."""

import pytest
import torch
from torch import nn

from ctm_fast.nn import Encoder, EncoderLayer


def filled(module):
    """The module in float64 and eval mode, every parameter away from its start."""
    torch.manual_seed(0)
    for parameter in module.double().parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.eval()


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("pre_norm", [False, True])
def test_without_a_positional_term_it_is_the_layer_of_torch(activation, pre_norm):
    ours = filled(EncoderLayer(12, 3, 20, activation=activation, pre_norm=pre_norm))
    theirs = nn.TransformerEncoderLayer(
        12, 3, 20, activation=activation, norm_first=pre_norm, batch_first=True, dtype=torch.float64
    )
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 12, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(ours(x), theirs.eval()(x))
    torch.testing.assert_close(ours(x, torch.zeros(5, 12).double()), theirs(x))
    assert not torch.equal(ours.train()(x), ours.eval()(x)), "no dropout"


@pytest.mark.parametrize("pre_norm", [False, True])
def test_the_positional_term_reaches_queries_and_keys_alone(pre_norm):
    layer = filled(EncoderLayer(8, 2, 16, pre_norm=pre_norm))
    x, positional = torch.randn(3, 4, 8).double(), torch.randn(4, 8).double()
    attended = layer.norm1(x) if pre_norm else x
    query, key, value = (
        w.view(8, 8) @ y.transpose(1, 2) + b.view(8, 1)
        for w, b, y in zip(
            layer.self_attn.in_proj_weight.chunk(3), layer.self_attn.in_proj_bias.chunk(3),
            (attended + positional, attended + positional, attended), strict=True,
        )
    )  # fmt: skip
    heads = [y.view(3, 2, 4, 4).transpose(2, 3) for y in (query, key, value)]
    weights = (heads[0] @ heads[1].transpose(2, 3) / 2).softmax(-1)
    y = x + layer.self_attn.out_proj((weights @ heads[2]).transpose(1, 2).reshape(3, 4, 8))
    y = y if pre_norm else layer.norm1(y)
    inner = layer.norm2(y) if pre_norm else y
    y = y + layer.linear2(layer.linear1(inner).relu())
    torch.testing.assert_close(layer(x, positional), y if pre_norm else layer.norm2(y))


@pytest.mark.parametrize("pre_norm", [False, True])
def test_an_encoder_hands_its_positional_term_to_every_layer(pre_norm):
    encoder = filled(Encoder(4, 2, 8, 2, 16, pre_norm=pre_norm))
    x = torch.randn(3, 4, 8).double()
    y = encoder.layers[1](encoder.layers[0](x, encoder.positional), encoder.positional)
    torch.testing.assert_close(encoder(x), encoder.norm(y) if pre_norm else y)
    with pytest.raises(ValueError, match=r"^Encoder: x must have shape \(B, 4, 8\), got \(3, 5, 8\)$"):
        encoder(torch.zeros(3, 5, 8).double())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((8, 3), "sizes must be at least 1 and d_model a multiple of heads, got 8, 3, 2048"),
        ((8, 2, 0), "sizes must be at least 1 and d_model a multiple of heads, got 8, 2, 0"),
        ((8, 2, 4, 1.5), r"dropout must be in \[0, 1\], got 1.5"),
        ((8, 2, 4, 0.0, "tanh"), r"activation must be one of \('relu', 'gelu'\), got 'tanh'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=f"^EncoderLayer: {message}$"):
        EncoderLayer(*arguments)


def test_wrong_lengths():
    with pytest.raises(ValueError, match=r"^Encoder: length and layers must be at least 1, got 0 and 1$"):
        Encoder(0, 1, 8, 2)
