"""Named configurations of the bAbI experiment."""

from __future__ import annotations

from dataclasses import replace

from tasks.dnc.config import paper_settings
from tasks.dnc_babi.config import BabiConfig

_PAPER = BabiConfig(
    **paper_settings("dnc_babi_1"),
    collection="en-10k",
    batch_size=1,
    batch_size_test=8,
    training_iterations=500_000,
    track_every=10_000,
    save_every=5_000,
)
PRESETS: dict[str, BabiConfig] = {
    "quick": BabiConfig(
        collection="en-10k",
        questions=(1,),
        controller_size=48,
        slots=32,
        width=32,
        read_heads=2,
        bypass_dropout=0.9,
        batch_size=32,
        batch_size_test=100,
        lr=3e-3,
        scheduler_type="none",
        warmup_steps=100,
        gradient_clipping=1.0,
        curriculum=True,
        renaming=True,
        training_iterations=10_000,
        track_every=250,
        save_every=250,
        log_every=50,
        threads=1,
    ),
    "paper": _PAPER,
    "paper_en": replace(_PAPER, collection="en"),
    "paper_dnc2": replace(_PAPER, slots=256, width=32, read_heads=8),
}
