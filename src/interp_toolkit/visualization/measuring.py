"""What is shown of activations: how they spread, how long they are, which dimensions stand out, where rows lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interp_toolkit.visualization.projections import Separation, chunks, principal_components, separation
from interp_toolkit.visualization.samples import Sample, matrix

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SUMMARY = ("mean", "standard deviation", "smallest", "5%", "25%", "median", "75%", "95%", "largest")
MEDIAN = SUMMARY.index("median")
COMPONENTS = 3
LIMITS = {"typical": 6.0, "largest": 100.0}  # times the median magnitude, from where a dimension stands out
_FENCE = 4.0  # quartile ranges beyond the quartiles, where the axis of a histogram ends
_MOST_BINS = 60
_FIRST_POSITIONS, _MOST_COLUMNS = 8, 160

_Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How one quantity is distributed at each layer and in each class.

    Attributes:
        log: whether the histogram is over the logarithm; everything else here is not.
        edges: the first and last edge of the histogram's equal bins, `[layer, 2]`; of base-10 logarithms if `log`.
        counts: `[layer, class, bin]`.
        outside: how many lie below the first and above the last edge, `[layer, class, 2]`.
        summary: `[layer, class, number]`, the numbers of `SUMMARY`; NaN for an empty class.
    """

    log: bool
    edges: _Floats
    counts: NDArray[np.int32]
    outside: NDArray[np.int32]
    summary: _Floats


@dataclass(frozen=True, kw_only=True)
class Norms:
    """Norms by position, the median over prompts.

    Attributes:
        columns: names of positions, or of several positions together.
        medians: `[layer, column]`.
        numbers: of rows in each column.
        tokens: what stands there, when each column is one row.
    """

    columns: tuple[str, ...]
    tokens: tuple[str, ...] | None
    medians: _Floats
    numbers: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Rows on a direction.

    Attributes:
        scores: `[layer, row]`.
        spread: of the scores.
        separations: for each layer, of the classes (see `against`); None for an empty class.
        against: for each of them, the names of the two groups.
    """

    scores: _Floats
    spread: Spread
    separations: tuple[tuple[Separation | None, ...], ...]
    against: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """Rows on principal components.

    Attributes:
        scores: of the rows that are drawn, `[layer, row, component]`.
        shares: of the variance, `[layer, component]`.
        apart: the drawn rows whose norm is many times that of the others and which were left out of the fit,
            `[layer, row]`.
        left_out: how many of all rows were, by layer.
    """

    scores: _Floats
    shares: _Floats
    apart: NDArray[np.bool_]
    left_out: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Everything that is shown of a sample.

    Attributes:
        sample: names and classes of the rows, without their activations.
        dimensions: of a row.
        drawn: the rows that scatter plots show.
        values: of all entries.
        norms: of rows.
        by_position: norms by position, if rows have positions.
        magnitudes: for each measure of `LIMITS` how many times the median magnitude each dimension has, `[layer, d]`.
        projection: if a direction was given.
        scatter: on principal components.
    """

    sample: Sample
    dimensions: int
    drawn: NDArray[np.int64]
    values: Spread
    norms: Spread
    by_position: Norms | None
    magnitudes: dict[str, NDArray[np.float32]]
    projection: Projection | None
    scatter: Scatter


def measure(sample: Sample, *, direction: Any = None, draw: int = 5000, massive: float = 10.0) -> Measured:
    """Compute everything, one layer after another, over all rows.

    Raises:
        ValueError: for a direction that does not fit.
    """
    drawn = np.arange(sample.rows)
    if sample.rows > draw:
        drawn = np.sort(np.random.default_rng(0).choice(sample.rows, draw, replace=False))
    groups = [sample.of_class(n) for n in range(len(sample.classes))]
    norms, scores, values, magnitudes, scatters = [], [], [], [], []
    units: list[_Floats] = []
    for number, (name, read) in enumerate(zip(sample.layers, sample.matrices, strict=True)):
        rows = read()
        _same_shape(rows, name, sample.rows)
        norms.append(np.concatenate([np.sqrt(np.einsum("rd,rd->r", x, x)) for x in chunks(rows)]))
        values.append(spread_of([rows[group].ravel() for group in groups], bins=_MOST_BINS))
        magnitudes.append(_magnitudes(rows))
        scatters.append(_scatter(rows, norms[-1], drawn, massive))
        if direction is not None:
            units = units or _units(direction, sample.layers, rows.shape[1])
            scores.append(np.concatenate([x @ units[number] for x in chunks(rows)]))
        size = rows.shape[1]
    lengths = np.stack(norms)
    return Measured(
        sample=replace(sample, matrices=()),  # a view need not hold what it no longer shows
        dimensions=size,
        drawn=drawn,
        values=_stacked(values, log=False),
        norms=_spread_of_rows(lengths, groups),
        by_position=_by_position(lengths, sample),
        magnitudes={key: np.stack([found[key] for found in magnitudes]) for key in LIMITS},
        projection=_projection(np.stack(scores), sample, groups) if scores else None,
        scatter=Scatter(
            scores=np.stack([found[0] for found in scatters]),
            shares=np.stack([found[1] for found in scatters]),
            apart=np.stack([found[2] for found in scatters]),
            left_out=tuple(found[3] for found in scatters),
        ),
    )


