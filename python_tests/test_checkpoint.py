"""Checkpoints: the published dict forms, safe reading, clear errors, whole writes."""

import argparse
import copy
import random
import re

import numpy as np
import pytest
import torch
from small_ctm import build, signs
from torch import nn

from ctm_fast import checkpoint
from ctm_fast.nn import Synchronisation


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))


def published(model):
    """A dict like the published training scripts write."""
    return {
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": torch.optim.AdamW(model.parameters()).state_dict(),
        "scaler_state_dict": {},
        "iteration": 7,
        "train_losses": [0.5, np.float64(0.25)],
        "test_accuracies": [np.array([0.1, 0.2])],
        "iters": [np.int64(1)],
        "args": argparse.Namespace(d_model=3, device=[-1]),
        "torch_rng_state": torch.get_rng_state(),
        "numpy_rng_state": np.random.get_state(),
        "random_rng_state": random.getstate(),
    }


class Foreign:
    """A class that no checkpoint may bring along."""


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model_state_dict": state, "iteration": 7},
        lambda state: {"state_dict": state, "iteration": 7},
        lambda state: dict(state),
        lambda state: {"model_state_dict": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
    ],
    ids=["model_state_dict", "state_dict", "bare", "distributed", "compiled"],
)
def test_dict_forms(model, wrap, tmp_path):
    torch.save(wrap(model.state_dict()), tmp_path / "a.pt")
    state, metadata = checkpoint.load_checkpoint(tmp_path / "a.pt")
    torch.testing.assert_close(state, dict(model.state_dict()), rtol=0, atol=0)
    assert metadata in ({}, {"iteration": 7})


def test_published_checkpoint_needs_no_pickle(model, tmp_path):
    checkpoint.save_checkpoint(tmp_path / "a.pt", published(model))
    metadata = checkpoint.load_into(model, tmp_path / "a.pt")
    assert metadata["args"].d_model == 3
    assert metadata["train_losses"] == [0.5, 0.25]
    np.testing.assert_array_equal(
        metadata["numpy_rng_state"][1], np.random.get_state(legacy=False)["state"]["key"]
    )


