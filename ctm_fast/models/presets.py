"""The published models by name: ``build("parity_ctm_75_25")``.

Parity's and MNIST's names give the ticks and the memory length, the environments' the ticks, QAMNIST's those per
part.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ctm_fast.models import adaptive_presets
from ctm_fast.models.agent import Agent
from ctm_fast.models.ctm import ContinuousThoughtMachine
from ctm_fast.models.ctm_mnist import ContinuousThoughtMachineMNIST
from ctm_fast.models.ctm_qamnist import ContinuousThoughtMachineQAMNIST
from ctm_fast.models.ctm_rl import ContinuousThoughtMachineRL
from ctm_fast.models.ctm_sort import ContinuousThoughtMachineSORT
from ctm_fast.models.dnc import DNC
from ctm_fast.models.dnc_presets import DNC_ARGUMENTS
from ctm_fast.models.ff import FFBaseline
from ctm_fast.models.lstm import LSTMBaseline
from ctm_fast.models.lstm_qamnist import LSTMBaselineQAMNIST
from ctm_fast.models.lstm_rl import LSTMBaselineRL
from ctm_fast.models.ntm import NTM
from ctm_fast.models.ntm_presets import NTM_ARGUMENTS
from ctm_fast.models.preset import Arguments, Preset
from ctm_fast.models.rtntm import RTNTM
from ctm_fast.models.rtntm_presets import RTNTM_ARGUMENTS

SEQUENCE_STEPS = 8  # of the example inputs of models that take sequences

_CTM: Arguments = {"deep_nlms": True, "do_layernorm_nlm": False}
_PLAIN: Arguments = {"positional_embedding_type": "none"}


def _images() -> dict[str, Preset]:
    shape = ((3, 32, 32),)
    common: Arguments = {"d_model": 256, "backbone_type": "resnet18-1", "out_dims": 10}
    attended: Arguments = {**common, **_PLAIN, "iterations": 50, "d_input": 64, "heads": 16}
    cifar10: Arguments = {"n_synch_out": 256, "n_synch_action": 512, "synapse_depth": 5}
    cifar10 |= {"memory_length": 15, "memory_hidden_dims": 64}
    imagenet: Arguments = {"iterations": 50, "d_model": 4096, "d_input": 1024, "heads": 16, "out_dims": 1000}
    imagenet |= {"n_synch_out": 8196, "n_synch_action": 2048, "n_random_pairing_self": 32, "synapse_depth": 8}
    imagenet |= {"memory_length": 25, "memory_hidden_dims": 64, "dropout": 0.2, "dropout_nlm": 0}
    return {
        "cifar10_ctm": Preset(ContinuousThoughtMachine, {**_CTM, **attended, **cifar10}, shape),
        "cifar10_lstm": Preset(LSTMBaseline, {**attended, "num_layers": 2}, shape),
        "cifar10_ff": Preset(FFBaseline, common, shape),
        "imagenet_ctm": Preset(
            ContinuousThoughtMachine,
            {**_CTM, **_PLAIN, **imagenet, "backbone_type": "resnet152-4"},
            ((3, 224, 224),),
        ),
    }


def _mazes() -> dict[str, Preset]:
    common: Arguments = {**_CTM, **_PLAIN, "synapse_depth": 8, "memory_length": 25, "dropout": 0.1}
    common |= {"memory_hidden_dims": 32}
    large: Arguments = {"iterations": 75, "d_model": 2048, "d_input": 512, "heads": 16, "n_synch_out": 64}
    large |= {"n_synch_action": 32, "neuron_select_type": "first-last", "backbone_type": "resnet34-2"}
    large |= {"out_dims": 500, "prediction_reshaper": [100, 5]}
    small: Arguments = {
        "iterations": 50,
        "d_model": 1024,
        "d_input": 256,
        "heads": 4,
        "backbone_type": "resnet18-1",
    }
    small |= {"out_dims": 250, "prediction_reshaper": [50, 5]}

    def preset(size: int, arguments: Arguments, **selected: int) -> Preset:
        return Preset(ContinuousThoughtMachine, {**common, **arguments, **selected}, ((3, size, size),))

    return {
        "mazes_large": preset(39, large),
        "mazes_small": preset(15, small, n_synch_out=128, n_synch_action=128),
        "mazes_ablation": preset(15, small, n_synch_out=1024, n_synch_action=1024),
    }


def _parity() -> dict[str, Preset]:
    common: Arguments = {"d_input": 512, "heads": 8, "backbone_type": "parity_backbone", "out_dims": 128}
    common |= {"positional_embedding_type": "custom-rotational-1d", "prediction_reshaper": [64, 2]}
    ctm: Arguments = {
        **_CTM,
        **common,
        "d_model": 1024,
        "n_synch_out": 32,
        "n_synch_action": 32,
        "synapse_depth": 1,
    }
    ctm |= {"memory_hidden_dims": 16, "neuron_select_type": "random"}
    presets = {}
    for ticks, memory in ((1, 1), (10, 5), (25, 10), (50, 25), (75, 25), (100, 50)):
        arguments = {**ctm, "iterations": ticks, "memory_length": memory}
        presets[f"parity_ctm_{ticks}_{memory}"] = Preset(ContinuousThoughtMachine, arguments, ((64,),))
    for ticks, width in ((1, 669), (10, 686), (25, 706), (50, 765), (75, 765), (100, 857)):
        arguments = {**common, "iterations": ticks, "d_model": width, "num_layers": 1}
        presets[f"parity_lstm_{ticks}"] = Preset(LSTMBaseline, arguments, ((64,),))
    return presets


def _sort() -> dict[str, Preset]:
    arguments: Arguments = {**_CTM, **_PLAIN, "iterations": 50, "d_model": 512, "d_input": 30, "heads": 0}
    arguments |= {"n_synch_out": 32, "n_synch_action": 0, "synapse_depth": 4, "memory_length": 25}
    arguments |= {"memory_hidden_dims": 4, "backbone_type": "none", "out_dims": 31}
    return {"sort_ctm": Preset(ContinuousThoughtMachineSORT, arguments, ((30,),))}


def _mnist() -> dict[str, Preset]:
    common: Arguments = {"d_model": 128, "n_synch_out": 16, "n_synch_action": 16, "memory_hidden_dims": 8}
    common |= {"out_dims": 10}
    first = {"iterations": 30, "d_input": 32, "heads": 1, "memory_length": 15}
    second = {"iterations": 15, "d_input": 128, "heads": 2, "memory_length": 10}
    return {
        f"mnist_ctm_{sizes['iterations']}_{sizes['memory_length']}": Preset(
            ContinuousThoughtMachineMNIST, {**common, **sizes}, ((1, 28, 28),)
        )
        for sizes in (first, second)
    }


def _qamnist() -> dict[str, Preset]:
    presets = {}
    for repeats, memory, width in ((1, 3, 741), (10, 30, 875)):
        common: Arguments = {
            "iterations": 1,
            "d_input": 64,
            "heads": 4,
            "out_dims": 10,
            "iterations_per_digit": repeats,
        }
        common |= {"iterations_per_question_part": repeats, "iterations_for_answering": repeats}
        ctm = {**_CTM, **common, "d_model": 1024, "n_synch_out": 32, "n_synch_action": 32, "synapse_depth": 1}
        ctm |= {"memory_length": memory, "memory_hidden_dims": 16, "neuron_select_type": "random"}
        shapes = ((3 * repeats, 1, 32, 32), (3 * repeats,))
        presets[f"qamnist_ctm_{repeats}"] = Preset(ContinuousThoughtMachineQAMNIST, ctm, shapes)
        lstm = {**common, "d_model": width}
        presets[f"qamnist_lstm_{repeats}"] = Preset(LSTMBaselineQAMNIST, lstm, shapes)
    return presets


class _Environment(NamedTuple):
    """What the RL presets of one environment share."""

    backbone_type: str
    observation: tuple[int, ...]
    actions: int
    d_model: int
    d_input: int
    memory_hidden_dims: int
    n_synch_out: int
    runs: tuple[tuple[int, int, int], ...]  # ticks, memory length, width of the LSTM


_ENVIRONMENTS = {
    "cartpole": _Environment(
        "classic-control-backbone", (4,), 2, 128, 128, 4, 16, ((1, 10, 118), (2, 20, 126), (5, 50, 148))
    ),
    "acrobot": _Environment(
        "classic-control-backbone", (6,), 3, 256, 64, 4, 16, ((1, 5, 243), (2, 10, 249), (5, 25, 265))
    ),
    "4rooms": _Environment(
        "navigation-backbone", (7, 7, 3), 7, 512, 128, 16, 32, ((1, 10, 294), (2, 20, 300))
    ),
}


def _reinforcement() -> dict[str, Preset]:
    presets = {}
    for name, env in _ENVIRONMENTS.items():
        for ticks, memory, lstm_width in env.runs:
            common: Arguments = {
                "iterations": ticks,
                "d_input": env.d_input,
                "backbone_type": env.backbone_type,
            }
            ctm = {**_CTM, **common, "d_model": env.d_model, "n_synch_out": env.n_synch_out}
            ctm |= {"synapse_depth": 1, "memory_length": memory, "memory_hidden_dims": env.memory_hidden_dims}
            lstm = {**common, "d_model": lstm_width}
            shapes = (env.observation,)
            presets[f"{name}_ctm_{ticks}"] = Preset(ContinuousThoughtMachineRL, ctm, shapes, env.actions)
            presets[f"{name}_lstm_{ticks}"] = Preset(LSTMBaselineRL, lstm, shapes, env.actions)
    return presets


def _memory_machines() -> dict[str, Preset]:
    families: tuple[tuple[type[nn.Module], dict[str, Arguments]], ...]
    families = ((NTM, NTM_ARGUMENTS), (DNC, DNC_ARGUMENTS))
    presets = {
        name: Preset(model, arguments, ((SEQUENCE_STEPS, arguments["input_size"]),), batch_dim=1)
        for model, family in families
        for name, arguments in family.items()
    }
    tokens = ((SEQUENCE_STEPS,),)
    return presets | {name: Preset(RTNTM, arguments, tokens) for name, arguments in RTNTM_ARGUMENTS.items()}


PRESETS: dict[str, Preset] = {
    **_images(),
    **_mazes(),
    **_parity(),
    **_sort(),
    **_mnist(),
    **_qamnist(),
    **_reinforcement(),
    **_memory_machines(),
    **adaptive_presets.PRESETS,
}


def get_preset(name: str) -> Preset:
    """The preset called ``name``; ``ValueError`` with the known names otherwise."""
    if name not in PRESETS:
        raise ValueError(f"preset: name must be one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]


def build(name: str, **overrides: Any) -> Any:
    """A new model of preset ``name`` with some arguments replaced; RL presets come inside their ``Agent``.

    Raises ``ValueError`` for an unknown preset and ``ArgumentError`` for an invalid argument.
    """
    preset = get_preset(name)
    model = preset.model(**{**preset.arguments, **overrides})
    return Agent(model, preset.actions) if preset.actions else model


def example_inputs(name: str, batch: int = 1) -> tuple[Tensor, ...]:
    """Random inputs that the model of preset ``name`` accepts, without an agent's state.

    One tensor per input, (batch, ...) or for models of sequences (T, batch, ...), float32 or int64. Raises
    ``ValueError`` for an unknown preset.
    """
    preset = get_preset(name)
    dim = preset.batch_dim
    shapes = [(*shape[:dim], batch, *shape[dim:]) for shape in preset.example_shapes]
    if name.startswith("parity"):
        return (torch.randint(0, 2, shapes[0]) * 2.0 - 1,)
    if name.startswith("4rooms"):
        return (torch.randint(0, 3, shapes[0]),)
    if name.startswith("rtntm"):
        return (torch.randint(0, preset.arguments["vocabulary"], shapes[0]),)
    if name.startswith("qamnist"):
        repeats = preset.arguments["iterations_per_question_part"]
        (ticks,) = preset.example_shapes[1]
        return torch.randn(shapes[0]), _question(batch, ticks, repeats)
    return tuple(torch.randn(shape) for shape in shapes)


def _question(batch: int, ticks: int, repeats: int) -> Tensor:
    """Tokens (batch, ticks) that add random pairs out of three digits."""
    is_operator = (torch.arange(ticks) // repeats) % 2 == 1
    return torch.where(is_operator, -1, torch.randint(0, 3, (batch, ticks)))
