"""Weights without a direction: they do what hooks do, come back bit by bit, and are refused where they cannot."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from interp_toolkit.errors import SteeringError
from interp_toolkit.model import run
from interp_toolkit.steering import given_vector, orthogonalise, orthogonalised, steer
from steering.steered import generate, vector_of
from tiny import model_of, tiny_model, tokens

PROMPTS = tokens(2, 9, seed=3)


def hooked_logits(model: Any, vector: Any) -> Tensor:
    with torch.no_grad(), steer(model, vector, operation="ablate", layers="writers"):
        found: Tensor = model(PROMPTS).logits
    return found


def weights(model: Any) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in model.state_dict().items()}


# Conv1D, tied embeddings, learned positions, biases; parallel blocks; experts as one tensor either way round, with
# biases, beside shared experts and plain MLPs; multipliers.
@pytest.mark.parametrize(
    "name",
    ["gpt2", "llama", "falcon", "mixtral", "gpt_oss", "deepseek_v3", "llama4_text", "granite", "mpt"],
)
def test_weights_do_what_hooks_do_and_come_back(name: str) -> None:
    model = model_of(name)
    vector = given_vector(model, torch.randn(32, generator=torch.Generator().manual_seed(5)), layers=1)
    before, plain = weights(model), model(PROMPTS).logits.detach()
    expected = hooked_logits(model, vector)
    assert not torch.allclose(expected, plain, atol=1e-2)
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    with torch.no_grad(), orthogonalised(model, vector) as same:
        assert same is model
        torch.testing.assert_close(model(PROMPTS).logits, expected, atol=2e-5, rtol=1e-4)
        stream = run(model, PROMPTS, read="resid_post.1")["resid_post.1"]
        assert (stream @ vector.units[0]).abs().max() < 1e-5
    after = weights(model)
    assert all(torch.equal(after[key], x) for key, x in before.items())
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    assert torch.equal(model(PROMPTS).logits, plain)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_in_double_precision_they_agree_to_the_last_digits(name: str) -> None:
    model = model_of(name, dtype=torch.float64)
    vector = vector_of(name, torch.float64).at(1)
    expected = hooked_logits(model, vector)
    with torch.no_grad(), orthogonalised(model, vector):
        torch.testing.assert_close(model(PROMPTS).logits, expected, atol=1e-12, rtol=1e-12)


def test_a_span_of_several_directions_is_taken_away() -> None:
    model = model_of("llama")
    two = torch.randn(2, 32, generator=torch.Generator().manual_seed(6))
    with orthogonalised(model, torch.cat([two, two[:1] * 2])):
        stream = run(model, PROMPTS, read="resid_post.2")["resid_post.2"]
    assert (stream @ two.T).abs().max() < 1e-4


def test_tied_embeddings_are_untied_so_that_reading_stays_as_it_is() -> None:
    model = model_of("gpt2")
    v = torch.eye(32)[3]
    with orthogonalised(model, v):
        assert model.get_input_embeddings().weight[:, 3].abs().max() == 0
        assert model.get_output_embeddings().weight[:, 3].abs().max() > 0.1
        changed = generate(model, PROMPTS)
    with steer(model, given_vector(model, v, layers=0), operation="ablate", layers="writers"):
        assert torch.equal(generate(model, PROMPTS), changed)


@pytest.mark.parametrize("name", ["gpt2", "mixtral"])
def test_an_exported_model_is_saved_and_loaded_with_its_weights(name: str, tmp_path: Path) -> None:
    model, vector = tiny_model(name), vector_of(name).at(1)
    before, expected = weights(model), hooked_logits(model, vector)
    made = orthogonalise(model, vector)
    after = weights(model)
    assert all(torch.equal(after[key], x) for key, x in before.items())
    made.tie_weights()  # as code does that resizes or moves a model: embeddings stay apart
    made.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    for each in (made, loaded):
        with torch.no_grad():
            torch.testing.assert_close(each(PROMPTS).logits, expected, atol=2e-5, rtol=1e-4)


def test_an_error_in_the_block_brings_the_weights_back() -> None:
    model = model_of("gpt2")
    before = weights(model)
    with pytest.raises(KeyError, match="mine"), orthogonalised(model, torch.ones(32)):
        raise KeyError("mine")
    after = weights(model)
    assert all(torch.equal(after[key], x) for key, x in before.items())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gemma2", r"a norm \(post_attention_layernorm\) stands between attention and the residual stream"),
        ("olmo2", "stands between attention"),
        ("bloom", "embed still writes along the direction"),
    ],
)
def test_models_whose_weights_cannot_do_it_are_refused_and_left_alone(name: str, message: str) -> None:
    model = model_of(name)
    before = weights(model)
    with pytest.raises(SteeringError, match=message), orthogonalised(model, vector_of(name).at(1)):
        pass
    after = weights(model)
    assert all(torch.equal(after[key], x) for key, x in before.items())


def test_weights_that_are_no_plain_matrix_are_refused() -> None:
    class Packed(torch.nn.Parameter):
        pass

    for path, message in (
        ("mlp.down_proj", r"mlp\.down_proj of layer 1 is a Linear of Packed torch.float32, which is no plain matrix"),
        ("self_attn.o_proj", r"self_attn\.o_proj of layer 1 is a Adapted, which is no plain matrix"),
    ):
        model = copy.deepcopy(model_of("llama"))
        module = model.model.layers[1].get_submodule(path)
        if path == "mlp.down_proj":
            module.weight = Packed(module.weight.detach())
        else:
            model.model.layers[1].self_attn.o_proj = Adapted(module)
        before = weights(model)
        with pytest.raises(SteeringError, match=message), orthogonalised(model, torch.ones(32)):
            pass
        assert all(torch.equal(weights(model)[key], x) for key, x in before.items())


class Adapted(torch.nn.Module):
    """A projection with something beside it, as adapters have it."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(x)
        return found


def test_directions_that_do_not_fit_are_refused() -> None:
    model = model_of("llama")
    for direction, message in (
        (torch.ones(31), "a direction has 32 entries"),
        (torch.zeros(32), "finite and not zero"),
        (vector_of("llama"), "there is a direction for each of the layers"),
        (vector_of("gpt2").at(1), "not for LlamaForCausalLM"),
    ):
        with pytest.raises(SteeringError, match=message), orthogonalised(model, direction):
            pass
