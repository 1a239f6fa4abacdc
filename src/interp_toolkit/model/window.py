"""The part of a sequence that one forward pass computes, and which tokens are where in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp_toolkit.errors import RunError
from interp_toolkit.model.positions import Positions
from interp_toolkit.model.tokens import Tokens


@dataclass(frozen=True, kw_only=True)
class Window:
    """The part of the sequence that one forward pass computes.

    Attributes:
        columns: its columns in the whole sequence, padding included.
        new: how many of them, at the end, no earlier pass computed.
        index: for every column so far, its number among the real tokens of its row; -1 for padding.
        lengths: real tokens of each row's prompt.
        ids: the token ids (or embeddings) the pass was given.
        sequence: which sequence it belongs to, from 1.
    """

    columns: slice
    new: int
    index: Tensor
    lengths: Tensor
    ids: Tensor
    sequence: int

    @property
    def total(self) -> int:
        """Columns so far."""
        return int(self.columns.stop)

    def continues(self, ids: Tensor, past: int) -> bool:
        """Whether a pass over `ids` goes on with this sequence: from the cache, or by running it again with more."""
        if past:
            return True
        known = self.ids
        return (
            ids.ndim == known.ndim == 2
            and len(ids) == len(known)
            and ids.shape[1] > known.shape[1] == self.total
            and torch.equal(ids[:, : known.shape[1]], known)
        )

    def select(self, where: Positions, columns: slice) -> Tensor:
        """Which of the columns are selected, `[batch, columns]`."""
        return where.select(self.index[:, columns], self.lengths)


def next_window(
    args: tuple[Any, ...], kwargs: dict[str, Any], earlier: Sequence[Window], tokens: Tokens | None
) -> Window:
    """Find out what a forward pass is about to compute.

    Args:
        args: positional arguments of the model's forward.
        kwargs: keyword arguments.
        earlier: the passes before it.
        tokens: the prompts, if they are known.

    Raises:
        RunError: when the arguments do not say which tokens are real.
    """
    ids = _given_ids(args, kwargs)
    cache = kwargs.get("past_key_values")
    past = 0 if cache is None else int(cache.get_seq_length())
    index = _index(kwargs.get("attention_mask"), len(ids), past + ids.shape[1])
    last = earlier[-1] if earlier else None
    if last is not None and last.continues(ids, past):
        new, lengths, sequence = past + ids.shape[1] - last.total, last.lengths, last.sequence
    else:
        sequence = 1 if last is None else last.sequence + 1
        known = tokens if last is None else None
        new, lengths = ids.shape[1], (index >= 0).sum(-1) if known is None else known.lengths
    return Window(
        columns=slice(past, past + ids.shape[1]),
        new=new,
        index=index,
        lengths=lengths.repeat_interleave(max(1, len(index) // len(lengths))),
        ids=ids.detach(),
        sequence=sequence,
    )


def _index(mask: Any, batch: int, total: int) -> Tensor:
    """For every column its number among the real tokens of its row, -1 for padding."""
    if mask is None:
        return torch.arange(total).expand(batch, -1)
    if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[1] < total:
        raise RunError(
            "positions need an attention mask of shape [batch, pos]; a prepared mask (static cache, packed prompts) "
            "hides which tokens are real"
        )
    real = mask[:, :total].to("cpu").bool()
    return torch.where(real, real.long().cumsum(-1) - 1, -1)


def _given_ids(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    named = [kwargs[name] for name in ("input_ids", "inputs_embeds") if kwargs.get(name) is not None]
    found = [*args[:1], *named, *(x for x in kwargs.values() if isinstance(x, Tensor) and not x.is_floating_point())]
    if not found or not isinstance(found[0], Tensor):
        raise RunError("the model was called without token ids or embeddings")
    return found[0]


__all__ = ["Window", "next_window"]
