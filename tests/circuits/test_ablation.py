"""Ablations against one plain run for each, with values that are computed here."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import tiny
from interp_toolkit import Edit, Site, run
from interp_toolkit.circuits import Effects
from interp_toolkit.circuits.ablation import ablate, ablation_sweep, prepare_ablation
from interp_toolkit.circuits.knockout_nodes import Knockout
from interp_toolkit.circuits.reference import Reference
from interp_toolkit.circuits.selfrepair import SelfRepair, self_repair
from interp_toolkit.errors import (
    EditError,
    FileFormatError,
    InterpWarning,
    MetricError,
    PositionError,
    RunError,
    SiteError,
    TokenError,
    UnavailableSiteError,
    UnknownSiteError,
)

PROMPTS = [[5, 17, 8, 41, 23, 9, 60], [7, 33, 12, 15, 80], [9, 71, 30, 14, 6, 22, 18], [11, 52, 20, 7, 80]]
ANSWERS = [(11, 52), (20, 7), (40, 41), (3, 97)]
EVERY = ["logit_diff", "kl", "loss", "mean_kl"]
FAMILIES = ["llama", "gpt2", "gemma2", "gpt_neox", "olmo2"]
NODES = ["L1H2", "attn_out.0", "mlp_out.1", "mlp_post.2.17", "resid_pre.1", "layer 1"]
SITES = [["z.1.2"], ["attn_out.0"], ["mlp_out.1"], ["mlp_post.2.17"], ["resid_pre.1"], ["attn_out.1", "mlp_out.1"]]

pytestmark = pytest.mark.filterwarnings("ignore::interp_toolkit.InterpWarning")


def wide(name: str) -> Any:
    return tiny.model_of(name, dtype=torch.float64)


def logits_of(model: Any, ids: Sequence[int], edits: Sequence[Edit] = ()) -> Tensor:
    found = run(model, [list(ids)], edits=edits, logits="all").logits
    assert found is not None
    return found[0]


@functools.cache
def unedited(model: Any, prompt: int) -> Tensor:
    return logits_of(model, PROMPTS[prompt])


def measures(model: Any, prompt: int, edits: Sequence[Edit]) -> dict[str, float]:
    """Every metric of one edited run, by full passes and torch's own functions."""
    ids, (target, foil) = PROMPTS[prompt], ANSWERS[prompt]
    here, clean = logits_of(model, ids, edits), unedited(model, prompt)
    p, q = clean.log_softmax(-1), here.log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1)
    return {
        "logit_diff": float(here[-1, target] - here[-1, foil]),
        "kl": float(kl[-1]),
        "loss": float(nn.functional.cross_entropy(here[:-1], torch.tensor(ids[1:]))),
        "mean_kl": float(kl.mean()),
    }


@functools.cache
def seen(name: str, site: str) -> list[Tensor]:
    """A site in each prompt, run on its own: `[pos, ...]`."""
    return [run(wide(name), [row], read=[Site.parse(site).whole])[site][0] for row in PROMPTS]


def value(name: str, site: str, method: str, prompt: int) -> Tensor | float:
    """What stands in for a site, computed from single runs."""
    each = seen(name, site)
    if method == "zero":
        return 0.0
    if method == "mean":
        return torch.cat(each).mean(0)
    return torch.stack([torch.stack([x[p] for x in each if len(x) > p]).mean(0) for p in range(len(PROMPTS[prompt]))])


def edits_of(name: str, sites: Sequence[str], method: str, prompt: int, where: Any = None) -> list[Edit]:
    return [Edit.set(site, value(name, site, method, prompt), positions=where) for site in sites]


def check(found: Effects, expected: Sequence[Sequence[float]], within: float = 1e-9) -> None:
    torch.testing.assert_close(
        found.values.flatten(1), torch.tensor(expected, dtype=found.values.dtype), rtol=0, atol=within
    )


