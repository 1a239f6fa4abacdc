"""The pages of examples show the code that wrote them, and the pictures that they speak of."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
NAMES = sorted(path.stem for path in (EXAMPLES / "pages").glob("*.py") if path.stem != "__init__")
MODULES = {path.stem for path in EXAMPLES.glob("*.py")}


def parsed(path: Path) -> tuple[str, ast.Module]:
    text = path.read_text("utf-8")
    return text, ast.parse(text)


def test_each_example_has_its_page_and_make_runs_all() -> None:
    assert NAMES == ["elicitation", "factuality", "refusal", "sycophancy"]
    assert set(NAMES) < MODULES
    make = (ROOT / "Makefile").read_text("utf-8")
    ran = re.search(r"printf '%s\\n' ([\w ]+) \|.*\n.*examples/NAME\.py --output docs/examples", make)
    assert ran is not None
    assert set(ran[1].split()) == set(NAMES)
    assert {path.stem for path in (ROOT / "docs" / "examples").glob("*.md")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_code_on_a_page_is_that_of_its_script(name: str) -> None:
    page = (ROOT / "docs" / "examples" / f"{name}.md").read_text("utf-8")
    shown = re.findall(r"<summary>Code: (\w+)</summary>\n\n```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(shown) >= 5
    sources: dict[str, list[str]] = {}
    for module in {name, *(MODULES - set(NAMES))}:
        text, tree = parsed(EXAMPLES / f"{module}.py")
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                sources.setdefault(node.name, []).append(str(ast.get_source_segment(text, node)))
    for function, code in shown:
        assert any(source in code for source in sources[function]), f"{function} was changed since: run it again"


def run_time_imports(tree: ast.Module) -> Iterator[str]:
    """Modules that are imported outside of `if TYPE_CHECKING`, wherever that stands."""
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        for inner in ast.walk(node):
            if isinstance(inner, ast.ImportFrom):
                yield str(inner.module)
            elif isinstance(inner, ast.Import):
                yield from (alias.name for alias in inner.names)


@pytest.mark.parametrize("name", NAMES)
def test_words_are_kept_apart_from_the_experiment(name: str) -> None:
    imported = set(run_time_imports(parsed(EXAMPLES / "pages" / f"{name}.py")[1]))
    assert not imported & set(NAMES), "the script is __main__ when it runs, and would be there twice"
    ours = {module for module in imported if module.startswith("interp_toolkit")}
    assert ours <= {"interp_toolkit.visualization", "interp_toolkit.statistics"}, "a page calls no model"
    assert len(parsed(EXAMPLES / f"{name}.py")[0].splitlines()) <= 400, "an example is short"


@pytest.mark.parametrize("name", NAMES)
def test_help_shows_the_command_and_a_row_of_data(
    name: str, example: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        example(name).main(["--help"])
    said = capsys.readouterr().out
    assert f"python examples/{name}.py" in said
    assert re.search(r'\{"\w+": "', said)


@pytest.mark.parametrize("name", NAMES)
def test_every_picture_of_a_page_is_there_with_its_view_and_no_other(name: str) -> None:
    folder = ROOT / "docs" / "examples"
    page = (folder / f"{name}.md").read_text("utf-8")
    shown = set(re.findall(r"\]\(([\w-]+\.(?:svg|html))\)", page))
    assert f"{name}.svg" in shown
    assert shown == {path.name for path in folder.glob(f"{name}*") if path.suffix != ".md"}
    assert str(ROOT) not in page
