"""The answer phase of a shortest path: the network names a triple, walks along it and hears its own answer.

Letters: S answer steps, B graphs, K out-edges of a node.

An answer is right where it is an edge from the present node that leads one step closer to the goal; of
several such edges the one that the network finds most probable is its target. An answer that is no edge from
the present node leaves the walk where it is.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.dnc_graph.encoding import ANSWER, DIGITS, INPUTS, PHASE, TRIPLE, digits
from tasks.dnc_graph.questions import Routes


class Walk(NamedTuple):
    """What happened in the answer phase.

    Attributes:
        losses: cross entropy of the nine digits, summed, (S, B); 0 where nothing is asked.
        asked: where the goal was still to be reached, bool (S, B).
        right: where the most probable answer was right, bool (S, B).
        arrived: whether the walk reached the goal, bool (B,).
    """

    losses: Tensor
    asked: Tensor
    right: Tensor
    arrived: Tensor


def walk(model: nn.Module, routes: Routes, steps: int) -> Walk:
    """Read the question, then answer ``steps`` times; guided as ``routes.guided`` says, in training only."""
    state = model(routes.inputs).state
    batch, rows = len(routes.source), torch.arange(len(routes.source), device=routes.source.device)
    labels = digits(routes.triples).view(*routes.targets.shape, DIGITS)
    node, heard = routes.source, routes.inputs.new_zeros(batch, INPUTS)
    heard[:, PHASE] = 1.0
    record = []
    for step in range(steps):
        heard[:, ANSWER] = 1.0
        output, state, *_ = model(heard[None], state)
        logits = output.view(batch, DIGITS, 10)
        choices, there = labels[rows, node], routes.exists[rows, node]
        onward = routes.targets[rows, node]
        togo = routes.togo.gather(1, node[:, None])
        closer = there & (routes.togo.gather(1, onward) == togo - 1) & (togo > 0)
        best, scores = _best(logits, choices, closer)
        said = logits.argmax(-1)
        named = (said[:, None] == choices).all(-1) & there
        asked = closer.any(1)
        losses = -scores.gather(1, best[:, None]).squeeze(1).where(asked, 0.0)
        record.append((losses, asked, (named & closer).any(1)))
        guided = routes.guided[:, step] & asked & model.training
        moved = torch.where(guided, best, named.int().argmax(1))
        stays = ~(guided | named.any(1))
        node = node.where(stays | ~asked, onward.gather(1, moved[:, None]).squeeze(1))
        spoken = said.where(~guided[:, None], choices[rows, best])
        heard = F.pad(F.one_hot(spoken, 10).flatten(1).to(heard.dtype), (0, INPUTS - TRIPLE))
    arrived = routes.togo.gather(1, node[:, None]).squeeze(1) == 0
    losses, asked, right = (torch.stack(parts) for parts in zip(*record, strict=True))
    return Walk(losses, asked, right, arrived)


def _best(logits: Tensor, choices: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """The most probable allowed edge (B,), and the log probabilities (B, K) of all."""
    log_probability = logits.log_softmax(-1)[:, None].expand(-1, choices.shape[1], -1, -1)
    scores = log_probability.gather(3, choices[..., None]).squeeze(3).sum(2)
    return scores.detach().where(allowed, -torch.inf).argmax(1), scores
