"""Heat maps: valid pictures of any labels, colours that mean the same both ways, missing values that look missing."""

from __future__ import annotations

import math
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from interp_toolkit.visualization import Heatmap

NAN, INF = float("nan"), float("inf")
SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    "]]>",
    "a\u2028b",
    "nul\x00\x0b\x1f",
    "\ud83d",
    "\ufffe\uffff",
    "\u202eabc",
    "👨‍👩‍👧‍👦",
    "&amp;'\"",
    "",
    "\n\t",
]


def drawn(values: list[list[float]], **more: object) -> ET.Element:
    return ET.fromstring(made(values, **more).to_svg())


def made(values: list[list[float]], **more: object) -> Heatmap:
    arguments = {
        "rows": [f"r{n}" for n in range(len(values))],
        "columns": [f"c{n}" for n in range(len(values[0]))],
        "title": "t",
        **more,
    }
    return Heatmap(values=values, **arguments)  # type: ignore[arg-type]


def cells(svg: ET.Element, kind: str = "light") -> list[ET.Element]:
    return [
        next(r for r in group.findall(f"{SVG}rect") if r.get("class") == kind)
        for group in svg.iter(f"{SVG}g")
        if group.get("class") == "cell"
    ]


def colours(values: list[float], kind: str = "light", **more: object) -> list[str]:
    return [str(rect.get("fill")) for rect in cells(drawn([values], **more), kind)]


def rgb(colour: str) -> tuple[int, ...]:
    assert re.fullmatch("#[0-9a-f]{6}", colour), colour
    return tuple(int(colour[n : n + 2], 16) for n in (1, 3, 5))


@pytest.mark.parametrize("token", HOSTILE)
def test_any_label_gives_valid_xml_with_the_label_in_it(token: str) -> None:
    svg = drawn(
        [[0.5, -1.0]],
        rows=[token],
        columns=[token, f"x{token}"],
        title=f"title {token}",
        column_name=token,
        caption=token,
    )
    assert svg.tag == f"{SVG}svg"
    assert {e.tag.removeprefix(SVG) for e in svg.iter()} <= {"svg", "style", "text", "title", "g", "rect"}
    assert not [n for e in svg.iter() for n in e.attrib if n.startswith("on") or "href" in n]
    shown = (
        re.sub("[\x00-\x08\x0b\x0e-\x1f\ud800-\udfff\ufffe\uffff]", "\ufffd", token)
        .replace("\u202e", "⟨U+202E⟩")
        .replace("\n", "⏎")
        .replace("\t", "⇥")
    )
    titles = [e.text or "" for e in svg.iter(f"{SVG}title")]
    assert shown in titles
    assert f"x{shown}" in titles
    assert svg.get("aria-label") == f"title {shown}"


def test_a_cell_says_its_row_column_and_number() -> None:
    svg = drawn([[0.25, -1.5]], rows=["attn"], columns=["3", "4"], column_name="layer")
    assert [g.find(f"{SVG}title").text for g in svg.iter(f"{SVG}g")] == [
        "attn, layer 3: 0.25",
        "attn, layer 4: −1.50",
    ]


@pytest.mark.parametrize("kind", ["light", "dark"])
def test_colours_are_symmetric_and_grow_with_magnitude(kind: str) -> None:
    steps = [n / 10 for n in range(11)]
    up, down = colours(steps, kind, limit=1.0), colours([-x for x in steps], kind, limit=1.0)
    assert up[0] == down[0]  # zero is neutral, also minus zero
    assert len(set(up)) == len(set(down)) == 11
    assert not set(up[1:]) & set(down[1:])

    def distance(colour: str) -> float:
        return math.dist(rgb(colour), rgb(up[0]))

    for scale in (up, down):
        reached = [distance(c) / distance(scale[-1]) for c in scale]
        assert reached == pytest.approx(steps, abs=0.02)
    blue, orange = rgb(up[-1]), rgb(down[-1])
    assert blue[2] > blue[0]
    assert orange[0] > orange[2]


def test_the_limit_is_the_largest_magnitude_unless_given() -> None:
    assert colours([2.0, -4.0]) == colours([0.5, -1.0], limit=1.0)
    assert colours([2.0, -4.0])[1] == colours([-7.0], limit=4.0)[0]  # beyond the limit is full
    assert made([[2.0, -4.0]]).full == 4.0
    assert made([[2.0, -4.0]], limit=1.0).full == 1.0


def test_the_scale_names_both_ends_and_runs_through_both_colours() -> None:
    svg = drawn([[0.5, -2.0]])
    texts = [e.text for e in svg.iter(f"{SVG}text")]
    assert "−2.00" in texts
    assert "2.00" in texts
    scale = [r for r in svg.findall(f"{SVG}rect") if r.get("class") == "light"]
    fills = [rgb(str(r.get("fill"))) for r in scale]
    assert len(fills) == len(set(fills)) > 20
    assert list(map(str, colours([-2.0, 2.0]))) == [str(scale[0].get("fill")), str(scale[-1].get("fill"))]


