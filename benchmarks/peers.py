"""Sweeps of patches, timed against TransformerLens and nnsight. Run with `make bench-peers`.

Every library patches the demo model in this one process, in turn and with the same number of threads, and the numbers
must agree. TransformerLens gets its own call for the sweep, with the fastest of its settings (measured at the start,
see `TransformerLens`); nnsight has no such call and gets one trace a cell. Reading the clean activations belongs to the
time of each of them. They do the same work for every cell, so where a whole sweep would take many minutes only some
cells are run, other ones each round, and their time is scaled to all: the table marks this with a `~`.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, Protocol, TypeVar

import nnsight
import pandas as pd
import torch
from floor import Work, matrix_rate, work_of
from torch import Tensor
from transformer_lens import patching
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interp_toolkit import load_model
from interp_toolkit.circuits import patch_sweep

TOLERANCE = 1e-3
"""How far the metrics of two libraries may be apart."""

QUICK_CELLS = 12
"""How many cells the peers run with `--quick`."""

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One sweep.

    Attributes:
        title: what is swept, in the words of the table.
        prompts: pairs of a clean prompt and a corrupt one, all of the same number of tokens.
        answers: for each pair, the token that continues the clean prompt and the one that continues the corrupt one.
        component: what is patched.
        over: the axes of the sweep.
        asked: how many times faster than the peer the project asks us to be.
        sample: how many cells the peer runs, or None for all of them.
        peer: the library that we are compared with.
    """

    title: str
    prompts: Sequence[tuple[str, str]]
    answers: Sequence[tuple[str, str]]
    component: str = "resid_pre"
    over: tuple[str, str] = ("layer", "pos")
    asked: float | None = None
    sample: int | None = None
    peer: str = "TransformerLens"


LANDMARK = "The{} is a famous landmark that is located in the city of"
LONG_LANDMARK = (
    "The{} is a famous landmark that millions of people from all over the world come to see every year. Many of them "
    "take a train from the airport, stay in a small hotel for a few days, and walk through the old streets in the "
    "evening. It is located in the city of"
)
CAPITAL = "From {} we have a picture of the capital city, which is called"
IOI = "When {} and {} went to the store, {} gave a drink to"

CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Germany": "Berlin",
    "Japan": "Tokyo",
    "Russia": "Moscow",
    "China": "Beijing",
    "England": "London",
    "Greece": "Athens",
    "Ireland": "Dublin",
    "Austria": "Vienna",
    "Cuba": "Havana",
    "Portugal": "Lisbon",
    "Poland": "Warsaw",
    "Canada": "Ottawa",
    "Israel": "Jerusalem",
}
NAMES = (
    "Mary",
    "John",
    "Tom",
    "James",
    "Anna",
    "Alice",
    "Peter",
    "Paul",
    "Sarah",
    "David",
    "Mark",
    "Susan",
    "Emma",
    "Jack",
)


def _couples(items: Sequence[str], count: int) -> list[tuple[str, str]]:
    """Different ordered couples, each item about as often as any other."""
    size = len(items)
    couples = ((items[one], items[(one + step) % size]) for step in range(1, size) for one in range(size))
    return list(islice(couples, count))


def _landmarks(template: str, **more: Any) -> Case:
    prompts = [(template.format(" Eiffel Tower"), template.format(" Colosseum"))]
    return Case(prompts=prompts, answers=[(" Paris", " Rome")], **more)


def _capitals(count: int, **more: Any) -> Case:
    couples = _couples(tuple(CAPITALS), count)
    return Case(
        prompts=[(CAPITAL.format(clean), CAPITAL.format(corrupt)) for clean, corrupt in couples],
        answers=[(f" {CAPITALS[clean]}", f" {CAPITALS[corrupt]}") for clean, corrupt in couples],
        **more,
    )


def _ioi(count: int, **more: Any) -> Case:
    couples = _couples(NAMES, count)
    return Case(
        prompts=[(IOI.format(one, two, two), IOI.format(one, two, one)) for one, two in couples],
        answers=[(f" {one}", f" {two}") for one, two in couples],
        **more,
    )


HEADS: dict[str, Any] = {"component": "z", "over": ("layer", "head")}

