"""What the examples share: their options, their data, and the page that each of them writes.

`NAME.py` is the experiment: read it, run it, change it. What its steps are made of is beside it: `accounts.py` and
`facts.py` (factuality), `claims.py` (sycophancy), `openings.py` and `directions.py` (refusal), `words.py`
(elicitation).
`pages/NAME.py` puts what came out into words and pictures, and runs no model: all that is said is worked out from the
numbers of this run, so that it holds for whatever model and data were asked for. A page is Markdown with its pictures
beside it, and the code of each step stands beside what it found.
"""

from __future__ import annotations

import argparse
import inspect
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from interp_toolkit import InterpError, load_model
from interp_toolkit.model import layout_of
from interp_toolkit.provenance import provenance_of
from interp_toolkit.statistics import bootstrap_mean, wilson

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from interp_toolkit.statistics import Estimate
    from interp_toolkit.visualization import View

DATA = Path(__file__).resolve().parent / "data"


# --- options and data -----------------------------------------------------------------------------------------------


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and what a script says of itself as it is written there."""


def options(about: str | None) -> argparse.ArgumentParser:
    """What every example takes; each adds its own.

    Args:
        about: the script's docstring, which shows commands and the format of data.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=_Help, allow_abbrev=False)
    parser.add_argument("--model", default="demo", help="'demo', a hub id, or a folder")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="precision, if not the model's own")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    parser.add_argument("-o", "--output", type=Path, default=Path("examples-output"), help="a folder for the page")
    return parser


def count(text: str) -> int:
    """An option that is a whole number of at least one."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 1 or more")
    return int(text)


def load(chosen: argparse.Namespace) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that was asked for, and its tokenizer."""
    dtype = None if chosen.dtype is None else getattr(torch, chosen.dtype)
    return load_model(chosen.model, device=chosen.device, dtype=dtype)


@contextmanager
def clear_errors() -> Iterator[None]:
    """What the library refuses ends the script with one line that says why.

    Raises:
        SystemExit: for an `InterpError`.
    """
    try:
        yield
    except InterpError as error:
        sys.exit(f"error: {error}")


def made_with(parser: argparse.ArgumentParser, chosen: argparse.Namespace, model: PreTrainedModel, name: str) -> str:
    """The command, the model, and the versions of what ran it, as a paragraph."""
    given = [f"python examples/{name}.py"]
    for key, value in sorted(vars(chosen).items()):
        if key != "output" and value != parser.get_default(key):
            words = [] if value is True else map(str, value) if isinstance(value, list) else [str(value)]
            given.append(shlex.join([f"--{key.replace('_', '-')}", *words]))
    known = provenance_of(model, layout_of(model))
    versions = ", ".join(f"{package} {known.versions[package]}" for package in ("torch", "transformers"))
    return f"With `{' '.join(given)}`: {known.model} in {known.dtype}, {versions}, seed {chosen.seed}."


