"""The report: every number is one that was measured, the page shows all of it, and what cannot be is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from browser import Visitor
from interp_toolkit.cli import main
from interp_toolkit.errors import AlignmentError
from interp_toolkit.report import Report, explain
from tiny import tiny_model

CLEAN, CORRUPT, ANSWERS = "The Eiffel Tower is in", "The Colosseum is in", (" Paris", " Rome")


@pytest.fixture(scope="module")
def report(demo: Any) -> Report:
    model, tokenizer = demo
    return explain(model, CLEAN, CORRUPT, ANSWERS, edges=60, heads=3, tokenizer=tokenizer)


def test_what_the_model_says_is_what_it_says(report: Report, demo: Any) -> None:
    model, tokenizer = demo
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer(CLEAN)["input_ids"]])).logits[0, -1]
    best = logits.softmax(-1).max(-1)
    assert report.clean.top[0][0] == tokenizer.decode(int(best.indices))
    assert report.clean.top[0][1] == pytest.approx(float(best.values), abs=1e-5)
    paris, rome = (tokenizer(answer)["input_ids"][-1] for answer in ANSWERS)
    assert report.clean.lens.difference is not None
    assert float(report.clean.lens.difference[-1, -1]) == pytest.approx(float(logits[paris] - logits[rome]), abs=1e-4)


def test_sentences_hold_numbers_that_were_measured(report: Report) -> None:
    words = report.summary()
    assert f"“{report.clean.top[0][0]}” ({report.clean.top[0][1]:.2f})" in words
    assert float(report.sweeps["resid"].effect[24:, -1].min()) >= 0.5
    assert "at “ in” (token 5) in front of layers 24 to 29" in words
    at = max(report.head_effects, key=lambda head: abs(report.head_effects[head]))
    assert f"L{at[0]}H{at[1]} ({report.head_effects[at]:+.0%})" in words
    assert report.circuit is not None
    assert f"{report.circuit.num_edges} of 70,651 edges" in words
    assert "on the pair that they were found on" in words


def test_attention_is_of_the_heads_with_the_largest_effects(report: Report) -> None:
    effect = report.heads.effect.abs()
    assert len(report.patterns) == 3
    least = min(float(effect[at]) for at in report.patterns)
    assert int((effect > least).sum()) == 2
    for clean, corrupt in report.patterns.values():
        assert clean.shape == corrupt.shape == (6, 6)


def test_what_weakens_it_is_said(report: Report) -> None:
    assert any("interval" in note for note in report.notes)
    page = report.page().to_html()
    for note in report.notes:
        assert note.split(":")[0] in page


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_comes_to_life(report: Report, visit: Visitor, dark: bool) -> None:
    page = visit.open(report.page(), dark=dark, width=600 if dark else 1280)
    views = page.locator("figure[data-view]")
    assert views.count() == page.locator("figure[data-ready]").count() == 6
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert [page.locator("h2").nth(n).inner_text() for n in range(2)] == ["The two prompts", "When it comes up"]
    if not dark:
        assert visit.serious(page) == []


def test_a_model_whose_edges_are_unknown_gets_everything_but_a_circuit(demo: Any) -> None:
    _, tokenizer = demo
    model = tiny_model("minicpm3")
    torch.manual_seed(0)
    found = explain(model, [3, 1, 4, 1, 5], [3, 1, 9, 1, 5], (7, 8), tokenizer=tokenizer)
    assert found.circuit is None
    assert any(note.startswith("No circuit was found") for note in found.notes)
    assert "The circuit" not in found.page().to_html()


def test_prompts_that_do_not_line_up_are_shown(demo: Any) -> None:
    model, tokenizer = demo
    with pytest.raises(AlignmentError, match="tokens"):
        explain(model, "The Eiffel Tower is in", "Rome is in", tokenizer=tokenizer)


@pytest.mark.slow
@pytest.mark.usefixtures("one_demo")
def test_the_command_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "report.html"
    told = ["--clean", CLEAN, "--corrupt", CORRUPT, "--target", "Paris", "--foil", "Rome"]
    assert main(["explain", "demo", *told, "--no-circuit", "-o", str(page)]) == 0
    printed = capsys.readouterr().out
    assert "the model says “ Paris”" in printed
    assert str(page.resolve()) in printed
    assert re.search(r"<title>[^<]*Paris[^<]*</title>", page.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "--clean and --corrupt prompts, or --task"),
        (["--task", "ioi", "--clean", "x", "--corrupt", "y"], "not both"),
        (["--task", "nothing"], "there is no task 'nothing'"),
        (["--task", "ioi", "--target", "x"], "a task brings its answers"),
        (["--clean", "a", "--clean", "b", "--corrupt", "c"], "each prompt needs its match"),
        (["--clean", "a", "--corrupt", "c", "--foil", "x"], "give that too"),
        (["--clean", "a", "--corrupt", "c", "--target", "x", "--target", "y"], "one for all, or one for each"),
        (["--clean", "a", "--corrupt", "c", "-o", "report.pdf"], "ends with .html"),
        (["--clean", "a", "--corrupt", "c", "-o", "nowhere/report.html"], "there is no folder"),
        (["--clean", "a", "--corrupt", "c", "--edges", "0"], "1 or more"),
    ],
)
def test_a_command_that_cannot_be_is_refused_before_anything_is_loaded(
    given: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", "no-such-model", *given]) != 0
    assert words in capsys.readouterr().err
