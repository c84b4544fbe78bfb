"""The memory of the Differentiable Neural Computer (Nature 538, 471-476): allocation, links, whole steps."""

from ctm_fast.ops.dnc.layout import DncInterface, DncLayout, DncState
from ctm_fast.ops.dnc.parts import DncLink, dnc_allocation, dnc_link
from ctm_fast.ops.dnc.steps import DncStep, DncTrace, dnc_sequence, dnc_step

__all__ = [
    "DncInterface",
    "DncLayout",
    "DncLink",
    "DncState",
    "DncStep",
    "DncTrace",
    "dnc_allocation",
    "dnc_link",
    "dnc_sequence",
    "dnc_step",
]
