"""ops.adaptive_recurrence: native against reference, torch's own checks, padding, limits, bad inputs."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ctm_fast import ops
from ctm_fast.testing import Inputs, breaches, cotangents, leaf, upcast

BACKENDS = ("reference", "native")
SIZES = {  # T, B, H, LSTM
    "rnn": (4, 5, 7, False),
    "rnn-vectors": (3, 9, 64, False),
    "rnn-one-of-all": (1, 1, 1, False),
    "rnn-no-batch": (2, 0, 3, False),
    "lstm": (4, 5, 7, True),
    "lstm-vectors": (3, 9, 32, True),
    "lstm-odd": (2, 3, 37, True),
    "lstm-no-batch": (2, 0, 3, True),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "rows": {"rows": True},
    "limit": {"max_steps": 3},
    "one-substep": {"max_steps": 1, "rows": True},
    "half-is-enough": {"epsilon": 0.5},
}
OPCHECKS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")


def draw(sizes: tuple[int, int, int, bool], bias: float, dtype: torch.dtype, seed: int = 0) -> Inputs:
    """Arguments by name; probabilities differ much between samples and substeps."""
    steps, batch, width, lstm = sizes
    generator = torch.Generator().manual_seed(seed)
    gates = 4 * width if lstm else width

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator) * scale).to(dtype)

    found = {"inputs": random(steps, batch, gates), "hidden": random(batch, width)}
    if lstm:
        found["cell"] = random(batch, width)
    found["flag"] = random(gates)
    found["recurrent"] = random(gates, width, scale=1.5 * width**-0.5)
    found["halting"] = random(width, scale=2 * width**-0.5)
    return found | {"bias": torch.full((1,), bias, dtype=dtype)}


def run(inputs: Inputs, backend: str, mask: Tensor | None = None, **options: Any) -> ops.AdaptiveRecurrence:
    arguments: dict[str, Any] = {"cell": None, **inputs}
    return ops.adaptive_recurrence(**arguments, mask=mask, backend=backend, **options)


def floats(found: ops.AdaptiveRecurrence) -> dict[str, Tensor]:
    """What has gradients."""
    names = ("hidden", "cell", "ponder", "rows", "weights")
    return {name: y for name in names if (y := getattr(found, name)) is not None and y.requires_grad}


def evaluate(inputs: Inputs, backend: str, **options: Any) -> dict[str, Tensor]:
    """Outputs, and gradients by the name of what they belong to."""
    leaves = {name: leaf(x) for name, x in inputs.items()}
    found = run(leaves, backend, **options)
    outputs = floats(found)
    grads = torch.autograd.grad(list(outputs.values()), list(leaves.values()), cotangents(outputs.values()))
    values = {name: y.detach() for name, y in outputs.items()} | {"steps": found.steps.double()}
    return values | {f"d {name}": g for name, g in zip(leaves, grads, strict=True)}


def padding(sizes: tuple[int, int, int, bool]) -> Tensor:
    """Random, with a timestep that pads all samples."""
    mask = torch.rand(sizes[:2], generator=torch.Generator().manual_seed(3)) < 0.7
    mask[-1] = mask[-1] & (len(mask) < 3)
    return mask


@pytest.mark.parametrize(
    ("size", "option", "padded"),
    [
        ("rnn", "rows", True),
        ("rnn-vectors", "limit", False),
        ("rnn-one-of-all", "rows", False),
        ("rnn-no-batch", "limit", True),
        ("lstm", "rows", True),
        ("lstm-vectors", "half-is-enough", False),
        ("lstm-odd", "limit", False),
        ("lstm-odd", "one-substep", True),
        ("lstm-no-batch", "limit", False),
    ],
)
def test_error_is_at_most_twice_plain_pytorch(size: str, option: str, padded: bool, simd_level: str) -> None:
    options = {**OPTIONS[option], "mask": padding(SIZES[size]) if padded else None}
    fast, plain = (
        functools.partial(evaluate, backend=backend, **options) for backend in ("native", "reference")
    )
    inputs = functools.partial(draw, SIZES[size], -1.0)
    draws = 1 if options.get("rows") else 4  # each draw has rows of its own number
    assert breaches(inputs, fast, plain, torch.float32, draws) == {}


@pytest.mark.parametrize("size", ["rnn", "lstm-odd"])
def test_many_substeps(size: str) -> None:
    inputs = draw(SIZES[size], -5.0, torch.float64)
    found, expected = (evaluate(inputs, backend, rows=True) for backend in ("native", "reference"))
    assert expected["steps"].max() > 30
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_dtypes_and_shapes_are_those_of_the_reference(size: str, dtype: torch.dtype) -> None:
    inputs = draw(SIZES[size], -1.0, dtype)
    for rows in (False, True):
        native, plain = (run(inputs, backend, rows=rows, max_steps=1) for backend in ("native", "reference"))
        for name, a, b in zip(native._fields, native, plain, strict=True):
            assert (a is None and b is None) or (a.dtype == b.dtype and a.shape == b.shape), name


@pytest.mark.parametrize("size", ["rnn", "lstm"])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_gradcheck(size: str, padded: bool) -> None:
    sizes = (2, 2, 2, SIZES[size][3])
    inputs = {k: leaf(x) for k, x in draw(sizes, -1.0, torch.float64).items()}
    mask = torch.tensor([[True, True], [True, False]]) if padded else None

    def call(*values: Tensor) -> tuple[Tensor, ...]:
        found = run(dict(zip(inputs, values, strict=True)), "native", mask, rows=True)
        return tuple(floats(found).values())

    assert torch.autograd.gradcheck(call, tuple(inputs.values()))


@pytest.mark.parametrize("size", ["rnn", "lstm"])
def test_a_sequence_in_two_parts_is_the_whole(size: str) -> None:
    leaves = {k: leaf(x) for k, x in draw(SIZES[size], -1.0, torch.float64).items()}
    whole = run(leaves, "native")
    first = run({**leaves, "inputs": leaves["inputs"][:2]}, "native")
    state = {"hidden": first.hidden[-1]} | ({} if first.cell is None else {"cell": first.cell})
    second = run({**leaves, **state, "inputs": leaves["inputs"][2:]}, "native")
    parts = [torch.cat([a, b]) for a, b in ((first.hidden, second.hidden), (first.ponder, second.ponder))]
    wholes = [whole.hidden, whole.ponder]
    for found, expected in ((parts, wholes), *([grads(x, leaves) for x in (parts, wholes)],)):
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def grads(outputs: list[Tensor], leaves: Inputs) -> list[Tensor]:
    return list(torch.autograd.grad(outputs, list(leaves.values()), cotangents(outputs)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", ["rnn", "lstm"])
def test_padding_keeps_the_state(size: str, backend: str) -> None:
    inputs = draw(SIZES[size], -1.0, torch.float64)
    mask = padding(SIZES[size])
    inputs["inputs"][~mask] = math.nan
    leaves = {k: leaf(x) for k, x in inputs.items()}
    found = run(leaves, backend, mask, rows=True)
    assert not found.steps[~mask].any() and not found.ponder[~mask].any()
    before = torch.cat([inputs["hidden"][None], found.hidden[:-1].detach()])
    assert torch.equal(found.hidden[~mask], before[~mask])
    assert set((~mask).flatten().nonzero().flatten().tolist()).isdisjoint(found.samples.tolist())
    for name, grad in zip(leaves, grads(list(floats(found).values()), leaves), strict=True):
        assert grad.isfinite().all(), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_mix_to_the_hidden_state(backend: str) -> None:
    found = run(draw(SIZES["lstm"], -1.0, torch.float64), backend, rows=True)
    mixed = ops.halting_mean(found.rows, found.weights, found.samples, batch=20, backend=backend)
    torch.testing.assert_close(mixed.view(found.hidden.shape), found.hidden, rtol=1e-12, atol=1e-14)
    assert torch.equal(torch.bincount(found.samples, minlength=20).view(4, 5), found.steps)


def test_without_gradients_the_same_numbers() -> None:
    inputs = draw(SIZES["lstm"], -1.0, torch.float32)
    with_graph = run({k: leaf(x) for k, x in inputs.items()}, "native")
    without = run(inputs, "native")
    torch.testing.assert_close(without.hidden, with_graph.hidden.detach())
    assert torch.equal(without.steps, with_graph.steps)


@pytest.mark.parametrize("size", ["rnn", "lstm"])
def test_same_bits_on_every_run(size: str) -> None:
    inputs = draw(SIZES[size], -1.0, torch.float32)
    first = evaluate(inputs, "native", rows=True)
    for name, value in evaluate(inputs, "native", rows=True).items():
        assert torch.equal(value, first[name]), name


@pytest.mark.parametrize("size", ["rnn", "lstm"])
def test_any_strides(size: str) -> None:
    inputs = draw(SIZES[size], -1.0, torch.float32)
    strided = {k: x.t().contiguous().t() if x.dim() == 2 else x for k, x in inputs.items()}
    strided["inputs"] = inputs["inputs"].transpose(0, 2).contiguous().transpose(0, 2)
    strided["flag"] = torch.stack([inputs["flag"]] * 2, 1)[:, 0]
    found, expected = (evaluate(x, "native", rows=True) for x in (strided, inputs))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)


@pytest.mark.parametrize("size", ["rnn", "lstm"])
def test_nan_stays_in_its_sample(size: str) -> None:
    inputs = draw(SIZES[size], -1.0, torch.float64)
    inputs["hidden"][1] = math.nan
    found, expected = (run(inputs, backend, max_steps=6) for backend in ("native", "reference"))
    assert found.steps[:, 1].tolist() == [6] * 4
    assert torch.equal(found.hidden.isnan(), expected.hidden.isnan())
    assert torch.equal(found.steps, expected.steps)


@pytest.mark.parametrize("size", ["rnn", "lstm"])
@pytest.mark.parametrize("keep", [True, False], ids=["kept", "inference"])
def test_opcheck(size: str, keep: bool) -> None:
    inputs = draw(SIZES[size], -1.0, torch.float32)
    first = [inputs["inputs"], inputs["hidden"], inputs.get("cell")]
    rest = [inputs[name] for name in ("flag", "recurrent", "halting", "bias")]
    forward, backward = (
        getattr(torch.ops.ctm_fast, f"adaptive_recurrence_{way}").default for way in ("forward", "backward")
    )
    arguments = (*first, *rest, padding(SIZES[size]), 0.01, 9, keep)
    torch.library.opcheck(forward, arguments, test_utils=OPCHECKS)
    if keep:
        states, cells, ponder, _, *kept = forward(*arguments)
        dcell = cells[-1].clone() if "cell" in inputs else None
        grads = (torch.ones_like(states[1:]), dcell, ponder, kept[0].clone(), None)
        given = (inputs["recurrent"], inputs["halting"], states, cells, *kept)
        torch.library.opcheck(backward, (*grads, *given), test_utils=OPCHECKS)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch.compile's own
@pytest.mark.parametrize("size", ["rnn", "lstm"])
def test_compiles_in_one_graph(size: str) -> None:
    torch.compiler.reset()
    inputs = draw(SIZES[size], -1.0, torch.float32)

    def call(values: Inputs) -> tuple[Tensor, ...]:
        return tuple(2 * y for y in floats(run(values, "native")).values())

    leaves = {k: leaf(x) for k, x in inputs.items()}
    expected = call(leaves)
    found = torch.compile(call, fullgraph=True, backend="aot_eager")(leaves)
    for a, b in zip(
        (*found, *grads(list(found), leaves)), (*expected, *grads(list(expected), leaves)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch.compile's own
@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch.compile at the poisoned new_empty
@pytest.mark.parametrize("dynamic", [None, True])
def test_compiles_where_its_results_break_the_graph(dynamic: bool | None) -> None:
    torch.compiler.reset()
    compiled = torch.compile(ops.adaptive_recurrence, backend="aot_eager", dynamic=dynamic)
    for steps in (2, 3):
        leaves = {k: leaf(x) for k, x in draw((steps, 2, 11, False), -1.0, torch.float32).items()}
        expected = floats(run(leaves, "native"))
        found = floats(compiled(**leaves, cell=None))
        assert found.keys() == expected.keys()
        results = [[*y.values(), *grads(list(y.values()), leaves)] for y in (found, expected)]
        torch.testing.assert_close(*results)


def test_create_graph_names_the_reference() -> None:
    leaves = {k: leaf(x) for k, x in draw(SIZES["rnn"], -1.0, torch.float32).items()}
    with pytest.raises(
        RuntimeError, match=r"adaptive_recurrence: create_graph=True needs .* backend='reference'"
    ):
        torch.autograd.grad(run(leaves, "native").hidden.sum(), leaves["inputs"], create_graph=True)


def test_threads_give_the_same_numbers() -> None:
    before = torch.get_num_threads()
    inputs = draw((3, 40, 64, True), -1.0, torch.float64)
    torch.set_num_threads(1)
    expected = evaluate(inputs, "native", rows=True)
    torch.set_num_threads(2)
    found = evaluate(inputs, "native", rows=True)
    torch.set_num_threads(before)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-11, atol=1e-13, msg=name)


def test_upcast_inputs_reach_double_precision() -> None:
    inputs = upcast(draw(SIZES["lstm"], -1.0, torch.float32))
    found, expected = (evaluate(inputs, backend) for backend in ("native", "reference"))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-11, atol=1e-13, msg=name)


GOOD = draw(SIZES["lstm"], -1.0, torch.float32)
BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "rank": ({"inputs": torch.zeros(3, 4)}, ValueError, r"inputs must have shape \(T, B, G\)"),
    "no-timestep": ({"inputs": GOOD["inputs"][:0]}, ValueError, "inputs must have at least one timestep"),
    "gates": ({"inputs": GOOD["inputs"][..., :27]}, ValueError, "inputs must have 4 gates of one width"),
    "hidden": ({"hidden": torch.zeros(5, 6)}, ValueError, r"hidden must have shape \(B, H\) = \(5, 7\)"),
    "recurrent": ({"recurrent": torch.zeros(28, 6)}, ValueError, r"recurrent must have shape \(G, H\)"),
    "bias": ({"bias": torch.zeros(())}, ValueError, r"bias must have shape \(1\)"),
    "dtype": ({"flag": torch.zeros(28).double()}, TypeError, "flag must be torch.float32, got torch.float64"),
    "integers": ({"halting": torch.zeros(7).long()}, TypeError, "halting must be a floating-point tensor"),
    **{
        f"no-{name}": ({name: None}, TypeError, f"{name} must be a torch.Tensor, got NoneType")
        for name in ("inputs", "hidden", "flag", "recurrent", "halting", "bias")
    },
    "mask": ({"mask": torch.ones(4, 6, dtype=torch.bool)}, ValueError, r"mask must have shape \(T, B\)"),
    "epsilon": ({"epsilon": -0.1}, ValueError, r"epsilon must be in \[0, 1\)"),
    "rows": ({"rows": "x"}, TypeError, "rows must be a bool, got str"),
    "meta": ({"inputs": GOOD["inputs"].to("meta")}, ValueError, "inputs must hold numbers"),
    "max-steps": ({"max_steps": 0}, ValueError, "max_steps must be at least 1"),
    "backend": ({"backend": "cuda"}, ValueError, "backend must be None or one of"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name: str) -> None:
    changed, error, message = BAD[name]
    arguments: dict[str, Any] = {**GOOD, **changed}
    with pytest.raises(error, match=f"adaptive_recurrence: {message}"):
        ops.adaptive_recurrence(**arguments)
