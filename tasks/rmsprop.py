"""RMSProp in the form of Graves (arXiv 1308.0850, equations 38 to 45), which the papers on external memory use."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class GravesRMSprop(Optimizer):
    """Gradients over the root of their running variance, with momentum on the steps.

    For every gradient g: n <- r n + (1 - r) g^2, m <- r m + (1 - r) g, s <- momentum s - lr g / sqrt(n - m^2 +
    eps), and s is added to the parameter. ``torch.optim.RMSprop`` adds eps outside the root.

    Args:
        params: parameters or groups, as for every optimiser.
        lr: learning rate.
        decay: r, in [0, 1).
        momentum: in [0, 1).
        eps: positive; floor of the variance.
        weight_decay: share of the parameter, times lr, that every step takes off.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        decay: float = 0.95,
        momentum: float = 0.9,
        eps: float = 1e-4,
        weight_decay: float = 0.0,
    ) -> None:
        for name, value in (("decay", decay), ("momentum", momentum)):
            if not 0 <= value < 1:
                raise ValueError(f"GravesRMSprop: {name} must lie in [0, 1), got {value}")
        if eps <= 0:
            raise ValueError(f"GravesRMSprop: eps must be positive, got {eps}")
        defaults = {"lr": lr, "decay": decay, "momentum": momentum, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One update; ``closure`` computes the loss again where it is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._update(parameters, **{k: v for k, v in group.items() if k in self.defaults})
        return loss

    def _update(
        self,
        parameters: list[Tensor],
        lr: float,
        decay: float,
        momentum: float,
        eps: float,
        weight_decay: float,
    ) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        squares, means, steps = (
            [self._state(p, name) for p in parameters] for name in ("square", "mean", "step")
        )
        torch._foreach_mul_(squares, decay)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - decay)
        torch._foreach_lerp_(means, gradients, 1 - decay)
        roots = torch._foreach_addcmul(squares, means, means, -1.0)
        torch._foreach_add_(roots, eps)
        torch._foreach_sqrt_(roots)
        torch._foreach_mul_(steps, momentum)
        torch._foreach_addcdiv_(steps, gradients, roots, -lr)
        if weight_decay:
            torch._foreach_mul_(parameters, 1 - lr * weight_decay)
        torch._foreach_add_(parameters, steps)

    def _state(self, parameter: Tensor, name: str) -> Tensor:
        state = self.state[parameter]
        if name not in state:
            state[name] = torch.zeros_like(parameter)
        value: Tensor = state[name]
        return value
