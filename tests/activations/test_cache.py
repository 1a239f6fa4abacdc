"""The activation cache against the model's own outputs, plain hooks and hand computation."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from interp_toolkit import ActivationCache, Activations
from interp_toolkit.errors import (
    FileFormatError,
    InterpError,
    PositionError,
    RunError,
    SiteError,
    TokenError,
    UnavailableSiteError,
    UnknownSiteError,
)
from tiny import model_of, padded, tokens

IDS = tokens(1)[0].tolist()
LENGTHS = [9, 6, 3]
WORDS = "The capital of France is"

# Where plain hooks find things, written by hand: list of blocks; in a block what attention adds (output), the output
# projection (its input is z), what the MLP adds (output), the down projection (its input is the neurons); final norm.
PLACES = {
    "llama": ("model.layers", "self_attn", "self_attn.o_proj", "mlp", "mlp.down_proj", "model.norm"),
    "gpt2": ("transformer.h", "attn", "attn.c_proj", "mlp", "mlp.c_proj", "transformer.ln_f"),
    "gpt_neox": (
        "gpt_neox.layers",
        "attention",
        "attention.dense",
        "mlp",
        "mlp.dense_4h_to_h",
        "gpt_neox.final_layer_norm",
    ),
    "gemma2": (
        "model.layers",
        "post_attention_layernorm",
        "self_attn.o_proj",
        "post_feedforward_layernorm",
        "mlp.down_proj",
        "model.norm",
    ),
    "bloom": (
        "transformer.h",
        "self_attention.dense",
        "self_attention.dense",
        "mlp.dense_4h_to_h",
        "mlp.dense_4h_to_h",
        "transformer.ln_f",
    ),
    "qwen3": ("model.layers", "self_attn", "self_attn.o_proj", "mlp", "mlp.down_proj", "model.norm"),
}
PARALLEL = {"gpt_neox"}
EVERY = pytest.mark.parametrize("name", list(PLACES))
LAZY = ["llama", "gpt2", "gemma2", "bloom", "gpt_oss", "gpt_neo"]


def eager_of(name: str) -> PreTrainedModel:
    model: PreTrainedModel = model_of(name, "eager")
    return model


def blocks_of(model: nn.Module) -> list[nn.Module]:
    number = model.config.num_hidden_layers
    return list(next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == number))


def called(model: nn.Module, ids: Tensor, **more: Any) -> Any:
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False, **more)


def first_of(x: Any) -> Tensor:
    return (x[0] if isinstance(x, tuple) else x).detach().clone()


def hooked(name: str, ids: Tensor) -> dict[str, Tensor]:
    """What plain hooks see at the places written above."""
    model, found, handles = model_of(name), {}, []
    blocks_path, attn, projection, mlp, down, norm = PLACES[name]

    def inputs(key: str, module: nn.Module) -> None:
        def see(_: nn.Module, args: Any, kwargs: Any) -> None:
            found[key] = first_of(args[0] if args else kwargs["hidden_states"])

        handles.append(module.register_forward_pre_hook(see, with_kwargs=True))

    def outputs(key: str, module: nn.Module) -> None:
        handles.append(module.register_forward_hook(lambda m, a, out: found.__setitem__(key, first_of(out))))

    for n, block in enumerate(model.get_submodule(blocks_path)):
        inputs(f"pre.{n}", block)
        outputs(f"post.{n}", block)
        outputs(f"attn.{n}", block.get_submodule(attn))
        inputs(f"z.{n}", block.get_submodule(projection))
        outputs(f"mlp.{n}", block.get_submodule(mlp))
        inputs(f"neurons.{n}", block.get_submodule(down))
    outputs("norm", model.get_submodule(norm))
    try:
        found["logits"] = called(model, ids).logits
    finally:
        for handle in handles:
            handle.remove()
    return found


@contextmanager
def counted(model: nn.Module) -> Iterator[list[str]]:
    """The names of blocks, and of the model, each time they are called."""
    seen: list[str] = []
    watched = [("model", model), *((f"block {n}", b) for n, b in enumerate(blocks_of(model)))]
    handles = [m.register_forward_pre_hook(lambda _m, _a, w=w: seen.append(w)) for w, m in watched]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert actual.shape == expected.shape
    size = float(expected.abs().max().clamp_min(1.0))
    torch.testing.assert_close(actual, expected, atol=tolerance * size, rtol=0)


def batch_of(side: str) -> dict[str, Tensor]:
    ids, mask = padded(LENGTHS, side)
    return {"input_ids": ids, "attention_mask": mask}


# --- the promised calls -------------------------------------------------------------------------------------------


def test_the_promised_calls_run_as_printed(demo: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    model, tokenizer = demo
    cache = ActivationCache(model)
    activations = cache.run("The capital of France is")
    ids = torch.tensor([tokenizer("The capital of France is")["input_ids"]])
    seq_len, d_model = ids.shape[1], model.config.hidden_size
    assert activations.residual_stream(layer=6).shape == (seq_len, d_model)
    assert activations.attention_pattern(layer=6, head=3).shape == (seq_len, seq_len)

    expected = called(model, ids, output_hidden_states=True)
    torch.testing.assert_close(activations.residual_stream(layer=6), expected.hidden_states[7][0])
    torch.testing.assert_close(activations.residual_stream(layer=6, position="pre"), expected.hidden_states[6][0])
    assert torch.equal(activations.logits(), expected.logits[0])
    assert activations.tokens == ["The", " capital", " of", " France", " is"]
    # The pattern by hand, from queries and keys that rotary embedding has turned
    q, k = activations.queries(layer=6, head=3), activations.keys(layer=6, head=3 // 3)
    scores = (q @ k.T / math.sqrt(q.shape[-1])).masked_fill(~torch.ones(seq_len, seq_len).tril().bool(), -math.inf)
    torch.testing.assert_close(activations.attention_pattern(layer=6, head=3), scores.softmax(-1), atol=1e-5, rtol=0)


def test_tokens_are_for_people(demo: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    model, tokenizer = demo
    cache = ActivationCache(model, sites="resid_post.0", stop_at=1)
    text = "Zürich café\n\tis  nice 🙂"
    single, batch = cache.run(text), cache.run([text, "Two words"])
    assert "".join(t for t in single.tokens if "\ufffd" not in t).startswith("Zürich café\n\t")
    assert len(single.tokens) == len(tokenizer(text)["input_ids"])
    assert not any("\ufffd" in t or "Ġ" in t for t in cache.run("Zürich café is nice").tokens)
    assert batch.tokens == [single.tokens, ["Two", " words"]]


def test_a_residual_only_cache_holds_the_bytes_that_it_keeps(
    demo: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    model, tokenizer = demo
    cache = ActivationCache(model, sites=["resid_pre", "resid_post"])
    text = "The capital of France is Paris, and the capital of Italy is"
    cache.run(text)
    before = {x.untyped_storage().data_ptr() for x in live_tensors()}
    activations = cache.run(text)
    new = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in live_tensors()}
    held = sum(size for pointer, size in new.items() if pointer not in before)
    length = len(tokenizer(text)["input_ids"])
    # What leaves one block enters the next: L + 1 residual streams, not 2 L.
    kept = (model.config.num_hidden_layers + 1) * length * model.config.hidden_size * 4
    assert activations.nbytes == pytest.approx(kept, rel=0.05)
    assert held == pytest.approx(kept, rel=0.05)


def live_tensors() -> list[Tensor]:
    gc.collect()
    found = [x for x in gc.get_objects() if type(x) in (Tensor, nn.Parameter) and x.device.type == "cpu"]
    return [x for x in found if x.layout == torch.strided]  # others have no storage to ask for


# --- every accessor -----------------------------------------------------------------------------------------------


@EVERY
def test_accessors_give_what_plain_hooks_see(name: str) -> None:
    model, ids = model_of(name), torch.tensor([IDS])
    seen, got = hooked(name, ids), ActivationCache(model).run(IDS)
    states = called(model, ids, output_hidden_states=True).hidden_states
    close(got.embeddings(), states[0][0])
    close(got["final_norm"], seen["norm"][0])
    close(got["final_norm"], states[-1][0])
    assert torch.equal(got.logits(), seen["logits"][0])
    for layer in range(model.config.num_hidden_layers):
        close(got.residual_stream(layer, position="pre"), seen[f"pre.{layer}"][0])
        close(got.residual_stream(layer), seen[f"post.{layer}"][0])
        if layer + 1 < model.config.num_hidden_layers:
            close(got.residual_stream(layer), states[layer + 1][0])
        attn, mlp = seen[f"attn.{layer}"][0], seen[f"mlp.{layer}"][0]
        if name == "bloom":
            attn, mlp = raw_bloom(layer, seen)
        close(got.attention_output(layer), attn)
        close(got.mlp_output(layer), mlp)
        close(got.mlp_neurons(layer), seen[f"neurons.{layer}"][0])
        z = seen[f"z.{layer}"][0].unflatten(-1, (model.config.num_attention_heads, -1))
        close(got[f"z.{layer}"], z)
        close(got[f"L{layer}H1"], z[:, 1])
        if name in PARALLEL:
            with pytest.raises(UnavailableSiteError, match="parallel"):
                got.residual_stream(layer, position="mid")
        else:
            close(got.residual_stream(layer, position="mid"), seen[f"pre.{layer}"][0] + attn)
        check_heads(name, layer, got, z, attn)


def raw_bloom(layer: int, seen: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Bloom's dense layers by hand: their outputs, from their weights."""
    block = model_of("bloom").transformer.h[layer]
    with torch.no_grad():
        return block.self_attention.dense(seen[f"z.{layer}"][0]), block.mlp.dense_4h_to_h(seen[f"neurons.{layer}"][0])


