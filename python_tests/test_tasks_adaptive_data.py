"""Data of the experiments of adaptive computation time, against plain loops over single samples."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tasks.adaptive.addition import END, sums, written
from tasks.adaptive.logic import GateOrder, gate_chains
from tasks.adaptive.parity import parities
from tasks.adaptive.sequences import UNASKED, uniform
from tasks.adaptive.sort import unsorted
from tasks.task import Batch

PAPER_GATES: list[Callable[[int, int], bool]] = [
    lambda p, q: not (p or q),
    lambda p, q: not p and bool(q),
    lambda p, q: bool(p) and not q,
    lambda p, q: p != q,
    lambda p, q: not (p and q),
    lambda p, q: bool(p and q),
    lambda p, q: p == q,
    lambda p, q: not p or bool(q),
    lambda p, q: bool(p) or not q,
    lambda p, q: bool(p or q),
]
SWAPPED_GATES = [*PAPER_GATES[:7], PAPER_GATES[8], PAPER_GATES[7], PAPER_GATES[9]]
GENERATORS: dict[str, Callable[[Tensor, torch.Generator], Batch]] = {
    "parity": lambda lengths, g: parities(lengths, 9, "ones", g),
    "logic": lambda lengths, g: gate_chains(lengths, 1, 10, "paper", g),
    "addition": lambda lengths, g: sums(lengths, 1, 5, g),
    "sort": unsorted,
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lengths(most: int, size: int = 40) -> Tensor:
    """Lengths from 1 to `most`, the longest not everywhere."""
    return torch.arange(size) % most + 1


@pytest.mark.parametrize("counted", ["ones", "nonzeros"])
def test_parity(counted: str) -> None:
    nonzeros = torch.arange(12) % 10
    inputs, targets, mask, difficulty = parities(nonzeros, 9, counted, generator())
    assert inputs.shape == (1, 12, 9)
    assert inputs.dtype == torch.float32
    assert mask.all()
    assert difficulty.tolist() == [nonzeros.tolist()]
    for vector, target, count in zip(inputs[0].tolist(), targets[0].tolist(), nonzeros.tolist(), strict=True):
        assert len([v for v in vector if v in (1.0, -1.0)]) == count
        assert vector.count(0.0) == 9 - count
        assert target == [vector.count(1.0) % 2 if counted == "ones" else count % 2]


def test_parity_puts_values_anywhere() -> None:
    inputs = parities(torch.full((500,), 2), 5, "ones", generator())[0][0]
    assert inputs.abs().mean(0).sub(0.4).abs().max() < 0.1
    assert inputs.mean(0).abs().max() < 0.1


@pytest.mark.parametrize(
    ("order", "gates"), [("paper", PAPER_GATES), ("published", SWAPPED_GATES)], ids=["paper", "published"]
)
def test_logic(order: GateOrder, gates: list[Callable[[int, int], bool]]) -> None:
    inputs, targets, mask, difficulty = gate_chains(lengths(6), 1, 10, order, generator())
    assert inputs.shape == (6, 40, 102)
    for b, length in enumerate(lengths(6).tolist()):
        answer = 0
        for t in range(6):
            if t >= length:
                assert not mask[t, b]
                assert not inputs[t, b].any()
                assert targets[t, b].tolist() == [UNASKED]
                continue
            first, second, *_ = inputs[t, b].int().tolist()
            slots = inputs[t, b, 2:].view(10, 10)
            used = int(difficulty[t, b])
            assert slots.sum(1).tolist() == [1.0] * used + [0.0] * (10 - used)
            before, now = (answer, second) if t else (first, second)
            assert t == 0 or first == 0
            for slot in slots[:used]:
                before, now = now, int(gates[int(slot.argmax())](now, before))
            answer = now
            assert targets[t, b].tolist() == [answer]


def test_logic_keeps_to_its_range_of_gates() -> None:
    difficulty = gate_chains(lengths(3), 2, 4, "paper", generator())[3]
    assert sorted(difficulty.unique().tolist()) == [2, 3, 4]


def test_addition() -> None:
    inputs, targets, mask, difficulty = sums(lengths(5), 1, 5, generator())
    assert inputs.shape == (5, 40, 50)
    for b, length in enumerate(lengths(5).tolist()):
        total = 0
        for t in range(5):
            slots = inputs[t, b].view(5, 10)
            if t >= length:
                assert not mask[t, b]
                assert not slots.any()
            else:
                used = int(difficulty[t, b])
                assert slots.sum(1).tolist() == [1.0] * used + [0.0] * (5 - used)
                total += int("".join(str(int(slot.argmax())) for slot in slots[:used]))
            if 0 < t < length:
                digits = [int(d) for d in str(total)]
                assert targets[t, b].tolist() == digits + [END] * (6 - len(digits))
            else:
                assert targets[t, b].tolist() == [UNASKED] * 6


@pytest.mark.parametrize("number", [0, 7, 10, 99, 100, 90_009, 99_999, 100_000, 999_999])
def test_numbers_are_written_from_the_left(number: int) -> None:
    text = str(number)
    assert written(torch.tensor([number])).tolist() == [[*map(int, text), *[END] * (6 - len(text))]]


def test_sort() -> None:
    inputs, targets, mask, difficulty = unsorted(lengths(7), generator())
    assert inputs.shape == (14, 40, 2)
    for b, length in enumerate(lengths(7).tolist()):
        numbers = inputs[:length, b, 0].tolist()
        order = sorted(range(length), key=lambda i: numbers[i])
        flags = [0.0] * 14
        flags[length - 1] = 1.0
        assert inputs[:, b, 1].tolist() == flags
        assert not inputs[length:, b, 0].any()
        assert targets[:, b, 0].tolist() == [UNASKED] * length + order + [UNASKED] * (14 - 2 * length)
        assert mask[:, b].tolist() == [t < 2 * length for t in range(14)]
        assert difficulty[:, b].tolist() == [length] * 14


def test_sorted_numbers_are_standard_normal() -> None:
    numbers = unsorted(torch.full((2000,), 3), generator())[0][:3, :, 0]
    assert abs(numbers.mean()) < 0.05
    assert abs(numbers.std() - 1) < 0.05


@pytest.mark.parametrize("name", GENERATORS)
def test_everything_random_comes_from_the_generator(name: str) -> None:
    make = GENERATORS[name]
    before = torch.get_rng_state()
    one, two, other = (make(lengths(5), generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one[0], other[0])


@pytest.mark.parametrize("name", GENERATORS)
def test_one_sample_of_length_one(name: str) -> None:
    inputs, targets, mask, difficulty = GENERATORS[name](torch.ones(1, dtype=torch.int64), generator())
    assert inputs.shape[:2] == targets.shape[:2] == mask.shape == difficulty.shape
    assert inputs.shape[1] == 1


def test_uniform_reaches_both_ends() -> None:
    assert sorted(uniform(2, 4, (200,), generator()).unique().tolist()) == [2, 3, 4]
