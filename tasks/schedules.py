"""Learning rate as a pure function of the step, so that a resumed run needs no hidden scheduler state.

Every function takes the step ``t`` (0 for the first update) and returns the learning rate used for that
update.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tasks.errors import require

START_LR = 1e-20
MINIMUM_LR = 1e-7


def cosine(t: int, base: float, warmup: int, total: int) -> float:
    """Linear from 1e-20 at step 0 to ``base`` at step ``warmup - 1``, then half a cosine from ``base`` at
    step ``warmup`` to 1e-7 at step ``total``. Without warmup the cosine starts at step 0.
    """
    if t < warmup:
        return START_LR + (base - START_LR) * t / max(1, warmup - 1)
    progress = (t - warmup) / max(1, total - warmup)
    return MINIMUM_LR + (base - MINIMUM_LR) * (1 + math.cos(math.pi * min(1.0, progress))) / 2


def constant(t: int, base: float, warmup: int) -> float:
    """Linear from 0 over ``warmup`` steps, then ``base``."""
    return base * min(1.0, t / warmup) if warmup else base


def multistep(t: int, base: float, warmup: int, milestones: Sequence[int], gamma: float) -> float:
    """:func:`constant`, multiplied by ``gamma`` once for every milestone reached. Milestones count from step
    0 and lie after the warmup.
    """
    after = all(m > warmup for m in milestones)
    require(after, "milestones", "lie after the warmup", tuple(milestones))
    return constant(t, base, warmup) * gamma ** sum(m <= t for m in milestones)
