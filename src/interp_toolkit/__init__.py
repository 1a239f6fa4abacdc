"""Look inside any Hugging Face causal language model, intervene on it, and trust what comes out."""

from __future__ import annotations
