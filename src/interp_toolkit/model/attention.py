"""Attention from the inside: queries, keys, values, scores and patterns of any model, by the model's own code.

Two ways in, chosen by the layout:

- `"interface"`: the module asks transformers for its attention function, `ALL_ATTENTION_FUNCTIONS.get_interface(name,
  eager_attention_forward)`, in its own modeling file. For the length of a run that name leads to a stand-in whose
  functions delegate to what stood there, so q, k and v come past in one form in every family and the configuration
  stays untouched. Patterns come from the modeling file's own eager function, called for just the layers
  that are read or edited; sliding windows, soft caps and sinks are right by construction.
- `"own"`: the module computes attention itself. While its forward runs, a `TorchFunctionMode` sees its score product, its
  softmax and its value product, or its call of scaled dot-product attention.

Modules that are not being looked at fall through to the real function in both.
"""

from __future__ import annotations

import functools
import inspect
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Squares = Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]]
"""Computes `scores` and `pattern` later from q, k and v (`[batch, pos, head, d_head]`)."""


class Visitor(Protocol):
    """What looks at one attention module: a session and the layer it is at."""

    batch: int

    def active(self) -> bool:
        """Whether it looks now (its own thread, not inside an edit)."""

    def wants(self, component: str) -> bool:
        """Whether it reads or edits the component here."""

    def changes(self, component: str) -> bool:
        """Whether it edits the component here, or needs gradients through it."""

    def visit(self, component: str, x: Tensor) -> Tensor:
        """See an activation, with the axes of its site; the result goes on, the same object if it is unchanged."""

    def defer(self, squares: Squares) -> None:
        """Be given the means to compute scores and patterns later."""


# --- the registered interface -------------------------------------------------------------------------------------

_lock = threading.RLock()
_visitors: dict[nn.Module, list[Visitor]] = {}
_users: dict[int, int] = {}
_NAME = "ALL_ATTENTION_FUNCTIONS"


class _StandIn:
    """Stands where a modeling file looks up its attention function, and delegates everything else."""

    def __init__(self, original: Any) -> None:
        self.original = original

    def get_interface(self, name: str, default: Callable[..., Any]) -> Callable[..., Any]:
        """The function that the model would have got, watched."""
        return functools.partial(_dispatch, self.original.get_interface(name, default), default)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)

    def __getitem__(self, name: str) -> Any:
        return self.original[name]

    def __contains__(self, name: object) -> bool:
        return name in self.original


@contextmanager
def watch_interface(visitors: Mapping[nn.Module, Visitor]) -> Iterator[None]:
    """Let visitors see the attention calls of their modules.

    Safe for several threads and for nesting: the stand-in is shared, and goes when its last user leaves.
    """
    namespaces = {id(space): space for space in map(_namespace, visitors)}
    entered: list[int] = []
    added: list[tuple[nn.Module, Visitor]] = []
    try:
        with _lock:
            for key, space in namespaces.items():
                if not _users.get(key):
                    space[_NAME] = _StandIn(space[_NAME])
                _users[key] = _users.get(key, 0) + 1
                entered.append(key)
            for module, visitor in visitors.items():
                _visitors.setdefault(module, []).append(visitor)
                added.append((module, visitor))
        yield
    finally:
        with _lock:
            for module, visitor in added:
                _visitors[module].remove(visitor)
                if not _visitors[module]:
                    del _visitors[module]
            for key in entered:
                _users[key] -= 1
                if not _users[key]:
                    del _users[key]
                    namespaces[key][_NAME] = namespaces[key][_NAME].original


def _namespace(module: nn.Module) -> dict[str, Any]:
    space: dict[str, Any] = inspect.unwrap(type(module).forward).__globals__
    return space


