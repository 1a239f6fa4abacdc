"""The command that steers at several layers and strengths, and measures what that does and what it costs."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp_toolkit.cli.console import load, model_options, note, table
from interp_toolkit.cli.directions import (
    Texts,
    check_source,
    check_vector,
    coefficients_of,
    direction_source,
    layers_of,
    listed,
    numbered_lines,
    operation_options,
    parsed_layers,
    source_options,
    text_lines,
    vector_of,
)
from interp_toolkit.errors import InterpError, SteeringError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from interp_toolkit.steering import Question, SteeringSweep, SteeringVector, Trials
    from interp_toolkit.visualization import Document

_USUAL = (-0.4, -0.2, -0.1, 0.1, 0.2, 0.4)
_FORMATS = """\
files:
  --questions and --judge hold one JSON object on each line, either a prompt and two next tokens,
    {"prompt": "Her cooking is", "matching": " good", "other": " bad"}
  or a question and two answers of any length, which is asked twice with the letters A and B swapped,
    {"question": "How was it?", "matching": "I liked it.", "other": "I did not."}
  --targets holds prompts with a text that steering should make likelier,
    {"prompt": "The film was", "target": " a delight from beginning to end."}
  --positive, --negative and --neutral hold one text on each line. Empty lines do not count.
"""
_FIELDS = {"--targets": ("prompt", "target")}


def add_steer_sweep(sweep: argparse.ArgumentParser) -> None:
    """Add the options of `steer-sweep`."""
    sweep.formatter_class = argparse.RawDescriptionHelpFormatter
    sweep.epilog = _FORMATS
    model_options(sweep)
    source_options(sweep)
    tried = sweep.add_argument_group("what it is tried on")
    tried.add_argument("--questions", type=Path, metavar="FILE", help="prompts with two answers, as JSON lines")
    tried.add_argument("--targets", type=Path, metavar="FILE", help="prompts with a text to follow, as JSON lines")
    tried.add_argument("--neutral", type=Path, metavar="FILE", help="texts that should not change, one on each line")
    tried.add_argument("--instruction", metavar="TEXT", help="what a plain prompt would say, to compare with")
    tried.add_argument(
        "--judge", type=Path, metavar="FILE", help="questions that were kept back, to judge the best setting on"
    )
    operation_options(
        sweep,
        positions=["all", "prompt", "predicting"],
        layers="those at a quarter, half and three quarters of the depth",
        usual=" ".join(f"{c:g}" for c in _USUAL),
    )
    sweep.add_argument(
        "--random", type=int, default=4, metavar="N", help="random directions to compare with (default: 4)"
    )
    sweep.add_argument(
        "--max-kl",
        type=float,
        default=0.1,
        metavar="X",
        help="the best setting changes neutral texts by at most so many nats a token (default: 0.1)",
    )
    sweep.add_argument("--seed", type=int, default=0, metavar="N", help="of random directions (default: 0)")
    sweep.add_argument("-o", "--output", type=Path, metavar="PAGE", help="an HTML page to write")
    sweep.set_defaults(command=_sweep, chat=False)


def _sweep(arguments: argparse.Namespace) -> None:
    _check(arguments)
    coefficients = coefficients_of(arguments, _USUAL)
    layers = None if arguments.layers is None else parsed_layers(arguments.layers)
    source = direction_source(arguments)
    if not isinstance(source, Texts):
        check_vector(arguments, source, layers_of(arguments, layers, source.num_layers))
    tried = _Tried.read(arguments)
    began = time.perf_counter()
    model, tokenizer = load(arguments)
    tried.check(model, tokenizer)
    number = int(model.config.get_text_config().num_hidden_layers)
    usual = sorted({number // 4, number // 2, 3 * number // 4})
    chosen = usual if layers is None and isinstance(source, Texts) else layers_of(arguments, layers, number)
    vector = vector_of(arguments, source, chosen, model, tokenizer)
    note("steering")
    settings: dict[str, Any] = {
        "operation": arguments.operation,
        "positions": arguments.positions,
        "scale": arguments.scale,
        "random": arguments.random,
        "seed": arguments.seed,
        "tokenizer": tokenizer,
    }
    _Swept(arguments, vector, tried, settings, chosen).run(model, coefficients, began)


@dataclass(frozen=True)
class _Swept:
    """A sweep with all that it needs, and what is said of it."""

    arguments: argparse.Namespace
    vector: SteeringVector
    tried: _Tried
    settings: dict[str, Any]
    layers: list[int] | None

    def run(self, model: PreTrainedModel, coefficients: Sequence[float], began: float) -> None:
        """Sweep, judge, and show both."""
        from interp_toolkit.steering import steering_sweep

        arguments, trials = self.arguments, self.tried.trials()
        found = steering_sweep(
            model, self.vector, trials, layers=self.layers, coefficients=coefficients, **self.settings
        )
        limit = arguments.max_kl if trials.neutral else None
        words = found.summary(max_kl=limit)
        best = found.best(max_kl=limit) if limit is None or _within(found, limit) else None
        tables = _tables(found)
        print(self.vector.summary() + "\n\n" + words)
        for title, headers, rows in tables:
            print(f"\n{title}\n{table(headers, rows)}")
        if self.tried.judge and best is not None:
            kept = replace(trials, questions=[q for _, q in self.tried.judge], targets=(), neutral=())
            settings = {**self.settings, "layers": best.layer, "coefficients": [best.coefficient]}
            judged = _judged(steering_sweep(model, self.vector, kept, **settings))
            words += f"\n{judged}"
            print(f"\n{judged}")
        print(f"\n{time.perf_counter() - began:.0f} s")
        if arguments.output:
            print(f"The page: {self._page(found, words, tables).save(arguments.output).resolve()}")
        if arguments.save and best is None:
            raise SteeringError(f"nothing was saved to {arguments.save}: {words.splitlines()[-1]}")
        if arguments.save and best is not None:
            known = f"best of a sweep: {best.coefficient:g} ({arguments.operation}), for {best.measure}"
            vector = self.vector if len(self.vector.layers) == 1 else self.vector.at(best.layer)
            vector = replace(vector, notes="; ".join(text for text in (vector.notes, known) if text))
            print(f"The vector of layer {best.layer}: {vector.save(arguments.save).resolve()}")

    def _page(self, found: SteeringSweep, words: str, tables: Sequence[_Table]) -> Document:
        from interp_toolkit.visualization.document import Document, Paragraph, Table

        lines = [*words.splitlines(), *self.vector.summary().splitlines()]
        views = [found.plot(name) for name in ("logit_diff", "log_prob", "kl") if name in found.measures]
        return Document(
            title=f"Steering {self.arguments.model}: layers and strengths",
            parts=(
                *(Paragraph(line) for line in lines),
                *views,
                *(Table(title=title, headers=headers, rows=rows) for title, headers, rows in tables),
            ),
        )


_Table = tuple[str, list[str], list[list[str]]]


def _tables(found: SteeringSweep) -> list[_Table]:
    """Layers by coefficients: effects, those of random directions, and the KL on neutral texts."""
    names = {"logit_diff": "logit difference", "log_prob": "mean log-probability of targets"}
    headers = ["layer", *(f"{c:+g}" for c in found.coefficients)]
    shown: list[tuple[str, Any, str]] = []
    for name, words in names.items():
        if name not in found.measures:
            continue
        shown.append((f"Change of the {words}", found.estimate(name).mean, "+.2f"))
        if number := len(found.names) - 1:
            of = f"{number} random direction{'s' * (number > 1)}"
            shown.append((f"The same by {of} of that length", found.random(name).mean, "+.2f"))
    if "kl" in found.measures:
        shown.append(("KL on neutral texts, in nats", found.estimate("kl").mean, ".3f"))
    return [
        (
            title,
            headers,
            [
                [str(layer), *(format(x, form) for x in line)]
                for layer, line in zip(found.layers, values.tolist(), strict=True)
            ],
        )
        for title, values, form in shown
    ]


def _within(found: SteeringSweep, limit: float) -> bool:
    return bool((found.values["kl"][:, 0].mean(0) <= limit).any())


def _judged(found: SteeringSweep) -> str:
    """What the chosen setting does to questions that it was not chosen on."""
    changes = {"": found.estimate()}
    if len(found.names) > 1:
        changes["beyond random directions "] = found.beyond_random()
    if found.prompted:
        changes["the plain instruction "] = found.prompting()
    said = [
        f"{name}{float(e.mean.squeeze()):+.2f} [{float(e.low.squeeze()):.2f}, {float(e.high.squeeze()):.2f}]"
        for name, e in changes.items()
    ]
    number, layer, coefficient = len(found.before["logit_diff"]), found.layers[0], found.coefficients[0]
    return f"On {number} questions that were kept back, layer {layer}, {coefficient:g}: {', '.join(said)}."


# --- what was asked for -------------------------------------------------------------------------------------------


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be, before anything is read or loaded."""
    if arguments.questions is None and arguments.targets is None:
        raise SteeringError("there is nothing to measure an effect on: give --questions or --targets")
    if arguments.instruction is not None and not arguments.instruction.strip():
        raise SteeringError("--instruction is empty: give a sentence that asks for what steering should do")
    if arguments.judge is not None and arguments.questions is None:
        raise SteeringError("--judge holds questions that were kept back: give --questions to choose on")
    if arguments.judge is not None and arguments.judge.resolve() == arguments.questions.resolve():
        raise SteeringError("--judge and --questions are the same file: what is chosen on it is not judged by it")
    if arguments.random < 0:
        raise SteeringError(f"--random is 0 or more, not {arguments.random}")
    if not (math.isfinite(arguments.max_kl) and arguments.max_kl > 0):
        raise SteeringError(f"--max-kl is a number above 0, not {arguments.max_kl:g}")
    check_source(arguments, [arguments.questions, arguments.targets, arguments.neutral, arguments.judge])


