"""Recording what a model does at every tick (``track=True``)."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from torch import Tensor


def to_numpy(x: Tensor) -> np.ndarray:
    """A copy of ``x`` outside autograd; bfloat16, which numpy lacks, becomes float32."""
    x = x.detach().cpu()
    return np.array((x.float() if x.dtype == torch.bfloat16 else x).numpy())


class TickRecord:
    """One list of arrays per named quantity, one array per tick; records nothing unless ``enabled``."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self._ticks: dict[str, list[np.ndarray]] = defaultdict(list)

    def add(self, **values: Tensor) -> None:
        """Append this tick's values."""
        if self.enabled:
            for name, value in values.items():
                self._ticks[name].append(to_numpy(value))

    def arrays(self, *names: str) -> tuple[np.ndarray, ...]:
        """Each name's ticks stacked on a new first dimension; empty, (0,), where nothing was recorded."""
        return tuple(np.array(self._ticks[name]) for name in names)