# --- single nodes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *((name, "mean") for name in FAMILIES),
        ("gemma2", "positional_mean"),
        ("gpt2", "positional_mean"),
        ("llama", "zero"),
    ],
)
def test_every_metric_of_every_kind_of_node_is_that_of_a_run_of_its_own(name: str, method: str) -> None:
    study = prepare_ablation(wide(name), PROMPTS, NODES, method=method, answers=ANSWERS, metric=EVERY)
    every = study.run_all()
    by_hand = [
        [measures(wide(name), n, edits_of(name, sites, method, n)) for sites in SITES] for n in range(len(PROMPTS))
    ]
    unedited = [measures(wide(name), n, []) for n in range(len(PROMPTS))]
    for metric in EVERY:
        found = every[metric]
        check(found, [[cell[metric] for cell in row] for row in by_hand])
        torch.testing.assert_close(
            found.base, torch.tensor([m[metric] for m in unedited], dtype=torch.float64), rtol=0, atol=1e-9
        )
        assert torch.equal(found.base, found.clean)
        assert found.corrupt.isnan().all()
        assert (found.axes, found.labels) == (("node",), (tuple(NODES),))
        assert found.larger_is_cleaner == (metric == "logit_diff")
    assert every["kl"].base.abs().max() < 1e-12
    assert (every["kl"].change < 0).any()


@pytest.mark.parametrize("metric", ["logit_diff", "kl", "loss"])
def test_one_metric_alone_gives_the_same_as_several_at_once(metric: str) -> None:
    nodes = ["L1H2", "mlp_out.0"]
    alone = ablate(wide("llama"), PROMPTS, nodes, answers=ANSWERS, metric=metric)
    together = prepare_ablation(wide("llama"), PROMPTS, nodes, answers=ANSWERS, metric=EVERY).run_all()[metric]
    torch.testing.assert_close(alone.values, together.values, rtol=0, atol=1e-9)


def test_the_loss_is_the_one_that_the_model_itself_gives() -> None:
    found = ablate(wide("llama"), PROMPTS, ["L0H0"], metric="loss")
    with torch.no_grad():
        own = [float(wide("llama")(input_ids=(x := torch.tensor([ids])), labels=x).loss) for ids in PROMPTS]
    assert found.base.tolist() == pytest.approx(own, abs=1e-6)


@pytest.mark.parametrize("name", ["qwen3_moe", "gptj"])
def test_models_that_compute_in_float32_agree_with_single_runs(name: str) -> None:
    model = tiny.model_of(name)
    nodes = ["L1H2", "mlp_out.0", "layer 2"]
    sites = [["z.1.2"], ["mlp_out.0"], ["attn_out.2", "mlp_out.2"]]
    every = prepare_ablation(model, PROMPTS, nodes, method="zero", answers=ANSWERS, metric=EVERY).run_all()
    by_hand = [[measures(model, n, [Edit.set(s, 0.0) for s in some]) for some in sites] for n in range(len(PROMPTS))]
    for metric in EVERY:
        check(every[metric], [[cell[metric] for cell in row] for row in by_hand], within=2e-4)


def test_given_values_are_put_in() -> None:
    model, generator = wide("llama"), torch.Generator().manual_seed(0)
    head, mlp = (torch.randn(n, generator=generator, dtype=torch.float64) for n in (8, 32))
    for given, edits in [
        (0.25, [Edit.set("z.1.2", 0.25), Edit.set("mlp_out.0", 0.25)]),
        ({"L1H2": head, "mlp_out.0": mlp}, [Edit.set("z.1.2", head), Edit.set("mlp_out.0", mlp)]),
        ({"L1H2": 1, "mlp_out.0": mlp}, [Edit.set("z.1.2", 1.0), Edit.set("mlp_out.0", mlp)]),
    ]:
        found = ablate(model, PROMPTS, ["L1H2", "mlp_out.0"], method=given, answers=ANSWERS)
        check(found, [[measures(model, n, [e])["logit_diff"] for e in edits] for n in range(len(PROMPTS))])
    found = ablate(model, PROMPTS, "L1H2", method=head, answers=ANSWERS)
    check(found, [[measures(model, n, [Edit.set("z.1.2", head)])["logit_diff"]] for n in range(len(PROMPTS))])


