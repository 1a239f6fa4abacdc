"""Whether the model uses what a probe reads: its answers change when a direction is added, or a concept erased.

That a probe can read a concept says that it is there, not that anything depends on it. Here activations are changed,
and the model's next token is compared with that behind random changes of the same kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp_toolkit.errors import MetricError, PositionError, ProbeError, TokenError
from interp_toolkit.model.cells import Base, Cell
from interp_toolkit.model.edits import Edit
from interp_toolkit.model.layout import Layout
from interp_toolkit.model.plan import make_plan
from interp_toolkit.model.positions import At, PositionsLike
from interp_toolkit.model.positions import positions as make_positions
from interp_toolkit.model.run import run
from interp_toolkit.model.sites import Site
from interp_toolkit.model.tokens import Inputs, Tokens, answer_token, encode, is_text, token_string, tokenizer_for
from interp_toolkit.model.verify import verified
from interp_toolkit.probes.effects import AmnesicEffect, DirectionEffect
from interp_toolkit.probes.erasure import Eraser, one_direction, projection, random_directions
from interp_toolkit.statistics import kl_divergence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Answers = str | int | tuple[str | int, ...] | list[str | int] | list[tuple[str | int, ...]]
"""A token or a tuple of two for all prompts, or a list with one for each; a token is its text or its id."""

_CHUNK = 16  # prompts whose runs are kept at once
_AT_ONCE = 1 << 22  # logits that are worked on together


def direction_effect(
    model: nn.Module,
    prompts: Inputs | Tokens,
    direction: Float[Tensor, " d"],
    site: Site | str,
    *,
    answers: Answers | None = None,
    metric: Callable[[Tensor], Tensor] | None = None,
    pattern: Float[Tensor, " d"] | None = None,
    coefficients: Sequence[float] = (-0.5, -0.25, -0.1, 0.1, 0.25, 0.5),
    scale: Literal["norm", "std", "raw"] = "norm",
    positions: PositionsLike = "last",
    random: int | Float[Tensor, "direction d"] = 8,
    level: float = 0.95,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    layout: Layout | None = None,
) -> DirectionEffect:
    """How the next token changes when a probe's direction is added to activations.

    A direction that the model uses moves its answers with the sign of the coefficient, and more than random
    directions of the same length do. Prompts, coefficients and directions are rows of shared forward passes, which
    enter at the site's layer and run the changed tokens only.

    Args:
        model: a causal language model.
        prompts: text, texts or token ids.
        direction: for instance `probe.direction`.
        site: where it is added.
        answers: two tokens, as a tuple for all prompts or a list with one for each: the metric is the logit of the
            first minus that of the second.
        metric: or a function of next-token logits `[row, vocab]` that gives `[row]`.
        pattern: a second direction, for instance `probe.pattern`.
        coefficients: how far activations are moved; from about 1 on, by `"norm"`, any direction upsets most models.
        scale: what a coefficient of 1 is: `"norm"` the median length of the activations that are changed, `"std"` the
            standard deviation of their projections on the direction, `"raw"` the length of the direction as it is.
        positions: which tokens are changed.
        random: how many random directions to compare with, or these directions themselves: those of
            `random_directions(8, activations, control="activations")` are the harder comparison.
        level: of intervals.
        seed: of random directions and intervals.
        tokenizer: needed for text when the model does not say where it comes from.
        layout: for a model class of your own.

    Raises:
        ProbeError: for a direction that does not fit the site.
        TokenError: for answers that are not one token.
        MetricError: when the metric gives no number.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11)).eval()
        >>> towards = (model.lm_head.weight[3] - model.lm_head.weight[4]).detach()
        >>> found = direction_effect(model, [[1, 2], [5, 6]], towards, "resid_post.1", answers=(3, 4), random=2)
        >>> found.names, bool(found.estimate().mean[0, -1, 0] > 0)
        (('direction', 'random 1', 'random 2'), True)
    """
    if (answers is None) == (metric is None) or not coefficients:
        raise ProbeError("give either answers or a metric, and at least one coefficient")
    setting = _Setting.of(model, prompts, site, positions, tokenizer, layout)
    tokens = () if answers is None else setting.answers(answers, (2,))
    x = setting.activations
    given = [one_direction(v).double().cpu() for v in (direction, pattern) if v is not None]
    drawn = random_directions(random, x, seed=seed) if isinstance(random, int) else random.double().cpu()
    vectors = [v / v.norm() for v in (*given, *drawn)]
    if wrong := [len(v) for v in vectors if len(v) != x.shape[-1]]:
        raise ProbeError(f"a direction has {wrong[0]} entries, but activations at {site} have {x.shape[-1]}")
    lengths = {
        "norm": (x.norm(dim=-1).median(), "the median length of activations there"),
        "std": ((x @ vectors[0]).std(correction=0), "the standard deviation of activations along the direction"),
        "raw": (given[0].norm(), "the length of the direction"),
    }
    if scale not in lengths or not float(lengths[scale][0]) > 0:
        raise ProbeError(f"scale is {', '.join(lengths)}, whichever is not 0 there, but not {scale!r}")
    unit = float(lengths[scale][0])
    edits = [Edit.add(setting.site, v * (unit * float(c))) for v in vectors for c in coefficients]
    before, after = setting.outcomes(edits, partial(_contrasted, tokens, metric))
    name = "logit_diff" if metric is None else str(getattr(metric, "__name__", type(metric).__name__))
    about = f"a coefficient of 1 is {lengths[scale][1]}, {unit:.3g}"
    if len(set(tokens)) == 1:
        about += "; logit_diff is " + " - ".join(f"logit({token_string(setting.tokenizer, t)!r})" for t in tokens[0])
    return DirectionEffect(
        site=str(setting.site),
        positions=setting.words,
        about=about,
        names=("direction", *["pattern"] * (len(given) - 1), *(f"random {n + 1}" for n in range(len(drawn)))),
        measures=(name, "kl"),
        before=before,
        after=after.reshape(len(before), len(vectors), len(coefficients), -1),
        level=level,
        seed=seed,
        coefficients=tuple(float(c) for c in coefficients),
        unit=unit,
    )


def amnesic(
    model: nn.Module,
    prompts: Inputs | Tokens,
    eraser: Eraser,
    site: Site | str,
    *,
    answers: Answers,
    positions: PositionsLike = "all",
    random: int | Sequence[Eraser] = 8,
    level: float = 0.95,
    seed: int = 0,
    tokenizer: PreTrainedTokenizerBase | None = None,
    layout: Layout | None = None,
) -> AmnesicEffect:
    """How the model answers without a concept (amnesic probing; Elazar et al. 2021, arXiv:2006.00995).

    If the model uses the concept at this site, it answers worse when it is erased, and more so than when random
    subspaces of as many dimensions are.

    Args:
        model: a causal language model.
        prompts: text, texts or token ids.
        eraser: of `leace` or `projection`.
        site: where it works.
        answers: the right next token, for all prompts or a list with one for each; or a tuple of it and a wrong one,
            between which the model is then said to choose.
        positions: for which tokens.
        random: how many random subspaces to compare with, or erasers of such subspaces.
        level: of intervals.
        seed: of random subspaces and intervals.
        tokenizer: needed for text when the model does not say where it comes from.
        layout: for a model class of your own.

    Returns:
        `moved`, the mean length of the change as a share of the activation's: random subspaces often move it less;
        accuracy, log-probability of the right token, with wrong tokens the logit difference, and KL.

    Raises:
        ProbeError: for an eraser that does not fit the site.
        TokenError: for answers that are not one token.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=11)).eval()
        >>> found = amnesic(model, [[1, 2], [5, 6]], projection(torch.eye(8)[0]), "resid_post.0", answers=[3, 4])
        >>> found.measures, found.after.shape
        (('moved', 'accuracy', 'log_prob', 'kl'), torch.Size([2, 9, 4]))
    """
    setting = _Setting.of(model, prompts, site, positions, tokenizer, layout)
    tokens = setting.answers(answers, (1, 2))
    x = setting.activations
    if isinstance(random, int):
        drawn = random_directions(random * eraser.rank, eraser.mean[None], seed=seed)
        random = [projection(part, mean=eraser.mean.to(part)) for part in drawn.unflatten(0, (random, eraser.rank))]
    erasers = [eraser, *random]
    moved = torch.stack([(e(x) - x).norm(dim=-1) / x.norm(dim=-1) for e in erasers], -1)
    moved = torch.stack([part.mean(0) for part in moved.split([len(row) for row in setting.places])])
    before, after = setting.outcomes([e.edit(setting.site) for e in erasers], partial(_answered, tokens))
    return AmnesicEffect(
        site=str(setting.site),
        positions=setting.words,
        about=f"{eraser.rank} dimensions are erased",
        names=("eraser", *(f"random {n + 1}" for n in range(len(random)))),
        measures=("moved", "accuracy", "log_prob", *["logit_diff"] * (len(tokens[0]) - 1), "kl"),
        before=torch.nn.functional.pad(before, (1, 0)),
        after=torch.cat([moved[..., None], after], -1),
        level=level,
        seed=seed,
        rank=eraser.rank,
    )


@dataclass(frozen=True, eq=False)
class _Setting:
    """Prompts, and where activations are changed in them; `places` counts real tokens."""

    model: nn.Module
    layout: Layout | None
    tokenizer: PreTrainedTokenizerBase | None
    tokens: Tokens
    site: Site
    places: tuple[tuple[int, ...], ...]
    words: str

    @classmethod
    def of(
        cls, model: nn.Module, prompts: Any, site: Site | str, where: PositionsLike, tokenizer: Any, layout: Any
    ) -> _Setting:
        found = verified(model, layout).check(Site.parse(site))
        if len(found.axes) != 3 or found.axes[1] != "pos" or found.component == "logits":
            raise ProbeError(f"{found} has no vector for each token: it has the axes {', '.join(found.axes)}")
        tokenizer = tokenizer_for(model, tokenizer) if is_text(prompts) else tokenizer
        tokens = encode(prompts, tokenizer=tokenizer)
        index = torch.where(tokens.mask.bool(), tokens.mask.cumsum(-1) - 1, -1)
        columns = make_positions(where).bind(tokens).columns(index, tokens.lengths)
        if empty := [n for n, row in enumerate(columns) if not row]:
            raise PositionError(f"no token of prompt {empty[0]} is at the positions {where!r}")
        places = tuple(tuple(int(index[n, c]) for c in row) for n, row in enumerate(columns))
        words = where if isinstance(where, str) else "all" if where is None else repr(where)
        return cls(model, layout, tokenizer, tokens, found, places, words)

    def answers(self, given: Answers, sizes: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """Token ids for each prompt."""
        number = len(self.tokens)
        rows = given if isinstance(given, list) else [given] * number
        sides = [row if isinstance(row, tuple) else (row,) for row in rows]
        if len(rows) != number or len({len(side) for side in sides}) != 1 or len(sides[0]) not in sizes:
            many = "a tuple of two tokens" if 1 not in sizes else "a token or a tuple of two"
            raise TokenError(f"answers are {many} for all prompts, or a list with {number} of these, not {given!r}")
        texts = self.tokens.texts or [
            "" if self.tokenizer is None else str(self.tokenizer.decode(self.tokens.row(n))) for n in range(number)
        ]
        ids = [tuple(answer_token(t, a, self.tokenizer) for a in side) for t, side in zip(texts, sides, strict=True)]
        vocab = verified(self.model, self.layout).shapes["logits"][-1]
        if wrong := [row for row in ids if max(row) >= vocab or len(set(row)) < len(row)]:
            raise TokenError(f"answers are different tokens with ids below {vocab}, unlike {wrong[0]}")
        return tuple(ids)

    @cached_property
    def activations(self) -> Float[Tensor, "row d"]:
        """What is changed, as it is without a change."""
        found = []
        for begin in range(0, len(self.tokens), _CHUNK):
            at = slice(begin, begin + _CHUNK)
            part = Tokens(ids=self.tokens.ids[at], mask=self.tokens.mask[at])
            x = run(self.model, part, read=self.site, layout=self.layout)[self.site]
            found += [x[n, part.mask[n].bool()][list(row)] for n, row in enumerate(self.places[at])]
        return torch.cat(found).cpu().double()

    def outcomes(self, edits: Sequence[Edit], measure: Callable[[int, Tensor], list[Tensor]]) -> tuple[Tensor, Tensor]:
        """Measures of each prompt, unchanged and with each edit."""
        before, after = [], []
        for begin in range(0, len(self.tokens), _CHUNK):
            numbers = range(len(self.tokens))[begin : begin + _CHUNK]
            bases = [Base(tokens=encode([self.tokens.row(n)])) for n in numbers]
            there = [At(self.places[n]) for n in numbers]
            cells = [Cell(base=b, edits=(replace(e, positions=at),)) for b, at in enumerate(there) for e in edits]
            runs = make_plan(self.model, bases, cells, layout=self.layout).run(progress=True)
            unchanged = [runs.base_logits(b)[-1:] for b in range(len(bases))]
            before += [_measured(measure, n, logits, logits) for n, logits in zip(numbers, unchanged, strict=True)]
            some = torch.full((len(cells), before[0].shape[-1]), torch.nan, dtype=torch.float64)
            for answer in runs:
                n, base = numbers[answer.base], unchanged[answer.base]
                some[list(answer.cells)] = _measured(measure, n, answer.logits[:, -1], base)
            after.append(some.reshape(len(bases), len(edits), -1))
        return torch.cat(before), torch.cat(after)


def _measured(measure: Callable[[int, Tensor], list[Tensor]], n: int, logits: Tensor, unchanged: Tensor) -> Tensor:
    """Measures of prompt n, and KL(unchanged ‖ changed) of the next token: `[row, measure]`."""
    found = []
    for part in logits.split(max(1, _AT_ONCE // logits.shape[-1])):
        wide = part.cpu().double()
        kl = kl_divergence(unchanged.cpu().double().log_softmax(-1), wide.log_softmax(-1))
        found.append(torch.stack([*measure(n, wide), kl], -1))
    return torch.cat(found)


def _contrasted(pairs: Sequence[tuple[int, ...]], metric: Any, n: int, logits: Tensor) -> list[Tensor]:
    if metric is None:
        return [logits[:, pairs[n][0]] - logits[:, pairs[n][1]]]
    value: Tensor = metric(logits)
    if value.shape != logits.shape[:1] or not bool(value.isfinite().all()):
        raise MetricError(f"a metric gives a finite number for each of {len(logits)} rows of logits, not {value!r}")
    return [value.cpu().double()]


def _answered(answers: Sequence[tuple[int, ...]], n: int, logits: Tensor) -> list[Tensor]:
    target, *foil = answers[n]
    rest = logits[:, foil[0]] if foil else logits.index_fill(1, torch.tensor([target]), -torch.inf).amax(-1)
    difference = logits[:, target] - rest
    return [(difference > 0).double(), logits.log_softmax(-1)[:, target], *([difference] if foil else [])]


__all__ = ["Answers", "amnesic", "direction_effect"]
