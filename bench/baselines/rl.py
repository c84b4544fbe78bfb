"""Strong eager steps of the RL agent's recurrent model.

Letters: B environments, K steps, D neurons, M memory length, P pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.baselines import nlm
from bench.baselines.ctm import nlm_dropout
from ctm_fast.models import Agent, ContinuousThoughtMachineRL

State = tuple[Tensor, Tensor]


def steps(agent: Agent, x: Tensor, state: State, done: Tensor) -> tuple[Tensor, State]:
    """``agent.get_states``: the backbone sees all steps at once, weights are permuted once for all of them.

    Args:
        agent: agent around a ``ContinuousThoughtMachineRL``.
        x: observations (K * B, ...), all environments of the first step first.
        state: pre- and post-activation histories (B, D, M).
        done: (K * B,), nonzero where an episode has ended just before that step.
    """
    model: ContinuousThoughtMachineRL = agent.recurrent_model
    batch = state[0].shape[0]
    permuted = nlm.permute(*nlm.weights(model.trace_processor))
    dropout = nlm_dropout(model)
    features = model.compute_features(x).split(batch)
    left, right = model.synchronisation_pairs("out")
    window = model.window_weights()  # (M, P)
    window, norm = window.t().unsqueeze(1), torch.sqrt(window.sum(0))
    starts = [s.unsqueeze(1) for s in (model.start_trace, model.start_activated_trace)]
    pre, post = (s.transpose(0, 1) for s in state)  # (D, B, M)
    outputs = []
    for inputs, ended in zip(features, done.bool().split(batch), strict=True):
        pre, post = (
            torch.where(ended[None, :, None], new, old) for new, old in zip(starts, (pre, post), strict=True)
        )
        for _ in range(model.iterations):
            pre = nlm.push(pre, model.synapses(torch.cat((inputs, post[:, :, -1].t()), dim=-1)))
            post = nlm.push(post, nlm.apply(permuted, pre, dropout).t())
        outputs.append((window * post[left] * post[right]).sum(-1).t() / norm)
    return torch.cat(outputs), (pre.transpose(0, 1), post.transpose(0, 1))
