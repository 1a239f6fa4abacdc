"""Metrics, intervals and calibration of probes, against scikit-learn, SciPy and plain loops in float64."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from interp_toolkit.errors import ProbeError
from interp_toolkit.probes import calibration, evaluation
from interp_toolkit.probes.calibration import apply_temperature, calibration_error, fit_temperature, reliability
from interp_toolkit.probes.evaluation import (
    accuracy,
    auroc,
    balanced_accuracy,
    bootstrap_auroc,
    bootstrap_groups,
    log_loss,
    macro_auroc,
    paired_difference,
    r2,
    recall_at_fpr,
)
from interp_toolkit.statistics import Estimate, bootstrap_ratio

NAN = float("nan")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def integers(high: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def data(rows: int = 60, cells: int = 4, seed: int = 0, *, tied: bool = False) -> tuple[Tensor, Tensor]:
    """Scores that know something of which rows are positive; the cells know ever more."""
    positive = integers(3, rows, seed=seed) == 0
    scores = normal(cells, rows, seed=seed + 1) + torch.arange(cells)[:, None] * positive
    return (2 * scores).round() / 2 if tied else scores, positive


def numbers(estimate: Estimate) -> Tensor:
    return torch.stack([estimate.mean, estimate.standard_error, estimate.low, estimate.high])


# --- metrics --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_accuracies_are_those_of_scikit_learn_in_every_cell(shape: tuple[int, ...]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    labels = integers(4, 50).clamp(max=2)  # unbalanced
    predictions = torch.where(integers(2, *shape, 50, seed=1) == 0, labels, integers(3, *shape, 50, seed=2))
    plain, balanced = accuracy(predictions, labels), balanced_accuracy(predictions, labels)
    assert plain.shape == balanced.shape == shape
    for cell in itertools.product(*map(range, shape)):
        given = labels.numpy(), predictions[cell].numpy()
        assert float(plain[cell]) == pytest.approx(metrics.accuracy_score(*given), abs=1e-12)
        assert float(balanced[cell]) == pytest.approx(metrics.balanced_accuracy_score(*given), abs=1e-12)
        assert abs(float(plain[cell] - balanced[cell])) > 1e-4


def test_log_loss_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    labels, chances = integers(3, 40), normal(2, 40, 3).log_softmax(-1)
    for cell, found in zip(chances, log_loss(chances, labels), strict=True):
        assert float(found) == pytest.approx(metrics.log_loss(labels.numpy(), cell.exp().numpy()), abs=1e-12)
    assert float(log_loss(torch.tensor([[0.0, 1.0]]).log(), torch.tensor([0]))) == math.inf


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_auroc_is_that_of_scikit_learn_with_ties_and_weights(tied: bool, weighted: bool) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    scores, positive = data(tied=tied)
    assert (len(scores[0].unique()) < 30) == tied
    weights = integers(4, 60, seed=5).double() / 3 if weighted else None
    found = auroc(scores, positive, weights=weights)
    for cell, area in zip(scores, found, strict=True):
        other = metrics.roc_auc_score(positive, cell, sample_weight=None if weights is None else weights.numpy())
        assert float(area) == pytest.approx(other, abs=1e-12)
    assert found[0] < 0.7
    assert found[-1] > 0.9


def test_auroc_is_the_share_of_pairs_in_order_in_any_precision_and_any_number_of_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        scores, positive = data(rows=41, cells=3)
        scores = scores.to(dtype)
        pairs = [
            [(p > n) + 0.5 * (p == n) for p in cell[positive].tolist() for n in cell[~positive].tolist()]
            for cell in scores
        ]
        expected = torch.tensor([sum(p) / len(p) for p in pairs], dtype=torch.float64)
        for at_once in (1, 50, 2**22):
            monkeypatch.setattr(evaluation, "_AT_ONCE", at_once)
            torch.testing.assert_close(auroc(scores, positive), expected, rtol=0, atol=1e-12)


def test_auroc_only_knows_the_order_and_turns_with_it() -> None:
    scores, positive = data()
    torch.testing.assert_close(auroc(scores.exp(), positive), auroc(scores, positive))
    torch.testing.assert_close(auroc(-scores, positive), 1 - auroc(scores, positive))
    endless = torch.tensor([math.inf, 1.0, -math.inf, -math.inf])
    assert float(auroc(endless, torch.tensor([True, False, True, False]))) == (1 + 1 + 0 + 0.5) / 4


def test_macro_auroc_is_one_against_the_rest_in_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    labels = integers(3, 50)
    scores = (normal(2, 50, 3) + torch.nn.functional.one_hot(labels, 3)).softmax(-1)
    for cell, found in zip(scores, macro_auroc(scores, labels), strict=True):
        other = metrics.roc_auc_score(labels.numpy(), cell.numpy(), multi_class="ovr")
        assert float(found) == pytest.approx(other, abs=1e-12)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rate", [0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.999, 1.0])
def test_recall_is_the_best_point_of_scikit_learns_curve(tied: bool, rate: float) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    scores, positive = data(rows=90, tied=tied)
    positive[torch.nonzero(~positive)[60:]] = True  # of 60 negatives, 5% and 10% are whole numbers
    assert int((~positive).sum()) == 60
    for cell, found in zip(scores, recall_at_fpr(scores, positive, rate=rate), strict=True):
        passed, recall, _ = metrics.roc_curve(positive, cell, drop_intermediate=False)
        assert float(found) == pytest.approx(recall[passed <= rate + 1e-12].max(), abs=1e-12)


def test_with_few_negatives_recall_is_without_any_false_positive() -> None:
    scores, positive = data(rows=40)
    expected = torch.stack([(cell[positive] > cell[~positive].max()).double().mean() for cell in scores])
    assert 0 < float(expected[-1]) < 1
    torch.testing.assert_close(recall_at_fpr(scores, positive, rate=0.01), expected)
    assert recall_at_fpr(scores, positive, rate=1.0).tolist() == [1.0] * 4


def test_r2_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    targets = normal(30) + 7
    predictions = targets + torch.tensor([[0.1], [1.0], [3.0]]) * normal(3, 30, seed=1)
    for cell, found in zip(predictions, r2(predictions, targets), strict=True):
        assert float(found) == pytest.approx(metrics.r2_score(targets, cell), abs=1e-12)


def test_what_is_not_a_number_spoils_its_own_cell_alone() -> None:
    scores, positive = data()
    scores[1, 3] = NAN
    bad = [False, True, False, False]
    assert auroc(scores, positive).isnan().tolist() == bad
    assert recall_at_fpr(scores, positive, rate=1.0).isnan().tolist() == bad
    found = bootstrap_auroc(scores, positive, draws=50)
    assert numbers(found).isnan().tolist() == [bad] * 4
    clean = bootstrap_auroc(scores[[0, 2, 3]], positive, draws=50)
    torch.testing.assert_close(numbers(found)[:, [0, 2, 3]], numbers(clean))


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_measured_is_an_error_that_says_what_was_found() -> None:
    scores, positive = data()
    labels = positive.long()
    with pytest.raises(ProbeError, match=r"shape \(59,\) for rows of shape \(4, 60\)"):
        auroc(scores, positive[1:])
    with pytest.raises(ProbeError, match="there are 0 and 60 that count"):
        auroc(scores, torch.zeros(60, dtype=torch.bool))
    with pytest.raises(ProbeError, match="that count"):
        auroc(scores, positive, weights=positive.double())
    with pytest.raises(ProbeError, match=r"smallest weight is -1\.0"):
        auroc(scores, positive, weights=-torch.ones(60))
    with pytest.raises(ProbeError, match=r"rate is from 0 to 1, not 1\.5"):
        recall_at_fpr(scores, positive, rate=1.5)
    with pytest.raises(ProbeError, match=r"classes 0 to 2 .* labels are \[0, 1\]"):
        macro_auroc(normal(60, 3), labels)
    with pytest.raises(ProbeError, match="without log_softmax"):
        log_loss(normal(60, 2), labels)
    with pytest.raises(ProbeError, match="2 classes, but labels go from 0 to 2"):
        log_loss(normal(3, 2).log_softmax(-1), torch.tensor([0, 1, 2]))
    with pytest.raises(ProbeError, match=r"all 60 targets are 2\.0"):
        r2(scores, torch.full((60,), 2.0))
    with pytest.raises(ProbeError, match="must be a row"):
        accuracy(labels[:0], labels[:0])
    for call in (bootstrap_groups, lambda x, **more: bootstrap_auroc(x, positive, **more)):
        with pytest.raises(ProbeError, match="two draws and a level"):
            call(scores, draws=1)
        with pytest.raises(ProbeError, match="two draws and a level"):
            call(scores, level=1.0)
        with pytest.raises(ProbeError, match="3 for 60 rows"):
            call(scores, groups=[1, 2, 3])
    with pytest.raises(ProbeError, match=r"shapes are \(4, 60\) and \(4, 59\)"):
        paired_difference(scores, scores[:, 1:])


# --- intervals ------------------------------------------------------------------------------------------------------


def test_the_interval_of_a_mean_is_what_a_loop_over_the_same_draws_makes_of_it() -> None:
    right = integers(2, 2, 30).bool()
    groups = [f"g{int(n)}" for n in integers(6, 30, seed=1)]
    found = bootstrap_groups(right, groups=groups, draws=200, level=0.8, seed=3)
    names = list(dict.fromkeys(groups))
    drawn = torch.randint(6, (200, 6), generator=torch.Generator().manual_seed(3)).tolist()
    for cell in range(2):
        means = []
        for draw in drawn:
            rows = [r for g in draw for r in range(30) if groups[r] == names[g]]
            means.append(np.mean([bool(right[cell, r]) for r in rows]))
        expected = [right[cell].double().mean(), np.std(means, ddof=1), *np.quantile(means, [0.1, 0.9])]
        assert numbers(found)[:, cell].tolist() == pytest.approx([float(x) for x in expected], abs=1e-12)
    assert (found.n, found.level) == (6, 0.8)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
def test_the_interval_of_an_area_is_what_a_loop_over_the_same_draws_makes_of_it(tied: bool, grouped: bool) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    scores, positive = data(rows=40, cells=2, tied=tied)
    groups = integers(9, 40, seed=7) if grouped else torch.arange(40)
    found = bootstrap_auroc(scores, positive, groups=groups if grouped else None, draws=60, level=0.9, seed=3)
    first = list(dict.fromkeys(groups.tolist()))  # groups are numbered as they come
    place = torch.tensor([first.index(g) for g in groups.tolist()])
    drawn = torch.randint(len(first), (60, len(first)), generator=torch.Generator().manual_seed(3))
    for cell in range(2):
        areas = []
        for draw in drawn:
            rows = torch.cat([(place == g).nonzero().flatten() for g in draw])
            areas.append(metrics.roc_auc_score(positive[rows], scores[cell, rows]))
        whole = metrics.roc_auc_score(positive, scores[cell])
        expected = [whole, np.std(areas, ddof=1), *np.quantile(areas, [0.05, 0.95])]
        assert numbers(found)[:, cell].tolist() == pytest.approx([float(x) for x in expected], abs=1e-12)
    assert found.n == len(first)


def test_how_much_is_held_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, positive = data(rows=30, cells=5, tied=True)
    groups = integers(11, 30, seed=2)
    whole = numbers(bootstrap_auroc(scores.reshape(5, 1, 30), positive, groups=groups, draws=64))
    assert whole.shape == (4, 5, 1)
    for at_once in (1, 30 * 8 * 2, 5000):
        monkeypatch.setattr(evaluation, "_AT_ONCE", at_once)
        pieces = numbers(bootstrap_auroc(scores, positive, groups=groups, draws=64))
        torch.testing.assert_close(pieces, whole[..., 0], rtol=0, atol=1e-12)


def test_draws_without_a_positive_are_left_out_and_many_of_them_leave_no_interval() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    scores = normal(2, 30)
    some, rare = torch.arange(30) < 4, torch.arange(30) < 1
    found = bootstrap_auroc(scores, some, draws=400)
    drawn = torch.randint(30, (400, 30), generator=torch.Generator().manual_seed(0))
    kept = [rows for rows in drawn if bool(some[rows].any())]
    assert 380 < len(kept) < 400
    areas = [metrics.roc_auc_score(some[rows], scores[1, rows]) for rows in kept]
    assert float(found.standard_error[1]) == pytest.approx(np.std(areas, ddof=1), abs=1e-12)
    assert float(found.low[1]) == pytest.approx(np.quantile(areas, 0.025), abs=1e-12)
    lost = bootstrap_auroc(scores, rare, draws=400)  # a third of the draws has no positive
    assert numbers(lost)[1:].isnan().all()
    torch.testing.assert_close(lost.mean, auroc(scores, rare))


def test_a_single_group_says_nothing_about_others() -> None:
    scores, positive = data()
    for found in (bootstrap_auroc(scores, positive, groups=[0] * 60), bootstrap_groups(scores, groups=[0] * 60)):
        assert found.n == 1
        assert numbers(found)[1:].isnan().all()
        assert not found.mean.isnan().any()


def test_without_groups_each_row_is_its_own() -> None:
    values = normal(3, 20)
    found, other = bootstrap_groups(values), bootstrap_ratio(values.T, torch.ones(20, dtype=torch.float64))
    torch.testing.assert_close(numbers(found), numbers(other), rtol=0, atol=1e-12)


def test_intervals_hold_the_truth_with_correlated_rows_where_drawing_rows_does_not() -> None:
    """Rows of a group share whether they are easy: 300 experiments of 40 groups with 10 rows, true accuracy 0.7."""
    experiments, groups, size = 300, 40, 10
    easy = (torch.rand(experiments, groups, 1, generator=torch.Generator().manual_seed(1)) < 0.5).double()
    chance = 0.5 + 0.4 * easy
    right = torch.rand(experiments, groups, size, generator=torch.Generator().manual_seed(2)) < chance
    values, member = right.reshape(experiments, -1), torch.arange(groups).repeat_interleave(size)
    by_group = bootstrap_groups(values, groups=member, draws=500)
    by_row = bootstrap_groups(values, draws=500)
    held = [((e.low <= 0.7) & (e.high >= 0.7)).double().mean() for e in (by_group, by_row)]
    assert 0.90 <= held[0] <= 0.98
    assert held[1] < 0.87
    # Variance of a mean: 0.2² / groups between them, and 0.17 / rows within them.
    expected = math.sqrt(0.04 / groups + 0.17 / (groups * size))
    assert float(by_group.standard_error.mean()) == pytest.approx(expected, rel=0.03)


def test_intervals_of_areas_hold_the_truth_with_correlated_rows_where_drawing_rows_does_not() -> None:
    """Groups of 6 rows of one class share half of their variance; the true area is Φ(1 / √2)."""
    experiments, groups, size = 200, 40, 6
    positive = (torch.arange(groups) % 2 == 0).repeat_interleave(size)
    shared = normal(experiments, groups, seed=3).repeat_interleave(size, dim=1)
    scores = math.sqrt(0.5) * (shared + normal(experiments, groups * size, seed=4)) + positive
    truth = 0.5 * (1 + math.erf(0.5))
    member = torch.arange(groups).repeat_interleave(size)
    by_group = bootstrap_auroc(scores, positive, groups=member, draws=300)
    by_row = bootstrap_auroc(scores, positive, draws=300)
    held = [((e.low <= truth) & (e.high >= truth)).double().mean() for e in (by_group, by_row)]
    assert 0.88 <= held[0] <= 0.98
    assert held[1] < 0.8
    assert float(by_group.standard_error.mean()) == pytest.approx(float(by_group.mean.std()), rel=0.15)


def test_a_paired_difference_is_surer_than_two_means() -> None:
    labels = integers(2, 200)
    hard = integers(3, 200, seed=1) == 0
    first = torch.where(hard, 1 - labels, labels)
    second = torch.where(integers(20, 200, seed=2) == 0, 1 - first, first)
    groups = torch.arange(200) // 2
    found = paired_difference(first == labels, second == labels, groups=groups)
    means = [bootstrap_groups(x == labels, groups=groups) for x in (first, second)]
    assert float(found.mean) == pytest.approx(float(means[0].mean - means[1].mean))
    separate = math.hypot(*(float(m.standard_error) for m in means))
    assert float(found.standard_error) < 0.6 * separate
    change = (first == labels).double() - (second == labels).double()
    by_hand = change.reshape(100, 2).mean(-1).std() / math.sqrt(100)
    assert float(found.standard_error) == pytest.approx(float(by_hand), rel=0.05)
    same = paired_difference(first == labels, first == labels, groups=groups)
    assert numbers(same).tolist() == [0.0] * 4


def test_the_seed_decides_and_nothing_else_is_touched() -> None:
    scores, positive = data()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, again, other = (bootstrap_auroc(scores, positive, draws=100, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(numbers(one), numbers(again))
    assert not torch.equal(one.low, other.low)


# --- calibration ----------------------------------------------------------------------------------------------------


def error_by_hand(confidence: list[float], right: list[bool], bins: int) -> float:
    """Ranks from 1/2 to n - 1/2, shared by equal confidences, and cut in equal parts."""
    n = len(confidence)
    total = 0.0
    for number in range(bins):
        rows = []
        for r in range(n):
            below = sum(c < confidence[r] for c in confidence)
            rank = below + sum(c == confidence[r] for c in confidence) / 2
            if number <= rank * bins / n < number + 1:
                rows.append(r)
        total += abs(sum(confidence[r] - right[r] for r in rows))
    return total / n


@pytest.mark.parametrize("bins", [1, 4, 15, 100])
@pytest.mark.parametrize("tied", [False, True])
def test_calibration_error_is_that_of_a_loop_for_many_classes_and_for_one_column(bins: int, tied: bool) -> None:
    labels, chances = integers(3, 50), (2 * normal(2, 50, 3)).softmax(-1)
    if tied:
        chances = chances.argmax(-1, keepdim=True).eq(torch.arange(3)) * 0.7 + 0.1
    found = calibration_error(chances, labels, bins=bins)
    binary = calibration_error(chances[..., :1], (labels == 1).long(), bins=bins)
    for cell in range(2):
        confidence, predicted = chances[cell].max(-1)
        expected = error_by_hand(confidence.tolist(), (predicted == labels).tolist(), bins)
        assert float(found[cell]) == pytest.approx(expected, abs=1e-12)
        expected = error_by_hand(chances[cell, :, 0].tolist(), (labels == 1).tolist(), bins)
        assert float(binary[cell]) == pytest.approx(expected, abs=1e-12)


def test_bins_hold_equally_many_rows_and_do_not_depend_on_the_order_of_rows() -> None:
    chances, labels = normal(3, 100, 1).sigmoid(), integers(2, 100)
    found = reliability(chances, labels, bins=8)
    assert found.counts.shape == (3, 8)
    assert set(found.counts.flatten().tolist()) <= {12, 13}
    assert bool((found.confidence.diff(dim=-1) > 0).all())
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    tied = (4 * chances).round() / 4
    torch.testing.assert_close(calibration_error(tied[:, order], labels[order]), calibration_error(tied, labels))
    few = reliability(tied, labels, bins=15)
    assert int(few.counts.sum()) == 300
    assert bool(few.confidence.isnan().eq(few.counts == 0).all())
    assert bool((few.counts == 0).any())


def test_calibration_error_is_what_chance_makes_of_a_calibrated_probe() -> None:
    chances = torch.full((200, 2000, 1), 0.8, dtype=torch.float64) + 1e-6 * normal(200, 2000, 1)
    labels = (torch.rand(2000, generator=torch.Generator().manual_seed(3)) < 0.8).long()
    expected = 0.4 * 0.8 * math.sqrt(15 / 2000)  # as the documentation has it
    assert float(calibration_error(chances, labels).mean()) == pytest.approx(expected, rel=0.1)


def loss(logits: Tensor, labels: Tensor, temperature: float) -> float:
    both = torch.nn.functional.pad(logits, (1, 0)) if logits.shape[-1] == 1 else logits
    return float(log_loss((both / temperature).log_softmax(-1), labels))


@pytest.mark.parametrize("outputs", [1, 2, 5])
def test_a_fitted_temperature_is_the_minimum_that_scipy_finds(outputs: int) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    labels = integers(max(2, outputs), 80)
    signal = (2 * labels - 1)[:, None] if outputs == 1 else torch.nn.functional.one_hot(labels, outputs)
    scales = torch.tensor([1e-4, 0.2, 1.0, 30.0, 1e5], dtype=torch.float64)
    logits = scales[:, None, None] * (normal(5, 80, outputs) + 1.5 * signal)
    found = fit_temperature(logits, labels)
    assert found.shape == (5,)
    for cell in range(5):
        best = optimize.minimize_scalar(
            lambda u, cell=cell: loss(logits[cell], labels, math.exp(u)),
            bracket=(math.log(scales[cell] / 3), math.log(scales[cell] * 3)),
            tol=1e-10,
        )
        assert float(found[cell]) == pytest.approx(math.exp(best.x), rel=1e-5)
    applied = apply_temperature(logits, found)
    for cell in range(5):
        assert loss(applied[cell], labels, 1.0) <= min(loss(applied[cell], labels, t) for t in (0.99, 1.01))
    torch.testing.assert_close(fit_temperature(logits[2], labels), found[2])


def test_a_temperature_takes_a_few_steps_of_newton(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    slope = calibration._Slope.__call__

    def counted(self: calibration._Slope, inverse: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(inverse)
        return slope(self, inverse)

    monkeypatch.setattr(calibration._Slope, "__call__", counted)
    labels = integers(3, 200)
    one_hot = torch.nn.functional.one_hot(labels, 3)
    mixed, separated = normal(200, 3) + one_hot, one_hot + 0.1 * normal(200, 3).clamp(-1, 1)
    found = fit_temperature(torch.stack([mixed, separated]), labels)
    assert bool(((found > 0.01) & (found < 2)).all())
    assert len(asked) <= 20  # halving alone takes more than 50


def test_one_column_is_two_columns_with_a_zero() -> None:
    logits, labels = normal(3, 40, 1), integers(2, 40)
    both = torch.cat([torch.zeros_like(logits), logits], dim=-1)
    torch.testing.assert_close(fit_temperature(logits, labels), fit_temperature(both, labels))


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_separated_rows_are_given_the_certainty_that_their_number_warrants(outputs: int, scale: float) -> None:
    labels = integers(max(2, outputs), 30)
    signal = (2 * labels - 1)[:, None] if outputs == 1 else torch.nn.functional.one_hot(labels, outputs)
    logits = scale * signal * (1 + normal(30, outputs).abs())
    logits = apply_temperature(logits, fit_temperature(logits, labels))
    both = torch.nn.functional.pad(logits, (1, 0)) if outputs == 1 else logits
    true = both.softmax(-1).gather(-1, labels[:, None])
    assert float(true.mean()) == pytest.approx(31 / 32, abs=1e-9)


def test_logits_that_are_no_better_than_chance_get_the_largest_temperature() -> None:
    labels = integers(2, 30)
    logits = -(2.0 * labels - 1)[:, None]  # always wrong; each half of a logit is a column's distance from the mean
    assert float(fit_temperature(logits, labels)) == pytest.approx(500.0)
    assert float(fit_temperature(torch.zeros(30, 4), labels)) == 1.0
    broken = torch.stack(
        [logits, logits.index_fill(0, torch.tensor(3), NAN), logits.index_fill(0, torch.tensor(3), math.inf)]
    )
    assert fit_temperature(broken, labels).isnan().tolist() == [False, True, True]


def test_a_temperature_makes_an_overconfident_probe_calibrated_and_predicts_the_same() -> None:
    honest = 2 * normal(4000, 1)
    labels = (torch.rand(4000, 1, generator=torch.Generator().manual_seed(1)) < honest.sigmoid()).long().flatten()
    sure = (4 * honest).float()
    temperature = fit_temperature(sure[:2000], labels[:2000])
    assert float(temperature) == pytest.approx(4, rel=0.1)
    calm = apply_temperature(sure, temperature)
    assert calm.dtype == torch.float32
    assert torch.equal(calm > 0, sure > 0)
    before, after = (calibration_error(x[2000:].sigmoid(), labels[2000:]) for x in (sure, calm))
    assert before > 0.1
    assert after < 0.04


@pytest.mark.usefixtures("unchecked")
def test_calibration_refuses_what_is_no_probability() -> None:
    labels = torch.tensor([0, 1, 1])
    for wrong in (normal(3, 2), torch.full((3, 2), 0.2), torch.full((3, 1), 1.5), torch.full((3, 1), NAN)):
        with pytest.raises(ProbeError, match="logits need softmax"):
            reliability(wrong, labels)
    with pytest.raises(ProbeError, match="0 bins"):
        calibration_error(torch.full((3, 1), 0.5), labels, bins=0)
    with pytest.raises(ProbeError, match="2 classes, but labels go from 1 to 2"):
        fit_temperature(normal(3, 1), torch.tensor([1, 2, 1]))
    with pytest.raises(ProbeError, match="each row needs one label"):
        fit_temperature(normal(4, 1), labels)
    for temperature in (torch.tensor(0.0), torch.tensor([1.0])):
        with pytest.raises(ProbeError, match="temperatures above zero"):
            apply_temperature(normal(3, 1), temperature)
