"""The computational graph: its counts and names, what is connected, and how edges are chosen."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import networkx as nx
import pytest
import torch
from torch import Tensor

import tiny
from interp_toolkit.circuits.graph import (
    Graph,
    connected,
    graph_of,
    greedy_edges,
    random_edges,
    top_edges,
)
from interp_toolkit.errors import CircuitError

SHAPES = [
    Graph(num_layers=layers, num_heads=heads, num_groups=groups, parallel=parallel)
    for layers, heads, groups in ((1, 1, 1), (2, 2, 2), (3, 4, 2), (2, 6, 3), (3, 4, 1))
    for parallel in (False, True)
]
LLAMA_8B = Graph(num_layers=32, num_heads=32, num_groups=8, parallel=False)


def named(graph: Graph, mask: Tensor) -> set[str]:
    return {graph.edge_name(int(source), int(dest)) for source, dest in mask.nonzero()}


def mask_of(graph: Graph, *names: str) -> Tensor:
    mask = torch.zeros_like(graph.valid)
    for name in names:
        mask[graph.edge_of(name)] = True
    return mask


def random_mask(graph: Graph, seed: int, share: float) -> Tensor:
    return (torch.rand(graph.valid.shape, generator=torch.Generator().manual_seed(seed)) < share) & graph.valid


# --- counts and names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "heads", "groups", "edges"),
    [(30, 9, 3, 70_651), (30, 9, 9, 123_211), (32, 32, 8, 805_681), (32, 32, 32, 1_592_881), (12, 12, 12, 32_491)],
)
def test_known_models_have_as_many_edges_as_the_literature_says(
    layers: int, heads: int, groups: int, edges: int
) -> None:
    graph = Graph(num_layers=layers, num_heads=heads, num_groups=groups, parallel=False)
    assert graph.num_edges == int(graph.valid.sum()) == edges


def test_a_small_graph_with_shared_keys_is_as_counted_by_hand() -> None:
    graph = Graph(num_layers=2, num_heads=2, num_groups=1, parallel=False)
    assert graph.source_names == ("embed", "L0H0", "L0H1", "L0MLP", "L1H0", "L1H1", "L1MLP")
    layer = ["H0.q", "H1.q", "KV0.k", "KV0.v", "MLP"]
    assert graph.dest_names == (*(f"L0{name}" for name in layer), *(f"L1{name}" for name in layer), "logits")
    assert graph.incoming.tolist() == [1, 1, 1, 1, 3, 4, 4, 4, 4, 6, 7]
    assert graph.num_edges == 4 * 1 + 3 + 4 * 4 + 6 + 7
    assert graph.source_layer.tolist() == [-1, 0, 0, 0, 1, 1, 1]
    assert graph.dest_layer.tolist() == [0] * 5 + [1] * 5 + [2]


def test_in_a_parallel_graph_no_head_reaches_the_mlp_of_its_layer() -> None:
    graph = Graph(num_layers=2, num_heads=2, num_groups=2, parallel=True)
    assert graph.incoming.tolist() == [1] * 7 + [4] * 7 + [7]
    with pytest.raises(CircuitError, match="there is no edge L0H1->L0MLP"):
        graph.edge_of("L0H1->L0MLP")
    assert Graph(num_layers=2, num_heads=2, num_groups=2, parallel=False).edge_of("L0H1->L0MLP") == (2, 6)


def test_without_grouping_keys_and_values_are_named_after_heads() -> None:
    assert Graph(num_layers=1, num_heads=2, num_groups=2, parallel=False).dest_names == (
        *("L0H0.q", "L0H1.q", "L0H0.k", "L0H1.k", "L0H0.v", "L0H1.v", "L0MLP", "logits"),
    )


@pytest.mark.parametrize("graph", SHAPES, ids=str)
def test_names_indices_and_inputs_agree(graph: Graph) -> None:
    assert len(graph.source_names) == graph.num_sources == len(set(graph.source_names)) == len(graph.source_layer)
    assert len(graph.dest_names) == graph.num_dests == len(set(graph.dest_names)) == len(graph.dest_layer)
    for source, name in enumerate(graph.source_names):
        assert graph.source_index(name) == source
        node = graph.node_of(source)
        assert (node is None) == (source == 0)
        if node is not None:
            assert graph.source_at(*node) == source
            assert node[0] == graph.source_layer[source]
        for dest in graph.dests_of_source(source):
            assert source in graph.sources_of_dest(dest)
            assert graph.dest_layer[dest] == graph.source_layer[source]
    for dest, name in enumerate(graph.dest_names):
        assert graph.dest_index(name) == dest
        kind, layer, index = graph.input_of(dest)
        assert layer == graph.dest_layer[dest]
        shared = graph.heads_per_group
        expected = {
            "q": f"L{layer}H{index}.q",
            "k": f"L{layer}{'KV' if shared > 1 else 'H'}{index}.k",
            "v": f"L{layer}{'KV' if shared > 1 else 'H'}{index}.v",
            "mlp": f"L{layer}MLP",
            "logits": "logits",
        }
        assert name == expected[kind]
        for source in graph.sources_of_dest(dest):
            assert dest in graph.dests_of_source(source)
    for source, dest in itertools.product(range(graph.num_sources), range(graph.num_dests)):
        if graph.valid[source, dest]:
            assert graph.edge_of(graph.edge_name(source, dest)) == (source, dest)


@pytest.mark.parametrize("graph", SHAPES, ids=str)
def test_an_edge_is_there_exactly_if_the_source_is_written_before_it_is_read(graph: Graph) -> None:
    # In the order of time: attention reads, heads write, MLP reads, MLP writes.
    for source, dest in itertools.product(range(graph.num_sources), range(graph.num_dests)):
        node, (kind, layer, _) = graph.node_of(source), graph.input_of(dest)
        written = -1.0 if node is None else node[0] + (0.3 if node[1] is not None else 0.9)
        read = {"mlp": layer + (0.1 if graph.parallel else 0.5), "logits": layer + 0.0}.get(kind, layer + 0.1)
        assert bool(graph.valid[source, dest]) == (written < read)


def test_equal_graphs_are_equal_and_can_be_keys() -> None:
    one, other = (Graph(num_layers=2, num_heads=2, num_groups=1, parallel=False) for _ in range(2))
    assert one == other
    assert len({one, other}) == 1
    assert one != Graph(num_layers=2, num_heads=2, num_groups=1, parallel=True)


# --- errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("numbers", [(0, 1, 1), (1, 0, 1), (1, 4, 3), (1, 2, 4), (2, 2, 0), (-1, 2, 1)])
def test_numbers_that_no_model_has_are_refused(numbers: tuple[int, int, int]) -> None:
    layers, heads, groups = numbers
    with pytest.raises(CircuitError, match="are no model"):
        Graph(num_layers=layers, num_heads=heads, num_groups=groups, parallel=False)


def test_a_graph_too_large_to_hold_is_refused_at_once() -> None:
    with pytest.raises(CircuitError, match="too large to hold"):
        Graph(num_layers=10**9, num_heads=64, num_groups=8, parallel=False)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda g: g.source_index("L1H9"), r"'L1H9' is no source of this graph: did you mean L1H"),
        (lambda g: g.dest_index("L1H1"), r"'L1H1' is no destination of this graph: did you mean"),
        (lambda g: g.dest_index("L1H1.k"), r"'L1H1\.k' is no destination.*heads share keys and values.*L1KV0\.k"),
        (lambda g: g.dest_index("L2H3.v"), r"heads share keys and values here, so write L2KV1\.v"),
        (lambda g: g.dest_index("§§"), r"they are L0H0\.q, L0H1\.q, \.\.\., logits"),
        (lambda g: g.source_index(""), r"'' is no source of this graph"),
        (lambda g: g.edge_of("L0H1"), r"'L0H1' is no edge: write it as 'L0H1->L2MLP'"),
        (lambda g: g.edge_of("L2MLP->L0MLP"), r"no edge L2MLP->L0MLP: the source writes after it is read"),
        (lambda g: g.edge_of("logits->L0MLP"), r"'logits' is no source"),
        (lambda g: g.edge_of("a->b->c"), r"'a' is no source"),
        (lambda g: g.source_at(3, None), r"no MLP in layer 3: layers are 0 to 2, heads 0 to 3"),
        (lambda g: g.source_at(0, 4), r"no head 4 in layer 0"),
        (lambda g: g.source_at(-1, 0), r"no head 0 in layer -1"),
        (lambda g: top_edges(g, torch.zeros(g.valid.shape), g.num_edges + 1), r"edges cannot be chosen: the graph has"),
        (lambda g: greedy_edges(g, torch.zeros(g.valid.shape), -1), r"-1 edges cannot be chosen"),
        (lambda g: random_edges(g, 10**9), r"1,000,000,000 edges cannot be chosen"),
        (lambda g: top_edges(g, torch.zeros(2, 2), 1), r"scores of this graph have shape \(16, 28\).*not \(2, 2\)"),
        (lambda g: connected(g, torch.zeros(2, 2, dtype=torch.bool)), r"boolean and of shape \(16, 28\)"),
        (lambda g: connected(g, ~g.valid), r"places where there is no edge, such as L0H0->L0H0\.q: take it & graph"),
    ],
)
def test_what_is_not_there_is_refused_in_words(ask: Callable[[Graph], Any], message: str) -> None:
    with pytest.raises(CircuitError, match=message):
        ask(Graph(num_layers=3, num_heads=4, num_groups=2, parallel=False))


@pytest.mark.usefixtures("unchecked")
def test_another_way_to_rank_and_a_mask_of_numbers_are_refused() -> None:
    graph = SHAPES[2]
    by: Any = "size"
    with pytest.raises(CircuitError, match="ranked by 'absolute' or 'signed' scores, not by 'size'"):
        top_edges(graph, torch.zeros(graph.valid.shape), 1, by=by)
    with pytest.raises(CircuitError, match=r"boolean .* not torch\.float32"):
        connected(graph, graph.valid.float())


@pytest.mark.parametrize("name", ["x" * 10_000_000, "L" + "9" * 5000 + "H1", "->" * 500_000, "L0H1" * 100_000 + ".k"])
def test_names_of_hostile_length_are_refused_quickly_and_shortly(name: str) -> None:
    begin = time.perf_counter()
    for ask in (LLAMA_8B.source_index, LLAMA_8B.dest_index, LLAMA_8B.edge_of):
        with pytest.raises(CircuitError) as caught:
            ask(name)
        assert len(str(caught.value)) < 300
    assert time.perf_counter() - begin < 5


def test_scores_that_are_no_numbers_are_refused_only_where_there_are_edges() -> None:
    graph = SHAPES[4]
    scores = torch.where(graph.valid, 1.0, torch.nan)
    assert int(top_edges(graph, scores, 3).sum()) == int(greedy_edges(graph, scores, 3).sum()) == 3
    for bad in (torch.nan, torch.inf, -torch.inf):
        scores[graph.edge_of("embed->L1MLP")] = bad
        for choose in (top_edges, greedy_edges):
            with pytest.raises(CircuitError, match=r"1 of .* not a finite number, such as embed->L1MLP with"):
                choose(graph, scores, 3)


# --- graphs of models ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "numbers"),
    [("gpt2", (3, 4, 4, False)), ("llama", (3, 4, 2, False)), ("gpt_neox", (3, 4, 4, True)), ("gemma2", None)],
)
def test_the_graph_of_a_model_is_that_of_its_config(family: str, numbers: tuple[int, int, int, bool] | None) -> None:
    model = tiny.model_of(family)
    graph = graph_of(model)
    config = model.config
    groups = getattr(config, "num_key_value_heads", config.num_attention_heads)
    assert (graph.num_layers, graph.num_heads, graph.num_groups) == (
        *(config.num_hidden_layers, config.num_attention_heads, groups),
    )
    if numbers is not None:
        assert (graph.num_layers, graph.num_heads, graph.num_groups, graph.parallel) == numbers


# --- what is connected -----------------------------------------------------------------------------------------


def by_networkx(graph: Graph, mask: Tensor) -> Tensor:
    """Edges on a path, with every input and every node of the graph as a node of its own."""
    whole = nx.DiGraph()
    for source, dest in mask.nonzero().tolist():
        whole.add_edge(("out", source), ("in", dest))
    for source in range(graph.num_sources):
        for dest in graph.dests_of_source(source):
            whole.add_edge(("in", dest), ("out", source))
    end = ("in", graph.num_dests - 1)
    whole.add_nodes_from([("out", 0), end])
    after = nx.descendants(whole, ("out", 0)) | {("out", 0)}
    before = nx.ancestors(whole, end) | {end}
    kept = torch.zeros_like(mask)
    for source, dest in mask.nonzero().tolist():
        kept[source, dest] = ("out", source) in after and ("in", dest) in before
    return kept


@pytest.mark.parametrize("graph", SHAPES, ids=str)
def test_connected_edges_are_those_that_networkx_finds_on_paths(graph: Graph) -> None:
    kept = []
    for seed, share in itertools.product(range(12), (0.03, 0.1, 0.25, 0.6)):
        mask = random_mask(graph, seed, share)
        found = connected(graph, mask)
        assert torch.equal(found, by_networkx(graph, mask)), (seed, share)
        kept.append(int(found.sum()) / max(1, int(mask.sum())))
    assert min(kept) < 0.5
    assert any(0 < share < 1 for share in kept) or graph.num_layers == 1


def test_keys_of_a_group_reach_every_head_of_it_and_no_other() -> None:
    graph = Graph(num_layers=2, num_heads=4, num_groups=2, parallel=False)
    inside = mask_of(graph, "embed->L1KV1.k", "L1H2->logits")
    assert torch.equal(connected(graph, inside), inside)
    outside = mask_of(graph, "embed->L1KV1.k", "L1H1->logits")
    assert not connected(graph, outside).any()
    both = mask_of(graph, "embed->L0KV0.v", "L0H0->L1KV0.k", "L0H1->L1H3.q", "L1H1->logits")
    assert named(graph, connected(graph, both)) == {"embed->L0KV0.v", "L0H0->L1KV0.k", "L1H1->logits"}


def test_a_node_needs_both_an_edge_in_and_an_edge_out() -> None:
    graph = Graph(num_layers=2, num_heads=2, num_groups=2, parallel=False)
    chain = ("embed->L0H1.v", "L0H1->L0MLP", "L0MLP->L1H0.q", "L1H0->logits")
    assert named(graph, connected(graph, mask_of(graph, *chain))) == set(chain)
    for n in range(4):
        assert not connected(graph, mask_of(graph, *chain[:n], *chain[n + 1 :])).any()
    assert named(graph, connected(graph, mask_of(graph, "embed->logits", "L0MLP->logits"))) == {"embed->logits"}


def test_the_whole_graph_and_the_empty_one_stay_as_they_are() -> None:
    for graph in SHAPES:
        assert torch.equal(connected(graph, graph.valid), graph.valid)
        empty = torch.zeros_like(graph.valid)
        assert torch.equal(connected(graph, empty), empty)


def test_connecting_twice_changes_nothing_and_the_argument_stays() -> None:
    mask = random_mask(SHAPES[4], 3, 0.2)
    kept = mask.clone()
    once = connected(SHAPES[4], mask)
    assert torch.equal(connected(SHAPES[4], once), once)
    assert torch.equal(mask, kept)


# --- choosing --------------------------------------------------------------------------------------------------


def some_scores(graph: Graph, seed: int, rounded: bool) -> Tensor:
    scores = torch.randn(graph.valid.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return scores.round(decimals=0) if rounded else scores


def key_of(by: str) -> Callable[[float], float]:
    return abs if by == "absolute" else float


@pytest.mark.parametrize("by", ["absolute", "signed"])
@pytest.mark.parametrize("rounded", [False, True])
def test_top_edges_are_those_that_sorting_gives(by: Any, rounded: bool) -> None:
    key = key_of(by)
    for graph, seed in itertools.product(SHAPES, range(2)):
        scores = some_scores(graph, seed, rounded)
        edges = [(source, dest) for source, dest in graph.valid.nonzero().tolist()]
        edges.sort(key=lambda edge: (-key(float(scores[edge])), edge))
        for n in {0, 1, 2, graph.num_edges // 2, graph.num_edges - 1, graph.num_edges}:
            found = top_edges(graph, scores, n, by=by)
            assert [tuple(edge) for edge in found.nonzero().tolist()] == sorted(edges[:n])


def grown(graph: Graph, scores: Tensor, n: int, by: str) -> Tensor:
    """The greedy circuit in the plainest way: look at all edges each time."""
    key, mask, nodes = key_of(by), torch.zeros_like(graph.valid), {"logits"}
    for _ in range(n):
        best = None
        for source, dest in (graph.valid & ~mask).nonzero().tolist():
            owners = {graph.source_names[owner] for owner in graph.sources_of_dest(dest)} or {"logits"}
            if owners & nodes:
                place = (-key(float(scores[source, dest])), source, dest)
                best = place if best is None else min(best, place)
        assert best is not None
        mask[best[1], best[2]] = True
        nodes.add(graph.source_names[best[1]])
    return mask


@pytest.mark.parametrize("by", ["absolute", "signed"])
@pytest.mark.parametrize("rounded", [False, True])
def test_greedy_edges_are_those_of_the_plainest_search(by: Any, rounded: bool) -> None:
    different = False
    for graph, seed in itertools.product(SHAPES[:6], range(2)):
        scores = some_scores(graph, seed, rounded)
        for n in (0, 1, 3, min(10, graph.num_edges)):
            found = greedy_edges(graph, scores, n, by=by)
            assert torch.equal(found, grown(graph, scores, n, by)), (graph, seed, n)
            different |= not torch.equal(found, top_edges(graph, scores, n, by=by))
        assert torch.equal(greedy_edges(graph, scores, graph.num_edges, by=by), graph.valid)
    assert different


def test_every_edge_of_a_greedy_circuit_has_a_path_to_the_logits() -> None:
    graph = SHAPES[4]
    mask = greedy_edges(graph, some_scores(graph, 5, rounded=False), 20)
    for source, dest in mask.nonzero().tolist():
        owners = graph.sources_of_dest(dest)
        assert not owners or any(mask[owner].any() for owner in owners), graph.edge_name(source, dest)


def test_a_long_chain_does_not_overflow() -> None:
    graph = Graph(num_layers=1200, num_heads=1, num_groups=1, parallel=False)
    names = ["embed->L0MLP", *(f"L{n}MLP->L{n + 1}MLP" for n in range(1199)), "L1199MLP->logits"]
    mask = mask_of(graph, *names)
    assert torch.equal(greedy_edges(graph, mask.float(), len(names)), mask)
    assert torch.equal(connected(graph, mask), mask)


def test_random_edges_are_as_many_as_asked_and_follow_the_seed() -> None:
    graph = SHAPES[4]
    for n in (0, 1, 17, graph.num_edges):
        mask = random_edges(graph, n, seed=n)
        assert int(mask.sum()) == n
        assert not (mask & ~graph.valid).any()
    assert torch.equal(random_edges(graph, 9, seed=4), random_edges(graph, 9, seed=4))
    assert not torch.equal(random_edges(graph, 9, seed=4), random_edges(graph, 9, seed=5))
    generator = torch.Generator().manual_seed(4)
    assert torch.equal(random_edges(graph, 9, seed=generator), random_edges(graph, 9, seed=4))
    assert not torch.equal(random_edges(graph, 9, seed=generator), random_edges(graph, 9, seed=4))


def test_random_edges_come_with_equal_chances() -> None:
    graph = Graph(num_layers=1, num_heads=1, num_groups=1, parallel=False)
    generator = torch.Generator().manual_seed(0)
    counts = sum(random_edges(graph, 2, seed=generator).int() for _ in range(4000))
    assert isinstance(counts, Tensor)
    shares = counts[graph.valid] / 4000
    torch.testing.assert_close(shares, torch.full_like(shares, 2 / 8), rtol=0, atol=0.03)


def test_a_graph_of_eight_billion_parameters_takes_seconds() -> None:
    begin = time.perf_counter()
    graph = Graph(num_layers=32, num_heads=32, num_groups=8, parallel=False)
    assert graph.num_edges == 805_681
    assert (graph.source_index("L31MLP"), graph.dest_index("logits")) == (1056, 1568)
    scores = torch.randn(graph.valid.shape, generator=torch.Generator().manual_seed(0))
    for choose in (top_edges, greedy_edges):
        assert int(choose(graph, scores, 8000).sum()) == 8000
    chosen = random_edges(graph, 8000)
    middle = time.perf_counter()
    kept = connected(graph, chosen)
    assert 0 < int(kept.sum()) <= 8000
    assert time.perf_counter() - middle < 1
    assert middle - begin < 10


def test_with_ablations_that_are_no_run_only_dead_ends_are_left_out() -> None:
    graph = SHAPES[4]
    for seed in range(20):
        mask = random_edges(graph, 25, seed=seed)
        kept = connected(graph, mask, ablation="zero")
        assert torch.equal(connected(graph, mask, ablation="corrupt") & ~kept, torch.zeros_like(mask))
        everything = mask.clone()
        everything[0] = graph.valid[0]  # the embedding into every node: all are reached
        assert torch.equal(kept, connected(graph, everything) & mask)
