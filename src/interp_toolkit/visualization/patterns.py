"""Attention patterns in any form that people have them in, read head by head, checked and scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]
Key = tuple[int | None, int | None]
Choice = int | Sequence[int] | None
"""A number, several, or all."""

_FORMS = "[pos, pos], [head, pos, pos] or [layer, head, pos, pos]"
STEPS = 200  # bytes of a weight of 1 on a page, as in `attention_data.js`
_ROUNDING = 0.02  # how far the weights of a row in bfloat16 may sum to more than one


@runtime_checkable
class Run(Protocol):
    """What a run left behind, as `Activations` has it."""

    num_layers: int

    @property
    def tokens(self) -> Any:
        """The tokens of one prompt."""

    def attention_pattern(self, layer: int) -> Any:
        """The pattern of a layer, `[head, pos, pos]`."""

    def values(self, layer: int) -> Any:
        """The values of a layer, `[pos, kv_head, d_head]`."""


@runtime_checkable
class TensorLike(Protocol):
    """A tensor that lives on a device and may have a gradient."""

    def detach(self) -> Any:
        """Without its gradient."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """Which head a pattern is of.

    Attributes:
        layer: its layer, if the pattern says so.
        number: its number in the layer, if the pattern says so.
        group: the key/value head that it reads, where several heads share one.
    """

    layer: int | None = None
    number: int | None = None
    group: int | None = None

    @property
    def name(self) -> str:
        """Such as `"L5H1"`, as far as it is known.

        Example:
            >>> Head(layer=5, number=1).name, Head(number=1).name, Head().name
            ('L5H1', 'H1', '')
        """
        return "".join(f"{mark}{n}" for mark, n in (("L", self.layer), ("H", self.number)) if n is not None)

    @property
    def label(self) -> str:
        """The name, with the key/value head.

        Example:
            >>> Head(layer=5, number=1, group=0).label
            'L5H1 · kv0'
        """
        return self.name if self.group is None else f"{self.name} · kv{self.group}"


# --- reading --------------------------------------------------------------------------------------------------------


def array(values: Any) -> Matrix:
    """A tensor, array or nested list as float32.

    Raises:
        ValueError: for what is no array of numbers, such as rows of unequal length.
    """
    if isinstance(values, TensorLike):
        values = values.detach().cpu().float().numpy()  # numpy knows no bfloat16
    try:
        return np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"a {type(values).__name__} cannot be read as an array of numbers: {error}") from error


def by_head(values: Any, inner: int, what: str = "a pattern", forms: str = _FORMS) -> dict[Key, Matrix]:
    """What belongs to each head, by layer and number, which are None where the form does not tell them.

    Args:
        values: an array with `inner` axes, with heads before them, or with layers and heads before them; a list of one
            array for each layer; or a mapping from layers, or pairs of layer and head, to arrays.
        inner: how many axes there are for one head.
        what: what it is called in errors.
        forms: what would do, for errors.

    Raises:
        ValueError: for another number of axes, or nothing at all.
    """
    if isinstance(values, Mapping):
        found = {key: part for name, x in values.items() for key, part in _named(name, x, inner, what).items()}
    elif _is_list_of_layers(values, inner):
        found = {key: part for n, x in enumerate(values) for key, part in _named(n, x, inner, what).items()}
    else:
        found = _split(array(values), inner, what, forms)
    if not found:
        raise ValueError(f"{what} has no heads: there is nothing to show; it may be {forms}")
    return found


def _is_list_of_layers(values: Any, inner: int) -> bool:
    """Whether it is what transformers returns as `attentions`: one tensor for each layer."""
    return isinstance(values, list | tuple) and any(getattr(x, "ndim", 0) > inner for x in values)


def _named(name: Any, values: Any, inner: int, what: str) -> dict[Key, Matrix]:
    """The heads of a layer, or one head that is named by layer and number."""
    x = array(values)
    match name:
        case (int(layer), int(number)) if x.ndim == inner:
            return {(layer, number): x}
        case int(layer):
            x = x[0] if x.ndim == inner + 2 and len(x) == 1 else x  # a batch of one prompt
            if x.ndim == inner + 1:
                return {(layer, number): np.asarray(part) for number, part in enumerate(x)}
    need = ["a number", "[pos]", "[pos, pos]"][inner]
    lists = ["[head]", "[head, pos]", "[head, pos, pos]"][inner]
    raise ValueError(
        f"{what} of {name!r} has the shape {x.shape}; a layer such as 5 should have {lists} of one prompt, "
        f"and a pair of layer and head such as (5, 1) should have {need}"
    )


def _split(x: Matrix, inner: int, what: str, forms: str) -> dict[Key, Matrix]:
    if x.ndim == inner + 3 and x.shape[1] == 1:
        x = x[:, 0]
    match x.ndim - inner:
        case 0:
            return {(None, None): x}
        case 1:
            return {(None, number): np.asarray(part) for number, part in enumerate(x)}
        case 2:
            parts = ((layer, number, x[layer, number]) for layer, number in np.ndindex(*x.shape[:2]))
            return {(layer, number): np.asarray(part) for layer, number, part in parts}
    raise ValueError(
        f"{what} of shape {x.shape} has {x.ndim} axes; it may be {forms} of one prompt: "
        "take one from a batch first, such as pattern[:, 0]"
    )


def of_run(run: Run, layer: Choice) -> tuple[list[str], dict[Key, Matrix], dict[Key, Matrix], int | None]:
    """Tokens, patterns, norms of values (none if values were not kept) and number of key/value heads of a run.

    Raises:
        ValueError: for several prompts, or when no layer has a pattern.
    """
    tokens = list(run.tokens)
    if tokens and not isinstance(tokens[0], str):
        raise ValueError(f"there are {len(tokens)} prompts; one is shown at a time: give activations.of_prompt(0)")
    patterns: dict[Key, Matrix] = {}
    norms: dict[Key, Matrix] = {}
    groups = None
    missing = None
    for n in chosen(range(run.num_layers), layer, "layer"):
        try:
            patterns |= by_head({n: run.attention_pattern(n)}, 2)
        except ValueError as error:  # a layer without attention, or one that was not read
            missing = error
            continue
        found = _norms(run, n)
        heads = sum(key[0] == n for key in patterns)
        if found is not None and heads % len(found) == 0:
            groups = len(found) if len(found) != heads else None
            norms |= {(n, h): found[h * len(found) // heads] for h in range(heads)}
    if not patterns:
        raise ValueError(f"no attention pattern can be shown: {missing}") from missing
    return tokens, patterns, norms if len(norms) == len(patterns) else {}, groups


def _norms(run: Run, layer: int) -> Matrix | None:
    """Norms of a layer's values, `[kv_head, pos]`."""
    try:
        return np.asarray(np.linalg.norm(array(run.values(layer)), axis=-1).T, dtype=np.float32)
    except ValueError:
        return None


