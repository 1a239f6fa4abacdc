"""What a probe's score means: baselines, control tasks, permutations of labels, and code length."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp_toolkit.errors import ProbeError
from interp_toolkit.probes.splits import number_groups
from interp_toolkit.probes.words import word_spans

_VOCABULARY = 5000
_PORTIONS = (0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0)
"""Shares of the data after which the online code trains anew."""


def bag_of_words(
    texts: Sequence[str], train: Int[Tensor, " train_row"], *, size: int = _VOCABULARY
) -> Float[Tensor, "row word"]:
    """How often each word occurs in each text: what can be known without a model.

    Args:
        texts: of all rows.
        train: the rows whose words count; others' words are not known.
        size: the most frequent words are kept.

    Example:
        >>> bag_of_words(["Rome is old", "is Paris old?"], torch.tensor([0])).tolist()
        [[1.0, 1.0, 1.0], [0.0, 1.0, 1.0]]
    """
    words = [[text[a:b].casefold() for a, b in word_spans(text)] for text in texts]
    counts = Counter(word for row in train.tolist() for word in words[row])
    place = {word: n for n, (word, _) in enumerate(counts.most_common(size))}
    found = torch.zeros(len(texts), max(1, len(place)))
    for row, several in enumerate(words):
        for word in several:
            if word in place:
                found[row, place[word]] += 1
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class ControlTask:
    """Labels that mean nothing, to see how well a probe of this power learns anything at all.

    Attributes:
        labels: the class of each row: random, but the same for all rows of a key.
        train: rows to train on.
        test: rows to test on; each has a key that is also in training.
    """

    labels: Int[Tensor, " row"]
    train: Int[Tensor, " train_row"]
    test: Int[Tensor, " test_row"]


def control_task(
    labels: Int[Tensor, " row"],
    keys: Sequence[Hashable],
    train: Int[Tensor, " real_train_row"],
    test: Int[Tensor, " real_test_row"],
    *,
    seed: int = 0,
) -> ControlTask | None:
    """A control task (Hewitt & Liang 2019): each key, such as a word, gets a class at random.

    Classes are as frequent as in the real task. A probe that predicts them well memorises keys; accuracy on the real
    task minus that on this one is the selectivity. Rows are those of the real task, as in the paper, but for test rows
    whose key was never trained. Where most keys lie on one side, as groups do, the same rows are dealt anew, so that
    the keys that are tested are trained.

    Args:
        labels: the real class of each row.
        keys: what a row is about, such as its word.
        train: the rows that the real probe is trained on.
        test: the rows that it is tested on.
        seed: decides everything.

    Returns:
        The task, or None where no key could be tested, or all keys would have the same class.

    Raises:
        ProbeError: when labels and keys are of different rows.

    Example:
        >>> words, rows = ["cat", "dog", "cat", "dog"], torch.arange(4)
        >>> task = control_task(torch.tensor([0, 1, 1, 0]), words, rows[:2], rows[2:])
        >>> bool(task.labels[0] == task.labels[2] != task.labels[1]), task.test.tolist()
        (True, [2, 3])
    """
    if len(keys) != len(labels):
        raise ProbeError(f"there are {len(labels)} rows, but {len(keys)} keys of a control task")
    generator = torch.Generator().manual_seed(seed)
    used = torch.cat([train, test])
    numbers = torch.full_like(labels, -1)
    numbers[used], names = number_groups([keys[row] for row in used.tolist()], len(used))
    # As many keys of each class as its share of the rows, in random order
    ordered = labels[used].sort().values
    drawn = ordered[((torch.arange(len(names)) + 0.5) / len(names) * len(used)).long()]
    drawn = drawn[torch.randperm(len(names), generator=generator)]
    known = torch.isin(numbers[test], numbers[train])
    if int(known.sum()) * 2 > len(test):
        test = test[known]
    else:
        train, test = _dealt(used[torch.randperm(len(used), generator=generator)], numbers, len(test))
    if not len(test) or len(drawn[numbers[train]].unique()) < 2:
        return None
    return ControlTask(labels=drawn[numbers.clamp_min(0)], train=train, test=test)


def _dealt(order: Tensor, keys: Int[Tensor, " row"], number: int) -> tuple[Tensor, Tensor]:
    """Rows in random order, dealt to training and test: the first row of each key goes to training."""
    seen: set[int] = set()
    later = torch.zeros(len(order), dtype=torch.bool)
    for n, key in enumerate(keys[order].tolist()):
        later[n] = key in seen
        seen.add(key)
    spare = order[later]
    return torch.cat([order[~later], spare[number:]]), spare[:number]


def permutations(
    labels: Float[Tensor, "row output"] | Int[Tensor, "row output"],
    groups: Int[Tensor, " row"],
    parts: Sequence[Int[Tensor, " _"]],
    *,
    seed: int = 0,
) -> Iterator[Int[Tensor, " row"]]:
    """Orders of rows that would be as likely as the real one if labels meant nothing, without end.

    Labels stay in their part of the split, so that each part keeps its classes. Where all rows of each group have the
    same label, groups exchange them. Else groups of equal size exchange theirs, and the rows of a group too, as the two
    sides of a contrast pair.

    Args:
        labels: of each row.
        groups: the group of each row.
        parts: the rows of each part.
        seed: decides the orders.

    Yields:
        For each row the number of the one whose label it gets.

    Example:
        >>> labels, pairs = torch.tensor([[0], [1], [0], [1]]), torch.tensor([0, 0, 1, 1])
        >>> order = next(permutations(labels, pairs, [torch.arange(4)]))
        >>> labels[order, 0].reshape(2, 2).sum(1).tolist()  # each pair keeps one of each
        [1, 1]
    """
    generator = torch.Generator().manual_seed(seed)
    exchanges = [(rows, _exchange(labels[rows], groups[rows], generator)) for rows in parts if len(rows)]
    while True:
        order = torch.arange(len(labels))
        for rows, exchange in exchanges:
            order[rows] = rows[next(exchange)]
        yield order


def _exchange(labels: Tensor, groups: Tensor, generator: torch.Generator) -> Iterator[Int[Tensor, " row"]]:
    """Orders of the rows of one part."""
    _, group, sizes = groups.unique(return_inverse=True, return_counts=True)
    rows = group.argsort(stable=True)  # group by group
    begin = sizes.cumsum(0) - sizes
    uniform = bool((labels == labels[rows[begin]][group]).all())
    by_size = sizes.argsort(stable=True)
    place = torch.empty_like(rows)
    place[rows] = torch.arange(len(rows))
    within = place - begin[group]
    while True:
        if uniform:
            yield rows[begin[torch.randperm(len(sizes), generator=generator)][group]]
            continue
        giver = torch.empty_like(by_size)
        giver[by_size] = (sizes + torch.rand(len(sizes), generator=generator, dtype=torch.float64)).argsort()
        mixed = (group + torch.rand(len(rows), generator=generator, dtype=torch.float64)).argsort()
        yield mixed[begin[giver[group]] + within]


def online_code_length(
    fit: Callable[[Int[Tensor, " known"], Int[Tensor, " new"]], Float[Tensor, "new class"]],
    labels: Int[Tensor, " row"],
    order: Int[Tensor, " sent"],
    classes: int,
    *,
    groups: Int[Tensor, " row"] | None = None,
) -> tuple[float, float]:
    """Bits that it takes to tell the labels to someone who has the activations (Voita & Titov 2020, equation 3).

    Data come in portions: each one's labels are sent by a probe trained on all before it, the first ones with equal
    probabilities. A representation from which labels are easily learned needs few bits.

    Args:
        fit: trains on the first rows and gives log-probabilities (nats) of the classes of the next ones.
        labels: the class of each row.
        order: in which rows are sent.
        classes: how many classes there are.
        groups: of each row: a portion ends where a group does, so that none is half known.

    Returns:
        Bits for each label, and how many it takes without activations.

    Raises:
        ProbeError: when the rows of a group do not follow each other in the order.

    Example:
        >>> even = lambda known, new: torch.full((len(new), 2), 0.5).log()
        >>> bits, uniform = online_code_length(even, torch.arange(64) % 2, torch.arange(64), 2)
        >>> round(bits, 6), uniform
        (1.0, 1.0)
    """
    sent = order if groups is None else groups[order]
    stops = torch.cat([(sent.diff() != 0).nonzero()[:, 0] + 1, torch.tensor([len(order)])])
    if len(stops) != len(sent.unique()):
        raise ProbeError("the rows of a group are sent together, but some group is torn apart in this order")
    wanted = torch.tensor([round(share * len(order)) for share in _PORTIONS])
    ends = stops[torch.searchsorted(stops, wanted)].unique().tolist()
    # A probe needs every class before it can say anything
    ready = [end for end in ends if end >= 2 * classes and len(labels[order[:end]].unique()) == classes]
    bits = (ready[0] if ready else len(order)) * math.log2(classes)
    for end, after in pairwise(ready):
        known, new = order[:end], order[end:after]
        told = fit(known, new).gather(1, labels[new][:, None])
        bits -= float(told.double().sum()) / math.log(2)
    return bits / len(order), math.log2(classes)


__all__ = ["ControlTask", "bag_of_words", "control_task", "online_code_length", "permutations"]
