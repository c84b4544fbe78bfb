"""Dropout of accelerated models: its statistics, its masks, its gradients."""

import pytest
import torch
from foreign_cases import (
    VARIANTS,
    agree,
    assert_close,
    build,
    copies,
    evaluate,
    gradients,
    loss_of,
    pair,
    tensors,
)
from torch.utils.checkpoint import checkpoint

import ctm_fast
from ctm_fast.testing import relative_error

ROWS = 2000


def repeated(x):
    """ROWS equal samples."""
    if isinstance(x, tuple):
        return tuple(map(repeated, x))
    return x.expand(ROWS, *x.shape[1:])


@pytest.mark.parametrize("name", [*VARIANTS, "base-unet", "sort-unet"])
def test_recomputed_synapses_give_the_same_bits(name):
    model, inputs = build(name, dropout=0.2)
    kept, recomputed = copies(ctm_fast.accelerate(model), 2)
    recomputed.recompute_synapses = True
    found = []
    for each in (kept, recomputed):
        torch.manual_seed(5)
        found.append(evaluate(each, inputs, torch.float64))
    assert_close(found[1], found[0], 1e-12)


@pytest.mark.parametrize("name", [*VARIANTS, "base-unet"])
def test_dropout_of_everything(name):
    original, fast, inputs = pair(name, dropout=1.0)
    agree(original, fast, inputs)


@pytest.mark.parametrize("name", [*VARIANTS, "base-unet"])
def test_dropout_statistics(name):
    """Of many equal samples: every row draws masks of its own."""
    original, fast, inputs = pair(name, batch=1, dropout=0.3)
    rows = tuple(map(repeated, inputs))
    truth, found = (tensors(model(*rows))["out.0"].detach().double().flatten(1) for model in (original, fast))
    spread = truth.std(0)
    noise = (2 / ROWS) ** 0.5
    off = (found.mean(0) - truth.mean(0)) / spread
    assert off.abs().max() < 5 * noise and off.square().mean() < (2 * noise) ** 2
    assert ((found.std(0) / spread).log().abs() < 5 * noise).all()


@pytest.mark.parametrize("name", ["sort", "rl", "base-unet"])
def test_checkpointed_model_draws_its_masks_again(name):
    _, fast, inputs = pair(name, dropout=0.3)
    found = []
    for through in (False, True):
        torch.manual_seed(8)
        fast.zero_grad()
        outputs = checkpoint(fast, *inputs, use_reentrant=False) if through else fast(*inputs)
        loss_of(outputs).backward()
        found.append(gradients(fast))
    assert_close(found[1], found[0], 0.0)


@pytest.mark.parametrize("name", VARIANTS)
def test_dropout_masks_follow_the_seed(name):
    _, fast, inputs = pair(name, dropout=0.3)
    fast(*inputs)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(tensors(fast(*inputs))["out.0"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    fast.eval()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    fast(*inputs)
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_gradient_is_that_of_the_drawn_masks():
    """Finite differences in a random direction, the masks held by the seed."""
    model, inputs = build("base-unet", dropout=0.3)
    model = ctm_fast.accelerate(model).double()
    model(*inputs)

    def loss():
        torch.manual_seed(4)
        return model(*inputs)[2].square().sum()

    parameters = [p for key, p in model.named_parameters() if not key.startswith("backbone")]
    grads = torch.autograd.grad(loss(), parameters, allow_unused=True)
    direction = [torch.randn_like(p) for p in parameters]
    slope = sum((g * d).sum() for g, d in zip(grads, direction, strict=True) if g is not None)
    ends = []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(d, alpha=step)
            ends.append(loss())
    assert relative_error((ends[0] - ends[1]) / 2e-6, slope) < 1e-6
