"""Circuits: what is in them, their words and their files, and sets of edges."""

from __future__ import annotations

import itertools
import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp_toolkit.circuits.circuit import Circuit, Edge, Role, circuit_of
from interp_toolkit.circuits.graph import Graph, connected, top_edges
from interp_toolkit.circuits.neuronpedia import to_neuronpedia
from interp_toolkit.errors import CircuitError, FileFormatError
from interp_toolkit.provenance import Provenance

SEQUENTIAL = Graph(num_layers=2, num_heads=2, num_groups=2, parallel=False)
PARALLEL = Graph(num_layers=2, num_heads=2, num_groups=2, parallel=True)
GROUPED = Graph(num_layers=3, num_heads=4, num_groups=2, parallel=False)
ORIGIN = Provenance(
    model="tiny", revision=None, model_type="llama", layout="abc", dtype="float32", versions={"torch": "2"}
)
MOVER = Role(layer=2, head=1, name="name mover", score=0.8, test="attends to the answer", others=(("induction", 0.3),))


def random_circuit(graph: Graph, seed: int, share: float = 0.2, **about: Any) -> Circuit:
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(graph.valid.shape, generator=generator) < share) & graph.valid
    scores = torch.randn(graph.valid.shape, generator=generator) * graph.valid
    return Circuit(graph=graph, mask=mask, scores=scores, **({"method": "eap", "metric": "logit_diff"} | about))


def grouped_circuit(**about: Any) -> Circuit:
    edges = [
        Edge("embed", "L0KV1.v", 0.5),
        Edge("L0H2", "L1MLP", -2.0),
        Edge("L1MLP", "L2H1.q", 1.0),
        Edge("L2H1", "logits", 3.0),
    ]
    return circuit_of(GROUPED, edges, **about)


# --- what is in it ---------------------------------------------------------------------------------------------


def test_a_circuit_with_shared_values_is_as_counted_by_hand() -> None:
    circuit = grouped_circuit()
    assert circuit.num_edges == 4
    assert circuit.density == 4 / GROUPED.num_edges
    assert [edge.name for edge in circuit.edges] == [
        *("L2H1->logits", "L0H2->L1MLP", "L1MLP->L2H1.q", "embed->L0KV1.v"),
    ]
    assert [edge.score for edge in circuit.edges] == [3.0, -2.0, 1.0, 0.5]
    assert circuit.nodes == ("embed", "L0H2", "L1MLP", "L2H1", "logits")
    assert circuit.heads == ((0, 2), (2, 1))
    assert circuit.mlps == (1,)
    assert ("L0H2", "L1MLP") in circuit.edge_set
    assert len(circuit.edge_set) == 4
    assert circuit.strongest_nodes() == [("L2H1", 3.0), ("L0H2", 2.0), ("L1MLP", 1.0)]


def test_parallel_and_sequential_circuits_differ_in_the_edge_from_head_to_mlp() -> None:
    names = ["embed->L1H0.k", "L1H0->L1MLP", "L1MLP->logits"]
    assert circuit_of(SEQUENTIAL, names).nodes == ("embed", "L1H0", "L1MLP", "logits")
    with pytest.raises(CircuitError, match="no edge L1H0->L1MLP"):
        circuit_of(PARALLEL, names)


