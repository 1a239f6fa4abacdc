"""What the activation store survives: deaths, failing disks, damage, forgery, races. Run with `make torture`."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torture_damage
import torture_disk
import torture_forgery
import torture_tools

BAD = (
    "bad commits",
    "rows lost or doubled",
    "digests different",
    "orphans",
    "overwritten",
    "not resumed",
    "failures",
    "not one winner",
    "silent ones",
    "late ones",
    "wrong errors",
    "crashes",
    "slow ones",
    "large ones",
)
"""What there has to be none of."""


def main() -> int:
    """Print what was done and what went wrong; 1 if anything did."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="processes killed at random moments")
    parser.add_argument("--points", type=int, help="deaths at a call, and as many power cuts; all by default")
    parser.add_argument("--ways", type=int, default=len(torture_disk.FAULTS), help="in which each call fails")
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--step", type=int, default=61, help="bytes between two places where a file is cut")
    parser.add_argument("--forgeries", type=int, default=2000)
    parser.add_argument("--writers", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=10, help="races of that many writers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="where stores are made; temporary folders are as a rule")
    parser.add_argument("--only", default="", help="only lines of the table that say this")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    seed, writers, rounds = asked.seed, asked.writers, asked.rounds
    jobs: dict[str, Callable[[Path], torture_tools.Figures]] = {
        "killed at random moments": lambda to: torture_tools.kill_at_random(to, asked.kills, seed),
        "killed at a call": lambda to: torture_disk.kill_at_calls(to, asked.points, seed, power=False),
        "power cut at a call": lambda to: torture_disk.kill_at_calls(to, asked.points, seed, power=True),
        "a call fails": lambda to: torture_disk.fail_at_calls(to, asked.ways, seed),
        "writes are short": lambda to: torture_disk.write_in_pieces(to, seed),
        f"{writers} processes race": lambda to: torture_damage.race(to, writers, rounds, processes=True),
        f"{writers} threads race": lambda to: torture_damage.race(to, writers, rounds, processes=False),
        "files cut": lambda to: torture_damage.truncate_everywhere(to, asked.step),
        "files changed": lambda to: torture_damage.mutate(to, asked.mutations, seed),
        "records, plans, heads forged": lambda to: torture_forgery.fuzz(to, asked.forgeries, seed),
    }
    notes: list[str] = []
    for name, job in jobs.items():
        if asked.only not in name:
            continue
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
            figures = job(Path(folder))
        good = ", ".join(f"{what} {number:,}" for what, number in figures.counts.items() if what not in BAD)
        bad = ", ".join(f"{what} {figures.counts[what]:,}" for what in BAD if what in figures.counts or what in BAD[:4])
        print(f"{name:<30}{good}\n{'':<30}{bad}  [{time.perf_counter() - began:.0f} s]", flush=True)
        notes += [f"{name}: {note}" for note in figures.notes]
    print("\n".join(["", f"{len(notes)} things went wrong", *notes[:100]]))
    return int(bool(notes))


if __name__ == "__main__":
    sys.exit(main())