# --- choosing and checking ------------------------------------------------------------------------------------------


def chosen(there: Sequence[int], asked: Choice, what: str) -> list[int]:
    """Which numbers were asked for; negative ones count from the last.

    Raises:
        ValueError: for one that is not there.

    Example:
        >>> chosen(range(12), -1, "layer"), chosen([3, 5], None, "layer")
        ([11], [3, 5])
    """
    if asked is None:
        return list(there)
    wanted = [asked] if isinstance(asked, int) else list(asked)
    found = [there[n] if -len(there) <= n < 0 else n for n in wanted]
    wrong = [n for n in found if n not in there]
    if wrong or not found:
        held = f"{there[0]} to {there[-1]}" if len(there) == there[-1] - there[0] + 1 else str(list(there))
        raise ValueError(f"{what}={asked} was asked for, but the pattern has {what}s {held}")
    return list(dict.fromkeys(found))


def select(patterns: Mapping[Key, Matrix], layer: Choice, head: Choice) -> dict[Key, Key]:
    """Which heads are shown, and what they are called: the key of each by its name as (layer, number).

    Raises:
        ValueError: for a layer or head that is not there.
    """
    kept = list(patterns)
    names: list[Key] = list(patterns)
    for axis, (asked, what) in enumerate(((layer, "layer"), (head, "head"))):
        there = sorted({n for key in kept if (n := key[axis]) is not None})
        if there:
            wanted = set(chosen(there, asked, what))
            names = [name for key, name in zip(kept, names, strict=True) if key[axis] in wanted]
            kept = [key for key in kept if key[axis] in wanted]
        elif isinstance(asked, int):  # the pattern does not say which it is, but its owner does
            names = [(asked, n) if axis == 0 else (n0, asked) for n0, n in names]
        elif asked is not None:
            raise ValueError(f"{what}={asked} was asked for, but the pattern has no axis of {what}s")
    return dict(zip(names, kept, strict=True))


