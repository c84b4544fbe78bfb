"""Adaptive computation time (arXiv 1603.08983): a network decides per sample how many substeps it takes.

``timestep`` holds the loop around any step function, ``mixture`` its arithmetic, ``recurrence`` the loop of an
RNN or LSTM over a sequence.
"""

from ctm_fast.ops.halting.mixture import halting_mean, halting_weights, ponder_cost
from ctm_fast.ops.halting.recurrence import AdaptiveRecurrence, adaptive_recurrence
from ctm_fast.ops.halting.timestep import AdaptiveHalting, adaptive_halting

__all__ = [
    "AdaptiveHalting",
    "AdaptiveRecurrence",
    "adaptive_halting",
    "adaptive_recurrence",
    "halting_mean",
    "halting_weights",
    "ponder_cost",
]
