"""Sequences of the experiments of the Neural Turing Machine, against what their definitions say."""

import math

import pytest
import torch

from tasks.ntm import data, scores


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_random_bits_are_fair_and_follow_the_generator():
    first, again = (data.random_bits((100, 20, 8), generator()) for _ in range(2))
    assert first.dtype == torch.float32
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert first.mean().item() == pytest.approx(0.5, abs=0.01)
    assert torch.equal(first, again)


def test_symbol_zero_is_never_drawn():
    symbols = data.random_symbols(50, 40, 5, generator())
    assert symbols.shape == (50, 40, 5)
    assert torch.equal(symbols.sum(-1), torch.ones(50, 40))
    assert not symbols[..., 0].any()
    assert all(symbols[..., symbol].any() for symbol in range(1, 5))


def test_between_holds_both_ends():
    drawn = {data.between(2, 4, generator(seed)) for seed in range(50)}
    assert drawn == {2, 3, 4}


def test_copy_bits():
    vectors = data.random_bits((3, 2, 4), generator())
    inputs, targets = data.copy_bits(vectors, start_marker=False)
    assert inputs.shape == (7, 2, 5)  # 2 L + 1 steps, D + 1 channels
    assert torch.equal(inputs[:3, :, :4], vectors)
    assert torch.equal(inputs[:, 0, 4], torch.tensor([0.0, 0, 0, 1, 0, 0, 0]))
    assert not inputs[3:, :, :4].any()
    assert torch.equal(targets, vectors)


def test_copy_bits_with_a_start_marker():
    vectors = data.random_bits((2, 1, 3), generator())
    inputs, _ = data.copy_bits(vectors, start_marker=True)
    assert inputs.shape == (6, 1, 5)
    assert torch.equal(inputs[1:3, :, :3], vectors)
    assert torch.equal(inputs[:, 0, 3:], torch.tensor([[1.0, 0], [0, 0], [0, 0], [0, 1], [0, 0], [0, 0]]))


def test_copy_symbols():
    symbols = data.random_symbols(3, 2, 5, generator())
    inputs, targets = data.copy_symbols(symbols)
    assert torch.equal(inputs[:3], symbols)
    assert torch.equal(inputs[3:].argmax(-1), torch.zeros(3, 2, dtype=torch.int64))
    assert torch.equal(inputs.sum(-1), torch.ones(6, 2))
    assert torch.equal(targets, symbols)


@pytest.mark.parametrize("highest", [2, 10], ids=["two", "ten"])
def test_repeat_count_is_normalised_over_the_range(highest):
    counts = torch.tensor([data.normalised_count(n, highest) for n in range(1, highest + 1)])
    assert counts.mean().item() == pytest.approx(0, abs=1e-6)
    assert counts.square().mean().item() == pytest.approx(1, abs=1e-5)
    step = counts[1] - counts[0]
    assert data.normalised_count(highest + 1, highest) == pytest.approx((counts[-1] + step).item(), abs=1e-5)


def test_repeat_count_of_one_copy_only():
    assert data.normalised_count(1, 1) == 0.0


def test_repeat_copy():
    vectors = data.random_bits((2, 3, 4), generator())
    inputs, targets = data.repeat_copy(vectors, repeats=3, highest=5, end=1)
    assert inputs.shape == (2 + 1 + 7, 3, 6)
    assert torch.equal(inputs[:2, :, :4], vectors)
    assert torch.equal(inputs[2, :, 4:], torch.tensor([[1.0, 0.0]] * 3))  # 3 is the middle of 1 to 5
    assert inputs.sum() == vectors.sum() + 3
    assert targets.shape == (7, 3, 5)
    assert torch.equal(targets[:6, :, :4], torch.cat((vectors, vectors, vectors)))
    assert torch.equal(targets[:, 0, 4], torch.tensor([0.0] * 6 + [1.0]))
    assert not targets[-1, :, :4].any()


def test_every_batch_is_told_the_same_count_for_the_same_number():
    """Statistics of the batch would give 0 for any number of copies that all its sequences share."""
    vectors = data.random_bits((1, 2, 2), generator())
    told = [data.repeat_copy(vectors, n, 10, 1)[0][1, :, -1] for n in (2, 9)]
    assert torch.equal(told[0], told[0][:1].expand(2))
    assert told[1][0] - told[0][0] == pytest.approx(7 / math.sqrt(99 / 12))


