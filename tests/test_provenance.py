"""What a model is called in results: never by where it lies on someone's disk."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from interp_toolkit.errors import FileFormatError
from interp_toolkit.model import layout_of
from interp_toolkit.provenance import Provenance, provenance_of, same_name
from tiny import tiny_model


def named(name: str) -> str:
    model = tiny_model("llama")
    model.config._name_or_path = name
    return provenance_of(model, layout_of(model)).model


def test_the_demo_model_goes_by_its_name(demo: Any) -> None:
    found = provenance_of(demo[0], layout_of(demo[0]))
    assert found.model == "SmolLM2-135M-Instruct"
    # A result that was saved with the whole path is read as one of that model.
    old = replace(found, model=str(demo[0].config._name_or_path))
    assert Path(old.model).is_absolute()
    assert Provenance.from_json(old.to_json()) == found


def test_a_folder_goes_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mine" / "small-model"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder.parent)
    for name in (str(folder), f"{folder}/", "small-model", "./small-model", "../mine/small-model", "/gone/small-model"):
        assert named(name) == "small-model", name
    monkeypatch.chdir(folder)
    assert named(".") == "small-model"


def test_what_is_no_folder_stays_as_it_is() -> None:
    assert named("someone/small-model") == "someone/small-model"
    assert named("gpt2") == "gpt2"
    assert named("") == "LlamaForCausalLM"


def test_a_folder_of_the_hubs_cache_goes_by_the_hubs_name() -> None:
    assert named("/root/hub/models--someone--small-model/snapshots/0123abcd") == "someone/small-model"


def test_paths_in_older_files_become_names() -> None:
    facts = {"revision": None, "model_type": "t", "layout": "l", "dtype": "float32", "versions": {}}
    for written, read in (
        ("/home/me/small-model", "small-model"),
        (r"C:\\models\\small-model", "small-model"),
        ("someone/small-model", "someone/small-model"),
        ("arrays", "arrays"),
    ):
        found = Provenance.from_json(json.dumps({"model": written, **facts}))
        assert found.model == read
        assert Provenance.from_json(found.to_json()) == found
        assert asdict(found)["layout"] == "l"
    for wrong in ("[]", "{}", "no JSON", json.dumps({"model": 5, **facts})):
        with pytest.raises(FileFormatError, match="does not say where a result comes from"):
            Provenance.from_json(wrong)


def test_a_folder_is_the_hubs_model_of_that_name() -> None:
    assert same_name("someone/small-model", "small-model")
    assert same_name("/data/small-model/", "small-model")
    assert not same_name("someone/small-model", "someone/large-model")
