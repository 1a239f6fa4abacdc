"""Which tokens of a document are kept: all, the last, the first ones, every n-th, a random sample, or given spans."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from interp_toolkit.errors import StoreError

_FORMS = "'all', 'last', 'first:4', 'every:8', 'sample:0.1', 'sample:0.1:seed' or 'spans'"


@dataclass(frozen=True)
class Selection:
    """Which tokens of a document are kept.

    Args:
        kind: `all`; `last`; `first` (`number` of them); `every` (`number`-th, from the first one on); `sample` (each
            token with probability `share`, decided by the seed and the document's number, so that it does not depend
            on who computes it); `spans` (those that the document names).
        number: of `first` and `every`.
        share: of `sample`.
        seed: of `sample`.

    Raises:
        StoreError: for a kind that does not exist, or a number or share that keeps nothing.

    Example:
        >>> Selection.parse("every:4")
        Selection(kind='every', number=4, share=1.0, seed=0)
        >>> Selection.parse("every:4").keep(10, document=0).nonzero()[0].tolist()
        [0, 4, 8]
    """

    kind: str = "all"
    number: int = 1
    share: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check that it keeps something."""
        if self.kind not in ("all", "last", "first", "every", "sample", "spans"):
            raise StoreError(f"there are no tokens called {self.kind!r}: use {_FORMS}")
        if self.number < 1:
            raise StoreError(f"{self} keeps nothing: the number is 1 or more")
        if not 0 < self.share <= 1:
            raise StoreError(f"{self} keeps nothing: the share lies above 0 and is at most 1")

    @classmethod
    def parse(cls, text: str | Selection) -> Selection:
        """Read what `str` writes.

        Raises:
            StoreError: for anything else.
        """
        if isinstance(text, Selection):
            return text
        found = re.fullmatch(
            r"(all|last|spans)|(first|every):(\d{1,9})|(sample):([0-9.eE-]{1,20})(?::(\d{1,9}))?", str(text).strip()
        )
        if found is None:
            raise StoreError(f"positions {text!r} are not understood: use {_FORMS}")
        plain, counted, number, sample, share, seed = found.groups()
        if plain:
            return cls(plain)
        if counted:
            return cls(counted, number=int(number))
        try:
            return cls(sample, share=float(share), seed=int(seed or 0))
        except ValueError as error:
            raise StoreError(f"positions {text!r} are not understood: {error}") from error

    def __str__(self) -> str:
        """The text that `parse` reads."""
        match self.kind:
            case "first" | "every":
                return f"{self.kind}:{self.number}"
            case "sample":
                return f"sample:{self.share!r}:{self.seed}"
        return self.kind

    def keep(
        self,
        length: int,
        *,
        document: int,
        spans: Sequence[tuple[int, int]] | None = None,
        may: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.bool_]:
        """Which tokens of a document are kept.

        Args:
            length: how many tokens it has.
            document: its number, for `sample`.
            spans: its spans of tokens, from the first to behind the last one, for `spans`.
            may: which tokens may be kept at all; the last one is the last of these, and `first` and `every` count
                these only.
        """
        if may is not None and self.kind in ("first", "last", "every"):
            found = np.zeros(length, dtype=bool)
            found[np.flatnonzero(may)[self.keep(int(may.sum()), document=document)]] = True
            return found
        kept = np.zeros(length, dtype=bool)
        match self.kind:
            case "all":
                kept[:] = True
            case "last":
                kept[-1:] = True
            case "first":
                kept[: self.number] = True
            case "every":
                kept[:: self.number] = True
            case "sample":
                kept = np.random.Generator(np.random.Philox(key=[self.seed, document])).random(length) < self.share
            case _:
                for begin, end in spans or ():
                    kept[begin:end] = True
        return kept if may is None else kept & may


__all__ = ["Selection"]
