"""What all lenses are asked: a prompt, positions of it, and perhaps answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from interp_toolkit.errors import RunError
from interp_toolkit.model.layout import Layout
from interp_toolkit.model.positions import PositionsLike
from interp_toolkit.model.positions import positions as as_positions
from interp_toolkit.model.run import columns_of
from interp_toolkit.model.tokens import Inputs, Tokens, answer_token, encode, is_text, token_string, tokenizer_for
from interp_toolkit.model.verify import verified
from interp_toolkit.model.wiring import Wiring

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Answers = str | int | tuple[str | int, ...] | None
"""A target, or a target and a foil."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """One prompt, ready to be run.

    Attributes:
        wiring: the model.
        tokens: the prompt, without padding.
        where: the positions, counted from 0.
        ids: of the answers.
        tokenizer: for showing tokens.
    """

    wiring: Wiring
    tokens: Tokens
    where: tuple[int, ...]
    ids: tuple[int, ...]
    tokenizer: PreTrainedTokenizerBase | None

    @property
    def shown(self) -> tuple[str, ...]:
        """The tokens at the positions."""
        strings = self.tokens.strings()
        return tuple(strings[n] for n in self.where)

    @property
    def answers(self) -> tuple[str, ...]:
        """The answers as people read them."""
        return tuple(token_string(self.tokenizer, i) for i in self.ids)


def asked(
    model: nn.Module,
    prompt: Inputs | Tokens,
    answers: Answers = None,
    *,
    positions: PositionsLike = "all",
    tokenizer: PreTrainedTokenizerBase | None = None,
    layout: Layout | None = None,
) -> Asked:
    """Make a prompt ready.

    Raises:
        RunError: for several prompts, and for numbers of answers that cannot be.
        TokenError, PositionError: for what the prompt lacks.
    """
    wiring = verified(model, layout)
    chosen = tokenizer_for(model, tokenizer) if tokenizer is None and is_text(prompt) else tokenizer
    tokens = encode(prompt, tokenizer=chosen)
    if len(tokens) != 1:
        raise RunError(f"a lens looks at one prompt, not {len(tokens)}; call it for each")
    if tokens.padded:
        tokens = encode(torch.tensor(tokens.row()), tokenizer=chosen)
    pair = () if answers is None else answers if isinstance(answers, tuple) else (answers,)
    if answers is not None and len(pair) not in (1, 2):
        raise RunError(f"answers are a target, or (target, foil), not {answers!r}")
    text = tokens.texts[0] if tokens.texts else ""
    columns = columns_of(as_positions(positions).bind(tokens), tokens)
    return Asked(
        wiring=wiring,
        tokens=tokens,
        where=tuple(range(tokens.ids.shape[1]) if columns is None else columns[0].tolist()),
        ids=tuple(answer_token(text, answer, chosen) for answer in pair),
        tokenizer=chosen,
    )


__all__ = ["Answers", "Asked", "asked"]
