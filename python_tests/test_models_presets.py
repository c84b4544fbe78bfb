"""Parameter counts of every published model."""

import pytest
import torch

from ctm_fast.models import presets

COUNTS = {
    "cifar10_ctm": 1_032_648,
    "cifar10_lstm": 1_046_870,
    "cifar10_ff": 169_046,
    "imagenet_ctm": 185_989_886,
    "mazes_large": 31_998_330,
    "mazes_small": 8_511_992,
    "mazes_ablation": 8_967_160,
    "parity_ctm_1_1": 4_908_706,
    "parity_ctm_10_5": 5_043_874,
    "parity_ctm_25_10": 5_212_834,
    "parity_ctm_50_25": 5_719_714,
    "parity_ctm_75_25": 5_719_714,
    "parity_ctm_100_50": 6_564_514,
    "parity_lstm_1": 4_912_710,
    "parity_lstm_10": 5_050_716,
    "parity_lstm_25": 5_216_036,
    "parity_lstm_50": 5_722_374,
    "parity_lstm_75": 5_722_374,
    "parity_lstm_100": 6_567_486,
    "sort_ctm": 897_197,
    "mnist_ctm_30_15": 99_658,
    "mnist_ctm_15_10": 343_658,
    "qamnist_ctm_1": 2_501_388,
    "qamnist_lstm_1": 2_507_218,
    "qamnist_ctm_10": 3_413_772,
    "qamnist_lstm_10": 3_418_954,
    "cartpole_ctm_1": 175_437,
    "cartpole_lstm_1": 175_855,
    "cartpole_ctm_2": 188_237,
    "cartpole_lstm_2": 188_863,
    "cartpole_ctm_5": 226_637,
    "cartpole_lstm_5": 227_275,
    "acrobot_ctm_1": 350_094,
    "acrobot_lstm_1": 350_118,
    "acrobot_ctm_2": 362_894,
    "acrobot_lstm_2": 364_290,
    "acrobot_ctm_5": 401_294,
    "acrobot_lstm_5": 403_490,
    "4rooms_ctm_1": 7_802_690,
    "4rooms_lstm_1": 7_813_692,
    "4rooms_ctm_2": 7_976_770,
    "4rooms_lstm_2": 7_979_304,
    "ntm_copy_ff": 13_536,
    "ntm_copy_lstm": 62_936,
    "ntm_copy_collier": 63_336,
    "ntm_copy_split": 344_422,
    "ntm_repeat_copy_ff": 13_757,
    "ntm_repeat_copy_lstm": 63_457,
    "ntm_repeat_copy_split": 358_450,
    "ntm_recall_ff": 120_486,
    "ntm_recall_lstm": 62_294,
    "ntm_ngrams_ff": 11_889,
    "ntm_ngrams_lstm": 58_889,
    "ntm_sort_ff": 472_712,
    "ntm_sort_lstm": 215_048,
    "dnc_babi_1": 891_766,
    "dnc_babi_2": 872_234,
    "dnc_traversal": 1_822_698,
    "dnc_shortest_path": 1_296_362,
    "dnc_inference": 1_822_698,
    "adaptive_parity": 4_138_002,
    "adaptive_parity_paper": 25_218,
    "adaptive_logic": 486_602,
    "adaptive_logic_paper": 119_554,
    "adaptive_addition": 4_480_067,
    "adaptive_addition_paper": 1_191_491,
    "adaptive_sort_paper": 1_067_024,
    "rtntm_copy": 262_818,
    "rtntm_add_64": 97_143,
    "rtntm_add_104": 251_363,
    "rtntm_add_200": 1_397_851,
}
NON_BACKBONE = {"cifar10_ctm": 882_824, "imagenet_ctm": 128_974_014}


def materialise(name):
    """The preset's model after one forward of one tick, its lazy sizes known."""
    has_ticks = "iterations" in presets.get_preset(name).arguments
    model = presets.build(name, **({"iterations": 1} if has_ticks else {}))
    inputs = presets.example_inputs(name)
    with torch.no_grad():
        if presets.get_preset(name).actions:
            model.get_action_and_value(*inputs, model.get_initial_state(1), torch.zeros(1))
        else:
            model.eval()(*inputs)
    return model


def test_every_preset_has_a_published_count():
    assert COUNTS.keys() == presets.PRESETS.keys()


@pytest.fixture
def on_meta(monkeypatch):
    """A block of shapes without memory; it redirects the real torch.empty only, not the poisoned one."""
    monkeypatch.undo()
    return torch.device("meta")


@pytest.mark.parametrize("name", [name for name in COUNTS if name != "imagenet_ctm"])
def test_parameter_count(name):
    model = materialise(name)
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]


@pytest.mark.parametrize("name", NON_BACKBONE)
def test_parameter_count_without_backbone(name, on_meta):
    with on_meta:
        model = materialise(name)
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]
    counted = sum(p.numel() for key, p in model.named_parameters() if not key.startswith("backbone."))
    assert counted == NON_BACKBONE[name]


def test_unknown_preset():
    with pytest.raises(ValueError, match=r"preset: name must be one of .*, got 'cifar11'"):
        presets.build("cifar11")
