"""Circuits as pictures: layouts without overlaps in which edges lead upwards, data of any kind, hostile names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drawn_circuits import GROUPED, HOSTILE, known, random_circuit
from interp_toolkit.circuits.circuit import circuit_of
from interp_toolkit.circuits.graph_shape import Graph
from interp_toolkit.visualization.circuit_graph import read_graph
from interp_toolkit.visualization.circuit_picture import layout_of, sizes_of
from interp_toolkit.visualization.circuits import plot_circuit
from interp_toolkit.visualization.graph_layout import Sizes, Spot, crossings, layered, spread

SVG = "{http://www.w3.org/2000/svg}"


# --- layout ------------------------------------------------------------------------------------------------------


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[Spot], list[tuple[int, int, float]]]:
    spots = draw(
        st.lists(
            st.builds(
                Spot,
                band=st.integers(-1, 12),
                lift=st.integers(0, 1),
                hint=st.floats(0, 1),
                spine=st.just(False),
                column=st.none(),
            ),
            min_size=2,
            max_size=24,
        )
    )
    if draw(st.booleans()):
        spots = [Spot(band=s.band, lift=s.lift, column=draw(st.integers(0, 4))) for s in spots]
    height = [(spot.band, spot.lift) for spot in spots]
    upward = [(a, b) for a in range(len(spots)) for b in range(len(spots)) if height[a] < height[b]]
    chosen = draw(st.lists(st.sampled_from(upward), max_size=40)) if upward else []
    return spots, [(a, b, draw(st.floats(-1, 1))) for a, b in chosen]


@settings(max_examples=25, deadline=None)
@given(graphs())
def test_boxes_do_not_overlap_and_edges_lead_upwards(
    graph: tuple[list[Spot], list[tuple[int, int, float]]],
) -> None:
    spots, links = graph
    sizes = Sizes(width=50, height=20, gap=10, rise=33, room=300)
    found = layered(spots, links, sizes)
    assert found == layered(spots, links, sizes)
    for a in range(len(spots)):
        assert sizes.width / 2 <= found.x[a] <= found.width - sizes.width / 2 + 0.1
        assert sizes.height / 2 <= found.y[a] <= found.height - sizes.height / 2 + 0.1
        for b in range(a):
            apart = abs(found.x[a] - found.x[b]) >= sizes.width, abs(found.y[a] - found.y[b]) >= sizes.height
            assert any(apart), (spots[a], spots[b])
    for (source, target, _), (_, start, _, end, _) in zip(links, found.curves, strict=True):
        assert found.y[source] > found.y[target]
        assert start > end


@pytest.mark.parametrize("seed", range(5))
def test_sweeps_leave_fewer_crossings_than_the_order_of_heads(seed: int) -> None:
    graph = read_graph(json.loads(random_circuit(seed, 60).to_json()))
    layout = layout_of(graph)
    links = [(e.source, t, e.score or 0.0) for e in graph.edges for t in e.targets]
    spots = [
        Spot(band=node.layer, hint=0.5 if node.head is None else (node.head + 0.5) / 4, spine=node.kind == "mlp")
        for node in graph.nodes
    ]
    y = np.array(layout.y)
    size = sizes_of(graph)
    plain = np.array([2 * size.room if spot.spine else spot.hint * size.room for spot in spots])
    assert crossings(np.array(layout.x), y, links) < crossings(plain, y, links)


def test_curves_go_round_boxes() -> None:
    spots = [Spot(band=n) for n in range(3)]
    layout = layered(
        spots, [(0, 1, 1.0), (1, 2, 1.0), (0, 2, 1.0)], Sizes(width=40, height=20, gap=10, rise=90, room=50)
    )
    assert [curve[4] for curve in layout.curves[:2]] == [0, 0]
    assert abs(0.75 * layout.curves[2][4]) > 20  # half way it is beside the box between


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=12))
def test_places_keep_their_order_and_distance_and_no_other_such_places_are_nearer(wanted: list[float]) -> None:
    target = np.sort(np.array(wanted))
    places = spread(target, 3.0)
    assert (np.diff(places) >= 3.0 - 1e-9).all()
    best = ((places - target) ** 2).sum()
    noise = np.random.default_rng(0)
    for _ in range(20):
        other = np.maximum.accumulate(places + noise.normal(size=len(places)) - 3 * np.arange(len(places)))
        other += 3 * np.arange(len(places))
        assert ((other - target) ** 2).sum() >= best - 1e-9


# --- data --------------------------------------------------------------------------------------------------------


def test_a_circuit_becomes_nodes_and_edges_with_all_readers_of_shared_keys() -> None:
    data = known().plot(title="T").data()
    names = [node["name"] for node in data["nodes"]]
    assert names == ["embed", "L0H1", "L0MLP", "L2H2", "logits"]
    edges = {(names[s], d): ([names[t] for t in ts], port, score) for s, ts, port, d, score in data["edges"]}
    assert edges["L0H1", "L2KV1.k"] == (["L2H2"], "k", pytest.approx(0.9))  # L2H3 has no edge out of it
    assert edges["embed", "L2H2.q"][1] == "q"
    assert [abs(edge[4]) for edge in data["edges"]] == sorted([abs(edge[4]) for edge in data["edges"]], reverse=True)
    assert data["total"] == GROUPED.num_edges
    assert data["own"]["value"] == 0.8
    assert (data["own"]["low"], data["own"]["high"]) == (0.7, None)
    assert "Note: few prompts" in data["about"]
    assert data["nodes"][3]["words"] == "0.90, copying 0.40 (on random tokens)"
    alone = plot_circuit({"edges": [("embed", "L0KV1.v", 1.0)], "graph": {"num_heads": 4, "num_groups": 2}})
    assert [node.name for node in alone.graph.nodes] == ["embed", "L0H2", "L0H3"]


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_number_of_all_edges_is_that_of_the_graph(parallel: bool, groups: int) -> None:
    graph = Graph(num_layers=5, num_heads=4, num_groups=groups, parallel=parallel)
    assert plot_circuit(circuit_of(graph, ["embed->logits"])).graph.total == graph.num_edges


def test_plain_data_need_only_edges() -> None:
    graph = plot_circuit({"edges": [("a", "b"), {"source": "b", "dest": "c", "score": 1}, ["a", "c", None]]}).graph
    assert [(node.name, node.layer) for node in graph.nodes] == [("a", 0), ("b", 1), ("c", 2)]
    assert [edge.score for edge in graph.edges] == [1.0, None, None]
    assert not graph.layers
    placed = plot_circuit(
        {
            "nodes": [
                {"name": "a", "layer": 0, "position": 0},
                {"name": "b", "layer": 4, "position": 2, "role": "mover"},
            ],
            "edges": [("a", "b", -1.0)],
        },
        tokens=["Tom", "and", "Ann"],
    )
    assert placed.data()["nodes"][1]["position"] == "Ann"
    assert placed.data()["bands"][0][0] == "layer 4"
    assert [name for name, _ in placed.data()["columns"]] == ["Tom", "Ann"]
    assert placed.layout.x[0] < placed.layout.x[1]


def test_too_many_edges_are_cut_to_the_strongest_and_that_is_said() -> None:
    view = known().plot(max_edges=3)
    assert [row[2] for row in view.table().rows] == ["+1.5", "+0.9", "−0.75"]
    assert "3 edges with the largest |score| are drawn; 4 are not" in view.caption
    assert view.own is not None
    assert view.own.edges == 7


def test_a_curve_gives_its_points_without_those_that_have_no_value() -> None:
    class Point:
        def __init__(self, value: float, low: float) -> None:
            self.value, self.low, self.high = value, low, 1.0

    class Curve:
        sizes = (0.01, 0.1, 1.0)
        edges = (2, 9, 90)

        def faithfulness(self, by: Any = "absolute") -> list[Point]:
            assert by == "absolute"
            return [Point(float("nan"), 0.0), Point(0.5, float("nan")), Point(1.0, 1.0)]

    points = known().plot(curve=Curve()).data()["measured"]
    assert [(p["edges"], p["value"], p["low"]) for p in points] == [(9, 0.5, None), (90, 1.0, 1.0)]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "a circuit needs edges; the data have nothing"),
        ({"edges": ["a->b"]}, "'a->b' is no edge: give"),
        ({"edges": [("a",)]}, "is no edge: give"),
        ({"edges": [("a", 3)]}, "both ends are names"),
        ({"edges": [("a", "b", "c")]}, "the score of 'a' -> 'b' is a finite number or None, not 'c'"),
        ({"edges": [("a", "b", float("inf"))]}, "not inf"),
        ({"edges": [("a", "b"), ("b", "c"), ("c", "b")]}, "no circles, but edges lead from 'b'"),
        ({"edges": [("a", "a")]}, "no circles"),
        ({"edges": [("L1H0", "L0H1.q")]}, "'L1H0' -> 'L0H1' does not lead to a higher layer"),
        ({"edges": [("L1MLP", "L1H0.q")]}, "does not lead to a higher layer"),
        ({"edges": [("embed", "L0KV1.v")]}, "how many share it is not known: give graph="),
        ({"edges": [], "nodes": [3]}, "3 is no node"),
        ({"edges": [], "roles": [{"name": "mover"}]}, "is no role: give its name, and node or layer and head"),
        ({"edges": [], "nodes": [{"name": "a", "layer": "x"}]}, "layer is a whole number"),
        ({"edges": [], "nodes": [{"name": "a", "kind": "x"}]}, "kind is one of embed, head"),
    ],
)
def test_what_is_no_circuit_is_said(data: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        plot_circuit(data)


def test_what_is_no_circuit_at_all_is_said(unchecked: None) -> None:
    with pytest.raises(TypeError, match="a Circuit is drawn, or a mapping with its edges, not list"):
        plot_circuit([("a", "b")])  # type: ignore[arg-type]


def test_wrong_details_are_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="details of 'L9H9', which is no node"):
        known().plot(details={"L9H9": {}})
    with pytest.raises(ValueError, match="tokens, attention, text, not 'colour'"):
        known().plot(details={"L2H2": {"colour": 1}})
    with pytest.raises(ValueError, match=r"attention of 'L2H2' is a matrix, not of shape \(2,\)"):
        known().plot(details={"L2H2": {"attention": [1, 0]}})
    with pytest.raises(ValueError, match="at position 3, but there are 1 tokens"):
        plot_circuit({"edges": [], "nodes": [{"name": "a", "position": 3}]}, tokens=["x"])
    with pytest.raises(ValueError, match="max_edges is 1 or more"):
        known().plot(max_edges=0)
    with pytest.raises(ValueError, match=r"saved as \.html, \.svg, \.png or \.pdf"):
        known().plot(output=tmp_path / "a.gif")


# --- pictures ----------------------------------------------------------------------------------------------------


def test_an_empty_circuit_says_so() -> None:
    view = circuit_of(GROUPED, []).plot()
    assert "This circuit is empty" in view.to_svg()
    assert view.caption == "This circuit is empty: it has no edges."
    assert view.data()["edges"] == []


def test_the_still_picture_signs_edges_and_tells_heads_from_mlps() -> None:
    svg = ET.fromstring(known().plot().to_svg())
    dashed = [path for path in svg.iter(f"{SVG}path") if path.get("stroke-dasharray")]
    assert {path.get("class") for path in dashed} == {"stroke-negative"}
    assert len(dashed) == 3  # two edges and the legend
    texts = ["".join(text.itertext()) for text in svg.iter(f"{SVG}text")]
    assert {"layer 2", "layer 0", "L2H2", "induction", "works against"} <= set(texts)
    assert known().plot().to_svg() == known().plot().to_svg()


@pytest.mark.parametrize("name", HOSTILE)
def test_any_name_or_role_gives_a_valid_page_and_picture(name: str) -> None:
    data = {"nodes": [{"name": name, "role": name}, {"name": "b"}], "edges": [(name, "b", -1.0)]}
    view = plot_circuit(data, title=name, details={name: {"tokens": [name, (name, 1.0)], "text": name}})
    ET.fromstring(view.to_svg())
    page = view.page().to_html()
    assert "<img" not in page
    assert page.count("<script") == page.count("</script>") == 2
    assert page.encode()  # no lone surrogate is left
    again = json.loads(json.dumps(view.data()))
    assert again["nodes"][0].get("raw", again["nodes"][0]["name"]) == name


def test_every_kind_of_file_is_written(tmp_path: Path) -> None:
    for kind, begins in (("html", b"<!DOCTYPE"), ("svg", b"<svg"), ("png", b"\x89PNG"), ("pdf", b"%PDF")):
        path = tmp_path / f"circuit.{kind}"
        known().plot(output=path)
        assert path.read_bytes().startswith(begins)
    assert "srcdoc" in known()._repr_html_()


def test_a_circuit_as_json_is_what_is_saved(tmp_path: Path) -> None:
    circuit = known()
    assert circuit.save(tmp_path / "c.json").read_text(encoding="utf-8") == circuit.to_json()
    facts = json.loads(circuit.to_json())
    view = plot_circuit(facts)
    assert {**view.data()["file"], "edges": facts["edges"]} == facts


def test_a_thousand_edges_make_a_page_of_less_than_a_megabyte() -> None:
    view = random_circuit(1, 1000).plot()
    assert len(view.graph.edges) > 300
    assert len(view.page().to_html()) < 1_000_000