@dataclass(frozen=True, kw_only=True)
class _Tried:
    """What is tried, each with where it stands."""

    questions: list[tuple[str, Question]]
    targets: list[tuple[str, tuple[str, str]]]
    judge: list[tuple[str, Question]]
    neutral: list[str]
    instruction: str | None

    @classmethod
    def read(cls, arguments: argparse.Namespace) -> _Tried:
        """Read the files."""
        targets = _objects("--targets", arguments.targets)
        neutral = arguments.neutral
        return cls(
            questions=_questions("--questions", arguments.questions),
            targets=[(place, (fact["prompt"], fact["target"])) for place, fact in targets],
            judge=_questions("--judge", arguments.judge),
            neutral=[] if neutral is None else text_lines("--neutral", neutral, "leave it out to measure no cost"),
            instruction=arguments.instruction,
        )

    def trials(self) -> Trials:
        """The same for the library."""
        from interp_toolkit.steering import Trials

        instruction = self.instruction
        if instruction is not None and not instruction[-1].isspace():
            instruction += " "  # it stands in front of prompts
        return Trials(
            questions=[question for _, question in self.questions],
            targets=[target for _, target in self.targets],
            neutral=self.neutral,
            instruction=instruction,
        )

    def check(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse what the model's tokens do not allow, and say where it stands.

        Raises:
            SteeringError: for the first of them.
        """
        from interp_toolkit.steering import Trials
        from interp_toolkit.steering.trials import prepare

        alone = [(place, Trials(questions=[question])) for place, question in (*self.questions, *self.judge)]
        alone += [(place, Trials(targets=[target])) for place, target in self.targets]
        for place, trials in alone:
            try:
                prepare(model, trials, tokenizer)
            except InterpError as error:
                raise SteeringError(f"{place}: {error}") from error


def _questions(option: str, path: Path | None) -> list[tuple[str, Question]]:
    """Questions with where they stand; those with answers of any length are there twice."""
    from interp_toolkit.steering import Question, ab_questions

    found: list[tuple[str, Question]] = []
    for place, fact in _objects(option, path):
        if "prompt" in fact:
            asked = [Question(prompt=fact["prompt"], matching=fact["matching"], other=fact["other"])]
        else:
            both = ab_questions([(fact["question"], fact["matching"], fact["other"])])
            asked = [replace(question, group=place) for question in both]
        found += [(place, question) for question in asked]
    return found


def _objects(option: str, path: Path | None) -> list[tuple[str, dict[str, str]]]:
    """The objects of a file of JSON lines, with where they stand.

    Raises:
        SteeringError: for a line that is none, or lacks something, with its number.
    """
    found: list[tuple[str, dict[str, str]]] = []
    if path is None:
        return found
    for number, line in numbered_lines(option, path, "give one JSON object on each line"):
        place = f"{option} {path} line {number}"
        try:
            fact = json.loads(line)
        except ValueError as error:
            raise SteeringError(f"{place} is not JSON: {error}") from error
        if not isinstance(fact, dict):
            raise SteeringError(f'{place} is no JSON object such as {{"prompt": ...}}, but {line.strip()[:40]}')
        first = "question" if "question" in fact and "prompt" not in fact else "prompt"
        fields = _FIELDS.get(option, (first, "matching", "other"))
        if missing := [name for name in fields if name not in fact]:
            instead = ' (or "question")' if missing[0] == "prompt" and option != "--targets" else ""
            raise SteeringError(f'{place} lacks "{missing[0]}"{instead}: it has {listed(list(fact)) or "nothing"}')
        if unknown := [name for name in fact if name not in fields]:
            raise SteeringError(f'{place} has "{unknown[0]}", which is not one of {listed(fields)}')
        if wrong := [name for name in fields if not isinstance(fact[name], str) or not fact[name]]:
            raise SteeringError(f'{place}: "{wrong[0]}" is a text, not {fact[wrong[0]]!r}')
        found.append((place, fact))
    return found


__all__ = ["add_steer_sweep"]
