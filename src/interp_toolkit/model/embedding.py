"""What enters the first block, parted into what the token gives and what its position gives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp_toolkit.model.run import run
from interp_toolkit.model.sites import Site
from interp_toolkit.model.tokens import Tokens
from interp_toolkit.model.wiring import Wiring

_OFF = {torch.float64: 1e-6, torch.float32: 1e-4}
_ROUGH = 2e-2


@torch.no_grad()
def split_embedding(
    wiring: Wiring, tokens: Tokens, where: Sequence[int], embed: Float[Tensor, "pos d_model"]
) -> dict[str, Float[Tensor, "pos d_model"]]:
    """The embedding, and the position embedding where one is added to it.

    That one is added shows when another prompt runs: then what enters the first block differs by what the tokens'
    embeddings differ, times one number. Where it does not, as behind a norm, the embedding stays whole.

    Args:
        wiring: the model.
        tokens: one prompt.
        where: positions of it.
        embed: what enters block 0 there.
    """
    table = getattr(wiring.base, "get_input_embeddings", lambda: None)()
    if not isinstance(table, nn.Embedding) or table.embedding_dim != embed.shape[-1]:
        return {"embedding": embed}
    others = (tokens.ids + 1) % table.num_embeddings
    other_tokens = Tokens(ids=others, mask=tokens.mask)
    rows = list(where)
    there = run(wiring.model, other_tokens, read=Site("embed"), layout=wiring.layout)[Site("embed")][0, rows].to(embed)
    own, other = (table(ids.to(table.weight.device))[0, rows].to(embed) for ids in (tokens.ids, others))
    step, moved = own - other, embed - there
    factor = (step * moved).sum() / (step * step).sum().clamp_min(1e-30)
    off = _OFF.get(table.weight.dtype, _ROUGH)
    if bool((factor * step - moved).norm() > off * moved.norm()):
        return {"embedding": embed}
    by_token = factor * own
    by_position = embed - by_token
    if bool(by_position.norm() <= off * embed.norm()):
        return {"embedding": embed}
    return {"embedding": by_token, "position embedding": by_position}


__all__ = ["split_embedding"]
