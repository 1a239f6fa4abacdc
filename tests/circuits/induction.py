"""A tiny model of two layers that was trained to continue repeated random tokens, and does it by induction.

Llama with grouped queries; `train_induction.py` made its weights, at a price on what heads write. Which head does what
was read from its attention patterns and from what its absence does, and a test reads it again. Heads that write next to
nothing still look where the others do: by its pattern alone, `L0H3` is a previous-token head.
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
PREVIOUS_TOKEN = ("L0H1",)
INDUCTION = ("L1H2", "L1H3")
SILENT = ("L0H0", "L0H2", "L0H3", "L1H0", "L1H1")
"""Heads that write next to nothing."""
TRUE_EDGES = frozenset(
    [
        *("embed->L0KV0.v", "embed->L0MLP", "L0H1->L1KV1.k", "L0MLP->L1KV1.k", "L0MLP->L1KV1.v"),
        *("embed->L1H2.q", "embed->L1H3.q", "embed->L1KV1.k", "embed->L1KV1.v", "L1H2->L1MLP", "L1H3->L1MLP"),
        *("L1H2->logits", "L1H3->logits", "L1MLP->logits", "embed->logits"),
    ]
)
"""Edges of which each alone costs more than 1 of a logit difference of 15 on `induction_prompts`."""
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


def induction_prompts(rows: int = 12, seed: int = 77) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts that stop within the second round, their counterparts, and what comes next: (clean, corrupt, answers).

    Where the next token is A, the foil is the token that came two places behind A.
    """
    before, period, length = 2, 12, 21
    clean, corrupt = (repeated(rows, period, before=before, length=length, seed=seed + i) for i in (0, 1))
    target = length - period
    return clean, corrupt, torch.stack([clean[:, target], clean[:, target + 2]], 1)
