"""Activations in a real browser: panels, slider, hover, keyboard, state, hostile texts."""

from __future__ import annotations

import csv
import functools
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from interp_toolkit.visualization.distributions import ActivationsView, plot_activations

if TYPE_CHECKING:
    from browser import Visitor

HOSTILE = (
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    "\u2028",
    "\x00",
    "\ud800",
    "\u202etfel",
    "👩\u200d👧",
    "x" * 200,
    "",
)


@functools.cache
def view() -> ActivationsView:
    """Four layers of rows in three classes; the last dimensions stand out, rows of class b lie apart."""
    r = np.random.default_rng(0)
    x = r.standard_normal((4, 90, 12)) * np.arange(1, 5)[:, None, None]
    x[:, 1::3, 2] += 9
    x[:, :, 11] += 80
    labels = [("a", "b", "<b>c</b>")[n % 3] for n in range(90)]
    texts = [f"statement {n}" for n in range(90)]
    return plot_activations(x, labels=labels, texts=texts, direction=np.eye(12)[2], title="Made up")


@functools.cache
def hostile() -> ActivationsView:
    """Every text is hostile, of labels, tokens and the title."""
    x = np.random.default_rng(0).standard_normal((2, len(HOSTILE), 6))
    return plot_activations(
        x, labels=HOSTILE, tokens=HOSTILE, direction=np.ones(6), title=HOSTILE[0], caption=HOSTILE[1]
    )


def at(svg: Any, across: float, down: float) -> dict[str, float]:
    """A place in an element, in pixels from its corner."""
    box = svg.bounding_box()
    return {"x": box["width"] * across, "y": box["height"] * down}


def test_panels_slider_legend_and_keys(visit: Visitor) -> None:
    page = visit.open(view())
    assert page.locator("[role=tab]").all_inner_texts() == ["Distribution", "Norms", "Outliers", "Projection", "PCA"]
    assert page.locator(".still").is_hidden()
    assert page.locator("g[data-layer]").count() == 4
    # The slider moves all that shows a layer
    slider = page.get_by_label("Layer", exact=True)
    assert slider.get_attribute("aria-valuetext") == "layer 2"
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("table.small caption").inner_text() == "Layer 3"
    page.locator("g[data-layer='1']").click()
    assert page.locator("table.small caption").inner_text() == "Layer 1"
    assert slider.input_value() == "1"
    # Bins are read by keys
    histogram = page.locator("svg[role=application]").first
    histogram.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    counts = view().measured.values.counts[1, :, 1]
    said = page.locator(".hint").inner_text()
    assert f"a: {counts[1]:,}" in said
    assert f"b: {counts[2]:,}" in said
    page.keyboard.press("Escape")
    assert page.locator(".hint").is_hidden()
    # A class can be hidden, not all of them
    before = page.locator("g[data-layer='0'] path").count()
    page.get_by_role("button", name="b", exact=True).click()
    assert page.locator("g[data-layer='0'] path").count() == before * 2 // 3
    for name in ("a", "<b>c</b>"):
        page.get_by_role("button", name=name, exact=True).click()
    assert page.locator(".legend [aria-pressed=true]").count() == 1
    # Tabs are turned by keys
    page.locator("[role=tab][aria-selected=true]").focus()
    page.keyboard.press("End")
    assert page.locator("[role=tab][aria-selected=true]").inner_text() == "PCA"
    assert "v1.panel=pca" in page.evaluate("location.hash")
    assert "v1.layer=1" in page.evaluate("location.hash")


def test_points_are_found_by_hover_keys_and_words_and_locked(visit: Visitor) -> None:
    page = visit.open(view(), state="v1.panel=pca&v1.layer=0")
    chart = page.locator("svg[role=application]")
    shares = view().measured.scatter.shares[0]
    assert f"PC 1 ({shares[0]:.0%} of variance)" in chart.text_content()
    chart.focus()
    page.keyboard.press("ArrowRight")
    leftmost = int(np.argmin(view().measured.scatter.scores[0, :, 0]))
    assert f"statement {leftmost}\n" in page.locator(".hint").inner_text()
    assert f"statement {leftmost}" in page.locator("[aria-live]").text_content()
    page.keyboard.press("Enter")
    assert f"v1.row={leftmost}" in page.evaluate("location.hash")
    assert f"statement {leftmost}" in page.locator(".note").last.inner_text()
    # Locked: the pointer changes nothing
    chart.hover(position=at(chart, 0.5, 0.5))
    assert f"statement {leftmost}\n" in page.locator(".hint").inner_text()
    page.keyboard.press("Escape")
    assert "v1.row" not in page.evaluate("location.hash")
    assert page.locator(".note").last.inner_text() == ""
    # The pointer finds the point that is nearest
    place = page.locator("circle, path.points").first.bounding_box()
    assert place is not None
    search = page.get_by_label("Find")
    search.fill("STATEMENT 7")
    assert page.locator("output").last.inner_text() == "11 rows"
    assert page.locator("path.found").count() == 1
    page.get_by_label("across").select_option("PC 3")
    assert "PC 3 (" in chart.text_content()
    assert "v1.axes=3-2" in page.evaluate("location.hash")


def test_a_copied_address_opens_the_same_state(visit: Visitor) -> None:
    page = visit.open(view(), state="v1.panel=pca&v1.layer=3&v1.hidden=1&v1.row=34&v1.axes=2-3")
    chart = page.locator("svg[role=application]")
    assert "PC 2 (" in chart.text_content()
    assert "statement 34" in page.locator(".note").last.inner_text()
    assert page.locator(".legend [aria-pressed=false]").count() == 1
    assert page.get_by_label("Layer", exact=True).input_value() == "3"
    # What makes no sense is passed over
    odd = visit.open(view(), state="v1.panel=x&v1.layer=99&v1.hidden=0 1 2 9&v1.row=5000&v1.axes=7-x")
    assert odd.get_by_label("Layer", exact=True).input_value() == "2"
    assert odd.locator(".legend [aria-pressed=true]").count() == 3


