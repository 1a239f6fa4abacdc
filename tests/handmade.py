"""A model class that no library knows, and the layout that says what it is made of."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tiny import VOCAB


class Attention(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.qkv, self.proj, self.kind = nn.Linear(16, 48), nn.Linear(16, 16), kind

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (part.view(batch, length, 4, 4).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        allowed = torch.ones(length, length, dtype=torch.bool).tril()
        if self.kind == "sdpa":
            z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        elif self.kind == "matmul":
            z = (q @ k.transpose(-1, -2) / 2).masked_fill(~allowed, -torch.inf).softmax(-1) @ v
        else:
            q, k, v = (part.reshape(batch * 4, length, 4) for part in (q, k, v))
            scores = (torch.bmm(q, k.transpose(1, 2)) / 2).masked_fill(~allowed, -torch.inf)
            z = torch.bmm(F.softmax(scores, dim=-1), v).view(batch, 4, length, 4)
        out: Tensor = self.proj(z.transpose(1, 2).reshape(batch, length, 16))
        return out


class Block(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.attn = Attention(kind)
        self.mlp = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.mlp(x)


class Handmade(nn.Module):
    """No norms, learned positions, two layers; returns a bare tensor.

    Args:
        kind: how attention is computed: by "matmul", "sdpa" or "bmm".
        between: what leaves a block is multiplied by this before it goes on.
    """

    def __init__(self, kind: str, between: float = 1.0) -> None:
        super().__init__()
        self.between = between
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.tok, self.pos = nn.Embedding(VOCAB, 16), nn.Embedding(32, 16)
            self.layers = nn.ModuleList(Block(kind) for _ in range(2))
            self.head = nn.Linear(16, VOCAB)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.tok(input_ids) + self.pos(torch.arange(input_ids.shape[1]))
        for layer in self.layers:
            x = layer(x) * self.between
        out: Tensor = self.head(x)
        return out


LAYOUT: dict[str, Any] = {
    "model_type": "handmade",
    "blocks": "layers",
    "num_layers": 2,
    "num_heads": 4,
    "d_model": 16,
    "attention": "attn",
    "projection": "attn.proj",
    "mlp": "mlp",
    "down": "mlp.2",
    "attn_out": "attn",
    "mlp_out": "mlp",
    "mid": "mlp",
    "unembed": "head",
}
