"""Backbones and positional embeddings: keys, sizes, formulas."""

import math

import pytest
import torch

from ctm_fast.nn import (
    ClassicControlBackbone,
    CustomRotationalEmbedding,
    CustomRotationalEmbedding1D,
    IndexEmbeddings,
    LearnableFourierPositionalEncoding,
    MiniGridBackbone,
    MNISTBackbone,
    MultiLearnableFourierPositionalEncoding,
    OperatorEmbeddings,
    ParityBackbone,
    ShallowWide,
    build_backbone,
    build_positional_embedding,
    build_resnet,
    resnet_width,
)


def prefixes(module, depth):
    return sorted({".".join(key.split(".")[:depth]) for key in module.state_dict()})


@pytest.mark.parametrize(
    ("name", "pixels", "grid", "channels"),
    [
        ("resnet18-1", 32, 16, 64),
        ("resnet18-2", 32, 8, 128),
        ("resnet34-2", 39, 10, 128),
        ("resnet18-1", 15, 8, 64),
        ("resnet50-1", 9, 5, 256),
        ("resnet18-4", 17, 2, 512),
    ],
)
def test_resnet_grid(name, pixels, grid, channels):
    features = build_resnet(name).eval()(torch.randn(1, 3, pixels, pixels))
    assert features.shape == (1, channels, grid, grid)
    assert resnet_width(name) == channels


def test_resnet_keys():
    statistics = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    keys = set(build_resnet("resnet18-2").state_dict())
    expected = {"conv1.weight"} | {f"bn1.{name}" for name in statistics}
    for block in ("layer1.0", "layer1.1", "layer2.0", "layer2.1"):
        for i in (1, 2):
            expected |= {f"{block}.conv{i}.weight"} | {f"{block}.bn{i}.{name}" for name in statistics}
    expected |= {"layer2.0.downsample.0.weight"} | {f"layer2.0.downsample.1.{name}" for name in statistics}
    assert keys == expected
    assert "layer1.0.conv3.weight" in build_resnet("resnet50-1").state_dict()


@pytest.mark.parametrize("name", ["resnet20-1", "resnet18-5", "vgg"])
def test_unknown_backbone(name):
    with pytest.raises(ValueError, match=f"backbone_type must be .*, got '{name}'"):
        build_backbone(name, 8)


def test_shallow_wide():
    backbone = ShallowWide()
    assert backbone(torch.randn(2, 3, 5, 5)).shape == (2, 2048, 3, 3)
    assert sum(p.numel() for p in backbone.parameters()) == 2_486_272
    assert prefixes(backbone, 2) == ["layers.0", "layers.2", "layers.3", "layers.5"]


def test_parity_backbone_embeds_plus_one_as_one():
    backbone = ParityBackbone(4)
    tokens = backbone(torch.tensor([[1.0, -1.0, 1.0]]))
    assert tokens.shape == (1, 4, 3)
    torch.testing.assert_close(tokens[0].t(), backbone.embedding.weight[[1, 0, 1]])


def test_mnist_backbone():
    backbone = MNISTBackbone(6)
    assert backbone(torch.randn(2, 1, 32, 32)).shape == (2, 6, 8, 8)
    assert prefixes(backbone, 2) == ["layers.0", "layers.1", "layers.4", "layers.5"]


def test_classic_control_backbone():
    backbone = ClassicControlBackbone(6)
    assert backbone(torch.randn(3, 4)).shape == (3, 6)
    assert prefixes(backbone, 2) == [f"input_projector.{i}" for i in (1, 3, 4, 6)]


def test_minigrid_backbone():
    backbone = MiniGridBackbone(6)
    assert backbone(torch.randint(0, 3, (2, 7, 7, 3), dtype=torch.uint8)).shape == (2, 7, 7, 6)
    assert {key: tuple(p.shape) for key, p in backbone.named_parameters() if "embedding" in key} == {
        "object_embedding.weight": (11, 8),
        "color_embedding.weight": (6, 8),
        "state_embedding.weight": (3, 8),
        "position_embedding.weight": (49, 8),
    }
    assert set(backbone.state_dict()) == {key for key, _ in backbone.named_parameters()}


