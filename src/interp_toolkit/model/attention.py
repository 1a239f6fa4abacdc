"""Attention from the inside: queries, keys, values, scores and patterns of any model, by the model's own code.

Two ways in, chosen by the layout:

- `"interface"`: the module asks transformers for its attention function, `ALL_ATTENTION_FUNCTIONS.get_interface(name,
  eager_attention_forward)`, in its own modeling file. For the length of a run that name leads to a stand-in whose
  functions delegate to what stood there, so q, k and v come past in one form in every family and the configuration
  stays untouched. Patterns come from the modeling file's own eager function, called for just the layers
  that are read or edited; sliding windows, soft caps and sinks are right by construction.
- `"own"`: the module computes attention itself. While its forward runs, a `TorchFunctionMode` sees its score
  product, its softmax and its value product, or its call of scaled dot-product attention.

Modules that are not being looked at fall through to the real function in both.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Squares = Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]]
"""Computes `scores` and `pattern` later from q, k and v (`[batch, pos, head, d_head]`)."""


@runtime_checkable
class Visitor(Protocol):
    """What looks at one attention module: a session and the layer it is at."""

    def batch_size(self) -> int:
        """How many rows the forward pass under way has."""

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
    query, key, value = (_heads_visited(looking, name, x) for name, x in (("q", query), ("k", key), ("v", value)))
    mask = args[0] if args else kwargs.get("attention_mask")
    if any(visitor.wants("scores") or visitor.wants("pattern") for visitor in looking):
        changing = any(visitor.changes("scores") or visitor.changes("pattern") for visitor in looking)
        watch = _SoftmaxWatch(key.shape[-2], looking)
        if changing or real is eager:
            return _eager(watch, eager, module, (query, key, value), mask, kwargs)
        with torch.no_grad():
            _eager(watch, eager, module, (query, key, value), mask, {**kwargs, "dropout": 0.0})
    else:
        later = functools.partial(_later, eager, module, mask, kwargs)
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


def _later(
    eager: Callable[..., Any], module: nn.Module, mask: Any, kwargs: dict[str, Any], q: Tensor, k: Tensor, v: Tensor
) -> dict[str, Tensor]:
    kept = Keeper()
    qkv = (q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    with torch.no_grad():
        _eager(_SoftmaxWatch(k.shape[1], [kept]), eager, module, qkv, mask, {**kwargs, "dropout": 0.0})
    return kept.seen


class Keeper:
    """A visitor that keeps what it sees."""

    def __init__(self, batch: int = 0) -> None:
        self.seen: dict[str, Tensor] = {}
        self._batch = batch

    def batch_size(self) -> int:
        """See `Visitor`."""
        return self._batch

    def active(self) -> bool:
        """See `Visitor`."""
        return True

    def wants(self, component: str) -> bool:
        """See `Visitor`."""
        return component in ("scores", "pattern")

    def changes(self, component: str) -> bool:
        """See `Visitor`."""
        del component
        return False

    def visit(self, component: str, x: Tensor) -> Tensor:
        """See `Visitor`."""
        self.seen[component] = x
        return x

    def defer(self, squares: Squares) -> None:
        """See `Visitor`."""
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
            f"attention scores and patterns cannot be computed from a mask of type {type(mask).__name__}: load the "
            "model with attn_implementation='sdpa' or 'eager'"
        )
    zero = torch.zeros((), dtype=query.dtype, device=query.device)
    additive = torch.where(allowed, zero, torch.full_like(zero, least))
    return additive.expand(query.shape[0], 1, -1, -1) if additive.ndim < 4 else additive


SOFTMAX = frozenset({torch.softmax, F.softmax, Tensor.softmax, torch.special.softmax})


class _SoftmaxWatch(TorchFunctionMode):
    """Shows visitors what goes into and what comes out of the softmax of attention."""

    def __init__(self, keys: int, looking: list[Visitor]) -> None:
        super().__init__()
        self.keys = keys
        self.looking = looking

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in SOFTMAX or args[0].shape[-1] < self.keys:
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
        return (
            torch.cat([seen.to(x.dtype), x[..., self.keys :]], dim=-1) if x.shape[-1] > self.keys else seen.to(x.dtype)
        )


__all__ = ["SOFTMAX", "Keeper", "Squares", "Visitor", "watch_interface"]
