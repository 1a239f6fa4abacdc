"""`interp-toolkit probe` on the demo model."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from interp_toolkit.cli import main
from interp_toolkit.probes import ProbeSweep, concept


def table(path: Path, rows: int = 96, **columns: str) -> Path:
    """A file of statements on cities."""
    data = concept("truth_cities", n=rows)
    names = {"text": "text", "label": "label", "group": "group"} | columns
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([names["text"], names["label"], names["group"]])
        writer.writerows(zip(data.texts, data.labels, data.groups or (), strict=True))
    return path


@pytest.mark.usefixtures("demo")
def test_a_file_becomes_a_table_a_page_and_a_saved_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = table(tmp_path / "cities.csv", text="statement", label="truth")
    options = ["--text", "statement", "--label", "truth", "--layers", "2,14", "--kinds", "logistic", "mean_difference"]
    done = main(["probe", "demo", str(path), *options, "--permutations", "19", "--save", "found.safetensors"])
    out = capsys.readouterr().out
    assert done == 0
    assert len(re.findall(r"^resid_post\.(2|14)", out, flags=re.MULTILINE)) == 4
    assert "a bag of words" in out
    assert "selectivity" in out
    page = (tmp_path / "probe.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert "resid_post.14" in page
    found = ProbeSweep.load(tmp_path / "found.safetensors")
    assert found.best.layer == 14
    assert found.best.accuracy > 0.8
    assert found.summary() in out


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command is refused."""
    assert main(["probe", "demo", *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.usefixtures("demo")
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("a-b", "--layers 'a-b' is no range"),
        ("10:5", "--layers '10:5' holds no layer, but the model has 30 layers: 0 to 29"),
        ("3,77", "--layers '3,77' names layer 77, but the model has 30 layers: 0 to 29"),
    ],
)
def test_layers_that_are_not_there_are_said(
    given: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = table(tmp_path / "cities.csv")
    assert re.search(words, said([str(path), "--layers", given], capsys))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--label", "truth"], "there is no column 'truth'.* 'text', 'label', 'group'"),
        (["--kinds", "svm"], "no kind 'svm'; kinds are logistic, "),
        (["--kinds", "lda,logistics"], r"no kind 'logistics' \(did you mean 'logistic'\?\)"),
        (["--kinds", ","], "no kind ''; kinds are"),
        (["--kinds", "contrast"], "named 'pair' or by --pair"),
        (["--positions", "span"], "named 'span' or by --span"),
        (["-o", "no/page.html"], "-o no/page.html cannot be written: there is no folder no"),
        (["--save", "no/found.safetensors"], "--save no/found.safetensors cannot be written: there is no folder no"),
        (["-o", "."], "it is a folder"),
        (["--save", "cities.csv"], "would write over the data"),
        (["-o", "./cities.csv"], "would write over the data"),
        (["--save", "probe.html"], "are the same file"),
        (["--seed", "-1"], "--seed is 0 or more, not -1"),
        (["--permutations", "-1"], "--permutations is 0 or more, not -1"),
    ],
)
def test_what_cannot_be_probed_is_said_in_one_line_before_a_model_is_loaded(
    options: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = table(tmp_path / "cities.csv")
    before = path.read_bytes()
    message = said([path.name, "--device", "nowhere", *options], capsys)
    assert re.search(words, message), message
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("none.csv", [], "there is no file 'none.csv'; made concepts are"),
        ("truth_citys", [], r"did you mean 'truth_cities'\?"),
        ("truth_cities", ["--label", "truth"], "--label truth names a column of a file"),
    ],
)
def test_a_name_that_is_neither_file_nor_concept_is_said(
    name: str, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert re.search(words, said([name, *options], capsys))


@pytest.mark.parametrize(
    ("labels", "options", "words"),
    [
        (["same"] * 12, [], "all 12 rows are 'same'"),
        ([f"{n}.5" for n in range(12)], ["--kinds", "logistic"], "such as 0.5, which only --kinds ridge predicts"),
        ([f"{n}.5" for n in range(12)], ["--balanced"], "--balanced is for classes, .* for classes write"),
    ],
)
def test_labels_that_do_not_go_with_the_options_are_said(
    labels: list[str], options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("text,label\n" + "".join(f"Text {n}.,{label}\n" for n, label in enumerate(labels)))
    message = said([str(path), *options], capsys)
    assert re.search(words, message), message


@pytest.mark.usefixtures("demo")
@pytest.mark.filterwarnings("default::interp_toolkit.errors.InterpWarning")
def test_a_column_of_numbers_is_predicted_and_asked_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [f"There are {'very ' * (n % 5)}many of number {n}.,{n % 5}.0" for n in range(40)]
    Path("counts.csv").write_text("text,label\n" + "\n".join(lines))
    assert main(["probe", "demo", "counts.csv", "--layers", "2", "--permutations", "19"]) == 0
    captured = capsys.readouterr()
    assert "ridge" in captured.out
    assert "R²" in captured.out
    assert "the labels are 5 different numbers" in captured.err


@pytest.mark.usefixtures("demo")
def test_hostile_texts_and_labels_go_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name, classes = "<b>&.csv", ("<script>alert(1)</script>", "عربي 🎉 \u202e" + "long " * 30)
    with Path(name).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows((f"<script>{n}\n{classes[1][:6]} {'x' * n}", classes[n % 2]) for n in range(40))
    assert main(["probe", "demo", name, "--layers", "2", "--positions", "mean", "--permutations", "0"]) == 0
    page = Path("probe.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert page.count("<script") == page.count('<script type="')
    assert "<b>" not in page
    assert "&lt;b&gt;&amp;" in page
