"""Configuration and presets of the copy experiment."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.config import require_positive
from tasks.dnc.config import DncConfig
from tasks.errors import require


@dataclass(frozen=True, kw_only=True)
class CopyConfig(DncConfig):
    """Model and data of one copy run."""

    bits: int = 8
    """Bits of a vector."""
    shortest: int = 1
    """Vectors of the shortest sequence."""
    longest: int = 20
    """Vectors of the longest sequence."""
    curriculum_start: int | None = None
    """Longest sequence at the start; None trains at all lengths from the first step."""
    curriculum_step: int = 2
    """Vectors by which the longest sequence grows."""
    curriculum_goal: float = 0.99
    """Share of right bits at which it does."""
    curriculum_every: int = 50
    """Steps between two decisions."""
    beyond: tuple[int, ...] = (30, 50)
    """Lengths that evaluate also tries."""
    slots_beyond: int | None = None
    """Memory slots while it does; None leaves their number."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "bits shortest curriculum_step curriculum_every")
        require(self.longest >= self.shortest, "longest", f"be at least {self.shortest}", self.longest)
        start, longest = self.curriculum_start, self.longest
        fits = start is None or self.shortest <= start <= longest
        require(fits, "curriculum_start", f"be None or lie in [{self.shortest}, {longest}]", start)
        require(0 < self.curriculum_goal <= 1, "curriculum_goal", "lie in (0, 1]", self.curriculum_goal)
        require(self.slots >= longest, "slots", f"be at least longest={longest}, one per vector", self.slots)
        require(all(n > longest for n in self.beyond), "beyond", f"be above longest={longest}", self.beyond)
        more = self.slots_beyond
        require(more is None or more >= self.slots, "slots_beyond", f"be None or at least {self.slots}", more)


PRESETS: dict[str, CopyConfig] = {
    "quick": CopyConfig(
        controller_size=64,
        slots=24,
        slots_beyond=128,
        width=16,
        batch_size=16,
        batch_size_test=64,
        lr=3e-3,
        scheduler_type="none",
        warmup_steps=100,
        gradient_clipping=1.0,
        curriculum_start=2,
        training_iterations=2000,
        beyond=(30, 50, 100),
        track_every=250,
        save_every=250,
        log_every=20,
        threads=1,
    ),
    "published": CopyConfig(
        controller="gru",
        controller_size=200,
        controller_layers=2,
        slots=128,
        width=20,
        batch_size=32,
        batch_size_test=64,
        lr=1e-3,
        weight_decay=1e-5,
        scheduler_type="none",
        warmup_steps=0,
        gradient_clipping=10.0,
        curriculum_start=2,
        training_iterations=20_000,
        beyond=(30, 50, 100),
    ),
}
