"""Sweeps of probes: what is trained on what, what is chosen by what, and what is claimed."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from interp_toolkit.activations import ActivationCache, extract
from interp_toolkit.errors import FileFormatError, InterpWarning, ProbeError
from interp_toolkit.probes import sweeping
from interp_toolkit.probes.controls import permutations
from interp_toolkit.probes.data import ProbeData
from interp_toolkit.probes.findings import ProbeSweep
from interp_toolkit.probes.inputs import read_targets
from interp_toolkit.probes.kinds import KINDS
from interp_toolkit.probes.linear import LinearProbe
from interp_toolkit.probes.scoring import association
from interp_toolkit.probes.splits import given_split, split_rows
from interp_toolkit.probes.sweep import PENALTIES, probe_sweep
from interp_toolkit.probes.weighting import row_weights
from tiny import model_of

QUICK: dict[str, Any] = {"permutations": 19, "draws": 200, "penalties": (0.01, 1.0)}
SUPERVISED = tuple(kind for kind in KINDS if kind != "contrast")


def noise(rows: int = 160, layers: int = 3, width: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(layers, rows, width, generator=torch.Generator().manual_seed(seed))


def signs(x: Tensor, layer: int = 1) -> list[str]:
    return ["yes" if value > 0 else "no" for value in x[layer, :, 0] + 0.3 * x[layer, :, 1]]


def quick(x: Any, labels: Any = None, **options: Any) -> ProbeSweep:
    return probe_sweep(x, labels=labels, **(QUICK | {"kinds": "ridge"} | options))


@cache
def found() -> ProbeSweep:
    """A concept that is in the second of three layers, with texts that say nothing."""
    x = noise()
    texts = [f"text {n} {n * 7 % 11}" for n in range(160)]
    return probe_sweep(x, texts, signs(x), name="a sign", kinds=("logistic", "lda"), **QUICK)


# --- what is claimed -----------------------------------------------------------------------------------------------


def test_a_concept_is_found_in_its_layer_and_said_so() -> None:
    assert found().best.layer == 1
    assert found().passes_controls
    assert [b.name for b in found().baselines] == ["the majority class", "a bag of words"]
    text = found().summary()
    assert text.startswith("“a sign” can be read off 1 (given activations): accuracy ")
    for part in ("bag of words reaches", "shuffled labels it reaches", "p = 0.050", "bits a label", "40 rows"):
        assert part in text, part
    assert "A probe shows what can be read off, not that the model uses it" in text


def test_noise_is_not_said_to_be_represented() -> None:
    x = noise(seed=5)
    sweep = quick(x, torch.arange(160) % 2)
    assert not sweep.passes_controls
    assert sweep.summary().startswith("It is not shown that “the label” can be read off")
    assert "may do as well" in sweep.summary()
    assert "What a bag of words reaches is not known" in sweep.summary()


@pytest.mark.parametrize("target", ["classes", "regression"])
def test_noise_is_hardly_ever_represented_and_its_p_values_are_even(target: Any) -> None:
    """The p-value is below a half in half of all cases, and a claim is as rare as its level."""
    sweeps = []
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        groups = torch.arange(40).repeat_interleave(3)
        x = torch.randn(2, 40, 4, generator=generator)[:, groups] + 0.1 * torch.randn(2, 120, 4, generator=generator)
        y = torch.randn(40, generator=generator) if target == "regression" else torch.arange(40) % 2
        y = y[torch.randperm(40, generator=generator)][groups]
        sweeps.append(quick(x, y, groups=groups, target=target, seed=seed, kinds="ridge"))
    assert sum(s.passes_controls for s in sweeps) <= 2
    p = np.array([s.p_value for s in sweeps])
    assert 0.3 < np.mean(p <= 0.5) < 0.7
    assert np.mean(p <= 0.1) <= 0.225


def test_what_words_tell_as_well_is_not_said_to_be_represented() -> None:
    labels = torch.arange(160) % 2
    x = noise() + 4 * labels[:, None]
    texts = [f"{'good' if y else 'bad'} {n}" for n, y in enumerate(labels.tolist())]
    sweep = probe_sweep(x, texts, labels, **QUICK)
    assert sweep.best.accuracy > 0.95
    assert sweep.baselines[1].accuracy > 0.95
    assert not sweep.passes_controls
    assert "a bag of words (1.00" in sweep.summary()


def test_numbers_are_judged_by_their_gain_in_r2() -> None:
    x = noise()
    labels = x[2] @ torch.arange(6.0) + 0.1 * x[0, :, 0]
    sweep = probe_sweep(x, labels=labels, target="regression", name="a sum", **QUICK)
    assert (sweep.best.layer, sweep.best.kind) == (2, "ridge")
    assert sweep.best.accuracy > 0.9
    assert sweep.passes_controls
    assert sweep.baselines[0].name == "the mean"
    assert sweep.baselines[0].gain == pytest.approx(sweep.best.accuracy - sweep.baselines[0].accuracy)
    assert "): R² 1.00 [" in sweep.summary()
    assert "nan" not in sweep.summary()
    random = quick(noise(seed=7), x[2, :, 0], target="regression")
    assert not random.passes_controls


def test_more_classes_and_uneven_ones_are_judged() -> None:
    x = noise(200)
    several = quick(x, x[0, :, :4].argmax(-1), kinds=("mean_difference", "whitened_mean_difference", "lda", "ridge"))
    assert several.classes == (0, 1, 2, 3)
    assert several.best.layer == 0
    assert several.passes_controls
    rare = quick(x, (x[2, :, 0] + 0.5 * noise(200, seed=3)[0, :, 0] > 1.5).long())
    assert rare.best.layer == 2
    assert rare.best.auroc > 0.8
    if not rare.passes_controls:
        assert "accuracy hides that where a class is rare" in rare.summary()


# --- what is trained on what ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_the_sweep_is_that_of_a_loop_of_scikit_learn(class_weight: Any) -> None:
    x, y = noise(200), np.array(signs(noise(200)))
    options = QUICK | {"penalties": PENALTIES[1:7], "dtype": torch.float64}
    sweep = probe_sweep(x, labels=y, class_weight=class_weight, **options)
    split = split_rows(y.tolist(), seed=0)
    for n, score in enumerate(sweep.scores):
        rows = [x[n, part].double().numpy() for part in (split.train, split.validation, split.test)]
        known = [y[part] for part in (split.train, split.validation, split.test)]
        losses = []
        for C in PENALTIES[1:7]:
            model = LogisticRegression(C=C, class_weight=class_weight, tol=1e-10, max_iter=10000)
            probe = make_pipeline(StandardScaler(), model).fit(rows[0], known[0])
            losses.append((-probe.predict_log_proba(rows[1])[np.arange(40), (known[1] == "yes") * 1].mean(), C, probe))
        _, C, probe = min(losses, key=lambda one: one[0])
        assert score.C == C
        assert score.accuracy == pytest.approx(probe.score(rows[2], known[2]))
        assert score.auroc == pytest.approx(roc_auc_score(known[2], probe.decision_function(rows[2])))
        assert score.validation == pytest.approx(roc_auc_score(known[1], probe.decision_function(rows[1])))
        raw = probe[1].coef_ / probe[0].scale_
        torch.testing.assert_close(sweep.weights[n], torch.from_numpy(raw), rtol=1e-3, atol=1e-4)


def test_test_rows_decide_nothing_but_the_scores() -> None:
    """Other activations, labels and texts of test rows leave every choice and every probe as it was."""
    x, labels = noise(), signs(noise())
    texts = [f"word{n}" for n in range(160)]
    split = split_rows(labels, seed=3)
    other, changed, words = x.clone(), list(labels), list(texts)
    other[:, split.test] = 50 * noise(seed=9)[:, split.test]
    for row in split.test.tolist():
        changed[row] = "no" if labels[row] == "yes" else "yes"
        words[row] = "unseen words"
    for row in split.test.tolist()[::2]:
        changed[row] = "yes"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InterpWarning)  # test rows share a text now
        a, b = (
            probe_sweep(*given, split=split, kinds=SUPERVISED, **QUICK)
            for given in ((x, texts, labels), (other, words, changed))
        )
    assert a.chosen == b.chosen
    assert torch.equal(a.weights, b.weights)
    assert [(s.C, s.validation) for s in a.scores if s.C == s.C] == [
        (s.C, s.validation) for s in b.scores if s.C == s.C
    ]
    assert a.code_length == b.code_length or (math.isnan(a.code_length) and math.isnan(b.code_length))
    assert a.best.accuracy != b.best.accuracy


def test_of_equal_layers_the_earlier_one_is_chosen_and_then_the_kind_named_first() -> None:
    x = noise()[[0, 1, 1, 1]]
    sweep = quick(x, signs(noise()), kinds=("lda", "mean_difference", "lda"))
    best = max(s.validation for s in sweep.scores)
    layer = min(s.layer for s in sweep.scores if s.validation == best)
    assert (sweep.best.validation, sweep.best.layer) == (best, layer)
    assert layer == 1
    twins = quick({"first": x[1], "second": x[1]}, signs(noise()), kinds=("ridge", "logistic"))
    assert twins.best.layer == 0


@pytest.mark.parametrize("class_weight", [None, "balanced"])
@pytest.mark.parametrize(("kind", "classes"), [("logistic", 2), ("logistic", 3), ("ridge", 3), ("lda", 2)])
def test_permutations_in_one_descent_are_those_of_a_loop(
    monkeypatch: pytest.MonkeyPatch, kind: Any, classes: int, class_weight: Any
) -> None:
    x = noise(120, 1)
    labels = (x[0, :, :classes] + noise(120, 1, 3, 9)[0, :, :classes]).argmax(-1)
    options = QUICK | {
        "dtype": torch.float64,
        "class_weight": class_weight,
        "kinds": kind,
        "permutations": 9,
        "penalties": 0.1,
    }
    sweep = probe_sweep(x, labels=labels, **options)
    monkeypatch.setattr(sweeping, "_AT_ONCE", 500)  # some at a time
    assert probe_sweep(x, labels=labels, **options).p_value == sweep.p_value
    targets, split = read_targets(labels), split_rows(labels.tolist(), seed=0)
    made = permutations(targets.tasks, torch.arange(120), [split.train, split.test], seed=0)
    orders = [torch.arange(120), *islice(made, 9)]
    C = 1.0 if math.isnan(sweep.best.C) else sweep.best.C
    values = []
    for order in orders:
        mixed = targets.select(order)
        assert mixed.index is not None
        probe = LinearProbe(kind=kind, C=C, class_weight=class_weight, standardize=False, dtype=torch.float64)
        rows = x[0].double()
        if kind != "lda":  # by all rows alike, or for least squares with weights by these
            share = row_weights(mixed.select(split.train), class_weight if kind == "ridge" else None)
            mean = share @ rows[split.train] / share.sum()
            rows = (rows - mean) / (share @ (rows[split.train] - mean).square() / share.sum()).sqrt()
        probe.train(rows[split.train], mixed.index[split.train])
        margins = torch.as_tensor(probe.decision_function(rows[split.test])).reshape(len(split.test), -1)
        values.append(association(margins, mixed.select(split.test)))
    if classes == 2:  # with more of them it depends on the temperature
        assert sweep.best.auroc == pytest.approx(values[0])
    assert sweep.p_value == pytest.approx(np.mean(np.array(values) >= values[0] - 1e-9))


def test_a_p_value_of_contrast_consistent_search_only_turns_its_direction() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(2, (60,), generator=generator)
    labels = torch.stack([truth, 1 - truth], 1).flatten()
    pairs = [str(n // 2) for n in range(120)]
    x = noise(120, 1, 4) * 0.3
    x[0, :, 0] += 2.0 * labels - 1
    data = ProbeData.of([f"statement {n}" for n in range(120)], labels.tolist(), pairs=pairs, name="truth")
    sweep = probe_sweep(x, data, kinds=("contrast", "mean_difference"), **QUICK)
    score = sweep.score(0, "contrast")
    assert score.accuracy > 0.9
    assert math.isnan(score.shuffled)
    assert sweep.grouped, "pairs are groups where no others are given"
    assert sweep.p_value == 0.05
    with pytest.raises(ProbeError, match="which rows are pairs"):
        quick(x, labels, kinds="contrast")


def test_every_kind_is_swept_and_its_probe_predicts_what_was_measured() -> None:
    x = noise() * torch.tensor([1.0, 1.0, 100.0, 1.0, 1.0, 0.01]) + torch.tensor([1e4, 0, 0, 0, 0, -3.0])
    labels = np.array(signs(noise()))
    sweep = quick(x, labels, kinds=SUPERVISED)
    test = split_rows(labels.tolist(), seed=0).test
    assert {s.kind for s in sweep.scores} == set(SUPERVISED)
    for s in sweep.scores:
        probe = sweep.probe(s.layer, s.kind)
        assert probe.evaluate(x[s.layer, test], labels[test]) == pytest.approx(s.accuracy)
        assert math.isnan(s.C) == (s.kind not in ("logistic", "ridge"))
    assert sweep.probe().kind == sweep.best.kind
    assert sweep.probe().direction.shape == (6,)
    with pytest.raises(ProbeError, match=r"no logistic probe of layer 9.*\[0, 1, 2\]"):
        sweep.probe(9, "logistic")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_the_same_layer(dtype: torch.dtype) -> None:
    sweep = quick(noise().to(dtype), signs(noise()))
    assert sweep.best.layer == 1
    assert sweep.best.accuracy > 0.8


def test_least_squares_with_class_weights_is_that_of_the_probe_alone() -> None:
    x, y = noise(200, 1), (noise(200, 1)[0, :, 0] > 0.8).long()
    sweep = quick(x, y, kinds="ridge", class_weight="balanced", penalties=0.01, dtype=torch.float64, permutations=0)
    train = split_rows(y.tolist(), seed=0).train
    from sklearn.linear_model import Ridge

    rows = x[0, train].double().numpy()
    share = (len(train) / (2 * y[train].bincount()))[y[train]].numpy()
    mean = np.average(rows, axis=0, weights=share)
    scale = np.sqrt(np.average((rows - mean) ** 2, axis=0, weights=share))
    wanted = Ridge(alpha=100.0).fit((rows - mean) / scale, 2 * y[train].numpy() - 1, sample_weight=share)
    torch.testing.assert_close(sweep.weights[0, 0], torch.from_numpy(wanted.coef_ / scale), rtol=1e-5, atol=1e-7)
    bias = float(wanted.intercept_ - (wanted.coef_ / scale) @ mean)
    assert float(sweep.bias[0, 0]) == pytest.approx(bias, rel=1e-4)


# --- rows, groups and splits ---------------------------------------------------------------------------------------


def tokenizer() -> PreTrainedTokenizerFast:
    words = ["<unk>", *(f"w{n}" for n in range(60))]
    inner = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", pad_token="<unk>")


@cache
def corpus() -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Texts in which a single word says the class."""
    rng = np.random.default_rng(0)
    labels = tuple(int(n % 2) for n in range(60))
    texts = [[f"w{n}" for n in rng.integers(2, 50, rng.integers(3, 9))] + [f"w{label}"] for label in labels]
    return tuple(" ".join(words) for words in texts), labels


