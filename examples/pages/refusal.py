"""The page on refusal: whether it is one direction, which parts write it, and whether it is refusal at all."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from directions import KINDS
from example import Page, above, average, interval, share
from interp_toolkit.statistics import bootstrap_mean
from interp_toolkit.visualization import Heatmap, LineChart, Series

if TYPE_CHECKING:
    from torch import Tensor

    from directions import Candidate, Odds, Refused, Selection, SideEffects, Writers
    from openings import Chat
    from refusal import Behaviour, Elsewhere, Judged

ABOUT = """Chat models refuse some requests. Arditi et al. (2024) found that in many of them this hangs on one direction
in the residual stream: without it they answer, with it they refuse what is harmless. Is it so here, and which heads and
MLPs write that direction?

Requests are mild: petty theft, cheating, spying, insults. What they ask for is never generated; only the probability
of a few openings of an answer is measured."""
LIMITS = """## Limits

- A refusal is an answer that begins with one of the openings. What would follow was not looked at, on
  purpose; models may refuse in other words, or late.
- A direction is what tells *these* requests apart at that place. {what}
- What a part writes along a direction does not say why; a late part may only pass on what early ones found.
- Random directions are nearly at right angles to all that the model uses: to be beyond them is little.
- Intervals are over {n} requests of each kind. They say nothing of other kinds, or of the choice of the direction."""
ALONE = "Other kinds of harm may have others."
SHOWN_HOW = """Here refusal was {}, and the direction is how the model follows that: a model that was
  trained to refuse may differ."""
LARGER = """## On a larger model

`python examples/refusal.py --model Qwen/Qwen2.5-1.5B-Instruct --device cuda --n 64 --data mine.jsonl`

