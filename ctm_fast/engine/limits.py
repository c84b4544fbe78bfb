"""Ranges of the numbers that an engine is made of: sizes are 32-bit, what is computed with is float32."""

from __future__ import annotations

from typing import Any

import numpy as np

SIZE_END = 1 << 31  # sizes lie below; then no product that native code forms overflows
MOST_ELEMENTS = 1 << 34  # float32 numbers that an engine works in
MOST_NUMBER = float(np.finfo(np.float32).max)


def whole(x: Any) -> int:
    """``x``, which a file holds as a whole number. Raises ``ValueError`` for anything else, also of another type."""
    if type(x) is not int:
        raise ValueError(f"{x!r} where a whole number belongs")
    return x


def number(x: Any) -> float:
    """``x``, which a file holds as a finite float32. Raises ``ValueError`` for anything else."""
    if type(x) not in (int, float) or not -MOST_NUMBER <= x <= MOST_NUMBER:
        raise ValueError(f"{x!r} where a finite number belongs")
    return float(x)


def is_eps(x: float) -> bool:
    """Whether this can be added to a variance or a norm."""
    return 0 <= x <= MOST_NUMBER
