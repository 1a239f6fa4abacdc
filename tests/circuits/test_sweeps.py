"""Sweeps against one plain run for each cell."""

from __future__ import annotations

import functools
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from interp_toolkit import Edit, Site, Span, run
from interp_toolkit.circuits import Effects, patch_sweep, prepare_sweep
from interp_toolkit.errors import (
    AlignmentError,
    FileFormatError,
    InterpError,
    InterpWarning,
    MetricError,
    PositionError,
    RunError,
    SiteError,
    TokenError,
)
from interp_toolkit.model.sites import COMPONENTS

CLEAN = [[5, 17, 8, 41, 23, 9, 60], [5, 17, 33, 12, 23, 9, 71]]
CORRUPT = [[5, 17, 30, 41, 23, 9, 60], [5, 17, 33, 14, 23, 77, 71]]
ANSWERS = [(11, 52), (20, 7)]
TARGETS, FOILS = zip(*ANSWERS, strict=True)

pytestmark = pytest.mark.filterwarnings("ignore::interp_toolkit.InterpWarning")


def wide(name: str) -> Any:
    return tiny.model_of(name, dtype=torch.float64)


def last_logits(model: Any, ids: list[int], edits: list[Edit]) -> Tensor:
    logits = run(model, [ids], edits=edits, logits="last").logits
    return logits[0, -1]


@functools.cache
def read_of(model: Any, ids: tuple[int, ...], sites: tuple[Site, ...]) -> Any:
    return run(model, [list(ids)], read=list(sites))


def by_hand(model: Any, cell: tuple[list[Site], list[int]], prompt: int, direction: str) -> float:
    """The logit difference of one cell, by a full pass of its own."""
    sites, where = cell
    source, base = (CLEAN, CORRUPT) if direction == "denoise" else (CORRUPT, CLEAN)
    read = read_of(model, tuple(source[prompt]), tuple(site.whole for site in sites))
    edits = [Edit.set(site, read[site.whole] if site.index is None else read[site], positions=where) for site in sites]
    logits = last_logits(model, base[prompt], edits)
    return float(logits[TARGETS[prompt]] - logits[FOILS[prompt]])


def within(component: str) -> float:
    """Patterns are computed in float32 by the models' own code, whatever their precision."""
    return 1e-5 if component in ("scores", "pattern") else 1e-9


def sweep(model: Any, **how: Any) -> Effects:
    return patch_sweep(model, CLEAN, CORRUPT, answers=ANSWERS, **how)


# --- numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize(
    "component",
    [
        "resid_pre",
        "resid_mid",
        "resid_post",
        "attn_out",
        "mlp_out",
        "z",
        "q",
        "k",
        "v",
        "pattern",
        "head_out",
        "mlp_post",
    ],
)
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_every_cell_by_layer_and_position_is_one_full_run(name: str, component: str, direction: str) -> None:
    model = wide(name)
    found = sweep(model, component=component, direction=direction)
    layers = model.config.num_hidden_layers
    assert found.values.shape == (2, layers, 7)
    for prompt, layer, position in list(itertools.product(range(2), range(layers), range(7)))[::3]:
        wanted = by_hand(model, ([Site(component, layer)], [position]), prompt, direction)
        assert float(found.values[prompt, layer, position]) == pytest.approx(wanted, abs=within(component))