@pytest.mark.parametrize("graph", [SEQUENTIAL, PARALLEL, GROUPED], ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_nodes_are_those_with_an_edge_in_and_an_edge_out(graph: Graph, seed: int) -> None:
    circuit = random_circuit(graph, seed, share=(0.02, 0.05, 0.1, 0.3, 1.0)[seed])
    expected = []
    for source, name in enumerate(graph.source_names):
        into = any(circuit.mask[:, dest].any() for dest in graph.dests_of_source(source)) or name == "embed"
        expected += [name] if into and circuit.mask[source].any() else []
    expected += ["logits"] if circuit.mask[:, -1].any() else []
    assert list(circuit.nodes) == expected
    assert len(circuit.edges) == circuit.num_edges == int(circuit.mask.sum())
    sizes = [abs(edge.score or 0.0) for edge in circuit.edges]
    assert sizes == sorted(sizes, reverse=True)


def test_an_empty_circuit_says_so() -> None:
    empty = Circuit(graph=GROUPED, mask=torch.zeros_like(GROUPED.valid), method="eap", metric="kl", ablation="zero")
    assert (empty.num_edges, empty.edges, empty.nodes, empty.heads, empty.mlps) == (0, (), (), (), ())
    assert empty.summary().splitlines() == [
        f"Circuit: empty, none of the {GROUPED.num_edges} edges of the model is in it",
        "Found by eap on kl",
        "Edges outside of it carry zeros.",
    ]
    assert empty.pruned().num_edges == 0
    assert empty.complement().num_edges == GROUPED.num_edges
    assert len(empty.to_networkx()) == 0
    assert len(empty.to_dataframe()) == 0


def test_edges_and_nodes_can_be_looked_for() -> None:
    circuit = grouped_circuit()
    for item in ("L0H2->L1MLP", ("L0H2", "L1MLP"), Edge("L0H2", "L1MLP"), "L0H2", "embed", "logits"):
        assert item in circuit
    for item in ("L0H2->L2MLP", "L0H1", ("embed", "logits"), 3):
        assert item not in circuit
    with pytest.raises(CircuitError, match="'L0H9' is no source"):
        assert "L0H9" in circuit
    with pytest.raises(CircuitError, match="no edge L2H0->L0MLP"):
        assert "L2H0->L0MLP" in circuit


def test_a_circuit_keeps_its_own_copies() -> None:
    mask, scores = GROUPED.valid.clone(), torch.ones(GROUPED.valid.shape)
    circuit = Circuit(graph=GROUPED, mask=mask, scores=scores)
    mask[:], scores[:] = False, 7.0
    assert circuit.num_edges == GROUPED.num_edges
    assert circuit.scores is not None
    assert float(circuit.scores.max()) == 1.0


def test_scores_that_are_not_known_come_last_and_are_none() -> None:
    circuit = circuit_of(GROUPED, ["embed->logits", Edge("embed", "L0MLP", 0.0), Edge("L0MLP", "logits", -1.0)])
    assert [edge.score for edge in circuit.edges] == [-1.0, 0.0, None]
    assert str(circuit.edges[0]) == "L0MLP->logits (-1)"
    assert str(circuit.edges[2]) == "embed->logits"
    assert all(edge.score is None for edge in circuit_of(GROUPED, ["embed->logits"]).edges)


@pytest.mark.usefixtures("unchecked")
def test_what_does_not_fit_is_refused() -> None:
    for mask, message in (
        (torch.zeros(3, 3, dtype=torch.bool), r"boolean and of shape \(16, 28\)"),
        (torch.ones_like(GROUPED.valid), "places where there is no edge"),
    ):
        with pytest.raises(CircuitError, match=message):
            Circuit(graph=GROUPED, mask=mask)
    with pytest.raises(CircuitError, match="scores need shape"):
        Circuit(graph=GROUPED, mask=GROUPED.valid, scores=torch.zeros(2, 2))
    with pytest.raises(CircuitError, match="infinite scores"):
        Circuit(graph=GROUPED, mask=GROUPED.valid, scores=torch.full(GROUPED.valid.shape, math.inf))
    with pytest.raises(CircuitError, match="no head 1 in layer 9"):
        grouped_circuit(roles=(replace(MOVER, layer=9),))
    with pytest.raises(CircuitError, match="two roles"):
        grouped_circuit(roles=(MOVER, replace(MOVER, name="induction")))
    with pytest.raises(CircuitError, match="'name mover' of L2H1 is not a finite number"):
        replace(MOVER, score=math.nan)
    with pytest.raises(CircuitError, match="'name mover' of L2H1 is not a finite number"):
        replace(MOVER, others=(("induction", math.inf),))


# --- sets of edges ---------------------------------------------------------------------------------------------

seeds = st.integers(min_value=0, max_value=10_000)
graphs = st.sampled_from([SEQUENTIAL, PARALLEL, GROUPED])
shares = st.sampled_from([0.0, 0.05, 0.5, 1.0])


@settings(max_examples=60, deadline=None)
@given(graph=graphs, one=seeds, other=seeds, share=shares, other_share=shares)
def test_circuits_obey_the_laws_of_sets(graph: Graph, one: int, other: int, share: float, other_share: float) -> None:
    a, b = random_circuit(graph, one, share), random_circuit(graph, other, other_share)
    first, second = a.edge_set, b.edge_set
    for found, expected in (
        (a | b, first | second),
        (a & b, first & second),
        (a - b, first - second),
        (a ^ b, first ^ second),
    ):
        assert found.edge_set == expected
        assert found.num_edges == len(expected)
    assert (a <= b) == (first <= second)
    assert (a >= b) == (first >= second)
    assert a & b <= a <= a | b
    assert a.complement().complement().edge_set == first
    assert (a | b).complement().edge_set == (a.complement() & b.complement()).edge_set
    assert a.jaccard(b) == (len(first & second) / len(first | second) if first | second else 1.0)
    assert a.jaccard(a) == 1.0
    assert a.pruned() <= a
    assert torch.equal(a.pruned().mask, connected(graph, a.mask))


def test_circuits_of_different_models_cannot_be_compared() -> None:
    a, b = random_circuit(SEQUENTIAL, 0), random_circuit(PARALLEL, 0)
    for act in (a.__or__, a.__and__, a.__sub__, a.__xor__, a.__le__, a.__ge__, a.jaccard):
        with pytest.raises(CircuitError, match=r"circuits of different models.*parallel=False.*parallel=True"):
            act(b)


@pytest.mark.usefixtures("unchecked")
def test_a_circuit_is_compared_with_circuits_only() -> None:
    other: Any = {("embed", "logits")}
    with pytest.raises(TypeError, match="not with set"):
        random_circuit(SEQUENTIAL, 0).jaccard(other)


def test_joined_circuits_keep_scores_of_one_kind_and_leave_measurements_out() -> None:
    a = random_circuit(GROUPED, 0, notes={"faithfulness": 0.9}, ablation="corrupt", provenance=ORIGIN)
    b = random_circuit(GROUPED, 1, notes={"faithfulness": 0.8}, ablation="corrupt", provenance=ORIGIN)
    joined = a | b
    assert joined.scores is not None
    assert a.scores is not None
    assert b.scores is not None
    torch.testing.assert_close(joined.scores[a.mask], a.scores[a.mask], rtol=0, atol=0)
    only = b.mask & ~a.mask
    torch.testing.assert_close(joined.scores[only], b.scores[only], rtol=0, atol=0)
    assert joined.notes == {"operation": "union", "edges_of_parts": [a.num_edges, b.num_edges]}
    assert (joined.method, joined.metric, joined.ablation) == ("eap", "logit_diff", "corrupt")
    assert joined.provenance == ORIGIN
    exact = replace(b, method="exact", ablation="zero", provenance=None)
    mixed = a | exact
    assert mixed.scores is None
    assert (mixed.method, mixed.ablation, mixed.provenance) == ("eap and exact", "corrupt and zero", None)
    assert (a & exact).scores is not None
    assert (a - exact).scores is not None
    assert (a | circuit_of(GROUPED, ["embed->logits"], scores=None)).mask[GROUPED.edge_of("embed->logits")]


def test_roles_stay_with_their_nodes() -> None:
    unlabelled = Role(layer=0, head=2, name="unlabelled", score=0.1, test="none gave 0.5")
    a = grouped_circuit(roles=(MOVER, unlabelled))
    cut = a - circuit_of(GROUPED, ["L2H1->logits"])
    assert cut.roles == (unlabelled,)
    again = replace(MOVER, name="induction")
    joined = cut | grouped_circuit(roles=(again, replace(unlabelled, name="other")))
    assert joined.roles == (unlabelled, again)
    assert a.role_of("L2H1") == MOVER
    assert a.role_of("L0H0") is None


def test_pruning_drops_loose_edges_and_says_how_many() -> None:
    circuit = grouped_circuit(notes={"prompts": 3}) | circuit_of(GROUPED, ["L0H0->logits", "embed->L2MLP"])
    assert "2 of them are on no path from embed to logits: .pruned() leaves them out." in circuit.summary()
    pruned = circuit.pruned()
    assert pruned.edge_set == grouped_circuit().edge_set
    assert pruned.notes["pruned"] == 2
    assert "no path" not in pruned.summary()
    loose = circuit_of(GROUPED, ["embed->L0MLP"])
    assert "None of them is on a path from embed to logits, so the circuit carries nothing where" in loose.summary()
    assert "so the circuit carries nothing.\n" in replace(loose, ablation="corrupt").summary()


def test_with_means_or_zeros_edges_out_of_nodes_without_input_stay_in_a_circuit() -> None:
    names = ["L0H0->logits", "embed->L2MLP"]
    for ablation in ("mean", "positional", "zero"):
        circuit = circuit_of(GROUPED, names, ablation=ablation)
        assert circuit.pruned().edge_set == {("L0H0", "logits")}
        assert "1 of them are on no path to logits: .pruned() leaves them out." in circuit.summary()
    assert not circuit_of(GROUPED, names, ablation="corrupt").pruned().num_edges


def test_sets_of_edges_keep_the_prompts_that_their_parts_were_found_on() -> None:
    first = grouped_circuit(notes={"prompt_digests": ["a", "b"], "corrupt_digests": ["x"], "faithfulness": 1.0})
    second = grouped_circuit(notes={"prompt_digests": ["b", "c"]})
    for joined in (first | second, first & second, first - second, first ^ second):
        assert joined.notes["prompt_digests"] == ["a", "b", "c"]
        assert joined.notes["corrupt_digests"] == ["x"]
        assert "faithfulness" not in joined.notes
    assert first.complement().notes["prompt_digests"] == ["a", "b"]
    assert "prompt_digests" not in (grouped_circuit() | grouped_circuit()).notes


# --- words -----------------------------------------------------------------------------------------------------


def test_the_summary_tells_parts_roles_size_method_and_faithfulness() -> None:
    unlabelled = Role(layer=0, head=2, name="unlabelled", score=0.1, test="none gave 0.5")
    notes = {
        "prompts": {"discovery": 48, "evaluation": 64},
        "faithfulness": {"value": 0.912, "low": 0.87, "high": 0.95, "level": 0.95, "prompts": 64},
        "threshold": 0.01,
        "caveats": ["the scale of the post-norm is frozen"],
    }
    circuit = grouped_circuit(
        method="eap-ig", metric="logit_diff", ablation="corrupt", notes=notes, roles=(MOVER, unlabelled)
    )
    assert circuit.summary().splitlines() == [
        "Circuit: 2 attention heads, 1 MLP layer",
        "Key heads: L2H1 (name mover), L0H2 (unlabelled)",
        "  L2H1: name mover 0.80, also induction 0.30 (attends to the answer)",
        "Key MLPs: L1MLP",
        f"Edges: 4 of {GROUPED.num_edges} ({400 / GROUPED.num_edges:.3g}%)",
        "Found by eap-ig on logit_diff",
        "Edges outside of it carry what they carry in the corrupt run.",
        "Faithfulness: 0.912 (95% interval 0.870 to 0.950) on 64 prompts",
        "Prompts: 48 for discovery, 64 for evaluation",
        "Threshold: 0.01",
        "Note: the scale of the post-norm is frozen",
    ]


def test_the_summary_names_only_the_strongest_heads() -> None:
    circuit = Circuit(graph=GROUPED, mask=GROUPED.valid)
    assert circuit.summary().splitlines()[0] == "Circuit: 12 attention heads, 3 MLP layers"
    assert "L0H0, L0H1, L0H2, and 9 more" in circuit.summary(3)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.5, "0.500"),
        ({"value": 0.5}, "0.500"),
        ({"value": 0.5, "low": math.nan, "high": math.nan}, "0.500"),
        ({"value": None}, "not known"),
        ("was not measured", "was not measured"),
    ],
)
def test_faithfulness_is_told_in_each_of_its_forms(value: Any, words: str) -> None:
    lines = grouped_circuit(notes={"faithfulness": value, "prompts": 7, "caveats": "one"}).summary().splitlines()
    assert lines[-3:] == [f"Faithfulness: {words}", "Prompts: 7", "Note: one"]


