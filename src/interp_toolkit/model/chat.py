"""Conversations in a model's own chat format, as tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from interp_toolkit.errors import TokenError
from interp_toolkit.model.tokens import Tokens, encode_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turns = str | Sequence[Mapping[str, str]]
"""What a user says, or a conversation: `[{"role": "user", "content": "Hello"}, {"role": "assistant", ...}, ...]`."""


def chat(turns: Turns, *, tokenizer: PreTrainedTokenizerBase, reply: str = "") -> Tokens:
    """A conversation up to the place where the model's reply begins, or up to the end of a begun reply.

    The chat format writes the start token where there is one, so the tokenizer adds none. Tokens know their text:
    `tokens.find("Paris")` says which of them carry a word.

    Args:
        turns: what a user says, or the turns of a conversation, each with its `role` and `content`.
        tokenizer: of a model that was trained to chat.
        reply: how the model's reply begins.

    Raises:
        TokenError: for a tokenizer without a chat format, and for turns that its format does not allow.

    Example:
        >>> from interp_toolkit import load_model
        >>> _, tokenizer = load_model("demo")
        >>> tokens = chat("Is it in Paris?", tokenizer=tokenizer, reply="No")
        >>> [tokens.strings()[n] for n in (0, *tokens.find("Paris"), -1)]
        ['<|im_start|>', ' Paris', 'No']
    """
    if not getattr(tokenizer, "chat_template", None):
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        raise TokenError(f"the tokenizer {name} has no chat format: take a model that was trained to chat")
    said = [{"role": "user", "content": turns}] if isinstance(turns, str) else [dict(turn) for turn in turns]
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        roles = ", ".join(turn.get("role", "no role") for turn in said)
        raise TokenError(f"the chat format does not allow turns of {roles}: {error}") from error
    return encode_texts([f"{text}{reply}"], tokenizer, single=True, special=False)


__all__ = ["Turns", "chat"]
