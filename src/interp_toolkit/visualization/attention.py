"""Attention: which token looks at which, for one head as a heat map, for all heads of a model as a view to explore."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from interp_toolkit.visualization.attention_pictures import Panel, grid_picture, matrix_picture
from interp_toolkit.visualization.bundle import packed
from interp_toolkit.visualization.document import Table, visible
from interp_toolkit.visualization.patterns import (
    Choice,
    Head,
    Key,
    Matrix,
    Run,
    by_head,
    check,
    of_run,
    quantised,
    scores_of,
    select,
)
from interp_toolkit.visualization.pictures import Picture
from interp_toolkit.visualization.view import View

_SOURCES = 3  # how many sources of a token a table names
_ROWS = 256  # of a table


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionView(View):
    """Attention patterns to look at: made by `plot_attention`, which checks them.

    On a page, weights are bytes on a scale of square roots: a weight `w` is off by at most
    `sqrt(w) / 200 + 1 / (4 · 200²)`, which is 0.005 at a weight of 1 and 0.0005 at 0.01. Pictures, tables and scores
    are of the weights as they were given.

    Attributes:
        title: above it.
        tokens: one for each position.
        heads: which head each pattern is of.
        weights: a pattern for each head; rows are queries, columns keys.
        corrupt: as many patterns of a run to compare with, if there is one.
        corrupt_tokens: of that run.
        norms: for each head, the norm of the value at each position, to weigh by.
        scores: numbers by name and head, to sort heads by.
        caption: what it shows.
    """

    title: str
    tokens: tuple[str, ...]
    heads: tuple[Head, ...]
    weights: tuple[Matrix, ...]
    corrupt: tuple[Matrix, ...] = ()
    corrupt_tokens: tuple[str, ...] = ()
    norms: tuple[Matrix, ...] = ()
    scores: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    caption: str = ""

    @property
    def modules(self) -> Sequence[str]:
        """See `View.modules`."""
        return ("attention.js",)

    @cached_property
    def causal(self) -> bool:
        """Whether no token attends to a later one."""
        return not any(np.triu(x, 1).any() for x in (*self.weights, *self.corrupt))

    def data(self) -> dict[str, Any]:
        """See `View.data`."""
        heads = [
            {"name": head.name, "label": head.label, "layer": head.layer, "head": head.number} for head in self.heads
        ]
        return {
            "title": visible(self.title),
            "tokens": [visible(token) for token in self.tokens],
            "corruptTokens": [visible(token) for token in self.corrupt_tokens] or None,
            "heads": heads,
            "causal": self.causal,
            "patterns": self._bytes(self.weights),
            "corrupt": self._bytes(self.corrupt) if self.corrupt else None,
            "norms": packed(_relative(self.norms)) if self.norms else None,
            "scores": [
                {"name": visible(name), "values": [None if x is None else round(x, 5) for x in values]}
                for name, values in self.scores.items()
            ],
        }

    def picture(self, *, titled: bool = True) -> Picture:
        """See `View.picture`."""
        title = self.title
        if len(self.heads) == 1:
            return matrix_picture(self._panels(0), title=title, titled=titled, causal=self.causal)
        differences = [clean - other for clean, other in zip(self.weights, self.corrupt, strict=False)]
        return grid_picture(self.heads, differences or self.weights, title=title, titled=titled, causal=self.causal)

    def table(self) -> Table:
        """See `View.table`."""
        return self._sources(0) if len(self.heads) == 1 else self._of_heads()

    def _panels(self, head: int) -> list[Panel]:
        clean = self.weights[head]
        if not self.corrupt:
            return [Panel(name="", rows=self.tokens, columns=self.tokens, weights=clean)]
        corrupt = self.corrupt[head]
        others = [a if a == b else f"{a} / {b.strip()}" for a, b in zip(self.tokens, self.corrupt_tokens, strict=True)]
        return [
            Panel(name="clean", rows=self.tokens, columns=self.tokens, weights=clean),
            Panel(name="corrupt", rows=self.corrupt_tokens, columns=self.corrupt_tokens, weights=corrupt),
            Panel(name="clean − corrupt", rows=others, columns=others, weights=clean - corrupt),
        ]

    def _bytes(self, weights: Sequence[Matrix]) -> list[str]:
        return [str(packed(quantised(x, causal=self.causal), strategy=zlib.Z_RLE)["data"]) for x in weights]

    def _sources(self, head: int) -> Table:
        rows = []
        for n, weights in enumerate(self.weights[head][:_ROWS]):
            best = [int(j) for j in np.argsort(-weights, kind="stable")[:_SOURCES] if weights[j] > 0]
            named = [f"{self.tokens[j]} ({j}) {weights[j]:.2f}" for j in best]
            rows.append([str(n), self.tokens[n], *named, *[""] * (_SOURCES - len(named))])
        more = f", the first {_ROWS} tokens" if len(self.tokens) > _ROWS else ""
        headers = ["position", "from", "most to", "then to", "then to"]
        return Table(title=f"Where each token looks{more}", headers=headers, rows=rows)

    def _of_heads(self) -> Table:
        rows = [
            [head.label, *("n/a" if values[n] is None else f"{values[n]:.2f}" for values in self.scores.values())]
            for n, head in enumerate(self.heads)
        ]
        return Table(title="Scores of the heads", headers=["head", *self.scores], rows=rows)


def plot_attention(
    pattern: Any,
    tokens: Sequence[str] | None = None,
    *,
    layer: Choice = None,
    head: Choice = None,
    corrupt: Any = None,
    corrupt_tokens: Sequence[str] | None = None,
    value_norms: Any = None,
    scores: Mapping[str, Any] | None = None,
    groups: int | Sequence[int] | None = None,
    title: str | None = None,
    output: str | Path | None = None,
) -> AttentionView:
    """Show who attends to whom: a heat map of one head, or a view of many to sort, pin and compare.

    Args:
        pattern: weights after softmax, as a tensor, array or lists: `[pos, pos]`, `[head, pos, pos]` or
            `[layer, head, pos, pos]`; one `[head, pos, pos]` for each layer, as a list or by layer in a mapping; a
            `[pos, pos]` for each pair `(layer, head)` in a mapping; or the activations of one prompt.
        tokens: one for each position; those of the activations, or numbers, if they are not given.
        layer: which layers to show, all if not given; for a pattern without layers, what layer it is of.
        head: the same for heads.
        corrupt: patterns of the same shape from another run; then clean, corrupt and their difference can be seen.
        corrupt_tokens: the tokens of that run; those of `pattern` if they are not given.
        value_norms: norms of values to weigh by (Kobayashi et al. 2020, arXiv:2004.10102), `[pos]` for each head,
            in a form like that of `pattern`; activations bring their own.
        scores: by name, a number for each head in a form like that of `pattern`, to sort heads by.
        groups: how many key/value heads the heads of a layer share, or for each head which one it reads.
        title: above it.
        output: a file to write it to as well: `.html`, `.svg`, `.png` or `.pdf`.

    Returns:
        The view: shown by notebooks, written by `save`.

    Raises:
        ValueError: for what is no pattern, or does not fit; it says what was found and what would do.

    Example:
        >>> view = plot_attention([[1.0, 0.0], [0.75, 0.25]], tokens=["The", "capital"])
        >>> view.heads, view.causal
        ((Head(layer=None, number=None, group=None),), True)
    """
    patterns, found, norms, kv_heads = _read(pattern, layer)
    names = select(patterns, layer, head)
    length = len(next(iter(patterns.values())))
    shown = _tokens(tokens if tokens is not None else found, length, "tokens")
    clean = _checked(patterns, names, "the pattern", len(shown))
    others, their_tokens = _corrupt(corrupt, corrupt_tokens, names, shown, layer)
    if value_norms is not None:
        norms = by_head(value_norms, 1, "value_norms", "[pos], [head, pos] or [layer, head, pos]")
    heads = _heads(names, patterns, groups if groups is not None else kv_heads)
    view = AttentionView(
        title=title if title is not None else _title(heads),
        tokens=shown,
        heads=heads,
        weights=clean,
        corrupt=others,
        corrupt_tokens=their_tokens,
        norms=_of_heads(norms, names, "value_norms", (len(shown),)) if norms else (),
        scores=_scores(clean, shown, scores or {}, names),
        caption="Rows attend, columns are attended to. The square root of a weight gives its colour: small ones show.",
    )
    if output is not None:
        view.save(output)
    return view


def _read(pattern: Any, layer: Choice) -> tuple[dict[Key, Matrix], list[str] | None, dict[Key, Matrix], int | None]:
    """Patterns, tokens, norms of values and number of key/value heads, as far as they are known."""
    if isinstance(pattern, Run):
        tokens, patterns, norms, groups = of_run(pattern, layer)
        return patterns, tokens, norms, groups
    return by_head(pattern, 2), None, {}, None


def _tokens(tokens: Sequence[str] | None, length: int, what: str) -> tuple[str, ...]:
    if tokens is None:
        return tuple(map(str, range(length)))
    if isinstance(tokens, str) or not all(isinstance(token, str) for token in tokens):
        raise ValueError(f'{what} should be a list of texts, one for each position, such as ["The", "capital"]')
    return tuple(tokens)


def _checked(patterns: Mapping[Key, Matrix], names: Mapping[Key, Key], what: str, length: int) -> tuple[Matrix, ...]:
    for name, key in names.items():
        label = Head(layer=name[0], number=name[1]).name
        check(patterns[key], f"{what} of {label}" if label else what, length)
    return tuple(patterns[key] for key in names.values())


def _corrupt(
    corrupt: Any, tokens: Sequence[str] | None, names: Mapping[Key, Key], clean: tuple[str, ...], layer: Choice
) -> tuple[tuple[Matrix, ...], tuple[str, ...]]:
    """Patterns and tokens of the run to compare with."""
    if corrupt is None:
        if tokens is not None:
            raise ValueError("corrupt_tokens were given, but no corrupt pattern")
        return (), ()
    patterns, found, _, _ = _read(corrupt, layer)
    theirs = tokens if tokens is not None else found
    missing = [key for key in names.values() if key not in patterns]
    if missing:
        raise ValueError(
            f"the corrupt pattern has no {_pair(missing[0])}, which the clean one has: give both in the same form"
        )
    shown = clean if theirs is None else _tokens(theirs, len(clean), "corrupt_tokens")
    if len(shown) != len(clean):
        raise ValueError(
            f"the clean prompt has {len(clean)} tokens and the corrupt one {len(shown)}: the two are compared position "
            "by position, so choose a corrupt prompt of the same length"
        )
    return _checked(patterns, names, "the corrupt pattern", len(clean)), shown


def _pair(key: Key) -> str:
    return (
        " ".join(f"{what} {n}" for what, n in zip(("layer", "head"), key, strict=True) if n is not None) or "one matrix"
    )


def _of_heads(
    values: Mapping[Key, Matrix], names: Mapping[Key, Key], what: str, shape: tuple[int, ...]
) -> tuple[Matrix, ...]:
    """What belongs to the heads that are shown, in their order."""
    found = []
    for key in names.values():
        if key not in values:
            raise ValueError(f"{what} lacks {_pair(key)}: give it for every head, in a form like that of the pattern")
        x = values[key]
        if x.shape != shape or not np.isfinite(x).all() or (shape and x.min() < 0):
            need = f"{shape[0]} numbers that are not negative" if shape else "a number"
            raise ValueError(f"{what} of {_pair(key)} should be {need}, but has the shape {x.shape} and holds {x}")
        found.append(x)
    return tuple(found)


def _scores(
    weights: Sequence[Matrix], tokens: Sequence[str], more: Mapping[str, Any], names: Mapping[Key, Key]
) -> dict[str, list[float | None]]:
    """Scores by name, one for each head: those of the patterns, then those that were given."""
    found: dict[str, list[float | None]] = {}
    if len(weights) > 1:
        found = scores_of(weights, tokens)
    for name, values in more.items():
        what = f"scores[{name!r}]"
        read = by_head(values, 0, what, "a number, [head] or [layer, head]")
        found[name] = [float(x) for x in _of_heads(read, names, what, ())]
    return found


def _heads(
    names: Mapping[Key, Key], patterns: Mapping[Key, Matrix], groups: int | Sequence[int] | None
) -> tuple[Head, ...]:
    """The heads that are shown, with the key/value head that each reads."""
    if groups is None:
        return tuple(Head(layer=layer, number=number) for layer, number in names)
    if any(number is None for _, number in names):
        raise ValueError("groups= belongs to patterns whose heads are numbered: give head= as well")
    total = 1 + max(number for _, number in [*patterns, *names] if number is not None)
    if isinstance(groups, int) and (groups < 1 or total % groups):
        raise ValueError(f"{total} heads cannot share {groups} key/value heads evenly")
    which = [n * groups // total for n in range(total)] if isinstance(groups, int) else list(groups)
    if len(which) < total:
        raise ValueError(f"groups= names the key/value heads of {len(which)} heads, but the pattern has {total}")
    return tuple(Head(layer=layer, number=n, group=which[n]) for layer, n in names if n is not None)


def _relative(norms: Sequence[Matrix]) -> Any:
    """Norms as shares of each head's largest, 65535 being one."""
    whole = np.stack(norms)
    return np.rint(whole / np.maximum(whole.max(axis=1, keepdims=True), 1e-30) * 65535).astype(np.uint16)


def _title(heads: Sequence[Head]) -> str:
    if len(heads) == 1:
        return f"Attention of {heads[0].label}" if heads[0].label else "Attention"
    layers = len({head.layer for head in heads})
    return f"Attention of {len(heads)} heads" + (f" in {layers} layers" if layers > 1 else "")


__all__ = ["AttentionView", "plot_attention"]
