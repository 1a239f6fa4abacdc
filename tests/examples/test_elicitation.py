"""The example on elicitation: it runs end to end, counts what is right as a plain loop does, and makes nothing up."""

from __future__ import annotations

import json
import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

import tiny
from interp_toolkit import load_model
from interp_toolkit.steering import given_vector

Example = Callable[[str], ModuleType]
Demo = tuple[PreTrainedModel, PreTrainedTokenizerBase]
SMALL = ["--n", "4", "--shots", "2", "--train", "3", "--prompts", "1", "--coefficients", "1", "--heads", "3"]


@pytest.fixture(scope="module")
def folder(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with random weights and the demo's tokenizer."""
    config = LlamaConfig(
        vocab_size=len(demo[1]),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=256,
    )
    model = LlamaForCausalLM(config).eval()
    tiny.randomise(model)
    path = tmp_path_factory.mktemp("random")
    model.save_pretrained(path)
    demo[1].save_pretrained(path)
    return path


def lab_of(module: ModuleType, folder: Path, **options: Any) -> Any:
    chosen = {
        "seed": 0,
        "shots": 2,
        "n": 4,
        "instruction": None,
        "task": None,
        "data": module.DATA / "elicitation.jsonl",
    }
    return module.Lab(*load_model(str(folder)), Namespace(**(chosen | options)))


def hooks(model: PreTrainedModel) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


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


def test_a_model_that_examples_do_not_help_is_said_to_show_nothing(
    example: Example, folder: Path, tmp_path: Path
) -> None:
    given = ["--model", str(folder), "-o", str(tmp_path), "--task", "capital", *SMALL]
    page = example("elicitation").main(given).read_text()
    assert "2 examples bring out none of 1 tasks" in page
    assert "One added vector brings" not in re.sub("<details.*?</details>", "", page, flags=re.DOTALL)
    assert "In capital there is no gap: plain 0% [0, 0], examples 0% [0, 0], vector 0% [0, 0]." in page
    assert {file.name for file in tmp_path.iterdir()} == {"elicitation.md"} | {
        f"elicitation{picture}.{kind}" for picture in ("", "-layers") for kind in ("svg", "html")
    }


def test_a_file_of_ones_own_runs_to_the_end_and_twice_to_the_same_bytes(
    example: Example, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = example("elicitation")
    models: list[PreTrainedModel] = []
    load = module.load
    monkeypatch.setattr(module, "load", lambda chosen: [(found := load(chosen)), models.append(found[0])][0])
    monkeypatch.setattr(module, "above", lambda estimate: True)
    monkeypatch.setattr(module, "LEAST", -1.0)
    data, found = tmp_path / "pairs.jsonl", []
    data.write_text("\n".join(json.dumps({"input": f"word {n}", "output": f"answer {n}"}) for n in range(12)))
    for name in ("one", "two"):
        given = ["--model", str(folder), "-o", str(tmp_path / name), "--data", str(data), *SMALL]
        path = module.main([*given, "--instruction", "Say it.", "--layers", "1"])
        found.append({file.name: file.read_text() for file in sorted(path.parent.iterdir())})
        found[-1]["elicitation.md"] = found[-1]["elicitation.md"].rsplit("It took", 1)[0]
    assert found[0] == found[1]
    page = found[0]["elicitation.md"]
    assert "2 examples bring out 1 of 1 tasks: pairs." in page
    assert "| Say it. |" in page
    assert "other tasks' vectors" not in re.sub("<details.*?</details>", "", page, flags=re.DOTALL)
    assert "--instruction 'Say it.'" in page
    assert [hooks(model) for model in models] == [0, 0]


def test_the_demo_answers_as_it_does_in_single_passes(example: Example, demo: Demo) -> None:
    module, before = example("elicitation"), hooks(demo[0])  # Transformers may have left its own on a shared model
    chosen = Namespace(seed=0, shots=2, n=4, instruction=None, task=["past"], data=module.DATA / "elicitation.jsonl")
    lab = module.Lab(*demo, chosen)
    [task] = module.read_tasks(chosen)
    found = module.behaviour(lab, task)
    assert set(found) == {"plain", "examples", "shuffled", "instruction"}
    assert module.gap_of(found).mean > 0.5
    for kind, prompts in (("plain", module.plain(task.test)), ("examples", module.with_examples(lab, task, task.test))):
        by_one = [by_hand(lab, prompt, answer) for prompt, (_, answer) in zip(prompts, task.test, strict=True)]
        torch.testing.assert_close(found[kind], torch.tensor(by_one), atol=1e-3, rtol=1e-3)
    assert hooks(demo[0]) == before


def test_scores_are_those_of_single_passes_with_a_hook(example: Example, folder: Path) -> None:
    module = example("elicitation")
    lab = lab_of(module, folder)
    words = [("France", "Paris"), ("Ethiopia", "Addis Ababa"), ("Mongolia", "Ulaanbaatar")]
    prompts = module.plain(words)
    vector = given_vector(lab.model, torch.randn(32, generator=torch.Generator().manual_seed(0)), layers=1)
    scores = module.judge(lab, prompts, words, [module.adding(lab, module.Found(vector, 2.0, 0))])
    for n, (prompt, (_, answer)) in enumerate(zip(prompts, words, strict=True)):
        plain = torch.tensor(by_hand(lab, prompt, answer))
        steered = torch.tensor(by_hand(lab, prompt, answer, (1, 2.0 * vector.direction)))
        torch.testing.assert_close(scores[n], torch.stack([plain, steered]), atol=1e-4, rtol=1e-4)
    assert hooks(lab.model) == 0


def test_a_heads_effect_is_that_of_its_mean_in_a_prompt_with_shuffled_answers(example: Example, folder: Path) -> None:
    module = example("elicitation")
    lab = lab_of(module, folder, prompts=1, task=["antonym"])
    [task] = module.read_tasks(lab.chosen)
    held, written = module.head_means(lab, module.with_examples(lab, task, task.train[:3]))
    effects = module.indirect_effects(lab, task, held)
    [prompt] = module.with_examples(lab, task, task.train[:1], shuffled=True)
    answer, width = task.train[0][1], held.shape[-1]

    def hook(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        changed = inputs[0].clone()
        changed[:, len(lab.tokenizer(prompt)["input_ids"]) - 1, 2 * width : 3 * width] = held[1, 2]
        return (changed,)

    before = torch.tensor(by_hand(lab, prompt, answer)[2]).exp()
    projection = lab.model.model.layers[1].self_attn.o_proj
    handle = projection.register_forward_pre_hook(hook)
    after = torch.tensor(by_hand(lab, prompt, answer)[2]).exp()
    handle.remove()
    torch.testing.assert_close(effects[0, 1 * 4 + 2], after - before, atol=1e-8, rtol=1e-3)
    weight = projection.weight[:, 2 * width : 3 * width]
    torch.testing.assert_close(written[1, 2], weight @ held[1, 2], atol=1e-4, rtol=1e-4)


def test_attention_is_shared_out_to_answers_words_and_the_word_asked_for(example: Example, folder: Path) -> None:
    module = example("elicitation")
    lab = lab_of(module, folder, task=["capital"])
    [task] = module.read_tasks(lab.chosen)
    task = module.replace(task, train=task.train[:4])
    found = module.looks_at(lab, [task], [module.Site("z", 2, 1)])[0]
    total = torch.zeros(3)
    lab.model.set_attn_implementation("eager")
    for text in module.with_examples(lab, task, task.train):
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
    torch.testing.assert_close(found, total / 4, atol=1e-4, rtol=1e-4)


def test_words_are_parted_and_shuffled_answers_are_those_of_the_other_examples(example: Example, demo: Demo) -> None:
    module = example("elicitation")
    chosen = Namespace(seed=0, shots=5, n=32, instruction=None, task=None, data=module.DATA / "elicitation.jsonl")
    tasks = module.read_tasks(chosen)
    assert len(tasks) == 5
    for task in tasks:
        sets = [{word for word, _ in part} for part in (task.train, task.validation, task.test)]
        assert sum(map(len, sets)) == len(set.union(*sets)) >= 50
        assert task.instruction
        right, shuffled = (
            module.with_examples(module.Lab(*demo, chosen), task, task.test, shuffled=wrong) for wrong in (False, True)
        )
        answers = dict([*task.train, *task.test])
        for one, other in zip(right, shuffled, strict=True):
            lines, moved = ([line.split(" ->") for line in text[1:].split("\n")] for text in (one, other))
            assert [word for word, _ in lines] == [word for word, _ in moved]
            assert all(answers[word] == answer.strip() for word, answer in lines[:-1])
            assert sorted(answer for _, answer in lines) == sorted(answer for _, answer in moved)
            assert lines[-1][0] not in {word for word, _ in lines[:-1]}


@pytest.mark.parametrize(
    ("rows", "more", "said"),
    [
        ([{"input": "hot"}], [], "lacks output"),
        ([{"input": "hot", "output": "cold"}] * 2, [], "comes twice"),
        ([{"input": "hot", "output": " "}], [], "has no output"),
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
