"""What tests of steering share: vectors for tiny models, and steering the plain way, with a hook of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from interp_toolkit.model.verify import verified
from interp_toolkit.steering import SteeringVector, steering_vector
from tiny import model_of, tokens

POSITIVE, NEGATIVE = tokens(6, 8, seed=11), tokens(6, 8, seed=12)
NEW = 6


@cache
def vector_of(name: str, dtype: torch.dtype = torch.float32, site: str = "resid_post") -> SteeringVector:
    """A mean difference at every layer of a tiny model."""
    return steering_vector(model_of(name, dtype=dtype), POSITIVE, NEGATIVE, site=site)


def generate(model: Any, ids: Tensor, **options: Any) -> Tensor:
    """Greedy unless something else is asked for."""
    settings: dict[str, Any] = {
        "max_new_tokens": NEW,
        "do_sample": False,
        "pad_token_id": 0,
        "eos_token_id": None,
        "attention_mask": torch.ones_like(ids),
        **options,
    }
    found: Tensor = model.generate(ids, **settings)
    return found


@contextmanager
def hooked(model: Any, layer: int, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """A hook of our own on the output of a block."""

    def see(module: Any, args: Any, output: Any) -> Any:
        del module, args
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    handle = verified(model).blocks[layer].register_forward_hook(see)
    try:
        yield
    finally:
        handle.remove()


def greedy(model: Any, ids: Tensor, layer: int, change: Callable[[Tensor], Tensor], new: int = NEW) -> Tensor:
    """One prompt, token by token, each with a whole forward pass and no cache."""
    text = ids
    for _ in range(new):
        with torch.no_grad(), hooked(model, layer, change):
            logits = model(text, use_cache=False).logits
        text = torch.cat([text, logits[:, -1:].argmax(-1)], dim=1)
    return text


def at(wanted: Sequence[int] | slice, change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The change, at some columns only."""

    def some(x: Tensor) -> Tensor:
        new = x.clone()
        new[:, wanted] = change(x)[:, wanted]
        return new

    return some


def word_tokenizer(size: int = 99) -> PreTrainedTokenizerFast:
    """Word number n is token n: `w7` is 7."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{n}": n for n in range(3, size)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", padding_side="left")


def text_of(ids: Sequence[int] | Tensor) -> str:
    """Token ids as words of `word_tokenizer`."""
    return " ".join(f"w{int(n)}" for n in ids)
