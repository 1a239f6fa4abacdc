"""What storing costs beside computing, and what reading a store costs beside raw files. Run with `make bench`.

Where zarr and datasets are installed (`make bench-peers`), the same rows are read from theirs, too.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import transformers
from measure import interleaved
from torch import nn

from interp_toolkit import load_model
from interp_toolkit.activations import ActivationStore, extract, prepare_extraction
from interp_toolkit.activations.disk import write_new

ROWS, WIDTH, PICKED = 65_536, 1024, 8192


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["extraction", "reading", "writing", "memory"], action="append")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--documents", type=int, default=0, help=argparse.SUPPRESS)  # one measurement of memory
    options = parser.parse_args()
    if options.documents:
        one_extraction(options.documents)
        return
    torch.set_num_threads(2)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; median of {options.rounds} rounds (range)\n")
    jobs: dict[str, Callable[[int], None]] = {
        "extraction": extraction,
        "reading": reading,
        "writing": writing,
        "memory": lambda _: memory(),
    }
    for name, job in jobs.items():
        if not options.only or name in options.only:
            job(options.rounds)
            print()


# --- storing beside computing -------------------------------------------------------------------------------------


class StopError(Exception):
    """Ends a forward pass."""


def extraction(rounds: int) -> None:
    """Extract from the demo model, beside the same truncated forward passes without storing."""
    model, _ = load_model("demo")
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(40, 200, (48,), generator=generator).tolist()
    documents = [torch.randint(100, 40_000, (n,), generator=generator).tolist() for n in lengths]
    print(f"extraction from the demo model: {sum(lengths):,} tokens in {len(lengths)} documents of 40 to 200, bfloat16")
    for name, sites, last, limit in (
        ("1 site (resid_post.15)", ["resid_post.15"], 15, 1.10),
        ("all 30 layers (resid_post)", ["resid_post"], 29, 1.15),
    ):
        with tempfile.TemporaryDirectory() as folder:
            store = extract(model, documents, sites=sites, path=f"{folder}/0", dtype="bfloat16", progress=False)
            conf = store.info()["configuration"]
            prepared = prepare_extraction(model, documents, sites=sites, path=f"{folder}/0", dtype="bfloat16")
            batches = [
                torch.full((len(chosen), int(work.reach[chosen].max())), 7)
                for work in map(prepared.plan.work, prepared.plan.shards)
                for chosen in work.batches(conf["batch_tokens"], padded=conf["padded"])
            ]
            count = iter(range(1, 1000))

            def storing(folder: str = folder, sites: list[str] = sites, count: Iterator[int] = count) -> None:
                path = f"{folder}/{next(count)}"
                planned = prepare_extraction(model, documents, sites=sites, path=path, dtype="bfloat16")
                planned.run(progress=False)

            def bare(batches: list[torch.Tensor] = batches, last: int = last) -> None:
                truncated(model, batches, last)

            for timing in interleaved(bare, {name: (storing, limit)}, rounds=rounds, name="truncated passes alone"):
                print("  " + timing.row())


def truncated(model: transformers.PreTrainedModel, batches: list[torch.Tensor], last: int) -> None:
    """The forward passes of an extraction, as one would write them by hand."""

    def stop(module: nn.Module, arguments: object, output: object) -> None:
        raise StopError

    handle = model.model.layers[last].register_forward_hook(stop)
    try:
        for ids in batches:
            with torch.no_grad():
                try:
                    model.model(input_ids=ids, use_cache=False)
                except StopError:
                    continue
    finally:
        handle.remove()


# --- reading ------------------------------------------------------------------------------------------------------


def wide_store(folder: str) -> ActivationStore:
    """A store of the size for which other formats were measured: 65,536 rows of 1,024 bfloat16 numbers."""
    config = transformers.GPT2Config(
        n_layer=1, n_embd=WIDTH, n_head=16, vocab_size=5000, n_positions=512, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    ids = torch.randint(5000, (ROWS // 512, 512), generator=torch.Generator().manual_seed(0))
    return extract(model, ids, sites="embed", path=f"{folder}/store", dtype="bfloat16", progress=False)


def reading(rounds: int) -> None:
    """Read a store in order and at random, beside a raw memory map of one file."""
    with tempfile.TemporaryDirectory() as folder:
        store = wide_store(folder)
        view = store["embed"]
        # Two raw files in turn, as the reference runs twice in a round: memory that was used a moment ago is faster
        paths = [Path(folder) / f"raw{n}.bin" for n in range(2)]
        for path in paths:
            view[:].view(torch.int16).numpy().tofile(path)
        raws = itertools.cycle([np.memmap(path, dtype=np.int16, mode="r", shape=(ROWS, WIDTH)) for path in paths])
        order = np.random.default_rng(0)
        picks = [order.integers(0, ROWS, PICKED) for _ in range(64)]
        turn = iter(np.tile(np.arange(64), 10_000))
        total = np.zeros(1, dtype=np.int64)

        def touch(x: np.ndarray) -> None:
            total[0] ^= np.bitwise_xor.reduce(x.view(np.int64).reshape(-1))

        def raw_sequence() -> None:
            raw = next(raws)
            for begin in range(0, ROWS, 4096):
                touch(raw[begin : begin + 4096])

        def sequence() -> None:
            for x in store.batches("embed", 4096):
                touch(x.view(torch.int16).numpy())

        def raw_gather() -> None:
            torch.from_numpy(next(raws)[picks[next(turn)]]).view(torch.bfloat16)

        gathers: dict[str, tuple[Callable[[], object], float | None]] = {
            "store, 8,192 rows at random": (lambda: view[picks[next(turn)]], 1 / 0.90)
        }
        gathers |= others(folder, view[:], picks, turn)
        crowd = np.zeros(1 << 24, dtype=np.int64)

        def ready() -> None:
            crowd.__iadd__(1)  # empties the processor's caches, so that all start alike

        print(f"reading {ROWS:,} × {WIDTH} bfloat16 (134 MB, in the page cache), beside a raw memory map of one file")
        in_order: dict[str, tuple[Callable[[], object], float | None]] = {
            "store, in order, batches of 4,096": (sequence, 1 / 0.95)
        }
        timings = interleaved(raw_sequence, in_order, rounds=3 * rounds, name="raw, in order", ready=ready)
        timings += interleaved(raw_gather, gathers, rounds=3 * rounds, name="raw, 8,192 rows at random", ready=ready)
        for timing in timings:
            print("  " + timing.row())


def others(
    folder: str, x: torch.Tensor, picks: list[np.ndarray], turn: object
) -> dict[str, tuple[Callable[[], object], float | None]]:
    """The same rows in formats that other tools use, where these are installed."""
    found: dict[str, tuple[Callable[[], object], float | None]] = {}
    numbers = x.view(torch.int16).numpy()
    try:
        import zarr
    except ImportError:
        pass
    else:
        array = zarr.create_array(
            f"{folder}/zarr", shape=numbers.shape, chunks=(512, WIDTH), shards=(8192, WIDTH), dtype="int16"
        )
        array[:] = numbers
        found["zarr, 8,192 rows at random"] = (lambda: array.oindex[np.sort(picks[next(turn)])], None)
    try:
        import datasets
    except ImportError:
        pass
    else:
        datasets.disable_progress_bars()
        features = datasets.Features({"x": datasets.Array2D(shape=(1, WIDTH), dtype="float16")})
        made = datasets.Dataset.from_dict({"x": x.half().numpy()[:, None]}, features=features)
        made.save_to_disk(f"{folder}/arrow")
        arrow = datasets.load_from_disk(f"{folder}/arrow").with_format("torch")
        found["datasets (Arrow), 8,192 rows at random"] = (lambda: arrow[picks[next(turn)]]["x"], None)
    return found


# --- writing and memory -------------------------------------------------------------------------------------------


def writing(rounds: int) -> None:
    """Write with hash and fsync, beside raw writing with fsync."""
    with tempfile.TemporaryDirectory() as folder:
        data = memoryview(np.random.default_rng(0).integers(0, 255, 128 << 20, dtype=np.uint8))
        names = iter(range(100_000))

        def raw() -> None:
            path = Path(folder) / f"{next(names)}"
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
            left = data
            while len(left):
                left = left[os.write(descriptor, left[: 4 << 20]) :]
            os.fsync(descriptor)
            os.close(descriptor)
            path.unlink()

        def hashed() -> None:
            path = Path(folder) / f"{next(names)}"
            write_new(path, [data])
            path.unlink()

        print("writing 134 MB, beside raw writing, both synchronised to the disk")
        for timing in interleaved(raw, {"with xxh3-128": (hashed, 1 / 0.80)}, rounds=rounds, name="raw"):
            print("  " + timing.row())


def memory() -> None:
    """Peak memory of an extraction, for a corpus and for one ten times as long."""
    peaks = []
    for documents in (300, 3000):
        command = [sys.executable, __file__, "--documents", str(documents)]
        environment = {**os.environ, "OMP_NUM_THREADS": "2"}
        peaks.append(float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout))
    print(
        f"peak memory of an extraction: {peaks[0]:.0f} MiB for 30,000 tokens, {peaks[1]:.0f} MiB for 300,000 "
        f"(ratio {peaks[1] / peaks[0]:.3f})"
    )


def one_extraction(documents: int) -> None:
    """Extract from a small model, and print the peak of this process in MiB."""
    config = transformers.GPT2Config(
        n_layer=2, n_embd=256, n_head=4, vocab_size=5000, n_positions=128, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    corpus = (torch.randint(5000, (100,), generator=generator).tolist() for _ in range(documents))
    with tempfile.TemporaryDirectory() as folder:
        extract(
            model, corpus, sites=["resid_post", "mlp_out"], path=f"{folder}/store", shard_tokens=4096, progress=False
        )
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    sys.exit(main())
