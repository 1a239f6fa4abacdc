"""Intervals over prompts: they hold the truth as often as they say, and agree with SciPy and brute force."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from interp_toolkit import statistics
from interp_toolkit.errors import MetricError
from interp_toolkit.statistics import Estimate, bootstrap_mean, bootstrap_ratio, kl_divergence, spearman, wilson

NAN = float("nan")


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def numbers(estimate: Estimate) -> list[Tensor]:
    return [estimate.mean, estimate.standard_error, estimate.low, estimate.high]


def held(estimate: Estimate, truth: float) -> float:
    return float(((estimate.low <= truth) & (truth <= estimate.high)).double().mean())


# --- against others -------------------------------------------------------------------------------------------------


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    first = math.floor(place)
    last = min(first + 1, len(ordered) - 1)
    return ordered[first] + (place - first) * (ordered[last] - ordered[first])


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.999])
def test_every_number_is_what_plain_python_makes_of_the_same_draws(level: float) -> None:
    n, draws, seed = 7, 50, 3
    above, below = normal(n, 2, 3), normal(n, seed=1) + 5
    found = bootstrap_ratio(above, below, level=level, draws=draws, seed=seed)
    drawn = torch.randint(n, (draws, n), generator=torch.Generator().manual_seed(seed)).tolist()
    for r, c in itertools.product(range(2), range(3)):
        a, b = above[:, r, c].tolist(), below.tolist()
        ratios = [sum(a[i] for i in draw) / sum(b[i] for i in draw) for draw in drawn]
        middle = sum(ratios) / draws
        error = math.sqrt(sum((x - middle) ** 2 for x in ratios) / (draws - 1))
        expected = [sum(a) / sum(b), error, quantile(ratios, (1 - level) / 2), quantile(ratios, (1 + level) / 2)]
        assert [float(x[r, c]) for x in numbers(found)] == pytest.approx(expected, abs=1e-12)
    assert (found.n, found.level) == (n, level)
    assert found.mean.shape == found.high.shape == (2, 3)


def test_a_mean_is_as_sure_as_scipy_says() -> None:
    scipy = pytest.importorskip("scipy.stats")
    values = normal(30, 4) * torch.tensor([1.0, 2.0, 0.1, 30.0]) + torch.tensor([0.0, 1.0, -1.0, 9.0])
    found = bootstrap_mean(values, draws=20_000)
    for cell in range(4):
        other = scipy.bootstrap(
            (values[:, cell].numpy(),), lambda x, axis: x.mean(axis), n_resamples=20_000, method="percentile", rng=1
        )
        scale = float(values[:, cell].std()) / math.sqrt(30)
        assert float(found.standard_error[cell]) == pytest.approx(float(other.standard_error), rel=0.03)
        assert float(found.low[cell]) == pytest.approx(float(other.confidence_interval.low), abs=0.06 * scale)
        assert float(found.high[cell]) == pytest.approx(float(other.confidence_interval.high), abs=0.06 * scale)


def test_a_ratio_is_as_sure_as_scipy_says() -> None:
    scipy = pytest.importorskip("scipy.stats")
    below = normal(30, seed=1) + 6
    above = 0.5 * below + 0.3 * normal(30)
    found = bootstrap_ratio(above, below, draws=20_000, level=0.9)
    other = scipy.bootstrap(
        (above.numpy(), below.numpy()),
        lambda a, b, axis: a.mean(axis) / b.mean(axis),
        paired=True,
        n_resamples=20_000,
        confidence_level=0.9,
        method="percentile",
        rng=1,
    )
    error = float(other.standard_error)
    assert float(found.standard_error) == pytest.approx(error, rel=0.03)
    assert float(found.low) == pytest.approx(float(other.confidence_interval.low), abs=0.06 * error)
    assert float(found.high) == pytest.approx(float(other.confidence_interval.high), abs=0.06 * error)


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
@pytest.mark.parametrize(("successes", "n"), [(0, 1), (0, 20), (3, 20), (10, 20), (20, 20), (999, 1000)])
def test_the_interval_of_a_share_is_that_of_scipy(successes: int, n: int, level: float) -> None:
    scipy = pytest.importorskip("scipy.stats")
    other = scipy.binomtest(successes, n).proportion_ci(level, method="wilson")
    assert wilson(successes, n, level) == pytest.approx((other.low, other.high), abs=1e-12)


def test_the_interval_of_a_share_solves_the_equation_it_comes_from() -> None:
    """Wilson 1927: the ends are the shares p with |x/n − p| = z·√(p(1 − p)/n)."""
    for end in wilson(7, 12, 0.95):
        assert abs(7 / 12 - end) == pytest.approx(1.959963984540054 * math.sqrt(end * (1 - end) / 12), abs=1e-12)


# --- they hold the truth --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "expected"), [(10, 0.90), (20, 0.93), (100, 0.95)])
def test_intervals_of_means_hold_the_truth_as_often_as_documented(n: int, expected: float) -> None:
    found = bootstrap_mean(normal(n, 6000) + 3, draws=1000)
    assert held(found, 3.0) == pytest.approx(expected, abs=0.012)


def test_intervals_of_ratios_hold_the_truth() -> None:
    """Each cell is a data set of its own, so each needs its own denominators."""
    hits = []
    for trial in range(400):
        below = 4 + normal(40, seed=2 * trial)
        above = 0.25 * below + normal(40, seed=2 * trial + 1)
        hits.append(held(bootstrap_ratio(above, below, draws=500, level=0.9), 0.25))
    assert sum(hits) / 400 == pytest.approx(0.9, abs=0.045)


def test_the_standard_error_of_a_mean_comes_near_the_formula() -> None:
    values = normal(50, 200)
    formula = values.std(0, correction=0) / math.sqrt(50)
    torch.testing.assert_close(bootstrap_mean(values, draws=4000).standard_error, formula, rtol=0.06, atol=0)


def test_a_ratio_of_means_is_not_a_mean_of_ratios() -> None:
    above, below = torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.01])
    assert float(bootstrap_ratio(above, below).mean) == pytest.approx(2 / 1.01)


def test_what_is_exactly_proportional_has_no_doubt() -> None:
    below = normal(12).abs() + 1
    found = bootstrap_ratio(0.7 * below[:, None].expand(-1, 3), below)
    for value in (found.mean, found.low, found.high):
        torch.testing.assert_close(value, torch.full_like(value, 0.7), rtol=1e-12, atol=0)
    assert float(found.standard_error.max()) < 1e-12


def test_small_differences_between_large_numbers_are_not_lost_in_float32() -> None:
    small = 1e-2 * normal(20, 3)
    values = (small + 1000).float()
    exact = bootstrap_mean(values.double())
    torch.testing.assert_close(bootstrap_mean(values).standard_error.double(), exact.standard_error, rtol=1e-2, atol=0)


# --- the same again -------------------------------------------------------------------------------------------------


def test_the_seed_alone_decides_and_no_other_random_numbers_are_touched() -> None:
    values = normal(9, 4)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = numbers(bootstrap_mean(values, seed=5))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    again = numbers(bootstrap_mean(values, seed=5))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = numbers(bootstrap_mean(values, seed=6))
    assert torch.equal(first[0], other[0])
    assert not torch.equal(first[2], other[2])


@pytest.mark.parametrize("at_once", [1, 7, 100, 10**9])
def test_many_cells_are_the_same_as_each_alone(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values, below = normal(9, 5), normal(9, seed=1) + 4
    alone = [bootstrap_ratio(values[:, cell], below, draws=20) for cell in range(5)]
    monkeypatch.setattr(statistics, "_AT_ONCE", at_once)
    together = bootstrap_ratio(values, below, draws=20)
    for cell, single in enumerate(alone):
        assert single.mean.shape == ()
        for a, b in zip(numbers(together), numbers(single), strict=True):
            torch.testing.assert_close(a[cell], b, atol=1e-14, rtol=1e-12)


def test_a_hundred_thousand_cells_need_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    quantile_of = statistics._quantile

    def watched(drawn: Tensor, share: float) -> Tensor:
        nonlocal largest
        largest = max(largest, drawn.numel())
        return quantile_of(drawn, share)

    monkeypatch.setattr(statistics, "_quantile", watched)
    found = bootstrap_mean(normal(4, 100_000, dtype=torch.float32), draws=100)
    assert found.low.shape == (100_000,)
    assert bool((found.low <= found.high).all())
    assert 0 < largest <= 2**22


@pytest.mark.parametrize(
    ("given", "gives"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_numbers_are_float32_at_least(given: torch.dtype, gives: torch.dtype) -> None:
    found = bootstrap_mean(normal(5, 2, dtype=given))
    assert {x.dtype for x in numbers(found)} == {gives}
    torch.testing.assert_close(found.mean, normal(5, 2, dtype=given).to(gives).mean(0))


def test_an_estimate_keeps_no_graph() -> None:
    found = bootstrap_ratio(normal(5, 2).requires_grad_(), normal(5).requires_grad_())
    assert not any(x.requires_grad for x in numbers(found))


# --- what cannot be known -------------------------------------------------------------------------------------------


def test_one_prompt_says_nothing_about_others() -> None:
    found = bootstrap_ratio(torch.tensor([[1.0, 3.0]]), torch.tensor([2.0]))
    assert found.mean.tolist() == [0.5, 1.5]
    assert all(bool(x.isnan().all()) for x in numbers(found)[1:])
    assert found.n == 1


@pytest.mark.parametrize("below", [[0.0, 0.0], [1.0, -1.0], [0.1, 0.2, -0.3]])
def test_a_ratio_to_nothing_is_no_number(below: list[float]) -> None:
    found = bootstrap_ratio(normal(len(below), 2), torch.tensor(below, dtype=torch.float64))
    assert all(bool(x.isnan().all()) for x in numbers(found))


@pytest.mark.parametrize(("gap", "known"), [(0.0, False), (0.3, False), (1.5, True), (-1.5, True)])
def test_a_ratio_to_what_may_be_nothing_has_no_interval(gap: float, known: bool) -> None:
    """With 16 prompts of standard deviation one, the mean's error is 1/4."""
    below = normal(16)
    below = (below - below.mean()) / below.std() + gap + 1e-3
    found = bootstrap_ratio(normal(16, 2, seed=1), below)
    assert bool(found.mean.isfinite().all())
    for value in numbers(found)[1:]:
        assert bool(value.isfinite().all()) == known
        assert bool(value.isnan().all()) != known


