"""Selection of neurons, pairs and the decayed recurrence against naive loops."""

from typing import Any

import numpy as np
import pytest
import torch

from ctm_fast.nn import (
    Synchronisation,
    clamp_decay_,
    pair_indices,
    pair_products,
    representation_size,
    select_neurons,
)
from ctm_fast.nn.sync import SELECTIONS


def naive_pairs(selection, left, right):
    """Neuron pairs in order, as the specification lists them."""
    if selection == "random-pairing":
        return list(zip(left.tolist(), right.tolist(), strict=True))
    n = len(left)
    return [(left[i].item(), right[j].item()) for i in range(n) for j in range(i, n)]


@pytest.mark.parametrize("selection", SELECTIONS)
def test_pairs(selection):
    left, right = select_neurons(selection, d_model=11, n_synch=4, n_self=1)
    expected = naive_pairs(selection, left, right)
    flat_left, flat_right = pair_indices(selection, left, right)
    assert list(zip(flat_left.tolist(), flat_right.tolist(), strict=True)) == expected
    assert representation_size(selection, 4) == len(expected)
    z = torch.randn(3, 11)
    products = torch.stack([z[:, i] * z[:, j] for i, j in expected], dim=1)
    torch.testing.assert_close(pair_products(selection, z, left, right), products)


def test_first_and_last_neurons():
    assert select_neurons("first", 9, 3)[0].tolist() == [0, 1, 2]
    left, right = select_neurons("last", 9, 3)
    assert left.tolist() == [6, 7, 8]
    assert left.data_ptr() == right.data_ptr()


@pytest.mark.parametrize("selection", ["first", "last"])
def test_more_neurons_than_there_are(selection):
    with pytest.raises(ValueError, match="synchronisation: n_synch must be at most d_model=4, got 9"):
        Synchronisation(4, 9, selection)


def test_random_draws_left_then_right_from_numpy():
    np.random.seed(3)
    left, right = select_neurons("random", 50, 6, n_self=2)
    np.random.seed(3)
    assert left.tolist() == np.random.choice(np.arange(50), 6).tolist()
    assert right.tolist() == np.random.choice(np.arange(50), 6).tolist()


def test_random_pairing_copies_its_self_pairs():
    np.random.seed(3)
    left, right = select_neurons("random-pairing", 50, 6, n_self=2)
    np.random.seed(3)
    assert left.tolist() == np.random.choice(np.arange(50), 6).tolist()
    assert right.tolist() == left.tolist()[:2] + np.random.choice(np.arange(50), 4).tolist()


@pytest.mark.parametrize("selection", SELECTIONS)
def test_module_equals_a_naive_sum(selection):
    sync = Synchronisation(d_model=10, n_synch=3, selection=selection).double()
    torch.nn.init.uniform_(sync.decay_params, 0, 2)
    pairs = naive_pairs(selection, sync.neuron_indices_left, sync.neuron_indices_right)
    history = torch.randn(4, 2, 10, dtype=torch.float64)
    state = None
    for t in range(4):
        s, state = sync(history[t], state)
        for p, (i, j) in enumerate(pairs):
            weights = torch.exp(-sync.decay_params[p] * torch.arange(t, -1, -1))
            numerator = sum(weights[k] * history[k, :, i] * history[k, :, j] for k in range(t + 1))
            torch.testing.assert_close(s[:, p], numerator / weights.sum().sqrt())


@pytest.mark.parametrize("selection", SELECTIONS)
def test_several_ticks_equal_one_by_one(selection):
    sync = Synchronisation(d_model=10, n_synch=3, selection=selection).double()
    history = torch.randn(4, 2, 10, dtype=torch.float64, requires_grad=True)
    together, last = sync(history)
    state, single = None, []
    for tick in history:
        s, state = sync(tick, state)
        single.append(s)
    torch.testing.assert_close(torch.stack(single), together)
    torch.testing.assert_close(state, last)
    leaves = (history, sync.decay_params)
    expected = torch.autograd.grad(together.square().sum(), leaves)
    torch.testing.assert_close(torch.autograd.grad(torch.stack(single).square().sum(), leaves), expected)


def test_clamp_keeps_storage_and_earlier_graphs():
    decay: Any = torch.nn.Parameter(torch.tensor([-1.0, 0.0, 3.0, 99.0]))
    address = decay.data_ptr()
    clamp_decay_(decay)
    first = decay * decay
    clamp_decay_(decay)
    first.sum().backward()
    assert decay.tolist() == [0, 0, 3, 15]
    assert decay.data_ptr() == address
    assert decay.grad.tolist() == [0, 0, 6, 30]


def test_unknown_selection():
    with pytest.raises(ValueError, match=r"selection must be one of .*, got 'dense'"):
        select_neurons("dense", 4, 2)


@pytest.mark.parametrize("n_self", [-1, 3], ids=["negative", "all"])
def test_self_pairs_out_of_range(n_self):
    with pytest.raises(ValueError, match=r"n_self must be in \[0, n_synch=3\), got"):
        Synchronisation(8, 3, n_self=n_self)


def test_an_exported_module_bounds_its_decays():
    module = Synchronisation(6, 3).eval()
    module.decay_params.data = torch.tensor([-3.0, 40.0, 1.0])
    z = torch.randn(4, 2, 6)
    with torch.no_grad():
        exported = torch.export.export(module, (z,), strict=False).module()
        assert module.decay_params[1] == 40
        torch.testing.assert_close(exported(z)[0], module(z)[0])
