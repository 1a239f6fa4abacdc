"""Metrics: each equals what plain Python or another library computes, and what is no number is an error."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from interp_toolkit.circuits import metrics
from interp_toolkit.circuits.metrics import METRICS, Metric, Question, metric_of
from interp_toolkit.errors import InterpError, MetricError

NAN, INF = float("nan"), float("inf")
VOCAB = 11
NAMES = list(METRICS)


def question(
    targets: tuple[int, ...] = (3, 7), foils: tuple[int, ...] = (1, 4, 9), dtype: torch.dtype = torch.float64
) -> Question:
    clean, corrupt = (3 * torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).to(
        dtype
    )
    return Question(targets=targets, foils=foils, clean_logits=clean, corrupt_logits=corrupt)


def some(cells: int = 6, dtype: torch.dtype = torch.float64) -> Tensor:
    return (3 * torch.randn(cells, VOCAB, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).to(dtype)


def asked(name: str | Metric, logits: Tensor, about: Question) -> Tensor:
    """Measured as a run would do it: with the needed columns alone."""
    metric = metric_of(name)
    needed = metric.needs(about)
    return metric.measure(logits if needed is None else logits[:, list(needed)], about)


def shares(logits: Sequence[float]) -> list[float]:
    whole = math.fsum(math.exp(x) for x in logits)
    return [math.exp(x) / whole for x in logits]


def by_hand(name: str, row: list[float], about: Question) -> float:
    """The definition, in float64 Python."""
    p, clean = shares(row), shares(about.clean_logits.tolist())
    right, wrong = about.targets, about.foils
    match name:
        case "logit_diff":
            return sum(row[t] for t in right) / len(right) - sum(row[f] for f in wrong) / len(wrong)
        case "log_prob":
            return math.log(math.fsum(p[t] for t in right))
        case "prob":
            return math.fsum(p[t] for t in right)
        case "prob_diff":
            return math.fsum(p[t] for t in right) - math.fsum(p[f] for f in wrong)
        case "kl":
            return math.fsum(c * (math.log(c) - math.log(x)) for c, x in zip(clean, p, strict=True))
        case "rank":
            return float(sorted(row, reverse=True).index(max(row[t] for t in right)))
        case "accuracy":
            others = wrong or [n for n in range(len(row)) if n not in right]
            return float(max(row[t] for t in right) > max(row[o] for o in others))
        case _:
            raise AssertionError(f"{name} has no definition here")


@pytest.mark.parametrize("targets", [(3,), (3, 7), (10, 0, 2)])
@pytest.mark.parametrize("name", NAMES)
def test_every_metric_is_what_its_definition_says(name: str, targets: tuple[int, ...]) -> None:
    about, logits = question(targets), some(40)
    expected = [by_hand(name, row.tolist(), about) for row in logits]
    assert len(set(expected)) > 1
    torch.testing.assert_close(
        asked(name, logits, about), torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("name", ["accuracy", "log_prob", "prob", "rank"])
def test_metrics_of_targets_alone_do_without_foils(name: str) -> None:
    about, logits = question(foils=()), some(40)
    expected = [by_hand(name, row.tolist(), about) for row in logits]
    assert len(set(expected)) > 1
    torch.testing.assert_close(
        asked(name, logits, about), torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("name", ["logit_diff", "prob_diff"])
def test_a_comparison_without_foils_is_refused_and_what_works_is_named(name: str) -> None:
    about = question(foils=())
    for call in (lambda: metric_of(name).needs(about), lambda: metric_of(name).measure(some(), about)):
        with pytest.raises(MetricError, match=rf"{name} needs foils.*: log_prob, prob, kl, rank, accuracy$"):
            call()


def test_without_targets_only_whole_runs_can_be_compared() -> None:
    about = question(targets=(), foils=())
    assert asked("kl", some(), about).shape == (6,)
    for name in set(NAMES) - {"kl"}:
        with pytest.raises(MetricError, match=f"{name} needs targets"):
            metric_of(name).needs(about)


def test_only_what_is_needed_is_asked_for() -> None:
    about = question()
    wanted = {name: metric_of(name).needs(about) for name in NAMES}
    assert wanted.pop("logit_diff") == wanted.pop("accuracy") == (3, 7, 1, 4, 9)
    assert set(wanted.values()) == {None}
    assert metric_of("accuracy").needs(question(foils=())) is None


def test_the_clean_run_is_the_cleaner_one_by_the_metrics_own_sign() -> None:
    """What `larger_is_cleaner` says is true of runs that do differ as clean and corrupt do."""
    clean, corrupt = torch.zeros(2, VOCAB)
    clean[3], corrupt[1] = 5.0, 5.0
    about = Question(targets=(3,), foils=(1,), clean_logits=clean, corrupt_logits=corrupt)
    for name, metric in METRICS.items():
        at_clean, at_corrupt = asked(name, torch.stack([clean, corrupt]), about).tolist()
        assert (at_clean > at_corrupt) == metric.larger_is_cleaner, name
        assert at_clean != at_corrupt, name
    assert [name for name, metric in METRICS.items() if not metric.larger_is_cleaner] == ["kl", "rank"]


# --- KL: small where a component hardly matters, so its last digits are what counts ---------------------------------


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1.0, 30.0])
def test_kl_is_that_of_another_library(scale: float) -> None:
    about = question()
    logits = about.clean_logits + scale * some(8)
    expected = kl_divergence(Categorical(logits=about.clean_logits), Categorical(logits=logits))
    torch.testing.assert_close(asked("kl", logits, about), expected, atol=1e-14, rtol=1e-9)


def test_kl_of_nearly_equal_runs_keeps_its_digits_in_float32() -> None:
    generator = torch.Generator().manual_seed(2)
    clean = 4 * torch.randn(50_000, generator=generator)
    logits = clean + 1e-3 * torch.randn(4, 50_000, generator=generator)
    about = Question(targets=(), foils=(), clean_logits=clean, corrupt_logits=clean)
    exact = kl_divergence(Categorical(logits=clean.double()), Categorical(logits=logits.double()))
    assert float(exact.max()) < 1e-6
    torch.testing.assert_close(asked("kl", logits, about).double(), exact, rtol=1e-3, atol=0)
    naive = (clean.softmax(-1) * (clean.log_softmax(-1) - logits.log_softmax(-1))).sum(-1)
    assert float((naive / exact - 1).abs().max()) > 1e-2  # the reason for doing it otherwise


def test_kl_of_equal_runs_is_exactly_zero() -> None:
    about = question(dtype=torch.float32)
    assert asked("kl", about.clean_logits.expand(3, -1), about).tolist() == [0.0] * 3
    shifted = asked("kl", about.clean_logits.expand(3, -1) + 100.0, about)
    assert float(shifted.max()) < 1e-9
    assert float(shifted.min()) >= 0


def test_kl_holds_where_probabilities_leave_the_range_of_float32() -> None:
    clean = torch.tensor([0.0, -120.0, -95.0, -5.0, -120.0])
    logits = torch.tensor([[-300.0, 0.0, 200.0, 0.0, 199.0]], requires_grad=True)
    about = Question(targets=(), foils=(), clean_logits=clean, corrupt_logits=clean)
    exact = kl_divergence(Categorical(logits=clean.double()), Categorical(logits=logits.double()))
    found = asked("kl", logits, about)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=0)
    (slope,) = torch.autograd.grad(found.sum(), logits)
    torch.testing.assert_close(slope[0], logits[0].softmax(-1) - clean.softmax(-1))


# --- tokens that the model rules out --------------------------------------------------------------------------------


def ruled_out() -> tuple[Tensor, Question]:
    """Both runs rule token 0 out; the first cell rules out token 2 as well, which the clean run thinks possible."""
    about = question((2,), (5,))
    about.clean_logits[0] = -INF
    logits = some(2)
    logits[:, 0] = -INF
    logits[0, 2] = -INF
    return logits, about


def test_a_distance_from_what_is_impossible_is_infinite_and_else_finite() -> None:
    logits, about = ruled_out()
    kl = asked("kl", logits, about).tolist()
    log_prob = asked("log_prob", logits, about).tolist()
    assert kl[0] == INF
    assert log_prob[0] == -INF
    possible = kl_divergence(Categorical(logits=about.clean_logits[1:]), Categorical(logits=logits[1, 1:]))
    assert kl[1] == pytest.approx(float(possible), abs=1e-12)
    assert log_prob[1] == pytest.approx(by_hand("log_prob", logits[1].tolist(), about), abs=1e-12)
    assert asked("prob", logits, about)[0] == 0.0
    assert asked("rank", logits, about)[0] == VOCAB - 2


def test_a_logit_difference_with_what_is_impossible_is_no_number() -> None:
    logits, about = ruled_out()
    with pytest.raises(MetricError, match="logit_diff is -inf in cell 0 of 2 cells"):
        asked("logit_diff", logits, about)


# --- what is no number ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_gave_no_numbers_is_an_error_with_the_cell(name: str, bad: float) -> None:
    """Comparing with NaN is false, so a rank would come out as the best there is."""
    logits = some()
    logits[2, 3] = logits[4, 3] = bad
    with pytest.raises(
        MetricError, match=rf"{name}.* largest logit is {bad} in cell 2 and in 1 more of 6 cells.*float32"
    ):
        asked(name, logits, question())


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_rules_out_everything_is_an_error(name: str) -> None:
    with pytest.raises(MetricError, match=f"{name}.* -inf in cell 0"):
        asked(name, torch.full((1, VOCAB), -INF), question())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("name", "width"), [("kl", VOCAB - 1), ("logit_diff", VOCAB), ("accuracy", 4), ("rank", 5)])
def test_logits_of_another_width_are_refused_with_both_shapes(name: str, width: int) -> None:
    wanted = VOCAB if name in ("kl", "rank") else 5
    with pytest.raises(MetricError, match=rf"{name} needs logits of shape \(cells, {wanted}\).*\(6, {width}\)"):
        metric_of(name).measure(torch.zeros(6, width), question())


@pytest.mark.usefixtures("unchecked")
def test_logits_of_one_cell_need_an_axis_of_cells() -> None:
    with pytest.raises(MetricError, match=r"shape \(cells, 11\).*\(11,\)"):
        metric_of("kl").measure(torch.zeros(VOCAB), question())


@pytest.mark.parametrize(
    ("targets", "foils", "words"),
    [
        ((VOCAB,), (1,), "from 0 to 10, but an answer is 11"),
        ((1,), (-1,), "an answer is -1"),
        ((1, 1), (2,), r"counts once.*\(1, 1\)"),
        ((1, 2), (2,), r"counts once.*\(2,\)"),
    ],
)
def test_answers_that_are_not_different_tokens_are_refused(
    targets: tuple[int, ...], foils: tuple[int, ...], words: str
) -> None:
    with pytest.raises(MetricError, match=words):
        question(targets, foils)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("shape", [(VOCAB + 1,), (1, VOCAB)])
def test_two_vocabularies_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(MetricError, match=r"one vocabulary, but have shapes \(11,\) and \(1"):
        Question(targets=(), foils=(), clean_logits=torch.zeros(VOCAB), corrupt_logits=torch.zeros(shape))


# --- functions of a user's own --------------------------------------------------------------------------------------


def entropy(logits: Tensor) -> Tensor:
    return Categorical(logits=logits).entropy()


class Scaled:
    def __call__(self, logits: Tensor) -> Tensor:
        return 2 * entropy(logits)


def test_a_function_is_a_metric_under_its_own_name() -> None:
    metric = metric_of(entropy)
    assert (metric.name, metric.larger_is_cleaner, metric.unit) == ("entropy", True, "")
    assert metric.needs(question(targets=(), foils=())) is None
    torch.testing.assert_close(metric.measure(some(), question()), entropy(some()))
    assert metric_of(Scaled()).name == "Scaled"
    assert metric_of(partial(entropy)).name == "partial"


def test_a_function_sees_float32_and_all_cells_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[tuple[int, ...], torch.dtype]] = []

    def watch(logits: Tensor) -> Tensor:
        seen.append((tuple(logits.shape), logits.dtype))
        return logits[:, 0]

    monkeypatch.setattr(metrics, "_AT_ONCE", 1)
    metric_of(watch).measure(some(dtype=torch.bfloat16), question())
    assert seen == [((6, VOCAB), torch.float32)]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda logits: logits, r"shape \(6, 11\)"),
        (lambda logits: logits.sum(), r"shape \(\)"),
        (lambda logits: logits[:3, 0], r"shape \(3,\)"),
        (lambda logits: logits.sum(-1).tolist(), "list"),
        (lambda _: None, "NoneType"),
    ],
)
def test_a_function_that_gives_something_else_is_an_error_with_both_shapes(
    function: Callable[[Tensor], Any], found: str
) -> None:
    with pytest.raises(MetricError, match=rf"<lambda> must give .* shape \(6,\), but gave {found}"):
        metric_of(function).measure(some(), question())


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_function_that_gives_no_number_is_an_error_with_the_cell(bad: float) -> None:
    def broken(logits: Tensor) -> Tensor:
        return torch.where(torch.arange(len(logits)) == 5, bad, logits[:, 0])

    with pytest.raises(MetricError, match=f"broken is {bad} in cell 5 of 6 cells"):
        metric_of(broken).measure(some(), question())


def test_counts_of_a_function_become_numbers() -> None:
    values = metric_of(lambda logits: logits.argmax(-1)).measure(some(dtype=torch.float32), question())
    assert values.dtype == torch.float32
    assert values.tolist() == some().argmax(-1).tolist()


# --- types, sizes, gradients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("given", "gives"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_numbers_are_float32_at_least_and_computed_in_it(name: str, given: torch.dtype, gives: torch.dtype) -> None:
    about, logits = question(), some(dtype=given)
    values = asked(name, logits, about)
    assert values.dtype == gives
    expected = [by_hand(name, row.tolist(), about) for row in logits.double()]
    torch.testing.assert_close(values.double(), torch.tensor(expected, dtype=torch.float64), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("at_once", [1, VOCAB, 2 * VOCAB + 1, 10**9])
@pytest.mark.parametrize("name", NAMES)
def test_the_size_of_a_step_changes_nothing(name: str, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = asked(name, some(7), question())
    monkeypatch.setattr(metrics, "_AT_ONCE", at_once)
    assert asked(name, some(7), question()).tolist() == whole.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_no_cells_give_no_numbers(name: str) -> None:
    assert asked(name, some(0), question()).shape == (0,)


@pytest.mark.parametrize("name", ["kl", "log_prob", "logit_diff", "prob", "prob_diff"])
def test_gradients_pass_through(name: str) -> None:
    about = question()
    logits = some(3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: asked(name, x, about), (logits,))


def test_a_tie_is_neither_a_better_rank_nor_an_answer() -> None:
    level = torch.zeros(1, VOCAB)
    assert asked("rank", level, question((3,))).tolist() == [0.0]
    assert asked("accuracy", level, question((3,))).tolist() == [0.0]
    assert asked("accuracy", level, question((3,), ())).tolist() == [0.0]
    both = level.index_fill(1, torch.tensor([3, 7]), 1.0)
    assert asked("accuracy", both, question((3, 7), ())).tolist() == [1.0]  # a tie of targets is no tie


# --- names ----------------------------------------------------------------------------------------------------------


def test_a_metric_is_found_by_its_name_and_stays_itself() -> None:
    for name, metric in METRICS.items():
        assert metric.name == name
        assert metric_of(name) is metric_of(metric) is metric
        assert metric.unit


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("spec", ["logitdiff", "", 3, None])
def test_an_unknown_metric_is_an_error_that_names_the_choices(spec: Any) -> None:
    with pytest.raises(MetricError) as caught:
        metric_of(spec)
    assert repr(spec) in str(caught.value)
    assert all(name in str(caught.value) for name in NAMES)
    assert isinstance(caught.value, InterpError)
    assert isinstance(caught.value, ValueError)


def test_metrics_can_be_sent_to_another_process() -> None:
    for spec in (*NAMES, entropy):
        metric = metric_of(spec)
        again = pickle.loads(pickle.dumps(metric))
        assert repr(again) == repr(metric)
        assert again == metric or spec is entropy
        torch.testing.assert_close(asked(again, some(), question()), asked(metric, some(), question()))
