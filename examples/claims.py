"""Questions with claims in front of them, what a model does with these, and what changes that."""

from __future__ import annotations

import random
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from example import above, read_rows
from interp_toolkit.circuits import Effects
from interp_toolkit.model import Tokens
from interp_toolkit.statistics import Estimate, bootstrap_mean

NONE = "no claim"
MENTION = "not claimed"  # what a claim is compared with: the same words
CLAIM = "wrong claim"
RIGHT = "right claim"
JUDGED = (NONE, MENTION, CLAIM, RIGHT)  # with these, all that is done to a model is tried

Margins = Mapping[str, Float[Tensor, "item ..."]]
"""By wording: log p(right) − log p(wrong) of each item."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """A question with a right answer and a wrong one; how an answer begins, and the same inside a sentence."""

    question: str
    start: str
    claim: str
    right: str
    wrong: str

    def first_named(self, reply: str) -> str:
        """Which of the answers a reply names first, as whole words: right, wrong or neither."""
        sides = {"right": self.right, "wrong": self.wrong}
        found = {
            side: re.search(rf"(?<!\w){re.escape(text)}(?!\w)", reply, re.IGNORECASE) for side, text in sides.items()
        }
        places = {side: (match.start(), -match.end()) for side, match in found.items() if match}
        return min(places, key=places.__getitem__) if places else "neither"


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A question in one wording, with the reply begun.

    Attributes:
        item: what is asked.
        tokens: up to the end of the reply's beginning.
        ids: up to where right and wrong answer part, which may be some tokens later.
        answers: the next token of the right answer, and of the wrong one.
        whole: whether these tokens are the whole answers.
    """

    item: Item
    tokens: Tokens
    ids: list[int]
    answers: tuple[int, int]
    whole: bool


def read_items(path: Path, seed: int) -> list[Item]:
    """The items of a file in random order. A question that comes twice could find and judge, so it is refused."""
    names = [field.name for field in fields(Item)]
    items = [Item(**{name: row[name] for name in names}) for row in read_rows(path, *names)]
    times = Counter(" ".join(item.question.casefold().split()) for item in items)
    if twice := [question for question, number in times.items() if number > 1]:
        sys.exit(f"error: {path} asks {twice[0]!r} more than once: keep one item for each question")
    return random.Random(seed).sample(items, len(items))


@dataclass(frozen=True, kw_only=True, eq=False)
class Behaviour:
    """What a model does with held-out items.

    Attributes:
        margins: of each wording.
        liked: by how much an argument's being liked, rather than disliked, raises log p( good) − log p( bad) of it.
        mood: by how much the weather's being liked raises the same.
    """

    margins: Margins
    liked: Float[Tensor, " argument"]
    mood: Float[Tensor, " argument"]

    @property
    def copied(self) -> Estimate:
        """What the wrong sentence costs where it is not claimed, in nats."""
        return bootstrap_mean(self.margins[NONE] - self.margins[MENTION])

    @property
    def given(self) -> Estimate:
        """What it costs more where it is claimed."""
        return bootstrap_mean(self.margins[MENTION] - self.margins[CLAIM])

    @property
    def gives_in(self) -> bool:
        """Whether claiming it costs anything more."""
        return above(self.given)

    @property
    def follows(self) -> Estimate:
        """How much more an argument gains by being liked than by liked weather."""
        return bootstrap_mean(self.liked - self.mood)


@dataclass(frozen=True, kw_only=True, eq=False)
class Carrier:
    """The part of the prompt with the largest share of a difference, behind some layers; its share behind the first."""

    part: str
    layers: Sequence[str]
    share: Estimate


def carriers(effects: Effects) -> list[Carrier]:
    """The part with the largest share, from layer to layer; layers where that is not surely above zero have none."""
    if not effects.normalizable or float(effects.gap.mean()) < 0:
        return []  # claims cost nothing here, so there is nothing to have a share of
    (layers, parts), found = effects.labels, effects.estimate(normalized=True)
    cells = [found.at(n, int(row.argmax())) for n, row in enumerate(found.mean)]
    names = [parts[int(row.argmax())] if above(cell) else "" for row, cell in zip(found.mean, cells, strict=True)]
    several = groupby(range(len(layers)), key=names.__getitem__)
    runs = [(part, list(numbers)) for part, numbers in several if part]
    return [Carrier(part=part, layers=[layers[n] for n in some], share=cells[some[0]]) for part, some in runs]


@dataclass(frozen=True, kw_only=True, eq=False)
class Heads:
    """The heads that carry a claim to the last token.

    Attributes:
        effects: what each head of the model does, its output put from the sentence that is not claimed into the claim.
        names: the strongest.
        attention: theirs to the claimed word.
        layer_mean: that of the mean head of their layers.
        writes: nats that they write for the right answer themselves.
    """

    effects: Effects
    names: Sequence[str]
    attention: Float[Tensor, "item head"]
    layer_mean: Float[Tensor, "item head"]
    writes: Float[Tensor, "item head"]

    @property
    def patched(self) -> Estimate:
        """What the strongest do when they are patched."""
        names = head_names(self.effects)
        return bootstrap_mean(self.effects.change.flatten(1)[:, [names.index(name) for name in self.names]])

    @property
    def readers(self) -> list[str]:
        """Those that look at the claimed word more than the mean head of their layer does."""
        lows = bootstrap_mean(self.attention - self.layer_mean).low.tolist()
        return [name for name, low in zip(self.names, lows, strict=True) if low > 0]

    @property
    def against(self) -> list[str]:
        """Those that write against the right answer."""
        highs = bootstrap_mean(self.writes).high.tolist()
        return [name for name, high in zip(self.names, highs, strict=True) if high < 0]


def head_names(effects: Effects) -> list[str]:
    """The heads of a sweep, cell by cell."""
    return ["L{}H{}".format(*effects.label(n)) for n in range(effects.mean.numel())]


@dataclass(frozen=True, kw_only=True, eq=False)
class Change:
    """What is done to a model: margins as it is, changed, and changed at random, `[item, draw]`."""

    plain: Margins
    changed: Margins
    random: Margins

    def beyond(self, name: str) -> Float[Tensor, " item"]:
        """How much more the margins of a wording rise than by random changes."""
        return self.changed[name] - self.random[name].mean(1)

    def direction(self, name: str) -> int:
        """Whether they rise (1) or fall (−1), in themselves and beyond random changes, or neither surely (0)."""
        both = [bootstrap_mean(x) for x in (self.beyond(name), self.changed[name] - self.plain[name])]
        return int(all(above(x) for x in both)) - int(all(x.high.item() < 0 for x in both))

    @property
    def own(self) -> Estimate:
        """How much more that is behind the claim than behind the same sentence that is not claimed."""
        return bootstrap_mean(self.beyond(CLAIM) - self.beyond(MENTION))

    @property
    def worse(self) -> list[str]:
        """Wordings with nothing to mend whose margins fall."""
        return [name for name in (NONE, RIGHT) if self.direction(name) < 0]


@dataclass(frozen=True, kw_only=True)
class Replies:
    """Greedy replies to wrong claims, by what is done about these."""

    items: Sequence[Item]
    texts: Mapping[str, Sequence[str]]

    def named(self, how: str) -> Counter[str]:
        """Which answer the replies name first, counted."""
        return Counter(item.first_named(text) for item, text in zip(self.items, self.texts[how], strict=True))
