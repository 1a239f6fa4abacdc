"""The command that finds the circuit of a behaviour and judges it."""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp_toolkit.cli.console import load, model_options, note, table
from interp_toolkit.errors import AlignmentError, CircuitError, InterpWarning

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from interp_toolkit.circuits import Circuit
    from interp_toolkit.circuits.curves import FaithfulnessCurve
    from interp_toolkit.circuits.finder import CircuitFinder, Found
    from interp_toolkit.visualization.document import Document

_FEWEST = 4  # pairs that a circuit is found and judged on
_PRINTED = 15  # strongest edges
_PAIRS = 48
_EDGES = ("from", "to", "score")


@dataclass(frozen=True, kw_only=True)
class _Prompts:
    """What a circuit is found on."""

    name: str
    clean: list[Any]
    corrupt: list[Any]
    answers: list[Any] | None
    metric: str


def add_circuit(circuit: argparse.ArgumentParser) -> None:
    """Add the options of `circuit`."""
    model_options(circuit)
    what = circuit.add_mutually_exclusive_group(required=True)
    what.add_argument("--task", metavar="NAME", help="a behaviour that prompts are made for, such as ioi")
    what.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="a .jsonl, .csv or .tsv file with clean and corrupt, and if known answer and foil",
    )
    circuit.add_argument("-n", type=int, metavar="N", help=f"how many pairs of a task are made (default: {_PAIRS})")
    circuit.add_argument("--all", action="store_true", help="keep pairs of a task that the model does not do right")
    circuit.add_argument("--method", default="eap-ig", metavar="NAME", help="how edges are scored (default: eap-ig)")
    circuit.add_argument(
        "--threshold",
        type=float,
        default=0.1,
        metavar="X",
        help="the smallest circuit whose faithfulness is this near to 1 is kept (default: 0.1)",
    )
    circuit.add_argument("--edges", type=int, metavar="N", help="how many edges to choose, in place of the threshold")
    circuit.add_argument("--metric", metavar="NAME", help="what is measured (default: the task's own, or logit_diff)")
    circuit.add_argument(
        "--ablation",
        choices=["corrupt", "mean", "positional", "zero"],
        default="corrupt",
        help="what stands for an edge that is left out (default: corrupt)",
    )
    circuit.add_argument(
        "--steps", type=int, default=5, metavar="N", help="points along the line, for methods with one (default: 5)"
    )
    circuit.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the prompts, the split and random circuits (default: 0)"
    )
    circuit.add_argument("--no-roles", action="store_true", help="do not test heads and MLPs for roles")
    circuit.add_argument("--no-curve", action="store_true", help="do not measure faithfulness at other sizes")
    circuit.add_argument("-o", "--output", type=Path, metavar="FILE", help="a JSON file for the circuit")
    circuit.add_argument("--page", type=Path, metavar="PAGE", help="an HTML page to write")
    circuit.add_argument("--scores", type=Path, metavar="FILE", help="a safetensors file for the scores of all edges")
    circuit.set_defaults(command=_circuit)


def _circuit(arguments: argparse.Namespace) -> None:
    from interp_toolkit.circuits.finder import CircuitFinder

    _check(arguments)  # what is cheap to check comes before what takes long
    rows = None if arguments.prompts is None else _read(arguments.prompts)
    began = time.perf_counter()
    model, tokenizer = load(arguments)
    prompts = _made(arguments, model, tokenizer) if rows is None else _own(arguments, rows)
    finder = CircuitFinder(
        model,
        arguments.threshold,
        arguments.method,
        edges=arguments.edges,
        steps=arguments.steps,
        ablation=arguments.ablation,
        roles=not arguments.no_roles,
        seed=arguments.seed,
        tokenizer=tokenizer,
    )
    note(f"looking for the circuit of {len(prompts.clean)} pairs")
    circuit, found = _found(finder, prompts)
    _print_circuit(circuit, found)
    curve = None if arguments.no_curve else _measured(found, arguments.seed)
    if curve is not None:
        print("\n" + table(*_curve_table(curve)))
        print("\n" + "\n".join(_areas(curve)))
    print(f"\n{time.perf_counter() - began:.0f} s")
    if arguments.output:
        print(f"The circuit: {circuit.save(arguments.output).resolve()}")
    if arguments.scores:
        print(f"Scores of all edges: {found.scores.save(arguments.scores).resolve()}")
    if arguments.page:
        title = f"Circuit of {prompts.name} in {arguments.model}"
        print(f"The page: {_page(title, circuit, found, curve).save(arguments.page).resolve()}")


