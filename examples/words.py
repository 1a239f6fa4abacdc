"""Words with their answers, prompts with examples of them, and how well a model answers."""

from __future__ import annotations

import random
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import example
from interp_toolkit import Edit
from interp_toolkit.model import Base, Cell, encode, make_plan
from interp_toolkit.statistics import Estimate, bootstrap_mean

FORM = "\n{} ->"
VECTOR = "function vector"  # the kind of help that all others are compared with
Pairs = Sequence[tuple[str, str]]
Variant = Callable[[int], Sequence[Edit]]
"""What is changed, given the position of the last token of a prompt."""


@dataclass(frozen=True, kw_only=True)
class Lab:
    """The model, the options of this run, and the layers at which vectors are tried."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    chosen: Namespace
    layers: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class WordTask:
    """Words with their answers: `train` finds, `validation` chooses, `test` judges; they share no word."""

    name: str
    instruction: str | None
    train: Pairs
    validation: Pairs
    test: Pairs


def read_pairs(path: Path) -> dict[str, dict[str, str]]:
    """The words of each task with their answers."""
    pairs: dict[str, dict[str, str]] = {}
    for row in example.read_rows(path, "input", "output"):
        name, word = row.get("task", path.stem).strip(), row["input"].strip()
        if word in pairs.setdefault(name, {}):
            sys.exit(f"error: in {path} the input {word!r} of {name!r} comes twice")
        pairs[name][word] = row["output"].strip()
    return pairs


def read_tasks(chosen: Namespace) -> list[WordTask]:
    """The tasks of the data, their words drawn into three sets."""
    told = {
        row["task"]: row["instruction"] for row in example.read_rows(example.DATA / "elicitation_instructions.jsonl")
    }
    pairs, least = read_pairs(chosen.data), 3 * (chosen.shots + 2)
    tasks = []
    for name in dict.fromkeys(chosen.task or pairs):
        words = list(pairs.get(name, {}).items())
        if not words:
            sys.exit(f"error: {chosen.data} has no task {name!r}; it has {', '.join(pairs)}")
        if len(words) < least:
            sys.exit(f"error: task {name!r} has {len(words)} pairs; {chosen.shots} examples a prompt need {least}")
        random.Random(f"{chosen.seed} {name}").shuffle(words)
        test = min(chosen.n, 2 * len(words) // 5)
        rest = test + min(16, len(words) // 5)
        task = WordTask(
            name=name,
            instruction=chosen.instruction or told.get(name),
            train=words[rest:],
            validation=words[test:rest],
            test=words[:test],
        )
        tasks.append(task)
    return tasks


# --- prompts ----------------------------------------------------------------------------------------------------------


class Piece(NamedTuple):
    """A part of a prompt: of its form, an example's word or answer, or the word asked for."""

    text: str
    kind: str


def line(word: str, kind: str) -> list[Piece]:
    """A word in its form."""
    begin, arrow = FORM.split("{}")
    return [Piece(begin, "form"), Piece(word, kind), Piece(arrow, "form")]


def pieces_of(lab: Lab, task: WordTask, words: Pairs, *, shuffled: bool = False) -> list[list[Piece]]:
    """Each word behind examples from the training words; shuffled, these have each other's answers."""
    draw, prompts = random.Random(f"{lab.chosen.seed} {task.name}"), []
    for pair in words:
        examples = draw.sample([other for other in task.train if other != pair], lab.chosen.shots)
        answers = [answer for _, answer in examples]
        if shuffled:
            answers = [*answers[1:], *answers[:1]]
        pieces = []
        for (word, _), answer in zip(examples, answers, strict=True):
            pieces += [*line(word, "word"), Piece(f" {answer}", "answer")]
        prompts.append(pieces + line(pair[0], "asked"))
    return prompts


def with_examples(lab: Lab, task: WordTask, words: Pairs, *, shuffled: bool = False) -> list[str]:
    """The same as texts."""
    return ["".join(piece.text for piece in pieces) for pieces in pieces_of(lab, task, words, shuffled=shuffled)]


def plain(words: Pairs, form: str = FORM) -> list[str]:
    """Each word alone."""
    return [form.format(word) for word, _ in words]


# --- answers ----------------------------------------------------------------------------------------------------------