def test_a_value_for_each_position_is_put_in_position_by_position() -> None:
    model, row = wide("llama"), PROMPTS[0]
    steps = torch.randn(len(row), 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = ablate(model, [row], "L1H2", method=steps, metric="loss")
    check(found, [[measures(model, 0, [Edit.set("z.1.2", steps)])["loss"]]])


@pytest.mark.parametrize("method", ["zero", "mean", "positional_mean"])
def test_positions_are_those_of_the_call_or_of_the_node(method: str) -> None:
    model, every = wide("llama"), range(len(PROMPTS))
    found = ablate(
        model,
        PROMPTS,
        ["resid_pre.1", Knockout.of("resid_pre.1", positions=2, name="third")],
        method=method,
        positions=[1, -1],
        answers=ANSWERS,
    )
    by_hand = [
        [measures(model, n, edits_of("llama", ["resid_pre.1"], method, n, w))["logit_diff"] for w in ([1, -1], 2)]
        for n in every
    ]
    check(found, by_hand)
    assert found.labels == (("resid_pre.1", "third"),)


def test_sets_are_ablated_together() -> None:
    model, movers = wide("llama"), ["L1H2", "L1H0", "L2H3", "mlp_post.2.5", "mlp_post.2.9"]
    for method in ("zero", "mean", "positional_mean"):
        named = ablate(model, PROMPTS, {"movers": movers, "one": "L0H0"}, method=method, metric="loss")
        listed = ablate(model, PROMPTS, [movers, "L0H0"], method=method, metric="loss")
        by_hand = [
            [measures(model, n, edits_of("llama", some, method, n))["loss"] for some in (movers, ["L0H0"])]
            for n in range(len(PROMPTS))
        ]
        check(named, by_hand)
        check(listed, by_hand)
    assert named.labels == (("movers", "one"),)
    assert listed.labels == (("+".join(movers), "L0H0"),)


def test_several_heads_of_a_layer_at_late_positions_get_the_means_of_those_positions() -> None:
    model, some = wide("llama"), ["L1H2", "L1H0"]
    found = ablate(model, PROMPTS, [some], method="positional_mean", positions=[-2, -1], answers=ANSWERS)
    by_hand = [
        [measures(model, n, edits_of("llama", some, "positional_mean", n, [-2, -1]))["logit_diff"]]
        for n in range(len(PROMPTS))
    ]
    check(found, by_hand)


def test_a_component_means_all_its_heads_or_layers() -> None:
    heads = ablate(wide("llama"), PROMPTS, "head", answers=ANSWERS, method="zero")
    assert heads.labels == (tuple(f"L{layer}H{head}" for layer in range(3) for head in range(4)),)
    layers = ablate(wide("llama"), PROMPTS, "mlp", answers=ANSWERS, method="zero")
    assert layers.labels == (("mlp_out.0", "mlp_out.1", "mlp_out.2"),)


def test_patterns_can_be_set_to_zero() -> None:
    found = ablate(wide("gemma2"), PROMPTS, ["pattern.1.2", ["pattern.1.0", "pattern.1.1"]], method="zero")
    by_hand = [
        [measures(wide("gemma2"), n, [Edit.set(s, 0.0) for s in some])["loss"] for some in sets]
        for n in range(len(PROMPTS))
        for sets in [[["pattern.1.2"], ["pattern.1.0", "pattern.1.1"]]]
    ]
    check(found, by_hand, within=1e-5)  # the models' own code computes patterns in float32


# --- sweeps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["logit_diff", "loss"])
def test_a_sweep_of_heads_is_a_run_for_each_head(metric: str) -> None:
    found = ablation_sweep(wide("llama"), PROMPTS, answers=ANSWERS, metric=metric)
    cells = list(itertools.product(range(3), range(4)))
    by_hand = [
        [measures(wide("llama"), n, edits_of("llama", [f"z.{a}.{b}"], "mean", n))[metric] for a, b in cells]
        for n in range(len(PROMPTS))
    ]
    check(found, by_hand)
    assert (found.axes, found.labels) == (("layer", "head"), (("0", "1", "2"), ("0", "1", "2", "3")))


def test_a_sweep_over_layers_and_positions_is_a_run_for_each() -> None:
    rows = [PROMPTS[0], PROMPTS[2]]
    found = ablation_sweep(wide("llama"), rows, component="resid", over=("layer", "pos"), method="zero", metric="kl")
    assert found.axes == ("layer", "pos")
    by_hand = [
        [
            measures(wide("llama"), n, [Edit.set(f"resid_pre.{layer}", 0.0, positions=p)])["kl"]
            for layer in range(3)
            for p in range(7)
        ]
        for n in (0, 2)
    ]
    check(found, by_hand)


def test_a_layer_without_the_site_is_nan_in_a_sweep() -> None:
    model = tiny.model_of("qwen3_moe")
    found = ablation_sweep(model, PROMPTS, component="mlp_post", over=("layer",), method="zero")
    assert found.values.isnan().all(0).tolist() == [True, False, True]


def test_all_heads_over_all_prompts_take_few_passes() -> None:
    rows = tiny.tokens(16, 9).tolist()
    study = prepare_ablation(wide("llama"), rows, "head", method="zero", metric="kl")
    words = study.explain()
    assert "cells: 192 over 16 base runs" in words
    passes = int(words.split("forward passes: ")[1].split()[0])
    assert passes <= 4


# --- sets: leave one out, cumulative -----------------------------------------------------------------------------

SET = ["L1H2", "mlp_out.1", "L2H0", "L0H3"]
SET_SITES = ["z.1.2", "mlp_out.1", "z.2.0", "z.0.3"]


def of_sets(sets: Sequence[Sequence[str]], metric: str = "logit_diff") -> list[list[float]]:
    return [
        [measures(wide("llama"), n, edits_of("llama", some, "mean", n))[metric] for some in sets]
        for n in range(len(PROMPTS))
    ]


@pytest.mark.parametrize("metric", ["logit_diff", "loss"])
def test_leaving_one_out_ablates_all_the_others(metric: str) -> None:
    found = ablate(wide("llama"), PROMPTS, SET, mode="leave_one_out", answers=ANSWERS, metric=metric)
    sets = [SET_SITES, *([s for s in SET_SITES if s != kept] for kept in SET_SITES)]
    check(found, of_sets(sets, metric))
    assert (found.axes, found.labels) == (("kept",), (("none", *SET),))


def test_leaving_out_the_only_node_changes_nothing() -> None:
    found = ablate(wide("llama"), PROMPTS, ["L1H2"], mode="leave_one_out", answers=ANSWERS)
    torch.testing.assert_close(found.values[:, 1], found.base, rtol=0, atol=1e-10)


def test_cumulative_ablation_adds_one_node_after_the_other() -> None:
    found = ablate(wide("llama"), PROMPTS, SET, mode="cumulative", answers=ANSWERS)
    check(found, of_sets([SET_SITES[: k + 1] for k in range(4)]))
    assert found.axes == ("k",)
    assert found.labels == (("1 +L1H2", "2 +mlp_out.1", "3 +L2H0", "4 +L0H3"),)


@pytest.mark.parametrize(("order", "sign"), [("effect", None), ("absolute", abs)])
def test_cumulative_ablation_begins_with_the_node_that_matters_most(order: Any, sign: Any) -> None:
    found = ablate(wide("llama"), PROMPTS, SET, mode="cumulative", order=order, answers=ANSWERS)
    base = [measures(wide("llama"), n, [])["logit_diff"] for n in range(len(PROMPTS))]
    alone = of_sets([[s] for s in SET_SITES])
    drops = [sum(b - row[k] for b, row in zip(base, alone, strict=True)) / len(base) for k in range(4)]
    key = drops if sign is None else [sign(x) for x in drops]
    numbers = sorted(range(4), key=lambda k: -key[k])
    check(found, of_sets([[SET_SITES[k] for k in numbers[: n + 1]] for n in range(4)]))
    assert [label.split("+")[1] for label in found.labels[0]] == [SET[k] for k in numbers]
    assert found.notes["single effects"][SET[0]] == pytest.approx(-drops[0], abs=1e-9)


# --- resampling ---------------------------------------------------------------------------------------------------


def donors_of(prompt: int) -> list[list[int]]:
    """The prompts of the same length."""
    return [row for row in PROMPTS if len(row) == len(PROMPTS[prompt]) and row != PROMPTS[prompt]]


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_resampling_puts_in_what_the_other_prompt_of_the_same_length_has(name: str) -> None:
    model = wide(name)
    for metric in ("logit_diff", "loss"):
        found = ablate(model, PROMPTS, NODES, method="resample", answers=ANSWERS, metric=metric)
        by_hand = []
        for n in range(len(PROMPTS)):
            (donor,) = donors_of(n)
            other = run(model, [donor], read=[Site.parse(s).whole for s in itertools.chain(*SITES)])
            by_hand.append([measures(model, n, [Edit.set(s, other[s]) for s in some])[metric] for some in SITES])
        check(found, by_hand)


def test_longer_prompts_are_cut_where_there_are_too_few_of_the_same_length() -> None:
    model, rows = wide("llama"), PROMPTS[:2]
    reference = Reference.gather(model, PROMPTS[:1], sites="z", samples=1)
    found = ablate(model, [rows[1]], "L1H2", method="resample", reference=reference, metric="loss")
    other = run(model, [rows[0]], read=["z.1"])["z.1.2"][:, : len(rows[1])]
    check(found, [[measures(model, 1, [Edit.set("z.1.2", other)])["loss"]]])


def test_draws_are_decided_by_the_seed_and_never_the_prompt_itself() -> None:
    rows = tiny.tokens(6, 7).tolist()
    model = wide("llama")

    def donors(seed: int, draws: int = 2) -> list[list[list[int]]]:
        study = prepare_ablation(model, rows, "L1H2", method="resample", draws=draws, seed=seed, metric="kl")
        return [[tokens.row() for tokens in some] for some in study.replacement.donors]

    assert donors(3) == donors(3)
    assert donors(3) != donors(4)
    for own, drawn in zip(rows, donors(0, 5), strict=True):
        assert sorted(drawn) == sorted(row for row in rows if row != own)
    one, same, other = (
        ablate(model, rows, "L1H2", method="resample", seed=seed, metric="kl").values for seed in (3, 3, 4)
    )
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)


