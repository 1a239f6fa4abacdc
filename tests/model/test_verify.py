"""A layout that is wrong is refused by name and with the reason; what is right goes on working."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from handmade import LAYOUT, Handmade
from interp_toolkit.errors import UnavailableSiteError
from interp_toolkit.model import Layout, layout_of, run, verify
from interp_toolkit.model import verify as verify_model
from tiny import tiny_model, tokens

IDS = tokens(2, 6)


def refused(model: Any, layout: Layout) -> dict[str, str]:
    return {name: answer for name, answer in verify(model, layout).components().items() if answer != "yes"}


def wrong(name: str, **changes: Any) -> tuple[Any, dict[str, str]]:
    model = tiny_model(name)
    return model, refused(model, replace(layout_of(model), **changes))


ALWAYS_RIGHT = {"embed", "resid_pre", "resid_post", "q", "k", "v", "z", "scores", "pattern", "final_norm", "logits"}


def test_the_raw_output_of_attention_behind_which_stands_a_norm_is_not_what_attention_adds() -> None:
    model, found = wrong("gemma2", attn_out="self_attn")
    assert "verification failed: resid_pre + attn_out = resid_mid; off by" in found["attn_out"]
    assert not set(found) & ALWAYS_RIGHT
    assert "mlp_out" not in found
    with pytest.raises(
        UnavailableSiteError, match=r"attn_out\.1 is not available in this gemma2 model: verification failed"
    ):
        run(model, IDS, read="attn_out.1")
    assert run(model, IDS, read="resid_post.1")["resid_post.1"].shape == (2, 6, 40)


def test_the_raw_output_of_the_mlp_is_not_what_it_adds() -> None:
    _, found = wrong("olmo2", mlp_out="mlp")
    assert "resid_mid + mlp_out = resid_post" in found["mlp_out"]
    assert not set(found) & (ALWAYS_RIGHT | {"attn_out"})


def test_a_forgotten_multiplier_is_found() -> None:
    _, found = wrong("granite", multiplier=1.0)
    assert "off by 0.4 " in found["attn_out"]
    assert "mlp_out" in found
    assert not set(found) & ALWAYS_RIGHT


@pytest.mark.parametrize(("name", "norm"), [("gemma2", "post_feedforward_layernorm"), ("llama", "input_layernorm")])
def test_the_wrong_middle_is_refused(name: str, norm: str) -> None:
    _, found = wrong(name, mid=norm)
    assert "verification failed" in found["resid_mid"]
    assert not set(found) & ALWAYS_RIGHT


def test_a_parallel_family_taken_for_a_sequential_one_has_no_middle() -> None:
    _, found = wrong("gptj", mid="mlp", parallel=False)
    assert "verification failed" in found["resid_mid"]
    assert not set(found) & ALWAYS_RIGHT


def test_a_wrong_number_of_heads_is_seen_wherever_there_are_heads() -> None:
    model, found = wrong("llama", num_heads=2)
    for component in ("q", "scores", "pattern", "z", "head_out"):
        assert "the layout says 2, attention has 4" in found[component]
    assert not set(found) & {
        "embed",
        "resid_pre",
        "resid_mid",
        "resid_post",
        "attn_out",
        "mlp_out",
        "mlp_post",
        "logits",
    }
    run(model, IDS, read="resid_post")


def test_a_wrong_projection_is_refused() -> None:
    _, found = wrong("llama", projection="self_attn.v_proj", attention="self_attn")
    assert {"z", "head_out"} <= set(found)
    assert not set(found) & {"resid_pre", "resid_post", "attn_out", "mlp_out", "pattern"}


def test_wrong_neurons_are_refused() -> None:
    _, found = wrong("gpt2", down="ln_1")
    assert "verification failed" in found["mlp_post"]
    assert not set(found) & ALWAYS_RIGHT


@pytest.mark.parametrize("down", ["mlp.up_proj", "mlp.gate_proj", "mlp"])
def test_neurons_are_proved_to_be_what_the_down_projection_is_given(down: str) -> None:
    _, found = wrong("llama", down=down)
    assert set(found) == {"mlp_post"}
    assert "verification failed: mlp_out" in found["mlp_post"]


def test_a_middle_of_another_width_is_refused_by_name() -> None:
    _, found = wrong("llama", mid="mlp.down_proj")
    assert set(found) == {"resid_mid"}
    assert "verification failed: its axes are batch, pos, d_model; found (2, 7, 48)" in found["resid_mid"]


def test_a_residual_stream_that_changes_between_blocks_is_refused_where_it_enters() -> None:
    model = Handmade("sdpa", between=0.5).eval()
    found = verify(model, Layout(**LAYOUT))
    assert found.components()["resid_pre"] == "some layers"
    assert found.components()["resid_post"] == "yes"
    with pytest.raises(UnavailableSiteError, match=r"resid_pre\.1 .*what leaves a block enters the next; off by 0\.5"):
        run(model, IDS, read="resid_pre.1")
    assert "resid_pre.0" in run(model, IDS, read="resid_pre")


@pytest.mark.parametrize("name", ["gpt2", "falcon", "llama4_text"])
def test_patterns_are_verified_in_bfloat16(name: str) -> None:
    assert verify(tiny_model(name, dtype=torch.bfloat16)).components()["pattern"] == "yes"


@pytest.mark.parametrize("name", ["gemma2", "llama"])
def test_everything_is_verified_in_float64(name: str) -> None:
    assert not verify(tiny_model(name, dtype=torch.float64)).refused


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_attention_that_sees_later_tokens_is_found(implementation: str) -> None:
    model = tiny_model("bloom") if implementation == "eager" else tiny_model("falcon")
    model.eval()

    def sees_everything(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        mask = kwargs.get("attention_mask")
        if mask is None:
            hidden = args[0]
            mask = torch.zeros(hidden.shape[0], 1, hidden.shape[1], hidden.shape[1])
        return args, {**kwargs, "attention_mask": torch.zeros_like(mask, dtype=torch.float32)}

    for block in model.transformer.h:
        block.self_attention.register_forward_pre_hook(sees_everything, with_kwargs=True)
    found = verify(model).components()
    assert "no position attends to a later one" in found["pattern"]
    assert found["resid_post"] == "yes"


def test_attention_that_was_made_bidirectional_is_found() -> None:
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    found = verify(model).components()
    assert "verification failed" in found["pattern"]
    assert found["resid_post"] == "yes"


def test_a_model_is_verified_once() -> None:
    model, calls = tiny_model("llama"), []
    handle = model.model.embed_tokens.register_forward_hook(lambda *_: calls.append(1))
    run(model, IDS)
    passes = len(calls)
    assert passes > 5
    run(model, IDS, read="pattern")
    first = verify(model)
    assert len(calls) == passes + 1
    assert verify(model) is first
    assert verify(model, layout_of(model)) is first
    handle.remove()


def test_verification_leaves_random_numbers_and_the_model_as_they_were() -> None:
    model = tiny_model("gpt2")
    with torch.no_grad():
        before = model(IDS).logits
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    verify(model)
    assert torch.equal(torch.rand(3), expected)
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_summary_names_what_is_refused_and_why() -> None:
    text = verify_model(tiny_model("gptj")).summary()
    assert text.splitlines()[0] == "gptj: 15 of 16 kinds of site verified"
    assert "  resid_mid: attention and MLP run in parallel" in text
    assert "padding on the left: the model's own forward does not give" in verify(tiny_model("llama4_text")).summary()


def test_a_layer_that_breaks_the_sum_is_refused_and_the_others_are_not() -> None:
    model = tiny_model("llama")

    def leak(module: Any, args: Any, output: Tensor) -> Tensor:
        return output + 0.5

    model.model.layers[1].register_forward_hook(leak)
    found = verify(model)
    assert found.components()["mlp_out"] == "some layers"
    run(model, IDS, read=["mlp_out.0", "mlp_out.2"])
    with pytest.raises(UnavailableSiteError, match=r"mlp_out\.1 is not available"):
        run(model, IDS, read="mlp_out.1")
    assert "mlp_out.1" not in {str(site) for site in run(model, IDS, read="mlp_out")}
