"""The example on elicitation: it runs end to end, counts what is right as a plain loop does, and makes nothing up."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interp_toolkit import load_model
from interp_toolkit.steering import given_vector

Example = Callable[[str], ModuleType]
Hooks = Callable[[PreTrainedModel], int]
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]
SMALL = ["--n", "4", "--shots", "2", "--train", "3", "--prompts", "1", "--coefficients", "1", "--heads", "3"]


@pytest.fixture(scope="module")
def loaded(random_model: Path) -> Loaded:
    """It is looked over once for all tests."""
    return load_model(str(random_model))


def lab_of(module: ModuleType, loaded: Loaded, **options: Any) -> Any:
    chosen = {"seed": 0, "shots": 2, "n": 4, "instruction": None, "task": None, "train": 3, "prompts": 1}
    chosen["data"] = module.example.DATA / "elicitation.jsonl"
    return module.Lab(model=loaded[0], tokenizer=loaded[1], chosen=Namespace(**(chosen | options)), layers=[0, 1])


def by_hand(lab: Any, prompt: str, answer: str, add: tuple[int, torch.Tensor] | None = None) -> list[float]:
    """One prompt in one pass, perhaps with a hook that adds a vector at the prompt's last token."""
    first = len(lab.tokenizer(prompt)["input_ids"])
    ids = lab.tokenizer(f"{prompt} {answer}", return_tensors="pt")["input_ids"]
    handle = None
    if add is not None:

        def hook(module: Any, inputs: Any, output: torch.Tensor) -> None:
            output[:, first - 1] += add[1]

        handle = lab.model.model.layers[add[0]].register_forward_hook(hook)
    with torch.no_grad():
        logp = lab.model(ids).logits[0, first - 1 : -1].log_softmax(-1)
    if handle is not None:
        handle.remove()
    right = logp.argmax(-1) == ids[0, first:]
    return [float(right[0]), float(right.all()), float(logp.gather(-1, ids[0, first:, None]).sum())]


def stacked(scores: Any) -> torch.Tensor:
    return torch.stack([scores.first, scores.whole, scores.log_prob], dim=-1)


def words_of(page: Path) -> str:
    """A page without code."""
    return re.sub("<details.*?</details>", "", page.read_text("utf-8"), flags=re.DOTALL)


# --- the page ---------------------------------------------------------------------------------------------------------


def behaviour_of(module: ModuleType, **right: list[float]) -> Any:
    """What a model would be that has these words right with each kind of prompt."""
    whole = {kind: torch.tensor(x)[:, None] for kind, x in right.items()}
    return module.Behaviour(
        scores={
            kind: importlib.import_module("words").Scores(first=x, whole=x, log_prob=torch.zeros_like(x))
            for kind, x in whole.items()
        }
    )


def judged(module: ModuleType, *, vector: list[float], **right: list[float]) -> tuple[str, str]:
    """What stands on top of the page, and what stands in the section, for one task with these words right."""
    one = behaviour_of(module, **right)
    nothing = torch.zeros(len(vector), 4)
    helps = {kind: x.whole for kind, x in one.scores.items()}
    helps |= {"random heads": nothing, "random directions": nothing, "function vector": torch.tensor(vector)[:, None]}
    page = module.example.Page(name="elicitation", title="", about="")
    module.say.judgement(page, module.Judgement(behaviour={"pairs": one}, right={"pairs": helps}), 5)
    return "\n".join(page._short), "\n".join(page._parts)


