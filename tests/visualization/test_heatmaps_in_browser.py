"""Heat maps as people use them: by mouse, keyboard and finger, in light and dark, with any labels."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from browser import Visitor
from interp_toolkit.visualization.document import Document
from interp_toolkit.visualization.heatmaps import Heatmap, plot_lens
from interp_toolkit.visualization.panels import Heatmaps
from interp_toolkit.visualization.pictures import colour

NAN = float("nan")
VALUES = [[0.5, -1.0, 0.25], [NAN, 0.125, -0.5]]
HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    "a\u2028b",
    "nul\x00",
    "\ud83d",
    "\u202eabc",
    "👨‍👩‍👧‍👦",
    "W" * 200,
    "",
    "&amp;'\"",
]


def made(**changes: Any) -> Heatmap:
    about: dict[str, Any] = {
        "values": VALUES,
        "rows": [" Mary", " John"],
        "columns": ["0", "1", "2"],
        "title": "Effects",
        "caption": "What patching does.",
        "row_name": "token",
        "column_name": "layer",
        "notes": [["[0.40, 0.60]", "[−1.1, −0.9]", ""], ["", "", "one\ntwo"]],
        "marked": [(0, 1)],
    }
    return Heatmap(**(about | changes))


def place(page: Any, row: int, column: int, rows: int = 2, columns: int = 3, panel: int = 0) -> tuple[float, float]:
    """The middle of a cell in the window."""
    box = page.locator("div.plot canvas").nth(panel).bounding_box()
    return box["x"] + box["width"] * (column + 0.5) / columns, box["y"] + box["height"] * (row + 0.5) / rows


FRAMES = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


def address(page: Any) -> str:
    """What stands behind # in the address, at once."""
    return str(page.evaluate("location.hash.slice(1)"))


def hint(page: Any) -> list[str] | None:
    box = page.locator(".hint")
    return box.text_content().split("\n") if box.is_visible() else None


def pixel(page: Any, row: int, column: int) -> Any:
    """The colour of a cell, up to rounding; None where it is transparent."""
    found = page.evaluate(
        "([r, c]) => [...document.querySelector('div.plot canvas').getContext('2d').getImageData(c, r, 1, 1).data]",
        [row, column],
    )
    return pytest.approx(found[:3], abs=1) if found[3] else None


def rgb(share: float, *, dark: bool = False) -> list[int]:
    return list(bytes.fromhex(colour(share, dark=dark)[1:]))


def set_slider(page: Any, name: str, value: int) -> None:
    page.get_by_label(name).fill(str(value))


def test_hovering_says_the_value_clicking_locks_it_and_escape_lets_go(visit: Visitor) -> None:
    page = visit.open(made())
    page.mouse.move(*place(page, 0, 1))
    assert hint(page) == ["token  Mary, layer 1: −1.00", "[−1.1, −0.9]"]
    assert page.locator(".plot .cursor").count() == 1
    page.mouse.move(*place(page, 1, 2))
    assert hint(page) == ["token  John, layer 2: −0.50", "one", "two"]
    page.mouse.move(5, 5)
    assert hint(page) is None
    assert page.locator(".plot .cursor").count() == 0
    page.mouse.click(*place(page, 0, 0))
    page.mouse.move(*place(page, 1, 1))
    assert hint(page) == ["token  Mary, layer 0: 0.50", "[0.40, 0.60]"]
    assert address(page).endswith("v1.cell=0.0.0")
    page.keyboard.press("Escape")
    assert hint(page) is None
    assert "cell" not in address(page)
    page.mouse.click(*place(page, 1, 1))
    page.mouse.click(*place(page, 1, 1))
    assert "cell" not in address(page)
    assert visit.serious(page) == []


def test_arrow_keys_walk_from_the_strongest_cell_and_say_where_they_are(visit: Visitor) -> None:
    page = visit.open(made())
    board = page.get_by_role("application")
    assert "Heat map, 2 × 3: Effects" in board.get_attribute("aria-label")
    board.focus()
    said = page.locator('[aria-live="polite"]')
    page.keyboard.press("ArrowRight")
    assert said.text_content() == "token  Mary, layer 1: −1.00. [−1.1, −0.9]"
    for key, words in (
        ("ArrowDown", "token  John, layer 1: 0.13"),
        ("Home", "token  John, layer 0: –"),
        ("End", "token  John, layer 2: −0.50"),
        ("ArrowUp", "token  Mary, layer 2: 0.25"),
        ("ArrowRight", "token  Mary, layer 2: 0.25"),
        ("ArrowLeft", "token  Mary, layer 1: −1.00"),
    ):
        page.keyboard.press(key)
        assert said.text_content().split(". ")[0] == words, key
    page.keyboard.press("Enter")
    assert address(page).endswith("v1.cell=0.0.1")
    page.keyboard.press("ArrowLeft")
    assert address(page).endswith("v1.cell=0.0.0")
    page.keyboard.press("Escape")
    assert hint(page) is None


