"""Still pictures of attention: a matrix with its tokens, or the grid of all heads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from interp_toolkit.visualization.bitmaps import Bitmap
from interp_toolkit.visualization.document import shortened, text_width
from interp_toolkit.visualization.patterns import Head, Matrix
from interp_toolkit.visualization.pictures import Box, Label, Picture, Pixels

_MARGIN, _TITLE, _NAME, _HEAD, _FOOT, _GAP = 8, 26, 22, 38, 44, 28
_WIDE = 960  # a matrix of many tokens takes this much room
_BOXES = 40  # more tokens than these are drawn as pixels, without hints
_CELL, _ROW = (9.0, 64.0), (9.0, 40.0)  # smallest and largest width and height of a cell
_LETTERS = 8
_FEW = 12  # so many columns are all labelled, however narrow
_TILE, _PIXELS = 48, 16  # a head in the grid: its room, and how many cells it is cut down to


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One matrix of a picture.

    Attributes:
        name: above it.
        rows: tokens that attend.
        columns: tokens that are attended to.
        weights: how much, or a difference of two such.
    """

    name: str
    rows: Sequence[str]
    columns: Sequence[str]
    weights: Matrix


def depth(weights: Matrix) -> Matrix:
    """How deep the colour of a weight is: its square root, with its sign.

    Example:
        >>> depth(np.array([[0.25, -1.0]], dtype=np.float32))
        array([[ 0.5, -1. ]], dtype=float32)
    """
    return np.sign(weights) * np.sqrt(np.abs(weights))


def pooled(weights: Matrix, most: int) -> Matrix:
    """A matrix cut down to so many rows and columns: of each block the number that is furthest from zero.

    Example:
        >>> pooled(np.array([[0.0, 0.1], [-0.5, 0.2]], dtype=np.float32), 1)
        array([[-0.5]], dtype=float32)
    """
    length = len(weights)
    if length <= most:
        return weights
    starts = np.arange(most) * length // most
    high = np.maximum.reduceat(np.maximum.reduceat(weights, starts, axis=0), starts, axis=1)
    low = np.minimum.reduceat(np.minimum.reduceat(weights, starts, axis=0), starts, axis=1)
    return np.where(high >= -low, high, low)


def matrix_picture(panels: Sequence[Panel], *, title: str, titled: bool, causal: bool) -> Picture:
    """Matrices side by side, with the tokens of each at its left and above it."""
    top = float((_TITLE if titled else 0) + _MARGIN)
    labels = [Label(x=_MARGIN, y=16, text=title, style="title")] if titled else []
    boxes: list[Box] = []
    pixels: list[Pixels] = []
    left = float(_MARGIN)
    bottom = 0.0
    for panel in panels:
        part = _panel(panel, left, top, len(panels), causal=causal)
        labels, boxes, pixels = [*labels, *part.labels], [*boxes, *part.boxes], [*pixels, *part.pixels]
        left, bottom = part.width + _GAP, max(bottom, part.height)
    scale = _scale(float(_MARGIN), bottom + 12, signed=any((panel.weights < 0).any() for panel in panels))
    labels, boxes = [*labels, *scale[0]], [*boxes, *scale[1]]
    right = max(left - _GAP, *(label.right for label in labels)) + _MARGIN
    return Picture(
        title=title, width=math.ceil(right), height=bottom + _FOOT, labels=labels, boxes=boxes, pixels=pixels
    )


def _panel(panel: Panel, left: float, top: float, panels: int, *, causal: bool) -> Picture:
    """A matrix; its width and height are where it ends."""
    names = [_label(token, 16) for token in panel.rows]
    start = left + max(text_width("from", 11.0), *(text_width(name, 12.0) for name in names)) + 6
    begin = top + (_NAME if panel.name else 0) + _HEAD
    length = len(panel.rows)
    heads = [_label(token, _LETTERS) for token in panel.columns]
    need = max(text_width(text, 11.0) for text in heads) + 6
    room = _WIDE / panels / length
    width = room if length > _BOXES else min(max(min(need, _CELL[1]), 34.0), max(_CELL[0], room))
    height = width if length > _BOXES else min(max(_CELL[0], width), _ROW[1])
    labels = [Label(x=left, y=top + 14, text=panel.name, style="ink")] if panel.name else []
    labels += [Label(x=start, y=begin - 24, text="to"), Label(x=start - 6, y=begin - 8, text="from", anchor="end")]
    for n in range(length) if length <= _FEW else _thinned(length, need / width):
        x = start + width * (n + 0.5)
        labels.append(Label(x=x, y=begin - 8, text=heads[n], whole=panel.columns[n], anchor="middle"))
    for n in _thinned(length, 13 / height):
        y = begin + height * (n + 0.5) + 4
        labels.append(Label(x=start - 6, y=y, text=names[n], whole=panel.rows[n], anchor="end", style="ink"))
    end = (start + width * length, begin + height * length)
    if length > _BOXES:
        image = Bitmap(
            x=start, y=begin, width=end[0] - start, height=end[1] - begin, shares=_shares(panel.weights, causal)
        )
        return Picture(title="", width=end[0], height=end[1], labels=labels, pixels=[image])
    boxes = _cells(panel, (start, begin), (width, height), causal=causal)
    return Picture(title="", width=end[0], height=end[1], labels=labels, boxes=boxes)


