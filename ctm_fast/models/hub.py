"""Saving models to and loading them from the Hugging Face Hub or a folder: the extra ``hub``.

A folder holds ``config.json``, the constructor arguments, and ``model.safetensors``. Loading from a folder
needs no network.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

from torch import nn
from torch.nn.parameter import is_lazy

from ctm_fast.checkpoint import load_checkpoint, load_state, write_safetensors

WEIGHTS = "model.safetensors"
PAPER = "https://arxiv.org/abs/2505.05522"


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
        model = cls(**model_kwargs)
        assert isinstance(model, nn.Module)
        state, _ = load_checkpoint(path)
        if strict:
            load_state(model, state, str(path))
        else:
            model.load_state_dict(state, strict=False)
        return model.to(map_location).eval()
