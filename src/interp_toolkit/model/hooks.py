"""Hooks on modules, put on and taken off again."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

See = Callable[[Tensor], Tensor]
"""Sees an activation; what it returns goes on, and is the same object if nothing changed."""


def see_input(stack: ExitStack, module: nn.Module, see: See, *, active: Callable[[], bool]) -> None:
    """See the tensor that a module is given, until the stack is closed."""
    hook = functools.partial(_on_input, see, active)
    stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)


def see_output(stack: ExitStack, module: nn.Module, see: See, *, active: Callable[[], bool]) -> None:
    """See the tensor that a module returns, alone or first in a tuple, until the stack is closed."""
    stack.callback(module.register_forward_hook(functools.partial(_on_output, see, active)).remove)


def _on_input(see: See, active: Callable[[], bool], module: nn.Module, args: Any, kwargs: Any) -> Any:
    del module
    if not active():
        return None
    name = None if args else tensor_name(kwargs)
    x = args[0] if name is None else kwargs[name]
    new = see(x)
    if new is x:
        return None
    return ((new, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: new})


def _on_output(see: See, active: Callable[[], bool], module: nn.Module, args: Any, output: Any) -> Any:
    del module, args
    if not active():
        return None
    several = isinstance(output, tuple | list)
    x = output[0] if several else output
    new = see(x)
    if new is x:
        return None
    return type(output)((new, *output[1:])) if several else new


Wrap = Callable[..., Any]
"""Stands around a forward: called with it, and with the arguments of a call."""


class _Wrapped:
    """A module's forward and what stands around it, innermost first."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.inner = module.forward
        self.own = module.__dict__.get("forward")
        self.wraps: list[Wrap] = []

    def rebuild(self) -> None:
        """Put the wraps that are left around the forward, or take all away."""
        forward = self.inner
        for wrap in self.wraps:
            forward = functools.wraps(self.inner)(functools.partial(wrap, forward))
        if self.wraps:
            self.module.forward = forward
        elif self.own is None:
            self.module.__dict__.pop("forward", None)
        else:
            self.module.forward = self.own


_lock = threading.RLock()
_wrapped: dict[nn.Module, _Wrapped] = {}


@contextmanager
def forward_replaced(module: nn.Module, wrap: Wrap) -> Iterator[None]:
    """Put a function around a module's forward, and take it away again, in whatever order blocks are left."""
    with _lock:
        entry = _wrapped.setdefault(module, _Wrapped(module))
    try:
        with _lock:
            entry.wraps.append(wrap)
            entry.rebuild()
        yield
    finally:
        with _lock:
            entry.wraps.remove(wrap)
            entry.rebuild()
            if not entry.wraps:
                _wrapped.pop(module, None)


def tensor_name(kwargs: dict[str, Any]) -> str:
    """The keyword under which a module is given its activations."""
    if isinstance(kwargs.get("hidden_states"), Tensor):
        return "hidden_states"
    return next(name for name, value in kwargs.items() if isinstance(value, Tensor) and value.is_floating_point())


__all__ = ["forward_replaced", "see_input", "see_output", "tensor_name"]
