"""Attribution of edges, against derivatives and sums that must hold."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from circuits.brute_edges import all_double, double_model, edge_gradients, logit_difference
from circuits.test_subgraph import ANSWERS, CLEAN, COMPARED, CORRUPT, later, runs_of
from interp_toolkit.circuits.attribution import ATTRIBUTIONS, attribute, attribute_edges
from interp_toolkit.circuits.dataset import prepare_pairs
from interp_toolkit.circuits.metrics import metric_of
from interp_toolkit.circuits.node_attribution import attribute_nodes
from interp_toolkit.circuits.subgraph import CircuitRuns
from interp_toolkit.errors import CircuitError, MetricError
from interp_toolkit.model import Edit, run
from tiny import tiny_model, tokens

model_of: Any = cache(double_model)
KINDS = ["gpt2", "llama", "gpt_neox", "gemma2", "mixtral"]
"""LayerNorm and fused projections; grouped queries; parallel blocks; norms behind and a soft cap; experts."""


@cache
def smooth(family: str) -> Any:
    """The model of a family; of its experts all are used, as a choice of some is no smooth function of what is read."""
    model = double_model(family)
    for module in model.modules():
        if hasattr(module, "top_k"):
            module.top_k = model.config.num_local_experts
    return model


@pytest.mark.parametrize("family", COMPARED)
def test_eap_is_the_derivative_of_moving_each_edge(family: str) -> None:
    model = model_of(family)
    with all_double():
        found = attribute(runs_of(model), "eap").prompts
        expected = edge_gradients(model, family, CLEAN, CORRUPT, torch.tensor(ANSWERS))
    assert found is not None
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_clean_corrupt_is_the_mean_of_both_ends(family: str) -> None:
    model = model_of(family)
    runs = runs_of(model)
    found = attribute(runs, "clean-corrupt").values
    ends = [edge_gradients(model, family, CLEAN, CORRUPT, torch.tensor(ANSWERS)).mean(0)]
    # The slope at the corrupt run, where the clean one stands for what is left out, has the other sign.
    ends.append(-edge_gradients(model, family, CORRUPT, CLEAN, torch.tensor(ANSWERS)).mean(0))
    torch.testing.assert_close(found.double(), sum(ends) / 2, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", KINDS)
def test_integrated_gradients_out_of_the_embedding_sum_to_the_whole_difference(family: str) -> None:
    with all_double():
        runs = runs_of(smooth(family), later(CLEAN, 5))
        found = float(attribute(runs, "eap-ig", steps=48).values[0].sum())
    gap = float((runs.clean - runs.corrupt).mean())
    assert abs(found - gap) <= 0.01 * abs(gap) + 1e-3


@pytest.mark.parametrize("family", KINDS)
def test_conductance_is_conserved_at_every_cut(family: str) -> None:
    with all_double():
        runs = runs_of(smooth(family), later(CLEAN, 5))
        values = attribute(runs, "conductance", steps=60).values.double()
    graph = runs.graph
    gap = float((runs.clean - runs.corrupt).mean())
    for layer in range(graph.num_layers + 1):
        # Edges from in front of a layer to it and behind: all that crosses the cut in front of the layer.
        sources, dests = 1 + layer * (graph.num_heads + 1), layer * graph.dests_per_layer
        assert abs(float(values[:sources, dests:].sum()) - gap) <= 0.01 * abs(gap) + 1e-3


def test_scores_of_a_group_are_those_of_its_heads_together() -> None:
    # The same model with keys and values repeated for every head has one destination for each.
    grouped = tiny_model("llama", dtype=torch.float64)
    config = type(grouped.config)(**(grouped.config.to_dict() | {"num_key_value_heads": 4}))
    with torch.random.fork_rng(devices=[]):
        plain = type(grouped)(config).double().eval()
    state = {
        name: x.view(2, 1, 8, -1).expand(2, 2, 8, -1).reshape(32, -1) if "k_proj" in name or "v_proj" in name else x
        for name, x in grouped.state_dict().items()
    }
    plain.load_state_dict(state)
    few, many = (attribute(runs_of(model), "eap-ig") for model in (grouped, plain))
    for layer in range(3):
        for name in "kv":
            for group in range(2):
                here = few.values[:, few.graph.dest_index(f"L{layer}KV{group}.{name}")]
                there = [many.graph.dest_index(f"L{layer}H{2 * group + n}.{name}") for n in range(2)]
                torch.testing.assert_close(here, many.values[:, there].sum(1), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", ATTRIBUTIONS)
def test_positions_sum_to_the_scores_and_prompts_average_to_them(method: str) -> None:
    runs = runs_of(model_of("llama"), later(CLEAN, 3))
    whole, apart = attribute(runs, method), attribute(runs, method, by_position=True)
    assert apart.by_position is not None
    assert whole.prompts is not None
    torch.testing.assert_close(apart.by_position.sum(0).float(), whole.values, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(whole.prompts.mean(0), whole.values, rtol=1e-4, atol=1e-6)
    assert float(apart.by_position[:3].abs().max()) == 0.0


def test_batches_and_lengths_do_not_change_scores() -> None:
    model = model_of("gpt2")
    clean, corrupt = [CLEAN[0].tolist(), CLEAN[1, :6].tolist()], [CORRUPT[0].tolist(), CORRUPT[1, :6].tolist()]
    both = attribute_edges(model, clean, corrupt, ANSWERS).prompts
    assert both is not None
    for n in range(2):
        alone = attribute_edges(model, [clean[n]], [corrupt[n]], [ANSWERS[n]]).values
        torch.testing.assert_close(both[n], alone, rtol=1e-5, atol=1e-7)


def test_along_activations_the_last_sublayer_gets_the_true_effect_of_its_only_edge() -> None:
    # The last MLP has one edge, to the logits: along the line between its two outputs, the integral is exact.
    runs = runs_of(model_of("llama"))
    graph = runs.graph
    edge = graph.edge_of("L2MLP->logits")
    mask = graph.valid.clone()
    mask[edge] = False
    exact = float((runs.clean - runs.measure(mask[None])[0]).mean())
    found = float(attribute(runs, "eap-ig-activations", steps=8).values[edge])
    assert found == pytest.approx(exact, rel=1e-4)


def test_with_means_the_line_begins_at_the_mean_embedding() -> None:
    model = model_of("llama")
    runs = runs_of(model, ablation="mean")
    reference = runs.ablation.reference
    assert reference is not None
    mean = reference.mean("embed").expand(2, 9, -1)
    logits = run(model, CLEAN, edits=[Edit.set("embed", mean)], logits="last").logits
    gap = float((runs.clean - logit_difference(logits[:, -1], torch.tensor(ANSWERS))).mean())
    assert float(attribute(runs, "eap-ig", steps=32).values[0].sum()) == pytest.approx(gap, rel=0.02)


def test_what_cannot_be_attributed_is_refused() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(CircuitError, match="attribution is by one of eap"):
        attribute_edges(model, CLEAN, CORRUPT, ANSWERS, method="magic")
    with pytest.raises(CircuitError, match="at least one step"):
        attribute_edges(model, CLEAN, CORRUPT, ANSWERS, steps=0)
    with pytest.raises(MetricError, match="has no gradient"):
        attribute_edges(model, CLEAN, CORRUPT, ANSWERS, metric="accuracy")
    pairs = prepare_pairs(model, [[1, 2, 3], [1, 2, 3, 4]], [[1, 5, 3], [1, 5, 3, 4]], ANSWERS)
    with pytest.raises(CircuitError, match="one length"):
        attribute(CircuitRuns(model, pairs, metric_of("logit_diff")), "eap", by_position=True)


@pytest.mark.parametrize("method", ["clean-corrupt", "conductance"])
def test_slopes_at_an_embedding_of_zero_are_refused(method: str) -> None:
    model = tiny_model("llama")
    clean, corrupt = tokens(2), tokens(2, seed=1)
    for score in (attribute_edges, attribute_nodes):
        with pytest.raises(CircuitError, match=f"{method} takes a slope where the whole embedding is ablated"):
            score(model, clean, corrupt, (5, 9), method=method, ablation="zero")
    assert attribute_edges(model, clean, corrupt, (5, 9), ablation="zero").values.isfinite().all()
