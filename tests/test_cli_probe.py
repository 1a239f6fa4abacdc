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


@pytest.mark.usefixtures("demo")
def test_what_cannot_be_probed_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = table(tmp_path / "cities.csv")
    for arguments, words in [
        ([str(tmp_path / "none.csv")], "there is no file .* made concepts are"),
        ([str(path), "--label", "truth"], "truth"),
        ([str(path), "--layers", "a-b"], "--layers 'a-b' is no range"),
        ([str(path), "--layers", "77"], "77"),
        ([str(path), "--kinds", "svm"], "kinds are .*logistic"),
        ([str(path), "-o", str(tmp_path / "no" / "page.html")], "there is no folder"),
    ]:
        assert main(["probe", "demo", *arguments]) == 2
        said = capsys.readouterr().err.strip()
        assert re.search(words, said), said
        assert len(said.splitlines()) == 1
