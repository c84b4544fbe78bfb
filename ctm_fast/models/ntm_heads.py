"""From a controller's output to the heads and to the model's output.

Letters: T steps, B batch, C controller size, R read heads, W width of a slot, P interface vector, O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

START_TEMPERATURE = 5.0


class LinearHeads(nn.Module):
    """One linear map to the interface vector, one from controller output and reads to the output."""

    def __init__(self, controller_size: int, interface: int, reads: tuple[int, int], outputs: int) -> None:
        super().__init__()
        self.to_interface = nn.Linear(controller_size, interface)
        self.to_output = nn.Linear(controller_size + reads[0] * reads[1], outputs)

    @staticmethod
    def fed_back(reads: Tensor) -> Tensor:
        """What the controller sees of reads (B, R, W): (B, R W)."""
        return reads.flatten(1)

    def interface(self, hidden: Tensor) -> Tensor:
        """Raw interface vectors (..., P) of controller outputs (..., C)."""
        interface: Tensor = self.to_interface(hidden)
        return interface

    def output(self, hidden: Tensor, reads: Tensor) -> Tensor:
        """Outputs (T, B, O) of controller outputs (T, B, C) and reads (T, B, R, W)."""
        output: Tensor = self.to_output(torch.cat((hidden, reads.flatten(2)), -1))
        return output


class SplitHeads(nn.Module):
    """No map at all: the controller's output is the interface vector and the output, side by side."""

    def __init__(self, interface: int, outputs: int) -> None:
        super().__init__()
        self.sizes = [interface, outputs]
        self.temperature = nn.Parameter(torch.tensor(START_TEMPERATURE))

    @staticmethod
    def fed_back(reads: Tensor) -> Tensor:
        """What the controller sees of reads (B, R, W): the last head's, (B, W)."""
        return reads[:, -1]

    def interface(self, hidden: Tensor) -> Tensor:
        """Raw interface vectors (..., P) of controller outputs (..., P + O)."""
        return hidden[..., : self.sizes[0]]

    def output(self, hidden: Tensor, reads: Tensor) -> Tensor:
        """Outputs (T, B, O) of controller outputs (T, B, P + O); reads do not matter."""
        return self.temperature * hidden[..., self.sizes[0] :]
