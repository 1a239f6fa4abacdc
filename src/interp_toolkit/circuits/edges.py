"""Edges by name, and lists and tables of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Bool, Float
from torch import Tensor

from interp_toolkit.circuits.graph_shape import Graph

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Edge:
    """One edge.

    Attributes:
        source: what writes, such as `"L0H1"`.
        dest: what reads, such as `"L2KV0.k"`.
        score: positive helps the clean answer; None where it is not known.

    Example:
        >>> print(Edge("L0H1", "L2KV0.k", 0.25))
        L0H1->L2KV0.k (+0.25)
    """

    source: str
    dest: str
    score: float | None = None

    @property
    def name(self) -> str:
        """Both ends, as `"L0H1->L2KV0.k"`."""
        return f"{self.source}->{self.dest}"

    def __str__(self) -> str:
        return self.name if self.score is None else f"{self.name} ({self.score:+.4g})"


def edges_of(
    graph: Graph, mask: Bool[Tensor, "source dest"], scores: Float[Tensor, "source dest"] | None
) -> tuple[Edge, ...]:
    """The edges of a mask, those with the largest |score| first, those without a score last."""
    places = mask.nonzero()
    if scores is None:
        rows, columns = places.T.tolist()
        return tuple(Edge(graph.source_names[s], graph.dest_names[d]) for s, d in zip(rows, columns, strict=True))
    values = scores[mask].double()
    order = values.abs().nan_to_num(-1.0).argsort(descending=True, stable=True)
    rows, columns = places[order].T.tolist()
    return tuple(
        Edge(graph.source_names[s], graph.dest_names[d], None if math.isnan(value) else value)
        for s, d, value in zip(rows, columns, values[order].tolist(), strict=True)
    )


def frame_of(graph: Graph, edges: Sequence[Edge]) -> pd.DataFrame:
    """One row for each edge; needs pandas."""
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError('a data frame needs pandas: pip install "interpretability-toolkit[probes]"') from error

    sources = [graph.source_index(edge.source) for edge in edges]
    dests = [graph.dest_index(edge.dest) for edge in edges]
    return pd.DataFrame(
        {
            "source": [edge.source for edge in edges],
            "dest": [edge.dest for edge in edges],
            "input": [graph.input_of(dest)[0] for dest in dests],
            "source_layer": graph.source_layer[sources].tolist(),
            "dest_layer": graph.dest_layer[dests].tolist(),
            "score": pd.Series([edge.score for edge in edges], dtype="float64"),
        }
    )


__all__ = ["Edge", "edges_of", "frame_of"]
