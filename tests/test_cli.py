"""The command line: every command, in process and as a process of its own, and what it says when used wrongly."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import interp_toolkit.model
from interp_toolkit import Activations, __version__, load_model
from interp_toolkit.circuits import Effects, PatchResult
from interp_toolkit.cli import main
from interp_toolkit.cli.console import table

WORDS = "The capital of France is"
EIFFEL, COLOSSEUM = "The Eiffel Tower is in", "The Colosseum is in"
PATCH = ["patch", "demo", "--clean", EIFFEL, "--corrupt", COLOSSEUM, "--target", "Paris"]

Result = tuple[int, str, str]
Command = Callable[..., Result]


@pytest.fixture
def cli(demo: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Runs a command in an empty folder; the demo model is loaded once for all of them."""

    def load(name: str, **options: Any) -> Any:
        plain = name == "demo" and not any(options.values())
        return demo if plain else load_model(name, **options)

    monkeypatch.setattr(interp_toolkit.model, "load_model", load)
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> Result:
        try:
            code = main(list(arguments))
        except SystemExit as end:  # argparse
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return command


def refused(result: Result, *words: str) -> None:
    code, out, err = result
    assert code == 2
    assert out == ""
    assert "Traceback" not in err
    assert err.startswith("interp-toolkit: ")
    assert len(err.strip().splitlines()) == 1, err
    for word in words:
        assert word in err


# --- what commands show -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shown(demo: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """`python -m interp_toolkit.cli demo`, once, as a process whose streams are no terminal."""
    del demo
    folder = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [sys.executable, "-m", "interp_toolkit.cli", "demo", "-o", "page.html"],
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "PYTHONIOENCODING": "utf-8"},
    )
    return done, folder


