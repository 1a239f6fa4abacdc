"""Judging circuits: numbers worked out by hand, reference libraries, and models whose circuit is known."""

from __future__ import annotations

import hashlib
import math
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from scipy.stats import binom
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from circuits.planted import Planted, grouped
from interp_toolkit.circuits.attribution import attribute
from interp_toolkit.circuits.circuit import Circuit, circuit_of
from interp_toolkit.circuits.dataset import prepare_pairs
from interp_toolkit.circuits.faithfulness import (
    SIZES,
    CircuitEvaluation,
    FaithfulnessCurve,
    TestResult,
    area,
    curve,
    evaluate_circuit,
    faithfulness_curve,
    judge,
    prompt_digest,
    rank_quality,
    shares,
    stability,
)
from interp_toolkit.circuits.graph import Graph, connected, top_edges
from interp_toolkit.circuits.hypothesis_tests import (
    equivalence_test,
    independence_test,
    minimality_test,
    sufficiency_test,
)
from interp_toolkit.circuits.judging import check_behaviour, measured
from interp_toolkit.circuits.metrics import metric_of
from interp_toolkit.circuits.random_circuits import inflated, random_circuit
from interp_toolkit.circuits.scores import EdgeScores
from interp_toolkit.circuits.subgraph import CircuitRuns
from interp_toolkit.errors import CircuitError, FileFormatError, InterpWarning, MetricError
from interp_toolkit.provenance import Provenance
from interp_toolkit.statistics import bootstrap_ratio

NOWHERE = Provenance(model="", revision=None, model_type="", layout="", dtype="", versions={})
SMALL = Graph(num_layers=2, num_heads=2, num_groups=1, parallel=False)
SHAPES = [
    Graph(num_layers=layers, num_heads=heads, num_groups=groups, parallel=parallel)
    for layers, heads, groups in ((1, 1, 1), (2, 2, 2), (3, 4, 2))
    for parallel in (False, True)
]
LARGE = Graph(num_layers=30, num_heads=9, num_groups=3, parallel=False)
# Where scores are known, finding and judging on the same prompts is no mistake
SAME_PROMPTS = pytest.mark.filterwarnings("ignore:.*were also used to find")


@cache
def known() -> Planted:
    return grouped()


def answers_of(planted: Planted) -> list[tuple[int, ...]]:
    return [tuple(row) for row in planted.answers.tolist()]


@cache
def runs_of(ablation: str = "corrupt", metric: str = "logit_diff") -> CircuitRuns:
    planted = known()
    pairs = prepare_pairs(planted.model, planted.clean, planted.corrupt, answers_of(planted))
    kind: Any = ablation
    return CircuitRuns(planted.model, pairs, metric_of(metric), ablation=kind)


@cache
def scores() -> EdgeScores:
    return attribute(runs_of(), "eap-ig")


def true_circuit(*more: str, **about: Any) -> Circuit:
    return circuit_of(runs_of().graph, sorted(known().true_edges | set(more)), **about)


def needless_edge() -> str:
    """An edge between nodes of the circuit, so that it is connected, which does nothing."""
    return "L0MLP->L1KV0.v"


def scored(values: Tensor, graph: Graph = SMALL, **about: Any) -> EdgeScores:
    return EdgeScores(
        graph=graph, values=values * graph.valid, method="eap", metric="prob", provenance=NOWHERE, **about
    )


# --- areas and curves ------------------------------------------------------------------------------------------


def hand_curve(**changes: Any) -> FaithfulnessCurve:
    """Two prompts with model 5 and 3 and nothing 1 and −1: the gap is 4, the base 0."""
    values: dict[str, Any] = {
        "sizes": (0.1, 0.5, 1.0),
        "edges": (2, 10, 20),
        "total": 20,
        "connected_absolute": (2, 9, 20),
        "connected_signed": (1, 10, 20),
        "model": torch.tensor([5.0, 3.0]),
        "ablated": torch.tensor([1.0, -1.0]),
        "absolute": torch.tensor([[2.0, 4.0, 5.0], [0.0, 2.0, 3.0]]),  # f: .25 .75 1
        "signed": torch.tensor([[4.0, 8.0, 5.0], [2.0, 4.0, 3.0]]),  # f: .75 1.5 1
        "random": torch.tensor([[[1.0, 3.0, 5.0], [-1.0, 1.0, 3.0]]]),  # f: 0 .5 1
        "selection": "top",
        "method": "eap-ig",
        "metric": "logit_diff",
        "unit": "nats",
        "ablation": "corrupt",
        "provenance": NOWHERE,
    }
    return FaithfulnessCurve(**(values | changes))


