r"""Can a vector bring out what examples bring out?

Behind a few examples (`hot -> cold`, `big -> small`) a model may do a task that it does not do behind a bare word. Here
vectors are made from activations in prompts with examples, and added where there are none: differences of means, and
function vectors, which are the mean output of a few heads (Todd et al. 2024; Hendel et al. 2023). What finds a vector,
what chooses its place and strength, and what judges it are different words.

    python examples/elicitation.py
    python examples/elicitation.py --data pairs.jsonl --instruction "Give the opposite of the word."

Data are JSON lines with "input" and "output", and a "task" where one file has several:

    {"task": "antonym", "input": "hot", "output": "cold"}

A task needs 21 words or more where prompts have five examples: three times two more than these.
"""

from __future__ import annotations

import argparse
import math
import sys
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

import example
from interp_toolkit import Edit, Site, run, steering
from interp_toolkit.circuits import Role, head_roles
from interp_toolkit.model import Layout, encode, layout_of
from interp_toolkit.statistics import Estimate, bootstrap_mean, bootstrap_ratio
from interp_toolkit.steering import SteeringVector
from pages import elicitation as say
from words import (
    FORM,
    VECTOR,
    Behaviour,
    Lab,
    Variant,
    WordTask,
    behaviour,
    judge,
    pieces_of,
    plain,
    read_tasks,
    with_examples,
)

FORMS = {
    "in this form": FORM,
    "a question": "\nQ: {}\nA:",
    "a sentence": "\nThey spoke of {}, and then of",
    "no line break": "{} ->",
}
DRAWS = 4  # of random directions, and of sets of random heads
STRONGEST = 8  # heads that are looked at more closely
LOOKS = 4  # prompts of each task in which it is seen where they look
PARTS = ("answer", "word", "asked")  # of a prompt, to which attention is added up


# --- heads ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadMeans:
    """What each head holds and what it writes at the last token, mean over prompts with examples."""

    held: Float[Tensor, "layer head d_head"]
    written: Float[Tensor, "all_heads d_model"]


def head_means(lab: Lab, task: WordTask) -> HeadMeans:
    """The means over prompts of training words."""
    prompts = with_examples(lab, task, task.train[: lab.chosen.train])
    read = [run(lab.model, prompt, read=["z", "head_out"], keep="last") for prompt in prompts]

    def mean(component: str) -> Float[Tensor, "layer head width"]:
        sites = [Site(component, layer) for layer in range(layout_of(lab.model).num_layers)]
        return torch.stack([torch.stack([one[site][0, -1] for one in read]).mean(0) for site in sites])

    return HeadMeans(held=mean("z"), written=mean("head_out").flatten(0, 1))


def indirect_effects(lab: Lab, task: WordTask, means: HeadMeans) -> Float[Tensor, "prompt head"]:
    """By how much the answer's probability rises when one head's mean goes into a prompt with shuffled answers."""

    def put(layer: int, head: int) -> Variant:
        return lambda last: [Edit.set(Site("z", layer, head), means.held[layer, head], positions=last)]

    words, (layers, heads, _) = task.train[: lab.chosen.prompts], means.held.shape
    prompts = with_examples(lab, task, words, shuffled=True)
    variants = [put(layer, head) for layer in range(layers) for head in range(heads)]
    probability = judge(lab, prompts, words, variants).log_prob.exp()
    return probability[:, 1:] - probability[:, :1]


def looks_at(lab: Lab, tasks: Sequence[WordTask], heads: Sequence[tuple[int, int]]) -> Float[Tensor, "head part"]:
    """Mean attention from the last token to the examples' answers, to their words, and to the word asked for."""
    seen = torch.zeros(len(heads), len(PARTS))
    prompts = [pieces for task in tasks for pieces in pieces_of(lab, task, task.train[:LOOKS])]
    for pieces in prompts:
        texts = ["".join(piece.text for piece in pieces[: n + 1]) for n in range(len(pieces))]
        ends = [len(encode(text, tokenizer=lab.tokenizer).row()) for text in texts]
        read = run(lab.model, texts[-1], read=sorted({f"pattern.{layer}" for layer, _ in heads}))
        rows = torch.stack([read[Site("pattern", layer, head)][0, -1].float().cpu() for layer, head in heads])
        for piece, (begin, end) in zip(pieces, pairwise([0, *ends]), strict=True):
            if piece.kind in PARTS:
                seen[:, PARTS.index(piece.kind)] += rows[:, begin:end].sum(-1)
    return seen / len(prompts)


