"""What a QAMNIST model sees at each tick: digits first, then the question, then nothing while it answers.

Shape letters: B batch, d ``d_input``, L tokens of a digit's feature grid.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ctm_fast.models.features import AttendedFeatures
from ctm_fast.models.tracking import TickRecord
from ctm_fast.nn.backbones import IndexEmbeddings, MNISTBackbone, OperatorEmbeddings
from ctm_fast.nn.positional import no_positional_embedding

MAX_DIGITS = 50
OPERATORS = 2  # token -1 is "+", token -2 is "-"


class TickInput(NamedTuple):
    """One tick's input: tokens (B, L, d) of a "digit", or a vector (B, d) of a "question" or an "answer"."""

    kind: str
    value: Tensor


class QAMNISTInputs(AttendedFeatures):
    """The three backbones of QAMNIST and the schedule of its inputs."""

    iterations_per_question_part: int
    iterations_for_answering: int

    def build_features(self) -> None:
        """Make the digit, index and operator backbones; there is no positional embedding."""
        self.set_backbone()
        self.positional_embedding = no_positional_embedding

    def set_backbone(self) -> None:
        """Make ``backbone_digit``, ``index_backbone`` and ``operator_backbone``."""
        self.backbone_digit = MNISTBackbone(self.d_input)
        self.index_backbone = IndexEmbeddings(MAX_DIGITS, self.d_input)
        self.operator_backbone = OperatorEmbeddings(OPERATORS, self.d_input)

    def compute_features(self, x: Tensor) -> Tensor:
        """Digit images (B, 1, H, W) -> the tokens (B, L, d) that are attended to."""
        features = self.backbone_digit(x)
        self.kv_features = features.detach()
        kv: Tensor = self._part("kv_proj")(features.flatten(2).transpose(1, 2))
        return kv

    def embed_question(self, tokens: Tensor, step: int) -> Tensor:
        """Tokens (B,) of question tick ``step``, counted from 0 -> (B, d).

        Digit positions and operators take turns of ``iterations_per_question_part`` ticks, positions first.
        """
        part = step // self.iterations_per_question_part
        embedded: Tensor = (self.operator_backbone if part % 2 else self.index_backbone)(tokens)
        return embedded

    def total_ticks(self, x: Tensor, z: Tensor) -> int:
        """Ticks of a forward on digits ``x`` (B, ticks, 1, H, W) and question ``z`` (B, ticks)."""
        if x.dim() != 5 or z.dim() != 2 or len(x) != len(z):
            raise ValueError(
                "qamnist: digits must be (B, ticks, 1, H, W) and the question (B, ticks), "
                f"got {tuple(x.shape)} and {tuple(z.shape)}"
            )
        return x.shape[1] + z.shape[1] + self.iterations_for_answering

    def tick_input(self, tick: int, x: Tensor, z: Tensor, previous: TickInput | None) -> TickInput:
        """The input of ``tick`` after that of the tick before.

        A digit's tokens are kept while its image stays the same, so that BatchNorm sees each image once.
        """
        digit_ticks, question_ticks = x.shape[1], z.shape[1]
        if tick < digit_ticks:
            if previous is not None and torch.equal(x[:, tick], x[:, tick - 1]):
                return previous
            return TickInput("digit", self.compute_features(x[:, tick]))
        step = tick - digit_ticks
        if step < question_ticks:
            return TickInput("question", self.embed_question(z[:, step], step))
        return TickInput("answer", x.new_zeros(len(x), self.d_input))

    def see(self, seen: TickInput, query: Tensor, record: TickRecord) -> Tensor:
        """What reaches the recurrent part, (B, d): attention from ``query`` (B, Q), or the vector itself."""
        if seen.kind == "digit":
            attended, weights = self.attend(query, seen.value)
            record.add(attention=weights)
            return attended
        if seen.kind == "question":
            record.add(embeddings=seen.value)
        return seen.value
