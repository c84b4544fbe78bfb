"""The documents hold: their code runs, their links and commands exist, and every public name is listed."""

import contextlib
import importlib.util
import inspect
import io
import logging
import re
import runpy
import shlex
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import pytest
from foreign_models import ThoughtMachine

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
API = ROOT / "docs" / "api.md"
DOCUMENTS = [
    README,
    *sorted(ROOT.glob("docs/*.md")),
    ROOT / "tasks" / "README.md",
    ROOT / "bench" / "README.md",
]
MODULES = [
    "ctm_fast",
    "ctm_fast.engine",
    "ctm_fast.halting",
    "ctm_fast.ops",
    "ctm_fast.nn",
    "ctm_fast.models",
    "ctm_fast.models.presets",
    "ctm_fast.checkpoint",
    "ctm_fast.files",
    "ctm_fast.backend",
]
FIGURE = "bench/results/figure.png"
TABLE = re.compile("<!-- bench:table -->(.*)<!-- /bench:table -->", re.DOTALL)


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), re.DOTALL | re.MULTILINE)


def commands(path):
    """Words of every command line in shell blocks, fenced or indented, and in inline code."""
    lines = [line for block in blocks(path, "sh") for line in block.splitlines()]
    lines += re.findall(r"^    ((?:make|python|pytest|pip) .*)", path.read_text(), re.MULTILINE)
    lines += re.findall(r"`((?:make|python -m|\.ci/run) ?[^`\n]*)`", path.read_text())
    found = (shlex.split(line, comments=True) for line in lines)
    return [words for words in found if words]


PYTHON = [
    pytest.param(code, id=f"{path.relative_to(ROOT)}-{i}")
    for path in DOCUMENTS
    for i, code in enumerate(blocks(path, "python"))
]
COMMANDS = [
    pytest.param(words, id=f"{path.relative_to(ROOT)}-{i}")
    for path in DOCUMENTS
    for i, words in enumerate(commands(path))
]


@pytest.fixture
def somebody_elses_model(monkeypatch):
    """`models.ctm`, as the README imports it from the reader's own project."""

    def build(backbone_type, positional_embedding_type, **sizes):
        return ThoughtMachine(**sizes)

    module = ModuleType("models.ctm")
    module.ContinuousThoughtMachine = build
    monkeypatch.setitem(sys.modules, "models", ModuleType("models"))
    monkeypatch.setitem(sys.modules, "models.ctm", module)


@pytest.mark.parametrize("code", PYTHON)
def test_code_runs(code, somebody_elses_model, caplog):
    with contextlib.redirect_stdout(io.StringIO()), caplog.at_level(logging.WARNING, "ctm_fast"):
        exec(compile(code, "document", "exec"), {"__name__": "document"})
    assert not caplog.records


def make_targets():
    lines = re.findall(r"^([a-z][\w -]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return {name for line in lines for name in line.split()}


@pytest.mark.parametrize("words", COMMANDS)
def test_command_exists(words):
    program, *arguments = words
    if program == "make":
        assert {word for word in arguments if "=" not in word and word.islower()} <= make_targets()
    elif program == "python":
        check_module(arguments)
    elif program == "pip":
        check_extra(arguments)
    elif program == "pytest":
        assert (ROOT / arguments[0]).is_dir()
    else:
        assert (ROOT / program).is_file()


def check_module(arguments):
    assert arguments[0] == "-m"
    name = arguments[1]
    if "<" in name:  # a pattern for every experiment
        return
    assert importlib.util.find_spec(name)
    if name.startswith("tasks."):
        check_experiment(name.removeprefix("tasks."), arguments[2:])
    elif name == "bench":
        from bench.__main__ import parser
        from bench.table import find_rows

        if "[" not in " ".join(arguments):
            find_rows(parser().parse_args(arguments[2:]).names)


def check_experiment(name, arguments):
    from tasks.command import _parse

    if arguments and "--help" not in arguments:
        _parse(experiment(name), list(arguments))


def experiment(name):
    """The class that `python -m tasks.<name>` hands to the command line."""
    with patch("tasks.command.main", lambda found: found), pytest.raises(SystemExit) as caught:
        runpy.run_module(f"tasks.{name}", run_name="__main__")
    return caught.value.code


def check_extra(arguments):
    assert arguments[0] == "install"
    project = (ROOT / "pyproject.toml").read_text()
    for extra in re.findall(r"\[(\w+)\]", " ".join(arguments)):
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE)


