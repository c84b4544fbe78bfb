"""Recurrent cells and inputs of the engine's tests, and the truth about them in float64."""

import copy

import numpy as np
import torch

from ctm_fast.engine.cell_recipe import flat
from ctm_fast.models import NTM, AdaptiveLSTM, AdaptiveRNN
from ctm_fast.testing import relative_error

INPUTS, OUTPUTS = 6, 5

NTMS = {
    "ff": {"controller": "ff"},
    "ff-unseen-reads": {"controller": "ff", "controller_sees_reads": False},
    "rnn-layers": {"controller": "rnn", "controller_layers": 3},
    "lstm": {},
    "lstm-layers": {"controller_layers": 2, "clip": None, "key": "linear", "add": "sigmoid"},
    "lstm-unseen-reads": {"controller_sees_reads": False, "clip": 0.05},
    "heads": {"read_heads": 3, "write_heads": 2, "shift": 5, "order": "previous_read", "strength": "oneplus"},
    "slots": {"slots": 3, "width": 1, "order": "read_write", "memory_init": "learned", "read_init": "random"},
    "split": {
        "controller": "rnn", "controller_size": None, "split_hidden": True, "order": "read_write", "key": "linear",
        "add": "linear", "shared_weights": True, "eps_placement": "clamp", "memory_init": "zeros",
        "weights_init": "one_hot", "read_init": "random", "read_heads": 2,
    },
    "split-unseen-reads": {"controller_size": None, "split_hidden": True, "controller_sees_reads": False},
}  # fmt: skip
ADAPTIVE = {
    "adaptive-rnn": (AdaptiveRNN, {"halting_bias": -1.0}),
    "adaptive-lstm": (AdaptiveLSTM, {"halting_bias": -1.0}),
    "adaptive-rnn-digits": (AdaptiveRNN, {"digit_classes": 5, "halting_bias": -2.0, "output_size": 20}),
    "adaptive-lstm-digits": (AdaptiveLSTM, {"digit_classes": 2, "epsilon": 0.3, "output_size": 6}),
    "adaptive-limit": (AdaptiveRNN, {"max_steps": 3, "halting_bias": -4.0}),
    "adaptive-one-tick": (AdaptiveLSTM, {"max_steps": 1}),
    "adaptive-off-rnn": (AdaptiveRNN, {"adaptive": False}),
    "adaptive-off-lstm": (AdaptiveLSTM, {"adaptive": False, "digit_classes": 5}),
}
CASES = [*NTMS, *ADAPTIVE]


def build(name, batch=3, steps=4, seed=0, **changes):
    """A model in eval mode, and an input (T, B, I) for it."""
    torch.manual_seed(seed)
    if name in NTMS:
        sizes = {"controller_size": 21, "slots": 19, "width": 4, **NTMS[name], **changes}
        model = NTM(INPUTS, OUTPUTS, **sizes)
    else:
        kind, options = ADAPTIVE[name]
        model = kind(
            **{"input_size": INPUTS, "output_size": OUTPUTS, "hidden_size": 21, **options, **changes}
        )
        with torch.no_grad():
            if model.adaptive:
                model.halting.weight.mul_(8)  # samples differ in their ticks
    return model.eval(), torch.randn(steps, batch, INPUTS)


def truth(model, *inputs):
    """What the model in float64 returns: its output tuple."""
    with torch.no_grad():
        return copy.deepcopy(model).double()(*(x.double() for x in inputs))


def assert_as_exact(engine, model, x):
    """Errors of output and state against float64 within max(1e-5, twice those of the torch model)."""
    exact, found = truth(model, x), engine(x)
    with torch.no_grad():
        plain = model(x)
    ours = [found.output, *found.state]
    for a, b, c in zip(
        flat([exact.output, exact.state]), flat([plain.output, plain.state]), ours, strict=True
    ):
        assert a.shape == c.shape
        error = relative_error(torch.from_numpy(np.ascontiguousarray(c)), a)
        assert error <= max(1e-5, 2 * relative_error(b, a))
    return exact, found


def same(first, second):
    """Whether two nested tuples of arrays are the same bits."""
    pairs = zip(flat(first), flat(second), strict=True)
    return all(a is b is None or np.array_equal(a, b) for a, b in pairs)
