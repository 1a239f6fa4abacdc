"""The page on facts: which components carry one, and where four accounts of that agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from example import Page, average, interval
from facts import END, SUBJECT
from interp_toolkit.statistics import wilson
from interp_toolkit.visualization import Heatmap, LineChart, Series

if TYPE_CHECKING:
    from argparse import Namespace

    from torch import Tensor

    from accounts import Account, Agreement, Components
    from factuality import Known, Traced, Truth
    from interp_toolkit.circuits import Circuit, CircuitEvaluation
    from interp_toolkit.statistics import Estimate

ABOUT = """A prompt such as “The capital of France is” is answered from what the model has learned of its subject. Which
heads and MLPs bring that to the last token? Patching, paths, direct attribution and a circuit each give a number for
every head and MLP. They measure different things and need not agree; this page says where they do."""
MEASURES = {
    "patching": "what it does to the answer by all routes, put from the clean run into the corrupt one",
    "paths": "heads: what it brings from subject to end; MLPs: what heads move of what it writes at the subject",
    "direct": "what it writes into the answer's logits itself, at the last token",
    "circuit": "the summed size of what its edges are worth, estimated along the line between the two prompts",
}
LIMITS = """## What this does not show

- All accounts explain the *difference* between two subjects. What both prompts share, as that a capital is asked for,
  is outside of the question. Ranks are by size over heads and MLPs together; far down they are noise.
- Paths freeze what heads move among the subject's own tokens: MLPs alone are recomputed between subject and head. They
  say nothing of the last MLP, behind which no head lies: it is left out where accounts are compared with them.
- Sizes of a circuit's edges are added up, also where their signs differ: an MLP whose edges cancel ranks high.
- Prompts that share an answer are not independent, so intervals are too narrow.
- The probe reads the full stop behind an answer, the other accounts the token before one: being earlier or later is a
  hint. And it shows what can be read off, not that anything uses it. Its layer and penalty were chosen on statements,
  some of whose negations are among those that it is tried on."""
LARGER = """## On a larger model

`python examples/factuality.py --model Qwen/Qwen3-8B --device cuda --dtype bfloat16 --n 96 --random 30`.
Patching runs each head once for each prompt, which is most of the time: fewer pairs make it shorter. In bfloat16,
effects of a few hundredths of a nat are rounding. Facts of your own come with `--data`; the script's head says how."""


def known(page: Page, found: Mapping[str, Known]) -> None:
    """What the model knows of each split."""
    rows = []
    for split, one in found.items():
        pair, baseline, n = one.given.pairs[0], one.baseline, len(one.given)
        shares = {"target before foil": baseline.accuracy, "target before all": baseline.top}
        row = {
            "split": f"{split}, {n} pairs",
            "such as": f"{pair.clean} →{pair.target_strings[0]}, not{pair.foil_strings[0]}",
        }
        for name, share in shares.items():
            low, high = wilson(share * baseline.prompts, baseline.prompts)
            row[name] = f"{share:.0%} [{100 * low:.0f}, {100 * high:.0f}]"
        rows.append(row | {"difference": average(torch.tensor(baseline.clean), digits=1)})
    dropped = sum(len(one.given) - len(one.task or ()) for one in found.values())
    page.table(rows)
    page.text(f"In brackets, 95% intervals over prompts. Dropped, as the target is not before the foil: {dropped}.")


def unknown(page: Page) -> None:
    """There is nothing to explain."""
    page.short("The model is not shown to know these facts, so there is nothing to explain, and no more was run.")
    page.text(LARGER)


def traced(page: Page, found: Traced) -> None:
    """Where the answer is, layer by layer."""
    sure = found.resid.estimate()
    lines = []
    for row in (SUBJECT, END):
        y, low, high = (x[:, found.resid.labels[1].index(row)] for x in (sure.mean, sure.low, sure.high))
        lines.append(Series(name=row, y=y, low=low, high=high))
    subject = "the subject never holds the answer" if found.leaves is None else ""
    end = "the end never does to the last" if found.arrives is None else f"the end from layer {found.arrives} on"
    said = f"{subject or f'the subject holds the answer up to layer {found.leaves}'}, {end}"
    chart = LineChart(
        x=range(len(sure.mean)), series=lines, title=f"Tracing: {said}", x_name="layer", y_name="restored"
    )
    page.picture(chart, f"Share of the answer that the stream behind a layer restores: {said}.", name="trace")
    most = []
    for name, effects in {"MLP": found.mlp, "attention": found.attn}.items():
        for row in (SUBJECT, END):
            share = found.share(effects, row)
            most.append(f"{name} at the {row} {float(share.max()):.0%} (layer {int(share.argmax())})")
    page.text(f"To hold is to restore half or more. Most that one sublayer restores: {', '.join(most)}.")
    page.short(f"- Tracing: {said}. Most that one sublayer restores: {', '.join(most)}.")


