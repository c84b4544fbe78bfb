"""Controllers of the Neural Turing Machine: feed-forward, vanilla RNN and LSTM, run step by step or at once.

Letters: T steps, B batch, I inputs, F reads that are fed back (as one vector), C controller size, L layers,
G gates (C, or 4 C of an LSTM). A layer's state is a tuple of (B, C): (hidden, cell), (hidden,) or (); that of
a controller is a tuple of (L, B, C), in the order of ``torch.nn.LSTM``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctm_fast.models.checks import check_layers
from ctm_fast.models.dispatch import is_plain

State = tuple[Tensor, ...]
Slope = Callable[[int, State], tuple[Tensor, State]]
Step = Callable[[int, Tensor, list[State]], tuple[Tensor, list[State]]]


class LayerWeights(NamedTuple):
    """One layer: gates = input @ inputs.T + hidden @ recurrent.T + bias."""

    inputs: Tensor  # (G, I + F) in the lowest layer, (G, C) above
    recurrent: Tensor | None  # (G, C)
    bias: Tensor  # (G)


class JoinedWeights(NamedTuple):
    """The parameters of one forward: gates = constant + known @ joined.T, where known is what is fed back, reads
    or the layer below, beside the hidden state, and the constant the projection or the bias.
    """

    projected: Tensor  # (T, B, G), the inputs of the lowest layer
    joined: list[Tensor]  # (G, K) of every layer
    biases: list[Tensor]  # (G) of all but the lowest


class Controller(nn.Module, ABC):
    """What the controllers share.

    A step reads the parameters of torch's own modules below. Where one of them has hooks or parametrizations,
    or is another in its place, it is called instead, step by step. The controller itself is never called.

    Args:
        inputs: I.
        fed_back: F; 0 for a controller that does not see what was read.
        size: C.
        layers: L.
    """

    states: int
    """Tensors in the state of a layer."""

    def __init__(self, inputs: int, fed_back: int, size: int, layers: int) -> None:
        super().__init__()
        self.inputs, self.fed_back, self.size, self.layers = inputs, fed_back, size, layers

    @abstractmethod
    def is_plain(self) -> bool:
        """Whether the modules below do what :meth:`weights` and :meth:`activate` say, and nothing beside."""

    @abstractmethod
    def weights(self) -> list[LayerWeights]:
        """The parameters by layer, the lowest first."""

    @abstractmethod
    def activate(self, gates: Tensor, state: State) -> State:
        """Gates (B, G) and a layer's state to the layer's output (B, C), followed by what else is kept."""

    def slopes(self, gates: Tensor, before: State, after: State) -> Slope:
        """The gradient of :meth:`activate` for what a layer saw in T steps; here that of tanh units.

        Args:
            gates: (T, B, G).
            before, after: (T, B, C) each, the states before every step, and what :meth:`activate` returned.

        Returns:
            function of a step's index and the gradients of what :meth:`activate` returned, to the gradients
            of its gates (B, G) and of its state behind the hidden one.
        """
        slope = (1 - after[0].square()).unbind(0)
        return lambda t, grads: (grads[0] * slope[t], ())

    @abstractmethod
    def sequence(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """All steps of (T, B, I + F) at once: outputs (T, B, C) and the state after the last."""

    def initial(self, batch: int, like: Tensor) -> State:
        """A state of zeros in the dtype and on the device of ``like``."""
        return tuple(like.new_zeros(self.layers, batch, self.size) for _ in range(self.states))

    def check(self, model: str, state: State, batch: int) -> None:
        """Raise ``TypeError`` or ``ValueError`` unless ``state`` is one of this controller and batch."""
        check_layers(model, state, self.states, (self.layers, batch, self.size))

    def split(self, state: State) -> list[State]:
        """A controller's state by layer."""
        return [tuple(part[layer] for part in state) for layer in range(self.layers)]

    def join(self, layers: list[State]) -> State:
        """The inverse of :meth:`split`."""
        return tuple(torch.stack([layer[part] for layer in layers]) for part in range(self.states))

    def joined(self, x: Tensor) -> JoinedWeights:
        """What one forward needs of the parameters, for inputs (T, B, I): all that needs no reads is done."""
        lowest, *above = self.weights()
        projected = F.linear(x, lowest.inputs[:, : self.inputs], lowest.bias)
        fed_back = lowest._replace(inputs=lowest.inputs[:, self.inputs :])
        return JoinedWeights(
            projected, [_joined(layer) for layer in (fed_back, *above)], [layer.bias for layer in above]
        )

    def stepper(self, x: Tensor) -> Step:
        """The function of one step of one forward, for inputs (T, B, I).

        It takes the step's index, the reads (B, F) and the states by layer, and returns the output (B, C) and
        the new states.
        """
        if not self.is_plain():
            return self._caller(x)
        weights = self.joined(x)
        projected, joined = weights.projected.unbind(0), [weight.t() for weight in weights.joined]

        def step(t: int, reads: Tensor, states: list[State]) -> tuple[Tensor, list[State]]:
            below, new = reads, []
            for index, (weight, state) in enumerate(zip(joined, states, strict=True)):
                known = torch.cat((below, state[0]), 1) if state else below
                constant = weights.biases[index - 1] if index else projected[t]
                kept = self.activate(torch.addmm(constant, known, weight), state)
                below = kept[0]
                new.append(kept[: self.states])
            return below, new

        return step

    def _caller(self, x: Tensor) -> Step:
        """:meth:`stepper` by calls of the modules."""

        def step(t: int, reads: Tensor, states: list[State]) -> tuple[Tensor, list[State]]:
            seen = torch.cat((x[t], reads), 1) if self.fed_back else x[t]
            outputs, state = self.sequence(seen.unsqueeze(0), self.join(states))
            return outputs[0], self.split(state)

        return step


