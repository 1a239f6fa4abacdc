"""What the commands share: the options that choose a model, tables, and notes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def model_options(parser: argparse.ArgumentParser, *, positional: bool = True) -> None:
    """Add the options that choose a model."""
    if positional:
        parser.add_argument("model", metavar="MODEL", help="'demo', a hub id, or a folder")
    else:
        parser.add_argument("--model", default="demo", help="'demo' (default), a hub id, or a folder")
    parser.add_argument("--device", help="cpu, cuda, ... (default: cpu)")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="precision (default: the model's own)"
    )


def load(arguments: argparse.Namespace) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model that was chosen, and its tokenizer."""
    import torch

    from interp_toolkit.model import load_model

    dtype = None if arguments.dtype is None else getattr(torch, arguments.dtype)
    note(f"loading {arguments.model}")
    return load_model(arguments.model, dtype=dtype, device=arguments.device)


def note(text: str) -> None:
    """Say on a terminal what takes a while."""
    if sys.stderr.isatty():
        print(f"{text} …", file=sys.stderr)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, numbers to the right.

    Example:
        >>> print(table(["head", "attention"], [("L5H1", "0.50")]))
        head  attention
        ----  ---------
        L5H1       0.50
    """
    widths = [max(len(line[n]) for line in [headers, *rows]) for n in range(len(headers))]
    right = [bool(rows) and all(_is_number(row[n]) for row in rows) for n in range(len(headers))]
    lines = [headers, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if side else cell.ljust(width)
            for cell, width, side in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def _is_number(text: str) -> bool:
    try:
        float(text.rstrip("%").replace("−", "-"))
    except ValueError:
        return text in ("", "–")
    return True


__all__ = ["load", "model_options", "note", "table"]