def check_heads(name: str, layer: int, got: Activations, z: Tensor, attn: Tensor) -> None:
    heads = got.head_output(layer)
    assert heads.shape == (*z.shape[:2], attn.shape[-1])
    assert torch.equal(got.head_output(layer, head=2), heads[:, 2])
    projection = model_of(name).get_submodule(PLACES[name][0])[layer].get_submodule(PLACES[name][2])
    weight = projection.weight.detach() if isinstance(projection, Conv1D) else projection.weight.detach().T
    raw = torch.einsum("phi,hid->phd", z, weight.unflatten(0, (z.shape[1], -1)))
    if name == "gemma2":  # a norm stands behind: heads get its scale
        close(heads.sum(1), attn, 1e-4)
        return
    close(heads, raw)
    close(heads.sum(1) + (0 if projection.bias is None else projection.bias.detach()), attn)


@EVERY
def test_patterns_and_scores_are_those_of_eager_attention(name: str) -> None:
    got = ActivationCache(model_of(name)).run(IDS)
    expected = called(eager_of(name), torch.tensor([IDS]), output_attentions=True).attentions
    for layer, pattern in enumerate(expected):
        close(got.attention_pattern(layer), pattern[0])
        assert torch.equal(got.attention_pattern(layer, head=1), got.attention_pattern(layer)[1])
        close(got.attention_scores(layer).softmax(-1), pattern[0])
        close(torch.einsum("hqk,khd->qhd", pattern[0], repeated(got, layer)), got[f"z.{layer}"])


