"""The example on refusal: runs end to end, says what is not shown, and its numbers can be worked out again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers

import tiny
from interp_toolkit import Edit, load_model, run
from interp_toolkit.model.demo_files import demo_model_folder
from interp_toolkit.steering import given_vector

Example = Callable[[str], ModuleType]
SMALL = ["--n", "6", "--shots", "1", "--random", "1", "--every", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model with the demo model's tokenizer and chat format."""
    path = tmp_path_factory.mktemp("chatty")
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo_model_folder())
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=1024,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    model = transformers.LlamaForCausalLM(config)
    tiny.randomise(model)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def chat_of(refusal: ModuleType, folder: Path, setting: int = 2) -> Any:
    model, tokenizer = load_model(folder)
    parts = [refusal.split(refusal.DATA / f"{name}.jsonl", 0, 6, 1) for name in ("refusal", "refusal_rule")]
    made = refusal.partial(refusal.Chat, model=model, tokenizer=tokenizer, openings=refusal.OPENINGS)
    return refusal.settings(made, *parts)[setting].begun()


def by_brute_force(chat: Any, request: str, edits: Sequence[Edit] = ()) -> float:
    """The score from one whole pass over each opening, without a cache or padding."""
    prompt, total = chat.ids(request), 0.0
    for opening in chat.openings:
        ids = chat.tokenizer(opening, add_special_tokens=False).input_ids
        out = run(chat.model, [prompt + ids], edits=edits, logits="all").logits
        assert out is not None
        told = out[0].double().log_softmax(-1)
        total += math.exp(sum(float(told[len(prompt) - 1 + n, token]) for n, token in enumerate(ids)))
    return float(torch.tensor(total, dtype=torch.float64).logit())


def test_a_model_that_refuses_by_itself_needs_no_dialogue(
    example: Example, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = example("refusal")
    monkeypatch.setattr(refusal, "SHOWN", -2.0)
    page = refusal.main(["--model", str(folder), "-o", str(tmp_path), *SMALL]).read_text(encoding="utf-8")
    assert "the model refuses by itself" in page
    assert "What is tried instead" not in page
    assert "Is it refusal?" not in page


def test_a_model_that_does_not_refuse_is_said_not_to_and_two_runs_write_the_same(
    example: Example, folder: Path, tmp_path: Path
) -> None:
    written = []
    for name in ("one", "two"):
        path = example("refusal").main(["--model", str(folder), "-o", str(tmp_path / name), *SMALL])
        files = {file.name: file.read_bytes() for file in sorted(path.parent.iterdir())}
        files["refusal.md"] = files["refusal.md"].rpartition(b"It took")[0]
        written.append(files)
    assert written[0] == written[1]
    page = written[0]["refusal.md"].decode()
    assert "Alone, the model does **not** refuse" in page
    assert "**no clear refusal**" in page
    assert "nan" not in page.split("<details")[0]


def test_scores_are_those_of_whole_passes(example: Example, folder: Path) -> None:
    refusal = example("refusal")
    chat = chat_of(refusal, folder)
    vector = given_vector(chat.model, torch.randn(32, generator=torch.Generator().manual_seed(1)), layers=1)
    none: list[Edit] = []
    for edits in (none, refusal.ablation(chat, vector), refusal.addition(chat, vector)):
        odds, _ = refusal.score(chat, "test", "harmful", edits)
        told = [by_brute_force(chat, text, edits) for text in chat.texts("test", "harmful")[:2]]
        assert odds.tolist()[:2] == pytest.approx(told, abs=1e-4)


def test_openings_that_go_on_from_another_are_counted_once(example: Example, folder: Path) -> None:
    refusal = example("refusal")
    chat = chat_of(refusal, folder, 0)
    more = refusal.replace(chat, openings=[*refusal.OPENINGS, "I'm sorry, but", "Sorry"])
    assert torch.allclose(refusal.score(chat, "test", "harmless")[0], refusal.score(more, "test", "harmless")[0])


def test_directions_are_differences_of_means(example: Example, folder: Path) -> None:
    refusal = example("refusal")
    chat = chat_of(refusal, folder)
    found = refusal.differences(chat)
    means = []
    for kind in refusal.KINDS:
        rows = [chat.ids(text) for text in chat.texts("train", kind)]
        means.append(
            torch.stack([run(chat.model, [row], read="resid_post.1")["resid_post.1"][0, -2] for row in rows]).mean(0)
        )
    assert torch.allclose(found[1, -2], means[0] - means[1], atol=1e-4)


def test_weights_do_what_hooks_do_and_parts_sum_to_the_stream(example: Example, folder: Path) -> None:
    refusal = example("refusal")
    chat = chat_of(refusal, folder)
    model = chat.model
    before = {name: x.clone() for name, x in model.state_dict().items()}
    vector = given_vector(model, refusal.differences(chat)[1, -1], layers=1)
    hooks, weights = refusal.by_weights(chat, vector)
    assert torch.allclose(hooks, weights, atol=1e-4)
    names, values, missed = refusal.written(chat, "test", refusal.Candidate(position=-1, vector=vector, induce=0.0))
    assert missed < 1e-5
    assert len(names) == values.shape[1] == 1 + 2 * (4 + 2)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_parts_share_no_category(example: Example) -> None:
    refusal = example("refusal")
    rows = [json.loads(line) for line in (refusal.DATA / "refusal.jsonl").read_text(encoding="utf-8").splitlines()]
    category = {row["instruction"]: row["category"] for row in rows}
    parts = refusal.split(refusal.DATA / "refusal.jsonl", 3, 24, 6)
    seen = {
        name: {category[text] for kind in refusal.KINDS for text in parts[name][kind]}
        for name in ("train", "validation", "test")
    }
    assert not seen["train"] & seen["validation"] | seen["train"] & seen["test"] | seen["validation"] & seen["test"]
    assert all(len(found["harmful"]) == len(found["harmless"]) >= 6 for found in parts.values())


def test_a_kind_that_is_neither_is_refused(example: Example, tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text('{"instruction": "Sing.", "kind": "nice"}\n', encoding="utf-8")
    with pytest.raises(SystemExit, match="not 'nice'"):
        example("refusal").main(["--data", str(own)])


def test_too_few_requests_are_refused(example: Example, tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text('{"instruction": "Sing.", "kind": "harmless"}\n', encoding="utf-8")
    with pytest.raises(SystemExit, match="fewer than two requests of each kind"):
        example("refusal").main(["--data", str(own)])


def test_a_model_without_a_chat_format_is_refused(example: Example, folder: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(folder)
    tokenizer.chat_template = None
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(SystemExit, match="has no chat format"):
        example("refusal").main(["--model", str(tmp_path)])


def test_a_direction_must_induce_and_leave_harmless_requests_alone(
    example: Example, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = example("refusal")
    chat = chat_of(refusal, folder, 0)
    vectors = [given_vector(chat.model, torch.eye(32)[n], layers=n) for n in range(3)]
    tried = [
        refusal.Candidate(position=-1, vector=vector, induce=induce, bypass=bypass)
        for vector, induce, bypass in zip(vectors, (-1.0, 1.0, 2.0), (-9.0, -5.0, -3.0), strict=True)
    ]
    kl = iter([0.5, 0.01])
    monkeypatch.setattr(refusal, "divergence", lambda *_: torch.tensor(next(kl)))
    best, order, words = refusal.select(chat, tried)
    assert best.layer == 2
    assert [one.layer for one in order] == [0, 1, 2]
    assert [one.kl > 0 for one in order] == [False, True, True]
    assert "passes" in words
