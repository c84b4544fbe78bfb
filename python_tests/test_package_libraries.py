"""What the extension loads: no torch, and one OpenMP runtime for both."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

LOADED = """
maps = open("/proc/self/maps").read().splitlines()
print(*sorted({line.split()[-1] for line in maps if ".so" in line}))
"""


def loaded(program: str) -> list[str]:
    """Shared libraries mapped after `program` ran in a fresh interpreter."""
    run = subprocess.run([sys.executable, "-c", program + LOADED], capture_output=True, text=True, check=True)
    return run.stdout.split()


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/maps")


@linux
def test_core_does_not_load_torch() -> None:
    libraries = loaded("import sys; sys.modules['torch'] = None; import ctm_fast._C")
    assert any("_C." in name for name in libraries)
    assert not any("torch" in name for name in libraries)


def test_import_is_lazy() -> None:
    program = "import sys, ctm_fast; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@linux
@pytest.mark.skipif(torch.__version__ < "2.13", reason="older torch carries a renamed OpenMP runtime")
@pytest.mark.parametrize(
    "order", ["torch, ctm_fast._C", "ctm_fast._C, torch"], ids=["torch-first", "core-first"]
)
def test_one_openmp_runtime(order: str) -> None:
    libraries = loaded(f"import {order}")
    assert len([name for name in libraries if "libgomp" in name or "libomp" in name]) == 1


def test_cuda_module_describes_itself() -> None:
    cuda = pytest.importorskip("ctm_fast._cuda", reason="built without CUDA")
    assert cuda.architectures() == ["8.0", "9.0"]
    assert cuda.runtime_version() >= 12000
    assert bool(cuda.no_device_reason()) == (cuda.device_count() == 0)
    assert len(cuda.devices()) == cuda.device_count()


@pytest.mark.needs_cuda
def test_cuda_module_runs_on_every_gpu_of_torch() -> None:
    from ctm_fast import _cuda

    expected = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
    assert [device.capability for device in _cuda.devices()] == expected
    assert [device.reason for device in _cuda.devices()] == [""] * len(expected)