def _found(finder: CircuitFinder, prompts: _Prompts) -> tuple[Circuit, Found]:
    """The circuit and how it was found; what is wrong with prompts is said in one line."""
    try:
        circuit = finder.find_circuit(
            prompts.clean, prompts.corrupt, prompts.metric, prompts.answers, progress=sys.stderr.isatty()
        )
    except AlignmentError as error:  # with a table of the tokens between its first line and its last
        first, *rest = str(error).splitlines()
        raise AlignmentError("; ".join([first.rstrip(":"), *rest[-1:]])) from error
    if finder.found_ is None:
        raise CircuitError("the search gave no result")
    return circuit, finder.found_


# --- what was asked for -------------------------------------------------------------------------------------------


def _check(arguments: argparse.Namespace) -> None:
    """Refuse names that nothing has, numbers that cannot be, and files that cannot be written."""
    from interp_toolkit.circuits.finder import METHODS
    from interp_toolkit.circuits.metrics import METRICS
    from interp_toolkit.tasks import TASKS

    _known("task", arguments.task, TASKS)
    _known("method", arguments.method, METHODS)
    _known("metric", arguments.metric, METRICS)
    if arguments.prompts is not None and (arguments.n is not None or arguments.all):
        raise CircuitError(f"{'--all' if arguments.n is None else '-n'} is for --task: all rows of --prompts are taken")
    if arguments.n is not None and arguments.n < _FEWEST:
        raise CircuitError(f"-n is {_FEWEST} or more, not {arguments.n}: a circuit is judged on pairs of its own")
    if not 0 < arguments.threshold < 1:
        raise CircuitError(f"--threshold is between 0 and 1, such as 0.1, not {arguments.threshold:g}")
    for option, least in (("edges", 1), ("steps", 1), ("seed", 0)):
        number = getattr(arguments, option)
        if number is not None and number < least:
            raise CircuitError(f"--{option} is {least} or more, not {number}")
    _check_files(arguments)


def _check_files(arguments: argparse.Namespace) -> None:
    taken = {} if arguments.prompts is None else {arguments.prompts.resolve(): "--prompts"}
    for option, path in (("-o", arguments.output), ("--page", arguments.page), ("--scores", arguments.scores)):
        if path is None:
            continue
        if not path.parent.is_dir():
            raise CircuitError(f"{option} {path} cannot be written: there is no folder {path.parent}")
        if path.is_dir():
            raise CircuitError(f"{option} {path} cannot be written: it is a folder, give the name of a file in it")
        if path.resolve() in taken:
            raise CircuitError(f"{option} {path} is also the file of {taken[path.resolve()]}: give it another name")
        taken[path.resolve()] = option