def repeated(got: Activations, layer: int) -> Tensor:
    values, heads = got.values(layer), got.queries(layer).shape[-2]
    return values.repeat_interleave(heads // values.shape[-2], dim=-2)


def test_values_and_unrotated_queries_are_the_projections() -> None:
    model, got = model_of("llama"), ActivationCache(model_of("llama")).run(IDS)
    for layer, block in enumerate(model.model.layers):
        with torch.no_grad():
            x = block.input_layernorm(got.residual_stream(layer, position="pre"))
            q, k, v = (
                p(x).unflatten(-1, (-1, 8))
                for p in (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj)
            )
        close(got.values(layer), v)
        close(got.values(layer, head=1), v[:, 1])
        # Rotary embedding does nothing at position 0, and keeps lengths.
        close(got.queries(layer)[0], q[0])
        close(got.keys(layer)[0], k[0])
        close(got.queries(layer).norm(dim=-1), q.norm(dim=-1))
        assert not torch.allclose(got.keys(layer, head=0)[3], k[3, 0], atol=1e-3)


def test_sites_are_indexed_in_every_spelling() -> None:
    got = ActivationCache(model_of("llama")).run(IDS)
    for spelling, plain in [
        ("resid_post.1", got.residual_stream(1)),
        ("blocks.1.hook_resid_post", got.residual_stream(1)),
        ("layers_output[1]", got.residual_stream(1)),
        ("resid_post.-2", got.residual_stream(1)),
        ("blocks.2.attn.hook_z", got["z.2"]),
        ("mlp.0", got.mlp_output(0)),
        ("mlp_post.2.5", got.mlp_neurons(2)[:, 5]),
        ("pattern.0.3", got.attention_pattern(0, 3)),
        ("k.1.1", got.keys(1, 1)),
    ]:
        assert torch.equal(got[spelling], plain), spelling
    assert "blocks.1.hook_resid_post" in got
    assert "nonsense" not in got
    assert 3 not in got


def test_a_list_of_one_prompt_has_a_batch_axis_and_a_flat_list_has_none() -> None:
    cache = ActivationCache(model_of("llama"))
    flat, nested = cache.run(IDS), cache.run([IDS])
    assert flat.residual_stream(0).shape == (9, 32)
    assert nested.residual_stream(0).shape == (1, 9, 32)
    assert flat.attention_pattern(0, head=1).shape == (9, 9)
    assert nested.attention_pattern(0, head=1).shape == (1, 9, 9)
    assert torch.equal(nested.residual_stream(0)[0], flat.residual_stream(0))


# --- padding ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "bloom"])
def test_padding_is_masked_and_a_prompt_of_a_batch_is_the_prompt_alone(name: str, side: str) -> None:
    cache = ActivationCache(model_of(name), sites=["resid_post", "z", "q", "k", "v", "mlp_post", "logits"])
    inputs = batch_of(side)
    got, real = cache.run(inputs), inputs["attention_mask"].bool()
    assert torch.equal(got.mask, real)
    for accessor in (got.residual_stream, got.mlp_neurons, got.queries, got.head_output):
        shown = accessor(1)
        assert shown[~real].isnan().all(), accessor.__name__
        assert shown[real].isfinite().all(), accessor.__name__
    assert got.logits()[~real].isnan().all()
    assert got.residual_stream(1).mean().isnan()
    pattern = got.attention_pattern(1)
    assert (pattern.transpose(1, 2)[~real] == 0).all()
    close(pattern.transpose(1, 2)[real].sum(-1), torch.ones(int(real.sum()), pattern.shape[1]))
    assert (pattern.masked_select(~real[:, None, None, :]) == 0).all()

    plain = tokens(3)
    for row, length in enumerate(LENGTHS):
        alone, part = cache.run(plain[row, :length].tolist()), got.of_prompt(row)
        assert part.tokens == alone.tokens
        assert set(alone.sites) <= set(part.sites)
        for site in alone.sites:
            close(part[site], alone[site], 1e-4)
        close(part.attention_pattern(1), alone.attention_pattern(1), 1e-4)
        close(part.head_output(1), alone.head_output(1), 1e-4)
        assert part.residual_stream(0).shape == (length, part.residual_stream(0).shape[-1])


@pytest.mark.parametrize("side", ["left", "right"])
def test_one_prompt_of_a_batch_has_lazy_patterns_whether_the_batch_was_asked_first_or_not(side: str) -> None:
    cache = ActivationCache(model_of("llama"))
    alone = cache.run(tokens(3)[1, :6].tolist()).attention_pattern(2)
    before = cache.run(batch_of(side)).of_prompt(1)
    close(before.attention_pattern(2), alone)
    whole = cache.run(batch_of(side))
    whole.attention_pattern(2)
    close(whole.of_prompt(-2).attention_pattern(2), alone)


def test_there_is_no_prompt_outside_of_the_batch() -> None:
    got = ActivationCache(model_of("llama"), sites="embed").run(batch_of("left"))
    for row in (3, -4):
        with pytest.raises(SiteError, match=f"prompt {row} .* there are 3"):
            got.of_prompt(row)


def test_kept_positions_of_a_padded_batch_are_those_of_each_prompt() -> None:
    plain = tokens(3)
    for side in ("left", "right"):
        got = ActivationCache(model_of("llama"), ["resid_post", "pattern"], positions=[0, -1]).run(batch_of(side))
        for row, length in enumerate(LENGTHS):
            alone = ActivationCache(model_of("llama")).run(plain[row, :length].tolist())
            close(got.residual_stream(2)[row], alone.residual_stream(2)[[0, -1]])
            close(got.of_prompt(row).residual_stream(2), alone.residual_stream(2)[[0, -1]])


# --- what is computed when asked ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAZY)
def test_lazy_patterns_and_heads_equal_those_of_the_run_and_cost_no_forward_pass(name: str) -> None:
    model = model_of(name)
    read = ActivationCache(model, sites=["pattern", "scores", "head_out"]).run(IDS)
    with counted(model) as seen:
        lazy = ActivationCache(model).run(IDS)
        assert seen.count("model") == 1
        calls = list(seen)
        found = [(lazy.attention_pattern(n), lazy.attention_scores(n), lazy.head_output(n)) for n in range(3)]
        assert seen == calls
    expected = called(eager_of(name), torch.tensor([IDS]), output_attentions=True).attentions
    for layer, (pattern, scores, heads) in enumerate(found):
        close(pattern, expected[layer][0])
        close(pattern, read.attention_pattern(layer), 1e-6)
        seen_keys = scores > -1e4
        close(torch.where(seen_keys, scores, 0), torch.where(seen_keys, read.attention_scores(layer), 0), 1e-6)
        close(heads, read.head_output(layer), 1e-6)


def test_dear_sites_are_not_computed_before_they_are_asked_for() -> None:
    got = ActivationCache(model_of("llama")).run(IDS)
    assert "pattern.0" not in got
    before = got.nbytes
    got.attention_pattern(0)
    assert "pattern.0" in got
    assert "pattern.1" not in got
    assert got.nbytes >= before + 4 * 9 * 9 * 4


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "gpt_neo"])
def test_lazy_patterns_at_kept_positions_are_rows_of_the_whole_pattern(name: str) -> None:
    expected = called(eager_of(name), torch.tensor([IDS]), output_attentions=True).attentions[1][0]
    read = ActivationCache(model_of(name), sites="pattern", positions=[2, 5]).run(IDS)
    close(read.attention_pattern(1), expected[:, [2, 5]])
    lazy = ActivationCache(model_of(name), positions=[2, 5]).run(IDS)
    try:
        pattern = lazy.attention_pattern(1)
    except InterpError:
        return  # refusing is right too: other keys than those kept were never stored
    close(pattern, expected[:, [2, 5]])


