"""What steering is tried on: questions with two answers, texts that should follow, and texts that should not change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from interp_toolkit.errors import SteeringError
from interp_toolkit.model.forward import vocabulary_of
from interp_toolkit.model.layout import base_of
from interp_toolkit.model.tokens import Inputs, answer_token, encode, is_text, tokenizer_for

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE = "Question: {question}\nA. {a}\nB. {b}\nAnswer:"
"""How a question with two answers is asked."""

_FEWEST = 4  # new tokens, to see whether runs of three come again

Text = str | Sequence[int]
"""A text, or its token ids."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt with the next token that steering should bring, and another one.

    Attributes:
        prompt: text or token ids.
        matching: the token that goes with the behaviour, as text or id.
        other: the one that does not.
        group: questions with the same name count as one, such as those with the letters swapped.
    """

    prompt: Text
    matching: str | int
    other: str | int
    group: str | int | None = None


def ab_questions(items: Sequence[tuple[str, str, str]], *, template: str = TEMPLATE) -> list[Question]:
    r"""Questions with two answers, each asked twice with the letters swapped, so that a liking for a letter cancels.

    Args:
        items: for each question its text, the answer that goes with the behaviour, and the other answer.
        template: with `{question}`, `{a}` and `{b}`; the next token behind it is the letter.

    Raises:
        SteeringError: for a template that lacks one of them.

    Example:
        >>> [(q.prompt[-22:], q.matching, q.group) for q in ab_questions([("How are you?", "Glad", "Sad")])]
        [('A. Glad\nB. Sad\nAnswer:', 'A', 0), ('A. Sad\nB. Glad\nAnswer:', 'B', 0)]
    """
    if missing := [part for part in ("{question}", "{a}", "{b}") if part not in template]:
        raise SteeringError(f"the template lacks {', '.join(missing)}: {template!r}")
    found = []
    for group, (question, matching, other) in enumerate(items):
        first = template.format(question=question, a=matching, b=other)
        second = template.format(question=question, a=other, b=matching)
        found.append(Question(prompt=first, matching="A", other="B", group=group))
        found.append(Question(prompt=second, matching="B", other="A", group=group))
    return found


@dataclass(frozen=True, kw_only=True)
class Trials:
    """What steering is tried on; at least one kind of effect is needed.

    Attributes:
        questions: measured by the logit of the matching token minus that of the other; see `ab_questions`.
        targets: prompts with a text that steering should make likelier, measured by the mean log-probability of its
            tokens.
        neutral: texts that steering should leave alone: how far the next token's distribution moves, perplexity, and
            the length of the residual stream.
        instruction: a plain prompt that asks for the same; put in front of questions and targets as it is, without
            steering, it is what steering is compared with.
        new_tokens: so many are generated behind each neutral text, to see whether the model begins to repeat itself;
            none, or at least 4.
    """

    questions: Sequence[Question] = ()
    targets: Sequence[tuple[Text, Text]] = ()
    neutral: Inputs = ()
    instruction: str | None = None
    new_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Case:
    """One text as the model gets it.

    Attributes:
        ids: its tokens.
        prompt: how many of them are the prompt; what comes behind counts as generated.
        pair: for a question the matching token and the other one.
    """

    ids: tuple[int, ...]
    prompt: int
    pair: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Trials as tokens; `groups` says which item each question belongs to."""

    questions: tuple[Case, ...]
    groups: tuple[int, ...]
    targets: tuple[Case, ...]
    neutral: tuple[Case, ...]


