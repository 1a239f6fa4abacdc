"""The first look at one fact: its numbers against the model's own and single patches, its page against malice."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interp_toolkit import Span, activation_patch
from interp_toolkit.showcase import Showcase, showcase

CLEAN, CORRUPT = "The Eiffel Tower is in", "The Colosseum is in"
Model = tuple[PreTrainedModel, PreTrainedTokenizerBase]


NOTES: list[str] = []


@pytest.fixture(scope="module")
def found(demo: Model) -> Showcase:
    NOTES.clear()
    return showcase(*demo, note=NOTES.append)


def ids(demo: Model, text: str) -> Tensor:
    return torch.tensor([demo[1](text)["input_ids"]])


def test_answers_are_the_models_own(demo: Model, found: Showcase) -> None:
    with torch.no_grad():
        best = demo[0](ids(demo, found.prompt)).logits[0, -1].softmax(-1).topk(3)
    assert [t for t, _ in found.answers] == [demo[1].decode([i]) for i in best.indices]
    assert [p for _, p in found.answers] == pytest.approx(best.values.tolist(), rel=1e-4)
    assert found.answers[0][0] == " Paris"


def test_heads_are_those_of_eager_attention(demo: Model, found: Showcase) -> None:
    model = demo[0]
    where = [demo[1].decode([i]) for i in ids(demo, found.prompt)[0]].index(" France")
    kept = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            attentions = model(ids(demo, found.prompt), output_attentions=True).attentions
    finally:
        model.set_attn_implementation(kept)
    shares = torch.stack([a[0, :, -1, where] for a in attentions])
    best = shares.flatten().topk(len(found.heads))
    names = [f"L{int(i) // shares.shape[1]}H{int(i) % shares.shape[1]}" for i in best.indices]
    assert [name for name, _ in found.heads] == names
    assert [share for _, share in found.heads] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert len(found.heads) >= 3


def test_effects_are_those_of_single_patches(demo: Model, found: Showcase) -> None:
    assert list(found.effects) == ["the subject's last token", "the last token"]
    for place, where in zip(found.effects, (Span("Eiffel Tower", token=-1), -1), strict=True):
        for component, values in found.effects[place].items():
            assert len(values) == 30
            for layer in (0, 21):
                single = activation_patch(
                    *(demo[0], CLEAN, CORRUPT),
                    answers=(" Paris", " Rome"),
                    patch_layer=layer,
                    patch_component=component,
                    positions=where,
                )
                assert values[layer] == pytest.approx(single.normalized_effect, abs=1e-3)


def test_the_residual_stream_moves_from_the_subject_to_the_end(found: Showcase) -> None:
    subject, last = (found.effects[place]["resid"] for place in found.effects)
    assert last[0] == pytest.approx(0, abs=1e-4)  # the same token in both prompts
    assert last[-1] > 0.8
    assert abs(subject[-1]) < 0.2


def test_every_number_of_the_sentence_was_measured(found: Showcase) -> None:
    subject, last = found.effects
    attention = found.effects[last]["attn"]
    layer = max(range(30), key=lambda n: abs(attention[n]))
    assert found.strongest(last, "attn") == (layer, attention[layer])
    words = found.sentence()
    numbers = [int(n) for n in re.findall(r"(-?\d+)%", words)]
    behind = min(layer + 1, 29)
    at_subject, at_last = (found.effects[place]["resid"] for place in (subject, last))
    expected = [attention[layer], at_last[layer], at_last[behind], at_subject[0], at_subject[layer], at_subject[behind]]
    assert numbers == [round(100 * x) for x in expected]
    assert f"layer {layer} " in words


def test_it_says_what_it_does_before_each_step(found: Showcase) -> None:
    del found
    assert len(NOTES) >= 2
    assert any("patch" in note for note in NOTES)