# --- options ------------------------------------------------------------------------------------------------------


def test_positions_cut_every_site() -> None:
    whole = ActivationCache(model_of("llama")).run(IDS)
    for where, rows in [(-1, [8]), ([1, 4], [1, 4]), (slice(2, 6, 2), [2, 4]), ("last", [8]), ("all", list(range(9)))]:
        part = ActivationCache(model_of("llama"), positions=where).run(IDS)
        for site in part.sites:
            if site.component != "logits":
                close(part[site], whole[site][rows])


def test_positions_cut_the_logits_too() -> None:
    whole, part = (ActivationCache(model_of("llama"), positions=p).run(IDS) for p in (None, [1, 4]))
    close(part.logits(), whole.logits()[[1, 4]])


def test_positions_outside_of_the_prompt_are_refused_with_its_tokens() -> None:
    with pytest.raises(PositionError, match=r"position 9 .*9 tokens .*0 to 8"):
        ActivationCache(model_of("llama"), positions=9).run(IDS)


def test_dtype_and_device_are_those_asked_for() -> None:
    whole = ActivationCache(model_of("llama")).run(IDS)
    half = ActivationCache(model_of("llama"), dtype=torch.float16).run(IDS)
    for site in half.sites:
        assert half[site].dtype == torch.float16
        assert torch.equal(half[site], whole[site].half())
    assert half.attention_pattern(1).dtype == torch.float16
    close(half.attention_pattern(1).float(), whole.attention_pattern(1), 5e-3)
    away = ActivationCache(model_of("llama"), device="meta").run(IDS)
    assert {away[site].device.type for site in away.sites} == {"meta"}