def anchors(path):
    """Anchors of a document's headings, as they are made from the text."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_point_somewhere(path):
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        name, _, anchor = target.partition("#")
        if name.startswith("https:") or (name == FIGURE and not measured_table()):
            continue
        linked = path.parent / name if name else path
        assert linked.exists(), f"{path.name} links to {target}"
        assert not anchor or anchor in anchors(linked), f"{path.name} links to {target}"


def measured_table():
    """What `python -m bench.report` put into the README; it writes the figure at the same time."""
    return TABLE.search(README.read_text()).group(1).strip()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_named_files_exist(path):
    for name in re.findall(
        r"`((?:csrc|ctm_fast|bench|tasks|python_tests|docs)/[\w/.]+\.\w+)`", path.read_text()
    ):
        assert "myop" in name or (ROOT / name).exists(), name


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_plain_text(path):
    assert path.read_text().isascii()


EXPERIMENTS = sorted(
    [path.parent.name for path in ROOT.glob("tasks/*/__main__.py")]
    + [path.stem for path in ROOT.glob("tasks/act_*.py")]
)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_and_presets_are_described(name):
    found, text = experiment(name), (ROOT / "tasks" / "README.md").read_text()
    assert found.name == name
    assert f"tasks.{name}" in text or f"`{name}`" in text
    assert f"tasks.{name}" in README.read_text() or f"`{name}`" in README.read_text()
    assert [preset for preset in found.presets if f"`{preset}`" not in text] == []


def test_quick_parity_is_as_described():
    from tasks.parity.config import PRESETS

    text, quick = (ROOT / "tasks" / "README.md").read_text(), PRESETS["quick"]
    model = f"{quick.iterations} ticks, memory {quick.memory_length}, {quick.d_model} neurons"
    assert re.search(
        rf"`quick` .*{model}.*{quick.parity_sequence_length} values.*{quick.training_iterations:,} ", text
    )


def public(name):
    """Names that a module offers: its `__all__`, or what it defines itself."""
    module = importlib.import_module(name)
    if hasattr(module, "__all__"):
        return set(module.__all__)
    own = {key for key, value in vars(module).items() if getattr(value, "__module__", None) == name}
    constants = {k for k, value in vars(module).items() if k.isupper() and not inspect.isclass(value)}
    return {key for key in own | constants if key[0] != "_"} - {"TYPE_CHECKING"}


def section(name):
    """What docs/api.md says about a module."""
    return re.search(
        rf"^## {re.escape(name)}\n(.*?)(?=^## |\Z)", API.read_text(), re.DOTALL | re.MULTILINE
    ).group(1)


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_is_listed(name):
    assert public(name) - set(re.findall(r"`(\w+)[`(]", section(name))) == set()


@pytest.mark.parametrize("name", MODULES)
def test_every_listed_name_exists(name):
    module = importlib.import_module(name)
    heads = re.findall(r"^- ((?:`[^`]+`(?:, )?)+):", section(name), re.MULTILINE)
    names = [found for head in heads for found in re.findall(r"`(\w+)", head)]
    assert names
    assert [found for found in names if not hasattr(module, found)] == []


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_is_documented(name):
    module = importlib.import_module(name)
    offered = {key: getattr(module, key) for key in public(name)}
    described = {
        k: v for k, v in offered.items() if inspect.ismodule(v) or inspect.isclass(v) or inspect.isfunction(v)
    }
    assert [key for key, value in described.items() if not inspect.getdoc(value)] == []
