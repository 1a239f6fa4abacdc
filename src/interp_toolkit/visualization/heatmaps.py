"""Heat maps of effects: rows by columns, blue towards the clean answer, orange away from it.

Laid out in Python, with values on hover, a light and a dark form, and a table for those who cannot see it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from interp_toolkit.visualization.bitmaps import Bitmap
from interp_toolkit.visualization.bundle import packed
from interp_toolkit.visualization.document import Table, shortened, text_width, visible
from interp_toolkit.visualization.patterns import array
from interp_toolkit.visualization.pictures import Box, Label, Picture
from interp_toolkit.visualization.view import View

_CELL_WIDTH, _CELL_HEIGHT = 26, 24
_NARROWEST, _LOWEST = 8, 8
_WIDE, _HIGH = 1040, 960  # many columns and rows share this room, until they are as small as they can be
_LINE = 13  # two labels need this much height
_MARGIN, _TITLE, _HEAD, _FOOT = 8, 26, 34, 40
_ROW_LABEL, _COLUMN_LABEL = 24, 8
_SCALE_STEPS, _SCALE_STEP = 41, 3
_MOST_BOXES = 4000  # cells that are drawn, and listed, one by one
_MOST_LISTED = 500
_TEXT_WIDTH, _TEXT_LENGTH = 76, 10


@dataclass(frozen=True, kw_only=True)
class Heatmap(View):
    """A matrix of effects to look at.

    Attributes:
        values: rows of numbers: nested lists, an array or a tensor; NaN is drawn as missing.
        rows: labels of the rows.
        columns: labels of the columns.
        title: above it.
        caption: what the numbers are, in a sentence.
        column_name: what the columns are, such as `"layer"`.
        limit: the number at which colours are full; that which is farthest from the centre if it is not given.
        notes: for each value a text that stands beside it on hover and in the table, such as its interval; line ends
            part it into lines.
        row_name: what the rows are, such as `"token"`.
        marked: cells with an outline, as (row, column); the caption should say why.
        scale: `"diverging"` from the centre to both sides, or `"sequential"` from the centre upwards, for what is never
            below it, such as probabilities.
        centre: the number without colour.
        texts: for each value a text that is written into its cell.

    Raises:
        ValueError: when labels, notes, texts or marks do not match the values.
    """

    values: Any
    rows: Sequence[str]
    columns: Sequence[str]
    title: str
    caption: str = ""
    column_name: str = ""
    limit: int | float | None = None
    notes: Sequence[Sequence[str]] | None = None
    row_name: str = ""
    marked: Sequence[tuple[int, int]] = ()
    scale: Literal["diverging", "sequential"] = "diverging"
    centre: int | float = 0.0
    texts: Sequence[Sequence[str]] | None = None

    def __post_init__(self) -> None:
        """Check that there is something to show, and that labels, notes and marks match the values."""
        if not isinstance(self.values, list | tuple):
            object.__setattr__(self, "values", array(self.values).tolist())
        if not self.rows or not self.columns:
            found = f"{len(self.rows)} and {len(self.columns)}"
            raise ValueError(f"a heat map needs at least one row and one column, but has {found}")
        for name, matrix in (("values", self.values), ("notes", self.notes), ("texts", self.texts)):
            widths = {len(row) for row in matrix or ()}
            if matrix is not None and (len(matrix) != len(self.rows) or widths - {len(self.columns)}):
                raise ValueError(
                    f"a heat map of {len(matrix)} rows of {sorted(widths)} {name} needs as many labels, not "
                    f"{len(self.rows)} and {len(self.columns)}"
                )
        for row, column in self.marked:
            if not (0 <= row < len(self.rows) and 0 <= column < len(self.columns)):
                raise ValueError(
                    f"cell {(row, column)} is marked, but there are {len(self.rows)} rows and {len(self.columns)} "
                    "columns, counted from 0"
                )

    @cached_property
    def full(self) -> float:
        """How far from the centre colours are full."""
        if self.limit:
            return float(abs(self.limit - self.centre)) or 1.0
        known = [self._above(v) for row in self.values for v in row if math.isfinite(v)]
        return max(map(abs, known), default=1.0) or 1.0

    def _above(self, value: int | float) -> float:
        """How far a value is from the centre; on a sequential scale nothing is below it."""
        distance = float(value) - self.centre
        return max(distance, 0.0) if self.scale == "sequential" and distance < 0 else distance

    def picture(self, *, titled: bool = True) -> Picture:
        """The heat map laid out; without its title for a page that has the same one."""
        left, top = self._left, (_TITLE if titled else 0) + _HEAD
        bottom = top + self._cell_height * len(self.rows)
        scale = self._scale(left, bottom + 16)
        title = [Label(x=_MARGIN, y=16, text=self.title, style="title")] if titled else []
        labels = [*title, *self._names(left, top), *self._labels(left, top), *self._written(left, top), *scale[0]]
        right = max(left + self._cell_width * len(self.columns), *(label.right for label in labels))
        return Picture(
            title=self.title,
            width=math.ceil(right) + _MARGIN,
            height=bottom + _FOOT,
            labels=labels,
            boxes=[*([] if self._many else self._cells(left, top)), *scale[1]],
            pixels=[self._bitmap(left, top)] if self._many else [],
        )

    @property
    def modules(self) -> Sequence[str]:
        """See `View.modules`."""
        return ("heatmap.js",)

    def data(self) -> dict[str, Any]:
        """See `View.data`."""
        return {"title": visible(self.title), "full": self.full, "panels": [self.panel()]}

    def panel(self) -> dict[str, Any]:
        """What the script needs of one heat map."""
        with np.errstate(over="ignore"):  # float32 has an infinity for what is too large for it
            numbers = np.array(self.values, dtype=np.float64).astype(np.float32)
        return {
            "title": visible(self.title),
            "rows": [visible(label) for label in self.rows],
            "columns": [visible(label) for label in self.columns],
            "rowName": visible(self.row_name),
            "columnName": visible(self.column_name),
            "values": packed(numbers),
            "notes": _texts(self.notes),
            "texts": _texts(self.texts),
            "marked": [list(place) for place in self.marked],
            "centre": float(self.centre),
            "sequential": self.scale == "sequential",
        }

    def table(self) -> Table:
        """All numbers; of very many only the strongest."""
        if self._many:
            return self._strongest()
        notes = self.notes or [[""] * len(self.columns)] * len(self.rows)
        texts = self.texts or [[""] * len(self.columns)] * len(self.rows)
        return Table(
            title=self.title,
            headers=[self.row_name, *self.columns],
            rows=[
                [label, *(_in_table(*cell) for cell in zip(*cells, strict=True))]
                for label, *cells in zip(self.rows, self.values, notes, texts, strict=True)
            ],
        )

    def _strongest(self) -> Table:
        ordered = sorted(
            ((r, c) for r, row in enumerate(self.values) for c, v in enumerate(row) if not math.isnan(v)),
            key=lambda place: -abs(self._above(self.values[place[0]][place[1]])),
        )
        return Table(
            title=f"{self.title}: the {min(_MOST_LISTED, len(ordered))} strongest of {len(ordered):,} values",
            headers=[self.row_name or "row", self.column_name or "column", "value"],
            rows=[[self.rows[r], self.columns[c], _number(self.values[r][c])] for r, c in ordered[:_MOST_LISTED]],
        )

    @property
    def _many(self) -> bool:
        return len(self.rows) * len(self.columns) > _MOST_BOXES

    @cached_property
    def _left(self) -> int:
        """Where the cells begin."""
        labels = [text_width(shortened(label, _ROW_LABEL), 12.0) for label in self.rows]
        return round(2 * _MARGIN + max(*labels, self._over + text_width(self.row_name, 11.0)))

    @cached_property
    def _label_width(self) -> float:
        """The room that a column's label needs."""
        return 6 + max(text_width(shortened(label, _COLUMN_LABEL), 11.0) for label in self.columns)

    @cached_property
    def _cell_width(self) -> int:
        """Wide enough for the labels of the columns, unless there are too many."""
        if self.texts is not None:
            return _TEXT_WIDTH
        room = max(_WIDE // len(self.columns), _NARROWEST)
        return min(max(_CELL_WIDTH, math.ceil(self._label_width)), room)

    @property
    def _over(self) -> float:
        """How far a column's label reaches out of its column; the name of the rows keeps clear of the first one."""
        return max(0.0, self._label_width - self._cell_width) / 2

    @cached_property
    def _cell_height(self) -> int:
        if self.texts is not None:
            return _CELL_HEIGHT
        return min(_CELL_HEIGHT, max(_LOWEST, _HIGH // len(self.rows)))

    def _names(self, left: int, top: int) -> list[Label]:
        """What columns and rows are."""
        return [
            Label(x=left, y=top - 23, text=self.column_name),
            Label(x=left - 6 - self._over, y=top - 9, text=self.row_name, anchor="end"),
        ]

    def _labels(self, left: int, top: int) -> list[Label]:
        width, height = self._cell_width, self._cell_height
        labels = []
        for n in _thinned(len(self.columns), self._label_width / width):
            whole = self.columns[n]
            text = shortened(whole, _COLUMN_LABEL)
            labels.append(Label(x=left + width * (n + 0.5), y=top - 9, text=text, whole=whole, anchor="middle"))
        for n in _thinned(len(self.rows), _LINE / height):
            whole = self.rows[n]
            text, y = shortened(whole, _ROW_LABEL), top + height * (n + 0.5) + 4
            labels.append(Label(x=left - 6, y=y, text=text, whole=whole, anchor="end", style="ink"))
        return labels

    def _cells(self, left: int, top: int) -> list[Box]:
        width, height, marked = self._cell_width, self._cell_height, set(self.marked)
        return [
            Box(
                x=left + width * c,
                y=top + height * r,
                width=width - 1,
                height=height - 1,
                share=self._above(value) / self.full,
                words=self._words(r, c),
                marked=(r, c) in marked,
            )
            for r, row in enumerate(self.values)
            for c, value in enumerate(row)
        ]

    def _bitmap(self, left: int, top: int) -> Bitmap:
        width, height = self._cell_width * len(self.columns), self._cell_height * len(self.rows)
        with np.errstate(over="ignore"):
            shares = (np.array(self.values, dtype=np.float64) - self.centre) / self.full
        shares = np.maximum(shares, 0.0) if self.scale == "sequential" else shares
        return Bitmap(x=left, y=top, width=width, height=height, shares=shares.astype(np.float32))

    def _written(self, left: int, top: int) -> list[Label]:
        """The texts of the cells, in a colour that stands out."""
        width, height = self._cell_width, self._cell_height
        return [
            Label(
                x=left + width * (c + 0.5) - 0.5,
                y=top + height * (r + 0.5) + 4,
                text=_fitting(text, width - 6),
                anchor="middle",
                style=_style_on(self._above(self.values[r][c]) / self.full),
            )
            for r, row in enumerate(self.texts or ())
            for c, text in enumerate(row)
        ]

    def _words(self, row: int, column: int) -> tuple[str, ...]:
        """What a cell says on hover."""
        names = (f"{self.row_name} {self.rows[row]}".lstrip(), f"{self.column_name} {self.columns[column]}".lstrip())
        words = f"{', '.join(name for name in names if name)}: {_number(self.values[row][column])}"
        note = self.notes[row][column] if self.notes is not None else ""
        text = self.texts[row][column] if self.texts is not None else ""
        return tuple(line for line in (text, words, *note.split("\n")) if line)

    def _scale(self, left: int, y: int) -> tuple[list[Label], list[Box]]:
        """The colours in a row, with the numbers at its ends."""
        lowest = -1 if self.scale == "diverging" else 0
        low, high = _number(self.centre + lowest * self.full), _number(self.centre + self.full)
        first = round(left + text_width(low, 11.0) + 8)
        boxes = [
            Box(
                x=first + _SCALE_STEP * n,
                y=y + 3,
                width=_SCALE_STEP,
                height=12,
                share=lowest + (1 - lowest) * n / (_SCALE_STEPS - 1),
            )
            for n in range(_SCALE_STEPS)
        ]
        last = first + _SCALE_STEP * _SCALE_STEPS + 8
        told = f"{high}; without colour: {_number(self.centre)}" if lowest and self.centre else high
        return [Label(x=left, y=y + 13, text=low), Label(x=last, y=y + 13, text=told)], boxes


def plot_lens(
    tokens: Sequence[Sequence[str | Sequence[str]]],
    probabilities: Any,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str = "Logit lens",
    caption: str = "The most probable next token after each layer; colour is its probability, on hover the next ones.",
    row_name: str = "layer",
    column_name: str = "token",
) -> Heatmap:
    r"""What a lens reads at each layer and position: a table of tokens, coloured by probability.

    Args:
        tokens: for each row and column a token, or several, the most probable one first.
        probabilities: of these tokens, `[row, column]` or `[row, column, token]`.
        rows: labels of the rows, usually layers.
        columns: labels of the columns, usually the tokens that the model reads.
        title: above it.
        caption: what it shows.
        row_name: what the rows are.
        column_name: what the columns are.

    Raises:
        ValueError: when tokens, probabilities and labels do not match.

    Example:
        >>> view = plot_lens([[["Paris", "Rome"]]], [[[0.9, 0.1]]], rows=["12"], columns=["is"])
        >>> view.texts, view.notes
        ([['Paris']], [['Paris 90.0%\nRome 10.0%']])
    """
    shares = array(probabilities)
    several = [[[cell] if isinstance(cell, str) else list(cell) for cell in row] for row in tokens]
    shares = shares[..., None] if shares.ndim == 2 else shares
    wanted = (len(several), len(several[0]) if several else 0, len(several[0][0]) if several and several[0] else 0)
    if shares.shape != wanted or not all(wanted):
        raise ValueError(f"tokens are of {' × '.join(map(str, wanted))} cells, probabilities of {list(shares.shape)}")
    notes = [
        [
            "\n".join(f"{visible(name)} {p:.1%}" for name, p in zip(*cell, strict=True))
            for cell in zip(*both, strict=True)
        ]
        for both in zip(several, shares.tolist(), strict=True)
    ]
    return Heatmap(
        values=shares[..., 0].tolist(),
        texts=[[visible(cell[0]) for cell in row] for row in several],
        notes=notes if wanted[2] > 1 else None,
        rows=rows,
        columns=columns,
        row_name=row_name,
        column_name=column_name,
        title=title,
        caption=caption,
        scale="sequential",
        limit=1.0,
    )


def _thinned(number: int, needed: float) -> range:
    """Which labels there is room for, each needing so many places: all, every second, fifth, tenth, and so on."""
    step, factors = 1, (2, 2.5, 2)
    turn = 0
    while step < needed:
        step = round(step * factors[turn % 3])
        turn += 1
    return range(0, number, step)


def _style_on(share: float) -> Literal["ink", "deep", "warm"]:
    """How a text is written on a box of this colour."""
    return "deep" if share > 0.7 else "warm" if share < -0.7 else "ink"


def _texts(rows: Sequence[Sequence[str]] | None) -> list[list[str]] | None:
    """Texts as a page may show them; their line ends stay."""
    if rows is None:
        return None
    return [["\n".join(visible(line) for line in text.split("\n")) for text in row] for row in rows]


def _in_table(value: int | float, note: str, text: str) -> str:
    """A value with what belongs to it, in one line."""
    beside = ", ".join(note.split("\n"))
    return f"{text} {_number(value)}".lstrip() + (f" ({beside})" if beside else "")


def _fitting(text: str, width: int) -> str:
    """As much of a text as there is room for in a cell."""
    length = _TEXT_LENGTH
    while length > 1 and text_width(visible(shortened(text, length)), 12.0) > width:
        length -= 1
    return shortened(text, length)


def _number(value: int | float) -> str:
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    plain = value == 0 or 0.01 <= abs(value) < 1e5
    return (f"{value:.2f}" if plain else f"{value:.1e}").replace("-", "−")


__all__ = ["Heatmap", "plot_lens"]
