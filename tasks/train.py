"""The one training loop: batches, loss, step, logs, evaluation, checkpoints, exact resume.

Nothing in a step waits for the device: metrics stay tensors until a row is logged.
"""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object, send_to_device, set_seed
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from tasks import checkpointing
from tasks.clipping import QuantileClip
from tasks.errors import require
from tasks.interrupt import StopRequest
from tasks.logs import Meter, RunLog, append_history
from tasks.setup import build_model, make_accelerator, make_optimizer
from tasks.task import Batch, Task, batch_generator

KEPT = "the last checkpoint is kept"
NEEDED_TO_RESUME = {"optimizer_state_dict", "scheduler_state_dict", "meters", "args", "other_rng_states"}
NEEDED_BY_CURRICULUM = {"curriculum_state_dict"}
MAY_CHANGE_ON_RESUME = {"num_workers", "save_every"}


class Trainer:
    """One run of a task in one folder.

    Args:
        task: the experiment; its ``config`` holds every setting.
        folder: existing run folder; ``checkpoint.pt``, ``checkpoint_best.pt``, CSV files and ``tensorboard/``
            go there.
        resume: continue from the folder's checkpoint, bit for bit as if the run had not stopped.
    """

    def __init__(self, task: Task[Any], folder: Path, resume: bool = False) -> None:
        self.task, self.config, self.folder = task, task.config, folder
        self.accelerator = make_accelerator(self.config)
        set_seed(self.config.seed)
        model = build_model(task)
        optimizer = make_optimizer(model, self.config, self.accelerator.device)
        self.scheduler = LambdaLR(optimizer, lambda step: self.config.learning_rate(step) / self.config.lr)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        quantile = self.config.quantile_clipping
        self.clipper = QuantileClip(list(self.model.parameters()), quantile) if quantile is not None else None
        if self.accelerator.num_processes > 1:
            set_seed(self.config.seed, device_specific=True)
        self.step: int = 0
        self.best = -math.inf
        self.history: dict[str, list[Any]] = {"iters": []}
        self.meters = {"log": Meter(), "track": Meter()}
        if resume:
            self._restore(checkpointing.load(folder))
        self.log: RunLog | None = None

    def fit(self) -> bool:
        """Train up to ``training_iterations``; on Ctrl-C finish the step, save and return False.

        Nothing in the folder is written before.
        """
        total = self.config.training_iterations
        if self.accelerator.is_main_process:
            self.log = RunLog(self.folder, self.step)
        self.model.train()
        if self.step == 0:
            self._save(checkpointing.LAST)
        shown = None if self.accelerator.is_main_process else True
        log = closing(self.log) if self.log else nullcontext()
        bar = tqdm(total=total, initial=self.step, disable=shown, unit="step")
        with StopRequest() as stop, bar, log:
            for batch in self._batches():
                self._update(batch)
                bar.update()
                last = self.step == total
                if self.step % self.config.log_every == 0 or last:
                    self._log(bar)
                if self.task.curriculum:
                    self.task.curriculum.update(self.step)
                if self.step % self.config.track_every == 0 or last:
                    self._evaluate(bar)
                stopping = self._all_agree(stop.requested)
                if self.step % self.config.save_every == 0 or last or stopping:
                    self._save(checkpointing.LAST)
                if stopping:
                    break
        return self.step >= total

    def _all_agree(self, requested: bool) -> bool:
        """Whether to stop now; several processes ask each other only where a row is logged anyway."""
        if self.accelerator.num_processes == 1:
            return requested
        if self.step % self.config.log_every:
            return False
        flag = torch.tensor(float(requested), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag) > 0)

    def _batches(self) -> Iterator[Batch]:
        """Batches of all steps to come; what workers prepared for an earlier level is thrown away."""
        curriculum = self.task.curriculum
        while self.step < self.config.training_iterations:
            level = curriculum and curriculum.level
            for batch in self._loader():
                yield send_to_device(batch, self.accelerator.device, non_blocking=True)
                if curriculum and curriculum.level != level:
                    break

    def _loader(self) -> DataLoader[Batch]:
        return DataLoader(
            _Steps(self.task, self.config.seed, self.accelerator.process_index),
            batch_size=None,
            sampler=range(self.step, self.config.training_iterations),
            num_workers=self.config.num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
            generator=torch.Generator(),  # the loader would draw its seed from the global generator
        )

    def _update(self, batch: Batch) -> None:
        loss, metrics = self.task.loss(self.model, batch)
        self.accelerator.backward(loss)
        if self.clipper or self.config.gradient_clipping is not None:
            self.accelerator.unscale_gradients(self.optimizer)
        if self.clipper:
            self.clipper()
        if self.config.gradient_clipping is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clipping)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        for meter in self.meters.values():
            meter.add({"loss": loss, **metrics})
        if self.task.curriculum:
            self.task.curriculum.add({"loss": loss, **metrics})
        self.step += 1

    def _log(self, bar: tqdm[Any]) -> None:
        means = self.meters["log"].take()
        loss = means["loss"].item()
        require(math.isfinite(loss), "loss", f"stay finite ({KEPT})", loss, "train")
        bar.set_postfix(loss=f"{loss:.4f}")
        if self.log:
            more = {"lr": self.config.learning_rate(self.step - 1)}
            if self.task.curriculum:
                more["level"] = self.task.curriculum.level
            self.log.write("train", self.step, means, **more)

    def _evaluate(self, bar: tqdm[Any]) -> None:
        metrics = self.task.evaluate(self.accelerator.unwrap_model(self.model), self.accelerator)
        append_history(self.history, "train", self.meters["track"].take())
        append_history(self.history, "test", metrics)
        self.history["iters"].append(self.step)
        score = metrics[self.task.score].mean().item()
        if self.log:
            self.log.write("test", self.step, metrics)
            loss = metrics["loss"].item()
            bar.write(f"step {self.step}: test loss {loss:.4f}, {self.task.score} {score:.4f}")
        if score > self.best:
            self.best = score
            self._save(checkpointing.BEST)

    def _save(self, name: str) -> None:
        model = self.accelerator.unwrap_model(self.model)
        finite = bool(torch.stack([p.isfinite().all() for p in model.parameters()]).all())
        require(finite, "parameters", f"stay finite ({KEPT})", "NaN or infinity", "train")
        first, *others = gather_object([checkpointing.random_state()])
        if self.accelerator.is_main_process:
            state = {**self._state(model), **first, "other_rng_states": others}
            checkpointing.save(state, self.folder / name)

    def _state(self, model: nn.Module) -> dict[str, Any]:
        optimizer, scaler = self.optimizer.state_dict(), self.accelerator.scaler
        if self.clipper:
            optimizer = {"optimizer": optimizer, "clipper": self.clipper.state_dict()}
        return {
            "model_state_dict": model.state_dict(),
            "optimizer_state_dict": optimizer,
            "scheduler_state_dict": self.scheduler.state_dict(),
            "scaler_state_dict": scaler.state_dict() if scaler else {},
            "iteration": self.step,
            "args": Namespace(task=self.task.name, **self.task.settings()),
            "best_score": self.best,
            "meters": {name: meter.state_dict() for name, meter in self.meters.items()},
            "curriculum_state_dict": self.task.curriculum.state_dict() if self.task.curriculum else {},
            **self.history,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self._check_same_run(state)
        checkpointing.load_model(self.accelerator.unwrap_model(self.model), state, self.folder)
        optimizer = state["optimizer_state_dict"]
        if self.clipper:
            self.clipper.load_state_dict(optimizer["clipper"])
            optimizer = optimizer["optimizer"]
        self.optimizer.load_state_dict(optimizer)
        self.scheduler.load_state_dict(state["scheduler_state_dict"])
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler_state_dict"])
        self.step, self.best = state["iteration"], state["best_score"]
        self.history = {
            key: value
            for key, value in state.items()
            if key == "iters" or key.startswith(("train_", "test_"))
        }
        for name, meter in self.meters.items():
            meter.load_state_dict(state["meters"][name], self.accelerator.device)
        if self.task.curriculum:
            self.task.curriculum.load_state_dict(state["curriculum_state_dict"], self.accelerator.device)
        random_states = [state, *state["other_rng_states"]]
        processes = self.accelerator.num_processes
        require(processes == len(random_states), "processes", f"be {len(random_states)}", processes, "resume")
        checkpointing.restore_random_state(random_states[self.accelerator.process_index])

    def _check_same_run(self, state: dict[str, Any]) -> None:
        needed = NEEDED_TO_RESUME | (NEEDED_BY_CURRICULUM if self.task.curriculum else set())
        missing = needed - state.keys()
        require(not missing, "checkpoint", f"hold {sorted(missing)}", str(self.folder), "resume")
        saved = vars(state["args"])
        self.task.check_data(saved)
        for name, value in {"task": self.task.name, **self.task.settings()}.items():
            before = saved.get(name, value)  # a setting that is newer than the checkpoint
            must = f"be {before!r} as in the checkpoint"
            require(name in MAY_CHANGE_ON_RESUME or before == value, name, must, value, "resume")


class _Steps(Dataset[Batch]):
    """Training batches by step, so that any number of workers gives the same sequence."""

    def __init__(self, task: Task[Any], seed: int, process: int) -> None:
        self.task, self.seed, self.process = task, seed, process

    def __getitem__(self, step: int) -> Batch:
        return self.task.batch(step, batch_generator(self.seed, step, self.process))
