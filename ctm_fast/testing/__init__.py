"""The ops as one table: inputs, cases, and the numerical contract they are held to.

Tests and benchmarks of every op run over :data:`CASES`. A new op adds one file here with its
:class:`~ctm_fast.testing.contract.Op` and its cases, and one line each below: all cases, small ones for the
checks that take many evaluations, ones whose result stays well-conditioned for extreme values, and ones for
Triton's interpreter.
"""

from ctm_fast.testing import dnc, halting, nlm, ntm, sync
from ctm_fast.testing.contract import (
    OPS,
    Inputs,
    Op,
    OpCase,
    breaches,
    cotangents,
    error_bound,
    leaf,
    moved,
    padded,
    relative_error,
    upcast,
)

CASES = dnc.CASES + halting.CASES + nlm.CASES + ntm.CASES + sync.CASES
SMALL = dnc.SMALL + halting.SMALL + nlm.SMALL + ntm.SMALL + sync.SMALL
EXTREME = halting.EXTREME + nlm.EXTREME + ntm.EXTREME + sync.EXTREME
INTERPRETED = dnc.INTERPRETED + nlm.INTERPRETED + ntm.INTERPRETED + sync.INTERPRETED

__all__ = [
    "CASES",
    "EXTREME",
    "INTERPRETED",
    "OPS",
    "SMALL",
    "Inputs",
    "Op",
    "OpCase",
    "breaches",
    "cotangents",
    "error_bound",
    "leaf",
    "moved",
    "padded",
    "relative_error",
    "upcast",
]
