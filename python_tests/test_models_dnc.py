"""The Differentiable Neural Computer: against the paper's equations written out, carried state, options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ctm_fast import ops
from ctm_fast.models import DNC, ArgumentError
from ctm_fast.models.dnc_controller import GRUController

SIZES: dict[str, Any] = {"controller_size": 7, "slots": 5, "width": 3, "read_heads": 2}


def build(**changes: Any) -> DNC:
    return DNC(4, 6, **{**SIZES, **changes}).double()


def run(model: DNC, steps: int = 6, batch: int = 3) -> Tensor:
    return model(torch.randn(steps, batch, model.input_size, dtype=torch.float64)).output


def cosine_softmax(memory: Tensor, key: Tensor, strength: Tensor) -> Tensor:
    """One sample: memory (N, W), key (W), strength ()."""
    norms = ((memory**2).sum(1) + 1e-6).sqrt() * ((key**2).sum() + 1e-6).sqrt()
    return torch.softmax(strength * (memory @ key) / norms, 0)


def free_memory(usage: Tensor) -> Tensor:
    usage = 1e-6 + (1 - 1e-6) * usage
    weights, product = torch.zeros_like(usage), 1.0
    for slot in usage.argsort(stable=True).tolist():
        weights[slot] = (1 - usage[slot]) * product
        product = product * usage[slot]
    return weights


class ByHand:
    """One sample's memory, slot by slot."""

    def __init__(self, slots: int, width: int, heads: int) -> None:
        self.memory, self.usage = torch.zeros(slots, width).double(), torch.zeros(slots).double()
        self.link, self.precedence = torch.zeros(slots, slots).double(), torch.zeros(slots).double()
        self.write, self.read = torch.zeros(slots).double(), torch.zeros(heads, slots).double()

    def step(self, p: ops.DncInterface) -> Tensor:
        """Reads (R, W) of the interface of one sample."""
        retention = torch.ones_like(self.usage)
        for gate, weights in zip(p.free_gates, self.read, strict=True):
            retention = retention * (1 - gate * weights)
        self.usage = (self.usage + self.write - self.usage * self.write) * retention
        similar = cosine_softmax(self.memory, p.write_key, p.write_strength)
        free = free_memory(self.usage)
        self.write = p.write_gate * (p.allocation_gate * free + (1 - p.allocation_gate) * similar)
        before, self.memory = self.link, self.memory.clone()
        self.link = torch.zeros_like(before)
        for i, w in enumerate(self.write):
            self.memory[i] = self.memory[i] * (1 - w * p.erase) + w * p.write_vector
            for j, v in enumerate(self.write):
                if i != j:
                    self.link[i, j] = (1 - w - v) * before[i, j] + w * self.precedence[j]
        self.precedence = (1 - self.write.sum()) * self.precedence + self.write
        heads = []
        for head, weights in enumerate(self.read):
            backward, forward = self.link.T @ weights, self.link @ weights
            similar = cosine_softmax(self.memory, p.read_keys[head], p.read_strengths[head])
            modes = p.read_modes[head]
            heads.append(modes[0] * backward + modes[1] * similar + modes[2] * forward)
        self.read = torch.stack(heads)
        return self.read @ self.memory


def test_equals_the_equations() -> None:
    model = build()
    x = torch.randn(9, 2, 4, dtype=torch.float64)
    with torch.no_grad():
        found = model(x)
        parameters = dict(model.controller.rnn.named_parameters())
        cell = nn.LSTMCell(4 + 6, 7).double()
        cell.load_state_dict({name.removesuffix("_l0"): value for name, value in parameters.items()})
        for sample in range(2):
            memory, reads = ByHand(5, 3, 2), torch.zeros(2, 3).double()
            state = (torch.zeros(1, 7).double(), torch.zeros(1, 7).double())
            for t in range(9):
                state = cell(torch.cat((x[t, sample], reads.flatten()))[None], state)
                interface = model.heads.to_interface(state[0][0])
                reads = memory.step(model.layout.split(interface))
                output = model.heads.to_output(torch.cat((state[0][0], reads.flatten())))
                torch.testing.assert_close(found.output[t, sample], output, rtol=1e-10, atol=1e-12)


def test_interface_has_the_size_of_the_paper() -> None:
    assert build(width=6, read_heads=4).heads.to_interface.out_features == 6 * 4 + 3 * 6 + 5 * 4 + 3


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"controller": "gru", "controller_layers": 2},
        {"controller": "ff", "controller_layers": 3},
        {"controller_layers": 2, "read_heads": 1},
        {"sparse": 2},
    ],
    ids=["lstm", "gru-2", "ff-3", "lstm-2", "sparse"],
)
def test_halves_equal_the_whole(changes: dict[str, Any]) -> None:
    model = build(**changes)
    x = torch.randn(7, 2, 4, dtype=torch.float64)
    weights = torch.randn(7, 2, 6, dtype=torch.float64)
    whole = model(x)
    (whole.output * weights).sum().backward()
    gradients = [p.grad for p in model.parameters()]
    model.zero_grad()
    first = model(x[:3])
    second = model(x[3:], first.state)
    output = torch.cat((first.output, second.output))
    (output * weights).sum().backward()
    torch.testing.assert_close(output, whole.output)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_samples_do_not_mix() -> None:
    model = build()
    x = torch.randn(6, 3, 4, dtype=torch.float64)
    apart = [model(x[:, i : i + 1]).output for i in range(3)]
    torch.testing.assert_close(model(x).output, torch.cat(apart, 1))


