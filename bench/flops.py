"""Counting the multiply-adds of matrix products.

Unlike torch's own counter this sets no hooks on modules, which would make ctm_fast call them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=found)
        return found


def counted(run: Callable[[], Any]) -> tuple[Any, int]:
    """What ``run`` returns, and twice the multiply-adds of its matrix products, convolutions and attentions."""
    with _Counter() as counter:
        found = run()
    return found, counter.total
