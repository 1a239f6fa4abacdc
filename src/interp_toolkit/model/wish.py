"""What one run is asked to do, and how it may end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from interp_toolkit.model.edits import Edit
from interp_toolkit.model.positions import Positions
from interp_toolkit.model.sites import Site
from interp_toolkit.model.tokens import Tokens

Key = tuple[str, int | None]
Change = Callable[[Tensor, slice], Tensor]
"""Makes the new activation of a site from the old one and the columns of the sequence that it holds."""
Place = tuple[int, str]
"""A module: its layer, and its path inside the block."""
Read = Callable[[Tensor], Tensor]
"""Sees what a module is given; what it returns is given instead."""
StandIn = Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]
"""Stands in for a module's forward: is given what the module is given, and the forward."""


class StopForward(BaseException):
    """Ends a forward pass whose deepest reading is done. No `except Exception` of a model may catch it."""


@dataclass(kw_only=True)
class Wish:
    """What a session is to do: see `run`.

    Attributes:
        reads: sites to read.
        edits: what changes, by positions and rows of the prompts.
        keep: positions of the readings to keep.
        device: where to keep them.
        dtype: in what precision.
        grad: whether to keep the graph.
        stop: whether the pass may end behind the deepest reading.
        enter: rows of the residual stream that enter in front of a layer. The first replace what is there, and the
            blocks before do not run; later ones join the batch behind the rows that are there already.
        changes: what a packed pass changes, by rows of the batch as it is at that site.
        inputs: what is given to modules that read the residual stream, in place of what the model gives them.
        stand_ins: what is done in place of modules that read the residual stream.
        logits_at: columns whose logits are wanted, one line for each row or one for all.
        defer: whether to keep the means to compute patterns later.
        tokens: the prompts.
        open_ended: whether more tokens may follow.
    """

    reads: frozenset[Site]
    edits: tuple[Edit, ...] = ()
    keep: Positions | None = None
    device: torch.device | None = None
    dtype: torch.dtype | None = None
    grad: bool = False
    stop: bool = False
    enter: Mapping[int, Tensor] = field(default_factory=dict)
    changes: Mapping[Key, Change] = field(default_factory=dict)
    inputs: Mapping[Place, Read] = field(default_factory=dict)
    stand_ins: Mapping[Place, StandIn] = field(default_factory=dict)
    logits_at: Tensor | None = None
    defer: bool = False
    tokens: Tokens | None = None
    open_ended: bool = False


__all__ = ["Change", "Key", "Place", "Read", "StandIn", "StopForward", "Wish"]
