"""What the tests of roles measure: attention on random repeated tokens and on prompts, and what it moves.

What a head moves from one position to another is `A[t, s] · v_s W_O`: its attention times its output for that position
alone. A **direct** effect on a logit is what a vector adds to it through the residual stream, with the final norm's
scale frozen at that run's own; a soft cap behind the unembedding is left out.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_toolkit.errors import CircuitError
from interp_toolkit.model.direct import Direct, moved, outputs
from interp_toolkit.model.machine import token_limit
from interp_toolkit.model.run import Run, run
from interp_toolkit.model.sites import Site
from interp_toolkit.model.tokens import encode
from interp_toolkit.model.wiring import Wiring

_BUDGET = 1 << 28  # bytes of readings that are held at once
_FEWEST, _MOST, _STEP = 14, 22, 3  # tokens that are repeated
_WRITTEN_AT_ONCE = 64  # positions whose heads' outputs are held at once
_EACH = 8  # sequences of each period
_HALF = 0.5  # of what a head writes: what a subject tracker's share has to be above, surely

RANDOM_SCORES = (
    "previous_token",
    "duplicate_token",
    "induction_attention",
    "induction_copying",
    "positional",
    "first_token",
    "written",
)
"""What is measured on random tokens; see `random_scores`."""
PROMPT_SCORES = (
    "answer_attention",
    "answer_effect",
    "answer_certainty",
    "subject_attention",
    "subject_share",
    "subject_certainty",
    "subject_effect",
    "prompt_first_token",
    "prompt_written",
)
"""What is measured on prompts; see `prompt_scores`."""
MLP_SCORES = ("recall", "recall_certainty")
"""What is measured of MLPs, on prompts with a subject."""


# --- random tokens that are repeated ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Repeats:
    """Random tokens, repeated with several periods: for each period sequences `[start …, r_1 … r_p, r_1 … r_p, …]`.

    Attributes:
        ids: for each period its sequences, all of one length.
        start: how many tokens stand in front.
    """

    ids: Mapping[int, Int[Tensor, "sequence pos"]]
    start: int

    @property
    def shortest(self) -> int:
        """How many tokens are random in every sequence."""
        return min(self.ids)

    def places(self, period: int, back: int) -> tuple[Int[Tensor, " place"], Int[Tensor, " place"]]:
        """The positions of the second copy, and those so many tokens before."""
        later = torch.arange(period, 2 * period) + self.start
        return later, later - back


def repeats(plain: Sequence[int], start: Sequence[int], most: int, seed: int) -> Repeats:
    """Draw random repeated tokens.

    Args:
        plain: the tokens to draw from.
        start: what stands in front of every sequence.
        most: how many tokens the model takes.
        seed: of the draw.

    Raises:
        CircuitError: when there are too few tokens, or the model takes too few.
    """
    longest = min(_MOST, len(plain), (most - len(start)) // 2)
    if longest < _FEWEST:
        raise CircuitError(
            f"random repeated sequences need {_FEWEST} different tokens and {2 * _FEWEST + len(start)} positions, but "
            f"the vocabulary has {len(plain)} plain tokens and the model takes {most} positions"
        )
    generator = torch.Generator().manual_seed(seed)
    pool, front, found = torch.tensor(plain), torch.tensor(list(start), dtype=torch.long), {}
    for period in (longest - 2 * _STEP, longest - _STEP, longest):
        rows = []
        for _ in range(_EACH):
            copy = pool[torch.randperm(len(pool), generator=generator)[:period]]
            rows.append(torch.cat([front, copy.repeat(-(-2 * longest // period))[: 2 * longest]]))
        found[period] = torch.stack(rows)
    return Repeats(ids=found, start=len(front))


def random_scores(
    wiring: Wiring, layers: Sequence[int], drawn: Repeats, direct: Direct
) -> dict[str, Float[Tensor, "layer head"]]:
    """The scores of `RANDOM_SCORES`; their formulas are in `interp_toolkit.circuits.role_tests`."""
    heads, length = wiring.layout.num_heads, next(iter(drawn.ids.values())).shape[1]
    device = next(wiring.base.parameters()).device
    squares = torch.zeros(len(layers), heads, length, length, device=device)
    means, copying = {}, torch.zeros(len(layers), heads, device=device)
    written = torch.zeros_like(copying)
    for period, ids in drawn.ids.items():
        means[period] = torch.zeros_like(squares)
        later, earlier = drawn.places(period, period - 1)
        for here, at_once, found in passes(wiring, layers, (), ids, direct):
            slopes = _copying_slopes(direct, ids[here], found, drawn.start, period)
            for layer in at_once:
                n = layers.index(layer)
                pattern = found[Site("pattern", layer)].float()
                means[period][n] += pattern.sum(0).to(device) / len(ids)
                squares[n] += _uneven(pattern).square().sum(0).to(device)
                # What heads move to each place of the second copy, `[sequence, place, head, d_head]`.
                attention = pattern[:, :, later, earlier].transpose(1, 2)[..., None]
                whole = found[Site("z", layer)][:, later]
                parts = (attention * _for_heads(found[Site("v", layer)][:, earlier], heads)).to(whole.dtype)
                parts, whole = parts.flatten(0, 1), whole.flatten(0, 1)
                share = 1 / (len(ids) * period * len(drawn.ids))
                copying[n] += _above_others(moved(wiring, layer, parts, whole, slopes)).sum(0).to(device) * share
                written[n] += _sizes(wiring, layer, whole).sum(0).to(device) * share
    scores = _attention_scores(drawn, means, squares)
    return {**scores, "induction_copying": copying.cpu(), "written": _beside_most(written).cpu()}


def _copying_slopes(direct: Direct, ids: Tensor, found: Run, start: int, period: int) -> Float[Tensor, "n k d_model"]:
    """For each place of the second copy the logits of the copied tokens, first the one that follows there."""
    later = torch.arange(period, 2 * period) + start
    copy = ids[:, start : start + period]
    order = (torch.arange(period)[:, None] + 1 + torch.arange(period)) % period
    rows = direct.rows(copy.flatten()).view(*copy.shape, -1)[:, order.to(direct.gain.device)]
    return direct.slopes(found[direct.end][:, later].flatten(0, 1), rows.flatten(0, 1))


def _above_others(logits: Float[Tensor, "n head k"]) -> Float[Tensor, "n head"]:
    """Over how many of the other logits the first one is, from -1 for none to 1 for all."""
    return (logits[..., :1] - logits[..., 1:]).sign().mean(-1)


def _beside_most(sizes: Float[Tensor, "layer head"]) -> Float[Tensor, "layer head"]:
    """What each head writes beside the one of its layer that writes most."""
    return sizes / sizes.amax(-1, keepdim=True).clamp_min(1e-30)


@torch.no_grad()
def _sizes(wiring: Wiring, layer: int, whole: Float[Tensor, "n head d_head"]) -> Float[Tensor, "n head"]:
    """How much heads write."""
    return torch.cat([outputs(wiring, layer, some, some).norm(dim=-1) for some in whole.split(_WRITTEN_AT_ONCE)])


def _uneven(pattern: Float[Tensor, "*batch pos pos"]) -> Float[Tensor, "*batch pos pos"]:
    """What attention to tokens behind the first differs from even attention to them."""
    positions = torch.arange(pattern.shape[-1], device=pattern.device)
    counted = (positions[None] <= positions[:, None]) & (positions[None] > 0)
    kept = pattern * counted
    return (kept - kept.sum(-1, keepdim=True) / positions.clamp_min(1)[:, None]) * counted


def _attention_scores(
    drawn: Repeats, means: Mapping[int, Float[Tensor, "layer head pos pos"]], squares: Tensor
) -> dict[str, Float[Tensor, "layer head"]]:
    number = len(means) * _EACH
    mean = torch.stack(list(means.values())).mean(0)
    positions = torch.arange(drawn.start + 2, drawn.start + drawn.shortest, device=mean.device)
    even = float((1 / (positions + 1.0)).mean())
    previous = mean[..., positions, positions - 1].mean(-1)
    return {
        "previous_token": ((previous - even) / (1 - even)).cpu(),
        "duplicate_token": _beyond_place(drawn, means, 0).cpu(),
        "induction_attention": _beyond_place(drawn, means, 1).cpu(),
        "positional": _explained_by_place(mean, squares, positions, number).cpu(),
        "first_token": mean[..., 1:, 0].mean(-1).cpu(),
    }


def _beyond_place(drawn: Repeats, means: Mapping[int, Tensor], ahead: int) -> Float[Tensor, "layer head"]:
    """Attention to the place `ahead` of one period ago, minus that of the other periods at the same places."""
    found = []
    for period, mean in means.items():
        later, earlier = drawn.places(period, period - ahead)
        others = torch.stack([other for p, other in means.items() if p != period]).mean(0)
        found.append((mean - others)[..., later, earlier].mean(-1))
    return torch.stack(found).mean(0)


def _explained_by_place(mean: Tensor, squares: Tensor, positions: Tensor, number: int) -> Float[Tensor, "layer head"]:
    """R² of the mean of the other sequences, for what differs from even attention among random tokens."""
    first, second = _uneven(mean)[..., positions, :].square(), squares[..., positions, :] / number
    within = (second - first).sum((-2, -1)) * (number / (number - 1)) ** 2
    return 1 - within / second.sum((-2, -1)).clamp_min(1e-12)


# --- prompts ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """A prompt and its answers.

    Attributes:
        ids: its tokens.
        targets: the answers; may be empty.
        foils: what they are compared with; without any, the other tokens of the prompt.
        subject: the last position of the subject, or None.
    """

    ids: tuple[int, ...]
    targets: tuple[int, ...]
    foils: tuple[int, ...]
    subject: int | None

    @property
    def answer_places(self) -> tuple[int, ...]:
        """Where the answer occurs before the last position."""
        return tuple(n for n, token in enumerate(self.ids[:-1]) if token in self.targets)

    @functools.cached_property
    def compared(self) -> tuple[int, ...]:
        """The foils, or what stands in for them."""
        return self.foils or tuple(sorted(set(self.ids) - set(self.targets)))


class _Means:
    """Means over the prompts that have a value, and how surely they are not 0."""

    def __init__(self, names: Sequence[str], shape: tuple[int, ...]) -> None:
        self._sums = {name: torch.zeros(3, *shape, dtype=torch.float64) for name in names}

    def add(self, name: str, place: int, values: Float[Tensor, "prompt *rest"]) -> None:
        wide = values.detach().cpu().double()
        several = torch.stack([torch.ones_like(wide), wide, wide.square()])
        self._sums[name][:, place] += several.sum(1)

    def mean(self, name: str) -> Tensor:
        number, total, _ = self._sums[name]
        mean: Tensor = total / number
        return mean.float()

    def certainty(self, name: str, beside: float = 0.0) -> Tensor:
        """How surely a mean is not 0, or what it is put beside.

        Student's t as the normal deviate of the same probability (Wallace 1959); NaN for a single prompt, where nothing
        is known of chance.
        """
        number, total, squares = self._sums[name]
        mean, free = total / number, number - 1
        variance = (squares / number - mean.square()).clamp_min(1e-24) / free.clamp_min(1)
        deviate = (free * ((mean - beside).square() / variance / free).log1p()).sqrt() * (8 * free + 1) / (8 * free + 3)
        return torch.where(number > 1, deviate, torch.nan).float()


def prompt_scores(
    wiring: Wiring, layers: Sequence[int], mlps: Sequence[int], prompts: Sequence[Asked], direct: Direct
) -> tuple[dict[str, Float[Tensor, "layer head"]], dict[str, Float[Tensor, " mlp"]]]:
    """The scores of `PROMPT_SCORES` and of `MLP_SCORES`; NaN where no prompt has a value."""
    measured = [name for name in PROMPT_SCORES if not name.endswith("certainty")]
    heads = _Means(measured, (len(layers), wiring.layout.num_heads))
    recall = _Means(("recall",), (len(mlps),))
    by_length: dict[int, list[Asked]] = {}
    for prompt in prompts:
        by_length.setdefault(len(prompt.ids), []).append(prompt)
    for group in by_length.values():
        ids = torch.tensor([prompt.ids for prompt in group])
        rows = torch.stack([_row(direct, prompt) for prompt in group])
        for here, at_once, found in passes(wiring, layers, mlps, ids, direct):
            some = group[here]
            slopes = direct.slopes(found[direct.end][:, -1], rows[here, None])
            for layer in at_once:
                if layer in layers:
                    _add_heads(heads, wiring, layers.index(layer), layer, found, some, slopes)
            _add_mlps(recall, mlps, at_once, found, some, rows[here], direct)
    found_heads = {name: heads.mean(name) for name in measured}
    found_heads["prompt_written"] = _beside_most(found_heads["prompt_written"])
    found_heads["answer_certainty"] = heads.certainty("answer_effect")
    found_heads["subject_certainty"] = heads.certainty("subject_share", _HALF)
    return found_heads, {"recall": recall.mean("recall"), "recall_certainty": recall.certainty("recall")}


def _row(direct: Direct, prompt: Asked) -> Float[Tensor, " d_model"]:
    """The difference of the unembedding's rows of the answers and of what they are compared with."""
    sides = (prompt.targets, prompt.compared)
    if not all(sides):
        return torch.zeros_like(direct.gain)
    first, second = (direct.rows(torch.tensor(side)).mean(0) for side in sides)
    return first - second