def _known(what: str, name: str | None, names: Iterable[str]) -> None:
    known = list(names)
    if name is not None and name not in known:
        near = get_close_matches(name.lower(), known, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise CircuitError(f"--{what}: there is no {what} {name!r}{hint}; there are {', '.join(known)}")


def _made(arguments: argparse.Namespace, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> _Prompts:
    """Prompts of a task, without those that the model does not do right."""
    from interp_toolkit.tasks import TASKS

    task = TASKS[arguments.task](tokenizer, n=arguments.n or _PAIRS, seed=arguments.seed)
    if not arguments.all:
        note(f"trying {len(task)} pairs")
        task = task.filtered(model)
        if task.dropped:
            told = f"the model does {len(task)} of {len(task) + task.dropped} pairs right; only these are kept"
            print(f"interp-toolkit: {told} (--all keeps every pair)", file=sys.stderr)
    if len(task) < _FEWEST:
        more = "ask for more with -n" + ("" if arguments.all else ", or keep every pair with --all")
        raise CircuitError(f"{len(task)} pairs of {task.name} are too few to find and judge a circuit: {more}")
    return _Prompts(
        name=task.name,
        clean=list(task.clean),
        corrupt=list(task.corrupt),
        answers=list(zip(task.targets, task.foils, strict=True)),
        metric=arguments.metric or task.metric,
    )


def _own(arguments: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> _Prompts:
    """Prompts of a file."""
    return _Prompts(
        name=arguments.prompts.name,
        clean=[row["clean"] for row in rows],
        corrupt=[row["corrupt"] for row in rows],
        answers=_answers(arguments.prompts, rows),
        metric=arguments.metric or "logit_diff",
    )


def _answers(path: Path, rows: Sequence[dict[str, Any]]) -> list[Any] | None:
    """For each row (answer, foil), or the answer alone where no row has a foil; None where no row has any."""
    has = {column: [row.get(column) not in (None, "", []) for row in rows] for column in ("answer", "foil")}
    for column, there in has.items():
        if any(there) and not all(there):
            raise CircuitError(f"{path}: row {there.index(False) + 1} has no {column}, but other rows have one")
    if has["foil"][0] and not has["answer"][0]:
        raise CircuitError(f"{path}: there is a foil, but no answer that it is compared with")
    if not has["answer"][0]:
        return None
    if not has["foil"][0]:
        return [row["answer"] for row in rows]
    return [tuple(tuple(x) if isinstance(x, list) else x for x in (row["answer"], row["foil"])) for row in rows]


# --- files of prompts ---------------------------------------------------------------------------------------------


def _read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of prompts."""
    kind = path.suffix.lower()
    if kind not in (".jsonl", ".ndjson", ".csv", ".tsv"):
        raise CircuitError(f"--prompts {path} is no .jsonl, .csv or .tsv file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise CircuitError(f"--prompts {path} cannot be read: {reason}") from error
    rows = _lines(path, text) if kind in (".jsonl", ".ndjson") else _cells(path, text, "\t" if kind == ".tsv" else ",")
    for number, row in enumerate(rows, 1):
        _check_row(path, number, row)
    if len(rows) < _FEWEST:
        raise CircuitError(f"{path}: {len(rows)} pairs are too few to find and judge a circuit: give {_FEWEST} or more")
    return rows


def _lines(path: Path, text: str) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CircuitError(f"{path}: line {number} is no JSON ({error})") from error
        if not isinstance(row, dict):
            raise CircuitError(f"{path}: line {number} is no JSON object with clean and corrupt")
        rows.append(row)
    return rows


def _cells(path: Path, text: str, separator: str) -> list[dict[str, Any]]:
    try:
        lines = [line for line in csv.reader(text.splitlines(keepends=True), delimiter=separator) if any(line)]
    except csv.Error as error:
        raise CircuitError(f"--prompts {path} cannot be read: {error}") from error
    header, *rest = lines or [[]]
    for number, line in enumerate(rest, 1):
        if len(line) != len(header):
            raise CircuitError(
                f"{path}: row {number} has {len(line)} cells, but there are {len(header)} columns; text with a "
                "separator in it stands in double quotes"
            )
    if rest or not header:
        return [dict(zip(header, line, strict=True)) for line in rest]
    _check_columns(path, 1, header)
    return []


def _check_row(path: Path, number: int, row: dict[str, Any]) -> None:
    _check_columns(path, number, row)
    for column in ("clean", "corrupt"):
        if not isinstance(row[column], str) or not row[column]:
            raise CircuitError(f"{path}: {column} of row {number} is a text, not {row[column]!r}")
    for column in ("answer", "foil"):
        given = row.get(column)
        parts = given if isinstance(given, list) else [given]
        if any(isinstance(x, bool) or not isinstance(x, str | int | None) for x in parts):
            raise CircuitError(f"{path}: {column} of row {number} is a text, a token id or a list, not {given!r}")


def _check_columns(path: Path, number: int, columns: Iterable[str]) -> None:
    there = list(columns)
    missing = [name for name in ("clean", "corrupt") if name not in there]
    if missing:
        raise CircuitError(
            f"{path}: row {number} has no {' and no '.join(missing)}; the columns are "
            f"{', '.join(map(repr, there)) or 'none'}, needed are clean and corrupt, and if known answer and foil"
        )


# --- what was found -----------------------------------------------------------------------------------------------


def _print_circuit(circuit: Circuit, found: Found) -> None:
    print(circuit.summary())
    shown = _edge_rows(circuit, _PRINTED)
    print(f"\nThe {len(shown)} strongest edges; a positive score helps the clean answer")
    print(table(_EDGES, shown))
    print("\n" + "\n".join(_judged(found)))


def _edge_rows(circuit: Circuit, number: int) -> list[tuple[str, str, str]]:
    edges = circuit.edges[:number]
    return [(edge.source, edge.dest, "–" if edge.score is None else f"{edge.score:+.4g}") for edge in edges]


def _judged(found: Found) -> list[str]:
    """How faithful the circuit is, in words."""
    verdict = found.verdict
    prompts = len(found.evaluation)
    apart = "that it was not found on" if not set(found.discovery) & set(found.evaluation) else "that it was found on"
    lines = [
        f"Faithfulness: {verdict.faithfulness} on {prompts} prompts {apart}; 1 does what the model does",
        f"Without the circuit: {verdict.completeness}; 0 means that nothing else carries the behaviour",
    ]
    if len(verdict.random):
        lines.append(f"Random circuits of the same size: {verdict.random_faithfulness}")
    return lines


def _measured(found: Found, seed: int) -> FaithfulnessCurve:
    """The curve over the prompts that the circuit was judged on."""
    from interp_toolkit.circuits.curves import curve

    note("measuring circuits of other sizes")
    with warnings.catch_warnings():
        # The same prompts were warned of when the circuit was judged; that they are shared is among its caveats.
        warnings.simplefilter("ignore", InterpWarning)
        return curve(found.runs, found.scores, pairs=found.evaluation, seed=seed)


def _curve_table(curve: FaithfulnessCurve) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    both = curve.faithfulness("absolute"), curve.faithfulness("signed"), curve.random_faithfulness()
    rows = [
        (f"{100 * size:g}%", str(edges), *(f"{f.value:z.3f}" for f in at))
        for size, edges, *at in zip(curve.sizes, curve.edges, *both, strict=True)
    ]
    return ("size", "edges", "f by |score|", "f signed", "random"), rows


def _areas(curve: FaithfulnessCurve) -> list[str]:
    return [
        f"CPR {curve.cpr}, more is better; random {curve.random_cpr:z.3f}",
        f"CMD {curve.cmd}, 0 is best; random {curve.random_cmd:z.3f}",
    ]


# --- the page -----------------------------------------------------------------------------------------------------


def _page(title: str, circuit: Circuit, found: Found, curve: FaithfulnessCurve | None) -> Document:
    """The circuit as a page that needs nothing else."""
    from interp_toolkit.visualization.circuits import plot_circuit
    from interp_toolkit.visualization.document import Document, Paragraph, Part, Table
    from interp_toolkit.visualization.sweeps import plot_faithfulness

    parts: list[Part] = [Paragraph(line) for line in (*circuit.summary().split("\n"), *_judged(found)) if line]
    parts.append(plot_circuit(circuit, curve=curve, title="The circuit"))
    if circuit.roles:
        roles = [
            (r.node, r.name, f"{r.score:.2f}", r.test, ", ".join(f"{name} {score:.2f}" for name, score in r.others))
            for r in circuit.roles
        ]
        parts.append(Table(title="Roles", headers=("node", "role", "score", "test", "also"), rows=roles))
    if curve is not None:
        headers, values = _curve_table(curve)
        parts.append(plot_faithfulness(curve))
        parts.append(Table(title="Faithfulness f of circuits of the best edges", headers=headers, rows=values))
        parts += [Paragraph(line) for line in _areas(curve)]
    return Document(title=title, parts=tuple(parts))


__all__ = ["add_circuit"]