def _dispatch(
    real: Callable[..., Any],
    eager: Callable[..., Any],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Any:
    looking = [visitor for visitor in _visitors.get(module, ()) if visitor.active()]
    if not looking:
        return real(module, query, key, value, *args, **kwargs)
    query, key, value = (
        _heads_visited(looking, name, x) for name, x in (("q", query), ("k", key), ("v", value))
    )
    mask = args[0] if args else kwargs.get("attention_mask")
    if any(visitor.wants("scores") or visitor.wants("pattern") for visitor in looking):
        changing = any(visitor.changes("scores") or visitor.changes("pattern") for visitor in looking)
        watch = _SoftmaxWatch(key.shape[-2], looking)
        if changing or real is eager:
            return _eager(watch, eager, module, (query, key, value), mask, kwargs)
        with torch.no_grad():
            _eager(watch, eager, module, (query, key, value), mask, {**kwargs, "dropout": 0.0})
    else:
        later = _later(eager, module, mask, kwargs)
        for visitor in looking:
            visitor.defer(later)
    return real(module, query, key, value, *args, **kwargs)


def _heads_visited(looking: list[Visitor], name: str, x: Tensor) -> Tensor:
    """Visit `[batch, head, pos, d_head]` as `[batch, pos, head, d_head]`; the same object if nothing changed."""
    if not any(visitor.wants(name) for visitor in looking):
        return x
    seen = turned = x.transpose(1, 2)
    for visitor in looking:
        seen = visitor.visit(name, seen)
    return x if seen is turned else seen.transpose(1, 2)


def _eager(
    watch: _SoftmaxWatch,
    eager: Callable[..., Any],
    module: nn.Module,
    qkv: tuple[Tensor, Tensor, Tensor],
    mask: Any,
    kwargs: dict[str, Any],
) -> Any:
    query, key, value = qkv
    rest = {name: item for name, item in kwargs.items() if name != "attention_mask"}
    additive = _additive(mask, query, key, rest.get("sliding_window"))
    with watch:
        return eager(module, query, key, value, additive, **rest)


def _later(eager: Callable[..., Any], module: nn.Module, mask: Any, kwargs: dict[str, Any]) -> Squares:
    def squares(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
        kept = _Keeper()
        watch = _SoftmaxWatch(k.shape[1], [kept])
        with torch.no_grad():
            _eager(
                watch,
                eager,
                module,
                (q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)),
                mask,
                {**kwargs, "dropout": 0.0},
            )
        return kept.seen

    return squares


class _Keeper:
    """A visitor that keeps what it sees."""

    batch = 0

    def __init__(self) -> None:
        self.seen: dict[str, Tensor] = {}

    def active(self) -> bool:
        return True

    def wants(self, component: str) -> bool:
        return component in ("scores", "pattern")

    def changes(self, component: str) -> bool:
        del component
        return False

    def visit(self, component: str, x: Tensor) -> Tensor:
        self.seen[component] = x
        return x

    def defer(self, squares: Squares) -> None:
        del squares


def _additive(mask: Any, query: Tensor, key: Tensor, window: int | None) -> Tensor | None:
    """The mask in the form that eager attention adds to its scores.

    SDPA gets boolean masks, or none where it makes a causal one itself; flash kernels get the padding, or none.
    """
    if isinstance(mask, Tensor) and mask.ndim == 4 and mask.dtype != torch.bool:
        return mask
    queries, keys = query.shape[-2], key.shape[-2]
    least = torch.finfo(query.dtype).min
    if isinstance(mask, Tensor) and mask.ndim == 4:
        allowed = mask
    elif mask is None or (isinstance(mask, Tensor) and mask.ndim == 2):
        rows = torch.arange(keys - queries, keys, device=query.device)[:, None]
        columns = torch.arange(keys, device=query.device)[None, :]
        allowed = columns <= rows
        if window:
            allowed = allowed & (columns > rows - window)
        if mask is not None:
            allowed = allowed & mask[:, None, None, -keys:].bool()
    else:
        raise NotImplementedError(
            f"attention scores and patterns cannot be computed from a mask of type {type(mask).__name__}: load the model "
            "with attn_implementation='sdpa' or 'eager'"
        )
    zero = torch.zeros((), dtype=query.dtype, device=query.device)
    additive = torch.where(allowed, zero, torch.full_like(zero, least))
    return additive.expand(query.shape[0], 1, -1, -1) if additive.ndim < 4 else additive


# --- looking into computations ------------------------------------------------------------------------------------

_SOFTMAX = frozenset({torch.softmax, F.softmax, Tensor.softmax, torch.special.softmax})
_PRODUCTS = frozenset(
    {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm, torch.baddbmm, Tensor.baddbmm}
)
_WITH_BIAS = frozenset({torch.baddbmm, Tensor.baddbmm})


class _SoftmaxWatch(TorchFunctionMode):
    """Shows visitors what goes into and what comes out of the softmax of attention."""

    def __init__(self, keys: int, looking: list[Visitor]) -> None:
        super().__init__()
        self.keys = keys
        self.looking = looking

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _SOFTMAX or args[0].shape[-1] < self.keys:
            return func(*args, **kwargs)
        scores = self._visited("scores", args[0])
        return self._visited("pattern", func(scores, *args[1:], **kwargs))

    def _visited(self, component: str, x: Tensor) -> Tensor:
        # Sinks are further columns behind the keys.
        seen = keys = x[..., : self.keys]
        for visitor in self.looking:
            if visitor.wants(component):
                seen = visitor.visit(component, seen)
        if seen is keys:
            return x
        return torch.cat([seen.to(x.dtype), x[..., self.keys :]], dim=-1) if x.shape[-1] > self.keys else seen.to(x.dtype)


@contextmanager
def watch_own(module: nn.Module, visitor: Visitor) -> Iterator[None]:
    """Let a visitor see the attention that a module computes in its own forward."""
    inner = module.forward
    replaced = module.__dict__.get("forward")

    @functools.wraps(inner)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if not visitor.active():
            return inner(*args, **kwargs)
        if not (visitor.wants("scores") or visitor.wants("pattern")):
            visitor.defer(_own_later(inner, args, kwargs, visitor))
        with _OwnWatch(visitor):
            return inner(*args, **kwargs)

    try:
        module.forward = forward
        yield
    finally:
        if replaced is None:
            module.__dict__.pop("forward", None)
        else:
            module.forward = replaced


def _own_later(inner: Callable[..., Any], args: Any, kwargs: Any, visitor: Visitor) -> Squares:
    batch = visitor.batch

    def squares(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
        del q, k, v  # such a module is run again on what it was given
        kept = _Keeper()
        kept.batch = batch
        with torch.no_grad(), _OwnWatch(kept):
            inner(*args, **kwargs)
        return kept.seen

    return squares


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
        if func in _SOFTMAX and self.stage == "softmax":
            self.stage = "values"
            scores = self._square("scores", args[0])
            return self._square("pattern", func(scores, *args[1:], **kwargs))
        if func in _PRODUCTS:
            return self._product(func, list(args), dict(kwargs))
        return func(*args, **kwargs)

    def _product(self, func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        first = 1 if func in _WITH_BIAS else 0
        names = ("batch1", "batch2") if func in _WITH_BIAS else ("mat1", "other")
        operands = [args[first + n] if len(args) > first + n else kwargs.get(names[n]) for n in (0, 1)]
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
        four = x if x.ndim == 4 else x.unflatten(0, (self.visitor.batch, -1))
        turned = four.transpose(1, 2)
        seen = self.visitor.visit(name, turned)
        return x if seen is turned else seen.transpose(1, 2).reshape(x.shape)

    def _square(self, name: str, x: Tensor) -> Tensor:
        if not self.visitor.wants(name):
            return x
        four = x if x.ndim == 4 else x.unflatten(0, (self.visitor.batch, -1))
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
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **kwargs
        )

    def _by_definition(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None
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


__all__ = ["Squares", "Visitor", "watch_interface", "watch_own"]