def test_draws_are_averaged_or_kept() -> None:
    rows, model = tiny.tokens(5, 7).tolist(), wide("llama")
    study = prepare_ablation(model, rows, ["L1H2", "mlp_out.0"], method="resample", draws=3, metric="kl")
    kept, averaged = study.run(keep_draws=True), study.run()
    assert (kept.axes, tuple(kept.values.shape)) == (("node", "draw"), (5, 2, 3))
    torch.testing.assert_close(averaged.values, kept.values.mean(-1), rtol=0, atol=1e-12)
    for n, row in enumerate(rows):
        clean = logits_of(model, row)[-1].log_softmax(-1)
        for draw, donor in enumerate(study.replacement.donors[n]):
            other = run(model, [donor.row()], read=["z.1"])["z.1.2"]
            here = logits_of(model, row, [Edit.set("z.1.2", other)])[-1].log_softmax(-1)
            assert float(kept.values[n, 0, draw]) == pytest.approx(
                float((clean.exp() * (clean - here)).sum()), abs=1e-9
            )
    assert averaged.notes["draws"] == 3


def test_resampling_where_both_prompts_are_the_same_changes_nothing() -> None:
    rows = [[5, 17, 8, 41], [5, 17, 9, 12]]
    found = ablate(wide("llama"), rows, "L1H2", method="resample", positions=[0, 1], metric="loss")
    torch.testing.assert_close(found.values[:, 0], found.base, rtol=0, atol=1e-12)


