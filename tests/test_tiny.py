"""The tiny models are fit to test with: finite, and every part of them matters."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor

from tiny import FAMILIES, IDS, VOCAB, WINDOW, model_of, padded, tiny_model, tokens

EVERY = pytest.mark.parametrize("name", FAMILIES)

# The layers that cannot see further back than WINDOW tokens.
WINDOWED = {
    "gpt_neo": [1, 3],
    "mistral": [0, 1, 2],
    "qwen3": [2],
    "gemma2": [0, 2],
    "gemma3_text": [0, 2],
    "phi3": [0, 1, 2],
    "olmo3": [0, 2],
    "starcoder2": [0, 1, 2],
    "gpt_oss": [0, 2],
    "exaone4": [0, 2],
    "llama4_text": [0, 1, 2],
}

# A bias on keys adds the same to a query's every score, unless rotary embedding or a norm comes after it.
WITHOUT_EFFECT = {"opt": "k_proj.bias"}


def eager(name: str) -> torch.nn.Module:
    return model_of(name, "eager")


@cache
def attentions(name: str) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return eager(name)(IDS, output_attentions=True).attentions


@EVERY
@torch.no_grad()
def test_logits_are_finite_and_alike_in_both_implementations(name: str) -> None:
    logits = eager(name)(IDS).logits
    assert logits.shape == (*IDS.shape, VOCAB)
    assert logits.isfinite().all()
    assert 0.1 < logits.std() < 10
    family = FAMILIES[name]
    if "sdpa" in family.implementations and family.implementations_agree:
        torch.testing.assert_close(model_of(name)(IDS).logits, logits, atol=1e-4, rtol=0)


@EVERY
@torch.no_grad()
def test_an_early_token_reaches_the_last_logits(name: str) -> None:
    changed = IDS.clone()
    changed[:, 0] = (changed[:, 0] - 3 + 1) % (VOCAB - 3) + 3
    difference = (eager(name)(changed).logits - eager(name)(IDS).logits)[:, -1].abs().amax(-1)
    assert (difference > 1e-3).all()


@EVERY
def test_attention_is_far_from_uniform(name: str) -> None:
    patterns = attentions(name)
    assert len(patterns) == eager(name).config.num_hidden_layers
    for pattern in patterns:
        seen = (pattern > 0).sum(-1)
        rows = pattern / pattern.sum(-1, keepdim=True)  # with an attention sink rows sum to less than one
        entropy = -(rows * rows.clamp_min(1e-12).log()).sum(-1)
        share = (entropy / seen.clamp_min(2).log())[seen >= 3]
        assert 0.02 < share.mean() < 0.95
        first, second = pattern[0, :, -2], pattern[1, :, -2]
        assert (first - second).abs().max() > 0.02  # it depends on the tokens


@EVERY
def test_windows_are_felt(name: str) -> None:
    reach = [bool((pattern[:, :, -1, : -WINDOW - 1] > 0).any()) for pattern in attentions(name)]
    windowed = WINDOWED.get(name, [])
    assert reach == [layer not in windowed for layer in range(len(reach))]


@EVERY
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_left_padding_runs(name: str, implementation: str) -> None:
    if implementation not in FAMILIES[name].implementations:
        pytest.skip("the family lacks it")
    model = eager(name) if implementation == "eager" else model_of(name)
    input_ids, mask = padded([9, 6], "left")
    logits = model(input_ids, attention_mask=mask).logits
    assert logits[mask.bool()].isfinite().all()


@EVERY
def test_every_parameter_matters(name: str) -> None:
    model = tiny_model(name, attn_implementation="eager")
    ids = torch.cat([tokens(4), tokens(4, seed=1)])
    weights = torch.randn(VOCAB, generator=torch.Generator().manual_seed(0))
    (model(ids).logits @ weights).square().mean().backward()
    for path, parameter in model.named_parameters():
        if path.endswith(WITHOUT_EFFECT.get(name, "\n")):
            continue
        assert parameter.grad is not None, path
        assert parameter.grad.abs().max() > 1e-5, path


@EVERY
def test_biases_and_norms_are_drawn_anew(name: str) -> None:
    for path, parameter in eager(name).named_parameters():
        assert parameter.numel() == 1 or parameter.std() > 0.01, path


def test_same_seed_same_weights_and_global_random_state_untouched() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = tiny_model("llama"), tiny_model("llama"), tiny_model("llama", seed=1)
    torch.testing.assert_close(torch.rand(3), expected, atol=0, rtol=0)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    assert not first.training


def test_dtype() -> None:
    model = tiny_model("qwen2", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    for low, full in zip(model.parameters(), tiny_model("qwen2").parameters(), strict=True):
        torch.testing.assert_close(low, full.to(torch.bfloat16), atol=0, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_hold_the_plain_tokens(side: str) -> None:
    input_ids, mask = padded([5, 9, 2], side, seed=3)
    plain = tokens(3, 9, seed=3)
    for row, length in enumerate([5, 9, 2]):
        assert torch.equal(input_ids[row][mask[row].bool()], plain[row, :length])
        assert mask[row].sum() == length
    assert mask[0, 0 if side == "right" else -1] == 1
    assert (plain >= 3).all()
    assert (plain < VOCAB).all()
    with pytest.raises(ValueError, match="left"):
        padded([2], "middle")


def test_some_heads_do_not_fill_the_residual_stream() -> None:
    config = FAMILIES["mistral"].config()
    assert config.head_dim * config.num_attention_heads != config.hidden_size
