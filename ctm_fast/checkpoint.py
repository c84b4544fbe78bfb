"""Reading and writing checkpoints: safetensors and the files of the published training scripts.

A PyTorch file is read without running code from it. It may hold, beside tensors and plain Python values,
``argparse.Namespace`` and NumPy arrays and scalars; everything else needs ``allow_pickle=True``.
"""

from __future__ import annotations

import argparse
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ctm_fast.files import PathLike, replacing

StateDict = dict[str, Tensor]

STATE_DICT_KEYS = ("model_state_dict", "state_dict")
NAMES_SHOWN = 5
# A zip archive, torch's format since 1.6, and a pickle, the one before.
_BEGINNINGS = (b"PK\x03\x04", b"\x80")

_RECONSTRUCT: Any = np.empty(0).__reduce__()[0]
_SCALAR: Any = np.float64(0).__reduce__()[0]
# NumPy 1 and 2 pickle the same two functions under different module names.
_SAFE: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    np.ndarray,
    np.dtype,
    *{type(np.dtype(kind)) for kind in "?bhilqBHILQefdFD"},
    *((_RECONSTRUCT, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


def load_checkpoint(path: PathLike, *, allow_pickle: bool = False) -> tuple[StateDict, dict[str, Any]]:
    """Read a checkpoint onto the CPU.

    Args:
        path: a ``.safetensors`` file, or a PyTorch file that holds a state dict, bare or under
            ``model_state_dict`` or ``state_dict``. A ``module.`` before every key is removed.
        allow_pickle: let the file run any code while it is read. Only for files that you trust.

    Returns:
        The state dict, and what else the file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, of another kind, or needs ``allow_pickle``.
        ImportError: a safetensors file without the package ``safetensors``.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"load_checkpoint: path must be a file, got {str(path)!r}")
    if path.suffix == ".safetensors":
        state, metadata = _read_safetensors(path)
    else:
        state, metadata = _split(_read_torch(path, allow_pickle), path)
    return _without_wrapper(state), metadata


def load_into(model: nn.Module, path: PathLike, *, allow_pickle: bool = False) -> dict[str, Any]:
    """Load a checkpoint's weights into ``model``, all keys and shapes matching; return what else it holds.

    Lazy parameters take the shapes of the file. The model is unchanged if anything does not match.

    Raises:
        ValueError: the file is for another model; the message names what differs. Else as
            :func:`load_checkpoint`.
    """
    state, metadata = load_checkpoint(path, allow_pickle=allow_pickle)
    load_state(model, state, str(path))
    return metadata


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load ``state`` strictly; ``source`` names it in the ``ValueError`` for another model's state dict.

    The model is unchanged if anything does not match.
    """
    differences = _differences(model.state_dict(keep_vars=True), state) or _problems(model, state)
    if differences:
        found = "; ".join(differences)
        raise ValueError(f"load_into: {source!r} must fit {type(model).__name__}, got {found}")
    model.load_state_dict(state)


def save_checkpoint(path: PathLike, checkpoint: Mapping[str, Any]) -> None:
    """Write ``checkpoint`` as a PyTorch file, whole or not at all.

    The published scripts' dict has ``model_state_dict`` beside ``optimizer_state_dict`` and others. Raises
    ``FileNotFoundError`` where the folder is missing, ``OSError`` where it cannot be written.
    """
    with replacing(path) as temporary:
        torch.save(dict(checkpoint), temporary)


def write_safetensors(path: PathLike, state: Mapping[str, Tensor]) -> None:
    """Write a state dict as safetensors, whole or not at all; tensors that share memory are written each."""
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        save_file({key: value.detach().cpu().clone().contiguous() for key, value in state.items()}, temporary)


def _read_torch(path: Path, allow_pickle: bool) -> Any:
    expected = f"load_checkpoint: file must be a whole PyTorch checkpoint, got {str(path)!r}"
    with path.open("rb") as file:
        beginning = file.read(4)
    if not beginning.startswith(_BEGINNINGS):
        raise ValueError(f"{expected}, which is neither a zip archive nor a pickle")
    if beginning == _BEGINNINGS[0] and not zipfile.is_zipfile(path):
        raise ValueError(f"{expected}, which is damaged or cut short")
    try:
        with torch.serialization.safe_globals(_SAFE):
            return torch.load(path, map_location="cpu", weights_only=not allow_pickle)
    except Exception as error:  # torch.load raises a dozen unrelated types for a damaged file
        reason = _reason(error)
        hint = "; pass allow_pickle=True if you trust the file" if "GLOBAL" in str(error) else ""
        raise ValueError(f"{expected}: {reason}{hint}") from error


def _reason(error: Exception) -> str:
    """The one sentence of ``error`` that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "GLOBAL" in line] or lines or [type(error).__name__]
    sentence = re.split(r"(?<=[\w)])\. ", telling[0])[0][:200]
    clear = " " in sentence and "Weights only" not in sentence
    return sentence if clear else f"it cannot be unpickled ({type(error).__name__})"


def _read_safetensors(path: Path) -> tuple[StateDict, dict[str, Any]]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError(
            "load_checkpoint: reading .safetensors needs the package safetensors: pip install 'ctm_fast[hub]'"
        ) from error
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise ValueError(
            f"load_checkpoint: file must be a whole safetensors file, got {str(path)!r}: {_reason(error)}"
        ) from error
    # A tensor that shared another's memory is not in the file; the metadata name the other.
    for key in [key for key, other in metadata.items() if other in state and key not in state]:
        state[key] = state[metadata.pop(key)]
    return state, metadata


def _split(loaded: Any, path: Path) -> tuple[StateDict, dict[str, Any]]:
    """The state dict in what a PyTorch file held, and the rest."""
    if isinstance(loaded, Mapping):
        for name in STATE_DICT_KEYS:
            if name in loaded and _is_state_dict(loaded[name]):
                return dict(loaded[name]), {key: value for key, value in loaded.items() if key != name}
        if _is_state_dict(loaded):
            return dict(loaded), {}
    raise ValueError(
        f"load_checkpoint: file must hold a state dict, bare or under {' or '.join(STATE_DICT_KEYS)}, "
        f"got {str(path)!r} with {_describe(loaded)}"
    )


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(x, Tensor) for x in value.values())


def _describe(loaded: Any) -> str:
    if isinstance(loaded, Mapping):
        return f"the keys {_some(map(str, loaded))}" if loaded else "an empty dict"
    return f"a {type(loaded).__name__}"


def _without_wrapper(state: StateDict) -> StateDict:
    """Keys without what DistributedDataParallel and torch.compile put into them."""
    prefix = "module." if all(key.startswith("module.") for key in state) else ""
    return {key.removeprefix(prefix).replace("_orig_mod.", ""): value for key, value in state.items()}


def _differences(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """What keeps ``given`` from being loaded, in words; a lazy parameter takes any shape."""
    found = []
    if missing := [key for key in expected if key not in given]:
        found.append(f"no {_some(missing)}")
    if unknown := [key for key in given if key not in expected]:
        found.append(f"unknown {_some(unknown)}")
    both = [(key, own, given[key]) for key, own in expected.items() if key in given and not is_lazy(own)]
    shapes = [
        f"{key} {(*new.shape,)} for {(*own.shape,)}" for key, own, new in both if own.shape != new.shape
    ]
    if shapes:
        found.append(f"other shapes: {_some(shapes)}")
    return found


def _problems(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """What the modules of ``model`` that look at the values of ``state`` find wrong with them, in words."""
    modules = [(name, module) for name, module in model.named_modules() if hasattr(module, "state_problems")]
    return [
        problem
        for name, module in modules
        for problem in module.state_problems(state, f"{name}." if name else "")
    ]


def _some(names: Any) -> str:
    names = list(names)
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