def read_rows(path: Path, *fields: str) -> list[dict[str, str]]:
    """The rows of a file of JSON lines, all of whose values are texts.

    Raises:
        SystemExit: for a file that is missing or empty, or has rows in which one of the fields is missing or no text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(f"error: {path} cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8'}")
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            sys.exit(f"error: line {number} of {path} is no JSON object, one of which is on each line: {error}")
        if not isinstance(row, dict):
            sys.exit(f"error: line {number} of {path} is no JSON object, but {line.strip()[:40]}")
        if missing := [name for name in fields if name not in row]:
            sys.exit(f"error: line {number} of {path} lacks {', '.join(missing)}; each needs {', '.join(fields)}")
        if wrong := [name for name, value in row.items() if not isinstance(value, str) or not value.strip()]:
            sys.exit(f"error: in line {number} of {path} {wrong[0]} is {row[wrong[0]]!r}: give a text")
        rows.append(row)
    if not rows:
        sys.exit(f"error: {path} has no rows")
    return rows


# --- words ----------------------------------------------------------------------------------------------------------


def interval(estimate: Estimate, *, digits: int = 2, signed: bool = True, percent: bool = False) -> str:
    """A mean with its interval: `+1.30 [1.11, 1.45]`, or `83% [71, 92]` for a share.

    Raises:
        ValueError: for an estimate of several cells.
    """
    if estimate.mean.numel() != 1:
        raise ValueError(f"an interval is of one number, not of {estimate.mean.numel()}")
    mean, low, high = (float(x) for x in (estimate.mean, estimate.low, estimate.high))
    if percent:
        return f"{mean:z.0%} [{100 * low:z.0f}, {100 * high:z.0f}]"
    return f"{mean:{'+' if signed else ''}.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def share(right: Tensor, *, level: float = 0.95) -> str:
    """A share of items with Wilson's interval, which is honest at 0% and 100% too: `83% [71, 91]`.

    Args:
        right: for each item whether it is so, `[item]`; where each item has several draws, `[item, draw]`, the interval
            is that of a single draw, and rather too wide.
        level: of the interval.
    """
    each = right.double().reshape(len(right), -1).mean(1)
    low, high = wilson(float(each.sum()), len(each), level)
    return f"{float(each.mean()):.0%} [{100 * low:.0f}, {100 * high:.0f}]"


def average(values: Tensor, *, digits: int = 2, signed: bool = True) -> str:
    """The mean over items with its bootstrap interval; where each item has several draws, their mean counts once."""
    each = values.double().reshape(len(values), -1).mean(1)
    return interval(bootstrap_mean(each), digits=digits, signed=signed)


def above(estimate: Estimate, value: float = 0.0) -> bool:
    """Whether the whole interval of one number lies above a value."""
    return bool(estimate.low.item() > value)


# --- the page -------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Page:
    """A page that grows while an example runs.

    Attributes:
        name: of the file, and the beginning of its pictures' names.
        title: the first heading.
        about: what is asked, in a paragraph or two of Markdown.
    """

    name: str
    title: str
    about: str
    _parts: list[str] = field(default_factory=list)
    _short: list[str] = field(default_factory=list)
    _views: dict[str, View] = field(default_factory=dict)
    _took: dict[str, float] = field(default_factory=dict)

    def short(self, *sentences: str) -> None:
        """What was found, for those who read nothing else; stands on top."""
        self._short.extend(sentences)

    @contextmanager
    def step(self, title: str, *code: Callable[..., object]) -> Iterator[None]:
        """A section; the functions' sources stand at its end, and on the console it says that it runs."""
        begun = time.perf_counter()
        _say(f"{title} …")
        self._parts.append(f"## {title}")
        yield
        for function in code:
            self._parts.append(_details(f"Code: {function.__name__}", f"```python\n{inspect.getsource(function)}```"))
        self._took[title] = time.perf_counter() - begun

    def text(self, *paragraphs: str) -> None:
        """Paragraphs of Markdown."""
        self._parts.extend(paragraphs)

    def printed(self, text: str) -> None:
        """What a result says of itself, in a box."""
        self._parts.append(f"```text\n{text.rstrip()}\n```")

    def table(self, rows: Sequence[Mapping[str, object]]) -> None:
        """A table; the first row's keys are the headers. Numbers come as text, rounded as they should be read."""
        headers = list(rows[0])
        lines = [headers, ["---"] * len(headers), *([str(row.get(name, "")) for name in headers] for row in rows)]
        self._parts.append("\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines))

    def picture(self, view: View, caption: str, *, name: str | None = None) -> None:
        """A still picture that opens the view itself; the first one without a name is that of the example.

        Raises:
            ValueError: for a name that is taken.
        """
        file = self.name if name is None else f"{self.name}-{name}"
        if file in self._views:
            raise ValueError(f"there already is a picture {file!r}; give this one another name")
        self._views[file] = view
        alt = caption.replace("[", "(").replace("]", ")").replace("\n", " ")
        self._parts.append(f"[![{alt}]({file}.svg)]({file}.html)")
        self._parts.append(f"*{caption}* [Explore it]({file}.html).")

    def write(self, folder: Path, made: str) -> Path:
        """Write the page and its pictures into a folder.

        Args:
            folder: is made where it is not there.
            made: with what the page was made, as `made_with` says it.

        Returns:
            The path of the page.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for file, view in self._views.items():
            (folder / f"{file}.svg").write_text(view.to_svg() + "\n", encoding="utf-8")
            view.page().save(folder / f"{file}.html")
        took = ", ".join(f"“{title}” {seconds:.0f} s" for title, seconds in self._took.items())
        parts = [
            f"<!-- Written by examples/{self.name}.py and examples/pages: change these, and run it again. -->",
            f"# {self.title}",
            self.about,
            "## In short",
            *self._short,
            *self._parts,
            "## How this was made",
            made,
            f"It took {sum(self._took.values()):.0f} s: {took}.",
        ]
        path = folder / f"{self.name}.md"
        path.write_text("\n\n".join(part.strip() for part in parts) + "\n", encoding="utf-8")
        _say(f"wrote {path}")
        return path


def _details(summary: str, markdown: str) -> str:
    return f'<details markdown="1"><summary>{summary}</summary>\n\n{markdown}\n\n</details>'


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
