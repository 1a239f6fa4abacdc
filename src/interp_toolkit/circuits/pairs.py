"""Pairs of prompts: one that shows a behaviour, and a matched one that does not."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from jaxtyping import Float
from torch import Tensor, nn

from interp_toolkit.errors import AlignmentError, InterpWarning, TokenError
from interp_toolkit.model.edits import Edit
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

Align = Literal["left", "right"] | Mapping[int, int] | None
"""How prompts of different lengths line up: from one end, or by a map from clean to corrupt positions."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """A clean and a corrupt prompt made ready: tokens, how they line up, answers, and what both runs say.

    Attributes:
        clean: the prompt that shows the behaviour.
        corrupt: the matched prompt that does not.
        matched: pairs of positions (clean, corrupt) that correspond.
        target: token id of the clean answer.
        foil: token id it is compared with.
        foil_from: where the foil comes from.
        clean_logits: at the last position.
        corrupt_logits: at the last position.
    """

    clean: Tokens
    corrupt: Tokens
    matched: tuple[tuple[int, int], ...]
    target: int
    foil: int
    foil_from: str
    clean_logits: Float[Tensor, " vocab"]
    corrupt_logits: Float[Tensor, " vocab"]

    def logit_diff(self, logits: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch"]:
        """logit(target) − logit(foil)."""
        return logits[..., self.target] - logits[..., self.foil]


def prepare_pair(
    model: nn.Module,
    clean_input: Inputs,
    corrupt_input: Inputs,
    *,
    target_token: str | int | None = None,
    answers: Sequence[str | int] | None = None,
    align: Align = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    layout: Layout | None = None,
) -> Pair:
    """Tokenise two prompts, line them up, find the answers and run both.

    Raises:
        AlignmentError: when the prompts have different lengths and `align` does not say how they line up.
        TokenError: when the prompts are the same, more than one was given, or an answer is not one token.
    """
    words = [clean_input, corrupt_input, target_token, *(answers or ())]
    if any(is_text(word) for word in words):
        tokenizer = tokenizer_for(model, tokenizer)
    clean, corrupt = (
        _one(text, name, tokenizer) for text, name in ((clean_input, "clean"), (corrupt_input, "corrupt"))
    )
    if clean.row() == corrupt.row():
        raise TokenError("the clean and the corrupt prompt are the same, so patching cannot change anything")
    matched = _matched(clean, corrupt, align)
    logits = [last_logits(model, tokens, layout) for tokens in (clean, corrupt)]
    prompt = clean.texts[0] if clean.texts else "" if tokenizer is None else str(tokenizer.decode(clean.row()))
    target, foil, foil_from = _answers(prompt, target_token, answers, logits[1], tokenizer)
    pair = Pair(
        clean=clean,
        corrupt=corrupt,
        matched=matched,
        target=target,
        foil=foil,
        foil_from=foil_from,
        clean_logits=logits[0],
        corrupt_logits=logits[1],
    )
    if float(pair.logit_diff(logits[0])) <= float(pair.logit_diff(logits[1])):
        names = [token_string(tokenizer, t) for t in (target, foil)]
        warnings.warn(
            f"the clean prompt does not favour {names[0]!r} over {names[1]!r} more than the corrupt one does (logit "
            f"differences {float(pair.logit_diff(logits[0])):.2f} and {float(pair.logit_diff(logits[1])):.2f}): the "
            "model does not show the behaviour on this pair, and effects mean little",
            InterpWarning,
            stacklevel=3,
        )
    return pair


def last_logits(model: nn.Module, tokens: Tokens, layout: Layout | None, *edits: Edit) -> Float[Tensor, " vocab"]:
    """The logits at the last position of one prompt, in float32 on the CPU."""
    return run(model, tokens, edits=edits, logits="last", layout=layout).logits[0, -1].float().cpu()


def _one(inputs: Inputs, name: str, tokenizer: PreTrainedTokenizerBase | None) -> Tokens:
    tokens = encode(inputs, tokenizer=tokenizer)
    if len(tokens) != 1:
        raise TokenError(f"one {name} prompt is patched at a time, but {len(tokens)} were given")
    if tokens.padded:
        tokens = encode([tokens.row()], tokenizer=tokenizer)
    return tokens


def _matched(clean: Tokens, corrupt: Tokens, align: Align) -> tuple[tuple[int, int], ...]:
    lengths = len(clean.row()), len(corrupt.row())
    shorter = min(lengths)
    match align:
        case None:
            check_same_length(clean, corrupt)
            return tuple((n, n) for n in range(shorter))
        case "left":
            return tuple((n, n) for n in range(shorter))
        case "right":
            return tuple((lengths[0] - n, lengths[1] - n) for n in range(shorter, 0, -1))
        case Mapping():
            for a, b in align.items():
                if not (0 <= a < lengths[0] and 0 <= b < lengths[1]):
                    raise AlignmentError(
                        f"align maps clean position {a} to corrupt position {b}, but the prompts have {lengths[0]} and "
                        f"{lengths[1]} tokens"
                    )
            if len(set(align.values())) < len(align):
                raise AlignmentError(f"align maps several clean positions to one corrupt position: {dict(align)}")
            return tuple(align.items())
    raise AlignmentError(f"align is None, 'left', 'right' or a map from clean to corrupt positions, not {align!r}")


def _answers(
    prompt: str,
    target: str | int | None,
    answers: Sequence[str | int] | None,
    corrupt_logits: Tensor,
    tokenizer: PreTrainedTokenizerBase | None,
) -> tuple[int, int, str]:
    if (target is None) == (answers is None):
        raise TokenError("say what the clean answer is: target_token='Paris', or answers=(' Paris', ' Rome')")
    given = [target] if answers is None else [answers] if isinstance(answers, str | int) else list(answers)
    if len(given) not in (1, 2):
        raise TokenError(f"answers are (target, foil) or (target,), but {len(given)} were given")
    if any(answer is None for answer in given):
        raise TokenError(f"an answer is a token, not None: {answers!r}")
    ids = [answer_token(prompt, answer, tokenizer) for answer in given if answer is not None]
    beyond = [i for i in ids if i >= len(corrupt_logits)]
    if beyond:
        raise TokenError(f"token id {beyond[0]} is outside of the model's vocabulary: 0 to {len(corrupt_logits) - 1}")
    if len(ids) == 2:
        if ids[0] == ids[1]:
            raise TokenError(f"the two answers are the same token, {token_string(tokenizer, ids[0])!r}")
        return ids[0], ids[1], "given"
    others = corrupt_logits.clone()
    others[ids[0]] = -math.inf
    return ids[0], int(others.argmax()), "the corrupt prompt's own best token"


__all__ = ["Align", "Pair", "last_logits", "prepare_pair"]