# --- references ---------------------------------------------------------------------------------------------------


def test_a_saved_reference_gives_what_the_prompts_themselves_give(tmp_path: Path) -> None:
    model = wide("llama")
    path = Reference.gather(model, PROMPTS, sites=["z", "mlp_out"]).save(tmp_path / "r.safetensors")
    for method in ("mean", "positional_mean"):
        own = ablate(model, PROMPTS, ["L1H2", "mlp_out.0"], method=method, metric="loss")
        other = ablate(
            model, PROMPTS, ["L1H2", "mlp_out.0"], method=method, metric="loss", reference=Reference.load(path)
        )
        torch.testing.assert_close(own.values, other.values, rtol=0, atol=1e-12)
    assert "21 tokens" not in other.notes["reference"]
    assert "24 tokens of 4 prompts" in other.notes["reference"]


def test_little_memory_gives_the_same_numbers_in_more_chunks() -> None:
    model = wide("llama")
    few, many = (
        prepare_ablation(model, PROMPTS, NODES, answers=ANSWERS, metric=EVERY, memory=memory)
        for memory in (60_000, None)
    )
    assert len(few.chunks()) > len(many.chunks()) == 1
    for metric in EVERY:
        torch.testing.assert_close(few.run_all()[metric].values, many.run_all()[metric].values, rtol=0, atol=1e-9)


def test_results_come_back_from_files_and_say_what_was_done(tmp_path: Path) -> None:
    found = ablate(wide("llama"), PROMPTS, SET, answers=ANSWERS, mode="cumulative", order="effect")
    back = Effects.load(found.save(tmp_path / "e.safetensors"))
    assert torch.equal(back.values, found.values)
    assert back.notes == found.notes
    for part in ("Mean ablation, cumulative, in effect order", "Metric logit_diff", "4 prompts"):
        assert part in back.summary()
    assert back.provenance.model_type == "llama"
    assert found.estimate().low.shape == (4,)


