"""Rows of activations in few dimensions: principal components, and how far classes lie apart on a direction."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float64]
_SMALL = 200  # up to this size all eigenvectors are cheap
_BLOCK, _STEPS = 8, 24
_CHUNK = 8192


@dataclass(frozen=True, kw_only=True)
class Components:
    """Principal components of rows.

    Attributes:
        mean: of the rows, `[d]`.
        directions: unit vectors, `[component, d]`, the strongest first; the largest entry of each is positive. Zeros
            where the rows have fewer dimensions than were asked for.
        shares: of the variance that each explains.
    """

    mean: _Floats
    directions: _Floats
    shares: _Floats

    def scores(self, rows: NDArray[Any]) -> _Floats:
        """Where rows lie, `[row, component]`."""
        # The mean comes off behind the product, so that no copy of the rows is needed
        found: _Floats = np.concatenate([chunk @ self.directions.T for chunk in chunks(rows)])
        return found - self.mean @ self.directions.T


@dataclass(frozen=True, kw_only=True)
class Separation:
    """How far two groups of numbers lie apart; none of it depends on bins or on a chosen threshold.

    Attributes:
        auc: how often a number of the second group is larger than one of the first, ties counted half: the area under
            the ROC curve.
        overlap: one minus the largest distance of the two cumulative distributions (Kolmogorov-Smirnov). At the best
            of all thresholds the two error rates sum to this.
        distance: of the means, in pooled standard deviations (Cohen's d); None without spread.
    """

    auc: float
    overlap: float
    distance: float | None


def principal_components(rows: NDArray[Any], number: int = 3) -> Components:
    """The first principal components, computed in float64.

    Args:
        rows: `[row, d]`.
        number: of components.

    Returns:
        Those of the exact decomposition: an iteration is only accepted where its residual is at rounding error.

    Example:
        >>> found = principal_components(np.array([[0.0, 1.0], [0.0, 3.0], [0.0, 8.0]]), 1)
        >>> found.directions.tolist(), found.shares.tolist()
        ([[0.0, 1.0]], [1.0])
    """
    count, size = rows.shape
    mean: _Floats = np.asarray(np.mean(rows, axis=0, dtype=np.float64))
    if count <= size:
        centred = rows.astype(np.float64) - mean
        square = centred @ centred.T
    else:
        square = np.zeros((size, size))
        for chunk in chunks(rows):
            part = chunk - mean
            square += part.T @ part
    total = float(np.trace(square))
    if total <= 1e-26 * count * float(mean @ mean):  # equal rows: what is left is rounding
        total, square = 0.0, np.zeros_like(square)
    directions, shares = np.zeros((number, size)), np.zeros(number)
    values, vectors = strongest(square, min(number, len(square)))
    # What rounding alone leaves of the other dimensions has no direction
    real = int(np.sum(values > 1e-13 * max(total, np.finfo(float).tiny) * len(square)))
    found = vectors[:, :real].T
    if count <= size:
        found = found @ centred
        found = found / np.linalg.norm(found, axis=1, keepdims=True)
    largest = np.argmax(np.abs(found), axis=1)
    signs = np.where(found[np.arange(real), largest] < 0, -1.0, 1.0)
    directions[:real] = found * signs[:, None]
    shares[:real] = values[:real] / total if total else 0.0
    return Components(mean=mean, directions=directions, shares=shares)


def strongest(square: _Floats, number: int) -> tuple[_Floats, _Floats]:
    """The largest eigenvalues of a positive symmetric matrix and their vectors, `[number]` and `[n, number]`.

    Large matrices are solved in a block Krylov space, which for a few eigenvectors takes a fraction of the time; where
    it does not reach rounding error, all eigenvectors are computed.
    """
    size = len(square)
    if size > _SMALL and number < _BLOCK:
        basis = block = np.linalg.qr(np.random.default_rng(0).standard_normal((size, _BLOCK)))[0]
        for step in range(1, min(2 * _STEPS, size // _BLOCK - 1) + 1):
            block = square @ block
            for _ in range(2):  # once is not enough for orthogonality
                block = block - basis @ (basis.T @ block)
            block = np.linalg.qr(block)[0]
            basis = np.concatenate([basis, block], axis=1)
            if step % _STEPS == 0 and (found := _settled(square, basis, number)):
                return found
    values, vectors = np.linalg.eigh(square)
    return values[::-1][:number], vectors[:, ::-1][:, :number]


def _settled(square: _Floats, basis: _Floats, number: int) -> tuple[_Floats, _Floats] | None:
    """The strongest eigenvectors within a basis, if they are those of the whole matrix to rounding error."""
    values, inner = np.linalg.eigh(basis.T @ square @ basis)
    values, vectors = values[::-1][:number], basis @ inner[:, ::-1][:, :number]
    rest = np.linalg.norm(square @ vectors - vectors * values, axis=0)
    unit = np.abs(vectors.T @ vectors - np.eye(number)).max()
    exact = unit < 1e-12 and np.all(rest <= 1e-11 * max(values[0], np.finfo(float).tiny))
    return (values, vectors) if exact else None


def separation(first: _Floats, second: _Floats) -> Separation | None:
    """How far two groups of numbers lie apart; None when one of them is empty.

    Example:
        >>> separation(np.array([0.0, 1.0, 2.0]), np.array([1.5, 3.0])).auc
        0.8333333333333334
    """
    if not len(first) or not len(second):
        return None
    values, places = np.unique(np.concatenate([first, second]), return_inverse=True)
    each = [np.bincount(part, minlength=len(values)) for part in (places[: len(first)], places[len(first) :])]
    below = np.cumsum(each[0]) - each[0] / 2  # how many of the first group are smaller, ties counted half
    auc = float(np.sum(each[1] * below) / (len(first) * len(second)))
    apart = np.abs(np.cumsum(each[0]) / len(first) - np.cumsum(each[1]) / len(second)).max()
    return Separation(auc=auc, overlap=1.0 - float(apart), distance=_distance(first, second))


def _distance(first: _Floats, second: _Floats) -> float | None:
    freedom = len(first) + len(second) - 2
    if freedom < 1:
        return None
    squares = sum(float(np.sum((x - x.mean()) ** 2)) for x in (first, second))
    return float((second.mean() - first.mean()) / np.sqrt(squares / freedom)) if squares > 0 else None


def chunks(rows: NDArray[Any]) -> Iterator[_Floats]:
    """Rows in float64, some at a time: many rows need not be held twice."""
    for start in range(0, max(len(rows), 1), _CHUNK):
        yield rows[start : start + _CHUNK].astype(np.float64)


__all__ = ["Components", "Separation", "chunks", "principal_components", "separation", "strongest"]
