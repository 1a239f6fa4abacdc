"""The example on facts: its numbers are what runs of their own give, and it refuses what it cannot use."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interp_toolkit import load_model

Example = Callable[[str], ModuleType]
Hooks = Callable[[PreTrainedModel], int]
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]
ANSWERS = {
    "train": ["Paris", "Rome", "London", "Berlin", "Madrid", "Vienna", "Oslo", "Cairo", "Lima", "Tokyo", "Delhi"],
    "test": ["Moscow", "Dublin", "Athens", "Warsaw", "Boston", "Chicago", "Houston", "Denver", "Miami", "Dallas"],
}
SUBJECTS = {
    "train": ["river", "table", "window", "garden", "letter", "kitchen", "bridge", "forest"],
    "test": ["mirror", "road", "island", "tower", "market", "school", "church", "station"],
}
SMALL = ["--n", "8", "--strongest", "6", "--random", "1", "--edges", "0.2"]


@pytest.fixture(scope="module")
def loaded(random_model: Path) -> Loaded:
    """It is looked over once for all tests."""
    return load_model(str(random_model))


@pytest.fixture(scope="module")
def facts(loaded: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Facts that the random model knows: answers that it happens to prefer behind one subject, not the other."""
    model, tokenizer = loaded
    rows = []
    for split, subjects in SUBJECTS.items():
        ids = torch.tensor([tokenizer.encode(f" {answer}", add_special_tokens=False) for answer in ANSWERS[split]])[
            :, 0
        ]
        texts = [f"The old {subject} is" for subject in subjects]
        with torch.no_grad():
            logits = torch.stack([model(**tokenizer(t, return_tensors="pt")).logits[0, -1, ids] for t in texts])
        for n, subject in enumerate(subjects):
            other = (n + 1) % len(subjects)
            change = logits[n] - logits[other]
            wins = logits[n][:, None] - logits[n][None]
            best = (change[:, None] - change[None]).masked_fill(
                (wins <= 0) | (wins >= change[:, None] - change[None]), -9
            )
            target, foil = divmod(int(best.argmax()), len(ids))
            answers = {"target": ANSWERS[split][target], "foil": ANSWERS[split][foil]}
            rows.append({"clean": texts[n], "corrupt": texts[other], "subject": subject, "split": split, **answers})
    return written(tmp_path_factory.mktemp("facts") / "facts.jsonl", rows)


