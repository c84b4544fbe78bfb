"""The one place that decides which forward a model runs."""

from __future__ import annotations

from typing import Any

from ctm_fast import backend


def run_forward(kind: str, model: Any, *inputs: Any) -> Any:
    """Run the forward of ``model``; ``kind`` is "base", "sort", "qamnist" or "rl".

    The published forward runs on the reference backend, where a subclass redefined a method that the fast one
    does not call, and once where lazy parameters wait for their shapes, so that they are drawn in the
    published order.
    """
    from ctm_fast import forward

    if backend.selected() == "reference" or forward.is_lazy(model) or not forward.contains(model, kind):
        return model.published_forward(*inputs)
    return getattr(forward, kind)(model, *inputs)
