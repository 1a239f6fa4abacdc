"""Annotations are checked while tests run, by less work than jaxtyping's own and no less strictly."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass
from typing import TYPE_CHECKING, Any

import jaxtyping
import pytest
import torch
from beartype import beartype
from jaxtyping import Float
from torch import Tensor

import interp_toolkit
import lean_checks
from interp_toolkit.probes.evaluation import accuracy
from lean_checks import is_checked

if TYPE_CHECKING:
    from nowhere import Unknown

checked: Callable[..., Any] = lean_checks.jaxtyped(typechecker=beartype)


@checked
def plain(number: int, *more: str, flag: bool = False, **rest: float) -> str:
    return str((number, more, flag, rest))


@checked
def shaped(x: Float[Tensor, "row column"], y: Float[Tensor, " row"], *, wrong: bool = False) -> Float[Tensor, " row"]:
    return y[:-1] if wrong else (x + inner(y, x.T)[:, None]).sum(1)


@checked
def inner(y: Float[Tensor, " column"], x: Float[Tensor, "row column"]) -> Float[Tensor, " column"]:
    return y + x.sum(0)  # the names of axes are those of this function, not of the one that calls it


@checked
def only_for_type_checkers(x: Unknown, y: int) -> Unknown:
    return x if y else None


@checked
def one_after_the_other(x: Float[Tensor, "row column"], n: int) -> Iterator[int]:
    yield from range(n)


@checked
@dataclass(frozen=True, kw_only=True)
class Data:
    values: list[int]
    scores: Float[Tensor, "n n"] | None = None

    @property
    @checked
    def first(self) -> int:
        return self.values[0] if self.values else None  # type: ignore[return-value]


def around(number: int) -> tuple[Callable[..., Any], Callable[..., Any]]:
    @checked
    def inside(
        x: Float[Tensor, " row"], y: Float[Tensor, " row"], *more: int, by: int = number
    ) -> Float[Tensor, " row"]:
        return x[: -1 if more else None] + y[: -1 if more else None] + by + number

    @checked
    def times(x: int, /, *, factor: int = number) -> int:
        return x * factor * number if factor else None  # type: ignore[return-value]

    return inside, times


X, Y = torch.ones(2, 3), torch.ones(2)


def test_what_fits_comes_through() -> None:
    assert plain(1, "a", flag=True, b=1.0) == "(1, ('a',), True, {'b': 1.0})"
    assert shaped(X, Y).tolist() == [15, 15]
    assert only_for_type_checkers("x", 1) == "x"
    assert list(one_after_the_other(X, 3)) == [0, 1, 2]
    assert Data(values=[1], scores=torch.ones(2, 2)).first == 1
    for number in (1, 2):  # each with its own surroundings and defaults
        inside, times = around(number)
        assert inside(Y, Y).tolist() == [2 + 2 * number] * 2
        assert inside(Y, y=Y, by=0).tolist() == [2 + number] * 2
        assert (times(3), times(3, factor=5)) == (3 * number**2, 15 * number)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: plain("1"),
        lambda: plain(1, 2),
        lambda: plain(1, flag=None),
        lambda: plain(1, b="c"),
        lambda: shaped(X, torch.ones(3)),
        lambda: shaped(X, torch.ones(2, dtype=torch.int64)),
        lambda: shaped(X, Y, wrong=True),
        lambda: only_for_type_checkers("x", "y"),
        lambda: one_after_the_other(X, "3"),
        lambda: one_after_the_other(Y, 3),
        lambda: Data(values=(1,)),
        lambda: Data(values=[1], scores=torch.ones(2, 3)),
        lambda: Data(values=[]).first,
        lambda: around(1)[0](Y, torch.ones(3)),
        lambda: around(2)[0](Y, y=torch.ones(3)),
        lambda: around(2)[0](Y, Y, 3),
        lambda: around(3)[0](Y, Y, by="x"),
        lambda: around(3)[1](3.0),
        lambda: around(3)[1](3, factor=0),
        lambda: accuracy(torch.ones(4, dtype=torch.int64), torch.ones(5, dtype=torch.int64)),
    ],
)
def test_what_does_not_fit_is_refused(wrong: Callable[[], Any]) -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        wrong()


@pytest.mark.usefixtures("unchecked")
def test_without_checks_everything_is_taken() -> None:
    assert plain("1", 2) == "('1', (2,), False, {})"
    assert shaped(X, Y, wrong=True).shape == (1,)


def test_every_function_of_the_package_is_checked() -> None:
    number, bare = 0, []
    for info in pkgutil.walk_packages(interp_toolkit.__path__, "interp_toolkit."):
        module = importlib.import_module(info.name)
        tops = [x for x in vars(module).values() if getattr(x, "__module__", "") == module.__name__]
        classes = [x for x in tops if inspect.isclass(x)]
        functions = [x for x in [*tops, *(m for c in classes for m in vars(c).values())] if inspect.isfunction(x)]
        ours = [
            f
            for f in functions
            if inspect.unwrap(f).__code__.co_filename == module.__file__ and f.__name__ != "<lambda>"
        ]
        ours += [c.__init__ for c in classes if is_dataclass(c) and "__init__" in vars(c)]
        number += len(ours)
        bare += [f.__qualname__ for f in ours if not is_checked(inspect.unwrap(f, stop=is_checked))]
    assert number > 1000
    assert bare == []
