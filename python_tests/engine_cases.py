"""Models and inputs of the engine's tests, and the truth about them in float64."""

import copy
import json

import numpy as np
import pytest
import torch
from foreign_cases import build
from foreign_cases import to as in_dtype

from ctm_fast.engine import load
from ctm_fast.engine.file import sealed
from ctm_fast.testing import relative_error


def eval_model(name, batch=3, seed=0, **changes):
    """A foreign model in eval mode, and inputs for it."""
    model, inputs = build(name, batch=batch, seed=seed, **changes)
    return model.eval(), inputs


def outputs(model, inputs):
    """What the engine returns, of a model: (predictions, certainties, ...) as a list of tensors."""
    with torch.no_grad():
        found = model(*inputs)
    if not isinstance(found[1], tuple):
        return list(found)
    return [found[0], *found[1]]


def engine_outputs(engine, inputs):
    """The same of an engine, as tensors."""
    found = engine(*inputs)
    if found.predictions is None:
        return [
            torch.from_numpy(np.ascontiguousarray(x)) for x in (found.synchronisation, *engine.get_state())
        ]
    last = found.synchronisation if found.energies is None else found.energies
    return [torch.from_numpy(np.ascontiguousarray(x)) for x in (found.predictions, found.certainties, last)]


def assert_as_exact(engine, model, inputs):
    """Errors against float64 within max(1e-5, twice those of the torch model)."""
    truth = outputs(copy.deepcopy(model).double(), in_dtype(inputs, torch.float64))
    plain, found = outputs(model, inputs), engine_outputs(engine, inputs)
    assert [x.shape for x in found] == [x.shape for x in truth]
    for exact, torchs, ours in zip(truth, plain, found, strict=True):
        assert relative_error(ours, exact) <= max(1e-5, 2 * relative_error(torchs, exact))


def damaged(path, change):
    """Rewrites the header of an engine file, checksum included, after ``change(header, config)``."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    config = json.loads(header["__metadata__"]["config"])
    change(header, config)
    header["__metadata__"]["config"] = json.dumps(config)
    text = json.dumps(header).encode()
    head = len(text).to_bytes(8, "little") + text
    path.write_bytes(sealed(head, [np.frombuffer(data[end:], np.uint8)]) + data[end:])


def assert_flips_are_refused(path, count=400):
    """That ``load`` refuses this file with a bit, or all bits, of any byte turned over."""
    whole, draw = path.read_bytes(), np.random.default_rng(0)
    first = 8 + int.from_bytes(whole[:8], "little")
    header, data = draw.integers(0, first, count // 2), draw.integers(first, len(whole), count // 2)
    for at in (*range(64), *header, *data):
        flipped = bytearray(whole)
        flipped[at] ^= draw.choice([1 << draw.integers(8), 255])
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"^load: path must be "):
            load(path)
    path.write_bytes(whole)
    load(path)