@dataclass(frozen=True, kw_only=True, eq=False)
class Heads:
    """Which heads matter.

    Attributes:
        effects: of each head, layer by layer, on the answer's probability.
        ranked: all heads by their mean effect, the largest first.
        attention: of the strongest ones, to the `PARTS` of a prompt.
        roles: of the strongest ones.
    """

    effects: Float[Tensor, "prompt head"]
    ranked: Sequence[int]
    attention: Float[Tensor, "strongest part"]
    roles: Sequence[Role]


def find_heads(lab: Lab, tasks: Sequence[WordTask], means: Mapping[str, HeadMeans]) -> Heads:
    """The heads by their effects on training words of all tasks, whether examples bring these out or not."""
    effects = torch.cat([indirect_effects(lab, task, means[task.name]) for task in tasks])
    ranked: list[int] = effects.mean(0).argsort(descending=True, stable=True).tolist()
    strongest = [divmod(n, layout_of(lab.model).num_heads) for n in ranked[:STRONGEST]]
    roles = head_roles(lab.model, strongest, mlps=[], tokenizer=lab.tokenizer).roles
    return Heads(effects=effects, ranked=ranked, attention=looks_at(lab, tasks, strongest), roles=roles)


# --- vectors ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """A vector, as validation words chose it.

    Attributes:
        vector: at one layer.
        coefficient: in lengths of the vector.
        heads: how many of them it sums; 0 for a difference of means.
        curve: with these, for each of the layers tried, which validation words are wholly right.
    """

    vector: SteeringVector
    coefficient: float
    heads: int
    curve: Float[Tensor, "word layer"]


def adding(lab: Lab, vector: SteeringVector, coefficient: float) -> Variant:
    """Adds a vector at the prompt's last token; coefficients count in lengths of the vector."""
    return lambda last: steering.steering_edits(lab.model, vector, coefficient, scale="raw", positions=last)


def choose(lab: Lab, task: WordTask, vectors: Mapping[int, SteeringVector]) -> Found:
    """Vector, coefficient and layer with most validation answers wholly right; among equals the likeliest answers."""
    settings = list(product(vectors, lab.chosen.coefficients, lab.layers))
    variants = [adding(lab, vectors[heads].at(layer), coefficient) for heads, coefficient, layer in settings]
    scores = judge(lab, plain(task.validation), task.validation, variants)
    right, likely = scores.whole[:, 1:], scores.log_prob[:, 1:]
    best = max(range(len(settings)), key=lambda n: (float(right[:, n].mean()), float(likely[:, n].mean())))
    heads, coefficient, layer = settings[best]
    begin = best - best % len(lab.layers)  # from here on, all layers have these heads and this coefficient
    curve = right[:, begin : begin + len(lab.layers)]
    return Found(vector=vectors[heads].at(layer), coefficient=coefficient, heads=heads, curve=curve)


def make_vectors(lab: Lab, task: WordTask, means: HeadMeans, ranked: Sequence[int]) -> dict[str, Found]:
    """Two differences of means, and the sum of what the first heads write: each where validation words say."""
    words, model, layers = task.train[: lab.chosen.train], lab.model, lab.layers
    right, shuffled = (with_examples(lab, task, words, shuffled=wrong) for wrong in (False, True))
    sums = {number: means.written[ranked[:number]].sum(0) for number in lab.chosen.heads}
    kinds = {
        "right − shuffled": {0: steering.steering_vector(model, right, shuffled, layers=layers)},
        "examples − plain": {0: steering.steering_vector(model, right, plain(words), layers=layers)},
        VECTOR: {n: steering.given_vector(model, v.expand(len(layers), -1), layers=layers) for n, v in sums.items()},
    }
    return {kind: choose(lab, task, vectors) for kind, vectors in kinds.items()}


# --- what they do -----------------------------------------------------------------------------------------------------


def controls(lab: Lab, found: Found, means: HeadMeans, ranked: Sequence[int]) -> dict[str, list[Variant]]:
    """In the function vector's place and length: sums of as many other heads, and random directions."""
    generator, others = torch.Generator().manual_seed(lab.chosen.seed), torch.tensor(ranked[found.heads :])
    sums = []
    for _ in range(DRAWS):
        heads = others[torch.randperm(len(others), generator=generator)[: found.heads]]
        written = means.written[heads].sum(0).float().cpu()
        same_length = written / written.norm() * found.vector.direction.norm()
        sums.append(steering.given_vector(lab.model, same_length, layers=found.vector.layers))
    directions = steering.random_vectors(found.vector, DRAWS, seed=lab.chosen.seed)
    kinds = {"random heads": sums, "random directions": directions}
    return {kind: [adding(lab, v, found.coefficient) for v in several] for kind, several in kinds.items()}