# --- self-repair --------------------------------------------------------------------------------------------------


def by_modules(model: Any, residual: Tensor) -> Tensor:
    """Final norm and unembedding, called as modules; Gemma 2 caps its logits."""
    decoder = model.transformer if hasattr(model, "transformer") else getattr(model, "gpt_neox", None) or model.model
    norm = next(getattr(decoder, name) for name in ("ln_f", "final_layer_norm", "norm") if hasattr(decoder, name))
    with torch.no_grad():
        logits = model.get_output_embeddings()(norm(residual))
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


@pytest.mark.parametrize(("name", "method"), [*((name, "mean") for name in FAMILIES), ("gemma2", "zero")])
def test_the_direct_effect_is_what_the_final_norm_makes_of_the_changed_residual(name: str, method: str) -> None:
    model = wide(name)
    cases = {
        "L1H2": [("attn_out.1", ["z.1.2"])],
        "attn_out.0": [("attn_out.0", ["attn_out.0"])],
        "mlp_post.1.17": [("mlp_out.1", ["mlp_post.1.17"])],
        "L2H0": [("attn_out.2", ["z.2.0"])],
        "several": [("attn_out.0", ["z.0.1", "z.0.2"]), ("attn_out.2", ["z.2.3"]), ("mlp_out.2", ["mlp_post.2.4"])],
    }
    nodes = {key: [s for _, some in parts for s in some] for key, parts in cases.items()}
    found = self_repair(model, PROMPTS, nodes, method=method, answers=ANSWERS)
    total = ablate(model, PROMPTS, nodes, method=method, answers=ANSWERS)
    torch.testing.assert_close(found.total, total.change, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.repair, found.total - found.direct, rtol=0, atol=1e-12)
    assert found.nodes == tuple(cases)
    for n, row in enumerate(PROMPTS):
        target, foil = ANSWERS[n]
        end = run(model, [row], read=["resid_post.-1"])["resid_post.-1"][0, -1:]
        clean = by_modules(model, end)[0]
        for k, parts in enumerate(cases.values()):
            delta = torch.zeros_like(end)
            for write, some in parts:
                edited = run(model, [row], read=[write], edits=edits_of(name, some, method, n))[write][0, -1:]
                delta += edited - run(model, [row], read=[write])[write][0, -1:]
            here = by_modules(model, end + delta)[0]
            expected = float((here[target] - here[foil]) - (clean[target] - clean[foil]))
            assert float(found.direct[n, k]) == pytest.approx(expected, abs=1e-9)


def test_nothing_is_left_to_repair_a_node_of_the_last_mlp() -> None:
    found = self_repair(wide("llama"), PROMPTS, ["mlp_out.2", "mlp_post.2.4", "L0H1"], answers=ANSWERS)
    assert found.repair[:, :2].abs().max() < 1e-10
    assert found.repair[:, 2].abs().max() > 1e-4


def test_self_repair_under_resampling_averages_over_draws() -> None:
    rows, model = tiny.tokens(4, 6).tolist(), wide("llama")
    found = self_repair(model, rows, ["L1H2", "mlp_out.0"], method="resample", draws=2, metric="kl")
    study = prepare_ablation(model, rows, "L1H2", method="resample", draws=2, metric="kl")
    for n, row in enumerate(rows):
        values = []
        for donor in study.replacement.donors[n]:
            read = run(model, [row], read=["resid_post.2", "attn_out.1"])
            other = run(model, [donor.row()], read=["z.1"])["z.1.2"]
            edited = run(model, [row], read=["attn_out.1"], edits=[Edit.set("z.1.2", other)])["attn_out.1"]
            end, delta = read["resid_post.2"][0, -1:], (edited - read["attn_out.1"])[0, -1:]
            p, q = (by_modules(model, x)[0].log_softmax(-1) for x in (end, end + delta))
            values.append(float((p.exp() * (p - q)).sum()))
        assert float(found.direct[n, 0]) == pytest.approx(-sum(values) / 2, abs=1e-9)


def test_self_repair_with_little_memory_gives_the_same() -> None:
    few, many = (
        self_repair(wide("llama"), PROMPTS, ["L1H2", "mlp_out.0"], answers=ANSWERS, memory=memory)
        for memory in (60_000, None)
    )
    torch.testing.assert_close(few.effects.values, many.effects.values, rtol=0, atol=1e-9)


