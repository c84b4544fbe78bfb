"""The command line, results on disk, the README's table and figure."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch

from bench import __main__ as command
from bench import compiling, machine, nlm, render, report, results, table
from bench.row import Row, Targets
from bench.timing import Effort

MEASURED: dict[str, Any] = {
    "name": "train/toy B2", "kind": "train", "config": "toy B2", "threads": 1, "seed": 1, "commit": "abc",
    "load": 0.5, "when": "2026-01-01T00:00:00+00:00", "errors": {"strong eager": 1e-7, "ctm_fast": 2e-7},
    "targets": {"reference": 10, "strong": 3, "sgemm": 0.5, "kept": 0.05},
    "seconds": {"reference": 1.2, "strong eager": 0.2, "ctm_fast": 0.1},
    "ratios": {
        "reference": {"median": 12.0, "low": 11.0, "high": 13.0, "pairs": 5},
        "strong eager": {"median": 2.0, "low": 1.9, "high": 2.1, "pairs": 5},
    },
    "achieved": {"rate": 4e10, "of": "sgemm", "machine_rate": 1e11, "share": 0.4},
    "kept": {"reference": {"live": 50_000_000, "hooks": 49}, "ctm_fast": {"live": 2_000_000, "hooks": 1}},
    "compile": {"failed": "not compiled in 120 s"},
}  # fmt: skip
REFUSED = {
    **{key: MEASURED[key] for key in ("kind", "config", "threads", "seed", "commit", "load", "targets")},
    "name": "train/big B512", "refused": "the reference would keep 15.3 GB for backward",
}  # fmt: skip
MACHINE = {
    "label": "toy", "cpu": "Toy CPU", "cores": 2, "memory_gb": 8.0, "system": "Linux", "simd": "avx2",
    "versions": {"python": "3.11", "torch": "2.13", "ctm_fast": "0.1"},
}  # fmt: skip


@pytest.fixture
def tiny(monkeypatch):
    """One row that takes no time, and no real measuring of this machine."""
    size = nlm.Size(D=16, M=3, H=2, B=2)
    rows = [Row("nlm-op", "tiny", ("nlm",), lambda: nlm.op_case(size), Targets(reference=1e9), quick=True)]
    monkeypatch.setattr(table, "all_rows", lambda: rows)
    monkeypatch.setattr(command, "QUICK", Effort(least=2, most=2, seconds=0.0, sample_seconds=0.0))
    monkeypatch.setattr(machine, "rates", lambda: {"sgemm": 1e9, "copy": 1e9})


def test_quick_run_writes_and_prints(tiny, tmp_path, capsys):
    path = tmp_path / "new" / "out.json"
    before = torch.get_num_threads()
    assert command.main(["--quick", "nlm", "--out", str(path), "--machine", "here", "--seed", "5"]) == 0
    found = results.read(path)
    (row,) = found["rows"]
    assert (row["name"], row["threads"], row["seed"]) == ("nlm-op/tiny", 1, 5)
    assert found["machine"]["label"] == "here"
    assert torch.get_num_threads() == before
    printed = capsys.readouterr().out
    assert "nlm-op/tiny" in printed
    assert "1e+09x reference MISSED" in printed
    assert [p.name for p in path.parent.iterdir()] == ["out.json"]


def test_a_second_run_replaces_only_its_rows(tiny, tmp_path):
    path = tmp_path / "out.json"
    path.write_text(json.dumps({"machine": MACHINE, "rows": [REFUSED]}))
    for _ in range(2):
        assert command.main(["--quick", "--out", str(path)]) == 0
    assert [row["name"] for row in results.read(path)["rows"]] == ["train/big B512", "nlm-op/tiny"]


def test_disagreement_fails_the_run_and_times_nothing(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ctm_fast.ops.nlm", lambda window, *_: torch.zeros(window.shape[:2]))
    path = tmp_path / "out.json"
    assert command.main(["--quick", "--out", str(path)]) == 1
    assert results.read(path)["rows"] == []
    assert "nlm-op/tiny: ctm_fast differs from the reference by" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nml"], "name must be a row of --list or one of"),
        (["--threads", "0"], "--threads must be between 1 and"),
        (["--threads", "100000"], "--threads must be between 1 and"),
    ],
    ids=["unknown name", "no thread", "too many threads"],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(arguments)
    assert message in capsys.readouterr().err


def test_unwritable_output_shows_before_anything_is_measured(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "measure", lambda *_: pytest.fail("measured"))
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(SystemExit, match="2"):
        command.main(["--quick", "--out", str(blocker / "out.json")])
    assert f"cannot write {blocker / 'out.json'}" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "[]", '{"rows": 1}'], ids=["truncated", "list", "other"])
def test_damaged_results_stay_and_are_named(tiny, tmp_path, capsys, text):
    path = tmp_path / "out.json"
    path.write_text(text)
    with pytest.raises(SystemExit, match="2"):
        command.main(["--quick", "--out", str(path)])
    assert str(path) in capsys.readouterr().err
    assert path.read_text() == text


def test_list(tiny, capsys):
    assert command.main(["--list"]) == 0
    assert capsys.readouterr().out == "nlm-op/tiny\n"


def test_markdown():
    text = render.markdown({"machine": MACHINE, "rows": [MEASURED, REFUSED]})
    assert text.startswith(
        "Toy CPU (2 cores, avx2, 8.0 GB), python 3.11, torch 2.13, ctm_fast 0.1; one thread."
    )
    (measured,) = [line for line in text.splitlines() if "toy" in line]
    assert measured == (
        "| train/toy B2 | 100 ms | 12.0x | 2.0x | not compiled in 120 s | 40 GFLOP/s, 40% of sgemm "
        "| 2 MB, 1/25.0 | 10x reference met, 3x strong MISSED, 50% sgemm MISSED, 1/20 kept met |"
    )
    (refused,) = [line for line in text.splitlines() if "big" in line]
    assert "refused: | the reference would keep 15.3 GB" in refused
    assert refused.count("|") == measured.count("|")
    assert text.endswith("Commit abc; load 0.5 to 0.5.")


def test_markdown_folds_ops_rows_without_a_target_and_further_threads():
    op = {**MEASURED, "name": "nlm-op/toy", "kind": "nlm-op"}
    other = {**MEASURED, "name": "train/other", "targets": dict.fromkeys(MEASURED["targets"])}
    two = {**MEASURED, "threads": 2}
    text = render.markdown({"machine": MACHINE, "rows": [MEASURED, op, other, two]})
    open_part, *folded = text.split("<details><summary>")
    assert [part.partition("<")[0] for part in folded] == [
        "Ops, one thread: 2 targets met, 2 missed",
        "Further rows, one thread",
        "2 threads",
    ]
    assert "train/toy B2" in open_part
    assert "nlm-op/toy" in folded[0]
    assert "train/other" in folded[1]
    assert "train/toy B2" in folded[2]


@pytest.mark.parametrize(
    ("seconds", "expected"), [(2.5, "2.5 s"), (0.0123, "12.3 ms"), (1.5e-5, "15 us")], ids=["s", "ms", "us"]
)
def test_duration(seconds, expected):
    assert render.duration(seconds) == expected


EMPTY = "".join(f"<!-- {name} -->\nold\n<!-- /{name} -->\n" for name in (report.TABLE, report.GPU_TABLE))


def test_report_draws_table_and_figure(tmp_path, capsys, monkeypatch):
    found, readme, figure = tmp_path / "toy.json", tmp_path / "README.md", tmp_path / "figure.png"
    losing = copy.deepcopy(MEASURED)
    losing["name"] = "train/losing B2"
    losing["ratios"]["reference"]["median"] = 0.5
    found.write_text(json.dumps({"machine": MACHINE, "rows": [MEASURED, losing, REFUSED]}))
    readme.write_text(f"before\n{EMPTY}after\n")
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    arguments = ["--readme", str(readme), "--figure", str(figure)]
    for _ in range(2):
        assert report.main(arguments) == 0
        text = readme.read_text()
        assert text.startswith("before\n")
        assert text.endswith("after\n")
        assert "old" not in text
        assert "| train/losing B2 | 100 ms | 0.5x |" in text
        assert report.NO_GPU in text
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "text", ["no markers", "<!-- /bench:table --><!-- bench:table -->"], ids=["none", "wrong order"]
)
def test_report_needs_its_markers(tmp_path, capsys, text):
    found, readme = tmp_path / "toy.json", tmp_path / "README.md"
    found.write_text(json.dumps({"machine": MACHINE, "rows": [MEASURED]}))
    readme.write_text(text)
    with pytest.raises(SystemExit, match="2"):
        report.main([str(found), "--readme", str(readme), "--figure", str(tmp_path / "figure.png")])
    assert "README must hold" in capsys.readouterr().err
    assert readme.read_text() == text


def test_report_draws_the_table_of_a_gpu_apart(tmp_path, capsys, monkeypatch):
    readme, figure = tmp_path / "README.md", tmp_path / "figure.png"
    gpu = {**MACHINE, "gpu": "Toy GPU", "gpu_memory_gb": 9, "multiprocessors": 3}
    (tmp_path / "cpu.json").write_text(json.dumps({"machine": MACHINE, "rows": [MEASURED]}))
    (tmp_path / "gpu.json").write_text(json.dumps({"machine": gpu, "rows": [REFUSED]}))
    readme.write_text(EMPTY)
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert report.main(["--readme", str(readme), "--figure", str(figure)]) == 0
    first, second = readme.read_text().split("<!-- bench:gpu -->")
    assert "Toy GPU (3 multiprocessors, 9 GB)" in second
    assert "train/big B512" in second
    assert "Toy GPU" not in first
    with pytest.raises(SystemExit, match="2"):
        report.main([str(tmp_path / "gpu.json"), "--readme", str(readme), "--figure", str(figure)])
    assert "RESULTS must be of a processor" in capsys.readouterr().err


def test_report_without_results(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        report.main([str(tmp_path / "missing.json")])
    assert "missing.json" in capsys.readouterr().err


def fake_compiler(monkeypatch, code):
    """Let the compiling process run ``code`` instead."""
    popen = compiling.subprocess.Popen

    def run(arguments, **options):
        return popen([arguments[0], "-c", code], **options)

    monkeypatch.setattr(compiling.subprocess, "Popen", run)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("print('{\"seconds\": 1.5}')", {"seconds": 1.5}),
        ("raise SystemExit('no C++ compiler')", {"failed": "not compiled: no C++ compiler"}),
        ("import time; time.sleep(60)", {"failed": "not compiled in 0.5 s"}),
    ],
    ids=["compiled", "failed", "too slow"],
)
def test_compile_outcome(monkeypatch, code, expected):
    monkeypatch.setattr(compiling, "LIMIT_SECONDS", 0.5 if "sleep" in code else 60)
    monkeypatch.setattr(compiling, "_first", lambda: {"seconds": 0.0})
    fake_compiler(monkeypatch, code)
    assert compiling.outcome(Row("kind", "config", (), lambda: pytest.fail("built")), 0) == expected


def test_without_a_compiler_no_row_is_tried(monkeypatch):
    compiling._first.cache_clear()
    fake_compiler(monkeypatch, "import sys; raise SystemExit(f'no compiler, {sys.argv[1:]}')")
    outcomes = [compiling.outcome(Row("kind", "config", (), pytest.fail), seed) for seed in range(2)]
    compiling._first.cache_clear()
    assert outcomes == 2 * [{"failed": "not compiled: no compiler, []"}]


@pytest.mark.parametrize(
    ("text", "expected"), [("AMD EPYC", "amd-epyc"), ("Intel(R) Xeon(R) @ 2.1GHz", "intel-r-xeon-r-2-1ghz")]
)
def test_slug(text, expected):
    assert machine.slug(text) == expected


def test_machine_description():
    found = machine.describe("label")
    assert found["label"] == "label"
    assert found["versions"]["torch"] == torch.__version__
    assert machine.commit()
    assert machine.load() >= 0


def test_rates_are_positive(monkeypatch):
    monkeypatch.setattr(machine, "GEMM_SIZE", 16)
    monkeypatch.setattr(machine, "COPY_BYTES", 1024)
    assert all(rate > 0 for rate in machine.rates().values())
