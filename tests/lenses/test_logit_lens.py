"""The logit lens against the model's own hidden states, norm and unembedding."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from interp_toolkit.errors import PositionError, RunError
from interp_toolkit.lenses import logit_lens
from tiny import FAMILIES, model_of

IDS = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "cohere", "granite", "gpt_neox", "opt", "olmo2", "qwen3"])
def test_every_depth_is_the_models_own_hidden_state_through_its_own_head(name: str) -> None:
    model = model_of(name, dtype=torch.float64)
    found = logit_lens(model, IDS, (7, 8), top=4)
    with torch.no_grad():
        out = model(torch.tensor([IDS]), output_hidden_states=True)
    assert len(found.depths) == len(out.hidden_states) == model.config.num_hidden_layers + 1
    base = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    norm = next(m for n, m in base.named_children() if n in ("norm", "ln_f", "final_layer_norm", "final_layernorm"))
    for depth, hidden in enumerate(out.hidden_states):
        # The last hidden state has been normed already
        logits = out.logits if depth == len(out.hidden_states) - 1 else head(model, norm(hidden))
        shares = logits[0].float().softmax(-1)
        best = shares.topk(4)
        torch.testing.assert_close(found.top_probabilities[depth], best.values, atol=1e-5, rtol=1e-4)
        assert found.difference is not None
        torch.testing.assert_close(
            found.difference[depth], (logits[0, :, 7] - logits[0, :, 8]).float(), atol=1e-5, rtol=1e-4
        )
    assert found.kl[-1].abs().max() < 1e-6
    assert (found.kl > -1e-6).all()


def head(model: Any, normed: torch.Tensor) -> torch.Tensor:
    """The unembedding with what the configuration says stands behind it."""
    logits = model.get_output_embeddings()(normed)
    config = model.config
    if getattr(config, "logit_scale", None):
        logits = logits * config.logit_scale
    if config.model_type.startswith("granite"):
        logits = logits / config.logits_scaling
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_the_last_depth_is_what_the_model_says_in_every_family(name: str) -> None:
    model = model_of(name)
    found = logit_lens(model, IDS, top=3, positions="last")
    with torch.no_grad():
        best = model(torch.tensor([IDS])).logits[0, -1].float().softmax(-1).topk(3)
    torch.testing.assert_close(found.top_probabilities[-1, 0], best.values, atol=1e-4, rtol=1e-3)
    assert found.tokens == (str(IDS[-1]),)


def test_positions_and_answers_are_those_asked_for(demo: Any) -> None:
    model, tokenizer = demo
    found = logit_lens(model, "The capital of France is", (" Paris", " Rome"), positions=[-1, 3], tokenizer=tokenizer)
    whole = logit_lens(model, "The capital of France is", tokenizer=tokenizer)
    assert [whole.positions.index(n) for n in found.positions] == list(found.positions)
    assert set(found.tokens) == {" France", " is"}
    last = found.tokens.index(" is")
    assert found.top_tokens[-1][last][0] == " Paris"
    assert found.rank is not None
    assert found.rank[-1, last] == 0
    assert found.rank[0, last] > 0
    frame = found.to_dataframe()
    assert len(frame) == 2 * 31
    assert int(found.settles(last)) > 10


def test_words_tell_what_lasts_to_the_end(demo: Any) -> None:
    model, tokenizer = demo
    found = logit_lens(model, "The capital of France is", (" Paris", " Rome"), tokenizer=tokenizer)
    assert found.difference is not None
    assert found.rank is not None
    first, second, third = found.summary().splitlines()
    assert re.fullmatch(
        rf"Behind ' is' the model says ' Paris' \(0\.\d\d\)\. From depth {found.settles()} on .*", first
    )
    rank, kl = found.rank[:, -1], found.kl[:, -1]
    ten = next(n for n in range(31) if bool((rank[n:] < 10).all()))
    near = next(n for n in range(31) if bool((kl[n:] <= 1).all()))
    assert second == (
        f"' Paris' − ' Rome': {float(found.difference[-1, -1]):.2f} at the end. ' Paris' is among the best ten from "
        f"depth {found.depths[ten]} on."
    )
    assert third.startswith(
        f"The reading stays within 1 nat (KL) of what the model says from depth {found.depths[near]}"
    )
    assert "at the beginning" not in found.summary()
    unlikely = logit_lens(model, "The capital of France is", " Rome", tokenizer=tokenizer)
    assert unlikely.rank is not None
    assert f"' Rome' is number {int(unlikely.rank[-1, -1]) + 1:,} at the end" in unlikely.summary()


def test_what_cannot_be_read_is_refused() -> None:
    model = model_of("gpt2")
    with pytest.raises(RunError, match="one prompt, not 2"):
        logit_lens(model, [[1, 2], [3, 4]])
    with pytest.raises(RunError, match="top is between 1"):
        logit_lens(model, [1, 2], top=0)
    with pytest.raises(RunError, match=r"\(target, foil\)"):
        logit_lens(model, [1, 2], (1, 2, 3))
    with pytest.raises(PositionError):
        logit_lens(model, [1, 2], positions=[5])
