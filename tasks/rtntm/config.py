"""Configurations and presets of the RTNTM experiments."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any

from ctm_fast.models.presets import get_preset
from tasks import schedules
from tasks.config import TrainConfig, require_positive
from tasks.errors import require
from tasks.rtntm.data import ALPHABET, FIRST_SYMBOL


@dataclass(frozen=True, kw_only=True)
class RTNTMConfig(TrainConfig, ABC):
    """Model and curriculum of one RTNTM run."""

    d_model: int
    """Width of the model and of a memory slot."""
    heads: int
    """Attention heads of the encoder."""
    layers: int = 1
    """Encoder layers."""
    slots: int
    """Memory slots in training; longer evaluation sequences get the slots that they need."""
    window: int
    """Embedded inputs that the encoder sees."""
    read_heads: int = 1
    """Read heads."""
    write_heads: int = 1
    """Write heads."""
    state_layers: int = 1
    """Recurrent state layers."""
    dropout: float = 0.0
    """Dropout in the encoder."""
    eps: float
    """Inside both roots of the cosine between keys and slots."""
    entropy: float
    """Weight of the entropy of all weightings after the last step in the loss."""
    final_lr: float = 0.1
    """Where the cosine ends, as a share of lr."""
    start: int
    """Longest question of the first level."""
    rise: int
    """What a level adds to it."""
    advance_accuracy: float = 0.99
    """A level ends when this share of the training answers is right as a whole ..."""
    advance_loss: float = 0.01
    """... and the training loss is at most this."""
    advance_every: int
    """Training steps over which both are taken."""
    beyond: tuple[int, ...]
    """Lengths (numbers of digits) of the sets that only the command evaluate scores."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "d_model heads layers slots window read_heads write_heads state_layers")
        require_positive(self, "start rise advance_every")
        require(self.d_model % self.heads == 0, "heads", f"divide d_model={self.d_model}", self.heads)
        require(0 <= self.dropout < 1, "dropout", "lie in [0, 1)", self.dropout)
        require(0 < self.eps < float("inf"), "eps", "be positive and finite", self.eps)
        require(self.entropy >= 0, "entropy", "not be negative", self.entropy)
        require(0 <= self.final_lr <= 1, "final_lr", "lie in [0, 1]", self.final_lr)
        require(self.start <= self.longest, "start", f"be at most {self.longest}", self.start)
        require(all(n >= 1 for n in self.beyond), "beyond", "hold numbers of at least 1", self.beyond)
        needed = self.slots_for(self.steps_for(self.longest))
        require(self.slots >= needed, "slots", f"be at least {needed} to keep the question", self.slots)

    @property
    @abstractmethod
    def longest(self) -> int:
        """Symbols or digits of the last level."""

    @property
    @abstractmethod
    def vocabulary_size(self) -> int:
        """Tokens V."""

    @abstractmethod
    def steps_for(self, longest: int) -> int:
        """Steps T of a question of ``longest`` symbols or digits and its answer."""

    @abstractmethod
    def slots_for(self, steps: int) -> int:
        """Memory slots that keep the question of a sequence of ``steps``, one symbol or digit each."""

    def learning_rate(self, step: int) -> float:
        if self.scheduler_type != "cosine" or step < self.warmup_steps:
            return super().learning_rate(step)
        low = self.final_lr * self.lr
        return low + schedules.cosine(step, self.lr - low, self.warmup_steps, self.training_iterations)


@dataclass(frozen=True, kw_only=True)
class CopyConfig(RTNTMConfig):
    """Copy or reverse a sequence of symbols."""

    adam_betas = (0.9, 0.98)

    length: int
    """Longest sequence in training, and the length of the evaluation sequences."""
    vocabulary: int
    """Tokens: a blank, a delimiter and the symbols."""

    def __post_init__(self) -> None:
        require_positive(self, "length")
        super().__post_init__()
        least = FIRST_SYMBOL + 1
        require(self.vocabulary >= least, "vocabulary", f"be at least {least}", self.vocabulary)

    @property
    def longest(self) -> int:
        return self.length

    @property
    def vocabulary_size(self) -> int:
        return self.vocabulary

    def steps_for(self, longest: int) -> int:
        return 2 * longest + 1

    def slots_for(self, steps: int) -> int:
        return steps // 2


@dataclass(frozen=True, kw_only=True)
class AddConfig(RTNTMConfig):
    """Add two numbers digit by digit."""

    digits: int
    """Most digits of a number in training, and the digits of both numbers of an evaluation sum."""
    ahead: int = 0
    """How many digits more than a level's one of the two numbers may have: to copy it comes before to add."""
    mixed: bool = True
    """Whether the numbers of digits differ within a batch; else a batch shares two random ones."""

    def __post_init__(self) -> None:
        require_positive(self, "digits")
        super().__post_init__()
        require(self.ahead >= 0, "ahead", "not be negative", self.ahead)

    @property
    def longest(self) -> int:
        return self.digits

    @property
    def vocabulary_size(self) -> int:
        return len(ALPHABET)

    def steps_for(self, longest: int) -> int:
        return 3 * longest + 4

    def slots_for(self, steps: int) -> int:
        return 2 * steps // 3


def _model(name: str, config_class: type[RTNTMConfig]) -> dict[str, Any]:
    """The model settings of the published model ``name``."""
    names = {field.name for field in fields(config_class)}
    return {key: value for key, value in get_preset(name).arguments.items() if key in names}


_TRAINING: dict[str, Any] = {
    "training_iterations": 50_000,
    "batch_size": 32,
    "batch_size_test": 128,
    "n_test_batches": 8,
    "warmup_steps": 1000,
    "gradient_clipping": 1.0,
    "advance_every": 20,
    "log_every": 20,
    "track_every": 500,
    "save_every": 500,
}
_COPY = CopyConfig(
    **_TRAINING,
    **_model("rtntm_copy", CopyConfig),
    length=50,
    start=2,
    rise=2,
    beyond=(60, 75, 100),
    entropy=0.01,
    lr=1e-3,
    weight_decay=1e-4,
)
_ADD = AddConfig(
    **_TRAINING,
    **_model("rtntm_add_104", AddConfig),
    digits=20,
    start=1,
    rise=1,
    beyond=(22, 25, 30),
    entropy=0.001,
    lr=3e-4,
)
_QUICK: dict[str, Any] = {"d_model": 64, "eps": 1e-2, "warmup_steps": 200, "threads": 1}
COPY_PRESETS: dict[str, CopyConfig] = {
    "quick": replace(_COPY, **_QUICK, lr=2e-3, start=5, rise=5, training_iterations=1000),
    "published": _COPY,
}
ADD_PRESETS: dict[str, AddConfig] = {
    "quick": replace(
        _ADD,
        **_QUICK,
        lr=1e-3,
        heads=8,
        slots=32,
        window=2,
        digits=10,
        dropout=0.0,
        ahead=4,
        beyond=(11, 12, 15, 20),
        advance_accuracy=0.9,
        advance_loss=0.15,
        training_iterations=6000,
    ),
    "published": _ADD,
    "published_64": replace(_ADD, **_model("rtntm_add_64", AddConfig)),
    "published_200": replace(_ADD, **_model("rtntm_add_200", AddConfig)),
}
