"""The command that trains probes and judges them."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from interp_toolkit.cli.console import load, model_options, note, table
from interp_toolkit.errors import ProbeError

if TYPE_CHECKING:
    from interp_toolkit.probes import ProbeData


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
        help="rows of a group stay on one side of the split (default: group)",
    )
    probe.add_argument(
        "--span", default="span", metavar="COLUMN", help="the part of the text that counts (default: span)"
    )
    probe.add_argument(
        "--positions",
        choices=["last", "mean", "max", "span", "span_mean", "all"],
        help="which tokens count (default: span where there is such a column, else last)",
    )
    probe.add_argument("--site", default="resid_post", metavar="NAME", help="what is read (default: resid_post)")
    probe.add_argument("--layers", metavar="A:B", help="which layers, such as 5:15 or 3,7 (default: all)")
    probe.add_argument(
        "--kinds", nargs="+", default=["logistic"], metavar="KIND", help="of linear probes (default: logistic)"
    )
    probe.add_argument("--balanced", action="store_true", help="every class counts the same in training")
    probe.add_argument("--permutations", type=int, default=199, metavar="N", help="for the p-value (default: 199)")
    probe.add_argument("--seed", type=int, default=0, metavar="N", help="of the split and the controls")
    probe.add_argument(
        "-o", "--output", type=Path, default=Path("probe.html"), metavar="PAGE", help="where the page goes"
    )
    probe.add_argument("--save", type=Path, metavar="FILE", help="a safetensors file for scores and probes")
    probe.set_defaults(command=_probe)


def _probe(arguments: argparse.Namespace) -> None:
    from interp_toolkit.probes import probe_sweep

    if not arguments.output.parent.is_dir():
        raise ProbeError(f"the page cannot be written: there is no folder {arguments.output.parent}")
    data = _data(arguments)
    model, tokenizer = load(arguments)
    note(f"running {len(data)} texts")
    began = time.perf_counter()
    found = probe_sweep(
        model,
        data,
        layers=_layers(arguments.layers, int(model.config.get_text_config().num_hidden_layers)),
        site=arguments.site,
        positions=arguments.positions or ("last" if data.spans is None else "span"),
        kinds=tuple(arguments.kinds),
        target="regression" if data.kind == "regression" else "classes",
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
        print(f"Scores and probes: {found.save(arguments.save)}")


def _data(arguments: argparse.Namespace) -> ProbeData:
    from interp_toolkit.probes import CONCEPTS, concept, read_data

    if not Path(arguments.data).is_file():
        if arguments.data in CONCEPTS:
            return concept(arguments.data, seed=arguments.seed)
        raise ProbeError(f"there is no file {arguments.data!r}; made concepts are {', '.join(CONCEPTS)}")
    return read_data(
        arguments.data, text=arguments.text, label=arguments.label, group=arguments.group, span=arguments.span
    )


def _layers(text: str | None, number: int) -> list[int] | None:
    """Layers from `5:15`, `3,7` or `4`."""
    if text is None:
        return None
    try:
        if ":" in text:
            begin, end = (int(part) if part else None for part in text.split(":"))
            return list(range(number))[begin:end]
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ProbeError(f"--layers {text!r} is no range such as 5:15 and no list such as 3,7") from error


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done} of {total} texts", end="" if done < total else "\n", file=sys.stderr)


__all__ = ["add_probe"]
