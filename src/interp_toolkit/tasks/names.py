"""Behaviours that turn on first names: indirect objects and pronouns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from interp_toolkit.tasks.drafts import Draft, shuffled
from interp_toolkit.tasks.request import Corruption, Request
from interp_toolkit.tasks.task import Task
from interp_toolkit.tasks.words import Split, share, table, words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def ioi(
    tokenizer: PreTrainedTokenizerBase,
    *,
    n: int = 100,
    seed: int = 0,
    split: Split = "train",
    corruption: Corruption = "swap",
    same_length: bool = True,
) -> Task:
    """Indirect object identification: who is given something (Wang et al. 2022, arXiv 2211.00593).

    "When Mary and John went to the store, John gave a drink to" → " Mary", not " John". Labels of positions: `IO` and
    `S1` where the two names come first, `S1+1` behind the latter, `S2` where the subject comes again, `place`,
    `object`, `end`.

    Args:
        tokenizer: for which pairs are made.
        n: how many pairs.
        seed: of the random choice.
        split: `"train"`, `"validation"` or `"test"`: they share no template, name, place or object.
        corruption: `"swap"`: the second sentence has the other name, so the answer turns over. `"random"`: three other
            names, so neither answer has a ground.
        same_length: whether all prompts have one number of tokens.

    Raises:
        TokenError: when the tokenizer does not allow as many pairs.

    Example:
        >>> from interp_toolkit import load_model
        >>> print(ioi(load_model("demo")[1], n=2).summary())
        ioi, train split, seed 0: 2 pairs of 14 tokens each from 2 templates, corruption 'swap'.
        clean:   'After Jessica and Isabella met at the village, Isabella handed a cup to'
        corrupt: 'After Jessica and Isabella met at the village, Jessica handed a cup to'
        answer:  ' Jessica' rather than ' Isabella'
    """
    ask = Request(
        name="ioi", tokenizer=tokenizer, n=n, seed=seed, split=split, corruption=corruption, same_length=same_length
    )
    return ask.task(_ioi(ask))


def _ioi(ask: Request) -> Iterator[Draft]:
    rng = ask.random
    people = [name for kind in ("she", "he") for name in share(words(table("names")[kind]), ask.split)]
    names = ask.known(people, what="names", least=5)
    places, objects = (share(words(table("things")[kind]), ask.split) for kind in ("places", "objects"))
    for template, recipient, giver, place, thing in shuffled(
        rng, table("ioi")["templates"][ask.split], names, names, places, objects
    ):
        if recipient == giver:
            continue
        clean = {"IO": recipient, "S1": giver, "place": place, "S2": giver, "object": thing}
        others = [name for name in names if name not in (recipient, giver)]
        changed = (
            {"S2": recipient}
            if ask.corruption == "swap"
            else dict(zip(("IO", "S1", "S2"), rng.sample(others, 3), strict=True))
        )
        yield Draft(
            template=template,
            clean=clean,
            corrupt={**clean, **changed},
            targets=(f" {recipient}",),
            foils=(f" {giver}",),
            behind={"S1+1": "S1"},
        )


def gendered_pronoun(
    tokenizer: PreTrainedTokenizerBase,
    *,
    n: int = 100,
    seed: int = 0,
    split: Split = "train",
    corruption: Corruption = "swap",
    same_length: bool = True,
) -> Task:
    """The pronoun that goes with a first name (after Mathwin et al. 2023).

    "When Mary left the store," → " she", not " he". Names are those that are mostly given to girls or to boys.
    Labels of positions: `name`, `place` or `object`, `end`.

    Args:
        tokenizer: for which pairs are made.
        n: how many pairs.
        seed: of the random choice.
        split: `"train"`, `"validation"` or `"test"`: they share no template, name, place or object.
        corruption: `"swap"`: a name of the other kind, so the answer turns over. `"random"`: a name that is given to
            both, so neither answer has a ground.
        same_length: whether all prompts have one number of tokens.

    Raises:
        TokenError: when the tokenizer does not allow as many pairs.

    Example:
        >>> from interp_toolkit import load_model
        >>> task = gendered_pronoun(load_model("demo")[1], n=50)
        >>> sorted({pair.target_strings for pair in task.pairs})
        [(' he',), (' she',)]
    """
    ask = Request(
        name="gendered_pronoun",
        tokenizer=tokenizer,
        n=n,
        seed=seed,
        split=split,
        corruption=corruption,
        same_length=same_length,
    )
    return ask.task(_gendered_pronoun(ask))


def _gendered_pronoun(ask: Request) -> Iterator[Draft]:
    rng = ask.random
    # A name need not be one token, only as long as the one it is exchanged for.
    names = {kind: share(words(table("names")[kind]), ask.split) for kind in ("she", "he", "either")}
    places, objects = (share(words(table("things")[kind]), ask.split) for kind in ("places", "objects"))
    fillers = list(zip(places, objects, strict=True))
    templates = table("gendered_pronoun")["templates"][ask.split]
    for template, pronoun, first, second, (place, thing) in shuffled(
        rng, templates, ("she", "he"), range(len(names["she"])), range(len(names["she"])), fillers
    ):
        other = "he" if pronoun == "she" else "she"
        pool = names[other if ask.corruption == "swap" else "either"]
        slots = {"place": place} if "{place}" in template else {"object": thing}
        yield Draft(
            template=template,
            clean={"name": names[pronoun][first % len(names[pronoun])], **slots},
            corrupt={"name": pool[second % len(pool)], **slots},
            targets=(f" {pronoun}",),
            foils=(f" {other}",),
        )


__all__ = ["gendered_pronoun", "ioi"]
