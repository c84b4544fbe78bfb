"""Saving models to and loading them from the Hugging Face Hub or a folder: the extra ``hub``.

A folder holds ``config.json``, the constructor arguments, and ``model.safetensors``. Loading from a folder
needs no network.
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

from torch import nn
from torch.nn.parameter import is_lazy

from ctm_fast.checkpoint import load_checkpoint, load_state, write_safetensors

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
PAPER = "https://arxiv.org/abs/2505.05522"


_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")  # of a model on the hub, with or without its owner


def _refuse(what: str) -> NoReturn:
    raise ImportError(
        f"{what} needs the packages huggingface_hub and safetensors: pip install 'ctm_fast[hub]'"
    )


class _WithoutHub:
    """What a model offers where ``huggingface_hub`` is missing: the reason."""

    def __init_subclass__(cls, **_: Any) -> None:
        super().__init_subclass__()

    def save_pretrained(self, *_: Any, **__: Any) -> NoReturn:
        """Raise ``ImportError`` with the install command."""
        _refuse("save_pretrained")

    def push_to_hub(self, *_: Any, **__: Any) -> NoReturn:
        """Raise ``ImportError`` with the install command."""
        _refuse("push_to_hub")

    @classmethod
    def from_pretrained(cls, *_: Any, **__: Any) -> NoReturn:
        """Raise ``ImportError`` with the install command."""
        _refuse("from_pretrained")


if TYPE_CHECKING:
    from huggingface_hub import PyTorchModelHubMixin as _Base
else:
    try:
        from huggingface_hub import PyTorchModelHubMixin as _Base
    except ImportError:
        _Base = _WithoutHub


class HubMixin(_Base, library_name="ctm_fast", paper_url=PAPER, tags=["continuous-thought-machine"]):
    """``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` for JSON constructor arguments."""

    def _save_pretrained(self, save_directory: Path) -> None:
        assert isinstance(self, nn.Module)
        if waiting := [key for key, value in self.state_dict(keep_vars=True).items() if is_lazy(value)]:
            raise ValueError(f"save_pretrained: model must have run once, got {waiting[0]} without a shape")
        write_safetensors(save_directory / WEIGHTS, self.state_dict())

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | Path, **options: Any
    ) -> Self:
        """A model with saved arguments and weights, in evaluation mode.

        Args:
            pretrained_model_name_or_path: a folder, or the name of a model on the hub.
            **options: those of ``huggingface_hub.ModelHubMixin.from_pretrained``, and constructor arguments
                that replace saved ones.

        Raises:
            FileNotFoundError: no such folder, or none of its weights.
            ValueError: ``config.json`` is damaged or lacks arguments, or the weights do not fit.
        """
        path = Path(pretrained_model_name_or_path)
        if (path / CONFIG).is_file():
            _check_config(path / CONFIG)
        elif not path.is_dir() and not _NAME.fullmatch(str(pretrained_model_name_or_path)):
            raise FileNotFoundError(
                f"from_pretrained: {path} must be a folder or the name of a model on the hub"
            )
        return super().from_pretrained(pretrained_model_name_or_path, **options)

    @classmethod
    def _from_pretrained(  # type: ignore[override]
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        map_location: str = "cpu",
        strict: bool = True,
        **model_kwargs: Any,
    ) -> Self:
        from huggingface_hub import hf_hub_download

        path = Path(model_id) / WEIGHTS
        if not Path(model_id).is_dir():
            path = Path(
                hf_hub_download(
                    model_id,
                    WEIGHTS,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                )
            )
        if missing := [name for name in _required(cls) if name not in model_kwargs]:
            raise ValueError(
                f"from_pretrained: {Path(model_id) / CONFIG} must hold the arguments of {cls.__name__}, got none "
                f"for {', '.join(missing)}"
            )
        model = cls(**model_kwargs)
        assert isinstance(model, nn.Module)
        state, _ = load_checkpoint(path)
        if strict:
            load_state(model, state, str(path))
        else:
            model.load_state_dict(state, strict=False)
        return model.to(map_location).eval()


def _check_config(path: Path) -> None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"from_pretrained: {path} must be JSON, got a damaged file: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"from_pretrained: {path} must hold a JSON object, got {type(found).__name__}")


def _required(cls: type) -> list[str]:
    """Names of the constructor arguments that have no default."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    _, *parameters = inspect.signature(cls.__init__).parameters.values()  # type: ignore[misc]
    return [p.name for p in parameters if p.kind in named and p.default is p.empty]
