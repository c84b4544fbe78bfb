"""Rows at tiny sizes: every provider runs, agrees and is measured."""

from __future__ import annotations

import pytest
import small_ctm
import torch
from torch.nn.parameter import is_lazy

from bench import dnc, machine, memory_models, memory_ops, models, nlm, ntm, ntm_model, sync, table
from bench.losses import classes, parity
from bench.row import OWN, REFERENCE, STRONG, Row, measure, seed_all
from bench.timing import Effort

EFFORT = Effort(least=2, most=2, seconds=0.0, sample_seconds=0.0)
BASELINES = {REFERENCE, STRONG}


def measured(build):
    return measure(Row("kind", "config", (), build), 0, EFFORT)


@pytest.fixture(autouse=True)
def _little_work(monkeypatch):
    monkeypatch.setattr(machine, "rates", lambda: {"sgemm": 1e9, "copy": 1e9})
    monkeypatch.setattr(nlm, "TICKS", 4)
    monkeypatch.setattr(models, "RL_STEPS", 2)


def test_a_seed_draws_the_same_model():
    """Exported models are built in a process of their own, pairs of neurons and all."""
    made = []
    for _ in range(2):
        seed_all(3)
        made.append(small_ctm.build(neuron_select_type="random").state_dict())
    for name, x in made[0].items():
        assert is_lazy(x) or torch.equal(x, made[1][name])


@pytest.mark.parametrize("case", [nlm.tick_case, nlm.call_case, nlm.op_case, nlm.train_case])
def test_nlm(case):
    result = measured(lambda: case(nlm.Size(D=20, M=4, H=3, B=2)))
    assert set(result["ratios"]) == BASELINES
    assert bool(result["kept"]) == (case is nlm.train_case)


@pytest.mark.parametrize("kind", ["random", "random-pairing"])
def test_sync(kind, monkeypatch):
    monkeypatch.setattr(sync, "D", 16)
    selection = sync.Selection(kind, 4, 10 if kind == "random" else 4)
    result = measured(lambda: sync.case(selection))
    assert result["achieved"]["of"] == "copy"
    assert all(value["live"] > 0 for value in result["kept"].values())


@pytest.mark.parametrize("training", [True, False], ids=["train", "infer"])
@pytest.mark.parametrize("kept", [0, 3], ids=["dense", "sparse"])
def test_dnc(kept, training):
    result = measured(lambda: dnc.case(dnc.Sizes(2, 2, 5, 3, 2, kept), training))
    assert set(result["ratios"]) == BASELINES
    assert bool(result["kept"]) == training


@pytest.mark.parametrize("training", [True, False], ids=["train", "infer"])
@pytest.mark.parametrize("whole", [True, False], ids=["sequence", "step"])
def test_ntm(whole, training, monkeypatch):
    monkeypatch.setattr(ntm, "T", 3)
    result = measured(lambda: ntm.case(2, training, whole))
    assert set(result["ratios"]) == BASELINES
    assert result["achieved"]["of"] == "copy"
    assert bool(result["kept"]) == training


@pytest.mark.parametrize("training", [True, False], ids=["train", "infer"])
def test_ntm_model(training, monkeypatch):
    monkeypatch.setattr(ntm_model, "LENGTH", 2)
    result = measured(lambda: ntm_model.case(2, training))
    assert set(result["ratios"]) == BASELINES
    assert all(error < 1e-4 for error in result["errors"].values())
    assert bool(result["kept"]) == training


@pytest.mark.parametrize("training", [True, False], ids=["train", "infer"])
@pytest.mark.parametrize("op", memory_ops.OPS)
def test_memory_ops(op, training):
    result = measured(lambda: memory_ops.case(memory_ops.OPS[op][0], 2, training))
    assert set(result["ratios"]) == BASELINES
    assert all(error < 1e-4 for error in result["errors"].values())
    assert bool(result["kept"]) == training


@pytest.mark.parametrize("training", [True, False], ids=["train", "infer"])
@pytest.mark.parametrize("model", [memory_models.dnc, memory_models.rtntm_copy])
def test_memory_models(model, training, monkeypatch):
    monkeypatch.setattr(memory_models, "LENGTH", 2)
    result = measured(lambda: memory_models.case(model, 2, training))
    assert set(result["ratios"]) == BASELINES
    assert all(error < 1e-3 for error in result["errors"].values())
    assert bool(result["kept"]) == training


SMALL = {"iterations": 3, "d_model": 16, "memory_length": 4, "memory_hidden_dims": 2}
CONFIGS = [
    models.Config("parity", "parity_ctm_75_25", (), 2, parity, (), {**SMALL, "d_input": 16}),
    models.Config(
        "features", "cifar10_ctm", (), 2, lambda batch: classes(10, batch), (6, 2, 2),
        {**SMALL, "d_input": 16, "n_synch_out": 4, "n_synch_action": 3, "synapse_depth": 2, "dropout": 0.3},
    ),
    models.Config("sort", "sort_ctm", (), 2, models.SORT.loss, (), {**SMALL, "iterations": 40}),
    models.Config("rl", "cartpole_ctm_2", (), 3, models.CARTPOLE.loss, (), {**SMALL, "iterations": 2}),
]  # fmt: skip


@pytest.mark.parametrize("training", [True, False], ids=["train", "infer"])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.title)
def test_models(config, training):
    result = measured(lambda: models.case(config, config.batch, training))
    assert set(result["ratios"]) == BASELINES
    assert all(error < 1e-4 for error in result["errors"].values())
    if training:
        assert result["kept"][OWN]["hooks"] is not None


def test_recomputing_keeps_less():
    config = CONFIGS[1]
    kept = [
        measured(lambda own=own: models.case(config, 64, True, own))["kept"][OWN]["live"]
        for own in (models._own, models._recomputing)
    ]
    assert kept[1] < kept[0]


def test_estimate_from_three_ticks():
    config = models.Config("parity", "parity_ctm_75_25", (), 2, parity, (), {**SMALL, "iterations": 9})
    problem = models.Problem(config, 2, training=True)
    full = models.hook_bytes(lambda: models._published(problem.model, *problem.inputs))
    assert problem.kept_estimate() == pytest.approx(full, rel=0.05)


def test_every_row_has_a_name_of_its_own():
    names = [row.name for row in table.all_rows()]
    assert len(set(names)) == len(names)


PARITY = (("train", 8), ("infer", 1), ("infer", 8), ("engine", 1), ("engine", 16))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sync"], {"sync/P32 T50 B64 D1024", "sync/P528 T50 B64 D1024", "sync/P2048 T50 B64 D1024"}),
        (["parity"], {f"{row}/parity 75/25 B{n}" for row, n in PARITY}),
        (["train/sort B32"], {"train/sort B32"}),
    ],
    ids=["op", "model", "row"],
)
def test_find_rows(words, expected):
    assert {row.name for row in table.find_rows(words)} == expected


def test_find_rows_refuses_an_unknown_word():
    with pytest.raises(ValueError, match=r"bench: name must be a row of --list or one of .*, got 'nml'"):
        table.find_rows(["nml"])


def test_seed_makes_the_inputs():
    inputs = []
    for _ in range(2):
        torch.manual_seed(3)
        inputs.append(nlm.Problem(nlm.Size(4, 3, 2, 2), ticks=1).window)
    assert torch.equal(*inputs)
