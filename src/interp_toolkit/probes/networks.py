"""The networks of nonlinear probes: of one activation, or of those of a whole sequence.

They are functions of their arguments: random numbers come from the generators they are given, for the first weights and
for dropout, and there is no mode for training. A network that reads sequences takes a mask of the real positions; what
stands elsewhere, NaN included, changes nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from interp_toolkit.errors import ProbeError

Activation = Literal["relu", "gelu", "silu", "tanh"]
"""What bends between layers."""

TokenScore = Literal["linear", "softplus"]
"""What a head of a max-pooled network makes of its score of a token."""

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


class Affine(nn.Module):
    """A linear map with a bias; like `torch.nn.Linear`, but its first weights come from a generator.

    Args:
        width: how many numbers go in.
        outputs: how many come out.
        generator: of the first weights.
    """

    def __init__(self, width: int, outputs: int, generator: torch.Generator) -> None:
        super().__init__()
        bound = 1 / math.sqrt(width)
        self.weight = nn.Parameter(torch.empty(outputs, width).uniform_(-bound, bound, generator=generator))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Float[Tensor, "*some width"]) -> Float[Tensor, "*some output"]:
        """The map."""
        return F.linear(x, self.weight, self.bias)


class MLP(nn.Module):
    """A multilayer perceptron.

    Args:
        width: how many features a row has.
        outputs: how many numbers come out.
        hidden: the sizes of the hidden layers, none for a linear network.
        activation: behind each of them.
        dropout: the share of hidden units that is left out in training.
        generator: of the first weights; seed 0 if not given.

    Raises:
        ProbeError: for an activation that there is not, a layer without units or a dropout that leaves none.

    Example:
        >>> MLP(8, 3, hidden=(16, 4))(torch.zeros(5, 8)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        width: int,
        outputs: int,
        *,
        hidden: Sequence[int] = (64,),
        activation: Activation = "relu",
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if activation not in _ACTIVATIONS:
            raise ProbeError(f"an activation is {', '.join(map(repr, _ACTIVATIONS))}, not {activation!r}")
        if any(size < 1 for size in hidden) or not 0 <= dropout < 1:
            raise ProbeError(
                f"hidden layers have a unit at least and dropout is from 0 to below 1, but hidden={tuple(hidden)} and "
                f"dropout={dropout}"
            )
        generator = generator or torch.Generator().manual_seed(0)
        sizes = [width, *hidden, outputs]
        self.layers = nn.ModuleList(Affine(n, m, generator) for n, m in itertools.pairwise(sizes))
        self.bend = _ACTIVATIONS[activation]
        self.dropout = dropout

    def forward(
        self,
        x: Float[Tensor, "row d"],
        mask: Bool[Tensor, "row pos"] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "row output"]:
        """The outputs of rows.

        Args:
            x: activations.
            mask: not used, as rows are no sequences.
            generator: of dropout, in training; without one nothing is left out.
        """
        *inner, last = self.layers
        for layer in inner:
            x = self.bend(layer(x))
            if self.dropout and generator is not None:
                kept = torch.rand(x.shape, generator=generator, device=x.device) >= self.dropout
                x = x * kept / (1 - self.dropout)
        outputs: Tensor = last(x)
        return outputs


class AttentionPool(nn.Module):
    """Attention by learned queries, then a linear readout of what each head attends to.

    Head h gives position t the weight `softmax_t(q_h · x_t / √d)` and reads `V_h x_t`; outputs are the sum over heads
    of the weighted means, and a bias. Queries begin at zero, which is mean pooling. This is attention pooling with one
    learned query a head (Lee et al. 2019, Set Transformer, arXiv:1810.00825, section 3.2, without its feed-forward
    layers), as used in probes of language models (Shabalin & Belrose 2025, Attention Probes, EleutherAI).

    Args:
        width: how many features a position has.
        outputs: how many numbers come out.
        heads: how many queries.
        generator: of the first weights; seed 0 if not given.

    Raises:
        ProbeError: without heads.

    Example:
        >>> pool = AttentionPool(8, 1, heads=2)
        >>> mask = torch.tensor([[True, True, False, False]])
        >>> pool.attention(torch.randn(1, 4, 8), mask)[0].tolist()
        [[0.5, 0.5, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]]
    """

    def __init__(self, width: int, outputs: int, *, heads: int = 4, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if heads < 1:
            raise ProbeError(f"attention needs a head at least, but heads={heads}")
        generator = generator or torch.Generator().manual_seed(0)
        bound = 0.1 / math.sqrt(width)  # small, so that what heads look at is learned from the data, not from the seed
        self.queries = nn.Parameter(torch.zeros(heads, width))
        self.values = nn.Parameter(torch.empty(heads, outputs, width).uniform_(-bound, bound, generator=generator))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def attention(
        self, x: Float[Tensor, "row pos d"], mask: Bool[Tensor, "row pos"] | None = None
    ) -> Float[Tensor, "row head pos"]:
        """How much each head attends to each position: weights that sum to one, zero at padding.

        Args:
            x: activations.
            mask: the real positions, at least one a row; all if not given.
        """
        return self._attention(*_without_padding(x, mask))

    def _attention(self, x: Tensor, mask: Tensor) -> Float[Tensor, "row head pos"]:
        scores = (x @ self.queries.mT).mT / math.sqrt(x.shape[-1])
        return scores.masked_fill(~mask[:, None], -math.inf).softmax(-1)

    def forward(
        self,
        x: Float[Tensor, "row pos d"],
        mask: Bool[Tensor, "row pos"] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "row output"]:
        """The outputs of sequences.

        Args:
            x: activations.
            mask: the real positions, at least one a row; all if not given.
            generator: not used.
        """
        x, mask = _without_padding(x, mask)
        attended = self._attention(x, mask) @ x
        return torch.einsum("rhd,hod->ro", attended, self.values) + self.bias


class MaxPool(nn.Module):
    """Heads that score each token and keep their highest score, then a linear readout of all heads.

    A mean over a long sequence drowns one telling token, a maximum does not. It grows with length by chance, though:
    sequences of one length are the fair comparison. With a window, what is maximised is the mean over so many real
    tokens in a row, or over all of a shorter sequence: it asks for evidence that lasts (Kramár et al. 2026, Building
    Production-Ready Probes for Gemini, arXiv:2601.11516, which has both).

    Args:
        width: how many features a position has.
        outputs: how many numbers come out.
        heads: how many scores a token gets.
        score: `"linear"`, or `"softplus"` for scores that are never negative.
        window: over how many tokens scores are averaged before the maximum.
        generator: of the first weights; seed 0 if not given.

    Raises:
        ProbeError: for a score that there is not, or without heads or window.

    Example:
        >>> pool = MaxPool(8, 1, heads=2, window=3)
        >>> pool(torch.randn(5, 7, 8)).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        width: int,
        outputs: int,
        *,
        heads: int = 4,
        score: TokenScore = "linear",
        window: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if score not in ("linear", "softplus"):
            raise ProbeError(f"a token's score is 'linear' or 'softplus', not {score!r}")
        if heads < 1 or window < 1:
            raise ProbeError(f"max pooling needs a head and a token at least, but heads={heads} and window={window}")
        generator = generator or torch.Generator().manual_seed(0)
        self.tokens = Affine(width, heads, generator)
        self.readout = Affine(heads, outputs, generator)
        self.score = score
        self.window = window

    def token_scores(
        self, x: Float[Tensor, "row pos d"], mask: Bool[Tensor, "row pos"] | None = None
    ) -> Float[Tensor, "row head pos"]:
        """The score of each token by each head, before averaging; minus infinity at padding.

        Args:
            x: activations.
            mask: the real positions, at least one a row; all if not given.
        """
        return self._scores(*_without_padding(x, mask))

    def _scores(self, x: Tensor, mask: Tensor) -> Float[Tensor, "row head pos"]:
        scores: Tensor = self.tokens(x).mT
        scores = F.softplus(scores) if self.score == "softplus" else scores
        return scores.masked_fill(~mask[:, None], -math.inf)

    def forward(
        self,
        x: Float[Tensor, "row pos d"],
        mask: Bool[Tensor, "row pos"] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "row output"]:
        """The outputs of sequences.

        Args:
            x: activations.
            mask: the real positions, at least one a row; all if not given.
            generator: not used.
        """
        x, mask = _without_padding(x, mask)
        scores = self._scores(x, mask)
        if self.window > 1:
            scores = _rolling_mean(scores, mask, self.window)
        outputs: Tensor = self.readout(scores.amax(-1))
        return outputs


class Scaled(nn.Module):
    """A network for activations as they are: it standardises what goes in, and gives what comes out its unit.

    Args:
        network: for standardised features.
        mean: of each feature.
        scale: its standard deviation.
        centre: what is added to outputs.
        unit: what they are multiplied by before.

    Example:
        >>> mean, scale = torch.full((2,), 5.0), torch.ones(2)
        >>> scaled = Scaled(MLP(2, 1), mean, scale, centre=torch.zeros(1), unit=torch.ones(1))
        >>> torch.equal(scaled(torch.full((1, 2), 5.0)), scaled.network(torch.zeros(1, 2)))
        True
    """

    mean: Tensor
    scale: Tensor
    centre: Tensor
    unit: Tensor

    def __init__(
        self,
        network: MLP | AttentionPool | MaxPool,
        mean: Float[Tensor, " d"],
        scale: Float[Tensor, " d"],
        *,
        centre: Float[Tensor, " output"],
        unit: Float[Tensor, " output"],
    ) -> None:
        super().__init__()
        self.network = network
        for name, value in {"mean": mean, "scale": scale, "centre": centre, "unit": unit}.items():
            self.register_buffer(name, value)

    def standardized(self, x: Float[Tensor, "*some d"]) -> Float[Tensor, "*some d"]:
        """Features with mean 0 and standard deviation 1 over what the probe was trained on."""
        return (x - self.mean) / self.scale

    def forward(
        self,
        x: Float[Tensor, "row *pos d"],
        mask: Bool[Tensor, "row pos"] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "row output"]:
        """The outputs of rows or sequences; see the network."""
        outputs: Tensor = self.network(self.standardized(x), mask, generator=generator)
        return outputs * self.unit + self.centre


def _without_padding(
    x: Float[Tensor, "row pos d"], mask: Bool[Tensor, "row pos"] | None
) -> tuple[Float[Tensor, "row pos d"], Bool[Tensor, "row pos"]]:
    """Zeros at padding, as NaN times an attention of zero would be NaN."""
    if mask is None:
        return x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    return x.masked_fill(~mask[..., None], 0), mask


def _rolling_mean(
    scores: Float[Tensor, "row head pos"], mask: Bool[Tensor, "row pos"], window: int
) -> Float[Tensor, "row head pos"]:
    """Means over windows of real tokens, by their first token; minus infinity where no window begins."""
    order = (~mask).byte().argsort(dim=-1, stable=True)  # real tokens first, padding between them left out
    counts = mask.sum(-1)
    begins = torch.arange(mask.shape[1], device=mask.device)
    ordered = scores.gather(-1, order[:, None].expand(scores.shape))
    ordered = ordered.masked_fill((begins >= counts[:, None])[:, None], 0)
    sums = F.pad(ordered, (0, window - 1)).unfold(-1, window, 1).sum(-1)
    means = sums / counts.clamp_max(window)[:, None, None]
    no_window = begins > (counts - window).clamp_min(0)[:, None]
    return means.masked_fill(no_window[:, None], -math.inf)


__all__ = ["MLP", "Activation", "Affine", "AttentionPool", "MaxPool", "Scaled", "TokenScore"]
