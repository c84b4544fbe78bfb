"""The published recurrent transformers with NTM memory, named after their task and width: constructor arguments."""

from __future__ import annotations

from ctm_fast.models.preset import Arguments

PUBLISHED_EPS = 1e-12
_COPY: Arguments = {"vocabulary": 100, "slots": 60, "window": 4, "eps": PUBLISHED_EPS}
_ADD: Arguments = {"vocabulary": 14, "slots": 128, "window": 8, "read_heads": 2, "eps": PUBLISHED_EPS}
_ADD |= {"dropout": 0.1}

RTNTM_ARGUMENTS: dict[str, Arguments] = {
    "rtntm_copy": {**_COPY, "d_model": 104, "heads": 4},
    "rtntm_add_64": {**_ADD, "d_model": 64, "heads": 8},
    "rtntm_add_104": {**_ADD, "d_model": 104, "heads": 4},
    "rtntm_add_200": {**_ADD, "d_model": 200, "heads": 4, "layers": 2},
}
