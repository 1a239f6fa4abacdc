"""Heat maps beside each other, with one scale of colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from interp_toolkit.visualization.document import Table, visible
from interp_toolkit.visualization.heatmaps import Heatmap
from interp_toolkit.visualization.pictures import Label, Picture
from interp_toolkit.visualization.view import View

_WIDE, _GAP, _HEAD = 1400, 24, 26


@dataclass(frozen=True, kw_only=True)
class Heatmaps(View):
    """Several heat maps with one scale of colours, such as those of the residual stream, attention and MLPs.

    Attributes:
        panels: the heat maps, each with a title of its own.
        title: above them all.
        caption: what the numbers are, in a sentence.
        limit: the number at which colours are full; that which is farthest from the centre if it is not given.

    Raises:
        ValueError: when there are none, or their colours do not mean the same.
    """

    panels: Sequence[Heatmap]
    title: str
    caption: str = ""
    limit: int | float | None = None

    def __post_init__(self) -> None:
        """Check that one scale fits all."""
        if not self.panels:
            raise ValueError("several heat maps are at least one, but there is none")
        scales = {(panel.scale, float(panel.centre)) for panel in self.panels}
        if len(scales) > 1:
            told = ", ".join(f"{scale} around {centre:g}" for scale, centre in sorted(scales))
            raise ValueError(f"heat maps beside each other share one scale of colours, but these are {told}")

    @cached_property
    def _even(self) -> tuple[Heatmap, ...]:
        """The panels, with the same colours for the same numbers."""
        centre = self.panels[0].centre
        full = abs(self.limit - centre) if self.limit else max(panel.full for panel in self.panels)
        return tuple(replace(panel, limit=centre + full) for panel in self.panels)

    @property
    def modules(self) -> Sequence[str]:
        """See `View.modules`."""
        return ("heatmap.js",)

    def data(self) -> dict[str, Any]:
        """See `View.data`."""
        panels = [panel.panel() for panel in self._even]
        return {"title": visible(self.title), "full": self._even[0].full, "panels": panels}

    def picture(self, *, titled: bool = True) -> Picture:
        """The heat maps beside each other, in rows where there is no room; see `View.picture`."""
        parts = [panel.picture() for panel in self._even]
        places: list[tuple[float, float]] = []
        x, y, high = 0.0, float(_HEAD if titled else 0), 0.0
        for part in parts:
            if x and x + part.width > _WIDE:
                x, y, high = 0.0, y + high + _GAP, 0.0
            places.append((x, y))
            x, high = x + part.width + _GAP, max(high, part.height)
        moved = [part.moved(*place) for part, place in zip(parts, places, strict=True)]
        rights = [x + part.width for (x, _), part in zip(places, parts, strict=True)]
        title = [Label(x=8, y=18, text=self.title, style="title")] if titled else []
        return Picture(
            title=self.title,
            width=math.ceil(max([*rights, *(label.right for label in title)])),
            height=y + high,
            labels=[*title, *(label for part in moved for label in part.labels)],
            boxes=[box for part in moved for box in part.boxes],
            pixels=[image for part in moved for image in part.pixels],
        )

    def table(self) -> Table:
        """The numbers of all, each row with the title of its heat map."""
        first, *_ = tables = [panel.table() for panel in self.panels]
        if all(list(table.headers) == list(first.headers) for table in tables):
            headers = ["", *first.headers]
            rows = [[p.title, *row] for p, table in zip(self.panels, tables, strict=True) for row in table.rows]
            return Table(title=self.title, headers=headers, rows=rows)
        rows = [
            [p.title, str(row[0]), *(f"{name}: {cell}" for name, cell in zip(table.headers[1:], row[1:], strict=True))]
            for p, table in zip(self.panels, tables, strict=True)
            for row in table.rows
        ]
        return Table(title=self.title, headers=["", "row", "values"], rows=rows)


__all__ = ["Heatmaps"]
