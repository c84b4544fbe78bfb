"""Output folders: made, checked for writing and cleared before any work is done."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from ctm_fast.files import replacing
from tasks import checkpointing
from tasks.errors import UserError, require, writing

RUN_FILES = (checkpointing.LAST, checkpointing.BEST, "train.csv", "test.csv")
BOARD = "tensorboard"


def make_folder(folder: Path) -> Path:
    """Create ``folder`` with its parents and check that files can be written there."""
    with writing(folder, "out"):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    return folder


def open_run_folder(folder: Path, resume: bool, overwrite: bool) -> bool:
    """Check that ``folder`` can take a run and say whether there is a checkpoint to continue from.

    What ``overwrite`` removes stays until :func:`clear_run_folder`.

    Raises:
        UserError: the folder cannot be written, or holds files and neither ``resume`` nor ``overwrite`` is
            set.
    """
    require(not (resume and overwrite), "options", "be one of --resume and --overwrite", "both")
    make_folder(folder)
    if resume:
        for name in RUN_FILES:
            for unfinished in folder.glob(f".{name}.*.tmp"):  # left by a run that was killed while it wrote
                unfinished.unlink()
        return (folder / checkpointing.LAST).exists()
    if not overwrite and any(folder.iterdir()):
        must = "be new or empty unless --resume or --overwrite is given"
        raise UserError(f"out: folder must {must}, got {str(folder)!r}")
    return False


def clear_run_folder(folder: Path) -> None:
    """Remove an earlier run from ``folder`` and leave all other files."""
    with writing(folder, "out"):
        for name in RUN_FILES:
            (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / BOARD, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    with writing(path, "out"), replacing(path) as temporary:
        temporary.write_text(text)
