"""What the backward passes of all native ops share."""

from __future__ import annotations

import torch


def refuse_double_backward(op: str) -> None:
    """Raise if the caller asked for create_graph: the kernels' backward is not differentiable."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            f"{op}: create_graph=True needs the differentiable backend, use backend='reference' "
            "or ctm_fast.use_backend('reference')"
        )
