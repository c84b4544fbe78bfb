"""Halting on stored results: exactly the engine's rule; thresholds and curves against an exhaustive search."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from engine_cases import eval_model

import ctm_fast
from ctm_fast import halting
from ctm_fast.engine import Halt, Reason

TICKS = 12
F = np.float32


@np.errstate(over="ignore", invalid="ignore")
def naive(halt, certainties, energies):
    """The published rule as a double loop, with streaks."""
    tiny = np.finfo(F).tiny

    def flushed(x):
        return F(0) if abs(x) < tiny else F(x)

    ticks, reasons = [], []
    for b in range(len(certainties)):
        used, why, streak = certainties.shape[2], Reason.LAST_TICK, [0, 0, 0]
        for t in range(certainties.shape[2]):
            energy = flushed(energies[b, 0, t])
            holds = [
                halt.certainty is not None and flushed(certainties[b, 1, t]) >= flushed(F(halt.certainty)),
                halt.energy is not None and energy < flushed(F(halt.energy)),
                halt.delta is not None
                and t > 0
                and flushed(abs(energy - flushed(energies[b, 0, t - 1]))) < flushed(F(halt.delta)),
            ]
            streak = [n + 1 if held else 0 for n, held in zip(streak, holds, strict=True)]
            met = [i for i, n in enumerate(streak) if n >= halt.patience and t + 1 >= halt.min_ticks]
            if met:
                used, why = t + 1, Reason(1 + met[0])
                break
        ticks.append(used)
        reasons.append(why)
    return np.array(ticks), np.array(reasons)


def stored(seed, samples=40, classes=4, shape=()):
    """Random predictions that get better with certainties and energies, with ties, NaN and infinities; and labels."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, (samples, *shape))
    groups = labels.reshape(samples, -1).shape[1]
    logits = draw.normal(size=(samples, groups, classes, TICKS))
    growth = np.linspace(0, 3, TICKS) * draw.random((samples, groups, 1))
    np.put_along_axis(
        logits, labels.reshape(samples, groups, 1, 1),
        np.take_along_axis(logits, labels.reshape(samples, groups, 1, 1), 2) + growth[:, :, None], 2,
    )  # fmt: skip
    certainty = np.clip(np.round(draw.random((samples, TICKS)) * np.linspace(0.2, 1.1, TICKS), 2), -0.1, 1.2)
    energy = np.round(draw.normal(size=(samples, TICKS)).cumsum(1) / 4, 1)
    energy[draw.random(energy.shape) < 0.02] = np.nan
    energy[draw.random(energy.shape) < 0.02] = np.inf
    certainties = np.stack((1 - certainty, certainty), 1).astype(F)
    return logits.reshape(samples, -1, TICKS).astype(F), certainties, energy[:, None].astype(F), labels


def random_halt(draw):
    """Any mix of rules, with thresholds that are met now and then."""
    while True:
        values = {
            "certainty": round(draw.random(), 2),
            "energy": round(draw.normal(), 1),
            "delta": 0.1 * draw.random(),
        }
        given = {name: float(x) for name, x in values.items() if draw.random() < 0.6}
        if given:
            return Halt(**given, min_ticks=int(draw.integers(1, 15)), patience=int(draw.integers(1, 5)))


@pytest.mark.parametrize("seed", range(5))
def test_stored_results_halt_by_the_published_rule(seed):
    _, certainties, energies, _ = stored(seed)
    draw = np.random.default_rng(seed)
    halts = [random_halt(draw) for _ in range(40)]
    special = [0.0, 1e-40, -1e-40, np.inf, -np.inf, 1e300, float(np.finfo(F).tiny)]
    halts += [Halt(energy=x) for x in special] + [Halt(delta=x) for x in special if x > 0]
    energies[:10] = np.random.default_rng(seed).choice([0, 1e-40, 2e-38, -1e-40, -2e-38], (10, 1, TICKS))
    for halt in halts:
        found, (ticks, reasons) = (
            halting.halted(halt, certainties, energies),
            naive(halt, certainties, energies),
        )
        np.testing.assert_array_equal(found.ticks, ticks)
        np.testing.assert_array_equal(found.reason, reasons)
        assert found.ticks.dtype == found.reason.dtype == np.int32