def test_areas_are_trapezoids_between_the_sizes_and_nothing_is_added_below_the_smallest() -> None:
    assert float(area(SIZES, torch.ones(10))) == pytest.approx(0.999)
    assert float(area(SIZES, torch.ones(10), log=True)) == pytest.approx(1)
    only_last = torch.zeros(10)
    only_last[-1] = 1
    assert float(area(SIZES, only_last)) == pytest.approx(0.25)  # half of it lies between 50% and 100%
    assert float(area(SIZES, only_last, log=True)) == pytest.approx(math.log(2) / 2 / math.log(1000))


def test_cpr_takes_signed_and_cmd_absolute_circuits_as_worked_out_by_hand() -> None:
    found = hand_curve()
    assert [x.value for x in found.faithfulness()] == pytest.approx([0.25, 0.75, 1])
    assert [x.value for x in found.faithfulness("signed")] == pytest.approx([0.75, 1.5, 1])
    assert found.cpr.value == pytest.approx(0.4 * (0.75 + 1.5) / 2 + 0.5 * (1.5 + 1) / 2)
    assert found.cmd.value == pytest.approx(0.4 * (0.75 + 0.25) / 2 + 0.5 * (0.25 + 0) / 2)
    first, second = math.log(5), math.log(2)
    assert found.cpr_log.value == pytest.approx((first * 1.125 + second * 1.25) / (first + second))
    assert found.cmd_log.value == pytest.approx((first * 0.5 + second * 0.125) / (first + second))
    assert found.random_cmd == pytest.approx(0.4 * 0.75 + 0.5 * 0.25)
    assert found.random_cpr == pytest.approx(0.4 * 0.25 + 0.5 * 0.75)
    words = found.summary()
    assert "ablated by corrupt" in words
    assert "9 connected" in words
    assert "CMD 0.263" in words


def test_faithfulness_at_any_size_lies_on_the_line_between_the_sizes() -> None:
    found = hand_curve()
    asked = {0.0: 0.0, 0.05: 0.125, 0.1: 0.25, 0.3: 0.5, 0.5: 0.75, 1.0: 1.0}
    assert [found.at(size).value for size in asked] == pytest.approx(list(asked.values()))
    assert found.at(0.3, "signed").value == pytest.approx(1.125)
    with pytest.raises(CircuitError, match="from 0 to 1"):
        found.at(1.1)


def test_an_area_without_absolute_values_has_the_interval_of_a_ratio() -> None:
    draw = torch.Generator().manual_seed(0)
    model, ablated = 4 + torch.randn(20, generator=draw), torch.randn(20, generator=draw)
    signed = ablated[:, None] + torch.rand(20, 3, generator=draw) * 4
    more = {"absolute": signed, "signed": signed, "random": torch.zeros(0, 20, 3)}
    found = hand_curve(model=model, ablated=ablated, **more)
    weights = torch.tensor([0.2, 0.45, 0.25])  # of the trapezoid rule
    expected = bootstrap_ratio((signed - ablated[:, None]) @ weights, model - ablated)
    assert [found.cpr.value, found.cpr.low, found.cpr.high] == pytest.approx(
        [float(x) for x in (expected.mean, expected.low, expected.high)], abs=1e-5
    )
    assert math.isnan(found.random_cmd)
    assert found.cmd.low < found.cmd.value < found.cmd.high


@SAME_PROMPTS
def test_a_curve_runs_the_circuits_that_the_scores_choose() -> None:
    runs, graph = runs_of(), runs_of().graph
    found = curve(runs, scores(), sizes=[0.05, 0.3, 1], random=2, seed=1)
    assert found.edges == (4, 24, 82)
    for by, values in (("absolute", found.absolute), ("signed", found.signed)):
        kind: Any = by
        masks = [top_edges(graph, scores().values, n, by=kind) for n in found.edges]
        # With what the corrupt run carries, edges that are not connected change nothing.
        torch.testing.assert_close(values.T, runs.measure(masks), atol=1e-4, rtol=1e-4)
    assert found.connected_absolute[0] == int(connected(graph, top_edges(graph, scores().values, 4)).sum())
    assert found.at(1).value == pytest.approx(1, abs=1e-4)
    assert found.cmd.value < 0.05 < found.random_cmd
    assert found.notes["graph"]["num_layers"] == 2


