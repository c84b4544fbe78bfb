# ruff: noqa: N999
"""CPU kernels over raw addresses (``Tensor.data_ptr()``); ``ctm_fast.ops`` has checked every argument.

``code`` is a storage: 0 float32, 1 float64, 2 bfloat16 (``nlm_forward``, ``nlm_direct`` and ``nlm_backward``
only); another one raises ``ValueError``. Strides count elements; ``x_row`` is the row stride of ``x``. An
address of 0 means absent where the kernel's header in csrc allows it. A call runs on ``threads`` threads and
gives the same bits for any number of them. Packed weights are bound to the SIMD level in use when they were
packed; with another one the kernels that read them raise ``ValueError``.
"""

from typing import Any

Address = int
Drop = tuple[float, int, int]  # probability, 64-bit seed, index of row 0 in the mask
Norm = tuple[Address, Address, float]  # LayerNorm: weight, bias, eps
NormGrad = tuple[Address, Address]  # gradients of weight and bias, (ROW_GROUPS, width) each

ROW_GROUPS: int

def build_info() -> dict[str, str]:
    """Version, compiler, C++ standard and OpenMP of this build."""

def simd_level() -> str:
    """The SIMD level in use."""

def simd_levels() -> list[str]:
    """Levels that were compiled and that this processor runs, slowest first."""

def set_simd_level(name: str, /) -> None:
    """Use one of :func:`simd_levels`; ``ValueError`` for another name."""

def advise_huge(address: Address, size: int, /) -> None:
    """Ask for huge pages under a large buffer of ``size`` bytes that nothing has touched yet."""

# csrc/nlm.h

NlmSizes = tuple[int, int, int, int, bool]  # rows, neurons, memory, hidden, deep
NlmStrides = tuple[int, ...]  # row, neuron, memory

def nlm_packed_size(code: int, sizes: NlmSizes, /) -> int: ...
def nlm_pack(
    code: int, sizes: NlmSizes, w1: Address, b1: Address, t1: float, w2: Address, b2: Address, t2: float,
    packed: Address, threads: int, /,
) -> None: ...  # fmt: skip
def nlm_unpack(
    code: int, sizes: NlmSizes, packed: Address, grad: Address, t1: float, t2: float, w1: Address,
    b1: Address, t1_grad: Address, w2: Address, b2: Address, t2_grad: Address, threads: int, /,
) -> None: ...  # fmt: skip
def nlm_forward(
    code: int, sizes: NlmSizes, drop: Drop, packed: Address, x: Address, strides: NlmStrides, z: Address,
    z_row: int, threads: int, /,
) -> None: ...  # fmt: skip
def nlm_direct(
    code: int, sizes: NlmSizes, drop: Drop, w1: Address, b1: Address, t1: float, w2: Address, b2: Address,
    t2: float, x: Address, strides: NlmStrides, z: Address, z_row: int, threads: int, /,
) -> None: ...  # fmt: skip
def nlm_backward(
    code: int, sizes: NlmSizes, drop: Drop, packed: Address, x: Address, strides: NlmStrides, dz: Address,
    dz_row: int, dx: Address, dx_strides: NlmStrides, dpacked: Address, threads: int, /,
) -> None: ...  # fmt: skip

# csrc/sync.h

SyncSizes = tuple[int, ...]  # ticks, batch, neurons, pairs, last
SyncStrides = tuple[int, ...]  # tick, row

def sync_roots(
    code: int, sizes: SyncSizes, r: Address, beta0: Address, beta: Address, inverse_root: Address, /
) -> None: ...
def sync_forward(
    code: int, sizes: SyncSizes, z: Address, strides: SyncStrides, left: Address, right: Address, r: Address,
    inverse_root: Address, alpha: Address, s: Address, threads: int, /,
) -> None: ...  # fmt: skip
def sync_backward(
    code: int, sizes: SyncSizes, z: Address, strides: SyncStrides, left: Address, right: Address, r: Address,
    inverse_root: Address, alpha0: Address, beta0: Address, ds: Address, galpha: Address, dz: Address,
    dz_strides: SyncStrides, dr: Address, dbeta: Address, threads: int, /,
) -> None: ...  # fmt: skip

