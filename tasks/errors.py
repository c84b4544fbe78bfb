"""Errors that a person at the command line can act on: one clear sentence each, without a traceback."""

from __future__ import annotations


class UserError(ValueError):
    """A wrong argument, folder or file; the message is ``op: argument must ..., got ...``."""


def require(condition: bool, argument: str, must: str, got: object, op: str = "config") -> None:
    """Raise :class:`UserError` "op: argument must ..., got ..." unless ``condition`` holds."""
    if not condition:
        raise UserError(f"{op}: {argument} must {must}, got {got!r}")