def _joined(layer: LayerWeights) -> Tensor:
    return layer.inputs if layer.recurrent is None else torch.cat((layer.inputs, layer.recurrent), 1)


class FeedForwardController(Controller):
    """Layers of tanh units."""

    states = 0

    def __init__(self, inputs: int, fed_back: int, size: int, layers: int) -> None:
        super().__init__(inputs, fed_back, size, layers)
        widths = [inputs + fed_back, *[size] * (layers - 1)]
        self.linears = nn.ModuleList(nn.Linear(width, size) for width in widths)

    def is_plain(self) -> bool:
        return is_plain(nn.Linear, *self.linears)

    def weights(self) -> list[LayerWeights]:
        layers = (cast(nn.Linear, layer) for layer in self.linears)
        return [LayerWeights(layer.weight, None, layer.bias) for layer in layers]

    def activate(self, gates: Tensor, state: State) -> State:
        return (torch.tanh(gates),)

    def sequence(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        for linear in self.linears:
            x = torch.tanh(linear(x))
        return x, ()


class RecurrentController(Controller):
    """Layers of ``torch.nn.RNN`` (tanh), whose parameters it has."""

    states = 1
    kind: type[nn.RNNBase] = nn.RNN

    def __init__(self, inputs: int, fed_back: int, size: int, layers: int) -> None:
        super().__init__(inputs, fed_back, size, layers)
        self.rnn: nn.RNNBase = self.kind(inputs + fed_back, size, layers)  # type: ignore[arg-type]

    def is_plain(self) -> bool:
        return is_plain(self.kind, self.rnn)

    def weights(self) -> list[LayerWeights]:
        return [LayerWeights(w, recurrent, b + c) for w, recurrent, b, c in self.rnn.all_weights]

    def activate(self, gates: Tensor, state: State) -> State:
        return (torch.tanh(gates),)

    def sequence(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        outputs, hidden = self.rnn(x, state[0])
        return outputs, (hidden,)


class LSTMController(RecurrentController):
    """Layers of ``torch.nn.LSTM``, whose parameters it has."""

    states = 2
    kind = nn.LSTM

    def activate(self, gates: Tensor, state: State) -> State:
        i, f, g, o = gates.chunk(4, 1)
        cell = torch.addcmul(torch.sigmoid(f) * state[1], torch.sigmoid(i), torch.tanh(g))
        return torch.sigmoid(o) * torch.tanh(cell), cell

    def slopes(self, gates: Tensor, before: State, after: State) -> Slope:
        gates = gates.unflatten(2, (4, self.size))
        i, f, o = gates[:, :, [0, 1, 3]].sigmoid().unbind(2)
        g, bounded = gates[:, :, 2].tanh(), after[1].tanh()
        through = (o * (1 - bounded.square())).unbind(0)  # from the output to the cell
        inner = torch.stack((g * i * (1 - i), before[1] * f * (1 - f), i * (1 - g.square())), 2).unbind(0)
        outer, kept = (bounded * o * (1 - o)).unbind(0), f.unbind(0)

        def slope(t: int, grads: State) -> tuple[Tensor, State]:
            hidden, cell = grads
            cell = torch.addcmul(cell, hidden, through[t])
            found = torch.cat((cell.unsqueeze(1) * inner[t], (hidden * outer[t]).unsqueeze(1)), 1)
            return found.flatten(1), (cell * kept[t],)

        return slope

    def sequence(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return self.rnn(x, state)


CONTROLLERS: dict[str, type[Controller]] = {
    "ff": FeedForwardController,
    "rnn": RecurrentController,
    "lstm": LSTMController,
}
