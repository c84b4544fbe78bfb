"""Settings that the experiments of the Neural Turing Machine share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ctm_fast.models.ntm_presets import NTM_ARGUMENTS, SPLIT_LAYOUT
from ctm_fast.models.ntm_state import tells_slots_apart
from tasks.config import TrainConfig, require_positive
from tasks.errors import require

MODEL_FIELDS = (
    "controller", "controller_size", "controller_layers", "slots", "width", "read_heads", "write_heads",
    "shift", "memory_init", "weights_init", "read_init", "clip", "split_hidden",
)  # fmt: skip
COLLIER: dict[str, Any] = {"lr": 1e-3, "gradient_clipping": 50.0, "training_iterations": 31_250}
"""Training of arXiv 1807.08518."""
PAPER: dict[str, Any] = {
    "optimizer": "rmsprop", "batch_size": 1, "training_iterations": 1_000_000, "track_every": 10_000,
}  # fmt: skip
"""Training of arXiv 1410.5401, but for its clipping of single gradient elements at 10: norms are clipped at 10."""
QUICK: dict[str, Any] = {
    "lr": 3e-3, "scheduler_type": "cosine", "gradient_clipping": 1.0, "threads": 1, "log_every": 50,
    "track_every": 500, "save_every": 500,
}  # fmt: skip
"""Fast learning: a high rate that falls, under a narrow clip."""


@dataclass(frozen=True, kw_only=True)
class NtmConfig(TrainConfig):
    """The model of a run and how it is trained."""

    controller: Literal["lstm", "rnn", "ff"] = "lstm"
    """Kind of controller."""
    controller_size: int | None = 100
    """Units of a controller layer; None with split_hidden, where it follows from the heads."""
    controller_layers: int = 1
    """Layers of the controller."""
    slots: int = 128
    """Slots of the memory."""
    width: int = 20
    """Width of a slot."""
    read_heads: int = 1
    """Heads that read."""
    write_heads: int = 1
    """Heads that write."""
    shift: int = 3
    """Positions a head can shift by, odd: 3 is one slot back, none, or one slot forward."""
    memory_init: Literal["constant", "zeros", "random", "learned"] = "constant"
    """What the memory holds before the first step."""
    weights_init: Literal["learned", "one_hot", "uniform"] = "learned"
    """Where the heads stand before the first step."""
    read_init: Literal["learned", "zeros", "random"] = "learned"
    """What counts as read before the first step."""
    clip: float | None = 20.0
    """Bound of the interface vector and of the output."""
    split_hidden: bool = False
    """The controller's output itself is interface vector and output."""
    batch_size: int = 32
    """Training sequences per step and process."""
    batch_size_test: int = 64
    """Evaluation sequences per batch."""
    warmup_steps: int = 0
    """Steps of linear warmup."""
    scheduler_type: Literal["cosine", "multistep", "none"] = "none"
    """How the learning rate falls after the warmup."""
    gradient_clipping: float | None = 10.0
    """Largest global gradient norm."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "controller_layers slots width read_heads write_heads shift")
        require(self.shift % 2 == 1, "shift", "be odd", self.shift)
        require(self.slots >= self.shift, "slots", f"be at least shift={self.shift}", self.slots)
        apart = tells_slots_apart(self.slots, self.memory_init, self.weights_init)
        must = (
            f"not be uniform beside memory_init={self.memory_init!r}: no slot would ever differ from another"
        )
        require(apart, "weights_init", must, self.weights_init)
        size = self.controller_size
        require(
            (size is None) == self.split_hidden, "controller_size", "be None with split_hidden only", size
        )
        require(size is None or size >= 1, "controller_size", "be at least 1", size)
        require(self.clip is None or self.clip > 0, "clip", "be positive or None", self.clip)

    def require_slots(self, needed: int, what: str) -> None:
        """Raise ``UserError`` unless every one of what must be remembered at once has a slot."""
        require(self.slots >= needed, "slots", f"be at least {needed}, one for each {what}", self.slots)

    def model_arguments(self) -> dict[str, Any]:
        """Constructor arguments of ``ctm_fast.models.NTM`` but for the sizes of input and output."""
        arguments = {name: getattr(self, name) for name in MODEL_FIELDS}
        return arguments | (SPLIT_LAYOUT if self.split_hidden else {})


@dataclass(frozen=True, kw_only=True)
class VectorConfig(NtmConfig):
    """Sequences of random vectors or symbols, perhaps with a curriculum."""

    alphabet: Literal["bits", "symbols"] = "bits"
    """Vectors of independent bits, or one-hot symbols."""
    bits: int = 8
    """Bits of a vector, or size of the alphabet."""
    label_smoothing: float = 0.0
    """Smoothing of the targets; symbols only."""
    entropy_weight: float = 0.0
    """Weight in the loss of the mean entropy of the heads' weightings after the last step."""
    curriculum: bool = False
    """Start with the shortest sequences and go on where accuracy allows."""
    curriculum_goal: float = 0.99
    """Training accuracy at which sequences grow."""
    curriculum_every: int = 100
    """Steps between two looks at the accuracy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "curriculum_every")
        least = 2 if self.alphabet == "symbols" else 1
        require(self.bits >= least, "bits", f"be at least {least}", self.bits)
        require(0 <= self.label_smoothing < 1, "label_smoothing", "lie in [0, 1)", self.label_smoothing)
        smooth = self.alphabet == "symbols" or not self.label_smoothing
        require(smooth, "label_smoothing", "be 0 with the alphabet bits", self.label_smoothing)
        require(0 <= self.curriculum_goal <= 1, "curriculum_goal", "lie in [0, 1]", self.curriculum_goal)
        require(self.entropy_weight >= 0, "entropy_weight", "not be negative", self.entropy_weight)


def require_range(config: object, low: str, high: str) -> None:
    """Raise ``UserError`` unless 1 <= the field ``low`` <= the field ``high``."""
    least, most = getattr(config, low), getattr(config, high)
    require(least >= 1, low, "be at least 1", least)
    require(most >= least, high, f"be at least {low}={least}", most)


def model_fields(name: str) -> dict[str, Any]:
    """Settings of the model ``name`` of :mod:`ctm_fast.models.ntm_presets`."""
    return {key: value for key, value in NTM_ARGUMENTS[name].items() if key in MODEL_FIELDS}