def test_missing_values_look_missing_and_do_not_count() -> None:
    svg = drawn([[NAN, 0.0, 0.5]])
    fills = [r.get("fill") for r in cells(svg)]
    assert len(set(fills)) == 3
    assert not re.fullmatch("#[0-9a-f]{6}", str(fills[0]))
    assert next(svg.iter(f"{SVG}title")).text != ""
    assert next(g.find(f"{SVG}title").text for g in svg.iter(f"{SVG}g")).endswith("–")
    assert made([[NAN, 0.5]]).full == 0.5
    assert "–" in made([[NAN]]).to_html()


@pytest.mark.parametrize("values", [[[0.0, 0.0]], [[NAN, NAN]], [[3.0, 3.0]], [[1e-300, -1e-300]], [[1e300, -1e300]]])
def test_constant_and_extreme_data_are_drawn(values: list[list[float]]) -> None:
    svg = drawn(values)
    assert len(cells(svg)) == 2
    assert "nan" not in made(values).to_svg().lower().replace("nanum", "")
    assert "inf" not in "".join(svg.itertext())


def test_infinite_values_are_not_shown_as_missing() -> None:
    texts = [g.find(f"{SVG}title").text for g in drawn([[INF, -INF, 1.0]]).iter(f"{SVG}g")]
    assert not texts[0].endswith("–")
    assert texts[0] != texts[1]


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (40, 30), (1, 200)])
def test_every_size_has_its_cells_inside_the_picture(rows: int, columns: int) -> None:
    svg = drawn([[(r - c) / 10 for c in range(columns)] for r in range(rows)])
    _, _, width, height = map(float, str(svg.get("viewBox")).split())
    found = cells(svg)
    assert len(found) == rows * columns
    places = set()
    for rect in found:
        x, y, w, h = (float(str(rect.get(n))) for n in ("x", "y", "width", "height"))
        assert 0 <= x <= x + w <= width
        assert 0 <= y <= y + h <= height
        places.add((x, y))
    assert len(places) == rows * columns


def test_a_picture_of_forty_by_thirty_is_no_burden() -> None:
    assert len(made([[0.123] * 30] * 40).to_html()) < 1_000_000


def test_long_labels_are_cut_in_sight_and_whole_on_hover() -> None:
    label = "x" * 500
    svg = drawn([[1.0]], rows=[label], columns=[label])
    assert max(len(e.text or "") for e in svg.iter(f"{SVG}text")) <= 24
    assert sum((e.text or "") == label for e in svg.iter(f"{SVG}title")) == 2
    assert float(str(svg.get("width"))) < 1000


def test_a_cut_keeps_characters_whole() -> None:
    """A family is one sign of seven code points: half of it would be another family."""
    svg = drawn([[1.0]], columns=["👨‍👩‍👧‍👦"], rows=["e\u0301" * 30])
    texts = [e.text or "" for e in svg.iter(f"{SVG}text")]
    for text in texts:
        whole = text.removesuffix("…")
        assert not whole.endswith("\u200d")
        assert "👨" not in whole or "👨‍👩‍👧‍👦" in whole
        assert "e" not in whole or whole.count("e") == whole.count("\u0301")


@pytest.mark.parametrize(
    ("values", "rows", "columns"),
    [
        ([[1.0, 2.0]], ["a"], ["x"]),
        ([[1.0, 2.0]], ["a", "b"], ["x", "y"]),
        ([[1.0, 2.0], [3.0]], ["a", "b"], ["x", "y"]),
        ([[1.0]], ["a"], []),
        ([], ["a"], ["x"]),
    ],
)
def test_labels_that_do_not_match_are_refused_with_both_sizes(
    values: list[list[float]], rows: list[str], columns: list[str]
) -> None:
    with pytest.raises(ValueError, match=r"as many labels|at least one") as caught:
        Heatmap(values=values, rows=rows, columns=columns, title="t")
    assert str(len(rows)) in str(caught.value)
    assert str(len(columns)) in str(caught.value)


def test_a_picture_of_nothing_is_refused_in_words_or_drawn() -> None:
    for values, rows in (([], []), ([[]], ["a"])):
        message = ""
        try:
            ET.fromstring(Heatmap(values=values, rows=rows, columns=[], title="t").to_svg())
        except ValueError as error:
            message = str(error)
        assert message == "" or "heat map" in message


def test_a_picture_is_saved_as_svg_or_page_and_nothing_else(tmp_path: Path) -> None:
    picture = made([[1.0, -0.5]], title="<title>")
    assert ET.parse(picture.save(tmp_path / "a.svg")).getroot().tag == f"{SVG}svg"
    page = picture.save(tmp_path / "a.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    assert "&lt;title&gt;" in page
    with pytest.raises(ValueError, match=r"\.svg or \.html, not '\.png'"):
        picture.save(tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_the_numbers_stand_in_a_table_too() -> None:
    page = made([[0.125, -2.0], [NAN, 3.0]], rows=["attn", "mlp"], columns=["0", "1"]).to_html()
    body = re.search(r"<tbody>(.*)</tbody>", page, re.DOTALL)
    assert body is not None
    rows = [re.findall(r"<bdi>(.*?)</bdi>", row) for row in body[1].split("</tr>") if row]
    assert rows == [["attn", "0.12", "−2.00"], ["mlp", "–", "3.00"]]


def test_small_numbers_do_not_all_become_zero() -> None:
    texts = [g.find(f"{SVG}title").text for g in drawn([[0.001, -0.004]]).iter(f"{SVG}g")]
    assert not [t for t in texts if t.endswith(("0.00", "−0.00"))]
