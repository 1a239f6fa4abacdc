"""The plain circuit runs are what they claim to be: at their ends they are the model itself."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from circuits.brute_edges import (
    NAMES,
    Run,
    ablations,
    all_double,
    circuit_logits,
    double_model,
    edge_gradients,
    edge_scores_exact,
    finite_difference,
    logit_difference,
    patterns_of,
    shape_of,
)
from tiny import tokens

FAMILIES = sorted(NAMES)
CLEAN, CORRUPT = tokens(2), tokens(2, seed=1)
ANSWERS = torch.tensor([[5, 9], [20, 7]])
model_of = cache(double_model)


def logits_of(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(ids).logits[:, -1]
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_with_all_edges_it_is_the_clean_run_and_without_any_the_corrupt_one(family: str) -> None:
    model = model_of(family)
    valid = shape_of(model, family).valid
    with all_double():
        full, empty = (circuit_logits(model, family, CLEAN, CORRUPT, mask) for mask in (valid, torch.zeros_like(valid)))
        some = circuit_logits(model, family, CLEAN, CORRUPT, valid & (torch.arange(len(valid)) % 2 == 0)[:, None])
        clean, corrupt = logits_of(model, CLEAN), logits_of(model, CORRUPT)
    torch.testing.assert_close(full, clean, atol=1e-10, rtol=0)
    torch.testing.assert_close(empty, corrupt, atol=1e-10, rtol=0)
    assert min(float((some - end).abs().max()) for end in (clean, corrupt)) > 0.1


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("gemma2", "olmo2")])
def test_without_help_it_is_the_model_too(family: str) -> None:
    # Eager attention (Gemma 2) and norms behind it are rounded to single precision in the model.
    model = model_of(family)
    full = circuit_logits(model, family, CLEAN, CORRUPT, shape_of(model, family).valid)
    torch.testing.assert_close(full, logits_of(model, CLEAN), atol=1e-10, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_finite_differences(family: str) -> None:
    model = model_of(family)
    edges = shape_of(model, family).edges[::7]
    with all_double():
        slope = finite_difference(model, family, CLEAN, CORRUPT, ANSWERS, edges=edges)
        gradient = edge_gradients(model, family, CLEAN, CORRUPT, ANSWERS)
    for source, dest in edges:
        torch.testing.assert_close(-slope[:, source, dest], gradient[:, source, dest], rtol=1e-6, atol=1e-9)
    assert float(slope.abs().max()) > 0.01


def test_gradients_part_of_the_way_add_up_to_the_whole_difference() -> None:
    model = model_of("gpt2")
    nodes, weights = np.polynomial.legendre.leggauss(12)
    with all_double():
        parts = [
            float(weight) / 2 * edge_gradients(model, "gpt2", CLEAN, CORRUPT, ANSWERS, at=float(node + 1) / 2)
            for node, weight in zip(nodes, weights, strict=True)
        ]
        ends = [logit_difference(logits_of(model, ids), ANSWERS) for ids in (CLEAN, CORRUPT)]
    torch.testing.assert_close(torch.stack(parts).sum(0)[:, 0].sum(-1), ends[0] - ends[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_a_score_is_the_difference_of_two_runs(family: str) -> None:
    model = model_of(family)
    shape = shape_of(model, family)
    edges = shape.edges[3::29]
    found = edge_scores_exact(model, family, CLEAN, CORRUPT, ANSWERS, edges=edges, rows=6)
    clean = logit_difference(logits_of(model, CLEAN), ANSWERS)
    for source, dest in edges:
        mask = shape.valid.clone()
        mask[source, dest] = False
        without = logit_difference(circuit_logits(model, family, CLEAN, CORRUPT, mask), ANSWERS)
        torch.testing.assert_close(found[:, source, dest], clean - without, atol=1e-12, rtol=0)
    assert float(found.abs().max()) > 0.01


def test_what_an_edge_carries_can_be_checked_by_hand() -> None:
    # The edge from the embedding to the logits: in GPT-2 without anything else it is all that the final norm reads.
    model = model_of("gpt2")
    shape = shape_of(model, "gpt2")
    alone = shape.mask(["embed->logits"])
    found = circuit_logits(model, "gpt2", CLEAN, torch.zeros(len(shape.sources), 2, 9, 32).double(), alone)
    with torch.no_grad():
        body = model.transformer
        stream = body.wte(CLEAN) + body.wpe(torch.arange(9)) + sum(block.attn.c_proj.bias for block in body.h)
        torch.testing.assert_close(found, model.lm_head(body.ln_f(stream))[:, -1], atol=1e-12, rtol=0)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_ablating_all_of_one_head_is_setting_what_its_projection_reads(family: str) -> None:
    model = model_of(family)
    shape = shape_of(model, family)
    block = model.transformer.h[1].attn.c_proj if family == "gpt2" else model.model.layers[1].self_attn.o_proj
    seen = []
    with block.register_forward_pre_hook(lambda _m, args: seen.append(args[0])):
        logits_of(model, CORRUPT)

    def swapped(_module: Any, args: tuple[Tensor]) -> tuple[Tensor]:
        new = args[0].clone()
        new[..., 8:16] = seen[0][..., 8:16]
        return (new,)

    with block.register_forward_pre_hook(swapped):
        wanted = logits_of(model, CLEAN)
    mask = shape.valid.clone()
    mask[shape.source(1, 1)] = False
    torch.testing.assert_close(circuit_logits(model, family, CLEAN, CORRUPT, mask), wanted, atol=1e-10, rtol=0)


@pytest.mark.parametrize(("family", "kind"), [("gpt2", "zero"), ("llama", "mean"), ("gemma2", "positional")])
def test_other_ablations_have_their_own_empty_circuit(family: str, kind: str) -> None:
    model, reference = model_of(family), tokens(5, seed=3)
    shape = shape_of(model, family)
    values = ablations(model, family, reference, kind)
    empty = circuit_logits(model, family, CLEAN, values, torch.zeros_like(shape.valid))
    torch.testing.assert_close(empty[0], empty[1])  # nothing of the prompts is left
    rows = ablations(model, family, reference)
    if kind == "zero":
        stream = sum(block.attn.c_proj.bias for block in model.transformer.h)
        torch.testing.assert_close(empty[0], model.lm_head(model.transformer.ln_f(stream)))
    elif kind == "mean":
        stream = rows.sum(0).mean((0, 1))
        torch.testing.assert_close(empty[0], model.lm_head(model.model.norm(stream)))
    else:
        stream = rows.sum(0).mean(0)[-1]
        capped = torch.tanh(model.lm_head(model.model.norm(stream)) / 3) * 3
        torch.testing.assert_close(empty[0], capped)


def test_only_with_a_joint_norm_a_head_feels_what_enters_another() -> None:
    model = model_of("olmo2")
    shape = shape_of(model, "olmo2")
    mask = shape.valid.clone()
    mask[0, shape.dest(2, "q", 0)] = False
    full = patterns_of(model, "olmo2", CLEAN)[2]
    for joint in (False, True):
        with torch.no_grad():
            run = Run(model, "olmo2", CLEAN, mask, ablations(model, "olmo2", CORRUPT), joint_norm=joint)
        moved = [float((run.patterns[2, head] - full[head]).abs().max()) for head in range(4)]
        assert moved[0] > 1e-3
        assert (max(moved[1:]) > 1e-3) == joint


@pytest.mark.parametrize("family", ["phi3", "gemma2", "gpt2"])
def test_patterns_are_the_models(family: str) -> None:
    model = double_model(family, attn_implementation="eager")
    with torch.no_grad():
        wanted = torch.stack(model(CLEAN, output_attentions=True).attentions)
    torch.testing.assert_close(patterns_of(model, family, CLEAN), wanted.transpose(1, 2), atol=1e-6, rtol=0)


def test_edges_are_counted_and_named_as_agreed() -> None:
    shape = shape_of(model_of("llama"), "llama")
    assert shape.name(*shape.edge("L0H1->L2KV0.k")) == "L0H1->L2KV0.k"
    assert shape.dests[8:12] == ["L0MLP", "L1H0.q", "L1H1.q", "L1H2.q"]
    assert shape.sources[:7] == ["embed", "L0H0", "L0H1", "L0H2", "L0H3", "L0MLP", "L1H0"]
    assert int(shape.valid.sum()) == len(shape.edges) == 190
    parallel = shape_of(model_of("gpt_neox"), "gpt_neox")
    assert not parallel.valid[parallel.edge("L0H1->L0MLP")]
    assert "L1H2.k" in parallel.dests
