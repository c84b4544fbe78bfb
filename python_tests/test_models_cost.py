"""The published forward costs what the published model costs: kernel-sized aten ops per tick.

A kernel-sized op computes or copies; views and bare allocations are left out. The ops of one tick are half
the difference between three and five ticks, the longer pass adding to the gradients that the shorter one
left: the published numbers were counted so.
"""

from collections import Counter

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from ctm_fast.models import presets

FREE = {"_unsafe_view", "empty", "empty_like", "new_empty", "new_empty_strided"}

# Forward and backward ops per tick.
PUBLISHED = {"parity_ctm_75_25": (59, 144), "cifar10_ctm": (86, 244), "mazes_small": (162, 344)}


class KernelCounter(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.ops: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view and func.overloadpacket.__name__ not in FREE:
            self.ops[str(func)] += 1
        return func(*args, **(kwargs or {}))


def count(model, inputs, ticks):
    """Kernel-sized ops (forward, backward) of ``ticks`` ticks."""
    model.iterations = ticks
    with KernelCounter() as forward:
        predictions, *_ = model.published_forward(*inputs)
    with KernelCounter() as backward:
        predictions.sum().backward()
    return forward.ops.total(), backward.ops.total()


@pytest.mark.parametrize("name", PUBLISHED)
def test_kernels_per_tick(name):
    inputs = presets.example_inputs(name, batch=2)
    model = presets.build(name, iterations=1).train()
    model(*inputs)
    short, long = count(model, inputs, 3), count(model, inputs, 5)
    forward, backward = ((b - a) / 2 for a, b in zip(short, long, strict=True))
    assert (forward, backward) == pytest.approx(PUBLISHED[name], rel=0.05)


def test_keys_and_values_are_projected_at_every_tick():
    name = "parity_ctm_75_25"
    inputs = presets.example_inputs(name)
    model = presets.build(name, iterations=1)
    model(*inputs)
    calls: list[int] = []
    model.attention.register_forward_hook(lambda *_: calls.append(1))
    model.iterations = 4
    model.published_forward(*inputs)
    assert len(calls) == 4
