"""How well a model does a task is what counting by hand gives, and the demo model does the tasks."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from interp_toolkit import InterpWarning, tasks
from interp_toolkit.errors import RunError, TokenError
from interp_toolkit.statistics import wilson
from interp_toolkit.tasks import TASKS, Score, Task
from tasks.offline import vocabulary, word_tokenizer


@cache
def random_model(vocab: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=1,
        n_embd=16,
        n_head=2,
        vocab_size=vocab or len(vocabulary()),
        initializer_range=1.0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return GPT2LMHeadModel(config).eval()


@cache
def task(name: str, **options: Any) -> Task:
    return TASKS[name](word_tokenizer(), **{"n": 30, **options})


def by_hand(made: Task, side: str) -> tuple[list[float], list[bool]]:
    values, tops = [], []
    for pair in made.pairs:
        ids = pair.clean_ids if side == "clean" else pair.corrupt_ids
        with torch.no_grad():
            logits = random_model()(torch.tensor([ids])).logits[0, -1]
        numbers = logits if made.metric == "logit_diff" else logits.softmax(-1)
        targets, foils = ([float(numbers[i]) for i in some] for some in (pair.targets, pair.foils))
        if made.metric == "logit_diff":
            values.append(sum(targets) / len(targets) - sum(foils) / len(foils))
        else:
            values.append(sum(targets) - sum(foils))
        tops.append(int(logits.argmax()) in pair.targets)
    return values, tops


@pytest.mark.filterwarnings("ignore:the model does not show")
@pytest.mark.parametrize("name", ["ioi", "greater_than", "country_capital"])
@pytest.mark.parametrize("batch_size", [1, 7])
def test_the_report_is_what_one_prompt_at_a_time_gives(name: str, batch_size: int) -> None:
    made = task(name, same_length=False)
    report = made.baseline(random_model(), batch_size=batch_size)
    clean, tops = by_hand(made, "clean")
    corrupt, _ = by_hand(made, "corrupt")
    assert report.clean == pytest.approx(clean, abs=1e-4)
    assert report.corrupt == pytest.approx(corrupt, abs=1e-4)
    assert report.accuracy == pytest.approx(sum(v > 0 for v in clean) / 30)
    assert report.top == pytest.approx(sum(tops) / 30)
    assert report.clean_better == pytest.approx(sum(a > b for a, b in zip(clean, corrupt, strict=True)) / 30)
    assert report.clean_mean == pytest.approx(sum(clean) / 30, abs=1e-4)
    spread = math.sqrt(sum((v - sum(clean) / 30) ** 2 for v in clean) / 29)
    assert report.clean_error == pytest.approx(spread / math.sqrt(report.prompts), rel=1e-3)
    assert 0 < report.accuracy < 1  # so that the counts above could be wrong


@pytest.mark.filterwarnings("ignore:the model does not show")
def test_each_template_is_scored_by_its_own_pairs() -> None:
    made = task("ioi")
    report = made.baseline(random_model())
    assert set(report.templates) == set(made.templates)
    assert sum(score.pairs for score in report.templates.values()) == 30
    for template, part in made.by_template().items():
        alone = part.baseline(random_model())
        assert report.templates[template].clean_mean == pytest.approx(alone.clean_mean, abs=1e-4)
        assert report.templates[template].accuracy == alone.accuracy


@pytest.mark.filterwarnings("ignore:the model does not show")
def test_shared_clean_prompts_widen_the_interval() -> None:
    made = tasks.country_capital(word_tokenizer(), n=144, split="validation")
    report = made.baseline(random_model())
    distinct = len({pair.clean_ids for pair in made.pairs})
    assert report.prompts == distinct < 144 == report.pairs
    assert report.interval == wilson(report.accuracy * distinct, distinct)


def test_a_model_that_guesses_is_warned_about() -> None:
    with pytest.warns(InterpWarning, match="does not show 'ioi'.*guessing could do"):
        report = task("ioi").baseline(random_model())
    assert not report.does_it
    assert "does not show ioi" in report.summary()


def test_a_model_that_answers_without_looking_is_warned_about() -> None:
    made = task("ioi")
    always = {pair.targets[0] for pair in made.pairs} - {pair.foils[0] for pair in made.pairs}
    biased = made.select([n for n, pair in enumerate(made.pairs) if pair.targets[0] in always])
    model = GPT2LMHeadModel(random_model().config).eval()
    model.transformer.ln_f.weight.data.zero_()
    model.transformer.ln_f.bias.data[:] = 1.0
    model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
    model.lm_head.weight.data[sorted(always)] = 1.0
    with pytest.warns(InterpWarning, match="favours the answer more than the corrupt one in only 0% of pairs"):
        report = biased.baseline(model)
    assert report.accuracy == 1.0


@pytest.mark.filterwarnings("ignore:the model does not show")
def test_filtering_keeps_the_right_ones_and_counts_the_others() -> None:
    made = task("ioi")
    values, _ = by_hand(made, "clean")
    right = [pair for pair, value in zip(made.pairs, values, strict=True) if value > 0]
    kept = made.filtered(random_model())
    assert list(kept.pairs) == right
    assert kept.dropped == 30 - len(right) > 0
    assert f"{kept.dropped} were dropped" in kept.summary()
    assert kept.baseline(random_model()).accuracy == 1.0
    assert f"({kept.dropped} were dropped before)" in kept.baseline(random_model()).summary()
    wrong = made.select([n for n, value in enumerate(values) if value <= 0])
    with pytest.raises(RunError, match="gets none of the"):
        wrong.filtered(random_model())


def test_numbers_that_do_not_exist_are_none_in_plain_data() -> None:
    with pytest.warns(InterpWarning, match="with more pairs it may be clearer|guessing could do"):
        report = task("ioi").select([0]).baseline(random_model())
    facts = report.to_dict()
    assert math.isnan(report.clean_error)
    assert facts["clean_error"] is None
    assert facts["does_it"] is False
    assert next(iter(facts["templates"].values()))["clean_error"] is None
    assert facts["provenance"]["model_type"] == "gpt2"


def test_a_task_of_another_tokenizer_is_refused() -> None:
    with pytest.raises(TokenError, match="outside of the model's vocabulary"):
        task("ioi").baseline(random_model(40))
    answers = tasks.from_pairs(word_tokenizer(), [[1, 2]], [[1, 3]], [(50, 60)])
    with pytest.raises(
        TokenError, match="40 tokens, but an answer is token 60: the task was made for another tokenizer"
    ):
        answers.baseline(random_model(40))


def test_a_batch_has_at_least_one_prompt() -> None:
    with pytest.raises(RunError, match="batch_size"):
        task("ioi").baseline(random_model(), batch_size=0)


# --- the demo model -----------------------------------------------------------------------------------------------

# Number of pairs, least accuracy, and bounds of the mean logit difference on clean prompts, which the corrupt ones
# mirror. Means over 48 pairs, see docs/tasks.md: 8.4, 4.0, 7.5, 5.8 and 2.5.
EXPECTED = {
    "country_capital": (20, 0.9, 6, 12),
    "docstring": (6, 0.8, 2, 6),
    "induction": (8, 0.8, 4, 12),
    "ioi": (8, 0.8, 3.5, 8),
    "subject_verb_agreement": (20, 0.85, 1.5, 4),
}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_the_demo_model_does_it(name: str, demo: tuple[Any, Any]) -> None:
    n, accuracy, low, high = EXPECTED[name]
    report = TASKS[name](demo[1], n=n).baseline(demo[0])
    assert isinstance(report, Score)
    assert report.does_it
    assert report.accuracy >= accuracy
    assert low <= report.clean_mean <= high
    assert -high <= report.corrupt_mean <= -low + 1
    assert "does " + name in report.summary()


@pytest.mark.filterwarnings("ignore")
def test_a_baseline_is_drawn_with_its_templates() -> None:
    report = task("ioi").baseline(random_model())
    chart = report.plot()
    line = chart.series[0]
    assert line.y == [report.accuracy, *(score.accuracy for score in report.templates.values())]
    assert line.ends(0) == pytest.approx(report.interval)
    assert next(iter(chart.x)) == "all"
    assert "lines.js" in report._repr_html_()
