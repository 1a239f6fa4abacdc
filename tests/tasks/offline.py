"""Tokenizers that are made in a test, without network."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from interp_toolkit.tasks.words import table

FILES = ("ioi", "names", "things", "subject_verb_agreement", "gendered_pronoun", "country_capital", "greater_than")


def texts(value: object) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts(item)


@cache
def vocabulary() -> tuple[str, ...]:
    """Every word of the data files, punctuation and short numbers."""
    found = re.findall(
        r"[A-Za-z]+|[^\sA-Za-z]", " ".join(t for name in (*FILES, "docstring") for t in texts(table(name)))
    )
    numbers = [f"{n:0{width}}" for width in (1, 2, 3) for n in range(10**width)]
    return tuple(dict.fromkeys(["<unk>", "<s>", "</s>", *found, "she", "he", *numbers]))


def word_tokenizer(
    *, digits: int = 2, add: str = "$A", without: Iterable[str] = (), normalizer: normalizers.Normalizer | None = None
) -> PreTrainedTokenizerFast:
    """One token for each word that the data files have, and numbers in groups of `digits`."""
    words = [word for word in vocabulary() if word not in set(without)]
    inner = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    groups = Regex(rf"\d{{1,{digits}}}|[A-Za-z]+|[^\sA-Za-z\d]")
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(groups, behavior="isolated")]
    )
    inner.post_processor = processors.TemplateProcessing(
        single=add, special_tokens=[("<s>", words.index("<s>")), ("</s>", words.index("</s>"))]
    )
    if normalizer is not None:
        inner.normalizer = normalizer
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(letters)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner)
