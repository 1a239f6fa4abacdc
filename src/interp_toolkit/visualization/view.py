"""Views: pictures that come to life on a page, each from plain data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp_toolkit.visualization.bundle import to_json
from interp_toolkit.visualization.document import Document, Part, Table, shown
from interp_toolkit.visualization.pictures import Picture


class View(Part, ABC):
    """A picture that can be explored on a page; elsewhere, and where no script runs, it is still.

    Attributes:
        title: above it.
        caption: what it shows, in a sentence or two.
    """

    title: str
    caption: str = ""

    @property
    @abstractmethod
    def modules(self) -> Sequence[str]:
        """The file of `assets/` that brings it to life, whose `mount(root, data, memory)` gets `data()`."""

    @abstractmethod
    def data(self) -> dict[str, Any]:
        """What the script needs: plain JSON, texts made `visible`, arrays `packed`."""

    @abstractmethod
    def picture(self, *, titled: bool = True) -> Picture:
        """The still picture."""

    @abstractmethod
    def table(self) -> Table:
        """The same in numbers, for those who do not see it."""

    def to_svg(self) -> str:
        """The still picture as SVG, complete in itself, with a light and a dark form."""
        return self.picture().to_svg()

    def to_html(self) -> str:
        """The view for a page, below its title."""
        return self.figure(titled=True)

    def figure(self, *, titled: bool) -> str:
        """The view as a figure: still picture, data, caption and table."""
        heading = f"<h3>{shown(self.title)}</h3>" if titled else ""
        return (
            f'<figure data-view="{self.modules[0]}">{heading}<div class="live" hidden></div>'
            f'<div class="still">{self.picture(titled=False).to_svg()}</div>'
            f"<figcaption>{shown(self.caption)}</figcaption>"
            f"<details><summary>The numbers</summary>{self.table().to_html()}</details>"
            f'<script type="application/json">{to_json(self.data())}</script></figure>'
        )

    def page(self) -> Document:
        """A page with nothing else on it."""
        return Document(title=self.title, parts=(_Untitled(self),))

    def save(self, path: str | Path) -> Path:
        """Write it as a page (`.html`), as `.svg`, or with matplotlib as `.png` or `.pdf`.

        Raises:
            ValueError: for another kind of file.
            ImportError: for `.png` and `.pdf` when matplotlib is not installed.
        """
        target = Path(path)
        match target.suffix.lower():
            case ".svg":
                target.write_text(self.to_svg(), encoding="utf-8")
            case ".html":
                self.page().save(target)
            case ".png" | ".pdf":
                self.picture().save(target)
            case other:
                raise ValueError(f"a view is saved as .html, .svg, .png or .pdf, not {other!r}")
        return target

    def _repr_html_(self) -> str:
        return self.page()._repr_html_()


@dataclass(frozen=True)
class _Untitled(Part):
    """A view on a page that has the same title."""

    view: View

    @property
    def modules(self) -> Sequence[str]:
        return self.view.modules

    def to_html(self) -> str:
        return self.view.figure(titled=False)


__all__ = ["View"]