# csrc/attend.h

AttendSizes = tuple[int, int, int, int]  # batch, heads, width, tokens

def attend_forward(
    code: int, sizes: AttendSizes, drop: Drop, q: Address, q_row: int, keys: Address, values: Address,
    weights: Address, o: Address, o_row: int, threads: int, /,
) -> None: ...  # fmt: skip
def attend_backward(
    code: int, sizes: AttendSizes, drop: Drop, q: Address, q_row: int, keys: Address, values: Address,
    grad: Address, grad_row: int, dropped: Address, weights: Address, scores: Address, dq: Address,
    dq_row: int, threads: int, /,
) -> None: ...  # fmt: skip

# csrc/synapse.h

Rows = tuple[int, ...]  # rows, width

def glu_norm(
    code: int, rows: Rows, x: Address, x_row: int, norm: Norm, y: Address, y_row: int, threads: int, /
) -> None: ...
def silu_norm(
    code: int, rows: Rows, x: Address, x_row: int, norm: Norm, y: Address, y_row: int, threads: int, /
) -> None: ...
def skip_norm(
    code: int, rows: Rows, x: Address, x_row: int, norm: Norm, skip: Address, skip_row: int, outer: Norm,
    y: Address, y_row: int, threads: int, /,
) -> None: ...  # fmt: skip
def glu_norm_backward(
    code: int, rows: Rows, x: Address, x_row: int, norm: Norm, dy: Address, dy_row: int, dx: Address,
    dx_row: int, grad: NormGrad, threads: int, /,
) -> None: ...  # fmt: skip
def silu_norm_backward(
    code: int, rows: Rows, x: Address, x_row: int, norm: Norm, dy: Address, dy_row: int, dx: Address,
    dx_row: int, grad: NormGrad, threads: int, /,
) -> None: ...  # fmt: skip
def skip_norm_backward(
    code: int, rows: Rows, x: Address, x_row: int, norm: Norm, skip: Address, skip_row: int, outer: Norm,
    dy: Address, dy_row: int, dx: Address, dx_row: int, dskip: Address, dskip_row: int, grad: NormGrad,
    outer_grad: NormGrad, threads: int, /,
) -> None: ...  # fmt: skip
def dropout(
    code: int, rows: Rows, drop: Drop, x: Address, x_row: int, y: Address, y_row: int, threads: int, /
) -> None: ...

# csrc/linear.h

def linear_packed_size(code: int, outputs: int, inputs: int, /) -> int: ...
def linear_pack(
    code: int, outputs: int, inputs: int, w: Address, w_out: int, w_in: int, packed: Address, threads: int, /
) -> None: ...
def linear(
    code: int, rows: int, outputs: int, inputs: int, x: Address, x_row: int, packed: Address, init: Address,
    init_row: int, y: Address, y_row: int, threads: int, /,
) -> None: ...  # fmt: skip

# csrc/halting.h

HaltingSizes = tuple[int, int, int]  # rows, batch, width
RecurrenceSizes = tuple[int, int, bool]  # batch, width, lstm
HaltingSpan = tuple[int, int, int]  # timestep, first row, rows
Recurrence = tuple[Address, ...]  # the members of struct Recurrence, in order
RecurrenceGrad = tuple[Address, ...]  # those of RecurrenceGrad