@SAME_PROMPTS
def test_a_curve_of_greedy_circuits_needs_a_model_and_prompts_only() -> None:
    planted = known()
    found = faithfulness_curve(
        planted.model,
        scores(),
        planted.clean,
        planted.corrupt,
        answers_of(planted),
        sizes=[0.1, 1],
        selection="greedy",
        ablation="mean",
        random=0,
    )
    assert (found.selection, found.ablation, found.random.shape[0]) == ("greedy", "mean", 0)
    assert found.connected_signed[0] <= 8
    with pytest.raises(CircuitError, match="random=3"):
        found.random_faithfulness()


@pytest.mark.parametrize("sizes", [[], [0.0, 1.0], [0.5, 0.2], [0.5, 0.5], [0.5, 1.5]])
def test_sizes_out_of_range_are_refused(sizes: list[float]) -> None:
    with pytest.raises(CircuitError, match="above 0 and up to 1"):
        curve(runs_of(), scores(), sizes=sizes)


# --- one circuit -----------------------------------------------------------------------------------------------


def test_a_planted_circuit_is_faithful_complete_and_minimal() -> None:
    found = judge(runs_of(), true_circuit(), random=12, minimality=True)
    assert found.faithfulness.value == pytest.approx(1, abs=0.02)
    assert found.faithfulness.low <= found.faithfulness.value <= found.faithfulness.high
    assert found.completeness.value == pytest.approx(0, abs=0.02)
    assert abs(found.random_faithfulness.value) < 0.2
    assert found.random_as_faithful <= 0.1
    assert found.accuracy.value == found.model_accuracy.value == 1
    assert set(found.drops) == known().true_edges
    assert (found.needless, found.harmful) == ((), ())
    assert {test.name for test in found.tests} == {"equivalence", "independence", "sufficiency", "minimality"}
    words = found.summary()
    assert "7 of 82 edges" in words
    assert "ablated by corrupt" in words
    assert "Each of its 7 edges matters." in words


def test_an_edge_that_does_nothing_is_found_out() -> None:
    found = judge(runs_of(), true_circuit(needless_edge()), random=0, minimality="edges")
    assert found.needless == (needless_edge(),)
    assert "No loss beyond noise without 1 of 8 edges: L0MLP->L1KV0.v" in found.summary()
    assert math.isnan(found.random_faithfulness.value)
    assert math.isnan(found.random_as_faithful)


def test_what_is_measured_is_what_plain_runs_of_each_circuit_give() -> None:
    runs, circuit = runs_of(), true_circuit("embed->L0H0.q", "L0H0->logits")
    found = judge(runs, circuit, random=2, minimality=True, seed=4)
    ends = [torch.zeros_like(circuit.mask), circuit.mask, runs.graph.valid & ~circuit.mask]
    expected = torch.stack([runs.measure(mask[None])[0] for mask in ends])
    torch.testing.assert_close(torch.stack([found.ablated, found.circuit, found.complement]), expected)
    torch.testing.assert_close(found.ablated, runs.corrupt, atol=1e-4, rtol=1e-4)
    for name, values in zip(found.parts, found.without, strict=True):
        fewer = circuit.mask.clone()
        fewer[runs.graph.edge_of(name)] = False
        torch.testing.assert_close(values, runs.measure(fewer[None])[0], atol=1e-4, rtol=1e-4)
    drop = (found.circuit - found.without[0]).mean() / (found.model - found.ablated).mean()
    assert found.drops[found.parts[0]].value == pytest.approx(float(drop), abs=1e-5)
    assert found.prefers is not None
    logits = replace(metric_of("logit_diff"), name="mine")  # not known to be a difference of two logits
    other = CircuitRuns(runs.model, runs.pairs, logits)
    again = judge(other, circuit, random=0).prefers
    assert again is not None
    torch.testing.assert_close(found.prefers, again, check_dtype=False)
    torch.testing.assert_close(found.prefers, (torch.stack([found.model, found.circuit]) > 0).float().to(found.prefers))


def test_a_node_goes_with_its_edges_but_leaves_keys_that_others_read() -> None:
    runs = runs_of()
    circuit = true_circuit("L1H3->logits", "embed->L1H3.q")  # reads the keys and values of L1H2
    found = judge(runs, circuit, random=0, minimality="nodes")
    assert found.parts == ("L0H1", "L0MLP", "L1H2", "L1H3", "L1MLP")
    kept = sorted((known().true_edges | {"L1H3->logits", "embed->L1H3.q"}) - {"L1H2->L1MLP", "L0MLP->L1H2.q"})
    expected = runs.measure(circuit_of(runs.graph, kept).mask[None])[0]
    torch.testing.assert_close(found.without[2], expected, atol=1e-4, rtol=1e-4)
    assert found.drops["L1MLP"].value > 0.9
    assert found.removed == "nodes"


