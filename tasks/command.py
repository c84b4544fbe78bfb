"""The command line that every experiment shares: train, evaluate, analyse."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import tyro
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list
from torch import nn

from tasks import checkpointing
from tasks.config import TrainConfig
from tasks.errors import SettingsError, UserError, require
from tasks.folders import clear_run_folder, make_folder, open_run_folder, write_text
from tasks.pictures import training_curves
from tasks.setup import build_model, cpu_threads, make_accelerator
from tasks.task import Task
from tasks.train import Trainer

Config = TypeVar("Config", bound=TrainConfig)
INTERRUPTED = 130


def _data_dir() -> Path | None:
    return Path(os.environ["CTM_FAST_DATA"]) if os.environ.get("CTM_FAST_DATA") else None


@dataclass(frozen=True)
class Train(Generic[Config]):
    """Train a preset; any of its settings can be changed by an option."""

    config: tyro.conf.OmitArgPrefixes[Config]
    preset: str
    """Named configuration that the other options start from."""
    out: Path | None = None
    """Run folder (default: outputs/<experiment>/<preset>)."""
    resume: bool = False
    """Continue from the run folder's checkpoint, bit for bit; start if it has none."""
    overwrite: bool = False
    """Remove an earlier run from the run folder first."""
    data_dir: Path | None = dataclasses.field(default_factory=_data_dir)
    """Data folder (default: CTM_FAST_DATA)."""


@dataclass(frozen=True)
class Evaluate:
    """Score a checkpoint on the evaluation set and write evaluation.json."""

    preset: str
    """Preset whose default run folder holds the checkpoint."""
    checkpoint: Path | None = None
    """Checkpoint file or run folder (default: --out if it holds one, else outputs/<experiment>/<preset>)."""
    out: Path | None = None
    """Folder for the results (default: the checkpoint's)."""
    data_dir: Path | None = dataclasses.field(default_factory=_data_dir)
    """Data folder (default: CTM_FAST_DATA)."""
    cpu: bool = False
    """Stay on the CPU although an accelerator is there."""


@dataclass(frozen=True)
class Analyse(Evaluate):
    """Draw the pictures of a checkpoint."""


def main(task_class: type[Task[Any]], arguments: Sequence[str] | None = None) -> int:
    """Run ``train``, ``evaluate`` or ``analyse`` of one experiment; returns the exit status.

    0: done; 1: a folder, a file or the training itself failed; 2: wrong arguments; both in one sentence; 130:
    interrupted, with the checkpoint kept.
    """
    try:
        command = _parse(task_class, list(sys.argv[1:] if arguments is None else arguments))
        folder = Path("outputs", task_class.name, command.preset)
        if isinstance(command, Train):
            with cpu_threads(command.config.threads):
                return _train(task_class(command.config, command.data_dir), command, command.out or folder)
        own = command.out if command.out and checkpointing.held(command.out) else folder
        path = checkpointing.find(command.checkpoint or own)
        print(f"checkpoint {path}")
        target = make_folder(command.out or path.parent)
        task, model, accelerator = _load(task_class, path, command)
        if isinstance(command, Analyse):
            _draw(task, model, accelerator, path.parent, target)
        else:
            _evaluate(task, model, accelerator, target)
        accelerator.end_training()
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: the checkpoints written so far are kept", file=sys.stderr)
        return INTERRUPTED
    return 0


def _parse(task_class: type[Task[Any]], arguments: list[str]) -> Any:
    presets = task_class.presets
    preset = _option(arguments, "--preset") or next(iter(presets))
    if preset not in presets:
        known = ", ".join(presets)
        print(f"{task_class.name}: preset must be one of {known}, got {preset!r}", file=sys.stderr)
        raise SystemExit(2)
    train = tyro.conf.subcommand("train", default=Train(presets[preset], preset))
    evaluate = tyro.conf.subcommand("evaluate", default=Evaluate(preset))
    analyse = tyro.conf.subcommand("analyse", default=Analyse(preset))
    commands: Any = (
        Annotated[Train[task_class.config_class], train]  # type: ignore[name-defined]
        | Annotated[Evaluate, evaluate]
        | Annotated[Analyse, analyse]
    )
    return tyro.cli(
        commands,
        args=arguments,
        prog=f"python -m tasks.{task_class.name}",
        description=f"{task_class.__doc__} Presets: {', '.join(presets)}.",
    )


