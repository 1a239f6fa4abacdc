"""Many pairs of prompts made ready: tokens, answers, and how they line up.

A clean prompt shows a behaviour, its corrupt one does not; both have the same number of tokens, so that positions
correspond. Pairs may differ in length from each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from interp_toolkit.errors import AlignmentError, TokenError
from interp_toolkit.model.layout import Layout
from interp_toolkit.model.run import run
from interp_toolkit.model.tokens import (
    Inputs,
    Tokens,
    answer_token,
    check_same_length,
    encode,
    is_text,
    token_string,
    tokenizer_for,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Answer = str | int
Answers = Answer | tuple[Any, ...] | Sequence[Any] | None
"""What can be given as answers: a target, `(target, foil)`, or `(targets, foils)` with several of each; for a list of
prompts a list of these, or one tuple for all of them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Pairs of prompts, without padding.

    Attributes:
        clean: the prompts that show the behaviour, one row each.
        corrupt: the matched prompts.
        targets: for each pair the token ids of the clean answers.
        foils: for each pair the token ids they are compared with; may be empty.
        single: one pair was given, not a list.
        tokenizer: for showing tokens.
    """

    clean: tuple[Tokens, ...]
    corrupt: tuple[Tokens, ...]
    targets: tuple[tuple[int, ...], ...]
    foils: tuple[tuple[int, ...], ...]
    single: bool
    tokenizer: PreTrainedTokenizerBase | None

    def __len__(self) -> int:
        """How many pairs there are."""
        return len(self.clean)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each pair's prompts."""
        return tuple(int(tokens.ids.shape[1]) for tokens in self.clean)

    def answer_names(self, pair: int = 0) -> tuple[str, str]:
        """The answers of one pair as people read them."""
        sides = (self.targets[pair], self.foils[pair])
        target, foil = ("/".join(repr(token_string(self.tokenizer, i)) for i in ids) for ids in sides)
        return target, foil


def prepare_pairs(
    model: nn.Module,
    clean: Inputs,
    corrupt: Inputs,
    answers: Answers = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    layout: Layout | None = None,
) -> Pairs:
    """Tokenise pairs of prompts, check that they line up, and find their answers.

    Without a foil, the corrupt prompt's own best token stands in.

    Raises:
        AlignmentError: when the two prompts of a pair have different numbers of tokens, showing both.
        TokenError: for empty lists and prompts, identical prompts, and answers that are not one token.
    """
    if any(is_text(item) for item in (clean, corrupt)) or has_text(answers):
        tokenizer = tokenizer_for(model, tokenizer)
    first, second = (_rows(inputs, name, tokenizer) for inputs, name in ((clean, "clean"), (corrupt, "corrupt")))
    if len(first) != len(second):
        raise AlignmentError(f"{len(first)} clean prompts were given, but {len(second)} corrupt ones: they go in pairs")
    for number, (a, b) in enumerate(zip(first, second, strict=True)):
        try:
            check_same_length(a, b)
        except AlignmentError as error:
            raise AlignmentError(f"pair {number}: {_without_align(error)}") from error
        if torch.equal(a.ids, b.ids):
            raise TokenError(
                f"the clean and the corrupt prompt of pair {number} are the same ({_text(a)}), so patching cannot "
                "change anything"
            )
    single = is_single(clean)
    targets, foils = prepare_answers(model, first, second, answers, single=single, tokenizer=tokenizer, layout=layout)
    return Pairs(clean=first, corrupt=second, targets=targets, foils=foils, single=single, tokenizer=tokenizer)


def prepare_answers(
    model: nn.Module,
    prompts: Sequence[Tokens],
    others: Sequence[Tokens],
    answers: Answers,
    *,
    single: bool,
    tokenizer: PreTrainedTokenizerBase | None,
    layout: Layout | None = None,
) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    """Token ids of targets and foils, for each prompt.

    Args:
        model: a causal language model.
        prompts: what the answers continue.
        others: where no foil is given, the best token that is no target behind these prompts stands in.
        answers: as a user gives them.
        single: whether one prompt was given, not a list.
        tokenizer: for answers in text.
        layout: for a model class of your own.

    Raises:
        TokenError: for answers that are not one token, or for another number of prompts.
    """
    given = _each(answers, len(prompts), single=single)
    found = [_answers(item, tokens, tokenizer) for item, tokens in zip(given, prompts, strict=True)]
    targets, foils = [t for t, _ in found], [f for _, f in found]
    missing = [n for n, (t, f) in enumerate(found) if t and not f]
    for number, foil in _best_others(model, [others[n] for n in missing], [targets[n] for n in missing], layout):
        foils[missing[number]] = (foil,)
    return tuple(targets), tuple(foils)


