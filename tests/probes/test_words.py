"""Words are found, and their tokens by offsets, which are written out by hand here."""

from __future__ import annotations

import unicodedata
from itertools import pairwise
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from interp_toolkit.errors import ProbeError, TokenError
from interp_toolkit.probes.words import WordAlignment, align, align_words, label_tokens, tokens_of_words, word_spans
from tasks.offline import byte_tokenizer, word_tokenizer

ACUTE = "\u0301"
SCIENTIST = "\U0001f469\u200d\U0001f52c"
FLAG = "\U0001f1eb\U0001f1f7"
THUMB = "\U0001f44d\U0001f3fd"


def cut(text: str) -> list[str]:
    return [text[start:end] for start, end in word_spans(text)]


# --- words --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (" \t\n", []),
        ("The cat, too.", ["The", "cat", ",", "too", "."]),
        ("Don't, don\u2019t!", ["Don't", ",", "don\u2019t", "!"]),
        ("the dogs' well-known 'a'", ["the", "dogs", "'", "well-known", "'", "a", "'"]),
        ("rock 'n' roll -- yes", ["rock", "'", "n", "'", "roll", "-", "-", "yes"]),
        ("3.14 or 1,000.", ["3.14", "or", "1,000", "."]),
        ("a.b x2 e.g.", ["a", ".", "b", "x2", "e", ".", "g", "."]),
        ("my_name", ["my", "_", "name"]),
        ("...", [".", ".", "."]),
        (f"cafe{ACUTE} re{ACUTE}sume{ACUTE}", [f"cafe{ACUTE}", f"re{ACUTE}sume{ACUTE}"]),
        (f"e{ACUTE}-e{ACUTE}", [f"e{ACUTE}-e{ACUTE}"]),
        (f"I{SCIENTIST}{THUMB}{FLAG}{FLAG}!", ["I", SCIENTIST, THUMB, FLAG, FLAG, "!"]),
        ("\u2764\ufe0f1\ufe0f\u20e3", ["\u2764\ufe0f", "1\ufe0f\u20e3"]),
        ("猫はIBMで。", ["猫", "は", "IBM", "で", "。"]),
        ("か\u3099 한국어 문장", ["か\u3099", "한국어", "문장"]),
        ("שלום, עולם", ["שלום", ",", "עולם"]),
        ("צה״ל مرحبا\u060c بك", ["צה״ל", "مرحبا", "\u060c", "بك"]),
        ("نیم\u200cفصل क्\u200dष", ["نیم\u200cفصل", "क्\u200dष"]),
        ("\ufeffthe \u200fא", ["the", "א"]),
        ("ab\u00adcd ef\u200f!", ["ab\u00adcd", "ef\u200f", "!"]),
        ("\u3000全\u3000角", ["全", "角"]),
    ],
)
def test_words_are_runs_of_letters_and_single_signs(text: str, words: list[str]) -> None:
    assert cut(text) == words


@pytest.mark.parametrize("character", ["\u200b", ACUTE, "a", " ", "'", "\U0001f44d", "\U0001f1eb"])
def test_long_runs_are_cut_without_recursion(character: str) -> None:
    text = character * 3000
    spans = word_spans(text)
    assert all(a < b for a, b in spans)
    assert all(first[1] <= second[0] for first, second in pairwise(spans))


@pytest.mark.parametrize(
    ("words", "text", "spans"),
    [
        (["the", "cat"], "the cat", [(0, 3), (4, 7)]),
        (["do", "n't", "stop"], "I do n't don't stop", [(2, 4), (5, 8), (15, 19)]),
        (["do", "n't", "stop"], "I don't stop", [(2, 4), (4, 7), (8, 12)]),
        (["a"], "the cat sat on a mat", [(15, 16)]),
        (["at", "mat"], "cat at the mat", [(4, 6), (11, 14)]),
        (["the", "the"], "the other the", [(0, 3), (10, 13)]),
        (["art"], "state-of-the-art", [(13, 16)]),
        (["自然", "语言"], "自然语言", [(0, 2), (2, 4)]),
        (["แมว", "กิน"], "แมวกิน", [(0, 3), (3, 6)]),
        (["New York", "."], "In New York.", [(3, 11), (11, 12)]),
        (["e"], f"e{ACUTE} e", [(3, 4)]),
        (["$", "5"], "for $5", [(4, 5), (5, 6)]),
        ([], "text", []),
    ],
)
def test_given_words_are_found_one_after_another(words: list[str], text: str, spans: list[tuple[int, int]]) -> None:
    assert align(words, text) == spans


