"""Results of a GPU as text: the lines that a run prints, and a Markdown table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.gpu_compiled import MODES, name_of
from bench.gpu_row import CAPTURED, FORMS, GRAPH_NATIVE, GRAPH_OWN, GRAPH_REFERENCE, NATIVE
from bench.render import duration, mark, padded, table, times
from bench.row import OWN, REFERENCE, STRONG, Row

Json = dict[str, Any]
COLUMNS = (
    "row",
    "ctm_fast",
    "graph of ctm_fast",
    "native",
    "reference",
    "strong eager",
    "graph of reference",
    *(f"compile {mode}" for mode in MODES),
    "cold L2",
    "share of floor",
    "peak",
    "captured keeps",
    "kept",
    "target",
)
NOT_MEASURED = "not measured"
WIDTHS = (36, 16, 17, 24, 10, 12, 18, 15, 23, 18, 34, 18, 22, 18, 0)


def cells(row: Json) -> list[str]:
    """One row's cells in the order of :data:`COLUMNS`."""
    if "refused" in row:
        return [row["name"], "refused:", row["refused"], *[""] * (len(COLUMNS) - 3)]
    baselines = (REFERENCE, STRONG, GRAPH_REFERENCE, *map(name_of, MODES))
    return [
        row["name"],
        duration(row["seconds"][row["own"]]) + (" captured" if row["own"] == CAPTURED else ""),
        _seconds(row, GRAPH_OWN),
        _native(row),
        *(_ratio(row, baseline) for baseline in baselines),
        _cold(row),
        f"{row['floor']['share']:.0%} of {row['floor']['of']}, {_fastest(row)}",
        _bytes(row["peak"][OWN], peak_share(row)),
        _reserved(row),
        _bytes(row["kept"][OWN]["live"], kept_share(row)) if row["kept"] else "-",
        targets(row),
    ]


def _seconds(row: Json, name: str) -> str:
    if name in row["seconds"]:
        return duration(row["seconds"][name])
    return str(row["failed"].get(name, "-")).partition(":")[0]


def _native(row: Json) -> str:
    """Its times, or in full why there are none."""
    if NATIVE in row["failed"]:
        return str(row["failed"][NATIVE])
    plain, graph = _seconds(row, NATIVE), _seconds(row, GRAPH_NATIVE)
    return plain if graph == "-" else f"{plain}, graph {graph}"


def _fastest(row: Json) -> str:
    """The form of ctm_fast that the share of the floor is of, and its time."""
    name = row["floor"]["by"]
    return f"{FORMS[name]} {duration(row['seconds'][name])}"


def _reserved(row: Json) -> str:
    if CAPTURED not in row["reserved"]:
        return "-"
    found = row["reserved"][CAPTURED]
    return f"{found / 1e6:.3g} MB, {times(found / max(row['peak'][OWN], 1))} peak"


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
    reached = _reached(row)
    found = [f"{target} {reached[name]}" for name, target in _wanted(row["targets"]).items()]
    return ", ".join(found)


def unmeasured(results: Sequence[Json], rows: Sequence[Row]) -> list[str]:
    """The rows among ``rows`` of which targets were not measured, each with these targets."""
    measured, found = {result["name"]: result for result in results if "refused" not in result}, []
    for row in rows:
        result, wanted = measured.get(row.name), _wanted(row.targets._asdict())
        reached = dict.fromkeys(wanted, NOT_MEASURED) if result is None else _reached(result)
        missing = [target for name, target in wanted.items() if reached[name] == NOT_MEASURED]
        found += [f"{row.name}: {', '.join(missing)}"] if missing else []
    return found


def _wanted(wanted: Json) -> dict[str, str]:
    """The targets that are set, in words."""
    found = {
        name: f"{wanted[name]:g}x {name}"
        for name in ("reference", "compiled", "graph")
        if wanted[name] is not None
    }
    if wanted["floor"] is not None:
        found["floor"] = f"{wanted['floor']:.0%} of floor"
    if wanted["peak"] is not None:
        found["peak"] = f"1/{1 / wanted['peak']:.0f} peak"
    return found


def _reached(row: Json) -> dict[str, str]:
    """Whether the row reaches each of its targets."""
    wanted, ratios = row["targets"], row["ratios"]
    compiled = [ratios[name]["median"] for name in map(name_of, MODES) if name in ratios]
    medians = {
        "reference": ratios[REFERENCE]["median"],
        "compiled": min(compiled, default=None),
        "graph": ratios.get(GRAPH_REFERENCE, {}).get("median"),
    }
    found = {}
    for name in _wanted(wanted):
        if name == "floor":
            found[name] = f"{mark(row['floor']['share'] >= wanted[name])} ({_fastest(row)})"
        elif name == "peak":
            found[name] = mark(peak_share(row) <= wanted[name])
        else:
            ratio = medians[name]
            found[name] = NOT_MEASURED if ratio is None else mark(ratio >= wanted[name])
    return found


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
        "or an inference (captured: under `ctm_fast.capture`); beside it a CUDA graph of the plain call, and (native) "
        "the CUDA C++ forward of the neuron-level models. Baselines: how many times longer they take. Cold L2: "
        "the time with the second-level cache overwritten before, and the reference's ratio. Share of floor: the "
        "least time at this machine's own float32 sgemm or copy, over the time of the fastest form of ctm_fast, named "
        "with it. Peak: most memory allocated in a plain call, parameters left out, and its ratio to the reference's; "
        "captured keeps: what the graphs of the captured model reserve, over that peak; kept: what a forward holds "
        "for backward. "
        f"Commit {commits}."
    )
    return "\n\n".join((machine_line(results["machine"]) + ".", table(COLUMNS, map(cells, rows)), note))
