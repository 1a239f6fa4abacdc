"""The example on refusal: runs end to end, says what is not shown, and its numbers can be worked out again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interp_toolkit import Edit, From, load_model, run
from interp_toolkit.errors import EditError
from interp_toolkit.statistics import bootstrap_mean
from interp_toolkit.steering import given_vector

Example = Callable[[str], ModuleType]
Hooks = Callable[[PreTrainedModel], int]
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]
SMALL = ["--n", "5", "--shots", "1", "--random", "1", "--every", "3", "--openings", "Sorry", "I cannot"]


@pytest.fixture(scope="module")
def loaded(random_model: Path) -> Loaded:
    """It is looked over once for all tests."""
    return load_model(str(random_model))


def settings_of(refusal: ModuleType) -> Any:
    parts = [refusal.split(refusal.example.DATA / f"{name}.jsonl", 0, 6, 1) for name in ("refusal", "refusal_rule")]
    return refusal.settings(*parts)


def chat_of(refusal: ModuleType, loaded: Loaded, setting: int = 2) -> Any:
    return refusal.Chat.begin(settings_of(refusal)[setting], *loaded, refusal.OPENINGS[-3:])


def written(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return path


def by_brute_force(chat: Any, request: str, edits: Sequence[Edit] = ()) -> float:
    """The score from one whole pass over each opening, without a cache or padding."""
    prompt, total = chat.setting.prompt(request, chat.tokenizer), 0.0
    for opening in chat.openings:
        ids = chat.tokenizer(opening, add_special_tokens=False).input_ids
        told = run(chat.model, [prompt + ids], edits=edits, logits="all").logits[0].double().log_softmax(-1)
        total += math.exp(sum(float(told[len(prompt) - 1 + n, token]) for n, token in enumerate(ids)))
    return float(torch.tensor(total, dtype=torch.float64).logit())


# --- the page -------------------------------------------------------------------------------------------------------


def page_of(refusal: ModuleType, loaded: Loaded, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(refusal.example, "load", lambda chosen: loaded)
    neutral = written(folder.with_suffix(".jsonl"), [{"text": "The ferry leaves."}, {"text": "It rained."}])
    said = ["-o", str(folder), "--neutral", str(neutral), *SMALL]
    text: str = refusal.main(said).read_text(encoding="utf-8")
    return text


def test_a_model_that_refuses_by_itself_needs_no_dialogue(
    example: Example, loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = example("refusal")
    monkeypatch.setattr(refusal, "SHOWN", -2.0)
    page = page_of(refusal, loaded, tmp_path, monkeypatch)
    assert "the model refuses by itself" in page
    assert "no clear refusal" not in page
    assert "What is tried instead" not in page
    assert "Is it refusal?" not in page


def test_a_model_that_does_not_refuse_is_said_not_to_and_two_runs_write_the_same(
    example: Example, loaded: Loaded, hooks: Hooks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = []
    for name in ("one", "two"):
        page_of(example("refusal"), loaded, tmp_path / name, monkeypatch)
        pages.append({file.name: file.read_text(encoding="utf-8") for file in (tmp_path / name).iterdir()})
        pages[-1]["refusal.md"] = pages[-1]["refusal.md"].partition("## How this was made")[0]
    assert pages[0] == pages[1]
    page = pages[0]["refusal.md"]
    assert "Alone, the model does **not** refuse" in page
    assert "**no clear refusal**" in page
    assert "nan" not in page.split("<details")[0]
    assert hooks(loaded[0]) == 0


def prefer(refusal: ModuleType, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """As if a setting had the largest, small gap on train requests."""
    gaps = iter(bootstrap_mean(torch.full((5,), 0.2 if n == number else 0.1)) for n in range(4))
    plain = refusal.gap
    monkeypatch.setattr("directions.gap", lambda odds: next(gaps, None) or plain(odds))


def test_requests_alone_with_the_largest_of_small_gaps_are_not_refused(
    example: Example, loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = example("refusal")
    prefer(refusal, monkeypatch, 0)
    page = page_of(refusal, loaded, tmp_path, monkeypatch)
    assert "does **not** refuse by itself" in page
    assert "Alone, the model does **not** refuse" in page
    assert "all that follows is about each one alone" in page
    assert "**no clear refusal**" in page
    assert "Is it refusal?" not in page


def test_behind_a_policy_there_is_nothing_to_turn_round_and_no_verdict(
    example: Example, loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = example("refusal")
    prefer(refusal, monkeypatch, 1)
    page = page_of(refusal, loaded, tmp_path, monkeypatch)
    assert "was not tried: the policy has no answers to swap" in page
    assert "stands for refusal here" not in page
    assert "Here refusal was asked for in words" in page
    assert "| turned" not in page


# --- settings and verdicts ------------------------------------------------------------------------------------------


def test_answers_are_swapped_where_there_are_any(example: Example) -> None:
    refusal = example("refusal")
    alone, policy, shown, _ = settings_of(refusal)
    assert refusal.turned_round(alone) is refusal.turned_round(policy) is None
    turned = refusal.turned_round(shown)
    assert [request for request, _ in turned.turns] == [request for request, _ in shown.turns]
    assert [answer for _, answer in turned.turns] == [refusal.REFUSAL, refusal.COMPLIANCE]


def odds(harmful: float, harmless: float) -> dict[str, Tensor]:
    return {"harmful": torch.full((6,), float(harmful)), "harmless": torch.full((6,), float(harmless))}


@pytest.mark.parametrize(
    ("plain", "added", "drawn", "verdict"),
    [
        ((-3, 3), (-3, 5), (-3, 3), "refusal"),
        ((-3, 3), (-3, 5), (-3, 6), "unclear"),
        ((-3, 3), (-3, -1), (-3, 3), "kind"),
        ((-3, 3), (-3, 3), (-3, 3), "unclear"),
        ((3, -3), (3, 5), (3, -3), "not turned"),
        ((-3, -1.5), (-3, 5), (-3, -1.5), "not turned"),
    ],
)
def test_a_verdict_needs_a_dialogue_that_turns_and_more_than_random_directions(
    example: Example, plain: Any, added: Any, drawn: Any, verdict: str
) -> None:
    refusal = example("refusal")
    others = {kind: x[:, None] for kind, x in odds(*drawn).items()}
    one = refusal.Added(setting=settings_of(refusal)[2], plain=odds(*plain), added=odds(*added), random=others)
    assert refusal.Elsewhere(alone=one, turned=one).verdict == verdict
    assert refusal.Elsewhere(alone=one, turned=None).verdict == "no dialogue"


# --- openings -------------------------------------------------------------------------------------------------------


def test_scores_are_those_of_whole_passes(example: Example, loaded: Loaded) -> None:
    refusal = example("refusal")
    chat = chat_of(refusal, loaded)
    vector = given_vector(chat.model, torch.randn(32, generator=torch.Generator().manual_seed(1)), layers=1)
    none: list[Edit] = []
    for edits in (none, refusal.ablation(chat, vector), refusal.addition(chat, vector)):
        found = refusal.score(chat, "test", "harmful", edits)
        told = [by_brute_force(chat, text, edits) for text in chat.setting.requests["test"]["harmful"][:2]]
        assert found.tolist()[:2] == pytest.approx(told, abs=1e-4)
    everywhere = refusal.addition(replace(chat, start=0), vector)
    found = refusal.score(chat.again(edits=everywhere), "test", "harmful")
    told = [by_brute_force(chat, text, everywhere) for text in chat.setting.requests["test"]["harmful"][:2]]
    assert found.tolist()[:2] == pytest.approx(told, abs=1e-4)


def test_many_prompts_are_scored_some_at_a_time(
    example: Example, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = example("refusal")
    chat, openings = chat_of(refusal, loaded), example("openings")
    at_once = refusal.score(chat, "test", "harmful")
    monkeypatch.setattr(openings, "ROWS", 4)
    one = openings.Chat.begin(chat.setting, *loaded, chat.openings)
    assert [len(batch.ids) for batch in one.batches("test", "harmful")] == [4, 2]
    assert torch.allclose(at_once, openings.score(one, "test", "harmful"), atol=1e-4)


def test_edits_in_front_of_the_requests_are_refused_unless_the_beginning_ran_under_them(
    example: Example, loaded: Loaded
) -> None:
    refusal = example("refusal")
    chat = chat_of(refusal, loaded)
    early = [Edit.scale("mlp_out.1", 0.5, positions=From(chat.start - 1))]
    with pytest.raises(EditError, match="begin a chat with it"):
        refusal.score(chat, "test", "harmful", early)
    with pytest.raises(EditError, match="begin a chat with it"):
        refusal.score(chat, "test", "harmful", [Edit.scale("mlp_out.1", 0.5)])
    begun = chat.again(edits=early)
    assert torch.equal(refusal.score(begun, "test", "harmful"), refusal.score(begun, "test", "harmful", early))


def test_openings_that_go_on_from_another_are_counted_once(example: Example, loaded: Loaded) -> None:
    refusal = example("refusal")
    chat = chat_of(refusal, loaded, 0)
    more = replace(chat, openings=[*chat.openings, "I can't say", "Sorry"])
    assert torch.allclose(refusal.score(chat, "test", "harmless"), refusal.score(more, "test", "harmless"))


# --- directions -----------------------------------------------------------------------------------------------------


def test_directions_are_differences_of_means(example: Example, loaded: Loaded) -> None:
    refusal = example("refusal")
    chat = chat_of(refusal, loaded)
    found = refusal.differences(chat)
    means = []
    for kind in refusal.KINDS:
        rows = [chat.setting.prompt(text, chat.tokenizer) for text in chat.setting.requests["train"][kind]]
        read = [run(chat.model, [row], read="resid_post.1")["resid_post.1"][0, -2] for row in rows]
        means.append(torch.stack(read).mean(0))
    assert torch.allclose(found[1, -2], means[0] - means[1], atol=1e-4)


def test_weights_do_what_hooks_do_and_parts_sum_to_the_stream(example: Example, loaded: Loaded, hooks: Hooks) -> None:
    refusal, directions = example("refusal"), example("directions")
    chat = chat_of(refusal, loaded)
    model = chat.model
    before = {name: x.clone() for name, x in model.state_dict().items()}
    vector = given_vector(model, refusal.differences(chat)[1, -1], layers=1)
    by_hooks, by_weights = refusal.by_weights(chat, vector)
    assert torch.allclose(by_hooks, by_weights, atol=1e-4)
    found = refusal.written(chat, "test", directions.Candidate(position=-1, vector=vector, induce=0.0))
    assert found.missed < 1e-5
    assert len(found.parts) == 1 + 2 * (4 + 2)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert hooks(model) == 0


@pytest.mark.parametrize(
    ("moved", "best", "asked", "passed"),
    [([0.5, 0.01], 2, [1, 2], True), ([0.5, 0.5], 1, [1, 2], False), ([0.01], 1, [1], True)],
)
def test_a_direction_must_induce_and_leave_harmless_requests_alone(
    example: Example,
    loaded: Loaded,
    monkeypatch: pytest.MonkeyPatch,
    moved: list[float],
    best: int,
    asked: list[int],
    passed: bool,
) -> None:
    directions = example("directions")
    chat = chat_of(example("refusal"), loaded, 0)
    vectors = [given_vector(chat.model, torch.eye(32)[n], layers=n) for n in range(3)]
    tried = [
        directions.Candidate(position=-1, vector=vector, induce=induce, bypass=bypass)
        for vector, induce, bypass in zip(vectors, (-1.0, 1.0, 2.0), (-9.0, -5.0, -3.0), strict=True)
    ]
    kl = iter(moved)
    monkeypatch.setattr(directions, "kl_divergence", lambda *_: torch.tensor(next(kl)))
    found = directions.select(chat, tried)
    assert found.best.layer == best
    assert [one.layer for one in found.order] == [0, 1, 2]
    assert [one.layer for one in found.order if one.kl > 0] == asked
    assert (found.best.induces and found.best.spares) == passed


# --- data -----------------------------------------------------------------------------------------------------------


def test_parts_share_no_category(example: Example) -> None:
    refusal = example("refusal")
    data = refusal.example.DATA / "refusal.jsonl"
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    category = {row["instruction"]: row["category"] for row in rows}
    parts = refusal.split(data, 3, 24, 6)
    seen = [
        {category[text] for kind in refusal.KINDS for text in parts[name][kind]}
        for name in ("train", "validation", "test")
    ]
    assert sum(map(len, seen)) == len(set.union(*seen))
    assert all(len(found["harmful"]) == len(found["harmless"]) >= 6 for found in parts.values())


def test_a_file_that_cannot_be_used_is_refused_by_name(example: Example, tmp_path: Path) -> None:
    sing, dance = ({"instruction": text, "kind": "harmless"} for text in ("Sing.", "Dance."))
    broken = {
        "not 'nice'": [sing, dance | {"kind": "nice"}],
        "fewer than two requests of each kind": [sing],
        "'Sing.' more than once": [sing, dance, sing | {"instruction": "Sing. "}],
        "'Dance.' more than once": [sing, dance, dance | {"kind": "harmful"}],
    }
    for said, rows in broken.items():
        with pytest.raises(SystemExit, match=said):
            example("refusal").main(["--data", str(written(tmp_path / "own.jsonl", rows))])


def test_an_opening_without_words_is_refused(example: Example, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        example("refusal").main(["--openings", "Sorry", " "])
    assert "none of them is empty" in capsys.readouterr().err


def test_a_model_without_a_chat_format_is_refused(example: Example, random_model: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(str(random_model))
    tokenizer.chat_template = None
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(SystemExit, match="has no chat format"):
        example("refusal").main(["--model", str(tmp_path)])