# --- distributions -----------------------------------------------------------------------------------------------

_LayerSpread = tuple[_Floats, NDArray[np.int32], NDArray[np.int32], _Floats]


def spread_of(groups: Sequence[NDArray[Any]], *, bins: int, log: bool = False) -> _LayerSpread:
    """Edges, counts, numbers outside and summary of one layer; see `Spread`.

    The edges are the extremes, or four quartile ranges beyond the quartiles where that is nearer.
    """
    summary = np.stack([_summary(group) for group in groups])
    scaled = [np.log10(group) if log else group for group in groups]
    low, high = _edges(np.concatenate(scaled))
    counts = np.stack([np.histogram(x, bins=bins, range=(low, high))[0] for x in scaled])
    outside = np.array([[np.sum(x < low), np.sum(x > high)] for x in scaled])
    return np.array([low, high]), counts.astype(np.int32), outside.astype(np.int32), summary


def _edges(values: NDArray[Any]) -> tuple[float, float]:
    first, lower, upper, last = (float(q) for q in np.quantile(values, (0.0, 0.25, 0.75, 1.0)))
    reach = _FENCE * (upper - lower)
    low, high = (max(first, lower - reach), min(last, upper + reach)) if reach > 0 else (first, last)
    # Equal numbers need an axis too, as do those that are equal in the float32 that is sent
    widening = 0.0 if high - low > 1e-6 * max(abs(low), abs(high)) else 0.5 * max(abs(low), 1e-6)
    return low - widening, high + widening


def _summary(values: NDArray[Any]) -> _Floats:
    if not len(values):
        return np.full(len(SUMMARY), np.nan)
    mean = float(np.mean(values, dtype=np.float64))
    deviation = float(np.std(values, dtype=np.float64))
    quantiles = np.quantile(values, (0.0, *QUANTILES, 1.0)).astype(np.float64)
    return np.concatenate([[mean, deviation], quantiles])


def _stacked(layers: Sequence[_LayerSpread], *, log: bool) -> Spread:
    edges, counts, outside, summary = (np.stack(part) for part in zip(*layers, strict=True))
    return Spread(log=log, edges=edges, counts=counts, outside=outside, summary=summary)


def _spread_of_rows(values: _Floats, groups: Sequence[NDArray[np.bool_]], *, positive: bool = True) -> Spread:
    """Of one number for each row, `[layer, row]`; over logarithms where positive numbers differ much."""
    log = positive and bool(values.min() > 0 and values.max() > 20 * values.min())
    bins = int(np.clip(np.ceil(2 * np.sqrt(values.shape[1] / len(groups))), 8, _MOST_BINS))
    return _stacked([spread_of([row[g] for g in groups], bins=bins, log=log) for row in values], log=log)


