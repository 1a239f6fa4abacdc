"""The checks of annotations that jaxtyping and beartype make while tests run, at half the price.

jaxtyping's import hook puts `jaxtyping.jaxtyped(typechecker=beartype)` on every function of the package. What it makes
binds the arguments anew on each call, and checks them twice, whether or not an annotation has a shape: more work than
all the models of the tests together. Here beartype checks each argument and each result once, and only functions with
a shape among their annotations get a scope for the names of their axes. The checks of a function inside of another one
are made once, not on each call of that. What is checked stays the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

_checks = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))  # a TypeError, as jaxtyping raises
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
    if "<locals>" in fn.__qualname__:
        return _checked_inside(fn)
    hints, shaped = _hints_of(fn)
    if shaped and _is_generator(fn):
        return _by_jaxtyping(fn)
    checking = _checks(_twin(fn, hints, fn.__closure__))
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


def _checked_inside(fn: Any) -> Any:
    """For a function inside of another one, which is made anew on each call of that: its checks are made only once."""
    known = _INSIDE.get(id(fn.__code__))
    if known is None:
        known = _INSIDE[id(fn.__code__)] = _Inside(fn)
    if known.left_to_jaxtyping:
        return _by_jaxtyping(fn)
    arguments, result, scope, settings = known.arguments, known.result, known.scope, jaxtyping.config

    @functools.wraps(fn)
    def outer(*args: Any, **kwargs: Any) -> Any:
        if settings.jaxtyping_disable:
            return fn(*args, **kwargs)
        with scope():
            arguments(*args, **kwargs)
            return result(fn(*args, **kwargs))

    setattr(outer, MARK, True)
    return outer


class _Inside:
    """What checks the arguments and the result of every function with this code."""

    def __init__(self, fn: Any) -> None:
        self.code = fn.__code__  # kept, so that nothing else gets its id
        hints, shaped = _hints_of(fn)
        self.left_to_jaxtyping = shaped and _is_generator(fn)
        self.scope: Callable[..., Any] = functools.partial(_jaxtyped, "context") if shaped else contextlib.nullcontext
        returned = hints.pop("return", Any)

        def accept(*args: Any, **kwargs: Any) -> None: ...

        def give_back(x: Any) -> Any:
            return x

        empty = fn.__closure__ and tuple(types.CellType() for _ in fn.__closure__)
        functools.update_wrapper(accept, _twin(fn, hints, empty))
        give_back.__annotations__ = {"x": returned}
        give_back.__module__, give_back.__qualname__ = fn.__module__, f"{fn.__qualname__}.return"
        self.arguments, self.result = _checks(accept), _checks(give_back)


_INSIDE: dict[int, _Inside] = {}


def _hints_of(fn: Any) -> tuple[dict[str, Any], bool]:
    """The annotations of a function, and whether there is a shape among them."""
    hints = {name: _resolved(hint, fn.__globals__) for name, hint in fn.__annotations__.items()}
    shaped = any(map(_has_shape, hints.values()))
    if _is_generator(fn):
        hints.pop("return", None)  # what is yielded was never checked
    return hints, shaped


def _is_generator(fn: Any) -> bool:
    return inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn)


def _by_jaxtyping(fn: Any) -> Any:
    outer = _jaxtyped(fn, typechecker=beartype)
    setattr(outer, MARK, True)
    return outer


def _twin(fn: Any, hints: dict[str, Any], closure: Any) -> Any:
    """The same function with annotations that need not be looked up."""
    made = types.FunctionType(fn.__code__, fn.__globals__, fn.__name__, fn.__defaults__, closure)
    made.__kwdefaults__ = fn.__kwdefaults__
    made.__module__, made.__qualname__ = fn.__module__, fn.__qualname__
    made.__annotations__ = hints
    return made


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
