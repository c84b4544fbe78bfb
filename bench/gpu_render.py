"""Results of a GPU as text: the lines that a run prints, and a Markdown table."""

from __future__ import annotations

from typing import Any

from bench.gpu_compiled import MODES, name_of
from bench.gpu_row import CAPTURED, GRAPH_REFERENCE
from bench.render import duration, mark, padded, table, times
from bench.row import OWN, REFERENCE, STRONG

Json = dict[str, Any]
COLUMNS = (
    "row",
    "ctm_fast",
    "reference",
    "strong eager",
    "graph of reference",
    *(f"compile {mode}" for mode in MODES),
    "cold L2",
    "share of floor",
    "peak",
    "kept",
    "target",
)
WIDTHS = (36, 16, 10, 12, 18, 15, 23, 18, 20, 18, 18, 0)


def cells(row: Json) -> list[str]:
    """One row's cells in the order of :data:`COLUMNS`."""
    if "refused" in row:
        return [row["name"], "refused:", row["refused"], *[""] * (len(COLUMNS) - 3)]
    baselines = (REFERENCE, STRONG, GRAPH_REFERENCE, *map(name_of, MODES))
    return [
        row["name"],
        duration(row["seconds"][row["own"]]) + (" captured" if row["own"] == CAPTURED else ""),
        *(_ratio(row, baseline) for baseline in baselines),
        _cold(row),
        f"{row['floor']['share']:.0%} ({row['floor']['of']})",
        _bytes(row["peak"][OWN], peak_share(row)),
        _bytes(row["kept"][OWN]["live"], kept_share(row)) if row["kept"] else "-",
        targets(row),
    ]


def _ratio(row: Json, baseline: str) -> str:
    if baseline in row["ratios"]:
        return times(row["ratios"][baseline]["median"])
    tried = row.get("compile", {}).get(baseline.rpartition(" ")[2], {})
    return str(tried.get("failed") or row["failed"].get(baseline, "-")).partition(":")[0]


def _cold(row: Json) -> str:
    if row["cold"] is None:
        return "-"
    found = row["cold"]
    return f"{duration(found['seconds'][row['own']])}, {times(found['ratios'][REFERENCE]['median'])}"


def _bytes(own: float, share: float) -> str:
    return f"{own / 1e6:.3g} MB, 1/{1 / share:.1f}" if share > 0 else f"{own / 1e6:.3g} MB"


def peak_share(row: Json) -> float:
    """Peak memory of ctm_fast over that of the reference."""
    return float(row["peak"][OWN] / max(row["peak"][REFERENCE], 1))


def kept_share(row: Json) -> float:
    """Bytes kept for backward by ctm_fast over those of the reference."""
    return float(row["kept"][OWN]["live"] / max(row["kept"][REFERENCE]["live"], 1))


def targets(row: Json) -> str:
    """What the row should reach, each with whether it does; torch.compile counts as fast as its better mode."""
    wanted, ratios, found = row["targets"], row["ratios"], []
    compiled = [ratios[name]["median"] for name in map(name_of, MODES) if name in ratios]
    reached = {
        "reference": ratios[REFERENCE]["median"],
        "compiled": min(compiled, default=None),
        "graph": ratios.get(GRAPH_REFERENCE, {}).get("median"),
    }
    for name, ratio in reached.items():
        if wanted[name] is not None:
            verdict = "not measured" if ratio is None else mark(ratio >= wanted[name])
            found.append(f"{wanted[name]:g}x {name} {verdict}")
    if wanted["floor"] is not None:
        found.append(f"{wanted['floor']:.0%} of floor {mark(row['floor']['share'] >= wanted['floor'])}")
    if wanted["peak"] is not None:
        found.append(f"1/{1 / wanted['peak']:.0f} peak {mark(peak_share(row) <= wanted['peak'])}")
    return ", ".join(found)


def headings() -> str:
    """The heading of the printed table."""
    return padded(COLUMNS, WIDTHS)


def line(row: Json) -> str:
    """One row of the printed table."""
    return padded(cells(row), WIDTHS)


def machine_line(machine: Json) -> str:
    """The GPU and the versions in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    hardware = (
        f"{machine['gpu']} ({machine['multiprocessors']} multiprocessors, {machine['gpu_memory_gb']} GB)"
    )
    return f"{hardware}, {machine['cpu']}, {versions}"


def markdown(results: Json) -> str:
    """The table of one GPU, and how to read it."""
    rows = results["rows"]
    commits = ", ".join(sorted({row["commit"] for row in rows}))
    note = (
        "ctm_fast: median time by CUDA events with warm caches, of a tick (`nlm-`), a memory's step, a training step "
        "or an inference (captured: under `ctm_fast.capture`). Baselines: how many times longer they take. Cold L2: "
        "the time with the second-level cache overwritten before, and the reference's ratio. Share of floor: the "
        "least time at this machine's own float32 sgemm or copy, over the time taken. Peak: most memory allocated in "
        "a plain call, parameters left out, and its ratio to the reference's; kept: what a forward holds for backward. "
        f"Commit {commits}."
    )
    return "\n\n".join((machine_line(results["machine"]) + ".", table(COLUMNS, map(cells, rows)), note))