# --- data ------------------------------------------------------------------------------------------------------


def test_a_data_frame_has_a_row_for_each_edge() -> None:
    frame = grouped_circuit().to_dataframe()
    assert frame.columns.tolist() == ["source", "dest", "input", "source_layer", "dest_layer", "score"]
    assert frame.iloc[0].tolist() == ["L2H1", "logits", "logits", 2, 3, 3.0]
    assert frame.iloc[3].tolist() == ["embed", "L0KV1.v", "v", -1, 0, 0.5]
    assert circuit_of(GROUPED, ["embed->logits"]).to_dataframe()["score"].isna().all()


def test_networkx_gets_a_node_for_each_head_and_an_edge_for_each_input() -> None:
    circuit = grouped_circuit(roles=(MOVER,)) | circuit_of(
        GROUPED, ["embed->L2H1.q", "embed->L2KV0.k", "embed->L1KV0.k"]
    )
    found = circuit.to_networkx()
    assert found.nodes["L2H1"] == {"kind": "head", "layer": 2, "head": 1, "role": "name mover"}
    assert found.nodes["embed"]["kind"] == "embed"
    assert found.nodes["L1MLP"]["kind"] == "mlp"
    assert set(found["embed"]["L2H1"]) == {"q", "k"}
    assert found["embed"]["L2H1"]["k"]["dest"] == "L2KV0.k"
    assert "L2H0" not in found, "only L2H1 of that group has an edge out of it"
    assert {"L1H0", "L1H1"} <= set(found), "none of that group has one, so both are drawn"
    assert found["L0H2"]["L1MLP"]["mlp"]["score"] is None
    assert grouped_circuit().to_networkx()["L0H2"]["L1MLP"]["mlp"]["score"] == -2.0


