"""Write the parts of the documentation that are measured: run with `make generated`.

- `docs/families.md`: the table of model families and sites, by verifying a tiny random model of each;
- `docs/images/eiffel.svg`: the picture in the README, by running the demonstration.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from interp_toolkit.model import COMPONENTS, Verification, verify
from tiny import FAMILIES, tiny_model

DOCS = Path(__file__).resolve().parent
INTRODUCTION = """# Families

Which sites are verified in which model families. This table is made by running the verification on a tiny random model
of each type, under every attention implementation it has; nothing in it is typed. Your own model is verified when you
first use it; `interp-toolkit inspect MODEL` shows the result.

✓ verified, *n*/*m* verified in so many layers, – refused, with the reason below.
"""


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


def picture() -> str:
    """The heat map of the README."""
    from interp_toolkit import load_model
    from interp_toolkit.showcase import showcase

    model, tokenizer = load_model("demo")
    return showcase(model, tokenizer).heatmaps()[1].to_svg()


def main() -> None:
    """Write everything."""
    (DOCS / "families.md").write_text(families_page(), encoding="utf-8")
    (DOCS / "images").mkdir(exist_ok=True)
    (DOCS / "images" / "eiffel.svg").write_text(picture() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
