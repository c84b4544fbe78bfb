"""The fused operations, a folder each: public function, reference in plain torch, autograd, registration."""

from ctm_fast.ops.dnc import (
    DncInterface,
    DncLayout,
    DncLink,
    DncState,
    DncStep,
    DncTrace,
    dnc_allocation,
    dnc_link,
    dnc_sequence,
    dnc_step,
)
from ctm_fast.ops.halting import (
    AdaptiveHalting,
    adaptive_halting,
    halting_mean,
    halting_weights,
    ponder_cost,
)
from ctm_fast.ops.nlm import NlmHistory, NlmPack, nlm, nlm_pack, nlm_tick
from ctm_fast.ops.ntm import (
    NtmHeads,
    NtmLayout,
    NtmStep,
    NtmTrace,
    ntm_address,
    ntm_read,
    ntm_sequence,
    ntm_step,
    ntm_write,
)
from ctm_fast.ops.sync import sync

__all__ = [
    "AdaptiveHalting",
    "DncInterface",
    "DncLayout",
    "DncLink",
    "DncState",
    "DncStep",
    "DncTrace",
    "NlmHistory",
    "NlmPack",
    "NtmHeads",
    "NtmLayout",
    "NtmStep",
    "NtmTrace",
    "adaptive_halting",
    "dnc_allocation",
    "dnc_link",
    "dnc_sequence",
    "dnc_step",
    "halting_mean",
    "halting_weights",
    "nlm",
    "nlm_pack",
    "nlm_tick",
    "ntm_address",
    "ntm_read",
    "ntm_sequence",
    "ntm_step",
    "ntm_write",
    "ponder_cost",
    "sync",
]