@pytest.mark.parametrize("scale", [1.0, 1e-38], ids=["usual", "denormal"])
def test_stored_results_halt_as_the_engine(scale):
    model, inputs = eval_model("base-energy", batch=9, iterations=TICKS)
    with torch.no_grad():
        model.output_projector[0].weight.mul_(6)
        for parameter in model.energy_head[2].parameters():
            parameter.mul_(3 * scale)
    engine = ctm_fast.Engine(model, inputs)
    full = engine(*inputs)
    draw = np.random.default_rng(0)
    for _ in range(60):
        halt = random_halt(draw)
        energy = None if halt.energy is None else halt.energy * scale
        delta = None if halt.delta is None else halt.delta * scale
        halt = Halt(halt.certainty, energy, delta, halt.min_ticks, halt.patience)
        found, truth = halting.halted(halt, full.certainties, full.energies), engine(*inputs, halt=halt)
        np.testing.assert_array_equal(found.ticks, truth.ticks)
        np.testing.assert_array_equal(found.reason, truth.reason)


def above_or_tiny(x):
    """The next larger numbers that the engine does not take for zero."""
    above = np.nextafter(x, F(np.inf))
    return np.where((x >= 0) & (above < np.finfo(F).tiny), np.finfo(F).tiny, above)


def exhaustive(data, rules, min_ticks=1, patience=1):
    """(ticks, accuracy) of every threshold of every single rule, and of the last tick for all."""
    energy, certainty = data.energies[:, 0], data.certainties[:, 1]
    with np.errstate(invalid="ignore"):
        deltas = np.abs(np.diff(energy))
    values = {
        "certainty": np.concatenate((certainty[(certainty >= 0) & (certainty <= 1)], [1.0])),
        "energy": above_or_tiny(energy[np.isfinite(energy)]),
        "delta": above_or_tiny(deltas[np.isfinite(deltas)]),
    }
    found = [(float(TICKS), float(data.accuracy[-1]))]
    for rule in rules:
        for x in np.unique(values[rule]):
            one = halting.evaluate(Halt(**{rule: float(x)}, min_ticks=min_ticks, patience=patience), data)
            found.append((one.mean_ticks, one.accuracy))
    return found


@pytest.mark.parametrize(("shape", "count"), [((), None), ((3,), "samples"), ((3,), "elements")])
@pytest.mark.parametrize("rule", ["certainty", "energy", "delta"])
@pytest.mark.parametrize(("min_ticks", "patience"), [(1, 1), (3, 2)])
def test_a_single_threshold_is_the_best_of_all(rule, shape, count, min_ticks, patience):
    logits, certainties, energies, labels = stored(7, shape=shape)
    data = halting.HeldOut.of(logits, certainties, labels, energies, count=count)
    every = exhaustive(data, [rule], min_ticks, patience)
    options = {"rules": [rule], "min_ticks": min_ticks, "patience": patience}
    best = max(accuracy for _, accuracy in every)
    for wanted in np.linspace(data.accuracy[0], best, 7):
        found = halting.evaluate(halting.calibrate(data, float(wanted), **options), data)
        assert found.accuracy >= wanted
        assert found.mean_ticks == min(ticks for ticks, accuracy in every if accuracy >= wanted)
    curve = halting.pareto(data, **options)
    undominated = {
        (t, a) for t, a in every if not any(u <= t and b >= a and (u, b) != (t, a) for u, b in every)
    }
    assert {(p.ticks, p.accuracy) for p in curve} == undominated


def test_mixes_are_no_worse_than_their_rules_and_hold_what_they_promise():
    logits, certainties, energies, labels = stored(3, samples=80)
    data = halting.HeldOut.of(logits, certainties, labels, energies)
    options = {"min_ticks": (1, 4), "patience": (1, 2)}
    curve = halting.pareto(data, **options)
    for point in curve:
        found = halting.evaluate(point.halt, data)
        assert (point.accuracy, point.ticks) == pytest.approx((found.accuracy, found.mean_ticks), abs=1e-12)
        assert point.milliseconds is None
    for a, b in itertools.pairwise(curve):
        assert a.ticks < b.ticks and a.accuracy < b.accuracy
    for rule in ("certainty", "energy", "delta"):
        for ticks, accuracy in exhaustive(data, [rule]):
            assert any(p.ticks <= ticks and p.accuracy >= accuracy for p in curve)
    mixed = [p.halt for p in curve if [p.halt.certainty, p.halt.energy, p.halt.delta].count(None) < 2]
    assert mixed


def test_within_of_the_last_tick():
    logits, certainties, energies, labels = stored(5, samples=100)
    data = halting.HeldOut.of(logits, certainties, labels, energies)
    full = float(data.accuracy[-1])
    found = [halting.evaluate(halting.calibrate(data, within=x), data) for x in (0.0, 0.05, 0.2, 1.0)]
    assert all(
        x.accuracy >= full - limit - 1e-12 for x, limit in zip(found, (0.0, 0.05, 0.2, 1.0), strict=True)
    )
    ticks = [x.mean_ticks for x in found]
    assert ticks == sorted(ticks, reverse=True) and ticks[-1] == 1