def _by_position(norms: _Floats, sample: Sample) -> Norms | None:
    """The first positions one by one, later ones together where there are too many."""
    positions = sample.positions
    if positions is None:
        return None
    step = max(1, -(-(int(positions.max()) + 1 - _FIRST_POSITIONS) // (_MOST_COLUMNS - _FIRST_POSITIONS)))
    column = np.where(
        positions < _FIRST_POSITIONS, positions, _FIRST_POSITIONS + (positions - _FIRST_POSITIONS) // step
    )
    names, medians, numbers, tokens = [], [], [], []
    for number in np.unique(column):
        rows = column == number
        first, last = int(positions[rows].min()), int(positions[rows].max())
        names.append(f"{first}" if first == last else f"{first}–{last}")
        medians.append(np.median(norms[:, rows], axis=1))
        numbers.append(int(rows.sum()))
        tokens += [sample.texts[int(row)].split("\n")[0] for row in np.flatnonzero(rows)] if sample.texts else []
    return Norms(
        columns=tuple(names),
        tokens=tuple(tokens) if len(tokens) == len(names) else None,
        medians=np.stack(medians, axis=1),
        numbers=tuple(numbers),
    )


# --- dimensions --------------------------------------------------------------------------------------------------


def _magnitudes(rows: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
    """How many times the median magnitude of all entries each dimension has; the mean where the median is 0."""
    size = np.abs(rows)
    middle = float(np.median(size)) or float(np.mean(size, dtype=np.float64)) or 1.0
    found = {"typical": np.median(size, axis=0), "largest": size.max(axis=0)}
    return {key: (x / middle).astype(np.float32) for key, x in found.items()}


def standing_out(measured: Measured, measure: str, number: int = 16) -> list[int]:
    """The dimensions that stand out at most layers, then most strongly, at most so many."""
    ratios = measured.magnitudes[measure]
    times, most = (ratios >= LIMITS[measure]).sum(axis=0), ratios.max(axis=0)
    order = np.lexsort((np.arange(len(most)), -most, -times))
    return [int(d) for d in order[:number]]


# --- projections -------------------------------------------------------------------------------------------------


def _units(direction: Any, layers: Sequence[str], size: int) -> list[_Floats]:
    """A unit vector for each layer."""
    if isinstance(direction, Mapping):
        by_name = {str(key): value for key, value in direction.items()}
        missing = [name for name in layers if name not in by_name]
        if missing:
            raise ValueError(f"there is no direction for layer(s) {missing}; there are for {list(by_name)}")
        found = np.stack([matrix(by_name[name], f"direction of layer {name}").astype(np.float64) for name in layers])
    else:
        found = matrix(direction, "direction").astype(np.float64)
    if found.shape == (size,):
        found = np.broadcast_to(found, (len(layers), size))
    if found.shape != (len(layers), size):
        raise ValueError(
            f"a direction is [{size}] for every layer, or [{len(layers)}, {size}], not of shape {list(found.shape)}"
        )
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    if not lengths.all():
        raise ValueError(f"the direction of layer {layers[int(np.argmin(lengths))]} is zero; it points nowhere")
    return list(found / lengths)


def _projection(scores: _Floats, sample: Sample, groups: Sequence[NDArray[np.bool_]]) -> Projection:
    names = sample.classes
    if len(names) == 2:
        pairs, against = [(groups[0], groups[1])], [(names[0], names[1])]
    else:
        pairs = [(~group, group) for group in groups] if len(names) > 2 else []
        against = [("the others", name) for name in names] if len(names) > 2 else []
    return Projection(
        scores=scores,
        spread=_spread_of_rows(scores, groups, positive=False),
        separations=tuple(tuple(separation(row[a], row[b]) for a, b in pairs) for row in scores),
        against=tuple(against),
    )


def _scatter(
    rows: NDArray[Any], norms: _Floats, drawn: NDArray[np.int64], massive: float
) -> tuple[_Floats, _Floats, NDArray[np.bool_], int]:
    apart: NDArray[np.bool_] = norms > massive * np.median(norms)
    if np.sum(~apart) < max(2, len(rows) / 2):
        apart = np.zeros(len(rows), dtype=np.bool_)
    found = principal_components(rows[~apart] if apart.any() else rows, COMPONENTS)
    return found.scores(rows[drawn]), found.shares, apart[drawn], int(apart.sum())


def _same_shape(rows: NDArray[Any], name: str, number: int) -> None:
    if rows.ndim != 2 or len(rows) != number:
        raise ValueError(f"layer {name} is of shape {list(rows.shape)}, but the first one has {number} rows")


__all__ = [
    "COMPONENTS",
    "LIMITS",
    "MEDIAN",
    "QUANTILES",
    "SUMMARY",
    "Measured",
    "Norms",
    "Projection",
    "Scatter",
    "Spread",
    "measure",
    "spread_of",
    "standing_out",
]