def test_demo_prints_tables_and_a_sentence_and_writes_its_page(
    shown: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    done, folder = shown
    assert done.returncode == 0, done.stderr
    assert re.search(r"' Paris' +0\.7\d", done.stdout)
    assert re.search(r"^L\d+H\d+ +[01]\.\d\d$", done.stdout, re.MULTILINE)
    for layer in range(30):
        assert len(re.findall(rf"^ *{layer}  ", done.stdout, re.MULTILINE)) == 2  # one table for each place
    assert re.search(r"Attention of layer \d+ .*restores \d+%", done.stdout)
    page = folder / "page.html"
    assert str(page) in done.stdout
    assert "</svg>" in page.read_text(encoding="utf-8")


def test_nothing_goes_to_stderr_where_it_is_no_terminal(shown: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    assert shown[0].stderr == ""


def test_inspect_shows_layout_sites_and_verification(cli: Command) -> None:
    code, out, err = cli("inspect", "demo")
    assert (code, err) == (0, "")
    for row in (r"family +llama", r"blocks +model\.layers \(30\)", r"heads +9", r"d_model +576"):
        assert re.search(row, out)
    for site in ("embed", "resid_mid", "pattern", "head_out", "mlp_post", "final_norm", "logits"):
        assert re.search(rf"^{site} .* yes$", out, re.MULTILINE)
    held, number = re.search(r"(\d+) of (\d+) checks hold", out).groups()
    assert held == number
    assert "padding on the left: works" in out


def test_cache_shows_tokens_and_shapes_and_saves(cli: Command, demo: Any, tmp_path: Path) -> None:
    code, out, err = cli("cache", "demo", WORDS, "--sites", "resid_post.6", "L5H1,pattern.3", "-o", "a.safetensors")
    assert (code, err) == (0, "")
    for token in ("'The'", "' capital'", "' of'", "' France'", "' is'"):
        assert token in out
    assert re.search(r"resid_post +6 +\(5, 576\)", out)
    assert re.search(r"pattern +3 +\(9, 5, 5\)", out)
    assert re.search(r"z +5 +\(5, 9, 64\)", out)
    assert set(load_file(tmp_path / "a.safetensors")) == {
        "resid_post.6",
        "z.5",
        "pattern.3",
        "tokens.ids",
        "tokens.mask",
    }
    back = Activations.load(tmp_path / "a.safetensors")
    assert back.tokens == ["The", " capital", " of", " France", " is"]
    model, tokenizer = demo
    with torch.no_grad():
        states = model(torch.tensor([tokenizer(WORDS)["input_ids"]]), output_hidden_states=True).hidden_states
    torch.testing.assert_close(back.residual_stream(6), states[7][0])


def test_cache_without_sites_reads_what_is_cheap(cli: Command) -> None:
    code, out, err = cli("cache", "demo", WORDS)
    assert (code, err) == (0, "")
    assert re.search(r"resid_post +0-29 +\(5, 576\)", out)
    assert re.search(r"logits +\(5, 49152\)", out)
    assert "pattern" not in out


def test_patch_prints_differences_and_saves(cli: Command, tmp_path: Path) -> None:
    code, out, err = cli(*PATCH, "--layer", "8", "--component", "mlp", "-o", "r.json")
    assert (code, err) == (0, "")
    result = PatchResult.load(tmp_path / "r.json")
    for value in (result.clean_logit_diff, result.corrupt_logit_diff, result.patched_logit_diff):
        assert f"{value:.3f}" in out
    assert f"change {result.logit_diff_change:+20.3f}".split()[1] in out
    assert result.summary() in out
    assert (result.site, result.target, result.foil) == ("mlp_out.8", " Paris", " Rome")
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["target"] == " Paris"


@pytest.mark.parametrize(
    ("more", "site", "positions"),
    [
        (["--component", "L5H1", "--position", "-1"], "z.5.1", (5,)),
        (["--component", "k", "--layer", "4", "--head", "2", "--span", "Eiffel Tower"], "k.4.2", (1, 2, 3)),
        (["--component", "neuron", "--layer", "-1", "--neuron", "7", "--position", "0"], "mlp_post.29.7", (0,)),
        (["--layer", "3", "--direction", "noise", "--foil", "Rome", "--span", "Colosseum"], "resid_pre.3", (1, 2, 3)),
    ],
)
def test_patch_takes_heads_neurons_and_positions(
    cli: Command, tmp_path: Path, more: list[str], site: str, positions: tuple[int, ...]
) -> None:
    code, _, err = cli(*PATCH, *more, "-o", "r.json")
    assert (code, err) == (0, "")
    result = PatchResult.load(tmp_path / "r.json")
    assert (result.site, result.positions) == (site, positions)
    assert result.direction == ("noise" if "noise" in more else "denoise")
    assert result.foil_from == "given" if "--foil" in more else "best" in result.foil_from


def test_patch_sweeps_print_a_table_and_save_pictures_and_numbers(cli: Command, tmp_path: Path) -> None:
    sweep = [*PATCH, "--foil", "Rome", "--component", "attn", "--layer", "23"]
    code, out, err = cli(*sweep, "--sweep", "layer,pos", "-o", "s.html")
    assert (code, err) == (0, "")
    assert "Patching attn_out of the clean run into the corrupt run: 6 cells, 1 prompt." in out
    row = next(line for line in out.splitlines() if line.strip().startswith("23 "))
    assert row.split()[-1] == "0.86"  # the last position of the only layer
    assert "2 iffel / osse" in out
    assert "iffel" in (tmp_path / "s.html").read_text(encoding="utf-8")
    code, out, err = cli(*sweep, "--sweep", "layer, pos", "--order", "gradient", "-o", "s.safetensors")
    assert (code, err) == (0, "")
    saved = Effects.load(tmp_path / "s.safetensors")
    assert saved.approximate
    assert saved.values.shape == (1, 1, 6)


def test_patch_says_what_a_sweep_costs_and_runs_nothing(cli: Command) -> None:
    code, out, err = cli(*PATCH, "--foil", "Rome", "--sweep", "layer,head", "--component", "head", "--explain")
    assert (code, err) == (0, "")
    assert "cells: 270 over 2 base runs" in out
    assert "Strongest" not in out


@pytest.mark.filterwarnings("always")
def test_a_warning_is_one_line_on_stderr(cli: Command) -> None:
    code, out, err = cli(
        "patch", "demo", "--clean", COLOSSEUM, "--corrupt", EIFFEL, "--target", "Paris", "--layer", "3"
    )
    assert code == 0
    assert "resid_pre.3" in out
    assert err.startswith("interp-toolkit: warning: the clean prompt does not favour")
    assert len(err.strip().splitlines()) == 1


# --- wrong use ----------------------------------------------------------------------------------------------------


def test_unknown_models_are_one_line(cli: Command, tmp_path: Path) -> None:
    refused(cli("inspect", str(tmp_path)), str(tmp_path))
    refused(cli("cache", "./nothing/here/at all", WORDS), "nothing/here")


@pytest.mark.parametrize(
    ("sites", "words"),
    [
        (["resid_pots"], ["did you mean 'resid_post'"]),
        (["resid_post.30"], ["0 to 29"]),
        (["L3H9"], ["0 to 8"]),
        ([""], ["--sites"]),
    ],
)
def test_unknown_sites_are_one_line(cli: Command, sites: list[str], words: list[str]) -> None:
    refused(cli("cache", "demo", WORDS, "--sites", *sites), *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*PATCH[:-1], "paris", "--layer", "8"], ["'paris' is not one token", "' par', 'is'"]),
        ([*PATCH[:-1], "", "--layer", "8"], ["empty"]),
        (PATCH, ["layer"]),
        ([*PATCH, "--layer", "8", "--component", "mpl"], ["did you mean 'mlp'"]),
        ([*PATCH, "--layer", "8", "--position", "6"], ["6 tokens"]),
        ([*PATCH, "--layer", "8", "--span", "London"], ["'London'"]),
        ([*PATCH, "--layer", "8", "--foil", "Paris"], ["same token"]),
        ([*PATCH, "--layer", "8", "--head", "1"], ["no heads"]),
        ([*PATCH, "--sweep", "layer,tokens"], ["'layer', 'pos'", "tokens"]),
        ([*PATCH, "--sweep", "layer,pos", "--metric", "loss"], ["logit_diff"]),
        ([*PATCH, "--sweep", "layer,pos", "--align", "left"], ["equal length"]),
        ([*PATCH, "--layer", "3", "--metric", "kl"], ["--sweep"]),
    ],
)
def test_patches_that_cannot_be_are_one_line(cli: Command, arguments: list[str], words: list[str]) -> None:
    refused(cli(*arguments), *words)