def test_a_model_its_activations_and_its_store_give_the_same_sweep(tmp_path: Path) -> None:
    texts, labels = corpus()
    model = model_of("llama")
    direct = probe_sweep(model, texts, labels, tokenizer=tokenizer(), layers=[0, 2], **QUICK)
    assert [b.name for b in direct.baselines] == ["the majority class", "a bag of words", "the embedding"]
    assert direct.provenance is not None
    cache = ActivationCache(model, tokenizer(), sites=["resid_pre", "resid_post"])
    batch = probe_sweep(cache.run(list(texts)), labels=labels, layers=[0, 2], **QUICK)
    records = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    stored = extract(
        model, records, sites=["resid_post"], tokenizer=tokenizer(), path=tmp_path / "store", progress=False
    )
    kept = probe_sweep(stored, list(texts), layers=[0, 2], **QUICK)
    for other in (batch, kept):
        assert [s.accuracy for s in other.scores] == [s.accuracy for s in direct.scores]
        torch.testing.assert_close(other.weights, direct.weights, rtol=0.02, atol=0.02)
    assert sum(probe_sweep(stored, positions="all", layers=2, **QUICK).groups) == 60


def test_tokens_as_rows_stay_with_their_text_and_control_words() -> None:
    texts, labels = corpus()
    sweep = probe_sweep(model_of("llama"), texts, labels, tokenizer=tokenizer(), positions="all", layers=1, **QUICK)
    assert sweep.grouped
    assert sum(sweep.groups) == 60
    assert sum(sweep.rows) == sum(len(text.split()) for text in texts)
    assert not math.isnan(sweep.best.control), "tokens recur, so each can get a label of its own"
    split = split_rows(labels, seed=1)
    own = probe_sweep(
        model_of("llama"), texts, labels, tokenizer=tokenizer(), positions="all", layers=1, split=split, **QUICK
    )
    assert own.groups == (len(split.train), len(split.validation), len(split.test)), "a split of texts is one of tokens"


