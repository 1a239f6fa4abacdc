"""Scores of probes against scikit-learn and plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax
from sklearn import metrics

from interp_toolkit.errors import ProbeError
from interp_toolkit.probes.inputs import Targets, read_targets
from interp_toolkit.probes.scoring import (
    Draws,
    association,
    gain,
    log_probabilities,
    loss,
    margins_of,
    plain_score,
    scores_of,
    selection_score,
    tempered,
)
from interp_toolkit.statistics import wilson

DRAWS = Draws(number=500)


def case(kind: str, rows: int = 120) -> tuple[torch.Tensor, Targets]:
    """Margins of three probes, and what they should say."""
    generator = torch.Generator().manual_seed(0)
    outputs = {"two": 1, "more": 4, "numbers": 2}[kind]
    margins = torch.randn(3, rows, outputs, generator=generator, dtype=torch.float64)
    if kind == "numbers":
        return margins, read_targets(margins[1] + torch.randn(rows, 2, generator=generator) * 0.7, "regression")
    index = torch.randint(2 if kind == "two" else 4, (rows,), generator=generator)
    margins[1] += 2 * (2 * index[:, None] - 1) if kind == "two" else 2 * torch.nn.functional.one_hot(index, 4)
    return margins, read_targets(index)


def test_two_classes_are_scored_as_scikit_learn_does() -> None:
    margins, targets = case("two")
    assert targets.index is not None
    y = targets.index.numpy()
    found = scores_of(margins, targets, torch.arange(120), draws=DRAWS)
    for n, m in enumerate(margins[..., 0].numpy()):
        assert float(found.accuracy.mean[n]) == pytest.approx(metrics.accuracy_score(y, m > 0))
        assert float(found.auroc.mean[n]) == pytest.approx(metrics.roc_auc_score(y, m))
        assert float(found.log_loss[n]) == pytest.approx(metrics.log_loss(y, expit(m)))
        assert association(margins[n], targets) == pytest.approx(metrics.roc_auc_score(y, m))
    torch.testing.assert_close(selection_score(margins, targets), found.auroc.mean)
    torch.testing.assert_close(plain_score(margins, targets), found.accuracy.mean)
    torch.testing.assert_close(loss(margins, targets), found.log_loss)
    assert bool((found.accuracy.low < found.accuracy.mean).all() and (found.accuracy.mean < found.accuracy.high).all())


def test_more_classes_are_scored_as_scikit_learn_does() -> None:
    margins, targets = case("more")
    assert targets.index is not None
    y = targets.index.numpy()
    found = scores_of(margins, targets, torch.arange(120), draws=DRAWS)
    chances = np.exp(log_softmax(margins.numpy(), -1))
    for n, p in enumerate(chances):
        assert float(found.accuracy.mean[n]) == pytest.approx(metrics.accuracy_score(y, p.argmax(-1)))
        assert float(found.log_loss[n]) == pytest.approx(metrics.log_loss(y, p))
        each = metrics.roc_auc_score(y, p, multi_class="ovr")
        assert float(found.auroc.mean[n]) == pytest.approx(each)
        assert association(margins[n], targets) == pytest.approx(each)
    assert bool(found.recall_1.isnan().all())
    torch.testing.assert_close(selection_score(margins, targets), found.accuracy.mean)


def test_numbers_are_scored_as_scikit_learn_does() -> None:
    margins, targets = case("numbers")
    assert targets.table is not None
    found = scores_of(margins, targets, torch.arange(120), draws=DRAWS)
    for n, m in enumerate(margins.numpy()):
        assert float(found.accuracy.mean[n]) == pytest.approx(metrics.r2_score(targets.table.numpy(), m))
        assert float(found.log_loss[n]) == pytest.approx(metrics.mean_squared_error(targets.table.numpy(), m))
        each = [np.corrcoef(m[:, k], targets.table[:, k].numpy())[0, 1] for k in range(2)]
        assert association(margins[n], targets) == pytest.approx(np.mean(each))
    torch.testing.assert_close(plain_score(margins, targets), found.accuracy.mean)
    assert bool((found.accuracy.low < found.accuracy.mean).all() and (found.accuracy.mean < found.accuracy.high).all())
    assert association(torch.zeros(120, 2), targets) == 0, "a constant goes with nothing"
    with pytest.raises(ProbeError, match="nothing to predict"):
        selection_score(margins, Targets(kind="regression", classes=(), table=torch.ones(120, 2)))


def test_log_probabilities_of_one_output_are_those_of_a_sigmoid_without_overflow() -> None:
    found = log_probabilities(torch.tensor([[1000.0], [-1000.0], [0.0]], dtype=torch.float64))
    assert found[:, 1].tolist() == [0.0, -1000.0, pytest.approx(np.log(0.5))]
    assert found[:, 0].tolist() == [-1000.0, 0.0, pytest.approx(np.log(0.5))]


def test_rows_of_a_group_are_drawn_together() -> None:
    margins, targets = case("two", 40)
    again = torch.arange(40).repeat_interleave(10)  # copies say nothing new
    once = scores_of(margins, targets, torch.arange(40), draws=DRAWS)
    copied = scores_of(margins[:, again], targets.select(again), again, draws=DRAWS)
    naive = scores_of(margins[:, again], targets.select(again), torch.arange(400), draws=DRAWS)
    for name in ("accuracy", "auroc"):
        torch.testing.assert_close(getattr(copied, name).low, getattr(once, name).low)
        torch.testing.assert_close(getattr(copied, name).high, getattr(once, name).high)
        width = getattr(once, name).high - getattr(once, name).low
        assert bool((getattr(naive, name).high - getattr(naive, name).low < 0.6 * width).all())
    torch.testing.assert_close(
        gain(copied, 1, copied, again, DRAWS).standard_error,
        gain(once, 1, once, torch.arange(40), DRAWS).standard_error,
    )


def test_a_probe_without_an_error_is_not_surer_than_its_groups_allow() -> None:
    index = torch.arange(60) % 2
    margins = torch.stack([2.0 * index - 1, 1 - 2.0 * index])[..., None].double()
    found = scores_of(margins, read_targets(index), torch.arange(60) // 3, draws=DRAWS)
    assert found.accuracy.mean.tolist() == [1.0, 0.0]
    assert found.accuracy.low.tolist() == [pytest.approx(wilson(20, 20)[0]), 0.0]
    assert found.accuracy.high.tolist() == [1.0, pytest.approx(wilson(0, 20)[1])]
    single = scores_of(margins, read_targets(index), torch.zeros(60, dtype=torch.long), draws=DRAWS)
    assert bool(single.accuracy.low.isnan().all()), "one group says nothing of others"


@pytest.mark.parametrize("kind", ["two", "more", "numbers"])
def test_the_gain_is_the_difference_of_accuracies_on_the_same_draws(kind: str) -> None:
    margins, targets = case(kind)
    groups = torch.arange(120) // 3
    found = scores_of(margins, targets, groups, draws=DRAWS)
    other = scores_of(margins[2:], targets, groups, draws=DRAWS)
    more = gain(found, 1, other, groups, DRAWS)
    assert float(more.mean) == pytest.approx(float(found.accuracy.mean[1] - other.accuracy.mean[0]))
    generator = np.random.default_rng(0)
    differences = []
    for _ in range(3000):
        rows = np.concatenate([np.arange(3) + 3 * group for group in generator.integers(0, 40, 40)])
        above = (other.errors[0, rows] - found.errors[1, rows]).sum()
        differences.append(float(above / found.spread[rows].sum()))
    assert float(more.low) == pytest.approx(np.quantile(differences, 0.025), abs=0.04)
    assert float(more.high) == pytest.approx(np.quantile(differences, 0.975), abs=0.04)


def test_the_temperature_is_that_of_the_validation_rows() -> None:
    margins, targets = case("two")
    half = torch.arange(60)
    judged = targets.select(half)
    found = tempered(50 * margins[:, 60:], 50 * margins[:, :60], judged)
    torch.testing.assert_close(found, tempered(margins[:, 60:], margins[:, :60], judged))
    numbers, wanted = case("numbers")
    assert tempered(numbers, numbers, wanted) is numbers


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_margins_do_not_lose_digits_to_large_activations(dtype: torch.dtype) -> None:
    x = (torch.randn(7, 3, 2, generator=torch.Generator().manual_seed(0)) * 100 + 1000).to(dtype)
    weights = torch.randn(1, 2, 3, 6, dtype=torch.float64)
    bias = -(weights * 1000).sum(-1)
    rows = torch.tensor([6, 0, 3])
    found = margins_of((x,), rows, weights, bias)
    wanted = torch.einsum("rd,pod->pro", x[rows].flatten(1).double(), weights[0]) + bias[0][:, None]
    torch.testing.assert_close(found[0], wanted)


def test_blocks_of_rows_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weights, bias = torch.randn(2, 50, 4), torch.randn(2, 3, 1, 4), torch.randn(2, 3, 1)
    args: tuple[Any, ...] = (tuple(x), torch.arange(50), weights, bias)
    whole = margins_of(*args)
    monkeypatch.setattr("interp_toolkit.probes.scoring._BLOCK", 7)
    torch.testing.assert_close(margins_of(*args), whole)
