"""Write the parts of the documentation that are measured: run with `make generated`.

- `docs/families.md`: the table of model families and sites, by verifying a tiny random model of each;
- `docs/images/*.svg` and `docs/pages/*.html`: the six pictures of the README and of the page on views, and the pages
  that they open, from the demo model.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from interp_toolkit.model import COMPONENTS, Verification, verify
from tiny import FAMILIES, tiny_model

if TYPE_CHECKING:
    from interp_toolkit.report import Report
    from interp_toolkit.visualization import Document, View

DOCS = Path(__file__).resolve().parent
INTRODUCTION = """# Families

Which sites are verified in which model families. This table is made by running the verification on a tiny random model
of each type, under every attention implementation it has; nothing in it is typed. Your own model is verified when you
first use it; `interp-toolkit inspect MODEL` shows the result.

✓ verified, *n*/*m* verified in so many layers, – refused, with the reason below.
"""
MARY = (
    "When Mary and John went to the store, John gave a drink to",
    "When Mary and John went to the store, Mary gave a drink to",
)
EIFFEL = ("The Eiffel Tower is in", "The Colosseum is in", (" Paris", " Rome"))
NAME_MOVER = (23, 0)


def families_page() -> str:
    """The page with the table of families and sites."""
    reasons: dict[str, set[str]] = {}
    names = list(COMPONENTS)
    lines = ["| family | attention | " + " | ".join(f"`{n}`" for n in names) + " |", "|---|---|" + ":-:|" * len(names)]
    for family, entry in FAMILIES.items():
        reports = [verify(tiny_model(family, attn_implementation=name)) for name in entry.implementations]
        cells = [_cell(reports, component) for component in names]
        for report in reports:
            for site, reason in report.refused.items():
                reasons.setdefault(f"`{site.component}`: {reason}", set()).add(family)
            for side, problem in report.padding.items():
                if problem:
                    reasons.setdefault(f"padding on the {side}: {problem}", set()).add(family)
        lines.append(f"| {family} | {', '.join(sorted(entry.implementations))} | {' | '.join(cells)} |")
    refused = [f"- {reason} ({', '.join(sorted(found))})" for reason, found in sorted(reasons.items())]
    return "\n".join([INTRODUCTION, *lines, "", "## Refused, and why", "", *refused, ""])


def _cell(reports: list[Verification], component: str) -> str:
    """What all attention implementations have in common."""
    number = reports[0].layout.num_layers if COMPONENTS[component].per_layer else 1
    refused = {site for report in reports for site in report.refused if site.component == component}
    if not refused:
        return "✓"
    return "–" if len(refused) == number else f"{number - len(refused)}/{number}"


# --- pictures: for each name a still one and a page -----------------------------------------------------------------


def attention(model: Any) -> tuple[str, Document]:
    """One head of the prompt on Mary and John; on the page all of them, clean and corrupt."""
    from interp_toolkit import ActivationCache
    from interp_toolkit.visualization import plot_attention

    clean, corrupt = (ActivationCache(model).run(prompt) for prompt in MARY)
    layer, head = NAME_MOVER
    still = plot_attention(
        clean, layer=layer, head=head, title=f"Head {head} of layer {layer} looks from the end at Mary"
    )
    every = plot_attention(clean, corrupt=corrupt, title="Attention: who gets the drink?")
    return still.to_svg(), every.page()


def circuit(model: Any, tokenizer: Any) -> tuple[str, Document]:
    """Indirect objects: the circuit of the page on circuits, with its faithfulness at other sizes."""
    from interp_toolkit import tasks
    from interp_toolkit.circuits import CircuitFinder, faithfulness_curve

    ioi = tasks.ioi(tokenizer, n=16)
    finder = CircuitFinder(model, edges=350)
    found = finder.find_circuit(ioi.clean, ioi.corrupt, answers=ioi.answers)
    parts = finder.found_
    if parts is None:
        raise RuntimeError("the circuit of the documentation was not found by scores")
    held = [[of[n] for n in parts.evaluation] for of in (ioi.clean, ioi.corrupt, ioi.answers)]
    curve = faithfulness_curve(model, parts.scores, *held)
    return _both(found.plot(curve=curve, title="Indirect objects: who reads from whom"))


def patching(model: Any) -> tuple[str, Document]:
    """Every layer and token of the residual stream, one patch each."""
    from interp_toolkit.circuits import patch_sweep

    clean, corrupt, answers = EIFFEL
    view = patch_sweep(model, clean, corrupt, answers=answers).plot()
    title = "Where the model keeps that the Eiffel Tower is in Paris"
    caption = (
        f"The residual stream of “{clean}” in front of one layer, at one token, put into the run of “{corrupt}”: the "
        f"share of the logit difference{answers[0]} −{answers[1]} that comes back. Each cell is a run of its own."
    )
    return _both(replace(view, title=title, caption=caption, row_name="token"))


def distributions(model: Any) -> tuple[str, Document]:
    """True and false statements along a direction of each layer that was found on other statements."""
    from interp_toolkit.probes import LinearProbe, concept
    from interp_toolkit.probes.collecting import collect
    from interp_toolkit.visualization import plot_activations

    cities = concept("truth_cities", n=192)
    half = len(cities.texts) // 2  # pairs of cities stay together
    found = collect(model, cities.texts, layers=range(2, 30, 3))
    rows = {layer: source[:].float() for layer, source in zip(found.layers, found.sources, strict=True)}
    labels = list(cities.labels)
    directions = {
        layer: LinearProbe(kind="mean_difference").train(x[:half], labels[:half]).direction for layer, x in rows.items()
    }
    view = plot_activations(
        {layer: x[half:] for layer, x in rows.items()},
        labels=labels[half:],
        texts=list(cities.texts[half:]),
        direction=directions,
        kind=("projection", "pca", "distribution", "norms", "outliers"),
        title="True and false statements, layer by layer",
        caption="The last tokens of 96 statements such as “The city of Rotterdam is in Finland.” The direction of each "
        "layer is the difference between the means of true and false ones among 96 other statements.",
        layer=11,
    )
    still = replace(view, kinds=("projection",))
    return still.to_svg(), view.page()


def probes(model: Any) -> tuple[str, Document]:
    """Accuracy by layer with intervals, baselines and controls."""
    from interp_toolkit.probes import concept, probe_sweep

    found = probe_sweep(model, concept("truth_cities", n=192), permutations=0)
    return _both(found.plot())


def report(model: Any) -> tuple[str, Document]:
    """What `interp-toolkit explain` writes; still, as much of it as fits on a sheet."""
    from interp_toolkit.report import explain

    clean, corrupt, answers = EIFFEL
    found = explain(model, clean, corrupt, answers)
    return _sheet(found), found.page()


def _both(view: View) -> tuple[str, Document]:
    return view.to_svg(), view.page()


def pictures() -> dict[str, tuple[str, Document]]:
    """All six, by name."""
    from interp_toolkit import load_model

    model, tokenizer = load_model("demo")
    return {
        "attention": attention(model),
        "circuit": circuit(model, tokenizer),
        "distributions": distributions(model),
        "patching": patching(model),
        "probes": probes(model),
        "report": report(model),
    }


# --- a report on a sheet ------------------------------------------------------------------------------------------

WIDE, EDGE, LINE, LETTERS = 980, 24, 21, 120
FRAME = """<style>.sheet { fill: #fff; stroke: #d1d9e0; } .words { fill: #1b1f24; font: 14px system-ui, sans-serif; }
.head { fill: #1b1f24; font: 700 24px system-ui, sans-serif; } @media (prefers-color-scheme: dark) {
.sheet { fill: #0d1117; stroke: #3d444d; } .words, .head { fill: #e6edf3; } }</style>"""


def _sheet(found: Report) -> str:
    """The title, the story, when the answer comes up, where it is, and which heads move it, as one SVG."""
    from interp_toolkit.visualization import Heatmaps, LineChart, View
    from interp_toolkit.visualization.document import shown

    page = found.page()
    views = [part for part in page.parts if isinstance(part, View)]
    lens = next(view for view in views if isinstance(view, LineChart))
    where = next(view for view in views if isinstance(view, Heatmaps))
    lines = [line for sentence in found.summary().splitlines() for line in (*wrap(sentence, LETTERS), "")]
    top = EDGE + 30
    text = [f'<text class="head" x="{EDGE}" y="{top}">{shown(page.title)}</text>']
    for line in lines:
        top += LINE if line else LINE // 2
        text.append(f'<text class="words" x="{EDGE}" y="{top + 12}">{shown(line)}</text>')
    inside, bottom = [], top + EDGE
    for view in (lens, where):
        drawn = view.picture()
        width = min(drawn.width, WIDE - 2 * EDGE)
        height = drawn.height * width / drawn.width
        inside.append(_placed(view.to_svg(), EDGE, bottom, (drawn.width, drawn.height), (width, height)))
        bottom += round(height) + EDGE // 2
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {bottom}" width="{WIDE}" height="{bottom}" '
        f'role="img" aria-label="{shown(page.title)}">{FRAME}'
        f'<rect class="sheet" x="0.5" y="0.5" width="{WIDE - 1}" height="{bottom - 1}" rx="8"/>'
        f"{''.join(text + inside)}</svg>"
    )


def _placed(svg: str, x: float, y: float, old: tuple[float, float], new: tuple[float, float]) -> str:
    """A picture inside of another one, at a place and in a size."""
    size = 'width="{:g}" height="{:g}"'
    if size.format(*old) not in svg:
        raise RuntimeError("a picture does not say its size")
    return svg.replace(size.format(*old), f'x="{x:g}" y="{y:g}" ' + size.format(*new), 1)


def main() -> None:
    """Write everything."""
    (DOCS / "families.md").write_text(families_page(), encoding="utf-8")
    for folder in ("images", "pages"):
        (DOCS / folder).mkdir(exist_ok=True)
    for name, (still, page) in pictures().items():
        (DOCS / "images" / f"{name}.svg").write_text(still + "\n", encoding="utf-8")
        page.save(DOCS / "pages" / f"{name}.html")


if __name__ == "__main__":
    main()