def test_only_the_pairs_that_are_asked_for_are_judged() -> None:
    some = [1, 2, 3, 4, 5, 6, 7, 0]
    every, turned = (judge(runs_of(), true_circuit(), random=0, pairs=pairs) for pairs in (None, some))
    torch.testing.assert_close(turned.circuit, every.circuit[some], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(turned.model, every.model[some])
    with pytest.raises(CircuitError, match="from 0 to 7"):
        judge(runs_of(), true_circuit(), pairs=[8])


def test_the_whole_model_is_faithful_and_leaves_nothing() -> None:
    whole = Circuit(graph=runs_of().graph, mask=runs_of().graph.valid)
    found = judge(runs_of(), whole, random=1, minimality=False)
    assert [found.faithfulness.value, found.completeness.value] == pytest.approx([1, 0], abs=1e-4)
    assert found.tests[0].p_value == 1  # no prompt on which it differs from itself
    assert found.random_as_faithful == 1


def test_another_ablation_or_metric_than_it_was_found_with_is_said() -> None:
    circuit = true_circuit(ablation="zero", metric="prob", method="acdc")
    found = judge(runs_of("mean"), circuit, random=0)
    assert found.ablation == "mean"
    assert "found with the ablation zero, but is judged with mean" in found.summary()
    assert "found with the metric prob, but is judged with logit_diff" in found.summary()
    assert found.faithfulness.value != pytest.approx(1, abs=1e-6)


def test_a_metric_of_whole_runs_has_no_accuracy() -> None:
    planted = known()
    found = evaluate_circuit(planted.model, true_circuit(), planted.clean, planted.corrupt, metric="kl", random=0)
    assert found.prefers is None
    assert math.isnan(found.accuracy.value)
    assert found.faithfulness.value == pytest.approx(1, abs=0.05)
    assert not found.larger_is_cleaner


# --- what is refused and warned of -----------------------------------------------------------------------------


def test_without_a_behaviour_there_is_nothing_to_judge() -> None:
    planted = known()
    with pytest.raises(
        CircuitError, match=r"is 1 in the whole model and 1 in the ablated run, the same over 8 prompts"
    ):
        evaluate_circuit(
            planted.model, true_circuit(), planted.clean, planted.corrupt, metric=lambda logits: 0 * logits[:, 0] + 1
        )


def test_a_difference_within_chance_the_wrong_sign_and_infinite_values_are_told() -> None:
    noise = torch.tensor([1.0, -1.0, 2.0, -2.0, 0.5, -0.4, 3.0, -3.0])
    nothing = torch.zeros(8)
    with pytest.warns(
        InterpWarning, match=r"is 0.0125 in the whole model and 0 in the ablated run: .*not beyond chance"
    ):
        check_behaviour(noise, nothing, "logit_diff", 1.0, 0.95)
    with pytest.warns(InterpWarning, match="the ablated run answers better"):
        check_behaviour(nothing - 1, nothing, "logit_diff", 1.0, 0.95)
    check_behaviour(nothing, nothing + 1, "kl", -1.0, 0.95)
    with pytest.raises(MetricError, match="not finite for 1 of 8 prompts"):
        check_behaviour(noise, torch.tensor([-math.inf, *[0.0] * 7]), "log_prob", 1.0, 0.95)


def test_few_prompts_are_warned_of_and_one_has_no_interval() -> None:
    planted = known()
    with pytest.warns(InterpWarning, match="1 prompt only: no interval can be given"):
        found = evaluate_circuit(
            planted.model, true_circuit(), planted.clean[:1], planted.corrupt[:1], answers_of(planted)[:1], random=1
        )
    assert math.isnan(found.faithfulness.low)
    assert math.isnan(found.faithfulness.high)
    assert "interval" not in str(found.faithfulness)
    assert found.faithfulness.as_note()["low"] is None
    with pytest.warns(InterpWarning, match="3 prompts only: intervals are rough"):
        judge(runs_of(), true_circuit(), random=0, pairs=[0, 1, 2])


def test_prompts_that_were_used_before_are_warned_of() -> None:
    assert prompt_digest([5, 6]) == hashlib.sha256(b"(5, 6)").hexdigest()[:16]
    digests = [prompt_digest(row) for row in known().clean[:3].tolist()]
    with pytest.warns(InterpWarning, match="3 of 8 prompts were also used to find the circuit"):
        found = judge(runs_of(), true_circuit(notes={"prompt_digests": digests}), random=0)
    assert "3 of 8 prompts were also used" in found.summary()
    with pytest.warns(InterpWarning, match="2 of 8 prompts were also used to find the scores"):
        seen = curve(runs_of(), replace(scores(), notes={"prompt_digests": digests[:2]}), sizes=[1], random=0)
    assert seen.notes["shared_prompts"] == 2
    assert math.isnan(seen.cmd.value)  # one size has no area
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        judge(runs_of(), true_circuit(notes={"prompt_digests": digests}), random=0, pairs=range(3, 8))
    assert [str(one.message)[:9] for one in told] == ["5 prompts"]  # few, but none that was used before


def test_prompts_that_were_used_on_the_other_side_of_a_pair_are_noted() -> None:
    digests = [prompt_digest(row) for row in known().clean[:3].tolist()]
    found = judge(runs_of(), true_circuit(notes={"corrupt_digests": digests}), random=0)
    assert "3 of 8 pairs share a prompt with pairs that were used to find the circuit" in found.summary()
    seen = curve(runs_of(), replace(scores(), notes={"corrupt_digests": digests}), sizes=[0.1, 1], random=0)
    assert seen.notes["overlapping_prompts"] == 3
    assert "3 of 8 pairs share a prompt with pairs that were used to find the scores" in seen.summary()


@pytest.mark.parametrize("ablation", ["mean", "zero"])
def test_what_pruning_leaves_out_of_a_curve_carries_nothing_with_any_ablation(ablation: str) -> None:
    runs, given = runs_of(ablation), scores()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InterpWarning)
        found = curve(runs, given, sizes=[0.02, 0.05, 0.1, 0.2, 1], random=0)
    whole = runs.measure([top_edges(runs.graph, given.values, n) for n in found.edges])
    torch.testing.assert_close(found.absolute.T, whole, atol=1e-4, rtol=1e-4)
    assert found.connected_absolute[1] < found.edges[1]