def test_index_embeddings_are_the_transformer_table():
    table = IndexEmbeddings(50, 6)
    for position in (0, 3, 49):
        row = table(torch.tensor([position]))[0]
        for i in range(3):
            angle = position / 10000 ** (2 * i / 6)
            assert row[2 * i].item() == pytest.approx(math.sin(angle), abs=1e-5)
            assert row[2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-5)


def test_operator_embeddings_read_negative_tokens():
    operators = OperatorEmbeddings(2, 4)
    torch.testing.assert_close(operators(torch.tensor([-1, -2])), operators.embedding.weight)


def test_learnable_fourier_formula():
    embedding = LearnableFourierPositionalEncoding(5).double()
    out = embedding(torch.zeros(2, 5, 3, 4, dtype=torch.float64))
    assert out.shape == (2, 5, 3, 4)
    c = torch.tensor([2 / 3, 1 / 2], dtype=torch.float64)  # column 2 of 4, row 1 of 3
    angles = embedding.Wr.weight @ c
    features = torch.cat((angles.cos(), angles.sin())) / math.sqrt(256)
    torch.testing.assert_close(out[1, :, 1, 2], embedding.mlp(features))


def test_learnable_fourier_keys():
    keys = {"Wr.weight", *(f"mlp.{i}.{name}" for i in (0, 2, 3) for name in ("weight", "bias"))}
    assert set(LearnableFourierPositionalEncoding(5).state_dict()) == keys


@pytest.mark.parametrize(("height", "width"), [(1, 4), (4, 1), (1, 1)])
def test_learnable_fourier_on_a_single_cell_axis_is_finite(height, width):
    assert LearnableFourierPositionalEncoding(5)(torch.zeros(1, 5, height, width)).isfinite().all()


def test_multi_learnable_fourier_mixes_ten():
    embedding = MultiLearnableFourierPositionalEncoding(3)
    x = torch.zeros(1, 3, 2, 5)
    with torch.no_grad():
        embedding.combination.copy_(torch.arange(10.0))
    weights = embedding.combination.softmax(0)
    expected = sum(weights[i] * embedding.embedders[i](x) for i in range(10))
    torch.testing.assert_close(embedding(x), expected)


def test_custom_rotational_formula():
    embedding = CustomRotationalEmbedding(3)
    with torch.no_grad():
        embedding.start_vector.copy_(torch.tensor([0.3, 0.8]))
    out = embedding(torch.zeros(2, 3, 4, 5))
    assert out.shape == (1, 3, 4, 5)

    def rotated(i, n):
        angle = math.pi * i / (n - 1)
        return [
            math.cos(angle) * 0.3 - math.sin(angle) * 0.8,
            math.sin(angle) * 0.3 + math.cos(angle) * 0.8,
        ]

    key = torch.tensor(rotated(1, 4) + rotated(3, 5))
    torch.testing.assert_close(out[0, :, 1, 3], embedding.projection(key))
    assert set(embedding.state_dict()) == {"start_vector", "projection.0.weight", "projection.0.bias"}


def test_custom_rotational_1d_formula():
    embedding = CustomRotationalEmbedding1D(3)
    out = embedding(torch.zeros(2, 3, 5))
    assert out.shape == (2, 3, 5)
    key = torch.tensor([-math.sin(math.pi / 4), math.cos(math.pi / 4)])
    torch.testing.assert_close(out[1, :, 1], embedding.projection(key))
    assert set(embedding.state_dict()) == {"projection.weight", "projection.bias"}


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("learnable-fourier", (1, 8, 4)),
        ("custom-rotational", (1, 8, 4)),
        ("custom-rotational-1d", (1, 8, 2, 2)),
    ],
)
def test_features_of_the_wrong_shape(kind, shape):
    with pytest.raises(ValueError, match=f"{kind}: features must be .*, got"):
        build_positional_embedding(kind, 8)(torch.zeros(shape))


def test_no_embedding_adds_zero():
    assert build_positional_embedding("none", 8)(torch.ones(1, 8, 2)) == 0