def test_prompts_of_unequal_length_are_shown_side_by_side(cli: Command) -> None:
    code, out, err = cli(
        *PATCH[:2], "--clean", EIFFEL + " the", "--corrupt", COLOSSEUM, "--target", "Paris", "--layer", "1"
    )
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    assert "' Tower'" in err
    assert "'osse'" in err
    assert "--align" in err  # the words of the command line, not of Python


@pytest.mark.parametrize("device", ["quantum", "cuda:99"])
def test_devices_that_are_not_there_are_one_line(cli: Command, device: str) -> None:
    refused(cli("cache", "demo", WORDS, "--device", device), device)


@pytest.mark.parametrize(
    "arguments", [["cache", "demo", WORDS, "--sites", "embed"], [*PATCH, "--layer", "8"]], ids=["cache", "patch"]
)
def test_a_folder_that_is_not_there_is_one_line(cli: Command, arguments: list[str]) -> None:
    code, _, err = cli(*arguments, "-o", "no folder/a")
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert "no folder/a" in err


@pytest.mark.parametrize(
    "arguments", [[], ["dance"], ["patch", "demo"], ["cache", "demo"], [*PATCH, "--direction", "up"]]
)
def test_wrong_use_is_two_and_says_what_is_missing(cli: Command, arguments: list[str]) -> None:
    code, out, err = cli(*arguments)
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    assert "usage: interp-toolkit" in err


def test_version_and_help(cli: Command) -> None:
    assert cli("--version")[:2] == (0, f"interp-toolkit {__version__}\n")
    for command in ("demo", "inspect", "cache", "patch"):
        assert command in cli("--help")[1]
        assert cli(command, "--help")[0] == 0


def test_an_interrupt_is_a_line_and_130(cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(interp_toolkit.model, "load_model", interrupt)
    assert cli("inspect", "demo") == (130, "", "interp-toolkit: interrupted\n")


def test_tables_line_up_and_numbers_stand_right() -> None:
    lines = table(["a", "number"], [("x", "1.5"), ("longer", "−10"), ("", "–")]).splitlines()
    assert lines == ["a       number", "------  ------", "x          1.5", "longer     −10", "             –"]
