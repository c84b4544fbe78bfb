"""What the four experiments of adaptive computation time have in common in their configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from tasks.config import TrainConfig, require_positive
from tasks.errors import require

PAPER: dict[str, Any] = {
    "lr": 1e-4, "scheduler_type": "none", "warmup_steps": 0, "training_iterations": 1_000_000,
    "save_every": 10_000, "track_every": 10_000,
}  # fmt: skip
"""Training of arXiv 1603.08983, on one process."""
PUBLISHED: dict[str, Any] = {"scheduler_type": "none", "warmup_steps": 0, "reduction": "mean"}
"""What the later runs have in common."""
QUICK: dict[str, Any] = {
    "lr": 3e-3, "scheduler_type": "cosine", "warmup_steps": 100, "gradient_clipping": 1.0, "threads": 1,
    "track_every": 500, "save_every": 500,
}  # fmt: skip
"""Fast learning: a high rate that falls, under a narrow clip."""


@dataclass(frozen=True, kw_only=True)
class AdaptiveConfig(TrainConfig):
    """Model, ponder cost and curriculum of one run."""

    cell: Literal["rnn", "lstm"]
    """Tanh network or LSTM."""
    hidden_size: int
    """Units of the cell."""
    input_scale: float = 1.0
    """Factor on the cell's initial input weights and input biases; above 1 its units start beyond linear."""
    adaptive: bool = True
    """Decide the number of steps per input; False takes one step, for comparison."""
    time_penalty: float = 0.001
    """Weight tau of the ponder cost in the loss."""
    reduction: Literal["sum", "mean"] = "sum"
    """Add losses and ponder over a sequence (the paper) or average them."""
    epsilon: float = 0.01
    """An input is finished when its halting probabilities add up to 1 - epsilon."""
    max_steps: int = 100
    """Most steps per input."""
    halting_bias: float = 1.0
    """Initial bias of the halting unit; lower means more steps at the start."""
    curriculum_goal: float | None = None
    """Share of whole sequences right at which training gets harder; None trains at full difficulty."""
    curriculum_every: int = 10
    """Steps between two decisions of the curriculum."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "hidden_size max_steps curriculum_every")
        scale = self.input_scale
        require(0 < scale < float("inf"), "input_scale", "be positive and finite", scale)
        tau, goal = self.time_penalty, self.curriculum_goal
        require(0 <= tau < float("inf"), "time_penalty", "be finite and not negative", tau)
        require(0 < self.epsilon < 1, "epsilon", "lie in (0, 1)", self.epsilon)
        bias = self.halting_bias
        require(math.isfinite(bias), "halting_bias", "be finite", bias)
        fits = goal is None or 0 < goal <= 1
        require(fits, "curriculum_goal", "lie in (0, 1] or be None", goal)


def require_range(config: object, low: str, high: str, least: int, most: int) -> None:
    """Raise ``UserError`` unless ``least`` <= ``config.low`` <= ``config.high`` <= ``most``."""
    first, last = getattr(config, low), getattr(config, high)
    require(least <= last <= most, high, f"lie in [{least}, {most}]", last)
    require(least <= first <= last, low, f"lie in [{least}, {last}]", first)