def test_recall():
    items, batch, width = 4, 50, 6
    inputs, targets = data.recall(items, batch, width, generator())
    assert inputs.shape == (4 * items + 5 + 3, batch, width + 2)
    assert targets.shape == (3, batch, width)
    markers = inputs[:, 0, width:]
    assert markers[:, 0].nonzero().flatten().tolist() == [0, 4, 8, 12]
    assert markers[:, 1].nonzero().flatten().tolist() == [16, 20]
    assert not inputs[-3:].any()
    asked = set()
    for sample in range(batch):
        listed = [inputs[4 * i + 1 : 4 * i + 4, sample, :width] for i in range(items)]
        query = inputs[17:20, sample, :width]
        (place,) = [i for i, item in enumerate(listed) if torch.equal(item, query)]
        assert torch.equal(targets[:, sample], listed[place + 1])
        asked.add(place)
    assert asked == {0, 1, 2}


def test_ngrams_follow_their_table_and_the_optimum_counts():
    length, batch = 60, 3
    inputs, targets, best = data.ngrams(length, batch, generator())
    assert inputs.shape == (length - 1, batch, 1)
    assert targets.shape == best.shape == (length - 5, batch, 1)
    assert torch.equal(inputs[5:], targets[:-1])
    bits = torch.cat((inputs, targets[-1:]))[..., 0].long()
    for sample in range(batch):
        seen = {}
        for t in range(5, length):
            zeros, ones = seen.setdefault(tuple(bits[t - 5 : t, sample].tolist()), [0, 0])
            assert best[t - 5, sample, 0].item() == pytest.approx((ones + 0.5) / (zeros + ones + 1))
            seen[tuple(bits[t - 5 : t, sample].tolist())][bits[t, sample]] += 1


def test_the_optimum_is_calibrated():
    """Of the bits that it calls likely by p, a share of p is 1."""
    _, targets, best = data.ngrams(400, 200, generator())
    for low in (0.0, 0.25, 0.5, 0.75):
        chosen = (best >= low) & (best < low + 0.25)
        assert targets[chosen].mean().item() == pytest.approx(best[chosen].mean().item(), abs=0.02)


def test_priority_sort():
    vectors = data.random_bits((20, 4, 8), generator())
    inputs, targets = data.priority_sort(vectors, 16, generator())
    assert inputs.shape == (37, 4, 10)
    assert targets.shape == (16, 4, 8)
    priorities = inputs[:20, :, 8]
    assert -1 <= priorities.min() < -0.5 < 0.5 < priorities.max() < 1
    assert torch.equal(inputs[:, 0, 9].nonzero().flatten(), torch.tensor([20]))
    for sample in range(4):
        order = sorted(range(20), key=lambda i: -priorities[i, sample])[:16]
        assert torch.equal(targets[:, sample], vectors[order, sample])


def test_scores_of_bits():
    targets = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])  # one step, two sequences
    logits = torch.tensor([[[9.0, -9.0], [9.0, -9.0]]])
    loss, metrics = scores.bits(logits, targets)
    assert metrics["accuracy"].tolist() == [1.0, 0.5]
    assert metrics["accuracy_sequence"].tolist() == [1.0, 0.0]
    assert metrics["bits_per_sequence"].tolist() == pytest.approx([0.0, 9 / math.log(2)], abs=1e-2)
    assert loss.item() == pytest.approx(9 / 4, abs=1e-3)


def test_guessing_costs_a_bit_for_every_bit():
    targets = data.random_bits((10, 3, 8), generator())
    _, metrics = scores.bits(torch.zeros_like(targets), targets)
    assert metrics["bits_per_sequence"].tolist() == pytest.approx([80.0] * 3)


def test_scores_of_symbols():
    targets = torch.eye(4)[:, None].expand(4, 2, 4)
    logits = 50 * targets.clone()
    logits[0, 1] = torch.tensor([0.0, 50, 0, 0])
    plain, metrics = scores.symbols(logits, targets, 0.0)
    assert metrics["accuracy"].tolist() == [1.0, 0.75]
    assert metrics["accuracy_sequence"].tolist() == [1.0, 0.0]
    assert metrics["bits_per_sequence"][0].item() == pytest.approx(0, abs=1e-6)
    assert scores.symbols(logits, targets, 0.1)[0] > plain


def test_entropy():
    uniform, sharp = torch.full((2, 8), 1 / 8), torch.eye(8)[:2]
    assert scores.entropy(uniform).item() == pytest.approx(math.log(8))
    assert scores.entropy(sharp).item() == pytest.approx(0)


def test_entropy_of_weights_that_underflowed():
    """d(w log w)/dw has no bound at 0, but a softmax in front takes it to 0 there."""
    logits = torch.tensor([[0.0, -200.0, -90.0]], requires_grad=True)
    weights = logits.softmax(-1)
    weights.retain_grad()
    scores.entropy(weights).backward()
    assert not weights[0, 1]
    assert weights.grad.isfinite().all()
    assert logits.grad.abs().max() < 1e-30
