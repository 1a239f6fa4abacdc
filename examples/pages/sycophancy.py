"""The page on claims: does the model give in to its user, through which heads, and what keeps it from that?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from claims import CLAIM, RIGHT
from example import Page, above, average, interval, share
from interp_toolkit.statistics import bootstrap_mean, wilson
from interp_toolkit.visualization import LineChart, Series

if TYPE_CHECKING:
    from torch import Tensor

    from claims import Behaviour, Carrier, Change, Heads, Item, Margins, Replies
    from interp_toolkit.circuits import Effects
    from interp_toolkit.steering import Setting

MEASURE = "log p(right) − log p(wrong)"
ABOUT = """A model may say something wrong because its user believes it. It may also repeat a wrong word just because it
was there. So every question is asked in several wordings, and giving in is only what a *claim* costs beyond the same
sentence that is *not claimed*. Where does that difference come from, and can it be taken away?"""
LIMITS = """## Limits

- The reply is begun for the model with the words of the claim, which makes copying easy. Greedy
  replies are free of that.
- One wording of a claim finds, chooses and judges, in one turn of a conversation. Others were not tried.
- The control is not free of meaning: who asks *whether* may be thought to doubt.
- To know is here to prefer one of two answers. Items are chosen by that, so “no claim” is 100% by construction, and any
  other wording would lose some of them by chance.
- Heads and direction are changed at the last token, and with the direction at all that is written behind it; what
  carries the claim elsewhere stays as it is."""
LARGER = """## On a larger model

`python examples/sycophancy.py --model Qwen/Qwen2.5-7B-Instruct --device cuda --dtype bfloat16 --n 160`

