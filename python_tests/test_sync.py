"""ops.sync: naive sums, hand-written backward, carried state, bad inputs. The rest is in test_contract.py."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ctm_fast import ops
from ctm_fast.ops import checks
from ctm_fast.ops.sync import reference
from ctm_fast.ops.sync.arguments import checked_pairs, gather_plan
from ctm_fast.testing import CASES, OpCase, cotangents, leaf
from ctm_fast.testing.sync import sync_inputs

SYNC_CASES = [case for case in CASES if case.op == "sync"]
ALL = OpCase("sync", "all-ticks", (6, 3, 7, 11))
LAST = OpCase("sync", "last-tick", (6, 3, 7, 11), {"last": True})
BACKENDS = ("reference", "native")


def naive(
    z: np.ndarray, pairs: list[tuple[int, int]], decay: np.ndarray, alpha: np.ndarray, beta: np.ndarray
) -> Any:
    """Sums over the past written out: s_t = sum_k r^k p(z_{t-k}) / sqrt(sum_k r^k)."""
    ticks, batch, _ = z.shape
    s = np.empty((ticks, batch, len(pairs)))
    for p, (i, j) in enumerate(pairs):
        for t in range(ticks):
            weights = [math.exp(-decay[p] * (t - k)) for k in range(t + 1)]
            start = math.exp(-decay[p] * (t + 1))
            norm = sum(weights) + start * beta[p]
            for b in range(batch):
                products = sum(weights[k] * z[k, b, i] * z[k, b, j] for k in range(t + 1))
                s[t, b, p] = (products + start * alpha[b, p]) / math.sqrt(norm)
    return s


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_naive_sums(backend: str) -> None:
    inputs = ALL.inputs(torch.float64)
    z, left, right, decay, alpha, beta = (x.numpy() for x in inputs.values())
    expected = naive(z, list(zip(left, right, strict=True)), decay, alpha, beta)
    found = ALL.run(inputs, backend)
    np.testing.assert_allclose(found["synchronisation"].numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(LAST.run(inputs, backend)["synchronisation"].numpy(), expected[-1], rtol=1e-12)
    np.testing.assert_allclose(found["alpha"] / found["beta"].sqrt(), expected[-1], rtol=1e-12)


@pytest.mark.parametrize("case", [case for case in SYNC_CASES if not case.options], ids=str)
def test_hand_written_backward_equals_autograd(case: OpCase) -> None:
    inputs = case.inputs(torch.float64)
    expected = case.evaluate(inputs, "reference")
    grads = cotangents(expected[name] for name in ("synchronisation", "alpha", "beta"))
    found = reference.sync_backward(*grads, *inputs.values())
    for value, name in zip(found, ("activations", "decay", "alpha", "beta"), strict=True):
        torch.testing.assert_close(value, expected[f"d {name}"], rtol=1e-11, atol=1e-12, msg=name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_state_means_zeros(backend: str) -> None:
    inputs = ALL.inputs()
    found = ops.sync(*list(inputs.values())[:4], backend=backend)
    inputs |= {"alpha": torch.zeros(3, 11), "beta": torch.zeros(11)}
    for a, b in zip(found, ALL.run(inputs, backend).values(), strict=True):
        assert torch.equal(a, b)


def leaves_of(case: OpCase) -> dict[str, Tensor]:
    """Inputs in float64; floating-point ones take gradients."""
    return {k: leaf(x) for k, x in case.inputs(torch.float64).items()}


def in_parts(leaves: dict[str, Tensor], lengths: list[int], backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """Calls of some ticks each, alpha and beta carried from one to the next."""
    alpha, beta = leaves["alpha"], leaves["beta"]
    found = []
    for z in leaves["activations"].split(lengths):
        s, alpha, beta = ops.sync(
            z, leaves["left"], leaves["right"], leaves["decay"], alpha, beta, backend=backend
        )
        found.append(s)
    return torch.cat(found), alpha, beta


@pytest.mark.parametrize("lengths", [[1] * 6, [3, 3], [5, 1]], ids=["ticks", "halves", "uneven"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_carried_state_equals_one_call(lengths: list[int], backend: str) -> None:
    leaves = leaves_of(ALL)
    wanted = [x for x in leaves.values() if x.requires_grad]
    whole, parts = in_parts(leaves, [6], backend), in_parts(leaves, lengths, backend)
    grads = cotangents(whole)
    expected = (*whole, *torch.autograd.grad(whole, wanted, grads))
    for found, value in zip((*parts, *torch.autograd.grad(parts, wanted, grads)), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ticks_in_reverse_are_the_other_end_of_the_sum(backend: str) -> None:
    """Without decay the order of the ticks does not matter; and exchanging left and right never does."""
    leaves = leaves_of(ALL)
    z, left, right, _, alpha, beta = leaves.values()
    still = torch.zeros(11, dtype=torch.float64)
    forward = ops.sync(z, left, right, still, alpha, beta, last=True, backend=backend)
    backward = ops.sync(z.flip(0), right, left, still, alpha, beta, last=True, backend=backend)
    for a, b in zip(forward, backward, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)
    grads = [torch.autograd.grad(x[0].sum(), z)[0] for x in (forward, backward)]
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    "pairs",
    [([2, 2, 2], [2, 2, 2]), ([0, 1, 0], [1, 0, 1]), ([6, 6, 0], [0, 0, 6])],
    ids=["self", "exchanged", "repeated"],
)
def test_gradients_of_shared_neurons_add_up(pairs: tuple[list[int], list[int]]) -> None:
    left, right = (torch.tensor(x) for x in pairs)
    generator = torch.Generator().manual_seed(0)
    inputs = sync_inputs(4, 2, 7, 3, dtype=torch.float64, generator=generator) | {
        "left": left,
        "right": right,
    }
    native, plain = (ALL.evaluate(inputs, backend) for backend in BACKENDS)
    for name, value in plain.items():
        torch.testing.assert_close(native[name], value, rtol=1e-12, atol=1e-13)


def test_only_wanted_gradients_are_returned() -> None:
    inputs = ALL.inputs()
    full = ALL.evaluate(inputs, "native")
    for name in ("activations", "decay", "alpha", "beta"):
        leaves = {k: x.detach().requires_grad_(k == name) for k, x in inputs.items()}
        outputs = ALL.run(leaves, "native")
        found = [y for y in outputs.values() if y.requires_grad]
        grads = [
            g for g, y in zip(cotangents(outputs.values()), outputs.values(), strict=True) if y.requires_grad
        ]
        (grad,) = torch.autograd.grad(found, leaves[name], grads)
        assert torch.equal(grad, full[f"d {name}"]), name


@pytest.mark.parametrize("raw", [-2.0, 0.0, 15.0, 90.0, 1e4], ids=str)
def test_decay_is_never_clamped(raw: float) -> None:
    inputs = ALL.inputs()
    inputs["decay"] = torch.full((11,), raw)
    native, plain = (ALL.evaluate(inputs, backend) for backend in BACKENDS)
    for name, value in plain.items():
        torch.testing.assert_close(native[name], value, rtol=1e-5, atol=1e-5 * value.abs().max().item())


def test_bfloat16_activations_accumulate_in_float32() -> None:
    inputs = ALL.inputs(torch.bfloat16)
    single = {k: x.float() if x.is_floating_point() else x for k, x in inputs.items()}
    found, exact = ALL.run(inputs, "native"), ALL.run(single, "native")
    assert torch.equal(found["synchronisation"], exact["synchronisation"].bfloat16())
    assert found["alpha"].dtype == found["beta"].dtype == torch.float32
    assert torch.equal(found["alpha"], exact["alpha"])


def test_int32_indices_are_the_same() -> None:
    inputs = ALL.inputs()
    narrow = {k: x.int() if not x.is_floating_point() else x for k, x in inputs.items()}
    for name, value in ALL.evaluate(inputs, "native").items():
        assert torch.equal(ALL.evaluate(narrow, "native")[name], value)


P11 = torch.zeros(11, dtype=torch.int64)
WRONG = {
    "activations-list": ("activations", [0.0], TypeError, "activations must be a torch.Tensor, got list"),
    "activations-integer": (
        "activations",
        torch.zeros(6, 3, 7).int(),
        TypeError,
        "activations must be a floating-point",
    ),
    "activations-rank": (
        "activations",
        torch.zeros(3, 7),
        ValueError,
        r"must have shape \(T, B, D\), got \(3, 7\)",
    ),
    "activations-no-tick": (
        "activations",
        torch.zeros(0, 3, 7),
        ValueError,
        r"at least one tick .* got \(0, 3, 7\)",
    ),
    "activations-batch": (
        "activations",
        torch.zeros(6, 4, 7),
        ValueError,
        r"alpha must have .* = \(4, 11\), got \(3, 11\)",
    ),
    "activations-no-neurons": (
        "activations",
        torch.zeros(6, 3, 0),
        IndexError,
        r"left must be in \[0, 0\), got values",
    ),
    "activations-meta": (
        "activations",
        torch.zeros(6, 3, 7, device="meta"),
        ValueError,
        "left must be on .* meta, got cpu",
    ),
    "left-None": ("left", None, TypeError, "left must be a torch.Tensor, got NoneType"),
    "left-floats": (
        "left",
        P11.float(),
        TypeError,
        "left must be torch.int64 or torch.int32, got torch.float32",
    ),
    "left-rank": ("left", P11[None], ValueError, r"left must have shape \(P\), got \(1, 11\)"),
    "left-negative": ("left", P11 - 1, IndexError, r"left must be in \[0, 7\), got values from -1 to -1"),
    "right-large": ("right", P11 + 7, IndexError, r"right must be in \[0, 7\), got values from 7 to 7"),
    "right-beyond-32-bits": ("right", P11 + 2**32, IndexError, r"right must be in \[0, 7\)"),
    "right-length": ("right", P11[:10], ValueError, r"right must have shape \(P\) = \(11,\), got \(10,\)"),
    "right-meta": (
        "right",
        P11.to("meta"),
        ValueError,
        "right must be on the device of activations, cpu, got meta",
    ),
    "decay-None": ("decay", None, TypeError, "decay must be a torch.Tensor, got NoneType"),
    "decay-dtype": (
        "decay",
        torch.zeros(11).double(),
        TypeError,
        "decay must be torch.float32, got torch.float64",
    ),
    "decay-rank": ("decay", torch.zeros(1, 11), ValueError, r"decay must have shape \(P\), got \(1, 11\)"),
    "decay-length": (
        "decay",
        torch.zeros(12),
        ValueError,
        r"decay must have shape \(P\) = \(11,\), got \(12,\)",
    ),
    "alpha-shape": (
        "alpha",
        torch.zeros(11),
        ValueError,
        r"alpha must have shape \(B, P\) = \(3, 11\), got \(11,\)",
    ),
    "alpha-dtype": (
        "alpha",
        torch.zeros(3, 11).half(),
        TypeError,
        "alpha must be torch.float32, got torch.float16",
    ),
    "beta-shape": (
        "beta",
        torch.zeros(3, 11),
        ValueError,
        r"beta must have shape \(P\) = \(11,\), got \(3, 11\)",
    ),
    "last-text": ("last", "x", TypeError, "last must be a bool, got str"),
    "beta-float": ("beta", 1.0, TypeError, "beta must be a torch.Tensor, got float"),
    "beta-meta": (
        "beta",
        torch.zeros(11, device="meta"),
        ValueError,
        "beta must be on the device of activations, cpu",
    ),
}


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize(("name", "value", "error", "text"), WRONG.values(), ids=WRONG.keys())
def test_bad_input(name: str, value: object, error: type[Exception], text: str, backend: str | None) -> None:
    arguments: dict[str, Any] = {**ALL.inputs(), name: value}
    with pytest.raises(error, match=f"^sync: .*{text}"):
        ops.sync(**arguments, backend=backend)


def test_one_index_for_both_sides_compiles() -> None:
    z, index, decay = torch.randn(3, 2, 5, requires_grad=True), torch.tensor([0, 3, 4]), torch.rand(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own
        compiled = torch.compile(
            lambda x: ops.sync(x, index, index, decay)[0].sum(), fullgraph=True, backend="eager"
        )
        found = torch.autograd.grad(compiled(z), z)
    torch.testing.assert_close(found, torch.autograd.grad(ops.sync(z, index, index, decay)[0].sum(), z))


def test_the_plan_of_the_gather_is_kept_until_an_index_changes() -> None:
    left, right = torch.tensor([0, 2, 2], dtype=torch.int32), torch.tensor([1, 1, 2], dtype=torch.int32)
    first = gather_plan(left, right, 4)
    assert gather_plan(left, right, 4) is first and gather_plan(left, right.clone(), 4) is not first
    assert first.starts.tolist() == [0, 1, 3, 6, 6]
    assert first.pair.tolist() == [0, 0, 1, 1, 2, 2] and first.other.tolist() == [1, 0, 2, 1, 2, 2]
    left[0] = 3
    assert gather_plan(left, right, 4).starts.tolist() == [0, 0, 2, 5, 6]


class OnGpu(Tensor):
    """An index that claims to be on a GPU; what is made from it claims nothing."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    is_cuda = True  # type: ignore[assignment]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_what_is_kept_of_an_index_is_no_tensor_of_inference_mode(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, right = (torch.tensor(x, dtype=dtype).as_subclass(OnGpu) for x in ([0, 2, 2], [1, 1, 2]))
    z, read = torch.zeros(1, 1, 4), checks.indices
    reads: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(checks, "indices", lambda *x: reads.append(x[1]) or read(*x))
    with torch.inference_mode():
        first = checked_pairs(z, left, right)
        plan = gather_plan(*first, 4)
    taken = checked_pairs(z, left, right)
    assert reads == ["left", "right"]
    assert not any(x.is_inference() for x in (*first, *taken, *plan))
    assert gather_plan(*taken, 4) is plan