def check(x: Matrix, where: str, length: int | None) -> None:
    """See that a matrix is a pattern over so many tokens.

    Raises:
        ValueError: when it is not, with what it looks like.
    """
    if x.ndim != 2 or x.shape[0] != x.shape[1] or not len(x):
        raise ValueError(
            f"{where} has the shape {x.shape}, but each token needs a weight for each token, [pos, pos]; "
            "a run that keeps all positions and no cache of keys gives that"
        )
    if length is not None and len(x) != length:
        raise ValueError(
            f"{where} is over {len(x)} positions, but there are {length} tokens: give one for each position"
        )
    if not np.isfinite(x).all():
        row = int(np.argwhere(~np.isfinite(x))[0, 0])
        raise ValueError(f"{where} has NaN or infinity in row {row}: give the pattern after softmax, without padding")
    if x.min() < 0:
        raise ValueError(f"{where} has negative weights, down to {x.min():.3g}: scores? give the pattern after softmax")
    sums = x.sum(axis=1)
    if sums.max() > 1 + _ROUNDING:
        row = int(sums.argmax())
        raise ValueError(
            f"the weights of row {row} of {where} sum to {sums[row]:.3g}, but those of one query sum to at most 1: "
            "rows are queries, columns keys; give the pattern after softmax, not transposed"
        )


# --- scores ---------------------------------------------------------------------------------------------------------


def entropy(pattern: Matrix) -> float:
    """How spread attention is: the mean of the rows' entropies, in bits, each row as shares of its sum.

    Example:
        >>> entropy(np.array([[1.0, 0.0], [0.5, 0.5]], dtype=np.float32))
        0.5
    """
    sums = pattern.sum(axis=1, keepdims=True)
    shares = (pattern / np.where(sums > 0, sums, 1))[sums[:, 0] > 0]
    logs = np.log2(np.where(shares > 0, shares, 1))
    return -float((shares * logs).sum(axis=1).mean()) + 0.0 if len(shares) else 0.0


def previous(pattern: Matrix) -> float | None:
    """Mean weight on the token before, over all rows but the first; None for one token."""
    return float(np.diagonal(pattern, -1).mean()) if len(pattern) > 1 else None


def first(pattern: Matrix) -> float | None:
    """Mean weight on the first token, over all rows but the first; None for one token."""
    return float(pattern[1:, 0].mean()) if len(pattern) > 1 else None


def repeats(tokens: Sequence[str], shift: int) -> NDArray[np.bool_]:
    """For each row the places of earlier occurrences of its token, or with `shift=1` those right after them."""
    met: dict[str, int] = {}
    numbers = np.array([met.setdefault(token, n) for n, token in enumerate(tokens)])
    same = np.tril(numbers[:, None] == numbers[None, :], -1 - shift)
    return np.roll(same, shift, axis=1)


def over(pattern: Matrix, places: NDArray[np.bool_]) -> float | None:
    """Mean weight of a row on its places, over the rows that have any; None if none has."""
    rows = int(places.any(axis=1).sum())
    return float(pattern[places].sum()) / rows if rows else None


def scores_of(patterns: Sequence[Matrix], tokens: Sequence[str]) -> dict[str, list[float | None]]:
    """What kind of head each may be, by its pattern.

    - `entropy`: see there.
    - `previous token`, `first token`: mean weight on the token before, and on the first one.
    - `same token`: mean weight on earlier occurrences of the token, over tokens that have any.
    - `induction`: mean weight on what followed these occurrences (Olsson et al. 2022, arXiv:2209.11895).

    Example:
        >>> copies = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0]], dtype=np.float32)
        >>> scores_of([copies], ["a", "b", "a"])["induction"]
        [1.0]
    """
    same, after = repeats(tokens, 0), repeats(tokens, 1)
    return {
        "entropy": [entropy(x) for x in patterns],
        "previous token": [previous(x) for x in patterns],
        "first token": [first(x) for x in patterns],
        "same token": [over(x, same) for x in patterns],
        "induction": [over(x, after) for x in patterns],
    }


# --- for a page -----------------------------------------------------------------------------------------------------


def quantised(pattern: Matrix, *, causal: bool) -> NDArray[np.uint8]:
    """Weights in a byte each, `round(200 sqrt(w))`, row by row; of causal ones only the lower triangle.

    A weight `w` comes back as `(byte / 200)²`, which is off by at most `sqrt(w) / 200 + 1 / (4 · 200²)`: 0.005 at a
    weight of 1, 0.0005 at 0.01; every weight from 6.3e-6 on is kept apart from none. Finer steps would be noise that
    does not compress.

    Example:
        >>> quantised(np.array([[1, 0], [0.25, 0.75]], dtype=np.float32), causal=True)
        array([200, 100, 173], dtype=uint8)
    """
    whole: NDArray[np.uint8] = np.rint(STEPS * np.sqrt(np.minimum(pattern, 1))).astype(np.uint8)
    return whole[np.tri(len(whole), dtype=bool)] if causal else whole.ravel()


__all__ = [
    "STEPS",
    "Choice",
    "Head",
    "Key",
    "Matrix",
    "Run",
    "TensorLike",
    "array",
    "by_head",
    "check",
    "chosen",
    "entropy",
    "first",
    "of_run",
    "over",
    "previous",
    "quantised",
    "repeats",
    "scores_of",
    "select",
]