A larger model knows more, so that fewer items are left out, and may give in only to users who insist, or where facts
are less known: put such wordings into `WORDINGS`, such items into `--data`.
Patching takes longest, and `--layers` and `--n` hold it down."""


def data(page: Page, parts: Mapping[str, Sequence[Item]], asked: int, given: int, whole: Sequence[bool]) -> None:
    """Which items the model knows."""
    sizes = ", ".join(f"{len(some)} {part}" for part, some in parts.items())
    page.table([vars(item) for item in parts["train"][:3]])
    page.text(
        f"Of {given} items the model was asked {asked}; of those that it knows, {sizes}. Train finds, validation "
        "chooses, test judges; no question is in two of them. Compared are the first tokens in which the answers "
        f"differ, behind the beginning of the reply; in {sum(whole)} of {len(whole)} test items these are the whole "
        "answers."
    )


def behaviour(page: Page, found: Behaviour, wordings: Mapping[str, str]) -> None:
    """What the model does, and whether that is more than copying."""
    rows = []
    for name, margin in found.margins.items():
        row = {"wording": name, "what the user says": wordings[name].replace("{question}", "…")}
        rows.append(row | {"right preferred": share(margin > 0), MEASURE: average(margin)})
    page.table(rows)
    copied, given = found.copied, found.given
    verdict = "So it is not shown that the model gives in."
    if found.gives_in:
        verdict = "So the model gives in."
        if above(copied):
            part = float(given.mean / (copied.mean + given.mean))
            verdict = f"So the model gives in: that is {part:.0%} of what is lost, and the rest goes with the mention."
    said = (
        f"Behind a wrong claim the right answer is preferred in {share(found.margins[CLAIM] > 0)} of {given.n} items "
        f"that are known without one. The same sentence, not claimed, costs {interval(copied)} nats of {MEASURE}; that "
        f"it is claimed costs {interval(given)} more. {verdict}"
    )
    claimed = found.margins[CLAIM]
    others = [f"{name} {average(found.margins[name] - claimed)}" for name in ("wrong word", "by another", "doubted")]
    follows = "follows" if above(found.follows) else "is not shown to follow"
    page.text(
        said,
        f"Nats that other wordings cost less than the user's claim: {', '.join(others)}. With a right claim the right "
        f"answer is preferred in {share(found.margins[RIGHT] > 0)}.",
        "Opinions: that the user likes an argument, rather than dislikes it, raises log p( good) − log p( bad) by "
        f"{average(found.liked)}, liking the weather by {average(found.mood)} (n = {found.follows.n}). The difference "
        f"is {interval(found.follows)}: the judgement {follows} the user beyond the words used.",
    )
    page.short(said)


def nothing(page: Page) -> None:
    """It does not give in."""
    page.short("There is nothing here whose mechanism could be looked for.")


def where(page: Page, effects: Effects, found: Sequence[Carrier]) -> None:
    """Which part of the prompt carries the claim, and where it comes to the last token."""
    page.picture(effects.plot(), "Patching the sentence that is not claimed into the claim", name="where")
    steps = []
    for one in found:
        first, last = one.layers[0], one.layers[-1]
        layers, at = (
            (f"layer {first}", "") if first == last else (f"layers {first} to {last}", f" behind layer {first}")
        )
        steps.append(f"“{one.part}” behind {layers} ({interval(one.share, percent=True)}{at})")
    on = f"on {len(effects.base)} items and of the layers that were tried"
    said = f"Of what the claim costs, {on}, no part of the prompt has a share that is surely above zero."
    if steps:
        said = f"Of what the claim costs, {on}, the largest share is that of {', '.join(steps)}."
    page.text(said)


def no_heads(page: Page) -> None:
    """No head carries it."""
    page.text("No head's interval lies above zero, so there is none to be taken out.")


def heads(page: Page, found: Heads) -> None:
    """The heads, and what each of them does."""
    patched, attention, writes = found.patched, bootstrap_mean(found.attention), bootstrap_mean(found.writes)
    rows = []
    for n, name in enumerate(found.names):
        row = {"head": name, "patched, nats": interval(patched.at(n))}
        row["attention to the claimed word"] = interval(attention.at(n), signed=False)
        row["mean of its layer"] = f"{float(found.layer_mean[:, n].mean()):.2f}"
        rows.append(row | {"writes, nats": interval(writes.at(n))})
    page.table(rows)
    sure, strongest = found.effects.estimate(normalized=False), len(found.names)
    page.text(
        f"Of {sure.low.numel()} heads, {int((sure.low > 0).sum())} have an interval above zero on {sure.n} items (by "
        f"chance nominally {sure.low.numel() * 0.025:.0f}, with so few items rather more); these are the {strongest} "
        "strongest, chosen by these numbers. At the last token behind the claim, more attention to the claimed word "
        f"than the mean head of their layers have: {', '.join(found.readers) or 'none'}. Writing against the right "
        f"answer themselves: {', '.join(found.against) or 'none'}."
    )


def without(page: Page, change: Change) -> None:
    """What held-out questions are like without the heads."""
    page.text(
        "The heads are replaced at the last token by what they hold there on average without a claim; random are as "
        f"many other heads, of the same layers where these have enough, drawn {draws(change)} times."
    )
    told(page, "without the heads", change, {"without the heads": change.changed})


def steered(page: Page, best: Setting, chosen_on: int, change: Change, instructed: Margins, instruction: str) -> None:
    """What held-out questions are like with the direction, and with a plain instruction."""
    page.text(
        f"On {chosen_on} other items, {best.rule} is behind layer {best.layer} with coefficient {best.coefficient:g}. "
        f"Neutral texts are steered at every token. Random are {draws(change)} directions of the same length. The "
        f"instruction is “{instruction.strip()}”"
    )
    told(page, "steered", change, {"instructed": instructed, "steered": change.changed})
    by = points(instructed[CLAIM], change.plain[CLAIM])
    page.short(f"The plain instruction changes the share of right answers behind wrong claims by {by}.")
    done = {"as it is": change.plain, "instructed": instructed, "random": change.random, "steered": change.changed}
    page.picture(picture(done), "Right answers to held-out questions, by what is done about claims")


def told(page: Page, what: str, change: Change, done: Mapping[str, Margins]) -> None:
    """A change beside random ones: on claims, in particular, and where there was nothing to mend."""
    several = {"as it is": change.plain, "random": change.random, **done}
    rows = []
    for name in change.plain:
        row = {"wording": name} | {how: share(by[name] > 0) for how, by in several.items()}
        rows.append(row | {f"{what}, nats": average(change.changed[name] - change.plain[name])})
    page.table(rows)
    moves = {1: "rises", 0: "does not clearly move", -1: "falls"}[change.direction(CLAIM)]
    if change.direction(CLAIM) < 0:
        verdict = "So it makes wrong claims weigh more."
    elif change.direction(CLAIM) == 0:
        verdict = "An effect on claims is not shown."
    elif above(change.own):
        verdict = "So it acts on the claim, and not only on copying."
    else:
        verdict = "So it acts on what was mentioned, and is not shown to act on the claim in particular."
    if change.worse:
        names = " and ".join(f"“{name}”" for name in change.worse)
        verdict += f" Behind {names} it makes the right answer less likely, more than random ones do."
    said = (
        f"{what.capitalize()}, {points(change.changed[CLAIM], change.plain[CLAIM])} right behind wrong claims (n = "
        f"{change.own.n}): {MEASURE} {moves}, {average(change.beyond(CLAIM))} nats beyond random ones, which is "
        f"{interval(change.own)} more than behind the sentence that is not claimed. {verdict}"
    )
    page.text(said)
    page.short(said)


def draws(change: Change) -> int:
    """How many random changes there are."""
    return int(change.random[CLAIM].shape[1])


def points(changed: Tensor, plain: Tensor) -> str:
    """A difference of shares, in percentage points."""
    found = bootstrap_mean(100 * ((changed > 0).float() - (plain > 0).float()))
    return f"{float(found.mean):+z.0f} points [{float(found.low):z.0f}, {float(found.high):z.0f}]"


def picture(done: Mapping[str, Margins]) -> LineChart:
    """The share of right answers by what was done, for each wording."""
    series, claims = [], []
    for name in done["as it is"]:
        rights = [(by[name] > 0).double().reshape(len(by[name]), -1).mean(1) for by in done.values()]
        shares = [100 * float(right.mean()) for right in rights]
        ends = [wilson(float(right.sum()), len(right)) for right in rights]
        low, high = ([100 * end for end in side] for side in zip(*ends, strict=True))
        series.append(Series(name=name, y=shares, low=low, high=high, joined=False))
        if name == CLAIM:
            claims = shares
    return LineChart(
        x=list(done),
        series=series,
        title=f"A user's wrong claim leaves {claims[0]:.0f}% of known answers right; steered, {claims[-1]:.0f}%",
        caption=f"{len(done['as it is'][CLAIM])} held-out questions that are known without a claim; 95% intervals. "
        "Random: directions of the same length.",
        x_name="what is done about it",
        y_name="right answer preferred, %",
    )


def costs(page: Page, kl: Tensor, replies: Replies) -> None:
    """What steering does to other texts, a few replies, and which answer they name first."""
    page.text(
        f"In {len(kl)} texts that nothing was chosen on, steering every token moves the next token's distribution by "
        f"{float(kl[:, 0].mean()):.3f} nats (KL), random directions by {float(kl[:, 1:].mean()):.3f}."
    )
    shown = enumerate(replies.items[:5])
    page.table(
        [
            {"asked": x.question, "claimed": x.wrong} | {how: some[n] for how, some in replies.texts.items()}
            for n, x in shown
        ]
    )
    counts = []
    for how in replies.texts:
        named = replies.named(how)
        counts.append(f"{how}, {', '.join(f'{which} {named[which]}' for which in ('right', 'wrong', 'neither'))}")
    page.text(
        f"Which answer is named first in {len(replies.items)} greedy replies to a wrong claim: {'; '.join(counts)}."
    )


def limits(page: Page) -> None:
    """What this does not show, and what would change on a larger model."""
    page.text(LIMITS, LARGER)
