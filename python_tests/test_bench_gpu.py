"""The GPU benchmark on the CPU: its arithmetic by a given clock, its rows, the processes that compile."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from fake_gpu import EFFORT, SIZE, TARGETS, fake_gpu, little_work, model_row, options, tick_row, tiny_rows
from test_bench_rows import CONFIGS

import ctm_fast
from bench import __main__ as command
from bench import gpu, gpu_compiled, gpu_render, gpu_row, gpu_run, models, nlm, results, table
from bench.row import COMPILED, OWN, REFERENCE, STRONG, Row, inferred
from ctm_fast import cuda_graphs


@pytest.fixture(autouse=True)
def _little_work(monkeypatch):
    little_work(monkeypatch)


@pytest.fixture
def tiny(monkeypatch):
    return tiny_rows(monkeypatch)


def test_events_and_wall_clock_per_call():
    assert fake_gpu().seconds(lambda: None, 4) == (0.25, 0.5)
    calls = []
    assert fake_gpu().sampler(cold=True)(lambda: calls.append(0), 8) == gpu.Sample(1 / 8, 1.0, 0.25)
    assert len(calls) == 8 + gpu.COLD_CALLS
    assert fake_gpu().sampler(cold=False)(lambda: None, 2).cold is None


def test_memory():
    device = fake_gpu()
    device.cuda.allocated = 100
    assert device.live_bytes(lambda: device.cuda.allocate(7)) == 7

    def call():
        device.cuda.allocate(50)
        device.cuda.allocate(-40)

    assert device.peak_bytes(call) == 50
    assert device.reserved_bytes(call) == 10


def test_rates(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(gpu, "GEMM_SIZE", 8)
    monkeypatch.setattr(gpu, "COPY_BYTES", 32)
    assert fake_gpu().rates() == {"sgemm": 2 * 8**3, "copy": 64}


def test_ops_are_measured_hot_and_cold():
    found = gpu_row.measure(tick_row(graphs=True), 0, EFFORT, fake_gpu())
    providers = {REFERENCE, STRONG, OWN, gpu_row.NATIVE, *gpu_row.GRAPHS}
    assert (
        set(found["seconds"]) == set(found["cold"]["seconds"]) == set(found["wall"]["seconds"]) == providers
    )
    assert found["seconds"][OWN] == 0.25  # a call of four ticks is a second
    assert found["wall"]["seconds"][OWN] == 0.5
    assert found["own"] == OWN
    assert found["ratios"][REFERENCE]["median"] == 1.0
    assert found["floor"]["of"] == "copy"
    assert found["floor"]["by"] == OWN
    assert found["errors"][gpu_row.NATIVE] < 1e-4
    assert found["floor"]["seconds"] == pytest.approx(4 * nlm.tick_bytes(SIZE) / 1e9)


@pytest.mark.parametrize("config", CONFIGS[:3], ids=lambda config: config.title)
def test_training_of_models(config):
    found = gpu_row.measure(model_row(True, config), 0, EFFORT, fake_gpu())
    assert set(found["seconds"]) == set(found["peak"]) == set(found["kept"]) == {REFERENCE, STRONG, OWN}
    assert found["cold"] is None
    assert found["floor"]["of"] == "sgemm"
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("config", CONFIGS[:3], ids=lambda config: config.title)
@pytest.mark.parametrize("training", [True, False], ids=["train", "infer"])
def test_a_captured_model_stands_for_the_package(training, config, monkeypatch):
    captured = []
    monkeypatch.setattr(
        ctm_fast, "capture", lambda model, *inputs: captured.append(model) or model, raising=False
    )
    device = fake_gpu()
    monkeypatch.setattr(device.cuda, "memory_reserved", itertools.count(0, 3_000_000).__next__)
    found = gpu_row.measure(model_row(training, config, graphs=not training), 0, EFFORT, device)
    assert found["own"] == gpu_row.CAPTURED
    assert found["errors"][gpu_row.CAPTURED] < 1e-4
    assert len({id(model) for model in captured}) == 2
    graphs = set() if training else {gpu_row.GRAPH_REFERENCE, gpu_row.GRAPH_OWN}
    assert set(found["ratios"]) == {REFERENCE, STRONG, OWN, *graphs}
    assert " captured" in gpu_render.line(found)
    assert found["reserved"] == {gpu_row.CAPTURED: 3_000_000}
    assert " 3 MB, " in gpu_render.line(found)


def refuse(_):
    raise RuntimeError("operation not permitted when stream is capturing\nmore")


def test_what_cannot_be_captured_says_why(monkeypatch):
    monkeypatch.setattr(cuda_graphs, "recorder", lambda device: refuse)
    found = gpu_row.measure(model_row(False, graphs=True), 0, EFFORT, fake_gpu())
    why = "not captured: operation not permitted when stream is capturing"
    assert found["failed"] == {gpu_row.GRAPH_REFERENCE: why, gpu_row.GRAPH_OWN: why}
    assert found["own"] == OWN


def wrong_native(case):
    """The case with a backend "native" that runs and gives other results."""
    case.native = lambda: inferred(lambda: [2 * x for x in case.providers[OWN].run()])
    return case


def test_a_wrong_form_costs_neither_the_row_nor_the_others(tmp_path, capsys):
    row = Row("nlm-tick", "tiny", ("nlm",), lambda: wrong_native(nlm.tick_case(SIZE)), TARGETS, graphs=True)
    path = tmp_path / "gpu.json"
    assert gpu_run.run([row], options(out=path), fake_gpu()) == 1
    (found,) = results.read(path)["rows"]
    assert found["failed"][gpu_row.NATIVE].startswith("wrong: native differs from the reference by 1.0e+00")
    assert {REFERENCE, STRONG, OWN, gpu_row.GRAPH_OWN} == set(found["seconds"]) - {gpu_row.GRAPH_REFERENCE}
    assert "failed: nlm-tick/tiny: wrong: native differs" in capsys.readouterr().out


def test_the_native_kernels_are_refused_with_the_reason(monkeypatch):
    case = nlm.tick_case(SIZE)

    def refuses():
        raise RuntimeError("nlm_pack: ctm_fast was built without CUDA")

    case.native = refuses
    row = Row("nlm-tick", "tiny", (), lambda: case, TARGETS, graphs=True)
    found = gpu_row.measure(row, 0, EFFORT, fake_gpu())
    why = "refused: nlm_pack: ctm_fast was built without CUDA"
    assert found["failed"] == {gpu_row.NATIVE: why, gpu_row.GRAPH_NATIVE: "not captured: native cannot run"}
    assert why in gpu_render.line(found)


def test_the_share_of_the_floor_names_the_fastest_form():
    found = gpu_row.measure(tick_row(graphs=True), 0, EFFORT, fake_gpu())
    found["floor"] |= {"by": gpu_row.GRAPH_NATIVE, "share": 0.55}
    found["seconds"][gpu_row.GRAPH_NATIVE] = 8e-6
    assert "50% of floor met (graph of native 8 us)" in gpu_render.targets(found)
    cells = dict(zip(gpu_render.COLUMNS, gpu_render.cells(found), strict=True))
    assert cells["share of floor"] == "55% of copy, graph of native 8 us"
    assert cells["native"] == "250 ms, graph 8 us"
    assert cells["graph of ctm_fast"] == "250 ms"


def test_a_row_beyond_the_memory_is_refused(monkeypatch):
    monkeypatch.setattr(gpu.Gpu, "memory_limit", lambda self: 1.0)
    found = gpu_row.measure(model_row(True), 0, EFFORT, fake_gpu())
    assert found["refused"].startswith("the reference would keep")
    assert "refused" in gpu_render.line(found)


@pytest.mark.parametrize(
    "row", [tick_row(), model_row(True), model_row(True, CONFIGS[1]), model_row(False, CONFIGS[2])]
)
def test_nothing_is_made_on_another_device(row, monkeypatch):
    """On a GPU every tensor that a baseline makes must name its device; the default one must not show."""
    monkeypatch.setattr(torch, "compile", lambda function, mode=None: function)
    case = gpu_row.build(row, 0, fake_gpu())
    baselines = {
        REFERENCE: case.providers[REFERENCE],
        STRONG: case.providers[STRONG],
        COMPILED: case.compiled(),
    }
    for name, provider in baselines.items():
        with torch.device("meta"):
            found = provider.check()
            provider.run()
        assert {x.device.type for x in found} == {"cpu"}, name


@pytest.mark.parametrize("config", CONFIGS[:3], ids=lambda config: config.title)
def test_losses_stay_on_the_device_of_the_outputs(config):
    problem = models.Problem(config, 2, training=True)
    with torch.device("meta"):
        loss = problem.loss(problem.model, models._published(problem.model, *problem.inputs))
    assert loss.device.type == "cpu"


def test_rows_of_a_gpu_are_the_wanted_ones():
    names = [row.name for row in table.gpu_rows()]
    assert len(set(names)) == len(names)
    assert names[:2] == ["train/parity 75/25 B64", "train/cifar10 B512"]
    assert {row.name for row in table.find_rows(["mazes"], device="cuda")} == {
        f"{kind}/mazes published B{batch}" for kind, batch in (("train", 64), ("infer", 1), ("infer", 64))
    }
    assert all(row.targets.reference for row in table.gpu_rows() if row.kind == "train")


def test_a_run_writes_and_prints(tiny, tmp_path, capsys):
    path = tmp_path / "gpu.json"
    assert gpu_run.run(tiny, options(out=path), fake_gpu()) == 0
    found = results.read(path)
    assert found["machine"]["label"] == "fake-h1"
    assert [row["name"] for row in found["rows"]] == ["nlm-tick/tiny", "infer/tiny"]
    printed = capsys.readouterr().out
    assert "Fake H1 (7 multiprocessors, 100.0 GB)" in printed
    assert "2x reference MISSED" in printed
    text = gpu_render.markdown(found)
    assert text.count("| nlm-tick/tiny |") == 1
    assert "1.5x compiled not measured" in text


def test_the_budget_leaves_rows_out(tiny, tmp_path, capsys):
    path = tmp_path / "gpu.json"
    assert gpu_run.run(tiny, options(out=path, budget=0.0), fake_gpu()) == 0
    assert results.read(path)["rows"] == []
    assert "infer/tiny: left out, the budget of 0 s is spent" in capsys.readouterr().out


def break_cuda(device):
    """What an illegal access leaves: every later wait for the device raises."""

    def synchronize():
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    device.cuda.synchronize = device.cuda.empty_cache = synchronize
    synchronize()


def test_after_a_row_that_breaks_cuda_another_process_goes_on(tiny, tmp_path, capsys):
    path, device = tmp_path / "gpu.json", fake_gpu()
    broken = Row("nlm-tick", "broken", (), lambda: break_cuda(device), TARGETS)
    rows = [tiny[0], broken, tiny[1]]
    assert gpu_run.run(rows, options(out=path), device) == gpu_run.BROKEN_STATUS
    first, second = results.read(path)["rows"]
    why = "CUDA cannot be used after it: CUDA error: an illegal memory access was encountered"
    assert second["refused"] == why
    closing = capsys.readouterr().out.splitlines()[-1]
    assert closing == f"another process must go on: --resume --seed 3; nlm-tick/broken: {why}"
    assert gpu_run.run(rows, options(out=path, resume=True), fake_gpu()) == 0
    assert results.read(path)["rows"][:2] == [first, second]
    assert results.read(path)["rows"][2]["name"] == "infer/tiny"


def test_rows_without_targets_have_what_torch_compile_leaves(tiny, tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(gpu_run, "measure", lambda row, *_: order.append(row.name) or {})
    monkeypatch.setattr(gpu_run._Run, "keep", lambda self, result: None)
    monkeypatch.setattr(gpu_run._Run, "compile", lambda self, rows: order.append(len(rows)))
    plain = Row("nlm-train", "tiny", (), tiny[0].build)
    gpu_run.run(
        [plain, tick_row(compiles=True)], options(out=tmp_path / "gpu.json", no_compile=False), fake_gpu()
    )
    assert order == ["nlm-tick/tiny", 1, "nlm-train/tiny"]


@pytest.mark.parametrize(("budget", "kept"), [(360.0, 180.0), (500.0, 190.0), (100.0, 0.0), (None, 0.0)])
def test_time_for_torch_compile(tmp_path, budget, kept):
    """With the time of one half it may compile as long as it may at most; where that is too little, not at all."""
    of = gpu_run._Run(options(out=tmp_path / "gpu.json", budget=budget, no_compile=False), fake_gpu())
    assert of.kept([tick_row(compiles=True)]) == kept
    assert of.kept([tick_row()]) == 0.0
    assert gpu_run.COMPILING_SHARE * 180 == gpu_compiled.LIMIT_SECONDS


def test_targets_that_were_not_measured_are_named():
    row = tick_row(graphs=True)
    found = gpu_row.measure(row, 0, EFFORT, fake_gpu())
    assert gpu_render.unmeasured([found], [row]) == ["nlm-tick/tiny: 1.5x compiled"]
    every = "2x reference, 1.5x compiled, 2x graph, 50% of floor, 1/8 peak"
    assert gpu_render.unmeasured([], [row]) == [f"nlm-tick/tiny: {every}"]
    assert gpu_render.unmeasured([{"name": row.name, "refused": "broken"}], [row]) == [
        f"nlm-tick/tiny: {every}"
    ]
    assert gpu_render.unmeasured([], [Row("nlm-tick", "aimless", (), row.build)]) == []


def test_a_failing_row_does_not_cost_the_others(tiny, tmp_path, capsys, monkeypatch):
    def fail(*_):
        raise TypeError("broken")

    broken = Row("nlm-tick", "broken", (), fail)
    assert gpu_run.run([broken, *tiny], options(out=tmp_path / "gpu.json"), fake_gpu()) == 1
    caught = capsys.readouterr()
    assert "nlm-tick/broken: TypeError: broken; not timed" in caught.out
    assert "nlm-tick/broken ...\r" in caught.out
    assert "Traceback" in caught.err
    assert len(results.read(tmp_path / "gpu.json")["rows"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "tpu"], "--device must be cpu or cuda, got 'tpu'"),
        (["--device", "cuda"], "--device must be cpu here, got cuda, but torch sees no GPU"),
    ],
    ids=["unknown", "no GPU"],
)
def test_devices_that_cannot_be_measured(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        command.main(arguments)
    assert message in capsys.readouterr().err


def test_command_line(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(command, "Gpu", fake_gpu)
    path = tmp_path / "gpu.json"
    assert command.main(["--device", "cuda", "--quick", "nlm", "--out", str(path)]) == 0
    assert [row["name"] for row in results.read(path)["rows"]] == ["nlm-tick/tiny"]
    with pytest.raises(SystemExit, match="2"):
        command.main(["--device", "cuda", "--threads", "1"])
    assert "--threads must be left out with --device cuda" in capsys.readouterr().err
