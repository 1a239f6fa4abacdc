"""Behaviours of number: an end comes after a beginning."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from interp_toolkit.errors import TokenError
from interp_toolkit.tasks.drafts import Draft, fill, shuffled
from interp_toolkit.tasks.pairs import continuations, plain_ids
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
    prompt ends in three: "173". The metric is `prob_diff`: probability of the targets minus that of the foils. Labels
    of positions: `event`, `start`, `prefix` for the digits given of the last year, `end`.

    Args:
        tokenizer: for which pairs are made.
        n: how many pairs.
        seed: of the random choice.
        split: `"train"`, `"validation"` or `"test"`: they share no template, event or year.
        corruption: `"swap"`, the only one: the beginning is the first year that the prompt's end allows (1701 rather
            than 1700, as in the paper), so that years which were wrong are right.
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
        offered=("swap",),
    )
    digits = _digits_given(tokenizer)
    return ask.task(_years(ask, digits), metric="prob_diff")


def _digits_given(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many digits of the last year stand in the prompt: two, or three where the tokenizer takes three at once."""
    whole = plain_ids("the year 1745", tokenizer)
    for digits in (2, 3):
        before = plain_ids("the year " + "1745"[:digits], tokenizer)
        if len(before) < len(whole) and whole[: len(before)] == before:
            return digits
    raise TokenError(
        "greater_than needs a tokenizer that cuts a year such as 1745 behind 17 or behind 174, but with this one it is "
        f"{tokenizer.convert_ids_to_tokens(whole[len(plain_ids('the year', tokenizer)) :])}"
    )


def _years(ask: Request, digits: int) -> Iterator[Draft]:
    listed = table("greater_than")
    events = share(words(listed["words"]["events"]), ask.split)
    starts = [int(century) * 100 + year for century in listed["centuries"][ask.split] for year in range(2, 99)]
    begins: dict[tuple[str, str], list[int | None]] = {}
    for template, event, start in shuffled(ask.random, listed["templates"][ask.split], events, starts):
        prefix, number = str(start)[:digits], int(str(start)[digits:])
        clean = {"event": event, "start": str(start), "prefix": prefix}
        prompt = fill(template, clean).text
        if (template, prefix) not in begins:
            begins[template, prefix] = _begins(prompt, 4 - digits, ask.tokenizer)
        firsts = begins[template, prefix]
        if continuations(prompt, [str(start)[digits:]], ask.tokenizer)[0][:1] != [firsts[number]]:
            continue  # behind this event the digits are cut otherwise
        later, others = _only(firsts[number + 1 :], firsts[: number + 1])
        first = int(prefix.ljust(4, "0")) + (digits == 2)
        if later and others and first != start:
            yield Draft(
                template=template,
                clean=clean,
                corrupt={**clean, "start": str(first)},
                targets=later,
                foils=others,
            )


def _begins(prompt: str, digits: int, tokenizer: PreTrainedTokenizerBase) -> list[int | None]:
    """For each number the token with which its digits begin behind the prompt; None where they merge with it."""
    found = continuations(prompt, (f"{number:0{digits}}" for number in range(10**digits)), tokenizer)
    return [ids[0] if ids and ids[0] != tokenizer.unk_token_id else None for ids in found]


def _only(later: Sequence[int | None], others: Sequence[int | None]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tokens that begin later years alone, and tokens that begin the others alone."""
    first, second = ({token: None for token in tokens if token is not None} for tokens in (later, others))
    return tuple(token for token in first if token not in second), tuple(t for t in second if t not in first)


__all__ = ["greater_than"]
