r"""Can a vector bring out what examples bring out?

Behind a few examples (`hot -> cold`, `big -> small`) a model does a task that it does not do behind a bare word. Here
vectors are made from activations in prompts with examples, and added where there are none: differences of means, and
function vectors, which are the mean output of a few heads (Todd et al. 2024; Hendel et al. 2023). What finds a vector,
what chooses its place and strength, and what judges it are different words.

    python examples/elicitation.py
    python examples/elicitation.py --data pairs.jsonl --instruction "Give the opposite of the word."

Data are JSON lines with "input" and "output", and a "task" where one file has several:

    {"task": "antonym", "input": "hot", "output": "cold"}
"""

from __future__ import annotations

import math
import random
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise, product
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from example import DATA, Page, above, interval, load, made_with, options, read_rows
from interp_toolkit import Edit, Site, run
from interp_toolkit.circuits import head_roles
from interp_toolkit.model import encode
from interp_toolkit.model.plan import Base, Cell, make_plan
from interp_toolkit.statistics import Estimate, bootstrap_mean, bootstrap_ratio
from interp_toolkit.steering import (
    SteeringVector,
    Trials,
    given_vector,
    steering_edits,
    steering_sweep,
    steering_vector,
)
from interp_toolkit.visualization import Heatmap, LineChart, Series

FORM = "\n{} ->"
FORMS = {"a question": "\nQ: {}\nA:", "a sentence": "\nThey spoke of {}, and then of", "no line break": "{} ->"}
FIRST, WHOLE, LOG_PROB = range(3)
LEAST = 0.2  # what is called a gap is at least so large
DRAWS = 4  # of random directions, and of sets of random heads
ORDER = ["plain", "instruction", "shuffled", "random directions", "random heads", "other tasks' vectors"]
ORDER += ["right − shuffled", "examples − plain", "function vector", "examples"]
TITLE = "Can a vector bring out what examples bring out?"
ABOUT = """Behind examples such as `hot -> cold` a model does tasks that it does not do behind a bare word: it can do
more than a plain test shows. Is that switch a direction in its activations? Vectors are taken from prompts with
examples and added, at one layer and one token, where there is no example: differences of means, and function vectors,
the sum of what a few heads write (Todd et al. 2024; task vectors: Hendel et al. 2023)."""
SPLIT = """Examples, vectors and heads come from training words; layer, coefficient and number of heads are chosen on
validation words; accuracies are on test words, with 95% bootstrap intervals over them. There is no chat template."""
BEHAVIOUR = """Plain is a word and an arrow; examples are such lines with answers; shuffled, they have each other's
answers; an instruction stands in front of the plain prompt. A word is right if every token of its answer is the
model's best one behind those before it. There is a gap where examples bring {:.0%} of the words or more beyond plain,
with an interval above 0."""
CHOICE = """Three vectors: the mean with right minus that with shuffled answers, with examples minus plain, and the sum
of the mean outputs of the strongest heads. Each is added at the last token of plain prompts, times a coefficient. The
rule: most whole answers right on validation words; among equals, the likeliest answers. Curves: the function vector."""
JUDGED = f"""Test words, without any example. In the place and of the length of the function vector: the mean of {DRAWS}
sums of as many other heads, and of {DRAWS} random directions. Other tasks' vectors are each where it was chosen."""
PRICE = """KL is in nats a token of neutral texts, with the vector at every token behind the first, beside random
directions of the same length. *No line break* is the first form without it: unless the tokenizer puts a start token
there, the word is then the first token, whose activations hardly depend on the word in most models."""
SAID = "A look: the best tokens for the vector as last residual stream; then, for test words, the next token with it."
LIMITS = """- Only the answer of the list is right. Other good answers count as wrong, for examples and vectors alike.
- A vector from prompts of one form brings the form, too: a plain prompt may fail because the model does not see what
  is asked. An instruction is the fair rival; here it is plain text, and a chat template may do more for it.
- Layer and coefficient were chosen among few, on few words, by accuracy alone; the price was no part of the rule.
- A head's effect is that of its mean at the last token, alone. Heads that only work together are missed.
- Where a vector fails, another one may not: that shows nothing about what the model can do."""
LARGER = """`python examples/elicitation.py --model meta-llama/Llama-3.2-3B --device cuda --dtype bfloat16 --prompts 25`

Layers and heads are those of the model. Larger models have more to elicit: give tasks of your own with `--data`, such
as what a model is said not to do, with some pairs that show it."""
Pairs = Sequence[tuple[str, str]]
Rows = list[Mapping[str, object]]
Results = Mapping[str, Mapping[str, Tensor]]
"""For each task, what was measured with each kind of help."""
Variant = Callable[..., Iterable[Edit]]
"""What is changed at `positions=`, the last token of a prompt."""


