"""Behaviours of grammar: the verb agrees with its subject."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from interp_toolkit.tasks.drafts import Draft, shuffled
from interp_toolkit.tasks.request import Corruption, Request
from interp_toolkit.tasks.task import Task
from interp_toolkit.tasks.words import Split, share, table, words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def subject_verb_agreement(
    tokenizer: PreTrainedTokenizerBase,
    *,
    n: int = 100,
    seed: int = 0,
    split: Split = "train",
    corruption: Corruption = "swap",
    same_length: bool = True,
) -> Task:
    """The number of a verb, with another noun between it and its subject (after Linzen et al. 2016, arXiv 1611.01368).

    "The keys near the table" → " are", not " is". Clean subjects are singular or plural, and so are the nouns in
    between, independently of each other. Labels of positions: `subject`, `other`, `end`.

    Args:
        tokenizer: for which pairs are made.
        n: how many pairs.
        seed: of the random choice.
        split: `"train"`, `"validation"` or `"test"`: they share no template and no noun.
        corruption: `"swap"`, the only one: the same subject in the other number, so the answer turns over.
        same_length: whether all prompts have one number of tokens.

    Raises:
        TokenError: when the tokenizer does not allow as many pairs.

    Example:
        >>> from interp_toolkit import load_model
        >>> pair = subject_verb_agreement(load_model("demo")[1], n=1).pairs[0]
        >>> pair.entities["other"] == pair.corrupt_entities["other"], pair.positions["subject"]
        (True, (1,))
    """
    ask = Request(
        name="subject_verb_agreement",
        tokenizer=tokenizer,
        n=n,
        seed=seed,
        split=split,
        corruption=corruption,
        same_length=same_length,
        offered=("swap",),
    )
    return ask.task(_agreement(ask))


def _agreement(ask: Request) -> Iterator[Draft]:
    nouns = [tuple(entry.split("/")) for entry in share(words(table("things")["nouns"]), ask.split)]
    templates = table("subject_verb_agreement")["templates"][ask.split]
    for (template, *verbs), subject, other, number, other_number in shuffled(
        ask.random, templates, nouns, nouns, (0, 1), (0, 1)
    ):
        if subject == other:
            continue
        yield Draft(
            template=template,
            clean={"subject": subject[number], "other": other[other_number]},
            corrupt={"subject": subject[1 - number], "other": other[other_number]},
            targets=(f" {verbs[number]}",),
            foils=(f" {verbs[1 - number]}",),
        )


__all__ = ["subject_verb_agreement"]
