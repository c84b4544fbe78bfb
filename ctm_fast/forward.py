"""The fast forward of every CTM, for our models and for any object with their attributes.

Keys and values are projected once, all ticks run in one loop, and what no tick reads (output synchronisation,
predictions, certainties) is computed for all ticks at once behind it. Same values as the published forward up
to rounding. Letters: B batch, T ticks, D neurons, M memory length, C out_dims, S synchronised pairs.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.utils.weak import WeakIdKeyDictionary

from ctm_fast import backend
from ctm_fast.loop.plan import parts_of, why_called
from ctm_fast.loop.run import Parts, States, run_ticks
from ctm_fast.nn.certainty import certainties_of
from ctm_fast.nn.sync import MAX_DECAY, clamp_decay_, is_exporting
from ctm_fast.ops.native import compute_dtype
from ctm_fast.ops.sync import sync

ACCELERATED = "_ctm_fast_kind"  # in the dictionary of a class that ctm_fast.accelerate made
# Methods of ctm_fast.models that the fast forwards contain instead of calling them.
_CONTAINED = frozenset((
    "published_forward", "start_state", "think", "attend", "clamp_decays", "synchronisation_pairs",
    "clamped_decay", "embed_question", "tick_input", "see", "total_ticks", "window_weights",
))  # fmt: skip
_TICKS = ("synapses", "trace_processor", "q_proj", "output_projector", "energy_head")
_materialised: weakref.WeakSet[nn.Module] = weakref.WeakSet()


class _Pairs(NamedTuple):
    """Indices of pairs, and what they were made from."""

    source: tuple[int, ...]
    right: weakref.ref[Tensor]
    made: tuple[Tensor, Tensor]


_known_pairs: WeakIdKeyDictionary = WeakIdKeyDictionary()  # of indices on a GPU, whose values are read once


def pairs(model: Any, kind: str, offset: int = 0) -> tuple[Tensor, Tensor]:
    """Flat neuron indices (S), int32, of "action" or "out", read off the buffers and the number of decays."""
    left, right = (getattr(model, f"{kind}_neuron_indices_{side}") for side in ("left", "right"))
    dense = getattr(model, f"decay_params_{kind}").numel() != left.numel()
    if torch.compiler.is_compiling() or not left.is_cuda or torch.cuda.is_current_stream_capturing():
        return _pairs(left, right, dense, offset)
    if left.is_inference() or right.is_inference():
        return _pairs(left, right, dense, offset)
    source = (left._version, right._version, dense, offset)
    known = _known_pairs.get(left)
    if known is None or known.source != source or known.right() is not right:
        # Those made in inference mode have no version, so they would be checked every time.
        with torch.inference_mode(False):
            known = _Pairs(source, weakref.ref(right), _pairs(left, right, dense, offset))
        _known_pairs[left] = known
    return known.made


def _pairs(left: Tensor, right: Tensor, dense: bool, offset: int) -> tuple[Tensor, Tensor]:
    if dense:
        rows, columns = torch.triu_indices(left.numel(), left.numel(), device=left.device)
        left, right = left[rows], right[columns]
    return (left + offset).to(torch.int32), (right + offset).to(torch.int32)


def overridden(model: Any, name: str) -> bool:
    """Whether a user redefined a piece of the model: on the object, or in a class below the forward's."""
    return _redefines(model, frozenset((name,)))


def contains(model: Any, kind: str) -> bool:
    """Whether the fast forward computes what the methods of ``model`` say, whichever a user redefined."""
    return not _redefines(
        model, _CONTAINED | {"compute_features"} if kind in ("qamnist", "rl") else _CONTAINED
    )


@torch.compiler.assume_constant_result
def wraps_inherited(cls: type) -> bool:
    """Whether the forward that ``cls`` defines calls that of its base, as ``super().forward``."""
    return _wraps_inherited(cls)


@lru_cache(maxsize=64)
def _wraps_inherited(cls: type) -> bool:
    code = getattr(inspect.unwrap(cls.__dict__["forward"]), "__code__", None)
    return code is not None and {"super", "forward"} <= set(code.co_names)


