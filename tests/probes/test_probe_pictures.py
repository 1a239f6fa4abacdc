"""Pictures of results about probes show the numbers of the results."""

from __future__ import annotations

import math

import pytest

from interp_toolkit.errors import ProbeError
from interp_toolkit.probes.causal import direction_effect
from probes.test_causal import PAIRS, PROMPTS, SITE, steered, vector
from probes.test_sweep import found, noise, quick
from tiny import model_of


def test_a_sweep_shows_every_kind_by_layer_with_intervals_controls_and_baselines() -> None:
    sweep = found()
    chart = sweep.plot()
    assert [line.name for line in chart.series[:2]] == ["logistic", "lda"]
    for line in chart.series[:2]:
        scores = [sweep.score(layer, line.name) for layer in (0, 1, 2)]
        assert line.y == [s.accuracy for s in scores]
        assert [line.ends(n) for n in range(3)] == [(s.accuracy_low, s.accuracy_high) for s in scores]
    controls = [line for line in chart.series[2:] if line.grey]
    assert "shuffled labels" in [line.name for line in controls]
    assert dict(chart.references) == {b.name: b.accuracy for b in sweep.baselines}
    assert chart.marked == [(0, 1)]
    assert (chart.x_name, chart.y_name) == ("layer", "accuracy")
    assert "lines.js" in sweep._repr_html_()


def test_numbers_are_shown_by_their_share_of_variance() -> None:
    chart = quick(noise(), noise()[0, :, 0], target="regression").plot()
    assert chart.y_name == "R²"
    assert not [line for line in chart.series if all(map(math.isnan, line.y))]


def test_a_directions_effect_is_drawn_over_its_coefficients() -> None:
    effect = steered("llama", "last")
    chart = effect.plot()
    estimate = effect.estimate()
    assert chart.x == [-1.0, 0.0, 2.0]
    assert [line.name for line in chart.series] == ["direction", "pattern", "3 random directions"]
    assert chart.series[0].y == pytest.approx(estimate.mean[0, :, 0].tolist())
    assert chart.series[2].y == pytest.approx(effect.random().mean[:, 0].tolist())
    assert [line.grey for line in chart.series] == [False, False, True]
    other = effect.plot("kl")
    assert other.series[0].y == pytest.approx(estimate.mean[0, :, effect.measures.index("kl")].tolist())
    with pytest.raises(ProbeError, match=r"'speed' was not measured; there are .*kl"):
        effect.plot("speed")
    assert effect.summary().splitlines()[0][:30] in effect._repr_html_()


def test_coefficients_are_drawn_in_order_however_they_were_given() -> None:
    effect = direction_effect(
        model_of("llama"), PROMPTS, vector(), SITE, answers=PAIRS, coefficients=(1.0, -1.0, 1.0), random=0
    )
    chart = effect.plot()
    assert chart.x == [-1.0, 1.0]
    assert chart.series[0].y == pytest.approx(effect.estimate().mean[0, [1, 0], 0].tolist())
