"""What every experiment's configuration holds, under the published command-line names where one exists."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tasks import schedules
from tasks.errors import require


@dataclass(frozen=True)
class TrainConfig:
    """Settings of the training loop. A task adds its own fields in a subclass."""

    adam_betas: ClassVar[tuple[float, float]] = (0.9, 0.999)

    seed: int = 0
    """Seed of Python, NumPy, torch and of every batch."""
    training_iterations: int = 10_000
    """Number of optimiser steps."""
    batch_size: int = 64
    """Training samples per step and process."""
    batch_size_test: int = 256
    """Evaluation samples per batch."""
    n_test_batches: int = 20
    """Number of evaluation batches."""
    optimizer: Literal["adamw", "rmsprop"] = "adamw"
    """AdamW, or centred RMSProp with momentum in the form of Graves."""
    lr: float = 1e-4
    """Learning rate after the warmup."""
    warmup_steps: int = 500
    """Steps of linear warmup."""
    scheduler_type: Literal["cosine", "multistep", "none"] = "cosine"
    """How the learning rate falls after the warmup."""
    milestones: tuple[int, ...] = ()
    """Steps at which a multistep schedule multiplies the learning rate by gamma."""
    gamma: float = 0.1
    """Factor of a multistep schedule."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    weight_decay_exclusion_list: tuple[str, ...] = ()
    """Parameters whose name contains one of these are not decayed."""
    gradient_clipping: float | None = None
    """Largest global gradient norm."""
    quantile_clipping: float | None = None
    """Clip each parameter's gradient norm to this quantile of its last 1000."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Autocast type; fp16 scales gradients."""
    deterministic: bool = False
    """Ask cuDNN for deterministic kernels."""
    tf32: bool = True
    """Allow TF32 matrix products on CUDA."""
    cpu: bool = False
    """Stay on the CPU although an accelerator is there."""
    threads: int | None = None
    """CPU threads; None leaves the number to torch. The bits of a run depend on it."""
    log_every: int = 100
    """Steps per row of train.csv."""
    track_every: int = 1000
    """Steps between evaluations."""
    save_every: int = 1000
    """Steps between checkpoints."""
    num_workers: int = 0
    """Processes that prepare batches ahead."""

    def __post_init__(self) -> None:
        require_positive(self, "training_iterations batch_size batch_size_test n_test_batches")
        require_positive(self, "log_every track_every save_every")
        for name in ("warmup_steps", "weight_decay", "num_workers"):
            require(getattr(self, name) >= 0, name, "not be negative", getattr(self, name))
        known = self.optimizer in ("adamw", "rmsprop")
        require(known, "optimizer", "be adamw or rmsprop", self.optimizer)
        require(0 <= self.seed < 2**32, "seed", "lie in [0, 2^32)", self.seed)
        require(0 < self.lr < float("inf"), "lr", "be positive and finite", self.lr)
        require(self.gamma > 0, "gamma", "be positive", self.gamma)
        require(self.threads is None or self.threads >= 1, "threads", "be at least 1 or None", self.threads)
        clip, quantile = self.gradient_clipping, self.quantile_clipping
        require(clip is None or clip > 0, "gradient_clipping", "be positive or None", clip)
        fits = quantile is None or 0 < quantile <= 1
        require(fits, "quantile_clipping", "lie in (0, 1] or be None", quantile)
        self.learning_rate(0)

    def learning_rate(self, step: int) -> float:
        """Learning rate of update ``step``, 0 for the first."""
        if self.scheduler_type == "cosine":
            return schedules.cosine(step, self.lr, self.warmup_steps, self.training_iterations)
        if self.scheduler_type == "multistep":
            return schedules.multistep(step, self.lr, self.warmup_steps, self.milestones, self.gamma)
        return schedules.constant(step, self.lr, self.warmup_steps)


def require_positive(config: object, names: str) -> None:
    """Raise ``UserError`` unless every field of ``config`` in the blank-separated ``names`` is at least 1."""
    for name in names.split():
        require(getattr(config, name) >= 1, name, "be at least 1", getattr(config, name))
