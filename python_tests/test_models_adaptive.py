"""AdaptiveRNN and AdaptiveLSTM: a naive loop over samples with torch's own cells, options, saving, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ctm_fast import ops, use_backend
from ctm_fast.models import AdaptiveLSTM, AdaptiveOutput, AdaptiveRNN, ArgumentError

CLASSES = (AdaptiveRNN, AdaptiveLSTM)
BACKENDS = ("reference", "native")
T, B, INPUTS, OUTPUTS, H = 4, 6, 3, 6, 9
Model = AdaptiveRNN | AdaptiveLSTM


def small(cls: type[Model], **options: Any) -> Model:
    return cls(INPUTS, OUTPUTS, H, **{"halting_bias": -1.0, **options}).double()


def naive(model: Model, x: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Outputs and ponder of one sample (T, INPUTS) whose first ``length`` timesteps are not padded."""
    state = torch.zeros(2 if isinstance(model, AdaptiveLSTM) else 1, 1, H).double()
    outputs, ponder = [], []
    for t in range(length):
        output, mean, total = torch.zeros(OUTPUTS).double(), torch.zeros_like(state), 0.0
        for n in range(1, model.max_steps + 1):
            flag = torch.tensor([float(n == 1)]).double()
            found = model.cell(torch.cat([x[t], flag])[None], tuple(state) if len(state) == 2 else state[0])
            state = found[None] if isinstance(found, Tensor) else torch.stack(found)
            y = model.readout(state[0])[0]
            if model.digit_classes:
                y = y.view(-1, model.digit_classes).softmax(1).flatten()
            h = torch.sigmoid(model.halting(state[0]))[0, 0]
            ends = total + h >= 1 - model.epsilon or n == model.max_steps
            weight = 1 - total if ends else h
            output, mean = output + weight * y, mean + weight * state
            if ends:
                break
            total = total + h
        state = mean
        outputs.append(torch.log(output + 1e-10) if model.digit_classes else output)
        ponder.append(n + weight)
    rest = T - length
    padded = torch.cat([torch.stack(outputs), torch.zeros(rest, OUTPUTS).double()])
    return padded, torch.cat([torch.stack(ponder).view(-1), torch.zeros(rest).double()])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{}, {"digit_classes": 3, "max_steps": 4}], ids=["logits", "digits"])
@pytest.mark.parametrize("cls", CLASSES)
def test_equals_a_loop_over_samples(cls: type[Model], options: dict[str, Any], backend: str) -> None:
    model = small(cls, **options)
    x = torch.randn(T, B, INPUTS).double()
    lengths = [4, 1, 3, 4, 2, 4]
    mask = torch.arange(T)[:, None] < torch.tensor(lengths)
    with use_backend(backend):
        found = model(x, mask)
    singles = [naive(model, x[:, b], length) for b, length in enumerate(lengths)]
    output, ponder = (torch.stack(values, 1) for values in zip(*singles, strict=True))
    torch.testing.assert_close(found.output, output, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.ponder, ponder, rtol=1e-10, atol=1e-12)
    losses = [
        (y * torch.cos(torch.arange(y.numel())).view(y.shape)).sum() + p.sum()
        for y, p in ((found.output, found.ponder), (output, ponder))
    ]
    first, second = (torch.autograd.grad(loss, list(model.parameters())) for loss in losses)
    for (name, _), a, b in zip(model.named_parameters(), first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("adaptive", [True, False], ids=["adaptive", "plain"])
@pytest.mark.parametrize("cls", CLASSES)
def test_a_single_input_is_a_sequence_of_one(cls: type[Model], adaptive: bool) -> None:
    model = small(cls, adaptive=adaptive)
    x, mask = torch.randn(B, INPUTS).double(), torch.arange(B) != 2
    single, sequence = model(x, mask), model(x[None], mask[None])
    assert single.output.shape == (B, OUTPUTS) and single.ponder.shape == single.steps.shape == (B,)
    for a, b in zip(single[:3], sequence[:3], strict=True):
        assert torch.equal(a, b[0])
    assert not single.output[2].any() and single.steps[2] == 0


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("adaptive", [True, False], ids=["adaptive", "plain"])
def test_state_goes_on(cls: type[Model], adaptive: bool) -> None:
    model = small(cls, adaptive=adaptive)
    x = torch.randn(T, B, INPUTS).double()
    first = model(x[:2])
    second = model(x[2:], state=first.state)
    whole = model(x)
    torch.testing.assert_close(torch.cat([first.output, second.output]), whole.output)


@pytest.mark.parametrize("cls", CLASSES)
def test_plain_network_is_torchs_own(cls: type[Model]) -> None:
    model = small(cls, adaptive=False)
    x = torch.randn(T, B, INPUTS).double()
    found = model(x)
    own = (torch.nn.LSTM if cls is AdaptiveLSTM else torch.nn.RNN)(INPUTS, H).double()
    own.load_state_dict({f"{key}_l0": value for key, value in model.cell.state_dict().items()})
    torch.testing.assert_close(found.output, model.readout(own(x)[0]))
    assert found.steps.eq(1).all() and not found.ponder.any() and found.cost == 0
    assert not any(key.startswith("halting") for key in model.state_dict())


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_cost_is_the_reduced_ponder(reduction: str) -> None:
    model = small(AdaptiveRNN, ponder=reduction)
    mask = torch.rand(T, B) < 0.6
    found = model(torch.randn(T, B, INPUTS).double(), mask)
    assert torch.equal(found.cost, ops.ponder_cost(found.ponder, mask, reduction=reduction))
    expected = found.ponder.sum() / (B if reduction == "sum" else mask.sum())
    torch.testing.assert_close(found.cost, expected)


def test_the_halting_unit_starts_eager() -> None:
    model = AdaptiveRNN(INPUTS, OUTPUTS, H)
    assert model.halting.bias.item() == 1.0
    with torch.no_grad():
        model.halting.weight.zero_()
    found = model(torch.randn(T, B, INPUTS))
    assert found.steps.eq(2).all()
    torch.testing.assert_close(found.ponder, torch.full((T, B), 3 - torch.sigmoid(torch.ones(())).item()))


@pytest.mark.parametrize("cls", CLASSES)
def test_digits_are_log_probabilities(cls: type[Model]) -> None:
    found: AdaptiveOutput = small(cls, digit_classes=3)(torch.randn(T, B, INPUTS).double())
    sums = found.output.exp().view(T, B, 2, 3).sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums))


