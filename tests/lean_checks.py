"""The checks of annotations that jaxtyping and beartype make while tests run, at half the price.

jaxtyping's import hook puts `jaxtyping.jaxtyped(typechecker=beartype)` on every function of the package. What it makes
binds the arguments anew on each call, and checks them twice, whether or not an annotation has a shape: more work than
all the models of the tests together. Here beartype checks each argument and each result once, and only functions with
a shape among their annotations get a scope for the names of their axes. What is checked stays the same.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import beartype

_jaxtyped: Callable[..., Any] = jaxtyping.jaxtyped
MARK = "_checked_leanly"


def install() -> None:
    """From now on the import hook uses `jaxtyped` of this file: to be called before the package is imported."""
    jaxtyping.jaxtyped = jaxtyped  # type: ignore[assignment]


def jaxtyped(fn: Any = None, *, typechecker: Any = None) -> Any:
    """As `jaxtyping.jaxtyped`: a decorator of functions and dataclasses, or a scope for names of axes."""
    if fn is None:
        return functools.partial(jaxtyped, typechecker=typechecker)
    if inspect.isclass(fn):
        if dataclasses.is_dataclass(fn) and not hasattr(fn.__init__, MARK):
            fn.__init__ = _checked(fn.__init__)  # type: ignore[misc]
        return fn
    if isinstance(fn, types.FunctionType):
        return _checked(fn)
    return _jaxtyped(fn, typechecker=typechecker)  # descriptors and contexts


def _checked(fn: Any) -> Any:
    hints = {name: _resolved(hint, fn.__globals__) for name, hint in fn.__annotations__.items()}
    shaped = any(map(_has_shape, hints.values()))
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        if shaped:
            outer = _jaxtyped(fn, typechecker=beartype)
            setattr(outer, MARK, True)
            return outer
        hints.pop("return", None)  # what is yielded was never checked
    inner = types.FunctionType(fn.__code__, fn.__globals__, fn.__name__, fn.__defaults__, fn.__closure__)
    inner.__kwdefaults__ = fn.__kwdefaults__
    inner.__module__, inner.__qualname__ = fn.__module__, fn.__qualname__
    inner.__annotations__ = hints
    checking = beartype(inner)
    settings = jaxtyping.config
    if shaped:

        @functools.wraps(fn)
        def outer(*args: Any, **kwargs: Any) -> Any:
            if settings.jaxtyping_disable:
                return fn(*args, **kwargs)
            with _jaxtyped("context"):
                return checking(*args, **kwargs)
    else:

        @functools.wraps(fn)
        def outer(*args: Any, **kwargs: Any) -> Any:
            return (fn if settings.jaxtyping_disable else checking)(*args, **kwargs)

    setattr(outer, MARK, True)
    return outer


def _resolved(hint: Any, names: dict[str, Any]) -> Any:
    """What an annotation means; `Any`, as jaxtyping has it, for names that are only there for type checkers."""

    def holder() -> None: ...

    holder.__annotations__ = {"hint": hint}
    try:
        return typing.get_type_hints(holder, names, include_extras=True)["hint"]
    except Exception:  # noqa: BLE001 - evaluating may raise anything
        return Any


def _has_shape(hint: Any) -> bool:
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    parts = hint if isinstance(hint, (list, tuple)) else typing.get_args(hint)
    return any(map(_has_shape, parts))


def is_checked(fn: Any) -> bool:
    """Whether calls of this function are checked by this file or, where that is left to it, by jaxtyping."""
    return MARK in vars(fn)
