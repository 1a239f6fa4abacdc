"""The page on elicitation: whether a vector brings out what examples bring out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from example import Page, interval, share
from interp_toolkit.statistics import bootstrap_mean, wilson
from interp_toolkit.visualization import Heatmap, LineChart, Series
from words import VECTOR

if TYPE_CHECKING:
    from elicitation import Forms, Found, Heads, Judgement
    from interp_toolkit.statistics import Estimate
    from words import Behaviour, WordTask

HEADS = "random heads"
DIRECTIONS = "random directions"
ORDER = ["plain", "instruction", "shuffled", DIRECTIONS, HEADS, "other tasks' vectors"]
ORDER += ["right − shuffled", "examples − plain", VECTOR, "examples"]
TITLE = "Can a vector bring out what examples bring out?"
ABOUT = """Behind examples such as `hot -> cold` a model may do tasks that it does not do behind a bare word. Does it,
and is the switch a direction in its activations? Vectors are taken from prompts with examples and added, at one layer
and one token, where there is no example: differences of means, and function vectors, the sum of what a few heads write
(Todd et al. 2024; task vectors: Hendel et al. 2023)."""
SPLIT = """Examples, vectors and heads come from training words; layer, coefficient and number of heads are chosen on
validation words; accuracies are on test words. In brackets are 95% intervals: Wilson's for shares of words (as for a
single draw, where it is a mean over several), and bootstrap ones over words for differences and ratios. There is no
chat template."""
BEHAVIOUR = """Plain is a word and an arrow; examples are such lines with answers; shuffled, they have each other's
answers; an instruction stands in front of the plain prompt. A word is right if every token of its answer is the model's
best one behind those before it. There is a gap where examples bring {:.0%} of the test words or more beyond plain, with
an interval above 0. Heads and vectors do not depend on that."""
CHOICE = """Three vectors: the mean with right minus that with shuffled answers, with examples minus plain, and the sum
of the mean outputs of the strongest heads. Each is added at the last token of plain prompts, times a coefficient. The
rule: most whole answers right on validation words; among equals, the likeliest answers. Curves: the function vector."""
JUDGED = """Test words, without any example. In the place and of the length of the function vector: sums of as many
other heads, and random directions, each a mean over {} draws. Other tasks' vectors are each where it was chosen."""
PRICE = """KL is in nats a token of neutral texts, with the vector at every token, beside random directions of the same
length. *No line break* is the first form without it: unless the tokenizer puts a start token there, the word is then
the first token, whose activations hardly depend on the word in most models."""
SAID = "A look: the best tokens for the vector as last residual stream; then, for test words, the next token with it."
LIMITS = """## Limits

- Only the answer of the list is right. Other good answers count as wrong, for examples and vectors alike.
- Gaps are judged on the words on which vectors are: one just large enough to count is likely to be smaller elsewhere.
- A vector from prompts of one form brings the form, too: a plain prompt may fail because the model does not see what
  is asked. An instruction is the fair rival; here it is plain text, and a chat template may do more for it.
- Layer and coefficient were chosen among few, on few words, by accuracy alone; the price was no part of the rule. It is
  that of the vector at every token, while it is added at a single one to bring out a task.
- A head's effect is that of its mean at the last token, alone. Heads that only work together are missed.
- Where a vector fails, another one may not: that shows nothing about what the model can do."""
LARGER = """## On a larger model

`python examples/elicitation.py --model meta-llama/Llama-3.2-3B --device cuda --dtype bfloat16 --prompts 25`

Layers and heads are those of the model. Larger models have more to elicit: give tasks of your own with `--data`, such
as what a model is said not to do, with some pairs that show it."""


def change(estimate: Estimate) -> str:
    """A difference or a ratio with its interval; no interval where draws cannot differ."""
    low, high = float(estimate.low), float(estimate.high)
    if low == high or math.isnan(low):
        return f"{float(estimate.mean):z.0%} ({'all words alike' if low == high else 'no interval'})"
    return interval(estimate, percent=True)


def data(page: Page, tasks: Sequence[WordTask]) -> None:
    """What is asked of the model."""
    page.text(SPLIT)
    rows = []
    for task in tasks:
        row = {"task": task.name, "for example": " → ".join(task.train[0]), "instruction": task.instruction or "none"}
        rows.append(row | {"train, validation, test": f"{len(task.train)}, {len(task.validation)}, {len(task.test)}"})
    page.table(rows)


