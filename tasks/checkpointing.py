"""Checkpoints in the published layout, written whole or not at all, and the random state of a run."""

from __future__ import annotations

import argparse
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tasks.errors import UserError

LAST = "checkpoint.pt"
BEST = "checkpoint_best.pt"

_RECONSTRUCT: Any = np.empty(0).__reduce__()[0]
_SCALAR: Any = np.float64(0).__reduce__()[0]
# NumPy 1 and 2 pickle the same two functions under different module names.
_SAFE: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    np.ndarray,
    np.dtype,
    *{type(np.dtype(kind)) for kind in "?bhilqBHILQefd"},
    *((_RECONSTRUCT, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


def save(checkpoint: dict[str, Any], path: Path) -> None:
    """Write ``checkpoint`` under a temporary name, flush it to the disk and rename it to ``path``."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"save: {path} must be writable, got {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def find(path: Path) -> Path:
    """The checkpoint file that ``path`` names: the file itself, or a run folder's last one.

    A folder may hold ``checkpoint.pt`` or the published ``checkpoint_{iteration}.pt``, of which the highest
    is taken.
    """
    if path.is_file():
        return path
    if (path / LAST).is_file():
        return path / LAST
    numbered = [
        (int(m[1]), p)
        for p in path.glob("checkpoint_*.pt")
        if (m := re.fullmatch(r"checkpoint_(\d+)", p.stem))
    ]
    if not numbered:
        raise UserError(f"load: checkpoint must be a file or a run folder that holds one, got {str(path)!r}")
    return max(numbered)[1]


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU without running code from the file.

    Raises:
        UserError: the file is missing, damaged, not a PyTorch file, or holds no ``model_state_dict``.
    """
    path = find(path)
    try:
        with torch.serialization.safe_globals(_SAFE):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises a dozen unrelated types for a damaged file
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"load: checkpoint must be a whole PyTorch checkpoint, got {str(path)!r} ({reason})"
        ) from error
    if not isinstance(checkpoint, dict) or "model_state_dict" not in checkpoint:
        raise UserError(f"load: checkpoint must hold 'model_state_dict', got {str(path)!r} without it")
    return checkpoint


def load_model(model: nn.Module, checkpoint: dict[str, Any], path: Path) -> None:
    """Load the weights of ``checkpoint`` into ``model``, whose lazy parameters may still be unset."""
    try:
        model.load_state_dict(checkpoint["model_state_dict"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        reason = reason[:200] + ("..." if len(reason) > 200 else "")
        raise UserError(f"load: checkpoint must fit this model, got {str(path)!r} ({reason})") from error


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