def _add_heads(
    means: _Means,
    wiring: Wiring,
    place: int,
    layer: int,
    found: Run,
    prompts: Sequence[Asked],
    slopes: Float[Tensor, "prompt one d_model"],
) -> None:
    pattern, values, whole = (found[Site(name, layer)] for name in ("pattern", "v", "z"))
    ends = pattern[:, :, -1].float()
    means.add("prompt_first_token", place, torch.minimum(pattern[:, :, 1:, 0].float().mean(-1), ends[..., 0]))
    means.add("prompt_written", place, _sizes(wiring, layer, whole[:, -1]))
    marked: dict[str, list[tuple[int, ...]]] = {
        "answer": [prompt.answer_places for prompt in prompts],
        "subject": [() if prompt.subject is None or not prompt.targets else (prompt.subject,) for prompt in prompts],
    }
    for name, places in marked.items():
        rows = [row for row, columns in enumerate(places) if columns]
        if not rows:
            continue
        mask = torch.zeros(len(prompts), ends.shape[-1], device=ends.device)
        for row, columns in enumerate(places):
            mask[row, list(columns)] = 1.0
        attention = (ends * mask[:, None])[rows]
        every = _for_heads(values[rows], ends.shape[1])
        parts = torch.einsum("bht,bthd->bhd", attention, every.float()).to(whole.dtype)
        # Even attention gives 0: prompts are short.
        even = mask[rows].sum(-1)[:, None] / mask.shape[-1]
        means.add(f"{name}_attention", place, (attention.sum(-1) - even) / (1 - even))
        means.add(f"{name}_effect", place, moved(wiring, layer, parts, whole[rows, -1], slopes[rows])[..., 0])
        if name == "subject":
            means.add("subject_share", place, _share(wiring, layer, parts, whole[rows, -1]))


