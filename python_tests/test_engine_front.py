"""What lies before the recurrent part runs natively: every kind of layer, and random chains of them."""

import numpy as np
import pytest
import torch
from engine_cases import assert_as_exact, engine_outputs
from front_cases import ENCODERS, acting, attending
from torch import nn

import ctm_fast
from ctm_fast.models import ContinuousThoughtMachine
from ctm_fast.nn import Encoder, EncoderLayer, ParityBackbone


def assert_native(model, inputs, reads="x", **options):
    """The engine computes the model from its input, or from its backbone's features, in any form; returns it."""
    engine = ctm_fast.Engine(model, inputs, **options)
    assert engine.inputs[0].name == reads
    assert_as_exact(engine, model, inputs)
    if reads == "x":
        arrays = inputs[0].numpy(), *inputs[1:]
        for a, b in zip(engine_outputs(engine, inputs), engine_outputs(engine, arrays), strict=True):
            assert torch.equal(a, b)
    return engine


CHAINS = {
    "relu": lambda: [nn.Linear(7, 33), nn.ReLU(), nn.Linear(33, 5)],
    "gelu": lambda: [nn.Linear(7, 19), nn.GELU()],
    "silu": lambda: [nn.Linear(7, 19), nn.SiLU()],
    "tanh": lambda: [nn.Linear(7, 19), nn.Tanh(), nn.LayerNorm(19, elementwise_affine=False)],
    "glu": lambda: [nn.Linear(7, 46, bias=False), nn.GLU(), nn.LayerNorm(23)],
    "norm-first": lambda: [nn.LayerNorm(7, bias=False), nn.Linear(7, 3)],
    "nested": lambda: [nn.Sequential(nn.Identity(), nn.Dropout(0.5)), nn.Sequential(nn.Linear(7, 4))],
}


@pytest.mark.parametrize("name", CHAINS)
def test_layers_of_a_vector(name, simd_level):
    torch.manual_seed(0)
    assert_native(*acting(nn.Sequential(*CHAINS[name]()), 2 * torch.randn(3, 7)))


@pytest.mark.parametrize("batch", [1, 2, 63, 64, 65, 150])
@pytest.mark.parametrize("threads", [1, 2])
def test_batches_go_through_in_blocks(batch, threads):
    torch.manual_seed(0)
    model, inputs = acting(nn.Sequential(*CHAINS["glu"]()), torch.randn(batch, 7))
    assert_native(model, inputs, threads=threads)


def test_gelu_is_exact_in_both_tails():
    """Without a LayerNorm behind it, so that small values count."""
    x = torch.linspace(-12, 12, 500)[:, None]
    model, inputs = acting(nn.Sequential(nn.Identity(), nn.GELU()), x)
    assert_native(model, inputs)


