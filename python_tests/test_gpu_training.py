"""Training on a GPU: no step waits for it, and bfloat16 autocast learns what float32 learns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from foreign_cases import build, loss_of

import ctm_fast
from ctm_fast.models import ContinuousThoughtMachine
from tasks.losses import at_tick, parity_loss
from tasks.parity.data import positions, random_sequences

pytestmark = pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
LENGTH, BATCH, STEPS = 6, 64, 600


@contextmanager
def no_waits() -> Iterator[None]:
    """An operation that waits for the GPU raises; the other thread of a backward too."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.needs_gpu
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_training_step_never_waits_for_the_gpu(dropout: float) -> None:
    model, (x,) = build("base", dropout=dropout)
    ctm_fast.accelerate(model.to("cuda"))
    x = x.to("cuda")
    optimiser = torch.optim.SGD(model.parameters(), 1e-3)

    def step() -> None:
        optimiser.zero_grad()
        loss_of(model(x)).backward()
        optimiser.step()

    for _ in range(2):
        step()
    torch.cuda.synchronize()
    with no_waits():
        step()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.needs_gpu
def test_a_wait_would_be_found() -> None:
    x = torch.ones(1, device="cuda")
    with pytest.raises(RuntimeError, match="synchronizing"), no_waits():
        x.item()


def learner(device: str) -> ContinuousThoughtMachine:
    torch.manual_seed(0)
    model = ContinuousThoughtMachine(
        iterations=8, d_model=64, d_input=32, heads=4, n_synch_out=32, n_synch_action=32, synapse_depth=1,
        memory_length=6, deep_nlms=True, memory_hidden_dims=4, do_layernorm_nlm=False,
        backbone_type="parity_backbone", positional_embedding_type="custom-rotational-1d", out_dims=2 * LENGTH,
        prediction_reshaper=[LENGTH, 2], dropout=0.0, neuron_select_type="random-pairing",
    )  # fmt: skip
    with torch.no_grad():
        model.eval()(random_sequences(1, LENGTH, torch.Generator())[0])  # gives lazy layers their sizes
    return model.train().to(device)


def accuracy(device: str, autocast: bool) -> float:
    """Of the most certain tick on fresh sequences after a short training."""
    model, generator = learner(device), torch.Generator().manual_seed(1)
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3)
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min((step + 1) / 100, 1.0))
    for _ in range(STEPS):
        values, targets = (x.to(device) for x in random_sequences(BATCH, LENGTH, generator))
        optimiser.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            predictions, certainties, _ = model(values)
            loss, _ = parity_loss(positions(predictions), certainties, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        warm_up.step()
    values, targets = (x.to(device) for x in random_sequences(1000, LENGTH, generator))
    with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=autocast):
        predictions, certainties, _ = model.eval()(values)
        predictions = positions(predictions)
        _, ticks = parity_loss(predictions, certainties, targets)
    return at_tick((predictions.argmax(2) == targets[..., None]).float(), ticks).mean().item()


@pytest.mark.needs_gpu
def test_autocast_learns_what_float32_learns() -> None:
    assert accuracy("cuda", autocast=False) > 0.97
    assert accuracy("cuda", autocast=True) > 0.97
