"""What a causal trace is asked: prompts, subjects, answers, and how the subject is corrupted."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp_toolkit.circuits.dataset import Pairs, has_text, prepare_pairs, prepare_prompts
from interp_toolkit.circuits.grid import Where, available, make_grid
from interp_toolkit.circuits.sweeps import notes_of
from interp_toolkit.errors import InterpWarning, PositionError, RunError, TokenError
from interp_toolkit.model.cells import Base
from interp_toolkit.model.edits import Edit
from interp_toolkit.model.positions import PositionsLike, Span, positions
from interp_toolkit.model.run import Run
from interp_toolkit.model.sites import Site
from interp_toolkit.model.tokens import (
    Inputs,
    Tokens,
    answer_token,
    is_text,
    side_by_side,
    token_string,
    tokenizer_for,
)
from interp_toolkit.model.wiring import Wiring

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS = (
    "first subject token",
    "middle subject tokens",
    "last subject token",
    "first subsequent token",
    "further tokens",
    "last token",
)
"""What positions of prompts of different lengths have in common, as in figure 2 of the paper."""

Groups = tuple[tuple[int, ...], ...]
"""Positions: those of a group are restored together, and the values of several groups are averaged."""

Subject = PositionsLike | Sequence[str] | Sequence[PositionsLike]
"""The subject's text, or its positions; for several prompts one for all of them, or a list with one for each."""

TracedAnswer = str | int | tuple[Any, ...] | Sequence[Any] | None
"""A target, `(target, foil)`, or None for the clean run's own; a list has one of these for each prompt."""


def check_numbers(*, window: int, samples: int, noise: float) -> None:
    """Refuse windows, samples and noise that mean nothing.

    Raises:
        RunError: for these.
    """
    if window < 1:
        raise RunError(f"window is how many layers are restored together, at least 1, not {window}")
    if samples < 1:
        raise RunError(f"samples is how many times noise is drawn, at least once, not {samples}")
    if not (math.isfinite(noise) and noise > 0):
        raise RunError(
            f"noise is a positive number of standard deviations of the subject's embeddings, such as 3, not {noise}"
        )


