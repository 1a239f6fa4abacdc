"""Conversations become the tokens that the model's own chat format makes of them, and know their text."""

from __future__ import annotations

from typing import Any

import pytest

from interp_toolkit.errors import TokenError
from interp_toolkit.model import chat

TURNS = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Where is the tower?"},
    {"role": "assistant", "content": "In Paris."},
    {"role": "user", "content": "And the tower bridge?"},
]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    "[{{ m.role }}] {{ m.content }} {% endfor %}[assistant] "
)


def test_tokens_are_those_of_the_tokenizers_own_call(demo: Any) -> None:
    tokenizer = demo[1]
    for turns in (TURNS, TURNS[1:2], "Where is the tower?"):
        messages = [{"role": "user", "content": turns}] if isinstance(turns, str) else turns
        expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        tokens = chat(turns, tokenizer=tokenizer)
        assert tokens.row() == expected
        assert tokens.single
    begun = chat(TURNS, tokenizer=tokenizer, reply="It is")
    assert begun.row()[: len(chat(TURNS, tokenizer=tokenizer).row())] == chat(TURNS, tokenizer=tokenizer).row()
    assert "".join(begun.strings()).endswith("assistant\nIt is")
    assert [begun.strings()[n] for n in begun.find("tower", occurrence=1)] == [" tower"]


def test_the_start_token_comes_once(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = demo[1]
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE)
    row = chat("Hello", tokenizer=tokenizer).row()
    assert row[0] == tokenizer.bos_token_id
    assert row.count(tokenizer.bos_token_id) == 1


def test_what_the_format_does_not_have_is_said(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = demo[1]
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE)
    with pytest.raises(TokenError, match="does not allow turns of system, user, assistant, user: no system turns"):
        chat(TURNS, tokenizer=tokenizer)
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(TokenError, match="has no chat format: take a model that was trained to chat"):
        chat("Hello", tokenizer=tokenizer)
