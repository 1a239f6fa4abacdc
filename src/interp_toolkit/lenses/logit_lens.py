"""The logit lens: the model's own final norm and unembedding, applied in front of every block.

The residual stream of every depth is put behind the last block, and the model goes on from there itself. So whatever
stands between it and the logits is as it is in the model: the kind of norm and its bias, with that position's own
scale, a scaling, a soft cap (nostalgebraist 2020, "Interpreting GPT: the logit lens").
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp_toolkit.errors import RunError, TokenError
from interp_toolkit.lenses.asking import Answers, Asked, asked
from interp_toolkit.lenses.unembedding import Unembedding
from interp_toolkit.model.layout import Layout
from interp_toolkit.model.positions import PositionsLike
from interp_toolkit.model.run import run
from interp_toolkit.model.sites import Site
from interp_toolkit.model.tokens import Inputs, token_string
from interp_toolkit.provenance import Provenance, provenance_of
from interp_toolkit.statistics import kl_divergence

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase

    from interp_toolkit.visualization import View

_HELD = 1 << 26  # logits that are held at once
_NEAR = 1.0  # nats; farther from the end, a reading says little about what the model says


@dataclass(frozen=True, kw_only=True, eq=False)
class LensResult:
    """What each depth of the residual stream says, at some positions of one prompt.

    Attributes:
        depths: `"embed"` in front of the first block, then the number of the block behind which it is read; the last
            one is what the model says.
        tokens: the prompt's tokens at these positions.
        positions: their numbers.
        top_ids: the most probable next tokens, the best first.
        top_tokens: the same as text.
        top_probabilities: theirs.
        entropy: of the distribution over the next token, in nats.
        kl: from what the model says at the end to what it would say here, in nats.
        answers: target and foil as text, where they were given.
        difference: target's logit minus foil's; the target's log-probability where there is no foil.
        rank: the target's, 0 for the best; None where no answer was given.
        lens: which lens it is.
        provenance: model, layout and versions.
    """

    depths: tuple[str, ...]
    tokens: tuple[str, ...]
    positions: tuple[int, ...]
    top_ids: Int[Tensor, "depth pos top"]
    top_tokens: tuple[tuple[tuple[str, ...], ...], ...]
    top_probabilities: Float[Tensor, "depth pos top"]
    entropy: Float[Tensor, "depth pos"]
    kl: Float[Tensor, "depth pos"]
    answers: tuple[str, ...] = ()
    difference: Float[Tensor, "depth pos"] | None = None
    rank: Int[Tensor, "depth pos"] | None = None
    lens: str = "logit lens"
    provenance: Provenance = field(repr=False)

    def settles(self, position: int = -1) -> str:
        """The first depth from which on the best token at a position of the list stays what the model says."""
        best = self.top_ids[:, position, 0]
        return self._lasting(best == best[-1])

    def summary(self) -> str:
        """The last position in words."""
        final, sure = self.top_tokens[-1][-1][0], float(self.top_probabilities[-1, -1, 0])
        lines = [
            (
                f"Behind {self.tokens[-1]!r} the model says {final!r} ({sure:.2f}). From depth {self.settles()} on "
                f"that is the best token by the {self.lens}."
            )
        ]
        if self.difference is not None and self.rank is not None:
            what = " − ".join(map(repr, self.answers)) if len(self.answers) > 1 else f"log p({self.answers[0]!r})"
            rank = self.rank[:, -1]
            told = (
                f"{self.answers[0]!r} is among the best ten from depth {self._lasting(rank < 10)} on"
                if int(rank[-1]) < 10
                else f"{self.answers[0]!r} is number {int(rank[-1]) + 1:,} at the end"
            )
            lines.append(f"{what}: {float(self.difference[-1, -1]):.2f} at the end. {told}.")
        near = self._lasting(self.kl[:, -1] <= _NEAR)
        end = ", which is the end" if near == self.depths[-1] else ""
        lines.append(f"The reading stays within {_NEAR:g} nat (KL) of what the model says from depth {near} on{end}.")
        return "\n".join(lines)

    def _lasting(self, holds: Bool[Tensor, " depth"]) -> str:
        """The first depth from which on something holds up to the end, where it does."""
        fails = (~holds).nonzero()
        return self.depths[0 if not len(fails) else int(fails[-1]) + 1]

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each depth and position."""
        import pandas as pd

        rows = []
        for d, depth in enumerate(self.depths):
            for p, (position, token) in enumerate(zip(self.positions, self.tokens, strict=True)):
                row: dict[str, Any] = {"depth": depth, "position": position, "token": token}
                row |= {"top": self.top_tokens[d][p][0], "probability": float(self.top_probabilities[d, p, 0])}
                row |= {"entropy": float(self.entropy[d, p]), "kl": float(self.kl[d, p])}
                if self.difference is not None and self.rank is not None:
                    row |= {"difference": float(self.difference[d, p]), "rank": int(self.rank[d, p])}
                rows.append(row)
        return pd.DataFrame(rows)

    def plot(self) -> View:
        """The best token of every depth and position, coloured by its probability; the others on hover."""
        from interp_toolkit.visualization.heatmaps import plot_lens

        return plot_lens(
            [[list(row) for row in rows] for rows in self.top_tokens],
            self.top_probabilities.tolist(),
            rows=list(self.depths),
            columns=list(self.tokens),
            title=f"{self.lens.capitalize()}: what the model would say if it ended there",
        )

    def _repr_html_(self) -> str:
        return self.plot()._repr_html_()