def _option(arguments: list[str], name: str) -> str | None:
    for index, argument in enumerate(arguments):
        if argument == name:
            return next(iter(arguments[index + 1 :]), None)
        if argument.startswith(name + "="):
            return argument.removeprefix(name + "=")
    return None


def _train(task: Task[Any], command: Train[Any], folder: Path) -> int:
    state, found = PartialState(cpu=task.config.cpu), [False]
    if state.is_main_process:
        found = [open_run_folder(folder, command.resume, command.overwrite)]
    trainer = Trainer(task, folder, resume=broadcast_object_list(found)[0])
    if command.overwrite and state.is_main_process:
        clear_run_folder(folder)  # only now: settings that the model refuses cost no earlier run
    finished = trainer.fit()
    if not finished:
        print(f"interrupted at step {trainer.step}: {folder / checkpointing.LAST} is kept, see --resume")
    elif trainer.accelerator.is_main_process:
        _draw(task, trainer.model, trainer.accelerator, folder, folder)
    trainer.accelerator.end_training()  # torch.distributed asks for it before a process leaves
    return 0 if finished else INTERRUPTED


def _load(
    task_class: type[Task[Any]], path: Path, command: Evaluate
) -> tuple[Task[Any], nn.Module, Accelerator]:
    state = checkpointing.load(path)
    try:
        task = task_class(_saved_config(task_class, state, path), command.data_dir)
        model = build_model(task)
    except SettingsError as error:
        raise UserError(f"load: checkpoint {str(path)!r} must hold valid settings, got {error}") from error
    accelerator = make_accelerator(dataclasses.replace(task.config, cpu=command.cpu))
    checkpointing.load_model(model, state, path)
    return task, accelerator.unwrap_model(accelerator.prepare(model)).eval(), accelerator


def _saved_config(task_class: type[Task[Any]], state: dict[str, Any], path: Path) -> Any:
    require("args" in state, "checkpoint", "hold its settings 'args'", str(path), "load")
    saved = vars(state["args"])
    owner = saved.get("task", task_class.name)
    require(owner == task_class.name, "checkpoint", f"be of {task_class.name}", owner, "load")
    fields = {field.name: field for field in dataclasses.fields(task_class.config_class)}
    if "task" not in saved:  # published: the names of the loop's own settings mean something else there
        fields = {k: v for k, v in fields.items() if k not in TrainConfig.__dataclass_fields__}
    needed = [k for k, v in fields.items() if v.default is dataclasses.MISSING and k not in saved]
    require(not needed, "checkpoint", f"hold the settings {', '.join(needed)}", str(path), "load")
    return task_class.config_class(**{k: saved[k] for k in fields if k in saved})


def _evaluate(task: Task[Any], model: nn.Module, accelerator: Accelerator, folder: Path) -> None:
    metrics = task.evaluate(model, accelerator) | task.evaluate_beyond(model, accelerator)
    width = max(map(len, metrics)) + 2
    for name, value in metrics.items():
        print(f"{name:<{width}}{value.mean().item():.4f}")
    path = folder / "evaluation.json"
    write_text(path, json.dumps({name: value.tolist() for name, value in metrics.items()}, indent=1) + "\n")
    print(f"wrote {path}")


def _draw(task: Task[Any], model: nn.Module, accelerator: Accelerator, run: Path, folder: Path) -> None:
    """Draw in full precision: what a model tracks leaves it as NumPy arrays, which have no bfloat16."""
    plain = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    pictures = task.analyse(plain.eval(), folder)
    if task.curves:
        pictures += training_curves(run, task.curves, folder / "training.png")
    for path in pictures:
        print(f"wrote {path}")
