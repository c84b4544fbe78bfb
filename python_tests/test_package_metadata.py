"""What pyproject.toml promises: dependencies, extras, one version number, the licence."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import ctm_fast
from ctm_fast import _C

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]


def names(requirements: list[str]) -> set[str]:
    return {Requirement(line).name for line in requirements}


def test_base_install_is_torch_and_numpy() -> None:
    assert names(PROJECT["dependencies"]) == {"torch", "numpy"}


def test_oldest_torch_and_python() -> None:
    torch = next(r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "torch")
    assert torch.specifier.contains("2.6.0") and not torch.specifier.contains("2.5.1")
    supported = SpecifierSet(PROJECT["requires-python"])
    assert supported.contains("3.11.0") and not supported.contains("3.10.13")


def test_build_needs_no_torch() -> None:
    assert names(PYPROJECT["build-system"]["requires"]) == {"scikit-build-core", "pybind11", "ninja"}


@pytest.mark.parametrize(
    ("extra", "packages"),
    [
        ("triton", {"triton"}),
        ("rl", {"gymnasium"}),
        ("pusht", {"lerobot"}),
        ("hub", {"huggingface_hub", "safetensors"}),
        ("tasks", {"accelerate", "tyro", "tqdm", "tensorboard", "matplotlib", "imageio"}),
        ("bench", {"matplotlib"}),
        ("onnx", {"onnx", "onnxruntime", "onnxscript"}),
        ("dev", {"pytest", "pytest-benchmark", "ruff", "mypy", "clang-format", "pre-commit"}),
    ],
)
def test_extra_brings(extra: str, packages: set[str]) -> None:
    assert packages <= names(EXTRAS[extra])


def test_no_other_extras() -> None:
    assert set(EXTRAS) == {"triton", "rl", "pusht", "hub", "tasks", "bench", "onnx", "dev"}


def test_every_dependency_has_a_tested_range() -> None:
    lines = chain(PROJECT["dependencies"], PYPROJECT["build-system"]["requires"], *EXTRAS.values())
    for requirement in map(Requirement, lines):
        operators = {clause.operator for clause in requirement.specifier}
        assert requirement.name == PROJECT["name"] or operators == {">=", "<"}, str(requirement)


def test_one_version_number() -> None:
    assert PROJECT["version"] == version("ctm_fast") == ctm_fast.__version__ == _C.build_info()["version"]
    released = re.search(r"^## \[(\d[^]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released is not None and released.group(1) == PROJECT["version"]


def test_licence() -> None:
    assert PROJECT["license"] == "MIT"
    assert "The ctm_fast authors" in (ROOT / "LICENSE").read_text()


@pytest.mark.parametrize("name", ["py.typed", "_C.pyi", "_cuda.pyi"])
def test_types_are_shipped(name: str) -> None:
    assert (ROOT / "ctm_fast" / name).is_file()
