"""Continuous Thought Machines and their baselines, with the published constructors and state-dict keys."""

from ctm_fast.models.adaptive import AdaptiveLSTM, AdaptiveOutput, AdaptiveRNN
from ctm_fast.models.agent import Agent
from ctm_fast.models.checks import ArgumentError
from ctm_fast.models.ctm import ContinuousThoughtMachine
from ctm_fast.models.ctm_mnist import ContinuousThoughtMachineMNIST
from ctm_fast.models.ctm_qamnist import ContinuousThoughtMachineQAMNIST
from ctm_fast.models.ctm_rl import ContinuousThoughtMachineRL
from ctm_fast.models.ctm_sort import ContinuousThoughtMachineSORT
from ctm_fast.models.dnc import DNC, DncNetworkState, DncOutput, DncTrace
from ctm_fast.models.ff import FFBaseline
from ctm_fast.models.lstm import LSTMBaseline
from ctm_fast.models.lstm_qamnist import LSTMBaselineQAMNIST
from ctm_fast.models.lstm_rl import LSTMBaselineRL
from ctm_fast.models.ntm import NTM, NtmOutput
from ctm_fast.models.ntm_state import NtmState, NtmTrace
from ctm_fast.models.rtntm import RTNTM, RtntmOutput, RtntmState

__all__ = [
    "DNC",
    "NTM",
    "RTNTM",
    "AdaptiveLSTM",
    "AdaptiveOutput",
    "AdaptiveRNN",
    "Agent",
    "ArgumentError",
    "ContinuousThoughtMachine",
    "ContinuousThoughtMachineMNIST",
    "ContinuousThoughtMachineQAMNIST",
    "ContinuousThoughtMachineRL",
    "ContinuousThoughtMachineSORT",
    "DncNetworkState",
    "DncOutput",
    "DncTrace",
    "FFBaseline",
    "LSTMBaseline",
    "LSTMBaselineQAMNIST",
    "LSTMBaselineRL",
    "NtmOutput",
    "NtmState",
    "NtmTrace",
    "RtntmOutput",
    "RtntmState",
]