def test_where_only_the_last_tick_is_right_nothing_stops_early():
    certainties = np.ones((5, 2, TICKS), F)
    logits = np.zeros((5, 2, TICKS), F)
    logits[:, 1, -1] = 1
    data = halting.HeldOut.of(logits, certainties, np.ones(5, int))
    for halt in (halting.calibrate(data, 1.0), halting.calibrate(data, within=0.0)):
        assert (halting.halted(halt, certainties).ticks == TICKS).all()
    impossible = halting.HeldOut.of(logits, certainties, [1, 1, 1, 1, 0])
    with pytest.raises(ValueError, match=r"^calibrate: accuracy must be at most 0.8000 here, got 0.9$"):
        halting.calibrate(impossible, 0.9)


def test_evaluation():
    certainties = np.zeros((4, 2, 3), F)
    certainties[[0, 1], 1, [0, 1]] = 1
    logits = np.zeros((4, 2, 3), F)
    logits[:3, 1, :2] = 1
    data = halting.HeldOut.of(torch.tensor(logits), torch.tensor(certainties), torch.tensor([1, 1, 1, 0]))
    found = halting.evaluate(Halt(certainty=0.5), data)
    assert (found.accuracy, found.full_accuracy, found.mean_ticks, found.never) == (0.75, 0.25, 2.25, 0.5)
    assert found.percentiles == {50: 2.5, 90: 3.0, 99: 3.0}
    assert found.reasons == {
        Reason.LAST_TICK: 0.5,
        Reason.CERTAINTY: 0.5,
        Reason.ENERGY: 0,
        Reason.CONVERGENCE: 0,
    }


def test_an_engine_is_calibrated_and_timed():
    model, (x,) = eval_model("base-energy", batch=4, iterations=TICKS)
    engine = ctm_fast.Engine(model, x)
    inputs = torch.randn(10, *x.shape[1:])
    labels = np.random.default_rng(0).integers(0, 3, (10, 2))
    whole = [engine(part) for part in (inputs[:4], inputs[4:8], inputs[8:])]
    data = halting.HeldOut.of_engine(engine, inputs, labels, count="elements")
    np.testing.assert_array_equal(data.energies, np.concatenate([part.energies for part in whole]))
    groups = np.concatenate([part.predictions for part in whole]).reshape(10, 2, 3, TICKS)
    np.testing.assert_array_equal(data.right, (groups.argmax(2) == labels[:, :, None]).sum(1))
    curve = halting.pareto(data, engine, inputs, batch=1, points=3)
    assert 1 <= len(curve) <= 3
    for a, b in itertools.pairwise(curve):
        assert a.milliseconds <= b.milliseconds and a.accuracy < b.accuracy
    assert all(p.milliseconds > 0 for p in curve)


@pytest.mark.parametrize("milliseconds", [(None, None), (0.5, 2.0)])
def test_the_curve_as_a_picture(milliseconds):
    points = [halting.Point(Halt(certainty=0.5), 0.7, 3.0), halting.Point(Halt(certainty=0.9), 0.9, 8.0)]
    points = [p._replace(milliseconds=x) for p, x in zip(points, milliseconds, strict=True)]
    (axes,) = halting.draw(points).axes
    costs, accuracies = axes.lines[0].get_data()
    assert list(accuracies) == [0.7, 0.9]
    assert list(costs) == [3.0, 8.0] if milliseconds[0] is None else list(milliseconds)
    assert ("milliseconds" in axes.get_xlabel()) == (milliseconds[0] is not None)
    with pytest.raises(ValueError, match=r"^draw: points must hold at least one, got none$"):
        halting.draw([])


LOGITS, CERTAINTIES = np.zeros((3, 6, 5), F), np.zeros((3, 2, 5), F)
LABELS = np.zeros(3, int)


