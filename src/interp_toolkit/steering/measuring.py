"""What is measured of a steered pass, and the texts of a pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp_toolkit.model.tokens import Tokens
from interp_toolkit.statistics import kl_divergence
from interp_toolkit.steering.trials import Case

_CHUNK = 8  # texts that are run together
_NGRAM = 3  # tokens that are said to be repeated together


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Texts of one kind that are run together.

    Attributes:
        cases: the texts.
        tokens: the same, padded.
    """

    cases: tuple[Case, ...]
    tokens: Tokens

    @property
    def kind(self) -> Literal["question", "target", "neutral"]:
        """What they are for."""
        first = self.cases[0]
        if first.pair is not None:
            return "question"
        return "target" if first.prompt < len(first.ids) else "neutral"


@dataclass(frozen=True, kw_only=True, eq=False)
class Outputs:
    """What a forward pass gave.

    Attributes:
        logits: at the asked positions.
        stream: behind the last block.
    """

    logits: Float[Tensor, "batch asked vocab"]
    stream: Float[Tensor, "batch pos d_model"]

    @cached_property
    def logp(self) -> Float[Tensor, "batch asked vocab"]:
        """Log-probabilities, in full precision."""
        return self.logits.to(torch.promote_types(self.logits.dtype, torch.float32)).log_softmax(-1)


def measures(
    batch: Batch, steered: Outputs, plain: Outputs, selected: Bool[Tensor, "batch pos"]
) -> dict[str, Float[Tensor, " batch"]]:
    """What steering did to each text.

    Args:
        batch: the texts, padded on the right if at all.
        steered: what the steered pass gave.
        plain: what the pass without steering gave.
        selected: which tokens were steered.
    """
    device = steered.logits.device
    if batch.kind == "question":
        pairs = torch.tensor([case.pair for case in batch.cases], device=device)
        two = steered.logits[:, -1].double().gather(-1, pairs)
        return {"logit_diff": (two[:, 0] - two[:, 1]).cpu()}
    ids, real = batch.tokens.ids.to(device), batch.tokens.mask.to(device).bool()
    told = steered.logp[:, :-1].gather(-1, ids[:, 1:, None])[..., 0].double()
    if batch.kind == "target":
        behind = [told[n, case.prompt - 1 : len(case.ids) - 1].mean() for n, case in enumerate(batch.cases)]
        return {"log_prob": torch.stack(behind).cpu()}
    # Nothing changes in front of the first token that is steered.
    touched = (selected.cumsum(-1) > 0).to(device) & real
    touched = torch.where(touched.any(-1, keepdim=True), touched, real)
    kl = kl_divergence(plain.logp, steered.logp).double()
    lengths = steered.stream.double().norm(dim=-1) / plain.stream.double().norm(dim=-1)
    found = {
        "kl": _mean(kl, touched),
        # What a token is told by the one before it; a text's last token tells of none.
        "nll": _mean(-told, _known(touched[:, :-1] & real[:, 1:], real)),
        "norm": _mean(lengths.to(device), touched),
    }
    return {name: x.cpu() for name, x in found.items()}


def _known(touched: Tensor, real: Tensor) -> Tensor:
    """Tokens with a next one that are touched; all with a next one where there is none."""
    return torch.where(touched.any(-1, keepdim=True), touched, real[:, 1:])


def _mean(x: Tensor, where: Tensor) -> Tensor:
    """The mean of each row's chosen entries."""
    return torch.where(where, x, 0).sum(-1) / where.sum(-1)


def repetition(tokens: Sequence[int]) -> float:
    """The share of runs of three tokens that were there before.

    Example:
        >>> repetition([1, 2, 3, 4]), repetition([1, 2, 1, 2, 1, 2])
        (0.0, 0.5)
    """
    runs = [tuple(tokens[n : n + _NGRAM]) for n in range(len(tokens) - _NGRAM + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def batches(
    cases: Sequence[Case], *, padded: bool, side: Literal["left", "right"] = "right"
) -> Iterator[tuple[list[int], Batch]]:
    """Texts of about one length together; of just one length where the model cannot be run on padded texts.

    Args:
        cases: texts.
        padded: whether they may be padded.
        side: where.

    Yields:
        The numbers of some texts, and these texts.
    """
    by_length: dict[int, list[int]] = defaultdict(list)
    for n in sorted(range(len(cases)), key=lambda n: len(cases[n].ids)):
        by_length[0 if padded else len(cases[n].ids)].append(n)
    for numbers in by_length.values():
        for begin in range(0, len(numbers), _CHUNK):
            some = numbers[begin : begin + _CHUNK]
            chosen = tuple(cases[n] for n in some)
            width = max(len(case.ids) for case in chosen)
            ids, mask = torch.zeros(len(some), width).long(), torch.zeros(len(some), width).long()
            for row, case in enumerate(chosen):
                columns = slice(width - len(case.ids), width) if side == "left" else slice(0, len(case.ids))
                ids[row, columns], mask[row, columns] = torch.tensor(case.ids), 1
            yield some, Batch(cases=chosen, tokens=Tokens(ids=ids, mask=mask))


def repeated(tokens: Tokens, number: int) -> Tokens:
    """The same texts so many times, one after the other."""
    return Tokens(ids=tokens.ids.repeat(number, 1), mask=tokens.mask.repeat(number, 1))


__all__ = ["Batch", "Outputs", "batches", "measures", "repeated", "repetition"]