@pytest.mark.parametrize(
    ("words", "text", "said"),
    [
        (["the", "dog"], "the cat", r"word 1, 'dog', is not a word of the text from character 3 on: ' cat'$"),
        (["cat", "the"], "the cat", r"word 1, 'the', .* from character 7 on: ''; it stands earlier: give words in the"),
        (["a"], "the cat", "word 0, 'a', .*; there it is only a part of another word"),
        (["do", "stop"], "don't stop", "word 0, 'do', .*only a part of another word"),
        (["é"], f"e{ACUTE}", "other Unicode characters: normalise both"),
        (["the", " "], "the cat", "word 1 is empty"),
        (["x"], "a" * 50, r"on: 'a{40}\.\.\.'"),
    ],
)
def test_a_word_that_is_not_there_is_named(words: list[str], text: str, said: str) -> None:
    with pytest.raises(ProbeError, match=said):
        align(words, text)


# --- tokens by offsets written by hand ----------------------------------------------------------------------------

#        0123456789012345
TEXT = "the lakeside hut"
WORDS = [(0, 3), (4, 12), (13, 16)]

BLANK_INSIDE = [(0, 3), (3, 8), (8, 12), (12, 16)]  # byte-level, untrimmed: " lake" begins at the blank
BLANK_OUTSIDE = [(0, 3), (4, 8), (8, 12), (13, 16)]  # byte-level, trimmed, and most others
BLANK_ALONE = [(0, 3), (3, 4), (4, 8), (8, 12), (12, 13), (13, 16)]
SPECIAL = [(0, 0), *BLANK_OUTSIDE, (0, 0), (0, 0)]


@pytest.mark.parametrize(
    ("offsets", "found"),
    [
        (BLANK_INSIDE, ((0,), (1, 2), (3,))),
        (BLANK_OUTSIDE, ((0,), (1, 2), (3,))),
        (BLANK_ALONE, ((0,), (2, 3), (5,))),
        (SPECIAL, ((1,), (2, 3), (4,))),
        ([(0, 3), (4, 4), (4, 12), (13, 16)], ((0,), (2,), (3,))),
        ([(0, 5), (5, 14), (14, 16)], ((0,), (0, 1), (1, 2))),
        ([(0, 16)], ((0,), (0,), (0,))),
        (BLANK_INSIDE[:3], ((0,), (1, 2), ())),
        (BLANK_INSIDE[:2], ((0,), (), ())),
        (BLANK_OUTSIDE[2:], ((), (), (1,))),
        ([(0, 3), (13, 16)], ((0,), (), (1,))),
        ([(0, 0)], ((), (), ())),
        ([], ((), (), ())),
    ],
    ids=[
        "inside", "outside", "alone", "special", "zero-width", "merged", "one token", "truncated", "within a word",
        "truncated on the left", "dropped", "nothing but special", "nothing",
    ],
)  # fmt: skip
def test_tokens_belong_to_the_words_that_they_cover(offsets: Any, found: tuple[tuple[int, ...], ...]) -> None:
    assert tokens_of_words(WORDS, offsets, which="all") == found
    assert tokens_of_words(WORDS, offsets) == tuple(tokens[-1:] for tokens in found)
    assert tokens_of_words(WORDS, offsets, which="first") == tuple(tokens[:1] for tokens in found)
    aligned = align_words(offsets, TEXT)
    assert aligned.tokens == found
    assert aligned.missing == tuple(n for n, tokens in enumerate(found) if not tokens)
    assert aligned.length == len(offsets)


