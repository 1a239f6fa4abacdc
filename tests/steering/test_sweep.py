"""Sweeps of steering: every number against hooks of the test's own, the rule that chooses, words and pictures."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from interp_toolkit.errors import SteeringError, TokenError
from interp_toolkit.model import Span, encode
from interp_toolkit.model.verify import verified
from interp_toolkit.provenance import provenance_of
from interp_toolkit.statistics import bootstrap_mean
from interp_toolkit.steering import (
    Gate,
    Question,
    SteeringSweep,
    SteeringVector,
    Trials,
    ab_questions,
    given_vector,
    steer,
    steering_sweep,
)
from interp_toolkit.steering.measuring import Batch, Outputs, measures, repetition
from interp_toolkit.steering.trials import Case
from interp_toolkit.visualization import Heatmap, LineChart
from steering.steered import at, generate, hooked, text_of, vector_of, word_tokenizer
from tiny import model_of, tokens

QUESTIONS = [
    Question(prompt=row.tolist()[: 5 + n], matching=7 + n, other=20 + n, group=n // 2)
    for n, row in enumerate(tokens(4, 9, seed=21))
]
TARGETS = [([5, 6, 7], [8, 9]), ([5, 9, 7, 11], [12]), ([4, 3], [10, 11, 12])]
NEUTRAL = [row.tolist()[: 6 + n] for n, row in enumerate(tokens(3, 9, seed=22))]
TRIALS = Trials(questions=QUESTIONS, targets=TARGETS, neutral=NEUTRAL)
PARTS: dict[str, Any] = {"all": lambda p: slice(0, None), "predicting": lambda p: slice(p - 1, None)}


def added(vector: SteeringVector, layer: int, coefficient: float) -> Any:
    value = vector.units[layer] * vector.norms[layer] * coefficient
    return lambda x: x + value


def logits_of(model: Any, ids: list[int], layer: int, change: Any) -> tuple[Tensor, Tensor]:
    """Logits and the last residual stream behind a hook of our own."""
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    with torch.no_grad(), hooked(model, layer, change), hooked(model, 2, keep):
        return model(torch.tensor([ids])).logits[0], kept[0][0]


@pytest.mark.parametrize("where", ["all", "predicting"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_every_number_is_that_of_a_hook(name: str, where: str) -> None:
    model, vector, part = model_of(name), vector_of(name), PARTS[where]
    found = steering_sweep(
        model, vector, TRIALS, layers=[0, 1], coefficients=[-0.5, 1.0], positions=where, random=1, seed=3
    )
    drawn = torch.randn(vector.directions.shape, generator=torch.Generator().manual_seed(3))
    other = replace(vector, directions=drawn)
    for n, each in enumerate((vector, other)):
        for m, layer in enumerate((0, 1)):
            for k, coefficient in enumerate((-0.5, 1.0)):
                cell = (n, m, k)

                def change(prompt: int, each: Any = each, layer: int = layer, c: float = coefficient) -> Any:
                    return at(part(prompt), added(each, layer, c))

                pairs = []
                for q in QUESTIONS:
                    logits, _ = logits_of(model, list(q.prompt), layer, change(len(q.prompt)))
                    pairs.append(float(logits[-1, int(q.matching)] - logits[-1, int(q.other)]))
                expected = torch.tensor(pairs).view(2, 2).mean(1)
                assert_close(found.values["logit_diff"][:, *cell], expected)
                for row, (prompt, text) in enumerate(TARGETS):
                    logits, _ = logits_of(model, [*prompt, *text], layer, change(len(prompt)))
                    logp = logits.log_softmax(-1)
                    mean = sum(logp[len(prompt) - 1 + i, t] for i, t in enumerate(text)) / len(text)
                    assert_close(found.values["log_prob"][row, *cell], mean)
                for row, ids in enumerate(NEUTRAL):
                    logits, stream = logits_of(model, ids, layer, change(1))
                    plain, old = logits_of(model, ids, layer, lambda x: x)
                    p, q = plain.log_softmax(-1), logits.log_softmax(-1)
                    assert_close(found.values["kl"][row, *cell], (p.exp() * (p - q)).sum(-1).mean())
                    nll = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]))
                    assert_close(found.values["nll"][row, *cell], nll)
                    assert_close(found.values["norm"][row, *cell], (stream.norm(dim=-1) / old.norm(dim=-1)).mean())
    assert found.names == ("vector", "random 1")


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.float(), expected.float(), atol=2e-5, rtol=1e-4)


def test_tokens_in_front_of_the_first_steered_one_do_not_dilute_the_change() -> None:
    model, vector = model_of("llama"), vector_of("llama")
    trials = Trials(questions=QUESTIONS, neutral=NEUTRAL[:1])
    found = steering_sweep(model, vector, trials, layers=1, coefficients=[1.0], positions="last", random=0)
    logits, _ = logits_of(model, NEUTRAL[0], 1, at([-1], added(vector, 1, 1.0)))
    plain, _ = logits_of(model, NEUTRAL[0], 1, lambda x: x)
    p, q = plain[-1].log_softmax(-1), logits[-1].log_softmax(-1)
    assert_close(found.values["kl"][0, 0, 0, 0], (p.exp() * (p - q)).sum())


def test_gates_and_other_operations_are_swept_too() -> None:
    model, vector = model_of("llama"), vector_of("llama")
    gate = Gate(direction=torch.linspace(-1, 1, 32), site="resid_post.0")
    settings: dict[str, Any] = {"operation": "clamp", "when": gate}
    trials = Trials(questions=QUESTIONS[:2])
    found = steering_sweep(model, vector, trials, layers=2, coefficients=[0.5, -2.0], random=0, **settings)
    for k, coefficient in enumerate([0.5, -2.0]):
        expected = []
        for q in QUESTIONS[:2]:
            with torch.no_grad(), steer(model, vector, coefficient, layers=2, **settings):
                logits = model(torch.tensor([q.prompt])).logits[0, -1]
            expected.append(logits[int(q.matching)] - logits[int(q.other)])
        assert_close(found.values["logit_diff"][0, 0, 0, k], torch.stack(expected).mean())


def test_padding_and_packing_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    model, vector = model_of("gpt2"), vector_of("gpt2")
    trials = replace(TRIALS, new_tokens=6)

    def swept() -> SteeringSweep:
        return steering_sweep(model, vector, trials, coefficients=[-1.0, 2.0], positions="predicting", random=1)

    packed = swept()
    monkeypatch.setattr("interp_toolkit.steering.sweep._ROOM", 1)
    for side in ("left", "right"):
        monkeypatch.setitem(verified(model).padding, side, "as if")
    alone = swept()
    assert packed.measures == ("logit_diff", "log_prob", "kl", "nll", "norm", "repetition")
    for name in packed.measures:
        torch.testing.assert_close(packed.before[name], alone.before[name], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(packed.values[name], alone.values[name], atol=2e-5, rtol=1e-4, equal_nan=True)


def test_a_token_that_the_model_rules_out_makes_no_cost_unknown() -> None:
    batch = Batch(cases=(Case(ids=(1, 2, 3, 4), prompt=4),), tokens=encode([[1, 2, 3, 4]]))
    drawn = torch.randn(2, 1, 4, 10, generator=torch.Generator().manual_seed(0))
    drawn[..., 9] = -torch.inf
    costs = []
    for logits in (drawn, drawn[..., :9]):  # with a token of no probability, and without it
        steered, plain = (Outputs(logits=one, stream=torch.ones(1, 4, 8)) for one in logits)
        costs.append(measures(batch, steered, plain, torch.ones(1, 4, dtype=torch.bool)))
    assert float(costs[0]["kl"]) > 0.1
    torch.testing.assert_close(costs[0], costs[1])


def test_a_direction_that_writes_the_answer_is_found_and_beats_random_ones() -> None:
    model = model_of("gpt2")
    weight = model.lm_head.weight.detach()
    pairs = [Question(prompt=row.tolist(), matching=7, other=20) for row in tokens(6, 6, seed=5)]
    vector = given_vector(model, (weight[7] - weight[20]).expand(3, -1), prompts=tokens(4, 8))
    trials = Trials(questions=pairs, neutral=NEUTRAL)
    found = steering_sweep(model, vector, trials, coefficients=[-0.5, -0.1, 0.1, 0.5], random=3)
    best = found.best(max_kl=None)
    assert best.coefficient == 0.5
    assert best.low > abs(best.random)
    assert found.best(max_kl=None, towards="less").coefficient == -0.5
    assert bool((found.beyond_random().low[:, 3] > 0).all())
    # A limit on what it may cost keeps to smaller changes.
    limit = float(found.values["kl"][:, 0].mean(0)[:, 1:3].max())
    assert abs(found.best(max_kl=limit).coefficient) == 0.1
    assert found.best(max_kl=limit).kl <= limit
    with pytest.raises(SteeringError, match="no setting has a KL of at most 1e-09 nats; the least is"):
        found.best(max_kl=1e-9)


def test_letters_are_swapped_and_questions_count_once() -> None:
    questions = ab_questions([("w5 ?", "w6", "w7"), ("w8 ?", "w9", "w10")], template="{question} w20 {a} w21 {b} w22")
    assert [q.prompt for q in questions[:2]] == ["w5 ? w20 w6 w21 w7 w22", "w5 ? w20 w7 w21 w6 w22"]
    assert [(q.matching, q.other) for q in questions] == [("A", "B"), ("B", "A")] * 2
    assert [q.group for q in questions] == [0, 0, 1, 1]
    # A model that only likes a letter has no logit difference: what steering adds to the letter cancels.
    model, tokenizer = model_of("gpt2"), word_tokenizer()
    asked = [
        replace(q, matching={"A": "w30", "B": "w31"}[q.matching], other={"A": "w30", "B": "w31"}[q.other])
        for q in questions
    ]
    letter = (model.lm_head.weight[30] - model.lm_head.weight[31]).detach()
    vector = given_vector(model, letter, layers=2, prompts=tokens(2, 8))
    found = steering_sweep(model, vector, Trials(questions=asked), coefficients=[1.0], random=0, tokenizer=tokenizer)
    alone = [replace(q, group=None) for q in asked]
    each = steering_sweep(model, vector, Trials(questions=alone), coefficients=[1.0], random=0, tokenizer=tokenizer)
    assert found.before["logit_diff"].shape == (2,)
    assert float(each.change().abs().min()) > 1
    assert float(found.change().abs().max()) < 0.2 * float(each.change().abs().min())
    with pytest.raises(SteeringError, match=r"the template lacks \{b\}"):
        ab_questions([], template="{question} {a}")


def test_an_instruction_is_measured_without_steering() -> None:
    model, vector, tokenizer = model_of("llama"), vector_of("llama"), word_tokenizer()
    questions = [Question(prompt=f"w{n} w5 w6", matching="w7", other="w8") for n in range(10, 14)]
    trials = Trials(questions=questions, targets=[("w5 w6", " w7 w8")], instruction="w40 w41 ")
    found = steering_sweep(model, vector, trials, layers=1, coefficients=[0.5], random=1, tokenizer=tokenizer)
    with torch.no_grad():
        logits = [model(torch.tensor([[40, 41, n, 5, 6]])).logits[0, -1] for n in range(10, 14)]
        target = model(torch.tensor([[40, 41, 5, 6, 7, 8]])).logits[0].log_softmax(-1)
    assert_close(found.prompted["logit_diff"], torch.stack([x[7] - x[8] for x in logits]))
    assert_close(found.prompted["log_prob"][0], (target[3, 7] + target[4, 8]) / 2)
    change = found.prompted["logit_diff"] - found.before["logit_diff"]
    torch.testing.assert_close(found.prompting().low, bootstrap_mean(change).low)
    assert "The plain instruction changes it by" in found.summary()
    bare = steering_sweep(model, vector, replace(trials, instruction=None), layers=1, random=0, tokenizer=tokenizer)
    with pytest.raises(SteeringError, match="no instruction was tried"):
        bare.prompting()
    with pytest.raises(SteeringError, match="nothing random was run"):
        bare.random()


def test_repetition_is_that_of_the_text_that_is_generated() -> None:
    assert repetition([5, 5, 5, 5, 5]) == pytest.approx(2 / 3)
    model, vector = model_of("llama"), vector_of("llama")
    trials = Trials(questions=QUESTIONS, neutral=NEUTRAL[:2], new_tokens=10)
    found = steering_sweep(model, vector, trials, layers=1, coefficients=[4.0], positions="predicting", random=1)
    for row, ids in enumerate(NEUTRAL[:2]):
        prompt = torch.tensor([ids])
        plain = generate(model, prompt, max_new_tokens=10)[0, len(ids) :].tolist()
        with steer(model, vector, 4.0, layers=1, positions="predicting"):
            text = generate(model, prompt, max_new_tokens=10)[0, len(ids) :].tolist()
        assert float(found.before["repetition"][row]) == pytest.approx(repetition(plain))
        assert float(found.values["repetition"][row, 0, 0, 0]) == pytest.approx(repetition(text))
    assert bool(found.values["repetition"][:, 1].isnan().all())  # random directions are spared it


def test_the_same_seed_gives_the_same_numbers() -> None:
    model, vector = model_of("llama"), vector_of("llama").at(1)
    trials = Trials(questions=QUESTIONS)
    a, b, c = (steering_sweep(model, vector, trials, coefficients=[1.0], random=2, seed=s) for s in (1, 1, 2))
    assert torch.equal(a.values["logit_diff"], b.values["logit_diff"])
    assert not torch.equal(a.values["logit_diff"][:, 1:], c.values["logit_diff"][:, 1:])
    assert torch.equal(a.values["logit_diff"][:, 0], c.values["logit_diff"][:, 0])


def finding(**changes: Any) -> SteeringSweep:
    """A result whose numbers are known: two layers, two coefficients, one random direction, two texts."""
    effect = torch.tensor([[[1.0, 3.0], [2.0, 5.0]], [[0.5, 0.5], [0.0, 0.0]]], dtype=torch.float64)
    kl = torch.tensor([[[0.01, 0.2], [0.05, 0.9]], [[0.1, 0.1], [0.1, 0.1]]], dtype=torch.float64)
    settings: dict[str, Any] = {
        "layers": (3, 5),
        "coefficients": (0.5, 1.0),
        "names": ("vector", "random 1"),
        "before": {"logit_diff": torch.tensor([-1.0, -1.0]).double(), "kl": torch.zeros(2).double()},
        "values": {"logit_diff": torch.stack([effect - 1.5, effect - 0.5]), "kl": torch.stack([kl, kl])},
        "prompted": {},
        "about": "add at resid_post",
        "unit": "coefficient",
        "provenance": provenance_of(model_of("llama"), vector_layout()),
        **changes,
    }
    return SteeringSweep(**settings)


def vector_layout() -> Any:
    from interp_toolkit.model import layout_of

    return layout_of(model_of("llama"))


def test_the_best_setting_is_the_largest_effect_within_the_limit() -> None:
    found = finding()
    assert [(s.layer, s.coefficient) for s in (found.best(max_kl=k) for k in (0.1, 0.2, None))] == [
        (5, 0.5),
        (3, 1.0),
        (5, 1.0),
    ]
    best = found.best()
    assert (best.effect, best.kl, best.random) == (pytest.approx(2.0), pytest.approx(0.05), pytest.approx(0.0))
    assert best.rule == "the largest mean rise of the logit difference with a KL on neutral texts of at most 0.1 nats"
    assert (found.best(towards="less").layer, found.best(towards="less").effect) == (3, pytest.approx(1.0))
    words = found.summary()
    assert "Best is layer 5, 0.5: +2.00 [1.50, 2.50], random directions +0.00 [-0.50, 0.50]" in words
    assert "judge it on others" in words
    assert "No setting keeps KL on neutral texts at or below 0.001 nats" in found.summary(max_kl=0.001)
    only = finding(values={"logit_diff": found.values["logit_diff"]}, before={"logit_diff": found.before["logit_diff"]})
    with pytest.raises(SteeringError, match="no neutral texts to limit the KL on"):
        only.best()
    assert math.isnan(only.best(max_kl=None).kl)
    with pytest.raises(SteeringError, match="'norm' was not measured; there are logit_diff, kl"):
        found.best("norm")


def test_tables_and_pictures_show_the_numbers() -> None:
    found = finding()
    table = found.to_dataframe()
    assert len(table) == 8
    row = table[(table.name == "vector") & (table.layer == 5) & (table.coefficient == 1.0)].iloc[0]
    assert row.logit_diff_change == pytest.approx(5.0)
    assert (row.logit_diff_low, row.logit_diff_high) == (pytest.approx(4.5), pytest.approx(5.5))
    assert row.kl == pytest.approx(0.9)
    picture = found.plot()
    assert isinstance(picture, Heatmap)
    assert picture.values == [[pytest.approx(1.0), pytest.approx(3.0)], [pytest.approx(2.0), pytest.approx(5.0)]]
    assert picture.notes is not None
    assert picture.notes[1][0] == "+2.00 [1.50, 2.50]\nrandom +0.00 [-0.50, 0.50]\nKL 0.05"
    chart = found.plot(kind="lines")
    assert isinstance(chart, LineChart)
    assert [s.name for s in chart.series] == ["layer 3", "layer 5", "random, layer 3", "random, layer 5"]
    assert [s.grey for s in chart.series] == [False, False, True, True]
    assert "Steering" in found._repr_html_()


@pytest.mark.parametrize(
    ("trials", "settings", "error", "message"),
    [
        (Trials(), {}, SteeringError, "nothing to measure an effect on"),
        (TRIALS, {"coefficients": []}, SteeringError, "coefficients are different numbers"),
        (TRIALS, {"coefficients": [1, 1.0]}, SteeringError, "coefficients are different numbers"),
        (TRIALS, {"layers": "writers"}, SteeringError, "a sweep goes layer by layer"),
        (TRIALS, {"positions": Span("w5")}, SteeringError, "positions that mean the same"),
        (TRIALS, {"positions": "generated"}, SteeringError, "steer 'predicting' tokens"),
        (TRIALS, {"random": -1}, SteeringError, "0 random directions or more"),
        (replace(TRIALS, instruction="Be w5."), {}, SteeringError, "an instruction goes before text"),
        (replace(TRIALS, new_tokens=2), {}, SteeringError, "at least 4 new tokens"),
        (replace(TRIALS, neutral=[[5]]), {}, SteeringError, "neutral text 0 has one token"),
        (replace(TRIALS, targets=[([5], [])]), {}, SteeringError, "a target needs a prompt and a continuation"),
        (Trials(questions=[Question(prompt=[5], matching=7, other=7)]), {}, SteeringError, "are different tokens"),
        (Trials(questions=[Question(prompt="w5", matching="w7 w8", other="w9")]), {}, TokenError, "not one token"),
    ],
)
def test_trials_that_measure_nothing_are_refused(
    trials: Trials, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        steering_sweep(model_of("llama"), vector_of("llama"), trials, tokenizer=word_tokenizer(), **settings)


def test_text_of_ids_is_what_the_tokenizer_reads() -> None:
    assert word_tokenizer()(text_of([5, 6]))["input_ids"] == [5, 6]
