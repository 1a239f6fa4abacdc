"""Behaviours of knowledge: countries and their capitals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from interp_toolkit.tasks.drafts import Draft, shuffled
from interp_toolkit.tasks.request import Corruption, Request
from interp_toolkit.tasks.task import Task
from interp_toolkit.tasks.words import Split, share, table, words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def country_capital(
    tokenizer: PreTrainedTokenizerBase,
    *,
    n: int = 100,
    seed: int = 0,
    split: Split = "train",
    corruption: Corruption = "swap",
    same_length: bool = True,
) -> Task:
    """The capital of a country.

    "The capital of France is" → " Paris", and not " Rome", the capital of the country in the corrupt prompt. Only
    capitals that are one token are used; in a small vocabulary these are a few dozen, so one clean prompt comes with
    several corrupt ones. Labels of positions: `country`, `end`.

    Args:
        tokenizer: for which pairs are made.
        n: how many pairs.
        seed: of the random choice.
        split: `"train"`, `"validation"` or `"test"`: they share no template and no country.
        corruption: `"swap"`, the only one: another country of as many tokens, so the answer turns over.
        same_length: whether all prompts have one number of tokens.

    Raises:
        TokenError: when the tokenizer does not allow as many pairs.

    Example:
        >>> from interp_toolkit import load_model
        >>> pair = country_capital(load_model("demo")[1], n=1).pairs[0]
        >>> pair.clean.split()[-1], pair.entities["country"] == pair.corrupt_entities["country"]
        ('is', False)
    """
    ask = Request(
        name="country_capital",
        tokenizer=tokenizer,
        n=n,
        seed=seed,
        split=split,
        corruption=corruption,
        same_length=same_length,
        offered=("swap",),
    )
    return ask.task(_capitals(ask))


def _capitals(ask: Request) -> Iterator[Draft]:
    listed = table("country_capital")
    entries = [tuple(entry.split(":")) for entry in share(words(listed["capitals"]), ask.split)]
    known = ask.known(entries, what="capitals", key=lambda entry: entry[1])
    for template, (country, capital), (other, its) in shuffled(
        ask.random, listed["templates"][ask.split], known, known
    ):
        if country == other:
            continue
        yield Draft(
            template=template,
            clean={"country": country},
            corrupt={"country": other},
            targets=(f" {capital}",),
            foils=(f" {its}",),
        )


__all__ = ["country_capital"]
