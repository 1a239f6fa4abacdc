"""Views: plain data in, self-contained pages and pictures out."""

from interp_toolkit.visualization.document import Document, Paragraph, Table
from interp_toolkit.visualization.heatmaps import Heatmap

__all__ = ["Document", "Heatmap", "Paragraph", "Table"]