def halting_weights(
    code: int, sizes: HaltingSizes, threshold: float, force: bool, h: Address, samples: Address,
    left: Address, total: Address, weight: Address, ponder: Address, /,
) -> None: ...  # fmt: skip
def halting_weights_backward(
    code: int, sizes: HaltingSizes, threshold: float, force: bool, h: Address, samples: Address,
    dweight: Address, dponder: Address, left: Address, total: Address, end: Address, dh: Address, /,
) -> None: ...  # fmt: skip
def halting_mean(
    code: int, sizes: HaltingSizes, values: Address, weight: Address, samples: Address, out: Address,
    threads: int, /,
) -> None: ...  # fmt: skip
def halting_mean_backward(
    code: int, sizes: HaltingSizes, values: Address, weight: Address, samples: Address, dout: Address,
    dvalues: Address, dweight: Address, threads: int, /,
) -> None: ...  # fmt: skip
def halting_begin(
    code: int, sizes: RecurrenceSizes, span: HaltingSpan, recurrence: Recurrence, threads: int, /
) -> int: ...
def halting_substep(
    code: int, sizes: RecurrenceSizes, span: HaltingSpan, last: bool, threshold: float,
    recurrence: Recurrence, threads: int, /,
) -> int: ...  # fmt: skip
def halting_substep_backward(
    code: int, sizes: RecurrenceSizes, span: HaltingSpan, recurrence: Recurrence, grad: RecurrenceGrad,
    threads: int, /,
) -> None: ...  # fmt: skip

Counts = tuple[int, int, int, int, int, bool]  # batch, ticks, tokens, sets of tokens, given inputs, raw
Halt = tuple[float, float, float, int, int, bool]  # the members of EngineHalt in csrc/engine.h

class Engine:
    """All ticks in one call, from buffers that the caller has checked; of the SIMD level in use when it was made.

    One call at a time: another one from a second thread raises ``RuntimeError``. A buffer of another size raises
    ``ValueError``.
    """

    def __init__(
        self,
        sizes: tuple[int, ...],
        stages: list[tuple[int, int, int, int, int, float, float]],
        fronts: list[list[tuple[int, int, int, int, int, float]]],
        arrays: dict[str, Any],
        /,
    ) -> None:
        """Sizes as EngineSizes, stages as the start of EngineStage, arrays by the names of the members.

        Fronts: stages of the tokens' and of the given inputs', as the start of EngineFrontStage.
        """

    def run(
        self, counts: Counts, inputs: tuple[Any, Any, Any], halt: Halt, outputs: tuple[Any, ...], /
    ) -> int:
        """Ticks of all samples that were computed, or -1 where an input is not finite.

        Inputs: tokens, given, schedule. Outputs: predictions, certainties, energies, synchronisation, ticks, reason,
        histories (B, M, D) of pre- and post-activations; None where the model has none or nobody asks.
        """

    def set_state(self, batch: int, pre: Any, post: Any, /) -> None:
        """Histories (B, M, D), or None for the learned start."""

    def get_state(self, batch: int, pre: Any, post: Any, /) -> None:
        """Write the histories (B, M, D)."""

# csrc/cell.h

CellArrays = tuple[Any, Any, Any, Any, Any, Any]  # the members of CellState; None where a cell has none of it

class Cell:
    """Steps of a recurrent cell, from buffers that the caller has checked; otherwise as :class:`Engine`."""

    def __init__(
        self, sizes: tuple[int, ...], numbers: tuple[float, float, float], arrays: dict[str, Any], /
    ) -> None:
        """Sizes as CellSizes, numbers as CellNumbers, arrays by the names of the members."""

    def run(self, batch: int, steps: int, x: Any, outputs: tuple[Any, Any, Any], after: CellArrays, /) -> int:
        """Ticks of all samples that were computed, or -1 where an input is not finite.

        Outputs: output (T, B, O), ticks and remainder (T, B), None where a cell has none. ``after`` takes the state.
        """

    def reset(self, batch: int, /) -> None:
        """Put the start into the state."""

    def set_state(self, batch: int, state: CellArrays, /) -> None:
        """Go on from this state; the memory is (B, W, N)."""

    def get_state(self, batch: int, state: CellArrays, /) -> None:
        """Write the state."""
