"""Edge pruning: gates, their gradients through exact runs, and what is learned."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from circuits.brute_edges import all_double, double_model
from circuits.planted import PLANTED
from interp_toolkit.circuits.attribution import attribute
from interp_toolkit.circuits.circuit_pass import CircuitPass, GatedPass, values_of
from interp_toolkit.circuits.dataset import prepare_pairs
from interp_toolkit.circuits.graph import random_edges, top_edges
from interp_toolkit.circuits.metrics import metric_of
from interp_toolkit.circuits.pruning import (
    STRETCH,
    TEMPERATURE,
    PruningSettings,
    drawn,
    open_share,
    prune_edges,
)
from interp_toolkit.circuits.scores import EdgeScores
from interp_toolkit.circuits.subgraph import CircuitRuns
from interp_toolkit.errors import CircuitError, MetricError
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


def gated(runs: CircuitRuns, batch: list[int], masks: Tensor) -> Tensor:
    run = GatedPass(runs.stream, runs.ablated(batch), masks, torch.arange(len(batch)))
    return values_of(runs.metric, runs.questions, run.logits(), batch)


# --- gradients of the pass ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "gemma2", "mixtral"])
def test_gradients_of_gates_are_finite_differences(family: str) -> None:
    runs, step = runs_of(family), 1e-5
    batch = runs.batches([0, 1])[0]
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(len(batch), *runs.graph.valid.shape, generator=generator, dtype=torch.float64)
    masks = (masks * runs.graph.valid).requires_grad_()
    places = runs.graph.valid.nonzero()[5::61].tolist()
    with all_double():
        (slopes,) = torch.autograd.grad(gated(runs, batch, masks).sum(), [masks])
        for source, dest in places:
            ends = []
            for sign in (1, -1):
                moved = masks.detach().clone()
                moved[0, source, dest] += sign * step
                ends.append(gated(runs, batch, moved)[0])
            truth = (ends[0] - ends[1]) / (2 * step)
            torch.testing.assert_close(slopes[0, source, dest], truth, atol=1e-7, rtol=1e-5)
    assert float(slopes[0][tuple(torch.tensor(places).T)].abs().max()) > 1e-3
    assert not slopes[:, ~runs.graph.valid].any()


@pytest.mark.parametrize("ablation", ["corrupt", "zero"])
def test_gates_that_are_open_or_closed_are_plain_circuits(ablation: str) -> None:
    runs = runs_of("llama", ablation=ablation)
    for batch in runs.batches([0, 1]):
        circuits = torch.stack([random_edges(runs.graph, 150, seed=n) for n in batch])
        plain = torch.stack(
            [runs.measure(mask[None], pairs=[n])[0, 0] for n, mask in zip(batch, circuits, strict=True)]
        )
        found = gated(runs, batch, circuits.double().requires_grad_())
        assert found.requires_grad
        torch.testing.assert_close(found.detach(), plain, atol=1e-10, rtol=0)


def test_a_second_backward_pass_starts_from_nothing() -> None:
    runs = runs_of("gpt2")
    batch = runs.batches([0, 1])[0]
    masks = (runs.graph.valid * 0.5).double().expand(len(batch), -1, -1).requires_grad_()
    values = gated(runs, batch, masks).sum()
    first = torch.autograd.grad(values, [masks], retain_graph=True)[0]
    again = torch.autograd.grad(values, [masks])[0]
    assert torch.equal(first, again)


def test_runs_may_begin_at_a_layer_with_other_writings_for_each_prompt() -> None:
    runs = runs_of("llama")
    batch = runs.batches([0, 1])[0]
    ablated, mask = runs.ablated(batch), random_edges(runs.graph, 150, seed=1)
    whole = CircuitPass(runs.stream, ablated, mask.expand(len(batch), -1, -1), torch.arange(len(batch)))
    logits = whole.logits()
    order = torch.arange(len(batch)).flip(0)
    part = CircuitPass(runs.stream, ablated, mask.expand(len(batch), -1, -1), order, 2, whole.written)
    torch.testing.assert_close(part.logits(), logits[order], atol=1e-10, rtol=0)
    assert not logits.requires_grad


# --- gates ----------------------------------------------------------------------------------------------------------


def test_gates_are_closed_as_often_as_the_formula_says() -> None:
    log_alpha = torch.tensor([-3.0, -1.0, 0.0, 2.0])
    uniform = torch.rand(200_000, 1, generator=torch.Generator().manual_seed(0))
    gates = drawn(log_alpha, uniform)
    torch.testing.assert_close((gates > 0).float().mean(0), open_share(log_alpha), atol=5e-3, rtol=0)
    assert float(gates.min()) == 0.0
    assert float(gates.max()) == 1.0
    assert (pytest.approx(2 / 3), (-0.1, 1.1)) == (TEMPERATURE, STRETCH)


def test_gates_have_slopes_where_they_are_between() -> None:
    log_alpha = torch.tensor([-9.0, 0.3, 9.0], dtype=torch.float64, requires_grad=True)
    half = torch.full((3,), 0.5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: drawn(x, half), log_alpha)
    (slopes,) = torch.autograd.grad(drawn(log_alpha, half).sum(), [log_alpha])
    assert (slopes != 0).tolist() == [False, True, False]


# --- learning -------------------------------------------------------------------------------------------------------


@cache
def planted_runs() -> tuple[CircuitRuns, Tensor]:
    """A model of which the circuit is known, and its mask."""
    planted = PLANTED["grouped"]()
    answers = [(int(right), int(wrong)) for right, wrong in planted.answers]
    pairs = prepare_pairs(planted.model, planted.clean.tolist(), planted.corrupt.tolist(), answers)
    runs = CircuitRuns(planted.model, pairs, metric_of("logit_diff"))
    mask = torch.zeros_like(runs.graph.valid)
    for name in planted.true_edges:
        mask[runs.graph.edge_of(name)] = True
    return runs, mask


@pytest.mark.parametrize("about", [{}, {"objective": "kl"}, {"nodes": True}])
def test_a_faithful_circuit_is_learned_from_a_poor_beginning(about: dict[str, Any]) -> None:
    runs, true = planted_runs()
    n, valid = int(true.sum()), runs.graph.valid
    noise = torch.rand(valid.shape, generator=torch.Generator().manual_seed(0)) * valid
    # The true edges are far behind the wanted number, so that none of them would be chosen.
    scores = replace(attribute(runs, "eap"), values=torch.where(true, 0.9, noise), prompts=None)
    given = top_edges(runs.graph, scores.values, n)
    assert not (given & true).any()
    settings = PruningSettings(steps=60, learning_rate=0.3, **about)
    found = prune_edges(runs, scores, n, settings=settings, progress=False)
    learned = top_edges(runs.graph, found.values, n)
    values = runs.measure([valid, torch.zeros_like(valid), learned, given])
    gap = (values[0] - values[1]).abs().mean()
    off = (values[2:] - values[0]).abs().mean(1) / gap
    assert float(off[0]) < 0.05
    assert float(off[1]) > 0.5
    assert found.notes["last_loss"] < found.notes["first_loss"] / 5
    assert float(found.values.abs().sum()) == pytest.approx(n, rel=0.2)


def test_what_comes_out_has_the_signs_and_the_rest_of_what_was_given() -> None:
    runs, scores = runs_of("gpt2"), scores_of("gpt2")
    settings = PruningSettings(steps=3, candidates=2.0)
    found = prune_edges(runs, scores, 30, settings=settings, progress=False)
    valid, gates = runs.graph.valid, top_edges(runs.graph, scores.values, 60)
    assert bool(((found.values < 0) == (scores.values < 0))[valid].all())
    assert float(found.values[gates].abs().min()) > float(found.values[valid & ~gates].abs().max())
    others = (valid & ~gates).nonzero().T
    order = scores.values[tuple(others)].abs().argsort(stable=True)
    assert bool((found.values[tuple(others)].abs()[order].diff() >= 0).all())
    assert (found.method, found.metric, found.unit) == ("edge-pruning", "logit_diff", "probability")
    assert found.notes["warm_start"] == "eap"


def test_the_same_seed_gives_the_same_gates_and_leaves_the_global_one_alone() -> None:
    runs, scores = runs_of("gpt2"), scores_of("gpt2")

    def learned(seed: int) -> Tensor:
        return prune_edges(runs, scores, 30, settings=PruningSettings(steps=2, seed=seed), progress=False).values

    state = torch.get_rng_state()
    first, again, other = learned(0), learned(0), learned(1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in runs.model.parameters())


def test_prompts_are_taken_a_few_at_a_time() -> None:
    runs, scores = runs_of("llama"), scores_of("llama")
    found = prune_edges(runs, scores, 30, settings=PruningSettings(steps=3, prompts=1), progress=False)
    assert found.notes["prompts"] == 2
    one = prune_edges(runs, scores, 30, settings=PruningSettings(steps=1), pairs=[1], progress=False)
    assert one.notes["prompts"] == 1


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"edges": 0}, "a circuit of 1 to .* edges, not of 0"),
        ({"edges": 10**6}, "not of 1,000,000"),
        ({"scores": "other"}, "scores are of another model"),
        ({"scores": "zero"}, "all scores are 0"),
        ({"pairs": []}, "pairs are different numbers"),
    ],
)
def test_what_cannot_be_pruned_is_refused(about: dict[str, Any], words: str) -> None:
    runs, usual = runs_of("gpt2"), scores_of("gpt2")
    zero = replace(usual, values=torch.zeros_like(usual.values), prompts=None)
    scores = {"usual": usual, "other": scores_of("llama"), "zero": zero}[about.pop("scores", "usual")]
    with pytest.raises(CircuitError, match=words):
        prune_edges(runs, scores, about.pop("edges", 20), progress=False, **about)


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"steps": 0}, "steps of at least 1, not 0"),
        ({"candidates": 0.5}, "candidates of at least 1.0, not 0.5"),
        ({"learning_rate": -1.0}, "a learning_rate above 0, not -1.0"),
    ],
)
def test_settings_out_of_range_are_refused(about: dict[str, Any], words: str) -> None:
    with pytest.raises(CircuitError, match=words):
        PruningSettings(**about)


def test_a_metric_without_a_gradient_needs_the_other_objective() -> None:
    runs = runs_of("gpt2", "rank")
    with pytest.raises(MetricError, match=r"rank has no gradient.*objective='kl'"):
        prune_edges(runs, scores_of("gpt2"), 20, settings=PruningSettings(steps=1), progress=False)
    settings = PruningSettings(steps=1, objective="kl")
    assert prune_edges(runs, scores_of("gpt2"), 20, settings=settings, progress=False).metric == "rank"