def test_a_probe_that_memorises_has_little_selectivity() -> None:
    words = torch.arange(400) % 40
    named = torch.nn.functional.one_hot(words, 40).float() + 0.01 * noise(400, 1, 40)[0]
    labels = (torch.randperm(40, generator=torch.Generator().manual_seed(1)) % 2)[words]
    sweep = quick(named, labels, control=words, penalties=100.0)
    assert sweep.best.accuracy > 0.95
    assert sweep.best.control > 0.95
    assert sweep.best.selectivity < 0.05
    idea = torch.cat([named * 0, 2.0 * labels[:, None] - 1 + 0.2 * noise(400, 1, 1)[0]], 1)
    assert quick(idea, labels, control=words).best.selectivity > 0.2


@pytest.mark.parametrize("as_what", [torch.tensor, np.array, list])
def test_groups_of_any_type_stay_whole(as_what: Any) -> None:
    groups = [n // 5 for n in range(160)]
    sweep = quick(noise(), signs(noise()), groups=as_what(groups))
    assert sum(sweep.groups) == 32, "no group is counted in two parts"
    assert "held-out groups" in sweep.summary()


def test_leaking_groups_and_texts_warn() -> None:
    x, labels = noise(), signs(noise())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quick(x, labels, groups=[n % 10 for n in range(160)], split=split_rows(labels, seed=0))
        probe_sweep(x, [f"text {n // 2}" for n in range(160)], labels, **QUICK)
    said = [str(warning.message) for warning in caught if warning.category is InterpWarning]
    for what in ("groups are in train and in test", "texts are in train and in test", "in validation and in test"):
        assert any(what in message for message in said), what


def test_a_split_without_validation_takes_it_from_training() -> None:
    x, labels = noise(), signs(noise())
    groups = [n // 4 for n in range(160)]
    split = split_rows(labels, groups=groups, validation=0, seed=0)
    sweep = quick(x, labels, split=split)
    assert sweep.grouped, "by the groups that the split knows"
    assert sweep.rows[0] + sweep.rows[1] == len(split.train)
    assert sweep.rows[1] > 20
    assert sum(sweep.groups) == 40
    far = given_split(labels, train=range(100), test=range(100, 160), groups=["a"] * 100 + ["b"] * 60)
    assert quick(x, labels, split=far).rows == (75, 25, 60), "a single training group is cut by rows"


def test_a_class_that_is_missing_in_a_part_is_named() -> None:
    x = noise()
    labels = ["a"] * 80 + ["b"] * 60 + ["c"] * 20
    split = given_split(labels, train=range(0, 160, 2), validation=range(1, 100, 2), test=range(101, 160, 2))
    with pytest.raises(ProbeError, match="no row of validation is of class c"):
        quick(x, labels, split=split)
    with pytest.raises(ProbeError, match=r"class 'c' occurs in 1 group, too few"):
        quick(x, labels, groups=[min(n // 20, 7) for n in range(160)])


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (None, {}, "labels are missing"),
        (["a"] * 160, {}, "all 160 rows are 'a'"),
        ([0, 1] * 70, {}, "there are 160 rows, but 140 labels"),
        ([0.5, 1.0] * 80, {}, "target='regression'"),
        (["a", None] * 80, {}, r"missing \(None or NaN\) in rows 1, 3"),
        ([0, 1] * 80, {"groups": [1, 2]}, "160 rows, but 2 groups"),
        ([0, 1] * 80, {"control": [1]}, "but 1 keys of the control task"),
        ([0, 1] * 80, {"kinds": "svm"}, "kinds are 'logistic'"),
        ([0, 1] * 80, {"kinds": ()}, "kinds are 'logistic'"),
        ([0, 1] * 80, {"target": "labels"}, "one by one"),
        ([0.1, 1] * 80, {"target": "regression", "kinds": "lda"}, "numbers are predicted by kinds='ridge'"),
        ([0, 1] * 80, {"depth": 3}, "no option 'depth'; there are penalties"),
        ([0, 1] * 80, {"penalties": [1.0, -1.0]}, "strengths C above zero"),
        ([0, 1] * 80, {"level": 95}, "a level is between 0 and 1"),
        ([0, 1] * 80, {"dtype": torch.float16}, "float32 or float64"),
        ([0, 1] * 80, {"split": split_rows([0, 1] * 20)}, "but 40 rows of the split"),
        ([0, 1] * 80, {"layers": 5}, "no 5"),
    ],
    ids=lambda value: str(value)[:25],
)
def test_bad_input_is_a_clear_error(unchecked: None, labels: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ProbeError, match=message):
        quick(noise(), labels, **options)


def test_rows_that_are_not_numbers_are_named_with_their_layer() -> None:
    x = noise()
    x[2, [3, 77], 1] = torch.tensor([torch.nan, torch.inf])
    with pytest.raises(ProbeError, match=r"layer 2: .*2 of 160 rows: 3, 77"):
        quick(x, signs(noise()))
    with pytest.raises(ProbeError, match="not a single text"):
        probe_sweep(x, "text", ["yes"])  # type: ignore[arg-type]


def test_labels_are_checked_before_the_model_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise AssertionError("the model ran")

    monkeypatch.setattr("interp_toolkit.probes.sweep.collect", fail)
    with pytest.raises(ProbeError, match="60 rows of activations but 3 labels"):
        probe_sweep(model_of("llama"), corpus()[0], [0, 1, 0])


# --- tables, pictures and files ------------------------------------------------------------------------------------


def test_tables_hold_every_layer_kind_and_baseline() -> None:
    headers, rows = found().table()
    assert len(rows) == 6 + 2
    assert all(len(row) == len(headers) for row in rows)
    assert [row[0] for row in rows if row[0].endswith("*")] == ["1 *"]
    frame = found().to_dataframe()
    assert list(frame[frame.chosen].layer) == [1]
    assert list(frame.accuracy) == [s.accuracy for s in found().scores]
    numbers = quick(noise(), noise()[0, :, 0], target="regression")
    assert numbers.table()[0][2] == "R²"
    assert all(len(row) == len(numbers.table()[0]) for row in numbers.table()[1])


def test_pictures_and_pages_can_be_saved(tmp_path: Path) -> None:
    for suffix in ("svg", "html"):
        found().plot().save(tmp_path / f"plot.{suffix}")
        assert "a sign" in (tmp_path / f"plot.{suffix}").read_text()
    found().page().save(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    for part in ("a bag of words", "selectivity"):
        assert part in text
    assert "can be read off" in found()._repr_html_()


def test_a_saved_sweep_comes_back_whole(tmp_path: Path) -> None:
    loaded = ProbeSweep.load(found().save(tmp_path / "sweep.safetensors"))
    assert loaded.to_dict() == found().to_dict()
    assert torch.equal(loaded.weights, found().weights)
    assert torch.equal(loaded.bias, found().bias)
    assert math.isnan(loaded.score(0, "lda").C)
    assert (loaded.summary(), loaded.table()) == (found().summary(), found().table())
    plain = [dataclasses.replace(s, C=0.0, control=0.0) for s in found().scores]
    assert [dataclasses.replace(s, C=0.0, control=0.0) for s in loaded.scores] == plain
    x = noise()[1]
    assert loaded.probe().predict(x).tolist() == found().probe().predict(x).tolist()
    assert loaded.provenance is None
    weighted = quick(noise(), [0, 1] * 80, class_weight={0: 1.0, 1: 3.0})
    assert ProbeSweep.load(weighted.save(tmp_path / "w.safetensors")).settings == weighted.settings


@pytest.mark.parametrize(
    "change",
    [
        lambda about, tensors: about.pop("scores"),
        lambda about, tensors: about.update(scores=[1, 2]),
        lambda about, tensors: about.update(chosen=99),
        lambda about, tensors: about.update(classes=["a", "b", "c"]),
        lambda about, tensors: about["scores"].pop(),
        lambda about, tensors: about["scores"][0].update(strange=1),
        lambda about, tensors: about.update(rows=None),
        lambda about, tensors: tensors.pop("bias"),
        lambda about, tensors: tensors.update(weights=torch.zeros(6, 1)),
    ],
    ids=["no scores", "numbers", "chosen", "classes", "fewer", "strange", "rows", "no bias", "shape"],
)
def test_a_damaged_file_is_refused(unchecked: None, tmp_path: Path, change: Any) -> None:
    path = found().save(tmp_path / "sweep.safetensors")
    with safe_open(str(path), framework="pt") as file:
        metadata, tensors = dict(file.metadata()), {name: file.get_tensor(name) for name in ("weights", "bias")}
    about = json.loads(metadata["about"])
    change(about, tensors)
    save_file(tensors, path, metadata=metadata | {"about": json.dumps(about)})
    with pytest.raises(FileFormatError, match=r"sweep\.safetensors is damaged"):
        ProbeSweep.load(path)


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(found().save(tmp_path / "sweep.safetensors").read_bytes()[:200])
    with pytest.raises(FileFormatError, match="a sweep of probes"):
        ProbeSweep.load(path)