def test_safetensors_with_a_shared_tensor(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    model = nn.Module()
    model.register_buffer("left", torch.arange(4))
    model.register_buffer("right", model.get_buffer("left"))
    safetensors.save_model(model, str(tmp_path / "a.safetensors"))
    state, _ = checkpoint.load_checkpoint(tmp_path / "a.safetensors")
    assert state.keys() == {"left", "right"}
    assert torch.equal(state["right"], torch.arange(4))


DAMAGED = {
    "empty.pt": (lambda whole: b"", "PyTorch checkpoint"),
    "truncated.pt": (lambda whole: whole[: len(whole) // 2], "PyTorch checkpoint"),
    "last_bytes.pt": (lambda whole: whole[:-30], "PyTorch checkpoint"),
    "text.pt": (lambda whole: b"not a checkpoint\n", "PyTorch checkpoint"),
    "settings.json": (lambda whole: b'{"d_model": 3}\n', "PyTorch checkpoint"),
    "losses.csv": (lambda whole: b"step,loss\n1,0.5\n", "PyTorch checkpoint"),
    "array.npy": (lambda whole: b"\x93NUMPY\x01\x00" + bytes(64), "PyTorch checkpoint"),
    "pickle.pt": (lambda whole: b"\x80\x02hello", "PyTorch checkpoint"),
    "archive.pt": (lambda whole: b"PK\x03\x04" + bytes(64), "PyTorch checkpoint"),
    "picture.pt": (lambda whole: b"\x89PNG\r\n\x1a\n" + bytes(64), "PyTorch checkpoint"),
    "empty.safetensors": (lambda whole: b"", "safetensors file"),
    "text.safetensors": (lambda whole: b"not a checkpoint\n", "safetensors file"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_file(model, name, tmp_path):
    damage, kind = DAMAGED[name]
    if name.endswith("safetensors"):
        pytest.importorskip("safetensors")
    path = tmp_path / name
    torch.save(model.state_dict(), tmp_path / "whole")
    path.write_bytes(damage((tmp_path / "whole").read_bytes()))
    expected = rf"^load_checkpoint: file must be a whole {kind}, got .*{name}'.* [a-z]+[^.\n]*$"
    with pytest.raises(ValueError, match=expected) as raised:
        checkpoint.load_checkpoint(path)
    assert "weights_only" not in str(raised.value)
    if name in ("truncated.pt", "last_bytes.pt", "archive.pt"):
        assert str(raised.value).endswith(", which is damaged or cut short")


@pytest.mark.parametrize("what", ["missing.pt", "."], ids=["missing", "folder"])
def test_no_file(what, tmp_path):
    with pytest.raises(FileNotFoundError, match="load_checkpoint: path must be a file, got"):
        checkpoint.load_checkpoint(tmp_path / what)


@pytest.mark.parametrize(
    ("value", "found"),
    [({"iteration": 3}, "the keys iteration"), ([1, 2], "a list"), ({}, "an empty dict")],
    ids=["no-state-dict", "list", "empty"],
)
def test_file_without_state_dict(value, found, tmp_path):
    torch.save(value, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=f"file must hold a state dict, .* with {found}$"):
        checkpoint.load_checkpoint(tmp_path / "a.pt")


def test_foreign_classes_need_an_explicit_yes(model, tmp_path):
    torch.save({"model_state_dict": model.state_dict(), "extra": Foreign()}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"Foreign.*pass allow_pickle=True if you trust the file"):
        checkpoint.load_checkpoint(tmp_path / "a.pt")
    _, metadata = checkpoint.load_checkpoint(tmp_path / "a.pt", allow_pickle=True)
    assert isinstance(metadata["extra"], Foreign)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.Sequential(nn.Linear(3, 2)), "no 1.weight, 1.bias"),
        (nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Linear(2, 2)), "unknown 2.weight, 2.bias"),
        (nn.Sequential(nn.Linear(4, 2), nn.LayerNorm(2)), "other shapes: 0.weight (2, 4) for (2, 3)"),
    ],
    ids=["missing-keys", "unknown-keys", "shapes"],
)
def test_another_models_file(model, other, message, tmp_path):
    torch.save(other.state_dict(), tmp_path / "a.pt")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=re.escape(message)):
        checkpoint.load_into(model, tmp_path / "a.pt")
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_failed_write_leaves_the_old_file(model, tmp_path):
    path = tmp_path / "a.pt"
    checkpoint.save_checkpoint(path, model.state_dict())
    before = path.read_bytes()
    with pytest.raises(Exception, match="pickle"):
        checkpoint.save_checkpoint(path, {"bad": lambda: None})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_write_into_a_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"save: folder .* must exist"):
        checkpoint.save_checkpoint(tmp_path / "none" / "a.pt", {})


@pytest.mark.parametrize(
    ("indices", "found"),
    [
        (torch.tensor([0, 1, 2, 20, 3]), "from 0 to 20, not in [0, 20)"),
        (torch.tensor([0, 1, -1, 2, 3]), "from -1 to 3, not in [0, 20)"),
        (torch.rand(5), "of torch.float32, not integers"),
    ],
    ids=["too-large", "negative", "float"],
)
def test_wiring_of_neurons_that_are_not_there(indices, found, tmp_path):
    model = nn.Sequential(build(), Synchronisation(20, 5))
    model[0](signs())
    before = copy.deepcopy(model.state_dict())
    for key in ("0.out_neuron_indices_left", "1.neuron_indices_right"):
        torch.save({**before, key: indices}, tmp_path / "a.pt")
        with pytest.raises(ValueError, match=re.escape(f"got {key} {found}")):
            checkpoint.load_into(model, tmp_path / "a.pt")
        with pytest.raises(RuntimeError, match=re.escape(f"{key} {found}")):
            copy.deepcopy(model).load_state_dict({**before, key: indices})
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
