"""The shape of the tree: one word per operation, public names documented, sizes that can be read."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OPS = sorted(path.parent.name for path in (ROOT / "ctm_fast" / "ops").glob("*/__init__.py"))
PYTHON = sorted(path for folder in ("ctm_fast", "tasks", "bench") for path in (ROOT / folder).rglob("*.py"))
TESTS = sorted((ROOT / "python_tests").rglob("*.py"))
NATIVE = sorted(path for suffix in ("cpp", "cu", "h") for path in (ROOT / "csrc").rglob(f"*.{suffix}"))

PYTHON_LINES = 400
NATIVE_LINES = 500
FUNCTION_LINES = 45


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def definitions(path: Path) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node


def top_level(path: Path) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not is_overload(node):
            yield node


def is_overload(node: ast.FunctionDef | ast.ClassDef) -> bool:
    return any(isinstance(x, ast.Name) and x.id == "overload" for x in node.decorator_list)


def body_lines(node: ast.FunctionDef) -> int:
    """Lines of a function without its signature and docstring."""
    statements = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return (statements[-1].end_lineno or 0) - statements[0].lineno + 1 if statements else 0


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("file", ["reference.py", "autograd.py"])
def test_op_folder_is_whole(op: str, file: str) -> None:
    assert (ROOT / "ctm_fast" / "ops" / op / file).is_file()


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("folder", ["csrc", "python_tests", "bench"])
def test_op_has_its_word_everywhere(op: str, folder: str) -> None:
    found = [path.name for path in (ROOT / folder).rglob("*") if op in path.stem.split("_")]
    assert found, f"{folder}/ has no file named after {op}"


@pytest.mark.parametrize("op", OPS)
def test_kernel_is_built(op: str) -> None:
    kernels = next(
        line for line in (ROOT / "CMakeLists.txt").read_text().splitlines() if line.startswith("set(KERNELS")
    )
    assert op in kernels.rstrip(")").split()


@pytest.mark.parametrize("path", PYTHON, ids=name)
def test_public_names_are_documented(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), "the module has no docstring"
    public = [node for node in top_level(path) if not node.name.startswith("_")]
    assert [node.name for node in public if not ast.get_docstring(node)] == []


@pytest.mark.parametrize("path", [*PYTHON, *TESTS], ids=name)
def test_python_budget(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= PYTHON_LINES
    long = {n.name: body_lines(n) for n in definitions(path) if isinstance(n, ast.FunctionDef)}
    assert {key: lines for key, lines in long.items() if lines > FUNCTION_LINES} == {}


@pytest.mark.parametrize("path", NATIVE, ids=name)
def test_native_budget(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= NATIVE_LINES


@pytest.mark.parametrize("path", [*PYTHON, *TESTS, *NATIVE], ids=name)
def test_source_is_ascii_and_finished(path: Path) -> None:
    text = path.read_text()
    assert text.isascii()
    unfinished = [word for word in ("TO" + "DO", "FIX" + "ME", "XX" + "X") if word in text]
    assert unfinished == []


@pytest.mark.parametrize("path", TESTS, ids=name)
def test_test_files_are_collected(path: Path) -> None:
    assert (
        path.name.startswith("test_")
        or path.name in ("conftest.py", "__init__.py")
        or "def test_" not in path.read_text()
    )
