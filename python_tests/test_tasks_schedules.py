"""Learning-rate schedules against torch's own schedulers and the published formula."""

import math
import warnings

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR, MultiStepLR, SequentialLR

from tasks.config import TrainConfig
from tasks.errors import UserError
from tasks.schedules import constant, cosine, multistep


@pytest.mark.parametrize(("warmup", "total"), [(0, 10), (1, 10), (5, 20), (20, 20)], ids=str)
def test_cosine_follows_the_formula(warmup: int, total: int) -> None:
    ramp = torch.linspace(1e-20, 0.1, warmup, dtype=torch.float64).tolist()
    for t in range(total):
        wave = math.cos(math.pi * (t - warmup) / max(1, total - warmup))
        expected = ramp[t] if t < warmup else 1e-7 + (0.1 - 1e-7) * (1 + wave) / 2
        assert cosine(t, 0.1, warmup, total) == pytest.approx(expected, rel=1e-12)


def test_cosine_without_warmup_starts_at_the_base() -> None:
    assert cosine(0, 0.1, 0, 10) == 0.1
    assert cosine(10, 0.1, 0, 10) == pytest.approx(1e-7)


def test_multistep_equals_warmup_then_multisteplr() -> None:
    warmup, milestones = 4, (6, 9)
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    parts = [
        LambdaLR(optimizer, lambda t: t / warmup),
        MultiStepLR(optimizer, [m - warmup for m in milestones], gamma=0.5),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = SequentialLR(optimizer, parts, [warmup])
        for t in range(12):
            assert multistep(t, 0.1, warmup, milestones, 0.5) == pytest.approx(
                scheduler.get_last_lr()[0], rel=1e-12
            )
            optimizer.step()
            scheduler.step()


def test_constant_after_the_warmup() -> None:
    assert [constant(t, 1.0, 4) for t in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert constant(0, 1.0, 0) == 1.0


@pytest.mark.parametrize("kind", ["cosine", "multistep", "none"])
def test_config_picks_the_schedule(kind: str) -> None:
    config = TrainConfig(scheduler_type=kind, lr=1.0, warmup_steps=2, milestones=(3,), training_iterations=9)  # type: ignore[arg-type]
    after = {"cosine": cosine(5, 1.0, 2, 9), "multistep": 0.1, "none": 1.0}
    assert config.learning_rate(5) == pytest.approx(after[kind])


def test_milestone_in_the_warmup_is_refused() -> None:
    with pytest.raises(UserError, match="milestones must lie after the warmup, got"):
        TrainConfig(scheduler_type="multistep", warmup_steps=5, milestones=(5,))