A model that refuses the requests by itself is taken as it is, without a dialogue. Give `--openings` in its own words,
and requests that it does refuse; `--every 2` tries every other layer, `--dtype bfloat16` saves memory."""
ROWS = 12  # of the table of candidates
VERDICTS = {
    "refusal": "So the direction stands for refusal here, whichever kind is refused.",
    "kind": "**So it is not refusal**, but the kind of request that was refused where it was found.",
    "unclear": "Whether the direction stands for refusal is not clear.",
    "not turned": "Whether the direction stands for refusal is not clear: the turned dialogue does not turn it.",
    "no dialogue": "Whether the direction stands for refusal was not tried: the policy has no answers to swap.",
}


def moved(change: Tensor) -> str:
    """What a change of scores is, in words that its interval allows."""
    found = bootstrap_mean(change)
    word = "rises" if above(found) else "falls" if above(bootstrap_mean(-change)) else "does not clearly move"
    return f"{word} ({interval(found)})"


def refused(odds: Tensor) -> str:
    """The share of requests with a refusal likelier than not."""
    return share(odds > 0)


def described(found: Refused) -> str:
    """What the model does, in two sentences."""
    kinds = [
        f"{noun} {average(found.odds[kind].sigmoid(), signed=False)}, refused {refused(found.odds[kind])}"
        for kind, noun in zip(KINDS, found.setting.nouns, strict=True)
    ]
    area = interval(found.auroc, signed=False)
    if found.auroc.low == found.auroc.high:
        area = f"{float(found.auroc.mean):.2f} (all in one order, so without an interval)"
    return (
        f"the probability of a refusal is, on {found.gap.n} test requests of each kind: {'; '.join(kinds)}. "
        f"The difference is {interval(found.gap)}, the AUROC of the score {area}."
    )


def behaviour(page: Page, found: Behaviour, shown: float) -> None:
    """Whether the model refuses by itself, and the setting for all that follows."""
    best, refuses = found.there.setting, "refuses" if found.by_itself else "does **not** refuse"
    page.text(
        "The score of a request is the log-odds, in nats, that the answer begins with one of "
        f"{', '.join(f'“{text}”' for text in found.best.openings)}: each as a whole, given token by token, and all "
        "together. A request is refused where that is likelier than not.",
        f"On train requests, each alone, the probabilities differ by {interval(found.tried[0].gap)}; from {shown} on "
        f"that counts as refusing. So the model {refuses} by itself.",
    )
    page.short(f"- Alone, the model {refuses}: {described(found.alone)}")
    if not found.by_itself:
        page.text("What is tried instead, on train requests; the largest difference wins:")
        page.table([{"setting": x.setting.words, "difference": interval(x.gap), "n": x.gap.n} for x in found.tried])
        said = f"So all that follows is about refusal {best.words}: {described(found.there)}"
        alone = "Nothing in front of requests makes the difference larger, so all that follows is about each one alone."
        page.short(f"- {said if best.turns else alone}")
    if not found.clear:
        page.short("- That is **no clear refusal** of other requests by their kind; what follows means little.")
    page.text("Three requests of each kind:")
    pairs = zip(*(best.requests["test"][kind][:3] for kind in KINDS), strict=True)
    page.table([dict(zip(best.nouns, pair, strict=True)) for pair in pairs])


def selection(page: Page, chat: Chat, found: Selection, depth: float, most: float) -> None:
    """The candidates, and the one that is chosen."""
    first, second = chat.setting.nouns
    best, place = found.best, found.order.index(found.best)
    passed = "It passes both rules."
    if not best.induces:
        passed = "**None** has an induce score above 0; both rules were dropped."
    elif not best.spares:
        passed = "**None** passes both rules; that on KL was dropped."
    listed = found.order[: max(ROWS // 2, place + 1)]
    shown = range(max(0, len(listed) - ROWS), len(listed))
    page.text(
        f"A direction is the mean of {first} minus that of {second}, {len(chat.setting.requests['train']['harmful'])} "
        f"of each, at one of the {chat.ends} tokens of the chat format behind the request, and one layer below "
        f"{depth} of the depth. {len(found.tried)} were tried on {len(found.plain['harmful'])} validation requests of "
        f"each kind. *Induce*: the score of {second} with the difference added at its layer. *Bypass*: the score of "
        f"{first} with the direction ablated from all that writes to the residual stream; at other positions than the "
        f"last this was tried only for an induce score above 0. Chosen, as in Arditi et al., is the lowest bypass with "
        f"an induce score above 0 and a KL of at most {most} nats on {second} when ablated, here layer {best.layer} at "
        f"position {best.position}. {passed}",
        f"Of the {len(found.order)} whose bypass was tried, numbers {shown[0] + 1} to {shown[-1] + 1} by that score "
        f"(number {place + 1} is the chosen one; KL where it was asked for):",
    )
    rows = []
    for n in shown:
        one = found.order[n]
        scores = {"bypass": f"{one.bypass:+.2f}", "induce": f"{one.induce:+.2f}"}
        kl = "" if math.isnan(one.kl) else f"{one.kl:.3f}"
        rows.append({"number": n + 1, "layer": one.layer, "position": one.position} | scores | {"KL": kl})
    page.table(rows)
    about = f"Directions of the last token, on validation requests. Kind 1: {first}; kind 2: {second}."
    page.picture(induce_and_bypass(found), about, name="layers")


def induce_and_bypass(found: Selection) -> LineChart:
    """Both scores of the last token's directions."""
    best, last = found.best, [one for one in found.tried if one.position == -1]
    return LineChart(
        x=[one.layer for one in last],
        series=[
            Series(name="bypass: ablated, kind 1", y=[one.bypass for one in last]),
            Series(name="induce: added, kind 2", y=[one.induce for one in last]),
        ],
        title=f"Chosen at layer {best.layer}: ablated, the score is {best.bypass:+.1f}; added, {best.induce:+.1f}",
        x_name="layer of the direction",
        y_name="refusal score (nats)",
        references=[(f"kind {n}, as it is", float(found.plain[kind].mean())) for n, kind in enumerate(KINDS, 1)],
    )


