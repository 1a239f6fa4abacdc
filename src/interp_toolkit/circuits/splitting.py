"""Parting pairs of prompts: some to find a circuit on, others to judge it on."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from random import Random

from interp_toolkit.circuits.dataset import Pairs
from interp_toolkit.circuits.judging import used_prompts

_FEWEST_APART = 4  # clean prompts: with fewer, discovery and evaluation share the pairs


def split(pairs: Pairs, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Pairs to find a circuit on and pairs to judge it on, which share no prompt if that can be.

    Pairs that share a prompt, clean or corrupt, stay together. Where this leaves too little for one of the sides, as
    where a few prompts are paired in many ways, only pairs with the same clean prompt and mirrored ones do; and where
    that leaves too little too, only those with the same clean prompt.

    Args:
        pairs: all of them.
        share: of the pairs to judge on.
        seed: of the draw.

    Returns:
        Numbers of the pairs, in order. With fewer than four different clean prompts, or a share of 0, all pairs are in
        both.
    """
    sides = [tuple(tuple(side[n].row()) for side in (pairs.clean, pairs.corrupt)) for n in range(len(pairs))]
    every = list(range(len(pairs)))
    if len({clean for clean, _ in sides}) < _FEWEST_APART or share == 0:
        return every, every
    wanted = min(len(pairs) - 1, max(1, round(share * len(pairs))))
    kept: list[int] = []
    # A mirrored pair has the same two prompts; its key is the same whichever of them is clean.
    mirrors = [(("clean", clean), frozenset((clean, corrupt))) for clean, corrupt in sides]
    for keys in (sides, mirrors, [(clean,) for clean, _ in sides]):
        kept = _drawn(_together(keys), wanted, seed)
        if 2 * len(kept) >= wanted and 2 * (len(pairs) - len(kept)) >= len(pairs) - wanted:
            break
    return sorted(set(every) - set(kept)), sorted(kept)


def _together(keys: Sequence[Iterable[Hashable]]) -> list[list[int]]:
    """Numbers in groups, such that those with a key in common are in one; groups in the order of their first number."""
    groups: dict[int, list[int]] = {}
    group_of: dict[Hashable, int] = {}
    for number, own in enumerate(keys):
        met = {group_of[key] for key in own if key in group_of}
        groups[number] = sorted([number, *(n for old in met for n in groups.pop(old))])
        group_of |= {key: number for n in groups[number] for key in keys[n]}
    return sorted(groups.values())


def _drawn(groups: list[list[int]], wanted: int, seed: int) -> list[int]:
    """Groups at random, about as many numbers as wanted; one that goes farther beyond than it brings is left out."""
    Random(seed).shuffle(groups)
    kept: list[int] = []
    while len(kept) < wanted and len(groups) > 1:
        group = groups.pop()
        if len(kept) + len(group) - wanted <= wanted - len(kept):
            kept += group
    return kept or groups.pop()


def words_of_split(pairs: Pairs, discovery: Sequence[int], evaluation: Sequence[int]) -> list[str]:
    """What has to be said of a split: that there is none, or that prompts are on both sides."""
    if set(discovery) & set(evaluation):
        number = "1 pair is" if len(pairs) == 1 else f"{len(pairs)} pairs are"
        return [f"judged on the prompts that it was found on: {number} too few to part"]
    found, judged = (used_prompts(pairs, numbers) for numbers in (discovery, evaluation))
    known = {digest for digests in found.values() for digest in digests}
    shared = sum(bool(known & set(both)) for both in zip(*judged.values(), strict=True))
    if not shared:
        return []
    words = (
        f"{shared} of {len(evaluation)} evaluation pairs share a prompt with discovery pairs: prompts are in so many "
        "pairs that they could not be parted"
    )
    return [words]


__all__ = ["split", "words_of_split"]
