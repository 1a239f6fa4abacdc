"""What the README and the pages of the documentation show is executed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from interp_toolkit.cli import build_parser

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ("README.md", "docs/views.md")


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/index.md",
        "docs/guide.md",
        "docs/tasks.md",
        "docs/store.md",
        pytest.param("docs/circuits.md", marks=pytest.mark.slow),  # the README finds and judges a circuit, too
        "docs/probes.md",
        "docs/lenses.md",
        "docs/steering.md",
        "docs/views.md",
    ],
)
@pytest.mark.usefixtures("one_demo")
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


@pytest.mark.usefixtures("one_demo")
def test_the_worked_example_says_what_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = "docs/eiffel.md"
    text = (ROOT / page).read_text(encoding="utf-8")
    found: dict[str, Any] = {}
    for code in blocks(page, "python"):
        exec(compile(code, page, "exec"), found)
    residual, attention, mlp = (found[name].effect for name in ("residual", "attention", "mlp"))
    claims = {
        "restores\n96% of the answer": residual[4, 2],
        "front of layer 23 (92%)": residual[23, 2],
        "nothing is left (−1%)": residual[24, 2],
        "37% in front of layer 23": residual[23, 5],
        "91% behind it": residual[24, 5],
        "its output alone restores 86%": attention[23, 5],
        "(66%, 37%, 33% and 26%)": mlp[0, 2],
        "Head 4 of layer 23 restores 55%": found["heads"].effect[23, 4],
        "hardly matters (4%)": found["where"].effect[0, 4],
        "share, restore 91%": found["what"].effect[0, 1],
        "restores 94% [91%, 97%]": found["many"].effect[23],
    }
    for words, value in claims.items():
        assert words in text
        number = re.search(r"(−?)(\d+)%", words[words.index("restores") + 8 :] if "\n" in words else words)
        assert number is not None
        assert abs(100 * float(value) - int(number[2]) * (-1 if number[1] else 1)) < 1.1, (
            words
        )  # machines differ a little
    assert [100 * float(mlp[layer, 2]) for layer in (0, 4, 1, 6)] == pytest.approx([66, 37, 33, 26], abs=1.1)


@pytest.mark.slow
@pytest.mark.usefixtures("one_demo")
def test_the_worked_example_of_probes_says_what_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = "docs/truth.md"
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    ran: dict[str, Any] = {}
    for code in blocks(page, "python"):
        exec(compile(code, page, "exec"), ran)
    found, matrix, moved = ran["found"], ran["matrix"], ran["moved"]
    assert "Validation chose layer 11" in text
    assert found.best.layer == 11
    measured = moved.estimate().mean[0, :, 0], moved.random().mean[:, 0]
    claims = {
        "better than chance (55% there)": found.score(8).accuracy,
        "on all of them (100%)": found.score(14).accuracy,
        "accuracy 0.93": found.best.accuracy,
        "AUROC 0.99": found.best.auroc,
        "is learned to 0.71": found.best.control,
        "the selectivity is only 0.21": found.best.selectivity,
        "has an AUROC of 0.02": matrix.auroc[0, 1],
        "is as good on these (0.99)": matrix.auroc[1, 1],
        "(cosine −0.94)": matrix.cosine[0, 1],
        "both are at chance (0.52": matrix.auroc[0, 2],
        "and 0.51)": matrix.auroc[0, 3],
        "rises by 1.02": measured[0][1],
        "falls by 0.52": -measured[0][0],
        "move it by 0.00": measured[1][1],
        "and 0.19": measured[1][0],
    }
    for words, value in claims.items():
        assert words in text
        number = re.search(r"(−?)(\d+(?:\.\d+)?)(%?)", words)
        assert number is not None
        said = float(number[2]) * (-1 if number[1] else 1) / (100 if number[3] else 1)
        assert float(value) == pytest.approx(said, abs=0.03), words  # machines differ a little
    assert found.passes_controls
    assert ran["probe"].evaluate(ran["eraser"](ran["activations"]), ran["cities"].labels) < 0.6


def test_the_commands_shown_are_commands() -> None:
    shown = [
        line
        for page in (
            "README.md",
            "docs/lenses.md",
            "docs/probes.md",
            "docs/steering.md",
            "docs/store.md",
            "docs/views.md",
        )
        for block in blocks(page, "bash")
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("interp-toolkit")
    ]
    assert len(shown) == 24
    for line in shown:
        build_parser().parse_args(shlex.split(line, comments=True)[1:])


@pytest.mark.parametrize("page", ["README.md", "docs/index.md", "docs/lenses.md", "docs/steering.md", "docs/views.md"])
def test_files_that_a_page_links_to_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"""(?:\]\(|(?:src|href)=")([^)#"]+)(?:#[^)"]*)?[)"]""", text)
    links = [link for link in found if "://" not in link]
    assert links
    for link in links:
        assert ((ROOT / page).parent / link).exists(), link


def test_the_readme_shows_three_of_the_pictures_and_the_page_on_views_all_six() -> None:
    shown = {page: set(re.findall(r"images/(\w+)\.svg", (ROOT / page).read_text("utf-8"))) for page in PICTURES}
    assert len(shown["README.md"]) >= 3
    assert shown["docs/views.md"] == {path.stem for path in (ROOT / "docs" / "images").iterdir()}
    assert len(shown["docs/views.md"]) == 6
