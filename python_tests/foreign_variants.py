"""The published variants as somebody else writes them: sorting, questions about digits, RL agents."""

import numpy as np
import torch
from foreign_models import ThoughtMachine, Track
from torch import nn


class SortingMachine(ThoughtMachine):
    def __init__(self, d_input=7, **sizes):
        super().__init__(d_input=d_input, heads=0, n_synch_action=0, **{"out_dims": d_input + 1, **sizes})

    def set_backbone(self):
        self.backbone = nn.Identity()

    def forward(self, x, track=False):
        batch, tracked = x.shape[0], Track()
        trace, z = self.start(batch)
        predictions, certainties = self.buffers_for(batch, self.iterations, x.dtype)
        r = torch.exp(-torch.clamp(self.decay_params_out, 0, 15)).unsqueeze(0).repeat(batch, 1)
        _, alpha, beta = self.compute_synchronisation(z, None, None, r, "out")
        for tick in range(self.iterations):
            z, trace = self.think(x, z, trace)
            s, alpha, beta = self.compute_synchronisation(z, alpha, beta, r, "out")
            predictions[..., tick] = self.output_projector(s)
            certainties[..., tick] = self.compute_certainty(predictions[..., tick])
            if track:
                tracked.add(out=s, pre=trace[:, :, -1], post=z)
        if track:
            return predictions, certainties, tracked["out"], tracked["pre"], tracked["post"], np.array([])
        return predictions, certainties, s


class Digits(nn.Module):
    def __init__(self, d_input):
        super().__init__()
        layers = []
        for _ in range(2):
            convolution = nn.LazyConv2d(d_input, 3, padding=1)
            layers += [convolution, nn.BatchNorm2d(d_input), nn.ReLU(), nn.MaxPool2d(2)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)


class Positions(nn.Module):
    def __init__(self, d_input, count=50):
        super().__init__()
        angles = torch.arange(count).unsqueeze(1) * torch.exp(-torch.arange(d_input) / d_input)
        self.register_buffer("embedding", torch.sin(angles))

    def forward(self, x):
        return self.embedding[x]


class Operators(nn.Module):
    def __init__(self, d_input):
        super().__init__()
        self.embedding = nn.Embedding(2, d_input)

    def forward(self, x):
        return self.embedding(-x - 1)


class QuestionMachine(ThoughtMachine):
    def __init__(self, iterations_per_question_part=2, iterations_for_answering=3, **sizes):
        super().__init__(**sizes)
        self.iterations_per_question_part = iterations_per_question_part
        self.iterations_for_answering = iterations_for_answering

    def set_backbone(self):
        self.backbone_digit = Digits(self.d_input)
        self.index_backbone = Positions(self.d_input)
        self.operator_backbone = Operators(self.d_input)

    def compute_features(self, x):
        self.kv_features = self.backbone_digit(x)
        return self.kv_proj(self.kv_features.flatten(2).transpose(1, 2))

    def forward(self, x, z, track=False):
        batch, digits, questions = x.shape[0], x.shape[1], z.shape[1]
        ticks = digits + questions + self.iterations_for_answering
        tracked, kv, before = Track(), None, None
        trace, state = self.start(batch)
        predictions, certainties = self.buffers_for(batch, ticks, x.dtype)
        r_action, r_out = self.clamped_factors("action", batch), self.clamped_factors("out", batch)
        alpha_action = beta_action = None
        _, alpha_out, beta_out = self.compute_synchronisation(state, None, None, r_out, "out")
        for tick in range(ticks):
            s_action, alpha_action, beta_action = self.compute_synchronisation(
                state, alpha_action, beta_action, r_action, "action"
            )
            if tick < digits:
                if before is None or not torch.equal(before, x[:, tick]):
                    kv = self.compute_features(x[:, tick])
                before = x[:, tick]
                seen, weights = self.attend(s_action, kv)
                if track:
                    tracked.add(attention=weights)
            elif tick < digits + questions:
                step = tick - digits
                is_operator = step // self.iterations_per_question_part % 2
                seen = (self.operator_backbone if is_operator else self.index_backbone)(z[:, step])
                if track:
                    tracked.add(embeddings=seen)
            else:
                seen = x.new_zeros(batch, self.d_input)
            state, trace = self.think(seen, state, trace)
            s_out, alpha_out, beta_out = self.compute_synchronisation(
                state, alpha_out, beta_out, r_out, "out"
            )
            predictions[..., tick] = self.output_projector(s_out)
            certainties[..., tick] = self.compute_certainty(predictions[..., tick])
            if track:
                tracked.add(pre=trace[:, :, -1], post=state)
        if track:
            arrays = (tracked[name] for name in ("pre", "post", "attention", "embeddings"))
            return predictions, certainties, s_out, *arrays
        return predictions, certainties, s_out


class Observations(nn.Module):
    def __init__(self, d_input):
        super().__init__()
        self.input_projector = nn.Sequential(
            nn.Flatten(), nn.LazyLinear(2 * d_input), nn.GLU(), nn.LayerNorm(d_input)
        )

    def forward(self, x):
        return self.input_projector(x)


class RecurrentMachine(ThoughtMachine):
    def __init__(self, iterations=2, **sizes):
        super().__init__(iterations, heads=0, n_synch_action=0, neuron_select_type="first-last", **sizes)
        del self.start_activated_state, self.output_projector
        self.start_activated_trace = nn.Parameter(torch.randn(self.d_model, self.memory_length) * 0.3)
        n = self.out_neuron_indices_left.numel()
        self.register_buffer("diagonal_mask_out", torch.ones(n, n, dtype=torch.bool).triu())

    def set_backbone(self):
        self.backbone = Observations(self.d_input)

    def get_synapses(self, depth, d_model, dropout):
        if depth > 1:
            return super().get_synapses(depth, d_model, dropout)

        def gated():
            return nn.LazyLinear(2 * d_model), nn.GLU(), nn.LayerNorm(d_model)

        return nn.Sequential(nn.Dropout(dropout), *gated(), *gated())

    def compute_features(self, x):
        return self.backbone(x).flatten(1)

    def initial_state(self, batch):
        return self.start_trace.expand(batch, -1, -1), self.start_activated_trace.expand(batch, -1, -1)

    def compute_synchronisation(self, activated_state_trace):
        n = self.out_neuron_indices_left.numel()
        window = activated_state_trace[:, -n:].transpose(1, 2)
        pairs = (window.unsqueeze(3) * window.unsqueeze(2))[:, :, self.diagonal_mask_out]
        age = torch.arange(self.memory_length - 1, -1, -1, dtype=pairs.dtype).unsqueeze(1)
        weights = torch.exp(-age * torch.clamp(self.decay_params_out, 0, 4))
        return (weights * pairs).sum(1) / torch.sqrt(weights.sum(0))

    def forward(self, x, hidden_states, track=False):
        trace, activated_trace = hidden_states
        features, tracked = self.compute_features(x), Track()
        for _ in range(self.iterations):
            z, trace = self.think(features, activated_trace[:, :, -1], trace)
            activated_trace = torch.cat((activated_trace[:, :, 1:], z.unsqueeze(-1)), -1)
            if track:
                tracked.add(pre=trace[:, :, -1], post=z)
        s = self.compute_synchronisation(activated_trace)
        if track:
            return s, (trace, activated_trace), tracked["pre"], tracked["post"]
        return s, (trace, activated_trace)
