"""Circuits in the form of the attribution graphs that Neuronpedia shows.

The form is Neuronpedia's public JSON schema, `apps/webapp/app/api/graph/graph-schema.json` of
https://github.com/hijohnnylin/neuronpedia (draft 7, "Anthropic Attribution Graph" 1.0.0): `metadata`, `qParams`,
`nodes` and `links`. It was made for features of transcoders at positions of one prompt, so two things of a circuit have
to bend:

- a node of a circuit stands for all positions of many prompts; here it is drawn at the last position of one prompt;
- the viewer draws one link between two nodes; queries, keys and values are added up in it.

The description in the file says both. The viewer takes the probability of the answer from the label of its node.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from interp_toolkit.circuits.circuit import Circuit
from interp_toolkit.errors import CircuitError

_DESCRIPTION = (
    "Heads and MLPs of a model, not features. Every node stands for all positions and is drawn at the last one; a link "
    "adds up the scores of all inputs (queries, keys, values) by which one node enters another. Positive helps the "
    "answer."
)


def to_neuronpedia(
    circuit: Circuit,
    *,
    prompt: str,
    tokens: Sequence[str],
    answer: str,
    probability: float,
    slug: str = "circuit",
    scan: str | None = None,
) -> dict[str, Any]:
    """A circuit as Neuronpedia's attribution graph: write it with `json.dump` and load it up there.

    Args:
        circuit: what to show. Edges without a score weigh 1.
        prompt: one that it is shown with.
        tokens: of the prompt, as text.
        answer: the token that the circuit is about.
        probability: that the model gives it.
        slug: a name for the graph.
        scan: Neuronpedia's name of the model, such as `"gemma-2-2b"`; by default that of the circuit.

    Raises:
        CircuitError: for an empty circuit or one in layer 0 alone, which the viewer cannot show, and for no tokens.

    Example:
        >>> from interp_toolkit.circuits.circuit import circuit_of
        >>> from interp_toolkit.circuits.graph import Graph
        >>> graph = Graph(num_layers=2, num_heads=2, num_groups=2, parallel=False)
        >>> circuit = circuit_of(graph, ["embed->L1H0.v", "L1H0->logits"])
        >>> found = to_neuronpedia(circuit, prompt="a b", tokens=["a", " b"], answer=" c", probability=0.5)
        >>> [node["node_id"] for node in found["nodes"]]
        ['E_0_1', '1_0_1', '2_0_1']
    """
    if not tokens:
        raise CircuitError("a graph is shown with the tokens of a prompt, and none were given")
    last = len(tokens) - 1
    weights: dict[tuple[str, str], float] = defaultdict(float)
    places: dict[str, tuple[int, int | None] | None] = {}
    for source, target, edge in circuit.to_networkx().edges(data=True):
        weights[source, target] += 1.0 if edge["score"] is None else edge["score"]
        for name in (source, target):
            known = name == "logits"
            places[name] = None if known else circuit.graph.node_of(circuit.graph.source_index(name))
    if not any(place is not None and place[0] > 0 for place in places.values()):
        raise CircuitError("the viewer needs a node behind layer 0, and this circuit has none")
    names = sorted(places, key=lambda name: _order(circuit, name))
    nodes = {name: _node(circuit, name, last, f"Output {answer!r} (p={probability:.3f})") for name in names}
    return {
        "metadata": {
            "slug": slug,
            "scan": scan or (circuit.provenance.model if circuit.provenance is not None else "unknown"),
            "prompt_tokens": list(tokens),
            "prompt": prompt,
            "info": {"description": _DESCRIPTION, "generator": {"name": "interpretability-toolkit"}},
            "generation_settings": {
                "method": circuit.method,
                "metric": circuit.metric,
                "ablation": circuit.ablation,
                "edges": circuit.num_edges,
            },
        },
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": list(nodes.values()),
        "links": [
            {"source": nodes[source]["node_id"], "target": nodes[target]["node_id"], "weight": weight}
            for (source, target), weight in weights.items()
        ],
    }


def _order(circuit: Circuit, name: str) -> int:
    return circuit.graph.num_sources if name == "logits" else circuit.graph.source_index(name)


def _node(circuit: Circuit, name: str, position: int, output: str) -> dict[str, Any]:
    graph = circuit.graph
    place = None if name == "logits" else graph.node_of(graph.source_index(name))
    role = circuit.role_of(name)
    label = name if role is None else str(role)
    if place is not None:
        layer, feature = str(place[0]), graph.num_heads if place[1] is None else place[1]
        kind = "mlp" if place[1] is None else "attention head"
    elif name == "embed":
        # The viewer writes the token at its position over the label of what it knows as an "embedding".
        layer, feature, kind, label = "E", 0, "all embeddings", "embeddings of all positions"
    else:
        layer, feature, kind, label = str(graph.num_layers), 0, "logit", output
    return {
        "node_id": f"{layer}_{feature}_{position}",
        "feature": feature,
        "layer": layer,
        "ctx_idx": position,
        "feature_type": kind,
        "jsNodeId": f"{layer}_{feature}-{position}",
        "clerp": label,
        "influence": None,
        "activation": None,
    }


__all__ = ["to_neuronpedia"]
