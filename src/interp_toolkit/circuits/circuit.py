"""A circuit: the part of a model's computational graph that does something, as a set of its edges."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp_toolkit.circuits.circuit_files import Saved, circuit_json, read_circuit
from interp_toolkit.circuits.circuit_words import Role, key_nodes, used_by, words_of_notes
from interp_toolkit.circuits.edges import Edge, edges_of, frame_of
from interp_toolkit.circuits.graph import checked, connected, path_of
from interp_toolkit.circuits.graph_shape import Graph
from interp_toolkit.errors import CircuitError, FileFormatError
from interp_toolkit.provenance import Provenance

if TYPE_CHECKING:
    import pandas as pd

    from interp_toolkit.visualization.circuits import CircuitView

_ABLATIONS = {
    "corrupt": "what they carry in the corrupt run",
    "mean": "the mean of their source over a dataset",
    "positional": "the mean of their source at each position over a dataset",
    "zero": "zeros",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Circuit:
    """A set of edges of a model, with their scores and how they were found.

    Two circuits of one graph can be joined (`|`), cut (`&`), subtracted (`-`, `^`) and compared (`<=`, `jaccard`). What
    was measured on the parts, as faithfulness, does not hold for the result and is left out; which prompts they were
    found on is kept.

    Args:
        graph: of the model.
        mask: which edges are in it; copied. None at all is a circuit too.
        scores: of edges; copied. NaN where a score is not known. Positive helps the clean answer.
        method: how it was found.
        metric: what was measured.
        ablation: what the edges outside carry: `"corrupt"`, `"mean"`, `"positional"`, `"zero"`.
        notes: whatever else should be known, as JSON has it. `summary` shows `prompts` (a number, or numbers by use),
            `faithfulness` (a number, or one with `low`, `high`, `level`, `prompts`), `threshold`, `selection` and
            `caveats` (texts).
        roles: what heads and MLPs were measured to do.
        provenance: model, layout and versions.

    Raises:
        CircuitError: for a mask or scores that do not fit the graph, and roles of nodes that are not there.

    Example:
        >>> graph = Graph(num_layers=2, num_heads=2, num_groups=2, parallel=False)
        >>> circuit = circuit_of(graph, ["embed->L1H0.v", "L1H0->logits"])
        >>> circuit.heads, circuit.nodes
        (((1, 0),), ('embed', 'L1H0', 'logits'))
        >>> print(circuit.summary())
        Circuit: 1 attention head, 0 MLP layers
        Key heads: L1H0
        Edges: 2 of 46 (4.35%)
    """

    graph: Graph
    mask: Bool[Tensor, "source dest"]
    scores: Float[Tensor, "source dest"] | None = None
    method: str = ""
    metric: str = ""
    ablation: str = ""
    notes: dict[str, Any] = field(default_factory=dict)
    roles: tuple[Role, ...] = ()
    provenance: Provenance | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Check that everything fits, and take copies that nobody else can change."""
        object.__setattr__(self, "mask", checked(self.graph, self.mask).detach().cpu().clone())
        if self.scores is not None:
            if self.scores.shape != self.mask.shape:
                raise CircuitError(f"scores need shape {tuple(self.mask.shape)}, not {tuple(self.scores.shape)}")
            object.__setattr__(self, "scores", self.scores.detach().cpu().clone())
            if bool(self.scores[self.mask].isinf().any()):
                raise CircuitError("a circuit with infinite scores: a score is a number, or NaN where it is not known")
        for role in self.roles:
            self.graph.source_at(role.layer, role.head)
        if len({role.node for role in self.roles}) < len(self.roles):
            raise CircuitError("a node has two roles: put the further ones into `others` of the first")

    def __repr__(self) -> str:
        return f"<Circuit: {self.num_edges:,} of {self.graph.num_edges:,} edges>"

    # --- what is in it ---------------------------------------------------------------------------------------

    @functools.cached_property
    def num_edges(self) -> int:
        """How many edges it has."""
        return int(self.mask.sum())

    @property
    def density(self) -> float:
        """Its share of all edges of the graph."""
        return self.num_edges / self.graph.num_edges

    @functools.cached_property
    def edges(self) -> tuple[Edge, ...]:
        """Its edges, those with the largest |score| first, those without a score last."""
        return edges_of(self.graph, self.mask, self.scores)

    @functools.cached_property
    def edge_set(self) -> frozenset[tuple[str, str]]:
        """The ends of its edges, by name."""
        return frozenset((edge.source, edge.dest) for edge in self.edges)

    @functools.cached_property
    def nodes(self) -> tuple[str, ...]:
        """Heads and MLPs with edges into them and out of them, between `embed` and `logits` where these have one."""
        inside = self.inputs & self.mask.any(1)
        inside[0] = bool(self.mask[0].any())
        names = [name for name, there in zip(self.graph.source_names, inside.tolist(), strict=True) if there]
        return (*names, "logits") if bool(self.mask[:, -1].any()) else tuple(names)

    @functools.cached_property
    def inputs(self) -> Bool[Tensor, " source"]:
        """For each source whether an edge of the circuit leads into that node."""
        graph = self.graph
        found = self.mask.any(0)[:-1].view(graph.num_layers, -1)
        queries, keys, values, mlp = found.split([graph.num_heads, graph.num_groups, graph.num_groups, 1], dim=1)
        heads = queries | (keys | values).repeat_interleave(graph.heads_per_group, dim=1)
        return torch.cat([torch.zeros(1, dtype=torch.bool), torch.cat([heads, mlp], dim=1).flatten()])

    @property
    def heads(self) -> tuple[tuple[int, int], ...]:
        """Layer and head of its attention heads."""
        places = [self.graph.node_of(self.graph.source_index(name)) for name in self.nodes if name != "logits"]
        return tuple((place[0], place[1]) for place in places if place is not None and place[1] is not None)

    @property
    def mlps(self) -> tuple[int, ...]:
        """Layers of its MLPs."""
        places = [self.graph.node_of(self.graph.source_index(name)) for name in self.nodes if name != "logits"]
        return tuple(place[0] for place in places if place is not None and place[1] is None)

    def role_of(self, name: str) -> Role | None:
        """The role of a node, if one was measured."""
        return next((role for role in self.roles if role.node == name), None)

    def __contains__(self, item: object) -> bool:
        """Whether an edge (`"L0H1->logits"`, an `Edge`, or its two ends) or a node (`"L0H1"`) is in it.

        Raises:
            CircuitError: for names that are none of this graph.
        """
        if isinstance(item, Edge):
            item = item.name
        if isinstance(item, tuple):
            item = "->".join(map(str, item))
        if not isinstance(item, str):
            return False
        if "->" in item:
            return bool(self.mask[self.graph.edge_of(item)])
        if item != "logits":
            self.graph.source_index(item)
        return item in self.nodes

    # --- sets of edges ---------------------------------------------------------------------------------------

    def __or__(self, other: Circuit) -> Circuit:
        """The edges of either."""
        return self._joined(other, "union", torch.logical_or)

    def __and__(self, other: Circuit) -> Circuit:
        """The edges of both."""
        return self._joined(other, "intersection", torch.logical_and)

    def __sub__(self, other: Circuit) -> Circuit:
        """The edges of this one that are not in the other."""
        return self._joined(other, "difference", torch.gt)

    def __xor__(self, other: Circuit) -> Circuit:
        """The edges of one of the two only."""
        return self._joined(other, "symmetric difference", torch.logical_xor)

    def __le__(self, other: Circuit) -> bool:
        """Whether all edges of this one are in the other."""
        self._check(other)
        return not bool((self.mask & ~other.mask).any())

    def __ge__(self, other: Circuit) -> bool:
        """Whether all edges of the other are in this one."""
        self._check(other)
        return not bool((other.mask & ~self.mask).any())

    def complement(self) -> Circuit:
        """All other edges of the model."""
        notes = {"operation": "complement", "edges_of_parts": [self.num_edges], **used_by(self.notes)}
        return self._changed(self.graph.valid & ~self.mask, notes)

    def pruned(self) -> Circuit:
        """Its edges that can carry something: those on a path from `embed` to `logits`; notes stay.

        With means or zeros as ablation those on any path to `logits`: see `connected`.
        """
        mask = connected(self.graph, self.mask, ablation=self.ablation)
        return self._changed(mask, self.notes | {"pruned": self.num_edges - int(mask.sum())})

    def jaccard(self, other: Circuit) -> float:
        """Edges of both over edges of either: 1 for the same circuit, also for two empty ones; 0 if nothing is shared.

        Raises:
            CircuitError: when the graphs differ.
        """
        self._check(other)
        either = int((self.mask | other.mask).sum())
        return int((self.mask & other.mask).sum()) / either if either else 1.0

    def _check(self, other: object) -> None:
        if not isinstance(other, Circuit):
            raise TypeError(
                f"a circuit can only be joined and compared with a circuit, not with {type(other).__name__}"
            )
        if other.graph != self.graph:
            raise CircuitError(f"circuits of different models cannot be compared: {self.graph} and {other.graph}")

    def _changed(self, mask: Bool[Tensor, "source dest"], notes: dict[str, Any]) -> Circuit:
        """Other edges of the same model; roles stay with the nodes that do."""
        found = replace(self, mask=mask, notes=notes, roles=())
        return replace(found, roles=tuple(role for role in self.roles if role.node in found.nodes))

    def _joined(self, other: Circuit, operation: str, combine: Callable[[Tensor, Tensor], Tensor]) -> Circuit:
        self._check(other)
        mask = combine(self.mask, other.mask)
        notes = {"operation": operation, "edges_of_parts": [self.num_edges, other.num_edges]}
        notes |= used_by(self.notes, other.notes)
        named = {role.node for role in self.roles}
        found = replace(
            self,
            mask=mask,
            scores=self._joined_scores(other, mask),
            method=_either(self.method, other.method),
            metric=_either(self.metric, other.metric),
            ablation=_either(self.ablation, other.ablation),
            roles=(*self.roles, *(role for role in other.roles if role.node not in named)),
            provenance=self.provenance if self.provenance == other.provenance else None,
        )
        return found._changed(mask, notes)

    def _joined_scores(self, other: Circuit, mask: Bool[Tensor, "source dest"]) -> Float[Tensor, "source dest"] | None:
        """Scores of this one for its own edges; those of the other only where they are of the same kind."""
        if self.scores is None or other.scores is None or not bool((mask & ~self.mask).any()):
            return None if bool((mask & ~self.mask).any()) else self.scores
        if (self.method, self.metric) != (other.method, other.metric):
            return None
        return torch.where(self.mask, self.scores, other.scores.to(self.scores.dtype))

    # --- words -----------------------------------------------------------------------------------------------

    def summary(self, number: int = 8) -> str:
        """The circuit in words: its parts and their roles, its size, how it was found, how faithful it is.

        Args:
            number: how many heads are named, the strongest first: by the |score| of the edges out of them, or their
                number where there are no scores.
        """
        if not self.num_edges:
            lines = [f"Circuit: empty, none of the {self.graph.num_edges:,} edges of the model is in it"]
            return "\n".join([*lines, *self._found(), *words_of_notes(self.notes)])
        heads, mlps = len(self.heads), len(self.mlps)
        lines = [
            f"Circuit: {heads} attention head{'' if heads == 1 else 's'}, {mlps} MLP layer{'' if mlps == 1 else 's'}"
        ]
        by_strength = [name for name, _ in self.strongest_nodes()]
        for title, names in (
            ("Key heads", [name for name in by_strength if "H" in name]),
            ("Key MLPs", [name for name in by_strength if name.endswith("MLP")]),
        ):
            lines += key_nodes(title, names, self.roles, number)
        lines.append(f"Edges: {self.num_edges:,} of {self.graph.num_edges:,} ({100 * self.density:.3g}%)")
        loose = self.num_edges - int(connected(self.graph, self.mask, ablation=self.ablation).sum())
        path = path_of(self.ablation)
        if loose == self.num_edges:
            where = "" if self.ablation else " where edges outside of it carry corrupt runs"
            lines.append(f"None of them is on {path}, so the circuit carries nothing{where}.")
        elif loose:
            lines.append(f"{loose:,} of them are on {path.replace('a ', 'no ', 1)}: .pruned() leaves them out.")
        return "\n".join([*lines, *self._found(), *words_of_notes(self.notes)])

    def strongest_nodes(self) -> list[tuple[str, float]]:
        """Its heads and MLPs with the sum of |score| of the edges out of each (or their number), the largest first."""
        weights = self.mask.double() if self.scores is None else self.scores.double().abs().nan_to_num(0.0) * self.mask
        sums = weights.sum(1).tolist()
        named = [(name, sums[self.graph.source_index(name)]) for name in self.nodes if name not in ("embed", "logits")]
        return sorted(named, key=lambda item: -item[1])

    def _found(self) -> list[str]:
        lines = []
        if self.method:
            lines.append(f"Found by {self.method}" + (f" on {self.metric}" if self.metric else ""))
        if self.ablation:
            lines.append(f"Edges outside of it carry {_ABLATIONS.get(self.ablation, self.ablation)}.")
        return lines

    # --- pictures --------------------------------------------------------------------------------------------

    def plot(self, **how: Any) -> CircuitView:
        """The circuit as a graph that can be explored; see `interp_toolkit.visualization.circuits.plot_circuit`."""
        from interp_toolkit.visualization.circuits import plot_circuit

        return plot_circuit(self, **how)

    def _repr_html_(self) -> str:
        return self.plot()._repr_html_()

    # --- data ------------------------------------------------------------------------------------------------

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each edge: names, layers, kind of input, score; needs pandas."""
        return frame_of(self.graph, self.edges)

    def to_networkx(self) -> Any:
        """A `networkx.MultiDiGraph` with a node for `embed`, each head, each MLP and `logits`.

        Nodes have `kind`, `layer`, `head` and `role`; edges have `input` (`"q"`, `"k"`, `"v"`, `"mlp"`, `"logits"`),
        `dest` (the destination's own name) and `score`. An edge into the keys or values of a group is drawn to each
        head of the group that has an edge out of it, or to all of its heads if none has.

        Raises:
            ImportError: without networkx.
        """
        try:
            networkx: Any = importlib.import_module("networkx")
        except ImportError as error:
            raise ImportError("this needs networkx: pip install networkx") from error

        graph, drawn = self.graph, networkx.MultiDiGraph()
        leaving = self.mask.any(1).tolist()
        for edge in self.edges:
            dest = graph.dest_index(edge.dest)
            kind = graph.input_of(dest)[0]
            nodes = graph.sources_of_dest(dest)
            targets = [graph.source_names[n] for n in [n for n in nodes if leaving[n]] or nodes] or ["logits"]
            for target in targets:
                for name in (edge.source, target):
                    if name not in drawn:
                        drawn.add_node(name, **self._facts(name))
                drawn.add_edge(edge.source, target, key=kind, input=kind, dest=edge.dest, score=edge.score)
        return drawn

    def _facts(self, name: str) -> dict[str, Any]:
        place = None if name == "logits" else self.graph.node_of(self.graph.source_index(name))
        if place is None:
            return {"kind": name, "layer": None, "head": None, "role": None}
        role = self.role_of(name)
        kind = "mlp" if place[1] is None else "head"
        return {"kind": kind, "layer": place[0], "head": place[1], "role": None if role is None else role.name}

    def to_json(self) -> str:
        """The JSON of `save`: each edge by name, with its score. Numbers in the notes that are not finite become null.

        Raises:
            CircuitError: for notes that JSON has no words for.
        """
        known = self.scores is not None and self.scores.dtype in (torch.float32, torch.float64)
        return circuit_json(
            Saved(
                graph=self.graph,
                edges=[(edge.source, edge.dest, edge.score) for edge in self.edges],
                dtype=None if self.scores is None else (str(self.scores.dtype) if known else "torch.float32"),
                texts={"method": self.method, "metric": self.metric, "ablation": self.ablation},
                notes=self.notes,
                roles=self.roles,
                provenance=self.provenance,
            )
        )

    def save(self, path: str | Path) -> Path:
        """Write it as JSON; see `to_json`."""
        target = Path(path)
        target.write_text(self.to_json(), encoding="utf-8")
        return target

    @classmethod
    def load(cls, path: str | Path) -> Circuit:
        """Read what `save` wrote. Scores of edges outside the circuit were not saved and are NaN.

        Raises:
            FileFormatError: when it is something else, or damaged.
        """
        saved = read_circuit(path)
        mask, scores = saved.matrices()
        try:
            return cls(
                graph=saved.graph,
                mask=mask,
                scores=scores,
                notes=saved.notes,
                roles=saved.roles,
                provenance=saved.provenance,
                **saved.texts,
            )
        except CircuitError as error:
            raise FileFormatError(f"{path} cannot be read as a saved circuit: {error}") from error


def circuit_of(graph: Graph, edges: Iterable[str | Edge | tuple[str, str]], **about: Any) -> Circuit:
    """A circuit of edges that one names.

    Args:
        graph: of the model.
        edges: names such as `"L0H1->L2KV0.k"`, pairs of names, or edges; scores of edges are kept.
        about: anything else that a `Circuit` takes.

    Raises:
        CircuitError: for edges that are not there.

    Example:
        >>> graph = Graph(num_layers=1, num_heads=1, num_groups=1, parallel=False)
        >>> circuit_of(graph, ["embed->L0MLP", ("L0MLP", "logits")])
        <Circuit: 2 of 8 edges>
    """
    mask = torch.zeros_like(graph.valid)
    scores = torch.full(mask.shape, torch.nan)
    for edge in edges:
        found = edge if isinstance(edge, Edge) else Edge(*(edge.split("->", 1) if isinstance(edge, str) else edge))
        place = graph.edge_of(found.name)
        mask[place] = True
        if found.score is not None:
            scores[place] = found.score
    if "scores" not in about and not bool(scores.isnan().all()):
        about["scores"] = scores
    return Circuit(graph=graph, mask=mask, **about)


def _either(first: str, second: str) -> str:
    return first if first == second else " and ".join(text for text in (first, second) if text)


__all__ = ["Circuit", "Edge", "Role", "circuit_of"]
