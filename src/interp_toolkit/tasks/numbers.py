"""Behaviours of number: an end comes after a beginning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from interp_toolkit.errors import TokenError
from interp_toolkit.tasks.drafts import Draft, fill, shuffled
from interp_toolkit.tasks.pairs import plain_ids
from interp_toolkit.tasks.request import Corruption, Request
from interp_toolkit.tasks.task import Task
from interp_toolkit.tasks.words import Split, share, table, words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def greater_than(
    tokenizer: PreTrainedTokenizerBase,
    *,
    n: int = 100,
    seed: int = 0,
    split: Split = "train",
    corruption: Corruption = "swap",
    same_length: bool = True,
) -> Task:
    """A later year (Hanna et al. 2023, arXiv 2305.00586).

    "The war lasted from the year 1732 to the year 17" → a year above 32. Targets are the tokens that begin later years
    alone, foils those that begin earlier years or the same alone: two-digit tokens where the tokenizer has them, else
    digits. A digit with which both begin (the 3 of 1732) is neither. Where a tokenizer takes three digits at once, the
    prompt ends in three: "173". The metric is `prob_diff`: probability of the targets minus that of the foils. Labels of
    positions: `event`, `start`, `end`.

    Args:
        tokenizer: for which pairs are made.
        n: how many pairs.
        seed: of the random choice.
        split: `"train"`, `"validation"` or `"test"`: they share no template, event or year.
        corruption: `"swap"`: the beginning is the first year that the prompt's end allows (1700 as 1701, as in the
            paper), so that years which were wrong are right. `"random"`: another year of that century.
        same_length: whether all prompts have one number of tokens.

    Raises:
        TokenError: when the tokenizer does not allow as many pairs.

    Example:
        >>> from interp_toolkit import load_model
        >>> pair = greater_than(load_model("demo")[1], n=1).pairs[0]
        >>> int(pair.entities["start"][2]) < min(map(int, pair.target_strings))
        True
    """
    ask = Request(
        name="greater_than",
        tokenizer=tokenizer,
        n=n,
        seed=seed,
        split=split,
        corruption=corruption,
        same_length=same_length,
    )
    digits = _digits_given(tokenizer)
    return ask.task(_years(ask, digits), metric="prob_diff")


def _digits_given(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many digits of the last year stand in the prompt: as many as its first token has, but two at least."""
    for digits in (2, 3):
        before = plain_ids("the year 1745"[: 9 + digits], tokenizer)
        if plain_ids("the year 1745", tokenizer)[: len(before)] == before:
            return digits
    raise TokenError(
        "greater_than needs a tokenizer that cuts the year 1745 behind 17 or 174, but this one gives "
        f"{tokenizer.convert_ids_to_tokens(plain_ids('1745', tokenizer))}"
    )


def _years(ask: Request, digits: int) -> Iterator[Draft]:
    rng, listed = ask.random, table("greater_than")
    events = share(words(listed["words"]["events"]), ask.split)
    starts = [int(century) * 100 + year for century in listed["centuries"][ask.split] for year in range(2, 99)]
    for template, event, start in shuffled(rng, listed["templates"][ask.split], events, starts):
        given = str(start)[:digits]
        first = int(given.ljust(4, "0"))
        other = first + (digits == 2) if ask.corruption == "swap" else rng.choice(_others(start, first))
        clean = {"event": event, "start": str(start), "end_digits": given}
        targets, foils = _later_and_not(fill(template, clean).text, start, first, ask.tokenizer)
        if targets and foils and other != start:
            yield Draft(
                template=template,
                clean=clean,
                corrupt={**clean, "start": str(other)},
                targets=targets,
                foils=foils,
            )


def _others(start: int, first: int) -> list[int]:
    """Years of the same century with the same number of digits given."""
    last = first + (99 if first % 100 == 0 else 9)
    return [year for year in range(first + 1, last + 1) if year != start]


def _later_and_not(
    prompt: str, start: int, first: int, tokenizer: PreTrainedTokenizerBase
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """First tokens of the years after `start` alone, and of the others alone."""
    given = len(str(first).rstrip("0"))
    del given
    raise NotImplementedError


__all__ = ["greater_than"]