SHAPES = {
    "flatten": (lambda: [nn.Flatten(), nn.Linear(12, 9)], (3, 4)),
    "flatten-two": (lambda: [nn.Linear(4, 5), nn.Flatten(2), nn.LayerNorm(10)], (3, 2, 4)),
    "flatten-early": (lambda: [nn.Flatten(1, 2), nn.Linear(4, 5)], (3, 2, 4)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_observations_of_several_dimensions(name):
    layers, shape = SHAPES[name]
    assert_native(*acting(nn.Sequential(*layers()), torch.randn(3, *shape)))


EMBEDDINGS = {
    "folded": lambda: [nn.Embedding(9, 6), nn.Linear(6, 8), nn.ReLU()],
    "plain": lambda: [nn.Embedding(9, 6), nn.LayerNorm(6), nn.Flatten()],
    "put-together": lambda: [nn.Embedding(9, 6), nn.Flatten(), nn.Linear(30, 7)],
    "large": lambda: [nn.Embedding(2000, 4), nn.Linear(4, 7)],
}


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_embeddings(name):
    model, inputs = acting(nn.Sequential(*EMBEDDINGS[name]()), torch.randint(0, 9, (3, 5)))
    kinds = [stage.kind for stage in assert_native(model, inputs)._recipe.given_front.stages]
    assert kinds[0] == "embed"
    assert ("linear" in kinds) == (name in ("put-together", "large"))


def test_one_index_a_sample():
    assert_native(*acting(nn.Embedding(9, 6), torch.randint(0, 9, (3,))))


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_layers(name, simd_level):
    torch.manual_seed(0)
    assert_native(*attending(nn.Sequential(nn.Linear(4, 12), ENCODERS[name]()), torch.randn(3, 5, 4)))


@pytest.mark.parametrize("tokens", [1, 2, 17, 80])
def test_encoders_of_any_length(tokens):
    torch.manual_seed(0)
    assert_native(*attending(Encoder(tokens, 1, 12, 2, 16), torch.randn(4, tokens, 12)), threads=2)


def test_tokens_with_channels_first():
    """The published layout: what the backbone gives is transposed before the key-value projection."""
    backbone = nn.Sequential(nn.Linear(5, 6), nn.ReLU())
    assert_native(*attending(backbone, torch.randn(3, 7, 5), ContinuousThoughtMachine))


def test_a_stand_in_for_a_backbone_with_the_same_parts():
    class Signs(nn.Module):
        def __init__(self, threshold):
            super().__init__()
            self.embedding, self.threshold = nn.Embedding(2, 8), threshold

        def forward(self, x):
            return self.embedding((x > self.threshold).long()).transpose(1, 2)

    x = torch.randint(0, 2, (3, 6)) * 2.0 - 1
    position = {"positional_embedding_type": "custom-rotational-1d"}
    assert_native(*attending(ParityBackbone(8), x, ContinuousThoughtMachine, **position))
    engine = assert_native(*attending(Signs(0.0), x, ContinuousThoughtMachine, **position), "features")
    assert engine.inputs == (("features", (None, 8, 6), "float32"),)


LEFT = {
    "hooks": lambda: _hooked(nn.Linear(4, 12)),
    "another-class": lambda: type("Twice", (nn.Linear,), {"forward": lambda self, x: 2 * x})(4, 4),
    "approximate": lambda: nn.Sequential(nn.Linear(4, 12), nn.GELU(approximate="tanh")),
    "batch-second": lambda: nn.TransformerEncoderLayer(4, 2, 8),
    "norm-of-two": lambda: nn.LayerNorm((5, 4)),
    "glu-of-tokens": lambda: nn.Sequential(nn.Linear(5, 6), nn.GLU(1)),
    "convolution": lambda: nn.Conv1d(6, 3, 1),
}


def _hooked(module):
    module.register_forward_hook(lambda *_: None)
    return module


@pytest.mark.parametrize("name", LEFT)
def test_other_layers_stay_in_torch(name):
    width = 5 if name == "glu-of-tokens" else 4
    x = torch.randn(3, 6 if name in ("glu-of-tokens", "convolution") else 5, width)
    assert_native(*attending(LEFT[name](), x), "features")


def random_chain(draw, width):
    """Layers on rows of ``width``, and the width behind them."""
    layers = []
    for _ in range(int(draw.integers(1, 6))):
        kind = str(draw.choice(["linear", "glu", "norm", "act", "encoder", "torch"]))
        wide = int(draw.integers(1, 40))
        if kind == "linear":
            layers.append(nn.Linear(width, wide, bias=bool(draw.integers(2))))
            width = wide
        elif kind == "glu":
            layers += [nn.Linear(width, 2 * wide), nn.GLU()]
            width = wide
        elif kind == "norm" and width > 3:  # of two values little but the sign of their difference is left
            layers.append(nn.LayerNorm(width))
        elif kind == "act":
            layers.append([nn.ReLU(), nn.GELU(), nn.SiLU(), nn.Tanh()][int(draw.integers(4))])
        elif kind in ("encoder", "torch") and width > 3:
            heads = int(draw.choice([h for h in range(1, width + 1) if width % h == 0]))
            act, before = str(draw.choice(["relu", "gelu"])), bool(draw.integers(2))
            ours = kind == "encoder"
            own = EncoderLayer(width, heads, wide, activation=act, pre_norm=before)
            theirs = nn.TransformerEncoderLayer(
                width, heads, wide, activation=act, norm_first=before, batch_first=True
            )
            layers.append(own if ours else theirs)
    return layers, width


@pytest.mark.parametrize("seed", range(30))
def test_random_fronts(seed):
    draw = np.random.default_rng(seed)
    torch.manual_seed(seed)
    batch, tokens, width = (int(n) for n in draw.integers(1, 20, 3))
    if draw.integers(3):
        first, x = nn.Linear(width, width), torch.randn(batch, tokens, width)
    else:
        first, x = nn.Embedding(11, width), torch.randint(0, 11, (batch, tokens))
    layers, _ = random_chain(draw, width)
    assert_native(*attending(nn.Sequential(first, *layers), x), threads=1 + seed % 3)
