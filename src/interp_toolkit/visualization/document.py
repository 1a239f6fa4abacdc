"""Self-contained pages: one file, no network, safe with any token.

Everything a page shows is inside it. Its content security policy forbids requests, and no text of a model or user is
ever parsed as markup.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from interp_toolkit.visualization.bundle import asset, bundle, digest

_NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_INVISIBLE = {"\n": "⏎", "\t": "⇥", "\r": "␍", "\u2028": "⏎", "\u2029": "⏎"}
_INVISIBLE |= {chr(c): f"⟨U+{c:04X}⟩" for c in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F)}
_JOINER = "\u200d"


@runtime_checkable
class Part(Protocol):
    """What can stand on a page."""

    def to_html(self) -> str:
        """Markup for the body of a page, everything in it escaped."""


def visible(text: str) -> str:
    """Text with line ends and marks of direction made visible, and nothing that XML forbids; not escaped."""
    return _NOT_IN_XML.sub("\ufffd", "".join(_INVISIBLE.get(c, c) for c in text))


def shown(text: str) -> str:
    """Text as it can stand in HTML or SVG: visible (see there) and escaped."""
    return html.escape(visible(text), quote=True)


def shortened(text: str, width: int = 12) -> str:
    """Text cut to a number of characters, with an ellipsis; joined characters stay together."""
    if len(text) <= width:
        return text
    cut = width - 1
    while cut and (_extends(text[cut]) or text[cut - 1] == _JOINER):
        cut -= 1
    return text[:cut] + "…"


def text_width(text: str, size: float) -> float:
    """About how many pixels a text takes; rather too many than too few."""
    wide = sum(c in "MWmw@%…" or unicodedata.east_asian_width(c) in "WF" for c in text)
    return size * (0.64 * (len(text) - wide) + 1.1 * wide)


def _extends(character: str) -> bool:
    return character == _JOINER or unicodedata.category(character) in ("Mn", "Mc", "Me")


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of plain text."""

    text: str

    def to_html(self) -> str:
        """See `Part.to_html`."""
        return f"<p>{shown(self.text)}</p>"


@dataclass(frozen=True)
class Heading:
    """A heading between the parts of a page."""

    text: str

    def to_html(self) -> str:
        """See `Part.to_html`."""
        return f"<h2>{shown(self.text)}</h2>"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of plain text.

    Attributes:
        title: above it.
        headers: of the columns.
        rows: of cells.
    """

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]

    def to_html(self) -> str:
        """See `Part.to_html`."""
        head = "".join(f'<th scope="col">{shown(h)}</th>' for h in self.headers)
        body = "".join(
            "<tr>" + "".join(f"<td><bdi>{shown(cell)}</bdi></td>" for cell in row) + "</tr>" for row in self.rows
        )
        return (
            f'<div class="wide" tabindex="0" role="region" aria-label="{shown(self.title)}">'
            f"<table><caption>{shown(self.title)}</caption><thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table></div>"
        )


@dataclass(frozen=True, kw_only=True)
class Document:
    """A page of several parts.

    Attributes:
        title: of the page.
        parts: what stands on it, in order.
    """

    title: str
    parts: tuple[Part, ...]

    def to_html(self) -> str:
        """The whole page as one file.

        Scripts run only if they are those of this library: the policy names their digest. Nothing can be requested.

        Example:
            >>> "default-src 'none'" in Document(title="x", parts=(Paragraph("y"),)).to_html()
            True
        """
        body = "\n".join(part.to_html() for part in self.parts)
        script = bundle(*(module for part in self.parts for module in getattr(part, "modules", ())))
        allowed = f"script-src 'sha256-{digest(script)}'; " if script else ""
        live = f'\n<script type="module">{script}</script>' if script else ""
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
            f'{allowed}img-src data:">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{shown(self.title)}</title>\n<style>{asset('page.css')}</style>\n</head>\n<body>\n"
            f"<main><h1>{shown(self.title)}</h1>\n{body}\n</main>{live}\n</body>\n</html>\n"
        )

    def save(self, path: str | Path) -> Path:
        """Write the page to a file."""
        target = Path(path)
        target.write_text(self.to_html(), encoding="utf-8")
        return target

    def _repr_html_(self) -> str:
        page = html.escape(self.to_html(), quote=True)
        return (
            f'<iframe sandbox="allow-scripts allow-downloads" srcdoc="{page}" title="{shown(self.title)}" width="100%" '
            'height="560" style="border: 0"></iframe>'
        )


__all__ = ["Document", "Heading", "Paragraph", "Part", "Table", "shortened", "shown", "text_width", "visible"]
