"""Answers for prompts that come without any: the tokens on which the clean and the corrupt prompt differ most."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from interp_toolkit.circuits.dataset import Pairs
from interp_toolkit.errors import CircuitError
from interp_toolkit.model.layout import Layout
from interp_toolkit.model.run import run
from interp_toolkit.model.tokens import encode, token_string

_LIKELY = 0.01
"""Tokens less probable than this in both runs are not looked at: their log-probabilities move without meaning."""
_CONTRAST = 0.1
"""Nats by which an answer must move at least."""


def contrasted(model: nn.Module, pairs: Pairs, *, layout: Layout | None = None) -> Pairs:
    """The pairs with answers found by contrast, for each pair its own.

    The target is the token whose log-probability rises most from the corrupt to the clean prompt, the foil the one
    whose falls most, among tokens with a probability of at least 1% in one of the two runs.

    Args:
        model: a causal language model.
        pairs: pairs of prompts.
        layout: for a model class of your own.

    Raises:
        CircuitError: for pairs whose prompts are answered alike, showing them.
    """
    targets, foils = [], []
    for number in range(len(pairs)):
        both = encode(torch.cat([pairs.clean[number].ids, pairs.corrupt[number].ids]))
        logits = run(model, both, logits="last", layout=layout).logits
        last = logits[:, -1].float().log_softmax(-1).cpu()
        rise = last[0] - last[1]
        likely = (last.exp() >= _LIKELY).any(0)
        rise = torch.where(likely, rise, 0.0)
        up, down = int(rise.argmax()), int(rise.argmin())
        if float(rise[up]) < _CONTRAST or float(rise[down]) > -_CONTRAST:
            best = token_string(pairs.tokenizer, int(last[0].argmax()))
            raise CircuitError(
                f"no answers were given, and the two prompts of pair {number} are answered alike ({best!r} most "
                f"probably; no likely token moves by {_CONTRAST} nats both up and down): give answers as (target, "
                "foil), or a corrupt prompt that changes what comes next"
            )
        targets.append((up,))
        foils.append((down,))
    return replace(pairs, targets=tuple(targets), foils=tuple(foils))


__all__ = ["contrasted"]
