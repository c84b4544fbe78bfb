"""Configuration and presets of the parity experiment."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from ctm_fast.models.presets import get_preset
from tasks.config import TrainConfig, require_positive
from tasks.errors import require

LONGEST_SPLIT = 20


@dataclass(frozen=True, kw_only=True)
class ParityConfig(TrainConfig):
    """Model and data of one parity run."""

    model_type: Literal["ctm", "lstm"] = "ctm"
    """Continuous Thought Machine or LSTM baseline."""
    parity_sequence_length: int = 64
    """Values per sequence."""
    held_out: float = 0.0
    """Share of all patterns that is never trained on and forms the evaluation set; 0: fresh sequences."""
    iterations: int
    """Internal ticks."""
    memory_length: int
    """Pre-activations that each neuron-level model sees."""
    d_model: int
    """Neurons, or LSTM units."""
    d_input: int
    """Width of the attention."""
    heads: int
    """Attention heads."""
    n_synch_out: int
    """Neurons of the output synchronisation."""
    n_synch_action: int
    """Neurons of the action synchronisation."""
    neuron_select_type: Literal["first-last", "random", "random-pairing"]
    """How synchronised neurons are paired."""
    n_random_pairing_self: int = 0
    """Neurons paired with themselves under random-pairing."""
    synapse_depth: int
    """1 for one layer, more for a U-Net."""
    memory_hidden_dims: int
    """Hidden width of a neuron-level model."""
    dropout: float = 0.0
    """Dropout in synapses, attention and neuron-level models."""
    num_layers: int = 1
    """Layers of the LSTM."""
    use_most_certain_with_lstm: bool = False
    """Train and score the LSTM at its most certain tick instead of its last one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(
            self, "parity_sequence_length iterations memory_length d_model d_input heads num_layers"
        )
        require_positive(self, "n_synch_out n_synch_action synapse_depth memory_hidden_dims")
        require(self.d_input % self.heads == 0, "heads", f"divide d_input={self.d_input}", self.heads)
        require(0 <= self.dropout < 1, "dropout", "lie in [0, 1)", self.dropout)
        require(0 <= self.held_out < 1, "held_out", "lie in [0, 1)", self.held_out)
        if self.held_out:
            length = self.parity_sequence_length
            must = f"be at most {LONGEST_SPLIT} when patterns are held out"
            require(length <= LONGEST_SPLIT, "parity_sequence_length", must, length)
            trained = int((1 - self.held_out) * 2**length)
            require(trained >= 1, "held_out", "leave a pattern to train on", self.held_out)

    @property
    def use_most_certain(self) -> bool:
        """Whether the loss and the score look at the most certain tick (else at the last)."""
        return self.model_type == "ctm" or self.use_most_certain_with_lstm


def _published(name: str, **settings: Any) -> ParityConfig:
    """The published training settings around the model ``name`` of :mod:`ctm_fast.models.presets`."""
    names = {field.name for field in fields(ParityConfig)}
    model = {**get_preset("parity_ctm_75_25").arguments, **get_preset(name).arguments}
    settings = {"training_iterations": 200_001, "save_every": 10_000, "deterministic": True, **settings}
    return ParityConfig(**{key: value for key, value in model.items() if key in names}, **settings)


def _ctm(ticks: int, memory: int) -> ParityConfig:
    return _published(f"parity_ctm_{ticks}_{memory}", quantile_clipping=0.9)


def _lstm(ticks: int, certain: bool = False) -> ParityConfig:
    return _published(f"parity_lstm_{ticks}", model_type="lstm", use_most_certain_with_lstm=certain)


PRESETS: dict[str, ParityConfig] = {
    "quick": replace(
        _ctm(75, 25),
        parity_sequence_length=12,
        held_out=0.1,
        iterations=16,
        memory_length=12,
        d_model=128,
        d_input=64,
        heads=8,
        neuron_select_type="random-pairing",
        memory_hidden_dims=4,
        training_iterations=6000,
        lr=1e-3,
        warmup_steps=200,
        threads=1,
        track_every=500,
        save_every=500,
        log_every=50,
    ),
    **{f"ctm_{t}_{m}": _ctm(t, m) for t, m in ((1, 1), (10, 5), (25, 10), (50, 25), (75, 25), (100, 50))},
    **{f"lstm_{ticks}": _lstm(ticks) for ticks in (1, 10, 25, 50, 75, 100)},
    **{f"lstm_{ticks}_certain": _lstm(ticks, certain=True) for ticks in (10, 25)},
}
