"""From activations of every token to rows of probes: which tokens count, and what becomes of several.

Which tokens count is always said: the last one, the mean or the largest value over all, the tokens of a span, or every
token on its own. Special tokens that the tokenizer adds are left out of means, of maxima and of "all": the activations
of a start token are hundreds of times larger than any others in many models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp_toolkit.errors import ProbeError
from interp_toolkit.model import Span
from interp_toolkit.model.positions import PerRow
from interp_toolkit.model.tokens import Tokens, special_ids

Pooling = str | Span
"""`"last"`, `"mean"`, `"max"`, `"span"` (the last token of each text's own span), `"span_mean"`, `"all"`, or a `Span`
that every text has, of which the last token counts unless it names another."""

POOLINGS = {
    "last": "the last token",
    "mean": "the mean over tokens",
    "max": "the maximum over tokens",
    "span": "the last token of each span",
    "span_mean": "the mean over each span",
    "all": "every token",
}
"""What can be asked for, in words."""


def chosen_tokens(tokens: Tokens, positions: Pooling, spans: Sequence[str] | None) -> Bool[Tensor, "text pos"]:
    """Which tokens of each text count.

    Raises:
        ProbeError: without a span for each text, or for texts of special tokens alone.
        PositionError: for a span that is not in its text.
    """
    first = tokens.mask.argmax(-1)
    rows = torch.arange(len(tokens))
    chosen = torch.zeros_like(tokens.mask, dtype=torch.bool)
    if positions == "last":
        chosen[rows, first + tokens.lengths - 1] = True
    elif isinstance(positions, Span) or positions in ("span", "span_mean"):
        for row, found in enumerate(_spans(tokens, positions, spans)):
            chosen[row, first[row] + torch.tensor(found)] = True
    else:
        chosen = tokens.mask.bool() & ~torch.isin(
            tokens.ids, torch.tensor(special_ids(tokens.tokenizer), dtype=torch.long)
        )
        empty = (~chosen.any(-1)).nonzero()[:, 0].tolist()
        if empty:
            raise ProbeError(f"{len(empty)} texts have no tokens but special ones: texts {empty[:8]}")
    return chosen


def _spans(tokens: Tokens, positions: Pooling, spans: Sequence[str] | None) -> Iterator[tuple[int, ...]]:
    if isinstance(positions, Span):
        bound = positions.bind(tokens)
        assert isinstance(bound, PerRow)
        yield from (found[-1:] for found in bound.rows)
        return
    if spans is None or len(spans) != len(tokens):
        found = "none" if spans is None else str(len(spans))
        raise ProbeError(f"positions={positions!r} needs a span for each of the {len(tokens)} texts, found {found}")
    for row, span in enumerate(spans):
        places = tokens.find(span, row=row)
        yield places[-1:] if positions == "span" else places


def pooled(
    x: Float[Tensor, "text pos *d"], chosen: Bool[Tensor, "text pos"], positions: Pooling
) -> Float[Tensor, "row width"]:
    """The rows of some texts: one each, or one for each token that counts."""
    flat = x.detach().flatten(2)
    mask = chosen.to(flat.device)[..., None]
    if positions in ("mean", "span_mean"):
        wide = flat.to(torch.promote_types(flat.dtype, torch.float32))
        return torch.where(mask, wide, 0.0).sum(1) / mask.sum(1)
    if positions == "max":
        return torch.where(mask, flat, -torch.inf).amax(1)
    return flat[mask[..., 0]]


def in_words(positions: Pooling) -> str:
    """What is asked for, for people."""
    return f"the last token of {positions.text!r}" if isinstance(positions, Span) else POOLINGS[positions]


def single_token(positions: Pooling) -> bool:
    """Whether a row is one token."""
    return isinstance(positions, Span) or positions in ("last", "span", "all")


__all__ = ["POOLINGS", "Pooling", "chosen_tokens", "in_words", "pooled", "single_token"]
