"""Data, model, loss and score of the RTNTM experiments."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctm_fast import models
from tasks.curriculum import Curriculum, levels_up_to
from tasks.ntm.scores import entropy
from tasks.rtntm import pictures
from tasks.rtntm.config import ADD_PRESETS, COPY_PRESETS, AddConfig, CopyConfig, RTNTMConfig
from tasks.rtntm.data import ALPHABET, DELIMITER, FED, IGNORED, copy_batch, sum_batch
from tasks.task import EVALUATION_SEED, Batch, Task, batch_generator

Config = TypeVar("Config", bound=RTNTMConfig)


class RTNTMTask(Task[Config]):
    """What copying, reversing and adding share; a subclass makes batches of a given length."""

    score = "accuracy_whole"
    curves = ("loss", "accuracy", "accuracy_whole")
    shown: ClassVar[int]  # symbols or digits of the sequence in the pictures
    unit: ClassVar[str]

    def make_curriculum(self) -> Curriculum:
        c = self.config
        return Curriculum(
            levels_up_to(c.longest, c.start, c.rise),
            every=c.advance_every,
            at_least={"accuracy_whole": c.advance_accuracy},
            at_most={"loss": c.advance_loss},
        )

    def build_model(self) -> nn.Module:
        c = self.config
        return models.RTNTM(
            vocabulary=c.vocabulary_size,
            d_model=c.d_model,
            heads=c.heads,
            layers=c.layers,
            slots=c.slots,
            window=c.window,
            read_heads=c.read_heads,
            write_heads=c.write_heads,
            state_layers=c.state_layers,
            dropout=c.dropout,
            eps=c.eps,
        )

    @abstractmethod
    def word(self, token: int) -> str:
        """How a token is written in the pictures."""

    @abstractmethod
    def training_batch(self, longest: int, generator: torch.Generator) -> Batch:
        """Tokens and targets of questions of up to ``longest`` symbols or digits."""

    @abstractmethod
    def longest_batch(self, longest: int, generator: torch.Generator) -> Batch:
        """Tokens and targets of questions of exactly ``longest`` symbols or digits, for evaluation."""

    def batch(self, step: int, generator: torch.Generator) -> Batch:
        assert self.curriculum is not None
        return self.training_batch(self.curriculum.level, generator)

    def evaluation_batches(self) -> Iterator[Batch]:
        return self._batches(self.config.longest)

    def beyond_batches(self) -> dict[str, Iterator[Batch]]:
        return {f"longest_{longest}": self._batches(longest) for longest in self.config.beyond}

    def _batches(self, longest: int) -> Iterator[Batch]:
        for index in range(self.config.n_test_batches):
            yield self.longest_batch(longest, batch_generator(EVALUATION_SEED, index))

    def slots(self, tokens: Tensor) -> int:
        """Memory slots for ``tokens`` (B, T): the trained number, more where the sequence needs more."""
        return max(self.config.slots, self.config.slots_for(tokens.shape[1]))

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        tokens, targets = batch
        output = model(tokens, slots=self.slots(tokens))
        loss = F.cross_entropy(output.logits.transpose(1, 2), targets, ignore_index=IGNORED)
        if self.config.entropy:
            memory = output.state.memory
            weights = torch.cat((memory.read_weights, memory.write_weights), 1)
            loss = loss + self.config.entropy * entropy(weights)
        scored = targets != IGNORED
        right = (output.logits.argmax(-1) == targets) & scored
        return loss, {
            "accuracy": right.sum(1) / scored.sum(1),
            "accuracy_whole": (right == scored).all(1).float(),
        }

    def analyse(self, model: nn.Module, folder: Path) -> list[Path]:
        tokens, targets = self.longest_batch(
            min(self.shown, self.config.longest), batch_generator(EVALUATION_SEED, 0)
        )
        title = f"{self.__doc__}".rstrip(".")
        paths = pictures.draw(model, (tokens, targets), self.slots(tokens), self.word, title, folder)
        longest = self.config.longest
        lengths = sorted({max(1, longest * part // 4) for part in range(1, 5)} | {*self.config.beyond})
        return paths + pictures.draw_lengths(self._scores(model, lengths), longest, self.unit, folder)

    @torch.no_grad()
    def _scores(self, model: nn.Module, lengths: list[int]) -> dict[int, float]:
        """Share of wholly right answers by length."""
        device, scores = next(model.parameters()).device, {}
        for length in lengths:
            batch = self.longest_batch(length, batch_generator(EVALUATION_SEED, 0))
            _, metrics = self.loss(model, tuple(part.to(device) for part in batch))
            scores[length] = metrics["accuracy_whole"].mean().item()
        return scores


class RTNTMCopy(RTNTMTask[CopyConfig]):
    """Repeat a sequence of symbols after its end."""

    name = "rtntm_copy"
    config_class = CopyConfig
    presets = COPY_PRESETS
    reverse = False
    shown, unit = 20, "symbols"

    def training_batch(self, longest: int, generator: torch.Generator) -> Batch:
        length = int(torch.randint(1, longest + 1, (), generator=generator))
        return self._batch(self.config.batch_size, length, generator)

    def longest_batch(self, longest: int, generator: torch.Generator) -> Batch:
        return self._batch(self.config.batch_size_test, longest, generator)

    def word(self, token: int) -> str:
        return {FED: "", DELIMITER: "|"}.get(token, str(token))

    def _batch(self, size: int, length: int, generator: torch.Generator) -> Batch:
        return copy_batch(size, length, self.config.vocabulary, generator, self.reverse)


class RTNTMReverse(RTNTMCopy):
    """Repeat a sequence of symbols backwards after its end."""

    name = "rtntm_reverse"
    reverse = True


class RTNTMAdd(RTNTMTask[AddConfig]):
    """Add two numbers that are given digit by digit, the least significant first."""

    name = "rtntm_add"
    config_class = AddConfig
    presets = ADD_PRESETS
    shown, unit = 10, "digits of both numbers"

    def training_batch(self, longest: int, generator: torch.Generator) -> Batch:
        size = self.config.batch_size if self.config.mixed else 1
        longer = min(self.config.digits, longest + self.config.ahead)
        drawn = [torch.randint(1, most + 1, (size,), generator=generator) for most in (longer, longest)]
        swap = torch.rand(size, generator=generator) < 0.5
        digits = torch.stack((drawn[0].where(swap, drawn[1]), drawn[1].where(swap, drawn[0])))
        return sum_batch(digits.expand(2, self.config.batch_size), generator)

    def longest_batch(self, longest: int, generator: torch.Generator) -> Batch:
        digits = torch.full((self.config.batch_size_test,), longest)
        return sum_batch(torch.stack((digits, digits)), generator)

    def word(self, token: int) -> str:
        return ALPHABET[token]
