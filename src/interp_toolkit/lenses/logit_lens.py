"""The logit lens: the model's own final norm and unembedding, applied in front of every block.

The residual stream of every depth is put behind the last block, and the model goes on from there itself. So whatever
stands between it and the logits is as it is in the model: the kind of norm and its bias, with that position's own
scale, a scaling, a soft cap (nostalgebraist 2020, "Interpreting GPT: the logit lens").
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp_toolkit.errors import RunError
from interp_toolkit.model.edits import Edit
from interp_toolkit.model.layout import Layout
from interp_toolkit.model.positions import PositionsLike
from interp_toolkit.model.positions import positions as as_positions
from interp_toolkit.model.run import columns_of, run
from interp_toolkit.model.sites import Site
from interp_toolkit.model.tokens import Inputs, Tokens, answer_token, encode, is_text, token_string, tokenizer_for
from interp_toolkit.model.trial import shortcuts_of
from interp_toolkit.model.verify import verified
from interp_toolkit.provenance import Provenance, provenance_of

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase

    from interp_toolkit.visualization import View

_HELD = 1 << 26  # logits that are held at once


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
    provenance: Provenance = field(repr=False)

    def settles(self, position: int = -1) -> str:
        """The first depth from which on the best token at a position of the list stays what the model says."""
        best = self.top_ids[:, position, 0]
        other = (best != best[-1]).nonzero()
        return self.depths[0 if not len(other) else int(other[-1]) + 1]

    def summary(self) -> str:
        """The last position in words."""
        final, sure = self.top_tokens[-1][-1][0], float(self.top_probabilities[-1, -1, 0])
        lines = [
            (
                f"Behind {self.tokens[-1]!r} the model says {final!r} ({sure:.2f}). From depth {self.settles()} on that is "
                "the residual stream's best token."
            )
        ]
        if self.difference is not None:
            what = " − ".join(map(repr, self.answers)) if len(self.answers) > 1 else f"log p({self.answers[0]!r})"
            steps = self.difference[:, -1].diff()
            most = int(steps.argmax())
            lines.append(
                f"{what}: {float(self.difference[0, -1]):.2f} at the beginning, {float(self.difference[-1, -1]):.2f} "
                f"at the end; it rises most in block {self.depths[most + 1]}, by {float(steps[most]):.2f}."
            )
        return "\n".join(lines)

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
            title="Logit lens: what the model would say if it ended there",
        )

    def _repr_html_(self) -> str:
        return self.plot()._repr_html_()


@torch.no_grad()
def logit_lens(
    model: nn.Module,
    prompt: Inputs,
    answers: str | int | tuple[str | int, ...] | None = None,
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
    wiring = verified(model, layout)
    chosen = tokenizer_for(model, tokenizer) if tokenizer is None and is_text(prompt) else tokenizer
    tokens = encode(prompt, tokenizer=chosen)
    if len(tokens) != 1:
        raise RunError(f"a lens looks at one prompt, not {len(tokens)}; call it for each")
    pair = () if answers is None else answers if isinstance(answers, tuple) else (answers,)
    if answers is not None and len(pair) not in (1, 2):
        raise RunError(f"answers are a target, or (target, foil), not {answers!r}")
    text = tokens.texts[0] if tokens.texts else ""
    ids = [answer_token(text, answer, chosen) for answer in pair]
    columns = columns_of(as_positions(positions).bind(tokens), tokens)
    where = list(range(tokens.ids.shape[1])) if columns is None else columns[0].tolist()
    last = wiring.layout.num_layers - 1
    sites = [Site("resid_pre", 0), *(Site("resid_post", layer) for layer in range(last + 1))]
    found = run(model, tokens, read=sites, layout=layout)
    stream = torch.cat([found[site] for site in sites])
    kept = _read(_Unembedding(model, tokens, last, layout, shortcuts_of(wiring).resume), stream, where, ids, top)
    names = [[[token_string(chosen, int(i)) for i in cell] for cell in row] for row in kept["top_ids"]]
    return LensResult(
        depths=("embed", *map(str, range(last + 1))),
        tokens=tuple(tokens.strings()[n] for n in where),
        positions=tuple(where),
        top_tokens=tuple(tuple(map(tuple, row)) for row in names),
        answers=tuple(token_string(chosen, i) for i in ids),
        provenance=provenance_of(model, wiring.layout),
        **kept,
    )


@dataclass(frozen=True)
class _Unembedding:
    """From the residual stream behind the last block to logits, by the model itself."""

    model: nn.Module
    tokens: Tokens
    last: int
    layout: Layout | None
    resume: bool

    def logits(self, stream: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row pos vocab"]:
        """The logits of some residual streams."""
        rows = len(stream)
        tokens = Tokens(ids=self.tokens.ids.expand(rows, -1), mask=self.tokens.mask.expand(rows, -1))
        found = run(
            self.model,
            tokens,
            edits=[Edit.set(Site("resid_post", self.last), stream)],
            start=(self.last, stream) if self.resume else None,
            logits="all",
            layout=self.layout,
        ).logits
        if found is None:
            raise RunError("the model gave no logits")
        return found


def _read(
    unembedding: _Unembedding,
    stream: Float[Tensor, "depth pos d_model"],
    where: list[int],
    ids: list[int],
    top: int,
) -> dict[str, Any]:
    """Everything of a result that needs all logits, a few depths at a time; the last depth comes first."""
    parts: list[dict[str, Tensor]] = []
    final, some = None, 1
    rest = list(range(len(stream) - 1, -1, -1))
    while rest:
        now, rest = rest[:some], rest[some:]
        logits = unembedding.logits(stream[now])[:, where].float()
        shares = logits.log_softmax(-1)
        final = shares[:1] if final is None else final
        if not 0 < top <= shares.shape[-1]:
            raise RunError(f"top is between 1 and the vocabulary's {shares.shape[-1]:,} tokens, not {top}")
        parts.append(_kept(logits, shares, final, ids, top))
        some = max(1, _HELD // logits[0].numel())
    return {name: torch.cat([part[name] for part in parts]).flip(0).cpu() for name in parts[0]}


def _kept(logits: Tensor, shares: Tensor, final: Tensor, ids: list[int], top: int) -> dict[str, Tensor]:
    best = shares.topk(top)
    kept = {
        "top_ids": best.indices,
        "top_probabilities": best.values.exp(),
        "entropy": -(shares.exp() * shares).nan_to_num(0.0).sum(-1),
        "kl": (final.exp() * (final - shares)).nan_to_num(0.0).sum(-1),
    }
    if ids:
        target = logits[..., ids[0]]
        kept["difference"] = target - logits[..., ids[1]] if len(ids) > 1 else shares[..., ids[0]]
        kept["rank"] = (logits > target[..., None]).sum(-1)
    return kept


__all__ = ["LensResult", "logit_lens"]
