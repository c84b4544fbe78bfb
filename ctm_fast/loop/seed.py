"""The seed of a forward's dropout masks, and those of its parts."""

from __future__ import annotations

from torch import Tensor


class Seed:
    """One seed for every stream of masks: an int for native kernels, a tensor on the GPU for Triton's.

    Args:
        value: int, or int64 with one element; it stays where it is.
    """

    def __init__(self, value: int | Tensor) -> None:
        self.value = value
        self.known: dict[int, int | Tensor] = {}

    def of(self, stream: int) -> int | Tensor:
        """The seed of a part; adding on the GPU is a launch, so each is made once."""
        found = self.known.get(stream)
        if found is None:
            found = (
                self.value + stream if isinstance(self.value, Tensor) else (self.value + stream) & (2**64 - 1)
            )
            self.known[stream] = found
        return found