@pytest.mark.parametrize(
    ("error", "arguments", "message"),
    [
        (
            ValueError,
            (LOGITS[0], CERTAINTIES, LABELS),
            r"predictions must have shape \(B, C, T\), got \(6, 5\)",
        ),
        (
            ValueError,
            (LOGITS, CERTAINTIES[:, :1], LABELS),
            r"certainties must have shape \(3, 2, 5\), got \(3, 1, 5\)",
        ),
        (
            ValueError,
            (LOGITS, CERTAINTIES, LABELS, CERTAINTIES),
            r"energies must have shape \(3, 1, 5\), got .*",
        ),
        (TypeError, (LOGITS, CERTAINTIES, LABELS * 1.0), "labels must be integers, got float64"),
        (
            ValueError,
            (LOGITS, CERTAINTIES, LABELS[:2]),
            r"labels must have shape \(3,\) or \(3, G\), got \(2,\)",
        ),
        (
            ValueError,
            (LOGITS, CERTAINTIES, np.zeros((3, 4), int)),
            "labels must have a divisor of 6 .*, got 4",
        ),
        (ValueError, (LOGITS, CERTAINTIES, LABELS + 6), r"labels must be in \[0, 6\), got 6"),
        (
            ValueError,
            (LOGITS, CERTAINTIES, np.zeros((3, 2), int)),
            'count must be "samples" or "elements", got None',
        ),
        (ValueError, (LOGITS * np.nan, CERTAINTIES, LABELS), "predictions must be numbers, got NaN"),
    ],
)
def test_held_out_results_that_do_not_fit(error, arguments, message):
    with pytest.raises(error, match=f"^HeldOut: {message}$"):
        halting.HeldOut.of(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "one of accuracy and within must be given, got both or none"),
        ({"accuracy": 0.5, "within": 0.1}, "one of accuracy and within must be given, got both or none"),
        ({"accuracy": 1.5}, r"accuracy must be in \[0, 1\], got 1.5"),
        ({"within": -0.1}, "within must be at least 0, got -0.1"),
        ({"within": 0.1, "rules": ["energy"]}, r"rules must be some of certainty, got \['energy'\]"),
        ({"within": 0.1, "rules": []}, "rules must be some of certainty, got none"),
        ({"within": 0.1, "patience": 0}, "patience must be at least 1, got 0"),
        ({"within": 0.1, "min_ticks": (2, 0)}, r"min_ticks must be at least 1, got \(2, 0\)"),
    ],
)
def test_wishes_that_make_no_sense(arguments, message):
    data = halting.HeldOut.of(LOGITS, CERTAINTIES, LABELS)
    with pytest.raises(ValueError, match=f"^calibrate: {message}$"):
        halting.calibrate(data, **arguments)


def test_other_arguments_that_are_refused():
    data = halting.HeldOut.of(LOGITS, CERTAINTIES, LABELS)
    with pytest.raises(ValueError, match=r"^pareto: points must be at least 2, got 1$"):
        halting.pareto(data, points=1)
    with pytest.raises(
        ValueError, match=r"^pareto: engine and inputs must be given together, got one of them$"
    ):
        halting.pareto(data, inputs=LOGITS)
    with pytest.raises(TypeError, match=r"^halted: halt must be a Halt, got float$"):
        halting.halted(0.5, CERTAINTIES)
    with pytest.raises(ValueError, match=r"^halted: energies must be given for a rule of delta, got none$"):
        halting.halted(Halt(delta=0.5), CERTAINTIES)
    model, inputs = eval_model("rl")
    with pytest.raises(ValueError, match=r"^HeldOut: engine must make predictions, got one of kind rl$"):
        halting.HeldOut.of_engine(ctm_fast.Engine(model, inputs), inputs, LABELS)
    with pytest.raises(TypeError, match=r"^HeldOut: engine must be an Engine, got str$"):
        halting.HeldOut.of_engine("engine", inputs, LABELS)
    model, inputs = eval_model("sort")
    engine = ctm_fast.Engine(model, inputs)
    with pytest.raises(ValueError, match=r"^HeldOut: inputs must hold at least one sample, got none$"):
        halting.HeldOut.of_engine(engine, inputs[0][:0], LABELS)
    with pytest.raises(ValueError, match=r"^pareto: batch must be at least 1, got 0$"):
        halting.pareto(data, engine, inputs, batch=0)


@pytest.mark.parametrize("name", ["min_ticks", "patience"])
def test_numbers_of_ticks(name):
    data = halting.HeldOut.of(LOGITS, CERTAINTIES, LABELS)
    expected = halting.calibrate(data, within=0.1, **{name: 2})
    assert halting.calibrate(data, within=0.1, **{name: np.int64(2)}) == expected
    assert halting.calibrate(data, within=0.1, **{name: np.array([2])}) == expected
    with pytest.raises(TypeError, match=f"^calibrate: {name} must be an integer or several, got 1.5$"):
        halting.calibrate(data, within=0.1, **{name: 1.5})
    with pytest.raises(TypeError, match=r"^calibrate: rules must be a sequence of names, got 'energy'$"):
        halting.calibrate(data, within=0.1, rules="energy")


def test_no_torch_is_imported():
    program = "import sys, ctm_fast; ctm_fast.halting.calibrate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
