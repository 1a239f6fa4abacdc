"""Tokens: what a model is run on, with what people need to read it.

`encode` takes text, a list of texts, token ids or a tokenizer's encoding and gives `Tokens`: padded ids, mask and,
for text, where each token lies in it. Padding never needs a padding token: masked columns hold any id.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from interp_toolkit.errors import AlignmentError, PositionError, TokenError, UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Inputs = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | Tensor | Mapping[str, Any]
"""What can be run: text, texts, token ids, or a tokenizer's encoding."""

_TOKENIZERS: weakref.WeakKeyDictionary[nn.Module, PreTrainedTokenizerBase] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokens:
    """A batch of prompts as the model sees it.

    Attributes:
        ids: token ids; columns without a token hold a filler.
        mask: 1 where there is a token, 0 for padding.
        texts: the prompts, when they were given as text.
        offsets: for each row and token, the characters of the text it covers.
        single: one prompt was given, not a batch: results come without a batch axis.
        tokenizer: for showing tokens.
        shown: the tokens as people read them, where they come from a file.
    """

    ids: Int[Tensor, "batch pos"]
    mask: Int[Tensor, "batch pos"]
    texts: tuple[str, ...] | None = None
    offsets: tuple[tuple[tuple[int, int], ...], ...] | None = None
    single: bool = False
    tokenizer: PreTrainedTokenizerBase | None = None
    shown: tuple[tuple[str, ...], ...] | None = None

    def __len__(self) -> int:
        """How many prompts there are."""
        return int(self.ids.shape[0])

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """How many tokens each prompt has, without padding."""
        return self.mask.sum(dim=-1)

    @property
    def padded(self) -> bool:
        """Whether any row has padding."""
        return bool((self.mask == 0).any())

    def row(self, row: int = 0) -> list[int]:
        """The token ids of one prompt, without padding."""
        return [int(i) for i in self.ids[row][self.mask[row].bool()]]

    def strings(self, row: int = 0) -> list[str]:
        """The tokens of one prompt as people read them; without a tokenizer, their ids."""
        if self.shown is not None:
            return list(self.shown[row])
        return [token_string(self.tokenizer, i) for i in self.row(row)]

    def find(self, text: str, *, row: int = 0, occurrence: int = 0) -> tuple[int, ...]:
        """Positions of the tokens that carry a substring of the prompt.

        Raises:
            PositionError: when the prompt is not known as text, or the substring is not in it.
        """
        if self.texts is None or self.offsets is None:
            raise PositionError(
                f"the tokens of {text!r} are not known: give the prompt as text (with a fast tokenizer)"
            )
        prompt = self.texts[row]
        starts = [i for i in range(len(prompt)) if text and prompt.startswith(text, i)]
        if not -len(starts) <= occurrence < len(starts):
            raise PositionError(
                f"{text!r} occurs {len(starts)} times in {prompt!r}, but occurrence {occurrence} was asked"
            )
        begin = starts[occurrence]
        end = begin + len(text)
        found = tuple(n for n, (a, b) in enumerate(self.offsets[row]) if a < end and b > begin and b > a)
        if not found:
            raise PositionError(f"no token carries {text!r} in {prompt!r}: {self.strings(row)}")
        return found


