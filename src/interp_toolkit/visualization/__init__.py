"""Views: plain data in, self-contained pages and pictures out."""

from interp_toolkit.visualization.attention import AttentionView, plot_attention
from interp_toolkit.visualization.circuits import CircuitView, plot_circuit
from interp_toolkit.visualization.distributions import ActivationsView, plot_activations
from interp_toolkit.visualization.document import Document, Heading, Paragraph, Table
from interp_toolkit.visualization.heatmaps import Heatmap
from interp_toolkit.visualization.lines import LineChart, Series
from interp_toolkit.visualization.panels import Heatmaps
from interp_toolkit.visualization.sweeps import plot_accuracy_by_layer, plot_faithfulness, plot_steering
from interp_toolkit.visualization.view import View

__all__ = [
    "ActivationsView",
    "AttentionView",
    "CircuitView",
    "Document",
    "Heading",
    "Heatmap",
    "Heatmaps",
    "LineChart",
    "Paragraph",
    "Series",
    "Table",
    "View",
    "plot_accuracy_by_layer",
    "plot_activations",
    "plot_attention",
    "plot_circuit",
    "plot_faithfulness",
    "plot_steering",
]
