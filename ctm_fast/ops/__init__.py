"""The fused operations, a folder each: public function, reference in plain torch, autograd, registration."""

from ctm_fast.ops.nlm import NlmHistory, NlmPack, nlm, nlm_pack, nlm_tick
from ctm_fast.ops.sync import sync

__all__ = ["NlmHistory", "NlmPack", "nlm", "nlm_pack", "nlm_tick", "sync"]