def test_controls_change_colours_and_cells_and_an_address_brings_them_back(visit: Visitor) -> None:
    page = visit.open(made())
    assert [pixel(page, 0, 1), pixel(page, 0, 0), pixel(page, 1, 0)] == [rgb(-1.0), rgb(0.5), None]
    set_slider(page, "Full colour at", 50)
    assert pixel(page, 0, 0) == rgb(1.0)
    assert page.get_by_text("±0.50").is_visible()
    set_slider(page, "Hide below", 30)
    assert [pixel(page, 0, 2), pixel(page, 1, 1), pixel(page, 0, 0)] == [rgb(0.0), rgb(0.0), rgb(1.0)]
    page.get_by_label("In cells").select_option("numbers")
    texts = page.locator(".plot text").all_text_contents()
    assert {"0.50", "−1.00", "0.25", "0.13", "−0.50"} <= set(texts)
    page.get_by_role("button", name="Profiles").click()
    page.mouse.click(*place(page, 0, 1))
    assert page.locator(".plot .bar-down").get_attribute("d") != ""
    assert "this row" in page.locator(".plot text").all_text_contents()
    page.get_by_role("button", name="Swap axes").click()
    assert hint(page) == ["layer 1, token  Mary: −1.00", "[−1.1, −0.9]"]
    again = visit.open(made(), state=address(page))
    assert hint(again) == ["layer 1, token  Mary: −1.00", "[−1.1, −0.9]"]
    assert pixel(again, 0, 0) == rgb(1.0)
    assert pixel(again, 2, 0) == rgb(0.0)
    assert again.locator(".plot text").all_text_contents() == page.locator(".plot text").all_text_contents()
    for name in ("Swap axes", "Profiles"):
        assert again.get_by_role("button", name=name).get_attribute("aria-pressed") == "true"


@pytest.mark.parametrize("state", ["v1.cell=9.9.9&v1.limit=x&v1.write=nonsense&v1.least=-5", "v1.cell=a.b", "%E0%A4%A"])
def test_an_address_with_nonsense_opens_the_view_as_it_is(visit: Visitor, state: str) -> None:
    page = visit.open(made(), state=state)
    assert pixel(page, 0, 1) == rgb(-1.0)
    assert hint(page) is None


def test_hostile_labels_are_text_on_a_narrow_dark_screen_and_light_comes_back(visit: Visitor) -> None:
    n = len(HOSTILE)
    page = visit.open(
        made(
            values=[[(r - c) / n for c in range(n)] for r in range(n)],
            rows=HOSTILE,
            columns=HOSTILE,
            notes=[[f"note {HOSTILE[(r + c) % n]}" for c in range(n)] for r in range(n)],
            texts=[HOSTILE] * n,
            title=f"title {HOSTILE[0]}",
        ),
        width=600,
        dark=True,
    )
    assert page.locator("img").count() == 0
    page.mouse.move(*place(page, 1, 0, n, n))
    assert hint(page) == [HOSTILE[0], f"token {HOSTILE[1]}, layer {HOSTILE[0]}: 0.10", f"note {HOSTILE[1]}"]
    page.mouse.move(*place(page, 1, 5, n, n))
    assert "layer ⟨U+202E⟩abc: −0.40" in str(hint(page))
    assert page.evaluate("document.documentElement.scrollWidth") <= 600
    box = page.locator(".hint").bounding_box()
    assert 0 <= box["x"] <= box["x"] + box["width"] <= 600
    assert visit.serious(page) == []
    assert pixel(page, n - 1, 0) == rgb(1.0, dark=True)
    page.emulate_media(color_scheme="light")
    for _ in range(100):  # the page hears of it when it hears of it
        page.evaluate(FRAMES)
        if pixel(page, n - 1, 0) != rgb(1.0, dark=True):
            break
    assert pixel(page, n - 1, 0) == rgb(1.0)


def test_it_works_in_the_frame_of_a_notebook(visit: Visitor) -> None:
    frame = visit.open(made(), within="notebook")
    frame.page.mouse.move(*place(frame, 0, 1))
    assert hint(frame) == ["token  Mary, layer 1: −1.00", "[−1.1, −0.9]"]
    frame.page.mouse.click(*place(frame, 0, 1))
    frame.get_by_label("In cells").select_option("numbers")
    assert "−1.00" in frame.locator(".plot text").all_text_contents()