CASES = {
    "early": _landmarks(LANDMARK, title="layer × position, one pair", asked=12),
    "ioi": _ioi(1, title="layer × position, one IOI pair", asked=40),
    "long": _landmarks(LONG_LANDMARK, title="layer × position, one long pair", asked=4.5, sample=60),
    "early-32": _capitals(32, title="layer × position, 32 pairs", asked=3.5, sample=24),
    "ioi-32": _ioi(32, title="layer × position, 32 IOI pairs", asked=10, sample=24),
    "heads": _landmarks(LANDMARK, title="layer × head (z), one pair", asked=6, **HEADS),
    "heads-ioi": _ioi(1, title="layer × head (z), one IOI pair", asked=15, **HEADS),
    "patterns": _landmarks(
        LANDMARK, title="layer × head (pattern), one pair", asked=5, **(HEADS | {"component": "pattern"})
    ),
    "nnsight": _landmarks(LANDMARK, title="layer × position, one pair", sample=24, peer="nnsight"),
}


class Batch:
    """The tokens of a case.

    Args:
        case: the case.
        tokenizer: the tokenizer of the model.
        work: the arithmetic of the model.

    Raises:
        ValueError: when prompts differ in length, or an answer is not one token.
    """

    def __init__(self, case: Case, tokenizer: PreTrainedTokenizerBase, work: Work) -> None:
        self.case = case
        ids = [tokenizer(list(texts))["input_ids"] for texts in zip(*case.prompts, strict=True)]
        if len({len(row) for rows in ids for row in rows}) > 1:
            raise ValueError(f"the prompts of {case.title!r} have different numbers of tokens")
        self.clean, self.corrupt = (torch.tensor(rows) for rows in ids)
        answers = [tokenizer(list(texts), add_special_tokens=False)["input_ids"] for texts in case.answers]
        if any(len(token) > 1 for pair in answers for token in pair):
            raise ValueError(f"an answer of {case.title!r} is more than one token")
        self.answers = torch.tensor(answers)[..., 0]
        self.length = self.clean.shape[1]
        self.first = [int(row.nonzero()[0]) for row in self.clean != self.corrupt]
        self.shape = (work.layers, self.length if case.over[1] == "pos" else work.heads)
        self.flops = sum(work.sweep(self.length, first, case.over) for first in self.first)

    def metric(self, logits: Tensor) -> Tensor:
        """The logit difference of each prompt."""
        found = logits[:, -1].gather(1, self.answers)
        return found[:, 0] - found[:, 1]

    def cells(self, sample: int | None, seed: int) -> list[tuple[int, int]]:
        """The cells that a peer runs, in the order of the table; which ones they are depends on the seed."""
        layers, others = self.shape
        every = [(layer, other) for layer in range(layers) for other in range(others)]
        if sample is None or sample >= len(every):
            return every
        chosen = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))[:sample]
        return [every[number] for number in chosen.sort().values.tolist()]


class Peer(Protocol):
    """A library that can do the same."""

    def read(self, batch: Batch) -> Any:
        """Read the clean activations."""

    def sweep(self, batch: Batch, clean: Any, cells: Sequence[tuple[int, int]]) -> Tensor:
        """Patch each cell alone and return the metric, `[prompt, cell]`."""


