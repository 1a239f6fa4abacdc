"""From the residual stream behind the last block to logits, by the model itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp_toolkit.errors import RunError
from interp_toolkit.model.edits import Edit
from interp_toolkit.model.run import run
from interp_toolkit.model.sites import Site
from interp_toolkit.model.tokens import Tokens
from interp_toolkit.model.trial import shortcuts_of
from interp_toolkit.model.wiring import Wiring


@dataclass(frozen=True, eq=False)
class Unembedding:
    """What stands behind the last block: final norm, unembedding, and whatever the model does between and after.

    Each vector is put behind the last block of a prompt of one token, and the model goes on from there. Nothing needs
    to be known of what it does there.

    Args:
        wiring: the model.
    """

    wiring: Wiring

    def logits(self, stream: Float[Tensor, "row d_model"], *, grad: bool = False) -> Float[Tensor, "row vocab"]:
        """The logits of some residual streams.

        Args:
            stream: residual streams; they are cast to the model's precision.
            grad: whether the logits can be differentiated by them.
        """
        last = self.wiring.layout.num_layers - 1
        x = stream[:, None]
        ones = torch.ones(len(x), 1, dtype=torch.long)
        found = run(
            self.wiring.model,
            Tokens(ids=ones, mask=ones),
            edits=[Edit.set(Site("resid_post", last), x)],
            start=(last, x.detach()) if shortcuts_of(self.wiring).resume else None,
            logits="all",
            grad=grad,
            layout=self.wiring.layout,
        ).logits
        if found is None:
            raise RunError("the model gave no logits")
        return found[:, 0]


__all__ = ["Unembedding"]
