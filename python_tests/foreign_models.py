"""Continuous Thought Machines as somebody else writes them: plain torch, nothing from ctm_fast.

The published layout of attributes, submodules and keys, and the published order of a tick, with class names
of their own. Small stand-ins replace the image backbones.
"""

import math
from itertools import pairwise

import numpy as np
import torch
from torch import nn


class PerNeuronLinear(nn.Module):
    def __init__(self, in_dims, out_dims, N, do_norm=False, dropout=0.0):
        super().__init__()
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        self.layernorm = nn.LayerNorm(in_dims) if do_norm else nn.Identity()
        bound = 1 / math.sqrt(in_dims + out_dims)
        self.w1 = nn.Parameter(torch.empty(in_dims, out_dims, N).uniform_(-bound, bound))
        self.b1 = nn.Parameter(torch.zeros(1, N, out_dims))
        self.T = nn.Parameter(torch.ones(1))

    def forward(self, x):
        y = torch.einsum("bni,ion->bno", self.layernorm(self.dropout(x)), self.w1) + self.b1
        return y.squeeze(-1) / self.T


class DropLastDim(nn.Module):
    def forward(self, x):
        return x.squeeze(-1)


class Hourglass(nn.Module):
    """The U-Net synapses."""

    def __init__(self, width, depth, narrowest=16, dropout=0.0):
        super().__init__()

        def block(a, b):
            return nn.Sequential(nn.Dropout(dropout), nn.Linear(a, b), nn.LayerNorm(b), nn.SiLU())

        widths = [int(w) for w in np.linspace(width, narrowest, depth)]
        self.first_projection = nn.Sequential(nn.LazyLinear(width), nn.LayerNorm(width), nn.SiLU())
        self.down_projections = nn.ModuleList()
        self.up_projections = nn.ModuleList()
        self.skip_lns = nn.ModuleList()
        for wide, narrow in pairwise(widths):
            self.down_projections.append(block(wide, narrow))
            self.up_projections.append(block(narrow, wide))
            self.skip_lns.append(nn.LayerNorm(wide))

    def forward(self, x):
        levels = [self.first_projection(x)]
        for down in self.down_projections:
            levels.append(down(levels[-1]))
        y = levels[-1]
        for i in reversed(range(len(self.up_projections))):
            y = self.skip_lns[i](self.up_projections[i](y) + levels[i])
        return y


class Bits(nn.Module):
    """Signs (B, L) -> features (B, d, L) with a learnable position."""

    def __init__(self, d_input, length=70):
        super().__init__()
        self.embedding = nn.Embedding(2, d_input)
        self.position = nn.Parameter(torch.randn(d_input, length))

    def forward(self, x):
        return self.embedding((x > 0).long()).transpose(1, 2) + self.position[:, : x.shape[1]]