def _redefines(model: Any, names: frozenset[str]) -> bool:
    for cls in type(model).__mro__:
        if cls.__dict__.get(ACCELERATED, False):
            continue
        if "forward" in cls.__dict__ and not wraps_inherited(cls):
            break
        if not names.isdisjoint(cls.__dict__):
            return True
    return any(name in model.__dict__ for name in names)  # torch 2.11 compiles no set method on it


def takes_published(model: Any) -> bool:
    """Whether the published forward runs, whatever the model is.

    On the reference backend, while ``torch.jit.trace`` or ``torch.export`` reads it, and while lazy parts wait for
    their first call.
    """
    return backend.selected() == "reference" or torch.jit.is_tracing() or is_exporting() or is_lazy(model)


def is_lazy(model: Any) -> bool:
    """Whether lazy parameters wait for their shape, or lazy parts of the ticks with a loaded shape for their first
    call; asked until none does.
    """
    compiling = torch.compiler.is_compiling()  # which cannot read a set of weak references
    if not compiling and model in _materialised:
        return False
    lazy = any(isinstance(parameter, UninitializedParameter) for parameter in model.parameters())
    ticks = [part for name in _TICKS if isinstance(part := getattr(model, name, None), nn.Module)]
    lazy = lazy or any(hasattr(layer, "_initialize_hook") for part in ticks for layer in part.modules())
    if not compiling and not lazy:
        _materialised.add(model)
    return lazy


def is_traced(model: Any) -> bool:
    """Whether ``torch.compile`` traces the ticks of ``model``: where they call ops one by one, as on a GPU.

    The native loop reads addresses, so that the compiled graph ends in front of it.
    """
    return torch.compiler.is_compiling() and backend.choose("nlm", None, model.start_trace) == "triton"


def _traced_on_gpu(run: Callable[..., Any]) -> Callable[..., Any]:
    outside: Callable[..., Any] = torch.compiler.disable(run)

    @functools.wraps(run)
    def forward(model: Any, *inputs: Any) -> Any:
        return run(model, *inputs) if is_traced(model) else outside(model, *inputs)

    return forward


@_traced_on_gpu
def base(model: Any, x: Tensor, track: bool = False) -> Any:
    """(predictions, certainties, synchronisation or energies) of a base CTM, or the tracked six."""
    states, sync_out = _base_ticks(model, x, track)
    predictions, certainties = _read_out(model, sync_out, torch.float32)
    if track:
        both = (_numpy(sync_out), _numpy(_action_synchronisation(model, states)))
        return predictions, certainties, both, *map(_numpy, (states.pre, states.post, states.attention))
    energies = _energies(model, sync_out)
    return predictions, certainties, sync_out[-1] if energies is None else energies


@_traced_on_gpu
def sort(model: Any, x: Tensor, track: bool = False) -> Any:
    """(predictions, certainties, synchronisation) of a sorting CTM, or the tracked six."""
    states, sync_out = _sort_ticks(model, x, track)
    predictions, certainties = _read_out(model, sync_out, x.dtype)
    if track:
        tracked = (_numpy(sync_out), _numpy(states.pre), _numpy(states.post), np.array([]))
        return predictions, certainties, *tracked
    return predictions, certainties, sync_out[-1]


@_traced_on_gpu
def qamnist(model: Any, x: Tensor, z: Tensor, track: bool = False) -> Any:
    """(predictions, certainties, synchronisation) of a QAMNIST CTM, or the tracked seven."""
    states, sync_out, question = _qamnist_ticks(model, x, z, track)
    predictions, certainties = _read_out(model, sync_out, x.dtype)
    if track:
        tracked = (states.pre, states.post, states.attention, question)
        return predictions, certainties, sync_out[-1], *map(_numpy, tracked)
    return predictions, certainties, sync_out[-1]


