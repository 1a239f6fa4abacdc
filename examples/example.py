"""What the examples share: their options, their data, and the page that each of them writes.

A page is Markdown with its pictures beside it. All that is said on it is worked out from the numbers of this run, so
that it holds for whatever model and data were asked for, and the code of each step stands beside what it found.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import inspect
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from interp_toolkit import load_model
from interp_toolkit.model.demo_files import DEMO_MODEL

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from interp_toolkit.statistics import Estimate
    from interp_toolkit.visualization import View

DATA = Path(__file__).resolve().parent / "data"


# --- options and data -----------------------------------------------------------------------------------------------


def options(description: str) -> argparse.ArgumentParser:
    """What every example takes; each adds its own."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", default="demo", help="'demo', a hub id, or a folder")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="precision, if not the model's own")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    parser.add_argument("-o", "--output", type=Path, default=Path("examples-output"), help="a folder for the page")
    return parser


def load(chosen: argparse.Namespace) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that was asked for, and its tokenizer."""
    dtype = None if chosen.dtype is None else getattr(torch, chosen.dtype)
    return load_model(chosen.model, device=chosen.device, dtype=dtype)


def name_of(chosen: argparse.Namespace) -> str:
    """What the model is called on the page."""
    return DEMO_MODEL.name if chosen.model == "demo" else str(chosen.model)


def made_with(parser: argparse.ArgumentParser, chosen: argparse.Namespace, model: PreTrainedModel, name: str) -> str:
    """The command, the model, and the versions of what ran it, as a paragraph."""
    given = [f"python examples/{name}.py"]
    for key, value in sorted(vars(chosen).items()):
        if key != "output" and value != parser.get_default(key):
            words = [] if value is True else map(str, value) if isinstance(value, list) else [str(value)]
            given.append(shlex.join([f"--{key.replace('_', '-')}", *words]))
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in ("torch", "transformers"))
    precision = str(model.dtype).removeprefix("torch.")
    return f"With `{' '.join(given)}`: {name_of(chosen)} in {precision}, {versions}, seed {chosen.seed}."


def read_rows(path: Path, *fields: str) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines.

    Raises:
        SystemExit: for a file that is missing, empty, or has rows without one of the fields.
    """
    if not path.is_file():
        sys.exit(f"error: there is no file {path}")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            sys.exit(f"error: line {number} of {path} is not JSON: {error}")
        if missing := [name for name in fields if not isinstance(row, dict) or name not in row]:
            sys.exit(f"error: line {number} of {path} lacks {', '.join(missing)}; each needs {', '.join(fields)}")
        rows.append(row)
    if not rows:
        sys.exit(f"error: {path} has no rows")
    return rows


# --- words ----------------------------------------------------------------------------------------------------------


def interval(estimate: Estimate, *, digits: int = 2, signed: bool = True, share: bool = False) -> str:
    """A mean with its interval: `+1.30 [1.11, 1.45]`, or `83% [71, 92]` for a share.

    Raises:
        ValueError: for an estimate of several cells.
    """
    if estimate.mean.numel() != 1:
        raise ValueError(f"an interval is of one number, not of {estimate.mean.numel()}")
    mean, low, high = (float(x) for x in (estimate.mean, estimate.low, estimate.high))
    if share:
        return f"{mean:z.0%} [{100 * low:z.0f}, {100 * high:z.0f}]"
    return f"{mean:{'+' if signed else ''}.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


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

    def write(self, chosen: argparse.Namespace, made: str) -> Path:
        """Write the page and its pictures into the folder that was chosen.

        Args:
            chosen: the options of this run.
            made: with what it was made, as `made_with` says it.

        Returns:
            The path of the page.
        """
        folder: Path = chosen.output
        folder.mkdir(parents=True, exist_ok=True)
        for file, view in self._views.items():
            (folder / f"{file}.svg").write_text(view.to_svg() + "\n", encoding="utf-8")
            view.page().save(folder / f"{file}.html")
        took = ", ".join(f"“{title}” {seconds:.0f} s" for title, seconds in self._took.items())
        parts = [
            f"<!-- Written by examples/{self.name}.py: change that, and run it again. -->",
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
