"""The one place that decides which forward a model runs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ctm_fast.loop.plan import why_called

_TENSORS = {"base": ("x",), "sort": ("x",), "qamnist": ("x", "z"), "rl": ("x",)}


def run_forward(kind: str, model: Any, *inputs: Any) -> Any:
    """Run the forward of ``model``; ``kind`` is "base", "sort", "qamnist" or "rl".

    The published forward runs on the reference backend, where a subclass redefined a method that the fast one
    does not call, and once where lazy parameters wait for their shapes, so that they are drawn in the
    published order. Raises ``TypeError`` where an input is no tensor, ``ValueError`` where the fast one has no tick to
    run, or numbers of a wrong rank to sort.
    """
    from ctm_fast import forward

    _check_tensors(kind, model, inputs)
    if forward.takes_published(model) or not forward.contains(model, kind):
        return model.published_forward(*inputs)
    _check(kind, model, inputs[0])
    return getattr(forward, kind)(model, *inputs)


def _check_tensors(kind: str, model: Any, inputs: tuple[Any, ...]) -> None:
    """Raise ``TypeError`` where an input is no tensor."""
    named: dict[str, Any] = dict(zip(_TENSORS[kind], inputs, strict=False))
    if kind == "rl":
        named |= {f"hidden_states[{i}]": value for i, value in enumerate(inputs[1])}
    for name, value in named.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{type(model).__name__}: {name} must be a torch.Tensor, got {type(value).__name__}"
            )


def _check(kind: str, model: Any, x: Any) -> None:
    """Raise ``ValueError`` for what the loop cannot run; the forward of an accelerated model raises its own errors."""
    if kind != "qamnist" and model.iterations < 1:
        raise ValueError(f"{type(model).__name__}: iterations must be at least 1, got {model.iterations}")
    if kind == "sort" and x.dim() != 2:
        raise ValueError(f"{type(model).__name__}: x must have shape (B, N), got {tuple(x.shape)}")


def is_plain(kind: type[nn.Module], *modules: nn.Module) -> bool:
    """Whether the parameters of all modules say what calling them would do.

    So they do if every one is exactly of this class of torch, as this package builds it, without hooks,
    parametrizations or a forward of its own.
    """
    exact = all(type(module) is kind and _as_built(module) for module in modules)
    return exact and why_called(list(modules)) is None


def _as_built(module: nn.Module) -> bool:
    """With biases (a tensor, of recurrent networks a flag) and tanh, without dropout."""
    bias: Any = module.bias
    biased = isinstance(bias, Tensor) or bias is True
    dropout, activation = getattr(module, "dropout", 0.0), getattr(module, "nonlinearity", "tanh")
    return biased and not dropout and activation == "tanh"
