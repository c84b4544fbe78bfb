"""Continuous Thought Machines and their baselines, with the constructors and state-dict keys of the published models."""

from ctm_fast.models.ctm import ContinuousThoughtMachine
from ctm_fast.models.ctm_sort import ContinuousThoughtMachineSORT

__all__ = ["ContinuousThoughtMachine", "ContinuousThoughtMachineSORT"]