def _cells(panel: Panel, start: tuple[float, float], size: tuple[float, float], *, causal: bool) -> list[Box]:
    shares = depth(panel.weights)
    return [
        Box(
            x=round(start[0] + size[0] * j, 2),
            y=round(start[1] + size[1] * i, 2),
            width=round(size[0] - 1, 2),
            height=round(size[1] - 1, 2),
            share=float(shares[i, j]),
            words=(f"from {row} ({i})", f"to {column} ({j})", f"{panel.weights[i, j]:.3f}".replace("-", "−")),
        )
        for i, row in enumerate(panel.rows)
        for j, column in enumerate(panel.columns)
        if j <= i or not causal
    ]


def _shares(weights: Matrix, causal: bool) -> Matrix:
    """Colours of many cells; those that a causal pattern cannot have are missing."""
    shares = depth(pooled(weights, 480))
    return np.where(np.tril(np.ones_like(shares)) > 0, shares, np.nan) if causal else shares


def grid_picture(
    heads: Sequence[Head], weights: Sequence[Matrix], *, title: str, titled: bool, causal: bool
) -> Picture:
    """All heads, small: layers below each other, or one after the other if layers have different heads."""
    places, columns = _places(heads)
    rows = 1 + max(row for row, _ in places)
    cells = min(_PIXELS, len(weights[0]))
    mesh = np.full((rows * (cells + 1) - 1, columns * (cells + 1) - 1), np.nan, dtype=np.float32)
    keep = np.tril(np.ones((cells, cells))) > 0
    for x, (row, column) in zip(weights, places, strict=True):
        tile = depth(pooled(x, cells))
        y0, x0 = row * (cells + 1), column * (cells + 1)
        mesh[y0 : y0 + cells, x0 : x0 + cells] = np.where(keep, tile, np.nan) if causal else tile
    numbered = heads[0].layer is not None
    left = _MARGIN + (36.0 if numbered else 0.0)
    top = (_TITLE if titled else 0) + _MARGIN + 20.0
    size = (columns * _TILE, rows * _TILE)
    labels = [Label(x=_MARGIN, y=16, text=title, style="title")] if titled else []
    labels += _grid_labels(heads, places, left, top)
    scale = _scale(left, top + size[1] + 10, signed=any((x < 0).any() for x in weights))
    right = max(left + size[0], *(label.right for label in [*labels, *scale[0]]))
    return Picture(
        title=title,
        width=math.ceil(right) + _MARGIN,
        height=top + size[1] + _FOOT,
        labels=[*labels, *scale[0]],
        boxes=scale[1],
        pixels=[Bitmap(x=left, y=top, width=size[0], height=size[1], shares=mesh)],
    )


def _places(heads: Sequence[Head]) -> tuple[list[tuple[int, int]], int]:
    """Row and column of each head: by layer, and by number in the layer."""
    layers = sorted({head.layer for head in heads if head.layer is not None})
    numbers = sorted({head.number for head in heads if head.number is not None})
    if layers and numbers:
        places = [(layers.index(head.layer or 0), numbers.index(head.number or 0)) for head in heads]
        return places, len(numbers)
    columns = min(len(heads), 12)
    return [divmod(n, columns) for n in range(len(heads))], columns


def _grid_labels(heads: Sequence[Head], places: Sequence[tuple[int, int]], left: float, top: float) -> list[Label]:
    """Layers at the left, heads above."""
    labels = {}
    for head, (row, column) in zip(heads, places, strict=True):
        if head.layer is not None:
            y = top + _TILE * (row + 0.5) + 4
            labels["row", row] = Label(x=left - 8, y=y, text=f"L{head.layer}", anchor="end", style="ink")
        if row == 0 or head.layer is not None:
            x = left + _TILE * (column + 0.5)
            labels["column", column] = Label(x=x, y=top - 6, text=f"H{head.number}", anchor="middle")
    return list(labels.values())


def _scale(left: float, y: float, *, signed: bool) -> tuple[list[Label], list[Box]]:
    """What the colours mean: weights at equal steps of depth."""
    steps = 32
    low, high = (-1.0, 1.0) if signed else (0.0, 1.0)
    wide = 5.0
    boxes = [
        Box(x=left + wide * n, y=y, width=wide, height=10, share=low + (high - low) * n / (steps - 1))
        for n in range(steps)
    ]
    ticks = (-1.0, -0.25, 0.0, 0.25, 1.0) if signed else (0.0, 0.06, 0.25, 0.56, 1.0)
    end = wide * steps
    labels = [
        Label(
            x=left + end * (math.copysign(math.sqrt(abs(tick)), tick) - low) / (high - low),
            y=y + 23,
            text=f"{tick:g}".replace("-", "−"),
            anchor="start" if tick == low else "middle",
        )
        for tick in ticks
    ]
    return [
        *labels,
        Label(x=left + end + 14, y=y + 9, text="weight, and difference of weights" if signed else "weight"),
    ], boxes


def _label(token: str, letters: int) -> str:
    """A token without the space around it, cut to so many characters."""
    return shortened(token.strip() or token.replace(" ", "␣") or "∅", letters)


def _thinned(number: int, needed: float) -> range:
    """Which labels there is room for, each needing so many places."""
    step = next(base * 10**power for power in range(9) for base in (1, 2, 5) if base * 10**power >= needed)
    return range(0, number, step)


__all__ = ["Panel", "depth", "grid_picture", "matrix_picture", "pooled"]