def behaviour(page: Page, found: Mapping[str, Behaviour]) -> None:
    """What the model does without vectors."""
    page.text(BEHAVIOUR.format(next(iter(found.values())).least))
    rows = []
    for name, one in found.items():
        row = {"task": name} | {kind: share(scores.whole) for kind, scores in one.scores.items()}
        row["examples, first token"] = share(one.scores["examples"].first)
        rows.append(row | {"gap": f"{change(one.gap)}: {'yes' if one.has_gap else 'no'}"})
    page.table(rows)
    if same := [name for name, one in found.items() if one.has_gap and not one.order_matters]:
        page.text(
            f"In {', '.join(same)} right answers are not measurably better than shuffled ones: there examples may only "
            "have to show what kind of thing follows."
        )


def heads(page: Page, found: Heads, tasks: int) -> None:
    """The heads that matter most, where they look, and their roles."""
    rows = []
    for n, role, looks in zip(found.ranked, found.roles, found.attention.tolist(), strict=False):
        effect = found.effects[:, n]
        said = f"{float(effect.mean()):+.3f}" if len(effect) == 1 else interval(bootstrap_mean(effect), digits=3)
        parts = zip(("looks at answers", "their words", "the word"), looks, strict=True)
        rows.append({"head": role.node, "effect": said, "role": role.name} | {name: f"{x:.0%}" for name, x in parts})
    page.table(rows)
    most = int((found.attention[:, 0] > 1 / 2).sum())
    page.text(
        f"Effect: mean rise of the answer's probability over {len(found.effects)} prompts of training words, from all "
        f"{tasks} tasks whether they show a gap or not, where a head's mean output at the last token, from prompts "
        "with examples, goes into prompts with shuffled answers. The prompts are those that ranked the heads, so that "
        f"these effects and intervals flatter the first ones. {most} of these {len(rows)} heads have most of their "
        "attention on the examples' answers. Roles are by a test on random tokens; *unlabelled* means that it gives "
        "none."
    )


def choice(page: Page, found: Mapping[str, Mapping[str, Found]], layers: Sequence[int]) -> None:
    """What validation words chose, and where the function vector works on them."""
    page.text(CHOICE)
    rows = []
    for name, kinds in found.items():
        where = {kind: f"layer {x.vector.layers[0]}, × {x.coefficient:g}" for kind, x in kinds.items()}
        rows.append({"task": name} | where | {"heads": str(kinds[VECTOR].heads)})
    page.table(rows)
    lines = []
    for name, kinds in found.items():
        right = kinds[VECTOR].curve
        ends = [wilson(float(total), len(right)) for total in right.sum(0)]
        low, high = ([100 * end for end in side] for side in zip(*ends, strict=True))
        lines.append(Series(name=name, y=100 * right.mean(0), low=low, high=high))
    chart = LineChart(
        x=layers,
        series=lines,
        title="Function vectors by the layer at which they are added",
        x_name="layer",
        y_name="% of validation words right",
    )
    page.picture(chart, "With the heads and coefficient chosen for each task; bands are 95% intervals.", name="layers")


def judgement(page: Page, found: Judgement, shots: int) -> None:
    """The vectors on test words beside their controls; what stands on top of the page."""
    gaps, right = found.gaps, found.right
    title = f"{shots} examples bring out none of {len(right)} tasks"
    page.text(JUDGED.format(next(iter(right.values()))[HEADS].shape[1]))
    if gaps:
        title = (
            f"One added vector brings {float(found.recovered(VECTOR, *gaps).mean):.0%} of what {shots} examples bring"
        )
        with_gap(page, found, shots)
    else:
        page.short(f"- {title}.")
    for name, one in found.behaviour.items():
        if not one.has_gap:
            small = float(one.gap.mean) < one.least
            why = (
                f"less than the {one.least:.0%} that are called a gap here" if small else "which is not surely above 0"
            )
            shares = [f"{kind} {share(right[name][kind])}" for kind in ("plain", "examples", VECTOR)]
            page.short(
                f"- {name}: examples bring {change(one.gap)} more words right, {why}. Right: {', '.join(shares)}."
            )
    kinds = [kind for kind in ORDER if any(kind in by_kind for by_kind in right.values())]
    picture(page, found, kinds, title)
    page.table([{"": kind} | {name: share(x[kind]) for name, x in right.items() if kind in x} for kind in kinds])


