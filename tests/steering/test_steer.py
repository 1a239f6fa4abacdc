"""Steering while a model is used: against hooks of the test's own, with the cache and without, in batches and alone."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TextIteratorStreamer, TextStreamer, pipeline

from interp_toolkit.errors import EditError, SiteError, SteeringError
from interp_toolkit.model import From, Span, run
from interp_toolkit.steering import Gate, SteeringVector, given_vector, steer, steering_edits
from steering.steered import NEW, at, generate, greedy, hooked, text_of, vector_of, word_tokenizer
from tiny import model_of, padded, tokens

FAMILIES = ["llama", "gpt2", "gemma2", "falcon", "bloom", "qwen3_moe"]
PROMPT = tokens(1, 7, seed=3)
WHERE: dict[str | From, slice] = {
    "all": slice(None),
    "prompt": slice(0, 7),
    "generated": slice(7, None),
    "predicting": slice(6, None),
    "last": slice(6, 7),
    From(2): slice(2, None),
}


def adds(vector: SteeringVector, layer: int, coefficient: float) -> Callable[[Tensor], Tensor]:
    v = vector.directions[layer].double()
    value = v / v.norm() * float(vector.norms[layer]) * coefficient
    return lambda x: (x.double() + value).to(x.dtype)


@pytest.mark.parametrize("where", WHERE, ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_generation_is_that_of_a_hook_and_whole_passes(name: str, where: str | From) -> None:
    model, vector = model_of(name), vector_of(name)
    expected = greedy(model, PROMPT, 1, at(WHERE[where], adds(vector, 1, 1.5)))
    for cached in (True, False):
        with steer(model, vector, 1.5, layers=1, positions=where):
            assert torch.equal(generate(model, PROMPT, use_cache=cached), expected), cached


@pytest.mark.parametrize("name", FAMILIES)
def test_steering_in_these_tests_changes_what_is_generated(name: str) -> None:
    model = model_of(name)
    plain = generate(model, PROMPT)
    with steer(model, vector_of(name), 1.5, layers=1):
        assert not torch.equal(generate(model, PROMPT), plain)
    assert torch.equal(generate(model, PROMPT), plain)  # and nothing is left of it


@pytest.mark.parametrize("where", ["all", "prompt", "generated", "predicting", From(2)], ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_rows_of_a_left_padded_batch_are_steered_as_alone(name: str, where: str | From) -> None:
    model, vector = model_of(name), vector_of(name)
    ids, mask = padded([7, 4], "left", seed=2)
    found = []
    for cached in (True, False):
        with steer(model, vector, 1.5, layers=1, positions=where, read="resid_post.1") as watched:
            found.append(generate(model, ids, attention_mask=mask, use_cache=cached))
    assert torch.equal(found[0], found[1])
    for row, length in enumerate([7, 4]):
        with steer(model, vector, 1.5, layers=1, positions=where, read="resid_post.1") as alone:
            single = generate(model, ids[row : row + 1, 7 - length :])
        assert torch.equal(found[0][row, 7 - length :], single[0])
        torch.testing.assert_close(
            watched["resid_post.1"][row, 7 - length :], alone["resid_post.1"][0], atol=1e-3, rtol=1e-4
        )


@pytest.mark.parametrize("operation", ["add", "ablate", "affine", "clamp", "rotate"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_in_double_precision_the_cache_changes_nothing(name: str, operation: Any) -> None:
    model, vector = model_of(name, dtype=torch.float64), vector_of(name, torch.float64)
    plane = given_vector(model, torch.linspace(-1, 1, 32), layers=1) if operation == "rotate" else None
    streams = []
    for cached in (True, False):
        settings: dict[str, Any] = {"operation": operation, "layers": 1, "plane": plane, "positions": "predicting"}
        with steer(model, vector, 0.7, **settings, read=["resid_post.1", "resid_post.2"]) as watched:
            text = generate(model, PROMPT, use_cache=cached)
        streams.append((text, watched["resid_post.1"], watched["resid_post.2"]))
    assert torch.equal(streams[0][0], streams[1][0])
    for one, other in zip(streams[0][1:], streams[1][1:], strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)
    # One pass over the finished text, with a hook of our own, has the same stream.
    edits = steering_edits(model, vector, 0.7, **(settings | {"positions": slice(6, None)}))
    whole = run(model, text[:, :-1], edits=edits, read="resid_post.2")["resid_post.2"]
    torch.testing.assert_close(streams[0][2], whole, atol=1e-10, rtol=1e-10)


def test_every_operation_does_what_its_formula_says() -> None:
    model, vector = model_of("llama"), vector_of("llama")
    other = given_vector(model, torch.linspace(-1, 2, 32), layers=1, prompts=PROMPT)
    x = run(model, PROMPT, read="resid_post.1")["resid_post.1"].double()
    v = vector.directions[1].double()
    v = v / v.norm()
    along, unit = (x @ v)[..., None], float(vector.norms[1])
    low, high = float(vector.low[1]), float(vector.high[1])
    w = other.direction.double() / other.direction.double().norm()
    u = (v - (v @ w) * w) / (v - (v @ w) * w).norm()
    angle = math.radians(40)
    a, b = (x @ w)[..., None], (x @ u)[..., None]
    turned = x - a * w - b * u + (a * math.cos(angle) - b * math.sin(angle)) * w
    turned = turned + (a * math.sin(angle) + b * math.cos(angle)) * u
    cases: list[tuple[dict[str, Any], Tensor]] = [
        ({"operation": "add", "coefficient": 0.3}, x + 0.3 * unit * v),
        ({"operation": "add", "coefficient": 2, "scale": "raw"}, x + 2 * vector.directions[1].double()),
        ({"operation": "ablate"}, x - along * v),
        ({"operation": "ablate", "coefficient": 0.5}, x - 0.5 * along * v),
        ({"operation": "affine", "coefficient": 0.0}, x + (low - along) * v),
        ({"operation": "affine", "coefficient": 1.5}, x + (low + 1.5 * (high - low) - along) * v),
        ({"operation": "clamp", "coefficient": -0.4}, x + (-0.4 * unit - along) * v),
        ({"operation": "clamp", "coefficient": 3.0, "scale": "raw"}, x + (3.0 - along) * v),
        ({"operation": "rotate", "coefficient": 40.0, "plane": other}, turned),
    ]
    for settings, expected in cases:
        with steer(model, vector, layers=1, read="resid_post.1", **settings) as watched, torch.no_grad():
            model(PROMPT)
        torch.testing.assert_close(watched["resid_post.1"].double(), expected, atol=2e-5, rtol=1e-5, msg=str(settings))
    assert not torch.allclose(turned, x, atol=0.1)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))


def test_arithmetic_is_done_in_full_precision_and_cast_back() -> None:
    model = copy.deepcopy(model_of("llama")).to(torch.bfloat16)
    vector = vector_of("llama").for_model(model)
    x = run(model, PROMPT, read="resid_post.1")["resid_post.1"]
    assert x.dtype == torch.bfloat16
    v = vector.directions[1].double() / vector.directions[1].double().norm()
    wide = x.float()
    expected = (wide + (2.0 - (wide @ v.float())[..., None]) * v.float()).to(torch.bfloat16)
    edits = steering_edits(model, vector, 2.0, operation="clamp", layers=1, scale="raw")
    found = run(model, PROMPT, edits=edits, read="resid_post.1")["resid_post.1"]
    assert torch.equal(found, expected)
    # In half precision throughout it would be another number.
    half = x + (2.0 - (x @ v.bfloat16())[..., None]) * v.bfloat16()
    assert not torch.equal(found, half)


def test_several_layers_and_all_layers_are_steered_each_by_its_own_direction() -> None:
    model, vector = model_of("llama"), vector_of("llama")
    with torch.no_grad():
        with hooked(model, 0, adds(vector, 0, 0.2)), hooked(model, 2, adds(vector, 2, 0.2)):
            two = model(PROMPT).logits
        with steer(model, vector, 0.2, layers=[0, -1]):
            torch.testing.assert_close(model(PROMPT).logits, two, atol=1e-5, rtol=0)
        with hooked(model, 1, adds(vector, 1, 0.2)), steer(model, vector, 0.2, layers=[0, 2]):
            three = model(PROMPT).logits
        for layers in (None, "all"):
            with steer(model, vector, 0.2, layers=layers):
                torch.testing.assert_close(model(PROMPT).logits, three, atol=1e-5, rtol=0)
    assert not torch.allclose(two, three, atol=1e-3)


def test_one_direction_goes_to_any_layer_with_the_length_of_that_layer() -> None:
    model, vector = model_of("llama"), vector_of("llama").at(1)
    x = run(model, PROMPT, read="resid_post.2")["resid_post.2"]
    with steer(model, vector, 0.5, layers=2, read="resid_post.2") as watched, torch.no_grad():
        model(PROMPT)
    moved = (watched["resid_post.2"] - x).norm(dim=-1)
    torch.testing.assert_close(moved, (0.5 * vector.norms[2]).expand_as(moved), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_ablation_of_all_writers_leaves_nothing_along_the_direction(name: str) -> None:
    model, vector = model_of(name), vector_of(name).at(1)
    v = vector.units[0]
    reads = ["resid_pre", "resid_post"]
    with steer(model, vector, operation="ablate", layers="writers", read=reads) as watched:
        generate(model, PROMPT)
    for layer in range(vector.num_layers):
        for site in (f"resid_pre.{layer}", f"resid_post.{layer}"):
            assert (watched[site] @ v).abs().max() < 1e-4, site
    plain = run(model, PROMPT, read=reads)
    assert all((x @ v).abs().max() > 0.01 for x in plain.values())


def test_a_gate_lets_through_the_tokens_that_it_opens_for() -> None:
    model, vector = model_of("llama"), vector_of("llama")
    reading = torch.linspace(-1, 1, 32)
    for site, layer in ((None, 1), ("resid_post.0", 0)):
        x = run(model, PROMPT, read="resid_post")
        scores = x[f"resid_post.{layer}"] @ reading
        threshold = float(scores.median())
        for above in (True, False):
            gate = Gate(direction=reading, threshold=threshold, above=above, site=site)
            opened = (scores > threshold if above else scores < threshold)[..., None]
            assert 0 < opened.sum() < opened.numel()
            with steer(model, vector, 0.5, layers=1, when=gate, read="resid_post.1") as watched, torch.no_grad():
                model(PROMPT)
            plain = x["resid_post.1"]
            expected = torch.where(opened, adds(vector, 1, 0.5)(plain), plain)
            torch.testing.assert_close(watched["resid_post.1"], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("site", [None, "resid_post.0", "mlp_out.1"])
def test_a_gate_means_the_same_with_the_cache_and_in_a_batch(site: str | None) -> None:
    model, vector = model_of("llama"), vector_of("llama")
    gate = Gate(direction=torch.linspace(-1, 1, 32), threshold=0.1, site=site)
    ids, mask = padded([7, 4], "left", seed=2)
    texts = []
    for cached in (True, False):
        with steer(model, vector, 2.0, layers=1, when=gate, positions="generated"):
            texts.append(generate(model, ids, attention_mask=mask, use_cache=cached))
    assert torch.equal(texts[0], texts[1])
    with steer(model, vector, 2.0, layers=1, positions="generated"):
        assert not torch.equal(generate(model, ids, attention_mask=mask), texts[0])  # it was shut for some
    for row, length in enumerate([7, 4]):
        with steer(model, vector, 2.0, layers=1, when=gate, positions="generated"):
            assert torch.equal(generate(model, ids[row : row + 1, 7 - length :])[0], texts[0][row, 7 - length :])


def test_a_probe_makes_a_gate() -> None:
    gate = Gate.of_probe(torch.tensor([2.0, 0.0]), -1.0)
    assert gate.opens(torch.tensor([[[0.4, 5.0], [0.6, 5.0]]])).tolist() == [[False, True]]


def test_beam_search_is_steered_in_every_beam() -> None:
    model, vector, both = model_of("llama"), vector_of("llama"), tokens(2, 7, seed=3)
    plain = generate(model, both, num_beams=3)
    texts = []
    for cached in (True, False):
        with steer(model, vector, 1.0, layers=1, positions="predicting"):
            texts.append(generate(model, both, num_beams=3, use_cache=cached))
    assert torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], plain)
    for row in (0, 1):
        with steer(model, vector, 1.0, layers=1, positions="predicting"):
            assert torch.equal(generate(model, both[row : row + 1], num_beams=3)[0], texts[0][row])
    with steer(model, vector, 1.0, layers=1, rows=[1], prompts=both):
        found = generate(model, both, num_beams=3)
    assert torch.equal(found[0], plain[0])
    assert not torch.equal(found[1], plain[1])


def test_sampling_follows_its_seed_with_the_cache_and_without() -> None:
    model, vector = model_of("llama"), vector_of("llama")

    def sample(cached: bool) -> Tensor:
        torch.manual_seed(5)
        return generate(model, PROMPT, do_sample=True, top_k=0, use_cache=cached)

    plain = sample(True)
    with steer(model, vector, 4.0, layers=1, positions="predicting"):
        first = sample(True)
    with steer(model, vector, 4.0, layers=1, positions="predicting"):
        assert torch.equal(sample(False), first)
    assert not torch.equal(first, plain)


def test_a_pipeline_is_steered_in_batches_as_alone() -> None:
    model, vector, tokenizer = model_of("llama"), vector_of("llama"), word_tokenizer()
    texts = [text_of(tokens(1, n, seed=n)[0]) for n in (7, 4)]
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
    options: dict[str, Any] = {
        "do_sample": False,
        "max_new_tokens": NEW,
        "eos_token_id": None,
        "return_full_text": False,
    }
    with steer(model, vector, 1.5, layers=1, positions="predicting"):
        alone = [pipe(text, **options)[0]["generated_text"] for text in texts]
    with steer(model, vector, 1.5, layers=1, positions="predicting"):
        together = [found[0]["generated_text"] for found in pipe(texts, batch_size=2, **options)]
    assert together == alone
    for text, answer in zip(texts, alone, strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        columns = slice(ids.shape[1] - 1, None)
        expected = greedy(model, ids, 1, at(columns, adds(vector, 1, 1.5)))[0, ids.shape[1] :]
        assert answer.split() == tokenizer.decode(expected).split()


def test_text_that_streams_is_steered(capsys: pytest.CaptureFixture[str]) -> None:
    model, vector, tokenizer = model_of("llama"), vector_of("llama"), word_tokenizer()
    with steer(model, vector, 1.5, layers=1):
        text = generate(model, PROMPT, streamer=TextStreamer(tokenizer, skip_prompt=True))
    assert capsys.readouterr().out.split() == tokenizer.decode(text[0, 7:]).split()
    assert torch.equal(text, greedy(model, PROMPT, 1, adds(vector, 1, 1.5)))
    # A thread of its own enters the block itself.
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)

    def work() -> None:
        with steer(model, vector, 1.5, layers=1):
            generate(model, PROMPT, streamer=streamer)

    thread = threading.Thread(target=work)
    thread.start()
    streamed = "".join(streamer).split()
    thread.join()
    assert streamed == tokenizer.decode(text[0, 7:]).split()


def test_the_tokens_of_a_text_are_steered() -> None:
    model, vector, tokenizer = model_of("llama"), vector_of("llama"), word_tokenizer()
    text = text_of(PROMPT[0])
    span = text.split()[3]
    with steer(model, vector, 1.5, layers=1, positions=Span(span), prompts=text, tokenizer=tokenizer):
        found = generate(model, PROMPT)
    assert torch.equal(found, greedy(model, PROMPT, 1, at([3], adds(vector, 1, 1.5))))


def touched(model: Any) -> list[tuple[dict[int, Any], dict[int, Any], bool]]:
    """Hooks of every module, and whether its forward was replaced."""
    return [(dict(m._forward_hooks), dict(m._forward_pre_hooks), "forward" in vars(m)) for m in model.modules()]


def test_blocks_nest_and_errors_leave_the_model_as_it_was() -> None:
    model, vector = model_of("llama"), vector_of("llama")
    before = touched(model)
    with torch.no_grad():
        plain = model(PROMPT).logits
        with hooked(model, 0, adds(vector, 0, 0.5)), hooked(model, 1, adds(vector, 1, -0.5)):
            both = model(PROMPT).logits
        with steer(model, vector, 0.5, layers=0):
            with steer(model, vector, -0.5, layers=1):
                torch.testing.assert_close(model(PROMPT).logits, both, atol=1e-5, rtol=0)
            with hooked(model, 1, adds(vector, 1, -0.5)):
                torch.testing.assert_close(model(PROMPT).logits, both, atol=1e-5, rtol=0)
        with pytest.raises(KeyError, match="mine"), steer(model, vector, 0.5), steer(model, vector, 1.0):
            raise KeyError("mine")
        assert torch.equal(model(PROMPT).logits, plain)
    assert touched(model) == before


def test_steering_that_never_happened_is_reported() -> None:
    model, vector = model_of("llama"), vector_of("llama")
    with pytest.raises(EditError, match="never fired"), steer(model, vector, 1.0, layers=1, positions="generated"):
        generate(model, PROMPT, max_new_tokens=1)
    with pytest.raises(EditError, match="never fired"), steer(model, vector, 1.0):
        pass
    with pytest.raises(EditError, match="never fired"), steer(model, vector, 1.0, positions=40):
        generate(model, PROMPT)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"layers": 3}, SiteError, "but the model has 3 layers"),
        ({"layers": []}, SteeringError, "no layer was asked for"),
        ({"layers": "some"}, SteeringError, "'all' or 'writers', not 'some'"),
        ({"layers": "writers"}, SteeringError, "is for operation='ablate' with one direction"),
        ({"operation": "multiply"}, SteeringError, "an operation is add, ablate"),
        ({"operation": "rotate"}, SteeringError, "needs plane="),
        ({"scale": "std"}, SteeringError, "'norm' or 'raw'"),
        ({"coefficient": math.nan}, SteeringError, "a coefficient is a number"),
        ({"rows": []}, SteeringError, "no rows were given"),
        ({"when": Gate(direction=torch.ones(31))}, SteeringError, "has 31 entries, but activations have 32"),
        ({"when": Gate(direction=torch.ones(32), site="resid_post.2"), "layers": 1}, SteeringError, "comes behind"),
        ({"when": Gate(direction=torch.ones(32), site="z.0"), "layers": 1}, SteeringError, "reads a vector for each"),
    ],
)
def test_settings_that_mean_nothing_are_refused(
    settings: dict[str, Any], error: type[Exception], message: str, unchecked: None
) -> None:
    del unchecked
    with pytest.raises(error, match=message), steer(model_of("llama"), vector_of("llama"), **settings):
        pass


def test_what_a_vector_does_not_know_is_said() -> None:
    model = model_of("llama")
    bare = given_vector(model, torch.linspace(-1, 1, 32), layers=1)
    with pytest.raises(SteeringError, match=r"length of activations at resid_post\.1 is not known"):
        steering_edits(model, bare, 1.0)
    assert steering_edits(model, bare, 1.0, scale="raw")
    with pytest.raises(SteeringError, match="this vector is by given"):
        steering_edits(model, bare, 1.0, operation="affine")
    with pytest.raises(SteeringError, match="no plane"):
        steering_edits(model, bare, 90.0, operation="rotate", plane=-bare)
    with pytest.raises(SteeringError, match="there is no direction for layer 2: there are those of"):
        steering_edits(model, vector_of("llama").at(0, 1), 1.0, layers=2)
    with pytest.raises(SteeringError, match="not for GPT2LMHeadModel"):
        steering_edits(model_of("gpt2"), bare, 1.0)
    with pytest.raises(SteeringError, match="finite and not zero"):
        Gate(direction=torch.zeros(4))
