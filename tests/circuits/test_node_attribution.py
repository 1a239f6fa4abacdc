"""Attribution of nodes, against derivatives, exact patching and sums that must hold."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from circuits.brute_edges import all_double
from circuits.planted import PLANTED
from circuits.test_attribution import smooth
from circuits.test_subgraph import ANSWERS, CLEAN, CORRUPT, later, model_of, runs_of
from interp_toolkit.circuits.attribution import attribute
from interp_toolkit.circuits.dataset import prepare_pairs
from interp_toolkit.circuits.effects import Effects
from interp_toolkit.circuits.metrics import metric_of
from interp_toolkit.circuits.node_attribution import NODE_KINDS, NODE_METHODS, attribute_nodes, node_scores
from interp_toolkit.circuits.node_softmax import one_key_ablated
from interp_toolkit.circuits.reference import Reference
from interp_toolkit.circuits.slopes import quadrature
from interp_toolkit.circuits.subgraph import CircuitRuns
from interp_toolkit.errors import CircuitError, InterpWarning, MetricError, PositionError, SiteError
from interp_toolkit.model import Edit, run
from tiny import model_of as shared_model
from tiny import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:.*not answered better")
KINDS = sorted(NODE_KINDS)
SINKS = ("gpt_oss",)
FAMILIES = [
    "bloom",
    "falcon",
    "gemma3_text",
    "gpt_bigcode",
    "gpt_neo",
    "gpt_oss",
    "gptj",
    "mistral",
    "mixtral",
    "mpt",
    "olmo2",
]
"""Biases by distance, windows, sinks, one group for all heads, norms of queries, attention of a module's own."""
SOME = ["gpt2", "llama", "gpt_neox", "gemma2"]
"""LayerNorm and fused projections; grouped queries; parallel blocks; norms behind and a soft cap."""


@cache
def plain_runs(family: str, position: int) -> CircuitRuns:
    return runs_of(model_of(family), later(CLEAN, position))


@cache
def double_runs(family: str, position: int = 0) -> CircuitRuns:
    """To be used while all is in double precision."""
    return runs_of(smooth(family), later(CLEAN, position))


def scored(effects: Effects) -> Tensor:
    """Scores: what ablating takes away."""
    return -effects.change


def difference(model: Any, ids: Tensor, edits: Sequence[Edit] = (), answers: Any = ANSWERS) -> Tensor:
    logits = run(model, ids, edits=edits, logits="last").logits
    target, foil = torch.tensor(answers).T
    rows = torch.arange(len(ids))
    return logits[rows, -1, target] - logits[rows, -1, foil]


def exact(model: Any, component: str, layer: int, index: int, where: Any = "all", **prompts: Any) -> Tensor:
    """What it takes away to ablate one node in the clean run."""
    clean, corrupt, answers = (
        prompts.get(n, d) for n, d in zip(("clean", "corrupt", "answers"), (CLEAN, CORRUPT, ANSWERS), strict=True)
    )
    name = f"{component}.{layer}"
    there = run(model, corrupt, read=name)[name][:, :, index]
    there = there if where == "all" else there[:, where : where + 1]
    edits = [Edit.set(f"{name}.{index}", there, positions=None if where == "all" else where)]
    return difference(model, clean, answers=answers) - difference(model, clean, edits, answers)