def test_a_model_that_examples_do_not_help_is_said_to_show_nothing(
    example: Example, loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = example("elicitation")
    monkeypatch.setattr(module.example, "load", lambda chosen: loaded)
    page = module.main(["-o", str(tmp_path), "--task", "capital", *SMALL])
    text = words_of(page)
    assert "2 examples bring out none of 1 tasks" in text
    assert "vector brings" not in text
    assert "a model may do tasks" in text
    assert "- capital: examples bring 0% (all words alike) more words right, less than the 20% that are called" in text
    assert "[0, 0]" not in text
    assert "function vector 0% [0, 49]" in text  # four words
    assert "--layers" not in text  # those that were taken by default are no options
    assert {file.name for file in tmp_path.iterdir()} == {"elicitation.md"} | {
        f"elicitation{picture}.{kind}" for picture in ("", "-layers") for kind in ("svg", "html")
    }


def test_a_file_of_ones_own_runs_to_the_end_and_twice_to_the_same_bytes(
    example: Example, loaded: Loaded, hooks: Hooks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, before = example("elicitation"), hooks(loaded[0])
    monkeypatch.setattr(module.example, "load", lambda chosen: loaded)
    data, found = tmp_path / "pairs.jsonl", []
    data.write_text("\n".join(json.dumps({"input": f"word {n}", "output": f"answer {n}"}) for n in range(12)))
    for name in ("one", "two"):
        given = ["-o", str(tmp_path / name), "--data", str(data), *SMALL, "--instruction", "Say it.", "--layers", "1"]
        path = module.main(given)
        found.append({file.name: file.read_text() for file in sorted(path.parent.iterdir())})
        found[-1]["elicitation.md"] = found[-1]["elicitation.md"].rsplit("It took", 1)[0]
    assert found[0] == found[1]
    text = words_of(path)
    assert "| Say it. |" in text
    assert "other tasks' vectors" not in text
    assert "--instruction 'Say it.'" in text
    assert "--layers 1" in text
    assert hooks(loaded[0]) == before == 0


def test_a_gap_is_of_at_least_a_fifth_and_surely_above_nothing(example: Example) -> None:
    module, none = example("elicitation"), [0.0] * 32
    few, some = [1.0] * 6 + [0.0] * 26, [1.0] * 16 + [0.0] * 16
    assert not behaviour_of(module, plain=none, examples=few, shuffled=none).has_gap
    one = behaviour_of(module, plain=none, examples=some, shuffled=some)
    assert one.has_gap
    assert not one.order_matters
    assert behaviour_of(module, plain=none, examples=some, shuffled=none).order_matters
    assert not behaviour_of(module, plain=none[:4], examples=[1.0, 0.0, 0.0, 0.0], shuffled=none[:4]).has_gap


def test_what_has_no_gap_is_said_to_bring_less_than_a_gap_and_not_nothing(example: Example) -> None:
    module, none = example("elicitation"), [0.0] * 32
    few = [1.0] * 6 + [0.0] * 26
    short, _ = judged(module, plain=none, examples=few, shuffled=none, vector=none)
    assert "5 examples bring out none of 1 tasks" in short
    assert re.search(
        r"examples bring 19% \[\d+, \d+\] more words right, less than the 20% that are called a gap", short
    )
    assert "plain 0% [0, 11]" in short
    unsure = [1.0, 0.0, 0.0, 0.0]
    short, _ = judged(module, plain=none[:4], examples=unsure, shuffled=unsure, vector=none[:4])
    assert "examples bring 25% [0, 75] more words right, which is not surely above 0" in short


def test_where_there_is_a_gap_the_share_that_a_vector_brings_is_of_what_examples_bring(example: Example) -> None:
    module, none = example("elicitation"), [0.0] * 32
    examples, vector = [1.0] * 16 + [0.0] * 16, [1.0] * 8 + [0.0] * 24
    short, text = judged(module, plain=none, examples=examples, shuffled=none, vector=vector)
    assert "5 examples bring out 1 of 1 tasks: pairs" in short
    assert re.search(r"one function vector brings 50% \[\d+, \d+\]", short)
    assert "sums of random heads bring 0% (all words alike)" in short
    assert "more than random heads in 1 of 1" in short
    assert "One added vector brings 50% of what 5 examples bring" in text
    assert "mean over 4 draws" in text
    assert "[0, 0]" not in short + text
    short, _ = judged(module, plain=none, examples=examples, shuffled=none, vector=none)
    assert "more than random heads in 0 of 1" in short


def test_the_price_is_said_to_be_that_of_every_token_as_it_is(example: Example, loaded: Loaded) -> None:
    module = example("elicitation")
    lab = lab_of(module, loaded, task=["past"])
    [task] = module.read_tasks(lab.chosen)
    direction = 3 * torch.randn(32, generator=torch.Generator().manual_seed(0))
    vector = given_vector(lab.model, direction, layers=1)
    found = module.Found(vector=vector, coefficient=1.0, heads=0, curve=torch.zeros(0, 2))
    text = "A quiet morning in the park."
    forms = module.other_forms(lab, task, found, [text])

    def hook(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output + direction

    ids = lab.tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        before = lab.model(ids).logits[0].log_softmax(-1)
        handle = lab.model.model.layers[1].register_forward_hook(hook)
        after = lab.model(ids).logits[0].log_softmax(-1)
        handle.remove()
    kl = (before.exp() * (before - after)).sum(-1)
    assert kl.mean() > 0.01
    assert kl[0] > 0  # the first token is steered, too
    assert float(forms.kl.mean) == pytest.approx(float(kl.mean()), rel=1e-3)
    assert "every token," in module.say.PRICE
    assert "behind the first" not in module.say.PRICE + module.say.LIMITS


# --- the experiment ---------------------------------------------------------------------------------------------------


def test_the_demo_answers_as_it_does_in_single_passes(example: Example, demo: Loaded, hooks: Hooks) -> None:
    module, before = example("elicitation"), hooks(demo[0])  # Transformers may have left its own on a shared model
    lab = lab_of(module, demo, task=["past"])
    [task] = module.read_tasks(lab.chosen)
    found = module.behaviour(lab, task)
    assert set(found.scores) == {"plain", "examples", "shuffled", "instruction"}
    assert found.gap.mean > 0.5
    for kind, prompts in (("plain", module.plain(task.test)), ("examples", module.with_examples(lab, task, task.test))):
        by_one = [by_hand(lab, prompt, answer) for prompt, (_, answer) in zip(prompts, task.test, strict=True)]
        torch.testing.assert_close(stacked(found.scores[kind])[:, 0], torch.tensor(by_one), atol=1e-3, rtol=1e-3)
    assert hooks(demo[0]) == before


def test_scores_are_those_of_single_passes_with_a_hook(example: Example, loaded: Loaded, hooks: Hooks) -> None:
    module = example("elicitation")
    lab = lab_of(module, loaded)
    words = [("France", "Paris"), ("Ethiopia", "Addis Ababa"), ("Mongolia", "Ulaanbaatar")]
    prompts = module.plain(words)
    vectors = [
        given_vector(lab.model, torch.randn(32, generator=torch.Generator().manual_seed(seed)), layers=1)
        for seed in (0, 1)
    ]
    scores = stacked(module.judge(lab, prompts, words, [module.adding(lab, vector, 2.0) for vector in vectors]))
    for n, (prompt, (_, answer)) in enumerate(zip(prompts, words, strict=True)):
        by_one = [by_hand(lab, prompt, answer)]
        by_one += [by_hand(lab, prompt, answer, (1, 2.0 * vector.direction)) for vector in vectors]
        torch.testing.assert_close(scores[n], torch.tensor(by_one), atol=1e-4, rtol=1e-4)
    assert hooks(lab.model) == 0


def test_a_heads_effect_is_that_of_its_mean_in_a_prompt_with_shuffled_answers(example: Example, loaded: Loaded) -> None:
    module = example("elicitation")
    lab = lab_of(module, loaded, task=["antonym"])
    [task] = module.read_tasks(lab.chosen)
    means = module.head_means(lab, task)
    effects = module.indirect_effects(lab, task, means)
    [prompt] = module.with_examples(lab, task, task.train[:1], shuffled=True)
    answer, width = task.train[0][1], means.held.shape[-1]

    def hook(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        changed = inputs[0].clone()
        changed[:, len(lab.tokenizer(prompt)["input_ids"]) - 1, 2 * width : 3 * width] = means.held[1, 2]
        return (changed,)

    before = torch.tensor(by_hand(lab, prompt, answer)[2]).exp()
    projection = lab.model.model.layers[1].self_attn.o_proj
    handle = projection.register_forward_pre_hook(hook)
    after = torch.tensor(by_hand(lab, prompt, answer)[2]).exp()
    handle.remove()
    torch.testing.assert_close(effects[0, 1 * 4 + 2], after - before, atol=1e-8, rtol=1e-3)
    weight = projection.weight[:, 2 * width : 3 * width]
    torch.testing.assert_close(means.written[1 * 4 + 2], weight @ means.held[1, 2], atol=1e-4, rtol=1e-4)


def test_heads_are_ranked_on_training_words_of_all_tasks_whatever_test_words_show(
    example: Example, loaded: Loaded
) -> None:
    module = example("elicitation")
    lab = lab_of(module, loaded, task=["past", "French"])
    tasks = module.read_tasks(lab.chosen)
    means = {task.name: module.head_means(lab, task) for task in tasks}
    heads = module.find_heads(lab, tasks, means)
    each = [module.indirect_effects(lab, task, means[task.name]) for task in tasks]
    torch.testing.assert_close(heads.effects, torch.cat(each))
    assert heads.ranked[0] == int(torch.cat(each).mean(0).argmax())
    others = [dataclasses.replace(task, test=task.test[::-1]) for task in tasks]
    assert module.find_heads(lab, others, means).ranked == heads.ranked
    page = module.example.Page(name="elicitation", title="", about="")
    module.say.heads(page, heads, len(tasks))
    assert "from all 2 tasks" in page._parts[-1]
    assert "flatter the first ones" in page._parts[-1]


def test_attention_is_shared_out_to_answers_words_and_the_word_asked_for(example: Example, loaded: Loaded) -> None:
    module = example("elicitation")
    lab = lab_of(module, loaded, task=["capital"])
    [task] = module.read_tasks(lab.chosen)
    found = module.looks_at(lab, [task], [(2, 1), (0, 3)])[0]
    total = torch.zeros(3)
    given = lab.model.config._attn_implementation
    lab.model.set_attn_implementation("eager")
    for text in module.with_examples(lab, task, task.train[: module.LOOKS]):
        kinds: list[int | None] = []
        for line in text[1:].split("\n"):
            word, _, answer = line.partition(" ->")
            for part, kind in (("\n", None), (word, 1), (" ->", None), (answer, 0)):
                kinds += [kind] * len(lab.tokenizer(part)["input_ids"] if part else [])
        last = len(lab.tokenizer(text[text.rindex("\n") + 1 : -3])["input_ids"])
        kinds[-1 - last : -1] = [2] * last
        with torch.no_grad():
            row = lab.model(**lab.tokenizer(text, return_tensors="pt"), output_attentions=True).attentions[2][0, 1, -1]
        assert len(kinds) == len(row)
        for kind, share in zip(kinds, row, strict=True):
            if kind is not None:
                total[kind] += share
    lab.model.set_attn_implementation(given)
    torch.testing.assert_close(found, total / module.LOOKS, atol=1e-4, rtol=1e-4)


def test_controls_stand_in_the_vectors_place_and_are_as_long(example: Example, loaded: Loaded) -> None:
    module = example("elicitation")
    lab = lab_of(module, loaded, task=["past"])
    [task] = module.read_tasks(lab.chosen)
    means = module.head_means(lab, task)
    vector = given_vector(lab.model, means.written[[5, 7]].sum(0), layers=1)
    found = module.Found(vector=vector, coefficient=2.0, heads=2, curve=torch.zeros(0, 2))
    kinds = module.controls(lab, found, means, [5, 7, 0, 1, 2])
    assert {kind: len(several) for kind, several in kinds.items()} == {"random heads": 4, "random directions": 4}
    sums = [means.written[[a, b]].sum(0) for a, b in ((0, 1), (0, 2), (1, 2))]
    for kind, several in kinds.items():
        for variant in several:
            [edit] = variant(-1)
            assert edit.site.layer == 1
            assert float(edit.value.norm()) == pytest.approx(2 * float(vector.direction.norm()), rel=1e-4)
            alike = max(float(torch.cosine_similarity(edit.value, x, dim=0)) for x in sums)
            assert (alike > 0.999) == (kind == "random heads")


def test_words_are_parted_and_shuffled_answers_are_those_of_the_other_examples(
    example: Example, loaded: Loaded
) -> None:
    module = example("elicitation")
    lab = lab_of(module, loaded, shots=5, n=32)
    tasks = module.read_tasks(lab.chosen)
    assert len(tasks) == 5
    for task in tasks:
        sets = [{word for word, _ in part} for part in (task.train, task.validation, task.test)]
        assert sum(map(len, sets)) == len(set.union(*sets)) >= 50
        assert task.instruction
        right, shuffled = (module.with_examples(lab, task, task.test, shuffled=wrong) for wrong in (False, True))
        answers = dict([*task.train, *task.test])
        for one, other in zip(right, shuffled, strict=True):
            lines, moved = ([line.split(" ->") for line in text[1:].split("\n")] for text in (one, other))
            assert [word for word, _ in lines] == [word for word, _ in moved]
            assert all(answers[word] == answer.strip() for word, answer in lines[:-1])
            assert sorted(answer for _, answer in lines) == sorted(answer for _, answer in moved)
            assert lines[-1][0] not in {word for word, _ in lines[:-1]}


# --- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "more", "said"),
    [
        ([{"input": "hot"}], [], "lacks output"),
        ([{"input": "hot", "output": "cold"}] * 2, [], "comes twice"),
        ([{"input": "hot", "output": " "}], [], "output is ' '"),
        ([{"input": "hot", "output": "cold"}], [], "has 1 pairs"),
        ([{"input": "hot", "output": "cold"}], ["--task", "capital"], "has no task 'capital'"),
    ],
)
def test_data_that_cannot_be_used_are_refused(
    example: Example, tmp_path: Path, rows: list[dict[str, str]], more: list[str], said: str
) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(SystemExit, match=said):
        example("elicitation").main(["--data", str(data), "-o", str(tmp_path), *more])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--n", "0"], "0 is not a whole number"),
        (["--n", "1"], "--n and --shots are 2 or more"),
        (["--shots", "1"], "--n and --shots are 2 or more"),
        (["--train", "-3"], "-3 is not a whole number"),
        (["--prompts", "1.5"], "1.5 is not a whole number"),
        (["--heads", "10", "0"], "0 is not a whole number"),
        (["--coefficients", "1", "nan"], "nan is not a finite number"),
        (["--coefficients", "many"], "invalid finite value: 'many'"),
    ],
)
def test_options_that_cannot_be_are_refused_before_a_model_is_loaded(
    example: Example, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        example("elicitation").main(["--model", "nowhere", *options])
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--heads", "3", "--layers", "1", "3"], "error: this model has layers 0 to 2, but --layers are 1, 3"),
        (["--heads", "3", "--layers", "-1"], "error: this model has layers 0 to 2, but --layers are -1"),
        (["--heads", "3", "7"], "error: --heads are at most 6"),
    ],
)
def test_layers_and_heads_that_the_model_lacks_are_refused_in_a_line(
    example: Example, loaded: Loaded, options: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = example("elicitation")
    monkeypatch.setattr(module.example, "load", lambda chosen: loaded)
    with pytest.raises(SystemExit) as refused:
        module.main(options)
    assert str(refused.value).startswith(said)