def test_layers_choose_what_is_read() -> None:
    got = ActivationCache(model_of("llama"), sites=["resid_post", "mlp_out", "embed"], layers=[0, -1]).run(IDS)
    assert {str(s) for s in got.sites} == {"embed", "resid_post.0", "mlp_out.0", "resid_post.2", "mlp_out.2"}
    with pytest.raises(SiteError, match=r"layer 3.*0 to 2"):
        ActivationCache(model_of("llama"), layers=[3])


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
def test_blocks_from_stop_at_on_do_not_run(name: str) -> None:
    model = model_of(name)
    whole = ActivationCache(model).run(IDS)
    for stop in range(1, 3):
        with counted(model) as seen:
            got = ActivationCache(model, stop_at=stop).run(IDS)
        assert [s for s in seen if s != "model"] == [f"block {n}" for n in range(stop)]
        for site in got.sites:
            assert torch.equal(got[site], whole[site])
        assert {s.layer for s in got.sites if s.layer is not None} == set(range(stop))
        close(got.attention_pattern(0), whole.attention_pattern(0), 1e-6)
        with pytest.raises(UnavailableSiteError, match="logits was not read"):
            got.logits()


def test_a_run_reads_without_logits_and_stops_behind_its_deepest_site() -> None:
    with counted(model_of("llama")) as seen:
        ActivationCache(model_of("llama"), sites=["resid_pre.1"]).run(IDS)
    assert "block 2" not in seen


# --- what was not read --------------------------------------------------------------------------------------------


