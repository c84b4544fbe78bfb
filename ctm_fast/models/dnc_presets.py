"""The Differentiable Neural Computers of the paper (Nature 538, 471-476, extended data table 2): constructor
arguments by name. The layers of a controller are stacked without the paper's skip connections.
"""

from __future__ import annotations

from ctm_fast.models.preset import Arguments

_BABI: Arguments = {"input_size": 159, "output_size": 159, "controller_size": 256, "slots": 256}
_GRAPH: Arguments = {
    "input_size": 92,
    "output_size": 90,
    "controller_size": 256,
    "read_heads": 5,
    "width": 50,
}

DNC_ARGUMENTS: dict[str, Arguments] = {
    "dnc_babi_1": {**_BABI, "width": 64, "read_heads": 4},
    "dnc_babi_2": {**_BABI, "width": 32, "read_heads": 8},
    "dnc_traversal": {**_GRAPH, "slots": 256, "controller_layers": 3},
    "dnc_shortest_path": {**_GRAPH, "slots": 128, "controller_layers": 2},
    "dnc_inference": {**_GRAPH, "slots": 128, "controller_layers": 3},
}
