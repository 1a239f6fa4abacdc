"""A report as a page: plain words first, then what they rest on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from interp_toolkit.report.words import story
from interp_toolkit.visualization import (
    Document,
    Heading,
    Heatmaps,
    LineChart,
    Paragraph,
    Series,
    Table,
    plot_attention,
    plot_circuit,
)
from interp_toolkit.visualization.document import Part

if TYPE_CHECKING:
    from interp_toolkit.report.explaining import Report

_WHAT = {
    "resid": "the residual stream",
    "attn": "what attention adds",
    "mlp": "what the MLP adds",
}


def page_of(report: Report) -> Document:
    """The page of a report."""
    parts: list[Part] = [*map(Paragraph, story(report))]
    parts += [Heading("The two prompts"), _prompts(report), _answers(report)]
    parts += [Heading("When it comes up"), _lens(report)]
    parts += [Heading("Where it is"), _sweeps(report)]
    parts += [Heading("Which heads move it"), *_heads(report)]
    if report.circuit is not None:
        parts += [Heading("The circuit"), *_circuit(report)]
    parts += [Heading("What to keep in mind"), *map(Paragraph, (*report.notes, *_always(report)))]
    parts += [Heading("How this was made"), _made(report)]
    return Document(title=f"Why does {report.model} say “{report.target.strip()}”?", parts=tuple(parts))


def _first(report: Report) -> str:
    return "" if report.pairs == 1 else ", in the first pair"


def _prompts(report: Report) -> Table:
    clean, corrupt = report.clean.tokens, report.corrupt.tokens
    rows = [(str(n), a, b, "" if a == b else "differs") for n, (a, b) in enumerate(zip(clean, corrupt, strict=True))]
    more = "" if report.pairs == 1 else f"; the first of {report.pairs} pairs"
    return Table(title=f"Token by token{more}", headers=("position", "clean", "corrupt", ""), rows=rows)


def _answers(report: Report) -> Table:
    rows = [
        (f"{a[0]}", f"{a[1]:.3f}", f"{b[0]}", f"{b[1]:.3f}")
        for a, b in zip(report.clean.top, report.corrupt.top, strict=True)
    ]
    headers = ("behind the clean prompt", "probability", "behind the corrupt prompt", "probability")
    return Table(title="The most probable next tokens", headers=headers, rows=rows)


def _lens(report: Report) -> LineChart:
    lines = []
    for name, said in (("clean", report.clean), ("corrupt", report.corrupt)):
        found = said.lens.difference
        values = [] if found is None else [float(x) for x in found[:, -1]]
        lines.append(Series(name=name, y=values))
    return LineChart(
        title=f"“{report.target}” against “{report.foil}” at the last token, by depth",
        caption="The logit difference that the model would end with if it stopped there: its own final norm and "
        "unembedding, applied to the residual stream of each depth. The first is the embedding.",
        x=list(report.clean.lens.depths),
        series=lines,
        x_name="behind block",
        y_name="logit difference",
        references=[("neither", 0.0)],
    )


def _sweeps(report: Report) -> Heatmaps:
    panels = [
        replace(effects.plot(), title=f"{name}: {_WHAT[name]}", caption="") for name, effects in report.sweeps.items()
    ]
    return Heatmaps(
        panels=panels,
        title=f"One activation of the clean run put into the corrupt run, by layer and token{_first(report)}",
        caption="Each cell is a run of its own. 1 brings back the clean prompt's logit difference, 0 changes nothing; "
        "below 0 the corrupt answer becomes stronger.",
    )


def _heads(report: Report) -> list[Part]:
    parts: list[Part] = [replace(report.heads.plot(), title="Heads: the output of one head at all positions")]
    clean, corrupt = ({at: pair[n] for at, pair in report.patterns.items()} for n in (0, 1))
    if clean:
        parts.append(
            plot_attention(
                clean,
                list(report.clean.tokens),
                corrupt=corrupt,
                corrupt_tokens=list(report.corrupt.tokens),
                scores={"effect": report.head_effects},
                title=f"What the heads with the largest effects look at{_first(report)}",
            )
        )
    return parts


def _circuit(report: Report) -> Sequence[Part]:
    circuit = report.circuit
    if circuit is None:
        return []
    view = plot_circuit(circuit, curve=report.curve, title="Who reads from whom")
    return [view] if report.curve is None else [view, report.curve.plot()]


def _always(report: Report) -> list[str]:
    shown = "one pair of prompts" if report.pairs == 1 else f"{report.pairs} pairs of prompts"
    return [
        (
            f"This is about {shown}. It explains the difference between clean and corrupt prompts; whatever both share "
            "is outside the question."
        ),
        "Patching one place at a time overlooks places that stand in for each other.",
    ]


def _made(report: Report) -> Table:
    about = report.provenance
    rows = [("model", report.model), ("revision", about.revision or "–"), ("precision", about.dtype)]
    rows += [(name, version) for name, version in about.versions.items()]
    rows += [(name, f"{seconds:.1f} s") for name, seconds in report.seconds.items()]
    return Table(title="Model, versions, and time taken", headers=("what", "value"), rows=rows)


__all__ = ["page_of"]