def prepare_prompts(inputs: Inputs, model: nn.Module, tokenizer: PreTrainedTokenizerBase | None) -> tuple[Tokens, ...]:
    """Prompts one by one, without padding.

    Raises:
        TokenError: for empty lists and prompts.
    """
    return _rows(inputs, "given", tokenizer_for(model, tokenizer) if is_text(inputs) else tokenizer)


def _rows(inputs: Inputs, name: str, tokenizer: PreTrainedTokenizerBase | None) -> tuple[Tokens, ...]:
    if isinstance(inputs, Sequence) and not len(inputs):
        raise TokenError(f"no {name} prompt was given")
    if isinstance(inputs, str):
        return (encode([inputs], tokenizer=tokenizer),)
    if is_text(inputs):
        return tuple(encode([str(text)], tokenizer=tokenizer) for text in inputs)
    tokens = encode(inputs, tokenizer=tokenizer)
    return tuple(encode([tokens.row(n)], tokenizer=tokenizer) for n in range(len(tokens)))


def is_single(inputs: Inputs) -> bool:
    """Whether one prompt was given, not a list."""
    if isinstance(inputs, str):
        return True
    if isinstance(inputs, Tokens):
        return inputs.single
    return not is_text(inputs) and encode(inputs).single


def has_text(answers: Answers) -> bool:
    """Whether a tokenizer is needed for the answers."""
    if isinstance(answers, str):
        return True
    return isinstance(answers, Sequence) and any(has_text(item) for item in answers)


def _each(answers: Answers, number: int, *, single: bool) -> list[Any]:
    """The answers of each pair."""
    if answers is None or isinstance(answers, str | int) or single:
        given = answers[0] if single and isinstance(answers, list) and len(answers) == 1 else answers
        return [given] * number
    if isinstance(answers, tuple):
        return [answers] * number
    if len(answers) != number:
        raise TokenError(
            f"answers were given for {len(answers)} prompts, but there are {number}: give a list with one entry for "
            "each pair, or one tuple (target, foil) for all"
        )
    return list(answers)


def _answers(
    given: Any, prompt: Tokens, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids of targets and foils."""
    if given is None:
        return (), ()
    sides = [given] if isinstance(given, str | int) else list(given)
    if len(sides) not in (1, 2):
        raise TokenError(f"answers are (target, foil) or (targets, foils), but {len(sides)} were given: {given!r}")
    text = prompt.texts[0] if prompt.texts else "" if tokenizer is None else str(tokenizer.decode(prompt.row()))
    ids = [
        tuple(answer_token(text, a, tokenizer) for a in ([side] if isinstance(side, str | int) else side))
        for side in sides
    ]
    targets, foils = ids if len(ids) == 2 else (ids[0], ())
    if set(targets) & set(foils):
        both = token_string(tokenizer, min(set(targets) & set(foils)))
        raise TokenError(f"the two answers are the same token, {both!r}")
    return targets, foils


def _best_others(
    model: nn.Module, prompts: Sequence[Tokens], targets: Sequence[Sequence[int]], layout: Layout | None
) -> list[tuple[int, int]]:
    """For each prompt the most probable token that is no target."""
    by_length: dict[int, list[int]] = {}
    for number, tokens in enumerate(prompts):
        by_length.setdefault(int(tokens.ids.shape[1]), []).append(number)
    found = []
    for numbers in by_length.values():
        batch = encode(torch.cat([prompts[n].ids for n in numbers]))
        logits = run(model, batch, logits="last", layout=layout).logits
        for row, number in enumerate(numbers):
            last: Tensor = logits[row, -1].float()
            last[list(targets[number])] = -torch.inf
            found.append((number, int(last.argmax())))
    return found


def _text(tokens: Tokens) -> str:
    return repr(tokens.texts[0] if tokens.texts else tokens.row())


def _without_align(error: AlignmentError) -> str:
    return str(error).split("\nUse prompts of equal length")[0] + "\nUse prompts with as many tokens as each other"


__all__ = ["Answers", "Pairs", "has_text", "is_single", "prepare_answers", "prepare_pairs", "prepare_prompts"]