def test_layers_are_counted_from_either_end_and_not_beyond() -> None:
    got = ActivationCache(model_of("llama")).run(IDS)
    assert torch.equal(got.residual_stream(-1), got.residual_stream(2))
    assert torch.equal(got.attention_pattern(-3), got.attention_pattern(0))
    for layer in (3, -4):
        with pytest.raises(SiteError, match=rf"layer {layer}, but the model has 3 layers: 0 to 2, or -3 to -1"):
            got.residual_stream(layer)
    with pytest.raises(SiteError, match="there are 4"):
        got.attention_pattern(0, head=4)
    with pytest.raises(SiteError, match="there are 2"):
        got.keys(0, head=2)
    with pytest.raises(SiteError, match="'pre', 'mid' or 'post', not 'before'"):
        got.residual_stream(0, position="before")


@pytest.mark.parametrize("site", ["resid_post.0", "pattern.1", "head_out.2", "logits"])
def test_sites_that_were_not_read_say_how_to_read_them(site: str) -> None:
    got = ActivationCache(model_of("llama"), sites=["mlp_out"]).run(IDS)
    name = site.split(".", maxsplit=1)[0]
    with pytest.raises(UnavailableSiteError, match=rf"{site} was not read.*mlp_out.*{name!r}"):
        got[site]


def test_a_layer_that_was_not_read_is_not_explained_by_its_component() -> None:
    got = ActivationCache(model_of("llama"), layers=[1]).run(IDS)
    with pytest.raises(UnavailableSiteError, match=r"resid_post\.0 was not read") as caught:
        got.residual_stream(0)
    # Naming "resid_post" in sites is no help: it is there, in layer 1 alone.
    assert "layers" in str(caught.value)


def test_unknown_sites_show_the_nearest_names() -> None:
    with pytest.raises(UnknownSiteError, match="did you mean 'resid_post'"):
        ActivationCache(model_of("llama"), sites=["resid_pots"])
    with pytest.raises(UnknownSiteError, match="did you mean"):
        ActivationCache(model_of("llama")).run(IDS)["attn_pattern.0"]
    with pytest.raises(UnavailableSiteError, match="mixture of experts"):
        ActivationCache(model_of("mixtral"), sites=["mlp_post"])
    with pytest.raises(RunError, match="nothing to read"):
        ActivationCache(model_of("llama"), sites=[])


def test_text_needs_a_tokenizer_and_prompts_need_tokens() -> None:
    cache = ActivationCache(model_of("llama"))
    with pytest.raises(TokenError, match="pass tokenizer="):
        cache.run("some text")
    with pytest.raises(TokenError, match="expected text, token ids or an encoding"):
        cache.run([])


@pytest.mark.parametrize("ids", [[3, 4, 99], [3, -1, 4]])
def test_ids_outside_of_the_vocabulary_are_refused_in_words(ids: list[int]) -> None:
    with pytest.raises(InterpError, match="vocabulary"):
        ActivationCache(model_of("llama")).run(ids)


