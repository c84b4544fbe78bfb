"""Addressing, reading and writing with activated values, one head or several at once."""

from __future__ import annotations

import torch
from torch import Tensor

from ctm_fast import backend as backends
from ctm_fast.ops.ntm import autograd, reference
from ctm_fast.ops.ntm.arguments import cast, check_heads, too_large
from ctm_fast.ops.ntm.layout import EPS_PLACEMENTS, check_eps

_ADDRESS = {"key": "B, W", "beta": "B", "gate": "B", "shift": "B, S", "gamma": "B", "previous": "B, N"}
_READ = {"weights": "B, N"}
_WRITE = {"weights": "B, N", "erase": "B, W", "add": "B, W"}


def ntm_address(
    memory: Tensor,  # (B, N, W)
    key: Tensor,  # (B, W) or (B, H, W)
    beta: Tensor,  # (B) or (B, H)
    gate: Tensor,  # (B) or (B, H)
    shift: Tensor,  # (B, S) or (B, H, S)
    gamma: Tensor,  # (B) or (B, H)
    previous: Tensor,  # (B, N) or (B, H, N)
    *,
    eps: float = 1e-6,
    eps_placement: str = "root",
    backend: str | None = None,
) -> Tensor:  # (B, N) or (B, H, N)
    """Weighting of one head, or of H heads, over N slots (arXiv 1410.5401, equations 5 to 9).

    Equivalent to, for one head::

        content = softmax(beta * cosine(key, memory))
        gated = gate * content + (1 - gate) * previous
        shifted[n] = sum_s shift[s] * gated[(n + S // 2 - s) mod N]
        weights = softmax(gamma * log(max(shifted, tiny)))      # shifted ** gamma, normalised

    with the cosine of a key k and a slot m after ``eps_placement``::

        "root"           k.m / (sqrt(|k|^2 + eps) * sqrt(|m|^2 + eps))
        "root_product"   k.m / (sqrt(|k|^2 + eps) * sqrt(|m|^2 + eps) + eps)
        "norm"           k.m / ((|k| + eps) * (|m| + eps))
        "product"        k.m / (|k| * |m| + eps)
        "clamp"          k.m / (max(|k|, eps) * max(|m|, eps))
        "operands"       eps added to every element of k and m, then "clamp" with 1e-8

    Args:
        memory: any strides; float32, float64, or 16 bits (computed in float32). The others have its dtype; beside
            float32 or 16 bits each may be float32, bfloat16 or float16.
        key: what the content is compared with.
        beta: strength of the key, at least 0.
        gate: in [0, 1]; 0 keeps ``previous``.
        shift: a distribution over the offsets -(S // 2) to S // 2, S odd, also beyond N.
        gamma: sharpening, at least 1.
        previous: weighting of the step before.
        eps: positive; keeps the cosine and its gradient finite at zero keys and slots. At least 1e-18 for
            "norm" and "clamp", which divide by its square.
        eps_placement: see above.
        backend: None, ``"reference"``, ``"native"`` or ``"triton"``, which takes up to 1024 slots.

    Returns:
        (B, N) or (B, H, N) of the dtype of ``previous``. Ranges of values are not checked.

    Raises:
        TypeError, ValueError: "ntm_address: argument must ..., got ...".
    """
    op = "ntm_address"
    check_eps(op, eps, eps_placement)
    given = {"key": key, "beta": beta, "gate": gate, "shift": shift, "gamma": gamma, "previous": previous}
    found = check_heads(op, memory, given, _ADDRESS)
    name = backends.choose(op, backend, memory, too_large(memory))
    if name != "reference":
        *values, previous_weights = found.parts
        columns = torch.cat([x if x.dim() == 3 else x.unsqueeze(2) for x in values], 2)
        placement = EPS_PLACEMENTS.index(eps_placement)
        weights = autograd.run(
            name, op, found.memory, columns, previous_weights, values[3].shape[2], placement, eps
        )
    else:
        weights = reference.address(found.memory, *found.parts, eps=eps, placement=eps_placement)
    return cast(weights.squeeze(1) if found.single else weights, previous.dtype)


def ntm_read(
    memory: Tensor,  # (B, N, W)
    weights: Tensor,  # (B, N) or (B, H, N)
    *,
    backend: str | None = None,
) -> Tensor:  # (B, W) or (B, H, W)
    """What one head, or H heads, read: ``weights @ memory`` (arXiv 1410.5401, equation 2).

    Args:
        memory, weights: any strides; dtypes as in :func:`ntm_address`.
        backend: None, ``"reference"``, ``"native"`` or ``"triton"``, which takes up to 1024 slots.

    Returns:
        (B, W) or (B, H, W) of the dtype of ``memory``.

    Raises:
        TypeError, ValueError: "ntm_read: argument must ..., got ...".
    """
    found = check_heads("ntm_read", memory, {"weights": weights}, _READ)
    name = backends.choose("ntm_read", backend, memory, too_large(memory))
    if name != "reference":
        reads = autograd.run(name, "ntm_read", found.memory, *found.parts)
    else:
        reads = reference.read(found.memory, *found.parts)
    return cast(reads.squeeze(1) if found.single else reads, memory.dtype)


def ntm_write(
    memory: Tensor,  # (B, N, W)
    weights: Tensor,  # (B, N) or (B, H, N)
    erase: Tensor,  # (B, W) or (B, H, W)
    add: Tensor,  # (B, W) or (B, H, W)
    *,
    backend: str | None = None,
) -> Tensor:  # (B, N, W)
    """The memory after one head, or H heads together, erased and added (arXiv 1410.5401, equations 3 and 4).

    Equivalent to ``memory * prod_h(1 - weights_h erase_h) + sum_h weights_h add_h`` with outer products.

    Args:
        memory, weights: any strides; dtypes as in :func:`ntm_address`.
        erase: in [0, 1].
        add: any values.
        backend: None, ``"reference"``, ``"native"`` or ``"triton"``, which takes up to 1024 slots.

    Returns:
        A new tensor (B, N, W) of the dtype of ``memory``.

    Raises:
        TypeError, ValueError: "ntm_write: argument must ..., got ...".
    """
    given = {"weights": weights, "erase": erase, "add": add}
    found = check_heads("ntm_write", memory, given, _WRITE)
    name = backends.choose("ntm_write", backend, memory, too_large(memory))
    if name != "reference":
        after: Tensor = autograd.run(name, "ntm_write", found.memory, *found.parts)
    else:
        after = reference.write(found.memory, *found.parts)
    return cast(after, memory.dtype)
