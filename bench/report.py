"""``python -m bench.report [RESULTS]``: draw the README's tables and figure from committed results.

Results of GPUs fill a table of their own; the figure is of a processor.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench import engine_render, gpu_render, results
from bench.render import markdown, times
from bench.row import COMPILED, REFERENCE, STRONG

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
TABLE, GPU_TABLE, ENGINE_TABLE = (
    "bench:table",
    "bench:gpu",
    "bench:engine",
)  # names of the comments around them
NO_GPU = "No GPU has been measured: `make gpu-check` on a machine with one writes the results this table is drawn from."
COLOURS = {REFERENCE: "#31688e", STRONG: "#9fc5c9", COMPILED: "#e0a458"}
TARGET_KEYS = {REFERENCE: "reference", STRONG: "strong"}

Json = dict[str, Any]


def put_table(readme: str, table: str, name: str = TABLE) -> str:
    """``readme`` with ``table`` between its markers; ``ValueError`` unless each is there once, in order."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    pattern = re.compile(f"{re.escape(start)}.*{re.escape(end)}", re.DOTALL)
    if readme.count(start) != 1 or readme.count(end) != 1 or not pattern.search(readme):
        raise ValueError(f"report: README must hold {start} and after it {end}, once each")
    return pattern.sub(lambda _: f"{start}\n\n{table}\n\n{end}", readme)


def gpu_tables(folder: Path) -> str:
    """A table for every GPU with results in ``folder``, or that there is none."""
    found = [results.read(path) for path in sorted(folder.glob("*.json"))]
    tables = [gpu_render.markdown(x) for x in found if results.of_gpu(x)]
    return "\n\n".join(tables) or NO_GPU


def _panels(rows: Sequence[Json]) -> list[tuple[str, list[Json]]]:
    """Rows by title of their panel."""
    prefixes = {
        "neuron-level models, synchronisation": ("nlm-", "sync"),
        "memories": ("ntm-", "dnc-"),
        "training of models": "train",
        "inference of models": "infer",
        "the engine": "engine",
    }
    found = [(title, [row for row in rows if row["kind"].startswith(p)]) for title, p in prefixes.items()]
    named = [row["name"] for _, part in found for row in part]
    rest = [row for row in rows if row["name"] not in named]
    return [(title, part) for title, part in (*found, ("other", rest)) if part]


def draw(rows: Sequence[Json], threads: int) -> Figure:
    """Bars of the ratios on a log axis, a panel for every group of rows, a mark at every target."""
    panels = _panels(rows)
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    heights = [
        max(len(part) for _, part in panels[i * columns : (i + 1) * columns]) + 2 for i in range(lines)
    ]
    figure = Figure(figsize=(6.5 * columns, 1.6 + 0.3 * sum(heights)), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, gridspec_kw={"height_ratios": heights}).flatten()
    for axes, (title, part) in zip(grid, panels, strict=False):
        _panel(axes, title, part)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    found = [axes.get_legend_handles_labels() for axes in figure.axes]
    unique = {
        label: handle for handles, labels in found for handle, label in zip(handles, labels, strict=True)
    }
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(f"ctm_fast against plain PyTorch, {threads} thread{'s' if threads > 1 else ''}")
    return figure


def _panel(axes: Axes, title: str, rows: Sequence[Json]) -> None:
    for i, row in enumerate(reversed(rows)):
        shown = [baseline for baseline in COLOURS if baseline in row["ratios"]]
        width = 0.8 / len(shown)
        for j, baseline in enumerate(shown):
            _bar(axes, i + 0.4 - width * (j + 0.5), width, row, baseline)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(xscale="log", ylim=(-0.6, len(rows) - 0.4), xlabel="times faster (log scale)", title=title)
    axes.xaxis.set_major_formatter("{x:g}x")
    axes.set_yticks(range(len(rows)), [row["name"] for row in reversed(rows)], fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _bar(axes: Axes, height: float, width: float, row: Json, baseline: str) -> None:
    ratio = row["ratios"][baseline]
    value = ratio["median"]
    error = [[max(value - ratio["low"], 0)], [max(ratio["high"] - value, 0)]]
    style: Json = {"color": COLOURS[baseline], "ecolor": "grey", "label": f"against {baseline}"}
    axes.barh(height, value - 1, 0.95 * width, left=1, xerr=error, **style)
    target = row["targets"].get(TARGET_KEYS.get(baseline))
    if target is not None:
        ends = [height - 0.47 * width, height + 0.47 * width]
        axes.plot([target, target], ends, color="#d1495b", linewidth=2, label="target")
    end = max(value, ratio["high"], 1.0)
    if target is not None and end / 1.1 < target < end * 1.5:
        end = max(end, target)  # beside the mark, not under it
    axes.text(end * 1.05, height, times(value), va="center", fontsize=6.5)


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
    """The only file of a processor under bench/results."""
    found = [path for path in sorted(RESULTS.glob("*.json")) if not results.of_gpu(results.read(path))]
    if len(found) != 1:
        raise ValueError(
            f"report: RESULTS must be given unless {RESULTS} holds one file of a processor, it has {len(found)}"
        )
    return found[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write them; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument(
        "results", nargs="?", type=Path, help="the only file of a processor under bench/results by default"
    )
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--figure", type=Path, default=RESULTS / "figure.png")
    options = parser.parse_args(arguments)
    try:
        chosen = options.results or default_results()
        found = results.read(chosen)
        if results.of_gpu(found):
            raise ValueError(f"report: RESULTS must be of a processor, got those of a GPU in {chosen}")
        text = put_table(options.readme.read_text(), markdown(found))
        text = put_table(text, gpu_tables(RESULTS), GPU_TABLE)
        if found.get("latency"):
            text = put_table(text, engine_render.markdown(found), ENGINE_TABLE)
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
