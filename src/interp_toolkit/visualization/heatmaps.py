"""Heat maps of effects: rows by columns, blue towards the clean answer, orange away from it.

Drawn as SVG in Python, with values on hover, a light and a dark form, and a table for those who cannot see it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from interp_toolkit.visualization.document import Document, Table, shortened, shown, text_width

_CELL_WIDTH, _CELL_HEIGHT = 26, 24
_LABEL, _TOP, _TITLE = 8, 34, 22
_ROW_LABEL, _COLUMN_LABEL = 24, 8
_POSITIVE, _NEGATIVE = (33, 102, 172), (199, 92, 18)
_LIGHT, _DARK = (247, 247, 247), (38, 44, 52)
_BRIGHT_POSITIVE, _BRIGHT_NEGATIVE = (100, 170, 235), (240, 145, 70)
_STYLE = """
.ink { fill: #1b1f24; font: 12px system-ui, sans-serif; } .soft { fill: #59636e; font: 11px system-ui, sans-serif; }
.title { fill: #1b1f24; font: 600 14px system-ui, sans-serif; } text { unicode-bidi: isolate; white-space: pre; }
.missing { stroke: #8c959f; stroke-width: 1; fill: none; } .dark { display: none; } rect { shape-rendering:
crispEdges; } g.cell:hover rect { stroke: #1b1f24; stroke-width: 1.5; } @media (prefers-color-scheme: dark) { .light
{ display: none; } .dark { display: inline; } .ink, .title { fill: #e6edf3; } .soft { fill: #9198a1; } g.cell:hover
rect { stroke: #e6edf3; } }
"""


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

    Raises:
        ValueError: when labels and values do not match.
    """

    values: Sequence[Sequence[float]]
    rows: Sequence[str]
    columns: Sequence[str]
    title: str
    caption: str = ""
    column_name: str = ""
    limit: float | None = None

    def __post_init__(self) -> None:
        """Check that there is something to show, and that labels and values match."""
        if not self.rows or not self.columns:
            found = f"{len(self.rows)} and {len(self.columns)}"
            raise ValueError(f"a heat map needs at least one row and one column, but has {found}")
        widths = {len(row) for row in self.values}
        if len(self.values) != len(self.rows) or widths - {len(self.columns)}:
            raise ValueError(
                f"a heat map of {len(self.values)} rows of {sorted(widths)} values needs as many labels, not "
                f"{len(self.rows)} and {len(self.columns)}"
            )

    @property
    def full(self) -> float:
        """The magnitude at which colours are full."""
        known = [abs(v) for row in self.values for v in row if math.isfinite(v)]
        return self.limit or max(known, default=1.0) or 1.0

    def to_svg(self) -> str:
        """The picture, complete in itself.

        Example:
            >>> Heatmap(values=[[0.5]], rows=["a"], columns=["b"], title="t").to_svg()[:4]
            '<svg'
        """
        left, cell = self._left(), self._cell_width()
        widest = max(left + cell * len(self.columns), text_width(self.title, 14.5), left + 250)
        width, height = round(widest + 2 * _LABEL), _TOP + _TITLE + _CELL_HEIGHT * len(self.rows) + 40
        opening = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" aria-label="{shown(self.title)}"><style>{_STYLE}</style>'
        )
        parts = [opening, f'<text class="title" x="{_LABEL}" y="16">{shown(self.title)}</text>']
        if self.column_name:
            parts.append(f'<text class="soft" x="{_LABEL}" y="{_TOP + 13}">{shown(self.column_name)}</text>')
        parts += self._labels(left) + self._cells(left) + self._scale(left, height - 24)
        return "".join(parts) + "</svg>"

    def _left(self) -> int:
        """Where the cells begin."""
        labels = [text_width(shortened(label, _ROW_LABEL), 12.0) for label in self.rows]
        return round(2 * _LABEL + max(*labels, text_width(self.column_name, 11.0)))

    def _cell_width(self) -> int:
        """Wide enough for the labels of the columns."""
        labels = [text_width(shortened(label, _COLUMN_LABEL), 11.0) for label in self.columns]
        return round(max(_CELL_WIDTH, *(6 + width for width in labels)))

    def _labels(self, left: int) -> list[str]:
        parts, cell = [], self._cell_width()
        for n, label in enumerate(self.columns):
            x = left + cell * n + cell / 2
            text = shown(shortened(label, _COLUMN_LABEL))
            parts.append(
                f'<text class="soft" x="{x}" y="{_TOP + 13}" '
                f'text-anchor="middle">{text}<title>{shown(label)}</title></text>'
            )
        for n, label in enumerate(self.rows):
            y = _TOP + _TITLE + _CELL_HEIGHT * n + 16
            text = shown(shortened(label, _ROW_LABEL))
            parts.append(
                f'<text class="ink" x="{left - 6}" y="{y}" text-anchor="end">{text}<title>{shown(label)}</title></text>'
            )
        return parts

    def _cells(self, left: int) -> list[str]:
        parts, cell = [], self._cell_width()
        for r, row in enumerate(self.values):
            for c, value in enumerate(row):
                x, y = left + cell * c, _TOP + _TITLE + _CELL_HEIGHT * r
                place = f'x="{x}" y="{y}" width="{cell - 1}" height="{_CELL_HEIGHT - 1}"'
                words = f"{self.rows[r]}, {self.column_name} {self.columns[c]}: {_number(value)}"
                parts.append(
                    f'<g class="cell"><title>{shown(words)}</title>'
                    f'<rect class="light" {place} fill="{self._colour(value, dark=False)}"/>'
                    f'<rect class="dark" {place} fill="{self._colour(value, dark=True)}"/>'
                    f"{_crossed(x, y, cell) if math.isnan(value) else ''}</g>"
                )
        return parts

    def _scale(self, left: int, y: int) -> list[str]:
        parts = [f'<text class="soft" x="{left}" y="{y + 13}">{_number(-self.full)}</text>']
        for n in range(41):
            value = (n / 20 - 1) * self.full
            for name, dark in (("light", False), ("dark", True)):
                parts.append(
                    f'<rect class="{name}" x="{left + 48 + 3 * n}" y="{y + 3}" width="3" height="12" '
                    f'fill="{self._colour(value, dark=dark)}"/>'
                )
        return [*parts, f'<text class="soft" x="{left + 178}" y="{y + 13}">{_number(self.full)}</text>']

    def _colour(self, value: float, *, dark: bool) -> str:
        if math.isnan(value):
            return "none"
        share = min(1.0, abs(value) / self.full)
        ends = (_BRIGHT_POSITIVE, _BRIGHT_NEGATIVE) if dark else (_POSITIVE, _NEGATIVE)
        middle, end = (_DARK if dark else _LIGHT), ends[0] if value >= 0 else ends[1]
        return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(middle, end, strict=True))

    def to_html(self) -> str:
        """The picture and a table of its numbers, for a page."""
        table = Table(
            title=self.title,
            headers=["", *self.columns],
            rows=[[label, *map(_number, row)] for label, row in zip(self.rows, self.values, strict=True)],
        )
        return (
            f"<figure>{self.to_svg()}<figcaption>{shown(self.caption)}</figcaption>"
            f"<details><summary>The numbers</summary>{table.to_html()}</details></figure>"
        )

    def save(self, path: str | Path) -> Path:
        """Write it as `.svg` or as a page (`.html`).

        Raises:
            ValueError: for another kind of file.
        """
        target = Path(path)
        match target.suffix:
            case ".svg":
                target.write_text(self.to_svg(), encoding="utf-8")
            case ".html":
                Document(title=self.title, parts=(self,)).save(target)
            case other:
                raise ValueError(f"a heat map is saved as .svg or .html, not {other!r}")
        return target

    def _repr_html_(self) -> str:
        return Document(title=self.title, parts=(self,))._repr_html_()


def _crossed(x: int, y: int, cell: int) -> str:
    """The sign of a missing value."""
    right, bottom = x + cell - 5, y + _CELL_HEIGHT - 5
    return f'<path class="missing" d="M{x + 4} {y + 4}L{right} {bottom}M{x + 4} {bottom}L{right} {y + 4}"/>'


def _number(value: float) -> str:
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    small = value != 0 and abs(value) < 0.01
    return f"{value:.1e}".replace("-", "−") if small else f"{value:.2f}".replace("-", "−")


__all__ = ["Heatmap"]