def with_gap(page: Page, found: Judgement, shots: int) -> None:
    """What was brought, over all tasks that examples bring out, and in each."""
    gaps = found.gaps
    tried = [kind for kind in ORDER[1:-1] if all(kind in found.right[name] for name in gaps)]
    shares = {kind: change(found.recovered(kind, *gaps)) for kind in tried}
    more = sum(found.better(VECTOR, HEADS, name) for name in gaps)
    each = "; ".join(f"{name} {change(found.recovered(VECTOR, name))}" for name in gaps)
    page.short(
        f"- {shots} examples bring out {len(gaps)} of {len(found.right)} tasks: {', '.join(gaps)}. Without examples, "
        f"one function vector brings {shares[VECTOR]} of what they bring over all words of these tasks (one by one: "
        f"{each}); sums of random heads bring {shares[HEADS]}, random directions {shares[DIRECTIONS]}. It does more "
        f"than random heads in {more} of {len(gaps)}."
    )
    page.text(
        "Of what examples bring beyond plain, all words of tasks with a gap together: "
        f"{'; '.join(f'{kind} {said}' for kind, said in shares.items())}."
    )


def picture(page: Page, found: Judgement, kinds: Sequence[str], title: str) -> None:
    """The shares of right words by kind of help and task."""
    cells = [[by_kind.get(kind) for by_kind in found.right.values()] for kind in kinds]
    heatmap = Heatmap(
        values=[[math.nan if x is None else float(x.mean()) for x in row] for row in cells],
        texts=[["–" if x is None else f"{float(x.mean()):.0%}" for x in row] for row in cells],
        notes=[["not tried" if x is None else share(x) for x in row] for row in cells],
        rows=list(kinds),
        columns=list(found.right),
        title=title,
        caption="Test words with a wholly right answer; 95% intervals over words on hover.",
        column_name="test words right",
        scale="sequential",
        limit=1,
    )
    page.picture(heatmap, f"{title}: share of test words right, by task.")


def forms(page: Page, found: Mapping[str, Forms]) -> None:
    """Prompts of other forms, and texts that have nothing to do with the tasks."""
    page.text(PRICE)
    rows = []
    for name, one in found.items():
        right = {form: f"{float(x[:, 0].mean()):.0%} → {share(x[:, 1])}" for form, x in one.by_form.items()}
        prices = {"KL": interval(one.kl, signed=False), "random": interval(one.random_kl, signed=False)}
        rows.append({"task": name} | right | prices)
    page.table(rows)
    said = []
    for form in next(iter(found.values())).by_form:
        x = torch.cat([one.by_form[form] for one in found.values()])
        said.append(f"{form} from {float(x[:, 0].mean()):.0%} to {share(x[:, 1])}")
    kl, random_kl = (
        f"{min(prices):.1f} to {max(prices):.1f}"
        for prices in zip(*((float(one.kl.mean), float(one.random_kl.mean)) for one in found.values()), strict=True)
    )
    page.short(
        f"- Such vectors bring the share of right words, over all tasks, {'; '.join(said)}. At every token, they move "
        f"neutral texts by {kl} nats a token, and random directions of their length by {random_kl}."
    )


def sayings(page: Page, alone: Mapping[str, Sequence[str]], behind: Mapping[str, Mapping[str, str]]) -> None:
    """What vectors say through the unembedding, and what a word of each task becomes with them."""
    page.text(SAID)
    rows = []
    for name, words in behind.items():
        row = {"vector": name, "alone": " ".join(map(token, alone.get(name, [])))}
        rows.append(row | {word: token(text) for word, text in words.items()})
    page.table(rows)


def token(text: str) -> str:
    """A token as code."""
    return f"`{text.strip() or '␣'}`"


def limits(page: Page) -> None:
    """What this does not show, and what would change on a larger model."""
    page.text(LIMITS, LARGER)