def accounts(page: Page, found: Mapping[str, Account], components: Components, circuit: Circuit, gap: float) -> None:
    """What each account measures, and what it says of the components that are strongest in all of them."""
    page.text("\n".join(f"- **{name.capitalize()}**: {MEASURES[name]}." for name in found))
    orders = [account.order for account in found.values()]
    everywhere = set.intersection(*map(set, orders))  # an account may say nothing of some
    places = {n: sum(order.index(n) for order in orders) for n in everywhere}
    rows = []
    for n in sorted(places, key=lambda n: (places[n], n))[:12]:
        role = circuit.role_of(components.names[n])
        shares = {name: f"{account.effect[n] / gap:+.1%}" for name, account in found.items()}
        rows.append({"component": components.names[n], **shares, "role": "not in it" if role is None else role.name})
    page.table(rows)
    pairs = len(found["patching"].values)
    page.text(
        f"Shares of the difference between clean and corrupt prompts ({gap:.1f} nats); + is towards the answer. The"
        f" best mean ranks of {len(places)} components on {pairs} pairs, all patched exactly. A circuit's scores are "
        "estimates, here added up with their signs; roles are those measured in the circuit."
    )


def agreement(
    page: Page,
    found: Mapping[str, Account],
    components: Components,
    agreements: Sequence[Agreement],
    with_itself: Mapping[str, float],
    chosen: Namespace,
) -> None:
    """Every pair of accounts, and what they put first."""
    k, chance = chosen.strongest, chosen.strongest**2 / len(components.names)
    lines = []
    for pair in agreements:
        how = "are not shown to agree"
        if pair.low > 0:
            how = "rank them much alike" if pair.low > 1 / 2 else "rank them alike, loosely"
        lines.append(
            f"- **{pair.names[0].capitalize()} and {pair.names[1]}** {how}: ρ = {pair.rho:.2f} "
            f"[{pair.low:.2f}, {pair.high:.2f}]. They share {pair.shared} of their strongest {k} ({pair.same_sign} "
            f"with one sign; chance {chance:.1f}), and part most over {components.names[pair.farthest]}: number "
            f"{pair.places[0]} and {pair.places[1]}."
        )
    page.text("\n".join(lines))
    own = ", ".join(f"{rho:.2f} ({name})" for name, rho in with_itself.items())
    page.text(f"For comparison, each account on half of the prompts with itself on the others: ρ = {own}.")
    low, high = (pick(agreements, key=lambda pair: pair.rho) for pick in (min, max))
    ends = [f"{pair.rho:.2f} ({' and '.join(pair.names)})" for pair in (low, high)]
    shared = [pair.shared for pair in agreements]
    page.short(
        f"- Four accounts: {put_first(found, components)}. Rank correlations are from {ends[0]} to {ends[1]}, and two "
        f"share {min(shared)} to {max(shared)} of their strongest {k} (chance {chance:.1f})."
    )


def put_first(found: Mapping[str, Account], components: Components) -> str:
    """Which head and which MLP most accounts put first."""
    said = []
    for kind, mlps in (("heads", False), ("MLPs", True)):
        of = set(components.of_kind(mlps=mlps))
        firsts = [next(n for n in account.order if n in of) for account in found.values()]
        best, votes = Counter(firsts).most_common(1)[0]
        said.append(f"{votes} of {len(firsts)} put {components.names[best]} first of {kind}")
    return ", ".join(said)