def judged(page: Page, chat: Chat, found: Judged, elsewhere: Elsewhere | None, told: tuple[str, str]) -> None:
    """The chosen direction on test requests, beside its controls, and from the weights."""
    first, second = chat.setting.nouns
    scores, turned = dict(found.scores), None if elsewhere is None else elsewhere.turned
    if turned is not None:
        scores |= {"turned": turned.plain, "turned add.": turned.added}
    n, draws = found.random_kl.shape
    page.picture(
        conditions(chat, scores),
        f"Scores of {n} test requests of each kind, with 95% intervals over requests. Random: {draws} directions of "
        f"the same length. In words: “{told[0]}” before {first}, “{told[1]}” before {second}."
        + ("" if turned is None else " Turned: answers in the dialogue are swapped, see “Is it refusal?”."),
    )
    rows = []
    for name, odds in found.scores.items():  # turned, the nouns would be others
        row = {"": name}
        for kind, noun in zip(KINDS, chat.setting.nouns, strict=True):
            row |= {f"{noun}: score": average(odds[kind]), f"{noun}: refused": refused(odds[kind])}
        rows.append(row)
    page.table(rows)
    for name, short, kind, noun in zip(("ablated", "added"), ("abl.", "add."), KINDS, (first, second), strict=True):
        before, after, lot = (scores[one][kind] for one in ("plain", name, f"random {short}"))
        page.short(
            f"- With the direction {name}, the score of {noun} {moved(after - before)}: {refused(before)} are refused "
            f"as it is, {refused(after)} then. Against random directions: {average(after[:, None] - lot)}."
        )
    page.text(
        f"By ablation the distribution of the first token behind {second} moves by "
        f"{average(found.kl, digits=3, signed=False)} nats (KL), by random ablation by "
        f"{average(found.random_kl, digits=3, signed=False)}.",
        f"Ablation begins at the first token of the request. Taken from every token, the score of {first} is "
        f"{average(found.hooks)} by hooks and {average(found.weights)} from weights that cannot write the direction; "
        f"no request differs by more than {float((found.hooks - found.weights).abs().max()):.1g} nats.",
    )


def conditions(chat: Chat, scores: dict[str, Odds]) -> LineChart:
    """Scores of both kinds under each condition; the title has the shares."""
    series = []
    for kind, noun in zip(KINDS, chat.setting.nouns, strict=True):
        each = [bootstrap_mean(odds[kind].reshape(len(odds[kind]), -1).mean(1)) for odds in scores.values()]
        y, low, high = ([float(x) for x in xs] for xs in zip(*((e.mean, e.low, e.high) for e in each), strict=True))
        series.append(Series(name=noun, y=y, low=low, high=high, joined=False))

    def change(kind: str, before: str, after: str) -> str:
        return " → ".join(f"{float((scores[name][kind] > 0).double().mean()):.0%}" for name in (before, after))

    title = f"Refused: {change('harmful', 'plain', 'ablated')} with one direction ablated, "
    title += f"{change('harmless', 'plain', 'added')} with it added"
    if "turned" in scores:
        title += f"; dialogue turned round, {change('harmless', 'turned', 'turned add.')}"
    even = [("as likely as not", 0)]
    return LineChart(x=list(scores), series=series, title=title, y_name="refusal score (nats)", references=even)


def label(site: str) -> str:
    """A head or MLP as people write it: L5H1, L5MLP."""
    name, layer, *head = site.split(".")
    return f"L{layer}H{head[0]}" if name == "head_out" else f"L{layer}MLP"


def writers(page: Page, chat: Chat, chosen: Candidate, found: Writers, plain: Tensor) -> None:
    """What writes the direction, and what happens when only the strongest writers are kept from it."""
    noun, strongest, total = chat.setting.nouns[0], found.order[:10], found.test.total
    written = sum(float(found.test.parts[site].sum()) for site in strongest)
    page.text(
        f"At position {chosen.position} behind layer {chosen.layer} the kinds are {average(total)} apart along the "
        "direction, on test requests. What the embedding, each head and each MLP up to there write, by projection, "
        f"sums to that; for no request is the gap more than {found.test.missed:.1g}. The {len(strongest)} parts that "
        f"are strongest on train requests write {written / float(total.sum()):.0%} of it:"
    )
    page.table([{"part": label(site), "written": average(found.test.parts[site])} for site in strongest])
    page.picture(
        by_layer(chosen, found),
        f"Along the direction at position {chosen.position}: mean of {noun} minus that of {chat.setting.nouns[1]}.",
        name="writers",
    )
    page.text(
        "Writing is not acting. So the direction is ablated from some parts only: those that write most of it (on "
        f"train requests), or as many random ones of the {len(found.order)}. Change of the score of {noun}:"
    )
    rows = []
    for cut in found.cuts:
        lot = average(cut.drawn - plain[:, None]) if cut.drawn.numel() else "these are all"
        rows.append({"parts": cut.number, "strongest": average(cut.strongest - plain), "random": lot})
    page.table(rows)
    cut = found.cuts[min(1, len(found.cuts) - 1)]
    beyond = f"; against as many random ones {average(cut.strongest[:, None] - cut.drawn)}" if cut.drawn.numel() else ""
    page.short(
        f"- Taken from the {cut.number} strongest of {len(found.order)} heads and MLPs only, the score of {noun} "
        f"{moved(cut.strongest - plain)}{beyond}."
    )


