"""Probes on other data than they were trained on."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import tiny
from interp_toolkit.errors import ProbeError
from interp_toolkit.probes.data import ProbeData
from interp_toolkit.probes.transfer import transfer_matrix


def made(name: str, words: tuple[str, str], *, flip: bool = False) -> ProbeData:
    """Texts that end in one of two words, which decides the label."""
    texts = [f"{first} {second} {words[n % 2]}" for n, (first, second) in enumerate(NAMES)]
    labels = [["no", "yes"][(n + flip) % 2] for n in range(len(texts))]
    return ProbeData.of(texts, labels, groups=[str(n // 2) for n in range(len(texts))], name=name)


def tokenizer_of(number: int) -> PreTrainedTokenizerFast:
    """Knows the words w0, w1, ..., one token each."""
    inner = Tokenizer(models.WordLevel({f"w{n}": n for n in range(number)}, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="w0")


NAMES = [(f"w{n % 10}", f"w{n // 4}") for n in range(40)]


def test_a_probe_holds_on_data_with_the_same_meaning_and_fails_on_its_opposite() -> None:
    model = tiny.model_of("llama")
    same, again, other = made("same", ("w3", "w7")), made("again", ("w3", "w7")), made("other", ("w3", "w7"), flip=True)
    found = transfer_matrix(model, [same, again, other], layer=0, tokenizer=tokenizer_of(20))
    assert found.names == ("same", "again", "other")
    torch.testing.assert_close(found.accuracy[0, :2], torch.ones(2, dtype=torch.float64))
    assert float(found.accuracy[0, 2]) == 0
    assert float(found.auroc[2, 0]) == 0
    assert float(found.cosine[0, 2]) == pytest.approx(-1, abs=1e-3)
    assert "0.00 at worst" in found.summary()
    assert len(found.to_dataframe()) == 9
    assert "<svg" in found.plot().to_svg()


def test_sets_that_cannot_be_compared_are_refused() -> None:
    a, b = made("a", ("w1", "w2")), ProbeData.of(["w1", "w2"], ["up", "down"], name="b")
    with pytest.raises(ProbeError, match="the same classes, but a has"):
        transfer_matrix(None, [a, b], layer=0)
    with pytest.raises(ProbeError, match="different names"):
        transfer_matrix(None, [a, a], layer=0)
