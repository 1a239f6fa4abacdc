"""Line charts as people use them: by mouse and keyboard, in light and dark, with any names."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from playwright.sync_api import expect

from browser import Visitor
from interp_toolkit.visualization.lines import LineChart, Series

EVIL = "</script><img src=x onerror=alert(1)>"


def made(**changes: Any) -> LineChart:
    about: dict[str, Any] = {
        "x": [0.01, 0.1, 1.0],
        "series": [
            Series(name="eap", y=[0.2, 0.6, 1.0], low=[0.1, 0.5, 1.0], high=[0.3, 0.7, 1.0]),
            Series(name=EVIL, y=[0.1, math.nan, 0.9]),
            Series(name="random", y=[0.0, 0.1, 1.0], grey=True),
        ],
        "title": "Faithfulness",
        "x_name": "share of edges",
        "y_name": "faithfulness",
        "log": True,
        "percent": True,
        "references": [("whole model", 1.0)],
        "marked": [(0, 1)],
    }
    return LineChart(**(about | changes))


def at(page: Any, n: int) -> tuple[float, float]:
    """The place of a point of the first line."""
    box = page.locator(".plot .dot").nth(n).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + 40


def address(page: Any) -> str:
    """What stands behind # in the address, at once."""
    return str(page.evaluate("location.hash.slice(1)"))


def hint(page: Any) -> list[str] | None:
    box = page.locator(".hint")
    return box.text_content().split("\n") if box.is_visible() else None


def test_hover_click_and_escape(visit: Visitor) -> None:
    page = visit.open(made())
    page.mouse.move(*at(page, 1))
    assert hint(page) == ["share of edges 10%", "eap: 0.600 [0.500, 0.700]", f"{EVIL}: –", "random: 0.100"]
    assert page.locator(".plot .cursor").count() == 1
    page.mouse.click(*at(page, 0))
    page.mouse.move(*at(page, 2))
    assert str(hint(page)).startswith("['share of edges 1%'")
    assert address(page).endswith("v1.point=0")
    page.keyboard.press("Escape")
    assert hint(page) is None
    assert "point" not in address(page)
    assert page.locator("img").count() == 0
    assert visit.serious(page) == []


def test_keys_walk_along_the_points_and_say_all_values(visit: Visitor) -> None:
    page = visit.open(made())
    page.get_by_role("application").focus()
    said = page.locator('[aria-live="polite"]')
    for key, words in (
        ("ArrowRight", "1%"),
        ("ArrowRight", "10%"),
        ("End", "100%"),
        ("ArrowRight", "100%"),
        ("Home", "1%"),
    ):
        page.keyboard.press(key)
        assert said.text_content().startswith(f"share of edges {words}. eap: "), key
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowRight")
    assert address(page).endswith("v1.point=1")
    page.keyboard.press("Escape")
    assert page.locator(".plot .cursor").count() == 0


def test_lines_intervals_and_the_axis_are_chosen_and_an_address_brings_them_back(visit: Visitor) -> None:
    page = visit.open(made())
    ticks = [t for t in page.locator(".plot text").all_text_contents() if t.endswith("%")]
    assert ticks == ["1%", "2%", "5%", "10%", "20%", "50%", "100%"]
    assert page.locator(".plot .stroke").count() == 3
    assert page.locator(".plot .band").count() == 1
    page.get_by_role("button", name="random").click()
    page.get_by_role("button", name="Intervals").click()
    before = at(page, 1)[0]
    page.get_by_role("button", name="Logarithmic").click()
    assert at(page, 1)[0] < before
    page.mouse.click(*at(page, 1))
    assert hint(page) == ["share of edges 10%", "eap: 0.600 [0.500, 0.700]", f"{EVIL}: –"]
    again = visit.open(made(), state=address(page))
    for shown in (page, again):
        assert shown.locator(".plot .stroke").count() == 2
        assert shown.locator(".plot .band").count() == 0
        assert shown.get_by_role("button", name="random").get_attribute("aria-pressed") == "false"
        assert hint(shown) == ["share of edges 10%", "eap: 0.600 [0.500, 0.700]", f"{EVIL}: –"]
    assert at(again, 1) == at(page, 1)
    nonsense = visit.open(made(), state="v1.point=99&v1.hidden=77,x&v1.log=maybe")
    assert nonsense.locator(".plot .stroke").count() == 3


def test_narrow_dark_and_in_a_notebook(visit: Visitor) -> None:
    names = [Series(name="W" * 200, y=[1.0, 2.0]), Series(name="\u202eabc", y=[0.0, 1.0])]
    page = visit.open(made(series=names, x=[EVIL, ""], log=False, percent=False, marked=[]), width=600, dark=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 600
    page.mouse.move(*at(page, 0))
    assert "⟨U+202E⟩abc: 0" in str(hint(page))
    box = page.locator(".hint").bounding_box()
    assert box["x"] + box["width"] <= 600
    assert page.locator(".hint").evaluate("box => box.scrollWidth <= box.clientWidth")
    assert visit.serious(page) == []
    stroke = page.locator(".plot .stroke").first
    dark = stroke.evaluate("path => getComputedStyle(path).stroke")
    page.emulate_media(color_scheme="light")
    expect(stroke).not_to_have_css("stroke", dark)
    frame = visit.open(made(), within="notebook")
    frame.page.mouse.move(*at(frame, 1))
    assert str(hint(frame)).startswith("['share of edges 10%'")


def test_what_is_seen_can_be_saved(visit: Visitor, tmp_path: Path) -> None:
    page = visit.open(made())
    saved = {}
    for kind in ("SVG", "PNG", "JSON", "CSV"):
        with page.expect_download() as waiting:
            page.get_by_role("button", name=kind).click()
        assert waiting.value.suggested_filename == f"Faithfulness.{kind.lower()}"
        waiting.value.save_as(tmp_path / kind)
        saved[kind] = (tmp_path / kind).read_bytes()
    texts = [e.text for e in ET.fromstring(saved["SVG"]).iter() if e.tag.endswith("}text")]
    assert "whole model" in texts
    assert saved["PNG"].startswith(b"\x89PNG")
    assert json.loads(saved["JSON"])["series"][1] == {"name": EVIL, "y": [0.1, None, 0.9], "low": None, "high": None}
    rows = list(csv.reader(io.StringIO(saved["CSV"].decode())))
    assert rows[:2] == [["series", "share of edges", "faithfulness", "low", "high"], ["eap", "1%", "0.2", "0.1", "0.3"]]
