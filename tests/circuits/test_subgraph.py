"""Exact runs of circuits, against plain ones and against the model itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from circuits.brute_edges import (
    NAMES,
    ablations,
    all_double,
    circuit_logits,
    double_model,
    edge_scores_exact,
    logit_difference,
)
from interp_toolkit.circuits.attribution import attribute
from interp_toolkit.circuits.dataset import Pairs, prepare_pairs
from interp_toolkit.circuits.metrics import metric_of
from interp_toolkit.circuits.node_attribution import node_scores
from interp_toolkit.circuits.reference import Reference
from interp_toolkit.circuits.subgraph import CircuitRuns
from interp_toolkit.errors import CircuitError, UnavailableSiteError
from tiny import FAMILIES, tiny_model, tokens

CLEAN, CORRUPT = tokens(2), tokens(2, seed=1)
ANSWERS = [(5, 9), (20, 7)]
model_of: Callable[[str], Any] = cache(double_model)
COMPARED = [name for name in sorted(NAMES) if name != "olmo2"]  # there, a norm over all heads is defined otherwise


def later(clean: Tensor, position: int) -> Tensor:
    """A corrupt prompt that begins to differ at a position."""
    return torch.cat([clean[:, :position], CORRUPT[:, position:]], dim=1)


def pairs_of(model: Any, corrupt: Tensor = CORRUPT) -> Pairs:
    return prepare_pairs(model, CLEAN, corrupt, ANSWERS)


def runs_of(model: Any, corrupt: Tensor = CORRUPT, **settings: Any) -> CircuitRuns:
    return CircuitRuns(model, pairs_of(model, corrupt), metric_of("logit_diff"), **settings)


def some_masks(runs: CircuitRuns, number: int = 4) -> Tensor:
    drawn = torch.rand(number, *runs.graph.valid.shape, generator=torch.Generator().manual_seed(3))
    shares = torch.linspace(0.2, 0.9, number)
    return (drawn < shares[:, None, None]) & runs.graph.valid


@pytest.mark.parametrize("family", COMPARED)
@pytest.mark.parametrize("position", [0, 4])
def test_a_circuit_run_is_the_plain_one(family: str, position: int) -> None:
    model, corrupt = model_of(family), later(CLEAN, position)
    with all_double():
        runs = runs_of(model, corrupt)
        masks = some_masks(runs)
        found = runs.measure(masks)
        for mask, values in zip(masks, found, strict=True):
            expected = logit_difference(circuit_logits(model, family, CLEAN, corrupt, mask), torch.tensor(ANSWERS))
            torch.testing.assert_close(values, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("family", sorted(NAMES))
def test_all_edges_are_the_clean_run_and_none_the_ablated_one(family: str) -> None:
    with all_double():
        runs = runs_of(model_of(family))
        full, empty = runs.measure(torch.stack([runs.graph.valid, torch.zeros_like(runs.graph.valid)]))
    torch.testing.assert_close(full, runs.clean, atol=1e-10, rtol=0)
    torch.testing.assert_close(empty, runs.corrupt, atol=1e-10, rtol=0)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "gemma2"])
@pytest.mark.parametrize("kind", ["zero", "mean", "positional"])
def test_other_ablations_are_the_plain_ones(family: str, kind: Any) -> None:
    model = model_of(family)
    if family == "gemma2" and kind != "zero":
        with pytest.raises(CircuitError, match="a norm behind attention"):
            runs_of(model, ablation=kind)
        return
    with all_double():
        runs = runs_of(model, ablation=kind)
        other = ablations(model, family, CORRUPT, kind)
        for mask, values in zip(some_masks(runs, 2), runs.measure(some_masks(runs, 2)), strict=True):
            logits = circuit_logits(model, family, CLEAN, other, mask)
            torch.testing.assert_close(values, logit_difference(logits, torch.tensor(ANSWERS)), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "gemma2"])
def test_leaving_out_each_edge_is_the_plain_score(family: str) -> None:
    model = model_of(family)
    with all_double():
        runs = runs_of(model)
        valid = runs.graph.valid
        edges = valid.nonzero()[::5]
        masks = valid.repeat(len(edges), 1, 1)
        masks[torch.arange(len(edges)), edges[:, 0], edges[:, 1]] = False
        found = runs.clean - runs.measure(masks, base=valid)
        expected = edge_scores_exact(
            model, family, CLEAN, CORRUPT, torch.tensor(ANSWERS), edges=[(int(u), int(v)) for u, v in edges]
        )
    for n, (source, dest) in enumerate(edges.tolist()):
        torch.testing.assert_close(found[n], expected[:, source, dest], atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_family_runs_circuits_or_says_why_not(family: str) -> None:
    model = tiny_model(family)
    pairs = prepare_pairs(model, CLEAN, later(CLEAN, 3), ANSWERS)
    try:
        runs = CircuitRuns(model, pairs, metric_of("logit_diff"))
    except UnavailableSiteError as error:
        refused = str(error)
    else:
        refused = ""
    assert bool(refused) == (family in ("minicpm3", "deepseek_v3")), refused
    if refused:
        assert "cannot be told apart" in refused
        return
    valid = runs.graph.valid
    found = runs.measure(torch.stack([valid, torch.zeros_like(valid)]))
    torch.testing.assert_close(found, torch.stack([runs.clean, runs.corrupt]), atol=2e-4, rtol=1e-3)


def test_where_runs_begin_and_what_shares_a_pass_does_not_change_the_numbers() -> None:
    model = model_of("llama")
    runs, small = runs_of(model, later(CLEAN, 2)), runs_of(model, later(CLEAN, 2), memory=1)
    base = some_masks(runs, 1)[0]
    masks = base.repeat(6, 1, 1)
    places = base.nonzero()[:: max(1, int(base.sum()) // 6)][:6]
    masks[torch.arange(len(places)), places[:, 0], places[:, 1]] = False
    plain = runs.measure(masks)
    torch.testing.assert_close(runs.measure(masks, base=base), plain, atol=1e-12, rtol=0)
    torch.testing.assert_close(small.measure(masks), plain, atol=1e-12, rtol=0)
    torch.testing.assert_close(runs.measure(masks, pairs=[1]), plain[:, 1:], atol=1e-12, rtol=0)


def test_prompts_of_different_lengths_are_run_as_if_alone() -> None:
    model = model_of("gpt2")
    clean = [CLEAN[0].tolist(), CLEAN[1, :6].tolist(), CLEAN[0].flip(0).tolist()]
    corrupt = [CORRUPT[0].tolist(), CORRUPT[1, :6].tolist(), CORRUPT[0].flip(0).tolist()]
    answers = [*ANSWERS, (3, 4)]
    together = CircuitRuns(model, prepare_pairs(model, clean, corrupt, answers), metric_of("logit_diff"))
    masks = some_masks(together, 2)
    found = together.measure(masks)
    for n in range(3):
        pairs = prepare_pairs(model, [clean[n]], [corrupt[n]], [answers[n]])
        alone = CircuitRuns(model, pairs, metric_of("logit_diff")).measure(masks)
        torch.testing.assert_close(found[:, n], alone[:, 0], atol=1e-12, rtol=0)


def test_half_precision_stays_near() -> None:
    runs = runs_of(tiny_model("llama", dtype=torch.bfloat16), later(CLEAN, 2))
    exact = runs_of(tiny_model("llama"), later(CLEAN, 2))
    masks = some_masks(runs, 3)
    assert float((runs.measure(masks) - exact.measure(masks)).abs().max()) < 0.25
    assert float((attribute(runs, "eap").values - attribute(exact, "eap").values).abs().max()) < 0.25


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model("gpt2")
    before = {name: m.__dict__.keys() for name, m in model.named_modules()}
    logits = model(CLEAN).logits
    runs = runs_of(model)
    runs.measure(some_masks(runs))
    attribute(runs, "relp")
    assert {name: m.__dict__.keys() for name, m in model.named_modules()} == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(model(CLEAN).logits, logits)


def test_masks_and_ablations_that_do_not_fit_are_refused() -> None:
    model = tiny_model("gpt2")
    runs = runs_of(model)
    with pytest.raises(CircuitError, match="booleans of shape"):
        runs.measure(torch.ones(1, 2, 3, dtype=torch.bool))
    with pytest.raises(CircuitError, match="an edge that does not exist"):
        runs.measure(torch.ones_like(runs.graph.valid)[None])
    reference = Reference.gather(model, CORRUPT, sites=["z"], positional=False)
    with pytest.raises(Exception, match="the reference has no"):
        runs_of(model, ablation="mean", reference=reference).measure(some_masks(runs, 1))


def test_a_pair_that_is_named_twice_is_refused() -> None:
    model = tiny_model("gpt2")
    clean, corrupt = tokens(2), tokens(2, seed=1)
    runs = CircuitRuns(model, prepare_pairs(model, clean, corrupt, (5, 9)), metric_of("logit_diff"))
    with pytest.raises(CircuitError, match=r"pairs are different numbers from 0 to 1, at least one, not \[0, 0\]"):
        runs.measure(runs.graph.valid[None], pairs=[0, 0])
    for score in (
        lambda: attribute(runs, "eap", pairs=[0, 0]),
        lambda: node_scores(runs, "heads", "eap", pairs=[1, 1]),
    ):
        with pytest.raises(CircuitError, match="different numbers"):
            score()
