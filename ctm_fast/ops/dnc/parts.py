"""Allocation and temporal links on their own, with activated values."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from torch import Tensor

from ctm_fast import backend as backends
from ctm_fast.ops import checks
from ctm_fast.ops.dnc import autograd, reference
from ctm_fast.ops.dnc.arguments import Beside
from ctm_fast.ops.dnc.layout import check_usage_eps
from ctm_fast.ops.native import compute_dtype


class DncLink(NamedTuple):
    """What a temporal link update returns.

    Attributes:
        link: (B, N, N), or (B, N, K) of a sparse one.
        precedence: (B, N).
        forward: (B, R, N), where each head goes by following the order of writing.
        backward: (B, R, N), where it goes against that order.
        link_slots: (B, N, K) int64, the columns of a sparse link, or None.
    """

    link: Tensor
    precedence: Tensor
    forward: Tensor
    backward: Tensor
    link_slots: Tensor | None = None


def dnc_allocation(
    usage: Tensor,  # (B, N)
    *,
    eps: float = 1e-6,
    backend: str | None = None,
) -> Tensor:  # (B, N)
    """Where free memory is: the allocation weighting of N slots (Nature 538, Methods, dynamic allocation).

    Equivalent to, slots sorted by ascending usage, equal ones in their own order::

        u = eps + (1 - eps) * usage[order]
        allocation[order[j]] = (1 - u[j]) * prod(u[:j])

    The order carries no gradient; the product's is computed without a division, so it is finite everywhere.

    Args:
        usage: in [0, 1], any strides; float32, float64, or 16 bits (computed in float32).
        eps: in [0, 1), the usage of a slot that is not used.
        backend: None, ``"reference"``, ``"native"`` or ``"triton"``.

    Returns:
        (B, N) of the dtype of ``usage``, with a sum of at most 1. Ranges of values are not checked.

    Raises:
        TypeError, ValueError: "dnc_allocation: argument must ..., got ...".
    """
    found = checks.floating("dnc_allocation", "usage", usage)
    checks.rank("dnc_allocation", "usage", found, "B, N")
    check_usage_eps("dnc_allocation", "eps", eps)
    run = autograd if backends.choose("dnc_allocation", backend, usage) == "native" else reference
    return run.allocation(usage.to(compute_dtype(usage.dtype)), eps).to(usage.dtype)


def dnc_link(
    link: Tensor,  # (B, N, N) or (B, N, K)
    precedence: Tensor,  # (B, N)
    write_weights: Tensor,  # (B, N)
    read_weights: Tensor,  # (B, R, N)
    link_slots: Tensor | None = None,  # (B, N, K)
    *,
    backend: str | None = None,
) -> DncLink:
    """Temporal links after a write, and where the last reads lead along them (Nature 538, Methods).

    Equivalent to, with a diagonal of zeros::

        link[i, j] = (1 - w[i] - w[j]) * link[i, j] + w[i] * precedence[j]
        precedence = (1 - sum(w)) * precedence + w
        forward[h] = link @ read_weights[h]
        backward[h] = link.T @ read_weights[h]

    With ``link_slots`` every row holds K links and keeps the K largest; new ones lead to the K slots of the
    largest precedence, and of equal ones the first. The choice carries no gradient. K = N is the dense op.

    Args:
        link: any strides; float32, float64, or 16 bits (computed in float32). The others have its dtype; beside
            float32 or 16 bits each may be float32, bfloat16 or float16.
        precedence: before this write.
        write_weights: of this write.
        read_weights: of the step before.
        link_slots: columns of a sparse link, int64, ascending in every row; None for a dense one.
        backend: None, ``"reference"``, ``"native"`` or ``"triton"``, which takes dense links.

    Returns:
        A ``DncLink``, link and precedence of their own dtypes, the weightings of that of ``read_weights``.

    Raises:
        TypeError, ValueError: "dnc_link: argument must ..., got ...".
    """
    found = checks.floating("dnc_link", "link", link)
    checks.rank("dnc_link", "link", found, "B, N, N" if link_slots is None else "B, N, K")
    batch, slots, kept = found.shape
    if slots and not kept:
        raise ValueError(f"dnc_link: link must hold at least one link a slot, got {tuple(found.shape)}")
    beside = Beside("dnc_link", "link", found)
    beside.links("", link, link_slots, kept)
    for name, value in (("precedence", precedence), ("write_weights", write_weights)):
        beside.floating(name, value, (batch, slots), "B, N")
    heads = checks.floating("dnc_link", "read_weights", read_weights).shape[1:2]
    beside.floating("read_weights", read_weights, (batch, *heads, slots), "B, R, N")
    refused = {} if link_slots is None else {"triton": "the Triton kernels of dnc_link take dense links only"}
    name = backends.choose("dnc_link", backend, link, refused)
    run = reference.links if name == "reference" else partial(autograd.links, name)
    dtype = compute_dtype(link.dtype)
    values, columns, last, forward, backward = run(
        link.to(dtype), precedence.to(dtype), write_weights.to(dtype), read_weights.to(dtype), link_slots
    )
    return DncLink(
        values.to(link.dtype),
        last.to(precedence.dtype),
        forward.to(read_weights.dtype),
        backward.to(read_weights.dtype),
        columns,
    )