class TransformerLens:
    """TransformerLens, with the fastest of its settings.

    A bridge can be used as it is, with the names of `HookedTransformer` (compatibility mode without processing), or
    with the weights processed as `HookedTransformer` did it, each under `no_grad` or `inference_mode`. All of them are
    right; here they are tried in turn on a few cells, and the fastest stays.

    Args:
        batch: prompts to try the settings on.
        tokenizer: the tokenizer of the model.
        expected: what the metric of the clean prompts should be.
    """

    SETTINGS: Mapping[str, Mapping[str, Any] | None] = {
        "the bridge as it is": None,
        "compatibility mode without processing": {"no_processing": True},
        "compatibility mode": {},
    }
    MODES: Mapping[str, Callable[[], AbstractContextManager[Any]]] = {
        "no_grad": torch.no_grad,
        "inference_mode": torch.inference_mode,
    }
    SWEEPS: Mapping[str, Callable[..., Any]] = {
        "resid_pre": patching.get_act_patch_resid_pre,
        "z": patching.get_act_patch_attn_head_out_all_pos,
        "pattern": patching.get_act_patch_attn_head_pattern_all_pos,
    }

    def __init__(self, batch: Batch, tokenizer: PreTrainedTokenizerBase, expected: Tensor) -> None:
        bridges = {name: self._boot(options, tokenizer) for name, options in self.SETTINGS.items()}
        seconds: dict[tuple[str, str], list[float]] = {}
        for turn in range(6):
            for name, bridge in bridges.items():
                for mode in self.MODES:
                    self._bridge, self._mode = bridge, self.MODES[mode]
                    clean = self.read(batch)
                    spent, _ = timed(partial(self.sweep, batch, clean, batch.cells(3, seed=turn)))
                    seconds.setdefault((name, mode), []).append(spent / 3)
        medians = {setting: statistics.median(spent[1:]) for setting, spent in seconds.items()}
        print("TransformerLens, seconds a cell by setting:")
        for (name, mode), median in medians.items():
            print(f"  {name + ', ' + mode:<56} {median:.4f}")
        name, mode = min(medians, key=lambda setting: medians[setting])
        self.setting = f"{name}, {mode}"
        self._bridge, self._mode = bridges[name], self.MODES[mode]
        with self._mode():
            apart = (batch.metric(self._bridge(batch.clean)) - expected).abs().max().item()
        print(f"Used: {self.setting}. Its metric is within {apart:.1e} of ours.\n")
        if apart > TOLERANCE:
            raise SystemExit("TransformerLens does not compute the same model")

    def read(self, batch: Batch) -> Any:
        """Read the clean activations."""
        with self._mode():
            return self._bridge.run_with_cache(batch.clean)[1]

    def sweep(self, batch: Batch, clean: Any, cells: Sequence[tuple[int, int]]) -> Tensor:
        """Patch each cell alone and return the metric, `[prompt, cell]`."""
        some: dict[str, Any] = {}
        if len(cells) < batch.shape[0] * batch.shape[1]:
            table = pd.DataFrame(cells, columns=list(batch.case.over))
            some = {"index_df": table, "index_axis_names": None}
        call = self.SWEEPS[batch.case.component]
        with self._mode():
            found = call(self._bridge, batch.corrupt, clean, batch.metric, reduce="none", **some)
        return found.values.reshape(-1, len(batch.corrupt)).T

    @staticmethod
    def _boot(options: Mapping[str, Any] | None, tokenizer: PreTrainedTokenizerBase) -> TransformerBridge:
        model, _ = load_model("demo")  # one for each: a bridge takes its model over
        bridge = TransformerBridge.boot_transformers(
            model.name_or_path, hf_model=model, tokenizer=tokenizer, device="cpu"
        )
        if options is not None:
            bridge.enable_compatibility_mode(disable_warnings=True, **options)
        return bridge.eval()


class Nnsight:
    """nnsight: one trace for each cell.

    Args:
        tokenizer: the tokenizer of the model.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._model: Any = nnsight.TransformersModel(load_model("demo")[0], tokenizer=tokenizer, task="text-generation")

    def read(self, batch: Batch) -> Any:
        """Read the clean activations."""
        model = self._model
        with torch.no_grad(), model.trace(batch.clean):
            kept = nnsight.save([])
            for block in model.model.layers:
                kept.append(block.input)
        return kept

    def sweep(self, batch: Batch, clean: Any, cells: Sequence[tuple[int, int]]) -> Tensor:
        """Patch each cell alone and return the metric, `[prompt, cell]`."""
        model, metrics = self._model, []
        with torch.no_grad():
            for layer, pos in cells:
                with model.trace(batch.corrupt):
                    model.model.layers[layer].input[:, pos] = clean[layer][:, pos]
                    logits = nnsight.save(model.lm_head.output)
                metrics.append(batch.metric(logits))
        return torch.stack(metrics, dim=1)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was measured for one case.

    Attributes:
        batch: what was swept.
        theirs: seconds of the peer for the whole sweep, one number a round.
        ours: our seconds, two numbers a round: before and after the peer.
        ran: how many cells the peer ran each round.
        apart: the largest difference between the peer's metric and ours.
        floor: seconds that the arithmetic takes at the best rate of the rounds.
    """

    batch: Batch
    theirs: Sequence[float]
    ours: Sequence[tuple[float, float]]
    ran: int
    apart: float
    floor: float

    HEADER = (
        "| sweep | tokens | peer | peer, s | ours, s | ratio | asked | largest difference | floor, s | ours / floor |\n"
        "|---|--:|---|--:|--:|--:|--:|--:|--:|--:|"
    )

    def row(self) -> str:
        """A line of the table; the ratio is the median over the rounds."""
        case = self.batch.case
        scaled = "" if self.ran == self.batch.shape[0] * self.batch.shape[1] else "~"
        ratio = statistics.median(
            peer / statistics.mean(ours) for peer, ours in zip(self.theirs, self.ours, strict=True)
        )
        ours = statistics.median(second for pair in self.ours for second in pair)
        cells = (
            case.title,
            f"{self.batch.length}, from {min(self.batch.first)}",
            case.peer,
            f"{scaled}{statistics.median(self.theirs):.1f}",
            f"{ours:.2f}",
            f"{scaled}{ratio:.1f}",
            "" if case.asked is None else f"≥ {case.asked:g}",
            f"{self.apart:.1e}",
            f"{self.floor:.2f}",
            f"{ours / self.floor:.2f}",
        )
        return f"| {' | '.join(cells)} |"


