"""The shortcuts that planned runs may take, and what one of them needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp_toolkit.model.wiring import Wiring


@dataclass(frozen=True, kw_only=True)
class Shortcuts:
    """What a plan may do.

    Attributes:
        resume: rows may enter at a layer with their base run's residual stream.
        join: rows may enter at different layers of one pass.
        prefix: earlier positions may be left out, their keys and values taken from the base run.
        readout: logits are this number times the normed residual times the unembedding's rows; None if they are not.
        reasons: why a shortcut is off.
    """

    resume: bool = True
    join: bool = True
    prefix: bool = True
    readout: float | None = 1.0
    reasons: dict[str, str] = field(default_factory=dict, compare=False)

    def described(self) -> tuple[tuple[str, ...], dict[str, str]]:
        """Names of the shortcuts that are on, and the reasons of those that are off."""
        state = {
            "resume": self.resume,
            "join": self.join,
            "prefix": self.prefix,
            "readout": self.readout is not None,
        }
        on = tuple(name for name, value in state.items() if value)
        return on, {name: self.reasons.get(name, "switched off") for name, value in state.items() if not value}


NONE = Shortcuts(resume=False, join=False, prefix=False, readout=None)
"""One full pass for each row."""


def rows_of_unembedding(
    wiring: Wiring,
    normed: Float[Tensor, "batch pos d_model"],
    tokens: Sequence[int] | None,
    scale: float | None,
) -> Float[Tensor, "batch pos vocab"]:
    """Logits from the output of the final norm, in float32 at least.

    Args:
        wiring: the model.
        normed: the output of the final norm.
        tokens: those whose logits are wanted; all if it is not given.
        scale: see `Shortcuts.readout`.
    """
    unembed = wiring.top(wiring.layout.unembed)
    wide = torch.promote_types(normed.dtype, torch.float32)
    weight: Tensor = unembed.weight.detach()  # type: ignore[operator]
    bias = getattr(unembed, "bias", None)
    bias = None if bias is None else bias.detach()
    if tokens is not None:
        index = torch.tensor(list(tokens), device=weight.device)
        weight, bias = weight[index], None if bias is None else bias[index]
    logits = nn.functional.linear(
        normed.to(weight.device, wide), weight.to(wide), None if bias is None else bias.to(wide)
    )
    return logits if scale in (None, 1.0) else logits * scale


__all__ = ["NONE", "Shortcuts", "rows_of_unembedding"]
