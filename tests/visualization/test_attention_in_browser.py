"""Attention in a real browser: what mouse and keys do, hostile tokens, sizes, and what a screen reader gets."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Frame, Page, expect

from browser import Visitor
from interp_toolkit.visualization.attention import AttentionView, plot_attention
from interp_toolkit.visualization.document import Document, Paragraph
from interp_toolkit.visualization.patterns import Matrix

HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    "a\u2028b",
    "\0nul",
    "\ud800",
    "\u202eright",
    "👩‍👩‍👧‍👦",
    "x" * 200,
    "",
    " ",
]
WORDS = ["When", " Mary", " and", " John", " went", " out", ",", " John", " gave", " Mary"]


def pattern(*shape: int, sharp: float = 2.0, seed: int = 0) -> Matrix:
    length = shape[-1]
    noise = np.random.default_rng(seed).normal(size=shape).astype(np.float32) * sharp
    noise[..., ~np.tril(np.ones((length, length), dtype=bool))] = -np.inf
    weights = np.exp(noise - noise.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True), dtype=np.float32)


def heads(**options: Any) -> AttentionView:
    """Two layers of three heads over ten words."""
    return plot_attention(pattern(2, 3, 10, 10), WORDS, **options)


def hint(page: Page | Frame) -> str:
    box = page.locator(".hint")
    return box.text_content() or "" if box.is_visible() else ""


def settled(page: Any) -> None:
    """Waits until what was asked for is drawn."""
    expect(page.locator(".live[aria-busy=true]")).to_have_count(0)


def saved(page: Any, kind: str, folder: Path) -> bytes:
    settled(page)
    with page.expect_download() as found:
        page.get_by_role("button", name=kind, exact=True).click()
    path = folder / f"saved.{kind.lower()}"
    found.value.save_as(path)
    return path.read_bytes()


def cell(page: Any, row: int, column: int) -> tuple[float, float]:
    """Where a cell of the first matrix is, in pixels of its canvas."""
    plan = page.locator(".card .scroll > div").first.evaluate("(sizer) => ({ ...sizer.dataset })")
    size = float(plan["cell"])
    return float(plan["left"]) + (column + 0.5) * size, float(plan["top"]) + (row + 0.5) * size


def colour_at(page: Any, x: float, y: float, *, card: int = 0) -> list[int]:
    """The colour of a pixel of a card's canvas."""
    settled(page)
    place = {"x": x, "y": y, "card": card}
    found: list[int] = page.evaluate(
        """({ x, y, card }) => { const canvas = document.querySelectorAll('.card canvas')[card];
        const ratio = canvas.width / canvas.clientWidth;
        return [...canvas.getContext('2d').getImageData(x * ratio, y * ratio, 1, 1).data].slice(0, 3) }""",
        place,
    )
    return found


# --- one matrix ---------------------------------------------------------------------------------------------------


def test_one_matrix_is_a_heat_map_without_controls(visit: Visitor, tmp_path: Path) -> None:
    weights = pattern(5, 5)
    page = visit.open(plot_attention(weights, ["The", " capital", " of", " France", " is"]))
    assert page.locator(".controls, select, input, .heads").count() == 0
    assert not page.locator(".still").is_visible()
    canvas = page.locator(".card canvas")
    canvas.hover(position=dict(zip("xy", cell(page, 4, 1), strict=True)))
    assert (
        hint(page) == f"from 4 “ is”\nto 1 “ capital”\n{weights[4, 1]:.3f}"
        or abs(float(hint(page)[-5:]) - weights[4, 1]) < 0.005
    )
    canvas.hover(position=dict(zip("xy", cell(page, 1, 4), strict=True)))  # no token looks ahead
    assert hint(page) == ""
    svg = saved(page, "SVG", tmp_path).decode()
    assert "capital" in svg
    assert re.match('<svg [^>]*xmlns="http://www.w3.org/2000/svg"', svg)
    assert saved(page, "PNG", tmp_path).startswith(b"\x89PNG")
    data = json.loads(saved(page, "JSON", tmp_path))
    assert np.abs(np.array(data["heads"][0]["weights"]) - weights).max() < 0.006
    assert visit.serious(page) == []


