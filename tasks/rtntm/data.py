"""Token sequences to copy, to reverse and to add, and what the model should answer.

Every generator returns tokens (B, T) and targets (B, T), both int64. The model answers where it is fed
``FED`` after the question; where no answer is expected the target is ``IGNORED``.
"""

from __future__ import annotations

import torch
from torch import Tensor

IGNORED = -100
FED = 0
DELIMITER = 1
FIRST_SYMBOL = 2
ALPHABET = "0123456789+= _"
PLUS, EQUALS, SPACE, PADDING = (ALPHABET.index(character) for character in "+= _")


def copy_batch(
    batch: int, length: int, vocabulary: int, generator: torch.Generator, reverse: bool = False
) -> tuple[Tensor, Tensor]:
    """Random symbols, a delimiter, then ``length`` blanks, at which the symbols are the targets; T = 2 length + 1.

    Args:
        batch: B.
        length: number of symbols.
        vocabulary: V; the symbols are 2 to V - 1, 0 is the blank, 1 the delimiter.
        generator: everything random comes from it.
        reverse: the targets are the symbols from last to first.
    """
    symbols = torch.randint(FIRST_SYMBOL, vocabulary, (batch, length), generator=generator)
    blanks = torch.full_like(symbols, FED)
    unscored = symbols.new_full((batch, length + 1), IGNORED)
    tokens = torch.cat((symbols, symbols.new_full((batch, 1), DELIMITER), blanks), 1)
    return tokens, torch.cat((unscored, symbols.flip(1) if reverse else symbols), 1)


def sum_batch(lengths: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Additions as text, least significant digit first: ``54+8=`` asks for 45 + 8 and expects ``35 ``.

    The answer ends with a space. Shorter samples are filled with ``_`` at the end, which is not scored.

    Args:
        lengths: int64 (2, B), digits of both numbers, at least 1. No number of several digits starts with 0.
        generator: everything random comes from it.
    """
    a, b = (_digits(length, int(lengths.max()), generator) for length in lengths)
    answer, length = _add(a, b)
    first, second, length = *lengths.unsqueeze(-1), length.unsqueeze(-1)
    at = torch.arange(int((first + second + length).max()) + 3)[None].expand(len(a), -1)
    tokens = torch.full_like(at, PADDING)
    start = first + second + 2
    for begin, text, end in ((0, a, first), (first + 1, b, first + second + 1)):
        tokens = torch.where((begin <= at) & (at < end), _shifted(text, at - begin), tokens)
    tokens = tokens.where(at != first, PLUS).where(at != start - 1, EQUALS)
    answering = (start <= at) & (at <= start + length)
    targets = _shifted(answer, at - start).where(at < start + length, SPACE)
    return tokens.where(~answering, FED), targets.where(answering, IGNORED)


def text(tokens: Tensor) -> str:
    """The characters of addition tokens (T,); what is not scored reads as ``_``."""
    return "".join(ALPHABET[t] if t != IGNORED else ALPHABET[PADDING] for t in tokens.tolist())


def _digits(lengths: Tensor, widest: int, generator: torch.Generator) -> Tensor:
    """Uniform numbers of ``lengths`` digits, (B, widest) from the least significant on, zeros above."""
    digits = torch.randint(10, (len(lengths), widest), generator=generator)
    leading = torch.randint(1, 10, (len(lengths), 1), generator=generator)
    at, last = torch.arange(widest), lengths[:, None] - 1
    digits = digits.where((at != last) | (last == 0), leading)
    return digits.where(at <= last, 0)


def _add(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Digits (B, n + 1) of the sums of numbers given by digits (B, n), and how many count."""
    carry, digits = torch.zeros_like(a[:, 0]), []
    for column in (a + b).unbind(1):
        total = column + carry
        digits.append(total % 10)
        carry = total // 10
    answer = torch.stack([*digits, carry], 1)
    places = torch.arange(1, answer.shape[1] + 1)
    return answer, (places * (answer > 0)).amax(1).clamp(min=1)


def _shifted(values: Tensor, index: Tensor) -> Tensor:
    """``values`` (B, n) read at ``index`` (B, T), at its border where the index lies outside."""
    return values.gather(1, index.clamp(0, values.shape[1] - 1))
