"""A tiny model of two layers that was trained to continue repeated random tokens, and does it by induction.

Llama with grouped queries; `train_induction.py` made its weights. Which head does what was read from its attention
patterns, and a test reads it again.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

BOS, VOCAB = 0, 48
WEIGHTS = Path(__file__).parent / "data" / "induction.safetensors"


def empty_model(dtype: torch.dtype = torch.float32) -> Any:
    """The model before training."""
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=16,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        pad_token_id=None,
        bos_token_id=BOS,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)


@cache
def induction_model(dtype: torch.dtype = torch.float32) -> Any:
    """The trained model, in eval mode."""
    model = empty_model(dtype)
    model.load_state_dict(load_file(WEIGHTS))
    return model.eval().requires_grad_(False)


def repeated(rows: int, period: int, *, before: int = 0, length: int | None = None, seed: int = 0) -> Tensor:
    """A start token, some random tokens, and then other random tokens again and again: row pos.

    Args:
        rows: how many prompts.
        period: how many tokens are repeated; all of a prompt are different but for the repeats.
        before: how many tokens come first.
        length: of each prompt with the start token; by default what is repeated comes twice.
        seed: of the random tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    length = 1 + before + 2 * period if length is None else length
    order = [0, *range(1, 1 + before), *(1 + before + place % period for place in range(length - 1 - before))]
    tokens = torch.stack([1 + torch.randperm(VOCAB - 1, generator=generator) for _ in range(rows)])
    return torch.cat([torch.full((rows, 1), BOS), tokens], 1)[:, order]