@torch.no_grad()
def _share(
    wiring: Wiring, layer: int, parts: Float[Tensor, "n head d_head"], whole: Float[Tensor, "n head d_head"]
) -> Float[Tensor, "n head"]:
    """What share of heads' outputs these parts are: their projection on it."""
    part, written = (outputs(wiring, layer, x, whole) for x in (parts, whole))
    return (part * written).sum(-1) / written.square().sum(-1).clamp_min(1e-30)


def _add_mlps(
    means: _Means,
    mlps: Sequence[int],
    at_once: Sequence[int],
    found: Run,
    prompts: Sequence[Asked],
    rows: Float[Tensor, "prompt d_model"],
    direct: Direct,
) -> None:
    asked = [n for n, prompt in enumerate(prompts) if prompt.subject is not None and prompt.targets]
    if not asked:
        return
    where = [prompts[n].subject for n in asked]
    slopes = direct.slopes(found[direct.end][asked, where], rows[asked][:, None])[:, 0]
    for layer in at_once:
        if layer in mlps:
            written = found[Site("mlp_out", layer)][asked, where].float()
            means.add("recall", mlps.index(layer), (written * slopes.to(written.device)).sum(-1))


def _for_heads(values: Float[Tensor, "batch pos group d_head"], heads: int) -> Float[Tensor, "batch pos head d_head"]:
    """Each head's values: those of its key/value group."""
    return values.repeat_interleave(heads // values.shape[2], dim=2)


def passes(
    wiring: Wiring, layers: Sequence[int], mlps: Sequence[int], ids: Int[Tensor, "prompt pos"], direct: Direct
) -> Iterator[tuple[slice, list[int], Run]]:
    """Runs over some prompts that read some layers, so that what is held at once stays small.

    Args:
        wiring: the model.
        layers: whose heads are read.
        mlps: layers whose MLP is read.
        ids: prompts of one length.
        direct: says where the residual stream is read.

    Yields:
        Which prompts, which layers, and the run.
    """
    layout, length = wiring.layout, ids.shape[1]
    width = max(layout.d_model, layout.num_heads * wiring.shapes.get("z", (layout.d_model,))[-1])
    size = next(wiring.base.parameters()).element_size()
    bytes_each = size * length * (layout.num_heads * length + 4 * width)
    every = sorted({*layers, *mlps})
    together = max(1, min(len(every), _BUDGET // bytes_each))
    rows = max(1, min(_BUDGET // (bytes_each * together), token_limit(wiring, length, None) // length))
    for first in range(0, len(every), together):
        at_once = every[first : first + together]
        read = [Site(name, layer) for layer in at_once if layer in layers for name in ("pattern", "v", "z")]
        read += [Site("mlp_out", layer) for layer in at_once if layer in mlps]
        for begin in range(0, len(ids), rows):
            here = slice(begin, min(begin + rows, len(ids)))
            yield here, at_once, run(wiring.model, encode(ids[here]), read=[*read, direct.end], layout=layout)


__all__ = [
    "MLP_SCORES",
    "PROMPT_SCORES",
    "RANDOM_SCORES",
    "Asked",
    "Repeats",
    "passes",
    "prompt_scores",
    "random_scores",
    "repeats",
]