def prepare(
    model: nn.Module, trials: Trials, tokenizer: PreTrainedTokenizerBase | None, *, instruction: str = ""
) -> Prepared:
    """Trials as tokens, perhaps with an instruction in front of questions and targets.

    Raises:
        SteeringError: without anything to measure an effect on, or for an instruction before token ids.
        TokenError: for answers that are not one token.
    """
    if not trials.questions and not trials.targets:
        raise SteeringError("there is nothing to measure an effect on: give questions or targets")
    if trials.new_tokens and (trials.new_tokens < _FEWEST or not len(trials.neutral)):
        raise SteeringError(
            f"repetition is measured on at least {_FEWEST} new tokens behind neutral texts, but {trials.new_tokens} "
            f"behind {len(trials.neutral)} texts were asked for"
        )
    texts: list[Any] = [*(q.prompt for q in trials.questions), *(part for pair in trials.targets for part in pair)]
    some_text = any(isinstance(t, str) for t in texts) or is_text(trials.neutral) or instruction
    words = tokenizer_for(model, tokenizer) if some_text else tokenizer
    if instruction and not all(isinstance(t, str) for t in texts):
        raise SteeringError("an instruction goes before text: give questions and targets as text, not as token ids")
    names: dict[object, int] = {}
    groups = tuple(
        names.setdefault(("alone", n) if q.group is None else q.group, len(names))
        for n, q in enumerate(trials.questions)
    )
    neutral = _rows(trials.neutral, words)
    if short := [n for n, ids in enumerate(neutral) if len(ids) < 2]:
        raise SteeringError(f"neutral text {short[0]} has one token, behind which nothing is known: give longer ones")
    return Prepared(
        questions=tuple(_question(model, q, words, instruction) for q in trials.questions),
        groups=groups,
        targets=tuple(_target(prompt, text, words, instruction) for prompt, text in trials.targets),
        neutral=tuple(Case(ids=ids, prompt=len(ids)) for ids in neutral),
    )


def _rows(texts: Inputs, tokenizer: PreTrainedTokenizerBase | None) -> list[tuple[int, ...]]:
    if not isinstance(texts, str) and len(texts) == 0:
        return []
    tokens = encode(texts, tokenizer=tokenizer)
    return [tuple(tokens.row(n)) for n in range(len(tokens))]


def _question(model: nn.Module, question: Question, tokenizer: Any, instruction: str) -> Case:
    given = question.prompt
    text = instruction + given if isinstance(given, str) else ""
    if not isinstance(given, str) and tokenizer is not None:
        text = str(tokenizer.decode(list(given)))
    ids = tuple(encode(text if isinstance(given, str) else list(given), tokenizer=tokenizer).row())
    matching, other = (answer_token(text, answer, tokenizer) for answer in (question.matching, question.other))
    size = vocabulary_of(base_of(model))
    if matching == other or (size is not None and max(matching, other) >= size):
        raise SteeringError(
            f"both answers of a question are different tokens of the model, unlike {question.matching!r} ({matching}) "
            f"and {question.other!r} ({other})"
        )
    return Case(ids=ids, prompt=len(ids), pair=(matching, other))


def _target(prompt: Text, continuation: Text, tokenizer: Any, instruction: str) -> Case:
    """Prompt and continuation; as text they are split where the prompt's own tokens end."""
    if isinstance(prompt, str) != isinstance(continuation, str):
        raise SteeringError("a target's prompt and continuation are both text or both token ids")
    if isinstance(prompt, str) and isinstance(continuation, str):
        first = encode(instruction + prompt, tokenizer=tokenizer).row()
        whole = encode(instruction + prompt + continuation, tokenizer=tokenizer).row()
        if whole[: len(first)] != first:
            raise SteeringError(
                f"the tokens of {prompt!r} change when {continuation!r} follows, so that it is not clear where the "
                "target begins: let the prompt end with a whole word, and the target begin with a space"
            )
    else:
        first = [int(n) for n in prompt]
        whole = [*first, *(int(n) for n in continuation)]
    if not first or len(whole) == len(first):
        raise SteeringError(f"a target needs a prompt and a continuation, not {prompt!r} and {continuation!r}")
    return Case(ids=tuple(whole), prompt=len(first))


__all__ = ["TEMPLATE", "Case", "Prepared", "Question", "Text", "Trials", "ab_questions", "prepare"]
