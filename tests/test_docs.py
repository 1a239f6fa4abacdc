"""The generated parts of the documentation are up to date."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree as ET

import pytest

from tiny import model_of

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "images"
PAGES = ROOT / "docs" / "pages"
VIEWS = {
    "attention": {"attention.js"},
    "circuit": {"circuit.js"},
    "distributions": {"distributions.js"},
    "patching": {"heatmap.js"},
    "probes": {"lines.js"},
    "report": {"attention.js", "circuit.js", "heatmap.js", "lines.js"},
}
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_families_is_what_verification_finds(
    generate: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The same models as in other tests, which need no second verification.
    monkeypatch.setattr(
        generate, "tiny_model", lambda name, *, attn_implementation: model_of(name, attn_implementation)
    )
    assert generate.families_page() == (ROOT / "docs" / "families.md").read_text(encoding="utf-8"), "make generated"


def test_there_are_six_pictures_with_a_page_each() -> None:
    assert {path.name for path in PICTURES.iterdir()} == {f"{name}.svg" for name in VIEWS}
    assert {path.name for path in PAGES.iterdir()} == {f"{name}.html" for name in VIEWS}
    assert sum(path.stat().st_size for path in PAGES.iterdir()) < 2e6


@pytest.mark.parametrize("name", VIEWS)
def test_a_still_picture_is_complete_in_itself_and_has_a_dark_form(name: str) -> None:
    text = (PICTURES / f"{name}.svg").read_text(encoding="utf-8")
    drawn = ET.fromstring(text)
    assert drawn.tag == f"{SVG}svg"
    assert drawn.get("aria-label")
    assert len(list(drawn.iter(f"{SVG}text"))) > 10
    assert "prefers-color-scheme: dark" in text
    assert set(re.findall(r"https?://[^\"']+", text)) == {"http://www.w3.org/2000/svg"}
    assert "/root/" not in text
    assert not re.search(r"<script|<foreignObject|@import|url\((?!#)", text)


@pytest.mark.parametrize("name", VIEWS)
def test_a_page_holds_its_views_and_asks_for_nothing(name: str) -> None:
    text = (PAGES / f"{name}.html").read_text(encoding="utf-8")
    assert set(re.findall(r'<figure data-view="([^"]+)"', text)) == VIEWS[name]
    script = re.search(r'<script type="module">(.*?)</script>', text, flags=re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:" in text
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL))
    assert "/root/" not in text


@pytest.mark.parametrize("name", ["attention", "patching"])
def test_a_still_picture_is_what_the_model_gives(generate: ModuleType, name: str, demo: tuple) -> None:
    made, _ = getattr(generate, name)(demo[0])
    kept = (PICTURES / f"{name}.svg").read_text(encoding="utf-8")
    assert words(made) == words(kept), "make generated"
    colours = [
        [[int(fill[n : n + 2], 16) for n in (1, 3, 5)] for fill in re.findall(r'fill="(#[0-9a-f]{6})"', text)]
        for text in (made, kept)
    ]
    assert len(colours[0]) == len(colours[1]) > 100
    assert all(abs(a - b) <= 8 for one, other in zip(*colours, strict=True) for a, b in zip(one, other, strict=True))


def words(picture: str) -> list[str | None]:
    """What is written in a picture, without its numbers: machines differ a little."""
    written = [text.text for text in ET.fromstring(picture).iter(f"{SVG}text")]
    return [text for text in written if text and not re.fullmatch(r"[−.\d]+", text)]
