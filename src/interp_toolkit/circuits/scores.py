"""Scores of every edge of a model: what attribution gives, and what circuits are chosen by."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jaxtyping import Float
from torch import Tensor

from interp_toolkit.activations.files import load_tensors, save_tensors
from interp_toolkit.circuits.circuit import Circuit
from interp_toolkit.circuits.edges import Edge, edges_of, frame_of
from interp_toolkit.circuits.graph import By, connected, greedy_edges, path_of, ranked, top_edges
from interp_toolkit.circuits.graph_shape import Graph
from interp_toolkit.errors import CircuitError, FileFormatError
from interp_toolkit.provenance import Provenance

if TYPE_CHECKING:
    import pandas as pd

    from interp_toolkit.visualization.heatmaps import Heatmap

_FORMAT = "interp_toolkit.edge_scores/1"
_TENSORS = ("values", "prompts", "by_position")


@dataclass(frozen=True, kw_only=True, eq=False)
class EdgeScores:
    """A score for every edge, the mean over prompts; positive helps the clean answer.

    Args:
        graph: of the model.
        values: of the edges, in the metric's unit; 0 where there is no edge.
        prompts: the same for each prompt, if kept.
        positions: names of the positions, if scores were not summed over them.
        by_position: the same for each position; `values` are their sum.
        method: how they were found.
        metric: of what.
        unit: of the metric.
        notes: whatever else should be known, as JSON has it: numbers of prompts and steps, caveats. A circuit chosen
            by the scores gets a copy.
        provenance: model, layout and versions.

    Raises:
        CircuitError: for scores that do not fit the graph, are not finite, or stand where there is no edge.

    Example:
        >>> import torch
        >>> graph = Graph(num_layers=1, num_heads=1, num_groups=1, parallel=False)
        >>> values = torch.zeros_like(graph.valid, dtype=torch.float)
        >>> values[graph.edge_of("embed->L0MLP")], values[graph.edge_of("L0MLP->logits")] = 0.5, -2.0
        >>> origin = Provenance(model="", revision=None, model_type="", layout="", dtype="", versions={})
        >>> scores = EdgeScores(graph=graph, values=values, method="exact", metric="logit_diff", provenance=origin)
        >>> print(scores.summary())
        Scores of 8 edges by exact on logit_diff; positive helps the clean answer.
        Strongest edges:
          L0MLP->logits (-2)
          embed->L0MLP (+0.5)
        >>> scores.top(2)
        <Circuit: 2 of 8 edges>
    """

    graph: Graph
    values: Float[Tensor, "source dest"]
    prompts: Float[Tensor, "prompt source dest"] | None = None
    positions: tuple[str, ...] | None = None
    by_position: Float[Tensor, "pos source dest"] | None = None
    method: str
    metric: str
    unit: str = ""
    notes: dict[str, Any] = field(default_factory=dict)
    provenance: Provenance = field(repr=False)

    def __post_init__(self) -> None:
        """Check that everything fits."""
        ranked(self.graph, self.values, "signed")
        outside = ~self.graph.valid.to(self.values.device)
        if bool((self.values[outside] != 0).any()):
            raise CircuitError("there are scores where there is no edge: they must be 0 there")
        for name in ("prompts", "by_position"):
            more = getattr(self, name)
            if more is not None and (more.ndim != 3 or more.shape[1:] != self.values.shape):
                wanted = tuple(self.values.shape)
                raise CircuitError(
                    f"{name} have shape {tuple(more.shape)}, but {wanted} is needed behind the first axis"
                )
        labels = None if self.positions is None else len(self.positions)
        if labels != (None if self.by_position is None else len(self.by_position)):
            raise CircuitError("scores by position need a name for each position, and names need scores")

    def __repr__(self) -> str:
        return f"<EdgeScores: {self.graph.num_edges:,} edges by {self.method} on {self.metric}>"

    # --- circuits --------------------------------------------------------------------------------------------

    def top(self, n: int, *, by: By = "absolute", greedy: bool = False, prune: bool = True) -> Circuit:
        """The circuit of the n best edges.

        Args:
            n: how many edges are chosen.
            by: `"absolute"` or `"signed"` scores.
            greedy: grow it from the logits, so that each edge has a path to them, instead of taking the best of all.
            prune: leave out edges that cannot carry anything: see `connected`; fewer than n may remain.

        Raises:
            CircuitError: for a number of edges that the graph does not have.
        """
        mask = (greedy_edges if greedy else top_edges)(self.graph, self.values, n, by=by)
        words = f"the best {n:,} edges by {by} score" + (", grown from the logits" if greedy else "")
        return self.circuit(mask, words, prune=prune)

    def threshold(self, value: float, *, by: By = "absolute", prune: bool = True) -> Circuit:
        """The circuit of all edges whose score, or |score|, is at least some value.

        Args:
            value: in the metric's unit.
            by: `"absolute"` or `"signed"` scores.
            prune: leave out edges that cannot carry anything: see `connected`.
        """
        mask = (ranked(self.graph, self.values, by) >= value) & self.graph.valid.to(self.values.device)
        return self.circuit(mask, f"edges with {by} score of at least {value:g}", prune=prune)

    def circuit(self, mask: Tensor, selection: str = "", *, prune: bool = True) -> Circuit:
        """A circuit of these scores.

        Args:
            mask: its edges, `[source, dest]`.
            selection: how they were chosen, in words.
            prune: leave out edges that cannot carry anything: see `connected`.
        """
        ablation = str(self.notes.get("ablation", ""))
        kept = connected(self.graph, mask, ablation=ablation) if prune else mask
        chosen, left = int(mask.sum()), int(kept.sum())
        words = selection + (f"; {left:,} of {chosen:,} are on {path_of(ablation)}" if left < chosen else "")
        return Circuit(
            graph=self.graph,
            mask=kept,
            scores=self.values,
            method=self.method,
            metric=self.metric,
            ablation=ablation,
            notes=self.notes | ({"selection": words} if words else {}) | {"chosen": chosen, "kept": left},
            provenance=self.provenance,
        )

    # --- numbers ---------------------------------------------------------------------------------------------

    def __getitem__(self, edge: str) -> float:
        """The score of an edge, such as `"L0H1->logits"`."""
        return float(self.values[self.graph.edge_of(edge)])

    def strongest(self, number: int = 10, *, by: By = "absolute") -> list[Edge]:
        """The edges with the largest scores, the largest |score| first."""
        mask = top_edges(self.graph, self.values, min(number, self.graph.num_edges), by=by)
        return list(edges_of(self.graph, mask, self.values))

    def nodes(self, kind: Literal["sum", "max"] = "sum") -> Float[Tensor, " source"]:
        """A score of each source: the sum, or the largest, of |score| over the edges out of it."""
        return self.values.abs().sum(1) if kind == "sum" else self.values.abs().amax(1)

    def standard_error(self) -> Float[Tensor, "source dest"]:
        """Of the mean over prompts.

        Raises:
            CircuitError: when scores of fewer than two prompts were kept.
        """
        if self.prompts is None or len(self.prompts) < 2:
            raise CircuitError(
                "a standard error needs the scores of two prompts or more: keep them with per_prompt=True"
            )
        error: Tensor = self.prompts.std(0) / len(self.prompts) ** 0.5
        return error

    def summary(self, number: int = 5) -> str:
        """The scores in words: what they are, and the strongest edges."""
        prompts = f", {len(self.prompts)} prompts" if self.prompts is not None else ""
        unit = f" ({self.unit})" if self.unit else ""
        title = f"Scores of {self.graph.num_edges:,} edges by {self.method} on {self.metric}{unit}{prompts}"
        lines = [f"{title}; positive helps the clean answer."]
        found = [edge for edge in self.strongest(number) if edge.score]
        lines += ["Strongest edges:", *(f"  {edge}" for edge in found)] if found else ["Every score is 0."]
        return "\n".join(lines)

    def plot(self, kind: Literal["sum", "max"] = "sum") -> Heatmap:
        """A heat map of nodes: layers by heads and MLP, coloured by |score| of the edges out of them.

        Args:
            kind: the sum or the largest over these edges.
        """
        from interp_toolkit.circuits.pictures import nodes_map

        return nodes_map(self, kind)

    def _repr_html_(self) -> str:
        from interp_toolkit.circuits.pictures import with_words

        return with_words(self.summary(), self.plot())

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each edge, the largest |score| first; standard errors if prompts were kept. Needs pandas."""
        frame = frame_of(self.graph, edges_of(self.graph, self.graph.valid.to(self.values.device), self.values))
        if self.prompts is not None and len(self.prompts) > 1:
            valid = self.graph.valid.to(self.values.device)
            order = self.values[valid].double().abs().argsort(descending=True, stable=True)
            frame["standard_error"] = self.standard_error()[valid][order].tolist()
        return frame

    # --- files -----------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write them as safetensors."""
        tensors = {name: getattr(self, name) for name in _TENSORS if getattr(self, name) is not None}
        about = {name: getattr(self, name) for name in ("positions", "method", "metric", "unit", "notes")}
        about["graph"] = asdict(self.graph)
        copies = {name: x.detach().cpu().contiguous().clone() for name, x in tensors.items()}
        return save_tensors(path, copies, kind=_FORMAT, about=about, provenance=self.provenance)

    @classmethod
    def load(cls, path: str | Path) -> EdgeScores:
        """Read what `save` wrote.

        Raises:
            FileFormatError: when it is something else, or damaged.
        """
        tensors, about, provenance = load_tensors(path, kind=_FORMAT, what="saved scores of edges")
        try:
            graph, positions = about.pop("graph"), about.pop("positions")
            if any(type(n) is not (bool if name == "parallel" else int) for name, n in graph.items()):
                raise ValueError("its graph is not made of whole numbers")
            if not isinstance(about["notes"], dict) or not all(x.is_floating_point() for x in tensors.values()):
                raise ValueError("its notes or its scores are none")
            names = None if positions is None else tuple(map(str, positions))
            return cls(graph=Graph(**graph), positions=names, provenance=provenance, **(about | tensors))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FileFormatError(f"{path} cannot be read as saved scores of edges: {error}") from error


__all__ = ["EdgeScores"]
