"""Exact scores: what the metric loses without an edge, one at a time."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from circuits.brute_edges import double_model, edge_scores_exact
from interp_toolkit.circuits import exact
from interp_toolkit.circuits.dataset import prepare_pairs
from interp_toolkit.circuits.exact import ExactCost, exact_cost, exact_scores, measured_edges
from interp_toolkit.circuits.metrics import metric_of
from interp_toolkit.circuits.subgraph import CircuitRuns
from interp_toolkit.errors import CircuitError
from tiny import tokens

CLEAN, CORRUPT = tokens(2), tokens(2, seed=1)
ANSWERS = [(5, 9), (20, 7)]


@cache
def runs_of(family: str, metric: str = "logit_diff", ablation: str = "corrupt") -> CircuitRuns:
    model = double_model(family)
    pairs = prepare_pairs(model, CLEAN.tolist(), CORRUPT.tolist(), ANSWERS)
    return CircuitRuns(model, pairs, metric_of(metric), ablation=ablation)  # type: ignore[arg-type]


def some(runs: CircuitRuns, every: int = 23) -> Tensor:
    places = runs.graph.valid.nonzero()[3::every]
    mask = torch.zeros_like(runs.graph.valid)
    mask[places[:, 0], places[:, 1]] = True
    return mask


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_scores_are_those_of_plain_runs_without_each_edge(family: str) -> None:
    runs = runs_of(family)
    mask = some(runs)
    found = exact_scores(runs, edges=mask, progress=False)
    truth = edge_scores_exact(
        runs.model, family, CLEAN, CORRUPT, torch.tensor(ANSWERS), edges=[(int(s), int(d)) for s, d in mask.nonzero()]
    )
    assert found.prompts is not None
    torch.testing.assert_close(found.prompts[:, mask], truth[:, mask].float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.values[mask], truth[:, mask].mean(0).float(), atol=1e-5, rtol=1e-5)
    assert not found.values[~mask].any()
    assert float(truth.abs().max()) > 0.01


def test_edges_come_in_parts_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = runs_of("gpt2")
    whole = exact_scores(runs, pairs=[0], progress=False)
    assert torch.equal(measured_edges(whole), runs.graph.valid)
    monkeypatch.setattr(exact, "_MASKS", 1)
    monkeypatch.setattr(exact, "_PROMPTS_KEPT", 1)
    mask = some(runs, 6)
    parts = exact_scores(runs, edges=mask, pairs=[0], progress=False)
    torch.testing.assert_close(parts.values[mask], whole.values[mask], atol=1e-6, rtol=0)
    assert parts.prompts is None
    assert int(mask.sum()) > 2 * 16


def test_a_smaller_metric_that_is_cleaner_turns_the_sign() -> None:
    runs = runs_of("llama", "kl")
    found = exact_scores(runs, sample=20, progress=False)
    # Leaving out an edge can only move the run away from the clean one.
    assert float(found.values.min()) >= -1e-6
    assert float(found.values.max()) > 1e-4
    assert (found.metric, found.unit, found.method) == ("kl", "nats", "exact")


def test_samples_are_drawn_anew_by_seed_and_noted() -> None:
    runs = runs_of("gpt2")
    first, again, other = (exact_scores(runs, sample=7, seed=seed, progress=False) for seed in (0, 0, 1))
    assert torch.equal(measured_edges(first), measured_edges(again))
    assert torch.equal(first.values, again.values)
    assert not torch.equal(measured_edges(first), measured_edges(other))
    assert int(measured_edges(first).sum()) == 7 == first.notes["measured"]
    candidates = some(runs)
    within = exact_scores(runs, edges=candidates, sample=3, progress=False)
    assert not (measured_edges(within) & ~candidates).any()


def test_some_pairs_alone() -> None:
    runs = runs_of("gpt2")
    mask = some(runs)
    both, second = (exact_scores(runs, edges=mask, pairs=which, progress=False) for which in (None, [1]))
    assert both.prompts is not None
    torch.testing.assert_close(second.values, both.prompts[1])
    assert second.notes["prompts"] == 1


def test_files_keep_which_edges_were_measured(tmp_path: object) -> None:
    found = exact_scores(runs_of("gpt2"), sample=5, progress=False)
    path = found.save(f"{tmp_path}/scores.safetensors")
    assert torch.equal(measured_edges(type(found).load(path)), measured_edges(found))


def test_the_cost_is_said_beforehand() -> None:
    cost = exact_cost(runs_of("gpt2"), 10, pairs=[0])
    assert (cost.edges, cost.prompts, cost.runs) == (10, 1, 10)
    assert 0 < cost.seconds < 60
    for seconds, words in ((0.2, "1 s"), (80.0, "80 s"), (240.0, "4 minutes"), (7300.0, "2 hours"), (3e5, "3 days")):
        text = str(ExactCost(edges=2000, prompts=3, seconds=seconds))
        assert text == f"2,000 edges on 3 prompts: 6,000 runs of a part of the model, about {words} here"


def test_all_edges_of_a_large_model_need_to_be_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = runs_of("gpt2")
    monkeypatch.setattr(exact, "_LONG", 0.0)
    with pytest.raises(
        CircuitError, match=rf"exact scores of all {runs.graph.num_edges} edges.*about 1?[0-9]* s.*sample"
    ):
        exact_scores(runs, progress=False)
    exact_scores(runs, sample=1, progress=False)


def test_what_cannot_be_measured_is_refused() -> None:
    runs = runs_of("gpt2")
    none = torch.zeros_like(runs.graph.valid)
    with pytest.raises(CircuitError, match="holds no edge"):
        exact_scores(runs, edges=none)
    with pytest.raises(CircuitError, match="there is no edge"):
        exact_scores(runs, edges=~none)
    with pytest.raises(CircuitError, match="a sample of 4 edges cannot be drawn from 3: 1 to 3 can"):
        exact_scores(runs, edges=some(runs, 60) & (some(runs, 60).flatten().cumsum(0) <= 3).view_as(none), sample=4)
    with pytest.raises(CircuitError, match="pairs are different numbers"):
        exact_scores(runs, pairs=[])
    with pytest.raises(CircuitError, match="cannot be chosen"):
        exact_cost(runs, 10**6)


def test_notes_that_are_damaged_are_refused() -> None:
    found = exact_scores(runs_of("gpt2"), sample=2, progress=False)
    for text, words in (("?", "cannot be read"), ("AAAA", "cannot be read"), ("eJwDAAAAAAE=", "is not of a graph of")):
        with pytest.raises(CircuitError, match=words):
            measured_edges(replace(found, notes={"measured_edges": text}))
    with pytest.raises(CircuitError, match="scores by eap, and their notes are empty"):
        measured_edges(replace(found, method="eap", notes={}))
