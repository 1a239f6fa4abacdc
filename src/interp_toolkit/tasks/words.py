"""The words and templates that prompts are made of, and how they are shared out among the splits."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

Split = Literal["train", "validation", "test"]
"""Parts of a data set that share no template and no entity."""

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_QUARTERS: dict[Split, tuple[int, ...]] = {"train": (0, 2), "validation": (1,), "test": (3,)}

T = TypeVar("T")


@cache
def table(name: str) -> dict[str, Any]:
    """What stands in one of the files in `data`."""
    return tomllib.loads((Path(__file__).parent / "data" / f"{name}.toml").read_text(encoding="utf-8"))


def words(text: str) -> list[str]:
    """The words of a list, in order."""
    return text.split()


def share(items: Sequence[T], split: Split) -> list[T]:
    """The items that belong to a split: half of them to train, a quarter each to validation and test.

    They are dealt out in turn, so that a list that begins with the best known gives each split some of these.

    Example:
        >>> share("abcdefgh", "train"), share("abcdefgh", "test")
        (['a', 'c', 'e', 'g'], ['d', 'h'])
    """
    return [item for number, item in enumerate(items) if number % 4 in _QUARTERS[split]]


__all__ = ["SPLITS", "Split", "share", "table", "words"]