def test_all_links_kept_equal_the_matrix() -> None:
    torch.manual_seed(1)
    dense = build()
    torch.manual_seed(1)
    sparse = build(sparse=5)
    x = torch.randn(6, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(sparse(x).output, dense(x).output)


def test_gru_equals_the_one_of_torch() -> None:
    controller = GRUController(3, 4, 5, 2).double()
    x, reads = torch.randn(6, 2, 3).double(), torch.randn(6, 2, 4).double()
    step, state = controller.stepper(x), controller.split(controller.initial(2, x))
    outputs = []
    for t in range(6):
        hidden, state = step(t, reads[t], state)
        outputs.append(hidden)
    expected, last = controller.rnn(torch.cat((x, reads), 2))
    torch.testing.assert_close(torch.stack(outputs), expected)
    torch.testing.assert_close(controller.join(state)[0], last)


def test_every_parameter_learns() -> None:
    model = build()
    run(model).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_trace_shows_what_happened() -> None:
    model = build()
    x = torch.randn(6, 2, 4, dtype=torch.float64)
    found = model(x, trace=True)
    trace = found.trace
    assert trace.write_weights.shape == trace.usage.shape == trace.allocation.shape == (6, 2, 5)
    assert trace.read_weights.shape == (6, 2, 2, 5)
    assert trace.read_modes.shape == (6, 2, 2, 3)
    assert not any(part.requires_grad for part in trace)
    torch.testing.assert_close(trace.write_weights[-1], found.state.addressing.write_weights)
    for t in range(6):
        torch.testing.assert_close(trace.allocation[t, 1], free_memory(trace.usage[t, 1]))
    assert model(x).trace is None


def test_outputs_are_bounded() -> None:
    model = build(clip=0.01)
    assert run(model).abs().max() == 0.01
    model.clip = None
    assert run(model).abs().max() > 0.01


def test_bypass_dropout_hides_the_controller_from_the_output_only() -> None:
    model = build(bypass_dropout=0.999999)
    x = torch.randn(5, 2, 4, dtype=torch.float64)
    with torch.no_grad():
        found = model.train()(x)
        whole = model.eval()(x)
        silent = nn.functional.linear(
            found.state.reads.flatten(1), model.heads.to_output.weight[:, 7:], model.heads.to_output.bias
        )
    torch.testing.assert_close(found.output[-1], silent)
    torch.testing.assert_close(found.state.memory, whole.state.memory)
    assert not torch.allclose(found.output, whole.output)


def test_one_step_of_one_sample_with_one_slot() -> None:
    model = build(slots=1, read_heads=1, width=1)
    output = run(model, steps=1, batch=1)
    output.sum().backward()
    assert output.shape == (1, 1, 6)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_saved_and_loaded(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    model = DNC(4, 6, **SIZES, controller="gru", sparse=2)
    model.save_pretrained(tmp_path)
    loaded = DNC.from_pretrained(tmp_path)
    x = torch.randn(3, 2, 4)
    assert torch.equal(model(x).output, loaded(x).output)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slots": 0}, "slots must be at least 1, got 0"),
        ({"read_heads": 0}, "read_heads must be at least 1, got 0"),
        ({"controller": "rnn"}, "controller must be one of ff, gru, lstm, got 'rnn'"),
        ({"sparse": 6}, r"sparse must be None or lie in \[1, slots=5\], got 6"),
        ({"sparse": 0}, "sparse must be at least 1, got 0"),
        ({"bypass_dropout": 1.0}, r"bypass_dropout must lie in \[0, 1\), got 1.0"),
        ({"clip": -1.0}, "clip must be positive or None, got -1.0"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_bad_arguments_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        build(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sparse": "2"}, "sparse must be an int, got str"),
        ({"bypass_dropout": "a"}, "bypass_dropout must be a number, got str"),
    ],
    ids=["sparse", "dropout"],
)
def test_arguments_of_another_kind_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        build(**changes)


@pytest.mark.parametrize("shape", [(5, 4), (0, 2, 4), (5, 2, 3)], ids=str)
def test_bad_inputs_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"DNC: x must have shape \(T, B, 4\), got "):
        build()(torch.zeros(shape, dtype=torch.float64))


def test_a_state_of_another_batch_is_refused() -> None:
    model = build()
    x = torch.zeros(2, 1, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"^DNC: state must be of batch 1, got 4"):
        model(x, model.initial_state(4))
    mixed = model.initial_state(1)._replace(controller=model.initial_state(4).controller)
    with pytest.raises(ValueError, match=r"^DNC: state's controller must have shape \(L, B, C\)"):
        model(x, mixed)
    with pytest.raises(TypeError, match=r"^DNC: state must be of type DncNetworkState, got int"):
        model(x, 5)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32], ids=str)
def test_inputs_of_another_dtype_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=r"^DNC: x must be .*, got torch\."):
        build()(torch.zeros(5, 2, 4, dtype=dtype))
