"""Models with backbones of known layers, for the tests of the engine."""

import torch
from small_ctm import SMALL
from torch import nn

from ctm_fast.models import ContinuousThoughtMachine, ContinuousThoughtMachineRL
from ctm_fast.nn import Encoder, EncoderLayer

RL = {
    name: SMALL[name]
    for name in (
        "iterations",
        "d_model",
        "d_input",
        "n_synch_out",
        "synapse_depth",
        "memory_length",
        "deep_nlms",
    )
}
RL |= {"memory_hidden_dims": 2, "do_layernorm_nlm": False, "backbone_type": "classic-control-backbone"}


class TokenMachine(ContinuousThoughtMachine):
    """A base model whose backbone gives tokens (B, L, n)."""

    def compute_features(self, x):
        return self.kv_proj(self.backbone(x))


def finished(model, inputs):
    """The model in eval mode, every parameter away from its start."""
    with torch.no_grad():
        model.eval()(*inputs)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model, inputs


def acting(backbone, x):
    """A model for reinforcement learning with this backbone, and its inputs."""
    model = ContinuousThoughtMachineRL(**RL)
    model.backbone = backbone
    state = torch.randn(2, len(x), RL["d_model"], RL["memory_length"])
    return finished(model, (x, (state[0], state[1])))


def attending(backbone, x, kind=TokenMachine, **changes):
    """A base model with this backbone, and its inputs."""
    model = kind(**{**SMALL, "positional_embedding_type": "none", **changes})
    model.backbone = backbone
    return finished(model, (x,))


def layer(kind, **options):
    """A layer of torch with its batch first."""
    return kind(12, 3, 20, batch_first=True, **options)


ENCODERS = {
    "torch": lambda: layer(nn.TransformerEncoderLayer),
    "torch-gelu": lambda: layer(nn.TransformerEncoderLayer, activation="gelu", norm_first=True),
    "torch-module": lambda: layer(nn.TransformerEncoderLayer, activation=nn.GELU(), bias=False),
    "torch-stack": lambda: nn.TransformerEncoder(
        layer(nn.TransformerEncoderLayer), 2, nn.LayerNorm(12), enable_nested_tensor=False
    ),
    "layer": lambda: EncoderLayer(12, 3, 20),
    "layer-gelu": lambda: EncoderLayer(12, 1, 20, activation="gelu", pre_norm=True),
    "encoder": lambda: Encoder(5, 2, 12, 4, 31),
    "encoder-pre-norm": lambda: Encoder(5, 2, 12, 2, 31, pre_norm=True),
    "encoder-one-wide": lambda: Encoder(5, 1, 12, 12, 1),
}
