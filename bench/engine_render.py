"""Latencies of the engine as text: a line of a run, and the tables of the README."""

from __future__ import annotations

from collections.abc import Sequence

from bench.exporting import AOT, ONNX
from bench.render import duration, mark, table, times
from bench.row import COMPILED, REFERENCE, STRONG, Json
from ctm_fast.engine.weights import WIDTHS

BASELINES = (REFERENCE, STRONG, COMPILED, AOT, ONNX)
PACED_COLUMNS = (
    "paced", "rate", "calls", "misses", "woken late", "skipped", "response p50", "p99", "p99.9", "max", "wake-up p99",
)  # fmt: skip
MOST_REASON = 40  # characters of why a baseline is missing; all are in the JSON
MOST_SPREAD = 1.2  # p99 / p50 over that of an empty loop


def line(entry: Json) -> str:
    """One model's latencies."""
    own = ", ".join(f"{name} {value:.1f}" for name, value in entry["engine"].items())
    spin = ", ".join(f"{name} {value:.1f}" for name, value in entry["spin"].items())
    parts = [
        f"{entry['name']}: {own} us over {entry['calls']} calls (empty loop: {spin}); reading the weights takes "
        f"{entry['floor']:.1f} us, {entry['share']:.0%} of it"
    ]
    return "\n".join([*parts, *(f"  {_paced_line(x)}" for x in entry.get("paced", ()))])


def _paced_line(found: Json) -> str:
    response = ", ".join(f"{name} {found['response'][name]:.1f}" for name in ("p50", "p99", "max"))
    return (
        f"{found['rate']} Hz: {found['misses']} of {found['calls']} missed ({found['late']} woken late, "
        f"{found['skipped']} periods skipped); response {response} us"
    )


def markdown(found: Json) -> str:
    """Latencies at batch 1 beside the ratios to the baselines, and the calls at fixed rates."""
    rows = {row["name"]: row for row in found["rows"]}
    columns = (
        "batch 1, one thread",
        *("p50", "p90", "p99", "p99.9", "max"),
        "calls",
        "spread",
        "weights",
        *BASELINES,
        *WIDTHS[1:],
    )
    cells = [_cells(entry, rows.get(entry["name"], {})) for entry in found["latency"]]
    parts = [table(columns, cells)]
    parts.append(
        "p99.9 from 10,000 calls on. Spread: p99 / p50 over that of an empty loop of the same length in the same run, "
        f"at most {MOST_SPREAD:g}. Weights: share of the call that one thread takes to read its weights. Baselines: "
        "how many times longer they take. bfloat16, int8: how many times faster such weights are, and how much they "
        "change predictions, or synchronisation without these, in the norm."
    )
    if paced := [(entry, x) for entry in found["latency"] for x in entry.get("paced", ())]:
        parts += ["<details><summary>Calls at a fixed rate, and deadlines missed</summary>"]
        parts += [table(PACED_COLUMNS, [_paced_cells(entry, x) for entry, x in paced]), "</details>"]
    return "\n\n".join(parts)


def _cells(entry: Json, row: Json) -> list[str]:
    own = [_time(entry["engine"], name) for name in ("p50", "p90", "p99", "p99.9", "max")]
    spread = f"{entry['spread']:.2f} {mark(entry['spread'] <= MOST_SPREAD)}"
    ratios = [_ratio(row, name) for name in BASELINES]
    return [
        entry["config"],
        *own,
        str(entry["calls"]),
        spread,
        f"{entry['share']:.0%}",
        *ratios,
        *_narrow(entry),
    ]


def _narrow(entry: Json) -> list[str]:
    found = [entry["narrow"][width] for width in WIDTHS[1:]]
    return [f"{times(x['ratio']['median'])}, {x['difference']:.0e}" for x in found]


def _time(quantiles: Json, name: str) -> str:
    return duration(quantiles[name] / 1e6) if name in quantiles else "-"


def _ratio(row: Json, name: str) -> str:
    if name in row.get("ratios", {}):
        return times(row["ratios"][name]["median"])
    outcome = row.get("compile", {}) if name == COMPILED else row.get("exports", {}).get(name, {})
    return outcome.get("failed", "-")[:MOST_REASON]


def _paced_cells(entry: Json, found: Json) -> Sequence[str]:
    response = [_time(found["response"], name) for name in ("p50", "p99", "p99.9", "max")]
    counts = [str(found[name]) for name in ("calls", "misses", "late", "skipped")]
    return [entry["config"], f"{found['rate']} Hz", *counts, *response, _time(found["wake"], "p99")]
