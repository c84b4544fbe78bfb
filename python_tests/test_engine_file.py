"""Engine files: written whole or not at all, read without torch, and damaged or foreign ones refused."""

import json
import subprocess
import sys

import numpy as np
import pytest
import small_ctm
import torch
from engine_cases import assert_flips_are_refused, damaged, eval_model

import ctm_fast
from ctm_fast import engine as engines
from ctm_fast.engine.file import sealed
from ctm_fast.models import presets

NAMES = ["base-energy", "sort", "qamnist", "rl"]


def features(name, batch=3):
    """An engine, and the arrays that it reads without its model."""
    model, inputs = eval_model(name, batch=batch)
    engine = ctm_fast.Engine(model, inputs)
    first, *others = inputs
    with torch.no_grad():
        if name == "qamnist":
            arrays = (torch.stack([model.backbone_digit(x) for x in first.unbind(1)], 1), *others)
        elif name.startswith("base"):
            arrays = (model.backbone(first),)
        else:
            arrays = (first,)
    return engine, inputs, tuple(x.numpy() for x in arrays)


def same(first, second):
    """Whether two results are the same bits."""
    return all(a is b is None or np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_engine_gives_the_same_bits_from_arrays(name, tmp_path):
    engine, inputs, arrays = features(name)
    engine.save(tmp_path / "engine")
    loaded = engines.load(tmp_path / "engine")
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]
    assert loaded.kind == engine.kind
    if name == "rl":
        engine.reset()
        for _ in range(3):
            first, second = engine.step(inputs[0]), loaded.step(*arrays)
            assert np.array_equal(first[0], second[0])
            assert same(first[1], second[1])
    else:
        assert same(engine(*inputs), loaded(*arrays))


WITHOUT_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ImportError("no torch here")

sys.meta_path.insert(0, Refuse())
import numpy as np
import ctm_fast.engine
from ctm_fast.engine import Halt

arrays = np.load(sys.argv[2])
engine = ctm_fast.engine.load(sys.argv[1])
inputs = [arrays[f"input{i}"] for i in range(len(engine.inputs))]
if engine.kind == "rl":
    for step in range(3):
        np.testing.assert_array_equal(engine.step(*inputs)[0], arrays["steps"][step])
else:
    found = engine(*inputs, halt=Halt(certainty=float(arrays["threshold"])))
    np.testing.assert_array_equal(found.predictions, arrays["predictions"])