def test_colours_are_those_of_the_weights_in_light_and_dark(visit: Visitor) -> None:
    weights = np.array([[1.0, 0.0], [0.25, 0.75]])
    for dark, full, half in ((False, [33, 102, 172], [140, 174, 210]), (True, [100, 170, 235], [69, 107, 144])):
        page = visit.open(plot_attention(weights, ["a", "b"]), dark=dark)
        x, y = cell(page, 0, 0)
        assert colour_at(page, x - 20, y - 20) == full
        x, y = cell(page, 1, 0)
        assert colour_at(page, x - 20, y - 20) == pytest.approx(half, abs=1)
        x, y = cell(page, 0, 1)
        assert colour_at(page, x, y) == ([13, 17, 23] if dark else [255, 255, 255])


# --- many heads ---------------------------------------------------------------------------------------------------


def test_heads_are_chosen_pinned_sorted_and_combined(visit: Visitor) -> None:
    view = heads(groups=1)
    page = visit.open(view)
    options = page.locator("[role=option]")
    assert options.count() == 6
    assert options.first.get_attribute("aria-label").startswith("L0H0 · kv0, entropy")
    options.nth(4).click()
    expect(page.locator(".card strong")).to_have_text(["L1H1 · kv0"])
    page.get_by_role("button", name="Pin L1H1").click()
    page.get_by_role("listbox").focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".card strong")).to_have_text(["L0H0 · kv0", "L1H1 · kv0"])
    page.keyboard.press("p")
    page.keyboard.press("End")
    expect(page.locator(".card strong")).to_have_text(["L1H2 · kv0", "L1H1 · kv0", "L0H0 · kv0"])
    page.get_by_role("button", name="Unpin L0H0").click()
    page.get_by_label("Sort").select_option("entropy")
    order = sorted(range(6), key=lambda n: view.scores["entropy"][n])
    expect(page.locator("[role=option] span")).to_have_text([view.heads[n].name for n in order])
    page.get_by_label("Sort").select_option("induction")
    order = sorted(range(6), key=lambda n: -view.scores["induction"][n])
    expect(page.locator("[role=option] span")).to_have_text([view.heads[n].name for n in order])
    page.get_by_label("Heads", exact=True).select_option("mean")
    expect(page.locator(".card strong").first).to_have_text("Mean of 6 heads")
    page.get_by_role("slider", name="Layer").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".card strong").first).to_have_text("Mean of 3 heads of layer 1")
    expect(page.locator("[role=option]")).to_have_count(3)
    assert visit.serious(page) == []


def test_weights_are_masked_weighed_combined_and_compared(visit: Visitor, tmp_path: Path) -> None:
    clean, corrupt, norms = (
        pattern(2, 3, 10, 10),
        pattern(2, 3, 10, 10, seed=1),
        np.random.default_rng(2).random((2, 3, 10)),
    )
    view = plot_attention(
        clean, WORDS, corrupt=corrupt, corrupt_tokens=[*WORDS[:3], " Tom", *WORDS[4:]], value_norms=norms
    )
    page = visit.open(view)

    def shown() -> Matrix:
        return np.array(json.loads(saved(page, "JSON", tmp_path))["heads"][0]["weights"])

    assert np.abs(shown() - clean[0, 0]).max() < 0.006
    page.get_by_role("button", name="Difference").click()
    assert np.abs(shown() - (clean - corrupt)[0, 0]).max() < 0.012
    assert "clean − corrupt" in saved(page, "SVG", tmp_path).decode()
    assert "John / Tom" in saved(page, "SVG", tmp_path).decode()
    page.get_by_role("button", name="Corrupt").click()
    assert np.abs(shown() - corrupt[0, 0]).max() < 0.006
    page.get_by_role("button", name="Clean").click()
    page.get_by_label("without first token").check()
    masked = clean[0, 0].copy()
    masked[:, 0] = 0
    masked[1:] /= masked[1:].sum(axis=1, keepdims=True)
    assert np.abs(shown() - masked)[1:].max() < 0.02
    page.get_by_label("without first token").uncheck()
    page.get_by_label("times value norm").check()
    weighed = clean[0, 0] * norms[0, 0]
    assert np.abs(shown() - weighed / weighed.sum(axis=1, keepdims=True)).max() < 0.02
    page.get_by_label("times value norm").uncheck()
    page.get_by_label("Heads", exact=True).select_option("max")
    assert np.abs(shown() - clean.max(axis=(0, 1))).max() < 0.006
    page.get_by_label("Heads", exact=True).select_option("mean")
    assert np.abs(shown() - clean.mean(axis=(0, 1))).max() < 0.006


