"""Edits and readings while text is generated: the cache, padding, sampling and beams shift nothing."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from interp_toolkit.errors import EditError, RunError, UnknownSiteError
from interp_toolkit.model import Edit, editing, encode, run
from tiny import model_of, padded, tokens

NEW = 6
PROMPTS = tokens(2, 7)


def generate(model: Any, ids: Tensor, **options: Any) -> Any:
    settings: dict[str, Any] = {
        "max_new_tokens": NEW,
        "do_sample": False,
        "pad_token_id": 0,
        "eos_token_id": None,
        "attention_mask": torch.ones_like(ids),
        **options,
    }
    return model.generate(ids, **settings)


def strongly(site: str, model: Any, where: Any) -> Edit:
    """An edit that changes what is generated."""
    if site.startswith("pattern"):
        return Edit.scale(site, 0.2, positions=where)
    if site.startswith(("k", "v", "z", "mlp")):
        return Edit.scale(site, -2.0, positions=where)
    size = model.config.vocab_size if site == "logits" else model.config.hidden_size
    return Edit.add(site, torch.linspace(-2, 2, size), positions=where)


SITES = ["resid_pre.1", "resid_post.0", "z.1", "k.1", "v.1", "pattern.1", "mlp_out.1", "logits"]
WHERE = ["prompt", "generated", "all", "last", 2, 8, [1, -1]]


@pytest.mark.parametrize("where", WHERE, ids=str)
@pytest.mark.parametrize("site", SITES)
def test_edits_mean_the_same_with_the_cache_and_without(site: str, where: Any) -> None:
    if site == "logits" and where in (2, [1, -1]):
        pytest.skip("generate computes no logits inside the prompt")
    check_cache("llama", [strongly(site, model_of("llama"), where)])


@cache
def unedited(name: str) -> Tensor:
    """What the model generates by itself."""
    return generate(model_of(name), PROMPTS)


def check_cache(
    name: str, edits: list[Edit], reads: tuple[str, ...] = ("resid_post.1", "z.0", "k.1", "mlp_out.0")
) -> None:
    model, plain = model_of(name), unedited(name)
    with editing(model, edits, read=reads) as cached:
        tokens_cached = generate(model, PROMPTS, use_cache=True)
    with editing(model, edits):
        tokens_plain = generate(model, PROMPTS, use_cache=False)
    assert torch.equal(tokens_cached, tokens_plain)
    assert torch.equal(generate(model, PROMPTS), plain)
    # What was read on the way is what one pass over the finished text shows.
    for site in reads:
        assert cached[site].shape[1] == 7 + NEW - 1
    absolute = [edit for edit in edits if repr(edit.positions) in ("Everywhere()", "At(indices=(2,))")]
    if absolute and edits[0].site.component != "logits":
        whole = run(model, tokens_cached[:, :-1], edits=edits, read=reads)
        for site in reads:
            torch.testing.assert_close(cached[site], whole[site], atol=1e-4, rtol=0)


def test_the_edits_of_these_tests_change_what_is_generated() -> None:
    model = model_of("llama")
    plain = generate(model, PROMPTS)
    for site in SITES:
        with editing(model, [strongly(site, model, "all")]):
            assert not torch.equal(generate(model, PROMPTS), plain), site


@pytest.mark.parametrize(
    "name",
    [
        "mistral",
        "gemma3_text",
        "gpt_oss",
        "gemma2",
        "bloom",
        "falcon",
        "falcon_alibi",
        "gptj",
        "gpt_neo",
        "mpt",
        "opt",
        "gpt2",
    ],
)
@pytest.mark.parametrize("site", ["resid_pre.1", "z.1", "k.1", "v.0", "pattern.1", "mlp_out.0"])
def test_every_kind_of_cache_and_attention_agrees(name: str, site: str) -> None:
    model = model_of(name)
    check_cache(name, [strongly(site, model, "all")])
    check_cache(name, [strongly(site, model, "generated")])


@pytest.mark.parametrize("where", ["prompt", "last", 5, [8, 9]], ids=str)
@pytest.mark.parametrize("site", ["k.0", "v.0"])
@pytest.mark.parametrize("name", ["mistral", "gemma3_text", "gpt_oss"])
def test_keys_and_values_in_a_sliding_cache_keep_their_positions(name: str, site: str, where: Any) -> None:
    check_cache(name, [strongly(site, model_of(name), where)])


def test_readings_hold_prompt_and_generated_positions() -> None:
    model = model_of("llama")
    with editing(model, read=["resid_post", "pattern.1", "k.1", "q.1.2"]) as watched:
        text = generate(model, PROMPTS)
    whole = run(model, text[:, :-1], read=["resid_post", "pattern.1", "k.1", "q.1"])
    for site in ("resid_post.0", "resid_post.2", "pattern.1", "k.1", "q.1.2"):
        torch.testing.assert_close(watched[site], whole[site], atol=1e-5, rtol=0)
    assert torch.equal(watched["resid_post.-1"], watched["resid_post.2"])
    with pytest.raises(UnknownSiteError, match=r"z\.0 was not read"):
        watched["z.0"]


@pytest.mark.parametrize("site", ["resid_post.1", "pattern.1", "k.1"])
def test_readings_without_the_cache_are_those_with_it(site: str) -> None:
    model = model_of("llama")
    with editing(model, read=site) as cached:
        generate(model, PROMPTS, use_cache=True)
    with editing(model, read=site) as plain:
        generate(model, PROMPTS, use_cache=False)
    torch.testing.assert_close(cached[site], plain[site], atol=1e-5, rtol=0)


def test_patterns_behind_a_sliding_cache_stand_in_the_columns_of_their_keys() -> None:
    model = model_of("mistral")
    with editing(model, read=["pattern.1", "scores.1"]) as watched:
        text = generate(model, PROMPTS)
    whole = run(model, text[:, :-1], read=["pattern.1", "scores.1"])
    torch.testing.assert_close(watched["pattern.1"], whole["pattern.1"], atol=1e-5, rtol=0)
    seen = whole["scores.1"] > -1e4
    assert torch.equal(watched["scores.1"] > -1e4, seen)
    torch.testing.assert_close(watched["scores.1"][seen], whole["scores.1"][seen], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("keep", "columns"), [("last", [6]), ("generated", [7, 8, 9, 10, 11]), ("prompt", list(range(7)))]
)
def test_readings_are_cut_to_the_positions_to_keep(keep: str, columns: list[int]) -> None:
    model, sites = model_of("llama"), ["resid_post.1", "pattern.1", "k.1"]
    with editing(model, read=sites) as whole:
        generate(model, PROMPTS)
    with editing(model, read=sites, keep=keep) as part:
        generate(model, PROMPTS)
    for site in sites:
        expected = whole[site][:, :, columns] if site == "pattern.1" else whole[site][:, columns]
        assert torch.equal(part[site], expected), site


def test_logits_have_the_same_shape_with_an_edit_of_them_and_without() -> None:
    model = model_of("llama")
    with editing(model, read="logits") as plain:
        generate(model, PROMPTS)
    with editing(model, [Edit.add("logits", 1.0, positions="last")], read="logits") as edited:
        generate(model, PROMPTS)
    assert plain["logits"].shape == edited["logits"].shape


def test_a_second_prompt_in_one_block_has_positions_of_its_own() -> None:
    model, short = model_of("llama"), tokens(1, 4, seed=5)
    edits = [Edit.add("resid_post.1", torch.full((32,), 3.0), positions="generated")]
    with editing(model, edits):
        alone = generate(model, short, max_new_tokens=8)
    with editing(model, edits):
        generate(model, tokens(1, 9), max_new_tokens=8)
        second = generate(model, short, max_new_tokens=8)
    assert torch.equal(second, alone)


def test_readings_of_several_prompts_in_one_block_are_refused() -> None:
    model = model_of("llama")
    with editing(model, read="resid_post.1") as watched:
        generate(model, PROMPTS)
        generate(model, PROMPTS[:, 2:])
    with pytest.raises(RunError, match="2 sequences were run in the block, so readings cannot be joined"):
        watched["resid_post.1"]


@pytest.mark.parametrize("where", ["prompt", "generated", "all", "last", 1, -2], ids=str)
@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "mistral"])
def test_rows_of_a_padded_batch_are_generated_as_alone(name: str, where: Any) -> None:
    model = model_of(name)
    ids, mask = padded([7, 4], "left", seed=2)
    edits = [strongly("resid_post.1", model, where), strongly("z.0", model, where)]
    with editing(model, edits, read="resid_post.1") as together:
        batch = generate(model, ids, attention_mask=mask)
    for row, length in enumerate([7, 4]):
        with editing(model, edits, read="resid_post.1") as alone:
            single = generate(model, ids[row : row + 1, 7 - length :])
        assert torch.equal(batch[row, 7 - length :], single[0])
        torch.testing.assert_close(
            together["resid_post.1"][row, 7 - length :], alone["resid_post.1"][0], atol=1e-4, rtol=0
        )


def test_positions_of_the_prompt_are_those_of_a_plain_run() -> None:
    model = model_of("llama")
    edit = strongly("resid_post.1", model, [1, -1])
    with editing(model, [edit], read="resid_post.2") as watched:
        generate(model, PROMPTS, max_new_tokens=3)
    expected = run(model, PROMPTS, edits=[edit], read="resid_post.2")["resid_post.2"]
    torch.testing.assert_close(watched["resid_post.2"][:, :7], expected, atol=1e-5, rtol=0)


def test_generated_positions_leave_the_prompt_alone() -> None:
    model = model_of("llama")
    with editing(model, [strongly("resid_post.0", model, "generated")], read="resid_post.0") as watched:
        generate(model, PROMPTS)
    plain = run(model, PROMPTS, read="resid_post.0")["resid_post.0"]
    torch.testing.assert_close(watched["resid_post.0"][:, :7], plain, atol=1e-6, rtol=0)


def test_sampling_with_a_seed_is_repeated_and_readings_do_not_disturb_it() -> None:
    model = model_of("llama")

    def sample(edits: list[Edit], read: tuple[str, ...]) -> Tensor:
        torch.manual_seed(4)
        with editing(model, edits, read=read):
            return generate(model, PROMPTS, do_sample=True, top_k=0)

    torch.manual_seed(4)
    plain = generate(model, PROMPTS, do_sample=True, top_k=0)
    assert torch.equal(sample([], ("pattern", "z")), plain)
    edits = [strongly("resid_post.1", model, "generated")]
    assert torch.equal(sample(edits, ()), sample(edits, ("pattern", "z")))
    assert not torch.equal(sample(edits, ()), plain)


def test_beam_search_is_edited_in_every_beam() -> None:
    model = model_of("llama")
    edits = [strongly("resid_post.1", model, "all")]
    with editing(model, edits):
        cached = generate(model, PROMPTS, num_beams=3)
    with editing(model, edits):
        plain = generate(model, PROMPTS, num_beams=3, use_cache=False)
    assert torch.equal(cached, plain)
    assert not torch.equal(cached, generate(model, PROMPTS, num_beams=3))
    for row in (0, 1):
        with editing(model, edits):
            assert torch.equal(generate(model, PROMPTS[row : row + 1], num_beams=3)[0], cached[row])


def test_beam_search_gives_no_readings() -> None:
    model = model_of("llama")
    with editing(model, read="resid_post.1", tokens=encode(PROMPTS)) as watched:
        generate(model, PROMPTS, num_beams=3)
    with pytest.raises(RunError, match=r"not that of the prompts \(beam search\?\): readings cannot be joined"):
        watched["resid_post.1"]


def test_rows_are_prompts_under_beam_search_too() -> None:
    model, shift = model_of("llama"), torch.linspace(-3, 3, 32)
    plain = generate(model, PROMPTS, num_beams=3)
    with editing(model, [Edit.add("resid_post.1", shift)]):
        every = generate(model, PROMPTS, num_beams=3)
    with editing(model, [Edit.add("resid_post.1", shift, rows=[1])], tokens=encode(PROMPTS)):
        second = generate(model, PROMPTS, num_beams=3)
    assert not torch.equal(every[1], plain[1])
    assert torch.equal(second[0], plain[0])
    assert torch.equal(second[1], every[1])


def test_rows_are_those_of_the_batch() -> None:
    model = model_of("llama")
    edits = [Edit.add("resid_post.1", torch.linspace(-2, 2, 32), rows=[1])]
    with editing(model, edits):
        both = generate(model, PROMPTS)
    plain = generate(model, PROMPTS)
    assert torch.equal(both[0], plain[0])
    with editing(model, [Edit.add("resid_post.1", torch.linspace(-2, 2, 32))]):
        assert torch.equal(both[1], generate(model, PROMPTS)[1])


def test_an_edit_that_never_fired_is_reported_at_the_end_of_the_block() -> None:
    model = model_of("llama")
    with (
        pytest.raises(EditError, match=r"Edit\(set resid_pre.1 at Generated\(\)\) never fired"),
        editing(model, [Edit.set("resid_pre.1", 0.0, positions="generated")]),
    ):
        generate(model, PROMPTS, max_new_tokens=1)
    with (
        pytest.raises(RunError, match=r"resid_pre\.1 was never reached: was the model run"),
        editing(model, read="resid_pre.1"),
    ):
        pass


def test_a_value_that_is_too_short_for_the_generated_positions_is_refused() -> None:
    model = model_of("llama")
    with (
        pytest.raises(EditError, match="has 7 positions, but the prompts have 8"),
        editing(model, [Edit.set("resid_pre.1", torch.zeros(7, 32))]),
    ):
        generate(model, PROMPTS)
    with editing(
        model, [Edit.set("resid_pre.1", torch.zeros(7, 32), positions="prompt")], read="resid_pre.1"
    ) as watched:
        generate(model, PROMPTS)
    assert not watched["resid_pre.1"][:, :7].any()
    assert watched["resid_pre.1"][:, 7:].all()


def test_a_value_as_long_as_each_of_several_passes_is_not_taken_for_each() -> None:
    model = model_of("llama")
    past = DynamicCache(config=model.config)
    with torch.no_grad(), editing(model, [Edit.set("resid_pre.1", torch.zeros(3, 32))]):
        model(PROMPTS[:, :3], past_key_values=past)
        with pytest.raises(EditError, match="has 3 positions, but the prompts have 6"):
            model(PROMPTS[:, 3:6], past_key_values=past)


def test_an_edit_of_logits_that_are_not_computed_is_reported() -> None:
    model = model_of("llama")
    with (
        pytest.raises(EditError, match=r"Edit\(add logits at At\(indices=\(2,\)\)\) never fired"),
        editing(model, [Edit.add("logits", 1.0, positions=2)]),
    ):
        generate(model, PROMPTS)


def test_positions_behind_the_prompt_may_be_named_although_its_tokens_are_given() -> None:
    model = model_of("llama")
    edits = [Edit.add("resid_post.0", 1.0, positions=8)]
    with editing(model, read="resid_post.0") as plain:
        generate(model, PROMPTS)
    with editing(model, edits, tokens=encode(PROMPTS), read="resid_post.0") as edited:
        generate(model, PROMPTS)
    changed = (edited["resid_post.0"] - plain["resid_post.0"])[:, :9].abs().amax((0, 2)) > 1e-4
    assert changed.tolist() == [False] * 8 + [True]
