"""ops.dnc_*: loops over single elements, carried state, sparse links, numerical traps. The contract of all
ops is in test_contract.py."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ctm_fast import ops
from ctm_fast.ops import DncLayout, DncState

BACKENDS = ("reference", "native")
BATCH, SLOTS, WIDTH, HEADS, STEPS = 2, 7, 5, 3, 6
DENSE, SPARSE = DncLayout(HEADS, WIDTH), DncLayout(HEADS, WIDTH, sparse=3)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(layout: DncLayout, steps: int = STEPS) -> tuple[Tensor, Tensor, DncState]:
    """Memory, interface vectors and a first state that some steps have led to."""
    memory, warm_up = random(BATCH, SLOTS, WIDTH), random(3, BATCH, layout.size, seed=1)
    start = layout.initial_state(BATCH, SLOTS, dtype=torch.float64)
    found = ops.dnc_sequence(memory, warm_up, start, layout=layout, backend="reference")
    return found.memory, random(steps, BATCH, layout.size, seed=2), found.state


def naive_allocation(usage: np.ndarray, eps: float) -> np.ndarray:
    squeezed = [eps + (1 - eps) * u for u in usage]
    free = np.zeros(len(usage))
    product = 1.0
    for n in sorted(range(len(usage)), key=lambda i: (usage[i], i)):
        free[n] = (1 - squeezed[n]) * product
        product *= squeezed[n]
    return free


def naive_content(memory: np.ndarray, key: np.ndarray, strength: float, eps: float) -> np.ndarray:
    def norm(x: np.ndarray) -> float:
        return math.sqrt(sum(value * value for value in x) + eps)

    found = np.exp([strength * float(row @ key) / (norm(row) * norm(key)) for row in memory])
    return found / found.sum()


def naive_step(memory: np.ndarray, parts: Any, state: dict[str, np.ndarray]) -> np.ndarray:
    """One step of one sample, element by element; changes memory and state in place, returns the reads."""
    slots, write, read, link = len(memory), state["write_weights"], state["read_weights"], state["link"]
    for n in range(slots):
        kept = math.prod(1 - gate * weight for gate, weight in zip(parts.free_gates, read[:, n], strict=True))
        state["usage"][n] = (state["usage"][n] + write[n] - state["usage"][n] * write[n]) * kept
    free = naive_allocation(state["usage"], 1e-6)
    similar = naive_content(memory, parts.write_key, parts.write_strength, 1e-6)
    write = parts.write_gate * (parts.allocation_gate * free + (1 - parts.allocation_gate) * similar)
    for n in range(slots):
        memory[n] = memory[n] * (1 - write[n] * parts.erase) + write[n] * parts.write_vector
    for i in range(slots):
        for j in range(slots):
            new = (1 - write[i] - write[j]) * link[i, j] + write[i] * state["precedence"][j]
            link[i, j] = 0.0 if i == j else new
    state["precedence"] = (1 - write.sum()) * state["precedence"] + write
    weights = []
    for head in range(len(read)):
        similar = naive_content(memory, parts.read_keys[head], parts.read_strengths[head], 1e-6)
        backward, content, forward = parts.read_modes[head]
        weights.append(backward * link.T @ read[head] + content * similar + forward * link @ read[head])
    state["write_weights"], state["read_weights"] = write, np.stack(weights)
    return state["read_weights"] @ memory


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_loops_over_elements(backend: str) -> None:
    memory, interface, state = problem(DENSE)
    step, trace = ops.dnc_sequence(memory, interface, state, layout=DENSE, trace=True, backend=backend)
    parts = DENSE.split(interface)
    for b in range(BATCH):
        plain = {name: x[b].numpy().copy() for name, x in zip(DncState._fields, state[:5], strict=False)}
        slots = memory[b].numpy().copy()
        for t in range(STEPS):
            reads = naive_step(slots, type(parts)(*(x[t, b].numpy() for x in parts)), plain)
            np.testing.assert_allclose(step.reads[t, b], reads, rtol=1e-12)
            for name in trace._fields:
                np.testing.assert_allclose(getattr(trace, name)[t, b], plain[name], rtol=1e-12)
        np.testing.assert_allclose(step.memory[b], slots, rtol=1e-12)
        for name, value in plain.items():
            np.testing.assert_allclose(getattr(step.state, name)[b], value, rtol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_parts_make_a_step(backend: str) -> None:
    memory, interface, state = problem(DENSE, 1)
    found = ops.dnc_step(memory, interface[0], state, layout=DENSE, backend=backend)
    free = ops.dnc_allocation(found.state.usage, backend=backend)
    for b in range(BATCH):
        np.testing.assert_allclose(free[b], naive_allocation(found.state.usage[b].numpy(), 1e-6), rtol=1e-12)
    linked = ops.dnc_link(
        state.link, state.precedence, found.state.write_weights, state.read_weights, backend=backend
    )
    torch.testing.assert_close(linked.link, found.state.link)
    torch.testing.assert_close(linked.precedence, found.state.precedence)
    torch.testing.assert_close(linked.forward, state.read_weights @ found.state.link.mT)
    torch.testing.assert_close(linked.backward, state.read_weights @ found.state.link)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kept", [SLOTS, SLOTS + 4])
def test_all_links_kept_is_the_dense_op(kept: int, backend: str) -> None:
    memory, interface, state = problem(DENSE)
    layout = DncLayout(HEADS, WIDTH, sparse=kept)
    slots = layout.initial_state(BATCH, SLOTS).link_slots
    sparse = ops.dnc_sequence(
        memory, interface, state._replace(link_slots=slots), layout=layout, backend=backend
    )
    dense = ops.dnc_sequence(memory, interface, state, layout=DENSE, backend=backend)
    for a, b in zip((*sparse[:2], *sparse.state[:5]), (*dense[:2], *dense.state[:5]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sparse_links_are_the_largest(backend: str) -> None:
    """One update from dense links whose small ones are cut away."""
    memory, _, state = problem(SPARSE)
    assert state.link_slots is not None
    write = torch.softmax(random(BATCH, SLOTS, seed=3), -1)
    found = ops.dnc_link(
        state.link, state.precedence, write, state.read_weights, state.link_slots, backend=backend
    )
    assert found.link_slots is not None
    dense = memory.new_zeros(BATCH, SLOTS, SLOTS).scatter(2, state.link_slots, state.link)
    largest = state.precedence.argsort(dim=-1, descending=True)[:, :3]
    last = torch.zeros_like(state.precedence).scatter(1, largest, state.precedence.gather(1, largest))
    full = ops.dnc_link(dense, last, write, state.read_weights, backend="reference").link
    values, columns = full.topk(3)
    torch.testing.assert_close(found.link, values.gather(2, columns.argsort(2)))
    assert torch.equal(found.link_slots, columns.sort(2).values)


def everything(leaves: list[Tensor], layout: DncLayout, lengths: list[int], backend: str) -> list[Tensor]:
    """Reads, memory and state of calls of some steps each, memory and state carried."""
    memory, interface, *floats = leaves
    state = DncState(*floats, problem(layout)[2].link_slots)
    reads = []
    for part in interface.split(lengths):
        if len(part) == 1:
            found = ops.dnc_step(memory, part[0], state, layout=layout, backend=backend)
            reads.append(found.reads[None])
        else:
            found = ops.dnc_sequence(memory, part, state, layout=layout, backend=backend)
            reads.append(found.reads)
        _, memory, state = found
    return [torch.cat(reads), memory, *state[:5]]


@pytest.mark.parametrize("lengths", [[1] * 6, [3, 3], [5, 1]], ids=["steps", "halves", "uneven"])
@pytest.mark.parametrize("layout", [DENSE, SPARSE], ids=["dense", "sparse"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_carried_state_equals_one_call(lengths: list[int], layout: DncLayout, backend: str) -> None:
    memory, interface, state = problem(layout)
    leaves = [x.detach().requires_grad_() for x in (memory, interface, *state[:5])]
    whole, parts = (everything(leaves, layout, n, backend) for n in ([STEPS], lengths))
    grads = [random(*x.shape, seed=5) for x in whole]
    expected = (*whole, *torch.autograd.grad(whole, leaves, grads))
    for found, value in zip((*parts, *torch.autograd.grad(parts, leaves, grads)), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-11, atol=1e-13)
