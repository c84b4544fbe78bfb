"""The model's settings, shared by the three experiments."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from ctm_fast.models import DNC
from ctm_fast.models.presets import get_preset
from tasks.config import TrainConfig, require_positive
from tasks.errors import require


@dataclass(frozen=True, kw_only=True)
class DncConfig(TrainConfig):
    """One Differentiable Neural Computer and its training."""

    controller: Literal["ff", "gru", "lstm"] = "lstm"
    """Network that drives the memory."""
    controller_size: int = 64
    """Units of each layer of the controller."""
    controller_layers: int = 1
    """Layers of the controller."""
    slots: int = 16
    """Memory slots N."""
    width: int = 16
    """Values of a memory slot, W."""
    read_heads: int = 1
    """Read heads R."""
    sparse: int | None = None
    """Temporal links kept per slot; None keeps the whole N x N matrix."""
    clip: float | None = 20.0
    """Largest absolute value of an output; None does not clip."""
    bypass_dropout: float = 0.0
    """Dropout on the controller's output where it goes straight to the answer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "controller_size controller_layers slots width read_heads")
        few = self.sparse is None or 1 <= self.sparse <= self.slots
        require(few, "sparse", f"be None or lie in [1, slots={self.slots}]", self.sparse)
        require(self.clip is None or self.clip > 0, "clip", "be positive or None", self.clip)
        dropout = self.bypass_dropout
        require(0 <= dropout < 1, "bypass_dropout", "lie in [0, 1)", dropout)

    def build_model(self, inputs: int, outputs: int) -> DNC:
        """A fresh model of ``inputs`` and ``outputs`` values per step."""
        return DNC(
            inputs,
            outputs,
            controller=self.controller,
            controller_size=self.controller_size,
            controller_layers=self.controller_layers,
            slots=self.slots,
            width=self.width,
            read_heads=self.read_heads,
            sparse=self.sparse,
            clip=self.clip,
            bypass_dropout=self.bypass_dropout,
        )


def paper_settings(preset: str) -> dict[str, Any]:
    """Model and training settings of the paper's experiment ``preset`` of ``ctm_fast.models.presets``.

    The paper clips the gradients of the LSTM's activations at 10; here it is the norm of all gradients.
    """
    arguments = get_preset(preset).arguments
    known = {field.name for field in fields(DncConfig)}
    return {
        **{name: value for name, value in arguments.items() if name in known},
        "optimizer": "rmsprop",
        "scheduler_type": "none",
        "warmup_steps": 0,
        "gradient_clipping": 10.0,
    }
