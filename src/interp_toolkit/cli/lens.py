"""The command that reads what a model would say at each depth, or who wrote what it says."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp_toolkit.cli.console import load, model_options, note, table
from interp_toolkit.errors import InterpError, LensError

if TYPE_CHECKING:
    from interp_toolkit.lenses import LensResult, LogitAttribution
    from interp_toolkit.visualization import Document

_TOP = {"logit": 3, "attribution": 15}
_BY: dict[str, Any] = {"sublayer": "sublayer", "head": "head", "neuron": "neuron", "source": "source token"}
_PICTURES = (".html", ".svg", ".png", ".pdf")


def add_lens(lens: argparse.ArgumentParser) -> None:
    """Add the options of `lens`."""
    model_options(lens)
    lens.add_argument("text", metavar="TEXT", help="the prompt")
    lens.add_argument("--target", metavar="TOKEN", help="a next token whose logit is followed, such as Paris")
    lens.add_argument("--foil", metavar="TOKEN", help="the token that it is compared with")
    lens.add_argument(
        "--kind",
        choices=list(_TOP),
        default="logit",
        help="what the model would say at each depth (default), or the parts that its logit is the sum of",
    )
    lens.add_argument("--by", choices=list(_BY), help="how finely the logit is parted (default: head)")
    lens.add_argument("--top", type=int, metavar="N", help="tokens of each depth (default: 3), or parts (default: 15)")
    lens.add_argument(
        "--position", type=int, default=-1, metavar="N", help="which token; negative counts from the end (default: -1)"
    )
    lens.add_argument("-o", "--output", type=Path, metavar="PAGE", help="a page, or a picture: .html, .svg, .png, .pdf")
    lens.set_defaults(command=_lens)


def _lens(arguments: argparse.Namespace) -> None:
    _check(arguments)
    (_depths if arguments.kind == "logit" else _parts)(arguments)


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be, before anything is loaded."""
    check_text(arguments.text)
    for option in ("target", "foil"):
        given = getattr(arguments, option)
        if given is not None and not given.strip():
            raise LensError(f"--{option} is empty: give a token, such as Paris")
    if arguments.foil is not None and arguments.target is None:
        raise LensError("--foil is what a --target is compared with: give that too")
    if arguments.foil is not None and arguments.foil.strip() == arguments.target.strip():
        raise LensError(f"--target and --foil are both {arguments.target!r}: nothing is compared")
    if arguments.by is not None and arguments.kind == "logit":
        raise LensError("--by says how a logit is parted: give --kind attribution")
    if arguments.top is not None and arguments.top < 1:
        raise LensError(f"--top is 1 or more, not {arguments.top}")
    check_written({"-o": arguments.output}, {"-o": _PICTURES})
    if arguments.output and arguments.output.suffix.lower() in (".png", ".pdf") and find_spec("matplotlib") is None:
        raise LensError(f"-o {arguments.output} needs matplotlib, which is not installed: give .html or .svg")


def _depths(arguments: argparse.Namespace) -> None:
    from interp_toolkit.lenses import logit_lens

    model, tokenizer = load(arguments)
    top = arguments.top or _TOP["logit"]
    asked: dict[str, Any] = {"answers": _answers(arguments), "top": top, "tokenizer": tokenizer}
    found = logit_lens(model, arguments.text, positions=arguments.position, **asked)
    headers, rows = _depth_table(found)
    print(table(headers, rows))
    print("\n" + found.summary())
    if not arguments.output:
        return
    note("reading every position")
    view = logit_lens(model, arguments.text, **asked).plot()
    if arguments.output.suffix.lower() != ".html":
        saved = view.save(arguments.output)
    else:
        saved = _page(arguments.text, found, headers, rows, view).save(arguments.output)
    print(f"\nThe page: {saved.resolve()}")


