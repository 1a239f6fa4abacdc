"""The command that tells the whole story of one behaviour on one page."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp_toolkit.cli.console import load, model_options, note
from interp_toolkit.errors import InterpError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PAIRS = 16
_ENDINGS = (".html", ".htm")


def add_explain(explain: argparse.ArgumentParser) -> None:
    """Add the options of `explain`."""
    model_options(explain)
    explain.add_argument(
        "--clean", action="append", metavar="TEXT", help="a prompt that shows the behaviour; may be given several times"
    )
    explain.add_argument(
        "--corrupt", action="append", metavar="TEXT", help="its matched prompt that does not; one for each --clean"
    )
    explain.add_argument(
        "--target", action="append", metavar="TOKEN", help="the clean answer; one for all pairs, or one for each"
    )
    explain.add_argument("--foil", action="append", metavar="TOKEN", help="the answer that it is compared with")
    explain.add_argument("--task", metavar="NAME", help="a behaviour that prompts are made for, such as ioi")
    explain.add_argument("-n", type=int, default=_PAIRS, metavar="N", help=f"pairs of a task (default: {_PAIRS})")
    explain.add_argument("--edges", type=int, metavar="N", help="edges of the circuit (default: 0.5%% of all)")
    explain.add_argument("--no-circuit", action="store_true", help="leave out the circuit, which takes longest")
    explain.add_argument(
        "-o", "--output", type=Path, default=Path("report.html"), metavar="PAGE", help="where the page goes"
    )
    explain.set_defaults(command=_explain)


def _explain(arguments: argparse.Namespace) -> None:
    from interp_toolkit.report import explain

    _check(arguments)
    began = time.perf_counter()
    model, tokenizer = load(arguments)
    clean, corrupt, answers = _task(arguments, model, tokenizer) if arguments.task else _given(arguments)
    report = explain(
        model,
        clean,
        corrupt,
        answers,
        edges=arguments.edges,
        circuit=not arguments.no_circuit,
        tokenizer=tokenizer,
        note=note,
    )
    print(report.summary())
    for line in report.notes:
        print(f"Note: {line}")
    print(f"\n{time.perf_counter() - began:.0f} s")
    print(f"The page: {report.save(arguments.output).resolve()}")


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be, before anything is loaded."""
    given = arguments.clean or arguments.corrupt
    if bool(arguments.task) == bool(given):
        raise InterpError("give --clean and --corrupt prompts, or --task, and not both")
    if arguments.task:
        if arguments.target or arguments.foil:
            raise InterpError("--target and --foil are for prompts of your own: a task brings its answers")
        from interp_toolkit.tasks import TASKS

        if arguments.task not in TASKS:
            raise InterpError(f"there is no task {arguments.task!r}; there are {', '.join(TASKS)}")
    else:
        _check_prompts(arguments)
    if arguments.n < 1 or (arguments.edges is not None and arguments.edges < 1):
        raise InterpError("-n and --edges are 1 or more")
    path = arguments.output
    if path.suffix.lower() not in _ENDINGS:
        raise InterpError(f"-o {path}: a report is a page, so its name ends with .html")
    if not path.parent.is_dir():
        raise InterpError(f"-o {path} cannot be written: there is no folder {path.parent}")


def _check_prompts(arguments: argparse.Namespace) -> None:
    clean, corrupt = arguments.clean or [], arguments.corrupt or []
    if len(clean) != len(corrupt):
        raise InterpError(f"{len(clean)} --clean and {len(corrupt)} --corrupt: each prompt needs its match")
    target, foil = arguments.target or [], arguments.foil or []
    for name, answers in (("--target", target), ("--foil", foil)):
        if len(answers) not in (0, 1, len(clean)):
            raise InterpError(f"{len(answers)} {name} for {len(clean)} pairs: give one for all, or one for each")
    if foil and not target:
        raise InterpError("--foil is what a --target is compared with: give that too")


def _given(arguments: argparse.Namespace) -> tuple[list[str], list[str], Any]:
    pairs = len(arguments.clean)
    if not arguments.target:
        return arguments.clean, arguments.corrupt, None
    target, foil = (x if not x or len(x) == pairs else x * pairs for x in (arguments.target, arguments.foil or []))
    answers = list(zip(target, foil, strict=True)) if foil else list(target)
    return arguments.clean, arguments.corrupt, answers


def _task(
    arguments: argparse.Namespace, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Any], list[Any], Any]:
    from interp_toolkit.tasks import TASKS

    task = TASKS[arguments.task](tokenizer, n=arguments.n)
    note(f"trying {len(task)} pairs")
    task = task.filtered(model)
    if not len(task):
        raise InterpError(f"the model does none of {arguments.n} pairs of {arguments.task} right: nothing to explain")
    return list(task.clean), list(task.corrupt), list(zip(task.targets, task.foils, strict=True))


__all__ = ["add_explain"]