def test_self_repair_is_shown_saved_and_tabled(tmp_path: Path) -> None:
    found = self_repair(wide("llama"), PROMPTS, ["L1H2", "mlp_out.0"], answers=ANSWERS)
    words = found.summary()
    for part in ("Self-repair under mean ablation: 2 nodes, 4 prompts", "L1H2: total", "direct", "self-repair"):
        assert part in words
    back = SelfRepair.load(found.save(tmp_path / "s.safetensors"))
    assert torch.equal(back.repair, found.repair)
    other = ablate(wide("llama"), PROMPTS, "L1H2", answers=ANSWERS).save(tmp_path / "e.safetensors")
    with pytest.raises(FileFormatError, match=r"holds other effects, over node"):
        SelfRepair.load(other)
    assert "direct" in found._repr_html_()
    pytest.importorskip("pandas")
    table = found.to_dataframe()
    assert list(table.columns) == ["prompt", "node", "total", "direct", "self-repair"]
    assert len(table) == 8
    row = table[(table["prompt"] == "2") & (table["node"] == "mlp_out.0")].iloc[0]
    assert row["direct"] == pytest.approx(float(found.direct[2, 1]))


def test_self_repair_needs_something_that_adds_to_the_residual_stream() -> None:
    with pytest.raises(SiteError, match=r"resid_pre\.1 is no component that adds to the residual stream"):
        self_repair(wide("llama"), PROMPTS, ["L1H2", "resid_pre.1"], answers=ANSWERS)
    with pytest.raises(RunError, match="measured at the last position, but loss is over the whole prompt"):
        self_repair(wide("llama"), PROMPTS, "L1H2", metric="loss")


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nodes", [[], {}, [[]]])
def test_no_nodes_are_refused(nodes: Any) -> None:
    with pytest.raises(SiteError, match="no node to ablate was given"):
        ablate(wide("llama"), PROMPTS, nodes)


def test_unknown_nodes_are_refused_by_name() -> None:
    model = wide("llama")
    with pytest.raises(UnknownSiteError, match="there is no site 'name_mover'"):
        ablate(model, PROMPTS, "name_mover")
    with pytest.raises(SiteError, match="asks for layer 9, but the model has 3 layers"):
        ablate(model, PROMPTS, "layer 9")
    with pytest.raises(UnavailableSiteError, match="asks for head 7, but there are 4"):
        ablate(model, PROMPTS, ["L0H0", "L1H7"])
    with pytest.raises(SiteError, match="every node counts once"):
        ablate(model, PROMPTS, ["L2H0", "L1H1", "L-1H0"])
    with pytest.raises(SiteError, match="logits cannot be ablated"):
        ablate(model, PROMPTS, "logits")


def test_no_prompts_are_refused() -> None:
    with pytest.raises(TokenError, match="no given prompt"):
        ablate(wide("llama"), [], "L0H0")


def test_words_that_mean_nothing_are_refused_with_the_choices() -> None:
    model = wide("llama")
    with pytest.raises(RunError, match="method is 'zero', 'mean', 'positional_mean', 'resample'"):
        ablate(model, PROMPTS, "L0H0", method="average")
    with pytest.raises(MetricError, match="loss, mean_kl"):
        ablate(model, PROMPTS, "L0H0", metric="los")
    with pytest.raises(MetricError, match="logit_diff needs targets"):
        ablate(model, PROMPTS, "L0H0", metric="logit_diff")
    with pytest.raises(RunError, match="only 'resample' draws"):
        ablate(model, PROMPTS, "L0H0", draws=2)
    with pytest.raises(RunError, match="named once each"):
        prepare_ablation(model, PROMPTS, "L0H0", metric=["kl", "kl"])


@pytest.mark.usefixtures("unchecked")
def test_modes_and_orders_that_mean_nothing_are_refused() -> None:
    mode: Any = "all"
    with pytest.raises(RunError, match="mode is 'single', 'leave_one_out' or 'cumulative', not 'all'"):
        ablate(wide("llama"), PROMPTS, "L0H0", mode=mode)
    with pytest.raises(RunError, match="order is 'given', 'effect' or 'absolute', not 'all'"):
        ablate(wide("llama"), PROMPTS, "L0H0", mode="cumulative", order=mode)


