"""Text, ids and encodings become padded tokens, and tokens become text for people."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import BatchEncoding, PreTrainedTokenizerFast

from interp_toolkit.errors import AlignmentError, PositionError, TokenError
from interp_toolkit.model import Edit, Span, encode, run
from interp_toolkit.model.tokens import answer_token, check_same_length, side_by_side, token_string, tokenizer_for
from tiny import tiny_model

WORDS = ["ĠParis", "Paris", "ĠRome", "Ġis", "Ġin", "The", "ĠThe", "Ġtower", "ĠP"]


@cache
def byte_tokenizer(*, adds_start: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer in the manner of GPT-2 that knows a few words."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = {piece: number for number, piece in enumerate(["<s>", "<pad>", *letters])}
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        left = word[0]
        for letter in word[1:]:
            if (left, letter) not in merges:
                merges.append((left, letter))
            left += letter
            pieces.setdefault(left, len(pieces))
    inner = Tokenizer(models.BPE(vocab=pieces, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    if adds_start:
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", pad_token="<pad>", padding_side="left")


def test_texts_are_padded_on_the_side_of_the_tokenizer_or_as_asked() -> None:
    tokens = encode(["The tower", "The tower is in"], tokenizer=byte_tokenizer())
    assert tokens.mask.tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
    assert tokens.ids[0, :2].tolist() == [1, 1]
    assert tokens.lengths.tolist() == [2, 4]
    assert tokens.strings(0) == ["The", " tower"]
    assert tokens.padded
    assert not tokens.single
    right = encode(["The tower", "The tower is in"], tokenizer=byte_tokenizer(), padding_side="right")
    assert right.mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert right.row(0) == tokens.row(0)
    assert encode("The tower", tokenizer=byte_tokenizer()).single


@pytest.mark.parametrize(
    "inputs",
    [
        [3, 4, 5],
        torch.tensor([3, 4, 5]),
        {"input_ids": [3, 4, 5]},
        {"input_ids": torch.tensor([3, 4, 5]), "attention_mask": [1, 1, 1]},
    ],
    ids=["list", "tensor", "mapping", "mapping with mask"],
)
def test_one_prompt_of_ids_is_single(inputs: Any) -> None:
    tokens = encode(inputs)
    assert tokens.ids.tolist() == [[3, 4, 5]]
    assert tokens.mask.tolist() == [[1, 1, 1]]
    assert tokens.single
    assert tokens.strings() == ["3", "4", "5"]


def test_batches_of_ids_and_encodings() -> None:
    rows = encode([[3, 4, 5], [6]])
    assert rows.mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert rows.row(1) == [6]
    encoding = byte_tokenizer()(["The tower", "The tower is"], padding=True, return_tensors="pt")
    assert isinstance(encoding, BatchEncoding)
    tokens = encode(encoding)
    assert torch.equal(tokens.ids, encoding["input_ids"])
    assert torch.equal(tokens.mask, encoding["attention_mask"])
    assert encode(tokens) is tokens


def test_an_encoding_without_padding_is_padded() -> None:
    tokens = encode({"input_ids": [[1, 2], [1]]})
    assert tokens.ids.tolist() == [[1, 2], [0, 1]]
    assert tokens.mask.tolist() == [[1, 1], [0, 1]]


@pytest.mark.usefixtures("unchecked")
def test_integers_of_numpy_are_token_ids() -> None:
    assert encode([np.int64(3), np.int64(4)]).ids.tolist() == [[3, 4]]
    assert encode([[np.int32(3)], [np.int64(4)]]).ids.tolist() == [[3], [4]]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([], "expected text, token ids or an encoding, not list"),
        (3, "not int 3"),
        ([[]], "prompt 0 has no tokens: it is empty"),
        ([[3], []], "prompt 1 has no tokens"),
        (torch.tensor([0.5]), "token ids are integers"),
        (torch.tensor([True]), "token ids are integers"),
        (torch.zeros(1, 1, 1, dtype=torch.long), r"\[pos\] or \[batch, pos\], not torch.int64 \(1, 1, 1\)"),
        ({"ids": [1]}, r"needs input_ids, but has \['ids'\]"),
        ([1.5], "a prompt is a text or a list of token ids, not 1.5"),
        ([[1, 2.7]], r"a prompt is a text or a list of token ids, not \[1, 2.7\]"),
        ([[1, "3"]], r"a prompt is a text or a list of token ids, not \[1, '3'\]"),
        (["a", 1], "a prompt is a text or a list of token ids, not 'a'"),
        ([True, False], "a prompt is a text or a list of token ids, not True"),
        (
            {"input_ids": torch.ones(2, 3).long(), "attention_mask": torch.ones(3, 2).long()},
            r"the attention mask has shape \(3, 2\), but the token ids have \(2, 3\)",
        ),
        ({"input_ids": [[1, 2]], "attention_mask": [[0, 0]]}, "all zeros: that prompt has no tokens"),
        ({"input_ids": [[1, 2, 3]], "attention_mask": [[1, 0, 1]]}, "the attention mask has holes"),
        ("text", "text was given, but no tokenizer: pass tokenizer="),
    ],
)
def test_what_cannot_be_run_is_refused(inputs: Any, words: str) -> None:
    with pytest.raises(TokenError, match=words):
        encode(inputs)


def test_an_empty_text_is_refused_unless_the_tokenizer_starts_it() -> None:
    with pytest.raises(TokenError, match="prompt 1 has no tokens: '' is empty"):
        encode(["The", ""], tokenizer=byte_tokenizer())
    assert encode("", tokenizer=byte_tokenizer(adds_start=True)).row() == [0]


def test_a_doubled_start_token_is_refused() -> None:
    assert encode("The", tokenizer=byte_tokenizer(adds_start=True)).strings()[0] == "<s>"
    assert encode("<s>The", tokenizer=byte_tokenizer()).row()[0] == 0
    with pytest.raises(
        TokenError, match=r"begins with the start token '<s>', and the tokenizer adds it too: leave it out"
    ):
        encode("<s>The", tokenizer=byte_tokenizer(adds_start=True))


@pytest.mark.parametrize("start", [False, True])
def test_substrings_are_found_behind_accents_and_emoji(start: bool) -> None:
    tokenizer = byte_tokenizer(adds_start=start)
    prompt = "é🙂 Paris is ünder 🙂 The tower"
    tokens = encode(prompt, tokenizer=tokenizer)

    def text_of(substring: str, **where: Any) -> str:
        ids = [tokens.row()[n] for n in tokens.find(substring, **where)]
        return str(tokenizer.decode(ids))

    assert text_of("Paris") == " Paris"
    assert text_of("tower") == " tower"
    assert text_of("é") == "é"
    assert text_of("ünder").strip() == "ünder"
    assert text_of("🙂").strip() == "🙂"
    assert len(tokens.find("🙂")) >= 4  # each byte is a token
    assert text_of("🙂", occurrence=1).strip() == "🙂"
    assert max(tokens.find("🙂")) < min(tokens.find("Paris")) < min(tokens.find("🙂", occurrence=-1))
    with pytest.raises(PositionError, match="'London' occurs 0 times"):
        tokens.find("London")
    with pytest.raises(PositionError, match=r"are not known: give the prompt as text \(with a fast tokenizer\)"):
        encode([3, 4]).find("Paris")


def test_spans_of_a_padded_batch_select_the_tokens_of_their_text() -> None:
    model, tokenizer = tiny_model("gpt2"), byte_tokenizer()
    model.resize_token_embeddings(len(tokenizer))
    texts = ["The tower is in", "é The tower"]
    tokens = encode(texts, tokenizer=tokenizer)
    edit = Edit.set("resid_pre.1", 0.0, positions=Span("tower"))
    found = run(model, texts, tokenizer=tokenizer, edits=[edit], read="resid_pre.1")["resid_pre.1"]
    zero = (found == 0).all(-1)
    assert zero.sum(-1).tolist() == [1, 1]
    for row in (0, 1):
        (column,) = zero[row].nonzero().flatten().tolist()
        assert tokenizer.decode([int(tokens.ids[row, column])]) == " tower"


def test_tokens_are_shown_as_people_read_them() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer("The tower", add_special_tokens=False)["input_ids"]
    assert [token_string(tokenizer, i) for i in ids] == ["The", " tower"]
    parts = [token_string(tokenizer, i) for i in tokenizer("🙂")["input_ids"]]
    assert "�" not in "".join(parts)
    assert len(set(parts)) == len(parts) > 1
    assert token_string(None, 7) == "7"


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [
        ("The tower is in", "Paris", "ĠParis"),
        ("The tower is in", " Paris", "ĠParis"),
        ("The tower is in ", "Paris", "Paris"),
    ],
)
def test_an_answer_is_the_token_that_continues_the_prompt(prompt: str, answer: str, expected: str) -> None:
    tokenizer = byte_tokenizer()
    assert answer_token(prompt, answer, tokenizer) == tokenizer.convert_tokens_to_ids(expected)


def test_an_answer_of_several_tokens_is_refused_with_its_tokens() -> None:
    tokenizer = byte_tokenizer()
    with pytest.raises(TokenError) as caught:
        answer_token("The tower is in", "Prague", tokenizer)
    assert "the answer 'Prague' is not one token after the prompt: ' Prague' is " in str(caught.value)
    assert "[' P', 'r', 'a', 'g', 'u', 'e']" in str(caught.value)
    assert "Use a one-token answer or a token id" in str(caught.value)
    assert answer_token("The", 5, tokenizer) == 5
    with pytest.raises(TokenError, match="token id -1 is outside of the vocabulary: ids count from 0"):
        answer_token("The", -1, tokenizer)
    with pytest.raises(TokenError, match="the answer 'Paris' is text, but there is no tokenizer"):
        answer_token("The", "Paris", None)
    with pytest.raises(TokenError, match="the answer '  ' is empty"):
        answer_token("The", "  ", tokenizer)


def test_prompts_of_unequal_length_are_shown_side_by_side() -> None:
    tokenizer = byte_tokenizer()
    clean, corrupt = encode("The tower is in", tokenizer=tokenizer), encode("The Paris is", tokenizer=tokenizer)
    with pytest.raises(AlignmentError) as caught:
        check_same_length(clean, corrupt)
    message = str(caught.value)
    assert "the clean prompt has 4 tokens and the corrupt one 3; they first differ at position 1" in message
    assert [line.split()[0] for line in message.splitlines()[1:6]] == ["pos", "0", "1", "2", "3"]
    assert "1  ' tower'  ' Paris'  *" in message
    assert "3  ' in'     -         *" in message
    check_same_length(clean, clean)
    assert side_by_side(["a"], ["a"]).splitlines()[1].endswith("'a'")


def test_a_model_of_unknown_origin_needs_a_tokenizer() -> None:
    with pytest.raises(
        TokenError, match="does not say where it comes from, so its tokenizer is unknown: pass tokenizer="
    ):
        tokenizer_for(tiny_model("gpt2"))
    with pytest.raises(TokenError, match="does not say where it comes from"):
        run(tiny_model("gpt2"), "The tower")
    model = tiny_model("gpt2")
    model.config._name_or_path = "/nowhere/at/all"
    with pytest.raises(TokenError, match=r"no tokenizer could be loaded for '/nowhere/at/all' .*pass tokenizer="):
        tokenizer_for(model)
    assert tokenizer_for(model, byte_tokenizer()) is byte_tokenizer()
