"""``python -m bench.report [RESULTS]``: draw the README's table and figure from committed results."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench import results
from bench.render import markdown
from bench.row import REFERENCE, STRONG

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
START, END = "<!-- bench:table -->", "<!-- /bench:table -->"
COLOURS = {REFERENCE: "#31688e", STRONG: "#9fc5c9"}
TARGET_KEYS = {REFERENCE: "reference", STRONG: "strong"}

Json = dict[str, Any]


def put_table(readme: str, table: str) -> str:
    """``readme`` with ``table`` between its markers; ``ValueError`` unless each is there once, in order."""
    pattern = re.compile(f"{re.escape(START)}.*{re.escape(END)}", re.DOTALL)
    if readme.count(START) != 1 or readme.count(END) != 1 or not pattern.search(readme):
        raise ValueError(f"report: README must hold {START} and after it {END}, once each")
    return pattern.sub(lambda _: f"{START}\n\n{table}\n\n{END}", readme)


def draw(rows: Sequence[Json], threads: int) -> Figure:
    """Bars of the ratios on a log axis, ops on the left, models on the right, a mark at every target."""
    models = [row for row in rows if row["kind"].startswith(("train", "infer"))]
    panels = [("ops", [row for row in rows if row not in models]), ("models", models)]
    panels = [(title, part) for title, part in panels if part]
    longest = max(len(part) for _, part in panels)
    figure = Figure(figsize=(6.5 * len(panels), 1.6 + 0.3 * longest), layout="constrained")
    for axes, (title, part) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _panel(axes, title, part)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(f"ctm_fast against plain PyTorch, {threads} thread{'s' if threads > 1 else ''}")
    return figure


def _panel(axes: Axes, title: str, rows: Sequence[Json]) -> None:
    for i, row in enumerate(reversed(rows)):
        for offset, baseline in ((0.2, REFERENCE), (-0.2, STRONG)):
            _bar(axes, i + offset, row, baseline)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(xscale="log", ylim=(-0.6, len(rows) - 0.4), xlabel="times faster (log scale)", title=title)
    axes.xaxis.set_major_formatter("{x:g}x")
    axes.set_yticks(range(len(rows)), [row["name"] for row in reversed(rows)], fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _bar(axes: Axes, height: float, row: Json, baseline: str) -> None:
    ratio = row["ratios"][baseline]
    value = ratio["median"]
    error = [[max(value - ratio["low"], 0)], [max(ratio["high"] - value, 0)]]
    style: Json = {"color": COLOURS[baseline], "ecolor": "grey", "label": f"against {baseline}"}
    axes.barh(height, value - 1, 0.38, left=1, xerr=error, **style)
    axes.text(max(value, ratio["high"]) * 1.04, height, f"{value:.1f}x", va="center", fontsize=7)
    target = row["targets"][TARGET_KEYS[baseline]]
    if target is not None:
        axes.plot(
            [target, target], [height - 0.19, height + 0.19], color="#d1495b", linewidth=2, label="target"
        )


def write_figure(found: Json, path: Path) -> None:
    """The figure of the lowest thread count of ``found``; refused rows have no bar."""
    rows = [row for row in found["rows"] if "ratios" in row]
    if not rows:
        raise ValueError("report: results must hold a measured row, got none")
    threads = min(row["threads"] for row in rows)
    try:
        draw([row for row in rows if row["threads"] == threads], threads).savefig(path, dpi=120)
    except OSError as error:
        raise ValueError(f"report: cannot write {path}: {error.strerror}") from error


def default_results() -> Path:
    """The only file under bench/results."""
    found = sorted(RESULTS.glob("*.json"))
    if len(found) != 1:
        raise ValueError(
            f"report: RESULTS must be given unless {RESULTS} holds one file, it has {len(found)}"
        )
    return found[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write both; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("results", nargs="?", type=Path, help="the only file under bench/results by default")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--figure", type=Path, default=RESULTS / "figure.png")
    options = parser.parse_args(arguments)
    try:
        found = results.read(options.results or default_results())
        text = put_table(options.readme.read_text(), markdown(found))
        write_figure(found, options.figure)
        options.readme.write_text(text)
    except OSError as error:
        parser.error(f"cannot use {error.filename}: {error.strerror}")
    except ValueError as error:
        parser.error(str(error))
    print(f"{options.readme}, {options.figure}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
