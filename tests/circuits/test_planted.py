"""The planted circuits are there and nothing else is, and the trained induction model does induction as it says."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from circuits.brute_edges import circuit_logits, edge_scores_exact, logit_difference, outputs_of, patterns_of, shape_of
from circuits.induction import (
    INDUCTION,
    PREVIOUS_TOKEN,
    SILENT,
    TRUE_EDGES,
    WEIGHTS,
    induction_model,
    induction_prompts,
    repeated,
)
from circuits.planted import PLANTED, Planted

NAMES = list(PLANTED)


def metric(planted: Planted, mask: Tensor) -> float:
    """The mean logit difference of a circuit run."""
    logits = circuit_logits(planted.model, planted.family, planted.clean, planted.corrupt, mask)
    return float(logit_difference(logits, planted.answers).mean())


@pytest.mark.parametrize("name", NAMES)
def test_exactly_the_true_edges_matter(name: str) -> None:
    planted = PLANTED[name]()
    shape = shape_of(planted.model, planted.family)
    scores = edge_scores_exact(
        planted.model, planted.family, planted.clean, planted.corrupt, planted.answers, rows=256
    ).mean(0)
    found = {shape.name(*edge): float(scores[edge]) for edge in shape.edges}
    assert planted.true_edges <= found.keys()
    assert {edge for edge, score in found.items() if abs(score) > planted.margin} == planted.true_edges
    assert {edge for edge in planted.true_edges if found[edge] < 0} == planted.negative
    others = {edge: score for edge, score in found.items() if edge not in planted.true_edges}
    assert max(map(abs, others.values())) < planted.margin / 20
    assert sum(score != 0 for score in others.values()) > len(others) / 4  # they do something, if only a little


@pytest.mark.parametrize("name", NAMES)
def test_the_model_does_its_task_and_the_circuit_alone_does_it_too(name: str) -> None:
    planted = PLANTED[name]()
    shape = shape_of(planted.model, planted.family)
    true = shape.mask(sorted(planted.true_edges))
    with torch.no_grad():
        clean, corrupt = (planted.model(ids).logits[:, -1] for ids in (planted.clean, planted.corrupt))
    assert clean.argmax(-1).tolist() == planted.answers[:, 0].tolist()
    assert not (corrupt.argmax(-1) == planted.answers[:, 0]).any()
    whole, nothing = (float(logit_difference(x, planted.answers).mean()) for x in (clean, corrupt))
    assert (metric(planted, true) - nothing) / (whole - nothing) == pytest.approx(1, abs=0.05)
    assert (metric(planted, shape.valid & ~true) - nothing) / (whole - nothing) == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_distractors_read_the_prompt_and_write(name: str) -> None:
    planted = PLANTED[name]()
    shape = shape_of(planted.model, planted.family)
    clean, corrupt = (outputs_of(planted.model, planted.family, ids) for ids in (planted.clean, planted.corrupt))
    size = (clean - corrupt).flatten(1).norm(dim=1) / clean[0].numel() ** 0.5
    idle = [source for source, moved in zip(shape.sources, size, strict=True) if moved < 0.005]
    busy = [source for source in shape.sources if source not in (*idle, *planted.roles, "embed")]
    assert len(busy) >= 4
    assert idle  # some read as much, and write nothing
    assert not set(idle) & set(planted.roles)


@pytest.mark.parametrize("name", NAMES)
def test_prompts_line_up_and_differ(name: str) -> None:
    planted = PLANTED[name]()
    assert planted.clean.shape == planted.corrupt.shape
    assert len(planted.clean) == len(planted.answers) >= 8
    assert (planted.clean != planted.corrupt).any(1).all()
    assert (planted.answers[:, 0] != planted.answers[:, 1]).all()
    assert len({tuple(row) for row in planted.clean.tolist()}) == len(planted.clean)
    assert {edge.split("->")[0] for edge in planted.true_edges} - {"embed"} == set(planted.roles)


@pytest.mark.parametrize("name", NAMES)
def test_in_single_precision_the_planted_models_are_the_same(name: str) -> None:
    planted = PLANTED[name]()
    with torch.no_grad():
        wanted, found = planted.model(planted.clean).logits, copy.deepcopy(planted.model).float()(planted.clean).logits
    torch.testing.assert_close(found.double(), wanted, atol=1e-3, rtol=0)


@pytest.mark.parametrize("period", [8, 15, 22])
def test_the_trained_model_continues_repeats(period: int) -> None:
    ids = repeated(16, period, seed=5)
    with torch.no_grad():
        logits = induction_model()(ids).logits[:, period + 1 : -1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, period + 2 :].flatten())
    assert float(loss) < 0.01
    assert WEIGHTS.stat().st_size < 300_000


def test_the_trained_model_has_previous_token_and_induction_heads() -> None:
    model, period = induction_model(torch.float64), 15
    ids = repeated(16, period, seed=5)
    patterns = patterns_of(model, "llama", ids)  # layer head prompt query key
    last = ids.shape[1] - 1
    first, second = torch.arange(2, period + 1), torch.arange(period + 1, last)
    names = [[f"L{layer}H{head}" for head in range(4)] for layer in range(2)]
    before = patterns[..., first, first - 1].mean((-1, -2))
    after = patterns[..., second, second - period + 1].mean((-1, -2))
    previous = {name for layer in range(2) for name in names[layer] if before[layer, names[layer].index(name)] > 0.7}
    following = {name for layer in range(2) for name in names[layer] if after[layer, names[layer].index(name)] > 0.7}
    assert previous - set(SILENT) == set(PREVIOUS_TOKEN)
    assert following - set(SILENT) == set(INDUCTION)


def test_the_trained_model_needs_these_heads_and_no_other() -> None:
    model = induction_model(torch.float64)
    clean, corrupt, answers = induction_prompts()
    shape = shape_of(model, "llama")
    whole, nothing = (logit_difference(model(ids).logits[:, -1], answers).mean() for ids in (clean, corrupt))

    def without(*heads: str) -> float:
        mask = shape.valid.clone()
        for head in heads:
            mask[shape.sources.index(head)] = False
        left = logit_difference(circuit_logits(model, "llama", clean, corrupt, mask), answers).mean()
        return float((left - nothing) / (whole - nothing))

    assert without(*SILENT) > 0.95
    assert without(*PREVIOUS_TOKEN) < 0.4
    assert without(*INDUCTION) < 0.2


def test_edges_of_the_trained_model_are_many_that_matter_and_many_that_do_not() -> None:
    model = induction_model(torch.float64)
    clean, corrupt, answers = induction_prompts()
    shape = shape_of(model, "llama")
    scores = edge_scores_exact(model, "llama", clean, corrupt, answers, rows=256).mean(0)
    named = {shape.name(*edge): float(scores[edge]) for edge in shape.edges}
    assert {name for name, score in named.items() if score > 1} == TRUE_EDGES
    assert min(named.values()) > -0.5
    assert sum(abs(score) < 0.1 for score in named.values()) > 50


@pytest.mark.slow
def test_training_gives_such_a_model_again() -> None:
    from circuits.train_induction import train

    _, losses = train()
    assert losses[-1] < 0.01
