"""Results as text: the lines that a run prints, and the Markdown table of the README."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bench.row import COMPILED, OWN, REFERENCE, STRONG

Json = dict[str, Any]
COLUMNS = (
    "row",
    "threads",
    "ctm_fast",
    "reference",
    "strong eager",
    "torch.compile",
    "achieved",
    "kept",
    "target",
)
WIDTHS = (36, 7, 9, 10, 12, 13, 24, 18, 0)


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def times(ratio: float) -> str:
    """A ratio as "12.3x"."""
    return f"{ratio:.0f}x" if ratio >= 100 else f"{ratio:.1f}x"


def cells(row: Json) -> list[str]:
    """One row's cells in the order of :data:`COLUMNS`."""
    name = [row["name"], str(row["threads"])]
    if "refused" in row:
        return [*name, "refused:", row["refused"], *[""] * 5]
    ratios = [_ratio(row, baseline) for baseline in (REFERENCE, STRONG, COMPILED)]
    return [
        *name,
        duration(row["seconds"][OWN]),
        *ratios,
        _achieved(row["achieved"]),
        _kept(row),
        targets(row),
    ]


def _ratio(row: Json, baseline: str) -> str:
    if baseline in row["ratios"]:
        return times(row["ratios"][baseline]["median"])
    return row.get("compile", {}).get("failed", "-")


def _achieved(achieved: Json) -> str:
    unit = "GB/s" if achieved["of"] == "copy" else "GFLOP/s"
    return f"{achieved['rate'] / 1e9:.3g} {unit}, {achieved['share']:.0%} of {achieved['of']}"


def _kept(row: Json) -> str:
    share = kept_share(row)
    if share is None:
        return "-"
    return f"{row['kept'][OWN]['live'] / 1e6:.3g} MB, 1/{1 / share:.1f}"


def kept_share(row: Json) -> float | None:
    """Bytes kept for backward by ctm_fast over those of the reference; None where nothing is trained."""
    kept = row.get("kept")
    return kept[OWN]["live"] / kept[REFERENCE]["live"] if kept else None


def targets(row: Json) -> str:
    """What the row should reach, each with whether it does."""
    wanted, found = row["targets"], []
    for name, baseline in (("reference", REFERENCE), ("strong", STRONG)):
        if wanted[name] is not None:
            met = row["ratios"][baseline]["median"] >= wanted[name]
            found.append(f"{wanted[name]:g}x {name} {mark(met)}")
    if wanted["sgemm"] is not None:
        found.append(f"{wanted['sgemm']:.0%} sgemm {mark(row['achieved']['share'] >= wanted['sgemm'])}")
    share = kept_share(row)
    if wanted["kept"] is not None and share is not None:
        found.append(f"1/{1 / wanted['kept']:.0f} kept {mark(share <= wanted['kept'])}")
    return ", ".join(found)


def mark(met: bool) -> str:
    """Whether a target is met."""
    return "met" if met else "MISSED"


def headings() -> str:
    """The heading of the printed table."""
    return padded(COLUMNS, WIDTHS)


def line(row: Json) -> str:
    """One row of the printed table."""
    return padded(cells(row), WIDTHS)


def padded(texts: Iterable[str], widths: Iterable[int]) -> str:
    """A line of columns at least this wide."""
    return " ".join(f"{text:{width}}" for text, width in zip(texts, widths, strict=True)).rstrip()


def machine_line(machine: Json) -> str:
    """The machine and the versions in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    hardware = f"{machine['cpu']} ({machine['cores']} cores, {machine['simd']}, {machine['memory_gb']} GB)"
    return f"{hardware}, {versions}"


def markdown(results: Json) -> str:
    """The table of the README: models with a target on one thread, all else folded, then how to read it."""
    rows = results["rows"]
    one = [row for row in rows if row["threads"] == 1]
    aimed = [row for row in one if any(row["targets"].values())]
    models = [row for row in aimed if row["kind"].startswith(("train", "infer", "engine"))]
    ops = [row for row in aimed if row not in models]
    parts = [machine_line(results["machine"]) + "; one thread.", _table(models)]
    marks = ", ".join(targets(row) for row in ops)
    missed, met = marks.count(mark(False)), marks.count(mark(True))
    parts += _folded(f"Ops, one thread: {met} targets met, {missed} missed", ops)
    parts += _folded("Further rows, one thread", [row for row in one if row not in aimed])
    for threads in sorted({row["threads"] for row in rows} - {1}):
        parts += _folded(f"{threads} threads", [row for row in rows if row["threads"] == threads])
    commits = ", ".join(sorted({row["commit"] for row in rows}))
    loads = [row["load"] for row in rows]
    parts.append(
        "ctm_fast: median time of a tick (`nlm-tick`, `nlm-train`), a step of a memory "
        "(`ntm-`, `dnc-`), a call, a training step or an inference. "
        "Baselines: how many times longer they take, the median of paired ratios. Achieved: what ctm_fast "
        "does and its share of this machine's own sgemm or copy. Kept: memory alive after a forward, and its "
        "ratio to the reference's. "
        f"Commit {commits}; load {min(loads, default=0)} to {max(loads, default=0)}."
    )
    return "\n\n".join(parts)


def _folded(title: str, rows: list[Json]) -> list[str]:
    if not rows:
        return []
    return [f"<details><summary>{title}</summary>", _table(rows), "</details>"]


def _table(rows: list[Json]) -> str:
    def without_threads(texts: Sequence[str]) -> list[str]:
        return [texts[0], *texts[2:]]

    return table(without_threads(COLUMNS), (without_threads(cells(row)) for row in rows))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