class ThoughtMachine(nn.Module):
    """The base model, and the fork with an energy head."""

    def __init__(
        self, iterations=6, d_model=24, d_input=8, heads=2, n_synch_out=5, n_synch_action=4, synapse_depth=1,
        memory_length=5, deep_nlms=True, memory_hidden_dims=3, do_layernorm_nlm=False, out_dims=6,
        prediction_reshaper=(-1,), dropout=0.0, dropout_nlm=None, neuron_select_type="random-pairing",
        n_random_pairing_self=0, energy_head_enabled=False,
    ):  # fmt: skip
        super().__init__()
        self.iterations, self.d_model, self.d_input = iterations, d_model, d_input
        self.memory_length, self.prediction_reshaper = memory_length, list(prediction_reshaper)
        self.neuron_select_type, self.out_dims = neuron_select_type, out_dims
        self.set_backbone()
        self.kv_proj = nn.Sequential(nn.LazyLinear(d_input), nn.LayerNorm(d_input)) if heads else None
        self.q_proj = nn.LazyLinear(d_input) if heads else None
        self.attention = nn.MultiheadAttention(d_input, heads, dropout, batch_first=True) if heads else None
        self.synapses = self.get_synapses(synapse_depth, d_model, dropout)
        rate = dropout if dropout_nlm is None else dropout_nlm
        self.trace_processor = self.get_nlms(deep_nlms, do_layernorm_nlm, memory_hidden_dims, rate)
        bounds = math.sqrt(1 / d_model), math.sqrt(1 / (d_model + memory_length))
        self.start_activated_state = nn.Parameter(torch.zeros(d_model).uniform_(-bounds[0], bounds[0]))
        self.start_trace = nn.Parameter(torch.zeros(d_model, memory_length).uniform_(-bounds[1], bounds[1]))
        for kind, n in (("action", n_synch_action), ("out", n_synch_out)):
            if n:
                self.set_wiring(kind, n, n_random_pairing_self)
        self.output_projector = nn.Sequential(nn.LazyLinear(out_dims))
        if energy_head_enabled:
            self.energy_head = nn.Sequential(nn.LazyLinear(7), nn.SiLU(), nn.Linear(7, 1))

    def set_backbone(self):
        self.backbone = Bits(self.d_input)

    def get_synapses(self, depth, d_model, dropout):
        if depth > 1:
            return Hourglass(d_model, depth, 16, dropout)
        return nn.Sequential(nn.Dropout(dropout), nn.LazyLinear(2 * d_model), nn.GLU(), nn.LayerNorm(d_model))

    def get_nlms(self, deep, norm, hidden, dropout):
        def layer(a, b):
            return [PerNeuronLinear(a, b, self.d_model, norm, dropout), nn.GLU()]

        sizes = [(self.memory_length, 2 * hidden), (hidden, 2)] if deep else [(self.memory_length, 2)]
        layers = [part for a, b in sizes for part in layer(a, b)]
        return nn.Sequential(nn.Sequential(*layers, DropLastDim()))

    def set_wiring(self, kind, n, n_self):
        if self.neuron_select_type == "first-last":
            left = right = torch.arange(n) if kind == "out" else torch.arange(self.d_model - n, self.d_model)
        else:
            left = torch.from_numpy(np.random.choice(np.arange(self.d_model), size=n))
            n_self = n_self if self.neuron_select_type == "random-pairing" else 0
            drawn = torch.from_numpy(np.random.choice(np.arange(self.d_model), size=n - n_self))
            right = torch.cat((left[:n_self], drawn))
        self.register_buffer(f"{kind}_neuron_indices_left", left)
        self.register_buffer(f"{kind}_neuron_indices_right", right)
        size = n if self.neuron_select_type == "random-pairing" else n * (n + 1) // 2
        self.register_parameter(f"decay_params_{kind}", nn.Parameter(torch.zeros(size)))

    def compute_features(self, x):
        self.kv_features = self.backbone(x)
        return self.kv_proj(self.kv_features.flatten(2).transpose(1, 2))

    def compute_certainty(self, prediction):
        logits = prediction.reshape([prediction.shape[0], *self.prediction_reshaper])
        entropy = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1) / math.log(logits.shape[-1])
        if logits.dim() > 2:
            entropy = entropy.flatten(1).mean(-1)
        return torch.stack((entropy, 1 - entropy), -1)

    def compute_synchronisation(self, activated_state, decay_alpha, decay_beta, r, synch_type):
        left = activated_state[:, getattr(self, f"{synch_type}_neuron_indices_left")]
        right = activated_state[:, getattr(self, f"{synch_type}_neuron_indices_right")]
        if self.neuron_select_type == "random-pairing":
            product = left * right
        else:
            i, j = torch.triu_indices(left.shape[1], left.shape[1])
            product = (left.unsqueeze(2) * right.unsqueeze(1))[:, i, j]
        if decay_alpha is None:
            decay_alpha, decay_beta = product, torch.ones_like(product)
        else:
            decay_alpha, decay_beta = r * decay_alpha + product, r * decay_beta + 1
        return decay_alpha / torch.sqrt(decay_beta), decay_alpha, decay_beta

    def clamped_factors(self, kind, batch):
        decay = getattr(self, f"decay_params_{kind}")
        decay.data = torch.clamp(decay, 0, 15)
        return torch.exp(-decay).unsqueeze(0).repeat(batch, 1)

    def start(self, batch):
        return self.start_trace.expand(batch, -1, -1), self.start_activated_state.expand(batch, -1)

    def think(self, seen, z, trace):
        state = self.synapses(torch.cat((seen, z), -1))
        trace = torch.cat((trace[:, :, 1:], state.unsqueeze(-1)), -1)
        return self.trace_processor(trace), trace

    def attend(self, synchronisation, kv):
        query = self.q_proj(synchronisation).unsqueeze(1)
        seen, weights = self.attention(query, kv, kv, average_attn_weights=False, need_weights=True)
        return seen.squeeze(1), weights

    def buffers_for(self, batch, ticks, dtype):
        return [torch.empty(batch, width, ticks, dtype=dtype) for width in (self.out_dims, 2)]

    def forward(self, x, track=False):
        batch = x.shape[0]
        kv = self.compute_features(x)
        trace, z = self.start(batch)
        predictions, certainties = self.buffers_for(batch, self.iterations, torch.float32)
        energies, tracked = [], Track()
        r_action, r_out = self.clamped_factors("action", batch), self.clamped_factors("out", batch)
        alpha_action = beta_action = None
        _, alpha_out, beta_out = self.compute_synchronisation(z, None, None, r_out, "out")
        for tick in range(self.iterations):
            s_action, alpha_action, beta_action = self.compute_synchronisation(
                z, alpha_action, beta_action, r_action, "action"
            )
            seen, weights = self.attend(s_action, kv)
            z, trace = self.think(seen, z, trace)
            s_out, alpha_out, beta_out = self.compute_synchronisation(z, alpha_out, beta_out, r_out, "out")
            prediction = self.output_projector(s_out)
            predictions[..., tick] = prediction
            certainties[..., tick] = self.compute_certainty(prediction)
            if hasattr(self, "energy_head"):
                energies.append(self.energy_head(s_out).float())
            if track:
                tracked.add(out=s_out, action=s_action, pre=trace[:, :, -1], post=z, attention=weights)
        if track:
            both = tracked["out"], tracked["action"]
            return predictions, certainties, both, tracked["pre"], tracked["post"], tracked["attention"]
        return predictions, certainties, torch.stack(energies, -1) if energies else s_out


class Track(dict):
    """Arrays of every tick by name."""

    def add(self, **values):
        for name, value in values.items():
            self.setdefault(name, []).append(value.detach().float().cpu().numpy())

    def __getitem__(self, name):
        return np.array(self.get(name, []))


def example(batch=3, length=8, seed=0):
    """Signs (batch, length) for a ThoughtMachine."""
    return torch.randint(0, 2, (batch, length), generator=torch.Generator().manual_seed(seed)).float() * 2 - 1
