"""Data, model, loss and score of the parity experiment."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ctm_fast import models
from tasks.losses import at_tick, parity_loss
from tasks.parity import pictures
from tasks.parity.config import PRESETS, ParityConfig
from tasks.parity.data import positions, random_sequences, sequences, split_patterns
from tasks.task import EVALUATION_SEED, Batch, Task, batch_generator


class Parity(Task[ParityConfig]):
    """Predict the parity of every prefix of a sequence of +1 and -1."""

    name = "parity"
    config_class = ParityConfig
    presets = PRESETS
    score = "accuracy_most_certain"

    @cached_property
    def _patterns(self) -> tuple[Tensor, Tensor]:
        return split_patterns(self.config.parity_sequence_length, self.config.held_out)

    def build_model(self) -> nn.Module:
        c = self.config
        common: dict[str, Any] = {
            "iterations": c.iterations,
            "d_model": c.d_model,
            "d_input": c.d_input,
            "heads": c.heads,
            "backbone_type": "parity_backbone",
            "positional_embedding_type": "custom-rotational-1d",
            "out_dims": 2 * c.parity_sequence_length,
            "prediction_reshaper": [c.parity_sequence_length, 2],
            "dropout": c.dropout,
        }
        if c.model_type == "lstm":
            lstm: nn.Module = models.LSTMBaseline(num_layers=c.num_layers, **common)
            return lstm
        return models.ContinuousThoughtMachine(
            n_synch_out=c.n_synch_out,
            n_synch_action=c.n_synch_action,
            synapse_depth=c.synapse_depth,
            memory_length=c.memory_length,
            deep_nlms=True,
            memory_hidden_dims=c.memory_hidden_dims,
            do_layernorm_nlm=False,
            neuron_select_type=c.neuron_select_type,
            n_random_pairing_self=c.n_random_pairing_self,
            **common,
        )

    def batch(self, step: int, generator: torch.Generator) -> Batch:
        size, length = self.config.batch_size, self.config.parity_sequence_length
        if not self.config.held_out:
            return random_sequences(size, length, generator)
        trained = self._patterns[0]
        return sequences(trained[torch.randint(len(trained), (size,), generator=generator)], length)

    def evaluation_batches(self) -> Iterator[Batch]:
        size, length = self.config.batch_size_test, self.config.parity_sequence_length
        if self.config.held_out:
            for codes in torch.split(self._patterns[1], size):
                yield sequences(codes, length)
        else:
            for index in range(self.config.n_test_batches):
                yield random_sequences(size, length, batch_generator(EVALUATION_SEED, index))

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        values, targets = batch
        predictions, certainties, _ = model(values)
        predictions = positions(predictions)
        loss, ticks = parity_loss(predictions, certainties, targets, self.config.use_most_certain)
        right = (predictions.argmax(2) == targets[..., None]).float()  # (B, S, T)
        chosen = at_tick(right, ticks)
        return loss, {
            "accuracy": right.mean(1),
            "accuracy_most_certain": chosen.mean(1),
            "accuracy_most_certain_per_input": chosen.amin(1),
            "tick_most_certain": ticks + 1.0,
        }

    def analyse(self, model: nn.Module, folder: Path) -> list[Path]:
        return pictures.draw(model, list(self.evaluation_batches()), self.config.use_most_certain, folder)
