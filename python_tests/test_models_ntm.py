"""The Neural Turing Machine: against a step written out, its starting states, its variants and its errors."""

import pytest
import torch
from torch.nn import functional as F

import ctm_fast
from ctm_fast import ops
from ctm_fast.models import NTM

T, B, INPUTS, OUTPUTS, N, W = 5, 3, 4, 2, 7, 6


def build(**changes):
    torch.manual_seed(0)
    return NTM(INPUTS, OUTPUTS, **{"controller_size": 8, "slots": N, "width": W, **changes}).double()


def inputs(steps=T):
    return torch.randn(steps, B, INPUTS, dtype=torch.float64)


VARIANTS = {
    "lstm": {},
    "rnn": {"controller": "rnn"},
    "ff": {"controller": "ff"},
    "layers": {"controller_layers": 2},
    "ff-layers": {"controller": "ff", "controller_layers": 3},
    "heads": {"read_heads": 3, "write_heads": 2},
    "shift": {"shift": 5},
    "read-first": {"order": "read_write"},
    "one-hot": {"weights_init": "one_hot", "read_init": "zeros"},
    "random": {"memory_init": "random", "weights_init": "uniform", "read_init": "random"},
    "learned": {"memory_init": "learned"},
    "blind": {"controller_sees_reads": False},
    "blind-layers": {"controller_sees_reads": False, "controller_layers": 2, "read_heads": 2},
    "blind-ff": {"controller_sees_reads": False, "controller": "ff", "controller_layers": 2},
    "split": {"split_hidden": True, "controller_size": None, "controller": "rnn", "shared_weights": True},
    "unclipped": {"clip": None},
}
every_variant = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)


def lstm_by_hand(model, x):
    """One layer, every head's map and the output written out, a step at a time with ``torch.nn.LSTMCell``."""
    cell = torch.nn.LSTMCell(INPUTS + W, 8).double()
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        setattr(cell, name, getattr(model.controller.rnn, f"{name}_l0"))
    memory = torch.full((B, N, W), 1e-6, dtype=torch.float64)
    weights = model.start.weights.softmax(-1)
    reading, writing = (w.expand(B, 1, N) for w in weights.split(1))
    read, state, outputs = model.start.reads.tanh().expand(B, W), None, []
    for step in x:
        state = cell(torch.cat((step, read), 1), state)
        interface = model.heads.to_interface(state[0]).clamp(-20, 20)
        heads = model.layout.split(interface)
        parts = [part.split(1, 1) for part in heads[:5]]
        read_parts, write_parts = ([part[head] for part in parts] for head in (0, 1))
        writing = ops.ntm_address(memory, *write_parts, writing)
        memory = ops.ntm_write(memory, writing, heads.erase, heads.add)
        reading = ops.ntm_address(memory, *read_parts, reading)
        read = ops.ntm_read(memory, reading)[:, 0]
        outputs.append(model.heads.to_output(torch.cat((state[0], read), 1)))
    return torch.stack(outputs)


def test_lstm_against_a_step_written_out():
    model, x = build(), inputs()
    torch.testing.assert_close(model(x).output, lstm_by_hand(model, x))


def test_feed_forward_against_a_step_written_out():
    model, x = build(controller="ff", order="read_write"), inputs(2)
    found = model(x[:1])
    read = found.state.memory.reads.flatten(1)
    hidden = torch.tanh(model.controller.linears[0](torch.cat((x[1], read), 1)))
    step = ops.ntm_step(
        found.state.memory.memory,
        model.heads.to_interface(hidden),
        found.state.memory.read_weights,
        found.state.memory.write_weights,
        layout=model.layout,
    )
    expected = model.heads.to_output(torch.cat((hidden, step.reads.flatten(1)), 1))
    torch.testing.assert_close(model(x).output[1], expected)


@every_variant
def test_shapes_and_gradients(changes):
    model = build(**changes)
    output, state, trace = model(inputs())
    assert output.shape == (T, B, OUTPUTS)
    assert trace is None
    reads, writes = changes.get("read_heads", 1), changes.get("write_heads", 1)
    assert state.memory.memory.shape == (B, N, W)
    assert state.memory.reads.shape == (B, reads, W)
    assert state.memory.read_weights.shape == (B, reads, N)
    assert state.memory.write_weights.shape == (B, writes, N)
    output.square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    without = {name for name, gradient in gradients.items() if gradient is None}
    assert without <= ({"start.reads"} if not model.controller_sees_reads else set())
    assert all(g.isfinite().all() for g in gradients.values() if g is not None)


@every_variant
def test_two_halves_equal_the_whole(changes):
    model, x = build(**changes), inputs()
    whole = model(x)
    first = model(x[:2])
    second = model(x[2:], first.state)
    torch.testing.assert_close(torch.cat((first.output, second.output)), whole.output)
    torch.testing.assert_close(second.state, whole.state)


