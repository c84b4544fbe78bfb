"""Which implementation runs an op, and why another cannot.

``None`` picks the best that can run. A named backend runs exactly that or raises with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

BACKENDS = ("reference", "native", "triton")

_selected: ContextVar[str | None] = ContextVar("ctm_fast_backend", default=None)


def check_name(backend: str | None, where: str = "use_backend") -> None:
    """Raise ``ValueError`` unless ``backend`` is None or one of :data:`BACKENDS`."""
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"{where}: backend must be None or one of {BACKENDS}, got {backend!r}")


def selected() -> str | None:
    """The backend named by the innermost :func:`use_backend`, or None."""
    return _selected.get()


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Run every op and model of the block on one backend: ``"reference"``, ``"native"`` or ``"triton"``.

    Raises ``ValueError`` for an unknown name. An op that the named backend cannot run raises when it is called.
    """
    check_name(name)
    token = _selected.set(name)
    try:
        yield
    finally:
        _selected.reset(token)
