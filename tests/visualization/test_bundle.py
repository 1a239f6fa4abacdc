"""Scripts of pages: each module once, in an order that works; numbers and texts that arrive whole and stay data."""

from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import pytest

from browser import Visitor
from interp_toolkit.visualization.bundle import asset, bundle, digest, packed, to_json
from interp_toolkit.visualization.document import Document, Paragraph
from interp_toolkit.visualization.heatmaps import Heatmap

HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    "]]>",
    "a\u2028b\u2029c",
    "nul\x00\x1b\x7f",
    "\u202eabc",
    "👨‍👩‍👧‍👦",
    "&amp;&#x3c;'\"\\",
    "",
]
SCRIPTS = sorted(
    f.name for f in (resources.files("interp_toolkit.visualization") / "assets").iterdir() if f.name.endswith(".js")
)
HEATMAP = Heatmap(values=[[0.5]], rows=["a"], columns=["b"], title="t")


def mounts() -> list[str]:
    """The files that bring a view to life."""
    return [name for name in SCRIPTS if re.search(r"^export (async )?function mount\(", asset(name), re.MULTILINE)]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_module_imports_and_exports_as_the_bundle_reads_it(name: str) -> None:
    source = asset(name)
    for line in re.findall(r"^[ \t]*(?:import\b|export\b).*$", source, re.MULTILINE):
        kinds = r'import \{ [\w, ]+ \} from "\./[\w-]+\.js";|export ((async )?function|const|class) \w+.*'
        assert re.fullmatch(kinds, line), line
    for names, other in re.findall(r'^import \{ ([^}]+) \} from "\./([\w-]+\.js)";$', source, re.MULTILINE):
        exported = re.findall(r"^export (?:(?:async )?function|const|class) (\w+)", asset(other), re.MULTILINE)
        assert {part.strip() for part in names.split(",")} <= set(exported), (other, names)
    assert not re.search(
        r"\b(innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval|fetch|XMLHttpRequest)\b", source
    )


def test_every_module_is_there_once_after_those_that_it_imports() -> None:
    whole = bundle(*mounts())
    order = re.findall(r'^modules\["([\w-]+\.js)"\] = ', whole, re.MULTILINE)
    assert len(order) == len(set(order))
    assert set(order) == set(SCRIPTS)
    for place, name in enumerate(order):
        for other in re.findall(r'from "\./([\w-]+\.js)";', asset(name)):
            assert order.index(other) < place, (name, other)


def test_a_view_named_twice_is_there_once_and_none_gives_no_script() -> None:
    assert bundle("heatmap.js", "heatmap.js").count('modules["heatmap.js"] = ') == 1
    assert bundle() == ""
    assert "<script" not in Document(title="t", parts=(Paragraph("x"),)).to_html()


def test_the_script_cannot_end_its_element() -> None:
    for name in mounts():
        assert not re.search(r"</script|<!--|<script", bundle(name), re.IGNORECASE), name


@pytest.mark.parametrize("text", HOSTILE)
def test_json_holds_any_text_and_no_markup(text: str) -> None:
    written = to_json({"a": [text], text: 1})
    assert json.loads(written) == {"a": [text], text: 1}
    assert not set("<>&\u2028\u2029") & set(written)
    assert html.unescape(written) == written


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_lacks_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json([value])


@pytest.mark.parametrize("dtype", ["float64", "int64", "bool", "complex64"])
def test_arrays_that_scripts_lack_are_refused(dtype: str) -> None:
    with pytest.raises(TypeError, match=f"an array of {dtype} cannot be packed"):
        packed(np.zeros(2, dtype=dtype))


@dataclass(frozen=True)
class Raw:
    """A part whose markup is not escaped, as no part of this library is."""

    markup: str
    modules: tuple[str, ...] = ()

    def to_html(self) -> str:
        return self.markup


def test_arrays_of_every_type_arrive_whole(visit: Visitor) -> None:
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "float32": np.array([[0.1, -np.inf, np.nan], [1e-40, 3e38, -0.0]], dtype=np.float32),
        "big-endian": np.array([1.5, -2.5], dtype=">f4"),
        "strided": np.arange(12, dtype=np.int16).reshape(3, 4)[:, ::2],
        "empty": np.zeros((0, 3), dtype=np.uint8),
        **{
            name: random.integers(np.iinfo(name).min, np.iinfo(name).max, (5, 7), dtype=name, endpoint=True)
            for name in ("uint8", "uint16", "int8", "int16", "int32")
        },
    }
    page = visit.open(Document(title="t", parts=(HEATMAP,)))
    # The page's own script keeps its functions to itself: the same text is run once more, as a debugger does
    script = (
        bundle("heatmap.js").rsplit('modules["common.js"].start', 1)[0] + "window.unpack = modules['common.js'].unpack;"
    )
    page.context.new_cdp_session(page).send("Runtime.evaluate", {"expression": f"(() => {{ {script} }})()"})
    for name, values in arrays.items():
        found = page.evaluate(
            "async (data) => { const a = await unpack(data); return [a.constructor.name, Array.from(a, String)]; }",
            packed(values),
        )
        kind = {"f": "Float32Array", "i": f"Int{8 * values.itemsize}Array", "u": f"Uint{8 * values.itemsize}Array"}
        assert found[0] == kind[values.dtype.kind], name
        back = np.array([float(text.replace("Infinity", "inf")) for text in found[1]])
        assert np.array_equal(back, values.ravel().astype(np.float64), equal_nan=True), name


def test_only_the_librarys_script_runs(visit: Visitor) -> None:
    evil = (
        "<script>document.title = 'taken';</script><script type='module'>document.title = 'taken';</script>"
        "<img src='x' onerror=\"document.title = 'taken'\"><p id='p' onclick=\"document.title = 'taken'\">p</p>"
    )
    page = visit.open(Document(title="mine", parts=(Raw(evil), HEATMAP)))
    page.locator("#p").click()
    assert page.title() == "mine"
    assert page.locator("figure[data-ready]").count() == 1
    refused = [said for said in visit.wrong if "Content Security Policy" in said]
    assert len(refused) >= 3
    assert not [said for said in visit.wrong if "request: http" in said or "dialog" in said]
    visit.wrong.clear()  # these complaints are what was wanted


def test_the_policy_names_the_digest_of_the_script_on_the_page() -> None:
    page = Document(title="t", parts=(HEATMAP,)).to_html()
    script = re.search(r'<script type="module">(.*?)</script>', page, re.DOTALL)
    assert script is not None
    assert f"script-src 'sha256-{digest(script[1])}'" in page
    assert page.count("script-src") == 1