def test_a_finger_can_lock_a_cell(visit: Visitor) -> None:
    page = visit.open(made(), touch=True, width=600)
    page.touchscreen.tap(*place(page, 0, 2))
    assert hint(page) == ["token  Mary, layer 2: 0.25"]
    assert address(page).endswith("v1.cell=0.0.2")


def test_what_is_seen_can_be_saved(visit: Visitor, tmp_path: Path) -> None:
    page = visit.open(made(rows=HOSTILE[:2], title="Effects: a, b"))
    saved: dict[str, bytes] = {}
    for kind in ("SVG", "PNG", "JSON", "CSV"):
        with page.expect_download() as waiting:
            page.get_by_role("button", name=kind).click()
        assert waiting.value.suggested_filename == f"Effects_a_b.{kind.lower()}"
        waiting.value.save_as(tmp_path / kind)
        saved[kind] = (tmp_path / kind).read_bytes()
    svg = ET.fromstring(saved["SVG"])
    names = [element.tag.split("}")[1] for element in svg.iter()]
    assert names.count("image") == 1
    assert "1" in [element.text for element in svg.iter() if element.tag.endswith("}text")]
    assert saved["PNG"].startswith(b"\x89PNG")
    plain = json.loads(saved["JSON"])["panels"][0]
    assert (plain["rows"], plain["values"]) == (HOSTILE[:2], [VALUES[0], [None, 0.125, -0.5]])
    rows = list(csv.reader(io.StringIO(saved["CSV"].decode())))
    assert rows[0] == ["map", "row", "column", "value", "text", "note"]
    assert rows[2] == ["Effects: a, b", HOSTILE[0], "1", "-1", "", "[−1.1, −0.9]"]
    assert page.locator("image").count() == 0  # what the file needed is gone


def test_heat_maps_beside_each_other_share_colours_and_the_cursor(visit: Visitor) -> None:
    panels = [made(title="resid"), made(title="attn", values=[[2.0, 0.5, 0.0], [0.0, 0.0, 0.0]], notes=None, marked=())]
    page = visit.open(Heatmaps(panels=panels, title="Patching"))
    assert pixel(page, 0, 1) == rgb(-0.5)
    page.mouse.move(*place(page, 0, 1, panel=1))
    assert hint(page) == ["attn", "token  Mary, layer 1: 0.50"]
    assert page.locator(".plot .cursor").count() == 2
    page.get_by_role("application").focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert hint(page) == ["resid", "token  Mary, layer 2: 0.25"]
    page.keyboard.press("PageDown")
    assert hint(page) == ["attn", "token  Mary, layer 2: 0.00"]
    assert visit.serious(page) == []


def test_thousands_of_cells_open_quickly_and_can_be_enlarged(visit: Visitor) -> None:
    import numpy as np

    values = np.sin(np.arange(256)[:, None] / 20) * np.cos(np.arange(300) / 30)
    names = [[str(n) for n in range(size)] for size in values.shape]
    page = visit.open(Heatmap(values=values, rows=names[0], columns=names[1], title="Large"))
    assert page.get_by_label("In cells").count() == 0
    page.get_by_role("application").focus()
    page.keyboard.press("End")
    took = page.evaluate(
        """() => { const slider = document.querySelector('input[type=range]'); const start = performance.now();
        slider.value = 50; slider.dispatchEvent(new Event('input')); return performance.now() - start; }"""
    )
    assert took < 400
    small = page.locator("div.plot canvas").bounding_box()["width"]
    set_slider(page, "Cell size", 20)
    assert page.locator("div.plot canvas").bounding_box()["width"] == 20 * 300 > small
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_a_lens_shows_tokens_and_the_next_ones_on_hover(visit: Visitor) -> None:
    tokens = [[[" Paris", " Rome"], ["</b>", "\n"]]]
    page = visit.open(plot_lens(tokens, [[[0.9, 0.05], [0.4, 0.3]]], rows=["11"], columns=[" is", " in"]))
    texts = page.locator(".plot text").all_text_contents()
    assert {" Paris", "</b>", "0.00", "1.00"} <= set(texts)
    page.mouse.move(*place(page, 0, 1, 1, 2))
    assert hint(page) == ["</b>", "layer 11, token  in: 0.40", "</b> 40.0%", "⏎ 30.0%"]
    page.get_by_label("In cells").select_option("numbers")
    assert "0.90" in page.locator(".plot text").all_text_contents()


def test_several_on_a_page_keep_their_states_apart(visit: Visitor) -> None:
    page = visit.open(Document(title="two", parts=(made(), made(title="other"))), state="v2.cell=0.0.1")
    assert page.locator(".hint:visible").count() == 1
    assert page.locator("figure").nth(1).locator(".hint").is_visible()
    assert [h.text_content() for h in page.locator("h3").all()] == ["Effects", "other"]
