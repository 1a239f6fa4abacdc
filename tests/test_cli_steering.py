"""`interp-toolkit lens`, `steer`, `steer-sweep` and `ablate-direction` on the demo model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import interp_toolkit.model
from interp_toolkit.cli import main
from interp_toolkit.lenses import direct_logit_attribution, logit_lens
from interp_toolkit.steering import (
    Question,
    SteeringVector,
    Trials,
    ab_questions,
    first_token,
    steer,
    steering_sweep,
    steering_vector,
)

FRANCE = "The capital of France is"
GOOD = ["I love this wonderful film", "She was delighted and glad"]
BAD = ["I hate this terrible film", "He was furious and upset"]

Result = tuple[int, str, str]
Command = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where commands run, with texts to make a direction from."""
    (tmp_path / "good.txt").write_text("\n".join([*GOOD, "", ""]), encoding="utf-8")
    (tmp_path / "bad.txt").write_text("\r\n".join(BAD), encoding="utf-8-sig")
    (tmp_path / "one.txt").write_text(BAD[0], encoding="utf-8")
    (tmp_path / "empty.txt").write_text(" \n\n", encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def unloaded(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command that must not load a model."""
    del folder

    def load(*_: Any, **__: Any) -> Any:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(interp_toolkit.model, "load_model", load)
    return lambda *arguments: _run(capsys, arguments)


@pytest.fixture
def cli(demo: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command; the demo model is loaded once for all of them."""
    del folder
    monkeypatch.setattr(interp_toolkit.model, "load_model", lambda *_, **__: demo)
    return lambda *arguments: _run(capsys, arguments)


def _run(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> Result:
    code = main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def refused(result: Result, *words: str) -> None:
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.startswith("interp-toolkit: ")
    assert len(err.strip().splitlines()) == 1, err
    for word in words:
        assert word in err


def written(demo: Any, ids: list[int], new: int) -> str:
    """What the model writes, the plain way."""
    model, tokenizer = demo
    found = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=new)
    return repr(tokenizer.decode(found[0, len(ids) :], skip_special_tokens=True))


def row(out: str, name: str) -> str:
    """The row of a table that begins with a name."""
    return next(line for line in out.splitlines() if line.startswith(name + "  "))


@pytest.fixture(scope="module")
def vector(demo: Any) -> SteeringVector:
    """A direction at two layers."""
    model, tokenizer = demo
    return steering_vector(model, GOOD, BAD, layers=[9, 20], tokenizer=tokenizer)


# --- lens ---------------------------------------------------------------------------------------------------------


def test_lens_shows_the_best_token_of_every_depth_and_writes_a_page(cli: Command, demo: Any, folder: Path) -> None:
    code, out, err = cli("lens", "demo", FRANCE, "--target", "Paris", "--foil", "Rome", "-o", "lens.html")
    assert (code, err) == (0, "")
    found = logit_lens(demo[0], FRANCE, ("Paris", "Rome"), positions=-1, tokenizer=demo[1])
    assert found.difference is not None
    for n, depth in enumerate(found.depths):
        cells = row(out, depth)
        assert repr(found.top_tokens[n][0][0]) in cells
        assert f"{float(found.difference[n, 0]):z.2f}" in cells
    assert row(out, "29").split()[-1] == "0"  # the rank of Paris
    assert found.summary() in out
    page = (folder / "lens.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert " capital" in page  # every position is on the page


def test_lens_reads_the_position_that_was_asked_for(cli: Command, folder: Path) -> None:
    code, out, err = cli("lens", "demo", FRANCE, "--position", "1", "--top", "1", "-o", "lens.svg")
    assert (code, err) == (0, "")
    assert "Behind ' capital' the model says ' of'" in out
    assert "' city'" not in row(out, "29")
    assert (folder / "lens.svg").read_text(encoding="utf-8").startswith("<svg")
    refused(cli("lens", "demo", FRANCE, "--position", "5"), "5 tokens")
    refused(cli("lens", "demo", FRANCE, "--target", "paris"), "'paris' is not one token")


def test_lens_parts_a_logit_into_what_it_is_the_sum_of(cli: Command, demo: Any, folder: Path) -> None:
    given = ["--kind", "attribution", "--by", "sublayer", "--target", "Paris", "--foil", "Rome", "--top", "4"]
    code, out, err = cli("lens", "demo", FRANCE, *given, "-o", "parts.html")
    assert (code, err) == (0, "")
    found = direct_logit_attribution(demo[0], FRANCE, ("Paris", "Rome"), by="sublayer", tokenizer=demo[1])
    rows = out.split("\n\n")[0].splitlines()[2:]
    assert [line.split()[0] for line in rows[:4]] == [found.names[n] for n in found.order()[:4]]
    *parts, total = (float(line.split()[-1]) for line in rows)
    assert len(parts) == 5  # the others together are one
    assert sum(parts) == pytest.approx(total, abs=1e-3)
    assert total == pytest.approx(float(found.logit[-1]), abs=1e-3)
    assert "<svg" in (folder / "parts.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([" "], "TEXT is empty"),
        ([FRANCE, "--foil", "Rome"], "--foil is what a --target is compared with"),
        ([FRANCE, "--target", ""], "--target is empty"),
        ([FRANCE, "--target", "Rome", "--foil", " Rome"], "nothing is compared"),
        ([FRANCE, "--by", "head"], "--kind attribution"),
        ([FRANCE, "--top", "0"], "--top is 1 or more, not 0"),
        ([FRANCE, "-o", "lens.txt"], "ends with .html or .svg"),
        ([FRANCE, "-o", "nowhere/lens.html"], "there is no folder nowhere"),
    ],
)
def test_a_lens_that_cannot_be_is_one_line_before_a_model_is_loaded(
    unloaded: Command, arguments: list[str], words: str
) -> None:
    refused(unloaded("lens", "demo", *arguments), words)


# --- steer --------------------------------------------------------------------------------------------------------

CONTRAST = ["--positive", "good.txt", "--negative", "bad.txt"]
FILM = "I think that this film is"


def test_steer_writes_with_each_coefficient_and_saves_its_vector(
    cli: Command, demo: Any, vector: SteeringVector, folder: Path
) -> None:
    more = ["--layers", "9,20", "--coefficient", "-0.5", "0.3", "--new-tokens", "5"]
    code, out, err = cli("steer", "demo", FILM, *CONTRAST, *more, "--save", "v.safetensors", "-o", "page.html")
    assert (code, err) == (0, "")
    saved = SteeringVector.load(folder / "v.safetensors")
    torch.testing.assert_close(saved.directions, vector.directions)
    assert (saved.layers, saved.notes) == ((9, 20), "good.txt against bad.txt")
    assert saved.summary() in out
    ids = demo[1](FILM)["input_ids"]
    plain = written(demo, ids, 5)
    assert plain in row(out, "plain")
    for coefficient in (-0.5, 0.3):
        with steer(demo[0], vector, coefficient):
            steered = written(demo, ids, 5)
        assert steered in row(out, f"{coefficient:+g}")
        assert coefficient > 0 or steered != plain
    page = (folder / "page.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert "+0.3" in page


def test_nats_a_token_are_those_of_the_plain_model(cli: Command, demo: Any) -> None:
    _, out, _ = cli("steer", "demo", FILM, *CONTRAST, "--coefficient", "-0.5", "--new-tokens", "4")
    model, tokenizer = demo
    ids = torch.tensor([tokenizer(FILM)["input_ids"]])
    whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4)
    with torch.no_grad():
        labels = torch.where(torch.arange(whole.shape[1]) < ids.shape[1], -100, whole)
        loss = float(model(whole, labels=labels).loss)
    assert float(row(out, "plain").split()[-1]) == pytest.approx(loss, abs=0.006)
    assert "resid_post of layer 15" in out  # the middle one, where nothing else is asked for


def test_a_saved_vector_steers_in_chat_format(cli: Command, demo: Any, vector: SteeringVector) -> None:
    vector.save("v.safetensors")
    asked = ["--vector", "v.safetensors", "--operation", "ablate", "--layers", "20", "--new-tokens", "4"]
    code, out, err = cli("steer", "demo", "Say hello.", *asked, "--chat", "-o", "page.html")
    assert (code, err) == (0, "")
    said = demo[1].apply_chat_template([{"role": "user", "content": "Say hello."}], add_generation_prompt=True)
    ids = list(said["input_ids"])
    assert written(demo, ids, 4) in row(out, "plain")
    with steer(demo[0], vector, operation="ablate", layers=20):
        assert written(demo, ids, 4) in row(out, "+1")


def test_a_vector_of_another_model_is_one_line(cli: Command, vector: SteeringVector) -> None:
    other = replace(vector, provenance=replace(vector.provenance, model="another/model"))
    other.save("v.safetensors")
    result = cli("steer", "demo", FILM, "--vector", "v.safetensors")
    refused(result, "--vector v.safetensors: this vector was made for the model another/model")
    assert "for_model" not in result[2]


def test_what_only_the_model_knows_is_one_line(cli: Command) -> None:
    refused(cli("steer", "demo", FILM, *CONTRAST, "--layers", "30"), "--layers names layer 30", "0 to 29")
    refused(cli("steer", "demo", FILM, *CONTRAST, "--layers", "9:3"), "--layers '9:3' holds no layer")
    refused(cli("steer", "demo", FILM, *CONTRAST, "--new-tokens", "9000"), "9000 new ones are more than")
    same = ["--positive", "good.txt", "--negative", "good.txt"]
    refused(cli("steer", "demo", FILM, *same), "so that the direction is zero")
    refused(cli("ablate-direction", "demo", FILM, *CONTRAST, "--layer", "-31"), "--layer names layer -31")


def test_a_chat_template_that_is_missing_is_one_line(cli: Command, demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo[1], "chat_template", None)
    refused(cli("steer", "demo", FILM, *CONTRAST, "--chat"), "has no chat format: take a model that was trained to")


@pytest.mark.parametrize("command", ["steer", "ablate-direction"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give --positive and --negative texts, or a --vector"),
        ([*CONTRAST, "--vector", "v.safetensors"], "and not both"),
        (["--positive", "good.txt"], "--positive alone is one-sided: give --negative too"),
        (["--negative", "bad.txt"], "--negative alone is one-sided: give --positive too"),
        (["--positive", "good.txt", "--negative", "empty.txt"], "--negative empty.txt holds no text"),
        (["--positive", "nothing.txt", "--negative", "bad.txt"], "--positive nothing.txt cannot be read: No such file"),
        (["--positive", "latin.txt", "--negative", "bad.txt"], "it is not UTF-8"),
        (["--positive", "good.txt", "--negative", "one.txt", "--method", "paired-pca"], "2 positive and 1 negative"),
        ([*CONTRAST, "--site", "pattern"], "not at 'pattern'"),
        ([*CONTRAST, "--new-tokens", "0"], "--new-tokens is 1 or more, not 0"),
        ([*CONTRAST, "--save", "v.pt"], "ends with .safetensors"),
        ([*CONTRAST, "-o", "page.pdf"], "ends with .html"),
        (["--vector", "good.txt"], "good.txt"),
        (["--vector", "nothing.safetensors"], "nothing.safetensors"),
        (["--vector", "v.safetensors", "--read", "all"], "--read is for a vector that is made from texts"),
        (["--vector", "v.safetensors", "--save", "w.safetensors"], "--save is for a vector that is made"),
    ],
)
def test_directions_that_cannot_be_are_one_line_before_a_model_is_loaded(
    unloaded: Command, command: str, arguments: list[str], words: str
) -> None:
    refused(unloaded(command, "demo", FILM, *arguments), words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--coefficient", "nan"], "--coefficient is a number, not nan"),
        (["--coefficient", "1", "1.0"], "holds a number twice: 1 1"),
        (["--layers", "a:b"], "--layers 'a:b' is no range"),
        (["--layers", "1:2:3"], "--layers '1:2:3' is no range"),
        (["--positions", "generated", "--new-tokens", "1"], "give 2 --new-tokens or more"),
    ],
)
def test_steering_that_cannot_be_is_one_line_before_a_model_is_loaded(
    unloaded: Command, arguments: list[str], words: str
) -> None:
    refused(unloaded("steer", "demo", FILM, *CONTRAST, *arguments), words)


def test_what_a_vector_lacks_is_said_before_a_model_is_loaded(unloaded: Command, vector: SteeringVector) -> None:
    vector.save("two.safetensors")
    one = vector.at(9)
    unknown, low, high = (torch.full_like(x, torch.nan) for x in (one.norms, one.low, one.high))
    replace(one, norms=unknown, low=low, high=high).save("given.safetensors")
    two, given = (["demo", FILM, "--vector", f"{name}.safetensors"] for name in ("two", "given"))
    refused(unloaded("steer", *two, "--layers", "9,11"), "no direction for layer 11, but for 9, 20")
    refused(unloaded("steer", *two, "--layers", "30"), "--layers names layer 30")
    refused(unloaded("steer", *given), "give --scale raw")
    refused(unloaded("steer", *given, "--operation", "affine"), "--operation affine needs a vector made from texts")
    refused(unloaded("ablate-direction", *two), "directions for layers 9, 20: choose one with --layer")
    refused(unloaded("ablate-direction", *two, "--layer", "10"), "no direction for layer 10, but for 9, 20")
    refused(unloaded("steer", *given, "-o", "two.html", "--save", "two.html"), "--save is for a vector")


def test_no_file_is_written_over(unloaded: Command, folder: Path) -> None:
    (folder / "good.html").write_text("good", encoding="utf-8")
    texts = ["--positive", "good.html", "--negative", "bad.txt"]
    refused(unloaded("steer", "demo", FILM, *texts, "-o", "good.html"), "-o good.html is also a file that is read")


# --- ablate-direction ---------------------------------------------------------------------------------------------


def test_a_direction_is_taken_out_of_everything_that_is_written(
    cli: Command, demo: Any, vector: SteeringVector, folder: Path
) -> None:
    vector.save("v.safetensors")
    given = ["--vector", "v.safetensors", "--layer", "9", "--new-tokens", "5", "-o", "page.html"]
    code, out, err = cli("ablate-direction", "demo", FILM, *given)
    assert (code, err) == (0, "")
    ids = demo[1](FILM)["input_ids"]
    assert written(demo, ids, 5) in row(out, "plain")
    with steer(demo[0], vector.at(9), operation="ablate", layers="writers"):
        assert written(demo, ids, 5) in row(out, "without the direction")
    with torch.no_grad():
        states = demo[0](torch.tensor([ids]), output_hidden_states=True).hidden_states
    x, v = states[10][0], vector.at(9).units[0]  # behind block 9
    share = float(((x @ v).abs() / x.norm(dim=-1)).median())
    found = re.findall(r"^ *(\d+) +([\d.]+)% +([\d.]+)%$", out, flags=re.MULTILINE)
    assert [int(layer) for layer, _, _ in found] == list(range(30))
    assert float(found[9][1]) == pytest.approx(100 * share, abs=0.06)
    assert all(float(left) == 0.0 for _, _, left in found)
    assert max(float(plain) for _, plain, _ in found) > 1
    assert first_token(demo[0], vector.at(9), [ids]).summary() in out
    assert "<svg" in (folder / "page.html").read_text(encoding="utf-8")


def test_a_direction_from_texts_is_that_of_the_layer_asked_for(cli: Command, vector: SteeringVector) -> None:
    given = [*CONTRAST, "--layer", "9", "--new-tokens", "1", "--save", "v.safetensors"]
    code, out, err = cli("ablate-direction", "demo", FILM, *given)
    assert (code, err) == (0, "")
    assert "resid_post of layer 9 of" in out
    torch.testing.assert_close(SteeringVector.load("v.safetensors").directions, vector.at(9).directions)


# --- steer-sweep --------------------------------------------------------------------------------------------------

ASKED = [
    ("Her cooking is", " good", " bad"),
    ("That new song is so", " good", " bad"),
    ("His last book was", " good", " bad"),
]
KEPT = [("The service there was", " good", " bad"), ("The new teacher seems", " good", " bad")]
PLAIN = ["Water boils at a hundred degrees and freezes at zero.", "The train to London leaves at nine."]


def lines(items: list[Any]) -> str:
    return "\n".join(json.dumps(item) for item in items) + "\n\n"


@pytest.fixture
def asked(folder: Path) -> Path:
    """Files to try steering on."""
    names = ("prompt", "matching", "other")
    for name, items in (("asked", ASKED), ("kept", KEPT)):
        text = lines([dict(zip(names, item, strict=True)) for item in items])
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (folder / "targets.jsonl").write_text(lines([{"prompt": "The film was", "target": " a delight."}]), "utf-8")
    (folder / "neutral.txt").write_text("\n".join(PLAIN), encoding="utf-8")
    return folder


def cells(out: str, title: str) -> list[list[str]]:
    """The rows of the table below a title."""
    table = out.split(title + "\n")[1].split("\n\n", maxsplit=1)[0]
    return [line.split() for line in table.splitlines()[2:]]


def test_a_sweep_shows_every_effect_and_cost_and_saves_the_best(cli: Command, demo: Any, asked: Path) -> None:
    given = [*CONTRAST, "--questions", "asked.jsonl", "--neutral", "neutral.txt", "--instruction", "I like all of it."]
    how = [
        "--layers",
        "9,20",
        "--coefficient",
        "-0.1",
        "0.1",
        "--positions",
        "predicting",
        "--random",
        "1",
        "--seed",
        "4",
    ]
    more = ["--judge", "kept.jsonl", "--save", "best.safetensors", "-o", "page.html"]
    code, out, err = cli("steer-sweep", "demo", *given, *how, *more)
    assert (code, err) == (0, "")
    model, tokenizer = demo
    vector = steering_vector(model, GOOD, BAD, layers=[9, 20], tokenizer=tokenizer)
    trials = Trials(
        questions=[Question(prompt=p, matching=a, other=b) for p, a, b in ASKED],
        neutral=PLAIN,
        instruction="I like all of it. ",
    )
    settings: dict[str, Any] = {"positions": "predicting", "random": 1, "seed": 4, "tokenizer": tokenizer}
    found = steering_sweep(model, vector, trials, coefficients=[-0.1, 0.1], **settings)
    assert found.summary() in out
    for title, values, form in (
        ("Change of the logit difference", found.estimate().mean, "+.2f"),
        ("The same by 1 random direction of that length", found.random().mean, "+.2f"),
        ("KL on neutral texts, in nats", found.estimate("kl").mean, ".3f"),
    ):
        expected = [[str(n), *(format(x, form) for x in row)] for n, row in zip((9, 20), values.tolist(), strict=True)]
        assert cells(out, title) == expected
    best = found.best()
    saved = SteeringVector.load(asked / "best.safetensors")
    assert saved.layers == (best.layer,)
    torch.testing.assert_close(saved.directions, vector.at(best.layer).directions)
    assert saved.notes == f"good.txt against bad.txt; best of a sweep: {best.coefficient:g} (add), for logit_diff"
    kept = Trials(
        questions=[Question(prompt=p, matching=a, other=b) for p, a, b in KEPT], instruction="I like all of it. "
    )
    judged = steering_sweep(model, vector, kept, layers=best.layer, coefficients=[best.coefficient], **settings)
    assert (
        f"On 2 questions that were kept back, layer {best.layer}, {best.coefficient:g}: {_shown(judged.estimate())}"
        in out
    )
    assert f"the plain instruction {_shown(judged.prompting())}." in out
    page = (asked / "page.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 2
    assert "questions that were kept back" in page


def _shown(e: Any) -> str:
    return f"{float(e.mean.squeeze()):+.2f} [{float(e.low.squeeze()):.2f}, {float(e.high.squeeze()):.2f}]"


def test_a_sweep_asks_questions_with_letters_swapped_and_follows_targets(
    cli: Command, demo: Any, vector: SteeringVector, asked: Path
) -> None:
    vector.save("v.safetensors")
    (asked / "ab.jsonl").write_text(
        lines([{"question": "How was it?", "matching": "Lovely.", "other": "Awful."}]), encoding="utf-8"
    )
    given = ["--vector", "v.safetensors", "--questions", "ab.jsonl", "--targets", "targets.jsonl"]
    code, out, err = cli("steer-sweep", "demo", *given, "--coefficient", "0.2", "--random", "0")
    assert (code, err) == (0, "")
    trials = Trials(
        questions=ab_questions([("How was it?", "Lovely.", "Awful.")]), targets=[("The film was", " a delight.")]
    )
    found = steering_sweep(demo[0], vector, trials, coefficients=[0.2], random=0, tokenizer=demo[1])
    for title, name in (
        ("Change of the logit difference", "logit_diff"),
        ("Change of the mean log-probability of targets", "log_prob"),
    ):
        assert [float(row[1]) for row in cells(out, title)] == pytest.approx(
            found.estimate(name).mean[:, 0].tolist(), abs=0.006
        )
    assert "random" not in out
    assert "2 layers with 1 strength; texts: 1 for logit difference" in out


def test_nothing_is_saved_where_everything_costs_too_much(cli: Command, asked: Path) -> None:
    given = [*CONTRAST, "--questions", "asked.jsonl", "--neutral", "neutral.txt", "--max-kl", "1e-6", "--random", "0"]
    how = ["--layers", "20", "--coefficient", "0.4", "--judge", "kept.jsonl", "--save", "best.safetensors"]
    code, out, err = cli("steer-sweep", "demo", *given, *how)
    assert code == 2
    assert "No setting keeps KL on neutral texts at or below 1e-06 nats." in out
    assert "kept back" not in out
    assert err.startswith("interp-toolkit: nothing was saved to best.safetensors: No setting keeps KL")
    assert not (asked / "best.safetensors").exists()


def test_what_only_the_tokens_know_is_said_with_its_line(cli: Command, asked: Path) -> None:
    items = [
        {"prompt": "It is", "matching": " good", "other": " bad"},
        {"prompt": "It is", "matching": " very good", "other": " bad"},
    ]
    (asked / "long.jsonl").write_text("\n" + lines(items), encoding="utf-8")
    refused(
        cli("steer-sweep", "demo", *CONTRAST, "--questions", "long.jsonl"),
        "--questions long.jsonl line 3: ",
        "not one token",
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*CONTRAST], "nothing to measure an effect on: give --questions or --targets"),
        (["--questions", "asked.jsonl"], "give --positive and --negative texts, or a --vector"),
        ([*CONTRAST, "--questions", "nothing.jsonl"], "--questions nothing.jsonl cannot be read: No such file"),
        (
            [*CONTRAST, "--questions", "empty.txt"],
            "--questions empty.txt holds no text: give one JSON object on each line",
        ),
        ([*CONTRAST, "--questions", "good.txt"], "--questions good.txt line 1 is not JSON"),
        (
            [*CONTRAST, "--targets", "asked.jsonl"],
            '--targets asked.jsonl line 1 lacks "target": it has prompt, matching',
        ),
        ([*CONTRAST, "--questions", "targets.jsonl"], '--questions targets.jsonl line 1 lacks "matching"'),
        ([*CONTRAST, "--questions", "asked.jsonl", "--neutral", "empty.txt"], "--neutral empty.txt holds no text"),
        ([*CONTRAST, "--questions", "asked.jsonl", "--judge", "./asked.jsonl"], "are the same file"),
        ([*CONTRAST, "--targets", "targets.jsonl", "--judge", "asked.jsonl"], "give --questions to choose on"),
        ([*CONTRAST, "--questions", "asked.jsonl", "--random", "-1"], "--random is 0 or more, not -1"),
        ([*CONTRAST, "--questions", "asked.jsonl", "--max-kl", "0"], "--max-kl is a number above 0, not 0"),
        ([*CONTRAST, "--questions", "asked.jsonl", "--instruction", " "], "--instruction is empty"),
        ([*CONTRAST, "--questions", "asked.jsonl", "--coefficient", "inf"], "--coefficient is a number, not inf"),
        ([*CONTRAST, "--questions", "asked.jsonl", "-o", "page.pdf"], "ends with .html"),
    ],
)
def test_a_sweep_that_cannot_be_is_one_line_before_a_model_is_loaded(
    unloaded: Command, asked: Path, arguments: list[str], words: str
) -> None:
    del asked
    refused(unloaded("steer-sweep", "demo", *arguments), words)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "a", "matching": "b", "other": "c"', "is not JSON"),
        ('["a", "b", "c"]', 'is no JSON object such as {"prompt": ...}, but ["a", "b", "c"]'),
        ("{}", 'lacks "prompt" (or "question"): it has nothing'),
        ('{"prompt": "a", "matching": "b"}', 'lacks "other": it has prompt, matching'),
        ('{"question": "a", "matching": "b"}', 'lacks "other": it has question, matching'),
        ('{"prompt": "a", "matching": "b", "other": 5}', '"other" is a text, not 5'),
        ('{"prompt": "", "matching": "b", "other": "c"}', "\"prompt\" is a text, not ''"),
        (
            '{"prompt": "a", "matching": "b", "other": "c", "colour": "d"}',
            'has "colour", which is not one of prompt, mat',
        ),
    ],
)
def test_a_line_that_is_no_question_is_named_by_its_number(
    unloaded: Command, asked: Path, line: str, words: str
) -> None:
    whole = json.dumps(dict(zip(("prompt", "matching", "other"), ASKED[0], strict=True)))
    (asked / "wrong.jsonl").write_text(f"{whole}\n\n{line}\n", encoding="utf-8")
    refused(
        unloaded("steer-sweep", "demo", *CONTRAST, "--questions", "wrong.jsonl"),
        "--questions wrong.jsonl line 3",
        words,
    )


def test_help_tells_what_files_hold(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["steer-sweep", "--help"])
    out = capsys.readouterr().out
    shown = [json.loads(line) for line in out.splitlines() if line.strip().startswith("{")]
    assert [list(fact) for fact in shown] == [
        ["prompt", "matching", "other"],
        ["question", "matching", "other"],
        ["prompt", "target"],
    ]
