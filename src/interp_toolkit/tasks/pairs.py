"""Pairs made ready for one tokenizer, with every check that makes them comparable token for token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from interp_toolkit.errors import AlignmentError, TokenError
from interp_toolkit.model.tokens import Tokens, answer_token, check_same_length, encode, token_string
from interp_toolkit.tasks.drafts import Draft, Filled, fill
from interp_toolkit.tasks.task import MetricName, Task, TaskPair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Answer = str | int | Sequence[str | int]
"""One answer or several: text that is one token, or token ids."""


def plain_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens of a text, without start or end token."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def continuations(prompt: str, answers: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The tokens with which each answer continues a prompt; none when it changes the tokens of the prompt itself."""
    before = plain_ids(prompt, tokenizer)
    found = (plain_ids(prompt + answer, tokenizer) for answer in answers)
    return [whole[len(before) :] if whole[: len(before)] == before else [] for whole in found]


def one_token_words(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The words that are one known token behind another word."""
    listed = list(texts)
    found = continuations("the", (f" {text}" for text in listed), tokenizer)
    unknown = tokenizer.unk_token_id
    return [text for text, ids in zip(listed, found, strict=True) if len(ids) == 1 and ids[0] != unknown]


def pair_of(draft: Draft, tokenizer: PreTrainedTokenizerBase) -> TaskPair:
    """Make a draft a pair of tokens.

    Raises:
        TokenError: when it is no good with this tokenizer; the message is the same for all drafts that fail in one way.
    """
    filled = fill(draft.template, draft.clean), fill(draft.template, draft.corrupt)
    tokens = encode([side.text for side in filled], tokenizer=tokenizer)
    clean, corrupt = tokens.row(0), tokens.row(1)
    spoken = [answer for answer in (*draft.targets, *draft.foils) if isinstance(answer, str)]
    before = plain_ids(filled[0].text, tokenizer)
    _check_end(before, clean, tokenizer)
    _check_end(plain_ids(filled[1].text, tokenizer), corrupt, tokenizer)
    if len(clean) != len(corrupt):
        raise AlignmentError("the clean and the corrupt prompt have different numbers of tokens")
    changed = tuple(n for n, (a, b) in enumerate(zip(clean, corrupt, strict=True)) if a != b)
    places = {} if tokens.offsets is None else _places(draft, filled, tokens, changed)
    tokens_of = {answer: _answer(before, plain_ids(filled[0].text + answer, tokenizer), tokenizer) for answer in spoken}
    targets, foils = (
        [answer if isinstance(answer, int) else tokens_of[answer] for answer in answers]
        for answers in (draft.targets, draft.foils)
    )
    return finished_pair(
        texts=(filled[0].text, filled[1].text),
        ids=(clean, corrupt),
        answers=(targets, foils),
        tokenizer=tokenizer,
        template=draft.template,
        entities=(draft.clean, draft.corrupt),
        positions=places,
    )


def finished_pair(
    *,
    texts: tuple[str | None, str | None],
    ids: tuple[Sequence[int], Sequence[int]],
    answers: tuple[Sequence[int], Sequence[int]],
    tokenizer: PreTrainedTokenizerBase | None,
    template: str,
    entities: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {}),
    positions: Mapping[str, tuple[int, ...]] | None = None,
) -> TaskPair:
    """A pair, with what follows from its parts.

    Raises:
        TokenError: when the prompts are the same, or the answers are.
    """
    targets, foils = answers
    changed = tuple(n for n, (a, b) in enumerate(zip(*ids, strict=True)) if a != b)
    if not changed:
        raise TokenError("the clean and the corrupt prompt are the same")
    if not targets or not foils or set(targets) & set(foils):
        raise TokenError("target and foil are not two different tokens")
    return TaskPair(
        clean=texts[0],
        corrupt=texts[1],
        clean_ids=tuple(ids[0]),
        corrupt_ids=tuple(ids[1]),
        targets=tuple(targets),
        foils=tuple(foils),
        target_strings=tuple(token_string(tokenizer, i) for i in targets),
        foil_strings=tuple(token_string(tokenizer, i) for i in foils),
        template=template,
        entities=dict(entities[0]),
        corrupt_entities=dict(entities[1]),
        positions={**(positions or {}), "end": (len(ids[0]) - 1,), "changed": changed},
    )


def from_pairs(
    tokenizer: PreTrainedTokenizerBase,
    clean: Sequence[str] | Sequence[Sequence[int]],
    corrupt: Sequence[str] | Sequence[Sequence[int]],
    answers: Sequence[tuple[Answer, Answer]],
    *,
    name: str = "own pairs",
    metric: MetricName = "logit_diff",
    templates: Sequence[str] | None = None,
) -> Task:
    """A task of your own pairs, with the checks that the tasks of this library pass.

    Args:
        tokenizer: of the model.
        clean: prompts that show the behaviour, as texts or token ids.
        corrupt: the matched prompts that do not, each with as many tokens as its clean one.
        answers: for each pair (target, foil): text such as `"Paris"` that is one token behind the clean prompt, a token
            id, or lists of these.
        name: what the behaviour is called.
        metric: the number that says how a prompt is answered.
        templates: a name for the kind of each pair, if they are of several kinds; reports keep them apart.

    Raises:
        AlignmentError: when two prompts have different numbers of tokens.
        TokenError: when an answer is not one token, prompts or answers of a pair are the same, or a pair comes twice.

    Example:
        >>> from interp_toolkit import load_model, tasks
        >>> task = tasks.from_pairs(load_model("demo")[1], ["Rome is in", "Oslo is in"], ["Paris is in", "Lima is in"],
        ...                         [("Italy", "France"), ("Norway", "Peru")])
        >>> task.foils == [(task.foils[0][0],), (task.foils[1][0],)], task.pairs[1].foil_strings
        (True, (' Peru',))
    """
    kinds = templates if templates is not None else [name] * len(clean)
    if not len(clean) == len(corrupt) == len(answers) == len(kinds):
        raise AlignmentError(
            f"every pair has a clean prompt, a corrupt one, answers and perhaps a template, but there are "
            f"{len(clean)}, {len(corrupt)}, {len(answers)} and {len(kinds)} of them"
        )
    pairs: dict[tuple[tuple[int, ...], tuple[int, ...]], TaskPair] = {}
    for number, kind in enumerate(kinds):
        try:
            pair = _own_pair(tokenizer, clean[number], corrupt[number], answers[number], kind)
        except TokenError as error:
            raise type(error)(f"pair {number}: {error}") from error
        if pairs.setdefault((pair.clean_ids, pair.corrupt_ids), pair) is not pair:
            raise TokenError(f"pair {number} comes a second time: {pair.clean or pair.clean_ids!r}")
    return Task(
        name=name,
        split="all",
        seed=0,
        corruption="own",
        metric=metric,
        tokenizer=str(tokenizer.name_or_path),
        pairs=tuple(pairs.values()),
    )


def _own_pair(
    tokenizer: PreTrainedTokenizerBase,
    clean: str | Sequence[int],
    corrupt: str | Sequence[int],
    answers: tuple[Answer, Answer],
    template: str,
) -> TaskPair:
    if len(answers) != 2:
        raise TokenError(f"answers are (target, foil), not {answers!r}")
    tokens = encode(clean, tokenizer=tokenizer), encode(corrupt, tokenizer=tokenizer)
    check_same_length(*tokens)
    shown = clean if isinstance(clean, str) else str(tokenizer.decode(list(clean)))
    ids = [[answer_token(shown, item, tokenizer) for item in _several(answer)] for answer in answers]
    size = len(tokenizer)
    if beyond := [i for i in (*ids[0], *ids[1], *tokens[0].row(), *tokens[1].row()) if i >= size]:
        raise TokenError(f"token id {beyond[0]} is outside of the tokenizer's vocabulary: 0 to {size - 1}")
    return finished_pair(
        texts=(clean if isinstance(clean, str) else None, corrupt if isinstance(corrupt, str) else None),
        ids=(tokens[0].row(), tokens[1].row()),
        answers=(ids[0], ids[1]),
        tokenizer=tokenizer,
        template=template,
    )


def _several(answer: Answer) -> Sequence[str | int]:
    return [answer] if isinstance(answer, str | int) else answer


def _check_end(plain: list[int], ids: list[int], tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.unk_token_id in plain:
        raise TokenError("the tokenizer does not know a word of the prompt")
    if ids[-len(plain) :] != plain:
        raise TokenError("the tokenizer adds something behind the prompt, so that an answer cannot follow")


def _answer(before: list[int], whole: list[int], tokenizer: PreTrainedTokenizerBase) -> int:
    """The one token that is added to a prompt."""
    if whole[:-1] != before or whole[-1] == tokenizer.unk_token_id:
        raise TokenError("an answer is not one token behind the prompt")
    return whole[-1]


def _places(
    draft: Draft, filled: tuple[Filled, Filled], tokens: Tokens, changed: Sequence[int]
) -> dict[str, tuple[int, ...]]:
    """Positions of the slots, which must be the same in both prompts and cover everything that differs."""
    both = [
        {slot: _covering(span, tokens.offsets[row]) for slot, span in side.spans.items()}
        for row, side in enumerate(filled)
        if tokens.offsets is not None
    ]
    differ = {
        place for slot in draft.clean if draft.clean[slot] != draft.corrupt[slot] for place in both[0].get(slot, ())
    }
    if both[0] != both[1] or not set(changed) <= differ:
        raise AlignmentError("the clean and the corrupt prompt do not line up token for token")
    behind = {label: (both[0][slot][-1] + 1,) for label, slot in draft.behind.items()}
    return {**both[0], **behind}


def _covering(span: tuple[int, int], offsets: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    return tuple(n for n, (a, b) in enumerate(offsets) if a < span[1] and b > span[0] and b > a)


__all__ = ["Answer", "continuations", "finished_pair", "from_pairs", "one_token_words", "pair_of", "plain_ids"]
