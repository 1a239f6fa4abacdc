"""Steering vectors: where they come from, what can be done with them, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from interp_toolkit.errors import FileFormatError, PositionError, SiteError, SteeringError
from interp_toolkit.model import Span, run
from interp_toolkit.probes import LinearProbe
from interp_toolkit.steering import (
    SteeringVector,
    activation_norms,
    given_vector,
    probe_vector,
    random_vectors,
    steering_vector,
)
from interp_toolkit.steering.vector import check_same_model
from steering.steered import NEGATIVE, POSITIVE, text_of, vector_of, word_tokenizer
from tiny import model_of, padded


def test_the_mean_difference_is_that_of_plain_forward_passes() -> None:
    model = model_of("llama")
    found = steering_vector(model, POSITIVE, NEGATIVE)
    with torch.no_grad():
        hidden = [model(ids, output_hidden_states=True).hidden_states for ids in (POSITIVE, NEGATIVE)]
    for layer in (0, 1):  # the last hidden state of the library is normed
        expected = hidden[0][layer + 1][:, -1].mean(0) - hidden[1][layer + 1][:, -1].mean(0)
        torch.testing.assert_close(found.directions[layer], expected, atol=1e-5, rtol=0)
        lengths = torch.cat([h[layer + 1].norm(dim=-1).flatten() for h in hidden])
        torch.testing.assert_close(found.norms[layer], lengths.median(), atol=1e-4, rtol=0)
        unit = expected / expected.norm()
        torch.testing.assert_close(found.low[layer], hidden[1][layer + 1][:, -1].mean(0) @ unit, atol=1e-4, rtol=0)
        torch.testing.assert_close(found.high[layer], hidden[0][layer + 1][:, -1].mean(0) @ unit, atol=1e-4, rtol=0)
    assert found.layers == (0, 1, 2)


def test_prompts_of_different_lengths_count_as_alone() -> None:
    model = model_of("gpt2")
    ids, mask = padded([7, 4], "left", seed=2)
    batch = {"input_ids": ids, "attention_mask": mask}
    together = steering_vector(model, batch, NEGATIVE, positions="all")
    rows = [
        run(model, ids[n : n + 1, 7 - k :], read="resid_post")["resid_post.1"][0].mean(0) for n, k in ((0, 7), (1, 4))
    ]
    negative = run(model, NEGATIVE, read="resid_post")["resid_post.1"].mean((0, 1))
    torch.testing.assert_close(together.directions[1], torch.stack(rows).mean(0) - negative, atol=1e-5, rtol=0)


def test_paired_pca_finds_the_direction_in_which_pairs_differ_and_its_sign() -> None:
    model = model_of("llama")
    found = steering_vector(model, POSITIVE, NEGATIVE, method="paired-pca", layers=1)
    other = steering_vector(model, NEGATIVE, POSITIVE, method="paired-pca", layers=1)
    rows = [run(model, ids, read="resid_post.1")["resid_post.1"][:, -1].double() for ids in (POSITIVE, NEGATIVE)]
    differences = rows[0] - rows[1]
    values, axes = torch.linalg.eigh(differences.T @ differences)
    mean = differences.mean(0)
    expected = axes[:, -1] * (axes[:, -1] @ mean)
    torch.testing.assert_close(found.direction.double(), expected, atol=1e-4, rtol=0)
    assert float(found.direction.double() @ mean) > 0
    torch.testing.assert_close(other.direction, -found.direction, atol=1e-5, rtol=0)
    assert values[-1] > values[-2]


def test_positions_may_be_the_tokens_of_a_text() -> None:
    model, tokenizer = model_of("llama"), word_tokenizer()
    sides = ["w5 w9 w7", "w5 w9 w8 w3"], ["w6 w9 w7", "w4 w9 w8 w3"]
    by_text = steering_vector(model, *sides, positions=Span("w9"), tokenizer=tokenizer, layers=[0, 2])
    by_number = steering_vector(model, *sides, positions=1, tokenizer=tokenizer, layers=[0, -1])
    assert torch.equal(by_text.directions, by_number.directions)
    assert by_number.layers == (0, 2)


def test_the_digest_tells_data_apart_and_is_the_same_for_text_and_ids() -> None:
    model, tokenizer = model_of("llama"), word_tokenizer()
    ids = steering_vector(model, POSITIVE[:2], NEGATIVE[:2], layers=0)
    texts = [[text_of(row) for row in side[:2]] for side in (POSITIVE, NEGATIVE)]
    assert steering_vector(model, *texts, tokenizer=tokenizer, layers=1).digest == ids.digest
    assert steering_vector(model, POSITIVE[:3], NEGATIVE[:2], layers=0).digest != ids.digest
    assert steering_vector(model, POSITIVE[:2], NEGATIVE[:2], layers=0, positions=0).digest != ids.digest


def test_a_probes_direction_becomes_a_vector() -> None:
    model = model_of("llama")
    x = run(model, POSITIVE, read="resid_post.1")["resid_post.1"].flatten(0, 1)
    probe = LinearProbe().train(x, (x[:, 3] > x[:, 3].median()).long())
    found = probe_vector(model, probe, "resid_post.1", prompts=POSITIVE)
    torch.testing.assert_close(found.direction, probe.direction)
    assert found.layers == (1,)
    assert found.digest == probe.digest_
    torch.testing.assert_close(found.norms[1], x.norm(dim=-1).median(), atol=1e-4, rtol=0)
    torch.testing.assert_close(probe_vector(model, probe, "resid_post.1", pattern=True).direction, probe.pattern)
    several = SimpleNamespace(direction=torch.eye(3, 32))
    with pytest.raises(SteeringError, match=r"3 directions, one for each class: take one"):
        probe_vector(model, several, "resid_post.1")


def test_arithmetic_is_that_of_the_directions() -> None:
    a = vector_of("llama").at(0, 1)
    b = steering_vector(model_of("llama"), NEGATIVE, POSITIVE[:2], layers=[0, 1], notes="other")
    torch.testing.assert_close((a + b).directions, a.directions + b.directions)
    torch.testing.assert_close((a - b).directions, a.directions - b.directions)
    torch.testing.assert_close((2 * a).directions, a.directions * 2)
    torch.testing.assert_close((-a).directions, -a.directions)
    torch.testing.assert_close(a.cosine(-a), torch.tensor([-1.0, -1.0]))
    expected = torch.nn.functional.cosine_similarity(a.directions, b.directions)
    torch.testing.assert_close(a.cosine(b), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(a.normalised().directions.norm(dim=-1), torch.ones(2))
    # What is known of the examples turns round with the direction, and is not known of a sum.
    torch.testing.assert_close((-a).low, -a.low)
    assert (a + b).low.isnan().all()
    assert (a + b).notes == "other"


def test_what_does_not_belong_together_is_not_added() -> None:
    a = vector_of("llama")
    with pytest.raises(SteeringError, match="one vector is for resid_post 0, the other for resid_post 1"):
        a.at(0) + a.at(1)
    with pytest.raises(SteeringError, match="for mlp_out 0-2"):
        a.cosine(vector_of("llama", site="mlp_out"))
    with pytest.raises(SteeringError, match="was made for the model LlamaForCausalLM, not for GPT2LMHeadModel"):
        a + vector_of("gpt2")
    with pytest.raises(SteeringError, match="is zero"):
        a - a


def test_a_given_vector_and_a_sum_are_saved_and_read_back_too(tmp_path: Path) -> None:
    model = model_of("llama")
    given = given_vector(model, torch.ones(32), site="resid_post.1")
    for number, vector in enumerate((given, given + given)):
        again = SteeringVector.load(vector.save(tmp_path / f"{number}.safetensors"))
        assert torch.equal(again.directions, vector.directions)


def test_a_vector_is_saved_and_read_back_whole(tmp_path: Path) -> None:
    vector = replace(vector_of("llama").at(0, 2), notes="two of three")
    vector.save(tmp_path / "v.safetensors")
    found = SteeringVector.load(tmp_path / "v.safetensors")
    for name in ("directions", "norms", "low", "high"):
        assert torch.equal(getattr(found, name), getattr(vector, name)), name
    for name in ("layers", "site", "method", "digest", "notes", "provenance"):
        assert getattr(found, name) == getattr(vector, name), name
    assert found.summary() == vector.summary()


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = vector_of("llama").save(tmp_path / "v.safetensors")
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    tensors = load_file(path)

    def written(**changes: Any) -> Path:
        save_file({**tensors, **changes.pop("tensors", {})}, path, metadata={**metadata, **changes})
        return path

    zero = tensors["directions"].clone()
    zero[1] = 0
    with pytest.raises(FileFormatError, match="damaged: the direction of layer 1 is zero"):
        SteeringVector.load(written(tensors={"directions": zero}))
    with pytest.raises(FileFormatError, match="its layers are"):
        SteeringVector.load(written(about='{"site": "resid_post", "method": "m", "digest": "", "notes": ""}'))
    with pytest.raises(FileFormatError, match="holds 'something'"):
        SteeringVector.load(written(format="something"))
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(FileFormatError, match="cannot be read as a steering vector"):
        SteeringVector.load(path)


def test_a_vector_is_refused_by_another_model_unless_told_otherwise() -> None:
    vector = vector_of("llama")
    with pytest.raises(SteeringError, match="not for Qwen2ForCausalLM; if it fits nevertheless"):
        vector.check(model_of("qwen2"))
    vector.for_model(model_of("qwen2")).check(model_of("qwen2"))
    with pytest.raises(SteeringError, match="with 3 layers, but this model, Gemma2ForCausalLM, has 4"):
        vector.check(model_of("gemma2"))
    with pytest.raises(SteeringError, match="3 layers of width 32, but the model has 4 of width 40"):
        vector.for_model(model_of("gemma2"))
    same = vector.provenance
    # A folder goes by its own name, wherever it lies.
    check_same_model(replace(same, model="hub/name"), replace(same, model="/data/models/name/"), 32, 32)
    with pytest.raises(SteeringError, match="layout"):
        check_same_model(same, replace(same, layout="other"), 32, 32)


@pytest.mark.parametrize(
    ("sides", "options", "error", "message"),
    [
        (([], NEGATIVE), {}, SteeringError, "there are no positive prompts: a contrast needs both sides"),
        ((POSITIVE, []), {}, SteeringError, "there are no negative prompts"),
        ((POSITIVE, POSITIVE), {}, SteeringError, r"do not differ at resid_post\.0"),
        ((POSITIVE, NEGATIVE), {"layers": 3}, SiteError, "asks for layer 3, but the model has 3 layers: 0 to 2"),
        ((POSITIVE, NEGATIVE), {"layers": []}, SteeringError, "no layer was asked for"),
        ((POSITIVE, NEGATIVE), {"site": "z"}, SteeringError, "one steers at resid_pre, .* not at 'z'"),
        ((POSITIVE, NEGATIVE), {"site": "resid_post.1", "layers": 1}, SteeringError, "the layer is said twice"),
        ((POSITIVE, NEGATIVE), {"site": "resid"}, SteeringError, r"do not differ at resid_pre\.0"),
        ((POSITIVE, NEGATIVE), {"positions": "generated"}, PositionError, "no token of prompt 0 is at"),
        ((POSITIVE, NEGATIVE), {"positions": 8}, PositionError, "position 8 is outside"),
        ((POSITIVE, NEGATIVE[:5]), {"method": "paired-pca"}, SteeringError, "6 positive and 5 negative"),
    ],
)
def test_what_gives_no_direction_is_refused(
    sides: tuple[Any, Any], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    if options.get("site") == "resid":  # in front of the first block there is only the last token, which is the same
        sides = tuple(torch.cat([side, torch.full((6, 1), 5)], 1) for side in sides)
    with pytest.raises(error, match=message):
        steering_vector(model_of("llama"), *sides, **options)


def test_tensors_that_are_no_directions_are_refused() -> None:
    model = model_of("llama")
    with pytest.raises(SteeringError, match="direction of layer 1 is zero"):
        given_vector(model, torch.zeros(32), site="resid_post.1")
    with pytest.raises(SteeringError, match="not finite"):
        given_vector(model, torch.full((32,), torch.nan), site="resid_post.1")
    with pytest.raises(SteeringError, match=r"shape \(31,\) do not fit 1 layers of width 32"):
        given_vector(model, torch.ones(31), site="resid_post.1")
    with pytest.raises(SteeringError, match=r"do not fit 3 layers"):
        given_vector(model, torch.ones(32))
    with pytest.raises(SteeringError, match="no prompts to measure"):
        given_vector(model, torch.ones(32), layers=1, prompts=[])


def test_the_length_of_activations_is_the_median_over_tokens() -> None:
    model = model_of("falcon")  # attention and MLP run in parallel
    found = activation_norms(model, POSITIVE, "mlp_out")
    readings = run(model, POSITIVE, read="mlp_out")
    for layer in range(3):
        torch.testing.assert_close(found[layer], readings[f"mlp_out.{layer}"].norm(dim=-1).median(), atol=1e-4, rtol=0)
    with pytest.raises(SiteError, match="run in parallel"):
        activation_norms(model, POSITIVE, "resid_mid")


def test_the_summary_says_what_it_is_and_how_long() -> None:
    words = vector_of("llama").summary()
    assert "A direction by mean-difference for resid_post of layers 0-2 of LlamaForCausalLM, 32 wide." in words
    assert "% of activations there)" in words
    assert repr(vector_of("llama").at(0, 2)) == "SteeringVector(mean-difference, resid_post 0, 2, d_model=32)"


def test_random_vectors_are_as_long_differ_and_come_again_with_their_seed() -> None:
    vector = vector_of("llama")
    drawn = random_vectors(vector, 3, seed=1)
    for one in drawn:
        torch.testing.assert_close(one.directions.norm(dim=-1), vector.directions.norm(dim=-1))
        assert one.layers == vector.layers
        assert one.method == "random"
    cosines = torch.cosine_similarity(drawn[0].directions, drawn[1].directions, dim=-1)
    assert float(cosines.abs().max()) < 0.9
    again = random_vectors(vector, 2, seed=1)
    assert all(torch.equal(a.directions, b.directions) for a, b in zip(drawn, again, strict=False))
    with pytest.raises(SteeringError, match="0 random directions or more can be drawn, not -1"):
        random_vectors(vector, -1)
