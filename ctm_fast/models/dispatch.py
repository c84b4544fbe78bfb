"""The one place that decides which forward a model runs."""

from __future__ import annotations

from typing import Any


def run_forward(kind: str, model: Any, *inputs: Any) -> Any:
    """Run the forward of ``model``; ``kind`` is "base", "sort", "qamnist" or "rl".

    The published forward runs on the reference backend, where a subclass redefined a method that the fast one
    does not call, and once where lazy parameters wait for their shapes, so that they are drawn in the
    published order. Raises ``ValueError`` where the fast one has no tick to run, or numbers of a wrong rank to sort.
    """
    from ctm_fast import forward

    if forward.takes_published(model) or not forward.contains(model, kind):
        return model.published_forward(*inputs)
    _check(kind, model, inputs[0])
    return getattr(forward, kind)(model, *inputs)


def _check(kind: str, model: Any, x: Any) -> None:
    """Raise ``ValueError`` for what the loop cannot run; the forward of an accelerated model raises its own errors."""
    if kind != "qamnist" and model.iterations < 1:
        raise ValueError(f"{type(model).__name__}: iterations must be at least 1, got {model.iterations}")
    if kind == "sort" and x.dim() != 2:
        raise ValueError(f"{type(model).__name__}: x must have shape (B, N), got {tuple(x.shape)}")
