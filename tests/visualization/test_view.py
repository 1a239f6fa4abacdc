"""Views: saved as what their names say, still where no script runs, in notebooks in a frame of their own."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from browser import Visitor
from interp_toolkit.visualization.document import Document, Table
from interp_toolkit.visualization.heatmaps import Heatmap
from interp_toolkit.visualization.lines import LineChart, Series
from interp_toolkit.visualization.pictures import Box, Label, Picture
from interp_toolkit.visualization.view import View

EVIL = "</script><img src=x onerror=alert(1)>"
HEATMAP = Heatmap(
    values=[[0.5, -1.0]], rows=[EVIL], columns=["a", "b"], title=f"title {EVIL}", caption=f"caption {EVIL}"
)
LINES = LineChart(x=[0, 1], series=[Series(name=EVIL, y=[0.0, 1.0])], title="lines")


@dataclass(frozen=True, kw_only=True)
class Plain(View):
    """The least that a view is."""

    title: str = "plain"
    caption: str = "a caption"
    sent: Any = "data"

    @property
    def modules(self) -> Sequence[str]:
        return ("heatmap.js",)

    def data(self) -> dict[str, Any]:
        return {"sent": self.sent}

    def picture(self, *, titled: bool = True) -> Picture:
        labels = [Label(x=0, y=10, text=self.title if titled else "untitled")]
        return Picture(
            title=self.title, width=20, height=20, labels=labels, boxes=[Box(x=1, y=1, width=5, height=5, share=1.0)]
        )

    def table(self) -> Table:
        return Table(title=self.title, headers=["a"], rows=[["cell"]])


@pytest.mark.parametrize("view", [HEATMAP, LINES, Plain()], ids=["heat map", "lines", "plain"])
def test_a_view_is_saved_as_what_its_name_says(view: View, tmp_path: Path) -> None:
    assert view.save(tmp_path / "a.svg").read_text().startswith("<svg")
    assert view.save(tmp_path / "a.HTML").read_text().startswith("<!DOCTYPE html>")
    assert view.save(str(tmp_path / "a.png")).read_bytes().startswith(b"\x89PNG")
    assert view.save(tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(ValueError, match=r"a view is saved as \.html, \.svg, \.png or \.pdf, not '\.gif'"):
        view.save(tmp_path / "a.gif")
    assert not (tmp_path / "a.gif").exists()


def test_a_figure_has_its_still_picture_caption_table_and_data_and_nothing_of_them_is_markup() -> None:
    plain = replace(HEATMAP, rows=["row"], title="title", caption="caption").to_html()
    evil = HEATMAP.to_html()
    tags = re.compile(r"</?[a-zA-Z][\w-]*")
    assert tags.findall(evil) == tags.findall(plain)
    for part in (
        '<div class="live" hidden>',
        '<div class="still"><svg',
        "<figcaption>caption",
        "<details><summary>The numbers",
    ):
        assert part in plain


def test_without_scripts_the_still_picture_is_seen(visit: Visitor, tmp_path: Path) -> None:
    path = HEATMAP.save(tmp_path / "a.html")
    context = visit.browser.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.locator(".still svg").is_visible()
    assert not page.locator(".live").is_visible()
    page.get_by_text("The numbers").click()
    assert page.locator("table td").all_text_contents() == [EVIL, "0.50", "−1.00"]


def test_where_a_script_fails_its_picture_stays_and_the_others_come_to_life(visit: Visitor) -> None:
    page = visit.open(Document(title="t", parts=(Plain(), LINES)))
    first, second = page.locator("figure").all()
    assert first.locator(".still").is_visible()
    assert not first.locator(".live").is_visible()
    assert second.locator(".live .plot").is_visible()
    assert not second.locator(".still").is_visible()
    assert len(visit.wrong) == 1
    assert visit.wrong[0].startswith("error: ")
    visit.wrong.clear()  # it was to fail


def test_a_notebook_gets_a_frame_that_may_run_scripts_and_nothing_else_of_its_page() -> None:
    frame = HEATMAP._repr_html_()
    sandbox = re.search(r'<iframe sandbox="([^"]*)" srcdoc="([^"]*)"', frame)
    assert sandbox is not None
    assert sandbox[1] == "allow-scripts allow-downloads"  # never allow-same-origin: the frame would be the notebook
    assert html.unescape(sandbox[2]) == HEATMAP.page().to_html()


def test_a_view_is_shown_by_an_executed_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is a process of its own, as people have it, and does not load torch for a picture."""
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    code = (
        "from interp_toolkit.visualization.heatmaps import Heatmap\n"
        f"Heatmap(values=[[1.0]], rows=[{EVIL!r}], columns=['b'], title='from a notebook')"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    client.NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.outputs]
    assert [output.output_type for output in outputs] == ["execute_result"]
    page = outputs[0].data["text/html"]
    assert page.startswith("<iframe sandbox=")
    assert "from a notebook" in page
    assert EVIL not in page
