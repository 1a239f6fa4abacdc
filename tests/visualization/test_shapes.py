"""Shapes: the same in SVG and in a PNG, with colours that are told apart on light and on dark paper."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from interp_toolkit.visualization.bundle import asset
from interp_toolkit.visualization.pictures import Box, Label, Picture
from interp_toolkit.visualization.shapes import SERIES, Area, Curve, Dot, Line, Shape, tint

SVG = "{http://www.w3.org/2000/svg}"
EVIL = "</path><script>alert(1)</script>"


def picture(*shapes: Shape, **more: Any) -> Picture:
    return Picture(**{"title": "t", "width": 60, "height": 40, "labels": [], "shapes": shapes, **more})


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def luminance(colour: str) -> float:
    parts = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb(colour)]
    return float(np.dot(parts, [0.2126, 0.7152, 0.0722]))


def seen(colour: str, kind: str) -> np.ndarray[Any, Any]:
    """A colour as people without the cones for green or red see it (Machado et al. 2009), in linear light."""
    linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb(colour)]
    matrices = {
        "green": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
        "red": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    }
    return np.array(matrices[kind]) @ linear


@pytest.mark.parametrize(("dark", "paper"), [(False, "#ffffff"), (True, "#0d1117")])
def test_every_colour_of_a_series_stands_out_from_the_paper(dark: bool, paper: str) -> None:
    for n in range(len(SERIES)):
        light, deep = sorted((luminance(tint(n, dark=dark)), luminance(paper)), reverse=True)
        assert (light + 0.05) / (deep + 0.05) >= 3, n


@pytest.mark.parametrize("kind", ["green", "red"])
@pytest.mark.parametrize("dark", [False, True])
def test_the_first_colours_are_told_apart_by_all_kinds_of_colour_vision(kind: str, dark: bool) -> None:
    found = [seen(tint(n, dark=dark), kind) for n in range(4)]
    assert min(np.abs(a - b).max() for a, b in itertools.combinations(found, 2)) > 0.04


def test_scripts_have_the_same_palette() -> None:
    block = re.search(r"const SERIES = \[(.*?)\];", asset("common.js"), re.DOTALL)
    assert block is not None
    assert re.findall(r"#[0-9a-f]{6}", block[1]) == [colour for pair in SERIES for colour in pair]


def test_a_colour_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="no colour is called 'pink': name one of ink, soft"):
        tint("pink")


def test_shapes_stand_over_boxes_and_below_labels_in_their_order() -> None:
    shapes = [
        Line(points=[(0, 0), (9, 9)]),
        Dot(x=5, y=5),
        Area(points=[(0, 0), (9, 0), (9, 9)]),
        Curve(start=(0, 0), end=(9, 9)),
    ]
    svg = ET.fromstring(
        picture(
            *shapes,
            boxes=[Box(x=1, y=1, width=3, height=3, share=0.5, marked=True)],
            labels=[Label(x=1, y=9, text="a")],
        ).to_svg()
    )
    assert [e.tag.removeprefix(SVG) for e in svg] == [
        "style",
        "rect",
        "rect",
        "rect",
        "path",
        "circle",
        "path",
        "path",
        "text",
    ]


def test_words_of_shapes_are_text() -> None:
    words = (EVIL, "second")
    svg = ET.fromstring(
        picture(
            Line(points=[(0, 0), (9, 9)], words=words),
            Dot(x=5, y=5, words=words),
            Area(points=[(0, 0), (9, 0), (9, 9)], words=words),
            Curve(start=(0, 0), end=(9, 9), words=words),
        ).to_svg()
    )
    assert [e.text for e in svg.iter(f"{SVG}title")] == [f"{EVIL}\nsecond"] * 4
    assert not list(svg.iter(f"{SVG}script"))


def test_curves_have_the_colour_of_their_sign_and_weak_ones_are_pale() -> None:
    strong, weak, negative = (Curve(start=(0, 0), end=(9, 9), share=share) for share in (1, 0.1, -1))
    assert strong.opacity > weak.opacity > 0
    assert (strong.colour, negative.colour) == ("positive", "negative")
    assert strong.points == [(0, 0), (0, 4.5), (9, 4.5), (9, 9)]


def test_a_png_shows_shapes_where_the_svg_has_them(tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    drawn = picture(
        Area(points=[(0, 0), (20, 0), (20, 20), (0, 20)], colour=1, opacity=1),
        Line(points=[(30, 10), (60, 10)], colour=2, width=4),
        Line(points=[(0, 30), (60, 30)], colour="mark", width=4, dash=(10, 10)),
        Dot(x=45, y=20, radius=4, colour=3),
        Dot(x=10, y=10, radius=5, colour="ink", filled=False),
    )
    drawn.save(tmp_path / "a.png")
    found = image.imread(tmp_path / "a.png")

    def at(x: float, y: float) -> tuple[int, ...]:
        return tuple(round(255 * float(part)) for part in found[int(2 * y), int(2 * x), :3])

    assert at(2, 2) == rgb(tint(1))
    assert at(40, 10) == rgb(tint(2))
    assert at(45, 20) == rgb(tint(3))
    assert at(10, 10) == (255, 255, 255)
    assert sum(at(10, 5)) < 250
    assert [at(x, 30) == rgb(tint("mark")) for x in (5, 15, 25, 35)] == [True, False, True, False]


def test_a_picture_with_shapes_cannot_be_moved() -> None:
    with pytest.raises(ValueError, match="with shapes"):
        picture(Dot(x=1, y=1)).moved(1, 1)
    box = Box(x=1, y=1, width=3, height=3, share=0.5)
    assert [b.x for b in picture(boxes=[box]).moved(5, 0).boxes] == [6]
