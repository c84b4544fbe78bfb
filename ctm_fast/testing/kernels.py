"""What the Triton kernels take: what :mod:`ctm_fast.testing.compilation` compiles them for."""

from __future__ import annotations

from typing import Any

SUMS = ("float32", "float64")
FLOATS = (*SUMS, "bfloat16", "float16")
_TRITON_NAMES = {"float32": "fp32", "float64": "fp64", "bfloat16": "bf16", "float16": "fp16"}


class Kernel:
    """One kernel of a word's module with compile-time sizes.

    Args:
        name: the function.
        pointers: what its first arguments point to, by dtype: "f" is that of the activations, "s" that of sums.
        scalars: the types of the arguments behind these.
        dtypes: dtypes of the activations to compile it for.
        warps: of 32 threads each.
        registers: how many a thread may have; None leaves it to the assembler.
        sizes: its compile-time arguments.
    """

    def __init__(
        self,
        name: str,
        pointers: str,
        scalars: str = "",
        *,
        dtypes: tuple[str, ...] = SUMS,
        warps: int = 4,
        registers: int | None = None,
        **sizes: Any,
    ) -> None:
        self.name, self.pointers, self.scalars = name, pointers.split(), scalars.split()
        self.dtypes, self.sizes = dtypes, sizes
        self.options = {"num_warps": warps, "maxnreg": registers}

    def types(self, dtype: str) -> list[str]:
        """Triton's names of the types of all run-time arguments."""
        sums = "fp64" if dtype == "float64" else "fp32"
        named = {"f": _TRITON_NAMES[dtype], "s": sums}
        scalars = [named.get(x, x) for x in self.scalars]
        return ["*" + named.get(x, x) for x in self.pointers] + scalars
