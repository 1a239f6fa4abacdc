"""The pages of examples show the code that wrote them, and the pictures that they speak of."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(path.stem for path in (ROOT / "examples").glob("*.py") if path.stem != "example")


def test_each_example_has_its_page_and_make_runs_all() -> None:
    assert NAMES == ["elicitation", "factuality", "refusal", "sycophancy"]
    make = (ROOT / "Makefile").read_text("utf-8")
    ran = re.search(r"printf '%s\\n' ([\w ]+) \|.*\n.*examples/NAME\.py --output docs/examples", make)
    assert ran is not None
    assert set(ran[1].split()) == set(NAMES)
    assert {path.stem for path in (ROOT / "docs" / "examples").glob("*.md")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_code_on_a_page_is_that_of_its_script(name: str) -> None:
    page = (ROOT / "docs" / "examples" / f"{name}.md").read_text("utf-8")
    script = (ROOT / "examples" / f"{name}.py").read_text("utf-8")
    shown = re.findall(r"<summary>Code: (\w+)</summary>\n\n```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(shown) >= 5
    functions = {
        node.name: ast.get_source_segment(script, node)
        for node in ast.parse(script).body
        if isinstance(node, ast.FunctionDef)
    }
    for function, code in shown:
        source = functions[function]
        assert source is not None
        assert source.strip() in code, f"{function} was changed since: run the example again"


@pytest.mark.parametrize("name", NAMES)
def test_every_picture_of_a_page_is_there_with_its_view_and_no_other(name: str) -> None:
    folder = ROOT / "docs" / "examples"
    page = (folder / f"{name}.md").read_text("utf-8")
    shown = set(re.findall(r"\]\(([\w-]+\.(?:svg|html))\)", page))
    assert f"{name}.svg" in shown
    assert shown == {path.name for path in folder.glob(f"{name}*") if path.suffix != ".md"}
    assert str(ROOT) not in page
