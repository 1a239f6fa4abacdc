"""Scores of edges: circuits chosen by them, their numbers and their files."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from interp_toolkit.activations.files import load_tensors, save_tensors
from interp_toolkit.circuits.graph import Graph, connected
from interp_toolkit.circuits.scores import EdgeScores
from interp_toolkit.errors import CircuitError, FileFormatError
from interp_toolkit.provenance import Provenance

GROUPED = Graph(num_layers=3, num_heads=4, num_groups=2, parallel=False)
ORIGIN = Provenance(
    model="tiny", revision=None, model_type="llama", layout="abc", dtype="float32", versions={"torch": "2"}
)


def some_scores(graph: Graph = GROUPED, seed: int = 0, **about: Any) -> EdgeScores:
    prompts = torch.randn((5, *graph.valid.shape), generator=torch.Generator().manual_seed(seed)) * graph.valid
    known = {"method": "eap-ig", "metric": "logit_diff", "provenance": ORIGIN, "prompts": prompts}
    return EdgeScores(graph=graph, values=prompts.mean(0), **(known | about))


def test_circuits_chosen_by_scores_hold_the_best_edges_that_are_connected() -> None:
    scores = some_scores(notes={"steps": 5})
    for n, by, greedy in itertools.product((0, 1, 10, 60), ("absolute", "signed"), (False, True)):
        whole = scores.top(n, by=by, greedy=greedy, prune=False)
        assert whole.num_edges == n
        pruned = scores.top(n, by=by, greedy=greedy)
        assert torch.equal(pruned.mask, connected(GROUPED, whole.mask))
        assert pruned.notes["chosen"] == n
        assert pruned.notes["kept"] == pruned.num_edges
        assert pruned.notes["steps"] == 5
        assert f"the best {n} edges by {by} score" in pruned.notes["selection"]
        if pruned.num_edges < n:
            assert f"{pruned.num_edges} of {n} are on a path from embed to logits" in pruned.summary()
    assert (pruned.method, pruned.metric, pruned.provenance) == ("eap-ig", "logit_diff", ORIGIN)


def test_a_threshold_takes_the_edges_at_least_as_strong() -> None:
    scores = some_scores()
    value = abs(scores["L0H1->L2MLP"])
    found = scores.threshold(value, prune=False)
    assert "L0H1->L2MLP" in found
    assert torch.equal(found.mask, (scores.values.abs() >= value) & GROUPED.valid)
    signed = scores.threshold(-0.1, by="signed", prune=False)
    assert torch.equal(signed.mask, (scores.values >= -0.1) & GROUPED.valid)
    assert scores.threshold(0.0, prune=False).num_edges == GROUPED.num_edges
    assert scores.threshold(1e9).num_edges == 0


def test_the_strongest_edges_and_the_scores_of_nodes_are_those_of_the_matrix() -> None:
    scores = some_scores()
    best = scores.strongest(4)
    sizes = scores.values[GROUPED.valid].abs().sort(descending=True).values[:4]
    torch.testing.assert_close(torch.tensor([abs(edge.score or 0) for edge in best]), sizes)
    assert best[0].score == pytest.approx(scores[best[0].name])
    assert len(scores.strongest(10**6)) == GROUPED.num_edges
    assert scores.nodes()[3] == scores.values[3].abs().sum()
    assert scores.nodes("max")[3] == scores.values[3].abs().max()
    assert best[0].name in scores.summary()
    assert "5 prompts" in scores.summary()


def test_standard_errors_come_from_the_prompts() -> None:
    scores = some_scores()
    assert scores.prompts is not None
    source, dest = GROUPED.edge_of("L0H1->L2MLP")
    values = scores.prompts[:, source, dest]
    assert float(scores.standard_error()[source, dest]) == pytest.approx(float(values.std()) / math.sqrt(5))
    frame = scores.to_dataframe()
    row = frame[(frame.source == "L0H1") & (frame.dest == "L2MLP")].iloc[0]
    assert row["score"] == pytest.approx(float(values.mean()))
    assert row["standard_error"] == pytest.approx(float(values.std()) / math.sqrt(5))
    assert frame.score.abs().is_monotonic_decreasing
    with pytest.raises(CircuitError, match="two prompts or more"):
        replace(scores, prompts=None).standard_error()
    assert "standard_error" not in replace(scores, prompts=scores.prompts[:1]).to_dataframe()


@pytest.mark.usefixtures("unchecked")
def test_scores_that_do_not_fit_are_refused() -> None:
    values, shape = torch.zeros(GROUPED.valid.shape), tuple(GROUPED.valid.shape)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"values": values[1:]}, r"scores of this graph have shape"),
        (
            {"values": torch.where(GROUPED.valid, math.nan, 0.0)},
            r"not a finite number, such as embed->L0H0\.q",
        ),
        ({"values": torch.ones(shape)}, "where there is no edge: they must be 0"),
        ({"prompts": torch.zeros(2, 3, 4)}, r"prompts have shape \(2, 3, 4\)"),
        ({"by_position": torch.zeros(shape), "positions": ("a",)}, "by_position have shape"),
        ({"by_position": torch.zeros(2, *shape), "positions": ("a",)}, "a name for each position"),
        ({"by_position": torch.zeros(2, *shape)}, "a name for each position"),
        ({"positions": ("a",)}, "a name for each position"),
    ]
    for change, message in changes:
        with pytest.raises(CircuitError, match=message):
            replace(some_scores(), **change)


def by_position() -> EdgeScores:
    parts = torch.randn((3, *GROUPED.valid.shape), generator=torch.Generator().manual_seed(2)) * GROUPED.valid
    about: dict[str, Any] = {"method": "eap", "metric": "kl", "unit": "nats", "notes": {"steps": 5}}
    return EdgeScores(
        graph=GROUPED, values=parts.sum(0), by_position=parts, positions=("0", "1", "end"), provenance=ORIGIN, **about
    )


@pytest.mark.parametrize("kind", ["plain", "prompts", "positions"])
def test_saved_scores_come_back(tmp_path: Path, kind: str) -> None:
    scores = {"plain": some_scores(prompts=None), "prompts": some_scores(), "positions": by_position()}[kind]
    back = EdgeScores.load(scores.save(tmp_path / "s.safetensors"))
    assert torch.equal(back.values, scores.values)
    for one, other in ((back.prompts, scores.prompts), (back.by_position, scores.by_position)):
        assert (one is None) == (other is None)
        if isinstance(one, Tensor) and isinstance(other, Tensor):
            assert torch.equal(one, other)
    for name in ("graph", "positions", "method", "metric", "unit", "notes", "provenance"):
        assert getattr(back, name) == getattr(scores, name)
    assert back.summary() == scores.summary()


@pytest.mark.usefixtures("unchecked")
def test_damaged_scores_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    some_scores().save(path)
    kind = "interp_toolkit.edge_scores/1"
    tensors, about, _ = load_tensors(path, kind=kind, what="it")
    graph = about["graph"]
    changes: list[tuple[dict[str, Tensor], dict[str, Any]]] = [
        ({}, {"graph": graph | {"num_layers": 2}}),
        ({}, {"graph": graph | {"num_layers": 3.0}}),
        ({}, {"graph": {"num_layers": 3}}),
        ({}, {"graph": [3]}),
        ({}, {"positions": ["a"]}),
        ({}, {"notes": 3}),
        ({}, {"more": 3}),
        ({"values": tensors["values"][1:]}, {}),
        ({"values": tensors["values"].int()}, {}),
        ({"prompts": tensors["prompts"][:, 1:]}, {}),
        ({"more": tensors["values"].clone()}, {}),
    ]
    for more, facts in changes:
        save_tensors(path, tensors | more, kind=kind, about=about | facts, provenance=ORIGIN)
        with pytest.raises(FileFormatError, match=r"mine\.safetensors cannot be read as saved scores of edges"):
            EdgeScores.load(path)
    save_tensors(path, tensors, kind="interp_toolkit.effects/1", about=about, provenance=ORIGIN)
    with pytest.raises(FileFormatError, match=r"mine\.safetensors"):
        EdgeScores.load(path)
    path.write_bytes(b"no tensors")
    with pytest.raises(FileFormatError, match=r"mine\.safetensors"):
        EdgeScores.load(path)


def test_scores_of_nothing_say_so() -> None:
    scores = some_scores(prompts=None)
    assert "Every score is 0." in replace(scores, values=torch.zeros(GROUPED.valid.shape)).summary()