def other_facts(
    page: Page,
    verdict: CircuitEvaluation,
    shares: Mapping[int, Mapping[str, Estimate]],
    left_out: Sequence[str],
    pairs: int,
) -> None:
    """The circuit, and the strongest components of each account, on other facts."""
    rows = [
        {"strongest": str(number)} | {name: interval(x, percent=True) for name, x in by.items()}
        for number, by in shares.items()
    ]
    left = ", ".join(left_out) or "none"
    page.printed(verdict.summary())
    page.table(rows)
    page.text(
        "Share of the answer that the strongest components of each account restore, put into the corrupt run together, "
        f"on {pairs} pairs of other facts. Random sets have as many MLPs as that of patching. Left out, as each "
        f"restores nearly all alone on the first facts: {left}."
    )
    ends = ", ".join(f"{name} {share}" for name, share in rows[0].items() if name != "strongest")
    page.short(
        f"- On other facts, the circuit alone has faithfulness {verdict.faithfulness}, random ones of its size "
        f"{verdict.random_faithfulness.value:z.2f}. The strongest {rows[0]['strongest']} put together (without: "
        f"{left}) restore {ends}."
    )


def truth(page: Page, found: Truth | None, arrives: int | None, head_weights: Tensor) -> None:
    """From which layer on truth can be read off, and whether that is before the answer comes to the end."""
    if found is None:
        page.text("No probe: there are too few groups of statements, which come from prompts that end in a verb.")
        return
    moved = found.moved
    low, area, high = (float(x[0, 1]) for x in (moved.low, moved.auroc, moved.high))
    turned = "the wrong way round" if high < 1 / 2 else "right" if low > 1 / 2 else "not shown to be right or wrong"
    what = "Whether the answer fits the subject" if high < 1 / 2 else "Truth"
    said = f"{what} is not surely read off in the last layer"
    if found.begins is not None:
        said = f"{what} is read off from layer {found.begins} on"
        if arrives is not None:
            order = "before" if found.begins < arrives else "not before"
            said += f", {order} layer {arrives}, where the answer comes to the end"
    texts = found.statements[0].texts
    page.picture(found.sweep.plot(), f"{said}: “{texts[0]}” against “{texts[1]}”.", name="probe")
    half = int((head_weights.cumsum(-1) < head_weights.sum() / 2).sum())
    nothing = " So it is **not truth** that it reads: it says the same of a statement and of its negation."
    page.text(
        f"{said} (all intervals above one half). Half of the circuit's weight in heads lies up to layer {half}. On "
        f"negated statements the probe is {turned}: accuracy {float(moved.accuracy[0, 1]):.2f}, AUROC {area:.2f} "
        f"[{low:.2f}, {high:.2f}]; their own {float(moved.auroc[1, 1]):.2f}.{nothing if high < 1 / 2 else ''}",
        found.sweep.summary(),
    )
    page.short(
        f"- {said}. On negated statements the same probe is {turned} (AUROC {area:.2f})"
        f"{', so it is not truth that it reads' if high < 1 / 2 else ''}."
    )


def by_layer(
    page: Page, tracing: Traced, found: Mapping[str, Account], components: Components, probe: Truth | None
) -> None:
    """All of them by layer, each row as shares of its largest number."""
    rows = {
        "traced MLP, subject": tracing.share(tracing.mlp, SUBJECT),
        "traced attention, end": tracing.share(tracing.attn, END),
    }
    rows |= {f"{name}: heads": components.by_layer(a.size)[:, :-1].sum(-1) for name, a in found.items()}
    rows |= {f"{name}: MLP": components.by_layer(a.size)[:, -1] for name, a in found.items()}
    rows |= {} if probe is None else {"probe": probe.excess}
    said = put_first(found, components)
    sizes = [row.abs().nan_to_num(0.0) for row in rows.values()]
    heatmap = Heatmap(
        values=[(row / row.max().clamp_min(1e-9)).tolist() for row in sizes],
        rows=list(rows),
        columns=list(map(str, range(components.num_layers))),
        title=f"Four accounts of a fact: {said}",
        caption="Sizes of effects by layer, each row as shares of its largest.",
        column_name="layer",
        limit=1,
        scale="sequential",
    )
    page.picture(heatmap, f"{said}.")


def limits(page: Page) -> None:
    """What this does not show, and what would change on a larger model."""
    page.text(LIMITS, LARGER)