assert ctm_fast.Engine is ctm_fast.engine.Engine
assert "torch" not in sys.modules
"""


def without_torch(tmp_path, engine, inputs, **results):
    """Runs a saved engine on these arrays where torch cannot be imported."""
    engine.save(tmp_path / "engine")
    arrays = {f"input{i}": x for i, x in enumerate(inputs)}
    np.savez(tmp_path / "arrays.npz", **arrays, **results)
    command = [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path / "engine"), str(tmp_path / "arrays.npz")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("name", ["base-energy", "qamnist"])
def test_load_and_run_without_torch(name, tmp_path):
    engine, _, arrays = features(name)
    threshold = float(np.median(engine(*arrays).certainties[:, 1]))
    found = engine(*arrays, halt=engines.Halt(certainty=threshold))
    without_torch(tmp_path, engine, arrays, predictions=found.predictions, threshold=threshold)


def raw_parity():
    """Signs, embedded natively."""
    model, x = small_ctm.build().eval(), small_ctm.signs(3)
    with torch.no_grad():
        model(x)
    return model, (x,)


def test_a_models_input_without_torch(tmp_path):
    model, inputs = raw_parity()
    engine = ctm_fast.Engine(model, inputs)
    found = engine(*inputs, halt=engines.Halt(certainty=0.5))
    results = {"predictions": found.predictions, "threshold": 0.5}
    without_torch(tmp_path, engine, [x.numpy() for x in inputs], **results)


@pytest.mark.parametrize("preset", ["cartpole_ctm_2", "4rooms_ctm_1"])
def test_observations_without_torch(preset, tmp_path):
    torch.manual_seed(0)
    model, (x,) = presets.build(preset).recurrent_model.eval(), presets.example_inputs(preset)
    with torch.no_grad():
        model(x, model.initial_state(1))
    engine = ctm_fast.Engine(model, (x,))
    truth = [engine.step(x)[0] for _ in range(3)]
    without_torch(tmp_path, engine, [x.numpy()], steps=np.stack(truth))


def test_the_file_is_a_safetensors_file(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    engine, *_ = features("base-energy")
    engine.save(tmp_path / "engine")
    found = safetensors.load_file(tmp_path / "engine")
    assert {name: x.tolist() for name, x in found.items()} == {
        name: x.tolist() for name, x in engine._recipe.arrays.items()
    }


def test_a_failing_write_leaves_nothing(tmp_path, monkeypatch):
    engine, *_ = features("sort")
    path = tmp_path / "engine"
    engine.save(path)
    before = path.read_bytes()

    def full(_):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        engine.save(path)
    assert [x.name for x in tmp_path.iterdir()] == ["engine"]
    assert path.read_bytes() == before


def test_a_missing_folder(tmp_path):
    engine, *_ = features("sort")
    with pytest.raises(FileNotFoundError, match=r"^save: folder '.*none' must exist$"):
        engine.save(tmp_path / "none" / "engine")


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^load: path must be a file, got"):
        engines.load(tmp_path / "none")


@pytest.mark.parametrize("kept", [0, 5, 200, 0.5, -1])
def test_truncated_files_are_refused(kept, tmp_path):
    engine, *_ = features("sort")
    path = tmp_path / "engine"
    engine.save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept) if isinstance(kept, float) else kept])
    with pytest.raises(ValueError, match=r"^load: path must be (an|a whole) engine's file, got"):
        engines.load(path)


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "engine"
    for data in (
        b"PK\x03\x04 a zip archive",
        bytes(range(256)) * 8,
        b"\x10" + bytes(7) + b"[1, 2, 3, 4, 56]",
    ):
        path.write_bytes(data)
        with pytest.raises(
            ValueError, match=r"^load: path must be an engine's file, got a damaged or foreign one"
        ):
            engines.load(path)
    header = json.dumps({"w": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match="got another safetensors file"):
        engines.load(path)


CHANGES = {
    "size": lambda _, config: config["sizes"].update(memory=4),
    "negative": lambda _, config: config["sizes"].update(ticks=-1),
    "huge": lambda _, config: config["sizes"].update(neurons=1 << 60),
    "batch-beyond-memory": lambda _, config: config["sizes"].update(batch=1 << 61),
    "heads": lambda _, config: config["sizes"].update(heads=2, width=4),
    "stateful": lambda _, config: config["sizes"].update(stateful=1),
    "group": lambda _, config: config["sizes"].update(group=5),
    "text": lambda _, config: config["sizes"].update(neurons="many"),
    "further-size": lambda _, config: config["sizes"].update(colours=3),
    "size-of-a-float": lambda _, config: config["sizes"].update(memory=5.0),
    "size-of-a-bool": lambda _, config: config["sizes"].update(deep=True),
    "size-without-end": lambda _, config: config["sizes"].update(batch=float("inf")),
    "size-of-33-bits": lambda _, config: config["sizes"].update(batch=1 << 31),
    "tokens": lambda _, config: config["sizes"].update(tokens=1 << 20),
    "sets": lambda _, config: config["sizes"].update(sets=1),
    "action": lambda _, config: config["sizes"].update(action=4),
    "ticks": lambda _, config: config["sizes"].update(ticks=config["iterations"] + 1),
    "iterations": lambda _, config: config.update(iterations=1),
    "iterations-of-text": lambda _, config: config.update(iterations=str(config["iterations"])),
    "kind": lambda _, config: config.update(kind="other"),
    "eps-nan": lambda _, config: config["stages"][0].update(eps=float("nan")),
    "eps-negative": lambda _, config: config["stages"][0].update(eps=-1e-5),
    "eps-huge": lambda _, config: config["stages"][0].update(outer_eps=1e300),
    "eps-of-text": lambda _, config: config["stages"][0].update(eps="1e-5"),
    "another-kind": lambda _, config: config.update(kind="rl"),
    "no-stages": lambda _, config: config.update(stages=[]),
    "stage": lambda _, config: config["stages"][0].update(kind="relu"),
    "source": lambda _, config: config["stages"][0].update(source=0),
    "array-missing": lambda header, _: header.pop("w1"),
    "array-shape": lambda header, _: header["start"].update(shape=[1, 1]),
    "array-dtype": lambda header, _: header["left"].update(dtype="F32"),
    "array-offset": lambda header, _: header["w1"].update(data_offsets=[1 << 40, 1 << 41]),
    "array-again": lambda header, _: header["b1"].update(data_offsets=header["w1"]["data_offsets"]),
    "array-shape-negative": lambda header, _: header["start"].update(shape=[-1, -1]),
    "array-shape-of-floats": lambda header, _: header["start"].update(shape=[1.0, 1.0]),
    "entry": lambda header, _: header.update(w1=7),
}


@pytest.mark.parametrize("change", CHANGES)
def test_inconsistent_files_are_refused(change, tmp_path):
    engine, *_ = features("sort")
    path = tmp_path / "engine"
    engine.save(path)
    damaged(path, CHANGES[change])
    with pytest.raises(ValueError, match=r"^load: path must be a whole engine's file, got "):
        engines.load(path)


@pytest.mark.parametrize("name", ["base-energy", "sort", "rl"])
def test_every_flipped_byte_is_refused(name, tmp_path):
    engine, *_ = features(name)
    engine.save(tmp_path / "engine")
    assert_flips_are_refused(tmp_path / "engine")


def test_further_bytes_are_refused(tmp_path):
    engine, *_ = features("sort")
    path = tmp_path / "engine"
    engine.save(path)
    path.write_bytes(path.read_bytes() + bytes(4))
    with pytest.raises(ValueError, match="got other bytes than were written"):
        engines.load(path)
    damaged(path, lambda header, config: None)
    with pytest.raises(ValueError, match="got arrays that do not fill it"):
        engines.load(path)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("width", ["float32", "bfloat16"])
def test_arrays_that_are_not_finite_are_refused(width, bad, tmp_path):
    model, inputs = eval_model("sort")
    engine = ctm_fast.Engine(model, inputs, weights=width)
    x = engine._recipe.arrays["w1"]
    x.flat[0] = bad if width == "float32" else np.float32(bad).view(np.uint32) >> 16
    engine.save(tmp_path / "engine")
    with pytest.raises(ValueError, match="got NaN or infinity in w1"):
        engines.load(tmp_path / "engine")


def test_deep_headers_are_refused(tmp_path):
    engine, *_ = features("sort")
    path = tmp_path / "engine"
    deep = "[" * 100_000 + "]" * 100_000
    engine.save(path)
    damaged(path, lambda header, _: header.update(w1=0))
    text = path.read_bytes()[8:].replace(b'"w1": 0', b'"w1": ' + deep.encode())
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(ValueError, match=r"^load: path must be an engine's file, got a damaged"):
        engines.load(path)
    engine.save(path)
    damaged(path, lambda _, config: config.clear())
    end = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    text, data = path.read_bytes()[8:end].replace(b'"{}"', f'"{deep}"'.encode()), path.read_bytes()[end:]
    head = sealed(len(text).to_bytes(8, "little") + text, [np.frombuffer(data, np.uint8)])
    path.write_bytes(head + data)
    with pytest.raises(ValueError, match=r"^load: path must be a whole engine's file, got .*recursion"):
        engines.load(path)


def test_another_version_is_refused(tmp_path):
    engine, *_ = features("sort")
    engine.save(tmp_path / "engine")
    damaged(tmp_path / "engine", lambda header, _: header["__metadata__"].update(version="1"))
    with pytest.raises(ValueError, match="of version 2, got version 1"):
        engines.load(tmp_path / "engine")


FRONT_CHANGES = {
    "front-missing": lambda _, config: config.pop("fronts"),
    "front-of-another-name": lambda _, config: config["fronts"].update(action_front=None),
    "stages": lambda _, config: config["fronts"]["tokens_front"].update(stages=[]),
    "kind": lambda _, config: stage(config, 1).update(kind="convolve"),
    "rows": lambda _, config: stage(config, 1).update(rows=5),
    "eps": lambda _, config: stage(config, 2).update(eps=-1.0),
    "width-of-a-bool": lambda _, config: stage(config, 1).update(width=True),
    "zero": lambda _, config: stage(config, 1).update(rows=0),
    "huge": lambda _, config: stage(config, 0).update(number=1 << 60),
    "negative": lambda _, config: stage(config, 0).update(number=-1),
    "width": lambda _, config: stage(config, 2).update(width=4, inputs=4),
    "attend-without-heads": lambda _, config: stage(config, 1).update(kind="attend"),
    "residual": lambda _, config: stage(config, 1).update(kind="residual"),
    "embed-later": lambda _, config: stage(config, 1).update(kind="embed"),
    "reads": lambda _, config: config["fronts"]["tokens_front"].update(reads="floats"),
    "reads-other": lambda _, config: config["fronts"]["tokens_front"].update(reads="words"),
    "ends": lambda _, config: config["fronts"]["tokens_front"].update(ends=[3]),
    "name": lambda _, config: config["fronts"]["tokens_front"].update(name="y"),
    "shape": lambda _, config: config["fronts"]["tokens_front"].update(shape=[3, 3]),
    "question": lambda _, config: config.update(question={"positions": 1, "operators": 1, "ticks": 1}),
    "array": lambda header, _: header.pop("tokens_front1.weight"),
    "array-shape": lambda header, _: header["tokens_front0.weight"].update(shape=[8, 2]),
}


def stage(config, i):
    """A stage of the front of tokens: embed, add, norm."""
    return config["fronts"]["tokens_front"]["stages"][i]


@pytest.mark.parametrize("change", FRONT_CHANGES)
def test_inconsistent_fronts_are_refused(change, tmp_path):
    engine = ctm_fast.Engine(*raw_parity())
    path = tmp_path / "engine"
    engine.save(path)
    damaged(path, FRONT_CHANGES[change])
    with pytest.raises(ValueError, match=r"^load: path must be a whole engine's file, got "):
        engines.load(path)


QUESTIONS = {
    "none": lambda config: config.update(question=None),
    "positions": lambda config: config["question"].update(positions=10_000),
    "ticks": lambda config: config["question"].update(ticks=0),
    "more-iterations-than-ticks": lambda config: config.update(iterations=config["sizes"]["ticks"] + 1),
    "without-front": lambda config: config["fronts"].update(given_front=None),
}


@pytest.mark.parametrize("change", QUESTIONS)
def test_inconsistent_questions_are_refused(change, tmp_path):
    engine, *_ = features("qamnist")
    path = tmp_path / "engine"
    engine.save(path)
    damaged(path, lambda _, config: QUESTIONS[change](config))
    with pytest.raises(ValueError, match=r"^load: path must be a whole engine's file, got "):
        engines.load(path)


def test_indices_outside_the_neurons_are_refused(tmp_path):
    engine, *_ = features("sort")
    engine._recipe.arrays["left"][0] = 10_000
    engine.save(tmp_path / "engine")
    with pytest.raises(ValueError, match=r"got left outside \[0, "):
        engines.load(tmp_path / "engine")
