"""Pixels of pictures: many small cells as one image, where a box for each would make a file of megabytes."""

from __future__ import annotations

import base64
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from interp_toolkit.visualization.pictures import colour

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STEPS = 62  # entries of a palette beside the transparent one; even, so that 0 is among them


@dataclass(frozen=True, kw_only=True, eq=False)
class Bitmap:
    """A matrix of shares as pixels, scaled to its place without smoothing.

    Attributes:
        x: left edge, in pixels of the picture.
        y: upper edge.
        width: in pixels of the picture.
        height: in pixels of the picture.
        shares: rows of shares, from −1, full orange, to 1, full blue; NaN is transparent.
    """

    x: int | float
    y: int | float
    width: int | float
    height: int | float
    shares: NDArray[np.float32]

    @property
    def _entries(self) -> NDArray[np.uint8]:
        """Which colour of the palette each pixel has; 0 is the transparent one."""
        entries = 1 + np.rint((np.clip(np.nan_to_num(self.shares), -1, 1) + 1) / 2 * _STEPS)
        return np.where(np.isnan(self.shares), 0, entries).astype(np.uint8)

    def png(self, *, dark: bool = False) -> bytes:
        """It as the content of a PNG file, one pixel each.

        Example:
            >>> Bitmap(x=0, y=0, width=1, height=1, shares=np.zeros((1, 1), dtype=np.float32)).png()[1:4]
            b'PNG'
        """
        rows, columns = self.shares.shape
        lines = np.pad(self._entries, ((0, 0), (1, 0))).tobytes()  # each line begins with its filter: none
        parts = [
            _chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)),
            _chunk(b"PLTE", _palette(dark=dark).tobytes()),
            _chunk(b"tRNS", b"\x00"),
            _chunk(b"IDAT", zlib.compress(lines, 9)),
            _chunk(b"IEND", b""),
        ]
        return b"\x89PNG\r\n\x1a\n" + b"".join(parts)

    def to_svg(self) -> str:
        """It as SVG, in both forms."""
        place = f'x="{self.x:g}" y="{self.y:g}" width="{self.width:g}" height="{self.height:g}"'
        return "".join(
            f'<image class="{name}" {place} preserveAspectRatio="none" style="image-rendering: pixelated" '
            f'href="data:image/png;base64,{base64.b64encode(self.png(dark=name == "dark")).decode()}"/>'
            for name in ("light", "dark")
        )

    def draw(self, axes: Axes) -> None:
        """Draw it with matplotlib."""
        colours = np.concatenate([_palette(dark=False), np.full((_STEPS + 2, 1), 255, dtype=np.uint8)], axis=1)
        colours[0, 3] = 0
        edges = (self.x, self.x + self.width, self.y + self.height, self.y)
        limits = axes.get_xlim(), axes.get_ylim()
        axes.imshow(colours[self._entries], extent=edges, interpolation="nearest", aspect="auto", zorder=0.5)
        axes.set(xlim=limits[0], ylim=limits[1])


def _palette(*, dark: bool) -> NDArray[np.uint8]:
    shares = (2 * n / _STEPS - 1 for n in range(_STEPS + 1))
    return np.array([[0, 0, 0], *(list(bytes.fromhex(colour(x, dark=dark)[1:])) for x in shares)], dtype=np.uint8)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


__all__ = ["Bitmap"]
