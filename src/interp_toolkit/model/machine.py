"""What the machine at hand can take: free memory, and how many tokens a pass may have."""

from __future__ import annotations

import os

import torch

from interp_toolkit.model.wiring import Wiring

_AT_MOST = {"cpu": 512}
"""Tokens in a pass beyond which nothing gets faster, by device: a processor's caches are small."""
_ELSEWHERE = 1 << 16


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + int(unused)
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not on this system
        return 4 << 30


def token_bytes(wiring: Wiring, length: int) -> int:
    """About how many bytes a pass takes for each of its tokens, at its widest point."""
    layout = wiring.layout
    size = next(wiring.base.parameters()).element_size()
    neurons = wiring.shapes["mlp_post"][-1] if "mlp_post" in wiring.shapes else 4 * layout.d_model
    return size * (12 * layout.d_model + 4 * neurons + 2 * layout.num_heads * length)


def token_limit(wiring: Wiring, length: int, memory: int | None, besides: int = 0) -> int:
    """How many tokens a pass may have.

    Args:
        wiring: the model.
        length: of the longest prompt.
        memory: bytes that may be used; half of what is free if it is not given.
        besides: bytes that are kept for each token beside the pass, such as its logits.
    """
    device = next(wiring.base.parameters()).device
    allowed = free_memory(device) // 2 if memory is None else memory
    fitting = allowed // (token_bytes(wiring, length) + besides)
    return max(1, min(_AT_MOST.get(device.type, _ELSEWHERE), fitting))


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory did not suffice."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


__all__ = ["free_memory", "out_of_memory", "token_bytes", "token_limit"]