@pytest.mark.parametrize("component", ["z", "q", "k", "v", "pattern", "scores", "head_out"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
def test_every_cell_by_layer_and_head_is_one_full_run(name: str, component: str) -> None:
    model = wide(name)
    found = sweep(model, component=component, over=("layer", "head"))
    assert found.axes[1] == COMPONENTS[component].index_axis
    for prompt, layer, head in itertools.product(range(2), range(found.values.shape[1]), range(found.values.shape[2])):
        wanted = by_hand(model, ([Site(component, layer, head)], list(range(7))), prompt, "denoise")
        assert float(found.values[prompt, layer, head]) == pytest.approx(wanted, abs=within(component))


def test_axes_that_are_left_out_are_patched_together() -> None:
    model = wide("llama")
    layers = model.config.num_hidden_layers
    everything = sweep(model, component="mlp", over=("pos",), layers=[0, 2])
    three = sweep(model, component="head", over=("layer", "head", "pos"), indices=[1, 3], positions=[2, -1])
    one = sweep(model, component="head", over=("layer",), indices=[1, 3], positions=[2, -1])
    neuron = sweep(model, component="neuron", over=("neuron", "layer"), indices=[4, 40])
    assert everything.values.shape == (2, 7)
    assert three.values.shape == (2, layers, 2, 2)
    assert neuron.axes == ("neuron", "layer")
    for prompt in range(2):
        wanted = by_hand(model, ([Site("mlp_out", 0), Site("mlp_out", 2)], [3]), prompt, "denoise")
        assert float(everything.values[prompt, 3]) == pytest.approx(wanted, abs=1e-9)
        wanted = by_hand(model, ([Site("z", 1, 3)], [6]), prompt, "denoise")
        assert float(three.values[prompt, 1, 1, 1]) == pytest.approx(wanted, abs=1e-9)
        wanted = by_hand(model, ([Site("z", 2, 1), Site("z", 2, 3)], [2, 6]), prompt, "denoise")
        assert float(one.values[prompt, 2]) == pytest.approx(wanted, abs=1e-9)
        wanted = by_hand(model, ([Site("mlp_post", 1, 40)], list(range(7))), prompt, "denoise")
        assert float(neuron.values[prompt, 1, 1]) == pytest.approx(wanted, abs=1e-9)


def test_effects_are_shares_of_clean_minus_corrupt_and_positive_towards_clean() -> None:
    model = wide("llama")
    for direction, whole in (("denoise", 1.0), ("noise", -1.0)):
        found = sweep(model, over=("layer",), layers=[0], direction=direction)
        assert float(found.effect[0]) == pytest.approx(whole, abs=1e-9)
        assert float(found.mean[0]) == pytest.approx(whole * float(found.gap.mean()), abs=1e-9)


@pytest.mark.parametrize("metric", ["log_prob", "prob", "kl", "rank", "accuracy"])
def test_metrics_of_cells_are_those_of_their_logits(metric: str) -> None:
    model = wide("llama")
    found = sweep(model, metric=metric, component="attn", layers=[1])
    for prompt, position in itertools.product(range(2), range(7)):
        read = run(model, [CLEAN[prompt]], read="attn_out.1", logits="last")
        edit = Edit.set("attn_out.1", read["attn_out.1"], positions=position)
        logits = last_logits(model, CORRUPT[prompt], [edit]).log_softmax(-1)
        clean = read.logits[0, -1].log_softmax(-1)
        target, foil = ANSWERS[prompt]
        wanted = {
            "log_prob": logits[target],
            "prob": logits[target].exp(),
            "kl": (clean.exp() * (clean - logits)).sum(),
            "rank": (logits > logits[target]).sum(),
            "accuracy": logits[target] > logits[foil],
        }[metric]
        assert float(found.values[prompt, 0, position]) == pytest.approx(float(wanted), abs=1e-6)
    if metric == "kl":
        assert found.clean.abs().max() < 1e-6
        assert float(sweep(model, metric="kl", over=("layer",), layers=[0]).effect[0]) == pytest.approx(1.0)


def test_a_function_of_logits_is_a_metric() -> None:
    model = wide("llama")
    found = sweep(model, metric=lambda logits: logits[:, 4] - logits[:, 9], layers=[1])
    read = run(model, [CLEAN[1]], read="resid_pre.1")
    logits = last_logits(model, CORRUPT[1], [Edit.set("resid_pre.1", read["resid_pre.1"], positions=3)])
    assert float(found.values[1, 0, 3]) == pytest.approx(float(logits[4] - logits[9]), abs=1e-9)


def test_prompts_of_several_lengths_are_those_of_each_alone() -> None:
    model = wide("qwen3")
    clean, corrupt = [CLEAN[0], CLEAN[1][:5]], [CORRUPT[0], CORRUPT[1][:5]]
    together = patch_sweep(model, clean, corrupt, answers=ANSWERS, positions=[-3, -2, -1], memory=200_000)
    for n in range(2):
        alone = patch_sweep(model, clean[n], corrupt[n], answers=ANSWERS[n], positions=[-3, -2, -1])
        assert torch.allclose(together.values[n], alone.values[0], atol=1e-9)
    assert together.labels[1][2].startswith("-1")


def test_named_groups_of_positions_are_patched_together() -> None:
    model = wide("llama")
    found = sweep(model, positions={"subject": [2, 3], "end": -1}, component="mlp")
    assert found.labels[1] == ("subject", "end")
    wanted = by_hand(model, ([Site("mlp_out", 1)], [2, 3]), 0, "denoise")
    assert float(found.values[0, 1, 0]) == pytest.approx(wanted, abs=1e-9)


def test_sites_that_a_layer_does_not_have_are_not_numbers() -> None:
    model = tiny.model_of("qwen3_moe")
    found = sweep(model, component="neuron")
    missing = torch.isnan(found.values[0]).all(-1)
    assert missing.any()
    assert not missing.all()
    assert "–" in found.plot().to_svg() or "missing" in found.plot().to_svg()


# --- estimates ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("component", ["resid_pre", "z", "k", "pattern", "mlp_post"])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_estimates_are_the_slope_of_exact_effects(component: str, direction: str) -> None:
    """Patching a small step of the way changes the metric by that step times the estimate."""
    model = wide("llama")
    axes = ("layer", "pos") if component == "resid_pre" else ("layer", "head" if component != "mlp_post" else "pos")
    found = sweep(model, component=component, over=axes, order="gradient", direction=direction)
    assert found.approximate
    source, base = (CLEAN, CORRUPT) if direction == "denoise" else (CORRUPT, CLEAN)
    step = 1e-3  # these models norm in float32: a smaller step drowns in rounding
    for layer, other in itertools.product(range(model.config.num_hidden_layers), (1, 2)):
        site = Site(component, layer) if axes[1] == "pos" else Site(component, layer, min(other, 1))
        where = [other] if axes[1] == "pos" else list(range(7))
        reads = [run(model, [ids[0]], read=site.whole)[site] for ids in (base, source)]
        ends = []
        for by in (step, -step):
            edit = Edit.set(site, reads[0] + by * (reads[1] - reads[0]), positions=where)
            logits = last_logits(model, base[0], [edit])
            ends.append(float(logits[TARGETS[0]] - logits[FOILS[0]]))
        slope = (ends[0] - ends[1]) / (2 * step)
        column = other if axes[1] == "pos" else min(other, 1)
        assert float(found.values[0, layer, column] - found.base[0]) == pytest.approx(slope, rel=1e-2, abs=3e-4)


def test_agreement_compares_the_strongest_estimates_with_exact_values() -> None:
    made = prepare_sweep(wide("llama"), CLEAN, CORRUPT, answers=ANSWERS, component="head", over=("layer", "head"))
    estimates, exact = made.run("gradient"), made.run()
    agreement = made.agreement(estimates, top=5)
    strongest = {names for names, _ in estimates.strongest(5)}
    assert set(agreement.labels) == strongest
    for names, value in zip(agreement.labels, agreement.exact, strict=True):
        place = tuple(labels.index(name) for labels, name in zip(exact.labels, names, strict=True))
        assert float(value) == pytest.approx(float(exact.mean[place]), abs=1e-9)
    assert -1.0 <= agreement.correlation <= 1.0
    assert "correlation" in agreement.summary()


def test_a_rank_has_no_gradient() -> None:
    with pytest.raises(MetricError, match=r"no gradient.*exact"):
        sweep(tiny.model_of("llama"), metric="rank", order="gradient")


# --- results ------------------------------------------------------------------------------------------------------


def test_effects_are_saved_and_come_back(tmp_path: Path) -> None:
    found = sweep(tiny.model_of("llama"))
    back = Effects.load(found.save(tmp_path / "e.safetensors"))
    assert torch.equal(back.values, found.values)
    assert (back.labels, back.axes, back.notes) == (found.labels, found.axes, found.notes)
    assert back.provenance == found.provenance
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(FileFormatError, match="cannot be read"):
        Effects.load(tmp_path / "x.safetensors")


def test_effects_have_intervals_over_prompts_and_say_their_strongest_cells() -> None:
    found = sweep(tiny.model_of("llama"))
    estimate = found.estimate(draws=200)
    assert torch.allclose(estimate.mean, found.effect, atol=1e-5)
    assert (estimate.low <= estimate.high).all()
    text = found.summary(3)
    assert "2 prompts" in text
    assert "Strongest" in text
    alone = patch_sweep(tiny.model_of("llama"), CLEAN[0], CORRUPT[0], answers=ANSWERS[0])
    assert alone.estimate().low.isnan().all()
    best, value = alone.strongest(1)[0]
    assert f"layer {best[0]}, pos {best[1]}" in alone.summary()
    assert abs(value) == pytest.approx(float(alone.effect.abs().max()))


def test_effects_as_a_data_frame_have_a_row_for_each_prompt_and_cell() -> None:
    pytest.importorskip("pandas")
    found = sweep(tiny.model_of("llama"))
    frame = found.to_dataframe()
    assert len(frame) == found.values.numel()
    row = frame[(frame["prompt"] == "1") & (frame["layer"] == "2") & (frame["pos"] == found.labels[1][3])]
    assert float(row["value"].iloc[0]) == pytest.approx(float(found.values[1, 2, 3]))


def test_a_heat_map_shows_layers_from_left_to_right() -> None:
    found = sweep(tiny.model_of("llama"))
    picture = found.plot()
    assert list(picture.columns) == list(found.labels[0])
    assert list(picture.rows) == list(found.labels[1])
    assert picture.values[3][1] == pytest.approx(float(found.effect[1, 3]))


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ({"clean": CLEAN[0], "corrupt": CORRUPT[0][:5]}, AlignmentError, "7 tokens and the corrupt one 5"),
        ({"clean": CLEAN[0], "corrupt": CLEAN[0]}, TokenError, "pair 0 are the same"),
        ({"clean": [], "corrupt": []}, TokenError, "no clean prompt"),
        ({"clean": [[]], "corrupt": [[1]]}, TokenError, "empty"),
        ({"corrupt": CORRUPT[:1]}, AlignmentError, "2 clean prompts.*1 corrupt"),
        ({"answers": [(1, 2)]}, TokenError, "1 prompts, but there are 2"),
        ({"answers": (1, 2, 3)}, TokenError, "3 were given"),
        ({"answers": (4, 4)}, TokenError, "same token"),
        ({"answers": None}, MetricError, "targets"),
        ({"component": "mpl"}, SiteError, "did you mean"),
        ({"component": "logits"}, SiteError, "over layers"),
        ({"over": ("layer", "head")}, RunError, "'layer', 'pos'"),
        ({"over": ("layer", "layer")}, RunError, "each once"),
        ({"over": ()}, RunError, "each once"),
        ({"layers": [7]}, SiteError, "layer 7"),
        ({"layers": []}, SiteError, "at least one"),
        ({"indices": [1]}, SiteError, "no heads or neurons"),
        ({"component": "head", "over": ("layer", "head"), "indices": [9]}, SiteError, "there are 4"),
        ({"positions": 9}, PositionError, "position 9"),
        ({"positions": Span("x")}, PositionError, "'x'"),
        ({"positions": {}}, PositionError, "no group"),
        ({"direction": "both"}, RunError, "denoise.*noise"),
        ({"order": "fast"}, RunError, "exact.*gradient"),
        ({"metric": "loss"}, MetricError, "logit_diff"),
        ({"metric": lambda logits: logits[:, 0] * math.nan}, MetricError, "nan in cell 0"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_swept_is_refused_in_words(how: dict[str, Any], error: type[InterpError], words: str) -> None:
    given = {"clean": CLEAN, "corrupt": CORRUPT, "answers": ANSWERS} | how
    with pytest.raises(error, match=words):
        patch_sweep(tiny.model_of("llama"), given.pop("clean"), given.pop("corrupt"), **given)


def test_prompts_of_several_lengths_have_no_common_positions() -> None:
    with pytest.raises(PositionError, match="5 to 7 positions"):
        patch_sweep(tiny.model_of("llama"), [CLEAN[0], CLEAN[1][:5]], [CORRUPT[0], CORRUPT[1][:5]], answers=ANSWERS)


@pytest.mark.filterwarnings("default::interp_toolkit.InterpWarning")
def test_a_model_that_does_not_show_the_behaviour_is_warned_of() -> None:
    model = tiny.model_of("llama")
    gap = float(sweep(model, layers=[0], positions=[-1]).gap[0])
    first, second = (CLEAN[0], CORRUPT[0]) if gap < 0 else (CORRUPT[0], CLEAN[0])
    with pytest.warns(InterpWarning, match="does not show the behaviour"):
        patch_sweep(model, first, second, answers=ANSWERS[0], layers=[0])


def test_what_a_sweep_costs_is_known_before_it_is_run() -> None:
    made = prepare_sweep(tiny.model_of("llama"), CLEAN, CORRUPT, answers=ANSWERS)
    layers = tiny.model_of("llama").config.num_hidden_layers
    text = made.explain()
    assert f"cells: {2 * layers * 7}" in text
    assert "times fewer" in text
