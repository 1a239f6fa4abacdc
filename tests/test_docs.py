"""The generated parts of the documentation are up to date."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tiny import model_of

ROOT = Path(__file__).resolve().parent.parent


def test_the_table_of_families_is_what_verification_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    # The same models as in other tests, which need no second verification.
    monkeypatch.setattr(
        generate, "tiny_model", lambda name, *, attn_implementation: model_of(name, attn_implementation)
    )
    assert generate.families_page() == (ROOT / "docs" / "families.md").read_text(encoding="utf-8"), "make generated"
