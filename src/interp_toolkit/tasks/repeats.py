"""Behaviours of repetition: what came before comes again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from interp_toolkit.errors import TokenError
from interp_toolkit.model.tokens import token_string
from interp_toolkit.tasks.pairs import finished_pair, plain_ids
from interp_toolkit.tasks.request import Corruption, Request
from interp_toolkit.tasks.task import Task, TaskPair
from interp_toolkit.tasks.words import Split, share, table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PLAIN = re.compile(r"([Ġ▁]?)([a-z]{3,10})")  # a word with the mark of a space in front, where the tokenizer has one
_ENOUGH = 200  # words for sequences that are random; with fewer whole words, pieces are used too
_MOST = 4000  # the first entries of a vocabulary are its most frequent ones


def induction(
    tokenizer: PreTrainedTokenizerBase,
    *,
    n: int = 100,
    seed: int = 0,
    split: Split = "train",
    corruption: Corruption = "swap",
    same_length: bool = True,
) -> Task:
    """Random words that are repeated (after Olsson et al. 2022, arXiv 2209.11895).

    "river cup seven stone ... river cup" → " seven". Words are drawn from the tokenizer's own vocabulary, each one
    token and none twice. Prompts are text where the tokenizer gives back the very same tokens, and token ids otherwise.
    Labels of positions: `before` and `answer` in the first copy, `end`, which has the same token as `before`.

    Args:
        tokenizer: for which pairs are made.
        n: how many pairs.
        seed: of the random choice.
        split: `"train"`, `"validation"` or `"test"`: they share no word, and their copies have other lengths.
        corruption: `"swap"`: another word stands at `answer`, so the answer turns over. `"random"`: another word stands
            at `before`, so nothing says what comes after the last word; the foil is another word of the prompt.
        same_length: whether all prompts have one number of tokens; they have anyway.

    Raises:
        TokenError: when the vocabulary has too few plain words.

    Example:
        >>> from interp_toolkit import load_model
        >>> pair = induction(load_model("demo")[1], n=1).pairs[0]
        >>> pair.clean_ids[pair.positions["before"][0]] == pair.clean_ids[-1]
        True
        >>> pair.clean_ids[pair.positions["answer"][0]] == pair.targets[0]
        True
    """
    ask = Request(
        name="induction",
        tokenizer=tokenizer,
        n=n,
        seed=seed,
        split=split,
        corruption=corruption,
        same_length=same_length,
    )
    return ask.task(_repeated(ask))


def _repeated(ask: Request) -> Iterator[TaskPair]:
    rng, tokenizer = ask.random, ask.tokenizer
    shapes = table("induction")["templates"][ask.split]
    pool = share(_plain_words(tokenizer), ask.split)
    needed = max(length for length, _ in shapes) + 1
    if len(pool) < needed:
        raise TokenError(
            f"induction needs at least {needed} plain words that are one token each, but this tokenizer has "
            f"{len(pool)} for the {ask.split} split"
        )
    start = _start(tokenizer)
    while True:  # far too many combinations to list
        length, again = rng.choice(shapes)
        *copy, other = rng.sample(pool, length + 1)
        place = again if ask.corruption == "swap" else again - 1
        changed = [*copy[:place], other, *copy[place + 1 :]]
        foil = other if ask.corruption == "swap" else rng.choice(copy[again + 1 :])
        ids = [[*start, *first, *copy[:again]] for first in (copy, changed)]
        words = [{str(n): token_string(tokenizer, i) for n, i in enumerate(first)} for first in (copy, changed)]
        yield finished_pair(
            texts=(_text(ids[0], len(start), tokenizer), _text(ids[1], len(start), tokenizer)),
            ids=(ids[0], ids[1]),
            answers=([copy[again]], [foil]),
            tokenizer=tokenizer,
            template=f"{length} words, then the first {again} again",
            entities=(words[0], words[1]),
            positions={"before": (len(start) + again - 1,), "answer": (len(start) + again,)},
        )


def _plain_words(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of plain words; of those with a space in front, where there are any.

    A vocabulary also has pieces of words, such as " appreci". What has a form with an "s" behind it is a word.
    """
    found: dict[bool, dict[str, int]] = {True: {}, False: {}}
    for symbol, token in tokenizer.get_vocab().items():
        plain = _PLAIN.fullmatch(symbol)
        if plain:
            found[bool(plain[1])][plain[2]] = token
    kind = found[True] or found[False]
    whole = {word: token for word, token in kind.items() if f"{word}s" in kind and not word.endswith("s")}
    return sorted((whole if len(whole) >= _ENOUGH else kind).values())[:_MOST]


def _start(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts in front of every prompt."""
    whole, plain = list(tokenizer("a")["input_ids"]), plain_ids("a", tokenizer)
    if whole[len(whole) - len(plain) :] != plain:
        raise TokenError("the tokenizer adds something behind the prompt, so that an answer cannot follow")
    return whole[: len(whole) - len(plain)]


def _text(ids: list[int], start: int, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The text that gives these very tokens, if there is one."""
    text = str(tokenizer.decode(ids[start:], clean_up_tokenization_spaces=False))
    return text if list(tokenizer(text)["input_ids"]) == ids else None


__all__ = ["induction"]
