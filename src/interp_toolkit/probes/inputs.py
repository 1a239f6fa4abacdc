"""What probes are trained on: features and labels, checked once, with errors that name the rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from interp_toolkit.activations.access import SiteView
from interp_toolkit.errors import ProbeError

Target = Literal["classes", "labels", "regression"]
"""What is predicted: one of several classes, any number of labels at once, or numbers."""

_SHOWN = 8
_NOTHING = ("NAType", "NaTType")
_CHECKED = 1 << 16
"""Rows whose numbers are checked at once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Targets:
    """What is to be predicted for each row.

    Attributes:
        kind: classes, labels or numbers.
        classes: the classes or labels, in the order of outputs; none for numbers.
        index: the class of each row; None for labels and numbers.
        table: zeros and ones for labels, numbers for regression; None for classes.
    """

    kind: Target
    classes: tuple[Any, ...]
    index: Int[Tensor, " row"] | None = None
    table: Float[Tensor, "row output"] | None = None

    def __len__(self) -> int:
        """How many rows there are."""
        found = self.index if self.table is None else self.table
        return 0 if found is None else len(found)

    @property
    def outputs(self) -> int:
        """How many columns a linear probe has: one for two classes."""
        if self.table is not None:
            return self.table.shape[1]
        return 1 if len(self.classes) == 2 else len(self.classes)

    @property
    def tasks(self) -> Int[Tensor, "row task"]:
        """Classification tasks: one for classes, one for each label."""
        if self.index is not None:
            return self.index[:, None]
        assert self.table is not None
        return self.table.long()

    def select(self, rows: Int[Tensor, " chosen"]) -> Targets:
        """Some of the rows."""
        return Targets(
            kind=self.kind,
            classes=self.classes,
            index=None if self.index is None else self.index[rows],
            table=None if self.table is None else self.table[rows],
        )


def read_targets(
    labels: Any,
    target: Target = "classes",
    *,
    rows: int | None = None,
    classes: Sequence[Any] | None = None,
    number: int | None = None,
) -> Targets:
    """Make sense of labels.

    Args:
        labels: for classes a sequence of names, whole numbers or truth values; for labels a table of zeros and ones or
            a sequence of collections of names; for regression numbers, `[row]` or `[row, output]`.
        target: what they are.
        rows: how many there have to be.
        classes: the classes, where they are known already: others are an error.
        number: how many classes there should be, for the message where they are fewer or more.

    Raises:
        ProbeError: when they are something else; the message names rows.

    Example:
        >>> found = read_targets(["true", "false", "true"])
        >>> found.classes, found.index.tolist()
        (('false', 'true'), [1, 0, 1])
    """
    if labels is None:
        raise ProbeError("labels are missing: this probe requires y to be passed, but the target y is None")
    if target not in ("classes", "labels", "regression"):
        raise ProbeError(f"a target is 'classes', 'labels' or 'regression', not {target!r}")
    if target == "regression":
        found = _numbers(labels)
    elif target == "labels":
        found = _label_sets(labels, classes)
    else:
        found = _classes(labels, classes)
    if rows is not None and len(found) != rows:
        raise ProbeError(
            f"there are {rows} rows of activations but {len(found)} labels: inconsistent numbers of samples"
        )
    if number is not None and len(found.classes) > number:
        raise ProbeError(f"num_classes is {number}, but the labels have {len(found.classes)}: {_few(found.classes)}")
    return found


def _plain(labels: Any) -> NDArray[Any]:
    """Labels as an array; of objects where they are text or mixed."""
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu()
        labels = labels.float() if labels.dtype == torch.bfloat16 else labels
        return np.asarray(labels.numpy())
    if isinstance(labels, np.ndarray):
        return labels
    try:
        found = np.asarray(labels)
    except ValueError as error:
        raise ProbeError(
            f"labels are a list with one entry a row, but these are of different lengths: {error}"
        ) from error
    if found.dtype.kind in "US" and any(not isinstance(label, str) for label in labels):
        found = np.asarray(labels, dtype=object)  # numpy would turn numbers among names into text
    return found