def test_networkx_says_what_connected_says() -> None:
    import networkx as nx

    for graph, seed in itertools.product((SEQUENTIAL, PARALLEL), range(6)):
        circuit = random_circuit(graph, seed, 0.15)
        drawn = circuit.to_networkx()
        assert (circuit.pruned().num_edges > 0) == (
            "embed" in drawn and "logits" in drawn and nx.has_path(drawn, "embed", "logits")
        )


def test_without_networkx_and_pandas_one_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "networkx", None)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install networkx"):
        grouped_circuit().to_networkx()
    with pytest.raises(ImportError, match="a data frame needs pandas"):
        grouped_circuit().to_dataframe()


# --- files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_saved_circuit_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    notes = {"prompts": 48, "faithfulness": {"value": 0.9, "low": math.nan}, "odd": ['"\\\n', "ü→", None, True]}
    found = random_circuit(
        GROUPED, 3, 0.3, notes=notes, ablation="mean", provenance=ORIGIN, roles=(MOVER, replace(MOVER, head=None))
    )
    assert found.scores is not None
    found = replace(found, scores=found.scores.to(dtype) / 3)
    back = Circuit.load(found.save(tmp_path / "c.json"))
    assert torch.equal(back.mask, found.mask)
    assert back.scores is not None
    assert found.scores is not None
    assert back.scores.dtype == dtype
    assert torch.equal(back.scores[back.mask], found.scores[found.mask])
    assert back.scores[~back.mask].isnan().all()
    assert back.edges == found.edges
    assert (back.graph, back.method, back.metric, back.ablation) == (GROUPED, "eap", "logit_diff", "mean")
    assert (back.roles, back.provenance) == (found.roles, ORIGIN)
    assert back.notes == notes | {"faithfulness": {"value": 0.9, "low": None}}
    assert back.summary() == found.summary()
    again = back.save(tmp_path / "again.json")
    assert again.read_bytes() == (tmp_path / "c.json").read_bytes()