def test_values_of_the_wrong_shape_are_refused_with_the_right_one() -> None:
    model = wide("llama")
    with pytest.raises(EditError, match=r"z\.0\.0 has shape \(5,\), but the site has \(8,\) \(d_head\)"):
        ablate(model, PROMPTS, "L0H0", method=torch.zeros(5))
    with pytest.raises(EditError, match=r"at each of 5 to 7 positions"):
        ablate(model, PROMPTS, "L0H0", method=torch.zeros(7, 8))
    with pytest.raises(EditError, match="holds NaN or infinity"):
        ablate(model, PROMPTS, "L0H0", method=math.nan)
    with pytest.raises(SiteError, match=r"no value is given for z\.1\.0, but for z\.0\.0"):
        ablate(model, PROMPTS, ["L0H0", "L1H0"], method={"L0H0": 0.0})


def test_references_that_do_not_fit_are_refused() -> None:
    model = wide("llama")
    reference = Reference.gather(model, PROMPTS[1:2], sites="z.0")
    with pytest.raises(SiteError, match=r"no z\.1; of z it has layers \[0\]"):
        ablate(model, PROMPTS, "L1H0", reference=reference)
    with pytest.raises(PositionError, match="a prompt has 7 tokens, but the longest of the reference has 5"):
        ablate(model, PROMPTS, "L0H0", method="positional_mean", reference=reference)
    with pytest.raises(RunError, match="not laid out as"):
        ablate(wide("gpt2"), PROMPTS, "L0H0", reference=reference)
    with pytest.raises(SiteError, match=r"no mean over prompts is taken of pattern\.1"):
        ablate(model, PROMPTS, "pattern.1.0")


def test_resampling_needs_other_prompts() -> None:
    model = wide("llama")
    with pytest.raises(RunError, match=r"needs 1 other prompt of at least 7 tokens for prompt 0 .* there are 0"):
        ablate(model, PROMPTS[:1], "L0H0", method="resample")
    with pytest.raises(RunError, match=r"needs 3 other prompts of at least 7 tokens .* there is 1: give more prompts"):
        ablate(model, PROMPTS, "L0H0", method="resample", draws=3)
    empty = Reference.gather(model, PROMPTS, sites="z")
    with pytest.raises(RunError, match="gathered with samples="):
        ablate(model, PROMPTS, "L0H0", method="resample", reference=empty)


def test_positions_outside_of_a_prompt_are_refused() -> None:
    with pytest.raises(PositionError, match="position 6 is outside"):
        ablate(wide("llama"), PROMPTS, "L0H0", positions=6, metric="kl")


def test_a_prompt_of_one_token_has_no_loss() -> None:
    with pytest.raises(TokenError, match="prompt 1 has one token"):
        ablate(wide("llama"), [[5, 6], [7]], "L0H0")


@pytest.mark.filterwarnings("default::interp_toolkit.InterpWarning")
def test_prompts_that_the_model_does_not_answer_are_warned_of() -> None:
    model = wide("llama")
    order = logits_of(model, PROMPTS[0])[-1].argsort().tolist()
    with pytest.warns(InterpWarning, match="prompt 0 is not answered rightly by the model as it is"):
        ablate(model, PROMPTS[:1], "L0H0", method="zero", answers=(order[0], order[-1]))


@pytest.mark.filterwarnings("default::interp_toolkit.InterpWarning")
def test_positional_means_of_one_prompt_are_warned_of() -> None:
    with pytest.warns(InterpWarning, match="at 7 of 7 positions the positional mean is over one prompt only"):
        ablate(wide("llama"), PROMPTS[:1], "L0H0", method="positional_mean")


# --- a real model -------------------------------------------------------------------------------------------------


def test_mean_ablating_a_name_mover_lowers_the_logit_difference(
    demo: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    model, _ = demo
    names = [("Mary", "John"), ("Tom", "Anna"), ("Kate", "Paul"), ("James", "Sarah")]
    pairs = [*names, *((b, a) for a, b in names)]
    prompts = [f"When {a} and {b} went to the store, {b} gave a drink to" for a, b in pairs]
    found = ablate(model, prompts, ["L23H3"], answers=pairs)
    assert float(found.clean.mean()) > 3
    assert float(found.mean[0]) < -0.3
    assert float(found.estimate(normalized=False).high[0]) < 0