@every_variant
def test_the_trace_changes_nothing_and_ends_in_the_state(changes):
    model, x = build(**changes), inputs()
    plain, traced = model(x), model(x, trace=True)
    torch.testing.assert_close(traced.output, plain.output)
    memory, trace = traced.state.memory, traced.trace
    torch.testing.assert_close(trace.memory[-1], memory.memory)
    torch.testing.assert_close(trace.read_weights[-1], memory.read_weights)
    torch.testing.assert_close(trace.write_weights[-1], memory.write_weights)
    assert trace.memory.shape == (T, B, N, W)
    assert not trace.memory.requires_grad
    torch.testing.assert_close(trace.read_weights.sum(-1), torch.ones_like(trace.read_weights[..., 0]))


def test_samples_do_not_see_each_other():
    model, x = build(), inputs()
    torch.testing.assert_close(model(x[:, 1:2]).output, model(x).output[:, 1:2])


def values_and_gradients(model, x):
    """Of a loss that sees outputs and states of two calls, the second from the state of the first."""
    x = x.clone().requires_grad_()
    first = model(x[:2])
    second = model(x[2:], first.state)
    found = [first.output, second.output, *second.state.controller, *second.state.memory]
    loss = sum(
        (part * torch.arange(part.numel(), dtype=part.dtype).cos().view(part.shape)).sum() for part in found
    )
    leaves = [x, *model.parameters()]
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [*found, *(torch.zeros(()) if gradient is None else gradient for gradient in gradients)]


@every_variant
def test_every_backend_gives_the_same_values_and_gradients(changes):
    model, x = build(**changes), inputs()
    found = values_and_gradients(model, x)
    with ctm_fast.use_backend("reference"):
        expected = values_and_gradients(model, x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("changes", [{}, {"controller": "ff"}], ids=["lstm", "ff"])
@pytest.mark.parametrize("part", ["output", "memory", "reads"])
def test_gradients_where_only_a_part_reaches_the_loss(changes, part):
    model, x = build(**changes), inputs()

    def gradients():
        output, state, _ = model(x)
        parts = {"output": output[1], "memory": state.memory.memory, "reads": state.memory.reads}
        return torch.autograd.grad(
            parts[part].square().sum(), list(model.parameters()), allow_unused=True, materialize_grads=True
        )

    found = gradients()
    with ctm_fast.use_backend("reference"):
        torch.testing.assert_close(found, gradients())


def test_frozen_parameters_and_no_gradients():
    model, x = build(), inputs()
    expected = model(x).output
    with torch.no_grad():
        torch.testing.assert_close(model(x).output, expected)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert not model(x).output.requires_grad
    model.heads.to_interface.bias.requires_grad_()
    model(x).output.sum().backward()
    assert model.heads.to_interface.bias.grad.any()


def test_two_backwards_of_one_forward():
    model, x = build(), inputs()
    loss = model(x).output.square().sum()
    loss.backward(retain_graph=True)
    once = [p.grad.clone() for p in model.parameters()]
    loss.backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], [2 * g for g in once])


@pytest.mark.parametrize("kind", ["constant", "zeros", "random", "learned"])
def test_memory_starts(kind):
    model = build(memory_init=kind)
    memory = model.initial_state(B).memory.memory
    fixed = {"constant": 1e-6, "zeros": 0.0}
    if kind in fixed:
        torch.testing.assert_close(memory, torch.full_like(memory, fixed[kind]))
    assert ("start.memory" in dict(model.named_parameters())) == (kind == "learned")
    assert ("start.memory" in model.state_dict()) == (kind in ("random", "learned"))


@pytest.mark.parametrize("kind", ["learned", "one_hot", "uniform"])
def test_weightings_start(kind):
    state = build(weights_init=kind, memory_init="random", read_heads=2).initial_state(B).memory
    for weights in (state.read_weights, state.write_weights):
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    if kind == "one_hot":
        assert torch.equal(state.read_weights[..., 0], torch.ones(B, 2, dtype=torch.float64))
    if kind == "uniform":
        torch.testing.assert_close(state.read_weights, torch.full_like(state.read_weights, 1 / N))


@pytest.mark.parametrize(
    "changes",
    [
        {"weights_init": "learned"},
        {"weights_init": "one_hot"},
        {"weights_init": "uniform", "memory_init": "random"},
    ],
    ids=["learned", "one-hot", "random memory"],
)
def test_slots_are_told_apart(changes):
    """Identical slots under identical weightings would stay identical for ever."""
    memory = build(**changes)(inputs()).state.memory.memory
    assert memory.std(1).max() > 1e-8


def test_split_hidden_is_its_controller():
    model = build(
        split_hidden=True, controller_size=None, controller="rnn", shared_weights=True, order="read_write",
        read_heads=2, clip=None,
    )  # fmt: skip
    x = inputs(1)
    size = model.layout.size
    assert model.controller.size == size + OUTPUTS
    seen = torch.cat((x[0], model.start.reads[-1].tanh().expand(B, W)), 1)
    weights = model.controller.rnn
    hidden = torch.tanh(F.linear(seen, weights.weight_ih_l0))  # biases and state are zero
    torch.testing.assert_close(model(x).output[0], 5 * hidden[:, size:])
    assert model.heads.temperature.item() == 5
    assert weights.weight_hh_l0.abs().max() <= 2 * (6 / (2 * (size + OUTPUTS))) ** 0.5


