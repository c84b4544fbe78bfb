"""Every module can be the first one of the package that a process imports."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import torch

import ctm_fast

PACKAGE = Path(ctm_fast.__file__).parent

# torch is imported once; every module is then tried in a fork that has none of ours.
TRY_EACH = """
import importlib, os, sys
import torch

names, running, failed = sys.argv[1:], {}, []
while names or running:
    if names and len(running) < os.cpu_count():
        name = names.pop()
        child = os.fork()
        if child:
            running[child] = name
            continue
        status = 1
        try:
            module, _, attribute = name.partition(":")
            found = importlib.import_module(module)
            if attribute:
                getattr(found, attribute)
            status = 0
        finally:
            os._exit(status)
    child, status = os.wait()
    name = running.pop(child)
    if status:
        failed.append(name)
sys.exit(", ".join(failed) or 0)
"""


def module_names() -> list[str]:
    files = [x for x in PACKAGE.rglob("*.py") if x.name != "__main__.py"]
    parts = [x.relative_to(PACKAGE.parent).with_suffix("").parts for x in files]
    return sorted(".".join(p[:-1] if p[-1] == "__init__" else p) for p in parts)


def test_every_module_and_public_name_is_importable_first() -> None:
    names = module_names() + [f"ctm_fast:{name}" for name in ctm_fast.__all__]
    assert "ctm_fast.acceleration" in names
    run = subprocess.run(
        [sys.executable, "-c", TRY_EACH, *names], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


def test_import_leaves_the_compiler_of_torch_alone() -> None:
    """It alone takes a second."""
    program = (
        "import sys, ctm_fast.models, ctm_fast.nn, ctm_fast.ops; sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_sources_that_are_not_built_say_how_to_install_them(tmp_path: Path) -> None:
    """A clone that Python runs in hides the installed package, whose kernels it lacks."""
    shutil.copytree(PACKAGE, tmp_path / "ctm_fast", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (tmp_path / "CMakeLists.txt").touch()
    libraries = Path(torch.__file__).parents[1]
    paths = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(libraries)!r}]; import ctm_fast.ops"
    run = subprocess.run([sys.executable, "-S", "-c", paths], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "many times slower" in run.stderr
    assert f"pip install -e {tmp_path}" in run.stderr