class Asked(NamedTuple):
    """The tokens of a prompt, and those of the answer behind it."""

    prompt: list[int]
    answer: list[int]


def tokens_of(lab: Lab, prompt: str, answer: str) -> Asked:
    """Both as they are when one follows the other."""
    first, whole = (encode(text, tokenizer=lab.tokenizer).row() for text in (prompt, f"{prompt} {answer}"))
    if whole[: len(first)] != first or len(whole) == len(first):
        sys.exit(f"error: the tokens of {prompt!r} change when {answer!r} follows: let FORM end with another sign")
    return Asked(first, whole[len(first) :])


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """How well answers come: without a change first, then with each of the variants.

    Attributes:
        first: whether the answer's first token is the model's best one.
        whole: whether every token of it is the best one behind those before it.
        log_prob: of the whole answer.
    """

    first: Float[Tensor, "word variant"]
    whole: Float[Tensor, "word variant"]
    log_prob: Float[Tensor, "word variant"]


def score(logits: Float[Tensor, "token vocab"], answer: Sequence[int]) -> Float[Tensor, " measure"]:
    """One answer's measures, in the order of `Scores`."""
    logp, ids = logits.float().log_softmax(-1).cpu(), torch.tensor(answer)
    right = logp.argmax(-1) == ids
    return torch.stack([right[0].float(), right.all().float(), logp.gather(-1, ids[:, None]).sum()])


@torch.no_grad()
def judge(lab: Lab, prompts: Sequence[str], words: Pairs, variants: Sequence[Variant] = ()) -> Scores:
    """The scores of each answer behind its prompt. Answers of the same number of tokens run together."""
    asked = [tokens_of(lab, prompt, answer) for prompt, (_, answer) in zip(prompts, words, strict=True)]
    scores = torch.full((len(asked), 1 + len(variants), 3), torch.nan)
    for size in sorted({len(one.answer) for one in asked}):
        rows = [n for n, one in enumerate(asked) if len(one.answer) == size]
        bases = [Base(tokens=encode([[*asked[n].prompt, *asked[n].answer[:-1]]])) for n in rows]
        edits = [tuple(variant(-size)) for variant in variants]
        cells = [Cell(base=base, edits=each) for base in range(len(rows)) for each in edits]
        passes = make_plan(lab.model, bases, cells, logits=slice(-size, None)).run()
        for base, n in enumerate(rows):
            scores[n, 0] = score(passes.base_logits(base), asked[n].answer)
        for some in passes:
            for cell, logits in zip(some.cells, some.logits, strict=True):
                base, number = divmod(cell, len(edits))
                scores[rows[base], 1 + number] = score(logits, asked[rows[base]].answer)
    first, whole, log_prob = scores.unbind(-1)
    return Scores(first=first, whole=whole, log_prob=log_prob)


@dataclass(frozen=True, kw_only=True, eq=False)
class Behaviour:
    """How well the model does a task without vectors.

    Attributes:
        scores: of test words, by kind of prompt.
        least: what is called a gap is at least so large.
    """

    scores: Mapping[str, Scores]
    least: float = 0.2

    def more(self, kind: str, other: str) -> Estimate:
        """How many more answers are wholly right with one kind of prompt than with another."""
        return bootstrap_mean((self.scores[kind].whole - self.scores[other].whole).mean(1))

    @property
    def gap(self) -> Estimate:
        """What examples bring beyond plain."""
        return self.more("examples", "plain")

    @property
    def has_gap(self) -> bool:
        """Whether examples bring out the task."""
        return example.above(self.gap) and float(self.gap.mean) >= self.least

    @property
    def order_matters(self) -> bool:
        """Whether right answers in the examples are measurably better than shuffled ones."""
        return example.above(self.more("examples", "shuffled"))


def behaviour(lab: Lab, task: WordTask) -> Behaviour:
    """Test words plain, with an instruction, and behind examples."""
    prompts = {
        "plain": plain(task.test),
        "examples": with_examples(lab, task, task.test),
        "shuffled": with_examples(lab, task, task.test, shuffled=True),
    }
    if task.instruction:
        prompts["instruction"] = [task.instruction + prompt for prompt in prompts["plain"]]
    return Behaviour(scores={kind: judge(lab, texts, task.test) for kind, texts in prompts.items()})
