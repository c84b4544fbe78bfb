"""Results on disk: one JSON file per machine, its rows replaced one by one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
QUICK_RESULTS = Path("outputs") / "bench-quick.json"

Json = dict[str, Any]


class ResultsError(ValueError):
    """A results file that cannot be read or written; the message names it and the reason."""


def read(path: Path) -> Json:
    """The results in ``path``: {"machine": ..., "rows": [...]}."""
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise ResultsError(f"bench: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ResultsError(f"bench: {path} is not JSON: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("rows"), list) or "machine" not in found:
        raise ResultsError(f"bench: {path} must hold results of python -m bench, got another JSON file")
    return found


def place(chosen: Path | None, quick: bool, machine: Json) -> Path:
    """Where a run writes: the file chosen, else one of the machine's name beside the committed ones."""
    return chosen or (QUICK_RESULTS if quick else RESULTS / f"{machine['label']}.json")


def open_results(path: Path, machine: Json) -> Json:
    """What is in ``path`` already, or no rows; ``machine`` replaces what was written about the machine.

    Writes once, so that an unwritable place shows before anything is measured.
    """
    results = read(path) if path.exists() else {"rows": []}
    results["machine"] = machine
    write(path, results)
    return results


def of_gpu(results: Json) -> bool:
    """Whether these are results of a GPU."""
    return "gpu" in results["machine"]


def put(results: Json, row: Json) -> None:
    """Add ``row``, or replace the one of the same name and thread count where it is."""
    for i, old in enumerate(results["rows"]):
        if (old["name"], old["threads"]) == (row["name"], row["threads"]):
            results["rows"][i] = row
            return
    results["rows"].append(row)


def write(path: Path, results: Json) -> None:
    """Write to a temporary name and rename, so that a killed run leaves the file whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(results, indent=1) + "\n")
        temporary.replace(path)
    except OSError as error:
        if temporary.exists():
            temporary.unlink()
        raise ResultsError(f"bench: cannot write {path}: {error.strerror}") from error
