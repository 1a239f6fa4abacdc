"""Activations as users hand them over: arrays, tensors, layers by name, or what a run left behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from interp_toolkit.errors import UnavailableSiteError
from interp_toolkit.visualization.patterns import TensorLike

MOST_CLASSES = 8  # as many as there are colours that everybody tells apart


@runtime_checkable
class _Scalar(Protocol):
    """A number of numpy or torch."""

    def item(self) -> Any:
        """As Python's own."""


@runtime_checkable
class ResidualStreams(Protocol):
    """What `ActivationCache.run` returns, as far as views need it."""

    num_layers: int

    @property
    def tokens(self) -> Sequence[str] | Sequence[Sequence[str]]:
        """The tokens of the prompt, or of each prompt."""

    @property
    def mask(self) -> Any:
        """Which positions are real, `[pos]` or `[prompt, pos]`."""

    def residual_stream(self, layer: int) -> Any:
        """The residual stream behind a block, `[pos, d]` or `[prompt, pos, d]`."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Rows of activations at one or more layers, each with its class and what it was read from.

    Attributes:
        layers: names of the layers.
        matrices: for each layer a function that returns its activations, `[row, d]`.
        classes: names of the classes.
        labels: the class of each row.
        texts: what is shown of each row, if anything.
        positions: of each row in its prompt, from 0; None where rows have no positions.
        folded: names of classes that were put together as "others".
    """

    layers: tuple[str, ...]
    matrices: tuple[Callable[[], NDArray[Any]], ...]
    classes: tuple[str, ...]
    labels: NDArray[np.uint8]
    texts: tuple[str, ...] | None
    positions: NDArray[np.int32] | None
    folded: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """How many there are."""
        return len(self.labels)

    def of_class(self, number: int) -> NDArray[np.bool_]:
        """Which rows belong to a class."""
        found: NDArray[np.bool_] = self.labels == number
        return found


def read_sample(
    activations: Any,
    *,
    labels: Any = None,
    tokens: Sequence[str] | Sequence[Sequence[str]] | None = None,
    texts: Sequence[str] | None = None,
    layers: Sequence[int | str] | None = None,
) -> Sample:
    """Rows, layers and classes of what a user gave; see `plot_activations`.

    Raises:
        ValueError: where shapes, labels or texts do not fit each other, or numbers are NaN or infinite.
        TypeError: for what holds no numbers.
        UnavailableSiteError: when the activations of a run hold no residual stream.
    """
    if isinstance(activations, ResidualStreams):
        if tokens is not None:
            raise ValueError("activations of a run bring their own tokens; leave tokens= out")
        names, matrices, labels, tokens, texts = _of_run(activations, labels, texts, layers)
    else:
        names, matrices = _of_arrays(activations, layers)
    rows = len(matrices[0]())
    shown, positions = _texts(tokens, texts, rows)
    classes, index, folded = _classes(labels, rows)
    return Sample(
        layers=names,
        matrices=matrices,
        classes=classes,
        labels=index,
        texts=shown,
        positions=positions,
        folded=folded,
    )


def _of_tensor(tensor: Any) -> NDArray[Any]:
    """A tensor as an array; numpy knows no bfloat16."""
    plain = tensor.detach().cpu()
    narrow = plain.is_floating_point() and plain.element_size() < 4
    return np.asarray((plain.float() if narrow else plain).numpy())


def matrix(values: Any, name: str) -> NDArray[Any]:
    """Numbers of any kind as float32, or float64 if they are; every one of them finite.

    Raises:
        TypeError: for what holds no real numbers.
        ValueError: for NaN and infinity, saying where.
    """
    given = values
    try:
        if isinstance(values, list | tuple) and values and isinstance(values[0], TensorLike):
            values = np.stack([_of_tensor(value) for value in values])
        found = _of_tensor(values) if isinstance(values, TensorLike) else np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name}: rows of different lengths cannot be shown together ({error})") from error
    if found.dtype.kind not in "fiub":
        raise TypeError(f"{name}: activations are real numbers, not {found.dtype}")
    numbers = found if found.dtype == np.float64 and isinstance(given, np.ndarray) else found.astype(np.float32)
    with np.errstate(over="ignore"):
        wrong = ~np.isfinite(numbers.astype(np.float32))  # that is what is shown
    if wrong.any():
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(
            f"{name}: {'NaN' if np.isnan(numbers[place]) else 'an infinite value'} at {list(place)}, "
            f"{int(wrong.sum())} such value(s) in all; leave those rows out, or see where the model made them"
        )
    return numbers


def _of_arrays(activations: Any, layers: Sequence[int | str] | None) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    """Names and matrices of plain data."""
    if isinstance(activations, Mapping):
        wanted = list(activations) if layers is None else list(layers)
        missing = [key for key in wanted if key not in activations]
        if missing or not wanted:
            raise ValueError(f"layers {missing} were asked for, but there are {list(activations)}")
        found = [matrix(activations[key], f"layer {key}") for key in wanted]
    else:
        whole = matrix(activations, "activations")
        if whole.ndim not in (2, 3):
            raise ValueError(f"activations are [row, d] or [layer, row, d], not of shape {list(whole.shape)}")
        found = list(whole) if whole.ndim == 3 else [whole]
        wanted = list(range(len(found)) if layers is None else layers)
        if len(wanted) != len(found):
            raise ValueError(f"layers= names the {len(found)} layer(s) of an array, but there are {len(wanted)} names")
    shapes = {tuple(x.shape) for x in found}
    if len(shapes) != 1 or any(len(shape) != 2 or 0 in shape for shape in shapes):
        raise ValueError(
            f"every layer needs the same rows and dimensions, at least one of each; found {sorted(shapes)}"
        )
    return tuple(str(key) for key in wanted), tuple(_giving(x) for x in found)


