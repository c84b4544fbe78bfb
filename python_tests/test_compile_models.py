"""CTMs inside ``torch.compile`` on the path that a GPU takes: one graph, our ops in it, no window kept."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch._inductor.config
from foreign_cases import assert_close, build, evaluate, loss_of, tensors, to
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from small_ctm import build as build_small
from small_ctm import signs
from test_triton_models import SIZES
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch.utils._pytree import tree_map

import ctm_fast

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:.*should not be instantiated:DeprecationWarning"
    ),  # torch.compile's own
    pytest.mark.filterwarnings("ignore::UserWarning"),  # of torch.compile at the poisoned new_empty
]


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch.compiler.reset()


def in_one_graph(model: nn.Module, backend: Any = "aot_eager") -> Any:
    return torch.compile(model, fullgraph=True, backend=backend)


def renamed(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.replace("d _orig_mod.", "d "): x for key, x in found.items()}


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=pytest.mark.slow) if x == "base-unet" else x for x in SIZES]
)
def test_accelerated_models_compile_into_one_graph(name: str) -> None:
    """Training and inference, after a call in each mode has compared the model with its own forward."""
    model, inputs = build(name, batch=2, **SIZES[name])
    fast, given = ctm_fast.accelerate(model), to(inputs, torch.float64)
    with ctm_fast.use_backend("triton"):
        truth = evaluate(fast, inputs, torch.float64)
        assert_close(renamed(evaluate(in_one_graph(fast), inputs, torch.float64)), truth, 1e-9)
        fast.eval()
        with torch.no_grad():
            truth = tensors(fast(*given))
            assert_close(tensors(in_one_graph(fast)(*given)), truth, 1e-9)


@pytest.mark.needs_gpu
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("name", ["base", "rl"])
def test_the_default_compiler_on_a_gpu(name: str) -> None:
    """A training step and an inference, in one graph each, by inductor."""
    model, inputs = build(name, batch=2, **SIZES[name])
    fast, given = ctm_fast.accelerate(model.to("cuda")), tree_map(lambda x: x.to("cuda"), inputs)
    compiled = in_one_graph(fast, "inductor")
    with torch._inductor.config.patch(compile_threads=1):  # starts no processes
        truth = evaluate(fast, given)
        assert_close(renamed(evaluate(compiled, given)), truth, 1e-3)
        fast.eval()
        with torch.no_grad():
            truth = tensors(fast(*given))
            assert_close(tensors(compiled(*given)), truth, 1e-3)


def test_our_models_compile_without_a_call_before() -> None:
    model, x = build_small(iterations=2, memory_length=2, heads=1).double(), signs().double()
    model(x)  # gives the lazy layers their sizes
    with ctm_fast.use_backend("triton"):
        assert_close(in_one_graph(model)(x), model(x), 1e-6)  # predictions are float32


def test_the_graphs_hold_our_ops_and_keep_rows_instead_of_windows() -> None:
    ticks, batch, neurons, memory = 3, 2, 6, 5
    sizes = {**SIZES["base"], "iterations": ticks, "memory_length": memory}
    model, inputs = build("base", batch=batch, **sizes)
    graphs: list[Any] = []

    def record(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    partition = min_cut_rematerialization_partition  # the compiler's default
    backend = aot_autograd(fw_compiler=record, bw_compiler=record, partition_fn=partition)
    with ctm_fast.use_backend("triton"):
        fast = ctm_fast.accelerate(model)
        fast(*inputs)
        loss_of(in_one_graph(fast, backend)(*inputs)).backward()
    for graph, kind in zip(graphs, ("forward", "backward"), strict=True):
        calls = Counter(str(node.target) for node in graph.graph.nodes)
        assert calls[f"ctm_fast.nlm_rows_{kind}_triton.default"] == ticks
        assert calls[f"ctm_fast.sync_{kind}_triton.default"] == ticks + 1
    (results,) = (node.args[0] for node in graphs[0].graph.nodes if node.op == "output")
    kept = [node.meta["val"].shape for node in results if node is not None and "val" in node.meta]
    assert (batch, neurons) in kept and (batch, neurons, memory) not in kept


def test_every_call_of_a_compiled_model_draws_its_masks() -> None:
    model, inputs = build("sort", batch=2, dropout=0.5, **SIZES["sort"])
    fast = ctm_fast.accelerate(model)
    with ctm_fast.use_backend("triton"):
        fast(*inputs)
        compiled = in_one_graph(fast)
        first, second = (tensors(compiled(*inputs))["out.2"] for _ in range(2))
    assert not torch.equal(first, second)
