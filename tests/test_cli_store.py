"""The commands for activation stores, on the demo model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import interp_toolkit.model
from interp_toolkit.activations import ActivationStore
from interp_toolkit.cli import main

REVIEWS = [
    {"id": "a", "text": "A wonderful film, from its first minute to its last.", "label": "positive"},
    {"id": "b", "text": "Two hours that I will never get back.", "label": "negative"},
    {"id": "c", "text": "The actors do what they can.", "label": "positive"},
]
SITES = ["--sites", "resid_post.3,mlp_out.3", "L2H1"]


@pytest.fixture(scope="module", autouse=True)
def _loaded_once(demo: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interp_toolkit.model, "load_model", lambda *_, **__: demo)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stores")
    (folder / "corpus.jsonl").write_text("".join(json.dumps(r) + "\n" for r in REVIEWS), encoding="utf-8")
    store = ["-o", str(folder / "store"), "--store-dtype", "bfloat16"]
    assert main(["store", "extract", "demo", str(folder / "corpus.jsonl"), *SITES, *store]) == 0
    return folder


def test_a_dry_run_says_what_it_takes_and_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ["store", "extract", "demo", str(folder / "corpus.jsonl"), *SITES, "-o", str(folder / "new"), "--dry-run"]
    assert main(wanted) == 0
    said = capsys.readouterr().out
    assert "documents: 3" in said
    assert "to write: " in said
    assert "time: about " in said
    assert not (folder / "new").exists()


def test_info_says_what_a_store_holds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "info", str(folder / "store")]) == 0
    said = capsys.readouterr().out
    assert "z.2.1 [64], mlp_out.3 [576], resid_post.3 [576]" in said
    assert "of 3 documents" in said
    assert main(["store", "info", str(folder / "store"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["complete"] is True
    assert facts["columns"] == ["id", "label"]
    assert facts["digest"] == ActivationStore(folder / "store").digest


def test_verify_reads_every_byte_and_finds_a_changed_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "merge", str(folder / "copy"), str(folder / "store")]) == 0
    assert main(["store", "verify", str(folder / "copy")]) == 0
    assert "every byte is what was written" in capsys.readouterr().out
    file = next((folder / "copy/data/s001").iterdir())
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert main(["store", "verify", str(folder / "copy"), "--quick"]) == 0
    assert main(["store", "verify", str(folder / "copy")]) == 2
    assert "its content is not what was written" in capsys.readouterr().err


def test_rows_are_exported_by_label(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = folder / "rows.npz"
    where = ["--where", "label=negative", "--sites", "resid_post.3"]
    assert main(["store", "export", str(folder / "store"), str(output), *where]) == 0
    assert str(output) in capsys.readouterr().out
    with np.load(output, allow_pickle=False) as found:
        assert set(found["label"].tolist()) == {"negative"}
        assert set(found["document"].tolist()) == {1}
        assert found["resid_post.3"].shape[1] == 576


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["extract", "demo", "CORPUS", "--sites", "resid_post.4", "-o", "STORE"], "is a store of something else"),
        (["extract", "demo", "nowhere.jsonl", "--sites", "resid_post.4", "-o", "NEW"], "there is no file"),
        (["extract", "demo", "CORPUS", "--sites", "resid_pots.4", "-o", "NEW"], "did you mean"),
        (["extract", "demo", "CORPUS", "--sites", ",", "-o", "NEW"], "--sites names no site"),
        (["info", "NEW"], "there is nothing at"),
        (["export", "STORE", "x.csv"], "'parquet' or 'npz'"),
        (["export", "STORE", "x.npz", "--rows", "some"], "is no range"),
        (["export", "STORE", "x.npz", "--where", "label"], "is no condition"),
        (["export", "STORE", "x.npz", "--where", "mood=good"], "documents have no 'mood'"),
    ],
)
def test_wrong_use_is_an_error_that_says_why(
    folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"CORPUS": folder / "corpus.jsonl", "STORE": folder / "store", "NEW": folder / "none"}
    assert main(["store", *(str(places.get(a, a)) for a in arguments)]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "none").exists()