@dataclass(frozen=True)
class Lab:
    """The model, and the options of this run."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    chosen: Namespace


@dataclass(frozen=True)
class Task:
    """Words with their answers: `train` finds, `validation` chooses, `test` judges; they share no word."""

    name: str
    instruction: str | None
    train: Pairs
    validation: Pairs
    test: Pairs


@dataclass(frozen=True)
class Found:
    """A vector at the layer and with the coefficient that were chosen; accuracy on validation words by layer."""

    vector: SteeringVector
    coefficient: float
    heads: int
    curve: Estimate | None = None


def read_tasks(chosen: Namespace) -> list[Task]:
    """The tasks of the data, their words drawn into three sets."""
    told = {row["task"]: row["instruction"] for row in read_rows(DATA / "elicitation_instructions.jsonl")}
    pairs: dict[str, dict[str, str]] = {}
    for row in read_rows(chosen.data, "input", "output"):
        name, word, answer = (str(row.get(key, chosen.data.stem)).strip() for key in ("task", "input", "output"))
        if not word or not answer or word in pairs.setdefault(name, {}):
            sys.exit(f"error: in {chosen.data} the input {word!r} of {name!r} is empty, has no output, or comes twice")
        pairs[name][word] = answer
    if unknown := [name for name in chosen.task or () if name not in pairs]:
        sys.exit(f"error: {chosen.data} has no task {unknown[0]!r}; it has {', '.join(pairs)}")
    tasks = []
    for name in chosen.task or pairs:
        words = list(pairs[name].items())
        if len(words) < (least := 3 * (chosen.shots + 2)):
            sys.exit(f"error: task {name!r} has {len(words)} pairs; {chosen.shots} examples a prompt need {least}")
        random.Random(f"{chosen.seed} {name}").shuffle(words)
        test = min(chosen.n, 2 * len(words) // 5)
        rest = test + min(16, len(words) // 5)
        tasks.append(
            Task(name, chosen.instruction or told.get(name), words[rest:], words[test:rest], words[:test]),
        )
    return tasks


def plain(words: Pairs, form: str = FORM) -> list[str]:
    """Each word alone."""
    return [form.format(word) for word, _ in words]


def with_examples(lab: Lab, task: Task, words: Pairs, *, shuffled: bool = False) -> list[str]:
    """Each word behind examples from the training words; shuffled, these have each other's answers."""
    draw, prompts = random.Random(f"{lab.chosen.seed} {task.name}"), []
    for pair in words:
        examples = draw.sample([other for other in task.train if other != pair], lab.chosen.shots)
        answers = [answer for _, answer in examples]
        answers = [*answers[1:], *answers[:1]] if shuffled else answers
        lines = [f"{FORM.format(word)} {answer}" for (word, _), answer in zip(examples, answers, strict=True)]
        prompts.append("".join(lines) + FORM.format(pair[0]))
    return prompts


