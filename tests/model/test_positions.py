"""Positions count real tokens: padding, batches and the cache never shift them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from interp_toolkit.errors import PositionError
from interp_toolkit.model import From, Span, Tokens, encode, positions

ROWS = [[5, 6, 7], [5, 6, 7, 8, 9]]
LENGTHS = torch.tensor([3, 5])


def numbers(side: str, generated: int = 0) -> Tensor:
    """The number of each token in its row, with some tokens generated behind the prompts."""
    mask = encode(ROWS, padding_side=side).mask.bool()
    mask = torch.cat([mask, torch.ones(2, generated, dtype=torch.bool)], dim=1)
    return torch.where(mask, mask.cumsum(-1) - 1, -1)


CASES: list[tuple[Any, list[list[int]]]] = [
    (None, [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6]]),
    ("all", [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6]]),
    ("prompt", [[0, 1, 2], [0, 1, 2, 3, 4]]),
    ("generated", [[3, 4], [5, 6]]),
    ("last", [[2], [4]]),
    (-2, [[1], [3]]),
    (-4, [[], [1]]),
    (0, [[0], [0]]),
    (4, [[4], [4]]),
    ([0, -1], [[0, 2], [0, 4]]),
    (slice(1, None), [[1, 2], [1, 2, 3, 4]]),
    (slice(None, -1), [[0, 1], [0, 1, 2, 3]]),
    (slice(None, None, -2), [[0, 2], [0, 2, 4]]),
    (From(1), [[1, 2, 3, 4], [1, 2, 3, 4, 5, 6]]),
    (From(4), [[4], [4, 5, 6]]),
    ([[0], [-1, 1]], [[0], [1, 4]]),
    ([[], [2]], [[], [2]]),
]


@pytest.mark.parametrize(("spec", "expected"), CASES, ids=[str(spec) for spec, _ in CASES])
@pytest.mark.parametrize("side", ["left", "right"])
def test_what_is_selected_does_not_depend_on_padding_or_on_the_window(
    side: str, spec: Any, expected: list[list[int]]
) -> None:
    index = numbers(side, generated=2)
    whole = positions(spec).select(index, LENGTHS)
    assert [index[row][whole[row]].tolist() for row in (0, 1)] == expected
    by_step = [positions(spec).select(index[:, n : n + 1], LENGTHS) for n in range(index.shape[1])]
    assert torch.equal(torch.cat(by_step, dim=1), whole)


def test_beams_of_a_prompt_share_its_positions() -> None:
    index = torch.arange(4).expand(4, 4)
    chosen = positions([[0], [1, 2]]).select(index, torch.full((4,), 4))
    assert [row.nonzero().flatten().tolist() for row in chosen] == [[0], [0], [1, 2], [1, 2]]
    with pytest.raises(PositionError, match="positions for 3 rows were given, but the batch has 4 rows"):
        positions([[0], [0], [0]]).select(index, torch.full((4,), 4))


def text_tokens() -> Tokens:
    return Tokens(
        ids=torch.tensor([[0, 10, 11, 12], [13, 10, 11, 14]]),
        mask=torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]),
        texts=("the tower the", "a tower of it"),
        offsets=(((0, 3), (3, 9), (9, 13)), ((0, 1), (1, 7), (7, 10), (10, 13))),
    )


def test_a_span_is_found_in_every_row() -> None:
    bound = Span("tower").bind(text_tokens())
    assert bound.rows == ((1,), (1,))
    assert Span("tower o", token=-1).bind(
        text_tokens().__class__(**{**vars(text_tokens()), "texts": ("a tower of", "a tower of it")})
    ).rows[1] == (2,)
    assert text_tokens().find("the", occurrence=1) == (2,)
    assert text_tokens().find("the", occurrence=-1) == (2,)
    assert text_tokens().find("ower th") == (1, 2)


@pytest.mark.parametrize(
    ("span", "words"),
    [
        (Span("castle"), "'castle' occurs 0 times in 'the tower the', but occurrence 0 was asked"),
        (Span("tower", occurrence=1), "occurs 1 times"),
        (Span(""), "occurs 0 times"),
    ],
)
def test_a_span_that_is_not_there_is_refused(span: Span, words: str) -> None:
    with pytest.raises(PositionError, match=words):
        span.bind(text_tokens())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            "lsat",
            r"unknown positions 'lsat': use 'all', 'last', 'prompt', 'generated', numbers, a slice, or Span\('lsat'\)",
        ),
        (True, "positions must be numbers, not True"),
        ([], "a non-empty list of numbers"),
        (1.5, "not 1.5"),
        ([0, "a"], "a list of positions holds numbers, or one list of numbers a row"),
        ([True], "a list of positions holds numbers"),
        ([0, [1]], "a list of positions holds numbers"),
        ({1}, "not {1}"),
    ],
)
def test_what_are_no_positions_is_refused(spec: Any, words: str) -> None:
    with pytest.raises(PositionError, match=words):
        positions(spec)


@pytest.mark.parametrize("spec", [3, -4, [0, 3], [[0], [5]], [[3], [0]], From(3)])
def test_positions_outside_of_a_prompt_are_refused_with_its_tokens(spec: Any) -> None:
    with pytest.raises(
        PositionError, match=r"is outside of prompt \d, which has \d tokens \(0 to \d, or -\d to -1\): \['5', '6', '7'"
    ):
        positions(spec).bind(encode(ROWS))


def test_tokens_from_one_on_count_from_the_beginning() -> None:
    with pytest.raises(PositionError, match=r"From\(-1\) must count from the beginning: give 0 or more"):
        From(-1)
