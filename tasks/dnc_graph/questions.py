"""Batches of the three graph tasks: description, query, planning and answer phases.

Letters: T steps, B graphs, E triples of the largest graph.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tasks.dnc_graph import graphs as g
from tasks.dnc_graph.encoding import Sequences, one_hot, shuffled
from tasks.dnc_graph.lessons import Lesson

PLANNING = 10
SPARE_STEPS = 1


class Answers(NamedTuple):
    """A batch of traversal or inference.

    Attributes:
        inputs: (T, B, 92), float32.
        targets: digits (T, B, 9), int64, where an answer is expected.
        mask: (T, B), float32, 1 where an answer is expected.
    """

    inputs: Tensor
    targets: Tensor
    mask: Tensor


def traversal(batch: int, lesson: Lesson, generator: torch.Generator) -> Answers:
    """Follow a walk: the query gives its first node and its edges, the answer is the walk's triples."""
    graphs = g.random_graphs(batch, lesson.nodes, lesson.degree, generator)
    labels = g.triples(graphs)
    places, _ = g.random_walks(graphs, lesson.path[1], generator)
    lengths = g.randint(lesson.path, (batch,), generator)
    walk = labels.gather(1, places[..., None].expand(-1, -1, 3))
    described, edges = shuffled(labels, graphs.exists.flatten(1), generator)

    sequences = Sequences(edges + 2 * lengths)
    sequences.show(torch.zeros_like(edges), one_hot(described), edges)
    sequences.begin(edges)
    sequences.show(edges, one_hot(walk, (False, True, False)), lengths)
    sequences.show(edges, one_hot(walk, (True, True, False)), torch.ones_like(edges))
    sequences.ask(edges + lengths, walk, lengths)
    return Answers(sequences.inputs, sequences.targets, sequences.mask)


def inference(batch: int, lesson: Lesson, generator: torch.Generator) -> Answers:
    """Where does a relation, a fixed sequence of edge types, lead from a node? One triple per question.

    The relations are the same in every graph and never described: the weights must learn them.
    """
    graphs = g.random_graphs(batch, lesson.nodes, lesson.degree, generator, edge_labels=g.EDGE_TYPES)
    types, lengths = g.relation_table()
    reached = g.follow_relations(graphs, types)
    usable = lengths.where(reached != g.MISSING, 0).flatten(1)
    described, edges = shuffled(g.triples(graphs), graphs.exists.flatten(1), generator)

    block = PLANNING + 2
    sequences = Sequences(edges + lesson.queries * block)
    sequences.show(torch.zeros_like(edges), one_hot(described), edges)
    one = torch.ones_like(edges)
    for query in range(lesson.queries):
        choice = g.closest_to(usable, g.randint(lesson.path, (batch,), generator), generator)
        source, relation = choice // len(types), choice % len(types)
        target = reached.flatten(1).gather(1, choice[:, None])
        ends = graphs.nodes.gather(1, torch.cat((source[:, None], target), 1))
        triple = torch.stack((ends[:, 0], g.EDGE_TYPES + relation, ends[:, 1]), 1)[:, None]
        start = edges + query * block
        sequences.begin(start)
        sequences.show(start, one_hot(triple, (True, True, False)), one)
        sequences.begin(start + 1)
        sequences.ask(start + 1 + PLANNING, triple, one)
    return Answers(sequences.inputs, sequences.targets, sequences.mask)


class Routes(NamedTuple):
    """A batch of shortest paths. Its answer phase depends on what the network says: see
    :mod:`tasks.dnc_graph.walking`.

    Attributes:
        inputs: (T, B, 92), float32, up to the end of the planning phase, all sequences ending there together.
        triples: labels (B, E, 3), int64, of every edge place.
        targets: node that each edge leads to, (B, N, K) with N K = E.
        exists: whether the edge is there, bool (B, N, K).
        togo: edges from each node to the goal, (B, N), int64; -1 where it is further than any answer allows.
        source: first node (B,).
        guided: (B, steps), bool: DAGGER's choices; the walk takes the optimal edge there.
    """

    inputs: Tensor
    triples: Tensor
    targets: Tensor
    exists: Tensor
    togo: Tensor
    source: Tensor
    guided: Tensor


def shortest_path(batch: int, lesson: Lesson, guidance: float, generator: torch.Generator) -> Routes:
    """Name the triples of a shortest path between two nodes; ``guidance`` is DAGGER's beta."""
    graphs = g.random_graphs(batch, lesson.nodes, lesson.degree, generator)
    labels = g.triples(graphs)
    reach = lesson.path[1] + SPARE_STEPS
    distances = g.distances_between(graphs, reach)
    within = distances.where(distances <= lesson.path[1], g.MISSING).flatten(1)
    choice = g.closest_to(within, g.randint(lesson.path, (batch,), generator), generator)
    size = distances.shape[1]
    source, goal = choice // size, choice % size
    described, edges = shuffled(labels, graphs.exists.flatten(1), generator)

    ends = graphs.nodes.gather(1, torch.stack((source, goal), 1))
    query = torch.stack((ends[:, 0], torch.zeros_like(goal), ends[:, 1]), 1)[:, None]
    longest = edges.max().expand(batch)
    sequences = Sequences(longest + 1 + PLANNING)
    sequences.show(longest - edges, one_hot(described), edges)
    sequences.begin(longest)
    sequences.show(longest, one_hot(query, (True, False, True)), torch.ones_like(edges))
    sequences.begin(longest + 1)
    togo = distances.gather(2, goal[:, None, None].expand(-1, size, 1)).squeeze(2)
    guided = torch.rand(batch, reach, generator=generator) < guidance
    return Routes(sequences.inputs, labels, graphs.targets, graphs.exists, togo, source, guided)
