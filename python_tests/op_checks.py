"""Checks of one backend of an op against the reference, whatever calls it."""

from __future__ import annotations

import torch

from ctm_fast.testing import OpCase, error_bound, relative_error, upcast


def assert_spreads_as_the_reference(case: OpCase, backend: str, name: str, value: float) -> None:
    """NaN and infinity go where the reference sends them if one element of the input ``name`` is ``value``."""
    inputs = case.inputs()
    poisoned = inputs[name]
    poisoned.view(-1)[poisoned.numel() // 2] = value
    found, expected = case.evaluate(inputs, backend), case.evaluate(inputs, "reference")
    for key, y in expected.items():
        assert torch.equal(found[key].isnan(), y.isnan()), (name, key)
        assert torch.equal(found[key].isinf(), y.isinf()), (name, key)


def assert_extremes_hold(case: OpCase, backend: str, scale: float) -> None:
    """The numerical contract where the first input is ``scale`` times as large."""
    inputs = case.inputs()
    first = next(iter(inputs))
    inputs[first] = inputs[first] * scale
    plain, found = case.evaluate(inputs, "reference"), case.evaluate(inputs, backend)
    for name, y in case.evaluate(upcast(inputs), "reference").items():
        assert torch.equal(found[name].isfinite(), plain[name].isfinite()), name
        if plain[name].isfinite().all():
            smallest = torch.finfo(torch.float32).tiny * y.numel()
            bound = error_bound(relative_error(plain[name], y), torch.float32) * y.norm().item()
            assert (found[name].double() - y).norm().item() <= bound + smallest, name