def _giving(x: NDArray[Any]) -> Callable[[], NDArray[Any]]:
    return lambda: x


def _of_run(
    run: ResidualStreams, labels: Any, texts: Sequence[str] | None, layers: Sequence[int | str] | None
) -> tuple[tuple[str, ...], tuple[Callable[[], NDArray[Any]], ...], Any, list[list[str]] | None, Sequence[str] | None]:
    """Names, matrices, labels, tokens and texts of a run."""
    held = _held(run) if layers is None else [int(layer) for layer in layers]
    single = run.mask.ndim == 1
    whole = _of_tensor(run.mask).astype(np.bool_)
    mask = whole[None] if single else whole
    tokens: list[list[str]] | None = [[str(token) for token in row] for row in ([run.tokens] if single else run.tokens)]
    first = run.residual_stream(held[0])
    kept = int(first.shape[-2])
    if kept != mask.shape[1]:  # only some positions were kept: a row is known by its prompt
        mask = np.ones((len(mask), kept), dtype=np.bool_)
        texts = ["".join(row) for row in tokens or () for _ in range(kept)] if texts is None else texts
        tokens = None
    numbers = mask.sum(1).tolist()
    if texts is not None and len(texts) == len(numbers) != sum(numbers):
        texts = [text for text, number in zip(texts, numbers, strict=True) for _ in range(number)]
    labels = None if labels is None else _plain(labels)
    if labels is not None and len(labels) == len(numbers) != sum(numbers):
        labels = [label for label, number in zip(labels, numbers, strict=True) for _ in range(number)]

    def reading(layer: int) -> Callable[[], NDArray[Any]]:
        def read() -> NDArray[Any]:
            x = run.residual_stream(layer)
            return matrix((x[None] if single else x).cpu()[mask], f"layer {layer}")

        return read

    return tuple(str(layer) for layer in held), tuple(reading(layer) for layer in held), labels, tokens, texts


def _held(run: ResidualStreams) -> list[int]:
    """The layers whose residual stream a run holds."""
    held = []
    error = UnavailableSiteError("this run has no layers")
    for layer in range(run.num_layers):
        try:
            run.residual_stream(layer)
        except UnavailableSiteError as found:
            error = found
        else:
            held.append(layer)
    if not held:
        raise error
    return held


def _texts(
    tokens: Sequence[str] | Sequence[Sequence[str]] | None, texts: Sequence[str] | None, rows: int
) -> tuple[tuple[str, ...] | None, NDArray[np.int32] | None]:
    """What is shown of each row, and its position in its prompt."""
    shown, positions = texts, None
    if tokens is not None:
        prompts = [tokens] if all(isinstance(t, str) for t in tokens) else tokens
        positions = np.array([n for prompt in prompts for n in range(len(prompt))], dtype=np.int32)
        words = [str(token) for prompt in prompts for token in prompt]
        if len(words) != rows:
            raise ValueError(f"{rows} rows need as many tokens, but there are {len(words)}")
        shown = words if texts is None else [f"{word}\n{text}" for word, text in zip(words, texts, strict=False)]
    if texts is not None and len(texts) != rows:
        raise ValueError(f"{rows} rows need as many texts, but there are {len(texts)}")
    return (None if shown is None else tuple(str(text) for text in shown)), positions


def _plain(labels: Any) -> list[Any]:
    """Labels as a list of Python's own values."""
    if isinstance(labels, TensorLike):
        labels = _of_tensor(labels)
    if isinstance(labels, np.ndarray):
        return list(np.atleast_1d(labels).tolist())
    return [label.item() if isinstance(label, _Scalar) else label for label in labels]


def _classes(labels: Any, rows: int) -> tuple[tuple[str, ...], NDArray[np.uint8], tuple[str, ...]]:
    """Names of classes, the class of each row, and the names of those that were put together."""
    if labels is None:
        return ("all rows",), np.zeros(rows, dtype=np.uint8), ()
    given = _plain(labels)
    if len(given) != rows:
        raise ValueError(f"{rows} rows need as many labels, but there are {len(given)}")
    for row, label in enumerate(given):
        if not isinstance(label, bool | int | str) and not (isinstance(label, float) and label.is_integer()):
            hint = "; cut numbers into classes first" if isinstance(label, float) else ""
            raise ValueError(f"labels are whole numbers, true/false or text, but that of row {row} is {label!r}{hint}")
    counts = Counter(given)
    order = sorted(counts, key=lambda label: (isinstance(label, str), label))  # not by row: subsets keep their colours
    kept, folded = order, []
    if len(order) > MOST_CLASSES:
        largest = sorted(order, key=lambda label: -counts[label])[: MOST_CLASSES - 1]
        kept, folded = [x for x in order if x in largest], [x for x in order if x not in largest]
    number = {label: n for n, label in enumerate(kept)} | dict.fromkeys(folded, len(kept))
    names = [_name(label) for label in kept] + ([f"{len(folded)} others"] if folded else [])
    index = np.array([number[label] for label in given], dtype=np.uint8)
    return tuple(names), index, tuple(_name(label) for label in folded)


def _name(label: Any) -> str:
    if isinstance(label, bool):
        return "true" if label else "false"
    return (label or "(empty)") if isinstance(label, str) else f"{label:g}"


__all__ = ["MOST_CLASSES", "ResidualStreams", "Sample", "matrix", "read_sample"]
