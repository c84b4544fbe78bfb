"""What the engines of all models share."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from ctm_fast.engine import file
from ctm_fast.engine.cell_recipe import CellRecipe
from ctm_fast.engine.recipe import Recipe
from ctm_fast.files import PathLike

AnyRecipe = TypeVar("AnyRecipe", Recipe, CellRecipe)


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

        Weights have their width there too.
        """
        file.write(path, self._recipe)

    def _resize(self, batch: int) -> None:
        most = self._recipe.sizes.batch
        if not 1 <= batch <= most:
            raise ValueError(f"Engine: batch must be in [1, {most}], that of the example, got {batch}")
        self._batch = batch

    def _require_batch(self, batch: int) -> None:
        if batch != self._batch:
            raise ValueError(f"Engine: x must have the state's batch of {self._batch}, got {batch}")
