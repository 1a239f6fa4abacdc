"""The finder: whole path from prompts to a judged circuit, on planted circuits and tiny models."""

from __future__ import annotations

import math
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from circuits.induction import INDUCTION, PREVIOUS_TOKEN, TRUE_EDGES, induction_model, induction_prompts
from circuits.planted import PLANTED
from interp_toolkit.circuits.attribution import ATTRIBUTIONS, attribute
from interp_toolkit.circuits.circuit import Circuit
from interp_toolkit.circuits.contrast import contrasted
from interp_toolkit.circuits.dataset import prepare_pairs
from interp_toolkit.circuits.exact import exact_scores
from interp_toolkit.circuits.faithfulness import rank_quality
from interp_toolkit.circuits.finder import METHODS, CircuitFinder, smallest
from interp_toolkit.circuits.judging import prompt_digest
from interp_toolkit.circuits.metrics import metric_of
from interp_toolkit.circuits.splitting import split, words_of_split
from interp_toolkit.circuits.subgraph import CircuitRuns
from interp_toolkit.errors import AlignmentError, CircuitError, InterpWarning
from tiny import tiny_model, tokens

CLEAN, CORRUPT = tokens(10), tokens(10, seed=1)
ANSWERS = (5, 9)


def quiet(finder: CircuitFinder, *args: Any, **settings: Any) -> Circuit:
    """A circuit of a behaviour that a random model does not have."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InterpWarning)
        return finder.find_circuit(*args, **{"progress": False} | settings)


def _told(name: str, found: dict[str, float]) -> str:
    return f"\n{name}: edge AUROC " + ", ".join(f"{method} {value:.3f}" for method, value in found.items()) + "\n"


@pytest.mark.parametrize("name", sorted(PLANTED))
def test_some_method_ranks_the_planted_edges_above_all_others(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    planted = PLANTED[name]()
    answers = [(int(a), int(b)) for a, b in planted.answers]
    pairs = prepare_pairs(planted.model, planted.clean, planted.corrupt, answers)
    runs = CircuitRuns(planted.model, pairs, metric_of("logit_diff"))
    found = {method: rank_quality(attribute(runs, method), planted.true_edges).auroc for method in ATTRIBUTIONS}
    found["exact"] = rank_quality(exact_scores(runs, edges=runs.graph.valid, progress=False), planted.true_edges).auroc
    with capsys.disabled():
        sys.stdout.write(_told(name, found))
    assert found["exact"] == 1.0
    assert max(value for method, value in found.items() if method != "exact") >= 0.95


def test_edges_of_the_trained_induction_model_are_found(capsys: pytest.CaptureFixture[str]) -> None:
    clean, corrupt, answers = induction_prompts()
    model = induction_model(torch.float64)
    pairs = prepare_pairs(model, clean, corrupt, [(int(a), int(b)) for a, b in answers])
    runs = CircuitRuns(model, pairs, metric_of("logit_diff"))
    found = {method: rank_quality(attribute(runs, method, steps=10), TRUE_EDGES).auroc for method in ATTRIBUTIONS}
    with capsys.disabled():
        sys.stdout.write(_told("trained induction", found))
    assert max(found.values()) >= 0.95


def test_the_circuit_of_the_trained_induction_model_has_its_heads_with_their_roles() -> None:
    clean, corrupt, answers = induction_prompts()
    finder = CircuitFinder(induction_model(), threshold=0.1, method="conductance", steps=10, random=0)
    circuit = quiet(finder, clean, corrupt, answers=[(int(a), int(b)) for a, b in answers])
    assert set(PREVIOUS_TOKEN) | set(INDUCTION) <= set(circuit.nodes)
    roles = {role.node: role.name for role in circuit.roles}
    assert roles[PREVIOUS_TOKEN[0]] == "previous token"
    assert {roles[name] for name in INDUCTION} == {"induction"}
    assert f"{PREVIOUS_TOKEN[0]} (previous token)" in circuit.summary()
    assert circuit.notes["faithfulness"]["value"] > 0.8


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_circuit_that_is_judged_on_other_prompts(method: str) -> None:
    finder = CircuitFinder(tiny_model("llama"), threshold=0.3, method=method, random=2, roles=False)
    circuit = quiet(finder, CLEAN, CORRUPT, answers=ANSWERS)
    assert finder.found_ is not None
    assert circuit.method == method
    assert 0 < circuit.num_edges <= circuit.graph.num_edges
    assert not set(finder.found_.discovery) & set(finder.found_.evaluation)
    assert circuit.notes["prompts"] == {"discovery": 5, "evaluation": 5}
    assert math.isfinite(circuit.notes["faithfulness"]["value"])
    assert circuit.ablation == "corrupt"
    assert circuit.summary().startswith("Circuit: ")


def test_the_threshold_holds_on_the_discovery_prompts_and_no_smaller_size_that_was_tried_meets_it() -> None:
    finder = CircuitFinder(tiny_model("gpt2"), threshold=0.2, random=0, roles=False)
    circuit = quiet(finder, CLEAN, CORRUPT, answers=ANSWERS)
    found = finder.found_
    assert found is not None
    numbers = list(found.discovery)
    ends = found.runs.measure([circuit.mask, torch.zeros_like(circuit.mask)], pairs=numbers).mean(1)
    share = float((ends[0] - ends[1]) / (found.runs.clean[numbers].mean() - ends[1]))
    assert abs(1 - share) <= 0.2
    size = next(n for n, value in found.tried if abs(1 - value) <= 0.2)
    assert all(abs(1 - value) > 0.2 for n, value in found.tried if n < size)
    assert circuit.num_edges <= size


def test_the_search_for_a_size_finds_the_smallest_one_that_is_near_enough() -> None:
    calls = []

    def faithfulness(masks: Any) -> list[float]:
        calls.append(len(masks))
        return [min(1.0, int(mask.sum()) / 700) for mask in masks]

    size, tried = smallest(lambda n: torch.ones(n, dtype=torch.bool), faithfulness, 5000, threshold=0.1)
    assert 630 <= size <= 660
    assert dict(tried)[size] >= 0.9
    assert len(calls) == 3


def test_the_same_seed_gives_the_same_circuit_and_another_one_another_split() -> None:
    settings: dict[str, Any] = {"edges": 30, "random": 1, "roles": False}
    first, second = (
        quiet(CircuitFinder(tiny_model("gpt2"), **settings), CLEAN, CORRUPT, answers=ANSWERS) for _ in range(2)
    )
    assert torch.equal(first.mask, second.mask)
    assert first.notes["faithfulness"] == second.notes["faithfulness"]
    pairs = prepare_pairs(tiny_model("gpt2"), CLEAN, CORRUPT, ANSWERS)
    assert split(pairs, 0.5, 0) != split(pairs, 0.5, 1)


def test_pairs_with_one_clean_prompt_stay_on_one_side() -> None:
    clean = [[3, 4, 5], [3, 4, 5], [6, 7, 8], [6, 7, 8], [9, 10, 11], [9, 10, 11], [12, 13, 14], [12, 13, 14]]
    corrupt = [[*ids[:2], 20 + n] for n, ids in enumerate(clean)]
    pairs = prepare_pairs(tiny_model("gpt2"), clean, corrupt, ANSWERS)
    discovery, evaluation = split(pairs, 0.5, 3)
    assert sorted(discovery + evaluation) == list(range(8))
    assert all((n % 2 == 0 and n + 1 in side) or n - 1 in side for side in (discovery, evaluation) for n in side)


def _pairs_of(clean: list[list[int]], corrupt: list[list[int]]) -> Any:
    return prepare_pairs(tiny_model("gpt2"), clean, corrupt, ANSWERS)


@pytest.mark.parametrize("seed", range(5))
def test_pairs_that_share_a_prompt_stay_on_one_side(seed: int) -> None:
    one = [[3, 4, n] for n in range(10, 18)]
    other = [[3, 4, n] for n in range(30, 38)]
    pairs = _pairs_of(one + other, other + one)  # each pair with its mirror
    discovery, evaluation = split(pairs, 0.5, seed)
    assert len(discovery) == len(evaluation) == 8
    assert all((n + 8) % 16 in side for side in (discovery, evaluation) for n in side)
    assert not words_of_split(pairs, discovery, evaluation)


def test_where_prompts_are_paired_in_many_ways_mirrors_stay_together_and_the_rest_is_said() -> None:
    ring = [[3, 4, n] for n in range(10, 18)]
    clean = [*ring, *ring[1:], ring[0]]
    corrupt = [*ring[1:], ring[0], *ring]  # each with the next one, and all mirrored
    extra = [[3, 4, n] for n in range(40, 48)]
    pairs = _pairs_of([*extra, ring[0], ring[1]], [*ring, ring[1], ring[0]])
    discovery, evaluation = split(pairs, 0.5, 0)
    assert sorted(discovery + evaluation) == list(range(10))
    assert (8 in discovery) == (9 in discovery)
    tangled = _pairs_of(clean, corrupt)
    discovery, evaluation = split(tangled, 0.5, 0)
    assert discovery
    assert evaluation
    many = [[3, 4, n] for n in range(10, 40)]
    rows = [(many[n], many[(n + step) % 30]) for n in range(30) for step in (1, 7)]
    woven = _pairs_of([a for a, _ in rows], [b for _, b in rows])
    discovery, evaluation = split(woven, 0.5, 1)
    assert len(evaluation) == 30
    assert not {rows[n][0][-1] for n in discovery} & {rows[n][0][-1] for n in evaluation}
    (words,) = words_of_split(woven, discovery, evaluation)
    assert "of 30 evaluation pairs share a prompt with discovery pairs" in words


def test_a_custom_metric_that_uses_no_answers_needs_no_contrast() -> None:
    def first_logit(logits: Tensor) -> Tensor:
        return logits[:, 0]

    finder = CircuitFinder(tiny_model("gpt2"), edges=60, random=0, roles=False)
    circuit = quiet(finder, CLEAN, CORRUPT, first_logit)
    assert finder.found_ is not None
    assert not any(finder.found_.runs.pairs.targets)
    assert "tokens that move most" not in circuit.summary()


@pytest.mark.parametrize("method", ["exact", "edge-pruning", "acdc", "combine"])
def test_every_method_notes_the_prompts_that_it_saw(method: str) -> None:
    finder = CircuitFinder(tiny_model("gpt2"), edges=60, method=method, random=0, roles=False)
    circuit = quiet(finder, CLEAN, CORRUPT, answers=ANSWERS)
    assert finder.found_ is not None
    seen = list(finder.found_.discovery)
    assert circuit.notes["prompt_digests"] == [prompt_digest(CLEAN[n].tolist()) for n in seen]
    assert circuit.notes["corrupt_digests"] == [prompt_digest(CORRUPT[n].tolist()) for n in seen]


def test_methods_that_have_no_slope_at_zero_are_refused_with_zeros() -> None:
    for method in ("clean-corrupt", "conductance", "combine"):
        with pytest.raises(CircuitError, match="norms have no usable slope there: take 'eap', 'eap-ig' or 'relp'"):
            CircuitFinder(tiny_model("gpt2"), method=method, ablation="zero")


def test_a_saved_circuit_is_the_same_again(tmp_path: Path) -> None:
    circuit = quiet(CircuitFinder(tiny_model("gpt2"), edges=30, random=2, roles=False), CLEAN, CORRUPT, answers=ANSWERS)
    again = Circuit.load(circuit.save(tmp_path / "circuit.json"))
    assert torch.equal(again.mask, circuit.mask)
    assert again.summary() == circuit.summary()
    assert again.notes == circuit.notes


def test_what_is_frozen_in_a_family_is_said() -> None:
    finder = CircuitFinder(tiny_model("gemma2"), edges=60, random=0, roles=False)
    circuit = quiet(finder, CLEAN, CORRUPT, answers=ANSWERS)
    assert "the norm behind attention" in circuit.summary()


# --- answers that are not given --------------------------------------------------------------------------------


def test_without_answers_the_tokens_that_move_most_are_compared() -> None:
    model = tiny_model("gpt2")
    pairs = prepare_pairs(model, CLEAN[:3], CORRUPT[:3])
    found = contrasted(model, pairs)
    for n in range(3):
        last = [model(x[n : n + 1]).logits[0, -1].log_softmax(-1) for x in (CLEAN, CORRUPT)]
        likely = (last[0].exp() >= 0.01) | (last[1].exp() >= 0.01)
        moved: Tensor = torch.where(likely, last[0] - last[1], torch.zeros(()))
        assert (found.targets[n], found.foils[n]) == ((int(moved.argmax()),), (int(moved.argmin()),))


def test_without_answers_prompts_that_are_answered_alike_are_refused() -> None:
    model = tiny_model("gpt2")
    with torch.no_grad():
        model.lm_head.weight.zero_()
    with pytest.raises(CircuitError, match="answered alike"):
        CircuitFinder(model).find_circuit(CLEAN, CORRUPT, progress=False)


# --- bad input -------------------------------------------------------------------------------------------------


def test_bad_settings_are_refused_before_anything_runs() -> None:
    model = tiny_model("gpt2")
    for threshold in (0.0, 1.0, -1.0):
        with pytest.raises(CircuitError, match="how far faithfulness may be from 1"):
            CircuitFinder(model, threshold=threshold)
    with pytest.raises(CircuitError, match="a method is one of eap"):
        CircuitFinder(model, method="magic")
    with pytest.raises(CircuitError, match="share of pairs for judging"):
        CircuitFinder(model, evaluation=1.0)
    with pytest.raises(CircuitError, match="at least one step"):
        CircuitFinder(model, steps=0)


def test_prompts_of_unequal_length_are_shown() -> None:
    with pytest.raises(AlignmentError, match="pair 1"):
        CircuitFinder(tiny_model("gpt2")).find_circuit([[1, 2, 3], [1, 2, 3]], [[1, 5, 3], [1, 5]], answers=ANSWERS)


def test_a_behaviour_that_is_not_there_is_said() -> None:
    model = tiny_model("gpt2")
    with torch.no_grad():
        model.lm_head.weight[5] = model.lm_head.weight[9]
    with pytest.raises(CircuitError, match="there is no behaviour to explain"):
        quiet(CircuitFinder(model), CLEAN, CORRUPT, answers=ANSWERS)


def test_an_answer_that_the_model_does_not_prefer_is_warned_of() -> None:
    model = tiny_model("gpt2")
    clean, corrupt = (model(x).logits[:, -1].detach() for x in (CLEAN[:4], CORRUPT[:4]))
    rise = (clean - corrupt).mean(0)
    order = rise.argsort(descending=True).tolist()
    pairs = ((up, down) for up in order[:40] for down in order[-40:])
    answers = next((a, b) for a, b in pairs if float((clean[:, a] - clean[:, b]).mean()) < -1)
    finder = CircuitFinder(model, edges=40, random=0, roles=False, evaluation=0.0)
    with pytest.warns(InterpWarning) as told:
        finder.find_circuit(CLEAN[:4], CORRUPT[:4], answers=answers, progress=False)
    assert any("does not prefer the clean answers" in str(warning.message) for warning in told)


def test_few_prompts_are_used_twice_and_this_is_said() -> None:
    finder = CircuitFinder(tiny_model("gpt2"), edges=60, random=0, roles=False)
    circuit = quiet(finder, CLEAN[:2], CORRUPT[:2], answers=ANSWERS)
    assert "2 pairs are too few to part" in circuit.summary()
