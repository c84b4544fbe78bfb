"""Continuous Thought Machines, many times faster, in a fraction of the memory, with the same numbers.

Names are imported when they are first used: ``import ctm_fast`` alone needs no torch.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ctm_fast import engine, halting, models, nn, ops
    from ctm_fast.acceleration import accelerate, restore
    from ctm_fast.backend import use_backend
    from ctm_fast.cuda_graphs import capture, release
    from ctm_fast.engine import Engine

_MODULES = ("engine", "halting", "models", "nn", "ops")
_FUNCTIONS = {
    "Engine": "ctm_fast.engine",
    "accelerate": "ctm_fast.acceleration",
    "capture": "ctm_fast.cuda_graphs",
    "release": "ctm_fast.cuda_graphs",
    "restore": "ctm_fast.acceleration",
    "use_backend": "ctm_fast.backend",
}

__all__ = [
    "Engine",
    "__version__",
    "accelerate",
    "capture",
    "engine",
    "halting",
    "models",
    "nn",
    "ops",
    "release",
    "restore",
    "use_backend",
]

try:
    __version__ = version("ctm_fast")
except PackageNotFoundError:
    __version__ = "0+unknown"  # imported from a source tree that was never installed


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"ctm_fast.{name}")
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    raise AttributeError(f"module 'ctm_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