@torch.no_grad()
def logit_lens(
    model: nn.Module,
    prompt: Inputs,
    answers: Answers = None,
    *,
    positions: PositionsLike = "all",
    top: int = 5,
    tokenizer: PreTrainedTokenizerBase | None = None,
    layout: Layout | None = None,
) -> LensResult:
    """Read what the model would say next if it ended in front of each block.

    Args:
        model: a causal language model, as it is.
        prompt: one prompt: text or token ids.
        answers: a target, or target and foil, whose logits are followed.
        positions: of the prompt.
        top: how many tokens to keep for each depth and position.
        tokenizer: for text, when the model does not say where it comes from.
        layout: for a model class of your own.

    Returns:
        One entry more than there are blocks along `depth`; the last is the model's own output.

    Raises:
        RunError: for several prompts, and for numbers of tokens or answers that cannot be.
        TokenError, PositionError, SiteError: for what the prompt or the model lacks.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11)).eval()
        >>> logit_lens(model, [1, 2, 3], (5, 6), top=3).top_ids.shape
        torch.Size([3, 3, 3])
    """
    question = asked(model, prompt, answers, positions=positions, tokenizer=tokenizer, layout=layout)
    return read_depths(question, streams(question), top)


def streams(question: Asked) -> Float[Tensor, "depth pos d_model"]:
    """The residual stream in front of the first block and behind every block, at the positions that are asked for."""
    sites = depth_sites(question.wiring.layout.num_layers)
    found = run(question.wiring.model, question.tokens, read=sites, layout=question.wiring.layout)
    return torch.stack([found[site][0, list(question.where)] for site in sites])


def depth_sites(num_layers: int) -> list[Site]:
    """Where a lens reads: in front of the first block and behind every block."""
    return [Site("resid_pre", 0), *(Site("resid_post", layer) for layer in range(num_layers))]


def read_depths(
    question: Asked, stream: Float[Tensor, "depth pos d_model"], top: int, lens: str = "logit lens"
) -> LensResult:
    """What the model says of each depth's stream; the last depth is the model's own.

    Raises:
        RunError: for a number of tokens that cannot be.
        TokenError: for an answer outside of the vocabulary.
    """
    kept = _read(Unembedding(question.wiring), stream, question.ids, top)
    names = [[[token_string(question.tokenizer, int(i)) for i in cell] for cell in row] for row in kept["top_ids"]]
    return LensResult(
        depths=("embed", *map(str, range(len(stream) - 1))),
        tokens=question.shown,
        positions=question.where,
        top_tokens=tuple(tuple(map(tuple, row)) for row in names),
        answers=question.answers,
        lens=lens,
        provenance=provenance_of(question.wiring.model, question.wiring.layout),
        **kept,
    )


def _read(
    unembedding: Unembedding, stream: Float[Tensor, "depth pos d_model"], ids: tuple[int, ...], top: int
) -> dict[str, Any]:
    """Everything of a result that needs all logits, a few depths at a time; the last depth comes first."""
    parts: list[dict[str, Tensor]] = []
    final, some = None, 1
    rest = list(range(len(stream) - 1, -1, -1))
    while rest:
        now, rest = rest[:some], rest[some:]
        logits = unembedding.logits(stream[now].flatten(0, 1)).unflatten(0, (len(now), -1)).float()
        shares = logits.log_softmax(-1)
        final = shares[:1] if final is None else final
        size = shares.shape[-1]
        if not 0 < top <= size:
            raise RunError(f"top is between 1 and the vocabulary's {size:,} tokens, not {top}")
        if any(i >= size for i in ids):
            raise TokenError(f"token id {max(ids)} is outside of the vocabulary of {size:,} tokens")
        parts.append(_kept(logits, shares, final, ids, top))
        some = max(1, _HELD // logits[0].numel())
    return {name: torch.cat([part[name] for part in parts]).flip(0).cpu() for name in parts[0]}


def _kept(logits: Tensor, shares: Tensor, final: Tensor, ids: tuple[int, ...], top: int) -> dict[str, Tensor]:
    best = shares.topk(top)
    kept = {
        "top_ids": best.indices,
        "top_probabilities": best.values.exp(),
        "entropy": torch.special.entr(shares.exp()).sum(-1),
        "kl": kl_divergence(final, shares),
    }
    if ids:
        target = logits[..., ids[0]]
        kept["difference"] = target - logits[..., ids[1]] if len(ids) > 1 else shares[..., ids[0]]
        kept["rank"] = (logits > target[..., None]).sum(-1)
    return kept


__all__ = ["LensResult", "depth_sites", "logit_lens", "read_depths", "streams"]
