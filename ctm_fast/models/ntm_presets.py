"""Neural Turing Machines of published runs: constructor arguments by name.

* ``ntm_<task>_ff`` and ``ntm_<task>_lstm``: tables 1 and 2 of arXiv 1410.5401, heads meaning so many that read
  and so many that write. The paper does not say enough about its architecture for its parameter counts to
  come out: these models are up to a fifth smaller.
* ``ntm_<task>_collier``: arXiv 1807.08518.
* ``ntm_<task>_split``: the controller's output split into heads and output, 344,422 and 358,450 parameters.
"""

from __future__ import annotations

from typing import Any

from ctm_fast.models.preset import Arguments

CHANNELS = {  # of input and output
    "copy": (9, 8),
    "repeat_copy": (10, 9),
    "recall": (8, 6),
    "ngrams": (1, 1),
    "sort": (10, 8),
}
SPLIT_LAYOUT: Arguments = {
    "order": "read_write", "key": "linear", "add": "linear", "shared_weights": True, "eps_placement": "clamp",
}  # fmt: skip
"""How ``split_hidden`` models of the published runs use their interface vector."""


def _model(channels: tuple[int, int], **settings: Any) -> Arguments:
    inputs, outputs = channels
    return {"input_size": inputs, "output_size": outputs, "slots": 128, "width": 20, **settings}


def _paper(task: str, controller: str, heads: int = 1, size: int = 100, layers: int = 1) -> Arguments:
    return _model(
        CHANNELS[task],
        controller=controller,
        controller_size=size,
        controller_layers=layers,
        read_heads=heads,
        write_heads=heads,
    )


def _split(symbols: int, markers: int, slots: int) -> Arguments:
    """Symbols and markers are one-hot; a slot is as wide as they are many."""
    width = symbols + markers
    return _model(
        (width, width),
        controller="rnn",
        controller_size=None,
        slots=slots,
        width=width,
        memory_init="zeros",
        weights_init="one_hot",
        read_init="random",
        split_hidden=True,
        **SPLIT_LAYOUT,
    )


NTM_ARGUMENTS: dict[str, Arguments] = {
    "ntm_copy_ff": _paper("copy", "ff"),
    "ntm_copy_lstm": _paper("copy", "lstm"),
    "ntm_copy_collier": _model((10, 8), controller="lstm", controller_size=100),
    "ntm_copy_split": _split(97, 0, slots=20),
    "ntm_repeat_copy_ff": _paper("repeat_copy", "ff"),
    "ntm_repeat_copy_lstm": _paper("repeat_copy", "lstm"),
    "ntm_repeat_copy_split": _split(97, 2, slots=128),
    "ntm_recall_ff": _paper("recall", "ff", heads=4, size=256),
    "ntm_recall_lstm": _paper("recall", "lstm"),
    "ntm_ngrams_ff": _paper("ngrams", "ff"),
    "ntm_ngrams_lstm": _paper("ngrams", "lstm"),
    "ntm_sort_ff": _paper("sort", "ff", heads=8, size=512),
    "ntm_sort_lstm": _paper("sort", "lstm", heads=5, layers=2),
}
