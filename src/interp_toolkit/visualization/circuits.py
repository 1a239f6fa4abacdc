"""Circuits as graphs that can be explored: layers from the bottom up, signed edges, roles, a slider over the size."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from interp_toolkit.visualization.bundle import packed
from interp_toolkit.visualization.circuit_graph import CircuitGraph, GraphNode, read_graph
from interp_toolkit.visualization.circuit_picture import (
    FEW,
    ROLE_SERIES,
    SOME,
    band_name,
    layout_of,
    roles_of,
    sizes_of,
    still,
)
from interp_toolkit.visualization.document import Table, shortened, visible
from interp_toolkit.visualization.graph_layout import Layout
from interp_toolkit.visualization.pictures import Picture
from interp_toolkit.visualization.view import View

_MOST_EDGES = 2000
_MOST_TOKENS = 20
_DETAILS = ("tokens", "attention", "text")
_ABLATIONS = {
    "corrupt": "what they carry in the corrupt run",
    "mean": "the mean of their source over a dataset",
    "positional": "the mean of their source at each position",
    "zero": "zeros",
}


@runtime_checkable
class CircuitLike(Protocol):
    """What is drawn: a `Circuit`, or anything else that gives its data as the same kind of JSON."""

    def to_json(self) -> str:
        """The circuit as the JSON of its file."""


@runtime_checkable
class CurveLike(Protocol):
    """Faithfulness at several sizes, such as a `FaithfulnessCurve`."""

    @property
    def sizes(self) -> Sequence[float]:
        """Shares of all edges."""

    @property
    def edges(self) -> Sequence[int]:
        """How many these are."""

    def faithfulness(self, by: Any = "absolute") -> Sequence[Any]:
        """At each size, with `value`, `low` and `high`."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Faithfulness of circuits of one size.

    Attributes:
        edges: how many they have.
        size: which share of all edges this is; None where that is not known.
        value: faithfulness: 1 does what the model does.
        low: lower end of its interval; None where it has none.
        high: upper end.
        words: how it was measured.
    """

    edges: int
    size: float | None
    value: float
    low: float | None = None
    high: float | None = None
    words: str = ""


@dataclass(frozen=True, kw_only=True)
class CircuitView(View):
    """A circuit as a graph that can be explored.

    Args:
        graph: nodes and edges.
        title: above it.
        caption: below it.
        curve: faithfulness of circuits of several sizes, made of the best edges.
        own: faithfulness of this circuit.
        details: for names of nodes what else is shown of them.
        tokens: for positions, where nodes have them.
    """

    graph: CircuitGraph
    title: str
    caption: str = ""
    curve: tuple[Measured, ...] = ()
    own: Measured | None = None
    details: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tokens: Sequence[str] | None = None

    @property
    def modules(self) -> Sequence[str]:
        """See `View.modules`."""
        return ("circuit.js",)

    @functools.cached_property
    def layout(self) -> Layout:
        """Where everything is."""
        return layout_of(self.graph)

    def data(self) -> dict[str, Any]:
        """See `View.data`."""
        graph, layout, size = self.graph, self.layout, sizes_of(self.graph)
        roles = roles_of(graph)
        look = "large" if len(graph.nodes) <= FEW else "middle" if len(graph.nodes) <= SOME else "small"
        return {
            "name": visible(self.title),
            "look": look,
            "size": [layout.width, layout.height, size.width, size.height],
            "nodes": [self._node(n, node, roles) for n, node in enumerate(graph.nodes)],
            "edges": [[edge.source, list(edge.targets), edge.port, edge.dest, edge.score] for edge in graph.edges],
            "curves": [list(curve) for curve in layout.curves],
            "bands": [[visible(band_name(graph, band)), y] for band, y in layout.bands.items()],
            "columns": [[visible(self._position(n)), x] for n, x in layout.columns.items()],
            "roles": [[visible(role), ROLE_SERIES[n % len(ROLE_SERIES)]] for n, role in enumerate(roles)],
            "total": graph.total,
            "leftOut": graph.left_out,
            "measured": [_point(point) for point in self.curve],
            "own": None if self.own is None else _point(self.own),
            "about": [visible(line) for line in _about(graph)],
            "file": graph.facts,
        }

    def _node(self, n: int, node: GraphNode, roles: Sequence[str]) -> dict[str, Any]:
        """A node for the script; `raw` is its name where that cannot be shown as it is."""
        about: dict[str, Any] = {
            "name": visible(node.name),
            "kind": node.kind,
            "band": list(self.layout.bands).index(node.layer),
            "at": [self.layout.x[n], self.layout.y[n]],
            "role": roles.index(node.role) if node.role else None,
            "words": visible(node.words),
        }
        if about["name"] != node.name:
            about["raw"] = node.name
        if self.graph.layers:
            about["layer"] = node.layer
        if node.position is not None:
            about["position"] = visible(self._position(node.position))
        if node.name in self.details:
            about["details"] = _shown_details(self.details[node.name])
        return about

    def _position(self, n: int) -> str:
        return self.tokens[n] if self.tokens is not None else f"position {n}"

    def picture(self, *, titled: bool = True) -> Picture:
        """See `View.picture`."""
        return still(self.graph, self.layout, self.title, self.tokens, titled=titled)

    def table(self) -> Table:
        """See `View.table`."""
        nodes = self.graph.nodes
        rows = [
            (
                nodes[edge.source].name,
                edge.dest,
                "–" if edge.score is None else f"{edge.score:+.4g}".replace("-", "−"),
                nodes[edge.source].role or "–",
                ", ".join(sorted({nodes[n].role for n in edge.targets} - {""})) or "–",
            )
            for edge in self.graph.edges
        ]
        kept = "strongest " if self.graph.left_out else ""
        return Table(
            title=f"The {len(rows):,} {kept}edges; a positive score helps the clean answer",
            headers=("from", "to", "score", "role of the one", "role of the other"),
            rows=rows,
        )


def plot_circuit(
    circuit: CircuitLike | Mapping[str, Any],
    *,
    curve: CurveLike | None = None,
    output: str | Path | None = None,
    title: str | None = None,
    max_edges: int = _MOST_EDGES,
    details: Mapping[str, Mapping[str, Any]] | None = None,
    tokens: Sequence[str] | None = None,
) -> CircuitView:
    """Draw a circuit as a graph that can be explored: zoomed, cut to its strongest edges, traced from node to node.

    Args:
        circuit: a `Circuit`, or plain data: `edges` as `(source, dest, score)`, and if known `nodes`, `roles`, `graph`
            and whatever else the JSON file of a circuit has.
        curve: a `FaithfulnessCurve` for the same scores. Then the slider says how faithful circuits of each size are.
        output: a file to write: `.html`, `.svg`, `.png` or `.pdf`.
        title: above it.
        max_edges: with more, only those with the largest |score| are drawn, and the view says so.
        details: for names of nodes what is shown when they are clicked: `tokens` that they promote, as texts or (text,
            number); `attention`, a small matrix; `text`.
        tokens: of the prompt, for nodes that have a `position`.

    Raises:
        TypeError: for what is neither a circuit nor a mapping.
        ValueError: for data that are no circuit, details of nodes that are not there, and another kind of file.
        ImportError: for `.png` and `.pdf` when matplotlib is not installed.

    Example:
        >>> view = plot_circuit({"edges": [("embed", "L0H1.v", 0.5), ("L0H1", "logits", 0.4)]})
        >>> view.table().rows[0]
        ('embed', 'L0H1.v', '+0.5', '–', '–')
    """
    if not isinstance(circuit, Mapping | CircuitLike):
        raise TypeError(f"a Circuit is drawn, or a mapping with its edges, not {type(circuit).__name__}")
    if max_edges < 1:
        raise ValueError(f"max_edges is 1 or more, not {max_edges}")
    graph = read_graph(circuit if isinstance(circuit, Mapping) else json.loads(circuit.to_json()), max_edges=max_edges)
    _check(graph, details or {}, tokens)
    view = CircuitView(
        graph=graph,
        title=title or "Circuit",
        caption=_caption(graph),
        curve=() if curve is None else _measured(curve),
        own=_own(graph),
        details=details or {},
        tokens=tokens,
    )
    if output is not None:
        view.save(output)
    return view


# --- what is said of it ------------------------------------------------------------------------------------------


def _caption(graph: CircuitGraph) -> str:
    if not graph.edges:
        return "This circuit is empty: it has no edges."
    heads = sum(node.kind == "head" for node in graph.nodes)
    mlps = sum(node.kind == "mlp" for node in graph.nodes)
    parts = [f"{n} {name}{'' if n == 1 else 's'}" for n, name in ((heads, "attention head"), (mlps, "MLP")) if n]
    parts = parts or [f"{len(graph.nodes)} nodes"]
    whole = "" if graph.total is None else f" of {graph.total:,}"
    count = len(graph.edges) + graph.left_out
    text = f"{' and '.join(parts)}, {count:,}{whole} edges. What is lower writes, what is higher reads it. "
    if any(edge.score is not None for edge in graph.edges):
        text += (
            "Wide edges have large scores; solid blue ones help the clean answer, dashed orange ones work against it. "
        )
    text += "Heads are round and MLPs square." if heads and mlps else ""
    if graph.left_out:
        text += f" The {len(graph.edges):,} edges with the largest |score| are drawn; {graph.left_out:,} are not."
    return text.strip()


def _about(graph: CircuitGraph) -> list[str]:
    """How the circuit was found, in lines."""
    facts = graph.facts or {}
    lines = []
    if facts.get("method"):
        lines.append(f"Found by {facts['method']}" + (f" on {facts['metric']}" if facts.get("metric") else ""))
    if facts.get("ablation"):
        lines.append(f"Edges outside of it carry {_ABLATIONS.get(facts['ablation'], facts['ablation'])}")
    notes = facts.get("notes") or {}
    prompts = notes.get("prompts")
    if isinstance(prompts, Mapping):
        lines.append("Prompts: " + ", ".join(f"{n} for {use}" for use, n in prompts.items()))
    lines += [f"{name.capitalize()}: {notes[name]}" for name in ("selection", "threshold") if name in notes]
    caveats = notes.get("caveats", ())
    return lines + [f"Note: {text}" for text in ([caveats] if isinstance(caveats, str) else caveats)]


def _measured(curve: CurveLike) -> tuple[Measured, ...]:
    """The points of a curve; those without a value are left out."""
    found = zip(curve.sizes, curve.edges, curve.faithfulness("absolute"), strict=True)
    return tuple(
        Measured(edges=int(n), size=float(size), value=float(f.value), low=_finite(f.low), high=_finite(f.high))
        for size, n, f in found
        if math.isfinite(f.value)
    )


def _own(graph: CircuitGraph) -> Measured | None:
    """Faithfulness of the circuit itself, if its notes have it."""
    note = ((graph.facts or {}).get("notes") or {}).get("faithfulness")
    about = note if isinstance(note, Mapping) else {"value": note}
    value = about.get("value")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    count = len(graph.edges) + graph.left_out
    return Measured(
        edges=count,
        size=count / graph.total if graph.total else None,
        value=float(value),
        low=_finite(about.get("low")),
        high=_finite(about.get("high")),
        words=_over(about["prompts"]) if "prompts" in about else "",
    )


def _over(prompts: Any) -> str:
    return f"on {prompts} prompt{'' if prompts == 1 else 's'}"


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _point(point: Measured) -> dict[str, Any]:
    return {
        "edges": point.edges,
        "size": point.size,
        "value": point.value,
        "low": point.low,
        "high": point.high,
        "words": visible(point.words),
    }


# --- details -----------------------------------------------------------------------------------------------------


def _check(graph: CircuitGraph, details: Mapping[str, Mapping[str, Any]], tokens: Sequence[str] | None) -> None:
    names = {node.name for node in graph.nodes}
    for name, about in details.items():
        if name not in names:
            raise ValueError(f"there are details of {name!r:.60}, which is no node of this circuit")
        unknown = [key for key in about if key not in _DETAILS]
        if unknown:
            raise ValueError(f"details of a node are {', '.join(_DETAILS)}, not {unknown[0]!r:.60}")
        if "attention" in about and np.asarray(about["attention"]).ndim != len(("query", "key")):
            raise ValueError(f"attention of {name!r:.60} is a matrix, not of shape {np.shape(about['attention'])}")
    last = max([node.position for node in graph.nodes if node.position is not None], default=-1)
    if tokens is not None and last >= len(tokens):
        raise ValueError(f"a node is at position {last}, but there are {len(tokens)} tokens")


def _shown_details(about: Mapping[str, Any]) -> dict[str, Any]:
    """Details of a node as the script gets them."""
    found: dict[str, Any] = {}
    if "text" in about:
        found["text"] = visible(str(about["text"]))
    if "tokens" in about:
        pairs = [(token, None) if isinstance(token, str) else token for token in about["tokens"]][:_MOST_TOKENS]
        found["tokens"] = [[shortened(visible(text), 40), _finite(score)] for text, score in pairs]
    if "attention" in about:
        shares = np.nan_to_num(np.asarray(about["attention"], dtype=np.float64)).clip(0, 1)
        found["attention"] = packed((255 * shares).round().astype(np.uint8))
    return found


__all__ = ["CircuitLike", "CircuitView", "CurveLike", "Measured", "plot_circuit"]