def _parts(arguments: argparse.Namespace) -> None:
    from interp_toolkit.lenses import direct_logit_attribution

    model, tokenizer = load(arguments)
    found = direct_logit_attribution(
        model,
        arguments.text,
        _answers(arguments),
        by=_BY[arguments.by or "head"],
        positions=arguments.position,
        tokenizer=tokenizer,
    )
    print(table(["part", "kind", "gives"], _part_rows(found, arguments.top or _TOP["attribution"])))
    print("\n" + found.summary())
    if arguments.output:
        whole = arguments.output.suffix.lower() == ".html"
        saved = (found.page() if whole else found.plot()).save(arguments.output)
        print(f"\nThe page: {saved.resolve()}")


def _answers(arguments: argparse.Namespace) -> Any:
    return arguments.target if arguments.foil is None else (arguments.target, arguments.foil)


def _depth_table(found: LensResult) -> tuple[list[str], list[list[str]]]:
    """A row for each depth, at the only position that was asked for."""
    headers = ["depth", "best", "p", "then", "KL to the end"]
    if found.difference is not None:
        headers += [" − ".join(map(repr, found.answers)) if len(found.answers) > 1 else f"log p({found.answers[0]!r})"]
        headers += ["rank"]
    rows = []
    for n, depth in enumerate(found.depths):
        best, *others = found.top_tokens[n][0]
        row = [depth, repr(best), f"{float(found.top_probabilities[n, 0, 0]):.3f}", " ".join(map(repr, others))]
        row += [f"{float(found.kl[n, 0]):z.3f}"]
        if found.difference is not None and found.rank is not None:
            row += [f"{float(found.difference[n, 0]):z.2f}", str(int(found.rank[n, 0]))]
        rows.append(row)
    return headers, rows


def _part_rows(found: LogitAttribution, top: int) -> list[tuple[str, str, str]]:
    """The strongest parts and the rest, which sum to the logit."""
    values, order = found.values[-1], found.order()
    rows = [(found.names[n], found.parts[n].kind, f"{float(values[n]):+.4f}") for n in order[:top]]
    if left := order[top:]:
        rows.append((f"{len(left):,} others", "", f"{float(values[left].sum()):+.4f}"))
    return [*rows, ("all", "", f"{float(values.sum()):+.4f}")]


def _page(text: str, found: LensResult, headers: list[str], rows: list[list[str]], view: Any) -> Document:
    from interp_toolkit.visualization.document import Document, Paragraph, Table

    words = [Paragraph(line) for line in (f"The prompt: “{text}”", *found.summary().splitlines())]
    numbers = Table(title=f"Every depth behind {found.tokens[0]!r}", headers=headers, rows=rows)
    return Document(title=f"{found.lens.capitalize()}: “{text}”", parts=(*words, view, numbers))


# --- what commands on one text check ------------------------------------------------------------------------------


def check_text(text: str) -> None:
    """Refuse a prompt without anything in it.

    Raises:
        InterpError: when it is empty.
    """
    if not text.strip():
        raise InterpError("TEXT is empty: give a prompt")


def check_written(
    written: dict[str, Path | None], endings: dict[str, tuple[str, ...]], read: Iterable[Path | None] = ()
) -> None:
    """Refuse files that cannot be written, or would take the place of one another or of one that is read.

    Args:
        written: options and their files.
        endings: for options which files there are.
        read: files that are read.

    Raises:
        InterpError: for the first of them that cannot be.
    """
    taken = {path.resolve(): "a file that is read" for path in read if path is not None}
    for option, path in written.items():
        if path is None:
            continue
        if path.suffix.lower() not in endings[option]:
            raise InterpError(f"{option} {path}: the name ends with {' or '.join(endings[option])}")
        if not path.parent.is_dir():
            raise InterpError(f"{option} {path} cannot be written: there is no folder {path.parent}")
        if path.is_dir():
            raise InterpError(f"{option} {path} cannot be written: it is a folder, give the name of a file in it")
        if path.resolve() in taken:
            raise InterpError(f"{option} {path} is also {taken[path.resolve()]}: give it another name")
        taken[path.resolve()] = f"the file of {option}"


__all__ = ["add_lens", "check_text", "check_written"]
