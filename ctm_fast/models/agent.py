"""The reinforcement-learning agent: a recurrent model with an actor and a critic.

Shape letters: B environments, K steps, A actions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical

State = tuple[Tensor, Tensor]


def _head(in_dims: int, out_dims: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(
        _orthogonal(in_dims, hidden),
        nn.ReLU(),
        _orthogonal(hidden, hidden),
        nn.ReLU(),
        _orthogonal(hidden, out_dims),
    )


def _orthogonal(in_dims: int, out_dims: int) -> nn.Linear:
    layer = nn.Linear(in_dims, out_dims)
    nn.init.orthogonal_(layer.weight, 1.0)
    nn.init.zeros_(layer.bias)
    return layer


class Agent(nn.Module):
    """Actor and critic on what a recurrent model returns.

    Args:
        recurrent_model: ``ContinuousThoughtMachineRL``, ``LSTMBaselineRL``, or any module with
            ``features_dim``, ``initial_state(batch)`` and ``forward(x, state) -> features, state``.
        n_actions: number of discrete actions A.
        hidden: width of the two hidden layers of actor and critic.
    """

    def __init__(self, recurrent_model: Any, n_actions: int, hidden: int = 64) -> None:
        super().__init__()
        self.recurrent_model = recurrent_model
        self.actor = _head(recurrent_model.features_dim, n_actions, hidden)
        self.critic = _head(recurrent_model.features_dim, 1, hidden)

    def get_initial_state(self, num_envs: int) -> State:
        """The learned start state of every environment."""
        state: State = self.recurrent_model.initial_state(num_envs)
        return state

    def get_states(self, x: Tensor, state: State, done: Tensor) -> tuple[Tensor, State]:
        """Run the recurrent model over K steps.

        Args:
            x: observations (K * B, ...), all environments of the first step first.
            state: state before the first step, B rows.
            done: (K * B,), nonzero where an episode has ended just before that step; its state starts anew.

        Returns:
            Features (K * B, features_dim) and the state after the last step.
        """
        batch = state[0].shape[0]
        if x.shape[0] % batch or x.shape[0] != done.numel():
            raise ValueError(
                f"get_states: x and done must have steps * {batch} rows, got {x.shape[0]} and {done.numel()}"
            )
        features = []
        for x_step, done_step in zip(x.split(batch), done.flatten().bool().split(batch), strict=True):
            state = self._restart(state, done_step)
            step_features, state = self.recurrent_model(x_step, state)
            features.append(step_features)
        return torch.cat(features), state

    def get_value(self, x: Tensor, state: State, done: Tensor) -> Tensor:
        """Values (K * B, 1); arguments as for :meth:`get_states`."""
        value: Tensor = self.critic(self.get_states(x, state, done)[0])
        return value

    def get_action_and_value(
        self, x: Tensor, state: State, done: Tensor, action: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, State]:
        """Sample actions, or score the given ones; other arguments as for :meth:`get_states`.

        Returns:
            Actions, their log-probabilities and the entropies, (K * B,) each, values (K * B, 1), state.
        """
        features, state = self.get_states(x, state, done)
        policy = Categorical(logits=self.actor(features))
        if action is None:
            action = policy.sample()
        return action, policy.log_prob(action), policy.entropy(), self.critic(features), state

    def _restart(self, state: State, done: Tensor) -> State:
        """The learned start state where ``done`` (B,), the given state elsewhere."""
        start = self.get_initial_state(done.numel())
        first, second = (
            torch.where(done.view(-1, *[1] * (old.dim() - 1)), new, old)
            for new, old in zip(start, state, strict=True)
        )
        return first, second
