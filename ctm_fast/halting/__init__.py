"""Choosing when samples stop thinking: thresholds for a wanted accuracy, and what they cost. Imports no torch.

``HeldOut`` holds what a model computed at every tick for samples that it was not trained on. ``calibrate`` picks the
rule with the fewest ticks for a wanted accuracy, ``pareto`` gives the whole curve, ``evaluate`` measures any rule;
``halted`` is the rule itself. The rule picked is a ``ctm_fast.engine.Halt``, for ``engine(x, halt=...)``.
"""

from ctm_fast.halting.figure import draw
from ctm_fast.halting.heldout import Evaluation, HeldOut, evaluate
from ctm_fast.halting.rule import Halted, halted
from ctm_fast.halting.search import Point, calibrate, pareto

__all__ = ["Evaluation", "Halted", "HeldOut", "Point", "calibrate", "draw", "evaluate", "halted", "pareto"]
