"""The commands for activation stores."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from interp_toolkit.cli.console import load, model_options, note, table
from interp_toolkit.errors import StoreError


def add_store(store: argparse.ArgumentParser) -> None:
    """Add the commands to the parser of `store`."""
    commands = store.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _extract_options(commands.add_parser("extract", help="run a corpus through a model and store activations"))
    info = commands.add_parser("info", help="what a store holds, and how much of it is written")
    info.add_argument("path", type=Path, metavar="STORE")
    info.add_argument("--json", action="store_true", help="everything, as JSON")
    info.set_defaults(command=_info)
    verify = commands.add_parser("verify", help="compare every byte with what was written")
    verify.add_argument("path", type=Path, metavar="STORE")
    verify.add_argument("--quick", action="store_true", help="records, sizes and heads of files only")
    verify.set_defaults(command=_verify)
    export = commands.add_parser("export", help="write rows to a Parquet or npz file")
    export.add_argument("path", type=Path, metavar="STORE")
    export.add_argument("output", type=Path, metavar="FILE", help=".parquet or .npz")
    export.add_argument("--sites", nargs="+", metavar="SITE", help="which sites (default: all)")
    export.add_argument("--rows", metavar="A:B", help="which rows, such as 0:1000 (default: all)")
    export.add_argument("--where", metavar="NAME=VALUE", help="rows of documents such as label=positive, or token=42")
    export.set_defaults(command=_export)
    merge = commands.add_parser("merge", help="make one store of several that hold the same sites of the same model")
    merge.add_argument("output", type=Path, metavar="NEW")
    merge.add_argument("paths", type=Path, nargs="+", metavar="STORE")
    merge.set_defaults(command=_merge)


def _extract_options(extract: argparse.ArgumentParser) -> None:
    model_options(extract)
    extract.add_argument("corpus", type=Path, metavar="CORPUS", help="a .jsonl, .parquet or .txt file, or .gz of it")
    extract.add_argument("--sites", required=True, nargs="+", metavar="SITE", help="such as resid_post.10,mlp_out L5H1")
    extract.add_argument("-o", "--output", required=True, type=Path, metavar="STORE", help="the folder of the store")
    extract.add_argument("--context-length", type=int, metavar="N", help="the longest sequence (default: the model's)")
    extract.add_argument(
        "--positions", default="all", help="all (default), last, first:N, every:N, sample:SHARE[:SEED] or spans"
    )
    extract.add_argument("--store-dtype", metavar="DTYPE", help="float32, bfloat16 or float16 (default: the model's)")
    extract.add_argument(
        "--packing", choices=["whole", "packed"], default="whole", help="how documents become sequences"
    )
    extract.add_argument(
        "--long", choices=["error", "split", "truncate"], default="error", help="what becomes of longer documents"
    )
    extract.add_argument("--text", default="text", metavar="FIELD", help="the field with the text (default: text)")
    extract.add_argument("--columns", nargs="+", metavar="FIELD", help="fields to keep (default: id and label)")
    extract.add_argument("--batch-tokens", type=int, metavar="N", help="tokens in a forward pass")
    extract.add_argument("--shard-tokens", type=int, metavar="N", help="tokens that are written at once")
    extract.add_argument("--append", action="store_true", help="add the documents to the store that is there")
    extract.add_argument("--engine", choices=["local", "rank", "ray"], default="local", help="who works")
    extract.add_argument("--workers", type=int, metavar="N", help="how many, for the engine ray")
    extract.add_argument("--dry-run", action="store_true", help="say what it takes, and write nothing")
    extract.set_defaults(command=_extract)


def _extract(arguments: argparse.Namespace) -> None:
    from interp_toolkit.activations import Corpus, prepare_extraction
    from interp_toolkit.model import Site

    sites = [name for part in arguments.sites for name in part.split(",") if name]
    if not sites:
        raise StoreError("--sites names no site: give some, such as resid_post.10 L5H1")
    for name in sites:
        Site.parse(name)
    if not arguments.corpus.is_file():
        raise StoreError(f"there is no file {str(arguments.corpus)!r}")
    model, tokenizer = load(arguments)
    note("cutting the corpus into tokens")
    extraction = prepare_extraction(
        model,
        Corpus(
            source=arguments.corpus,
            text=arguments.text,
            columns=arguments.columns,
            packing=arguments.packing,
            long=arguments.long,
        ),
        sites=sites,
        path=arguments.output,
        tokenizer=tokenizer,
        context_length=arguments.context_length,
        batch_tokens=arguments.batch_tokens,
        shard_tokens=arguments.shard_tokens,
        positions=arguments.positions,
        dtype=arguments.store_dtype,
        append=arguments.append,
    )
    if arguments.dry_run:
        print(extraction.explain())
        return
    began = time.perf_counter()
    store = extraction.run(engine=arguments.engine, workers=arguments.workers)
    print(f"{_summary(store)}\n\n{time.perf_counter() - began:.1f} s")


def _summary(store: Any) -> str:
    info = store.info()
    facts = [
        ("model", info["model"]),
        ("sites", ", ".join(f"{name} {shape}" for name, shape in list(info["sites"].items())[:6])),
        ("rows", f"{info['rows']:,} of {info['documents']:,} documents"),
        ("columns", ", ".join(info["columns"]) or "none"),
        ("type", info["dtype"]),
        ("size", f"{info['bytes'] / 1e6:,.1f} MB"),
        ("shards", f"{info['committed']:,} of {info['shards']:,} written"),
        ("digest", info["digest"] or "not complete yet"),
    ]
    if len(info["sites"]) > 6:
        facts[1] = ("sites", f"{facts[1][1]}, ... ({len(info['sites'])} in all)")
    return table(["store", str(store.path)], facts)


def _info(arguments: argparse.Namespace) -> None:
    from interp_toolkit.activations import ActivationStore

    store = ActivationStore(arguments.path)
    print(json.dumps(store.info(), indent=2) if arguments.json else _summary(store))


def _verify(arguments: argparse.Namespace) -> None:
    from interp_toolkit.activations import ActivationStore

    store = ActivationStore(arguments.path)
    store.verify("open" if arguments.quick else "full", progress=True)
    rows = len(store.available())
    kept = "every record and size is" if arguments.quick else "every byte is"
    missing = "" if store.complete else f"; {store.rows - rows:,} rows are still to be written"
    print(f"{kept} what was written: {rows:,} rows at {len(store.sites)} sites{missing}")


def _export(arguments: argparse.Namespace) -> None:
    from interp_toolkit.activations import ActivationStore

    store = ActivationStore(arguments.path)
    print(f"saved to {store.export(arguments.output, sites=arguments.sites, rows=_rows(store, arguments))}")


def _rows(store: Any, arguments: argparse.Namespace) -> Any:
    rows = None
    if arguments.rows is not None:
        parts = arguments.rows.split(":")
        try:
            rows = range(store.rows)[slice(*(int(part) if part else None for part in parts))]
        except ValueError as error:
            raise StoreError(f"--rows {arguments.rows!r} is no range such as 0:1000") from error
    if arguments.where is None:
        return rows
    name, found, value = arguments.where.partition("=")
    if not found:
        raise StoreError(f"--where {arguments.where!r} is no condition such as label=positive")
    matching = store.where(**{name: [value, *_as_json(value)]}).tolist()
    return matching if rows is None else [row for row in matching if row in rows]


def _as_json(text: str) -> list[Any]:
    """The number or truth value that a text stands for, if it does."""
    try:
        return [json.loads(text)]
    except ValueError:
        return []


def _merge(arguments: argparse.Namespace) -> None:
    from interp_toolkit.activations import ActivationStore

    print(_summary(ActivationStore.merge(arguments.paths, arguments.output)))


__all__ = ["add_store"]