def test_several_tokens_share_a_character() -> None:
    # "hi 👍🏽!": each of the two characters of the thumb is four bytes, each byte a token, as byte-level tokenizers say
    offsets = [(0, 2), (2, 3), *[(3, 4)] * 4, *[(4, 5)] * 4, (5, 6)]
    aligned = align_words(offsets, f"hi {THUMB}!")
    assert aligned.words == ("hi", THUMB, "!")
    assert aligned.tokens == ((0,), (2, 3, 4, 5, 6, 7, 8, 9), (10,))
    assert aligned.merged == ()


def test_sentencepiece_gives_the_blank_to_the_word_behind() -> None:
    # ▁Le, ▁ca, f, é, . after a start token
    aligned = align_words([(0, 0), (0, 2), (2, 5), (5, 6), (6, 7), (7, 8)], "Le café.")
    assert aligned.words == ("Le", "café", ".")
    assert aligned.tokens == ((1,), (2, 3, 4), (5,))


def test_right_to_left_text_counts_in_the_order_of_reading() -> None:
    # "שלום עולם" in the order in which it is stored
    aligned = align_words([(0, 2), (2, 4), (4, 9)], "שלום עולם", words=["שלום", "עולם"])
    assert aligned.tokens == ((0, 1), (2,))


def test_a_mark_that_a_normalizer_composed_is_no_truncation() -> None:
    assert align_words([(0, 1), (1, 2), (2, 3), (3, 4)], f"cafe{ACUTE}").tokens == ((0, 1, 2, 3),)
    assert align_words([(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (4, 5)], f"cafe{ACUTE}").tokens == ((0, 1, 2, 3, 4, 5),)
    assert align_words([(0, 1), (1, 2), (2, 3)], f"cafe{ACUTE}").missing == (0,)


def test_tokens_of_two_words_are_reported() -> None:
    aligned = align_words([(0, 5), (5, 14), (14, 16)], TEXT)
    assert aligned.merged == (0, 1)
    assert align_words(BLANK_INSIDE, TEXT).merged == ()


# --- labels -------------------------------------------------------------------------------------------------------


def test_each_word_gives_its_label_to_its_tokens() -> None:
    aligned = align_words(SPECIAL, TEXT)
    assert label_tokens(aligned, ["D", "A", "N"]) == ((1, 3, 4), ("D", "A", "N"))
    assert label_tokens(aligned, ["D", "A", "N"], which="first") == ((1, 2, 4), ("D", "A", "N"))
    assert label_tokens(aligned, [1, 0, 2], which="all") == ((1, 2, 3, 4), (1, 0, 0, 2))
    assert label_tokens(aligned, ["D", None, "N"]) == ((1, 4), ("D", "N"))


def test_words_that_were_lost_give_no_label() -> None:
    assert label_tokens(align_words(BLANK_INSIDE[:2], TEXT), ["D", "A", "N"]) == ((0,), ("D",))


def test_a_token_of_two_labels_is_left_out_and_of_one_comes_once() -> None:
    aligned = align_words([(0, 5), (5, 14), (14, 16)], TEXT)  # the words have tokens (0,), (0, 1), (1, 2)
    assert label_tokens(aligned, ["D", "A", "N"], which="first") == ((1,), ("N",))
    assert label_tokens(aligned, ["A", "A", "N"], which="first") == ((0, 1), ("A", "N"))
    assert label_tokens(aligned, ["A", "A", "N"], which="all") == ((0, 2), ("A", "N"))


def test_labels_must_be_as_many_as_words() -> None:
    with pytest.raises(ProbeError, match="each word needs a label, but there are 3 words and 2 labels"):
        label_tokens(align_words(BLANK_INSIDE, TEXT), ["D", "A"])


# --- tokenizers ---------------------------------------------------------------------------------------------------


def check(aligned: WordAlignment, ids: list[int], tokenizer: PreTrainedTokenizerFast) -> None:
    """The tokens of each word decode to it."""
    assert aligned.length == len(ids)
    for word, tokens in zip(aligned.words, aligned.tokens, strict=True):
        decoded = tokenizer.decode([ids[position] for position in tokens])
        assert unicodedata.normalize("NFC", decoded).strip() == unicodedata.normalize("NFC", word)


@pytest.mark.parametrize("trimmed", [True, False])
@pytest.mark.parametrize("composed", [True, False])
@pytest.mark.parametrize(
    "text",
    ["the cat", "  two  blanks ", f"cafe{ACUTE} e{ACUTE}", f"a {SCIENTIST} {THUMB}{FLAG}!", "猫はIBM。", "שלום עולם"],
)
def test_words_of_a_byte_level_tokenizer_decode_to_themselves(text: str, composed: bool, trimmed: bool) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=trimmed)
    if composed:
        tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    aligned = align_words(tokenizer, text)
    assert list(aligned.words) == cut(text)
    assert aligned.missing == aligned.merged == ()
    check(aligned, tokenizer(text)["input_ids"], tokenizer)


