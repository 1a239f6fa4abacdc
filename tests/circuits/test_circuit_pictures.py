"""Pictures of results about circuits show the numbers of the results."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from circuits.test_faithfulness import SMALL, answers_of, hand_curve, known, runs_of, scored, scores, true_circuit
from circuits.test_patching import CLEAN, CORRUPT, by_text
from interp_toolkit.circuits.faithfulness import FaithfulnessCurve, evaluate_circuit, stability
from interp_toolkit.circuits.roles import head_roles
from interp_toolkit.visualization.sweeps import plot_faithfulness
from tiny import model_of


def test_a_curve_is_drawn_over_the_logarithm_of_the_size_with_its_intervals(tmp_path: Path) -> None:
    chart = hand_curve().plot()
    assert chart.log
    assert list(chart.x) == [0.1, 0.5, 1.0]
    own, random = chart.series
    assert (own.name, own.y) == ("eap-ig", pytest.approx([0.25, 0.75, 1.0]))
    assert (random.name, random.y) == ("random circuits", pytest.approx([0.0, 0.5, 1.0], abs=1e-6))
    assert [own.ends(n) for n in range(3)] == [pytest.approx((f.low, f.high)) for f in hand_curve().faithfulness()]
    assert chart.references == [("whole model", 1.0)]
    signed = hand_curve().plot(by="signed")
    assert signed.series[0].y == pytest.approx([0.75, 1.5, 1.0])
    assert "10%" in {label.text for label in chart.picture().labels}
    assert chart.save(tmp_path / "curve.svg").stat().st_size > 1000
    assert "lines.js" in hand_curve()._repr_html_()


def test_curves_of_several_methods_share_a_chart_if_they_share_their_sizes() -> None:
    chart = plot_faithfulness({"eap": hand_curve(), "eap-ig": hand_curve()})
    assert [series.name for series in chart.series] == ["eap", "eap-ig", "random circuits"]
    other = hand_curve(sizes=(0.2, 0.5, 1.0))
    with pytest.raises(ValueError, match=r"share their sizes, but these have .*0\.2"):
        plot_faithfulness({"eap": hand_curve(), "other": other})


def test_a_curve_without_random_circuits_has_one_line() -> None:
    chart = hand_curve(random=torch.zeros(0, 2, 3)).plot()
    assert [series.name for series in chart.series] == ["eap-ig"]
    assert isinstance(hand_curve(), FaithfulnessCurve)


@pytest.mark.filterwarnings("ignore")
def test_an_evaluation_shows_runs_or_what_is_lost_without_each_part() -> None:
    planted = known()
    about = (planted.model, true_circuit(), planted.clean, planted.corrupt)
    plain = evaluate_circuit(*about, answers=answers_of(planted), random=2)
    chart = plain.plot()
    assert list(chart.x) == ["circuit", "all other edges", "random circuits"]
    assert chart.series[0].y == [f.value for f in (plain.faithfulness, plain.completeness, plain.random_faithfulness)]
    assert not chart.series[0].joined
    found = evaluate_circuit(*about, answers=answers_of(planted), random=0, minimality="edges")
    lost = found.plot()
    assert dict(zip(lost.x, lost.series[0].y, strict=True)) == {name: drop.value for name, drop in found.drops.items()}
    assert lost.series[0].y == sorted(lost.series[0].y, reverse=True)
    assert found.summary().splitlines()[0] in found._repr_html_()


def test_scores_are_shown_by_node() -> None:
    found = scores()
    graph = runs_of().graph
    heatmap = found.plot()
    assert list(heatmap.columns) == [*(f"H{n}" for n in range(graph.num_heads)), "MLP"]
    assert len(heatmap.rows) == graph.num_layers
    flat = [value for row in heatmap.values for value in row]
    assert flat == pytest.approx(found.nodes()[1:].tolist())
    assert heatmap.scale == "sequential"
    assert found.plot("max").values != heatmap.values
    assert "heatmap.js" in found._repr_html_()


@pytest.mark.filterwarnings("ignore")
def test_stability_is_a_falling_line() -> None:
    first = torch.randn(SMALL.valid.shape, generator=torch.Generator().manual_seed(0))
    prompts = torch.randn(9, *SMALL.valid.shape, generator=torch.Generator().manual_seed(1)) + first
    found = stability(scored(prompts.mean(0), prompts=prompts * SMALL.valid), 8, prune=False)
    counts = found.plot().series[0].y
    assert counts == sorted(counts, reverse=True)
    assert counts[0] >= 8 >= counts[-1]


def test_roles_are_shown_as_multiples_of_their_thresholds() -> None:
    table = head_roles(model_of("gpt2"), mlps=[0])
    heatmap = table.plot()
    assert heatmap.columns[-1] == "MLP"
    for (layer, head), role in zip(table.heads, table.roles, strict=False):
        value = heatmap.values[layer][head]
        assert value == table.reached((layer, head)) or math.isnan(value)
        assert ((layer, head) in heatmap.marked) == (role.name != "unlabelled")
        assert role.told() in (heatmap.notes or [])[layer][head]
    assert table.summary().splitlines()[0] in table._repr_html_()


def test_a_patch_shows_tokens_before_and_after() -> None:
    result = by_text(CLEAN, CORRUPT)
    heatmap = result.plot()
    assert heatmap.columns[0] == result.target
    assert heatmap.values[0][0] == result.probability_before
    assert heatmap.values[1][0] == result.probability_after
    for token, probability in result.top_after:
        assert heatmap.values[1][list(heatmap.columns).index(token)] == probability
