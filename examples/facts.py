"""Facts as pairs of prompts that differ in the subject alone: countries and capitals, or those of a file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

import example
from interp_toolkit import InterpError, tasks
from interp_toolkit.model import encode

FEWEST = 8  # pairs of a split that each step needs
SUBJECT = "last subject token"  # as causal tracing calls it
END = "last token"


def capitals(tokenizer: PreTrainedTokenizerBase, n: int, seed: int) -> dict[str, tasks.Task]:
    """Countries and capitals. Splits share no country and no template; each clean prompt comes once."""
    found: dict[str, tasks.Task] = {}
    for split in ("train", "validation", "test"):
        task = tasks.country_capital(tokenizer, n=8 * n, seed=seed, split=split)  # a prompt comes with several others
        first = {pair.clean_ids: pair for pair in reversed(task.pairs)}
        pairs = [replace(p, positions={**p.positions, "subject": p.positions["country"]}) for p in first.values()]
        found[split] = replace(task, pairs=tuple(pairs[::-1]))
    return found


def own_fact(row: Mapping[str, str], tokenizer: PreTrainedTokenizerBase) -> tasks.Task:
    """One fact of a file, checked: prompts line up, and differ in nothing but the subject.

    Raises:
        ValueError: for what is no such fact.
    """
    if row["split"] not in ("train", "test"):
        raise ValueError(f"its split is 'train' or 'test', not {row['split']!r}")
    if row["subject"] not in row["clean"]:
        raise ValueError(f"its subject {row['subject']!r} is not in it")
    found = tasks.from_pairs(tokenizer, [row["clean"]], [row["corrupt"]], [(row["target"], row["foil"])], name="facts")
    pair, subject = found.pairs[0], encode(row["clean"], tokenizer=tokenizer).find(row["subject"])
    if not set(pair.positions["changed"]) <= set(subject) or subject[-1] == len(pair) - 1:
        raise ValueError("its two prompts must differ in the subject alone, with a token or more behind it")
    return replace(found, split=row["split"], pairs=(replace(pair, positions={**pair.positions, "subject": subject}),))


def own_facts(path: Path, tokenizer: PreTrainedTokenizerBase) -> dict[str, tasks.Task]:
    """Facts of a file; all that cannot be used are named together."""
    rows = example.read_rows(path, "clean", "corrupt", "target", "foil", "subject", "split")
    facts, unusable = [], []
    for row in rows:
        try:
            facts.append(own_fact(row, tokenizer))
        except (InterpError, ValueError) as error:
            unusable.append(f"  {row['clean']!r}: {str(error).splitlines()[0].removeprefix('pair 0: ')}")
    if unusable:
        sys.exit("\n".join([f"error: {len(unusable)} of {len(rows)} rows of {path} cannot be used:", *unusable]))
    parts = {split: [fact for fact in facts if fact.split == split] for split in ("train", "test")}
    answers = [{answer for fact in part for answer in fact.answers[0]} for part in parts.values()]
    if answers[0] & answers[1] or min(map(len, parts.values())) < FEWEST:
        sys.exit(
            f"error: {path} needs {FEWEST} rows or more of each split, train and test, that share no answer; it has "
            f"{len(parts['train'])} and {len(parts['test'])}, which share {len(answers[0] & answers[1])}"
        )
    return {
        split: replace(part[0], pairs=tuple(pair for fact in part for pair in fact.pairs))
        for split, part in parts.items()
    }