def tokenizer_for(model: nn.Module, tokenizer: PreTrainedTokenizerBase | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model: the one given, or the one that its name or path leads to.

    Raises:
        TokenError: when there is none.
    """
    if tokenizer is not None:
        return tokenizer
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(
            f"expected a model, not {model!r}: load it first, as model, tokenizer = load_model(...)"
        )
    known = _TOKENIZERS.get(model)
    if known is not None:
        return known
    name = getattr(getattr(model, "config", None), "_name_or_path", "") or ""
    if not name:
        raise TokenError("the model does not say where it comes from, so its tokenizer is unknown: pass tokenizer=")
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise TokenError(f"no tokenizer could be loaded for {name!r} ({error}): pass tokenizer=") from error
    _TOKENIZERS[model] = loaded
    return loaded


def encode(
    inputs: Inputs | Tokens,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    padding_side: Literal["left", "right"] | None = None,
) -> Tokens:
    """Make `Tokens` of whatever a user gives.

    Args:
        inputs: a text, a list of texts, token ids (a list, a list of lists, a tensor of one or two axes), or a
            mapping with `input_ids` and perhaps `attention_mask`, such as a tokenizer's encoding.
        tokenizer: needed for text; otherwise used to show tokens.
        padding_side: where shorter prompts are padded; the tokenizer's own choice if it is not given, else left.

    Raises:
        TokenError: for empty prompts, a doubled start token, ids that are not integers, or text without a tokenizer.
    """
    side = str(padding_side or getattr(tokenizer, "padding_side", "left"))
    match inputs:
        case Tokens():
            return inputs
        case str():
            return encode_texts([inputs], tokenizer, side, single=True)
        case Tensor():
            return _from_tensor(inputs, None, tokenizer)
        case np.ndarray():
            return _from_tensor(torch.as_tensor(inputs), None, tokenizer)
        case Mapping():
            return _from_mapping(inputs, tokenizer)
    return _from_sequence(inputs, tokenizer, side)


def _from_sequence(inputs: Any, tokenizer: PreTrainedTokenizerBase | None, side: str) -> Tokens:
    if not isinstance(inputs, Sequence) or not inputs:
        raise TokenError(f"expected text, token ids or an encoding, not {type(inputs).__name__} {inputs!r}")
    if all(isinstance(item, str) for item in inputs):
        return encode_texts([str(item) for item in inputs], tokenizer, side, single=False)
    if all(isinstance(item, Integral) and not isinstance(item, bool) for item in inputs):
        return _from_rows([_ids(inputs)], tokenizer, side, single=True)
    return _from_rows([_ids(row) for row in inputs], tokenizer, side, single=False)


def is_text(inputs: Any) -> bool:
    """Whether a tokenizer is needed to run it."""
    return isinstance(inputs, str) or (isinstance(inputs, Sequence) and bool(inputs) and isinstance(inputs[0], str))


def _ids(row: Any) -> list[int]:
    if isinstance(row, str) or not isinstance(row, Iterable) or not all(isinstance(i, Integral | Tensor) for i in row):
        raise TokenError(f"a prompt is a text or a list of token ids, not {row!r}")
    return [int(i) for i in row]


def encode_texts(
    texts: list[str],
    tokenizer: PreTrainedTokenizerBase | None,
    side: str = "left",
    *,
    single: bool,
    special: bool = True,
) -> Tokens:
    """Tokens of texts, with where each lies in its text.

    Args:
        texts: the prompts.
        tokenizer: makes tokens of them.
        side: where shorter prompts are padded.
        single: whether one prompt is meant, not a batch.
        special: whether the tokenizer adds its start token and the like; not, where the text has them.

    Raises:
        TokenError: without a tokenizer, for an empty prompt, or for a doubled start token.
    """
    if tokenizer is None:
        raise TokenError("text was given, but no tokenizer: pass tokenizer= or token ids")
    rows, spans = [], []
    for text in texts:
        encoding = tokenizer(text, return_offsets_mapping=tokenizer.is_fast, add_special_tokens=special)
        ids = list(encoding["input_ids"])
        start = tokenizer.bos_token_id
        if start is not None and ids[:2] == [start, start]:
            raise TokenError(
                f"the prompt {text!r} begins with the start token {tokenizer.bos_token!r}, and the tokenizer adds it "
                "too: leave it out of the text"
            )
        rows.append(ids)
        if tokenizer.is_fast:
            spans.append(tuple((int(a), int(b)) for a, b in encoding["offset_mapping"]))
    tokens = _from_rows(rows, tokenizer, side, single=single, shown=texts)
    return Tokens(
        ids=tokens.ids,
        mask=tokens.mask,
        texts=tuple(texts),
        offsets=tuple(spans) if spans else None,
        single=single,
        tokenizer=tokenizer,
    )


def _from_rows(
    rows: list[list[int]],
    tokenizer: PreTrainedTokenizerBase | None,
    side: str,
    *,
    single: bool,
    shown: list[str] | None = None,
) -> Tokens:
    for number, row in enumerate(rows):
        if not row:
            what = repr(shown[number]) if shown else "it"
            raise TokenError(f"prompt {number} has no tokens: {what} is empty")
    width = max(map(len, rows))
    filler = getattr(tokenizer, "pad_token_id", None) or 0
    ids = torch.full((len(rows), width), filler)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for number, row in enumerate(rows):
        columns = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[number, columns] = torch.tensor(row)
        mask[number, columns] = 1
    return Tokens(ids=ids, mask=mask, single=single, tokenizer=tokenizer)


def _from_tensor(ids: Tensor, mask: Tensor | None, tokenizer: PreTrainedTokenizerBase | None) -> Tokens:
    if ids.is_floating_point() or ids.dtype == torch.bool or ids.ndim not in (1, 2) or not ids.numel():
        raise TokenError(f"token ids are integers of shape [pos] or [batch, pos], not {ids.dtype} {tuple(ids.shape)}")
    single = ids.ndim == 1
    ids = ids[None] if single else ids
    mask = torch.ones_like(ids) if mask is None else mask[None] if mask.ndim == 1 else mask
    if mask.shape != ids.shape:
        raise TokenError(f"the attention mask has shape {tuple(mask.shape)}, but the token ids have {tuple(ids.shape)}")
    if not torch.isin(mask, torch.tensor([0, 1], dtype=mask.dtype, device=mask.device)).all():
        raise TokenError(f"an attention mask holds ones and zeros, but this one holds {mask.unique().tolist()}")
    if (mask.sum(-1) == 0).any():
        raise TokenError("a row of the attention mask is all zeros: that prompt has no tokens")
    steps = mask.long().diff(dim=-1).abs().sum(-1)
    if (steps > 1).any():
        raise TokenError("the attention mask has holes: padding is supported on one side of each prompt")
    return Tokens(ids=ids.long(), mask=mask.long(), single=single, tokenizer=tokenizer)


def _from_mapping(inputs: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None) -> Tokens:
    if "input_ids" not in inputs:
        raise TokenError(f"an encoding needs input_ids, but has {sorted(inputs)}")
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    rows = ids if isinstance(ids, Sequence) and ids and isinstance(ids[0], Sequence) else []
    if len({len(row) for row in rows}) > 1 and mask is None:
        return _from_sequence(rows, tokenizer, str(getattr(tokenizer, "padding_side", "left")))
    try:
        return _from_tensor(torch.as_tensor(ids), None if mask is None else torch.as_tensor(mask), tokenizer)
    except (ValueError, TypeError) as error:
        if isinstance(error, TokenError):
            raise
        raise TokenError(f"input_ids and attention_mask must be tensors or even lists of numbers: {error}") from error


def token_string(tokenizer: PreTrainedTokenizerBase | None, token: int) -> str:
    """One token as people read it.

    A token that is part of a character shows as the tokenizer's own symbol; without a tokenizer the id is shown.
    """
    if tokenizer is None:
        return str(token)
    text = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
    symbol: str | None = tokenizer.convert_ids_to_tokens([token])[0]
    if symbol is None:  # the model's vocabulary is larger than the tokenizer's
        return str(token)
    if symbol.startswith("\u2581") and not text.startswith(" "):
        text = " " + text  # sentencepiece drops the leading space of a lone token
    return symbol if "\ufffd" in text or not text else text


def special_ids(tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    """Tokens that stand for no text; the one for unknown text is none of them, unless it has another meaning too."""
    if tokenizer is None:
        return []
    known = tokenizer.special_tokens_map
    others = {token for name, token in known.items() if name != "unk_token" and isinstance(token, str)}
    unknown = tokenizer.unk_token_id if known.get("unk_token") not in others else None
    return sorted(set(tokenizer.all_special_ids) - {unknown})


def answer_token(prompt: str, answer: str | int, tokenizer: PreTrainedTokenizerBase | None) -> int:
    """The one token with which `answer` continues `prompt`.

    `"Paris"` means the token that continues the prompt, usually with its leading space: `" Paris"` is tried first, then
    `"Paris"` as it stands. An integer is taken as a token id.

    Raises:
        TokenError: when the answer is not a single token there; the message shows what it is.
    """
    if isinstance(answer, int):
        if answer < 0:
            raise TokenError(f"token id {answer} is outside of the vocabulary: ids count from 0")
        return answer
    if tokenizer is None:
        raise TokenError(f"the answer {answer!r} is text, but there is no tokenizer: pass tokenizer= or a token id")
    if not answer.strip():
        raise TokenError(f"the answer {answer!r} is empty")
    spaced = answer if answer[0].isspace() or prompt[-1:].isspace() else " " + answer
    tried: dict[str, list[int]] = {}
    for text in dict.fromkeys((spaced, answer)):
        tried[text] = _continuation(prompt, text, tokenizer)
        if len(tried[text]) == 1:
            return tried[text][0]
    shown = "; ".join(
        f"{text!r} is {len(ids)} tokens {[token_string(tokenizer, i) for i in ids]}" for text, ids in tried.items()
    )
    raise TokenError(
        f"the answer {answer!r} is not one token after the prompt: {shown}. Use a one-token answer or a token id"
    )


def _continuation(prompt: str, answer: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    whole = tokenizer(prompt + answer, add_special_tokens=False)["input_ids"]
    if whole[: len(before)] == before:
        return list(whole[len(before) :])
    # The answer merged with the end of the prompt: what it is on its own.
    return list(tokenizer(answer, add_special_tokens=False)["input_ids"])


def side_by_side(first: Sequence[str], second: Sequence[str], names: tuple[str, str] = ("clean", "corrupt")) -> str:
    """Two token lists in columns, differences marked."""
    width = max([len(repr(t)) for t in first] + [len(names[0])])
    other = max([len(repr(t)) for t in second] + [len(names[1])])
    lines = [f"  pos  {names[0]:<{width}}  {names[1]}"]
    for n in range(max(len(first), len(second))):
        a = repr(first[n]) if n < len(first) else "-"
        b = repr(second[n]) if n < len(second) else "-"
        lines.append(f"  {n:>3}  {a:<{width}}  {b:<{other}}{'' if a == b else '  *'}".rstrip())
    return "\n".join(lines)


def check_same_length(clean: Tokens, corrupt: Tokens) -> None:
    """Refuse two prompts that cannot be compared position by position.

    Raises:
        AlignmentError: when they have different lengths, showing both token lists side by side.
    """
    for row in range(len(clean)):
        a, b = clean.strings(row), corrupt.strings(row)
        if len(a) != len(b):
            differ = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            raise AlignmentError(
                f"the clean prompt has {len(a)} tokens and the corrupt one {len(b)}; they first differ at position "
                f"{differ}:\n{side_by_side(a, b)}\nUse prompts of equal length, or say how they line up: "
                "align='right', 'left' or a map"
            )


__all__ = [
    "Inputs",
    "Tokens",
    "answer_token",
    "check_same_length",
    "encode",
    "side_by_side",
    "special_ids",
    "token_string",
    "tokenizer_for",
]