def _classes(labels: Any, known: Sequence[Any] | None) -> Targets:
    found = _plain(labels)
    if found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if found.ndim != 1:
        raise ProbeError(
            f"classes are one label a row (a 1d array), but the labels have shape {found.shape}; for several at once "
            "use target='labels', for numbers target='regression'"
        )
    if found.dtype.kind == "f":
        _refuse_missing(found)
        if (wrong := np.flatnonzero(found != np.round(found))).size:
            raise ProbeError(
                f"Unknown label type: continuous. Row {wrong[0]} has the label {found[wrong[0]]}: classes are names or "
                "whole numbers, not measured ones; for these use target='regression'"
            )
    elif found.dtype.kind == "O":
        for n, label in enumerate(found := found.copy()):
            found[n] = label.item() if isinstance(label, np.generic) else label
        _refuse_mixed(found)
    elif found.dtype.kind not in "biuUS":
        raise ProbeError(f"Unknown label type: classes are names or whole numbers, not {found.dtype}")
    if known is None:
        unique, index = np.unique(found, return_inverse=True)
        return Targets(kind="classes", classes=tuple(unique.tolist()), index=torch.from_numpy(index.reshape(-1)).long())
    place = {label: n for n, label in enumerate(known)}
    listed = found.tolist()
    strange = [n for n, label in enumerate(listed) if label not in place]
    if strange:
        raise ProbeError(
            f"row {strange[0]} has the label {listed[strange[0]]!r}, but the classes are {_few(known)} "
            f"({len(strange)} such rows: {_few(strange)})"
        )
    return Targets(
        kind="classes", classes=tuple(known), index=torch.tensor([place[label] for label in listed], dtype=torch.long)
    )


def _refuse_missing(found: NDArray[Any]) -> None:
    wrong = np.flatnonzero(~np.isfinite(found.reshape(len(found), -1)).all(-1))
    if wrong.size:
        raise ProbeError(
            f"labels contain NaN or infinity (Input y contains NaN or inf), in rows {_few(wrong.tolist())}"
        )


def _refuse_mixed(found: NDArray[Any]) -> None:
    missing = [n for n, label in enumerate(found) if _missing(label)]
    if missing:
        raise ProbeError(f"labels are missing (None or NaN) in rows {_few(missing)}: leave these rows out")
    kinds = {next((k for k in (str, bool, int) if isinstance(label, k)), type(label)) for label in found}
    if len(kinds) > 1 or not issubclass(next(iter(kinds), str), str | bool | int):
        names = sorted(kind.__name__ for kind in kinds)
        raise ProbeError(f"Unknown label type: classes are all names or all whole numbers, but these are {names}")


def _missing(label: Any) -> bool:
    """Whether it is None, NaN, or one of pandas' own."""
    return label is None or (isinstance(label, float) and math.isnan(label)) or type(label).__name__ in _NOTHING


def _are_sets(labels: Any) -> bool:
    """Whether labels are collections of names, and not a table of numbers."""
    if isinstance(labels, Tensor | np.ndarray) or not isinstance(labels, Sequence):
        return False
    if any(isinstance(row, set | frozenset) for row in labels):
        return True
    rows = [row for row in labels if isinstance(row, list | tuple)]
    return len({len(row) for row in rows}) > 1 or any(isinstance(name, str) for row in rows for name in row)


def _names_of(sets: Sequence[set[Any]]) -> tuple[Any, ...]:
    found = set().union(*sets)
    kinds = sorted({type(name).__name__ for name in found})
    if len(kinds) > 1 or any(_missing(name) for name in found):
        raise ProbeError(f"labels are all names or all whole numbers, but these are {kinds}")
    return tuple(sorted(found))


def _label_sets(labels: Any, known: Sequence[Any] | None) -> Targets:
    if not isinstance(labels, Tensor | Sequence) and (listed := np.asarray(labels)).dtype.kind == "O":
        labels = listed.tolist()  # a pandas series of sets
    if _are_sets(labels):
        strangers = [n for n, row in enumerate(labels) if not isinstance(row, list | tuple | set | frozenset)]
        if strangers:
            raise ProbeError(f"labels are a set of names for each row, but rows {_few(strangers)} hold something else")
        sets = [set(row) for row in labels]
        names = tuple(known) if known is not None else _names_of(sets)
        strange = sorted(map(str, set().union(*sets) - set(names)))
        if strange:
            raise ProbeError(f"there are labels {_few(strange)}, but the known ones are {_few(names)}")
        table = torch.tensor([[float(name in row) for name in names] for row in sets])
        return Targets(kind="labels", classes=names, table=table)
    found = _plain(labels)
    if found.ndim != 2 or found.dtype.kind not in "biuf":
        raise ProbeError(
            f"labels are a table [row, label] of zeros and ones, or a set of names for each row, but these have shape "
            f"{found.shape} and type {found.dtype}"
        )
    if wrong := np.flatnonzero(~np.isin(found, (0, 1)).all(-1)).tolist():
        raise ProbeError(f"a table of labels holds zeros and ones, but rows {_few(wrong)} hold others")
    names = tuple(known) if known is not None else tuple(range(found.shape[1]))
    if len(names) != found.shape[1]:
        raise ProbeError(f"there are {found.shape[1]} columns of labels, but {len(names)} labels are known")
    return Targets(kind="labels", classes=names, table=torch.from_numpy(found.astype(np.float32)))


