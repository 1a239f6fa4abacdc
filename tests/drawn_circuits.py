"""Circuits that tests draw."""

from __future__ import annotations

import random
from typing import Any

from interp_toolkit.circuits.circuit import Circuit, Edge, Role, circuit_of
from interp_toolkit.circuits.graph_shape import Graph

GROUPED = Graph(num_layers=3, num_heads=4, num_groups=2, parallel=False)
HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    "]]>",
    "a\u2028b",
    "nul\x00\x0b",
    "\ud83d",
    "\u202eabc",
    "👨‍👩‍👧‍👦",
    "&amp;'\"",
    "x" * 200,
    "\n\t",
]


def known(**about: Any) -> Circuit:
    """A circuit with edges of every kind, into keys that two heads share too."""
    edges = [
        Edge("embed", "L0H1.q", 0.2),
        Edge("embed", "L0KV0.v", 0.5),
        Edge("L0H1", "L0MLP", -0.1),
        Edge("L0H1", "L2KV1.k", 0.9),
        Edge("embed", "L2H2.q", 0.05),
        Edge("L2H2", "logits", 1.5),
        Edge("L0MLP", "logits", -0.75),
    ]
    roles = (Role(layer=2, head=2, name="induction", score=0.9, test="on random tokens", others=(("copying", 0.4),)),)
    notes = {"faithfulness": {"value": 0.8, "low": 0.7, "high": None, "prompts": 12}, "caveats": ["few prompts"]}
    about = {"method": "eap-ig", "metric": "logit_diff", "ablation": "corrupt", "roles": roles, "notes": notes} | about
    return circuit_of(GROUPED, edges, **about)


def random_circuit(seed: int, edges: int = 120) -> Circuit:
    """A circuit of a model with grouped queries, edges drawn at random."""
    draw = random.Random(seed)
    graph = Graph(num_layers=6, num_heads=4, num_groups=2, parallel=False)
    found = {}
    for _ in range(edges):
        dest = draw.randrange(graph.num_dests)
        source = draw.randrange(int(graph.incoming[dest]))
        found[source, dest] = Edge(graph.source_names[source], graph.dest_names[dest], draw.gauss(0, 1))
    return circuit_of(graph, found.values())


def large_circuit(edges: int, seed: int = 0) -> Circuit:
    """A circuit of a model of 30 layers with 270 heads, most of which are in it where there are 2,000 edges."""
    draw = random.Random(seed)
    graph = Graph(num_layers=30, num_heads=9, num_groups=3, parallel=False)
    found = {}
    while len(found) < edges:
        dest = draw.randrange(graph.num_dests - 1) if draw.random() < 0.95 else graph.num_dests - 1
        source = draw.randrange(int(graph.incoming[dest])) if draw.random() < 0.95 else 0
        score = draw.choice([1, 1, 1, -1]) * draw.lognormvariate(-4, 1.5)
        found[source, dest] = Edge(graph.source_names[source], graph.dest_names[dest], score)
    names = ["induction", "previous token", "name mover", "negative mover", "subject tracker", "positional"]
    roles = tuple(
        Role(layer=n // 9, head=n % 9, name=draw.choice(names), score=0.5, test="drawn") for n in range(0, 270, 7)
    )
    return circuit_of(graph, found.values(), roles=roles)