# --- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", ["single", "left", "right"])
def test_what_is_saved_comes_back(inputs: str, tmp_path: Path) -> None:
    got = ActivationCache(model_of("llama")).run(IDS if inputs == "single" else batch_of(inputs))
    got.attention_pattern(1)
    path = got.save(tmp_path / "a.safetensors")
    back = Activations.load(path)
    assert back.sites == got.sites
    for site in got.sites:
        torch.testing.assert_close(back[site], got[site], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(back.attention_pattern(1), got.attention_pattern(1))
    assert torch.equal(back.mask, got.mask)
    assert back.tokens == got.tokens
    assert back.provenance == got.provenance
    assert back.nbytes == got.nbytes
    # residual streams that two sites share are written once
    names = load_file(path)
    assert ("resid_pre.1" in names) != ("resid_post.0" in names)
    with pytest.raises(UnavailableSiteError, match=r"pattern\.0 was not read"):
        back.attention_pattern(0)
    with pytest.raises(SiteError, match="0 to 2"):
        back.residual_stream(3)


def test_a_saved_file_is_safetensors_and_knows_what_made_it(tmp_path: Path) -> None:
    path = ActivationCache(model_of("llama"), sites="resid_post").run(IDS).save(tmp_path / "a.safetensors")
    with safe_open(path, "pt") as file:
        assert "llama" in file.metadata()["provenance"]
        assert torch.equal(file.get_tensor("tokens.ids"), torch.tensor([IDS]))


def test_saved_tokens_keep_their_strings_without_a_tokenizer(
    demo: tuple[PreTrainedModel, PreTrainedTokenizerBase], tmp_path: Path
) -> None:
    got = ActivationCache(demo[0], sites="resid_post.0").run([WORDS, "Two words"])
    back = Activations.load(got.save(tmp_path / "a"))
    assert back.tokens == [["The", " capital", " of", " France", " is"], ["Two", " words"]]
    assert back.prompt.tokenizer is None
    assert back.of_prompt(1).tokens == ["Two", " words"]
    again = Activations.load(back.save(tmp_path / "b"))
    assert again.tokens == back.tokens


def test_one_prompt_of_a_batch_can_be_saved(tmp_path: Path) -> None:
    batch = ActivationCache(model_of("llama")).run(tokens(2))
    part = batch.of_prompt(1)
    path = part.save(tmp_path / "a")
    assert path.stat().st_size < 1.2 * batch.nbytes / 2 + 4000
    back = Activations.load(path)
    for site in part.sites:
        assert torch.equal(back[site], part[site])


def damaged(path: Path, how: str) -> None:
    whole = path.read_bytes()
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    match how:
        case "text":
            path.write_text("not at all")
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(whole[: len(whole) // 2])
        case "foreign":
            save_file({"weight": torch.zeros(2)}, path)
        case "gone":
            path.unlink()
        case "no tokens":
            save_file({n: x for n, x in tensors.items() if n != "tokens.ids"}, path, metadata=metadata)
        case "no facts":
            save_file(tensors, path, metadata={"format": metadata["format"]})
        case "bad facts":
            save_file(tensors, path, metadata={**metadata, "about": "{"})
        case "strange tensor":
            save_file({**tensors, "weird": torch.zeros(1)}, path, metadata=metadata)


@pytest.mark.parametrize(
    "how",
    ["text", "empty", "cut", "foreign", "gone", "no tokens", "no facts", "bad facts", "strange tensor"],
)
def test_a_file_that_is_none_or_damaged_is_refused_by_name(how: str, tmp_path: Path) -> None:
    path = ActivationCache(model_of("llama"), sites="resid_post").run(IDS).save(tmp_path / "mine")
    damaged(path, how)
    with pytest.raises(FileNotFoundError if how == "gone" else FileFormatError, match="mine"):
        Activations.load(path)


def test_saving_into_a_folder_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    got = ActivationCache(model_of("llama"), sites="embed").run(IDS)
    with pytest.raises((InterpError, OSError), match="nowhere"):
        got.save(tmp_path / "nowhere" / "a")


def test_repr_says_model_prompt_sites_and_memory(demo: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    text = repr(ActivationCache(demo[0], sites=["resid_post", "q.3"]).run(WORDS))
    size = (30 * 5 * 576 + 5 * 9 * 64) * 4 / 2**20
    assert "\n" not in text
    for part in (WORDS, "31 sites", "resid_post", "q", f"{1024 * size:.1f} KiB"):
        assert part in text
    several = repr(ActivationCache(model_of("llama"), sites=["z"]).run(batch_of("left")))
    assert "3 prompts of 3-9 tokens" in several
    assert "Llama" in several


# --- generation ---------------------------------------------------------------------------------------------------

GREEDY = {"max_new_tokens": 5, "do_sample": False}


def continued(name: str, prompt: list[int], number: int = 5, eos: int | None = None) -> list[int]:
    """Greedy decoding by hand."""
    ids = list(prompt)
    for _ in range(number):
        ids.append(int(called(model_of(name), torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == eos:
            break
    return ids


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "bloom", "gpt_oss"])
def test_generating_equals_a_run_over_what_was_generated(name: str) -> None:
    cache = ActivationCache(model_of(name), sites=["resid_post", "z", "mlp_out", "q", "k", "v", "pattern"])
    expected = continued(name, IDS, eos=2)
    if expected[-1] == 2:
        pytest.skip("this random model ends at once")
    got = cache.generate(IDS, **GREEDY)
    assert got.prompt.row() == expected[:-1]
    alone = cache.run(expected[:-1])
    for site in alone.sites:
        if site.component == "pattern":
            whole = called(eager_of(name), torch.tensor([expected[:-1]]), output_attentions=True).attentions
            close(got[site], whole[site.layer][0], 1e-4)
        else:
            close(got[site], alone[site], 1e-4)


def test_a_generated_batch_is_padded_on_the_left_and_each_row_is_its_own_run() -> None:
    cache = ActivationCache(model_of("llama"), sites=["resid_post", "q"])
    prompts = [IDS, IDS[:4], IDS[:6]]
    got = cache.generate(prompts, **GREEDY)
    assert got.mask[1].tolist() == [False] * 5 + [True] * 8
    for row, prompt in enumerate(prompts):
        alone, part = cache.run(continued("llama", prompt)[:-1]), got.of_prompt(row)
        assert part.prompt.row() == alone.prompt.row()
        for site in alone.sites:
            close(part[site], alone[site], 1e-4)


@pytest.mark.parametrize("given", ["config", "option"])
def test_what_comes_behind_an_end_token_is_padding(given: str) -> None:
    model = model_of("llama")
    eos = continued("llama", IDS)[10]  # the second new token of the first row
    rows = [continued("llama", IDS, eos=eos), continued("llama", IDS[:4], eos=eos)]
    assert len(rows[0]) == 11
    assert len(rows[1]) == 9  # the other row goes on
    kept, options = model.generation_config.eos_token_id, dict(GREEDY)
    if given == "config":
        model.generation_config.eos_token_id = eos
    else:
        options["eos_token_id"] = eos
    try:
        got = ActivationCache(model, sites=["resid_post"]).generate([IDS, IDS[:4]], **options)
    finally:
        model.generation_config.eos_token_id = kept
    assert got.of_prompt(0).prompt.row() == rows[0]
    assert got.of_prompt(1).prompt.row() == rows[1][:-1]
    assert got.residual_stream(1)[0, 11:].isnan().all()
    close(got.of_prompt(0).residual_stream(2), ActivationCache(model).run(rows[0]).residual_stream(2), 1e-4)


def test_generated_logits_are_those_of_a_run() -> None:
    cache = ActivationCache(model_of("llama"))
    got = cache.generate(IDS, **GREEDY)
    logits = got.logits()  # from the last prompt position on
    close(logits[-5:], cache.run(got.prompt.row()).logits()[-5:], 1e-4)
    assert logits.argmax(-1)[-5:].tolist() == continued("llama", IDS)[-5:]


@pytest.mark.parametrize("given", ["option", "model's config", "config"])
def test_beams_are_refused(given: str) -> None:
    model = model_of("llama")
    cache, options = ActivationCache(model, sites=["resid_post"]), dict(GREEDY)
    kept = model.generation_config.num_beams
    if given == "option":
        options["num_beams"] = 2
    elif given == "config":
        from transformers import GenerationConfig

        options["generation_config"] = GenerationConfig(num_beams=2, max_new_tokens=5)
    else:
        model.generation_config.num_beams = 2
    try:
        with pytest.raises(RunError, match="beam"):
            cache.generate(IDS, **options)
    finally:
        model.generation_config.num_beams = kept


def test_several_continuations_of_a_prompt_are_refused_or_right() -> None:
    model = model_of("llama")
    try:
        got = ActivationCache(model, sites=["resid_post"]).generate(
            [IDS], max_new_tokens=3, do_sample=True, num_return_sequences=2
        )
    except InterpError:
        return
    for row in range(2):
        part = got.of_prompt(row)
        close(part.residual_stream(2), ActivationCache(model).run(part.prompt.row()).residual_stream(2), 1e-4)


def test_generated_positions_can_be_kept_alone() -> None:
    whole = ActivationCache(model_of("llama"), sites=["resid_post"]).generate(IDS, **GREEDY)
    part = ActivationCache(model_of("llama"), sites=["resid_post"], positions="generated").generate(IDS, **GREEDY)
    close(part.residual_stream(2), whole.residual_stream(2)[9:])


def test_nothing_stays_on_the_model() -> None:
    model = model_of("llama")

    def marks() -> list[tuple[int, int, bool]]:
        return [(len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in m.__dict__) for m in model.modules()]

    before, logits = marks(), called(model, torch.tensor([IDS])).logits
    cache = ActivationCache(model, sites=["resid_post", "pattern", "z"])
    cache.run(IDS).head_output(0)
    cache.generate(IDS, **GREEDY)
    with pytest.raises(TypeError):
        cache.generate(IDS, max_new_tokens="many")
    assert marks() == before
    assert torch.equal(called(model, torch.tensor([IDS])).logits, logits)


def test_positions_of_generated_tokens_can_be_kept() -> None:
    cache = ActivationCache(model_of("llama"), sites="resid_post", positions=[3, 5])
    got = cache.generate([5, 6, 7, 8], max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None)
    whole = ActivationCache(model_of("llama"), sites="resid_post").run(got.prompt.ids[0])
    torch.testing.assert_close(got["resid_post.1"], whole["resid_post.1"][[3, 5]], atol=1e-5, rtol=0)