@pytest.mark.parametrize("cls", CLASSES)
def test_inference_mode_and_training_agree(cls: type[Model]) -> None:
    model = small(cls)
    x = torch.randn(T, B, INPUTS).double()
    with torch.inference_mode():
        found = model(x)
    torch.testing.assert_close(found.output, model(x).output.detach())


@pytest.mark.parametrize("cls", CLASSES)
def test_round_trip(cls: type[Model], tmp_path: Any) -> None:
    pytest.importorskip("huggingface_hub")
    pytest.importorskip("safetensors")
    model = cls(INPUTS, OUTPUTS, H, max_steps=5, digit_classes=2)
    model.save_pretrained(tmp_path)
    loaded = cls.from_pretrained(tmp_path)
    x = torch.randn(T, B, INPUTS)
    assert loaded.max_steps == 5
    torch.testing.assert_close(loaded(x).output, model(x).output, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 0}, "hidden_size must be at least 1, got 0"),
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
        ({"epsilon": 1.0}, r"epsilon must be in \[0, 1\), got 1.0"),
        ({"ponder": "max"}, "ponder must be 'sum' or 'mean', got 'max'"),
        ({"halting_bias": float("nan")}, "halting_bias must be finite, got nan"),
        ({"digit_classes": 4}, "digit_classes must be 0 or divide output_size 6, got 4"),
    ],
)
def test_bad_constructor_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        AdaptiveRNN(**{"input_size": INPUTS, "output_size": OUTPUTS, "hidden_size": H, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": "a"}, "epsilon must be a number, got str"),
        ({"halting_bias": None}, "halting_bias must be a number, got NoneType"),
    ],
    ids=["epsilon", "halting-bias"],
)
def test_constructor_arguments_of_another_kind(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        AdaptiveRNN(INPUTS, OUTPUTS, H, **options)


@pytest.mark.parametrize("classes", [0, 3], ids=["logits", "digits"])
@pytest.mark.parametrize("cls", CLASSES)
def test_an_empty_batch(cls: type[Model], classes: int) -> None:
    model = small(cls, digit_classes=classes)
    found = model(torch.zeros(T, 0, INPUTS).double())
    assert found.output.shape == (T, 0, OUTPUTS) and found.steps.shape == (T, 0)
    assert model(torch.zeros(0, INPUTS).double()).output.shape == (0, OUTPUTS)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.zeros(2, 3, 4),), ValueError, r"x must have shape \(T, B, 3\) with T >= 1 or \(B, 3\)"),
        ((torch.zeros(0, 2, 3),), ValueError, "x must have shape"),
        ((torch.zeros(2, 3).long(),), TypeError, "x must be a floating-point tensor, got torch.int64"),
        (([1.0],), TypeError, "x must be a torch.Tensor, got list"),
        ((torch.zeros(2, 3).double(),), TypeError, "x must be torch.float32 as the .*, got torch.float64"),
        ((torch.zeros(1, 3), [True]), TypeError, "mask must be a torch.Tensor, got list"),
        ((torch.zeros(1, 3), None, 5), TypeError, "state must be a torch.Tensor, got int"),
        (
            (torch.zeros(2, 3), torch.ones(3, dtype=torch.bool)),
            ValueError,
            r"mask must be bool of shape \(2,\)",
        ),
        (
            (torch.zeros(2, 3), None, torch.zeros(2, 8)),
            ValueError,
            r"state must be 2 of shape \(B, H\) = \(2, 9\)",
        ),
    ],
    ids=["width", "no-timestep", "integers", "list", "precision", "mask-list", "state-int", "mask", "state"],
)
def test_bad_inputs(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"AdaptiveLSTM: {message}"):
        AdaptiveLSTM(INPUTS, OUTPUTS, H)(*arguments)
