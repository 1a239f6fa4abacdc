"""What a user asks of a behaviour, and the search for as many pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import TYPE_CHECKING, Literal, TypeVar

from interp_toolkit.errors import RunError, TokenError
from interp_toolkit.tasks.drafts import TRIES, Draft
from interp_toolkit.tasks.pairs import one_token_words, pair_of
from interp_toolkit.tasks.task import MetricName, Task, TaskPair
from interp_toolkit.tasks.words import SPLITS, Split

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Corruption = Literal["swap", "random"]
"""`"swap"` turns the answer over; `"random"` takes away what it depends on."""

T = TypeVar("T")

_LOOK = 50
"""After so many pairs the most frequent length is settled, whatever n is: a larger n only adds to a smaller one."""

_HOPELESS = 200
"""After so many drafts without a single pair there will be none."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """Which pairs are wanted.

    Attributes:
        name: of the behaviour.
        tokenizer: that the pairs are for.
        n: how many.
        seed: of the random choice.
        split: from which templates and entities.
        corruption: how the corrupt prompts differ.
        same_length: whether all prompts have one number of tokens.
        offered: the corruptions that there are.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase
    n: int
    seed: int
    split: Split
    corruption: Corruption
    same_length: bool
    offered: tuple[Corruption, ...] = ("swap", "random")

    def __post_init__(self) -> None:
        """Check what was asked.

        Raises:
            RunError: for what does not exist.
        """
        from transformers import PreTrainedTokenizerBase

        if not isinstance(self.tokenizer, PreTrainedTokenizerBase):
            raise RunError(
                f"tasks.{self.name} makes prompts for a tokenizer, not for a {type(self.tokenizer).__name__}: "
                f"tasks.{self.name}(tokenizer, n=100)"
            )
        if self.split not in SPLITS:
            raise RunError(f"the splits are {', '.join(map(repr, SPLITS))}; there is no {self.split!r}")
        if self.corruption not in self.offered:
            raise RunError(
                f"{self.name} has the corruption {' and '.join(map(repr, self.offered))}, but not {self.corruption!r}"
            )
        if self.n < 1:
            raise RunError(f"n is how many pairs are wanted, at least 1, not {self.n}")

    @property
    def random(self) -> Random:
        """Random numbers that depend on the behaviour, the split, the corruption and the seed alone."""
        return Random(f"{self.name}/{self.split}/{self.corruption}/{self.seed}")

    def known(self, words: Sequence[T], *, what: str, least: int = 2, key: Callable[[T], str] = str) -> list[T]:
        """The words that can be an answer: one token each.

        Args:
            words: those of the split.
            what: how an error calls them.
            least: how many are needed.
            key: the part of an entry that must be one token.

        Raises:
            TokenError: when too few are.
        """
        single = set(one_token_words(map(key, words), self.tokenizer))
        found = [word for word in words if key(word) in single]
        if len(found) < least:
            shown = ", ".join(repr(" " + key(word)) for word in words[:3])
            raise TokenError(
                f"{self.name} needs at least {least} {what} that are one token each, but with this tokenizer "
                f"{len(found)} of {len(words)} in the {self.split} split are ({shown}, ...): use from_pairs with "
                "prompts and answers of your own"
            )
        return found

    def task(self, drafts: Iterable[Draft | TaskPair], *, metric: MetricName = "logit_diff") -> Task:
        """The task, when enough of the drafts make a pair.

        Raises:
            TokenError: when too few do; the message says how many.
        """
        return Task(
            name=self.name,
            split=self.split,
            seed=self.seed,
            corruption=self.corruption,
            metric=metric,
            tokenizer=str(self.tokenizer.name_or_path),
            pairs=self._pairs(drafts),
        )

    def _pairs(self, drafts: Iterable[Draft | TaskPair]) -> tuple[TaskPair, ...]:
        found: dict[tuple[tuple[int, ...], tuple[int, ...]], TaskPair] = {}
        refused: Counter[str] = Counter()
        lengths: Counter[int] = Counter()
        length: int | None = None
        tried = 0
        for tried, draft in enumerate(islice(drafts, TRIES), start=1):
            try:
                pair = draft if isinstance(draft, TaskPair) else pair_of(draft, self.tokenizer)
            except TokenError as error:
                refused[str(error)] += 1
                if not found and tried >= _HOPELESS:
                    break
                continue
            if (pair.clean_ids, pair.corrupt_ids) in found:
                continue
            found[pair.clean_ids, pair.corrupt_ids] = pair
            lengths[len(pair)] += 1
            if len(found) == _LOOK:
                length = _most(lengths)
            if len(found) >= self.n if not self.same_length else length and lengths[length] >= self.n:
                break
        return self._enough(list(found.values()), refused, length, tried)

    def _enough(
        self, found: list[TaskPair], refused: Counter[str], length: int | None, tried: int
    ) -> tuple[TaskPair, ...]:
        lengths = Counter(map(len, found))
        fits = found
        if self.same_length and found:
            if length is None or lengths[length] < self.n:
                length = _most(lengths)
            fits = [pair for pair in found if len(pair) == length]
        if len(fits) >= self.n:
            return tuple(fits[: self.n])
        every = "all " if tried < TRIES and found else ""
        which, more = "", ""
        if self.same_length and found:
            which = f" of one length ({length} tokens)"
            more = f"; {len(found)} of all lengths, with same_length=False" if len(found) > len(fits) else ""
        why = f". Most others were left out because {refused.most_common(1)[0][0]}" if refused else ""
        raise TokenError(
            f"{self.n} pairs of {self.name} were asked for, but this tokenizer allows {len(fits)}{which} in the "
            f"{self.split} split ({every}{tried} combinations were tried){more}{why}"
        )


def _most(lengths: Counter[int]) -> int:
    return max(lengths, key=lambda length: (lengths[length], -length))


__all__ = ["Corruption", "Request"]
