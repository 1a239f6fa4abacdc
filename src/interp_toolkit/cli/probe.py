"""The command that trains probes and judges them."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp_toolkit.cli.console import load, model_options, note, table
from interp_toolkit.errors import InterpWarning, ProbeError

if TYPE_CHECKING:
    from interp_toolkit.probes import ProbeData
    from interp_toolkit.probes.kinds import Kind

_FEW = 10
"""As few different numbers as this may be meant as classes."""


def add_probe(probe: argparse.ArgumentParser) -> None:
    """Add the options of `probe`."""
    model_options(probe)
    probe.add_argument(
        "data", metavar="DATA", help="a .csv, .tsv or .jsonl file with text and label, or the name of a made concept"
    )
    probe.add_argument("--text", default="text", metavar="COLUMN", help="the column with the text (default: text)")
    probe.add_argument("--label", default="label", metavar="COLUMN", help="the column with the label (default: label)")
    probe.add_argument(
        "--group",
        default="group",
        metavar="COLUMN",
        help="rows of a group stay on one side of the split (default: group, where there is such a column)",
    )
    probe.add_argument(
        "--span",
        default="span",
        metavar="COLUMN",
        help="the part of the text that counts (default: span, where there is such a column)",
    )
    probe.add_argument(
        "--pair",
        default="pair",
        metavar="COLUMN",
        help="the two rows of a contrast pair have the same entry (default: pair, where there is such a column)",
    )
    probe.add_argument(
        "--positions",
        choices=["last", "mean", "max", "span", "span_mean", "all"],
        help="which tokens count (default: span where there is such a column, else last)",
    )
    probe.add_argument("--site", default="resid_post", metavar="NAME", help="what is read (default: resid_post)")
    probe.add_argument(
        "--layers", metavar="A:B", help="which layers, such as 5:15 (without layer 15) or 3,7 (default: all)"
    )
    probe.add_argument(
        "--kinds", nargs="+", metavar="KIND", help="of linear probes (default: logistic, or ridge for numbers)"
    )
    probe.add_argument("--balanced", action="store_true", help="every class counts the same in training")
    probe.add_argument("--permutations", type=int, default=199, metavar="N", help="for the p-value (default: 199)")
    probe.add_argument("--seed", type=int, default=0, metavar="N", help="of the split and the controls (default: 0)")
    probe.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("probe.html"),
        metavar="PAGE",
        help="where the page goes (default: probe.html)",
    )
    probe.add_argument("--save", type=Path, metavar="FILE", help="a safetensors file for scores and probes")
    probe.set_defaults(command=_probe)


def _probe(arguments: argparse.Namespace) -> None:
    from interp_toolkit.probes import probe_sweep

    _check_files(arguments)  # what is cheap to check comes before what takes long
    kinds = _kinds(arguments.kinds)
    data = _data(arguments)
    _check_data(arguments, data, kinds)
    model, tokenizer = load(arguments)
    note(f"running {len(data)} texts")
    began = time.perf_counter()
    found = probe_sweep(
        model,
        data,
        layers=_layers(arguments.layers, int(model.config.get_text_config().num_hidden_layers)),
        site=arguments.site,
        positions=arguments.positions or ("last" if data.spans is None else "span"),
        kinds=kinds,
        tokenizer=tokenizer,
        class_weight="balanced" if arguments.balanced else None,
        permutations=arguments.permutations,
        seed=arguments.seed,
        progress=_progress,
    )
    print(data.summary())
    print("\n" + table(*found.table()))
    print("\n" + found.summary())
    page = found.page().save(arguments.output)
    print(f"\nThe page: {page.resolve()}   ({time.perf_counter() - began:.0f} s)")
    if arguments.save:
        print(f"Scores and probes: {found.save(arguments.save).resolve()}")


# --- what was asked for -------------------------------------------------------------------------------------------


def _check_files(arguments: argparse.Namespace) -> None:
    """Refuse files that cannot be written, or would take the place of the data or of each other."""
    written = {"-o": arguments.output, "--save": arguments.save}
    for option, path in written.items():
        if path is None:
            continue
        if not path.parent.is_dir():
            raise ProbeError(f"{option} {path} cannot be written: there is no folder {path.parent}")
        if path.is_dir():
            raise ProbeError(f"{option} {path} cannot be written: it is a folder, give the name of a file in it")
        if path.resolve() == Path(arguments.data).resolve():
            raise ProbeError(f"{option} {path} would write over the data: give it another name")
    if arguments.save is not None and arguments.save.resolve() == arguments.output.resolve():
        raise ProbeError(f"--save {arguments.save} and -o {arguments.output} are the same file: give two names")
    if arguments.seed < 0:
        raise ProbeError(f"--seed is 0 or more, not {arguments.seed}")
    if arguments.permutations < 0:
        raise ProbeError(f"--permutations is 0 or more, not {arguments.permutations}")


def _kinds(given: list[str] | None) -> tuple[Kind, ...] | None:
    """Kinds of probes, separated by blanks or commas."""
    from interp_toolkit.probes import KINDS

    if given is None:
        return None
    asked = [name for part in given for name in part.split(",") if name]
    for name in asked or [""]:
        if name not in KINDS:
            raise ProbeError(f"--kinds: there is no kind {name!r}{_near(name, KINDS)}; kinds are {', '.join(KINDS)}")
    chosen: tuple[Any, ...] = tuple(dict.fromkeys(asked))
    return chosen


def _data(arguments: argparse.Namespace) -> ProbeData:
    from interp_toolkit.probes import CONCEPTS, concept, read_data

    columns = {column: getattr(arguments, column) for column in ("text", "label", "group", "span", "pair")}
    if Path(arguments.data).is_file():
        return read_data(arguments.data, **columns)
    if arguments.data not in CONCEPTS:
        raise ProbeError(
            f"there is no file {arguments.data!r}{_near(arguments.data, CONCEPTS)}; "
            f"made concepts are {', '.join(CONCEPTS)}"
        )
    for column, name in columns.items():
        if name != column:
            raise ProbeError(f"--{column} {name} names a column of a file, but {arguments.data} is a made concept")
    return concept(arguments.data, seed=arguments.seed)


def _check_data(arguments: argparse.Namespace, data: ProbeData, kinds: tuple[Kind, ...] | None) -> None:
    """Refuse data that do not go with the options."""
    if data.kind == "labels":
        raise ProbeError(f"{data.name}: a row has one label here, not a list of them: make a file for each label")
    if data.kind == "regression":
        _check_numbers(arguments, data, kinds)
    elif len(data.counts()) == 1:
        raise ProbeError(f"{data.name}: a probe tells classes apart, but all {len(data)} rows are {data.labels[0]!r}")
    if arguments.positions in ("span", "span_mean") and data.spans is None:
        raise ProbeError(
            f"{data.name}: --positions {arguments.positions} needs a column with a part of each text, named 'span' or "
            "by --span"
        )
    if kinds and "contrast" in kinds and data.pairs is None:
        raise ProbeError(
            f"{data.name}: --kinds contrast needs a column with the same entry for two opposite rows, named 'pair' or "
            "by --pair"
        )


def _check_numbers(arguments: argparse.Namespace, data: ProbeData, kinds: tuple[Kind, ...] | None) -> None:
    """Refuse options of classes for labels that are numbers, and ask whether these are classes."""
    classes = "for classes write text or whole numbers without a point"
    if kinds not in (None, ("ridge",)):
        raise ProbeError(
            f"{data.name}: the labels are numbers, such as {data.labels[0]}, which only --kinds ridge predicts; "
            f"{classes}"
        )
    if arguments.balanced:
        raise ProbeError(f"{data.name}: --balanced is for classes, but the labels are numbers; {classes}")
    if len(data.counts()) <= _FEW:
        warnings.warn(
            f"{data.name}: the labels are {len(data.counts())} different numbers, which are predicted as numbers; "
            f"{classes}",
            InterpWarning,
            stacklevel=2,
        )


def _near(name: str, names: Iterable[str]) -> str:
    found = get_close_matches(name.lower(), names, n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def _layers(text: str | None, number: int) -> list[int] | None:
    """Layers from `5:15`, `3,7` or `4`."""
    if text is None:
        return None
    try:
        if ":" in text:
            begin, end = (int(part) if part else None for part in text.split(":"))
            layers = list(range(number))[begin:end]
        else:
            layers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ProbeError(f"--layers {text!r} is no range such as 5:15 and no list such as 3,7") from error
    outside = [layer for layer in layers if not -number <= layer < number]
    if outside or not layers:
        wrong = f"names layer {outside[0]}" if outside else "holds no layer"
        raise ProbeError(f"--layers {text!r} {wrong}, but the model has {number} layers: 0 to {number - 1}")
    return layers


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done} of {total} texts", end="" if done < total else "\n", file=sys.stderr)


__all__ = ["add_probe"]