def _numbers(labels: Any) -> Targets:
    found = _plain(labels)
    if found.dtype.kind not in "biuf" or found.ndim not in (1, 2):
        raise ProbeError(f"for regression labels are numbers, [row] or [row, output], not {found.dtype} {found.shape}")
    _refuse_missing(found)
    table = torch.from_numpy(found.astype(np.float64).reshape(len(found), -1))
    return Targets(kind="regression", classes=(), table=table)


# --- features -----------------------------------------------------------------------------------------------------


def read_rows(X: Any, *, width: int | None = None, who: str = "the probe") -> Tensor | SiteView:
    """Activations as rows, with all their numbers checked.

    Args:
        X: a tensor, array or nested list `[row, d]`, or a site of an `ActivationStore`.
        width: how many features there have to be.
        who: asks for them, for the message.

    Raises:
        ProbeError: for another shape, NaN or infinite numbers; the message names rows.
    """
    x = X if isinstance(X, SiteView | Tensor) else _array(X)
    if isinstance(x, Tensor) and x.is_complex():
        raise ProbeError("Complex data not supported: activations are real numbers")
    if isinstance(x, Tensor) and x.layout != torch.strided:
        raise ProbeError("sparse data is not taken: activations are dense, use X.to_dense()")
    if x.ndim != 2 and not (isinstance(x, SiteView) and x.ndim > 2):
        hint = ". Reshape your data with .reshape(-1, 1) for one feature" if x.ndim == 1 else ""
        raise ProbeError(f"activations have shape [row, d], but these have shape {tuple(x.shape)}{hint}")
    found = math.prod(x.shape[1:])
    if len(x) == 0 or found == 0:
        empty = "0 sample(s)" if found else "0 feature(s)"
        raise ProbeError(
            f"there are no activations: {empty} (shape={tuple(x.shape)}) while a minimum of 1 is required."
        )
    if width is not None and found != width:
        raise ProbeError(f"X has {found} features, but {who} is expecting {width} features as input")
    check_finite(x, len(x))
    return x


def _array(X: Any) -> Tensor:
    if type(X).__module__.partition(".")[0] == "scipy":
        raise ProbeError("sparse data is not taken: activations are dense, use X.toarray()")
    try:
        found = np.asarray(X)
    except ValueError as error:
        raise ProbeError(f"activations are a table of numbers: {error}") from error
    if found.dtype.kind == "c":
        raise ProbeError("Complex data not supported: activations are real numbers")
    if found.dtype.kind == "O":
        try:
            found = found.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise ProbeError(
                f"activations are numbers, not objects: {error}; argument must be a string or a number"
            ) from error
    if found.dtype.kind not in "biuf":
        raise ProbeError(f"activations are numbers, not {found.dtype}")
    if found.dtype.kind != "f" or found.dtype.itemsize > 8:
        found = found.astype(np.float64)
    found = np.ascontiguousarray(found, dtype=found.dtype.newbyteorder("="))
    return torch.from_numpy(found if found.flags.writeable else found.copy())


def check_finite(x: Any, rows: int, what: str = "activations") -> None:
    """Refuse NaN and infinite numbers.

    Args:
        x: what is read by slices of rows.
        rows: how many there are.
        what: it is, for the message.

    Raises:
        ProbeError: naming the rows.
    """
    bad: list[int] = []
    for begin in range(0, rows, _CHECKED):
        block = x[begin : min(begin + _CHECKED, rows)]
        if not bool(torch.isfinite(block.sum())):  # one number says that all are finite, unless they overflow
            wrong = (~torch.isfinite(block.flatten(1))).any(-1).nonzero()[:, 0] + begin
            bad += wrong.tolist()
    if bad:
        raise ProbeError(
            f"{what} contain NaN or infinity (Input X contains NaN or inf) in {len(bad)} of {rows} rows: {_few(bad)}"
        )


def is_positive(value: object) -> bool:
    """Whether it is a number above zero, and finite."""
    return isinstance(value, Real) and 0 < float(value) < math.inf


def _few(values: Sequence[Any]) -> str:
    """The first of some values."""
    shown = ", ".join(str(value) for value in values[:_SHOWN])
    return shown + (", ..." if len(values) > _SHOWN else "")


__all__ = ["Target", "Targets", "check_finite", "is_positive", "read_rows", "read_targets"]