@pytest.mark.parametrize("names", [[], ["embed->logits"]])
def test_circuits_without_edges_or_scores_come_back(tmp_path: Path, names: list[str]) -> None:
    back = Circuit.load(circuit_of(GROUPED, names).save(tmp_path / "c.json"))
    assert [edge.name for edge in back.edges] == names
    assert (back.scores, back.provenance, back.roles, back.notes) == (None, None, (), {})


def test_a_saved_circuit_is_plain_json_for_people(tmp_path: Path) -> None:
    path = grouped_circuit(provenance=ORIGIN).save(tmp_path / "c.json")
    facts = json.loads(path.read_text())
    assert facts["graph"] == {"num_layers": 3, "num_heads": 4, "num_groups": 2, "parallel": False}
    assert facts["edges"][0] == ["L2H1", "logits", 3.0]
    assert '["L0H2", "L1MLP", -2.0],\n' in path.read_text()


def test_notes_that_json_has_no_words_for_leave_no_file(tmp_path: Path) -> None:
    loop: list[Any] = []
    loop.append(loop)
    for value in ({1, 2}, torch.zeros(2), loop):
        with pytest.raises(CircuitError, match="must be as JSON has them"):
            grouped_circuit(notes={"x": value}).save(tmp_path / "c.json")
    assert not list(tmp_path.iterdir())


