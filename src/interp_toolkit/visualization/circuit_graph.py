"""The nodes and edges of a circuit as a picture needs them, read from plain data.

The data are those of a circuit's JSON file. All but the edges can be left out, and names can be any: a name such as
`L5H1`, `L5MLP`, `embed` or `logits` says where a node is, others say it as `layer`, and where some do not, the longest
path that leads to a node does.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

_HEAD = re.compile(r"L(\d{1,6})H(\d{1,6})(?:\.([qkv]))?")
_GROUP = re.compile(r"L(\d{1,6})KV(\d{1,6})\.([kv])")
_MLP = re.compile(r"L(\d{1,6})MLP")
_KINDS = ("embed", "head", "mlp", "logits", "other")
_TOP = 10**6 + 1
UNLABELLED = "unlabelled"


@dataclass(frozen=True, kw_only=True)
class GraphNode:
    """A node of a circuit.

    Attributes:
        name: as in `"L5H1"`.
        kind: `"embed"`, `"head"`, `"mlp"`, `"logits"` or `"other"`.
        layer: its height; −1 for `embed`.
        head: its number in the layer, if it has one.
        position: of the token that it is at, if the circuit says so.
        role: what it does, if it is known.
        words: how that was measured.
    """

    name: str
    kind: str = "other"
    layer: int = 0
    head: int | None = None
    position: int | None = None
    role: str = ""
    words: str = ""


@dataclass(frozen=True, kw_only=True)
class GraphEdge:
    """An edge of a circuit.

    Attributes:
        source: the number of the node that writes.
        targets: of those that read: several where heads share keys and values.
        port: `"q"`, `"k"`, `"v"` for inputs of a head, else empty.
        dest: the destination's own name.
        score: positive helps the clean answer; None where it is not known.
    """

    source: int
    targets: tuple[int, ...]
    port: str
    dest: str
    score: float | None


@dataclass(frozen=True, kw_only=True)
class CircuitGraph:
    """The nodes and edges of a circuit.

    Attributes:
        nodes: in the order of their layers.
        edges: those with the largest |score| first.
        total: how many edges the whole model has, if that is known.
        left_out: edges that were too many to draw.
        layers: whether layers are those of a model, and not the length of paths.
        facts: everything else that the file of a circuit has; None if the data were no such file.
    """

    nodes: tuple[GraphNode, ...]
    edges: tuple[GraphEdge, ...]
    total: int | None = None
    left_out: int = 0
    layers: bool = True
    facts: dict[str, Any] | None = None


def read_graph(data: Mapping[str, Any], *, max_edges: int = 2000) -> CircuitGraph:
    """Nodes and edges from plain data.

    Args:
        data: `edges`, and if known `nodes`, `roles`, `graph` and whatever else a circuit's file has. An edge is
            `(source, dest)` or `(source, dest, score)`, or a mapping with these names; a node is a name, or a mapping
            with `name` and any of `kind`, `layer`, `position`, `role`.
        max_edges: with more, only those with the largest |score| are kept.

    Raises:
        ValueError: for edges and nodes that cannot be read, and edges that go round in circles or downwards.

    Example:
        >>> found = read_graph({"edges": [("embed", "L0H1.v", 0.5), ("L0H1", "logits", -0.2)]})
        >>> [node.name for node in found.nodes], found.edges[0].port
        (['embed', 'L0H1', 'logits'], 'v')
    """
    if "edges" not in data:
        raise ValueError(f"a circuit needs edges; the data have {', '.join(map(repr, data)) or 'nothing'}")
    rows = [_edge(row) for row in data["edges"]]
    rows.sort(key=lambda row: -abs(row[2]) if row[2] is not None else 1.0)
    kept = rows[:max_edges]
    known = _known_nodes(data)
    shared = _heads_per_group(data)
    leaving = {source for source, _, _ in kept}
    ends = [_ends(dest, shared, leaving, known) for _, dest, _ in kept]
    links = [(row[0], target) for row, (targets, _) in zip(kept, ends, strict=True) for target in targets]
    nodes, layered = _layered(_all_nodes(links, known), links)
    order = sorted(nodes, key=lambda node: (node.layer, node.kind == "mlp", node.head or 0))
    place = {node.name: n for n, node in enumerate(order)}
    edges = [
        GraphEdge(source=place[source], targets=tuple(place[t] for t in targets), port=port, dest=dest, score=score)
        for (source, dest, score), (targets, port) in zip(kept, ends, strict=True)
    ]
    return CircuitGraph(
        nodes=tuple(order),
        edges=tuple(edges),
        total=_total(data),
        left_out=len(rows) - len(kept),
        layers=layered,
        facts={key: value for key, value in data.items() if key != "edges"} if "format" in data else None,
    )


def _edge(row: Any) -> tuple[str, str, float | None]:
    parts = [row.get(key) for key in ("source", "dest", "score")] if isinstance(row, Mapping) else row
    if isinstance(parts, str) or not isinstance(parts, Sequence) or len(parts) not in (2, 3):
        raise ValueError(f"{row!r:.80} is no edge: give (source, dest) or (source, dest, score)")
    source, dest, score = (*parts, None)[:3]
    if not (isinstance(source, str) and isinstance(dest, str)):
        raise ValueError(f"{row!r:.80} is no edge: both ends are names")
    if score is None:
        return source, dest, None
    if isinstance(score, bool | str) or not isinstance(score, int | float) or math.isinf(score):
        raise ValueError(f"the score of {source!r:.40} -> {dest!r:.40} is a finite number or None, not {score!r:.40}")
    return source, dest, None if math.isnan(score) else float(score)


# --- nodes -------------------------------------------------------------------------------------------------------


def _known_nodes(data: Mapping[str, Any]) -> dict[str, Any]:
    """What the data say of nodes, by name: those that are listed, and roles."""
    known: dict[str, Any] = {}
    for node in data.get("nodes", ()):
        about = {"name": node} if isinstance(node, str) else node
        if not isinstance(about, Mapping) or not isinstance(about.get("name"), str):
            raise ValueError(f"{node!r:.80} is no node: give its name, or a mapping with a name")
        wrong = [key for key in ("layer", "position") if type(about.get(key, 0)) not in (int, type(None))]
        if wrong or about.get("kind", "other") not in _KINDS:
            what = f"{wrong[0]} is a whole number" if wrong else f"kind is one of {', '.join(_KINDS)}"
            raise ValueError(f"the node {about['name']!r:.40} cannot be read: {what}")
        known[about["name"]] = dict(about) | {"listed": True}
    for role in data.get("roles", ()):
        if (
            not isinstance(role, Mapping)
            or "name" not in role
            or not ("node" in role or {"layer", "head"} <= set(role))
        ):
            raise ValueError(f"{role!r:.80} is no role: give its name, and node or layer and head")
        name = role.get("node") or f"L{role['layer']}" + ("MLP" if role["head"] is None else f"H{role['head']}")
        if str(role["name"]) != UNLABELLED:
            known.setdefault(name, {}).update(role=str(role["name"]), words=_told(role))
    return known


def _told(role: Mapping[str, Any]) -> str:
    """How a role was measured, in words."""
    scores = [f"{role['score']:.2f}"] if role.get("score") is not None else []
    scores += [f"{name} {score:.2f}" for name, score in role.get("others", ())]
    return ", ".join(scores) + (f" ({role['test']})" if role.get("test") else "")


def _heads_per_group(data: Mapping[str, Any]) -> int | None:
    shape = data.get("graph") or {}
    heads, groups = shape.get("num_heads"), shape.get("num_groups")
    return heads // groups if heads and groups else None


def _ends(dest: str, shared: int | None, leaving: set[str], known: Mapping[str, Any]) -> tuple[tuple[str, ...], str]:
    """The nodes that a destination belongs to, and which of their inputs it is."""
    if dest in known and known[dest].get("listed"):
        return (dest,), ""
    if found := _GROUP.fullmatch(dest):
        if shared is None:
            raise ValueError(
                f"{dest} is read by several heads, but how many share it is not known: give graph={{'num_heads': ..., "
                "'num_groups': ...}"
            )
        first = int(found[2]) * shared
        heads = [f"L{found[1]}H{head}" for head in range(first, first + shared)]
        return tuple(head for head in heads if head in leaving) or tuple(heads), found[3]
    if (found := _HEAD.fullmatch(dest)) and found[3]:
        return (dest[:-2],), found[3]
    return (dest,), ""


def _all_nodes(links: Iterable[tuple[str, str]], known: Mapping[str, Any]) -> list[GraphNode]:
    """Every node that is at an end of an edge or listed, with layer −2 where that is not known."""
    names = dict.fromkeys([name for link in links for name in link])
    names |= dict.fromkeys(name for name, about in known.items() if about.get("listed"))
    return [_node(name, known.get(name, {})) for name in names]


def _node(name: str, about: Mapping[str, Any]) -> GraphNode:
    found = GraphNode(name=name, layer=-2)
    if head := _HEAD.fullmatch(name):
        found = replace(found, kind="head", layer=int(head[1]), head=int(head[2]))
    elif mlp := _MLP.fullmatch(name):
        found = replace(found, kind="mlp", layer=int(mlp[1]))
    elif name in ("embed", "logits"):
        found = replace(found, kind=name, layer=-1 if name == "embed" else _TOP)
    given = {key: about[key] for key in ("kind", "layer", "position", "role", "words") if about.get(key) is not None}
    return replace(found, **given)


def _layered(nodes: Sequence[GraphNode], links: Sequence[tuple[str, str]]) -> tuple[list[GraphNode], bool]:
    """Nodes with layers: their own where all have one and edges lead upwards, else the longest path to each."""
    known = {node.name: node for node in nodes}
    if all(node.layer != -2 for node in nodes):
        for source, target in links:
            low, high = known[source], known[target]
            if (low.layer, low.kind == "mlp") >= (high.layer, high.kind == "mlp"):
                raise ValueError(f"the edge {source!r:.40} -> {target!r:.40} does not lead to a higher layer")
        return list(nodes), True
    depth = _depths([node.name for node in nodes], links)
    return [replace(node, layer=depth[node.name]) for node in nodes], False


def _depths(names: Sequence[str], links: Sequence[tuple[str, str]]) -> dict[str, int]:
    """The length of the longest path to each node.

    Raises:
        ValueError: naming a circle.
    """
    targets: dict[str, set[str]] = defaultdict(set)
    waiting = dict.fromkeys(names, 0)
    for source, target in set(links):
        targets[source].add(target)
        waiting[target] += 1
    depth = dict.fromkeys(names, 0)
    ready = [name for name in names if not waiting[name]]
    for name in ready:
        for target in sorted(targets[name]):
            depth[target] = max(depth[target], depth[name] + 1)
            waiting[target] -= 1
            if not waiting[target]:
                ready.append(target)
    if len(ready) < len(names):
        left = [name for name in names if waiting[name]]
        raise ValueError(
            f"a circuit has no circles, but edges lead from {left[0]!r:.40} back to it or what is below it"
        )
    return depth


def _total(data: Mapping[str, Any]) -> int | None:
    """The number of edges of the whole model: every destination reads all that was written before it."""
    shape = data.get("graph") or {}
    try:
        layers, heads, groups = (int(shape[name]) for name in ("num_layers", "num_heads", "num_groups"))
    except KeyError:
        return None
    written = [1 + layer * (heads + 1) for layer in range(layers + 1)]
    own = 0 if shape.get("parallel") else heads
    return sum((heads + 2 * groups) * before + before + own for before, _ in pairwise(written)) + written[-1]


__all__ = ["UNLABELLED", "CircuitGraph", "GraphEdge", "GraphNode", "read_graph"]