@_traced_on_gpu
def rl(model: Any, x: Tensor, hidden_states: tuple[Tensor, Tensor], track: bool = False) -> Any:
    """(synchronisation, new histories) of a CTM for reinforcement learning, and the tracked two."""
    trace, activated = hidden_states
    features = model.backbone(x)
    if hasattr(model, "kv_features"):
        model.kv_features = features.detach()
    parts, inputs = Parts(model.synapses, model.trace_processor), (-1,) * model.iterations
    states = run_ticks(parts, inputs, activated[:, :, -1], trace, [], features.flatten(1).unsqueeze(0))
    memory = trace.shape[2]
    window = torch.cat((activated.permute(2, 0, 1), states.post))[-memory:]
    synchronisation = _window_synchronisation(model, window)
    hidden = (states.history[-memory:].permute(1, 2, 0).contiguous(), window.permute(1, 2, 0).contiguous())
    if track:
        return synchronisation, hidden, _numpy(states.pre), _numpy(states.post)
    return synchronisation, hidden


def every_tick(model: Any, kind: str, *inputs: Any) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Predictions (B, C, T), certainties (B, 2, T), energies (B, 1, T) or None, synchronisations (T, B, S)."""
    _, sync_out, *_ = _TICKS_OF[kind](model, *inputs, False)
    energies = _energies(model, sync_out) if kind == "base" else None
    return *_read_out(model, sync_out, torch.float32), energies, sync_out


def _base_ticks(model: Any, x: Tensor, track: bool) -> tuple[States, Tensor]:
    """The states of all ticks and the output synchronisation (T, B, S) of each."""
    kv = model.compute_features(x)
    clamp_decay_(model.decay_params_action, model.decay_params_out)
    states = _run(model, x.shape[0], (0,) * model.iterations, [kv], None, track)
    return states, _output_synchronisation(model, states, model.decay_params_out)


def _sort_ticks(model: Any, x: Tensor, track: bool) -> tuple[States, Tensor]:
    states = _run(model, x.shape[0], (-1,) * model.iterations, [], x.unsqueeze(0), track)
    decay = torch.clamp(model.decay_params_out, 0, MAX_DECAY)
    return states, _output_synchronisation(model, states, decay)


def _qamnist_ticks(model: Any, x: Tensor, z: Tensor, track: bool) -> tuple[States, Tensor, Tensor | None]:
    """States and synchronisations likewise, and the embedded question (question ticks, B, d), None without one."""
    tokens, inputs = _digits(model, x)
    given, question = _question(model, x, z)
    inputs += [-1 - g for g in range(question)]
    inputs += [-1 - question] * model.iterations_for_answering
    clamp_decay_(model.decay_params_action, model.decay_params_out)
    states = _run(model, len(x), tuple(inputs), tokens, given, track)
    sync_out = _output_synchronisation(model, states, model.decay_params_out)
    return states, sync_out, given[:question] if question else None


_TICKS_OF: dict[str, Callable[..., Any]] = {
    "base": _base_ticks,
    "sort": _sort_ticks,
    "qamnist": _qamnist_ticks,
}


def _energies(model: Any, sync_out: Tensor) -> Tensor | None:
    """(B, 1, T), None of a model without energy head."""
    head = getattr(model, "energy_head", None)
    return None if head is None else _per_tick(head, sync_out).permute(1, 2, 0).float()


def _window_synchronisation(model: Any, window: Tensor) -> Tensor:
    """(B, S) of the post-activations (M, B, D) that a CTM for reinforcement learning remembers."""
    if overridden(model, "compute_synchronisation"):
        own: Tensor = model.compute_synchronisation(window.permute(1, 2, 0))
        return own
    left, right = pairs(model, "out", model.d_model - model.out_neuron_indices_left.numel())
    decay = torch.clamp(model.decay_params_out, 0, 4)
    return sync(window, left, right, decay, last=True)[0]


def _run(
    model: Any, batch: int, inputs: tuple[int, ...], tokens: list[Tensor], given: Tensor | None, track: bool
) -> States:
    parts = Parts(model.synapses, model.trace_processor)
    if model.attention is not None:
        left, right = pairs(model, "action")
        own = None
        if overridden(model, "compute_synchronisation"):
            own = _own_synchronisation(model, model.decay_params_action, batch, "action")
        parts = Parts(
            model.synapses, model.trace_processor, model.q_proj, model.attention, left, right,
            model.decay_params_action, own,
        )  # fmt: skip
    z0 = model.start_activated_state.unsqueeze(0).expand(batch, -1)
    start = model.start_trace.unsqueeze(0).expand(batch, -1, -1)
    recompute = bool(getattr(model, "recompute_synapses", False))
    return run_ticks(parts, inputs, z0, start, tokens, given, track=track, recompute=recompute)


def _own_synchronisation(model: Any, decay: Tensor, batch: int, kind: str) -> Any:
    r = torch.exp(-decay).unsqueeze(0).repeat(batch, 1)
    return lambda z, alpha, beta: model.compute_synchronisation(z, alpha, beta, r, kind)


def _output_synchronisation(model: Any, states: States, decay: Tensor) -> Tensor:
    """(T, B, S); the start state is its first term."""
    z = states.z.to(decay.dtype)
    if overridden(model, "compute_synchronisation"):
        step = _own_synchronisation(model, decay, z.shape[1], "out")
        _, alpha, beta = step(z[0], None, None)
        ticks = []
        for activation in z[1:]:
            s, alpha, beta = step(activation, alpha, beta)
            ticks.append(s)
        return torch.stack(ticks)
    left, right = pairs(model, "out")
    state = compute_dtype(decay.dtype)
    start = (z[0][:, left] * z[0][:, right]).to(state)
    return sync(z[1:], left, right, decay, start, torch.ones_like(decay, dtype=state))[0]


def _action_synchronisation(model: Any, states: States) -> Tensor:
    """(T, B, S) once more from the post-activations, for tracking."""
    left, right = pairs(model, "action")
    decay = model.decay_params_action.detach()
    return sync(states.z[:-1].detach().to(decay.dtype), left, right, decay)[0]


def _per_tick(module: nn.Module, sync_out: Tensor) -> Tensor:
    """``module`` on every tick of (T, B, S): in one call where only its mathematics could tell."""
    leaves = (nn.Linear, nn.SiLU, nn.ReLU, nn.GELU, nn.Identity, nn.Sequential, nn.LayerNorm)
    parts = parts_of(module)
    if why_called(parts) is None and all(type(part) in leaves for part in parts):
        flat: Tensor = module(sync_out.flatten(0, 1))
        return flat.unflatten(0, sync_out.shape[:2])
    return torch.stack([module(s) for s in sync_out])


def _read_out(model: Any, sync_out: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Predictions (B, C, T) and certainties (B, 2, T)."""
    ticks = _per_tick(model.output_projector, sync_out)
    predictions = ticks.permute(1, 2, 0).to(dtype).contiguous()
    if overridden(model, "compute_certainty"):
        certainties = torch.stack([model.compute_certainty(y) for y in ticks], -1)
    else:
        wide = ticks.float() if ticks.dtype in (torch.bfloat16, torch.float16) else ticks
        certainties = certainties_of(wide, tuple(model.prediction_reshaper))
    return predictions, certainties.to(dtype).contiguous()