def judge_vectors(
    lab: Lab, task: WordTask, found: Mapping[str, Mapping[str, Found]], means: HeadMeans, ranked: Sequence[int]
) -> dict[str, Float[Tensor, "word draw"]]:
    """Which test answers are wholly right with each vector and each control."""
    own, others = found[task.name], [kinds[VECTOR] for name, kinds in found.items() if name != task.name]
    variants = controls(lab, own[VECTOR], means, ranked)
    if others:
        variants["other tasks' vectors"] = [adding(lab, one.vector, one.coefficient) for one in others]
    variants |= {kind: [adding(lab, one.vector, one.coefficient)] for kind, one in own.items()}
    scores = judge(lab, plain(task.test), task.test, [variant for several in variants.values() for variant in several])
    parts = scores.whole[:, 1:].split([len(several) for several in variants.values()], dim=1)
    return dict(zip(variants, parts, strict=True))


@dataclass(frozen=True, kw_only=True, eq=False)
class Judgement:
    """Which test words are wholly right.

    Attributes:
        behaviour: of each task, without vectors.
        right: for each task and kind of help, by word and draw; only controls have several draws.
    """

    behaviour: Mapping[str, Behaviour]
    right: Mapping[str, Mapping[str, Float[Tensor, "word draw"]]]

    @property
    def gaps(self) -> list[str]:
        """The tasks that examples bring out."""
        return [name for name, one in self.behaviour.items() if one.has_gap]

    def more(self, kind: str, other: str, *tasks: str) -> Float[Tensor, " word"]:
        """For all words of some tasks, what one kind of help brings beyond another."""
        return torch.cat([self.right[name][kind].mean(1) - self.right[name][other].mean(1) for name in tasks])

    def recovered(self, kind: str, *tasks: str) -> Estimate:
        """Of what examples bring beyond plain over all words of some tasks, the share that a kind of help brings."""
        return bootstrap_ratio(self.more(kind, "plain", *tasks), self.more("examples", "plain", *tasks))

    def better(self, kind: str, other: str, task: str) -> bool:
        """Whether one kind of help is measurably better than another."""
        return example.above(bootstrap_mean(self.more(kind, other, task)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Forms:
    """A vector in prompts of other forms, and what it does to texts that have nothing to do with the task.

    Attributes:
        by_form: which test words are wholly right, first without it, then with it.
        kl: in nats a token, with the vector at every token of neutral texts.
        random_kl: with random directions of its length.
    """

    by_form: Mapping[str, Float[Tensor, "word 2"]]
    kl: Estimate
    random_kl: Estimate


def other_forms(lab: Lab, task: WordTask, found: Found, neutral: Sequence[str]) -> Forms:
    """What the vector does elsewhere."""
    change = adding(lab, found.vector, found.coefficient)
    by_form = {name: judge(lab, plain(task.test, form), task.test, [change]).whole for name, form in FORMS.items()}
    some = [(FORM.format(word), f" {answer}") for word, answer in task.test[:1]]  # a sweep wants an effect, too
    trials, coefficients = steering.Trials(targets=some, neutral=neutral), [found.coefficient]
    swept = steering.steering_sweep(
        lab.model, found.vector, trials, coefficients=coefficients, scale="raw", positions="all", random=2
    )
    return Forms(by_form=by_form, kl=swept.estimate("kl"), random_kl=swept.random("kl"))


def best_tokens(lab: Lab, text: str, edits: Iterable[Edit], number: int = 1) -> list[str]:
    """The model's best next tokens behind a text."""
    logits = run(lab.model, text, edits=edits, logits="last").logits
    return [str(lab.tokenizer.decode([int(token)])) for token in logits[0, -1].topk(number).indices]


def said_behind(lab: Lab, tasks: Sequence[WordTask], edits: Iterable[Edit]) -> dict[str, str]:
    """The best next token behind a test word of each of the first tasks."""
    words = [task.test[0][0] for task in tasks[:4]]
    return {word: best_tokens(lab, FORM.format(word), edits)[0] for word in words}


# --- all of it --------------------------------------------------------------------------------------------------------


def finite(text: str) -> float:
    """An option that is a finite number."""
    if not math.isfinite(number := float(text)):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return number


def parse(arguments: Sequence[str] | None) -> tuple[argparse.ArgumentParser, Namespace]:
    """The options."""
    parser, count, data = example.options(__doc__), example.count, example.DATA / "elicitation.jsonl"
    parser.add_argument("--data", type=Path, default=data, help="JSON lines: input, output, task")
    parser.add_argument("--task", nargs="+", help="some of its tasks, by name")
    parser.add_argument("--instruction", help="the task in words, for data of your own")
    parser.add_argument("--n", type=count, default=32, help="test words of a task, at most; 2 or more")
    parser.add_argument("--shots", type=count, default=5, help="examples in a prompt; 2 or more")
    parser.add_argument("--train", type=count, default=16, help="prompts that a vector is made of")
    parser.add_argument("--prompts", type=count, default=5, help="prompts of a task in which heads are patched")
    parser.add_argument("--heads", type=count, nargs="+", default=[10, 20], help="numbers of heads to be tried")
    parser.add_argument("--layers", type=int, nargs="+", help="to be tried; some of the middle half by default")
    parser.add_argument("--coefficients", type=finite, nargs="+", default=[1.0, 2.0, 3.0], help="to be tried")
    chosen = parser.parse_args(arguments)
    if min(chosen.n, chosen.shots) == 1:
        parser.error("--n and --shots are 2 or more: one word has no interval, and one answer cannot be shuffled")
    return parser, chosen


def layers_to_try(chosen: Namespace, layout: Layout) -> list[int]:
    """The layers; ends where the model lacks those, or the heads, that were asked for."""
    depth, heads = layout.num_layers, layout.num_layers * layout.num_heads
    layers = sorted(set(chosen.layers or range(depth // 4, 3 * depth // 4 + 1, max(1, depth // 10))))
    if layers[0] < 0 or layers[-1] >= depth:
        sys.exit(f"error: this model has layers 0 to {depth - 1}, but --layers are {', '.join(map(str, layers))}")
    if 2 * max(chosen.heads) > heads:
        sys.exit(f"error: --heads are at most {heads // 2}, half of the model's: as many others are compared with them")
    return layers


def main(arguments: Sequence[str] | None = None) -> Path:
    """Ask the question of a model, and write the page."""
    parser, chosen = parse(arguments)
    page = example.Page(name="elicitation", title=say.TITLE, about=say.ABOUT)
    with example.clear_errors():
        tasks = read_tasks(chosen)
        model, tokenizer = example.load(chosen)
        layers = layers_to_try(chosen, layout_of(model))
        bring_out(page, Lab(model=model, tokenizer=tokenizer, chosen=chosen, layers=layers), tasks)
    return page.write(chosen.output, example.made_with(parser, chosen, model, "elicitation"))


def bring_out(page: example.Page, lab: Lab, tasks: Sequence[WordTask]) -> None:
    """All steps."""
    with page.step("The data", read_tasks, pieces_of):
        say.data(page, tasks)
    with page.step("Does the model do it?", judge, behaviour):
        done = {task.name: behaviour(lab, task) for task in tasks}
        say.behaviour(page, done)
    with page.step("Which heads carry it?", head_means, indirect_effects, looks_at):
        means = {task.name: head_means(lab, task) for task in tasks}
        heads = find_heads(lab, tasks, means)
        say.heads(page, heads, len(tasks))
    with page.step("Which vector, where, and how much?", make_vectors, choose, adding):
        found = {task.name: make_vectors(lab, task, means[task.name], heads.ranked) for task in tasks}
        say.choice(page, found, lab.layers)
    with page.step("Does it bring out the task?", controls, judge_vectors):
        right = {name: {kind: x.whole for kind, x in one.scores.items()} for name, one in done.items()}
        for task in tasks:
            right[task.name] |= judge_vectors(lab, task, found, means[task.name], heads.ranked)
        say.judgement(page, Judgement(behaviour=done, right=right), lab.chosen.shots)
    with page.step("Other prompts, and the price", other_forms):
        neutral = [row["text"] for row in example.read_rows(example.DATA / "neutral.jsonl", "text")]
        say.forms(page, {task.name: other_forms(lab, task, found[task.name][VECTOR], neutral) for task in tasks})
    with page.step("What the vectors say", best_tokens):
        alone = {}
        behind = {"none": said_behind(lab, tasks, [])}
        for name, kinds in found.items():
            one = kinds[VECTOR]
            alone[name] = best_tokens(lab, FORM, [Edit.set("resid_post.-1", one.vector.direction)], 5)
            behind[name] = said_behind(lab, tasks, adding(lab, one.vector, one.coefficient)(-1))
        say.sayings(page, alone, behind)
    say.limits(page)


if __name__ == "__main__":
    main()
