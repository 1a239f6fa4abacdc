"""What the README and the pages of the documentation show is executed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from interp_toolkit.cli import build_parser

ROOT = Path(__file__).resolve().parent.parent


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize("page", ["README.md", "docs/index.md", "docs/guide.md"])
def test_the_python_code_runs_as_printed(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    found = blocks(page, "python")
    assert found
    for code in found:
        exec(compile(code, page, "exec"), namespace)
    assert "model" in namespace


def test_the_numbers_promised_beside_the_code_hold(demo: tuple) -> None:
    from interp_toolkit import ActivationCache

    activations = ActivationCache(demo[0]).run("The capital of France is")
    assert activations.tokens == ["The", " capital", " of", " France", " is"]
    assert activations.residual_stream(layer=6).shape == (5, 576)
    assert activations.attention_pattern(layer=6, head=3).shape == (5, 5)


def test_the_commands_shown_are_commands() -> None:
    shown = [
        line
        for block in blocks("README.md", "bash")
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("interp-toolkit")
    ]
    assert len(shown) == 3
    for line in shown:
        build_parser().parse_args(shlex.split(line, comments=True)[1:])


def test_files_that_the_readme_links_to_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
