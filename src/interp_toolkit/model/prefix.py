"""Keys and values of a base run, kept and handed out again as the prefix of packed passes.

Two caches in the form of transformers: one keeps what a model computes, the other gives every row of a packed pass the
keys and values of its base run in front of the positions that are run. Both leave masks, windows and position numbers
to the model's own code, which only asks how long the prefix is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from interp_toolkit.errors import RunError
from interp_toolkit.model.base_runs import KeysValues


class _Keeping(DynamicLayer):
    """Keeps the keys and values that come by."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kept: KeysValues | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keep and hand on."""
        del args, kwargs
        self.kept = KeysValues(keys=key_states, values=value_states)
        return key_states, value_states

    def get_seq_length(self, *args: Any) -> int:
        """Nothing lies before the pass."""
        del args
        return 0


class _Prefix(DynamicLayer):
    """Hands out the prefix of each row's base run in front of what is computed."""

    def __init__(self, known: KeysValues | None, rows: Tensor, length: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known, self.rows, self.length = known, rows, length

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The prefix and what was computed, for as many rows as have joined so far."""
        del args, kwargs
        if self.known is None:
            raise RunError("the base run left no keys and values of this layer")
        return self._joined(self.known.keys, key_states), self._joined(self.known.values, value_states)

    def _joined(self, known: Tensor, new: Tensor) -> Tensor:
        before = known[:, :, : self.length]
        rows = before.expand(len(new), -1, -1, -1) if len(known) == 1 else before[self.rows[: len(new)]]
        return torch.cat([rows.to(new.dtype), new], dim=-2)

    def get_seq_length(self, *args: Any) -> int:
        """How many positions lie before the pass."""
        del args
        return self.length


def keeping_cache(num_layers: int) -> Cache:
    """A cache that keeps keys and values: see `kept_in`."""
    return Cache(layers=[_Keeping() for _ in range(num_layers)])


def kept_in(cache: Cache) -> list[KeysValues | None]:
    """What a pass left in a `keeping_cache`: for each layer keys and values, None where it did not come by."""
    return [layer.kept if isinstance(layer, _Keeping) else None for layer in cache.layers]


def prefix_cache(known: Sequence[KeysValues | None], rows: Tensor, length: int) -> Cache:
    """A cache that hands out the first `length` positions of base runs.

    Args:
        known: for each layer; None where no pass will get to.
        rows: for each row of the pass the number of its base run.
        length: of the prefix.
    """
    return Cache(layers=[_Prefix(layer, rows, length) for layer in known])


__all__ = ["keeping_cache", "kept_in", "prefix_cache"]