def _digits(model: Any, x: Tensor) -> tuple[list[Tensor], list[int]]:
    """Tokens of every run of equal images, and which of them each digit tick sees."""
    tokens: list[Tensor] = []
    inputs = []
    changed = (x[:, 1:] != x[:, :-1]).flatten(2).any(2).any(0).tolist() if x.shape[1] > 1 else []
    for tick in range(x.shape[1]):
        if tick == 0 or changed[tick - 1]:
            features = model.backbone_digit(x[:, tick])
            model.kv_features = features.detach()
            tokens.append(model.kv_proj(features.flatten(2).transpose(1, 2)))
        inputs.append(len(tokens) - 1)
    return tokens, inputs


def _question(model: Any, x: Tensor, z: Tensor) -> tuple[Tensor, int]:
    """Given inputs (question ticks + 1, B, d), the last all zeros, and the number of question ticks."""
    embedded = []
    for step in range(z.shape[1]):
        is_operator = step // model.iterations_per_question_part % 2
        embedded.append((model.operator_backbone if is_operator else model.index_backbone)(z[:, step]))
    zeros = x.new_zeros(len(x), model.d_input)
    return torch.stack([*(e.to(zeros.dtype) for e in embedded), zeros]), len(embedded)


def _numpy(x: Tensor | None) -> np.ndarray:
    return x.detach().cpu().numpy() if x is not None else np.array([])
