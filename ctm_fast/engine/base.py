"""What the engines of all models share."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

import numpy as np

from ctm_fast.engine import file
from ctm_fast.engine.cell_recipe import CellRecipe
from ctm_fast.engine.inputs import chosen
from ctm_fast.engine.recipe import Recipe
from ctm_fast.files import PathLike

AnyRecipe = TypeVar("AnyRecipe", Recipe, CellRecipe)


def integer(op: str, name: str, x: Any) -> int:
    """``x`` as an integer. Raises ``TypeError``."""
    try:
        return operator.index(x)
    except TypeError:
        raise TypeError(f"{op}: {name} must be an integer, got {type(x).__name__}") from None


class BaseEngine(Generic[AnyRecipe]):
    """A recipe, a file of it, and the batch of a state that is kept between calls."""

    _recipe: AnyRecipe
    _native: Any
    _batch: int

    @property
    def kind(self) -> str:
        """What the model is: "base", "sort", "qamnist" or "rl", "ntm" or "adaptive"."""
        return self._recipe.kind

    def save(self, path: PathLike) -> None:
        """Write the engine to one file in safetensors layout, under its name only once it is whole.

        Weights have their width there too. Raises ``FileNotFoundError`` where the folder is missing, and
        ``IsADirectoryError`` where ``path`` is one.
        """
        if Path(path).is_dir():
            raise IsADirectoryError(f"save: path must be a file's, got the folder {str(path)!r}")
        file.write(path, self._recipe)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("Engine: an engine must be copied by save and load, got copy or pickle")

    def reset(self, batch: int | None = None, *, samples: Any = None) -> None:
        """Put the model's start into the state of ``batch`` samples, by default the engine's largest.

        Args:
            batch: samples from now on.
            samples: only these of the state's batch, as environments end their episodes one by one: indices, or a
                mask (B,) of bools. The others go on, so that ``batch`` must be left out.

        Raises:
            TypeError, ValueError, IndexError: "Engine: argument must ..., got ...".
        """
        self._require_state("reset")
        if samples is None:
            self._resize(self._recipe.sizes.batch if batch is None else batch)
            self._start()
            return
        if batch is not None:
            raise TypeError("Engine: batch must be left out where samples are given, got both")
        self._restart(chosen(samples, self._batch))

    def _require_state(self, name: str) -> None:
        """Raise ``TypeError`` where the model has none."""

    def _start(self) -> None:
        """Put the start into the state of the whole batch."""
        raise NotImplementedError

    def _restart(self, samples: np.ndarray) -> None:
        """Put the start into the state of samples, by index."""
        raise NotImplementedError

    def _resize(self, batch: int) -> None:
        batch, most = integer("Engine", "batch", batch), self._recipe.sizes.batch
        if not 1 <= batch <= most:
            raise ValueError(f"Engine: batch must be in [1, {most}], that of the example, got {batch}")
        self._batch = batch

    def _require_batch(self, batch: int) -> None:
        if batch != self._batch:
            raise ValueError(f"Engine: x must have the state's batch of {self._batch}, got {batch}")
