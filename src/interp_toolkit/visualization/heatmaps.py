"""Heat maps of effects: rows by columns, blue towards the clean answer, orange away from it.

Laid out in Python, with values on hover, a light and a dark form, and a table for those who cannot see it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from interp_toolkit.visualization.document import Document, Part, Table, shortened, shown, text_width
from interp_toolkit.visualization.pictures import Box, Label, Picture

_CELL_WIDTH, _CELL_HEIGHT = 26, 24
_NARROWEST, _LOWEST = 8, 8
_WIDE, _HIGH = 1040, 960  # many columns and rows share this room, until they are as small as they can be
_LINE = 13  # two labels need this much height
_MARGIN, _TITLE, _HEAD, _FOOT = 8, 26, 34, 40
_ROW_LABEL, _COLUMN_LABEL = 24, 8
_SCALE_STEPS, _SCALE_STEP = 41, 3


@dataclass(frozen=True, kw_only=True)
class Heatmap:
    """A matrix of effects to look at.

    Attributes:
        values: rows of numbers; NaN is drawn as missing.
        rows: labels of the rows.
        columns: labels of the columns.
        title: above it.
        caption: what the numbers are, in a sentence.
        column_name: what the columns are, such as `"layer"`.
        limit: the number at which colours are full; the largest magnitude if it is not given.
        notes: for each value a text that stands beside it on hover and in the table, such as its interval.
        row_name: what the rows are, such as `"token"`.
        marked: cells with an outline, as (row, column); the caption should say why.

    Raises:
        ValueError: when labels, notes or marks do not match the values.
    """

    values: Sequence[Sequence[float]]
    rows: Sequence[str]
    columns: Sequence[str]
    title: str
    caption: str = ""
    column_name: str = ""
    limit: float | None = None
    notes: Sequence[Sequence[str]] | None = None
    row_name: str = ""
    marked: Sequence[tuple[int, int]] = ()

    def __post_init__(self) -> None:
        """Check that there is something to show, and that labels, notes and marks match the values."""
        if not self.rows or not self.columns:
            found = f"{len(self.rows)} and {len(self.columns)}"
            raise ValueError(f"a heat map needs at least one row and one column, but has {found}")
        for name, matrix in (("values", self.values), ("notes", self.notes)):
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
        """The magnitude at which colours are full."""
        known = [abs(v) for row in self.values for v in row if math.isfinite(v)]
        return self.limit or max(known, default=1.0) or 1.0

    def picture(self, *, titled: bool = True) -> Picture:
        """The heat map laid out; without its title for a page that has the same one."""
        left, top = self._left, (_TITLE if titled else 0) + _HEAD
        bottom = top + self._cell_height * len(self.rows)
        scale = self._scale(left, bottom + 16)
        title = [Label(x=_MARGIN, y=16, text=self.title, style="title")] if titled else []
        labels = [*title, *self._names(left, top), *self._labels(left, top), *scale[0]]
        right = max(left + self._cell_width * len(self.columns), *(label.right for label in labels))
        return Picture(
            title=self.title,
            width=math.ceil(right) + _MARGIN,
            height=bottom + _FOOT,
            labels=labels,
            boxes=[*self._cells(left, top), *scale[1]],
        )

    def to_svg(self) -> str:
        """The picture, complete in itself.

        Example:
            >>> Heatmap(values=[[0.5]], rows=["a"], columns=["b"], title="t").to_svg()[:4]
            '<svg'
        """
        return self.picture().to_svg()

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
        room = max(_WIDE // len(self.columns), _NARROWEST)
        return min(max(_CELL_WIDTH, math.ceil(self._label_width)), room)

    @property
    def _over(self) -> float:
        """How far a column's label reaches out of its column; the name of the rows keeps clear of the first one."""
        return max(0.0, self._label_width - self._cell_width) / 2

    @cached_property
    def _cell_height(self) -> int:
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
                share=value / self.full,
                words=self._words(r, c),
                marked=(r, c) in marked,
            )
            for r, row in enumerate(self.values)
            for c, value in enumerate(row)
        ]

    def _words(self, row: int, column: int) -> tuple[str, ...]:
        """What a cell says on hover."""
        names = (f"{self.row_name} {self.rows[row]}".lstrip(), f"{self.column_name} {self.columns[column]}".lstrip())
        words = f"{', '.join(name for name in names if name)}: {_number(self.values[row][column])}"
        note = self.notes[row][column] if self.notes is not None else ""
        return (words, note) if note else (words,)

    def _scale(self, left: int, y: int) -> tuple[list[Label], list[Box]]:
        """The colours in a row, with the numbers at its ends."""
        low, high = _number(-self.full), _number(self.full)
        first = round(left + text_width(low, 11.0) + 8)
        boxes = [
            Box(x=first + _SCALE_STEP * n, y=y + 3, width=_SCALE_STEP, height=12, share=2 * n / (_SCALE_STEPS - 1) - 1)
            for n in range(_SCALE_STEPS)
        ]
        last = first + _SCALE_STEP * _SCALE_STEPS + 8
        return [Label(x=left, y=y + 13, text=low), Label(x=last, y=y + 13, text=high)], boxes

    def to_html(self) -> str:
        """The picture and a table of its numbers, for a page."""
        return self._figure(titled=True)

    def _figure(self, *, titled: bool) -> str:
        notes = self.notes or [[""] * len(self.columns)] * len(self.rows)
        table = Table(
            title=self.title,
            headers=[self.row_name, *self.columns],
            rows=[
                [label, *(_number(v) + (f" ({note})" if note else "") for v, note in zip(*cells, strict=True))]
                for label, *cells in zip(self.rows, self.values, notes, strict=True)
            ],
        )
        return (
            f"<figure>{self.picture(titled=titled).to_svg()}<figcaption>{shown(self.caption)}</figcaption>"
            f"<details><summary>The numbers</summary>{table.to_html()}</details></figure>"
        )

    def save(self, path: str | Path) -> Path:
        """Write it as `.svg`, as a page (`.html`), or with matplotlib as `.png` or `.pdf`.

        Raises:
            ValueError: for another kind of file.
            ImportError: for `.png` and `.pdf` when matplotlib is not installed.
        """
        target = Path(path)
        match target.suffix.lower():
            case ".svg":
                target.write_text(self.to_svg(), encoding="utf-8")
            case ".html":
                self._page().save(target)
            case ".png" | ".pdf":
                self.picture().save(target)
            case other:
                raise ValueError(f"a heat map is saved as .html, .svg, .png or .pdf, not {other!r}")
        return target

    def _page(self) -> Document:
        return Document(title=self.title, parts=(_Untitled(self),))

    def _repr_html_(self) -> str:
        return self._page()._repr_html_()


@dataclass(frozen=True)
class _Untitled(Part):
    """A heat map on a page that has the same title."""

    heatmap: Heatmap

    def to_html(self) -> str:
        return self.heatmap._figure(titled=False)


def _thinned(number: int, needed: float) -> range:
    """Which labels there is room for, each needing so many places: all, every second, fifth, tenth, and so on."""
    step, factors = 1, (2, 2.5, 2)
    turn = 0
    while step < needed:
        step = round(step * factors[turn % 3])
        turn += 1
    return range(0, number, step)


def _number(value: float) -> str:
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    plain = value == 0 or 0.01 <= abs(value) < 1e5
    return (f"{value:.2f}" if plain else f"{value:.1e}").replace("-", "−")


__all__ = ["Heatmap"]
