"""Pairs as words, before a tokenizer has seen them: what is filled in where, and in which order pairs are tried."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from string import Formatter
from typing import Any

TRIES = 20_000
"""How many drafts are looked at before one gives up."""


@dataclass(frozen=True, kw_only=True)
class Filled:
    """A template with its slots filled in.

    Attributes:
        text: the prompt.
        spans: for each slot the characters that it covers.
    """

    text: str
    spans: Mapping[str, tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A pair before it is tokens.

    Attributes:
        template: text with slots, such as `"The capital of {country} is"`.
        clean: what stands in each slot of the clean prompt.
        corrupt: what stands there in the corrupt one.
        targets: how the clean prompt goes on, leading space included, or token ids.
        foils: what the targets are compared with.
        behind: further labels of positions: the token behind that of a slot.
    """

    template: str
    clean: Mapping[str, str]
    corrupt: Mapping[str, str]
    targets: tuple[str | int, ...]
    foils: tuple[str | int, ...]
    behind: Mapping[str, str] = field(default_factory=dict)


def fill(template: str, words: Mapping[str, str]) -> Filled:
    """Put words into the slots of a template.

    Example:
        >>> fill("The capital of {country} is", {"country": "France"})
        Filled(text='The capital of France is', spans={'country': (15, 21)})
    """
    text, spans = "", {}
    for plain, slot, _, _ in Formatter().parse(template):
        text += plain
        if slot is not None:
            spans[slot] = (len(text), len(text) + len(words[slot]))
            text += words[slot]
    return Filled(text=text, spans=spans)


def shuffled(rng: Random, *lists: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """Combinations of one item from each list, in random order, none twice; at most `TRIES` of them.

    Example:
        >>> len(list(shuffled(Random(0), "ab", "cde")))
        6
    """
    size = math.prod(map(len, lists))
    for number in rng.sample(range(size), min(size, TRIES)):
        picked, rest = [], number
        for items in lists:
            rest, place = divmod(rest, len(items))
            picked.append(items[place])
        yield tuple(picked)


__all__ = ["TRIES", "Draft", "Filled", "fill", "shuffled"]
