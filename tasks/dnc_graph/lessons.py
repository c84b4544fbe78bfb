"""The curricula of the graph tasks (Nature 2016, extended data; the lessons between are interpolated)."""

from __future__ import annotations

from typing import NamedTuple

from tasks.dnc_graph.graphs import Range


class Lesson(NamedTuple):
    """Bounds of one lesson, both ends included.

    Attributes:
        nodes: nodes of a graph.
        degree: out-edges of a node.
        path: edges of a walk, of a shortest path, or of a relation.
        queries: questions about one graph.
    """

    nodes: Range
    degree: Range
    path: Range
    queries: int = 1

    @property
    def triples(self) -> float:
        """Mean number of a graph's edges, each a triple to remember."""
        return sum(self.nodes) / 2 * sum(self.degree) / 2


def interpolate(first: Lesson, last: Lesson, lessons: int) -> tuple[Lesson, ...]:
    """``lessons`` steps from ``first`` to ``last``, every bound moving evenly and rounded."""

    def between(low: int, high: int, part: float) -> int:
        return round(low + (high - low) * part)

    def bounds(low: Range, high: Range, part: float) -> Range:
        return between(low[0], high[0], part), between(low[1], high[1], part)

    parts = [index / (lessons - 1) for index in range(lessons)]
    return tuple(
        Lesson(
            bounds(first.nodes, last.nodes, part),
            bounds(first.degree, last.degree, part),
            bounds(first.path, last.path, part),
            between(first.queries, last.queries, part),
        )
        for part in parts
    )


LESSONS: dict[str, tuple[Lesson, ...]] = {
    "traversal": interpolate(
        Lesson((3, 10), (2, 4), (1, 1)),
        Lesson((10, 40), (2, 6), (1, 20)),
        14,
    ),
    "shortest_path": interpolate(
        Lesson((3, 10), (2, 4), (1, 2)),
        Lesson((20, 25), (2, 6), (2, 5)),
        15,
    ),
    "inference": interpolate(
        Lesson((3, 10), (2, 2), (2, 2)),
        Lesson((20, 25), (2, 4), (2, 5), 3),
        17,
    ),
}
HARDER: dict[str, Lesson] = {
    "traversal": Lesson((40, 50), (2, 6), (20, 30)),
    "shortest_path": Lesson((25, 35), (2, 6), (4, 7)),
    "inference": Lesson((25, 35), (2, 4), (3, 5), 5),
}
