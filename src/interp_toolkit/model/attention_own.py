"""Attention that a module computes itself, seen while its forward runs.

A `TorchFunctionMode` sees the score product, the softmax and the value product, or the call of scaled dot-product
attention, in whatever form the module writes them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from interp_toolkit.model.attention import SOFTMAX, Keeper, Visitor
from interp_toolkit.model.hooks import forward_replaced

_PRODUCTS = frozenset(
    {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm, torch.baddbmm, Tensor.baddbmm}
)
_WITH_BIAS = frozenset({torch.baddbmm, Tensor.baddbmm})


@contextmanager
def watch_own(module: nn.Module, visitor: Visitor) -> Iterator[None]:
    """Let a visitor see the attention that a module computes in its own forward."""
    with forward_replaced(module, functools.partial(_watched, visitor)):
        yield


def _watched(visitor: Visitor, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not visitor.active():
        return inner(*args, **kwargs)
    if not (visitor.wants("scores") or visitor.wants("pattern")):
        visitor.defer(functools.partial(_own_later, inner, args, kwargs, visitor.batch_size()))
    with _OwnWatch(visitor):
        return inner(*args, **kwargs)


def _own_later(
    inner: Callable[..., Any], args: Any, kwargs: Any, batch: int, q: Tensor, k: Tensor, v: Tensor
) -> dict[str, Tensor]:
    del q, k, v  # such a module is run again on what it was given
    kept = Keeper(batch)
    with torch.no_grad(), _OwnWatch(kept):
        inner(*args, **kwargs)
    return kept.seen


class _OwnWatch(TorchFunctionMode):
    """Sees the products and the softmax of one attention computation."""

    def __init__(self, visitor: Visitor) -> None:
        super().__init__()
        self.visitor = visitor
        self.stage = "scores"

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._sdpa(*args, **kwargs)
        if func in SOFTMAX and self.stage == "softmax":
            self.stage = "values"
            scores = self._square("scores", args[0])
            return self._square("pattern", func(scores, *args[1:], **kwargs))
        if func in _PRODUCTS:
            return self._product(func, list(args), dict(kwargs))
        return func(*args, **kwargs)

    def _product(self, func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        first = 1 if func in _WITH_BIAS else 0
        names = ("batch1", "batch2") if func in _WITH_BIAS else ("mat1", "other")
        operands: list[Any] = [args[first + n] if len(args) > first + n else kwargs.get(names[n]) for n in (0, 1)]
        if not all(isinstance(x, Tensor) and x.ndim >= 3 for x in operands):
            return func(*args, **kwargs)  # a projection by weights
        if self.stage == "scores":
            self.stage = "softmax"
            new = [self._heads("q", operands[0]), self._heads("k", operands[1].mT).mT]
        elif self.stage == "values":
            self.stage = "done"
            new = [operands[0], self._heads("v", operands[1])]
        else:
            return func(*args, **kwargs)
        for n in (0, 1):
            if len(args) > first + n:
                args[first + n] = new[n]
            else:
                kwargs[names[n]] = new[n]
        return func(*args, **kwargs)

    def _heads(self, name: str, x: Tensor) -> Tensor:
        """Visit `[batch, head, pos, d]` or `[batch * head, pos, d]` with the axes of its site."""
        if not self.visitor.wants(name):
            return x
        four = x if x.ndim == 4 else x.unflatten(0, (self.visitor.batch_size(), -1))
        turned = four.transpose(1, 2)
        seen = self.visitor.visit(name, turned)
        return x if seen is turned else seen.transpose(1, 2).reshape(x.shape)

    def _square(self, name: str, x: Tensor) -> Tensor:
        if not self.visitor.wants(name):
            return x
        four = x if x.ndim == 4 else x.unflatten(0, (self.visitor.batch_size(), -1))
        seen = self.visitor.visit(name, four)
        return x if seen is four else seen.to(x.dtype).reshape(x.shape)

    def _sdpa(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **kwargs: Any,
    ) -> Tensor:
        self.stage = "done"
        query, key, value = self._heads("q", query), self._heads("k", key), self._heads("v", value)
        if self.visitor.wants("scores") or self.visitor.wants("pattern"):
            output = self._by_definition(query, key, value, attn_mask, is_causal, scale)
            if self.visitor.changes("scores") or self.visitor.changes("pattern"):
                return output
        return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **kwargs)

    def _by_definition(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        is_causal: bool,
        scale: float | None,
    ) -> Float[Tensor, "batch head pos d_head"]:
        """Scaled dot-product attention as its documentation defines it."""
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scores = (query @ key.mT) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
        if is_causal:
            allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
            scores = scores.masked_fill(~allowed, -math.inf)
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
        scores = self._square("scores", scores)
        # A row of padding may see no key at all.
        pattern = torch.softmax(scores, dim=-1).nan_to_num(0.0)
        return self._square("pattern", pattern) @ value


__all__ = ["watch_own"]
