"""The circuit view in a real browser: slider, tracing, pinning, search, hiding, grouping, keys, address, exports."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

from playwright.sync_api import Frame, Page, expect

from browser import Visitor
from drawn_circuits import HOSTILE, known, large_circuit, random_circuit
from interp_toolkit.circuits.circuit import Circuit
from interp_toolkit.visualization.circuits import CircuitView, plot_circuit

MOVE = "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }"
TIMED = """async () => {
  const slider = document.querySelector('input[type=range]');
  const times = [];
  for (const value of [900, 500, 990, 700, 1000, 800, 950]) {
    const began = performance.now();
    slider.value = value;
    slider.dispatchEvent(new Event('input'));
    document.body.getBoundingClientRect();
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    times.push(performance.now() - began);
  }
  return times.sort((a, b) => a - b);
}"""


class Point:
    def __init__(self, value: float) -> None:
        self.value, self.low, self.high = value, value - 0.1, value + 0.1


class Curve:
    sizes = (0.02, 0.06, 0.5, 1.0)
    edges = (2, 6, 51, 102)

    def faithfulness(self, by: Any = "absolute") -> list[Point]:
        return [Point(value) for value in (0.25, 0.65, 0.9, 1.0)]


def seen(page: Page | Frame) -> list[str]:
    """The names of the nodes that are shown."""
    return page.locator(".node:not([hidden])").evaluate_all("nodes => nodes.map(n => n.getAttribute('aria-label'))")


def links(page: Page | Frame) -> int:
    return page.locator("path.link:not([hidden])").count()


def node(page: Page | Frame, name: str) -> Any:
    return page.locator(f'.node[aria-label^="{name}"]')


def near(page: Page | Frame) -> set[str]:
    return set(page.locator(".node.near").evaluate_all("nodes => nodes.map(n => n.getAttribute('aria-label'))"))


def test_the_slider_cuts_edges_and_says_how_faithful_the_rest_is(visit: Visitor) -> None:
    page = visit.open(known().plot(curve=Curve()))
    words, faith = page.locator(".size output"), page.locator(".faith .words")
    assert links(page) == 7
    assert "7 of 7 edges" in words.inner_text()
    assert faith.inner_text().startswith("0.80")
    assert "Measured on 12 prompts" in faith.inner_text()
    slider = page.locator("input[type=range]")
    assert page.locator(".faith svg circle.spot").count() == 4
    page.get_by_label("Hide loose ends").uncheck()
    page.get_by_label("Strongest").fill("6")
    page.get_by_label("Strongest").press("Enter")
    assert "Measured at 6% (6 edges) (interval 0.55 to 0.75)" in faith.inner_text()
    page.get_by_label("Strongest").fill("4")
    page.get_by_label("Strongest").press("Tab")
    assert links(page) == 4
    assert faith.inner_text().startswith("≈ 0.45")
    assert "on the line between what was measured at 2% (2 edges): 0.25 and 6% (6 edges): 0.65" in faith.inner_text()
    slider.evaluate(MOVE, 0)
    assert (links(page), seen(page)) == (1, ["L2H2, induction", "logits"])
    assert "Smallest size that was measured: 2% (2 edges), 0.25" in faith.inner_text()
    page.get_by_label("Slide by").select_option("weight")
    slider.evaluate(MOVE, 1000)
    assert links(page) == 7
    slider.evaluate(MOVE, 300)  # 1.5 × (0.05 / 1.5) ** 0.3 = 0.54
    assert links(page) == 3
    slider.focus()
    slider.press("End")
    assert links(page) == 7
    assert slider.get_attribute("aria-valuetext") == "7 edges"


def test_loose_ends_are_hidden_and_can_be_shown(visit: Visitor) -> None:
    page = visit.open(known().plot())
    page.get_by_label("Strongest").fill("3")
    page.get_by_label("Strongest").press("Enter")
    assert seen(page) == []  # of the best three none is on a path from embed to logits
    assert "0 of them are shown" in page.locator(".size output").inner_text()
    assert "Measured for the whole circuit only: 0.80" in page.locator(".faith").inner_text()
    page.get_by_label("Hide loose ends").uncheck()
    assert links(page) == 3


def test_hovering_traces_paths_and_clicking_pins_a_node(visit: Visitor) -> None:
    details = {"L2H2": {"tokens": [(" Tom", 2.5), "Ann"], "attention": [[1, 0], [0.25, 0.75]], "text": "copies"}}
    page = visit.open(known().plot(details=details))
    panel = page.locator(".panel")
    assert "2 heads, 1 MLP, 7 edges of the" in panel.inner_text()
    node(page, "L0MLP").hover()
    assert near(page) == {"L0H1", "L0MLP", "logits"}
    assert page.locator(".node.far").count() == 1  # embed, through L0H1
    assert page.locator("svg.tracing").count() == 1
    assert "L0MLP\nin −0.10 · out −0.75" in page.locator(".hint").inner_text()
    page.mouse.move(5, 5)
    assert page.locator("svg.tracing").count() == 0
    node(page, "L2H2").click()
    text = panel.inner_text()
    for words in (
        "L2H2",
        "induction",
        "0.90, copying 0.40",
        "In: +0.95 over 2 edges. Out: +1.50 over 1 edge.",
        " Tom",
        "copies",
    ):
        assert words in text
    assert page.locator(".panel canvas").evaluate("c => [c.width, c.height]") == [2, 2]
    page.wait_for_function(
        "document.querySelector('.panel canvas').getContext('2d').getImageData(0, 1, 1, 1).data[3] === 64"
    )
    panel.get_by_role("button", name="L0H1 → k").click()
    assert panel.locator("h3").inner_text() == "L0H1"
    assert node(page, "L0H1").get_attribute("aria-pressed") == "true"
    node(page, "L0H1").click()
    assert panel.locator("h3").inner_text() == "The circuit"
    path = page.locator("path.link").nth(0)
    path.dispatch_event("pointerenter", {"clientX": 300, "clientY": 300})
    assert "score" in page.locator(".hint").inner_text()


def test_nodes_are_hidden_grouped_and_searched(visit: Visitor) -> None:
    page = visit.open(known().plot())
    node(page, "L0MLP").click()
    page.get_by_role("button", name="Hide", exact=True).click()
    assert "L0MLP" not in seen(page)
    assert "Not measured with nodes left out" in page.locator(".faith").inner_text()
    page.get_by_role("button", name="L0MLP ×").click()
    assert "L0MLP" in seen(page)
    node(page, "L0H1").click()
    page.get_by_role("button", name="Collapse its layer").click()
    assert "layer 0 (2)" in seen(page)
    assert "In: +0.70 over 2 edges. Out: +0.15 over 2 edges." in page.locator(".panel").inner_text()
    page.locator(".panel .roles-row").get_by_role("button", name="L0MLP").click()
    assert page.locator(".panel h3").inner_text() == "L0MLP"
    page.get_by_label("Group by").select_option("layer")
    assert seen(page) == ["embed", "L2H2, induction", "logits", "layer 0 (2)"]
    page.get_by_label("Group by").select_option("")
    find = page.get_by_label("Find")
    find.fill("INDUC")
    assert page.locator(".node.match").count() == 1
    assert page.locator(".controls output").inner_text() == "1 found"
    find.press("Enter")
    assert page.locator(".panel h3").inner_text() == "L2H2"
    find.press("Escape")
    assert page.locator(".node.match").count() == 0
    page.get_by_role("button", name="induction", exact=True).click()
    assert page.locator(".node.match").count() == 1
    node(page, "L0MLP").click()
    page.get_by_role("button", name="Only its paths").click()
    assert "L2H2, induction" not in seen(page)
    page.get_by_role("button", name="Show all").click()
    assert len(seen(page)) == 5


def test_groups_of_many_roles_and_layers(visit: Visitor) -> None:
    page = visit.open(large_circuit(300).plot())
    every = len(seen(page))
    page.get_by_label("Group by").select_option("role")
    roles = page.locator(".pill[data-role]").count()
    assert roles > 3
    assert len(seen(page)) < every - roles
    page.get_by_label("Group by").select_option("layer")
    assert len(seen(page)) <= 32
    page.locator(".node.group").first.click()
    assert "In it" in page.locator(".panel").inner_text()


def test_keys_move_along_edges_pin_and_let_go(visit: Visitor) -> None:
    page = visit.open(known().plot(curve=Curve()))
    node(page, "embed").focus()

    def pressed(*keys: str) -> str:
        for key in keys:
            page.keyboard.press(key)
        return str(page.evaluate("document.activeElement.getAttribute('aria-label')"))

    assert pressed("ArrowUp") == "L0H1"
    assert pressed("ArrowRight") == "L0MLP"
    assert pressed("ArrowLeft") == "L0H1"
    assert pressed("ArrowUp", "ArrowUp", "ArrowUp") == "logits"
    assert pressed("ArrowDown") == "L2H2, induction"
    assert near(page) == {"L2H2, induction", "L0H1", "embed", "logits"}
    pressed("Enter")
    assert page.locator(".panel h3").inner_text() == "L2H2"
    assert "pin=3" in page.evaluate("new Promise(done => setTimeout(() => done(location.hash), 400))")
    pressed("Escape")
    assert page.locator(".panel h3").inner_text() == "The circuit"
    pressed("h")
    assert "L2H2, induction" not in seen(page)
    assert page.locator('.node[tabindex="0"]').count() == 1


def test_a_copied_address_opens_the_same_state_and_nonsense_does_not_matter(visit: Visitor) -> None:
    state = "v1.edges=6&v1.prune=0&v1.pin=1&v1.hidden=2&v1.search=l2&v1.by=weight&v1.zoom=2_10_20"
    page = visit.open(known().plot(), state=state)
    assert "6 of 7 edges" in page.locator(".size output").inner_text()
    assert page.locator(".panel h3").inner_text() == "L0H1"
    assert "L0MLP" not in seen(page)
    assert page.get_by_label("Find").input_value() == "l2"
    assert page.get_by_label("Slide by").input_value() == "weight"
    assert "scale(2" in str(page.locator(".stage svg > g").get_attribute("transform"))
    page.get_by_role("button", name="Fit").click()
    assert "scale(2" not in str(page.locator(".stage svg > g").get_attribute("transform"))
    odd = visit.open(
        known().plot(), state="v1.edges=x&v1.pin=zz&v1.hidden=99.x&v1.bands=77&v1.zoom=a_b_c&v1.group=9&v1.by=0"
    )
    assert links(odd) == 7
    odd.get_by_role("button", name="Unpin").click()
    assert odd.locator(".panel h3").inner_text() == "The circuit"


def saved(page: Page | Frame, kind: str) -> Path:
    owner = page if isinstance(page, Page) else page.page
    with owner.expect_download() as download:
        page.get_by_role("button", name=kind, exact=True).click()
    return Path(download.value.path())


def test_json_is_what_circuit_load_reads_whole_and_cut(visit: Visitor) -> None:
    circuit = random_circuit(4).pruned()
    page = visit.open(circuit.plot())
    path = saved(page, "JSON")
    assert json.loads(path.read_text(encoding="utf-8")) == json.loads(circuit.to_json())
    again = Circuit.load(path)
    assert [(e.name, e.score) for e in again.edges] == [(e.name, e.score) for e in circuit.edges]
    page.get_by_label("Hide loose ends").uncheck()
    page.get_by_label("Strongest").fill("20")
    page.get_by_label("Strongest").press("Enter")
    cut = Circuit.load(saved(page, "JSON"))
    assert [e.name for e in cut.edges] == [e.name for e in circuit.edges[:20]]
    assert cut.notes["edges_of_parts"] == [circuit.num_edges]


def test_pictures_of_what_is_seen_are_saved(visit: Visitor) -> None:
    page = visit.open(known().plot())
    svg = saved(page, "SVG").read_text(encoding="utf-8")
    assert svg.startswith("<svg")
    assert "L2H2" in svg
    assert saved(page, "PNG").read_bytes().startswith(b"\x89PNG")


def test_two_thousand_edges_follow_the_slider(visit: Visitor) -> None:
    view = large_circuit(2000).plot(curve=Curve())
    assert (len(view.graph.edges), len(view.graph.nodes)) == (2000, 301)
    page = visit.open(view)
    times = page.evaluate(TIMED)
    assert times[len(times) // 2] <= 400, times
    node(page, "L29H4").click()
    assert page.locator(".panel h3").inner_text() == "L29H4"
    page.get_by_role("button", name="Zoom in").click()
    page.locator(".stage svg").hover(position={"x": 70, "y": 5})
    page.keyboard.down("Control")
    before = page.locator(".stage svg > g").get_attribute("transform")
    page.mouse.wheel(0, -200)
    page.keyboard.up("Control")
    page.wait_for_function(
        "old => document.querySelector('.stage svg > g').getAttribute('transform') !== old", arg=before
    )


def test_hostile_names_show_and_do_nothing(visit: Visitor) -> None:
    names = [f"{n}{text}" for n, text in enumerate(HOSTILE)] + [""]
    data = {
        "nodes": [{"name": name, "role": name} for name in names],
        "edges": [(a, b, -1.0) for a, b in itertools.pairwise(names)],
    }
    about = {name: {"tokens": [name], "text": name} for name in names}
    page = visit.open(plot_circuit(data, title=HOSTILE[0], details=about))
    assert len(seen(page)) == len(names)
    assert page.locator("img").count() == 0
    node(page, "0</script>").click()
    assert "0</script><img src=x onerror=alert(1)>" in page.locator(".panel").inner_text()
    page.get_by_label("Find").fill("<!--")
    assert page.locator(".node.match").count() >= 1
    again = plot_circuit(json.loads(saved(page, "JSON").read_text(encoding="utf-8")))
    assert {n.name for n in again.graph.nodes} == set(names)


def test_empty_and_unscored_circuits(visit: Visitor) -> None:
    page = visit.open(plot_circuit({"edges": []}))
    assert "This circuit is empty" in page.locator(".live").inner_text()
    page = visit.open(plot_circuit({"edges": [("a", "b"), ("b", "c")], "nodes": ["alone"]}))
    assert links(page) == 2
    assert "alone" in seen(page)
    assert page.locator("path.link.bare").count() == 2
    assert "Faithfulness. Not measured" in page.locator(".faith").inner_text()
    page = visit.open(plot_circuit({"edges": [], "nodes": ["alone"]}))
    assert seen(page) == ["alone"]


def view() -> CircuitView:
    return known().plot(curve=Curve(), details={"L2H2": {"attention": [[1.0]], "tokens": ["a"]}})


def test_it_is_accessible_light_and_dark_wide_and_narrow(visit: Visitor) -> None:
    for dark, width in ((False, 1280), (True, 600)):
        page = visit.open(view(), dark=dark, width=width)
        assert isinstance(page, Page)
        node(page, "L2H2").click()
        page.mouse.move(2, 2)
        page.keyboard.press("Escape")
        assert visit.serious(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        fill = node(page, "L2H2").locator(".back").evaluate("e => getComputedStyle(e).fill")
        assert fill == ("rgb(13, 17, 23)" if dark else "rgb(255, 255, 255)")
    page.emulate_media(color_scheme="light")
    expect(node(page, "L2H2")).to_have_attribute("style", re.compile("--role: #00896a"))


def test_it_lives_in_the_frame_of_a_notebook(visit: Visitor) -> None:
    frame = visit.open(view(), within="notebook")
    node(frame, "L2H2").click()
    assert frame.locator(".panel h3").inner_text() == "L2H2"
    frame.locator("input[type=range]").evaluate(MOVE, 0)
    assert links(frame) == 0


def test_keys_and_values_that_several_heads_read_count_once(visit: Visitor) -> None:
    edges = [("L0MLP", "L1KV0.v", 2.0), ("L0MLP", "logits", -0.5), ("embed", "L0MLP", 1.0), ("embed", "L1H0.q", 0.5)]
    edges += [(f"L1H{head}", "logits", 0.25) for head in range(3)]
    graph = {"num_layers": 2, "num_heads": 3, "num_groups": 1, "parallel": False}
    page = visit.open(plot_circuit({"edges": edges, "graph": graph}))
    panel = page.locator("aside, .panel").first.inner_text() if page.locator("aside, .panel").count() else ""
    assert "+1.50" in (panel or page.locator(".live").inner_text())
