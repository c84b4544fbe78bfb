"""Errors that a person at the command line can act on: one clear sentence each, without a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """A wrong argument, folder or file; the message is ``op: argument must ..., got ...``.

    Not a ``ValueError``: the command-line parser would wrap that in a message of its own.
    """

    exit_code = 1


class SettingsError(UserError):
    """Settings or options that cannot be, apart or together."""

    exit_code = 2


def require(condition: bool, argument: str, must: str, got: object, op: str = "config") -> None:
    """Raise :class:`UserError` "op: argument must ..., got ..." unless ``condition`` holds.

    With the ``op`` "config" it is a :class:`SettingsError`.
    """
    if not condition:
        kind = SettingsError if op == "config" else UserError
        raise kind(f"{op}: {argument} must {must}, got {got!r}")


@contextmanager
def writing(path: Path, op: str, *failures: type[Exception]) -> Iterator[None]:
    """Turn an ``OSError``, or one of ``failures``, of a block that writes ``path`` into a ``UserError``."""
    caught: tuple[type[Exception], ...] = (OSError, *failures)
    try:
        yield
    except caught as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{op}: {str(path)!r} must be writable, got {reason}") from error
