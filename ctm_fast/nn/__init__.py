"""What the models are made of, for use in models of your own."""

from ctm_fast.nn.backbones import (
    BACKBONES,
    ClassicControlBackbone,
    IndexEmbeddings,
    MiniGridBackbone,
    MNISTBackbone,
    OperatorEmbeddings,
    ParityBackbone,
    ShallowWide,
    build_backbone,
)
from ctm_fast.nn.certainty import certainty, certainty_over_ticks, normalised_entropy
from ctm_fast.nn.encoder import Encoder, EncoderLayer
from ctm_fast.nn.nlm import NeuronLevelModels, Squeeze, SuperLinear
from ctm_fast.nn.positional import (
    POSITIONAL_EMBEDDINGS,
    CustomRotationalEmbedding,
    CustomRotationalEmbedding1D,
    LearnableFourierPositionalEncoding,
    MultiLearnableFourierPositionalEncoding,
    build_positional_embedding,
)
from ctm_fast.nn.resnet import RESNETS, ResNet, build_resnet, resnet_width
from ctm_fast.nn.synapses import SynapseUNET, single_layer_synapses, two_layer_synapses
from ctm_fast.nn.sync import (
    Synchronisation,
    clamp_decay_,
    decayed_update,
    pair_indices,
    pair_products,
    representation_size,
    select_neurons,
)
from ctm_fast.nn.tick_loop import TickLoop, TickLoopOutput

__all__ = [
    "BACKBONES",
    "POSITIONAL_EMBEDDINGS",
    "RESNETS",
    "ClassicControlBackbone",
    "CustomRotationalEmbedding",
    "CustomRotationalEmbedding1D",
    "Encoder",
    "EncoderLayer",
    "IndexEmbeddings",
    "LearnableFourierPositionalEncoding",
    "MNISTBackbone",
    "MiniGridBackbone",
    "MultiLearnableFourierPositionalEncoding",
    "NeuronLevelModels",
    "OperatorEmbeddings",
    "ParityBackbone",
    "ResNet",
    "ShallowWide",
    "Squeeze",
    "SuperLinear",
    "SynapseUNET",
    "Synchronisation",
    "TickLoop",
    "TickLoopOutput",
    "build_backbone",
    "build_positional_embedding",
    "build_resnet",
    "certainty",
    "certainty_over_ticks",
    "clamp_decay_",
    "decayed_update",
    "normalised_entropy",
    "pair_indices",
    "pair_products",
    "representation_size",
    "resnet_width",
    "select_neurons",
    "single_layer_synapses",
    "two_layer_synapses",
]
