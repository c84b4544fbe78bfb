"""Gives accelerated models their own forward back."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from ctm_fast import forward

CHECKED = "_ctm_fast_checked"  # in the dictionary of a model: mode -> whether both forwards agree

Model = TypeVar("Model", bound=nn.Module)


def is_accelerated(module: nn.Module) -> bool:
    """Whether ``module`` runs the fast forward; ``torch.nn.utils.parametrize`` puts a class before its own."""
    cls = type(module)
    parametrized = "parametrizations" in module._modules and len(cls.__bases__) == 1
    return forward.ACCELERATED in (cls.__bases__[0] if parametrized else cls).__dict__


def restore(model: Model) -> Model:
    """Give every accelerated CTM in ``model`` its own forward back; returns ``model``.

    Does nothing where there is none. Raises ``TypeError`` where ``model`` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"restore: model must be a torch.nn.Module, got {type(model).__name__}")
    for module in model.modules():
        if is_accelerated(module):
            module.__dict__.pop(CHECKED, None)
            module.__class__ = _restored(type(module))
    return model


def _restored(cls: type) -> type:
    """What an accelerated class was; one that ``torch.nn.utils.parametrize`` made of it is made again of that."""
    if forward.ACCELERATED in cls.__dict__:
        return cls.__bases__[0]
    body = {key: value for key, value in vars(cls).items() if key not in ("__dict__", "__weakref__")}
    return type(cls.__name__, (_restored(cls.__bases__[0]), *cls.__bases__[1:]), body)
