"""Checks of constructor arguments."""

from __future__ import annotations


class ArgumentError(ValueError, AssertionError):
    """A constructor argument is not valid.

    A ``ValueError`` like everywhere in this package, and also the ``AssertionError`` that callers of the
    published constructors catch.
    """


def require(condition: bool, message: str) -> None:
    """Raise :class:`ArgumentError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise ArgumentError(message)


def require_positive(**sizes: int) -> None:
    """Raise :class:`ArgumentError` unless every size is at least 1."""
    for name, size in sizes.items():
        require(size >= 1, f"{name} must be at least 1, got {size}")
