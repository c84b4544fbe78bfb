"""Saving to and loading from a folder in the hub's layout, without a network."""

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from ctm_fast import checkpoint
from ctm_fast.models import ContinuousThoughtMachine, FFBaseline, presets

pytest.importorskip("huggingface_hub")
pytest.importorskip("safetensors")

NAMES = ["sort_ctm", "cartpole_lstm_1", "cartpole_ctm_1", "qamnist_ctm_1", "qamnist_lstm_1", "cifar10_ff"]


def ran(name):
    """The preset's recurrent model after a forward, its inputs, and a function that runs it."""
    model = presets.build(name)
    model = getattr(model, "recurrent_model", model).eval()
    inputs = presets.example_inputs(name)
    if presets.get_preset(name).actions:
        inputs = (*inputs, model.initial_state(1))
    model(*inputs)
    return model, inputs


@pytest.mark.parametrize("name", NAMES)
def test_round_trip(name, tmp_path):
    model, inputs = ran(name)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.items() >= dict(presets.get_preset(name).arguments).items()
    np.random.seed(1)
    loaded = type(model).from_pretrained(tmp_path)
    assert not loaded.training
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(loaded(*inputs)[0], model(*inputs)[0])


def test_shared_indices_of_first_last_survive(tmp_path):
    model, _ = ran("cartpole_ctm_1")
    assert model.out_neuron_indices_left.data_ptr() == model.out_neuron_indices_right.data_ptr()
    model.save_pretrained(tmp_path)
    state, _ = checkpoint.load_checkpoint(tmp_path / "model.safetensors")
    assert {"out_neuron_indices_left", "out_neuron_indices_right"} <= state.keys()


def test_a_model_that_never_ran_cannot_be_saved(tmp_path):
    with pytest.raises(
        ValueError, match=r"save_pretrained: model must have run once, got initial_rgb\.weight"
    ):
        presets.build("cifar10_ff").save_pretrained(tmp_path)


def test_another_models_folder(tmp_path):
    model: Any = FFBaseline(4, "resnet18-1", 3)
    model(torch.randn(2, 3, 9, 9))
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"must fit FFBaseline, got other shapes: output_projector\.6"):
        FFBaseline.from_pretrained(tmp_path, out_dims=2)


def test_folder_without_weights(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"d_model": 4, "backbone_type": "resnet18-1", "out_dims": 3})
    )
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        FFBaseline.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"d_model":', "must be JSON, got a damaged file: "),
        ("[4]", "must hold a JSON object, got list"),
        ('{"d_model": 4}', "must hold the arguments of FFBaseline, got none for backbone_type, out_dims"),
        (None, "must hold the arguments of FFBaseline, got none for d_model, backbone_type, out_dims"),
    ],
    ids=["damaged", "list", "missing-keys", "no-file"],
)
def test_bad_config(config, message, tmp_path):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match=rf"^from_pretrained: .*config\.json {message}"):
        FFBaseline.from_pretrained(tmp_path)


def test_no_folder(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"from_pretrained: .*nowhere must be a folder or the name of a model"
    ):
        FFBaseline.from_pretrained(tmp_path / "nowhere")


def test_without_the_hub_the_models_say_how_to_install_it():
    script = (
        "import sys; sys.modules['huggingface_hub'] = None\n"
        "from ctm_fast.models import FFBaseline\n"
        "FFBaseline.from_pretrained('x')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "from_pretrained needs the packages huggingface_hub and safetensors" in done.stderr
    assert "pip install 'ctm_fast[hub]'" in done.stderr


def test_every_ctm_has_the_hub_methods():
    assert {"save_pretrained", "from_pretrained", "push_to_hub"} <= set(dir(ContinuousThoughtMachine))