def ours(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, case: Case) -> Tensor:
    """Our own call: the metric of every cell, `[prompt, layer, position or head]`."""
    clean, corrupt = (list(texts) for texts in zip(*case.prompts, strict=True))
    one = len(case.prompts) == 1
    result = patch_sweep(
        model,
        clean[0] if one else clean,
        corrupt[0] if one else corrupt,
        component=case.component,
        over=case.over,
        answers=case.answers[0] if one else list(case.answers),
        metric="logit_diff",
        direction="denoise",
        tokenizer=tokenizer,
    )
    return result.values


def compare(batch: Batch, peer: Peer, mine: Callable[[], Tensor], rate: Callable[[], float], rounds: int) -> Outcome:
    """Time a peer between two calls of ours, several times, after warming up (ours only where that is short)."""
    if batch.case.sample is None:
        mine()
    clean = peer.read(batch)
    peer.sweep(batch, clean, batch.cells(2, seed=0))
    theirs, own, rates, apart = [], [], [], 0.0
    for turn in range(rounds):
        rates.append(rate())
        cells = batch.cells(batch.case.sample, seed=turn)
        before, values = timed(mine)
        reading, clean = timed(partial(peer.read, batch))
        sweeping, found = timed(partial(peer.sweep, batch, clean, cells))
        after, _ = timed(mine)
        theirs.append(reading + sweeping * batch.shape[0] * batch.shape[1] / len(cells))
        own.append((before, after))
        chosen = torch.stack([values[:, layer, other] for layer, other in cells], dim=1)
        apart = max(apart, (chosen - found).abs().max().item())
    return Outcome(batch=batch, theirs=theirs, ours=own, ran=len(cells), apart=apart, floor=batch.flops / max(rates))


def timed(job: Callable[[], Result]) -> tuple[float, Result]:
    """Return how many seconds a job took, and its result."""
    began = time.perf_counter()
    result = job()
    return time.perf_counter() - began, result


def main() -> None:
    """Print the table, a line at a time."""
    asked = arguments()
    torch.set_num_threads(asked.threads)
    model, tokenizer = load_model("demo")
    work = work_of(model)
    batches = {name: Batch(_sampled(CASES[name], asked), tokenizer, work) for name in asked.only or CASES}
    versions = (
        f"{name} {importlib.metadata.version(name)}"
        for name in ("torch", "transformers", "transformer_lens", "nnsight")
    )
    print(f"{', '.join(versions)}; {torch.get_num_threads()} threads, {platform.machine()}, demo model, float32.")
    print(f"Medians of {asked.rounds} rounds; a matrix rate of {matrix_rate(model) / 1e9:.0f} GFLOP/s at the start\n")
    peers: dict[str, Peer] = {}
    wanted = {batch.case.peer for batch in batches.values()}
    if "TransformerLens" in wanted:
        trial = Batch(CASES["ioi"], tokenizer, work)
        with torch.no_grad():
            expected = trial.metric(model(trial.clean).logits)
        peers["TransformerLens"] = TransformerLens(trial, tokenizer, expected)
    if "nnsight" in wanted:
        peers["nnsight"] = Nnsight(tokenizer)
    gc.collect()
    print(Outcome.HEADER)
    wrong = []
    for name, batch in batches.items():
        mine = partial(ours, model, tokenizer, batch.case)
        outcome = compare(batch, peers[batch.case.peer], mine, partial(matrix_rate, model), asked.rounds)
        print(outcome.row(), flush=True)
        if not outcome.apart < TOLERANCE:
            wrong.append(name)
    print("\n~ scaled from some of the cells. Tokens: of each prompt, and the position from which prompts differ.")
    if wrong:
        raise SystemExit(f"The numbers are not those of the peer: {', '.join(wrong)}")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Time sweeps of patches against TransformerLens and nnsight.")
    parser.add_argument("--rounds", type=int, default=3, help="how often each sweep is timed (%(default)s)")
    parser.add_argument("--only", action="append", choices=list(CASES), help="this case; can be given several times")
    parser.add_argument("--threads", type=int, default=2, help="how many threads all of them use (%(default)s)")
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument(
        "--full", action="store_true", help="scale nothing: the peers run every cell (an hour and more)"
    )
    amount.add_argument("--quick", action="store_true", help=f"the peers run {QUICK_CELLS} cells of every sweep")
    return parser.parse_args()


def _sampled(case: Case, asked: argparse.Namespace) -> Case:
    if asked.full:
        return replace(case, sample=None)
    return replace(case, sample=QUICK_CELLS) if asked.quick else case


if __name__ == "__main__":
    main()
