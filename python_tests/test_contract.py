"""What every op promises, for every case of ctm_fast.testing: accuracy, bits, strides, torch's own checks."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass, replace

import pytest
import torch
from op_checks import assert_extremes_hold, assert_spreads_as_the_reference
from torch import Tensor

from ctm_fast import backend as backends
from ctm_fast.testing import (
    CASES,
    EXTREME,
    OPS,
    SMALL,
    OpCase,
    breaches,
    cotangents,
    leaf,
)

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
Layout = Callable[[Tensor], Tensor]
READING = ("halting_mean", "halting_weights", "sync")  # that check the values of indices
ids = str


@pytest.fixture
def _threads_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=ids)
@pytest.mark.parametrize("case", CASES, ids=ids)
def test_error_is_at_most_twice_plain_pytorch(case: OpCase, dtype: torch.dtype, simd_level: str) -> None:
    native, plain = (functools.partial(case.evaluate, backend=backend) for backend in ("native", "reference"))
    assert breaches(case.inputs, native, plain, dtype) == {}


@pytest.mark.parametrize("sizes", [(1600, 16, 9, 8), (4099, 9, 3, 2)], ids=["vectors", "odd"])
def test_nlm_error_over_all_rows_of_a_long_forward(sizes: tuple[int, ...]) -> None:
    test_error_is_at_most_twice_plain_pytorch(OpCase("nlm", "long", sizes), torch.float32, "")


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_dtypes_and_shapes_are_those_of_the_reference(case: OpCase) -> None:
    for dtype in DTYPES:
        native, plain = (case.evaluate(case.inputs(dtype), backend) for backend in ("native", "reference"))
        assert {k: (v.dtype, v.shape) for k, v in native.items()} == {
            k: (v.dtype, v.shape) for k, v in plain.items()
        }


@pytest.mark.usefixtures("_threads_restored")
@pytest.mark.parametrize("case", CASES, ids=ids)
def test_same_bits_on_every_run_and_thread_count(case: OpCase, simd_level: str) -> None:
    inputs = case.inputs()
    torch.set_num_threads(1)
    first = case.evaluate(inputs, "native")
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for name, value in case.evaluate(inputs, "native").items():
            assert torch.equal(value, first[name]), (name, threads)


def expanded(x: Tensor) -> Tensor:
    return x[:1].expand(x.shape)


def permuted(x: Tensor) -> Tensor:
    return x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim())))


def spread(x: Tensor) -> Tensor:
    wide = x.new_zeros(*x.shape[:-1], 2 * x.shape[-1])
    wide[..., ::2] = x
    return wide[..., ::2]


@pytest.mark.parametrize("layout", [expanded, permuted, spread])
@pytest.mark.parametrize("case", CASES, ids=ids)
def test_any_strides_give_the_same_bits(case: OpCase, layout: Layout) -> None:
    strided = {name: x if not x.numel() else layout(x) for name, x in case.inputs().items()}
    dense = {name: x.clone(memory_format=torch.contiguous_format) for name, x in strided.items()}
    found, expected = case.evaluate(strided, "native"), case.evaluate(dense, "native")
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("case", SMALL, ids=ids)
def test_gradcheck(case: OpCase) -> None:
    inputs = {k: leaf(x) for k, x in case.inputs(torch.float64).items()}

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        return tuple(case.run(dict(zip(inputs, values, strict=True)), "native").values())

    assert torch.autograd.gradcheck(run, tuple(inputs.values()))


@pytest.mark.parametrize("case", SMALL, ids=ids)
def test_create_graph_names_the_reference(case: OpCase) -> None:
    inputs = {k: leaf(x) for k, x in case.inputs().items()}
    first = next(iter(inputs.values()))
    with pytest.raises(RuntimeError, match=f"{case.op}: create_graph=True needs .* backend='reference'"):
        torch.autograd.grad(next(iter(case.run(inputs, "native").values())).sum(), first, create_graph=True)
    outputs = list(case.run(inputs, "reference").values())
    wanted = [x for x in inputs.values() if x.requires_grad]
    grads = torch.autograd.grad(outputs, wanted, cotangents(outputs), create_graph=True)
    total = torch.stack([grad.sum() for grad in grads]).sum()
    if total.requires_grad:  # not where the op is linear
        for second in torch.autograd.grad(total, wanted, materialize_grads=True):
            assert second.isfinite().all()


OPCHECKS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.mark.parametrize("layout", [torch.clone, permuted], ids=["contiguous", "permuted"])
@pytest.mark.parametrize("case", SMALL, ids=ids)
def test_opcheck(case: OpCase, layout: Layout) -> None:
    op = OPS[case.op]
    arguments = op.arguments({k: layout(x) for k, x in case.inputs().items()}, case.options)
    forward, backward = (
        getattr(torch.ops.ctm_fast, f"{case.op}_{way}").default for way in ("forward", "backward")
    )
    torch.library.opcheck(forward, arguments, test_utils=OPCHECKS)
    outputs = forward(*arguments)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    grads = [layout(g) for g in cotangents(y for y in outputs if y.is_floating_point())]
    saved = [outputs[i] for i in op.saved]
    for wanted in op.wanted:
        torch.library.opcheck(backward, (*grads, *arguments, *wanted, *saved), test_utils=OPCHECKS)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch.compile's own
@pytest.mark.parametrize("case", SMALL, ids=ids)
def test_compiles_in_one_graph(case: OpCase) -> None:
    torch.compiler.reset()  # the cases share one function, and torch limits its recompilations
    inputs, options = (
        case.inputs(),
        {k: replace(x) if is_dataclass(x) else x for k, x in case.options.items()},
    )
    fresh = replace(case, options=options)  # a layout that no eager call has seen
    expected = case.evaluate(inputs)

    def scaled(*values: Tensor) -> tuple[Tensor, ...]:
        outputs = fresh.run(dict(zip(inputs, values, strict=True)))
        return tuple(2 * y for y in outputs.values())

    compiled = torch.compile(scaled, fullgraph=True, backend="aot_eager")
    leaves = [leaf(x) for x in inputs.values()]
    outputs = compiled(*leaves)
    wanted = [x for x in leaves if x.requires_grad]
    grads = torch.autograd.grad(outputs, wanted, cotangents(outputs))
    for y, value in zip((*outputs, *grads), expected.values(), strict=True):
        torch.testing.assert_close(y, 2 * value, rtol=0, atol=0)


@pytest.mark.parametrize("op", OPS)
def test_named_backends_run_or_raise(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    case = next(case for case in CASES if case.op == op)
    inputs = case.inputs()
    with pytest.raises(ValueError, match=f"{op}: backend must be None or one of .*, got 'cuda'"):
        case.run(inputs, "cuda")
    with pytest.raises(RuntimeError, match=f"{op}: backend 'triton' cannot run here: .*Triton kernel"):
        case.run(inputs, "triton")
    meta = {k: x.to("meta") for k, x in inputs.items()}
    with pytest.raises(RuntimeError, match=f"{op}: backend 'native' cannot run here: .* on the CPU only"):
        case.run(meta, "native")
    half = {k: x.half() if x.is_floating_point() else x for k, x in inputs.items()}
    half |= {k: inputs[k] for k in ("alpha", "beta") if op == "sync"}
    with pytest.raises(RuntimeError, match=r"cannot run here: .* take float32, float64, bfloat16"):
        case.run(half, "native")
    for y in case.run(half).values():
        assert y.isfinite().all()


def nested(x: Tensor) -> Tensor:
    return torch.nested.nested_tensor(list(x))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")
@pytest.mark.parametrize("change", [Tensor.to_sparse, Tensor.to_mkldnn, nested], ids=lambda f: f.__name__)
@pytest.mark.parametrize("op", OPS)
def test_a_tensor_that_is_not_dense_is_refused(op: str, change: Layout) -> None:
    case = next(case for case in CASES if case.op == op)
    for name, x in case.inputs().items():
        if x.is_floating_point() or change is Tensor.to_sparse:
            with pytest.raises(TypeError, match=rf"^{op}: \S*{name} must be a dense tensor, got a \S+ one"):
                case.run(case.inputs() | {name: change(x)})


@pytest.mark.parametrize("op", OPS)
def test_meta_tensors_give_shapes_or_are_refused(op: str) -> None:
    case = next(case for case in CASES if case.op == op)
    meta = {name: x.to("meta") for name, x in case.inputs().items()}
    if op in READING:
        with pytest.raises(ValueError, match=f"^{op}: .* must hold numbers, got a meta tensor"):
            case.run(meta)
    else:
        for name, y in case.run(case.inputs()).items():
            assert case.run(meta)[name].shape == y.shape


@pytest.mark.parametrize("op", OPS)
def test_use_backend_chooses_for_the_block(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    case = next(case for case in CASES if case.op == op)
    with backends.use_backend("triton"), pytest.raises(RuntimeError, match="'triton' cannot run here"):
        case.run(case.inputs())
    with backends.use_backend("reference"):
        chosen = case.run(case.inputs())
    for name, y in case.run(case.inputs(), "reference").items():
        assert torch.equal(chosen[name], y)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("case", [c for c in CASES if 0 not in c.sizes[:3]], ids=ids)
def test_nan_and_infinity_spread_as_in_the_reference(case: OpCase, value: float, simd_level: str) -> None:
    for name, x in case.inputs().items():
        if not x.is_floating_point() or not x.numel():
            continue
        if name in OPS[case.op].bounded and math.isinf(value):
            continue
        assert_spreads_as_the_reference(case, "native", name, value)


@pytest.mark.parametrize("scale", [1e4, 1e-39, 3e18], ids=["1e4", "denormal", "3e18"])
@pytest.mark.parametrize("case", EXTREME, ids=ids)
def test_extreme_values(case: OpCase, scale: float, simd_level: str) -> None:
    assert_extremes_hold(case, "native", scale)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own
def test_compiled_kernels_between_the_ops_give_the_same_numbers() -> None:
    neurons, pairs = (next(case for case in SMALL if case.op == op) for op in ("nlm", "sync"))
    first, second = neurons.inputs(torch.float64), pairs.inputs(torch.float64)
    leaves = [leaf(x) for x in [*first.values(), *list(second.values())[1:]]]

    def model(*x: Tensor) -> Tensor:
        z = OPS["nlm"].run(*x[:7], dropout=0.3, seed=2)
        plain = OPS["nlm"].run(*x[:7], dropout=0.3, seed=2, backend="reference")
        ticks = torch.stack([torch.sin(torch.nn.functional.pad(y, (0, 1))) for y in (z, plain, z * plain)])
        return torch.tanh(OPS["sync"].run(ticks, *x[7:])[0]).sum()

    loss, expected = torch.compile(model, fullgraph=True)(*leaves), model(*leaves)
    torch.testing.assert_close(loss, expected)
    wanted = [x for x in leaves if x.requires_grad]
    for a, b in zip(torch.autograd.grad(loss, wanted), torch.autograd.grad(expected, wanted), strict=True):
        torch.testing.assert_close(a, b)