def test_the_cursor_follows_the_mouse_locks_on_click_and_moves_by_keys(visit: Visitor) -> None:
    page = visit.open(heads(), state="v1.pins=5")
    canvas = page.locator(".card canvas").first
    place = dict(zip("xy", cell(page, 6, 2), strict=True))
    before = colour_at(page, *cell(page, 6, 4))
    canvas.hover(position=place)
    assert hint(page).startswith("from 6 “,”\nto 2 “ and”\n")
    canvas.click(position=place)
    page.mouse.move(5, 5)
    locked = [page.locator(".card canvas").nth(n).evaluate("(canvas) => canvas.toDataURL()") for n in (0, 1)]
    canvas.press("Escape")
    freed = [page.locator(".card canvas").nth(n).evaluate("(canvas) => canvas.toDataURL()") for n in (0, 1)]
    assert locked[0] != freed[0]  # the cross was there without the mouse,
    assert locked[1] != freed[1]  # on the pinned head, too
    assert colour_at(page, *cell(page, 6, 4)) == before
    canvas.focus()
    for key in ("Enter", "ArrowUp", "ArrowRight", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
    assert hint(page).startswith("from 8 “ gave”\nto 1 “ Mary”\n")
    assert "from 8 “ gave”" in page.locator(".aside").text_content()
    for _ in range(9):
        page.keyboard.press("ArrowRight")
    assert "to 8 “ gave”" in hint(page)  # not beyond itself
    page.keyboard.press("Escape")
    assert hint(page) == ""


def test_lines_and_text_show_where_a_token_looks(visit: Visitor) -> None:
    weights = pattern(2, 3, 10, 10)
    page = visit.open(heads())
    page.get_by_role("button", name="Lines").click()
    canvas = page.locator(".card canvas")
    box = canvas.bounding_box()
    canvas.hover(position={"x": 40, "y": 30 + 22 * 7.5})
    best = int(weights[0, 0, 7].argmax())
    assert hint(page).startswith("from 7 “ John”\n")
    assert f" to {best} “{WORDS[best]}”" in hint(page).splitlines()[1]
    canvas.hover(position={"x": box["width"] - 40, "y": 30 + 22 * 1.5})
    assert hint(page).startswith("to 1 “ Mary”\n")
    canvas.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowRight")
    assert hint(page).startswith("to ")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Text").click()
    words = page.locator(".running [data-at]")
    assert words.all_text_contents() == WORDS
    words.nth(7).click()
    assert words.nth(7).get_attribute("aria-current") == "true"
    share = float(np.sqrt(weights[0, 0, 7, best]))
    expected = [round(247 + (end - 247) * share) for end in (33, 102, 172)]
    found = words.nth(best).evaluate("(word) => getComputedStyle(word).backgroundColor.match(/\\d+/g).map(Number)")
    assert found == pytest.approx(expected, abs=2)
    words.nth(7).press("ArrowLeft")
    assert words.nth(6).get_attribute("aria-current") == "true"
    assert page.evaluate("document.activeElement.dataset.at") == "6"
    assert visit.serious(page) == []


def test_tokens_are_found_small_weights_hidden_and_sources_listed(visit: Visitor) -> None:
    page = visit.open(heads())
    page.get_by_label("Find token").fill("john")
    assert page.locator("output", has_text="2 of 10").is_visible()
    page.get_by_label("Find token").press("Enter")
    page.get_by_label("Find token").press("Enter")
    expect(page).to_have_url(re.compile(r"v1\.find=john&v1\.at=7\.0$"))
    page.locator(".card canvas").press("Escape")
    weights = pattern(2, 3, 10, 10)[0, 0]
    row, column = next((i, j) for i in range(4, 10) for j in range(i) if 0.02 < weights[i, j] < 0.2)
    x, y = cell(page, row, column)
    before = colour_at(page, x - 12, y - 12)
    page.get_by_label("Hide below").fill("0.3")
    assert colour_at(page, x - 12, y - 12) == [247, 247, 247] != before
    page.get_by_text("Where each token looks").click()
    rows = page.locator(".sources tbody tr")
    expect(rows).to_have_count(10)
    best = int(weights[9].argmax())
    assert rows.nth(9).locator("td").nth(2).text_content().startswith(f"{WORDS[best].strip()} ({best}) 0.")
    page.locator("[role=option]").nth(5).click()
    expect(page.locator(".sources caption")).to_have_text("L1H2")


# --- addresses, frames, hostility -----------------------------------------------------------------------------------


def test_an_address_opens_what_it_was_copied_from(visit: Visitor) -> None:
    page = visit.open(heads(corrupt=pattern(2, 3, 10, 10)))
    page.locator("[role=option]").nth(4).dblclick()
    page.get_by_role("button", name="Corrupt").click()
    page.get_by_role("slider", name="Layer").fill("0")
    page.get_by_label("without first token").check()
    page.get_by_role("button", name="Larger").click()
    page.locator(".card canvas").first.click(position=dict(zip("xy", cell(page, 5, 2), strict=True)))
    expect(page).to_have_url(re.compile(r"v1\.at=5\.2"))
    address = page.url.partition("#")[2]
    other = visit.open(heads(corrupt=pattern(2, 3, 10, 10)), state=address)
    expect(other.locator(".card strong")).to_have_text(["L0H1", "L1H1"])
    assert other.get_by_role("button", name="Corrupt").get_attribute("aria-pressed") == "true"
    assert other.get_by_label("without first token").is_checked()
    expect(other.locator("[role=option]")).to_have_count(3)
    settled(page)
    settled(other)
    pictures = [p.locator(".card canvas").first.evaluate("(canvas) => canvas.toDataURL()") for p in (page, other)]
    assert pictures[0] == pictures[1]


def test_an_address_that_makes_no_sense_is_as_good_as_none(visit: Visitor) -> None:
    state = (
        "v1.head=99&v1.layer=7&v1.mode=dance&v1.over=x&v1.pins=1.99.a&v1.at=-1.50&v1.sort=&v1.combine=%00&v1.zoom=1e9"
    )
    page = visit.open(heads(), state=state)
    expect(page.locator(".card strong")).to_have_text(["L0H0", "L0H1"])
    assert page.get_by_role("button", name="Matrix").get_attribute("aria-pressed") == "true"


def test_hostile_tokens_show_and_do_nothing_in_a_notebook_too(visit: Visitor) -> None:
    view = plot_attention(
        pattern(1, 2, 10, 10), HOSTILE, title=HOSTILE[0], corrupt=pattern(1, 2, 10, 10), corrupt_tokens=HOSTILE[::-1],
        scores={HOSTILE[0]: [[1, 2]]},
    )  # fmt: skip
    for within in ("file", "notebook"):
        page = visit.open(view, within=within, dark=within == "notebook")
        assert page.locator("img").count() == 0
        for mode in ("Lines", "Matrix", "Text"):
            page.get_by_role("button", name=mode).click()
        assert page.locator(".running [data-at]").nth(0).text_content() == HOSTILE[0]
        assert page.locator(".running [data-at]").nth(8).text_content() == "∅"
        page.get_by_role("button", name="Difference").click()
        page.get_by_text("Where each token looks").click()
        assert "x" * 22 in page.locator(".sources tbody tr").nth(7).text_content()
        page.get_by_label("Sort").select_option(HOSTILE[0])
        page.locator("[role=option]").nth(0).hover()
        assert HOSTILE[0] in hint(page)


def test_narrow_windows_have_no_scroll_bar_and_two_views_keep_apart(visit: Visitor) -> None:
    both = Document(title="Two", parts=(heads(), Paragraph("between"), plot_attention(pattern(5, 5))))
    page = visit.open(both, width=600, dark=True, state="v2.at=3.1&v1.mode=text")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("figure").count() == 2
    assert page.locator(".running").first.is_visible()
    assert page.locator("figure").nth(1).locator("canvas").first.is_visible()
    assert visit.serious(page) == []


def test_without_scripts_the_still_picture_stays(visit: Visitor, tmp_path: Path) -> None:
    path = heads().save(tmp_path / "still.html")
    context = visit.browser.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.locator(".still svg image.light").is_visible()
    assert not page.locator(".live").is_visible()


# --- sizes --------------------------------------------------------------------------------------------------------


def opened(visit: Visitor, view: AttentionView) -> tuple[Any, float]:
    """A page, and the seconds from its address to a view that answers, all of it drawn that is in sight."""
    document = view.page()
    path = document.save(visit.folder / "large.html")
    context = visit.browser.new_context(offline=True, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.on("pageerror", lambda error: visit.wrong.append(f"error: {error}"))
    began = time.perf_counter()
    page.goto(path.as_uri(), wait_until="commit")
    page.wait_for_selector("html[data-ready]", state="attached")
    return page, time.perf_counter() - began


def test_a_small_model_over_128_tokens_opens_at_once(visit: Visitor) -> None:
    page, seconds = opened(
        visit, plot_attention(pattern(12, 12, 128, 128, sharp=3), [f" t{n % 50}" for n in range(128)])
    )
    page.wait_for_selector("[role=option][data-drawn] >> nth=100", state="attached")
    assert seconds <= 3  # 1 s where nothing else runs
    began = time.perf_counter()
    page.locator("[role=option]").nth(77).click()
    page.wait_for_selector("canvas[data-head=L6H5]")
    assert time.perf_counter() - began <= 1


def test_more_than_256_tokens_are_drawn_as_far_as_they_are_seen(visit: Visitor) -> None:
    layer = pattern(9, 512, 512, sharp=3)
    page, seconds = opened(visit, plot_attention([layer] * 30, [f" t{n}" for n in range(512)], groups=3))
    assert seconds <= 10  # 2 s where nothing else runs
    expect(page.locator("[role=option]")).to_have_count(270)
    canvas = page.locator(".card canvas")
    size = canvas.evaluate("(canvas) => [canvas.clientWidth, canvas.clientHeight]")
    assert max(size) < 1000
    scroll = page.locator(".card .scroll")
    assert scroll.evaluate("(box) => box.scrollHeight") > 5000
    canvas.press("Enter")  # the last token is brought into sight
    assert scroll.evaluate("(box) => box.scrollTop") > 4000
    assert hint(page).startswith("from 511 “ t511”\nto 0 “ t0”")
    page.get_by_role("button", name="Text").click()
    expect(page.locator(".running [data-at]")).to_have_count(256)
    page.get_by_role("button", name="earlier tokens").click()
    expect(page.locator(".running [data-at]").first).to_have_attribute("data-at", "0")
