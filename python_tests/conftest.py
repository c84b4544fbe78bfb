"""Shared by every test: seeds, NaN poisoning, markers, SIMD levels, the sanitized core."""

from __future__ import annotations

import os
from pathlib import Path

# Triton reads this when a kernel's module is imported, so it is set before anything else.
if not Path("/dev/nvidia0").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import functools
import importlib.util
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

MISSING_DATA = "missing data"

# torch remembers at the first such block which functions it redirects: it must see the real ones, not those below.
with torch.device("meta"):
    torch.empty(0)


def _use_core(path: str) -> None:
    """Import the extension at `path` as ctm_fast._C: .ci/run tests the sanitized build of the core so."""
    spec = importlib.util.spec_from_file_location("ctm_fast._C", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"CTM_FAST_TEST_CORE must name an extension module, got {path!r}")
    module = importlib.util.module_from_spec(spec)
    sys.modules["ctm_fast._C"] = module
    spec.loader.exec_module(module)


if "CTM_FAST_TEST_CORE" in os.environ:
    _use_core(os.environ["CTM_FAST_TEST_CORE"])

from ctm_fast import _C  # noqa: E402 (after the choice of core)
from ctm_fast.testing import contract  # noqa: E402

# .ci/run asks for fewer draws under the sanitizers, which look for other errors than the rounding these measure.
if "CTM_FAST_TEST_DRAWS" in os.environ:
    contract.DRAWS, contract.SLACK = int(os.environ["CTM_FAST_TEST_DRAWS"]), 20.0


def pytest_report_header() -> str:
    return f"ctm_fast core: {_C.__file__}, SIMD levels {', '.join(_C.simd_levels())}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "simd_level" in metafunc.fixturenames:
        metafunc.parametrize("simd_level", _C.simd_levels(), indirect=True)


@pytest.fixture
def simd_level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once per SIMD level that this processor has."""
    before = _C.simd_level()
    _C.set_simd_level(request.param)
    yield request.param
    _C.set_simd_level(before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One CPU thread: tiny models lose time on more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def data_dir() -> Path:
    """The data folder CTM_FAST_DATA; skips where it is not set."""
    folder = os.environ.get("CTM_FAST_DATA")
    if not folder:
        pytest.skip(f"{MISSING_DATA}: CTM_FAST_DATA is not set")
    return Path(folder)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--shard", help="I/N: of the tests chosen otherwise, every N-th group; groups share kernels"
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the tests of other shards out; those of one case and dtype compile the same kernels and stay together."""
    chosen = config.getoption("--shard")
    if chosen is None:
        return
    shard, count = map(int, chosen.split("/"))

    def group(item: pytest.Item) -> str:
        given = getattr(item, "callspec", None)
        return (
            f"{given.params['case']} {given.params.get('dtype')}"
            if given and "case" in given.params
            else item.name
        )

    number = {name: i for i, name in enumerate(dict.fromkeys(map(group, items)))}
    elsewhere = [item for item in items if number[group(item)] % count != shard]
    config.hook.pytest_deselected(items=elsewhere)
    items[:] = [item for item in items if item not in elsewhere]


@functools.cache
def _reasons() -> dict[str, str]:
    """Why tests with a mark cannot run; empty where they can."""
    no_gpu = "" if torch.cuda.is_available() else "torch sees no GPU"
    no_triton = "" if importlib.util.find_spec("triton") else "the package triton is not installed"
    no_module = "" if importlib.util.find_spec("ctm_fast._cuda") else "ctm_fast was built without CUDA"
    return {"needs_gpu": no_gpu or no_triton, "needs_cuda": no_gpu or no_module}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.needs_gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Where Triton's kernels run: in its interpreter, and on a GPU."""
    return str(request.param)


@pytest.fixture(autouse=True)
def _exact_convolutions() -> Iterator[None]:
    """On a GPU cuDNN rounds the convolutions of backbones to TF32 unless told otherwise."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark, reason in _reasons().items():
        if item.get_closest_marker(mark) and reason:
            pytest.skip(f"{mark}: {reason}")
    for marker in item.iter_markers("needs_data"):
        folder = Path(os.environ.get("CTM_FAST_DATA", "")) / marker.args[0]
        if "CTM_FAST_DATA" not in os.environ or not folder.is_dir():
            pytest.skip(f"{MISSING_DATA}: {folder}")


def _broken_cuda() -> str:
    """What CUDA says to every call after an error that a process cannot get rid of, as an illegal access is."""
    if not torch.cuda.is_initialized():
        return ""
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    return ""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A test that leaves CUDA unusable fails and is the last one: all others would fail by its error.

    With CTM_FAST_DATA set, a test that skips because data are missing fails instead.
    """
    report: pytest.TestReport = yield
    if (why := _broken_cuda()) and not item.session.shouldstop:
        broken = f"CUDA cannot be used after {item.nodeid}: {why}"
        item.session.shouldstop = broken
        if report.passed:
            report.outcome, report.longrepr = "failed", broken
    if report.skipped and "CTM_FAST_DATA" in os.environ and MISSING_DATA in str(report.longrepr):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: CTM_FAST_DATA is set, yet {report.longrepr}"
    return report


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def _poisoned(real: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`real`, but memory that the package asks for without writing it reads as NaN, so that a gap shows."""

    def allocate(*args: Any, **kwargs: Any) -> torch.Tensor:
        out = real(*args, **kwargs)
        if torch.compiler.is_compiling() or type(out) is not torch.Tensor or not out.is_floating_point():
            return out
        if sys._getframe(1).f_globals.get("__name__", "").startswith("ctm_fast"):
            with torch.no_grad():
                out.fill_(float("nan"))
        return out

    return allocate


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, _poisoned(getattr(torch, name)))
    for name in ("new_empty", "new_empty_strided"):
        monkeypatch.setattr(torch.Tensor, name, _poisoned(getattr(torch.Tensor, name)))
