"""Pages: nothing of a model or user becomes markup, nothing is requested, everything shows."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from browser import Visitor
from interp_toolkit.visualization.bundle import digest
from interp_toolkit.visualization.document import Document, Paragraph, Table
from interp_toolkit.visualization.heatmaps import Heatmap

HOSTILE = {
    "script": "</script><img src=x onerror=alert(1)>",
    "comment": "<!--<script>",
    "title": "</title></style><script>alert(2)</script>",
    "attribute": '" onmouseover="alert(3)" \'',
    "link": "<a href=https://example.org>&copy;&#x3c;script&gt;",
    "cdata": "]]><svg onload=alert(4)>",
    "separator": "a\u2028b\u2029c",
    "nul": "a\x00b\x1b\x7f",
    "surrogate": "a\ud83db",
    "override": "abc\u202edef",
    "family": "👨‍👩‍👧‍👦",
    "white": " \n\t\r ",
}
EVIL = pytest.mark.parametrize("token", list(HOSTILE.values()), ids=list(HOSTILE))


def page_with(token: str) -> Document:
    return Document(
        title=f"title {token}",
        parts=(
            Paragraph(f"text {token}"),
            Table(title=f"caption {token}", headers=[f"head {token}", "n"], rows=[[token, "1"], ["x", token]]),
            Heatmap(
                values=[[0.5, -0.25], [float("nan"), 0.0]],
                rows=[token, f"row {token}"],
                columns=[token, f"column {token}"],
                title=f"picture {token}",
                caption=f"about {token}",
                column_name=f"name {token}",
            ),
        ),
    )


class Reader(HTMLParser):
    """What a browser's parser would make of a page: tags, attributes and text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.texts: list[str] = []
        self.comments: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    return reader


def visible(token: str) -> str:
    """How a token shows: line ends as signs, what no document may hold as the replacement character."""
    signs = {"\n": "⏎", "\t": "⇥", "\r": "␍", "\u202e": "⟨U+202E⟩", "\u2028": "⏎", "\u2029": "⏎"}
    for character, sign in signs.items():
        token = token.replace(character, sign)
    return re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]", "\ufffd", token)


@EVIL
def test_a_hostile_token_is_text_everywhere(token: str) -> None:
    plain, evil = read(page_with("token").to_html()), read(page_with(token).to_html())
    assert evil.tags == plain.tags
    assert [(t, n) for t, n, _ in evil.attributes] == [(t, n) for t, n, _ in plain.attributes]
    assert evil.comments == []
    whole = "".join(evil.texts)
    for part in ("title", "text", "caption", "head", "picture", "about", "row", "column"):
        assert f"{part} {visible(token)}" in whole, part


@EVIL
def test_a_page_can_be_written_and_read_back(token: str, tmp_path: Path) -> None:
    document = page_with(token)
    path = document.save(tmp_path / "page.html")
    assert path.read_bytes().decode("utf-8") == document.to_html()
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]", document.to_html())


@EVIL
def test_nothing_on_a_page_can_be_requested(token: str) -> None:
    whole = page_with(token).to_html()
    page = read(whole)
    script = whole[whole.index('<script type="module">') :].removeprefix('<script type="module">').split("</script>")[0]
    policies = [v for t, n, v in page.attributes if t == "meta" and n == "content" and "default-src" in (v or "")]
    assert len(policies) == 1
    assert "default-src 'none'" in str(policies[0])
    assert "http" not in str(policies[0])
    assert re.findall(r"script-src ([^;]*);", str(policies[0])) == [f"'sha256-{digest(script)}'"]
    forbidden = {"src", "href", "xlink:href", "action", "data", "poster", "srcset", "formaction", "background"}
    assert not [(t, n) for t, n, _ in page.attributes if n in forbidden or n.startswith("on")]
    assert page.tags.count("script") == 2  # the data of the picture, and what brings it to life
    assert not {"link", "iframe", "object", "embed", "base", "form", "img"} & set(page.tags)
    styles = re.findall(r"<style>(.*?)</style>", page_with(token).to_html(), re.DOTALL)
    assert styles
    assert not [s for s in styles if "url(" in s or "@import" in s or "http" in s]


def test_the_policy_stands_before_everything_that_it_guards() -> None:
    page = page_with("token").to_html()
    assert page.startswith("<!DOCTYPE html>")
    assert page.index("Content-Security-Policy") < page.index("<style>") < page.index("<body>")
    assert page.index('charset="utf-8"') < page.index("Content-Security-Policy")


@EVIL
def test_a_notebook_gets_a_sandboxed_frame_with_the_same_page(token: str) -> None:
    frame = page_with(token)._repr_html_()
    reader = read(frame)
    assert reader.tags == ["iframe"]
    attributes = {name: value for _, name, value in reader.attributes}
    assert attributes["sandbox"] == "allow-scripts allow-downloads"  # it has no origin, and reaches nothing
    assert attributes["title"] == f"title {visible(token)}"
    assert attributes["srcdoc"] == page_with(token).to_html()
    assert "src" not in attributes


