"""No forward and no backward of a model on a GPU reads the GPU or sends it data from the host.

On the meta device, which has no numbers to read: kernels are noted instead of launched, and every operation on a
tensor of the host is an error.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ctm_fast import backend, models
from ctm_fast.models import DNC, NTM
from ctm_fast.nn import TickLoop
from ctm_fast.ops import checks, triton
from ctm_fast.ops.nlm import rows

SIZES = {
    "iterations": 2, "d_model": 12, "d_input": 8, "n_synch_out": 3, "synapse_depth": 1, "memory_length": 3,
    "deep_nlms": True, "memory_hidden_dims": 2, "do_layernorm_nlm": False, "dropout": 0.1,
}  # fmt: skip
ATTENDING = {
    **SIZES, "heads": 2, "n_synch_action": 2, "backbone_type": "parity_backbone", "out_dims": 4,
    "positional_embedding_type": "custom-rotational-1d",
}  # fmt: skip
WORDS = ("nlm", "sync", "ntm", "dnc")
EXPECTED: dict[str, set[str]] = {
    "base-layernorm": {"forward_kernel", "backward_kernel"},
    "ntm": set(),
    "dnc": set(),
}
ALL_KERNELS = {
    "pack_kernel",
    "forward_kernel",
    "input_kernel",
    "weight_kernel",
    "unpack_kernel",
    "backward_kernel",
}


def base(**changes: Any) -> tuple[nn.Module, tuple[Any, ...]]:
    return models.ContinuousThoughtMachine(**{**ATTENDING, **changes}), (
        torch.randint(0, 2, (2, 6)) * 2.0 - 1,
    )


def sort() -> tuple[nn.Module, tuple[Any, ...]]:
    sizes = {**ATTENDING, "backbone_type": "none", "positional_embedding_type": "none"}
    return models.ContinuousThoughtMachineSORT(**sizes), (torch.randn(2, 8),)


def rl() -> tuple[nn.Module, tuple[Any, ...]]:
    model = models.ContinuousThoughtMachineRL(**SIZES, backbone_type="classic-control-backbone")
    return model, (torch.randn(2, 4), (torch.randn(2, 12, 3), torch.randn(2, 12, 3)))


def loop() -> tuple[nn.Module, tuple[Any, ...]]:
    return TickLoop(12, 8, 3, heads=2, n_synch=4, selection="last", dropout=0.1), (torch.randn(2, 5, 8), 2)


CASES: dict[str, Callable[[], tuple[nn.Module, tuple[Any, ...]]]] = {
    "base": base,
    "base-dense": lambda: base(neuron_select_type="first-last"),
    "base-semi-dense": lambda: base(neuron_select_type="random"),
    "base-unet": lambda: base(synapse_depth=3, d_model=32),
    "base-layernorm": lambda: base(do_layernorm_nlm=True),
    "sort": sort,
    "rl": rl,
    "loop": loop,
    "ntm": lambda: (NTM(3, 6, controller_size=8, slots=6, width=4), (torch.randn(4, 2, 3),)),
    "dnc": lambda: (DNC(3, 6, controller_size=8, slots=6, width=4), (torch.randn(4, 2, 3),)),
}


class OnTheDevice(TorchDispatchMode):
    """Refuses tensors of the host in every operation."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        refuse_host((args, kwargs, found), str(func))
        return found


def refuse_host(values: Any, name: str) -> None:
    for x in tree_leaves(values):
        assert not isinstance(x, Tensor) or x.is_meta, f"{name} touches a tensor on {x.device}"


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that would have been launched; ops run their own code instead of their fakes."""
    names: list[str] = []

    def launch(kernel: Any, _: Any) -> Callable[..., None]:
        def note(*args: Any, **kwargs: Any) -> None:
            refuse_host((args, kwargs), kernel.fn.__name__)
            names.append(kernel.fn.__name__)

        return note

    modules = [importlib.import_module(f"ctm_fast.ops.{word}.triton") for word in WORDS]
    registered = triton.op

    def unregistered(name: str, chosen: str) -> Any:
        if name.startswith("nlm_rows_"):
            return partial(getattr(rows, name.removeprefix("nlm_rows")), chosen)
        found = (getattr(module, name) for module in modules if hasattr(module, name))
        return next(found, None) or registered(name, chosen)

    monkeypatch.setattr(type(modules[0].forward_kernel), "__getitem__", launch)
    monkeypatch.setattr(triton, "op", unregistered)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)  # does not know the meta device
    monkeypatch.setattr(checks, "indices", lambda *_: None)  # read once for a buffer: ops/sync/arguments.py
    on_gpu = backend.why_not
    monkeypatch.setattr(backend, "why_not", lambda op, name, _, *dtype: on_gpu(op, name, "cuda", *dtype))
    return names


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_read_from_the_device_or_sent_to_it(name: str, launched: list[str]) -> None:
    model, inputs = CASES[name]()
    model(*inputs)  # gives lazy layers their sizes
    model = model.to("meta").train()
    inputs = tree_map(lambda x: x.to("meta") if isinstance(x, Tensor) else x, inputs)
    launched.clear()
    with OnTheDevice():
        outputs = [y for y in tree_leaves(model(*inputs)) if isinstance(y, Tensor) and y.requires_grad]
        torch.autograd.backward(outputs, [torch.zeros_like(y) for y in outputs])
        model.eval()
        with torch.no_grad():
            model(*inputs)
    assert EXPECTED.get(name, ALL_KERNELS) <= set(launched)


def test_a_read_would_be_found(launched: list[str]) -> None:
    with OnTheDevice(), pytest.raises(AssertionError, match="touches a tensor on cpu"):
        torch.zeros(2, device="meta").copy_(torch.ones(2))
    with OnTheDevice(), pytest.raises(RuntimeError, match="meta"):
        torch.zeros(1, device="meta").item()
