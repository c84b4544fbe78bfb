"""Checkpoints in the published layout, written whole or not at all, and the random state of a run."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ctm_fast.checkpoint import load_checkpoint, load_state, save_checkpoint
from tasks.errors import UserError, writing

LAST = "checkpoint.pt"
BEST = "checkpoint_best.pt"


def save(checkpoint: dict[str, Any], path: Path) -> None:
    """Write ``checkpoint`` whole or not at all."""
    with writing(path, "save", RuntimeError):  # torch reports a full disk as a RuntimeError
        save_checkpoint(path, checkpoint)


def find(path: Path) -> Path:
    """The checkpoint file that ``path`` names: the file itself, or a run folder's last one.

    A folder may hold ``checkpoint.pt`` or the published ``checkpoint_{iteration}.pt``, of which the highest
    is taken. Raises ``UserError`` where there is none.
    """
    found = path if path.is_file() else held(path)
    if found is None:
        wanted = "a file or a run folder that holds one, named by --checkpoint or --out"
        raise UserError(f"load: checkpoint must be {wanted}, got {str(path)!r}")
    return found


def held(folder: Path) -> Path | None:
    """The last checkpoint in a run folder, see :func:`find`; None where there is none."""
    if (folder / LAST).is_file():
        return folder / LAST
    numbered = [
        (int(m[1]), p)
        for p in folder.glob("checkpoint_*.pt")
        if (m := re.fullmatch(r"checkpoint_(\d+)", p.stem))
    ]
    return max(numbered)[1] if numbered else None


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint, published or ours, onto the CPU without running code from the file.

    Raises:
        UserError: the file is missing, damaged, of another kind, or holds no model.
    """
    with _reading():
        state, others = load_checkpoint(find(path))
    return {"model_state_dict": state, **others}


def load_model(model: nn.Module, checkpoint: dict[str, Any], path: Path) -> None:
    """Load the weights of ``checkpoint`` into ``model``, whose lazy parameters may still be unset."""
    with _reading():
        load_state(model, checkpoint["model_state_dict"], str(path))


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        raise UserError(str(error)) from error


def random_state() -> dict[str, Any]:
    """State of all global generators under the published keys, and CUDA's."""
    return {
        "torch_rng_state": torch.get_rng_state(),
        "numpy_rng_state": np.random.get_state(),
        "random_rng_state": random.getstate(),
        "cuda_rng_state": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Undo everything that was drawn since :func:`random_state`."""
    torch.set_rng_state(state["torch_rng_state"])
    np.random.set_state(state["numpy_rng_state"])
    random.setstate(state["random_rng_state"])
    if state["cuda_rng_state"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda_rng_state"])
