"""The nodes and edges of a model's computational graph: counts, places in matrices, and names.

A source is what writes into the residual stream: the embedding, a head, an MLP. A destination is what reads it: the
queries of a head, the keys or values of a key/value group, an MLP, the logits. With grouped-query attention the keys of
a group are **one** destination, which all heads of the group share. A destination reads everything written before it,
so the edges are a matrix `[source, dest]` in which each column is filled from the top down to some row.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp_toolkit.errors import CircuitError

Input = Literal["q", "k", "v", "mlp", "logits"]
"""What a destination is to its node."""

_ARROW = "->"
_MOST_PLACES = 2**29  # of the matrix; a model of 405 billion parameters has 297 million
_LONGEST_NAME = 40


@dataclass(frozen=True, kw_only=True)
class Graph:
    """The shape of a model's computational graph. Make it with `graph_of(model)`.

    Tensors and names of a graph are made once and shared: copy them before changing them.

    Args:
        num_layers: of the model.
        num_heads: query heads of a layer.
        num_groups: key/value groups of a layer; as many as heads where each has its own keys and values.
        parallel: whether attention and MLP of a layer read the same stream, so that no head reaches its layer's MLP.

    Raises:
        CircuitError: for numbers that no model has.

    Example:
        >>> graph = Graph(num_layers=30, num_heads=9, num_groups=3, parallel=False)
        >>> f"{graph.num_edges:,}"
        '70,651'
        >>> graph.edge_name(graph.source_index("L0H1"), graph.dest_index("L2KV0.k"))
        'L0H1->L2KV0.k'
    """

    num_layers: int
    num_heads: int
    num_groups: int
    parallel: bool

    def __post_init__(self) -> None:
        """Check the numbers."""
        if min(self.num_layers, self.num_heads, self.num_groups) < 1 or self.num_heads % self.num_groups:
            raise CircuitError(
                f"{self.num_layers} layers of {self.num_heads} heads and {self.num_groups} key/value groups are no "
                "model: each must be at least 1, and every group is shared by the same number of heads"
            )
        if self.num_sources * self.num_dests > _MOST_PLACES:
            raise CircuitError(
                f"a graph of {self.num_sources:,} sources and {self.num_dests:,} destinations is too large to hold"
            )

    # --- counts and places -----------------------------------------------------------------------------------

    @property
    def num_sources(self) -> int:
        """Number of nodes that write into the residual stream."""
        return 1 + self.num_layers * self.sources_per_layer

    @property
    def num_dests(self) -> int:
        """Number of inputs that read from it."""
        return 1 + self.num_layers * self.dests_per_layer

    @property
    def sources_per_layer(self) -> int:
        """Heads and the MLP."""
        return self.num_heads + 1

    @property
    def dests_per_layer(self) -> int:
        """Queries of heads, keys and values of groups, and the MLP."""
        return self.num_heads + 2 * self.num_groups + 1

    @property
    def heads_per_group(self) -> int:
        """How many heads share their keys and values."""
        return self.num_heads // self.num_groups

    @functools.cached_property
    def num_edges(self) -> int:
        """Number of edges of the whole graph."""
        return int(self.incoming.sum())

    @functools.cached_property
    def incoming(self) -> Int[Tensor, " dest"]:
        """How many sources each destination can read: always the first ones."""
        layers = 1 + torch.arange(self.num_layers)[:, None] * self.sources_per_layer
        whole = layers.expand(-1, self.dests_per_layer).clone()
        if not self.parallel:
            whole[:, -1] += self.num_heads
        return torch.cat([whole.flatten(), torch.tensor([self.num_sources])])

    @functools.cached_property
    def valid(self) -> Bool[Tensor, "source dest"]:
        """Where there is an edge: the mask of the whole graph."""
        return torch.arange(self.num_sources)[:, None] < self.incoming

    @functools.cached_property
    def source_layer(self) -> Int[Tensor, " source"]:
        """The layer of each source; −1 for `embed`."""
        layers = torch.arange(self.num_layers).repeat_interleave(self.sources_per_layer)
        return torch.cat([torch.tensor([-1]), layers])

    @functools.cached_property
    def dest_layer(self) -> Int[Tensor, " dest"]:
        """The layer of each destination; the number of layers for `logits`."""
        layers = torch.arange(self.num_layers).repeat_interleave(self.dests_per_layer)
        return torch.cat([layers, torch.tensor([self.num_layers])])

    def source_at(self, layer: int, head: int | None) -> int:
        """The source that is a head, or with None an MLP."""
        if not (0 <= layer < self.num_layers and (head is None or 0 <= head < self.num_heads)):
            what = "MLP" if head is None else f"head {head}"
            raise CircuitError(
                f"there is no {what} in layer {layer}: layers are 0 to {self.num_layers - 1}, heads 0 to "
                f"{self.num_heads - 1}"
            )
        return 1 + layer * self.sources_per_layer + (self.num_heads if head is None else head)

    def node_of(self, source: int) -> tuple[int, int | None] | None:
        """Layer and head of a source, with None as the head of an MLP; None for `embed`."""
        if source == 0:
            return None
        layer, place = divmod(source - 1, self.sources_per_layer)
        return layer, None if place == self.num_heads else place

    def input_of(self, dest: int) -> tuple[Input, int, int]:
        """What a destination is: kind of input, layer, and the head or group in it.

        `("q", layer, head)`, `("k", layer, group)`, `("v", layer, group)`, `("mlp", layer, 0)` or
        `("logits", num_layers, 0)`.
        """
        layer, place = divmod(dest, self.dests_per_layer)
        if layer == self.num_layers:
            return "logits", layer, 0
        if place < self.num_heads:
            return "q", layer, place
        kind, group = divmod(place - self.num_heads, self.num_groups)
        return (("k", layer, group), ("v", layer, group), ("mlp", layer, 0))[kind]

    def dests_of_source(self, source: int) -> tuple[int, ...]:
        """The inputs of the node that is this source: queries, keys and values of a head, or the stream of an MLP."""
        node = self.node_of(source)
        if node is None:
            return ()
        layer, head = node
        first = layer * self.dests_per_layer
        if head is None:
            return (first + self.dests_per_layer - 1,)
        key = first + self.num_heads + head // self.heads_per_group
        return first + head, key, key + self.num_groups

    def sources_of_dest(self, dest: int) -> tuple[int, ...]:
        """The nodes of which a destination is an input: all heads of a group for its keys; none for `logits`."""
        kind, layer, index = self.input_of(dest)
        if kind == "logits":
            return ()
        if kind == "mlp":
            return (self.source_at(layer, None),)
        if kind == "q":
            return (self.source_at(layer, index),)
        shared = self.heads_per_group
        return tuple(self.source_at(layer, head) for head in range(index * shared, (index + 1) * shared))

    # --- names -----------------------------------------------------------------------------------------------

    @functools.cached_property
    def source_names(self) -> tuple[str, ...]:
        """The name of each source: `embed`, `L5H1`, `L5MLP`."""
        heads = [f"H{head}" for head in range(self.num_heads)]
        return ("embed", *(f"L{layer}{name}" for layer in range(self.num_layers) for name in (*heads, "MLP")))

    @functools.cached_property
    def dest_names(self) -> tuple[str, ...]:
        """The name of each destination: `L5H1.q`, `L5KV0.k` (`L5H0.k` where nothing is shared), `L5MLP`, `logits`."""
        group = "KV" if self.heads_per_group > 1 else "H"
        places = [f"H{head}.q" for head in range(self.num_heads)]
        places += [f"{group}{index}.{kind}" for kind in ("k", "v") for index in range(self.num_groups)]
        return (*(f"L{layer}{name}" for layer in range(self.num_layers) for name in (*places, "MLP")), "logits")

    def source_index(self, name: str) -> int:
        """The row of a source.

        Raises:
            CircuitError: when there is none of that name.
        """
        found = self._sources.get(name)
        if found is None:
            raise CircuitError(f"{short(name)} is no source of this graph: {_nearest(name, self._sources)}")
        return found

    def dest_index(self, name: str) -> int:
        """The column of a destination.

        Raises:
            CircuitError: when there is none of that name.
        """
        found = self._dests.get(name)
        if found is None:
            hint = self._shared_hint(name) or _nearest(name, self._dests)
            raise CircuitError(f"{short(name)} is no destination of this graph: {hint}")
        return found

    def edge_name(self, source: int, dest: int) -> str:
        """What an edge is called."""
        return f"{self.source_names[source]}{_ARROW}{self.dest_names[dest]}"

    def edge_of(self, name: str) -> tuple[int, int]:
        """Row and column of an edge, such as `"L0H1->L2KV0.k"`.

        Raises:
            CircuitError: when there is no such edge.
        """
        first, arrow, second = name.partition(_ARROW)
        if not arrow:
            raise CircuitError(f"{short(name)} is no edge: write it as 'L0H1->L2MLP'")
        source, dest = self.source_index(first.strip()), self.dest_index(second.strip())
        if source >= int(self.incoming[dest]):
            raise CircuitError(f"there is no edge {self.edge_name(source, dest)}: the source writes after it is read")
        return source, dest

    @functools.cached_property
    def _sources(self) -> dict[str, int]:
        return {name: n for n, name in enumerate(self.source_names)}

    @functools.cached_property
    def _dests(self) -> dict[str, int]:
        return {name: n for n, name in enumerate(self.dest_names)}

    def _shared_hint(self, name: str) -> str:
        """The group that is meant by keys or values of a head, where heads share them."""
        node, _, kind = name.partition(".")
        source = self._sources.get(node)
        if kind not in ("k", "v") or source is None or "H" not in node:
            return ""
        dest = self.dests_of_source(source)[1 if kind == "k" else 2]
        return f"heads share keys and values here, so write {self.dest_names[dest]}"


def short(name: str) -> str:
    """A name as a message shows it: quoted, and cut if it is long."""
    return repr(name if len(name) <= _LONGEST_NAME else name[:_LONGEST_NAME] + "…")


def _nearest(name: str, names: Mapping[str, int]) -> str:
    """Names that may be meant; long ones are not compared, which would take long."""
    found = get_close_matches(name[:_LONGEST_NAME], names, n=3, cutoff=0.5)
    every = list(names)
    return "did you mean " + " or ".join(found) + "?" if found else f"they are {every[0]}, {every[1]}, ..., {every[-1]}"


__all__ = ["Graph", "Input", "short"]
