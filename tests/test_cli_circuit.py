"""`interp-toolkit circuit` on a tiny model with the demo's tokenizer."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import interp_toolkit.model
from interp_toolkit.circuits import Circuit
from interp_toolkit.circuits.scores import EdgeScores
from interp_toolkit.cli import main
from tiny import randomise

pytestmark = pytest.mark.filterwarnings("default::interp_toolkit.errors.InterpWarning")
CITIES = [("Rome", "Italy"), ("Paris", "France"), ("Berlin", "Germany"), ("Madrid", "Spain"), ("London", "England")]


@pytest.fixture(scope="module", autouse=True)
def _tiny(demo: Any) -> Iterator[None]:
    """Every model that is loaded is a tiny one."""
    config = LlamaConfig(
        vocab_size=len(demo[1]), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    model = LlamaForCausalLM(config).eval()
    randomise(model)
    with torch.no_grad():
        model.lm_head.weight.mul_(4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interp_toolkit.model, "load_model", lambda *_, **__: (model, demo[1]))
        yield


def rows() -> list[dict[str, str]]:
    """Pairs of prompts with answers."""
    return [
        {"clean": f"The city of {city} is in", "corrupt": f"The city of {other} is in", "answer": country, "foil": foil}
        for city, country in CITIES
        for other, foil in CITIES
        if other != city
    ][:12]


def written(path: Path, pairs: list[Any]) -> Path:
    """A file of prompts."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
        return path
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(pairs[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(pairs)
    return path


def test_a_task_becomes_tables_a_circuit_a_page_and_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = ["-o", "circuit.json", "--page", "circuit.html", "--scores", "scores.safetensors"]
    assert main(["circuit", "<b>tiny", "--task", "ioi", "-n", "24", "--edges", "30", "--steps", "2", *files]) == 0
    said = capsys.readouterr()
    assert re.search(r"the model does \d+ of 24 pairs right; only these are kept", said.err)
    circuit = Circuit.load("circuit.json")
    assert circuit.summary() in said.out
    assert (circuit.method, circuit.metric, circuit.ablation) == ("eap-ig", "logit_diff", "corrupt")
    edge = circuit.edges[0]
    assert re.search(rf"^{edge.source} +{edge.dest} ", said.out, flags=re.MULTILINE)
    assert re.search(r"^Faithfulness: \S+.* on \d+ prompts that it was not found on", said.out, re.M)
    assert re.search(r"^ *100% +\d+ +1\.000 +1\.000 +1\.000$", said.out, flags=re.MULTILINE)
    assert re.search(r"^CPR .*\nCMD .*\n\n\d+ s$", said.out, flags=re.MULTILINE)
    page = Path("circuit.html").read_text(encoding="utf-8")
    assert 'data-view="circuit.js"' in page
    assert "share of all edges" in page
    assert "<caption>Roles</caption>" in page
    assert edge.dest in page
    assert "<b>" not in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    scores = EdgeScores.load("scores.safetensors")
    assert scores.values[circuit.graph.edge_of(edge.name)] == pytest.approx(edge.score)


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("pairs.jsonl", ("clean", "corrupt", "answer", "foil")),
        ("pairs.tsv", ("clean", "corrupt", "answer")),
        ("pairs.csv", ("clean", "corrupt")),
    ],
)
def test_prompts_of_a_file(
    name: str, columns: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / name, [{column: row[column] for column in columns} for row in rows()])
    options = ["--method", "eap", "--threshold", "0.3", "--metric", "log_prob", "--no-roles", "--no-curve"]
    if columns == ("clean", "corrupt"):
        options += ["--ablation", "zero"]
    page = tmp_path / "page.html"
    assert main(["circuit", "tiny", "--prompts", str(path), *options, "--page", str(page)]) == 0
    said = capsys.readouterr().out
    assert "Found by eap on log_prob" in said
    assert ("answers are the tokens that move most" in said) == (columns == ("clean", "corrupt"))
    assert "CPR" not in said
    assert "share of all edges" not in page.read_text(encoding="utf-8")
    assert "<caption>Roles</caption>" not in page.read_text(encoding="utf-8")


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command is refused."""
    assert main(["circuit", "tiny", *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--task", "iot"], r"no task 'iot' \(did you mean 'ioi'\?\); there are country_capital, "),
        (["--task", "ioi", "--method", "eap-gi"], "no method 'eap-gi' .did you mean 'eap-ig'"),
        (["--task", "ioi", "--metric", "logitdiff"], "no metric 'logitdiff' .did you mean 'logit_diff'"),
        (["--task", "ioi", "-n", "3"], "-n is 4 or more, not 3"),
        (["--task", "ioi", "--threshold", "1"], "--threshold is between 0 and 1"),
        (["--task", "ioi", "--edges", "0"], "--edges is 1 or more, not 0"),
        (["--task", "ioi", "--steps", "0"], "--steps is 1 or more, not 0"),
        (["--task", "ioi", "--seed", "-1"], "--seed is 0 or more, not -1"),
        (["--task", "ioi", "-o", "no/c.json"], "-o no/c.json cannot be written: there is no folder no"),
        (["--task", "ioi", "--page", "."], "--page . cannot be written: it is a folder"),
        (["--task", "ioi", "--scores", "x", "--page", "x"], "--scores x is also the file of --page"),
        (["--prompts", "none.csv"], "--prompts none.csv cannot be read: No such file"),
        (["--prompts", "none.txt"], "is no .jsonl, .csv or .tsv file"),
        (["--prompts", "a.csv", "-n", "9"], "-n is for --task"),
        (["--prompts", "a.csv", "-o", "./a.csv"], "is also the file of --prompts"),
    ],
)
def test_wrong_options_are_said_before_a_model_is_loaded(
    options: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("interp_toolkit.cli.circuit.load", None)
    message = refused(options, capsys)
    assert re.search(words, message), message


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"clean,foil\nx,y\n", "row 1 has no corrupt; the columns are 'clean', 'foil'"),
        ("a.csv", b"clean\n", "row 1 has no corrupt"),
        ("a.csv", b"", "0 pairs are too few"),
        ("a.csv", b"clean,corrupt\nx,y,z\n", "row 1 has 3 cells, but there are 2 columns"),
        ("a.csv", b"clean,corrupt\n" + b"x,y\n" * 3, "3 pairs are too few"),
        ("a.csv", b"clean,corrupt\nx,\n", "corrupt of row 1 is a text, not ''"),
        ("a.csv", b"clean,corrupt\n\xff,y\n", "it is not UTF-8"),
        ("a.jsonl", b"{\n", "line 1 is no JSON"),
        ("a.jsonl", b"[1]\n", "line 1 is no JSON object"),
        ("a.jsonl", b'{"clean": "x", "corrupt": "y", "answer": 0.5}\n', "answer of row 1 is a text, a token id"),
        ("a.csv", b"clean,corrupt,foil\n" + b"x,y,z\n" * 4, "there is a foil, but no answer"),
        ("a.csv", b"clean,corrupt,answer\nx,y,\n" + b"x,y,z\n" * 4, "row 1 has no answer, but other rows"),
        ("a.csv", b"clean,corrupt\n" + b"x,x y z\n" * 4, "pair 0: .*tokens"),
    ],
)
def test_files_that_cannot_be_used_are_said_in_one_line(
    name: str, content: bytes, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    message = refused(["--prompts", str(path)], capsys)
    assert re.search(words, message), message


def test_a_task_that_the_model_does_right_too_rarely_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(20):  # of four random answers one is wrong before long
        arguments = ["circuit", "tiny", "--task", "ioi", "-n", "4", "--seed", str(seed), "--edges", "9", "--no-roles"]
        if main([*arguments, "--no-curve"]) == 2:
            break
    message = capsys.readouterr().err
    assert re.search(r"pairs of ioi are too few .* --all|no pair", message), message