def written(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return path


def test_facts_of_ones_own_give_a_page_the_same_one_twice(
    example: Example, loaded: Loaded, facts: Path, hooks: Hooks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, before = example("factuality"), hooks(loaded[0])
    monkeypatch.setattr(module.example, "load", lambda chosen: loaded)
    pages = []
    for name in ("first", "second"):
        page = module.main(["--data", str(facts), *SMALL, "-o", str(tmp_path / name)])
        pages.append({file.name: file.read_text(encoding="utf-8") for file in page.parent.iterdir()})
    for page in pages:
        page["factuality.md"] = page["factuality.md"].rsplit("\n\n", 1)[0]
    assert pages[0] == pages[1]
    assert {"factuality.svg", "factuality.html", "factuality-trace.svg"} <= set(pages[0])
    text = pages[0]["factuality.md"]
    assert sum(line.startswith("- **") and "ρ = " in line for line in text.splitlines()) == 6  # pairs of four accounts
    assert "No probe: there are too few groups of statements" in text
    assert hooks(loaded[0]) == before == 0


def test_a_model_that_does_not_know_the_facts_is_said_not_to(
    example: Example, random_model: Path, tmp_path: Path
) -> None:
    page = example("factuality").main(["--model", str(random_model), "--n", "8", "-o", str(tmp_path)])
    text = page.read_text(encoding="utf-8")
    assert "The model is not shown to know these facts" in text
    assert "ρ" not in text


def test_patching_says_what_a_run_with_another_heads_output_says(example: Example, loaded: Loaded, facts: Path) -> None:
    module, (model, tokenizer) = example("factuality"), loaded
    task = module.own_facts(facts, tokenizer)["train"].select(range(3))
    account = module.patching(model, task)
    layer, head, wide = 1, 2, 8
    kept: list[Tensor] = []

    def keep(_: Any, given: tuple[Tensor]) -> None:
        kept.append(given[0].clone())

    def put(_: Any, given: tuple[Tensor]) -> tuple[Tensor]:
        changed = given[0].clone()
        changed[..., head * wide : (head + 1) * wide] = kept[-1][..., head * wide : (head + 1) * wide]
        return (changed,)

    projection = model.model.layers[layer].self_attn.o_proj
    for n, (pair, (target, foil)) in enumerate(zip(task.pairs, task.answers, strict=True)):
        said = []
        for hook, ids in ((keep, pair.clean_ids), (put, pair.corrupt_ids), (None, pair.corrupt_ids)):
            handle = None if hook is None else projection.register_forward_pre_hook(hook)
            with torch.no_grad():
                last = model(torch.tensor([ids])).logits[0, -1]
            said.append(float(last[target] - last[foil]))
            if handle is not None:
                handle.remove()
        assert float(account.values[n, layer * 5 + head, 0]) == pytest.approx(said[1] - said[2], abs=1e-4)


def test_direct_effects_of_all_components_and_the_embedding_are_the_whole_difference(
    example: Example, loaded: Loaded, facts: Path
) -> None:
    module, (model, tokenizer) = example("factuality"), loaded
    task = module.own_facts(facts, tokenizer)["train"].select(range(3))
    account = module.direct(model, task)
    for n, (pair, (target, foil)) in enumerate(zip(task.pairs, task.answers, strict=True)):
        with torch.no_grad():
            clean, corrupt = (model(torch.tensor([ids])).logits[0, -1] for ids in (pair.clean_ids, pair.corrupt_ids))
        whole = (clean - corrupt)[target] - (clean - corrupt)[foil]
        last = [model.model.embed_tokens.weight[ids[-1]] for ids in (pair.clean_ids, pair.corrupt_ids)]
        assert torch.equal(*last)  # but the norm's scale differs, so the embedding has a small part too
        assert float(account.values[n].sum()) == pytest.approx(float(whole.detach()), rel=0.3, abs=0.05)


def test_put_together_all_components_bring_back_everything(example: Example, loaded: Loaded, facts: Path) -> None:
    module, (model, tokenizer) = example("factuality"), loaded
    task = module.own_facts(facts, tokenizer)["test"]
    names = module.circuits.graph_of(model).source_names[1:]
    back, gap = module.put_back(model, task, [names, ["L0H0"]])
    assert torch.allclose(back[0], gap, atol=1e-4)
    assert not torch.allclose(back[1], gap, atol=1e-2)


def test_two_accounts_share_what_both_have_among_their_strongest(example: Example) -> None:
    module = example("factuality")
    values = torch.zeros(2, 4, 6, 1)
    values[0, :, :, 0] = torch.tensor([5.0, 4.0, 3.0, 0.2, 0.1, 0.0])
    values[1, :, :, 0] = torch.tensor([-5.0, 0.1, 3.0, 4.0, 0.2, 0.0])
    one, other = (module.Account(name=name, values=x) for name, x in zip("ab", values, strict=True))
    found = module.agreement(one, other, 3, 0)
    assert (found.shared, found.same_sign) == (2, 1)
    assert (found.farthest, found.places) == (1, (2, 5))


def test_statements_hold_each_prompt_with_each_answer_and_negations_turn_labels_round(
    example: Example, loaded: Loaded, facts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, tokenizer = example("factuality"), loaded[1]
    monkeypatch.setattr(module, "GROUPS", 2)
    plain, negated = module.statements(list(module.own_facts(facts, tokenizer).values()), 0)
    assert plain.counts() == {"False": len(plain) // 2, "True": len(plain) // 2}
    assert [not_ == of for not_, of in zip(negated.labels, plain.labels, strict=True)] == [False] * len(plain)
    assert all(text.replace(" not", "") in plain.texts for text in negated.texts)


def test_a_file_that_cannot_be_used_is_refused_by_name(
    example: Example, loaded: Loaded, facts: Path, tmp_path: Path
) -> None:
    module, tokenizer = example("factuality"), loaded[1]
    rows = [json.loads(line) for line in facts.read_text(encoding="utf-8").splitlines()]
    broken: dict[str, dict[str, str]] = {
        "lacks subject": {key: value for key, value in rows[0].items() if key != "subject"},
        "cannot be used": rows[0] | {"subject": "castle"},
        "in the subject alone": rows[0] | {"subject": "old"},
        "tokens": rows[0] | {"corrupt": "The very old table is"},
        "one token": rows[0] | {"target": "Antananarivo"},
        "that share no answer": rows[0] | {"split": "test"},
    }
    for said, row in broken.items():
        with pytest.raises(SystemExit, match=said):
            module.own_facts(written(tmp_path / "bad.jsonl", [row, *rows[1:]]), tokenizer)
    two = [rows[0] | {"split": "dev"}, rows[1] | {"subject": "castle"}, *rows[2:]]
    with pytest.raises(SystemExit, match=r"(?s)2 of 16 rows .*'train' or 'test', not 'dev'\n.*'castle' is not in it"):
        module.own_facts(written(tmp_path / "bad.jsonl", two), tokenizer)


def test_what_an_account_says_nothing_of_is_left_out_of_comparisons(example: Example) -> None:
    module = example("factuality")
    values = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0], [1.0, 2.0, torch.nan, 4.0, 5.0]])[:, None, :, None]
    one, other = (module.Account(name=name, values=x.expand(2, 5, 1)) for name, x in zip("ab", values, strict=True))
    assert other.order == [4, 3, 1, 0]
    found = module.agreement(one, other, 2, 0)
    assert found.rho == pytest.approx(-1)
    assert found.shared == 0
    assert found.farthest == 0


def test_an_answer_arrives_where_it_stays_and_leaves_where_it_never_was_away(example: Example) -> None:
    module = example("factuality")
    shares = torch.tensor([[0.9, 0.6], [0.2, 0.1], [0.9, 0.2], [0.3, 0.2], [0.1, 0.9]])
    tracing = SimpleNamespace(effect=shares, labels=(range(5), ["last subject token", "last token"]))
    found = module.Traced(resid=tracing, mlp=tracing, attn=tracing)
    assert (found.leaves, found.arrives) == (0, 4)
    tracing.effect = torch.zeros(5, 2)
    assert (found.leaves, found.arrives) == (None, None)