def test_a_table_keeps_its_cells_apart_from_their_surroundings() -> None:
    table = Table(title="t", headers=["a"], rows=[["x\u202ey"], ["z"]]).to_html()
    assert "<td><bdi>x⟨U+202E⟩y</bdi></td>" in table
    assert table.count("<tr>") == 3
    assert '<th scope="col">a</th>' in table


def test_an_override_in_a_sentence_does_not_turn_what_follows() -> None:
    """Bidirectional overrides in running text are closed, isolated or shown as a sign."""
    for markup in (Paragraph("before \u202e after").to_html(), Document(title="a \u202e b", parts=()).to_html()):
        if "\u202e" in markup:
            assert re.search(r"<bdi>[^<]*\u202e|\u202e[^<]*\u202c", markup)


# --- in a browser -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_every_token_runs_nothing_and_asks_for_nothing(visit: Visitor, dark: bool) -> None:
    maps = page_with("token").parts[2]
    rows = list(HOSTILE.values())
    table = Table(title="tokens", headers=["token"], rows=[[token] for token in rows])
    everything = Document(title="".join(rows), parts=(Paragraph("".join(rows)), table, maps, *page_with(rows[0]).parts))
    page = visit.open(everything, dark=dark)
    shown = page.locator("table").first.locator("td bdi").all_text_contents()
    assert shown == [visible(token) for token in rows]
    page.mouse.move(300, 300)
    ink, paper = page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    bright = {name: sum(map(int, re.findall(r"\d+", value)[:3])) for name, value in (("ink", ink), ("paper", paper))}
    assert (bright["ink"] > bright["paper"]) == dark


OUTSIDE = """() => {
  const bad = [];
  for (const svg of document.querySelectorAll('svg')) {
    if (!svg.checkVisibility()) continue;
    const frame = svg.viewBox.baseVal;
    for (const text of svg.querySelectorAll('text')) {
      const box = text.getBBox();
      if (box.x < frame.x - 1 || box.x + box.width > frame.x + frame.width + 1 || box.y < -1 ||
          box.y + box.height > frame.height + 1)
        bad.push([text.firstChild.textContent.slice(0, 40), Math.round(box.x), Math.round(box.x + box.width)]);
    }
  }
  return bad;
}"""
OVERLAPPING = """() => {
  const bad = [];
  const texts = [...document.querySelectorAll('svg text')].filter(t => t.getBBox().width > 0);
  for (const a of texts) for (const b of texts) if (a !== b && a.compareDocumentPosition(b) & 4) {
    const p = a.getBBox(), q = b.getBBox();
    if (Math.min(p.x + p.width, q.x + q.width) - Math.max(p.x, q.x) > 2 &&
        Math.min(p.y + p.height, q.y + q.height) - Math.max(p.y, q.y) > 4)
      bad.push([a.firstChild.textContent, b.firstChild.textContent]);
  }
  return bad;
}"""
PICTURES = {
    "plain": Heatmap(
        values=[[0.1, 0.2]] * 2, rows=["resid", "attn"], columns=["0", "1"], title="t", column_name="layer"
    ),
    "one cell": Heatmap(values=[[1.0]], rows=["a"], columns=["b"], title="t", column_name="layer"),
    "wide": Heatmap(
        values=[[n / 30 for n in range(30)]],
        rows=["mlp"],
        columns=[str(n) for n in range(30)],
        title="t",
        column_name="layer",
    ),
    "tokens": Heatmap(
        values=[[0.1] * 8],
        rows=["mlp"],
        columns=["The", " Mary", "gave", "Whom", " Tower", "110", "Mom", " is"],
        title="t",
    ),
    "long title": Heatmap(values=[[0.1]], rows=["a"], columns=["b"], title="Mapping “WWW MMM” into “The Big Ben”" * 2),
    "long rows": Heatmap(values=[[0.1]], rows=["W" * 60], columns=["b"], title="t"),
    "wide characters": Heatmap(
        values=[[0.1]] * 2, rows=["東京都庁展望台入口案内所", "👨‍👩‍👧‍👦" * 3], columns=["京都大学"], title="東京" * 9
    ),
    "large numbers": Heatmap(values=[[-123456.0, 5.0]], rows=["a"], columns=["b", "c"], title="t"),
}


STILL = """() => document.querySelectorAll('.live').forEach(live => {
  live.replaceChildren();
  live.nextSibling.hidden = false;
})"""


@pytest.mark.parametrize("name", list(PICTURES))
def test_no_text_of_a_picture_is_cut_off_or_covers_another(visit: Visitor, name: str) -> None:
    page = visit.open(PICTURES[name], width=1000)
    for look in ("live", "still"):
        assert page.evaluate(OUTSIDE) == [], look
        assert page.evaluate(OVERLAPPING) == [], look
        page.evaluate(STILL)


def test_text_comes_back_from_its_markup() -> None:
    assert html.unescape(Paragraph("a < b & c > 'd' \"e\"").to_html()) == "<p>a < b & c > 'd' \"e\"</p>"