def pairs_of(
    model: nn.Module,
    prompts: Inputs,
    swapped: Inputs | None,
    answer: TracedAnswer,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Pairs:
    """The prompts, each with the one of the other subject, or itself; answers come later."""
    if has_text(answer) or is_text(prompts):
        tokenizer = tokenizer_for(model, tokenizer)
    if swapped is not None:
        return prepare_pairs(model, prompts, swapped, tokenizer=tokenizer)
    rows = prepare_prompts(prompts, model, tokenizer)
    none = ((),) * len(rows)
    return Pairs(clean=rows, corrupt=rows, targets=none, foils=none, single=len(rows) == 1, tokenizer=tokenizer)


def _one_each(given: Any, number: int, what: str, *, several: bool) -> list[Any]:
    """One for each prompt."""
    if not several:
        return [given] * number
    if len(given) != number:
        raise RunError(
            f"{len(given)} {what} were given for {number} prompts: give one for all, or a list with one each"
        )
    return list(given)


def places_of(subject: Subject, pairs: Pairs) -> tuple[tuple[int, ...], ...]:
    """For each prompt the positions of its subject, counted from 0."""
    several = isinstance(subject, list | tuple) and not all(isinstance(item, int) for item in subject)
    each = _one_each(subject, len(pairs), "subjects", several=several)
    return tuple(_place(item, tokens) for item, tokens in zip(each, pairs.clean, strict=True))


def _place(subject: PositionsLike, tokens: Tokens) -> tuple[int, ...]:
    length = int(tokens.ids.shape[1])
    if isinstance(subject, str):
        _check_text(subject, tokens)
    spec = positions(Span(subject) if isinstance(subject, str) else subject)
    columns = spec.bind(tokens).columns(torch.arange(length)[None], torch.tensor([length]))[0]
    shown = repr(subject) if isinstance(subject, str) else f"at positions {columns}"
    if not columns:
        raise PositionError(
            f"no token of the prompt {tokens.strings()} is at the positions of the subject, {subject!r}"
        )
    if length - 1 in columns:
        how = "is the whole prompt" if len(columns) == length else "includes the last token of the prompt"
        raise PositionError(
            f"the subject {shown} {how} {tokens.strings()}: causal tracing needs tokens behind the subject, at which "
            "the model recalls something of it, as in 'The Eiffel Tower is in'"
        )
    return tuple(sorted(columns))


def _check_text(subject: str, tokens: Tokens) -> None:
    if tokens.texts is None:
        raise PositionError(
            f"the tokens of the subject {subject!r} are not known where prompts are token ids: give the prompts as "
            "text, or the subject as positions such as [1, 2, 3]"
        )
    text = tokens.texts[0]
    if not subject.strip():
        raise PositionError(f"the subject is empty: name the part of {text!r} that is corrupted")
    if subject not in text:
        at = text.lower().find(subject.lower())
        hint = f": did you mean {text[at : at + len(subject)]!r}?" if at >= 0 else ""
        raise PositionError(f"the subject {subject!r} is not in the prompt {text!r}{hint}")


def last_of(found: Run) -> Float[Tensor, " vocab"]:
    """The last logits of a run, in float32 on the CPU."""
    return found.logits[0, -1].float().cpu()


def answered(pairs: Pairs, answer: TracedAnswer, logits: Sequence[Tensor]) -> Pairs:
    """The pairs with their answers, which the clean runs should give."""
    each = _one_each(answer, len(pairs), "answers", several=isinstance(answer, list))
    best = [int(row.argmax()) for row in logits]
    found = [_ids(*item, pairs.tokenizer) for item in zip(each, pairs.clean, best, strict=True)]
    pairs = replace(pairs, targets=tuple(t for t, _ in found), foils=tuple(f for _, f in found))
    wrong = [n for n, token in enumerate(best) if token not in pairs.targets[n]]
    if wrong:
        first = wrong[0]
        name = token_string(pairs.tokenizer, best[first])
        many = "" if len(pairs) == 1 else f"{len(wrong)} of {len(pairs)} prompts are not answered as given, the first: "
        warnings.warn(
            f"{many}the clean run continues {pairs.clean[first].strings()} with {name!r} (probability "
            f"{float(logits[first].softmax(-1)[best[first]]):.2f}), not with {pairs.answer_names(first)[0]}: what is "
            "traced is a weak answer; use prompts that the model knows, or answer=None for its own",
            InterpWarning,
            stacklevel=4,
        )
    return pairs


def _ids(
    given: Any, prompt: Tokens, best: int, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids of target and foil."""
    if given is None:
        return (best,), ()
    sides = given if isinstance(given, tuple) else (given,)
    if len(sides) not in (1, 2) or not all(isinstance(side, str | int) for side in sides):
        raise TokenError(f"an answer is a token, or (target, foil), not {given!r}")
    text = prompt.texts[0] if prompt.texts else "" if tokenizer is None else str(tokenizer.decode(prompt.row()))
    target, *foil = (answer_token(text, side, tokenizer) for side in sides)
    if target in foil:
        raise TokenError(f"target and foil are the same token, {token_string(tokenizer, target)!r}")
    return (target,), tuple(foil)


def with_noise(
    pairs: Pairs,
    places: Sequence[tuple[int, ...]],
    embedded: Sequence[Float[Tensor, "1 _ d_model"]],
    how: tuple[float, int, int],
) -> tuple[tuple[tuple[Base, ...], ...], dict[str, Any]]:
    """For each prompt its runs with noise on the subject, and what the noise was."""
    scale, samples, seed = how
    entries = [x[0, list(where)].double().flatten().cpu() for x, where in zip(embedded, places, strict=True)]
    std = float(torch.cat(entries).std())
    generator = torch.Generator().manual_seed(seed)
    found = []
    for tokens, where, x in zip(pairs.clean, places, embedded, strict=True):
        runs = []
        for _ in range(samples):
            value = torch.zeros(x.shape, dtype=torch.float32)
            value[0, list(where)] = torch.randn(len(where), x.shape[-1], generator=generator, dtype=torch.float32)
            edit = Edit.add("embed", value * (scale * std), positions=list(where))
            runs.append(Base(tokens=tokens, edits=(edit,)))
        found.append(tuple(runs))
    noise = {"scale": float(scale), "std": std, "samples": samples, "seed": seed}
    clean = {name: value for name, value in notes_of(pairs).items() if name != "corrupt"}
    return tuple(found), clean | {"noise": noise}


def warn_outside(pairs: Pairs, places: Sequence[tuple[int, ...]]) -> None:
    """Warn when the other prompts differ in more than their subjects."""
    for clean, corrupt, where in zip(pairs.clean, pairs.corrupt, places, strict=True):
        differ = (clean.ids != corrupt.ids)[0].nonzero()[:, 0].tolist()
        outside = [n for n in differ if n not in where]
        if outside:
            warnings.warn(
                f"the prompt with another subject differs outside of the subject's tokens {list(where)} too, at "
                f"{outside}:\n{side_by_side(clean.strings(), corrupt.strings())}\nwhat is restored is then more than "
                "the subject",
                InterpWarning,
                stacklevel=4,
            )


def rows_of(
    wiring: Wiring, pairs: Pairs, places: Sequence[tuple[int, ...]], component: str, where: Where
) -> tuple[str, tuple[str, ...], tuple[tuple[Groups, ...], ...]]:
    """The component, names of the rows, and for each prompt the positions of each row."""
    averaged = where is None and len(pairs) > 1
    name = "resid_post" if component == "resid" else component
    grid = make_grid(wiring, pairs, name, ("layer",) if averaged else ("layer", "pos"), where=where)
    if averaged:
        each = zip(places, pairs.lengths, strict=True)
        return grid.component, ROWS, tuple(_averaged(subject, length) for subject, length in each)
    starred = [
        not isinstance(where, Mapping)
        and all(set(groups[n]) <= set(subject) for groups, subject in zip(grid.places, places, strict=True))
        for n in range(len(grid.groups))
    ]
    labels = tuple(f"{label}*" if star else label for label, star in zip(grid.groups, starred, strict=True))
    return grid.component, labels, tuple(tuple((group,) for group in groups) for groups in grid.places)


def _averaged(subject: tuple[int, ...], length: int) -> tuple[Groups, ...]:
    """The positions of `ROWS` in one prompt."""
    behind = range(subject[-1] + 1, length)
    parts = (subject[:1], subject[1:-1], subject[-1:], behind[:1], behind[1:-1], behind[-1:])
    return tuple(tuple((column,) for column in part) for part in parts)


def windows_of(component: str, window: int, wiring: Wiring) -> tuple[tuple[Site, ...], ...]:
    """For each layer the sites of its window, cut off at the first and last layers."""
    number = wiring.layout.num_layers
    found = []
    for layer in range(number):
        begin = layer - window // 2
        sites = tuple(Site(component, n) for n in range(max(0, begin), min(number, begin + window)))
        found.append(sites if available(sites, wiring) else ())
    return tuple(found)


__all__ = [
    "ROWS",
    "Groups",
    "Subject",
    "TracedAnswer",
    "answered",
    "check_numbers",
    "last_of",
    "pairs_of",
    "places_of",
    "rows_of",
    "warn_outside",
    "windows_of",
    "with_noise",
]
