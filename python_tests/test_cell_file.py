"""Files of engines of recurrent cells: the same bits without torch, and damaged ones refused."""

import subprocess
import sys

import numpy as np
import pytest
from cell_cases import build, same
from engine_cases import assert_flips_are_refused, damaged

import ctm_fast
from ctm_fast import engine as engines

NAMES = [
    "ff-unseen-reads",
    "lstm-layers",
    "split",
    "adaptive-rnn",
    "adaptive-lstm-digits",
    "adaptive-off-rnn",
]


def saved(name, path):
    """An engine that is saved, and an input for it."""
    model, x = build(name)
    engine = ctm_fast.Engine(model, x)
    engine.save(path)
    return engine, x.numpy()


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_engine_gives_the_same_bits(name, tmp_path):
    engine, x = saved(name, tmp_path / "engine")
    loaded = engines.load(tmp_path / "engine")
    assert loaded.kind == engine.kind
    for inputs in x:
        assert same(engine.step(inputs), loaded.step(inputs))
    assert same(engine(x), loaded(x))


WITHOUT_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ImportError("no torch here")

sys.meta_path.insert(0, Refuse())
import numpy as np
import ctm_fast.engine

for name in ("ntm", "adaptive"):
    engine = ctm_fast.engine.load(f"{sys.argv[1]}/{name}")
    arrays = np.load(f"{sys.argv[1]}/{name}.npz")
    np.testing.assert_array_equal(engine(arrays["x"]).output, arrays["output"])
assert "torch" not in sys.modules
"""


def test_load_and_run_without_torch(tmp_path):
    for name, case in {"ntm": "lstm", "adaptive": "adaptive-lstm"}.items():
        engine, x = saved(case, tmp_path / name)
        np.savez(tmp_path / f"{name}.npz", x=x, output=engine(x).output)
    command = [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("kept", [0, 5, 200, 0.5, -1])
def test_truncated_files_are_refused(kept, tmp_path):
    path = tmp_path / "engine"
    saved("lstm", path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept) if isinstance(kept, float) else kept])
    with pytest.raises(ValueError, match=r"^load: path must be (an|a whole) engine's file, got"):
        engines.load(path)


@pytest.mark.parametrize("name", ["lstm", "adaptive-rnn"])
def test_every_flipped_byte_is_refused(name, tmp_path):
    saved(name, tmp_path / "engine")
    assert_flips_are_refused(tmp_path / "engine")


def sizes(**changes):
    """A damage of sizes in the config."""
    return lambda _, config: config["sizes"].update(changes)


CHANGES = {
    "ntm": {
        "width": sizes(width=22),
        "negative": sizes(batch=-1),
        "huge": sizes(slots=1 << 60),
        "batch-beyond-memory": sizes(batch=1 << 61),
        "states": sizes(states=3),
        "no-layers": sizes(layers=0),
        "shift-even": sizes(shift=2),
        "shift-wide": sizes(shift=21),
        "order": sizes(order=3),
        "cosine": sizes(cosine=6),
        "split": sizes(split=1),
        "fed-back": sizes(fed_back=2),
        "most": sizes(most=4),
        "text": sizes(width="wide"),
        "further-size": sizes(colours=3),
        "kind": lambda _, config: config.update(kind="adaptive"),
        "ctm": lambda _, config: config.update(kind="base"),
        "clip": lambda _, config: config["numbers"].update(clip=-1),
        "layers-without-end": sizes(layers=(1 << 31) - 1),
        "size-of-a-float": sizes(width=21.0),
        "size-of-a-bool": sizes(shared=True),
        "size-without-end": sizes(batch=float("inf")),
        "size-of-33-bits": sizes(batch=1 << 31),
        "eps-negative": lambda _, config: config["numbers"].update(eps=-1e-6),
        "eps-nan": lambda _, config: config["numbers"].update(eps=float("nan")),
        "eps-huge": lambda _, config: config["numbers"].update(eps=1e300),
        "eps-of-text": lambda _, config: config["numbers"].update(eps="1e-6"),
        "adaptive": lambda _, config: config.update(adaptive=0),
        "eps": lambda _, config: config["numbers"].update(eps=None),
        "number-missing": lambda _, config: config.pop("numbers"),
        "array-missing": lambda header, _: header.pop("layer0.bias"),
        "array-dtype": lambda header, _: header["layer0.bias"].update(dtype="I32"),
    },
    "adaptive": {
        "states": sizes(states=0),
        "layers": sizes(layers=2),
        "slots": sizes(slots=4),
        "most": sizes(most=0),
        "most-ticks": sizes(most=1 << 31),
        "digits": sizes(classes=3),
        "threshold": lambda _, config: config["numbers"].update(threshold=1.5),
        "kind": lambda _, config: config.update(kind="ntm"),
    },
}


@pytest.mark.parametrize(
    ("kind", "change"), [(kind, name) for kind, all_ in CHANGES.items() for name in all_]
)
def test_inconsistent_files_are_refused(kind, change, tmp_path):
    path = tmp_path / "engine"
    saved({"ntm": "lstm", "adaptive": "adaptive-rnn"}[kind], path)
    damaged(path, CHANGES[kind][change])
    with pytest.raises(ValueError, match=r"^load: path must be a whole engine's file, got "):
        engines.load(path)
