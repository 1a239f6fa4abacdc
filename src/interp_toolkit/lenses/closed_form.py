"""Where the maps of a tuned lens begin: ridge regression of the end's residual stream on each depth's.

What is left of the squared error at the end is not the divergence that a lens is judged by, but its least point is
known at once, from second moments that are gathered in one pass over the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Penalties that are tried, for inputs of variance 1 and the mean over tokens of squared errors."""
_HELD = 2 << 30  # bytes of moments that are held at once


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """Second moments of some depths in their own units, in float64, as means over tokens.

    Attributes:
        inputs: of the centred and scaled stream with itself.
        outputs: of that stream with what is missing to the end's stream.
    """

    inputs: Float[Tensor, "depth d_model d_model"]
    outputs: Float[Tensor, "depth d_model d_model"]

    def ridge(self, penalty: float) -> Float[Tensor, "depth d_model d_model"]:
        """What is to be added to the stream is `weight @ scaled stream`, but for a constant.

        The least of `mean |missing − weight @ scaled|² + penalty |weight|²`: a large penalty leads to the logit lens.
        """
        inputs = self.inputs.clone()
        inputs.diagonal(dim1=-2, dim2=-1).add_(penalty)
        found: Tensor = torch.cholesky_solve(self.outputs, torch.linalg.cholesky(inputs)).mT
        return found


def gathered(
    streams: Iterable[Float[Tensor, "depth pos d_model"]],
    depths: Sequence[int],
    mean: Float[Tensor, "depth d_model"],
    spread: Float[Tensor, "depth d_model"],
) -> Moments:
    """The moments of some depths.

    Args:
        streams: the residual streams of pieces of text, the last depth that of the end.
        depths: which.
        mean: of the stream at every depth, over all tokens.
        spread: by which each channel is divided.
    """
    inputs = outputs = torch.zeros(())
    number = 0
    for stream in streams:
        x, end = precise(stream[list(depths)]), precise(stream[-1])
        scaled = (x - mean[list(depths), None].to(x)) / spread[list(depths), None].to(x)
        # The scaled stream has mean 0 over all tokens, so that the mean of what is missing need not be taken away.
        inputs = inputs.to(x) + scaled.mT @ scaled
        outputs = outputs.to(x) + scaled.mT @ (end - x)
        number += x.shape[1]
    return Moments(inputs=inputs / number, outputs=outputs / number)


def precise(x: Tensor) -> Float[Tensor, "..."]:
    """In float64, on a device that has it."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def held_together(depths: int, width: int) -> list[list[int]]:
    """Depths whose moments fit into memory together."""
    some = max(1, _HELD // (2 * 8 * width * width))
    return [list(range(n, min(n + some, depths))) for n in range(0, depths, some)]


__all__ = ["PENALTIES", "Moments", "gathered", "held_together", "precise"]
