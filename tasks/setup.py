"""Devices, model sizes and the optimiser, before the first step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import AdamW, Optimizer

from tasks.config import TrainConfig
from tasks.errors import SettingsError
from tasks.rmsprop import GravesRMSprop
from tasks.task import Batch, Task, batch_generator


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Run torch on ``count`` CPU threads inside the block; None changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Accelerator and global backend flags for ``config``."""
    torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
    torch.backends.cudnn.deterministic = config.deterministic
    torch.backends.cudnn.benchmark = False
    # With one tick the decay of the action synchronisation has no gradient.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(mixed_precision=config.mixed_precision, cpu=config.cpu, kwargs_handlers=[unused])


def build_model(task: Task[Any]) -> nn.Module:
    """The model of ``task`` with the sizes of its first batch; ``SettingsError`` for settings it refuses."""
    seed = task.config.seed
    try:
        model = task.build_model()
        materialise(model, task.batch(0, batch_generator(seed, 0)))
    except ValueError as error:
        raise SettingsError(str(error)) from error
    return model


def materialise(model: nn.Module, batch: Batch) -> None:
    """Run one sample through ``model`` if it has lazy parameters; statistics and dropout stay untouched."""
    if any(is_lazy(p) for p in model.parameters()):
        with torch.no_grad():
            model.eval()(batch[0][:1])


def make_optimizer(model: nn.Module, config: TrainConfig, device: torch.device) -> Optimizer:
    """AdamW or RMSProp; parameters named in ``weight_decay_exclusion_list`` form a group without decay."""
    named = list(model.named_parameters())
    excluded = [p for n, p in named if any(part in n for part in config.weight_decay_exclusion_list)]
    groups: list[dict[str, Any]] = [{"params": [p for _, p in named]}]
    if excluded and config.weight_decay:
        skip = {id(p) for p in excluded}
        groups = [
            {"params": [p for _, p in named if id(p) not in skip]},
            {"params": excluded, "weight_decay": 0.0},
        ]
    if config.optimizer == "rmsprop":
        return GravesRMSprop(groups, lr=config.lr, weight_decay=config.weight_decay)
    eps = 1e-6 if config.mixed_precision == "fp16" else 1e-8
    fused = device.type in ("cpu", "cuda")
    decay, betas = config.weight_decay, config.adam_betas
    return AdamW(groups, lr=config.lr, betas=betas, eps=eps, weight_decay=decay, fused=fused)
