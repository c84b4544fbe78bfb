"""The memory of the Neural Turing Machine (arXiv 1410.5401): addressing, reading, writing, whole steps."""

from ctm_fast.ops.ntm.heads import ntm_address, ntm_read, ntm_write
from ctm_fast.ops.ntm.layout import NtmHeads, NtmLayout
from ctm_fast.ops.ntm.steps import NtmStep, NtmTrace, ntm_sequence, ntm_step

__all__ = [
    "NtmHeads",
    "NtmLayout",
    "NtmStep",
    "NtmTrace",
    "ntm_address",
    "ntm_read",
    "ntm_sequence",
    "ntm_step",
    "ntm_write",
]
