"""Exact ablation edge by edge: running ahead changes nothing of what a plain walk finds."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from circuits.brute_edges import double_model
from circuits.planted import PLANTED
from interp_toolkit.circuits.acdc import _Guess, _Walk, acdc
from interp_toolkit.circuits.attribution import attribute
from interp_toolkit.circuits.dataset import prepare_pairs
from interp_toolkit.circuits.graph import connected, random_edges, top_edges
from interp_toolkit.circuits.judging import prompt_digest
from interp_toolkit.circuits.metrics import metric_of
from interp_toolkit.circuits.resumed import ResumedRuns
from interp_toolkit.circuits.scores import EdgeScores
from interp_toolkit.circuits.subgraph import CircuitRuns
from interp_toolkit.errors import CircuitError, InterpWarning
from tiny import tokens

CLEAN, CORRUPT = tokens(2), tokens(2, seed=1)
ANSWERS = [(5, 9), (20, 7)]


@cache
def runs_of(family: str, metric: str = "logit_diff", ablation: str = "corrupt") -> CircuitRuns:
    model = double_model(family)
    pairs = prepare_pairs(model, CLEAN.tolist(), CORRUPT.tolist(), ANSWERS)
    return CircuitRuns(model, pairs, metric_of(metric), ablation=ablation)  # type: ignore[arg-type]


@cache
def scores_of(family: str) -> EdgeScores:
    return attribute(runs_of(family), "eap")


def plain_walk(
    runs: CircuitRuns, start: Tensor, tolerance: float, *, drop_harmful: bool = False
) -> tuple[Tensor, list]:
    """One run after the other, every edge of the circuit from the last destination and source on."""
    mask = start.clone()
    value = float(runs.measure(mask[None]).mean())
    moved = []
    for dest in reversed(range(runs.graph.num_dests)):
        for source in reversed(range(runs.graph.num_sources)):
            if not start[source, dest]:
                continue
            mask[source, dest] = False
            after = float(runs.measure(mask[None]).mean())
            harm = (value - after) * runs.sign
            moved.append(harm)
            if (harm if drop_harmful else abs(harm)) < tolerance:
                value = after
            else:
                mask[source, dest] = True
    return mask, moved


@pytest.mark.parametrize(
    ("family", "n", "tolerance", "at_once"),
    [("llama", 40, 0.03, None), ("gpt2", 40, 0.1, 5), ("gpt_neox", 25, 0.05, 1), ("gpt2", 20, 1e-9, None)],
)
def test_running_ahead_finds_what_a_plain_walk_finds(
    family: str, n: int, tolerance: float, at_once: int | None
) -> None:
    runs, scores = runs_of(family), scores_of(family)
    found = acdc(runs, scores, tolerance=tolerance, largest=n, at_once=at_once, progress=False)
    start = connected(runs.graph, top_edges(runs.graph, scores.values, n))
    mask, moved = plain_walk(runs, start, tolerance)
    assert torch.equal(found.start, start)
    assert torch.equal(found.mask, connected(runs.graph, mask))
    torch.testing.assert_close(found.effects, torch.tensor(moved, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.value, float(runs.measure(found.mask[None]).mean()), atol=1e-6, rtol=0)
    kept = [bool(mask[source, dest]) for source, dest in found.edges]
    assert found.kept.tolist() == kept
    assert any(kept)
    assert tolerance < 1e-6 or not all(kept)


@pytest.mark.parametrize("name", ["grouped", "induction"])
def test_planted_circuits_are_found_from_all_edges(name: str) -> None:
    planted = PLANTED[name]()
    answers = [(int(right), int(wrong)) for right, wrong in planted.answers[:2]]
    pairs = prepare_pairs(planted.model, planted.clean[:2].tolist(), planted.corrupt[:2].tolist(), answers)
    runs = CircuitRuns(planted.model, pairs, metric_of("logit_diff"))
    found = acdc(runs, attribute(runs, "eap"), largest=None, tolerance=planted.margin / 2, progress=False)
    assert torch.equal(found.start, runs.graph.valid)
    assert found.full == pytest.approx(float(runs.clean.mean()), abs=1e-4)
    names = {runs.graph.edge_name(int(source), int(dest)) for source, dest in found.mask.nonzero()}
    assert names == planted.true_edges


def test_the_walk_goes_from_the_logits_back_and_from_late_sources_to_early_ones() -> None:
    runs = runs_of("llama")
    found = acdc(runs, random_edges(runs.graph, 80, seed=2), tolerance=0.01, progress=False)
    assert len(found.edges) == int(found.start.sum())
    for (source, dest), (next_source, next_dest) in pairwise(found.edges.tolist()):
        assert (next_dest, next_source) < (dest, source)


def test_scores_only_save_runs() -> None:
    runs, scores = runs_of("llama"), scores_of("llama")
    start = connected(runs.graph, top_edges(runs.graph, scores.values, 100))
    blind = acdc(runs, start, tolerance=0.03, progress=False)
    warm = acdc(runs, scores, largest=100, tolerance=0.03, progress=False)
    assert torch.equal(blind.mask, warm.mask)
    assert warm.measured < 3 * 100
    assert runs.measure(warm.mask[None]).shape == (1, 2)


def test_edges_into_nodes_that_lead_nowhere_cost_no_run() -> None:
    runs = runs_of("gpt2")
    names = [*(f"embed->L0H{head}.{kind}" for head in range(4) for kind in "qkv"), "embed->logits"]
    names += [f"L0H{head}->logits" for head in range(4)]
    mask = torch.zeros_like(runs.graph.valid)
    for name in names:
        mask[runs.graph.edge_of(name)] = True
    with pytest.warns(InterpWarning, match="no circuit is left: no edge moved logit_diff by 1000"):
        found = acdc(runs, mask, tolerance=1000.0, at_once=1, progress=False)
    assert found.measured == 3 + 5 + 1  # the ends, the five edges into the logits, and what is left
    assert not found.mask.any()
    assert "12 edges needed no run" in found.summary()


def test_harmful_edges_are_kept_or_dropped() -> None:
    runs, scores = runs_of("llama"), scores_of("llama")
    start = connected(runs.graph, top_edges(runs.graph, scores.values, 40))
    dropped = acdc(runs, start, tolerance=0.03, harmful="drop", progress=False)
    mask, moved = plain_walk(runs, start, 0.03, drop_harmful=True)
    assert torch.equal(dropped.mask, connected(runs.graph, mask))
    assert min(moved) < -0.03
    assert bool((dropped.effects[dropped.kept] > 0).all())
    kept = acdc(runs, start, tolerance=0.03, progress=False)
    assert (kept.harmful, dropped.harmful) == ("keep", "drop")
    assert int(kept.mask.sum()) > int(dropped.mask.sum())


def test_distances_from_the_clean_run_are_walked_as_in_the_paper() -> None:
    runs = runs_of("llama", "kl")
    start = connected(runs.graph, top_edges(runs.graph, scores_of("llama").values, 30))
    found = acdc(runs, start, tolerance=0.005, progress=False)
    mask, _ = plain_walk(runs, start, 0.005, drop_harmful=True)
    assert found.harmful == "drop"
    assert torch.equal(found.mask, connected(runs.graph, mask))


def test_other_ablations_and_lengths() -> None:
    model = double_model("gpt2")
    clean = [[*row, 8] if n else row for n, row in enumerate(CLEAN.tolist())]
    corrupt = [[*row, 8] if n else row for n, row in enumerate(CORRUPT.tolist())]
    runs = CircuitRuns(model, prepare_pairs(model, clean, corrupt, ANSWERS), metric_of("logit_diff"), ablation="zero")
    start = connected(runs.graph, top_edges(runs.graph, scores_of("gpt2").values, 25))
    found = acdc(runs, start, tolerance=0.1, progress=False)
    mask, _ = plain_walk(runs, start, 0.1)
    assert torch.equal(found.mask, connected(runs.graph, mask, ablation="zero"))
    assert found.scores.notes["prompt_digests"] == [prompt_digest(row) for row in clean]


@pytest.mark.parametrize(
    ("family", "ablation"),
    [("gpt2", "mean"), ("gpt2", "positional"), ("gpt_neox", "zero"), ("gpt2", "corrupt"), ("gemma2", "corrupt")],
)
@pytest.mark.filterwarnings("ignore:no circuit is left")
def test_the_value_is_that_of_the_circuit_that_comes_out(family: str, ablation: str) -> None:
    runs = runs_of(family, ablation=ablation)
    for tolerance in (0.02, 0.05, 0.1, 0.2):
        found = acdc(runs, tolerance=tolerance, unit="gap", progress=False)
        again = float(runs.measure(found.mask[None]).double().mean())
        assert found.value == pytest.approx(again, abs=1e-9)
        circuit = found.scores.circuit(found.mask)
        assert torch.equal(circuit.mask, found.mask)
        if family != "gemma2":  # what was left out at the end carried nothing
            mask = torch.zeros_like(found.mask)
            mask[*found.edges[found.kept].T] = True
            assert float(runs.measure(mask[None]).double().mean()) == pytest.approx(again, abs=1e-6)


def test_edges_into_heads_that_lead_nowhere_are_run_where_a_norm_couples_the_heads() -> None:
    runs = runs_of("gemma2")
    names = ["embed->logits", "embed->L0H0.q", "L0H1->logits"]
    names += [name for name in runs.graph.dest_names if name.startswith("L0") and name.endswith((".k", ".v"))]
    mask = torch.zeros_like(runs.graph.valid)
    for name in names:
        mask[runs.graph.edge_of(name if "->" in name else f"embed->{name}")] = True
    start = connected(runs.graph, mask)
    start[runs.graph.edge_of("embed->L0H0.q")] = True
    guess = _Guess(None, 1e9, 8)
    walk = _Walk(ResumedRuns(runs, [0, 1], start), start, 0.0, 1e9, "keep", guess)
    assert walk._leads_on(runs.graph.dest_index("L0H0.q"), start)
    without = start.clone()
    without[runs.graph.edge_of("embed->L0H0.q")] = False
    moved = runs.measure(torch.stack([start, without]))
    assert float((moved[0] - moved[1]).abs().max()) > 1e-6
    start[runs.graph.edge_of("L0H1->logits")] = False
    assert not walk._leads_on(runs.graph.dest_index("L0H0.q"), start)


def test_the_tolerance_may_be_a_share_of_the_gap() -> None:
    runs, scores = runs_of("gpt2"), scores_of("gpt2")
    share = acdc(runs, scores, largest=30, tolerance=0.1, unit="gap", progress=False)
    gap = abs(share.full - share.empty)
    assert share.tolerance == pytest.approx(0.1 * gap)
    same = acdc(runs, scores, largest=30, tolerance=0.1 * gap, progress=False)
    assert torch.equal(share.mask, same.mask)
    assert share.faithfulness == pytest.approx((share.value - share.empty) / (share.full - share.empty))


def test_the_result_is_told_and_makes_a_circuit() -> None:
    runs, scores = runs_of("gpt2"), scores_of("gpt2")
    found = acdc(runs, scores, largest=40, tolerance=0.1, progress=False)
    kept, start = int(found.mask.sum()), int(found.start.sum())
    assert found.summary().startswith(f"ACDC kept {kept} of {start} edges at tolerance 0.1: metric ")
    circuit = found.scores.circuit(found.mask, "kept by ACDC")
    assert torch.equal(circuit.mask, found.mask)
    assert circuit.method == "acdc"
    assert min(abs(found.scores.values[found.mask])) >= 0.1 - 1e-6
    assert circuit.notes["tolerance"] == 0.1


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"tolerance": 0.0}, "drops nothing: it must be above 0; logit_diff goes from"),
        ({"tolerance": float("nan")}, "a tolerance of nan"),
        ({"tolerance": 1.5, "unit": "gap"}, "drops everything: it must be between 0 and 1"),
        ({"tolerance": 0.1, "at_once": 0}, "0 edges cannot be run ahead"),
        ({"tolerance": 0.1, "candidates": "none"}, "of 0 edges none is"),
        ({"tolerance": 0.1, "candidates": "loose"}, "of 1 edges none is"),
        ({"tolerance": 0.1, "candidates": "other"}, "scores are of another model"),
    ],
)
def test_what_cannot_be_walked_is_refused(about: dict[str, Any], words: str) -> None:
    runs = runs_of("gpt2")
    none = torch.zeros_like(runs.graph.valid)
    loose = none.clone()
    loose[runs.graph.edge_of("L0H1->logits")] = True
    known: dict[str, Any] = {"none": none, "loose": loose, "other": scores_of("llama")}
    known["usual"] = scores_of("gpt2")
    candidates = known[about.pop("candidates", "usual")]
    with pytest.raises(CircuitError, match=words):
        acdc(runs, candidates, progress=False, **about)
