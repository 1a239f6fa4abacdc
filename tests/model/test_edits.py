"""Every edit against the same change made by hand: in the weights, in the inputs, or by a plain hook."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from interp_toolkit.errors import EditError, PositionError, RunError, SiteError, UnavailableSiteError, UnknownSiteError
from interp_toolkit.model import Edit, Site, Span, Tokens, run
from interp_toolkit.model.positions import Positions
from tiny import FAMILIES, REPRESENTATIVES, model_of, padded, tokens

IDS = tokens(2, 6)
SEQUENTIAL = [
    "apertus",
    "arcee",
    "bloom",
    "deepseek_v3",
    "ernie4_5",
    "exaone4",
    "falcon_alibi",
    "gemma",
    "gemma2",
    "gemma3_text",
    "glm",
    "glm4",
    "gpt2",
    "gpt_bigcode",
    "gpt_neo",
    "gpt_neox_sequential",
    "gpt_oss",
    "granite",
    "helium",
    "hunyuan_v1_dense",
    "llama",
    "llama4_text",
    "minicpm3",
    "mistral",
    "mixtral",
    "mpt",
    "nemotron",
    "olmo",
    "olmo2",
    "olmo3",
    "olmoe",
    "opt",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "seed_oss",
    "smollm3",
    "stablelm",
    "starcoder2",
]
# The module whose output is added to the residual stream, and what it is multiplied by.
WRITES = {
    "bloom": "self_attention.dense",
    "exaone4": "post_attention_layernorm",
    "falcon_alibi": "self_attention.dense",
    "gemma2": "post_attention_layernorm",
    "gemma3_text": "post_attention_layernorm",
    "glm4": "post_self_attn_layernorm",
    "gpt2": "attn.c_proj",
    "gpt_bigcode": "attn.c_proj",
    "gpt_neo": "attn.attention.out_proj",
    "gpt_neox_sequential": "attention.dense",
    "mpt": "attn.out_proj",
    "olmo2": "post_attention_layernorm",
    "olmo3": "post_attention_layernorm",
    "opt": "self_attn.out_proj",
}
MULTIPLIER = {"granite": 0.6, "minicpm3": 1.4 / 3**0.5}


def blocks_of(model: nn.Module) -> list[nn.Module]:
    number = model.config.num_hidden_layers
    return list(next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == number))


def random_like(x: Tensor, seed: int = 0) -> Tensor:
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def plain(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    logits: Tensor = model(ids, use_cache=False).logits
    return logits


@contextmanager
def output_changed(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    def hook(_: nn.Module, args: Any, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=1e-4)


# --- against weights edited by hand -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "path", "axis"),
    [
        ("gpt2", "transformer.h.1.attn.c_proj", 0),
        ("llama", "model.layers.1.self_attn.o_proj", 1),
        ("mistral", "model.layers.1.self_attn.o_proj", 1),
        ("opt", "model.decoder.layers.1.self_attn.out_proj", 1),
        ("gptj", "transformer.h.1.attn.out_proj", 1),
        ("bloom", "transformer.h.1.self_attention.dense", 1),
        ("falcon", "transformer.h.1.self_attention.dense", 1),
        ("gemma2", "model.layers.1.self_attn.o_proj", 1),
        ("granite", "model.layers.1.self_attn.o_proj", 1),
        ("minicpm3", "model.layers.1.self_attn.o_proj", 1),
    ],
)
@pytest.mark.parametrize("head", [0, 2])
def test_a_head_set_to_zero_is_its_part_of_the_output_projection_set_to_zero(
    name: str, path: str, axis: int, head: int
) -> None:
    model = model_of(name)
    other = copy.deepcopy(model)
    weight = other.get_submodule(path).weight.data
    weight.chunk(4, dim=axis)[head].zero_()
    expected = plain(other)
    assert (expected - plain(model)).abs().max() > 1e-3
    close(run(model, IDS, edits=[Edit.set(f"L1H{head}", 0.0)]).logits, expected)
    if name != "gemma2":  # behind a norm heads are not linear
        close(run(model, IDS, edits=[Edit.set(Site("head_out", 1, head), 0.0)]).logits, expected)


@pytest.mark.parametrize(
    ("name", "path", "axis"),
    [
        ("gpt2", "transformer.h.1.mlp.c_proj", 0),
        ("llama", "model.layers.1.mlp.down_proj", 1),
        ("opt", "model.decoder.layers.1.fc2", 1),
        ("bloom", "transformer.h.1.mlp.dense_4h_to_h", 1),
        ("mpt", "transformer.blocks.1.ffn.down_proj", 1),
        ("falcon", "transformer.h.1.mlp.dense_4h_to_h", 1),
        ("gptj", "transformer.h.1.mlp.fc_out", 1),
    ],
)
def test_a_neuron_set_to_zero_is_its_column_of_the_down_projection_set_to_zero(name: str, path: str, axis: int) -> None:
    model = model_of(name)
    other = copy.deepcopy(model)
    other.get_submodule(path).weight.data.select(axis, 5).zero_()
    expected = plain(other)
    assert (expected - plain(model)).abs().max() > 1e-4
    close(run(model, IDS, edits=[Edit.set("mlp_post.1.5", 0.0)]).logits, expected, 1e-5)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_values_keys_and_queries_are_edited_as_their_weights(implementation: str) -> None:
    model = model_of("llama", implementation)
    for component, path in (("v", "v_proj"), ("k", "k_proj"), ("q", "q_proj")):
        other = copy.deepcopy(model)
        rows = other.model.layers[1].self_attn.get_submodule(path).weight.data[8:16]
        rows *= -0.5  # rotary embedding is linear
        expected = plain(other)
        assert (expected - plain(model)).abs().max() > 1e-3
        close(run(model, IDS, edits=[Edit.scale(Site(component, 1, 1), -0.5)]).logits, expected)


def test_a_value_head_set_serves_its_whole_group_of_queries() -> None:
    model, value = model_of("llama"), torch.linspace(-1, 1, 8)

    def change(v: Tensor) -> Tensor:
        return torch.cat([v[..., :8], value.expand(*v.shape[:-1], 8)], dim=-1)

    with output_changed(model.model.layers[1].self_attn.v_proj, change):
        expected = plain(model)
    close(run(model, IDS, edits=[Edit.set("v.1.1", value)]).logits, expected)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt_neox", "falcon"])
def test_keys_without_length_make_uniform_attention(name: str) -> None:
    model = model_of(name)
    pattern = run(model, IDS, edits=[Edit.set("k.1", 0.0)], read="pattern.1")["pattern.1"]
    uniform = torch.ones(6, 6).tril()
    close(pattern, (uniform / uniform.sum(-1, keepdim=True)).expand_as(pattern), 1e-6)


# --- against plain hooks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "llama", "falcon", "gemma2", "bloom", "phi"])
def test_adding_to_the_residual_stream_is_adding_in_a_hook_of_the_block(name: str) -> None:
    model = model_of(name)
    vector = random_like(torch.empty(model.config.hidden_size))
    with output_changed(blocks_of(model)[1], lambda x: x + vector):
        expected = plain(model)
    close(run(model, IDS, edits=[Edit.add("resid_post.1", vector)]).logits, expected)
    close(run(model, IDS, edits=[Edit.add("resid_pre.2", vector)]).logits, expected)


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_resid_mid_set_is_attention_made_to_write_the_difference(name: str) -> None:
    model = model_of(name)
    before = run(model, IDS, read="resid_pre.1")["resid_pre.1"]
    value = random_like(before)
    wanted = (value - before) / MULTIPLIER.get(name, 1.0)
    writer = blocks_of(model)[1].get_submodule(WRITES.get(name, "self_attn.o_proj"))
    with output_changed(writer, lambda x: wanted.reshape(x.shape)):
        expected = plain(model)
    assert (expected - plain(model)).abs().max() > 1e-2
    result = run(model, IDS, edits=[Edit.set("resid_mid.1", value)], read="resid_mid.1", logits="all")
    close(result["resid_mid.1"], value)
    close(result.logits, expected, 1e-3)
    result = run(model, IDS, edits=[Edit.set("attn_out.1", value - before)], read="resid_mid.1", logits="all")
    close(result["resid_mid.1"], value)
    close(result.logits, expected, 1e-3)


# --- attention by hand ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "name", ["gpt2", "llama", "gemma2", "gpt_oss", "bloom", "falcon", "gpt_neo", "mpt", "deepseek_v3"]
)
def test_a_pattern_set_is_the_weights_with_which_values_are_summed(name: str, implementation: str) -> None:
    model = model_of(name, implementation)
    if implementation == "sdpa" and "sdpa" not in FAMILIES[name].implementations:
        pytest.skip("the family lacks it")
    base = run(model, IDS, read=["v.1", "z.1", "pattern.1"])
    rows = torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(0)).tril().softmax(-1).tril()
    result = run(model, IDS, edits=[Edit.set("pattern.1.2", rows)], read=["z.1", "pattern.1"], logits="all")
    pattern = base["pattern.1"].clone()
    pattern[:, 2] = rows
    close(result["pattern.1"], pattern, 1e-6)
    values = base["v.1"].repeat_interleave(4 // base["v.1"].shape[2], dim=2)
    close(result["z.1"], torch.einsum("bhqk,bkhd->bqhd", pattern, values))
    # The model goes on with it.
    close(result.logits, run(model, IDS, edits=[Edit.set("z.1", result["z.1"])]).logits)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "bloom", "falcon", "gpt_neo"])
def test_scores_edited_go_through_the_softmax(name: str) -> None:
    model = model_of(name)
    base = run(model, IDS, read=["scores.1", "v.1"])
    bonus = random_like(base["scores.1"]).tril()
    result = run(model, IDS, edits=[Edit.add("scores.1", bonus)], read=["pattern.1", "z.1"])
    expected = (base["scores.1"] + bonus).softmax(-1)
    close(result["pattern.1"], expected, 1e-5)
    values = base["v.1"].repeat_interleave(4 // base["v.1"].shape[2], dim=2)
    close(result["z.1"], torch.einsum("bhqk,bkhd->bqhd", expected, values))


@pytest.mark.parametrize("edit", [Edit.set("scores.1", 0.0), Edit.scale("scores.1", -1.0)], ids=str)
def test_edited_scores_show_nothing_that_attention_may_not_see(edit: Edit) -> None:
    pattern = run(model_of("llama"), IDS, edits=[edit], read="pattern.1")["pattern.1"]
    assert not pattern.triu(1).any()
    close(pattern.sum(-1), torch.ones(2, 4, 6), 1e-5)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_query_set_at_one_position_changes_only_that_row_of_the_pattern(implementation: str) -> None:
    model = model_of("llama", implementation)
    base = run(model, IDS, read=["q.1", "k.1", "pattern.1"])
    query = random_like(torch.empty(8))
    found = run(model, IDS, edits=[Edit.set("q.1.3", query, positions=4)], read="pattern.1")["pattern.1"]
    scores = torch.einsum("d,bkd->bk", query, base["k.1.1"]) / 8**0.5
    scores[:, 5] = -torch.inf
    expected = base["pattern.1"].clone()
    expected[:, 3, 4] = scores.softmax(-1)
    close(found, expected, 1e-6)


# --- operations, positions, rows --------------------------------------------------------------------------------------

VECTOR = torch.linspace(-1, 1, 32)
OPERATIONS: dict[str, tuple[Callable[..., Edit], Callable[[Tensor], Tensor]]] = {
    "set": (lambda **where: Edit.set("resid_pre.1", VECTOR, **where), VECTOR.expand_as),
    "add": (lambda **where: Edit.add("resid_pre.1", VECTOR, **where), lambda x: x + VECTOR),
    "scale": (lambda **where: Edit.scale("resid_pre.1", 0.25, **where), lambda x: 0.25 * x),
    "project_out": (
        lambda **where: Edit.project_out("resid_pre.1", VECTOR, **where),
        lambda x: x - torch.outer((x @ VECTOR).flatten() / (VECTOR @ VECTOR), VECTOR).view_as(x),
    ),
    "apply": (lambda **where: Edit.apply("resid_pre.1", torch.tanh, **where), torch.tanh),
}
LENGTHS = [4, 6, 5]
# What is selected in each of three rows of 4, 6 and 5 tokens.
POSITIONS: dict[str, tuple[Any, list[list[int]]]] = {
    "nothing given": (None, [[0, 1, 2, 3], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4]]),
    "all": ("all", [[0, 1, 2, 3], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4]]),
    "prompt": ("prompt", [[0, 1, 2, 3], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4]]),
    "last": ("last", [[3], [5], [4]]),
    "an int": (1, [[1]] * 3),
    "a negative int": (-2, [[2], [4], [3]]),
    "ints": ([0, 2], [[0, 2]] * 3),
    "mixed ints": ([0, -1], [[0, 3], [0, 5], [0, 4]]),
    "a slice": (slice(1, 3), [[1, 2]] * 3),
    "an open slice": (slice(-2, None), [[2, 3], [4, 5], [3, 4]]),
    "a stepped slice": (slice(None, None, 2), [[0, 2], [0, 2, 4], [0, 2, 4]]),
    "a list a row": ([[0], [5, 1], [-1]], [[0], [1, 5], [4]]),
    "an empty row": ([[0], [], [2]], [[0], [], [2]]),
}


def selected_columns(chosen: list[list[int]], side: str) -> Tensor:
    mask = torch.zeros(3, 6, dtype=torch.bool)
    for row, (length, indices) in enumerate(zip(LENGTHS, chosen, strict=True)):
        start = 6 - length if side == "left" else 0
        mask[row, [start + i for i in indices]] = True
    return mask


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("where", POSITIONS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_each_operation_changes_each_kind_of_positions_and_no_other(operation: str, where: str, side: str) -> None:
    ids, mask = padded(LENGTHS, side)
    inputs = {"input_ids": ids, "attention_mask": mask}
    model = model_of("llama")
    spec, chosen = POSITIONS[where]
    edit, by_hand = OPERATIONS[operation]
    base = run(model, inputs, read="resid_pre.1")["resid_pre.1"]
    found = run(model, inputs, read="resid_pre.1", edits=[edit(positions=spec)])["resid_pre.1"]
    expected = torch.where(selected_columns(chosen, side)[..., None], by_hand(base), base)
    close(found, expected, 1e-5)
    untouched = ~selected_columns(chosen, side)
    assert torch.equal(found[untouched], base[untouched])


@pytest.mark.parametrize("operation", OPERATIONS)
def test_rows_select_prompts_of_the_batch(operation: str) -> None:
    ids, mask = padded(LENGTHS, "left")
    inputs = {"input_ids": ids, "attention_mask": mask}
    model = model_of("llama")
    edit, by_hand = OPERATIONS[operation]
    base = run(model, inputs, read="resid_pre.1")["resid_pre.1"]
    for rows, chosen in (((1,), [1]), ((0, 2), [0, 2]), ((-1,), [2])):
        found = run(model, inputs, read="resid_pre.1", edits=[edit(rows=rows, positions="last")])["resid_pre.1"]
        expected = base.clone()
        expected[chosen, -1] = by_hand(base)[chosen, -1]
        close(found, expected, 1e-5)


def test_a_span_selects_the_tokens_of_its_text() -> None:
    model = model_of("llama")
    prompt = Tokens(
        ids=torch.tensor([[0, 10, 11, 12], [13, 10, 11, 14]]),
        mask=torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]),
        texts=("ab cd ef", "x ab cd y"),
        offsets=(((0, 2), (2, 5), (5, 8)), ((0, 1), (1, 4), (4, 7), (7, 9))),
    )
    base = run(model, prompt, read="resid_pre.1")["resid_pre.1"]
    for span, chosen in ((Span("cd"), [(0, 2), (1, 2)]), (Span("ab cd", token=-1), [(0, 2), (1, 2)])):
        found = run(model, prompt, read="resid_pre.1", edits=[Edit.scale("resid_pre.1", 2.0, positions=span)])
        expected = base.clone()
        for row, column in chosen:
            expected[row, column] *= 2
        close(found["resid_pre.1"], expected, 1e-6)


def test_project_out_takes_out_a_whole_subspace_even_if_its_directions_are_not_orthogonal() -> None:
    model = model_of("llama")
    directions = random_like(torch.empty(3, 32))
    directions[2] = directions[0] + directions[1]  # dependent
    found = run(model, IDS, read="resid_pre.1", edits=[Edit.project_out("resid_pre.1", directions)])["resid_pre.1"]
    base = run(model, IDS, read="resid_pre.1")["resid_pre.1"]
    projector = torch.linalg.pinv(directions.double()) @ directions.double()
    close(found.double(), base.double() - base.double() @ projector, 1e-5)


@pytest.mark.parametrize("site", ["logits", "resid_pre.1"])
def test_a_value_of_many_positions_serves_the_positions_whose_logits_are_computed(site: str) -> None:
    model = model_of("llama")
    value = random_like(run(model, IDS, read=site)[site][0])
    edits = [Edit.set(site, value)]
    every = run(model, IDS, edits=edits, logits="all").logits
    close(run(model, IDS, edits=edits, logits="last").logits[:, 0], every[:, -1])
    close(run(model, IDS, edits=edits, logits=[1, 4]).logits, every[:, [1, 4]])


def test_a_function_that_works_in_place_changes_only_the_selected_positions() -> None:
    model = model_of("llama")
    base = run(model, IDS, read="resid_pre.1")["resid_pre.1"]
    edit = Edit.apply("resid_pre.1", lambda x: x.mul_(2), positions="last")
    found = run(model, IDS, read="resid_pre.1", edits=[edit])["resid_pre.1"]
    assert torch.equal(found[:, :-1], base[:, :-1])
    close(found[:, -1], 2 * base[:, -1])


def test_edits_of_one_site_act_in_the_order_given() -> None:
    model = model_of("llama")
    base = run(model, IDS, read="resid_pre.1")["resid_pre.1"]
    add, scale = Edit.add("resid_pre.1", 1.0), Edit.scale("resid_pre.1", 2.0)
    close(run(model, IDS, read="resid_pre.1", edits=[add, scale])["resid_pre.1"], (base + 1) * 2, 1e-5)
    close(run(model, IDS, read="resid_pre.1", edits=[scale, add])["resid_pre.1"], base * 2 + 1, 1e-5)


EVERY_SITE = [
    "embed",
    "resid_pre.1",
    "q.1",
    "k.1",
    "v.1",
    "pattern.1",
    "scores.1",
    "z.1",
    "head_out.1",
    "attn_out.1",
    "mlp_post.1",
    "mlp_out.1",
    "resid_post.1",
    "final_norm",
    "logits",
]


@pytest.mark.parametrize("where", [-1, [0, 2], "all"], ids=str)
@pytest.mark.parametrize("name", ["gpt2", "llama", "falcon", "bloom", "gpt_neo", "gemma2", "opt", "mistral"])
def test_an_edit_in_a_padded_batch_is_the_edit_of_the_prompt_alone(name: str, where: Any) -> None:
    model = model_of(name)
    prompt = padded(LENGTHS, "right")[0][0, : LENGTHS[0]]
    for site in EVERY_SITE:
        edits = [Edit.scale(site, 0.3, positions=where)]
        alone = run(model, prompt, edits=edits).logits
        for side in ("left", "right"):
            ids, mask = padded(LENGTHS, side)
            batch = run(model, {"input_ids": ids, "attention_mask": mask}, edits=edits).logits
            close(batch[0][mask[0].bool()], alone[0], 2e-4)


@pytest.mark.parametrize("site", EVERY_SITE)
@pytest.mark.parametrize("name", ["gpt2", "gptj"])
def test_a_reading_set_in_its_own_run_changes_nothing(name: str, site: str) -> None:
    model = model_of(name)
    base = run(model, IDS, read=site, logits="all")
    close(run(model, IDS, edits=[Edit.set(site, base[site])]).logits, base.logits, 2e-5)


def test_readings_are_taken_after_edits_and_clean_of_what_comes_later() -> None:
    model = model_of("falcon")  # its block adds in place
    for site in ("attn_out.1", "mlp_out.1", "resid_post.0"):
        alone = run(model, IDS, read=site)[site]
        close(run(model, IDS, read=site, logits="all")[site], alone, 0.0)
        assert (run(model, IDS, read=site, edits=[Edit.set(site, 2.0)], logits="all")[site] == 2.0).all()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in REPRESENTATIVES else pytest.mark.slow) for name in FAMILIES]
)
def test_values_of_the_caller_are_never_modified(name: str) -> None:
    model = model_of(name)
    sites = ["resid_pre.1", "attn_out.1", "mlp_out.1", "resid_post.0", "embed", "final_norm", "z.1"]
    values = {site: random_like(x) for site, x in run(model, IDS, read=sites).items()}
    kept = {site: value.clone() for site, value in values.items()}
    for site, value in values.items():
        run(model, IDS, edits=[Edit.set(site, value)])
        run(model, IDS, edits=[Edit.apply(site, lambda x, value=value: value)])
    assert all(torch.equal(values[site], kept[site]) for site in values)


@pytest.mark.parametrize("site", EVERY_SITE)
def test_bfloat16_stays_bfloat16(site: str) -> None:
    model = bfloat16_model()
    before = run(model, IDS, read=site)[site]
    # This model's softmax is computed in float32.
    assert before.dtype == (torch.float32 if site.startswith("pattern") else torch.bfloat16)
    for edit in (
        Edit.add(site, 0.5),
        Edit.set(site, torch.ones(before.shape[-1], dtype=torch.float64)),
        Edit.apply(site, lambda x: x.double() / 2),
        *([] if site.startswith("scores") else [Edit.project_out(site, torch.ones(before.shape[-1]))]),
    ):
        result = run(model, IDS, edits=[edit], read=site, logits="all")
        assert result[site].dtype == before.dtype
        assert result.logits.dtype == torch.bfloat16
        assert result.logits.isfinite().all()


@cache
def bfloat16_model() -> nn.Module:
    return model_of("llama", dtype=torch.bfloat16)


def test_adding_in_bfloat16_rounds_once() -> None:
    model = bfloat16_model()
    base = run(model, IDS, read="resid_pre.1")["resid_pre.1"]
    small = torch.full((32,), 1.001)
    found = run(model, IDS, read="resid_pre.1", edits=[Edit.add("resid_pre.1", small)])["resid_pre.1"]
    assert torch.equal(found, (base.float() + small).bfloat16())


# --- what is refused, and in which words ------------------------------------------------------------------------------


def returns_none(x: Tensor) -> Any:
    del x


MESSAGES: list[tuple[Callable[[], Edit], type[Exception], str]] = [
    (
        lambda: Edit.set("resid_pre.1", torch.zeros(31)),
        EditError,
        r"shape \(31,\), which does not fit the site's shape \(2, 6, 32\)",
    ),
    (lambda: Edit.set("z.1", torch.zeros(3, 8)), EditError, r"\(batch, pos, head, d_head\)"),
    (lambda: Edit.set("resid_pre.1", torch.zeros(1, 2, 6, 32)), EditError, "does not fit"),
    (lambda: Edit.set("resid_pre.1", torch.zeros(3, 32)), EditError, "has 3 positions, but the prompts have 6"),
    (lambda: Edit.set("resid_pre.1", torch.zeros(2, 9, 32)), EditError, "has 9 positions, but the prompts have 6"),
    (lambda: Edit.project_out("resid_pre.1", torch.ones(31)), EditError, "the direction has 31 entries, the site 32"),
    (lambda: Edit.project_out("resid_pre.1", torch.zeros(32)), EditError, "finite and not zero"),
    (lambda: Edit.set("resid_pre.1", "no"), EditError, "a tensor or a number, not str"),
    (lambda: Edit.apply("resid_pre.1", 3), EditError, "needs a function of a tensor, not int"),
    (lambda: Edit.apply("resid_pre.1", returns_none), EditError, "returned NoneType, not a tensor"),
    (
        lambda: Edit.apply("resid_pre.1", lambda x: x[:, :1]),
        EditError,
        r"returned shape \(2, 1, 32\), but was given \(2, 6, 32\)",
    ),
    (lambda: Edit.set("residpre.1", 0.0), UnknownSiteError, "did you mean 'resid_pre'"),
    (lambda: Edit.set("resid_pre.9", 0.0), SiteError, "asks for layer 9, but the model has 3 layers: 0 to 2"),
    (lambda: Edit.set("resid_pre.-4", 0.0), SiteError, "-3 to -1 from the end"),
    (lambda: Edit.set("L1H4", 0.0), UnavailableSiteError, "asks for head 4, but there are 4: 0 to 3"),
    (lambda: Edit.set("v.1.2", 0.0), UnavailableSiteError, "asks for kv_head 2, but there are 2: 0 to 1"),
    (lambda: Edit.set("mlp_post.1.48", 0.0), UnavailableSiteError, "asks for d_mlp 48, but there are 48"),
    (
        lambda: Edit.set("resid_pre.1", 0.0, positions=6),
        PositionError,
        "position 6 is outside of prompt 0, which has 6 tokens",
    ),
    (lambda: Edit.set("resid_pre.1", 0.0, positions=[0, -7]), PositionError, "position -7 is outside"),
    (
        lambda: Edit.set("resid_pre.1", 0.0, positions=[[0]]),
        PositionError,
        "positions for 1 rows were given, but the batch has 2",
    ),
    (lambda: Edit.set("resid_pre.1", 0.0, positions=[[0], [8]]), PositionError, "outside of prompt 1"),
    (lambda: Edit.set("resid_pre.1", 0.0, positions=Span("x")), PositionError, "give the prompt as text"),
    (
        lambda: Edit.set("resid_pre.1", 0.0, rows=[2]),
        EditError,
        "names rows that are not in the batch: it has 2, 0 to 1",
    ),
    (lambda: Edit.set("resid_pre.1", 0.0, positions="generated"), EditError, "never fired"),
    (lambda: Edit.set("resid_pre.1", 0.0, positions=slice(9, 12)), EditError, "never fired"),
    (lambda: Edit.set("resid_pre.1", 0.0, rows=[]), EditError, "never fired"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("make", "error", "words"), MESSAGES, ids=[words for _, _, words in MESSAGES])
def test_wrong_edits_are_refused_in_clear_words(make: Callable[[], Edit], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        run(model_of("llama"), IDS, edits=[make()])


def test_a_refused_site_cannot_be_edited_and_the_reason_is_shown() -> None:
    with pytest.raises(
        UnavailableSiteError,
        match=r"resid_mid\.1 is not available in this gptj model: attention and MLP run in parallel",
    ):
        run(model_of("gptj"), IDS, edits=[Edit.set("resid_mid.1", 0.0)])
    with pytest.raises(UnavailableSiteError, match="mixture of experts"):
        run(model_of("mixtral"), IDS, edits=[Edit.set("mlp_post.1", 0.0)])


def test_an_edit_behind_the_deepest_reading_is_refused() -> None:
    with pytest.raises(RunError, match=r"stops after its deepest reading, before Edit\(set mlp_out.1 at all\)"):
        run(model_of("llama"), IDS, read="attn_out.1", edits=[Edit.set("mlp_out.1", 0.0)])
    run(model_of("llama"), IDS, read="attn_out.1", edits=[Edit.set("mlp_out.1", 0.0)], logits="last")


@pytest.mark.usefixtures("unchecked")
def test_something_else_than_an_edit_is_refused() -> None:
    with pytest.raises(EditError, match=r"made by Edit\.set, add, scale, project_out or apply; this is a tuple"):
        run(model_of("llama"), IDS, edits=[("resid_pre.1", 0.0)])


def test_an_edit_says_what_it_does() -> None:
    assert repr(Edit.set("L5H1", 0.0, positions="last")) == "Edit(set z.5.1 at last)"
    assert repr(Edit.add("mlp.2", 1.0, rows=[0, 1])) == "Edit(add mlp_out.2 at all rows [0, 1])"


def test_positions_of_ones_own_work() -> None:
    class Even(Positions):
        def select(self, index: Tensor, length: Tensor) -> Tensor:
            return (index >= 0) & (index % 2 == 0)

    model = model_of("llama")
    found = run(model, IDS, edits=[Edit.set("resid_pre.1", 0.0, positions=Even())], read="resid_pre.1")["resid_pre.1"]
    assert not found[:, ::2].any()
    assert found[:, 1::2].all()
