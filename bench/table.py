"""All rows, and how a command line chooses among them."""

from __future__ import annotations

from collections.abc import Sequence

from bench.row import Row


def all_rows() -> list[Row]:
    """Every row of a processor, in the order of the table."""
    from bench import dnc, engine, halting, memory_models, memory_ops, models, nlm, ntm, ntm_model, sync

    ops = (nlm, sync, ntm, dnc, memory_ops)
    return [
        row for module in (*ops, models, engine, ntm_model, memory_models, halting) for row in module.rows()
    ]


def gpu_rows() -> list[Row]:
    """Every row of a GPU; imports less than :func:`all_rows`, for machines that have less."""
    from bench import gpu_rows

    return gpu_rows.rows()


def find_rows(words: Sequence[str], quick: bool = False, device: str = "cpu") -> list[Row]:
    """Rows that any of ``words`` selects, all without words.

    With ``quick`` only those of the short table, and those named in full. The device "cuda" has rows of its own.

    Raises ``ValueError`` for a word that selects none.
    """
    rows = gpu_rows() if device == "cuda" else all_rows()
    for word in words:
        if not any(row.matches(word) for row in rows):
            known = sorted({w for row in rows for w in (row.kind, *row.words)})
            raise ValueError(
                f"bench: name must be a row of --list or one of {', '.join(known)}, got {word!r}"
            )
    found = [row for row in rows if not words or any(row.matches(word) for word in words)]
    return [row for row in found if row.quick or row.name in words] if quick else found
