"""Which implementation runs an op, and why another cannot.

``None`` picks the best that can run. A named backend runs exactly that or raises with the reason.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

BACKENDS = ("reference", "native", "triton")
OPS = ("dnc", "halting", "nlm", "ntm", "sync")
SIMD_LEVELS = ("baseline", "avx2", "avx512")
TRITON_OPS = ("dnc_link", "nlm", "ntm", "sync")
"""Ops of which every function has Triton kernels, and single functions of others."""
CUDA_OPS = ("nlm",)
"""Ops with CUDA C++ kernels: the backend "native" on a GPU, beside the backward of the Triton kernels."""
NATIVE_DTYPES = ("float32", "float64", "bfloat16")

TRITON_DTYPES = ("float32", "float64", "bfloat16", "float16")


class _Selection(threading.local):
    def __init__(self) -> None:
        self.name: str | None = None  # of the object: torch 2.11 compiles what the class has into its graphs


_selection = _Selection()


class Row(NamedTuple):
    """One line of :func:`table`: whether ``backend`` can run ``op`` on ``device``, and the reason if not."""

    op: str
    device: str
    backend: str
    runs: bool
    reason: str


def check_name(backend: str | None, where: str = "use_backend") -> None:
    """Raise ``ValueError`` unless ``backend`` is None or one of :data:`BACKENDS`."""
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"{where}: backend must be None or one of {BACKENDS}, got {backend!r}")


def selected() -> str | None:
    """The backend named by the innermost :func:`use_backend` of this thread, or None."""
    return _selection.name


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Run every op and model of the block on one backend: ``"reference"``, ``"native"`` or ``"triton"``.

    The choice holds for this thread. Raises ``ValueError`` for an unknown name; an op that the named backend
    cannot run raises when it is called.
    """
    check_name(name)
    before = _selection.name
    _selection.name = name
    try:
        yield
    finally:
        _selection.name = before


def native_reason() -> str | None:
    """Why the native CPU kernels cannot be used, or None if they can."""
    try:
        importlib.import_module("ctm_fast._C")
    except ImportError as error:
        found = f"the extension ctm_fast._C cannot be imported ({error})"
        sources = Path(__file__).parents[1]
        if not (sources / "CMakeLists.txt").exists():
            return f"{found}; reinstall with: pip install ctm_fast"
        return (
            f"{found}: Python found the sources in {sources} before any installed package; install them with "
            f"pip install -e {sources}, or start Python in another folder"
        )
    return None


_NATIVE_REASON = native_reason()
_HAS_TRITON = importlib.util.find_spec("triton") is not None


def why_not(op: str, backend: str, device: str, dtype: str = "float32") -> str | None:
    """Why ``backend`` cannot run ``op`` on this device type and dtype; None if it can."""
    if backend == "reference":
        return None
    if backend == "triton":
        return _triton_reason(op, device, dtype)
    if device == "cuda" and op in CUDA_OPS:
        return _cuda_reason(op, dtype) or _triton_reason(op, device, dtype)
    if device != "cpu":
        return f"the native kernels of {op} run on the CPU only in this version"
    if dtype not in NATIVE_DTYPES:
        return f"the native kernels of {op} take {', '.join(NATIVE_DTYPES)}"
    return _NATIVE_REASON


def _cuda_reason(op: str, dtype: str) -> str | None:
    if dtype != "float32":
        return f"the CUDA kernels of {op} take float32"
    from ctm_fast.ops import cuda

    if cuda.extension() is None:
        return "ctm_fast was built without CUDA: CTM_FAST_CUDA=on needs nvcc"
    if cuda.limits(0) is None:
        return "the CUDA kernels need a GPU of compute capability 8.0 or newer and a driver that knows their CUDA"
    return None


def _triton_reason(op: str, device: str, dtype: str) -> str | None:
    if op not in TRITON_OPS and op.partition("_")[0] not in TRITON_OPS:
        written = " and ".join(name for name in TRITON_OPS if name.startswith(f"{op}_"))
        if written:
            return f"of the functions of {op} only {written} has Triton kernels in this version"
        return f"{op} has no Triton kernel in this version"
    if dtype not in TRITON_DTYPES:
        return f"the Triton kernels of {op} take {', '.join(TRITON_DTYPES)}"
    if device not in ("cpu", "cuda"):
        return f"the Triton kernels of {op} run on the GPU, not on the device {device!r}"
    if not _HAS_TRITON:
        return "the package triton is not installed: pip install '.[triton]' in the checkout"
    if device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "Triton kernels run on the GPU; on the CPU only in the interpreter, with TRITON_INTERPRET=1"
    return None


def choose(
    op: str, backend: str | None, tensor: torch.Tensor, refused: Mapping[str, str] | None = None
) -> str:
    """The backend that runs ``op`` on a tensor like this one.

    ``backend`` None takes :func:`selected`, then the best that can run. A named one raises ``ValueError`` if
    unknown and ``RuntimeError`` with the reason if it cannot run. ``refused`` holds by backend why it cannot run
    this call.
    """
    check_name(backend, op)
    name = backend or _selection.name
    device, dtype = tensor.device.type, str(tensor.dtype).removeprefix("torch.")
    best = name or ("native" if device == "cpu" else "triton")
    reason = why_not(op, best, device, dtype) or (refused or {}).get(best)
    if name is None:
        return best if reason is None else "reference"
    if reason is not None:
        raise RuntimeError(f"{op}: backend {name!r} cannot run here: {reason}")
    return name


def table() -> list[Row]:
    """Every op on every device with every backend, as ``python -m ctm_fast`` prints it."""
    rows = []
    for op in OPS:
        for device in ("cpu", "cuda"):
            for backend in BACKENDS:
                reason = _device_reason(device) or why_not(op, backend, device)
                rows.append(Row(op, device, backend, reason is None, reason or ""))
    return rows


def _device_reason(device: str) -> str | None:
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            return "torch sees no CUDA device"
    return None