# --- what a score is -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "kind"), [(f, k) for f in SOME for k in KINDS if f == "gemma2" or k in ("heads", "k")]
)
def test_eap_is_the_derivative_of_moving_a_node(family: str, kind: str) -> None:
    model, step, name = model_of(family), 1e-5, f"{NODE_KINDS[kind]}.1"
    with all_double():
        found = scored(node_scores(double_runs(family), kind, "eap"))
        here, there = (run(model, ids, read=name)[name] for ids in (CLEAN, CORRUPT))
        indexed = found.ndim > 2
        nodes: list[int | None] = [1, 0] if indexed else [None]
        for node in nodes:
            moved = (there - here) if node is None else (there - here)[:, :, node]
            part = here if node is None else here[:, :, node]
            site = name if node is None else f"{name}.{node}"
            ends = [difference(model, CLEAN, [Edit.set(site, part + sign * step * moved)]) for sign in (-1, 1)]
            slope = (ends[0] - ends[1]) / (2 * step)
            torch.testing.assert_close(found[:, 1] if node is None else found[:, 1, node], slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("family", "method"),
    [(family, "eap-ig") for family in SOME] + [("llama", method) for method in ("eap", "clean-corrupt", "relp")],
)
def test_scores_of_heads_and_mlps_are_the_sums_of_the_edges_out_of_them(family: str, method: str) -> None:
    runs = plain_runs(family, 3)
    edges = attribute(runs, method).prompts
    assert edges is not None
    rows = edges.sum(2)[:, 1:].unflatten(1, (runs.graph.num_layers, -1)).double()
    torch.testing.assert_close(scored(node_scores(runs, "mlps", method)), rows[:, :, -1], rtol=1e-5, atol=1e-5)
    heads = scored(node_scores(runs, "heads", method))
    if family == "gemma2":  # edges out of heads take the scale of the norm behind them as it is
        assert float((heads - rows[:, :, :-1]).abs().max()) > 1e-3
    else:
        torch.testing.assert_close(heads, rows[:, :, :-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", NODE_METHODS)
def test_neurons_sum_to_their_mlp_and_heads_to_their_attention(method: str) -> None:
    with all_double():
        runs = double_runs("llama", 2)
        neurons, mlps, heads, attn = (
            scored(node_scores(runs, k, method)) for k in ("neurons", "mlps", "heads", "attn")
        )
    torch.testing.assert_close(neurons.sum(2), mlps, rtol=1e-7, atol=1e-9)
    if method != "atp*":  # heads are then other things
        torch.testing.assert_close(heads.sum(2), attn, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma2"])
def test_conductance_of_the_stream_is_conserved_in_every_layer(family: str) -> None:
    with all_double():
        runs = double_runs(family, 5)
        found = scored(node_scores(runs, "resid", "conductance", steps=60))
    gap = (runs.clean - runs.corrupt)[:, None].expand_as(found)
    torch.testing.assert_close(found, gap, rtol=0.01, atol=3e-3)


def test_integrated_gradients_of_the_embedding_are_the_whole_difference() -> None:
    with all_double():
        runs = double_runs("gpt2", 5)
        found = scored(node_scores(runs, "resid", "eap-ig", steps=48))[:, 0]
    torch.testing.assert_close(found, runs.clean - runs.corrupt, rtol=1e-3, atol=1e-3)


def test_quadrature_is_exact_for_polynomials() -> None:
    for power in range(10):
        assert sum(w * x**power for x, w in quadrature(5)) == pytest.approx(1 / (power + 1))


def test_the_sign_says_that_ablating_a_helpful_node_hurts() -> None:
    planted = PLANTED["induction"]()
    answers = [(int(a), int(b)) for a, b in planted.answers]
    effects = attribute_nodes(planted.model, planted.clean, planted.corrupt, answers, method="eap-ig")
    assert effects.approximate
    assert effects.direction == "noise"
    assert effects.strongest(1)[0][0] == ("1", "1")
    assert float(effects.mean[1, 1]) < -1
    torch.testing.assert_close(effects.base, effects.clean)
    assert "eap-ig" in effects.summary()
    with all_double():
        lowered = attribute_nodes(planted.model, planted.clean, planted.corrupt, answers, metric="kl", method="eap-ig")
    assert float(lowered.mean[1, 1]) < 0 < float((lowered.values - lowered.base[:, None, None]).mean(0)[1, 1])


# --- the softmax -----------------------------------------------------------------------------------------------


def linear_model(family: str) -> Any:
    """One layer, and behind its pattern nothing that is not linear."""
    model = copy.deepcopy(tiny_model(family, dtype=torch.float64))
    body = model.transformer if family == "gpt2" else model.model
    blocks = body.h if family == "gpt2" else body.layers
    del blocks[1:]
    model.config.num_hidden_layers = 1
    last = blocks[0].mlp.c_proj if family == "gpt2" else blocks[0].mlp.down_proj
    for parameter in last.parameters():
        parameter.data.zero_()
    norm = "ln_f" if family == "gpt2" else "norm"
    setattr(body, norm, nn.Identity())
    return model


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_atp_star_is_exact_where_everything_behind_the_pattern_is_linear(family: str) -> None:
    model = linear_model(family)
    with all_double():
        runs = runs_of(model)
        queries = scored(node_scores(runs, "q", "atp*"))
        keys = scored(node_scores(runs, "k", "atp*", by_position=True))
        plain = scored(node_scores(runs, "q", "eap"))
        for head in range(4):
            torch.testing.assert_close(queries[:, 0, head], exact(model, "q", 0, head), rtol=1e-6, atol=1e-8)
        for group in range(keys.shape[-1]):
            for place in (0, 3, 8):
                torch.testing.assert_close(
                    keys[:, 0, place, group], exact(model, "k", 0, group, place), rtol=1e-6, atol=1e-8
                )
    assert float((plain - queries).abs().max()) > 0.01


@pytest.mark.parametrize("kind", ["q", "k"])
def test_atp_star_sees_what_saturated_attention_hides(kind: str) -> None:
    planted = PLANTED["induction-saturated"]()
    answers = [(int(a), int(b)) for a, b in planted.answers]
    runs = CircuitRuns(
        planted.model, prepare_pairs(planted.model, planted.clean, planted.corrupt, answers), metric_of("logit_diff")
    )
    prompts = {"clean": planted.clean, "corrupt": planted.corrupt, "answers": answers}
    truth = float(exact(planted.model, kind, 1, 1, **prompts).mean())
    plain, corrected = (float(scored(node_scores(runs, kind, m)).mean(0)[1, 1]) for m in ("eap", "atp*"))
    assert truth > 1
    assert abs(plain) < 0.1 * truth
    assert abs(corrected - truth) < 0.02 * truth, (plain, corrected, truth)


def test_heads_by_atp_star_are_the_sum_of_query_key_and_value() -> None:
    with all_double():
        runs = double_runs("llama", 2)
        heads, q, k = (scored(node_scores(runs, kind, "atp*")) for kind in ("heads", "q", "k"))
        v = scored(node_scores(runs, "v", "eap"))
    groups = heads.unflatten(2, (2, 2)).sum(3)
    torch.testing.assert_close(groups, q.unflatten(2, (2, 2)).sum(3) + k + v, rtol=1e-6, atol=1e-9)


def test_one_key_ablated_is_what_the_softmax_gives() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, changed, slope = (torch.randn(3, 6, generator=generator, dtype=torch.float64) * f for f in (8, 8, 1))
    scores[1, 2] += 60  # saturated
    scores[2, 3:] = changed[2, 3:] = torch.finfo(torch.float64).min
    scores[0, 1:] = changed[0, 1:] = -torch.inf  # one key only
    found = one_key_ablated(scores, changed, slope)
    for row in range(3):
        for key in range(6):
            other = scores[row].clone()
            other[key] = changed[row, key]
            expected = ((scores[row].softmax(-1) - other.softmax(-1)) * slope[row]).sum()
            torch.testing.assert_close(found[row, key], expected, rtol=1e-9, atol=1e-12)
    single = one_key_ablated(scores.float(), changed.float(), slope.float())
    torch.testing.assert_close(single.double(), found, rtol=1e-4, atol=1e-6)


def test_keys_of_models_with_attention_sinks_are_refused() -> None:
    model = shared_model("gpt_oss")
    with pytest.raises(CircuitError, match="sink"):
        attribute_nodes(model, CLEAN, CORRUPT, ANSWERS, kind="k", method="atp*")
    assert attribute_nodes(model, CLEAN, CORRUPT, ANSWERS, kind="q", method="atp*").values.isfinite().all()


# --- positions, batches, families ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "method"),
    [(kind, "eap") for kind in KINDS]
    + [("heads", method) for method in NODE_METHODS if method != "eap"]
    + [("k", "atp*"), ("q", "atp*"), ("neurons", "conductance")],
)
def test_positions_sum_to_the_scores(kind: str, method: str) -> None:
    runs = plain_runs("llama", 3)
    whole, apart = node_scores(runs, kind, method), node_scores(runs, kind, method, by_position=True)
    assert apart.axes[:2] == ("layer", "pos")
    torch.testing.assert_close(apart.change.sum(2), whole.change, rtol=1e-6, atol=1e-8)
    assert float(apart.change[:, :, :3].abs().max()) == 0.0


@pytest.mark.parametrize(
    ("kind", "method"), [("heads", "eap-ig"), ("neurons", "conductance"), ("k", "atp*"), ("v", "eap")]
)
def test_batches_lengths_and_where_prompts_part_do_not_matter(kind: str, method: str) -> None:
    model = model_of("gpt2")
    clean = [CLEAN[0].tolist(), CLEAN[1, :6].tolist(), CLEAN[1].tolist()]
    corrupt = [CORRUPT[0].tolist(), CORRUPT[1, :6].tolist(), later(CLEAN, 4)[1].tolist()]
    answers = [*ANSWERS, ANSWERS[1]]
    together = attribute_nodes(model, clean, corrupt, answers, kind=kind, method=method).change
    small = attribute_nodes(model, clean, corrupt, answers, kind=kind, method=method, memory=1).change
    torch.testing.assert_close(small, together, rtol=1e-7, atol=1e-9)
    for n in range(3):
        alone = attribute_nodes(model, [clean[n]], [corrupt[n]], [answers[n]], kind=kind, method=method).change
        torch.testing.assert_close(together[n : n + 1], alone, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_attributed(family: str) -> None:
    model = shared_model(family)
    runs = runs_of(model, later(CLEAN, 3))
    nodes = [("heads", "eap"), ("q", "atp*")]
    nodes += [("k", "atp*")] if family not in SINKS else []
    nodes += [("neurons", "eap")] if runs.wiring.available("mlp_post") else []
    for kind, method in nodes:
        found = node_scores(runs, kind, method).change
        assert float(found.nan_to_num(0.0).abs().max()) > 0
        assert kind == "neurons" or bool(found.isfinite().all())


def test_half_precision_stays_near() -> None:
    exactly, near = (
        attribute_nodes(tiny_model("llama", dtype=dtype), CLEAN, later(CLEAN, 3), ANSWERS, method="eap-ig").mean
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert near.dtype == torch.float32
    assert float((near - exactly).norm() / exactly.norm()) < 0.1


@pytest.mark.parametrize("kind", ["heads", "neurons", "attn", "k"])
def test_ablation_by_zero_and_by_means_is_the_product_with_the_slope(kind: str) -> None:
    model, site = model_of("llama"), NODE_KINDS[kind]
    prompts = [row.tolist() for row in CORRUPT]
    reference = Reference.gather(model, prompts, sites=["embed", "z", "mlp_out", site])
    names = [f"{site}.{layer}" for layer in range(3)]
    here = run(model, CLEAN, read=names, logits="last", grad=True)
    target, foil = torch.tensor(ANSWERS).T
    value = (here.logits[torch.arange(2), -1, target] - here.logits[torch.arange(2), -1, foil]).sum()
    slopes = torch.autograd.grad(value, [here[name] for name in names])
    means = {"zero": [torch.zeros(())] * 3, "mean": [reference.mean(n) for n in names]}
    means["positional"] = [reference.positional_mean(n, 9) for n in names]
    for ablation, given in means.items():
        found = scored(attribute_nodes(model, CLEAN, CORRUPT, ANSWERS, kind=kind, ablation=ablation))  # type: ignore[arg-type]
        for layer, name in enumerate(names):
            expected = ((here[name].detach() - given[layer]) * slopes[layer]).sum(1)
            expected = expected if kind == "neurons" else expected.sum(-1)
            torch.testing.assert_close(found[:, layer], expected, rtol=1e-4, atol=1e-6)


def test_a_model_is_left_as_it_was() -> None:
    model = shared_model("gpt2")
    before = {name: x.clone() for name, x in model.state_dict().items()}
    hooks = [(dict(module._forward_hooks), dict(module._forward_pre_hooks)) for module in model.modules()]
    attribute_nodes(model, CLEAN, CORRUPT, ANSWERS, method="atp*")
    attribute_nodes(model, CLEAN, CORRUPT, ANSWERS, method="relp")
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert all(x.grad is None for x in model.parameters())
    assert hooks == [(module._forward_hooks, module._forward_pre_hooks) for module in model.modules()]


def test_what_cannot_be_attributed_is_refused() -> None:
    model = shared_model("gpt2")
    with pytest.raises(CircuitError, match="nodes are one of heads, mlps"):
        attribute_nodes(model, CLEAN, CORRUPT, ANSWERS, kind="layers")
    with pytest.raises(CircuitError, match="attribution of nodes is by one of eap"):
        attribute_nodes(model, CLEAN, CORRUPT, ANSWERS, method="magic")
    with pytest.raises(CircuitError, match="at least one step"):
        attribute_nodes(model, CLEAN, CORRUPT, ANSWERS, steps=0)
    with pytest.raises(MetricError, match="has no gradient"):
        attribute_nodes(model, CLEAN, CORRUPT, ANSWERS, metric="accuracy")
    with pytest.raises(PositionError, match="3 to 4 positions"):
        attribute_nodes(model, [[1, 2, 3], [1, 2, 3, 4]], [[1, 5, 3], [1, 5, 3, 4]], ANSWERS, by_position=True)
    with pytest.raises(SiteError, match="no single down projection"):
        attribute_nodes(shared_model("mixtral"), CLEAN, CORRUPT, ANSWERS, kind="neurons")


@pytest.mark.filterwarnings("default:.*not answered better")
def test_a_behaviour_that_is_not_there_is_told() -> None:
    model = model_of("gpt2")
    gap = difference(model, CLEAN) - difference(model, CORRUPT)
    answers = [pair if float(g) < 0 else pair[::-1] for pair, g in zip(ANSWERS, gap, strict=True)]
    with pytest.warns(InterpWarning, match="2 of 2 clean prompts are not answered better"):
        attribute_nodes(model, CLEAN, CORRUPT, answers)
