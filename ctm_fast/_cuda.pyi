"""CUDA half of the extension; built only where CTM_FAST_CUDA asked for it."""

from typing import Any

__version__: str
MAX_BATCH: int
MAX_STAGES: int

class Device:
    """One GPU that the driver shows."""

    @property
    def name(self) -> str: ...
    @property
    def capability(self) -> tuple[int, int]: ...
    @property
    def reason(self) -> str:
        """Why the compiled kernels cannot run there; empty where they can."""

def devices() -> list[Device]:
    """GPUs that the driver shows, in its order; empty without a GPU or without a driver."""

def device_count() -> int:
    """Number of GPUs that the driver shows."""

def no_device_reason() -> str:
    """Why there is no GPU; empty where there is one."""

def runtime_version() -> int:
    """CUDA runtime linked in: 1000 * major + 10 * minor."""

def driver_version() -> int:
    """Newest CUDA that the driver supports: 1000 * major + 10 * minor; 0 without a driver."""

def architectures() -> list[str]:
    """Compute capabilities compiled for, such as ``["8.0", "9.0"]``; newer GPUs take the last one's PTX."""

def nlm_models() -> list[tuple[int, int]]:
    """Memory lengths and hidden widths of the models that ``nlm_forward`` takes."""

def nlm_forward(
    sizes: tuple[int, int, int, int],
    packed: int,
    x: int,
    strides: tuple[int, ...],
    z: int,
    device: int,
    stream: int,
) -> None:
    """Post-activations of rows, neurons, memory, hidden; addresses, checked before. ``ValueError`` for others."""

def tick_limits(device: int) -> list[int]:
    """Multiprocessors, bytes of shared memory of a block and major compute capability of a GPU."""

def plan_ticks(
    sizes: tuple[int, ...], stages: list[Any], limits: list[int] | tuple[int, ...]
) -> dict[str, Any]:
    """How the tick kernel would run with these limits: blocks, threads, cluster, shared and resident bytes, scratch
    floats, and the reason where it cannot.
    """

def run_ticks(
    sizes: tuple[int, ...],
    stages: list[Any],
    attention: tuple[int, ...],
    nlm: int,
    all_inputs: int,
    data: tuple[int, ...],
    device: int,
    stream: int,
) -> None:
    """All ticks, in order of csrc/cuda/ticks.h: addresses, checked before. ``ValueError`` where no launch fits."""