def test_outputs_are_clipped():
    model = build(clip=0.01)
    assert model(inputs()).output.abs().max() == 0.01


def test_saving_and_loading(tmp_path):
    pytest.importorskip("huggingface_hub")
    model = build(order="read_write", memory_init="random").float()
    model.save_pretrained(tmp_path)
    loaded = NTM.from_pretrained(tmp_path)
    x = inputs().float()
    torch.testing.assert_close(loaded(x).output, model(x).output)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"read_heads": 0}, "read_heads must be at least 1, got 0"),
        ({"write_heads": 0}, "write_heads must be at least 1, got 0"),
        ({"slots": 0}, "slots must be at least 1, got 0"),
        ({"shift": 2}, "shift must be odd, got 2"),
        ({"shift": 0}, "shift must be at least 1, got 0"),
        (
            {"weights_init": "uniform"},
            "weights_init must tell slots .* memory_init='constant' .*, got 'uniform'",
        ),
        ({"weights_init": "uniform", "memory_init": "zeros"}, "memory_init='zeros' does not, got 'uniform'"),
        ({"shift": 9}, "slots must be at least shift=9, got 7"),
        ({"controller": "gru"}, "controller must be one of ff, rnn, lstm, got 'gru'"),
        ({"controller_size": 0}, "controller_size must be at least 1, got 0"),
        ({"controller_size": None}, "controller_size must be given without split_hidden"),
        ({"split_hidden": True}, "controller_size must be None, got 8"),
        ({"controller_layers": 0}, "controller_layers must be at least 1, got 0"),
        ({"clip": 0.0}, "clip must be positive or None, got 0.0"),
        ({"memory_init": "ones"}, "memory_init must be one of constant, .*, got 'ones'"),
        ({"weights_init": "zeros"}, "weights_init must be one of learned, .*, got 'zeros'"),
        ({"read_init": "uniform"}, "read_init must be one of learned, .*, got 'uniform'"),
        ({"order": "write"}, "order must be one of"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


@pytest.mark.parametrize(
    "shape", [(T, INPUTS), (T, B, INPUTS + 1), (0, B, INPUTS)], ids=["rank", "channels", "steps"]
)
def test_wrong_inputs(shape):
    with pytest.raises(ValueError, match=r"NTM: x must have shape \(T, B, 4\), got"):
        build()(torch.randn(shape, dtype=torch.float64))


STATES = {
    "batch": (lambda m: m.initial_state(4), ValueError, "state must be of batch 3, got 4"),
    "one-for-all": (lambda m: m.initial_state(1), ValueError, "state must be of batch 3, got 1"),
    "type": (lambda m: 5, TypeError, "state must be of type NtmState, got int"),
    "controller": (
        lambda m: m.initial_state(3)._replace(controller=m.initial_state(1).controller),
        ValueError,
        r"state's controller must have shape \(L, B, C\) = \(1, 3, 8\), got \(1, 1, 8\)",
    ),
    "controller-parts": (
        lambda m: m.initial_state(3)._replace(controller=()),
        ValueError,
        "state's controller must be 2 tensors, got 0",
    ),
    "width": (
        lambda m: build(width=4).initial_state(3),
        ValueError,
        r"state's memory must have shape \(B, N, W\) = \(3, 7, 3\), got \(3, 7, 4\)",
    ),
}


@pytest.mark.parametrize(("state", "error", "message"), STATES.values(), ids=STATES.keys())
def test_wrong_states(state, error, message):
    model = build(width=3)
    with pytest.raises(error, match=f"^NTM: {message}"):
        model(torch.zeros(2, 3, INPUTS, dtype=torch.float64), state(model))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([1.0], "x must be a torch.Tensor, got list"),
        (torch.zeros(T, B, INPUTS).long(), "x must be a floating-point tensor, got torch.int64"),
        (torch.zeros(T, B, INPUTS), "x must be torch.float64 as the parameters, got torch.float32"),
    ],
    ids=["list", "integers", "precision"],
)
def test_wrong_kinds_of_inputs(x, message):
    with pytest.raises(TypeError, match=f"^NTM: {message}"):
        build()(x)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slots": "8"}, "slots must be an int, got str"),
        ({"shift": "3"}, "shift must be an int, got str"),
        ({"clip": "8"}, "clip must be a number or None, got str"),
        ({"strenght": "oneplus"}, "NTM: options must be among order, .*, got 'strenght'"),
    ],
    ids=["slots", "shift", "clip", "misspelt"],
)
def test_wrong_kinds_of_arguments(changes, message):
    with pytest.raises(TypeError, match=message):
        build(**changes)
