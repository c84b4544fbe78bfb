"""Engines with weights of bfloat16 and int8: right for the rounded weights, in files, and compared by a command."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from cell_cases import build
from engine_cases import damaged, eval_model
from recipe_reference import Reference

import ctm_fast
from ctm_fast import engine as engines
from ctm_fast.engine import Halt, compare, weights
from ctm_fast.engine.engine import Engine

NARROW = ["bfloat16", "int8"]
KINDS = ["base-energy", "base-unet", "sort", "qamnist", "rl-unet"]


def relative(x, truth):
    return np.linalg.norm(x - truth) / np.linalg.norm(truth)


def found_by(engine, inputs):
    """What ``Reference`` returns, of an engine."""
    found = compare.results(engine, inputs)
    return [x for x in (found.predictions, found.synchronisation) if x is not None]


def assert_exact(engine, inputs):
    """Errors against float64 with the same rounded weights within max(1e-5, twice those of NumPy in float32)."""
    read = engine._read(inputs[:1] if engine.kind == "rl" else inputs)
    truth, plain = (Reference(engine._recipe, dtype)(read) for dtype in (np.float64, np.float32))
    for ours, float32, exact in zip(found_by(engine, inputs), plain, truth, strict=True):
        assert relative(ours, exact) <= max(1e-5, 2 * relative(float32, exact))


@pytest.mark.parametrize("name", KINDS)
def test_the_reference_is_the_model(name):
    model, inputs = eval_model(name)
    assert_exact(ctm_fast.Engine(model, inputs), inputs)


@pytest.mark.parametrize("width", NARROW)
@pytest.mark.parametrize("name", KINDS)
def test_results_of_rounded_weights(name, width, simd_level):
    model, inputs = eval_model(name)
    assert_exact(ctm_fast.Engine(model, inputs, weights=width), inputs)


SIZES = {
    "one": {
        "d_model": 49,
        "memory_length": 1,
        "memory_hidden_dims": 1,
        "n_synch_out": 1,
        "d_input": 3,
        "heads": 1,
    },
    "odd": {
        "d_model": 131,
        "memory_length": 7,
        "memory_hidden_dims": 9,
        "n_synch_out": 13,
        "d_input": 15,
        "heads": 5,
    },
    "linear": {"d_model": 65, "deep_nlms": False},
    "normed": {"d_model": 77, "do_layernorm_nlm": True, "memory_length": 9, "memory_hidden_dims": 6},
}


@pytest.mark.parametrize("width", NARROW)
@pytest.mark.parametrize("batch", [1, 2, 3, 11])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_odd_sizes(sizes, batch, width):
    model, inputs = eval_model("base", batch=batch, seed=batch, **sizes)
    assert_exact(ctm_fast.Engine(model, inputs, weights=width), inputs)


@pytest.mark.parametrize("width", NARROW)
def test_threads_give_the_same_bits(width):
    model, inputs = eval_model("base", batch=7)
    one, three = (ctm_fast.Engine(model, inputs, threads, weights=width)(*inputs) for threads in (1, 3))
    assert np.array_equal(one.predictions, three.predictions)


def test_bfloat16_is_rounded_as_torch_rounds():
    x = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    x[:6] = [0.0, -0.0, 1.00390625, 1.01171875, 1e-41, -3e38]
    expected = torch.from_numpy(x).bfloat16().float().numpy()
    got = weights.widened({"w1": weights.to_bfloat16(x)}, "bfloat16")["w1"]
    assert np.array_equal(got.view(np.uint32), expected.view(np.uint32))


def test_bfloat16_of_the_largest_number_is_finite():
    most = np.finfo(np.float32).max
    got = weights.widened({"w1": weights.to_bfloat16(np.array([most, -most], np.float32))}, "bfloat16")["w1"]
    assert got.tolist() == [torch.finfo(torch.bfloat16).max, torch.finfo(torch.bfloat16).min]


@pytest.mark.parametrize("axis", [0, 1])
def test_int8_is_the_nearest_multiple(axis):
    x = np.random.default_rng(0).standard_normal((40, 30)).astype(np.float32)
    multiples, scale = weights.to_int8(x, axis)
    np.testing.assert_allclose(scale, np.abs(x).max(axis) / 127, rtol=1e-6)
    assert np.abs(multiples).max(axis).tolist() == [127] * x.shape[1 - axis]
    assert (np.abs(x - multiples * np.expand_dims(scale, axis)) <= np.expand_dims(scale, axis) * 0.501).all()


@pytest.mark.parametrize("row", [0.0, 1e-45, 1e-37, np.finfo(np.float32).max])
def test_int8_of_extreme_rows(row):
    x = np.full((2, 5), row, np.float32)
    x[1] = [1, -2, 3, -4, 127]
    multiples, scale = weights.to_int8(x, 1)
    assert np.isfinite(scale).all()
    assert multiples[1].tolist() == [1, -2, 3, -4, 127]
    ordinary = row / 127 >= np.finfo(np.float32).tiny
    assert multiples[0].tolist() == [127 if ordinary else 0] * 5


@pytest.mark.parametrize("width", NARROW)
@pytest.mark.parametrize("extreme", [0.0, 1e-41, np.finfo(np.float32).max])
def test_extreme_rows_in_an_engine(extreme, width):
    model, inputs = eval_model("base")
    recipe = ctm_fast.Engine(model, inputs)._recipe
    for name in ("stage0.weight", "query", "w1", "w2"):
        row = (slice(None), 0, 0) if name in weights.MODELS else 0
        recipe.arrays[name][row] = extreme if name == "stage0.weight" else min(extreme, 1e18)
    engine = Engine._from_recipe(recipe.narrowed(width), 1)
    tokens = np.random.default_rng(0).standard_normal((2, 8, recipe.sizes.width), np.float32)
    if extreme < 1:
        assert_exact(engine, (tokens,))
    else:
        assert np.isfinite(weights.widened(engine._recipe.arrays, width)["stage0.weight"]).all()
        engine(tokens)


@pytest.mark.parametrize("width", NARROW)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite(width, bad):
    model, inputs = eval_model("sort")
    recipe = ctm_fast.Engine(model, inputs)._recipe
    recipe.arrays["w2"].flat[0] = bad
    message = f"^Engine: weights must be finite to be {width}, got NaN or infinity in w2$"
    with pytest.raises(ValueError, match=message):
        recipe.narrowed(width)


@pytest.mark.parametrize("width", NARROW)
def test_inputs_that_are_not_finite(width):
    model, inputs = eval_model("sort")
    engine = ctm_fast.Engine(model, inputs, weights=width)
    with pytest.raises(ValueError, match=r"^Engine: inputs must be finite, got NaN or infinity$"):
        engine(np.full((1, inputs[0].shape[1]), np.nan, np.float32), halt=Halt(certainty=1.0))


def test_unknown_widths():
    model, inputs = eval_model("sort")
    message = "weights must be one of float32, bfloat16, int8, got 'int4'$"
    with pytest.raises(ValueError, match=f"^Engine: {message}"):
        ctm_fast.Engine(model, inputs, weights="int4")


@pytest.mark.parametrize("name", ["base-energy", "rl"])
def test_the_difference_is_measured(name):
    model, inputs = eval_model(name)
    assert ctm_fast.Engine(model, inputs).difference is None
    coarse, fine = (
        ctm_fast.Engine(model, inputs, weights=width).difference for width in ("int8", "bfloat16")
    )
    assert 0 < fine.synchronisation < 0.1
    assert 0 < coarse.synchronisation < 0.1
    if name == "rl":
        assert fine == (None, None, fine.synchronisation, 0, 0)
    else:
        exact, narrow = (ctm_fast.Engine(model, inputs, weights=w)(*inputs) for w in ("float32", "int8"))
        assert coarse.predictions == pytest.approx(
            relative(narrow.predictions, exact.predictions.astype(float))
        )
        changed = narrow.predictions.argmax(1) != exact.predictions.argmax(1)
        assert (coarse.argmaxes, coarse.softmaxes) == (changed.sum(), changed.size)


@pytest.fixture
def saved(tmp_path):
    """Writes an engine of this kind and width: (it, its inputs, the file)."""

    def write(name, width):
        model, inputs = eval_model(name)
        engine = ctm_fast.Engine(model, inputs, weights=width)
        engine.save(tmp_path / width)
        return engine, inputs, tmp_path / width

    return write


@pytest.mark.parametrize("width", NARROW)
@pytest.mark.parametrize("name", ["base-energy", "rl"])
def test_files_keep_the_width(name, width, saved):
    engine, _, path = saved(name, width)
    exact, _, plain = saved(name, "float32")
    assert engine._recipe.nbytes < exact._recipe.nbytes
    assert path.stat().st_size < plain.stat().st_size
    arrays = compare.random_inputs(engine._recipe, 0)
    expected = found_by(engine, arrays)
    for loaded in (engines.load(path), engines.load(plain, weights=width), engines.load(path, weights=width)):
        assert loaded.weights == width
        for a, b in zip(found_by(loaded, arrays), expected, strict=True):
            assert np.array_equal(a, b)


def test_narrow_files_have_no_other_width(saved):
    *_, path = saved("sort", "int8")
    for width in ("float32", "bfloat16"):
        message = f"^Engine: weights must be int8, as they are in its file, got '{width}'$"
        with pytest.raises(ValueError, match=message):
            engines.load(path, weights=width)
    with pytest.raises(ValueError, match=r"^load: weights must be one of"):
        engines.load(path, weights="int4")


def test_int8_files_are_safetensors_files(saved):
    safetensors = pytest.importorskip("safetensors.numpy")
    engine, _, path = saved("sort", "int8")
    found = safetensors.load_file(path)
    assert all(np.array_equal(found[name], x) for name, x in engine._recipe.arrays.items())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_damaged_scales_are_refused(bad, saved):
    engine, _, path = saved("sort", "int8")
    engine._recipe.arrays["w1.scale"].flat[0] = bad
    engine.save(path)
    with pytest.raises(ValueError, match=r"got w1.scale that are negative or not finite"):
        engines.load(path)


CHANGES = {
    "width": (lambda _, config: config.update(weights="bfloat16"), "missing or further arrays"),
    "unknown": (lambda _, config: config.update(weights="int4"), "weights of an unknown width"),
    "missing": (lambda _, config: config.pop("weights"), "weights"),
    "scale": (lambda header, _: header.pop("w1.scale"), "arrays that do not fill it"),
    "shape": (lambda header, _: header["w2.scale"].update(shape=[2, 1]), "arrays that do not fill it"),
    "dtype": (lambda header, _: header["w1"].update(dtype="BF16"), "arrays that do not fill it"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_inconsistent_files_are_refused(change, saved):
    *_, path = saved("sort", "int8")
    edit, message = CHANGES[change]
    damaged(path, edit)
    with pytest.raises(ValueError, match=rf"^load: path must be a whole engine's file, got .*{message}"):
        engines.load(path)


@pytest.mark.parametrize("name", ["base-energy", "sort", "qamnist", "rl"])
def test_the_command_compares_on_random_inputs(name, saved, capsys):
    engine, _, path = saved(name, "float32")
    assert compare.main(["compare", str(path)]) == 0
    head, fine, coarse = capsys.readouterr().out.splitlines()
    assert head.startswith("On random inputs of seed 0, relative to float32 with ")
    for width, line in (("bfloat16", fine), ("int8", coarse)):
        assert line.startswith(f"{width}, ")
        assert "synchronisation differ by " in line
        assert ("argmaxes" in line) == (name != "rl")
    assert float(coarse.rsplit("synchronisation differ by ", 1)[1].split(",")[0]) > 0
    assert engine.weights == "float32"


WITHOUT_TORCH = """
import runpy, sys
sys.modules["torch"] = None
runpy.run_module("ctm_fast.engine", run_name="__main__")
"""


def test_the_command_reads_inputs_and_needs_no_torch(saved, tmp_path):
    engine, inputs, path = saved("sort", "float32")
    np.savez(tmp_path / "inputs.npz", inputs[0].numpy())
    command = [sys.executable, "-c", WITHOUT_TORCH, "compare", path, "--weights", "int8"]
    command += ["--inputs", tmp_path / "inputs.npz"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    exact, narrow = engine(*inputs), engines.load(path, weights="int8")(inputs[0].numpy())
    found = compare.difference(exact, narrow, engine._recipe.sizes.group)
    assert run.stdout.splitlines()[1].endswith(compare.sentence(found))


def test_the_command_refuses(saved, tmp_path, capsys):
    *_, path = saved("sort", "int8")
    assert compare.main(["compare", str(path)]) == 2
    assert capsys.readouterr().err == "compare: file must hold float32 weights, got int8\n"
    assert compare.main(["compare", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("load: path must be a file, got")


@pytest.mark.parametrize("name", ["lstm", "adaptive-rnn"])
def test_the_command_refuses_cells(name, tmp_path, capsys):
    engine = ctm_fast.Engine(*build(name))
    engine.save(tmp_path / "engine")
    assert compare.main(["compare", str(tmp_path / "engine")]) == 2
    expected = f"got a cell of kind {engine.kind}, whose weights are float32 only\n"
    assert capsys.readouterr().err == "compare: file must be of a CTM, " + expected


def test_the_command_says_where_memory_ends(saved, capsys, monkeypatch):
    def full(*_):
        raise MemoryError

    *_, path = saved("sort", "float32")
    monkeypatch.setattr(compare, "results", full)
    assert compare.main(["compare", str(path)]) == 2
    assert capsys.readouterr().err.startswith("compare: file must be of an engine that fits into memory")


def refused(path, inputs, capsys):
    """The one sentence with which the command refuses these inputs."""
    assert compare.main(["compare", str(path), "--inputs", str(inputs)]) == 2
    found = capsys.readouterr()
    assert not found.out
    (sentence,) = found.err.splitlines()
    return sentence


@pytest.mark.parametrize("kept", ["nothing", "half", "garbage", "npy", "damaged"])
def test_the_command_refuses_files_of_inputs(kept, saved, tmp_path, capsys):
    _, inputs, path = saved("sort", "float32")
    file = tmp_path / "inputs.npz"
    np.savez_compressed(file, inputs[0].numpy())
    data = file.read_bytes()
    middle = len(data) // 3
    changed = {
        "nothing": b"", "half": data[: len(data) // 2], "garbage": bytes(range(256)),
        "damaged": data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :],
    }  # fmt: skip
    file.write_bytes(changed.get(kept, data))
    if kept == "npy":
        with file.open("wb") as stream:
            np.save(stream, inputs[0].numpy())
    assert refused(path, file, capsys).startswith("compare: inputs must be a whole NPZ file, got '")


@pytest.mark.parametrize("name", ["sort", "rl"])
def test_the_command_refuses_other_inputs(name, saved, tmp_path, capsys):
    _, inputs, path = saved(name, "float32")
    x, file = inputs[0].numpy(), tmp_path / "inputs.npz"
    for arrays in ([], [x, x], [np.float32(1)]):
        np.savez(file, *arrays)
        assert refused(path, file, capsys).startswith("compare: inputs must be arrays of ")


def test_the_command_refuses_indices_outside_their_table(tmp_path, capsys):
    torch.manual_seed(0)
    model, inputs = eval_model("qamnist")
    ctm_fast.Engine(model, inputs).save(tmp_path / "engine")
    arrays = compare.random_inputs(engines.load(tmp_path / "engine")._recipe, 0)
    np.savez(tmp_path / "inputs.npz", arrays[0], np.full_like(arrays[1], 99))
    assert refused(tmp_path / "engine", tmp_path / "inputs.npz", capsys).startswith(
        "Engine: question must hold"
    )