def tokens_of(lab: Lab, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """The tokens of a prompt, and those of the answer behind it."""
    first, whole = (encode(text, tokenizer=lab.tokenizer).row() for text in (prompt, f"{prompt} {answer}"))
    if whole[: len(first)] != first or len(whole) == len(first):
        sys.exit(f"error: the tokens of {prompt!r} change when {answer!r} follows: let FORM end with another sign")
    return first, whole[len(first) :]


def score(logits: Float[Tensor, "token vocab"], answer: Sequence[int]) -> Float[Tensor, " measure"]:
    """Is an answer's first token, is every token of it the model's best one, and its log-probability."""
    logp, ids = logits.float().log_softmax(-1).cpu(), torch.tensor(answer)
    right = logp.argmax(-1) == ids
    return torch.stack([right[0].float(), right.all().float(), logp.gather(-1, ids[:, None]).sum()])


@torch.no_grad()
def judge(
    lab: Lab, prompts: Sequence[str], words: Pairs, variants: Sequence[Variant] = ()
) -> Float[Tensor, "word variant measure"]:
    """The scores of each answer: without a change first, then with each of the variants."""
    asked = [tokens_of(lab, prompt, answer) for prompt, (_, answer) in zip(prompts, words, strict=True)]
    found = torch.full((len(asked), 1 + len(variants), 3), torch.nan)
    for size in sorted({len(answer) for _, answer in asked}):
        rows = [n for n, (_, answer) in enumerate(asked) if len(answer) == size]
        bases = [Base(tokens=encode([[*asked[n][0], *asked[n][1][:-1]]])) for n in rows]
        edits = [tuple(variant(positions=-size)) for variant in variants]
        cells = [Cell(base=base, edits=each) for base in range(len(rows)) for each in edits]
        passes = make_plan(lab.model, bases, cells, logits=slice(-size, None)).run()
        for base, n in enumerate(rows):
            found[n, 0] = score(passes.base_logits(base), asked[n][1])
        for some in passes:
            assert some.logits is not None
            for cell, logits in zip(some.cells, some.logits, strict=True):
                n = rows[cell // len(edits)]
                found[n, 1 + cell % len(edits)] = score(logits, asked[n][1])
    return found


def behaviour(lab: Lab, task: Task) -> dict[str, Float[Tensor, "word measure"]]:
    """How well the model does without vectors, on test words."""
    prompts = {"plain": plain(task.test), "examples": with_examples(lab, task, task.test)}
    prompts["shuffled"] = with_examples(lab, task, task.test, shuffled=True)
    if task.instruction:
        prompts["instruction"] = [task.instruction + prompt for prompt in plain(task.test)]
    return {name: judge(lab, given, task.test)[:, 0] for name, given in prompts.items()}


def gap_of(found: Mapping[str, Tensor], without: str = "plain") -> Estimate:
    """How many more answers are wholly right behind examples."""
    return bootstrap_mean(found["examples"][:, WHOLE] - found[without][:, WHOLE])


def head_means(lab: Lab, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """What each head holds and what it writes at the last token, mean over prompts: `[layer, head, width]`."""
    read = [run(lab.model, prompt, read=["z", "head_out"], keep="last") for prompt in prompts]
    kinds = [[site for site in read[0] if site.component == name] for name in ("z", "head_out")]
    held, written = (torch.stack([torch.stack([one[s][0, -1] for s in sites]) for one in read]) for sites in kinds)
    return held.mean(0), written.mean(0)


def indirect_effects(lab: Lab, task: Task, held: Float[Tensor, "layer head d_head"]) -> Float[Tensor, "prompt head"]:
    """By how much the answer's probability rises when one head's mean goes into a prompt with shuffled answers."""

    def put(site: Site, *, positions: int) -> list[Edit]:
        return [Edit.set(site, held[site.layer or 0, site.index or 0], positions=positions)]

    words = task.train[: lab.chosen.prompts]
    sites = [Site("z", layer, head) for layer in range(held.shape[0]) for head in range(held.shape[1])]
    prompts = with_examples(lab, task, words, shuffled=True)
    probability = judge(lab, prompts, words, [partial(put, site) for site in sites])[:, :, LOG_PROB].exp()
    return probability[:, 1:] - probability[:, :1]


def adding(lab: Lab, found: Found) -> Variant:
    """Adds a vector at the prompt's last token; coefficients count in lengths of the vector."""
    return partial(steering_edits, lab.model, found.vector, found.coefficient, scale="raw")


def choose(lab: Lab, task: Task, vectors: Mapping[int, SteeringVector]) -> Found:
    """Vector, coefficient and layer with most validation answers wholly right; among equals the likeliest answers."""
    layers = next(iter(vectors.values())).layers
    settings = list(product(vectors, lab.chosen.coefficients, layers))
    tried = [Found(vectors[heads].at(layer), size, heads) for heads, size, layer in settings]
    scores = judge(lab, plain(task.validation), task.validation, [adding(lab, x) for x in tried])[:, 1:]
    mean = scores.mean(0)
    best = max(range(len(settings)), key=lambda n: (float(mean[n, WHOLE]), float(mean[n, LOG_PROB])))
    begin = best - best % len(layers)
    return replace(tried[best], curve=bootstrap_mean(scores[:, begin : begin + len(layers), WHOLE]))


def make_vectors(lab: Lab, task: Task, written: Float[Tensor, "head d_model"], ranked: list[int]) -> dict[str, Found]:
    """Two differences of means, and the sum of what the first heads write: each where validation words say."""
    words, layers = task.train[: lab.chosen.train], lab.chosen.layers
    examples, shuffled = (with_examples(lab, task, words, shuffled=wrong) for wrong in (False, True))
    sums = {count: written[ranked[:count]].sum(0).expand(len(layers), -1) for count in lab.chosen.heads}
    kinds = {
        "right − shuffled": {0: steering_vector(lab.model, examples, shuffled, layers=layers)},
        "examples − plain": {0: steering_vector(lab.model, examples, plain(words), layers=layers)},
        "function vector": {count: given_vector(lab.model, v, layers=layers) for count, v in sums.items()},
    }
    return {name: choose(lab, task, vectors) for name, vectors in kinds.items()}


def controls(
    lab: Lab, found: Found, written: Float[Tensor, "head d_model"], ranked: list[int]
) -> dict[str, list[Variant]]:
    """In the function vector's place and length: sums of as many other heads, and random directions."""
    generator, others = torch.Generator().manual_seed(lab.chosen.seed), torch.tensor(ranked[found.heads :])
    sets = [others[torch.randperm(len(others), generator=generator)[: found.heads]] for _ in range(DRAWS)]
    kinds = {
        "random heads": [written[heads].sum(0).cpu().float() for heads in sets],
        "random directions": list(torch.randn(DRAWS, written.shape[1], generator=generator)),
    }
    length, layer = found.vector.direction.norm(), found.vector.layers[0]

    return {
        name: [
            adding(lab, replace(found, vector=given_vector(lab.model, v / v.norm() * length, layers=layer)))
            for v in several
        ]
        for name, several in kinds.items()
    }


def judged(
    lab: Lab, task: Task, kinds: Mapping[str, Sequence[Variant]], form: str = FORM
) -> dict[str, Float[Tensor, " word"]]:
    """Which test answers are wholly right: plain, and with each kind of change, mean over its draws."""
    variants = [variant for several in kinds.values() for variant in several]
    right = judge(lab, plain(task.test, form), task.test, variants)[:, :, WHOLE]
    parts = right[:, 1:].split([len(several) for several in kinds.values()], dim=1)
    return {"plain": right[:, 0]} | {name: part.mean(1) for name, part in zip(kinds, parts, strict=True)}


def cost(lab: Lab, task: Task, found: Found, neutral: list[str]) -> tuple[Estimate, Estimate]:
    """KL on neutral texts with the vector at every token behind the first; with random directions too."""
    trials = Trials(targets=[(FORM.format(word), f" {answer}") for word, answer in task.test[:2]], neutral=neutral)
    size = [found.coefficient]
    swept = steering_sweep(
        lab.model, found.vector, trials, coefficients=size, scale="raw", positions="predicting", random=2
    )
    return swept.estimate("kl"), swept.random("kl")


def best_tokens(lab: Lab, text: str, edits: Iterable[Edit], number: int = 1) -> str:
    """The model's best next tokens behind a text."""
    logits = run(lab.model, text, edits=edits, logits="last").logits
    assert logits is not None
    texts = [str(lab.tokenizer.decode([int(token)])).strip() for token in logits[0, -1].topk(number).indices]
    return " ".join(f"`{text or '␣'}`" for text in texts)


def looks_at(lab: Lab, tasks: Sequence[Task], heads: Sequence[Site]) -> Float[Tensor, "head part"]:
    """Mean attention from the last token to the examples' answers, to their words, and to the word asked for."""
    total, (begin, arrow) = torch.zeros(len(heads), 3), FORM.split("{}")
    prompts = [text for task in tasks for text in with_examples(lab, task, task.train[:4])]
    for text in prompts:
        pieces = re.split(f"({re.escape(begin)}|{re.escape(arrow)})", text)  # "", begin, word, arrow, answer, begin, …
        ends = [len(encode("".join(pieces[:n]), tokenizer=lab.tokenizer).row()) for n in range(2, len(pieces) + 1)]
        read = run(lab.model, text, read=sorted({f"pattern.{head.layer}" for head in heads}))
        for n, (low, high) in enumerate(pairwise(ends), 2):
            part = 2 if n == len(pieces) - 3 else {0: 0, 2: 1}.get(n % 4)
            for row, head in enumerate(heads):
                if part is not None:
                    seen = read[Site("pattern", head.layer, head.index)][0, -1, low:high]
                    total[row, part] += seen.float().sum().cpu()
    return total / len(prompts)


# --- the page ---------------------------------------------------------------------------------------------------------


def rate(right: Tensor | Estimate) -> str:
    """A share with its interval over words."""
    return interval(right if isinstance(right, Estimate) else bootstrap_mean(right), share=True)


def recovered(results: Sequence[Mapping[str, Tensor]], kind: str) -> Estimate:
    """Of what examples bring beyond plain, the share that something else brings."""
    gained, gap = (torch.cat([right[k] - right["plain"] for right in results]) for k in (kind, "examples"))
    return bootstrap_ratio(gained, gap)


def tell_behaviour(page: Page, base: Results, gaps: Sequence[str]) -> None:
    """What the model does without vectors."""
    rows: Rows = []
    for name, found in base.items():
        right = {kind: rate(x[:, WHOLE]) for kind, x in found.items()}
        right |= {"examples, first token": rate(found["examples"][:, FIRST])}
        rows.append({"task": name} | right | {"gap": f"{rate(gap_of(found))}: {'yes' if name in gaps else 'no'}"})
    page.text(BEHAVIOUR.format(LEAST))
    page.table(rows)
    if same := [name for name in gaps if not above(gap_of(base[name], "shuffled"))]:
        page.text(
            f"In {', '.join(same)} right answers are not measurably better than shuffled ones: there examples may only "
            "have to show what kind of thing follows."
        )


def tell_heads(lab: Lab, page: Page, tasks: Sequence[Task], effects: Tensor, ranked: list[int]) -> None:
    """The heads that matter most, where they look, and their roles."""
    places = [divmod(n, lab.model.config.num_attention_heads) for n in ranked[:8]]
    looks = looks_at(lab, tasks, [Site("z", *place) for place in places]).tolist()
    roles = head_roles(lab.model, places, mlps=[], tokenizer=lab.tokenizer).roles
    rows: Rows = []
    for n, role, (answers, words, word) in zip(ranked, roles, looks, strict=False):
        row = {"head": role.node, "effect": interval(bootstrap_mean(effects[:, n]), digits=3), "role": role.name}
        row |= {"looks at answers": f"{answers:.0%}", "their words": f"{words:.0%}", "the word": f"{word:.0%}"}
        rows.append(row)
    page.table(rows)
    page.text(
        f"Effect: mean rise of the answer's probability over {len(effects)} prompts of {len(tasks)} tasks, where a "
        "head's mean output at the last token, from prompts with examples, goes into prompts with shuffled answers. "
        f"{sum(look[0] > 1 / 2 for look in looks)} of these {len(rows)} heads have most of their attention on the "
        "examples' answers there. Roles are by a test on random tokens; *unlabelled* means that it gives none."
    )


def tell_choice(page: Page, found: Mapping[str, Mapping[str, Found]], layers: Sequence[int]) -> None:
    """What validation words chose, and where the function vector works on them."""
    page.text(CHOICE)
    page.table(
        [
            {"task": name}
            | {kind: f"layer {x.vector.layers[0]}, × {x.coefficient:g}" for kind, x in kinds.items()}
            | {"heads": kinds["function vector"].heads}
            for name, kinds in found.items()
        ]
    )
    known = {name: kinds["function vector"].curve for name, kinds in found.items()}
    curves = {name: curve for name, curve in known.items() if curve is not None}
    lines = [Series(name=name, y=100 * x.mean, low=100 * x.low, high=100 * x.high) for name, x in curves.items()]
    title = "Function vectors by the layer at which they are added"
    chart = LineChart(x=layers, series=lines, title=title, x_name="layer", y_name="% of validation words right")
    page.picture(chart, "With the heads and coefficient chosen for each task; bands are 95% intervals.", name="layers")


def tell_judgement(page: Page, results: Results, gaps: Sequence[str], shots: int) -> None:
    """The vectors on test words beside their controls; what stands on top of the page."""
    kinds = [kind for kind in ORDER if any(kind in right for right in results.values())]
    vector, heads, other = "function vector", "random heads", "random directions"
    title = f"{shots} examples bring out none of {len(results)} tasks"
    if gaps:
        tried = [k for k in kinds if k not in ("plain", "examples") and all(k in results[t] for t in gaps)]
        share = {kind: recovered([results[t] for t in gaps], kind) for kind in tried}
        title = f"One added vector brings {share[vector].mean:.0%} of what {shots} examples bring"
        more = [t for t in gaps if above(bootstrap_mean(results[t][vector] - results[t][heads]))]
        page.short(
            f"{shots} examples bring out {len(gaps)} of {len(results)} tasks: {', '.join(gaps)}. Without examples, a "
            f"function vector brings {rate(share[vector])} of what they bring over all words of these tasks; sums of "
            f"random heads bring {rate(share[heads])}, random directions {rate(share[other])}. It does more than "
            f"random heads in {len(more)} of {len(gaps)}."
        )
        each = "; ".join(f"{t} {rate(recovered([results[t]], vector))}" for t in gaps)
        page.text(
            f"Of what examples bring beyond plain, all words of tasks with a gap together: "
            f"{'; '.join(f'{kind} {rate(x)}' for kind, x in share.items())}. The function vector task by task: {each}."
        )
    for name in (name for name in results if name not in gaps):
        right = {kind: rate(x) for kind, x in results[name].items()}
        page.short(
            f"In {name} there is no gap: plain {right['plain']}, examples {right['examples']}, vector {right[vector]}."
        )
    shown = {kind: {name: right[kind] for name, right in results.items() if kind in right} for kind in kinds}
    heatmap = Heatmap(
        values=[[float(x[name].mean()) if name in x else math.nan for name in results] for x in shown.values()],
        texts=[[f"{x[name].mean():.0%}" if name in x else "–" for name in results] for x in shown.values()],
        notes=[[rate(x[name]) if name in x else "not tried" for name in results] for x in shown.values()],
        rows=kinds,
        columns=list(results),
        title=title,
        caption="Test words with a wholly right answer; 95% intervals over words on hover.",
        column_name="test words right",
        scale="sequential",
        limit=1,
    )
    page.picture(heatmap, f"{title}: share of test words right, by task.")
    page.table([{"": kind} | {name: rate(x) for name, x in by_task.items()} for kind, by_task in shown.items()])


def tell_forms(lab: Lab, page: Page, tasks: Sequence[Task], vectors: Mapping[str, Found]) -> None:
    """Prompts of other forms, and texts that have nothing to do with the tasks."""
    neutral = [row["text"] for row in read_rows(DATA / "elicitation_neutral.jsonl", "text")]
    rows: Rows = []
    added: dict[str, list[Tensor]] = {}
    prices = []
    for task in tasks:
        best, row = vectors[task.name], {"task": task.name}
        for name, form in {"in this form": FORM, **FORMS}.items():
            right = judged(lab, task, {"steered": [adding(lab, best)]}, form)
            added.setdefault(name, []).append(right["steered"] - right["plain"])
            row[name] = f"{right['plain'].mean():.0%} → {rate(right['steered'])}"
        prices.append(cost(lab, task, best, neutral))
        steered, other = (interval(x, signed=False) for x in prices[-1])
        rows.append(row | {"KL": steered, "random": other})
    page.text(PRICE)
    page.table(rows)
    pooled = [f"{name} {rate(torch.cat(parts))}" for name, parts in added.items()]
    steered_kl, other_kl = ([float(pair[n].mean) for pair in prices] for n in (0, 1))
    page.short(
        f"Over all words such vectors add {'; '.join(pooled)}. At every token, they move neutral texts by "
        f"{min(steered_kl):.1f} to {max(steered_kl):.1f} nats a token, and random directions of their length by "
        f"{min(other_kl):.1f} to {max(other_kl):.1f}."
    )


def tell_sayings(lab: Lab, page: Page, tasks: Sequence[Task], vectors: Mapping[str, Found]) -> None:
    """What vectors say through the unembedding, and what a word of each task becomes with them."""
    words, last = [task.test[0][0] for task in tasks[:4]], Site("resid_post", lab.model.config.num_hidden_layers - 1)
    rows: Rows = [{"vector": "none", "alone": ""} | {w: best_tokens(lab, FORM.format(w), []) for w in words}]
    for name, best in vectors.items():
        alone = best_tokens(lab, FORM, [Edit.set(last, best.vector.direction, positions="last")], 5)
        edits = list(adding(lab, best)(positions="last"))
        rows.append({"vector": name, "alone": alone} | {w: best_tokens(lab, FORM.format(w), edits) for w in words})
    page.text(SAID)
    page.table(rows)


def parse(arguments: Sequence[str] | None) -> tuple[Namespace, Callable[[PreTrainedModel], str]]:
    """The options, and how the page says with what it was made."""
    parser = options(TITLE)
    parser.add_argument("--data", type=Path, default=DATA / "elicitation.jsonl", help="JSON lines: input, output, task")
    parser.add_argument("--task", nargs="+", help="some of its tasks, by name")
    parser.add_argument("--instruction", help="the task in words, for data of your own")
    parser.add_argument("--n", type=int, default=32, help="test words of a task, at most")
    parser.add_argument("--shots", type=int, default=5, help="examples in a prompt")
    parser.add_argument("--train", type=int, default=16, help="prompts that a vector is made of")
    parser.add_argument("--prompts", type=int, default=6, help="prompts of a task in which heads are patched")
    parser.add_argument("--heads", type=int, nargs="+", default=[10, 20], help="numbers of heads to be tried")
    parser.add_argument("--layers", type=int, nargs="+", help="to be tried; some of the middle half by default")
    parser.add_argument("--coefficients", type=float, nargs="+", default=[1.0, 2.0, 3.0], help="to be tried")
    chosen = parser.parse_args(arguments)
    given = Namespace(**vars(chosen))
    return chosen, lambda model: made_with(parser, given, model, "elicitation")


def middle(depth: int) -> range:
    """Some layers of the middle half."""
    return range(depth // 4, 3 * depth // 4 + 1, max(1, depth // 10))


def main(arguments: Sequence[str] | None = None) -> Path:
    """Ask the question of a model, and write the page."""
    chosen, made = parse(arguments)
    tasks = read_tasks(chosen)
    lab = Lab(*load(chosen), chosen)
    chosen.layers = sorted(chosen.layers or middle(lab.model.config.num_hidden_layers))
    page = Page(name="elicitation", title=TITLE, about=ABOUT)
    with page.step("The data", read_tasks, with_examples):
        page.text(SPLIT)
        sizes = {t.name: f"{len(t.train)}, {len(t.validation)}, {len(t.test)}" for t in tasks}
        shown = [{"task": t.name, "for example": " → ".join(t.train[0]), "instruction": t.instruction} for t in tasks]
        page.table([row | {"train, validation, test": sizes[str(row["task"])]} for row in shown])
    with page.step("Does the model do it?", judge, score, behaviour):
        base = {task.name: behaviour(lab, task) for task in tasks}
        gaps = [name for name, x in base.items() if above(gap_of(x)) and gap_of(x).mean >= LEAST]
        tell_behaviour(page, base, gaps)
    with page.step("Which heads carry it?", head_means, indirect_effects, looks_at):
        means = {task.name: head_means(lab, with_examples(lab, task, task.train[: chosen.train])) for task in tasks}
        asked = [task for task in tasks if task.name in gaps] or tasks
        effects = torch.cat([indirect_effects(lab, task, means[task.name][0]) for task in asked])
        ranked = effects.mean(0).argsort(descending=True, stable=True).tolist()
        tell_heads(lab, page, asked, effects, ranked)
    with page.step("Which vector, where, and how much?", make_vectors, choose, adding):
        written = {name: out.flatten(0, 1) for name, (_, out) in means.items()}
        found = {task.name: make_vectors(lab, task, written[task.name], ranked) for task in tasks}
        tell_choice(page, found, chosen.layers)
    vectors = {name: kinds["function vector"] for name, kinds in found.items()}
    with page.step("Does it bring out the task?", controls, judged):
        results = {name: {kind: x[:, WHOLE] for kind, x in right.items()} for name, right in base.items()}
        for task in tasks:
            kinds = controls(lab, vectors[task.name], written[task.name], ranked)
            if others := [adding(lab, x) for name, x in vectors.items() if name != task.name]:
                kinds["other tasks' vectors"] = others
            kinds |= {name: [adding(lab, x)] for name, x in found[task.name].items()}
            results[task.name] |= judged(lab, task, kinds)
        page.text(JUDGED)
        tell_judgement(page, results, gaps, chosen.shots)
    with page.step("Other prompts, and the price", cost):
        tell_forms(lab, page, tasks, vectors)
    with page.step("What the vectors say", best_tokens):
        tell_sayings(lab, page, tasks, vectors)
    page.text("## Limits", LIMITS, "## On a larger model", LARGER)
    return page.write(chosen, made(lab.model))


if __name__ == "__main__":
    main()