def damages() -> list[tuple[str, Any]]:
    """Changes of a saved circuit, by what they change."""
    edge = ["embed", "logits", 1.0]
    return [
        ("format", "interp_toolkit.circuit/9"),
        ("format", None),
        ("graph", None),
        ("graph", {"num_layers": 3, "num_heads": 4, "num_groups": 2}),
        ("graph", {"num_layers": 3.0, "num_heads": 4, "num_groups": 2, "parallel": False}),
        ("graph", {"num_layers": True, "num_heads": 4, "num_groups": 2, "parallel": False}),
        ("graph", {"num_layers": 3, "num_heads": 4, "num_groups": 2, "parallel": 0}),
        ("graph", {"num_layers": 3, "num_heads": 4, "num_groups": 2, "parallel": False, "more": 1}),
        ("graph", {"num_layers": 10**12, "num_heads": 4, "num_groups": 2, "parallel": False}),
        ("graph", {"num_layers": 1, "num_heads": 4, "num_groups": 2, "parallel": False}),
        ("graph", {"num_layers": -3, "num_heads": 4, "num_groups": 2, "parallel": False}),
        ("method", 3),
        ("notes", []),
        ("score_dtype", "torch.bool"),
        ("score_dtype", []),
        ("num_edges", 5),
        ("num_edges", "4"),
        ("provenance", {"model": "x"}),
        ("provenance", 7),
        ("roles", [{"layer": 0}]),
        ("roles", [{"layer": 0, "head": 99, "name": "x", "score": 1.0, "test": "y", "others": []}]),
        ("roles", [{"layer": 0, "head": 0.0, "name": "x", "score": 1.0, "test": "y", "others": []}]),
        ("roles", [{"layer": 0, "head": 0, "name": "x", "score": "1", "test": "y", "others": []}]),
        ("roles", [{"layer": 0, "head": 0, "name": "x", "score": 1.0, "test": "y", "others": [["z"]]}]),
        ("roles", 3),
        ("edges", None),
        ("edges", [edge] * 4),
        ("edges", [edge, ["embed", "L9MLP", 1.0], ["embed", "L0MLP", 1.0], ["embed", "L1MLP", 1.0]]),
        ("edges", [edge, ["L2MLP", "L0MLP", 1.0], ["embed", "L0MLP", 1.0], ["embed", "L1MLP", 1.0]]),
        ("edges", [edge, ["embed", "L2MLP"], ["embed", "L0MLP", 1.0], ["embed", "L1MLP", 1.0]]),
        ("edges", [edge, ["embed", "L2MLP", "1"], ["embed", "L0MLP", 1.0], ["embed", "L1MLP", 1.0]]),
        ("edges", [edge, ["embed", "L2MLP", True], ["embed", "L0MLP", 1.0], ["embed", "L1MLP", 1.0]]),
        ("edges", [edge, ["x" * 1_000_000, "L2MLP", 1.0], ["embed", "L0MLP", 1.0], ["embed", "L1MLP", 1.0]]),
        ("edges", [edge, [["embed"], "L2MLP", 1.0], ["embed", "L0MLP", 1.0], ["embed", "L1MLP", 1.0]]),
        ("edges", [edge, ["embed", "L2MLP", 10**400], ["embed", "L0MLP", 1.0], ["embed", "L1MLP", 1.0]]),
    ]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("name", "value"), damages(), ids=lambda x: f"{x!r:.40}")
def test_a_damaged_circuit_is_refused_by_name(tmp_path: Path, name: str, value: Any) -> None:
    path = grouped_circuit(provenance=ORIGIN, roles=(MOVER,)).save(tmp_path / "mine.json")
    facts = json.loads(path.read_text())
    for damaged in (facts | {name: value}, {key: x for key, x in facts.items() if key != name}):
        path.write_text(json.dumps(damaged))
        with pytest.raises(FileFormatError, match=r"mine\.json cannot be read as a saved circuit") as caught:
            Circuit.load(path)
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"3", b"null", b"\xff\xfe", b"{" * 50, b"[" * 100_000, b'{"format": NaN}', b"9" * 10_000],
    ids=lambda x: f"{x!r:.20}",
)
def test_what_is_no_saved_circuit_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=r"mine\.json cannot be read as a saved circuit"):
        Circuit.load(path)


