"""Positions that survive padding, batching and generation.

A position counts **real tokens** of a row: 0 is the first token that is not padding, -1 the last token of the prompt.
Every kind of `Positions` answers one question: given the number of each token in its row, is it selected? Left padding,
batches and a key/value cache only change which numbers are asked about, so they never shift anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp_toolkit.errors import PositionError

if TYPE_CHECKING:
    from interp_toolkit.model.tokens import Tokens


class Positions:
    """Base of all kinds of positions."""

    def select(self, index: Int[Tensor, "batch pos"], length: Int[Tensor, " batch"]) -> Bool[Tensor, "batch pos"]:
        """Say which tokens are selected.

        Args:
            index: number of each token among the real tokens of its row; -1 for padding.
            length: number of real tokens in each row's prompt.
        """
        raise NotImplementedError

    def columns(self, index: Int[Tensor, "batch pos"], length: Int[Tensor, " batch"]) -> list[list[int]]:
        """The selected columns of each row, in the order in which positions were given."""
        return [[int(c) for c in row.nonzero()[:, 0]] for row in self.select(index, length)]

    def bind(self, tokens: Tokens, *, open_ended: bool = False) -> Positions:
        """Fix everything that depends on the text of the prompt.

        Args:
            tokens: the prompts.
            open_ended: whether more tokens may follow, so that positions behind the prompt are allowed.

        Raises:
            PositionError: when the prompt has no such position.
        """
        del tokens, open_ended
        return self


@dataclass(frozen=True)
class Everywhere(Positions):
    """All tokens, of the prompt and of what is generated, without padding."""

    def select(self, index: Int[Tensor, "batch pos"], length: Int[Tensor, " batch"]) -> Bool[Tensor, "batch pos"]:
        """See `Positions.select`."""
        del length
        return index >= 0


@dataclass(frozen=True)
class Prompt(Positions):
    """The tokens of the prompt."""

    def select(self, index: Int[Tensor, "batch pos"], length: Int[Tensor, " batch"]) -> Bool[Tensor, "batch pos"]:
        """See `Positions.select`."""
        return (index >= 0) & (index < length[:, None])


@dataclass(frozen=True)
class Generated(Positions):
    """The tokens that come after the prompt."""

    def select(self, index: Int[Tensor, "batch pos"], length: Int[Tensor, " batch"]) -> Bool[Tensor, "batch pos"]:
        """See `Positions.select`."""
        return index >= length[:, None]


@dataclass(frozen=True)
class From(Positions):
    """Every token from one on, of the prompt and of what is generated.

    `From(1)` leaves the first token alone, whose activations are of another kind than all others in most models.
    `slice(1, None)` is the same within a prompt, and ends with it.

    Args:
        first: position of the first one, counted from the beginning.

    Raises:
        PositionError: for a negative position, and for one behind a prompt that nothing follows.
    """

    first: int

    def __post_init__(self) -> None:
        if self.first < 0:
            raise PositionError(f"From({self.first}) must count from the beginning: give 0 or more")

    def select(self, index: Int[Tensor, "batch pos"], length: Int[Tensor, " batch"]) -> Bool[Tensor, "batch pos"]:
        """See `Positions.select`."""
        del length
        return index >= self.first

    def bind(self, tokens: Tokens, *, open_ended: bool = False) -> Positions:
        """See `Positions.bind`."""
        for row, length in enumerate(tokens.lengths.tolist()):
            _check_range((self.first,), length, row, tokens, open_ended)
        return self


@dataclass(frozen=True)
class At(Positions):
    """Given positions of every row; negative ones count from the end of the prompt.

    Args:
        indices: positions among the real tokens.
    """

    indices: tuple[int, ...]

    def select(self, index: Int[Tensor, "batch pos"], length: Int[Tensor, " batch"]) -> Bool[Tensor, "batch pos"]:
        """See `Positions.select`."""
        wanted = torch.tensor(self.indices, device=index.device)
        absolute = torch.where(wanted[None, :] < 0, wanted[None, :] + length[:, None], wanted[None, :])
        return ((index[:, :, None] == absolute[:, None, :]) & (absolute[:, None, :] >= 0)).any(dim=-1)

    def columns(self, index: Int[Tensor, "batch pos"], length: Int[Tensor, " batch"]) -> list[list[int]]:
        """See `Positions.columns`."""
        return PerRow((self.indices,) * len(index)).columns(index, length)

    def bind(self, tokens: Tokens, *, open_ended: bool = False) -> Positions:
        """See `Positions.bind`."""
        for row, length in enumerate(tokens.lengths.tolist()):
            _check_range(self.indices, length, row, tokens, open_ended)
        return self


@dataclass(frozen=True)
class Range(Positions):
    """A slice of the prompt's tokens, as in Python.

    Args:
        start: first position, from the end when negative.
        stop: the position behind the last.
        step: distance.
    """

    start: int | None = None
    stop: int | None = None
    step: int | None = None

    def select(self, index: Int[Tensor, "batch pos"], length: Int[Tensor, " batch"]) -> Bool[Tensor, "batch pos"]:
        """See `Positions.select`."""
        picked = slice(self.start, self.stop, self.step)
        rows = [tuple(range(*picked.indices(int(n)))) for n in length]
        return PerRow(tuple(rows)).select(index, length)


@dataclass(frozen=True)
class PerRow(Positions):
    """Other positions in every row of the batch.

    Args:
        rows: for each row its positions; negative ones count from the end of the prompt.
    """

    rows: tuple[tuple[int, ...], ...]

    def select(self, index: Int[Tensor, "batch pos"], length: Int[Tensor, " batch"]) -> Bool[Tensor, "batch pos"]:
        """See `Positions.select`."""
        batch = index.shape[0]
        if not self.rows or batch % len(self.rows):
            raise PositionError(f"positions for {len(self.rows)} rows were given, but the batch has {batch} rows")
        chosen = torch.zeros_like(index, dtype=torch.bool)
        copies = batch // len(self.rows)  # beams of one prompt lie side by side
        for row, indices in enumerate(self.rows):
            if indices:
                rows = slice(row * copies, (row + 1) * copies)
                chosen[rows] = At(indices).select(index[rows], length[rows])
        return chosen

    def columns(self, index: Int[Tensor, "batch pos"], length: Int[Tensor, " batch"]) -> list[list[int]]:
        """See `Positions.columns`."""
        copies = len(index) // len(self.rows)
        found = []
        for number, (row, n) in enumerate(zip(index.tolist(), length.tolist(), strict=True)):
            place = {position: column for column, position in enumerate(row) if position >= 0}
            wanted = [i + n if i < 0 else i for i in self.rows[number // copies]]
            found.append([place[i] for i in dict.fromkeys(wanted) if i in place])
        return found

    def bind(self, tokens: Tokens, *, open_ended: bool = False) -> Positions:
        """See `Positions.bind`."""
        lengths = tokens.lengths.tolist()
        if len(self.rows) != len(lengths):
            raise PositionError(
                f"positions for {len(self.rows)} rows were given, but the batch has {len(lengths)} rows"
            )
        for row, (indices, length) in enumerate(zip(self.rows, lengths, strict=True)):
            _check_range(indices, length, row, tokens, open_ended)
        return self


@dataclass(frozen=True)
class Span(Positions):
    """The tokens that carry a substring of the prompt.

    Args:
        text: the substring, found in every prompt of the batch.
        occurrence: which one, from 0, when there are several; negative counts from the last.
        token: keep just this one of its tokens, for instance -1 for the last token of a subject.
    """

    text: str
    occurrence: int = 0
    token: int | None = None

    def select(self, index: Int[Tensor, "batch pos"], length: Int[Tensor, " batch"]) -> Bool[Tensor, "batch pos"]:
        """See `Positions.select`."""
        raise PositionError(f"the tokens of {self.text!r} are not known: give the prompt as text, not as token ids")

    def bind(self, tokens: Tokens, *, open_ended: bool = False) -> Positions:
        """See `Positions.bind`."""
        del open_ended
        rows = []
        for row in range(len(tokens)):
            found = tokens.find(self.text, row=row, occurrence=self.occurrence)
            rows.append(found if self.token is None else (found[self.token],))
        return PerRow(tuple(rows))


PositionsLike = Positions | int | slice | str | Sequence[int] | Sequence[Sequence[int]] | None
"""What can be given for positions: see `positions`."""

_KEYWORDS: dict[str, Positions] = {
    "all": Everywhere(),
    "last": At((-1,)),
    "prompt": Prompt(),
    "generated": Generated(),
}


def positions(spec: PositionsLike) -> Positions:
    """Make `Positions` of what a user gave.

    Args:
        spec: `None` or `"all"`, `"last"`, `"prompt"`, `"generated"`, an integer, a slice, a list of integers, a list of
            such lists (one a row), or `Positions`. For the tokens of a substring give `Span("Eiffel Tower")`, for all
            from one on, generated ones too, `From(1)`.

    Raises:
        PositionError: for anything else.

    Example:
        >>> positions(-1)
        At(indices=(-1,))
        >>> positions("prompt")
        Prompt()
    """
    match spec:
        case None:
            return Everywhere()
        case Positions():
            return spec
        case str():
            if spec not in _KEYWORDS:
                raise PositionError(
                    f"unknown positions {spec!r}: use {', '.join(map(repr, _KEYWORDS))}, numbers, a slice, "
                    f"or Span({spec!r}) for the tokens of that text"
                )
            return _KEYWORDS[spec]
        case bool():
            raise PositionError(f"positions must be numbers, not {spec!r}")
        case int():
            return At((spec,))
        case slice():
            return Range(spec.start, spec.stop, spec.step)
    return _from_sequence(spec)


def _from_sequence(spec: object) -> Positions:
    if not isinstance(spec, Sequence) or not spec:
        raise PositionError(f"positions must be numbers, a slice or a non-empty list of numbers, not {spec!r}")
    if all(isinstance(item, int) and not isinstance(item, bool) for item in spec):
        return At(tuple(spec))
    if all(isinstance(item, Sequence) and not isinstance(item, str) for item in spec):
        return PerRow(tuple(tuple(int(i) for i in item) for item in spec))
    raise PositionError(f"a list of positions holds numbers, or one list of numbers a row, not {spec!r}")


def _check_range(indices: Sequence[int], length: int, row: int, tokens: Tokens, open_ended: bool) -> None:
    for index in indices:
        if index < -length or (index >= length and not open_ended):
            raise PositionError(
                f"position {index} is outside of prompt {row}, which has {length} tokens "
                f"(0 to {length - 1}, or -{length} to -1): {tokens.strings(row)}"
            )


__all__ = [
    "At",
    "Everywhere",
    "From",
    "Generated",
    "PerRow",
    "Positions",
    "PositionsLike",
    "Prompt",
    "Range",
    "Span",
    "positions",
]