def test_a_random_circuit_that_is_as_near_is_not_beaten() -> None:
    assert not sufficiency_test(0.5, torch.full((29,), 0.5)).rejected
    assert sufficiency_test(0.5, torch.full((29,), 0.5)).statistic == 0
    assert sufficiency_test(0.5, torch.full((29,), 0.6)).rejected


def test_tests_against_a_model_that_is_the_same_on_all_prompts_are_not_done() -> None:
    runs = runs_of(metric="kl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InterpWarning)
        found = judge(runs, true_circuit(), random=0)
    assert [test.p_value for test in found.tests] == [None, None]
    assert not any(test.rejected for test in found.tests)
    assert "equivalence: not done: the metric is 0 in the whole model, the same on all 8 prompts" in found.summary()


def test_what_differs_by_little_beside_large_values_differs() -> None:
    noise = torch.randn(40, generator=torch.Generator().manual_seed(0)).double() * 1e-3
    assert equivalence_test(200 + noise.abs(), torch.full((40,), 200.0, dtype=torch.float64)).rejected
    assert independence_test(200 + noise, 200 + noise).rejected


@SAME_PROMPTS
def test_intervals_of_a_distance_near_nothing_hold_it() -> None:
    generator = torch.Generator().manual_seed(0)
    shape, hits, cases = torch.tensor([0.3, 0.5, 0.8, 0.95, 1, 1, 1, 1, 1, 1]), 0, 60
    truth = float(area(SIZES, (1 - shape).abs()))
    like = curve(runs_of(), scores(), random=0)
    for _ in range(cases):
        gap, ablated = 5 + torch.randn(16, generator=generator), torch.randn(16, generator=generator)
        noise = torch.randn(16, 10, generator=generator) * 0.3
        noise[:, -1] = 0
        values = ablated[:, None] + gap[:, None] * (shape + noise)
        found = replace(
            like, model=ablated + gap, ablated=ablated, absolute=values, signed=values, random=torch.zeros(0, 16, 10)
        ).cmd
        assert found.low <= found.value <= found.high
        hits += found.low <= truth <= found.high
    assert hits >= 0.8 * cases  # plain quantiles of the draws never do


def test_circuits_and_options_that_cannot_be_judged_are_refused(unchecked: None) -> None:
    runs, circuit = runs_of(), true_circuit()
    other = circuit_of(SMALL, ["embed->logits"])
    with pytest.raises(CircuitError, match="cannot be judged on a model of"):
        judge(runs, other)
    with pytest.raises(CircuitError, match="cannot be judged on a model of"):
        curve(runs, scored(torch.zeros(SMALL.valid.shape)))
    with pytest.raises(CircuitError, match="an empty circuit"):
        judge(runs, circuit - circuit)
    with pytest.raises(CircuitError, match="at least 0, not -1"):
        judge(runs, circuit, random=-1)
    wrong: Any = "heads"
    with pytest.raises(CircuitError, match="'edges' or 'nodes', not 'heads'"):
        judge(runs, circuit, minimality=wrong)
    with pytest.raises(CircuitError, match="'top' or 'greedy'"):
        curve(runs, scores(), selection=wrong)


# --- random circuits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("graph", SHAPES, ids=str)
def test_random_circuits_have_the_size_asked_for_and_are_connected(graph: Graph) -> None:
    generator = Random(0)
    for n in sorted({*range(min(30, graph.num_edges)), graph.num_edges // 2, graph.num_edges}):
        mask = random_circuit(graph, n, seed=generator)
        assert int(mask.sum()) == n
        assert not bool((mask & ~graph.valid).any())
        loose = n - int(connected(graph, mask).sum())
        assert loose == 0 or n <= 4, (n, loose)
    with pytest.raises(CircuitError, match="cannot be chosen"):
        random_circuit(graph, graph.num_edges + 1)


def test_random_circuits_of_a_large_model_are_quick_connected_and_different() -> None:
    first, second = (random_circuit(LARGE, 353, seed=seed) for seed in (1, 2))
    assert int(connected(LARGE, first).sum()) == 353
    assert torch.equal(first, random_circuit(LARGE, 353, seed=1))
    assert int((first & second).sum()) < 100
    half = random_circuit(LARGE, LARGE.num_edges // 2, seed=3)
    assert int(connected(LARGE, half).sum()) == LARGE.num_edges // 2


def test_every_edge_can_be_in_a_random_circuit() -> None:
    generator = Random(0)
    counts = torch.stack([random_circuit(SMALL, 8, seed=generator) for _ in range(300)]).sum(0)
    assert int(counts[SMALL.valid].min()) > 5


def test_an_inflated_circuit_has_a_path_more_and_loses_an_edge_of_it() -> None:
    graph, generator = SHAPES[4], Random(1)
    mask = random_circuit(graph, 20, seed=5)
    for _ in range(20):
        both = inflated(graph, mask, generator)
        assert both is not None
        larger, fewer = both
        assert bool((mask <= fewer).all())
        assert bool((fewer <= larger).all())
        assert int((larger & ~fewer).sum()) == 1
        assert int(connected(graph, larger).sum()) == int(larger.sum())
    assert inflated(graph, graph.valid, generator) is None


def test_a_circuit_that_is_there_twice_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    runs, seen = runs_of(), []
    monkeypatch.setattr(
        runs, "measure", lambda masks, pairs: seen.append(len(masks)) or torch.arange(1.0 * len(masks))[:, None]
    )
    empty, whole = torch.zeros_like(runs.graph.valid), runs.graph.valid
    assert measured(runs, [whole, empty, whole, empty, whole], [0])[:, 0].tolist() == [0, 1, 0, 1, 0]
    assert seen == [2]


# --- statistical tests -----------------------------------------------------------------------------------------


def test_the_equivalence_test_is_a_binomial_test_at_the_end_of_the_hypothesis() -> None:
    n, better = 30, 24
    change = torch.tensor([1.0] * better + [-1.0] * (n - better))
    found = equivalence_test(change, torch.zeros(n))
    far = [k for k in range(n + 1) if abs(k - 15) >= 9]
    assert found.p_value == pytest.approx(float(binom(n, 0.6).pmf(far).sum()))
    assert (found.rejected, found.statistic) == (True, 0.8)
    assert equivalence_test(change, torch.zeros(n), epsilon=0.3).p_value > 0.05
    ties = equivalence_test(torch.cat([change, torch.full((9,), 1e-9)]), torch.zeros(n + 9))
    assert (ties.cases, ties.p_value) == (n, found.p_value)
    with pytest.raises(CircuitError, match="below 1/2"):
        equivalence_test(change, change, epsilon=0.5)


def test_equivalence_is_rejected_no_more_often_than_it_may_be_at_the_end_of_the_hypothesis() -> None:
    for n in (7, 20, 41):
        results = [equivalence_test((torch.arange(n) < k) * 2.0 - 1, torch.zeros(n)).rejected for k in range(n + 1)]
        rejected = sum(float(binom(n, 0.6).pmf(k)) for k, no in enumerate(results) if no)
        assert rejected <= 0.05


def test_the_independence_test_measures_the_hilbert_schmidt_criterion() -> None:
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(15, generator=draw).double(), torch.randn(15, generator=draw).double()
    found = independence_test(x, y, permutations=50)
    centre = torch.eye(15) - torch.ones(15, 15) / 15
    kernels = []
    for values in (x, y):
        apart = (values[:, None] - values).abs()
        kernels.append(torch.exp(-(apart**2) / (2 * apart[apart > 0].median() ** 2)))
    expected = torch.trace(centre.double() @ kernels[0] @ centre.double() @ kernels[1]) / 14**2
    assert found.statistic == pytest.approx(float(expected))
    x = torch.randn(40, generator=draw)
    bent = independence_test(x, x**2)  # a correlation would see little of it
    assert bent.rejected
    assert bent.p_value == pytest.approx(1 / 1001)
    assert independence_test(torch.zeros(15), y).p_value == 1


def test_independent_values_are_rarely_rejected() -> None:
    draw = torch.Generator().manual_seed(1)
    pairs = [torch.randn(2, 12, generator=draw) for _ in range(150)]
    rejected = sum(independence_test(x, y, permutations=99, seed=n).rejected for n, (x, y) in enumerate(pairs))
    assert rejected <= 15


def test_the_tests_against_random_circuits_are_binomial() -> None:
    chance = torch.arange(100.0)
    better = sufficiency_test(3.5, chance)  # 96 of 100 are as far from the model or farther
    assert (better.statistic, better.p_value) == (0.96, pytest.approx(float(binom(100, 0.9).sf(95))))
    assert better.rejected
    assert not sufficiency_test(50.0, chance).rejected
    assert "too few to decide" in sufficiency_test(0.0, torch.ones(28)).meaning
    assert sufficiency_test(0.0, torch.ones(29)).rejected
    found = minimality_test(torch.tensor([200.0, 80.5, 95.5]), chance, names=["a", "b", "c"])
    assert found.p_value == pytest.approx(min(1, 3 * float(binom(100, 0.9).cdf(81))))
    assert "1 of 3 edges do less" in found.meaning
    assert found.meaning.endswith(": b")
    assert not minimality_test(torch.tensor([200.0, 95.5]), chance).rejected
    with pytest.raises(CircuitError, match="needs one of them"):
        sufficiency_test(0.0, torch.zeros(0))


# --- stability and known circuits ------------------------------------------------------------------------------


def test_stability_of_prompts_that_agree_is_whole_and_of_two_that_do_not_as_worked_out() -> None:
    first, second = (top_edges(SMALL, torch.rand(SMALL.valid.shape), 4).float() for _ in range(2))
    second = second * (1 - first)
    same = stability(scored(first, prompts=first.expand(9, -1, -1)), 4, prune=False)
    assert (same.mean, float(same.to_circuit.min())) == (1, 1)
    assert torch.equal(same.core(), first.bool())
    assert "Circuits of 4 edges from 9 prompts" in same.summary()
    n = int(second.sum())
    with pytest.warns(InterpWarning, match="2 prompts only"):
        both = stability(
            scored(first, prompts=torch.stack([first, 2 * second])), n, prune=False, draws=40, by="signed", seed=2
        )
    # A draw has the first prompt only with a chance of 1/4; else the second one is stronger. The choices share nothing
    # but, among the first's 4 equal edges, none of the second's.
    taken = both.frequency[second.bool()]
    assert torch.equal(taken, taken[:1].expand_as(taken))
    often = float(taken[0])
    pairs = often * 40 * (often * 40 - 1) / 2 + (1 - often) * 40 * ((1 - often) * 40 - 1) / 2
    assert both.mean == pytest.approx(pairs / (40 * 39 / 2))
    assert 0.5 < often < 0.95


def test_stability_of_noise_is_what_is_told_as_that_of_no_effect() -> None:
    generator = torch.Generator().manual_seed(0)
    size = torch.randn(LARGE.valid.shape, generator=generator).exp() ** 2
    prompts = torch.randn(16, *LARGE.valid.shape, generator=generator) * size * LARGE.valid
    found = stability(scored(prompts.mean(0), LARGE, prompts=prompts), 350, draws=6, prune=False)
    assert found.null == pytest.approx(found.mean, abs=0.08)
    assert found.mean > 0.3  # far above what choices without any scores share
    real = prompts + 30 * size * (torch.rand(LARGE.valid.shape, generator=generator) < 0.01) * LARGE.valid
    agreed = stability(scored(real.mean(0), LARGE, prompts=real), 350, draws=6, prune=False)
    assert agreed.mean > agreed.null + 0.2
    assert f"no edge has an effect, {agreed.null:.1%}" in agreed.summary()


def test_stability_needs_scores_of_prompts_and_a_size_that_there_is() -> None:
    values = torch.rand(SMALL.valid.shape)
    with pytest.raises(CircuitError, match="two prompts or more"):
        stability(scored(values), 3)
    several = scored(values, prompts=values.expand(8, -1, -1) * SMALL.valid)
    for size in (-1, SMALL.num_edges + 1, 1.5, math.nan):
        with pytest.raises(CircuitError, match="share from 0 to 1"):
            stability(several, size)
    assert stability(several, 0.5, greedy=True).edges == SMALL.num_edges // 2
    assert stability(several, 0).mean == 1


@pytest.mark.parametrize("seed", range(4))
def test_ranks_are_judged_as_scikit_learn_does_ties_and_all(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    values = torch.randint(-4, 5, SMALL.valid.shape, generator=draw) / 2
    mask = (torch.rand(SMALL.valid.shape, generator=draw) < 0.3) & SMALL.valid
    labels, plain = mask[SMALL.valid].numpy(), values[SMALL.valid].numpy()
    for by, keys in (("signed", plain), ("absolute", abs(plain))):
        kind: Any = by
        found = rank_quality(scored(values), mask, by=kind)
        assert found.auroc == pytest.approx(roc_auc_score(labels, keys))
        assert found.auprc == pytest.approx(average_precision_score(labels, keys))
        assert (found.true_edges, found.edges) == (int(mask.sum()), SMALL.num_edges)


def test_scores_find_a_planted_circuit_given_in_any_form() -> None:
    names = sorted(known().true_edges)
    results = [rank_quality(scores(), given) for given in (names, true_circuit(), true_circuit().mask)]
    assert results[0] == results[1] == results[2]
    assert results[0].auroc > 0.99
    with pytest.raises(CircuitError, match="if some are, and some not"):
        rank_quality(scores(), [])
    with pytest.raises(CircuitError, match="but the scores of"):
        rank_quality(scores(), circuit_of(SMALL, ["embed->logits"]))


# --- files and tables ------------------------------------------------------------------------------------------


@SAME_PROMPTS
def test_results_are_the_same_after_saving_and_loading(tmp_path: Path) -> None:
    found = judge(runs_of(), true_circuit(ablation="zero"), random=2, minimality="nodes")
    again = CircuitEvaluation.load(found.save(tmp_path / "evaluation.safetensors"))
    assert again.summary(9) == found.summary(9)
    assert again.tests == found.tests
    assert again.provenance == found.provenance
    none = judge(runs_of(), true_circuit(), random=0)
    assert CircuitEvaluation.load(none.save(tmp_path / "none.safetensors")).summary() == none.summary()
    line = curve(runs_of(), scores(), sizes=[0.1, 1], random=1)
    path = line.save(tmp_path / "curve.safetensors")
    assert FaithfulnessCurve.load(path).summary() == line.summary()
    with pytest.raises(FileFormatError, match=r"not 'interp_toolkit\.circuit_evaluation/1'"):
        CircuitEvaluation.load(path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(FileFormatError, match="saved faithfulness curve"):
        FaithfulnessCurve.load(path)


def test_tables_hold_every_prompt_part_and_size() -> None:
    found = replace(judge(runs_of(), true_circuit(), random=2), parts=("a",), without=torch.zeros(1, 8))
    frame = found.to_dataframe()
    assert list(frame.columns) == [
        "prompt",
        "model",
        "ablated",
        "circuit",
        "complement",
        "random",
        "model_prefers",
        "circuit_prefers",
    ]
    ratio = (frame["circuit"] - frame["ablated"]).mean() / (frame["model"] - frame["ablated"]).mean()
    assert ratio == pytest.approx(found.faithfulness.value, abs=1e-5)
    assert found.parts_dataframe()["part"].tolist() == ["a"]
    table = hand_curve().to_dataframe()
    assert len(table) == 9
    assert table.query("by == 'signed' and size == 0.5")["faithfulness"].item() == pytest.approx(1.5)


def test_shares_are_ratios_of_means_not_means_of_ratios() -> None:
    found = shares(torch.tensor([1.0, 8.0]), torch.tensor([2.0, 8.0]), torch.zeros(2))
    assert float(found.mean) == pytest.approx(0.9)


def test_an_evaluation_of_different_prompts_is_refused(unchecked: None) -> None:
    found = judge(runs_of(), true_circuit(), random=0)
    with pytest.raises(CircuitError, match=r"there are \[7, 8\] prompts"):
        replace(found, circuit=found.circuit[:7])
    with pytest.raises(CircuitError, match="a curve of 2 prompts and 3 sizes"):
        hand_curve(signed=torch.zeros(2, 2))
    assert isinstance(found.tests[0], TestResult)
    assert len(found.tests) == 2