def test_every_cut_of_a_saved_circuit_is_refused(tmp_path: Path) -> None:
    whole = grouped_circuit(roles=(MOVER,)).save(tmp_path / "mine.json").read_bytes()
    path = tmp_path / "cut.json"
    for length in range(0, len(whole.rstrip()), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(FileFormatError):
            Circuit.load(path)
    for number in (b"NaN", b"Infinity", b"1e999"):
        path.write_bytes(whole.replace(b"-2.0", number))
        with pytest.raises(FileFormatError):
            Circuit.load(path)
    with pytest.raises(FileNotFoundError):
        Circuit.load(tmp_path / "none.json")


def test_a_circuit_of_eight_billion_parameters_is_handled_in_seconds(tmp_path: Path) -> None:
    graph = Graph(num_layers=32, num_heads=32, num_groups=8, parallel=False)
    scores = torch.randn(graph.valid.shape, generator=torch.Generator().manual_seed(0)) * graph.valid
    begin = time.perf_counter()
    circuit = Circuit(graph=graph, mask=top_edges(graph, scores, 8000), scores=scores).pruned()
    assert 1000 < circuit.num_edges < 8000
    back = Circuit.load(circuit.save(tmp_path / "c.json"))
    assert torch.equal(back.mask, circuit.mask)
    assert back.summary().startswith("Circuit: ")
    assert circuit.complement().num_edges + circuit.num_edges == 805_681
    assert time.perf_counter() - begin < 10


# --- Neuronpedia -----------------------------------------------------------------------------------------------


def test_the_neuronpedia_form_has_what_its_schema_requires() -> None:
    circuit = grouped_circuit(roles=(MOVER,), provenance=ORIGIN) | grouped_circuit()
    circuit = circuit | circuit_of(GROUPED, [Edge("L1MLP", "L2KV0.k", 0.25)])
    found = to_neuronpedia(
        circuit, prompt="When Mary", tokens=["When", " Mary"], answer=" John", probability=0.25, scan="gpt2-small"
    )
    assert set(found) == {"metadata", "qParams", "nodes", "links"}
    assert {"slug", "scan", "prompt_tokens", "prompt"} <= set(found["metadata"])
    for node in found["nodes"]:
        assert {name: type(node[name]) for name in ("node_id", "feature", "layer", "ctx_idx", "feature_type")} == {
            "node_id": str,
            "feature": int,
            "layer": str,
            "ctx_idx": int,
            "feature_type": str,
        }
        assert isinstance(node["jsNodeId"], str)
        assert isinstance(node["clerp"], str)
    ids = [node["node_id"] for node in found["nodes"]]
    assert len(set(ids)) == len(ids) == 5
    for link in found["links"]:
        assert {link["source"], link["target"]} <= set(ids)
        assert isinstance(link["weight"], float)
    by_ends = {(link["source"], link["target"]): link["weight"] for link in found["links"]}
    assert len(by_ends) == len(found["links"]) == 4
    assert by_ends["1_4_1", "2_1_1"] == 1.0 + 0.25, "queries and keys are added up"
    labels = {node["node_id"]: node["clerp"] for node in found["nodes"]}
    assert labels["2_1_1"] == "L2H1 (name mover)"
    assert labels["3_0_1"].endswith("(p=0.250)")
    json.dumps(found, allow_nan=False)
    plain = circuit_of(GROUPED, ["embed->L1MLP", "L1MLP->logits"])
    links = to_neuronpedia(plain, prompt="a", tokens=["a"], answer="b", probability=1.0)["links"]
    assert [link["weight"] for link in links] == [1.0, 1.0]


def test_what_neuronpedia_cannot_show_is_refused() -> None:
    about: dict[str, Any] = {"prompt": "a", "answer": "b", "probability": 0.5}
    for names in ([], ["embed->logits"], ["embed->L0MLP", "L0MLP->logits"]):
        with pytest.raises(CircuitError, match="a node behind layer 0"):
            to_neuronpedia(circuit_of(GROUPED, names), tokens=["a"], **about)
    with pytest.raises(CircuitError, match="tokens of a prompt"):
        to_neuronpedia(grouped_circuit(), tokens=[], **about)
