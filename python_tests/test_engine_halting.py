"""Halting: exactly the rules, restated in NumPy on the results of all ticks, and no tick more is computed."""

import numpy as np
import pytest
import torch
from engine_cases import eval_model

import ctm_fast
from ctm_fast.engine import Halt, Reason

BATCH, TICKS = 9, 24


def energetic(batch=BATCH, **changes):
    """A model whose energies and certainties move from tick to tick, and an input for it."""
    model, inputs = eval_model("base-energy", batch=batch, iterations=TICKS, **changes)
    with torch.no_grad():
        model.output_projector[0].weight.mul_(6)
        model.energy_head[2].weight.mul_(3)
    return model, inputs


def expected(full, halt):
    """(ticks, reasons) that the rules give on the results of all ticks."""
    certainties, energies = full.certainties[:, 1], full.energies[:, 0]
    ticks, reasons = [], []
    for certainty, energy in zip(certainties, energies, strict=True):
        rules = {
            Reason.CERTAINTY: [
                halt.certainty is not None and c >= np.float32(halt.certainty) for c in certainty
            ],
            Reason.ENERGY: [halt.energy is not None and e < np.float32(halt.energy) for e in energy],
            Reason.CONVERGENCE: [
                t > 0 and halt.delta is not None and abs(energy[t] - energy[t - 1]) < np.float32(halt.delta)
                for t in range(TICKS)
            ],
        }
        used, reason = TICKS, Reason.LAST_TICK
        for t in range(max(halt.min_ticks, halt.patience) - 1, TICKS):
            met = [name for name, holds in rules.items() if all(holds[t + 1 - halt.patience : t + 1])]
            if met:
                used, reason = t + 1, met[0]
                break
        ticks.append(used)
        reasons.append(reason)
    return np.array(ticks), np.array(reasons)


def quantiles(full):
    """A threshold of each rule that some samples meet early, others late or never."""
    steps = np.abs(np.diff(full.energies[:, 0], axis=1))
    return {
        "certainty": float(np.quantile(full.certainties[:, 1].max(1), 0.4)),
        "energy": float(np.quantile(full.energies[:, 0].min(1), 0.5)),
        "delta": float(np.quantile(steps[:, :12].min(1), 0.6)),
    }


MIXES = {
    "certainty": ({"certainty"}, {}),
    "energy": ({"energy"}, {}),
    "convergence": ({"delta"}, {}),
    "published": ({"energy", "delta"}, {}),
    "all": ({"certainty", "energy", "delta"}, {}),
    "min-ticks": ({"certainty", "delta"}, {"min_ticks": 7}),
    "patience": ({"certainty", "energy"}, {"patience": 3}),
    "both": ({"energy", "delta"}, {"min_ticks": 5, "patience": 2}),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("mix", MIXES)
def test_halting_is_the_rule_on_all_ticks(mix, threads, simd_level):
    model, inputs = energetic()
    engine = ctm_fast.Engine(model, inputs, threads=threads)
    full = engine(*inputs)
    rules, more = MIXES[mix]
    halt = Halt(**{name: x for name, x in quantiles(full).items() if name in rules}, **more)
    ticks, reasons = expected(full, halt)
    found = engine(*inputs, halt=halt)
    np.testing.assert_array_equal(found.ticks, ticks)
    np.testing.assert_array_equal(found.reason, reasons)
    assert engine.computed == ticks.sum()
    assert len(set(ticks)) > 1, "the thresholds tell no samples apart"
    for name in ("predictions", "certainties", "energies"):
        all_ticks, halted = getattr(full, name), getattr(found, name)
        for b, used in enumerate(ticks):
            np.testing.assert_array_equal(halted[b, :, :used], all_ticks[b, :, :used])
            assert (halted[b, :, used:] == all_ticks[b, :, used - 1 : used]).all()


def test_synchronisation_is_that_of_the_last_tick_used():
    model, inputs = energetic()
    engine = ctm_fast.Engine(model, inputs)
    full = engine(*inputs)
    found = engine(*inputs, halt=Halt(certainty=quantiles(full)["certainty"]))
    for b, used in enumerate(found.ticks):
        model.iterations = int(used)
        short = ctm_fast.Engine(model, inputs)(*inputs)
        np.testing.assert_array_equal(found.synchronisation[b], short.synchronisation[b])


def test_the_published_rule_by_its_name():
    assert Halt.energy_convergence() == Halt(energy=1.0, delta=0.01)
    model, inputs = energetic()
    engine = ctm_fast.Engine(model, inputs)
    energies = engine(*inputs).energies[:, 0]
    limits = {"energy_threshold": float(np.median(energies)), "delta_threshold": 0.02}
    found = engine(*inputs, halt=Halt.energy_convergence(**limits))
    for energy, used in zip(energies, found.ticks, strict=True):
        stops = [
            t
            for t in range(TICKS)
            if energy[t] < np.float32(limits["energy_threshold"])
            or (t >= 1 and abs(energy[t] - energy[t - 1]) < np.float32(limits["delta_threshold"]))
        ]
        assert used == (stops[0] + 1 if stops else TICKS)


def test_digits_that_are_not_seen_any_more_halt_too():
    model, inputs = eval_model("qamnist", batch=6, iterations_for_answering=9)
    engine = ctm_fast.Engine(model, inputs)
    full = engine(*inputs)
    threshold = float(np.quantile(full.certainties[:, 1].max(1), 0.3))
    found = engine(*inputs, halt=Halt(certainty=threshold))
    assert engine.computed == found.ticks.sum() < full.ticks.sum()
    for b, used in enumerate(found.ticks):
        np.testing.assert_array_equal(found.predictions[b, :, :used], full.predictions[b, :, :used])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "one of certainty, energy and delta must be given, got none"),
        ({"certainty": 1.5}, r"certainty must be in \[0, 1\], got 1.5"),
        ({"energy": float("nan")}, "energy must be a number, got nan"),
        ({"delta": 0.0}, "delta must be above 0, got 0.0"),
        ({"certainty": 0.5, "min_ticks": 0}, "min_ticks must be at least 1, got 0"),
        ({"certainty": 0.5, "patience": 0}, "patience must be at least 1, got 0"),
    ],
)
def test_rules_outside_their_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f"^Halt: {message}$"):
        Halt(**arguments)


def test_a_number_is_no_rule():
    model, inputs = eval_model("sort")
    with pytest.raises(TypeError, match=r"^Engine: halt must be a Halt or None, got float$"):
        ctm_fast.Engine(model, inputs)(*inputs, halt=0.5)


def test_energies_need_a_head():
    model, inputs = eval_model("base")
    with pytest.raises(ValueError, match=r"^Engine: halt must have no rule for energies, got one"):
        ctm_fast.Engine(model, inputs)(*inputs, halt=Halt(energy=1.0))
