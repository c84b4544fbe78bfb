"""ops.dnc_* and their layout: every wrong argument is named, with what was expected and what was given."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from ctm_fast import ops
from ctm_fast.ops import DncLayout

DENSE, SPARSE = DncLayout(2, 5), DncLayout(2, 5, sparse=3)
MEMORY, STATE = torch.zeros(3, 7, 5), DENSE.initial_state(3, 7)
KEPT = SPARSE.initial_state(3, 7)
ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "memory-list": ({"memory": [0.0]}, TypeError, "memory must be a torch.Tensor, got list"),
    "memory-integer": ({"memory": MEMORY.int()}, TypeError, "memory must be a floating-point tensor"),
    "memory-rank": ({"memory": MEMORY[0]}, ValueError, r"memory must have shape \(B, N, W\), got \(7, 5\)"),
    "memory-width": (
        {"memory": torch.zeros(3, 7, 4)},
        ValueError,
        r"memory must have slots of the layout's width W = 5, got \(3, 7, 4\)",
    ),
    "memory-no-slots": ({"memory": MEMORY[:, :0]}, ValueError, r"memory must have slots .* got \(3, 0, 5\)"),
    "interface-None": ({"interface": None}, TypeError, "interface must be a torch.Tensor, got NoneType"),
    "interface-rank": (
        {"interface": torch.zeros(3)},
        ValueError,
        r"interface must have shape \((T, )?B, I\), got .*3,?\)",
    ),
    "interface-dtype": (
        {"interface": torch.zeros(3, DENSE.size).double()},
        TypeError,
        "interface must be torch.float32 or .*, got torch.float64",
    ),
    "interface-meta": (
        {"interface": torch.zeros(3, DENSE.size, device="meta")},
        ValueError,
        "interface must be on the device of memory, cpu, got meta",
    ),
    "interface-size": (
        {"interface": torch.zeros(3, 9)},
        ValueError,
        r"interface must have shape \((T, )?B, I\) = .*3, 38\), got .*3, 9\)",
    ),
    "layout-dict": ({"layout": {}}, TypeError, "layout must be a DncLayout, got dict"),
    "state-tuple": ({"state": tuple(STATE)}, TypeError, "state must be a DncState, got tuple"),
    "state-usage": (
        {"state": STATE._replace(usage=torch.zeros(3, 6))},
        ValueError,
        r"state.usage must have shape \(B, N\) = \(3, 7\), got \(3, 6\)",
    ),
    "state-link": (
        {"state": STATE._replace(link=torch.zeros(3, 7))},
        ValueError,
        r"state.link must have shape \(B, N, N\), got \(3, 7\)",
    ),
    "state-precedence": (
        {"state": STATE._replace(precedence=None)},
        TypeError,
        "state.precedence must be a torch.Tensor, got NoneType",
    ),
    "state-read": (
        {"state": STATE._replace(read_weights=torch.zeros(3, 1, 7))},
        ValueError,
        r"state.read_weights must have shape \(B, R, N\) = \(3, 2, 7\), got \(3, 1, 7\)",
    ),
    "state-write-dtype": (
        {"state": STATE._replace(write_weights=torch.zeros(3, 7).double())},
        TypeError,
        "state.write_weights must be torch.float32 or .*, got torch.float64",
    ),
    "dense-state-of-sparse": (
        {"layout": SPARSE},
        ValueError,
        "state.link_slots must be a tensor for a sparse layout, got NoneType",
    ),
    "sparse-state-of-dense": (
        {"state": KEPT},
        ValueError,
        "state.link_slots must be None for a dense layout, got Tensor",
    ),
}
SLOTS_ERRORS = {
    "shape": (
        torch.zeros(3, 7, 2).long(),
        ValueError,
        r"link_slots must have shape \(B, N, K\) = \(3, 7, 3\)",
    ),
    "dtype": (KEPT.link_slots.int(), TypeError, "link_slots must be torch.int64, got torch.int32"),
    "list": ([0], TypeError, "link_slots must be a torch.Tensor, got list"),
    "negative": (KEPT.link_slots - 1, IndexError, r"link_slots must ascend within \[0, 7\) .* from -1 to 1"),
    "large": (KEPT.link_slots + 5, IndexError, r"link_slots must ascend within \[0, 7\) .* from 5 to 7"),
    "equal": (KEPT.link_slots * 0, IndexError, r"link_slots must ascend within \[0, 7\)"),
    "descending": (KEPT.link_slots.flip(2), IndexError, r"link_slots must ascend within \[0, 7\)"),
}


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("op", ["dnc_step", "dnc_sequence"])
@pytest.mark.parametrize(("wrong", "error", "text"), ERRORS.values(), ids=ERRORS.keys())
def test_bad_step(
    wrong: dict[str, Any], error: type[Exception], text: str, op: str, backend: str | None
) -> None:
    layout = wrong.get("layout", DENSE)
    arguments = {"memory": MEMORY, "interface": torch.zeros(3, DENSE.size), "state": STATE} | wrong
    if op == "dnc_sequence" and isinstance(arguments["interface"], torch.Tensor):
        arguments["interface"] = arguments["interface"].unsqueeze(0)
    arguments["layout"] = layout
    with pytest.raises(error, match=f"^{op}: .*{text}"):
        getattr(ops, op)(**arguments, backend=backend)


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize(("columns", "error", "text"), SLOTS_ERRORS.values(), ids=SLOTS_ERRORS.keys())
def test_bad_link_slots(columns: Any, error: type[Exception], text: str, backend: str | None) -> None:
    interface, state = torch.zeros(3, SPARSE.size), KEPT._replace(link_slots=columns)
    with pytest.raises(error, match=text):
        ops.dnc_step(MEMORY, interface, state, layout=SPARSE, backend=backend)
    with pytest.raises(error, match=text):
        ops.dnc_link(KEPT.link, *KEPT[2:5], columns, backend=backend)


@pytest.mark.parametrize("backend", [None, "reference", "native"])
def test_a_sparse_link_of_no_links_is_refused(backend: str | None) -> None:
    columns, vector = torch.zeros(1, 3, 0, dtype=torch.int64), torch.zeros(1, 3)
    with pytest.raises(ValueError, match=r"^dnc_link: link must hold at least one .* got \(1, 3, 0\)"):
        ops.dnc_link(columns.float(), vector, vector, vector.unsqueeze(1), columns, backend=backend)
    state = KEPT._replace(link=KEPT.link[..., :0], link_slots=KEPT.link_slots[..., :0])
    interface = torch.zeros(2, 3, SPARSE.size)
    for op, raw in ((ops.dnc_step, interface[0]), (ops.dnc_sequence, interface)):
        with pytest.raises(ValueError, match=rf"^{op.__name__}: state.link must have shape .* \(3, 7, 0\)"):
            op(MEMORY, raw, state, layout=SPARSE, backend=backend)


LINK = {
    "link": STATE.link,
    **dict(zip(("precedence", "write_weights", "read_weights"), STATE[2:5], strict=True)),
}
LINK_ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "link-rank": ({"link": torch.zeros(3, 7)}, ValueError, r"link must have shape \(B, N, N\), got \(3, 7\)"),
    "link-square": (
        {"link": torch.zeros(3, 7, 6)},
        ValueError,
        r"link must have shape \(B, N, N\) = \(3, 7, 7\), got \(3, 7, 6\)",
    ),
    "precedence": ({"precedence": torch.zeros(7)}, ValueError, r"precedence must have shape \(B, N\), got"),
    "write": ({"write_weights": 1.0}, TypeError, "write_weights must be a torch.Tensor, got float"),
    "read": (
        {"read_weights": torch.zeros(3, 7)},
        ValueError,
        r"read_weights must have shape \(B, R, N\), got \(3, 7\)",
    ),
}


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize(("wrong", "error", "text"), LINK_ERRORS.values(), ids=LINK_ERRORS.keys())
def test_bad_link(wrong: dict[str, Any], error: type[Exception], text: str, backend: str | None) -> None:
    with pytest.raises(error, match=f"^dnc_link: {text}"):
        ops.dnc_link(**LINK | wrong, backend=backend)


@pytest.mark.parametrize("backend", [None, "reference"])
def test_bad_usage(backend: str | None) -> None:
    with pytest.raises(TypeError, match=r"^dnc_allocation: usage must be a torch.Tensor, got list"):
        ops.dnc_allocation([0.5], backend=backend)
    with pytest.raises(ValueError, match=r"^dnc_allocation: usage must have shape \(B, N\), got \(7,\)"):
        ops.dnc_allocation(torch.zeros(7), backend=backend)
    for eps in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"^dnc_allocation: eps must be in \[0, 1\), got"):
            ops.dnc_allocation(torch.zeros(3, 7), eps=eps, backend=backend)


LAYOUT_ERRORS = {
    "heads": ({"read_heads": 0}, ValueError, "read_heads must be at least 1, got 0"),
    "width": ({"width": 2.0}, TypeError, "width must be an int, got float"),
    "sparse": ({"sparse": True}, TypeError, "sparse must be an int, got bool"),
    "sparse-none-kept": ({"sparse": 0}, ValueError, "sparse must be at least 1, got 0"),
    "eps": ({"eps": 0.0}, ValueError, "eps must be positive and finite, got 0.0"),
    "eps-nan": ({"eps": float("nan")}, ValueError, "eps must be positive and finite, got nan"),
    "eps-string": ({"eps": "x"}, TypeError, "eps must be a number, got str"),
    "eps-none": ({"eps": None}, TypeError, "eps must be a number, got NoneType"),
    "eps-bool": ({"eps": True}, TypeError, "eps must be a number, got bool"),
    "detach": ({"detach_writes": "no"}, TypeError, "detach_writes must be a bool, got str"),
    "usage-eps": ({"usage_eps": 1.0}, ValueError, r"usage_eps must be in \[0, 1\), got 1.0"),
    "strength": ({"strength": "exp"}, ValueError, "strength must be one of .*, got 'exp'"),
}


@pytest.mark.parametrize(("wrong", "error", "text"), LAYOUT_ERRORS.values(), ids=LAYOUT_ERRORS.keys())
def test_bad_layout(wrong: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"^DncLayout: {text}"):
        DncLayout(**{"read_heads": 2, "width": 5} | wrong)


def test_layout_counts_and_splits() -> None:
    assert DENSE.size == 2 * 5 + 3 * 5 + 5 * 2 + 3
    with pytest.raises(
        ValueError, match=r"^DncLayout.split: interface must have shape .* I = 38, got \(4, 9\)"
    ):
        DENSE.split(torch.zeros(4, 9))
    parts = DENSE.split(torch.zeros(4, 38))
    assert parts.read_keys.shape == (4, 2, 5)
    assert torch.equal(parts.read_modes, torch.full((4, 2, 3), 1 / 3))
    torch.testing.assert_close(parts.write_strength, torch.full((4,), 1 + math.log(2)))


@pytest.mark.parametrize(
    ("batch", "slots", "error", "text"),
    [
        (2, 0, ValueError, "slots must be at least 1, got 0"),
        (-1, 4, ValueError, "batch must be at least 0, got -1"),
        (2, 3.5, TypeError, "slots must be an int, got float"),
        (None, 4, TypeError, "batch must be an int, got NoneType"),
    ],
    ids=["no-slots", "negative-batch", "float-slots", "no-batch"],
)
def test_bad_sizes_of_a_state(batch: Any, slots: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"^DncLayout.initial_state: {text}"):
        DENSE.initial_state(batch, slots)