def test_a_byte_level_tokenizer_with_merges_decodes_too() -> None:
    tokenizer = byte_tokenizer()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "c"), ("Ġc", "a"), ("t", "h"), ("th", "e"), ("a", "t")]
    vocabulary = dict.fromkeys([*letters, *("".join(merge) for merge in merges)])
    inner = Tokenizer(models.BPE(vocab={token: n for n, token in enumerate(vocabulary)}, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizer.backend_tokenizer.decoder
    merged = PreTrainedTokenizerFast(tokenizer_object=inner)
    aligned = align_words(merged, "the cat sat, at last")
    assert aligned.tokens[:2] == ((0,), (1, 2))
    check(aligned, merged("the cat sat, at last")["input_ids"], merged)


def test_special_tokens_of_the_tokenizer_count_as_positions() -> None:
    tokenizer = word_tokenizer(add="<s> $A </s>")
    aligned = align_words(tokenizer, "she he")
    assert (aligned.tokens, aligned.length) == (((1,), (2,)), 4)


def test_words_cut_by_truncation_are_missing() -> None:
    aligned = align_words(byte_tokenizer(), "the cat sat", max_length=6)
    assert (aligned.length, aligned.missing) == (6, (1, 2))
    assert align_words(byte_tokenizer(), "the cat sat", max_length=7).missing == (2,)
    assert align_words(byte_tokenizer(), "the cat sat", max_length=99).missing == ()


@pytest.mark.parametrize("text", ["日b ab", "ab 日"])
def test_a_blank_that_the_tokenizer_put_before_the_text_is_no_token_of_a_word(text: str) -> None:
    pieces = [("<unk>", 0.0), ("▁", -2.0), ("▁a", -2.0), ("b", -2.0), ("日", -3.0)]
    inner = Tokenizer(models.Unigram(pieces, unk_id=0))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(Regex(" "), "▁")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    symbols = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
    aligned = align_words(tokenizer, text)
    found = {word: [symbols[n] for n in tokens] for word, tokens in zip(aligned.words, aligned.tokens, strict=True)}
    assert found["日"] == ["日"]
    assert found["ab"] == ["▁a", "b"]


def test_what_cannot_be_aligned_is_refused() -> None:
    class Slow:
        is_fast = False

    slow: Any = Slow()
    with pytest.raises(TokenError, match="does not tell which characters its tokens cover: use a fast one"):
        align_words(slow, "the cat")
    with pytest.raises(ProbeError, match="there are no words in ' '"):
        align_words([(0, 1)], " ")
    with pytest.raises(ProbeError, match=r"offsets \(4, 9\) are not within a text of 7 characters"):
        align_words([(0, 3), (4, 9)], "the cat")
    with pytest.raises(ProbeError, match="max_length is for a tokenizer"):
        align_words([(0, 3)], "the cat", max_length=3)
