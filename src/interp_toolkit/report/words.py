"""The story of a behaviour in sentences: only what was measured, and nothing where nothing stands out."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from interp_toolkit.circuits import Effects

if TYPE_CHECKING:
    from interp_toolkit.report.explaining import Report, Said

_CARRIES = 0.5  # of the difference: a place is said to carry the answer from here on
_NAMED = 3  # heads in a sentence
_SMALL = 0.05  # effects below are not worth a sentence


def story(report: Report) -> list[str]:
    """What was found, the most important first."""
    here = "" if report.pairs == 1 else f", in the first of {report.pairs} pairs"
    sentences = [
        _says(report.clean) + " " + _says(report.corrupt),
        *(note for note in report.notes if "does not prefer" in note or "nswers were not given" in note),
        (
            f"Everything below is about the logit of “{report.target}” minus that of “{report.foil}”{here}: "
            f"{_plain(_end(report.clean))} behind the clean prompt, {_plain(_end(report.corrupt))} behind the corrupt "
            "one."
        ),
        _absent(report),
        _rise(report),
        _places(report.sweeps["resid"], report.clean.tokens),
        _heads(report.heads, report.pairs),
        _circuit(report),
    ]
    return [sentence for sentence in sentences if sentence]


def _absent(report: Report) -> str:
    """What has to be known first where the behaviour is not there."""
    clean, corrupt = _end(report.clean), _end(report.corrupt)
    if clean <= corrupt:
        return (
            "The clean prompt does not raise it: there is no difference of the expected kind to explain, and every "
            "share below is of a difference that goes the other way, or is next to nothing."
        )
    if clean < 0:
        return (
            f"The model does not prefer “{report.target}” behind the clean prompt either: what follows explains why "
            "the two prompts differ, not why it would say that."
        )
    return ""


def _says(said: Said) -> str:
    best, probability = said.top[0]
    return f"After “{said.text}” the model says “{best}” ({probability:.2f})."


def _end(said: Said) -> float:
    found = said.lens.difference
    return math.nan if found is None else float(found[-1, -1])


def _rise(report: Report) -> str:
    """Where the difference between the two answers comes up in the clean run."""
    found = report.clean.lens.difference
    if found is None:
        return ""
    line = found[:, -1]
    steps = line.diff()
    best = int(steps.argmax())
    late = (line < line[-1] / 2).nonzero()
    half = int(late[-1]) + 1 if len(late) and float(line[-1]) > 0 else 0
    name = report.clean.lens.depths
    ends = f" and is above half of its final value from behind block {name[half]} on" if half else ""
    return (
        f"Read out at each depth, the difference at the last token is {_plain(float(line[0]))} in the embedding, rises "
        f"most in block {name[best + 1]} (by {float(steps[best]):.2f}){ends}."
    )


def _places(effects: Effects, tokens: tuple[str, ...]) -> str:
    """At which tokens the residual stream carries the answer, in which layers."""
    if not effects.normalizable:
        return ""
    share = effects.effect.nan_to_num(0.0)
    stays = [
        (position, carried[0], carried[-1])
        for position in range(share.shape[1])
        if len(carried := (share[:, position] >= _CARRIES).nonzero().flatten().tolist())
    ]
    if not stays:
        return "No single position of the residual stream carries half of the difference in any layer."
    parts = [
        f"at “{tokens[position]}” (token {position}) in front of layer"
        + (f" {first}" if first == last else f"s {first} to {last}")
        for position, first, last in sorted(stays, key=lambda stay: stay[1:])
    ]
    return (
        "Put into the corrupt run alone, the clean residual stream brings back half of the difference or more "
        + _listed(parts)
        + "."
    )


def _heads(effects: Effects, pairs: int) -> str:
    if not effects.normalizable:
        return ""
    share = effects.effect.nan_to_num(0.0)
    order = share.flatten().abs().argsort(descending=True, stable=True)[:_NAMED]
    width = share.shape[1]
    named = [
        f"L{int(n) // width}H{int(n) % width} ({float(share.flatten()[n]):+.0%})".replace("-", "−")
        for n in order
        if abs(float(share.flatten()[n])) >= _SMALL
    ]
    if not named:
        most = float(share.abs().max())
        return f"No single head brings back more than {most:.0%} of the difference: the work is shared."
    over = "" if pairs == 1 else f", the mean of {pairs} pairs of prompts"
    return f"Of single heads, these bring back most, or take most away: {_listed(named)} of the difference{over}."


def _circuit(report: Report) -> str:
    circuit = report.circuit
    if circuit is None:
        return ""
    note = circuit.notes.get("faithfulness", {})
    value, low, high = (math.nan if note.get(end) is None else float(note[end]) for end in ("value", "low", "high"))
    sure = "" if math.isnan(low) else f" ({note.get('level', 0.95):.0%} interval {low:.2f} to {high:.2f})"
    apart = circuit.notes.get("prompts", {})
    number = apart.get("evaluation", report.pairs)
    where = f"{number} pairs of prompts that they were not found on"
    if number == report.pairs:
        where = "the pair that they were found on" if number == 1 else f"the {number} pairs that they were found on"
    return (
        f"{circuit.num_edges:,} of {circuit.graph.num_edges:,} edges between {len(circuit.heads)} heads and "
        f"{len(circuit.mlps)} MLPs, everything else ablated, keep {value:.0%} of the difference{sure} on {where}."
    )


def _plain(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


__all__ = ["story"]