def by_layer(chosen: Candidate, found: Writers) -> Heatmap:
    """What each head and MLP writes on average."""
    where = {site: float(values.mean()) for site, values in found.test.parts.items()}
    heads, layers = sum(site.startswith("head_out.0.") for site in where), range(chosen.layer + 1)
    rows = {f"head {head}": [where[f"head_out.{layer}.{head}"] for layer in layers] for head in range(heads)}
    rows["MLP"] = [where[f"mlp_out.{layer}"] for layer in layers]
    title = f"What writes the direction: {', '.join(label(site) for site in found.order[:3])} the strongest"
    columns = [str(layer) for layer in layers]
    return Heatmap(values=[*rows.values()], rows=[*rows], columns=columns, title=title, column_name="layer")


def side_effects(page: Page, found: SideEffects) -> None:
    """What ablation does to plain text, and what the first token has to do with it."""
    nats = {
        "plain": found.plain,
        "ablated behind the first token": found.behind,
        "random ablated behind the first token": found.random.mean(1),
        "ablated everywhere": found.everywhere,
    }
    rows = []
    for name, x in nats.items():
        change = "" if name == "plain" else average(x - found.plain)
        perplexity = f"{float(x.mean().exp()):.1f}"
        rows.append({"": name, "nats": average(x, signed=False), "change": change, "perplexity": perplexity})
    page.text(f"{len(found.plain)} neutral texts, without a chat format: nats a token.")
    page.table(rows)
    page.text(
        f"{found.first.summary()} In most models the first token is of another kind than all others, whatever the "
        "word, and what ablation does there is not about refusal. So it is left out above, but weights cannot spare it."
    )


def elsewhere(page: Page, found: Elsewhere) -> None:
    """Whether the direction stands for refusal, or only for what is refused in this dialogue."""
    where, turned = {"alone": found.alone}, found.turned
    what = "The same vector, added where nothing stands in front of the requests"
    if turned is None:
        page.text(f"{what}. What stood there asks for refusals and has none among its answers: nothing can be swapped.")
        page.short(f"- {VERDICTS[found.verdict]}")
    else:
        where = {"turned round": turned} | where
        page.text(
            f"{what}, and in the dialogue turned round, where the kind that was refused is answered and the other one "
            "refused."
        )
        plain, added, lot = (x["harmless"] for x in (turned.plain, turned.added, turned.random))
        page.short(
            f"- Added where the dialogue is turned round, the score of {turned.setting.nouns[1]} "
            f"{moved(added - plain)}: {refused(plain)} are refused as it is, {refused(added)} then. Against random "
            f"directions: {average(added[:, None] - lot)}. {VERDICTS[found.verdict]}"
        )
    rows = []
    for name, one in where.items():
        for kind, noun in zip(KINDS, one.setting.nouns, strict=True):
            scores = {"plain": one.plain, "added": one.added, "random": one.random}
            columns = {column: average(odds[kind]) for column, odds in scores.items()}
            rows.append({"": f"{name}: {noun}"} | columns | {"refused, added": refused(one.added[kind])})
    page.table(rows)


def limits(page: Page, found: Behaviour, elsewhere: Elsewhere | None) -> None:
    """What this does not show, and what would change on a larger model."""
    shown = ALONE
    if elsewhere is not None:
        shown = SHOWN_HOW.format("asked for in words" if elsewhere.turned is None else "shown by examples")
    page.text(LIMITS.format(what=shown, n=found.there.gap.n), LARGER)
