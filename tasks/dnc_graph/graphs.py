"""Random graphs and what is asked about them, a whole batch at once.

Letters: B graphs, N nodes of the largest graph, K out-edges of the busiest node, E = N K edge places, R
relations.

Nodes are points drawn uniformly in the unit square; a node's out-edges lead to its nearest neighbours.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

LABELS = 1000
EDGE_TYPES = 10
RELATIONS_PER_LENGTH = 100
RELATION_LENGTHS = (2, 3, 4, 5)
RELATION_SEED = 0
MISSING = -1

Range = tuple[int, int]


class Graphs(NamedTuple):
    """A batch of labelled graphs, padded.

    Attributes:
        nodes: labels (B, N), int64, distinct in a graph.
        edges: labels (B, N, K), int64, distinct among a node's out-edges.
        targets: node that each edge leads to, (B, N, K), int64 in [0, N).
        exists: whether the edge is there, bool (B, N, K).
    """

    nodes: Tensor
    edges: Tensor
    targets: Tensor
    exists: Tensor


def randint(bounds: Range, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Uniform integers in ``bounds``, both ends included."""
    return torch.randint(bounds[0], bounds[1] + 1, size, generator=generator)


def random_graphs(
    batch: int, nodes: Range, degree: Range, generator: torch.Generator, edge_labels: int = LABELS
) -> Graphs:
    """``batch`` graphs of ``nodes`` points whose out-degrees lie in ``degree`` (at most nodes - 1).

    Edge labels are drawn from [0, ``edge_labels``), at least as many as the largest degree.
    """
    counts = randint(nodes, (batch,), generator)
    size, width = int(counts.max()), degree[1]
    present = torch.arange(size) < counts[:, None]
    points = torch.rand(batch, size, 2, generator=generator)
    distances = torch.cdist(points, points)
    distances[~present[:, None].expand_as(distances)] = torch.inf
    distances.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    width = min(width, size - 1)
    targets = distances.topk(width, largest=False).indices
    degrees = torch.minimum(randint(degree, (batch, size), generator), counts[:, None] - 1)
    exists = (torch.arange(width) < degrees[..., None]) & present[..., None]
    labels = torch.rand(batch, LABELS, generator=generator).topk(size).indices
    edges = distinct((batch, size, width), edge_labels, generator)
    return Graphs(labels, edges, targets.where(exists, 0), exists)


def distinct(shape: tuple[int, ...], values: int, generator: torch.Generator) -> Tensor:
    """Uniform integers in [0, ``values``), all different along the last dimension."""
    drawn = torch.randint(values, shape, generator=generator)
    while (clashing := _clashes(drawn)).any():
        drawn[clashing] = torch.randint(values, (int(clashing.sum()), shape[-1]), generator=generator)
    return drawn


def _clashes(drawn: Tensor) -> Tensor:
    ordered = drawn.sort(-1).values
    return (ordered[..., 1:] == ordered[..., :-1]).any(-1)


def triples(graphs: Graphs) -> Tensor:
    """Labels of source, edge and target of every edge place, (B, E, 3), int64."""
    batch = graphs.nodes.shape[0]
    sources = graphs.nodes[..., None].expand_as(graphs.edges)
    reached = graphs.nodes.gather(1, graphs.targets.view(batch, -1)).view_as(graphs.edges)
    return torch.stack((sources, graphs.edges, reached), -1).view(batch, -1, 3)


def random_walks(graphs: Graphs, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A walk of ``length`` uniformly chosen out-edges from a uniformly chosen node of each graph.

    Returns:
        edge places (B, length) into :func:`triples`, and the nodes visited (B, length + 1).
    """
    batch, _, width = graphs.edges.shape
    rows = torch.arange(batch)
    node = pick(graphs.exists.any(2), generator)
    places, visited = [], [node]
    for _ in range(length):
        edge = pick(graphs.exists[rows, node], generator)
        places.append(node * width + edge)
        node = graphs.targets[rows, node, edge]
        visited.append(node)
    return torch.stack(places, 1), torch.stack(visited, 1)


def pick(allowed: Tensor, generator: torch.Generator) -> Tensor:
    """One uniformly chosen index per row of the bool (B, n), among those allowed; at least one must be."""
    return torch.rand(allowed.shape, generator=generator).where(allowed, -1.0).argmax(-1)


def distances_between(graphs: Graphs, limit: int) -> Tensor:
    """Edges on the shortest path from node to node, (B, N, N), int64: 0 to itself, ``MISSING`` above
    ``limit``.
    """
    batch, size, _ = graphs.edges.shape
    step = torch.zeros(batch, size, size)
    step.scatter_add_(2, graphs.targets, graphs.exists.float())
    found = torch.full((batch, size, size), MISSING)
    reached = torch.eye(size).expand(batch, -1, -1)
    for distance in range(limit + 1):
        found[(reached > 0) & (found == MISSING)] = distance
        reached = (reached @ step).clamp(max=1.0)
    return found


def closest_to(values: Tensor, wanted: Tensor, generator: torch.Generator) -> Tensor:
    """Per row of ``values`` (B, n), the index of a random one of those closest to ``wanted`` (B,).

    Values below 1 are not eligible; at least one must be.
    """
    noise = torch.rand(values.shape, generator=generator) / 2
    score = noise - (values - wanted[:, None]).abs()
    return score.where(values >= 1, -torch.inf).argmax(1)


@cache
def relation_table() -> tuple[Tensor, Tensor]:
    """The relations that all graphs share: 100 sequences of edge types for each length from 2 to 5.

    Returns:
        edge types (R, 5), int64, ``MISSING`` after the sequence's end; lengths (R,). All length-2 sequences
        are among them, so that every graph has an answerable question. Relation r carries the label
        ``EDGE_TYPES`` + r.
    """
    generator = torch.Generator().manual_seed(RELATION_SEED)
    rows = []
    for length in RELATION_LENGTHS:
        codes = torch.randperm(EDGE_TYPES**length, generator=generator)[:RELATIONS_PER_LENGTH]
        digits = codes[:, None] // EDGE_TYPES ** torch.arange(length) % EDGE_TYPES
        rows.append(torch.nn.functional.pad(digits, (0, RELATION_LENGTHS[-1] - length), value=MISSING))
    return torch.cat(rows), torch.tensor(RELATION_LENGTHS).repeat_interleave(RELATIONS_PER_LENGTH)


def follow_relations(graphs: Graphs, types: Tensor) -> Tensor:
    """Node reached from every node by every relation, (B, N, R), int64; ``MISSING`` where no path exists.

    Args:
        graphs: with edge labels in [0, ``EDGE_TYPES``).
        types: edge types (R, S), ``MISSING`` after a relation's end.
    """
    batch, size, _ = graphs.edges.shape
    dead = size
    table = torch.full((batch, size + 1, EDGE_TYPES + 1), dead)  # last column: edges that do not exist
    labels = graphs.edges.where(graphs.exists, EDGE_TYPES)
    table[:, :size].scatter_(2, labels, graphs.targets)
    table[..., EDGE_TYPES] = torch.arange(size + 1)  # after the end: stay
    node = torch.arange(size)[:, None].expand(batch, size, len(types))
    rows = torch.arange(batch)[:, None, None]
    for column in types.where(types != MISSING, EDGE_TYPES).T:
        node = table[rows, node, column]
    return node.where(node != dead, MISSING)
