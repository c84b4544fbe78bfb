"""Gradient clipping without a host synchronisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

HISTORY = 1000


class QuantileClip:
    """Clip the norm of each parameter's gradient to the ``quantile`` of its own last 1000 unclipped norms.

    The norms of the current step join the history after clipping, so the first step is not clipped. A norm
    that is not finite (a step that a gradient scaler will skip) is left out of the quantile.
    """

    def __init__(self, parameters: Sequence[Parameter], quantile: float) -> None:
        if not 0 < quantile <= 1:
            raise ValueError(f"QuantileClip: quantile must lie in (0, 1], got {quantile}")
        self.parameters = list(parameters)
        self.quantile = quantile
        self.steps = 0
        self.norms = torch.full((len(self.parameters), HISTORY), torch.nan, device=self.parameters[0].device)

    @torch.no_grad()
    def __call__(self) -> None:
        """Clip all gradients in place. A parameter without a gradient is left out of this step."""
        present = [i for i, p in enumerate(self.parameters) if p.grad is not None]
        rows = slice(None) if len(present) == len(self.parameters) else present
        gradients = [g for p in self.parameters if (g := p.grad) is not None]
        norms = torch.stack(torch._foreach_norm(gradients)).float()
        if self.steps:
            known = self.norms[rows, : min(self.steps, HISTORY)]
            limits = torch.nanquantile(known, self.quantile, dim=1).nan_to_num(nan=torch.inf)
            scales = (limits / (norms + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(gradients, list(scales.to(gradients[0].dtype).unbind()))
        self.norms[rows, self.steps % HISTORY] = norms.where(norms.isfinite(), torch.nan)
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """The history so far: what an exact resume needs."""
        return {"quantile": self.quantile, "steps": self.steps, "norms": self.norms}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict` of a clip over the same parameters."""
        norms: Tensor = state["norms"]
        if norms.shape != self.norms.shape:
            raise ValueError(
                f"QuantileClip: norms must have shape {tuple(self.norms.shape)}, got {tuple(norms.shape)}"
            )
        self.quantile, self.steps = float(state["quantile"]), int(state["steps"])
        self.norms.copy_(norms)