def test_a_few_draws_of_nothing_leave_the_interval() -> None:
    """One prompt in five has no gap: it fills one draw in 3125."""
    below = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0])
    found = bootstrap_ratio(torch.stack([below, torch.arange(5.0), 1 + torch.arange(5.0)], 1), below, draws=20_000)
    assert bool(found.low.isfinite().all())
    assert bool(found.high.isfinite().all())
    assert bool((found.low <= found.mean).all())
    assert bool((found.mean <= found.high).all())
    assert bool(found.standard_error.isnan().all())


def test_a_cell_without_a_number_does_not_touch_the_others() -> None:
    values = normal(6, 3)
    values[2, 1] = NAN
    found, whole = bootstrap_mean(values), bootstrap_mean(values[:, [0, 2]])
    for a, b in zip(numbers(found), numbers(whole), strict=True):
        assert bool(a[1].isnan())
        torch.testing.assert_close(a[[0, 2]], b)


def test_no_cells_give_no_estimates() -> None:
    assert bootstrap_mean(torch.zeros(3, 0, 2)).low.shape == (0, 2)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("above", "below"),
    [(torch.zeros(0, 2), torch.zeros(0)), (torch.zeros(3, 2), torch.zeros(2)), (torch.zeros(3),) * 2],
)
def test_an_average_over_other_prompts_is_refused_with_both_shapes(above: Tensor, below: Tensor) -> None:
    if above.shape == below.shape == (3,):
        below = below[:, None]
    with pytest.raises(MetricError) as caught:
        bootstrap_ratio(above, below)
    assert str(tuple(above.shape)) in str(caught.value)
    assert str(tuple(below.shape)) in str(caught.value)