def test_maps_are_read_by_pointer_and_keys(visit: Visitor) -> None:
    page = visit.open(view(), state="v1.panel=outliers")
    found = view().measured.magnitudes["typical"]
    chart = page.locator("svg[role=application]")
    chart.focus()
    page.keyboard.press("ArrowRight")
    assert "dimension 11, layer 0" in page.locator(".hint").inner_text()
    assert f"{found[0, 11]:.3g} times the median" in page.locator(".hint").inner_text()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert page.get_by_label("Layer", exact=True).input_value() == "1"
    page.get_by_label("Magnitude in").select_option("the largest row")
    assert "v1.measure=largest" in page.evaluate("location.hash")
    assert "100 times or more" in page.locator(".live svg").last.text_content()
    one = visit.open(hostile(), state="v1.panel=norms")
    chart = one.locator("svg[role=application]")
    chart.hover(position={"x": 130.0, "y": 12.0})
    assert "norm" in one.locator(".hint").inner_text()


def test_projections_say_how_far_classes_lie_apart(visit: Visitor) -> None:
    page = visit.open(view(), state="v1.panel=projection&v1.layer=0")
    found = view().measured.projection
    assert found is not None
    known = found.separations[0]
    cells = page.locator("table.small").last.locator("tbody tr").nth(2).locator("td").all_inner_texts()
    assert known[2] is not None
    assert cells[:3] == ["the others", f"{known[2].auc:.3f}", f"{known[2].overlap:.3f}"]
    strip = page.locator("svg[role=application]").nth(1)
    strip.focus()
    page.keyboard.press("ArrowRight")
    assert f"statement {int(np.argmin(found.scores[0]))}\n" in page.locator(".hint").inner_text()


def test_files_hold_what_is_seen(visit: Visitor) -> None:
    page = visit.open(view(), state="v1.panel=pca&v1.layer=0")
    saved: dict[str, Path] = {}
    for kind in ("SVG", "PNG", "CSV", "JSON"):
        with page.expect_download() as waiting:
            page.get_by_role("button", name=kind, exact=True).click()
        saved[kind] = Path(waiting.value.path())
    rows = list(csv.DictReader(io.StringIO(saved["CSV"].read_text(encoding="utf-8"))))
    assert len(rows) == 90
    known = view().measured.scatter.scores[0]
    np.testing.assert_allclose([float(row["pc1"]) for row in rows], known[:, 0], atol=1e-3 * np.abs(known).max())
    assert json.loads(saved["JSON"].read_text())["rows"][5]["text"] == "statement 5"
    assert saved["PNG"].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "of variance" in saved["SVG"].read_text(encoding="utf-8")


@pytest.mark.parametrize("dark", [False, True])
def test_hostile_texts_show_and_nothing_executes_and_nothing_keeps_people_out(visit: Visitor, dark: bool) -> None:
    page = visit.open(hostile(), width=600, dark=dark)
    for number, tab in enumerate(page.locator("[role=tab]").all()):
        tab.click()
        assert page.locator("img").count() == 0
        assert page.locator("bdi", has_text="</script><img src=x onerror=alert(1)>").count() > 0
        assert page.evaluate("document.documentElement.scrollWidth") <= 600
        if number % 2 == dark:  # the costly check: each panel in one of the two schemes
            assert visit.serious(page) == []
        for chart in page.locator("svg[role=application]").all():
            chart.focus()
            for _ in range(3):
                page.keyboard.press("ArrowRight")
            assert page.locator(".hint").is_visible()


def test_in_a_notebook_and_with_changing_colours(visit: Visitor) -> None:
    frame = visit.open(view(), within="notebook")
    frame.get_by_role("tab", name="PCA").click()
    assert frame.locator("path.points").count() == 3
    page = visit.open(view(), state="v1.panel=pca")
    light = page.locator("path.points").first.get_attribute("fill")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("light => document.querySelector('path.points').getAttribute('fill') !== light", arg=light)
    page.set_viewport_size({"width": 700, "height": 800})
    page.wait_for_function("() => document.querySelector('svg[role=application]').clientWidth < 700")


def test_many_rows_answer_the_slider_quickly(visit: Visitor) -> None:
    x = np.random.default_rng(0).standard_normal((3, 5000, 8)).astype(np.float32)
    page = visit.open(plot_activations(x, labels=np.arange(5000) % 8, kind="pca"))
    took = page.evaluate("""() => {
      const slider = document.querySelector("input[type=range]");
      const start = performance.now();
      for (const layer of [0, 1, 2]) {
        slider.value = layer;
        slider.dispatchEvent(new Event("input"));
        document.body.offsetHeight;
      }
      return (performance.now() - start) / 3;
    }""")
    assert took < 500


@pytest.mark.parametrize(
    "made",
    [
        {"activations": [[1.0]]},
        {"activations": np.zeros((3, 4)), "labels": ["a", "b", "b"], "direction": np.ones(4)},
        {"activations": np.full((2, 3, 2), 1e30), "tokens": ["a", "b", "c"]},
    ],
    ids=["one number", "zeros", "large"],
)
def test_degenerate_data_open_on_every_panel(visit: Visitor, made: dict[str, Any]) -> None:
    activations = made["activations"]
    page = visit.open(plot_activations(activations, **{key: made[key] for key in made if key != "activations"}))
    for tab in page.locator("[role=tab]").all():
        tab.click()
        assert "NaN" not in page.locator(".live").inner_html()
