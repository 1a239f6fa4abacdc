"""Heat maps: valid pictures of any labels, colours that mean the same both ways, missing values that look missing."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest

import interp_toolkit
from interp_toolkit.visualization import Heatmap, Heatmaps
from interp_toolkit.visualization.document import text_width
from interp_toolkit.visualization.pictures import Box, Label

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
        .replace("\u2028", "⏎")
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


def test_a_picture_is_saved_as_what_its_name_says_and_nothing_else(tmp_path: Path) -> None:
    picture = made([[1.0, -0.5]], title="<title>")
    assert ET.parse(picture.save(tmp_path / "a.svg")).getroot().tag == f"{SVG}svg"
    page = picture.save(tmp_path / "a.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    assert "&lt;title&gt;" in page
    with pytest.raises(ValueError, match=r"\.html, \.svg, \.png or \.pdf, not '\.gif'"):
        picture.save(tmp_path / "a.gif")
    assert not (tmp_path / "a.gif").exists()


def test_the_kind_of_file_may_be_written_large(tmp_path: Path) -> None:
    assert made([[1.0]]).save(tmp_path / "a.SVG").read_text(encoding="utf-8").startswith("<svg")


def test_the_numbers_stand_in_a_table_too() -> None:
    page = made([[0.125, -2.0], [NAN, 3.0]], rows=["attn", "mlp"], columns=["0", "1"]).to_html()
    body = re.search(r"<tbody>(.*)</tbody>", page, re.DOTALL)
    assert body is not None
    rows = [re.findall(r"<bdi>(.*?)</bdi>", row) for row in body[1].split("</tr>") if row]
    assert rows == [["attn", "0.12", "−2.00"], ["mlp", "–", "3.00"]]


def test_small_numbers_do_not_all_become_zero() -> None:
    texts = [g.find(f"{SVG}title").text for g in drawn([[0.001, -0.004]]).iter(f"{SVG}g")]
    assert not [t for t in texts if t.endswith(("0.00", "−0.00"))]


# --- names, notes and marks -----------------------------------------------------------------------------------------


def test_a_cell_says_what_its_row_is_and_its_note() -> None:
    svg = drawn(
        [[0.25, -1.5]],
        rows=[" Mary"],
        columns=["3", "4"],
        row_name="token",
        column_name="layer",
        notes=[["95% interval <0.1 to 0.4>", ""]],
    )
    assert [g.find(f"{SVG}title").text for g in svg.iter(f"{SVG}g")] == [
        "token  Mary, layer 3: 0.25\n95% interval <0.1 to 0.4>",
        "token  Mary, layer 4: −1.50",
    ]
    texts = [e.text for e in svg.iter(f"{SVG}text")]
    assert "token" in texts
    assert "layer" in texts


def test_notes_stand_in_the_table_too() -> None:
    page = made([[0.25, -1.5]], notes=[["0.1 to <0.4>", ""]], row_name="token").to_html()
    assert "<bdi>0.25 (0.1 to &lt;0.4&gt;)</bdi>" in page
    assert "<bdi>−1.50</bdi>" in page
    assert '<th scope="col">token</th>' in page


@pytest.mark.parametrize("token", HOSTILE)
def test_any_note_and_name_is_text(token: str) -> None:
    plain, evil = (drawn([[1.0, 2.0]], row_name=f"x{t}", notes=[[f"x{t}", t]]) for t in ("plain", token))
    assert [e.tag for e in evil.iter()] == [e.tag for e in plain.iter()]
    whole = "".join(evil.itertext())
    assert whole.count(token[:2] if token.isprintable() else "x") >= 2


def test_marked_cells_have_an_outline_over_everything_else() -> None:
    svg = drawn([[1.0, 2.0], [3.0, 4.0]], marked=[(0, 1), (1, 0)])
    parts = list(svg)
    outlines = [rect for rect in parts if rect.get("class") == "mark"]
    places = [[rect.get(n) for n in ("x", "y", "width", "height")] for rect in outlines]
    assert places == [[cells(svg)[n].get(k) for k in ("x", "y", "width", "height")] for n in (1, 2)]
    first, last = parts.index(outlines[0]), parts.index(outlines[-1])
    assert parts[first : last + 1] == outlines
    assert {part.tag.removeprefix(SVG) for part in parts[last + 1 :]} == {"text"}  # no box covers them
    assert "mark" not in [rect.get("class") for rect in drawn([[1.0]]).iter(f"{SVG}rect")]


@pytest.mark.parametrize("place", [(2, 0), (0, 3), (-1, 0), (0, -1)])
def test_a_mark_on_no_cell_is_refused(place: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"{re.escape(str(place))} is marked, but there are 2 rows and 3 columns"):
        made([[1.0, 2.0, 3.0]] * 2, marked=[(1, 2), place])


@pytest.mark.parametrize("notes", [[["a"]], [["a", "b"]], [["a", "b"], ["c"]], []])
def test_notes_that_do_not_match_are_refused(notes: list[list[str]]) -> None:
    with pytest.raises(ValueError, match="notes needs as many labels, not 2 and 2"):
        made([[1.0, 2.0]] * 2, notes=notes)


def test_a_page_says_its_title_once_and_a_part_of_a_page_says_its_own(tmp_path: Path) -> None:
    picture = made([[1.0]], title="only once")
    page = picture.save(tmp_path / "a.html").read_text(encoding="utf-8")
    body = page[page.index("<body>") : page.index("<details>")]
    assert re.findall(r">only once<", body) == [">only once<"]
    assert "<h1>only once</h1>" in body
    assert 'aria-label="only once"' in body
    part = picture.to_html()
    assert len(re.findall(r"<h\d>only once</h\d>", part)) == 1


# --- room -----------------------------------------------------------------------------------------------------------

SIZES = [(14, 30), (30, 9), (60, 32), (32, 60), (1, 1), (1, 200), (150, 1), (100, 100), (3, 12)]
LABELS = {
    "numbers": str,
    "tokens": lambda n: ["<|im_start|>", " Mary", "東京都庁", "W" * 30, ""][n % 5],
}


def frame(label: Label) -> tuple[float, float, float, float]:
    """Left, right, top and bottom, rather too large than too small."""
    size = {"title": 14.5, "ink": 12.0, "soft": 11.0}[label.style]
    width = text_width(label.text, size)
    left = label.x - {"start": 0.0, "middle": width / 2, "end": width}[label.anchor]
    return left, left + width, label.y - 0.75 * size, label.y + 0.2 * size


@pytest.mark.parametrize("names", list(LABELS))
@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_labels_have_room_and_do_not_cover_each_other(rows: int, columns: int, names: str) -> None:
    picture = Heatmap(
        values=[[0.5] * columns] * rows,
        rows=[LABELS[names](n) for n in range(rows)],
        columns=[LABELS[names](n) for n in range(columns)],
        title="A title of a certain length",
        row_name="token",
        column_name="layer",
    ).picture()
    frames = [frame(label) for label in picture.labels if label.text]
    for left, right, top, bottom in frames:
        assert 0 <= left <= right <= picture.width
        assert 0 <= top <= bottom <= picture.height
    for n, (left, right, top, bottom) in enumerate(frames):
        for other in frames[n + 1 :]:
            apart = right <= other[0] or other[1] <= left or bottom <= other[2] or other[3] <= top
            assert apart, (picture.labels[n], other)


@pytest.mark.parametrize(("rows", "columns"), [(14, 30), (30, 9), (60, 32), (32, 32)])
def test_usual_sizes_keep_every_label_and_fit_a_slide(rows: int, columns: int) -> None:
    picture = made([[0.5] * columns] * rows, columns=[str(n) for n in range(columns)]).picture()
    texts = [label.text for label in picture.labels]
    assert {f"r{n}" for n in range(rows)} | {str(n) for n in range(columns)} <= set(texts)
    assert picture.width < 1200
    assert picture.height < 1100


def test_labels_that_have_no_room_are_left_out_evenly_and_cells_say_them_still() -> None:
    svg = drawn([[0.5] * 100], columns=[str(n) for n in range(100)])
    shown = [e.text for e in svg.iter(f"{SVG}text") if (e.text or "").isdigit()]
    assert shown == [str(n) for n in range(0, 100, int(shown[1]))]
    assert 10 <= len(shown) <= 50
    assert sum(":" in (e.text or "") for e in svg.iter(f"{SVG}title")) == 100


# --- PNG and PDF ----------------------------------------------------------------------------------------------------


def pixels(path: Path) -> Any:
    return pytest.importorskip("matplotlib.image").imread(path)


def at(image: Any, x: float, y: float) -> tuple[int, ...]:
    """The colour of a place of a picture of two dots a pixel."""
    return tuple(round(255 * float(part)) for part in image[int(2 * y), int(2 * x), :3])


def middle(box: Box) -> tuple[float, float]:
    return box.x + box.width / 2, box.y + box.height / 2


@pytest.mark.parametrize(("rows", "columns"), [(14, 30), (60, 32), (2, 2)])
def test_a_png_has_the_size_and_the_colours_of_the_svg(rows: int, columns: int, tmp_path: Path) -> None:
    heatmap = made([[math.sin(r * columns + c) for c in range(columns)] for r in range(rows)])
    image = pixels(heatmap.save(tmp_path / "a.png"))
    svg = drawn(list(map(list, heatmap.values)))
    assert image.shape[:2] == tuple(2 * int(str(svg.get(n))) for n in ("height", "width"))
    found = [at(image, *middle(box)) for box in heatmap.picture().boxes]
    light = [rgb(str(rect.get("fill"))) for rect in svg.iter(f"{SVG}rect") if rect.get("class") == "light"]
    assert found == light
    assert len(set(found)) > 3


def test_a_missing_value_is_crossed_out_and_a_marked_one_outlined_in_a_png(tmp_path: Path) -> None:
    heatmap = made([[NAN, 0.0, 0.0]], marked=[(0, 2)])
    image = pixels(heatmap.save(tmp_path / "a.png"))
    missing, plain, marked = heatmap.picture().boxes[:3]
    x, y = middle(missing)
    assert sum(at(image, x, y)) < 700  # where the strokes cross
    assert at(image, x, missing.y + 2) == (255, 255, 255)  # and nothing beside them
    assert sum(at(image, marked.x, marked.y + marked.height / 2)) < 150
    assert sum(at(image, plain.x + 1, plain.y + plain.height / 2)) > 700


@pytest.mark.parametrize("kind", ["png", "pdf"])
@pytest.mark.parametrize(
    "token", [*HOSTILE, "$", "$$", "$\\frac$", "\\alpha", "a_{", "東京", "مرحبا", "👍" * 40, "\x7f\x9f"]
)
def test_any_label_can_be_drawn(token: str, kind: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    heatmap = made([[1.0]], rows=[token], columns=[token], title=token, row_name=token, column_name=token)
    path = heatmap.save(tmp_path / f"a.{kind}")
    assert path.read_bytes().startswith({"png": b"\x89PNG", "pdf": b"%PDF"}[kind])


def test_no_text_of_a_png_is_cut_off(tmp_path: Path) -> None:
    token = "W" * 60
    heatmap = made([[-123456.0]], rows=[token], columns=[token], title=token, row_name=token, column_name=token)
    image = pixels(heatmap.save(tmp_path / "a.png"))
    for edge in (image[0], image[-1], image[:, 0], image[:, -1]):
        assert float(edge.min()) == 1.0
    assert float(image.min()) < 0.3  # something is written


def test_every_label_is_seen_in_a_png(tmp_path: Path) -> None:
    heatmap = made([[0.0] * 32] * 60, rows=["token"] * 60, columns=[str(n) for n in range(32)], title="")
    image = pixels(heatmap.save(tmp_path / "a.png"))
    for label in heatmap.picture().labels:
        left, right, top, bottom = (2 * round(edge) for edge in frame(label))
        darkest = float(image[max(top, 0) : bottom, max(left, 0) : right].min()) if label.text else 0.0
        assert darkest < 0.6, label


@pytest.mark.parametrize("kind", ["png", "pdf"])
def test_a_users_settings_of_matplotlib_change_nothing(kind: str, tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    first = made([[1.0, NAN]]).save(tmp_path / f"a.{kind}").read_bytes()
    settings = {"text.usetex": True, "savefig.bbox": "tight", "savefig.transparent": True, "savefig.dpi": 30.0}
    with matplotlib.rc_context({**settings, "font.family": "serif", "figure.constrained_layout.use": True}):
        again = made([[1.0, NAN]]).save(tmp_path / f"b.{kind}").read_bytes()
    assert again == first


def test_drawing_touches_no_state_of_matplotlib_and_warns_of_nothing(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    code = (
        "import sys, matplotlib\n"
        "from interp_toolkit.visualization import Heatmap\n"
        "state = lambda: {k: matplotlib.rcParams[k] for k in matplotlib.rcParams if k != 'backend'}\n"
        "before = state()\n"
        "Heatmap(values=[[1.0]], rows=['👍'], columns=['b'], title='t').save(sys.argv[1])\n"
        "assert state() == before\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"  # which would choose a backend
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(interp_toolkit.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tmp_path / "a.png")],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert "Glyph" not in done.stderr
    assert (tmp_path / "a.png").exists()


def test_without_matplotlib_a_png_is_an_error_that_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(
        ImportError, match=r"a \.png picture needs matplotlib: pip install \"interpretability-toolkit\[viz\]"
    ):
        made([[1.0]]).save(tmp_path / "a.png")
    assert made([[1.0]]).save(tmp_path / "a.svg").exists()


def test_a_still_of_many_cells_shows_them_also_beside_others() -> None:
    many = Heatmap(values=np.eye(80), rows=[str(n) for n in range(80)], columns=[str(n) for n in range(80)], title="t")
    assert many.to_svg().count("<image") == 2  # light and dark
    assert Heatmaps(panels=[many, many], title="two").to_svg().count("<image") == 4