@pytest.mark.parametrize("wrong", [{"draws": 1}, {"level": 1.0}, {"level": 0.0}, {"level": 95.0}])
def test_a_bootstrap_that_cannot_be_done_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(MetricError, match=f"level between 0 and 1, not .*{next(iter(wrong.values()))}"):
        bootstrap_mean(normal(4), **wrong)


@pytest.mark.parametrize(("successes", "n", "level"), [(-1, 3, 0.95), (4, 3, 0.95), (1, 3, 1.0), (1, 3, 95.0)])
def test_a_share_that_cannot_be_is_refused(successes: int, n: int, level: float) -> None:
    with pytest.raises(MetricError, match=f"not {successes} of {n} at {level}"):
        wilson(successes, n, level)


def test_no_cases_say_nothing_about_a_share() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 5)[0] == 0.0
    assert wilson(5, 5)[1] == 1.0


def test_wilson_intervals_are_those_of_the_literature() -> None:
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I
    assert wilson(1, 10)[0] < wilson(1.5, 10)[0] < wilson(2, 10)[0]  # an average of several runs


# --- comparing ------------------------------------------------------------------------------------------------------


def test_the_divergence_is_that_of_torch_and_knows_what_is_ruled_out() -> None:
    logits = torch.randn(2, 3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before, after = logits.log_softmax(-1)
    expected = torch.nn.functional.kl_div(after, before, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(kl_divergence(before, after), expected)
    masked = logits.clone()
    masked[..., 7] = -torch.inf  # ruled out before and after
    before, after = masked.log_softmax(-1)
    kept = [n for n in range(50) if n != 7]
    torch.testing.assert_close(kl_divergence(before, after), kl_divergence(before[:, kept], after[:, kept]))
    assert bool((kl_divergence(logits[0].log_softmax(-1), after) == torch.inf).all())  # only afterwards
    assert bool(kl_divergence(before, torch.full_like(after, torch.nan)).isnan().all()), "a broken model is not at 0"


def test_rank_correlations_are_those_of_scipy_with_ties_too() -> None:
    scipy = pytest.importorskip("scipy.stats")
    draw = torch.Generator().manual_seed(0)
    first, second = torch.randint(6, (2, 4, 30), generator=draw).double()
    expected = [scipy.spearmanr(a, b).statistic for a, b in zip(first, second, strict=True)]
    torch.testing.assert_close(spearman(first, second), torch.tensor(expected, dtype=torch.float64))
    assert bool(spearman(first, torch.ones_like(second)).isnan().all())
