"""Which rows train a probe, which choose among probes, and which judge it: whole groups, and every class in each part.

Rows that belong together (of one prompt, template or entity, the two sides of a contrast pair) must lie on one side: a
probe that has seen one of them recognises the others, and its test score says little about new ones.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from interp_toolkit.errors import InterpWarning, ProbeError

Column = Tensor | NDArray[Any] | Sequence[Any]
"""One value for each row."""

_SHOWN = 5  # rows, groups and classes that a message names
_LONG = 60  # characters of a name or text that a message shows
_ATTEMPTS = 32  # shuffles of which the best is taken
_MANY = 1000  # different groups from which on one shuffle is good enough


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Rows of three parts.

    Attributes:
        train: rows that probes are fitted on, in ascending order as in each part.
        validation: rows that layers, penalties and thresholds are chosen on; may be empty.
        test: rows that say how good the chosen probe is.
        groups: number of each row's group, also of rows that are in no part.
        group_names: of each group.
        classes: number of each row's class; all 0 for a regression.
        class_names: of each class; empty for a regression.
        seed: that the split was drawn with, or None.
    """

    train: Int[Tensor, " train_row"]
    validation: Int[Tensor, " validation_row"]
    test: Int[Tensor, " test_row"]
    groups: Int[Tensor, " row"]
    group_names: tuple[Hashable, ...]
    classes: Int[Tensor, " row"]
    class_names: tuple[Hashable, ...]
    seed: int | None

    @property
    def parts(self) -> dict[str, Int[Tensor, " _"]]:
        """The rows of each part that has any, by its name."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: rows for name, rows in parts.items() if len(rows)}

    def summary(self) -> str:
        """Rows, groups and classes of each part, as a table in plain text.

        Example:
            >>> print(split_rows(["no", "yes"] * 10, validation=0.2, test=0.3).summary())
            part         rows   share  groups  no  yes
            train          10   50.0%      10   5    5
            validation      4   20.0%       4   2    2
            test            6   30.0%       6   3    3
        """
        names = [str(name) for name in self.class_names]
        shown = names[: 2 * _SHOWN]
        heads = ["rows", " share", "groups", *shown, *(["others"] if len(names) > len(shown) else [])]
        lines = ["  ".join([f"{'part':<11}", *heads])]
        for part, rows in self.parts.items():
            counts = self.classes[rows].bincount(minlength=len(names)).tolist() if names else []
            cells = [len(rows), f"{len(rows) / len(self.groups):.1%}", len(self.groups[rows].unique())]
            cells += [*counts[: len(shown)], *([sum(counts[len(shown) :])] if len(names) > len(shown) else [])]
            lines.append("  ".join([f"{part:<11}", *(f"{c:>{len(h)}}" for c, h in zip(cells, heads, strict=True))]))
        return "\n".join(lines)


def split_rows(
    labels: Column,
    *,
    groups: Column | None = None,
    validation: float | int = 0.2,
    test: float | int = 0.25,
    seed: int = 0,
) -> Split:
    """Split rows at random into train, validation and test.

    Groups stay whole. Each class comes near to its share of each part, and so does the number of rows: groups with the
    same numbers of rows are dealt in proportion, the others, shuffled, one by one to the part that lacks their rows
    most; then single groups move as long as that brings numbers nearer. Without groups each class is within two rows of
    its share, and each part within one, if those shares are at least a row.

    Args:
        labels: the class of each row, of any kind that can be told apart; or numbers with a fraction, for a regression,
            which are not stratified.
        groups: which group each row is of; without them each row is its own.
        validation: share of the rows; 0 for none.
        test: share of the rows; 0 for none.
        seed: of the shuffles; no other random numbers are touched.

    Returns:
        The split. Each class is in each part.

    Raises:
        ProbeError: when a class is in too few groups to be in each part, there are fewer groups than parts, shares
            leave nothing to train on, or groups are not of the same rows.

    Example:
        >>> split = split_rows([0, 0, 1, 1] * 10, groups=torch.arange(40) // 2, validation=0, test=0.25)
        >>> len(split.train), len(split.validation), len(split.test)
        (30, 0, 10)
        >>> set((split.train // 2).tolist()) & set((split.test // 2).tolist())
        set()
    """
    if not (validation >= 0 and test >= 0 and validation + test < 1):
        raise ProbeError(
            f"validation and test are shares that leave something to train on, not validation={validation} and "
            f"test={test}"
        )
    empty = _unsplit(labels, groups, seed)
    shares = {"train": 1 - validation - test, "validation": validation, "test": test}
    used = {name: share for name, share in shares.items() if share > 0}
    place = _assigned(empty, used)
    rows = {name: (place == n).nonzero().flatten() for n, name in enumerate(used)}
    none = empty.validation
    return replace(empty, train=rows["train"], validation=rows.get("validation", none), test=rows.get("test", none))


def folds(labels: Column, *, groups: Column | None = None, k: int = 5, seed: int = 0) -> tuple[Split, ...]:
    """Split rows at random into folds, each of which is the test part once.

    Args:
        labels: as for `split_rows`.
        groups: which group each row is of; without them each row is its own.
        k: number of folds, at least 2.
        seed: of the shuffles.

    Returns:
        A split for each fold: its rows are for testing, all others for training, none for validation.

    Raises:
        ProbeError: when a class is in fewer groups than there are folds, there are fewer groups than folds or fewer
            than two folds, or groups are not of the same rows.

    Example:
        >>> [(len(fold.train), len(fold.test)) for fold in folds([0, 0, 0, 1, 1, 1], k=3)]
        [(4, 2), (4, 2), (4, 2)]
    """
    if k < 2:
        raise ProbeError(f"cross-validation needs at least 2 folds, not {k}")
    empty = _unsplit(labels, groups, seed)
    place = _assigned(empty, {f"fold {n}": 1 / k for n in range(k)})
    return tuple(
        replace(empty, train=(place != n).nonzero().flatten(), test=(place == n).nonzero().flatten()) for n in range(k)
    )


def given_split(
    labels: Column,
    *,
    train: Column,
    test: Column,
    validation: Column = (),
    groups: Column | None = None,
    texts: Sequence[str] | None = None,
) -> Split:
    """Check a split that was made elsewhere.

    Args:
        labels: as for `split_rows`, of all rows; rows may be in no part.
        train: row numbers from 0 on, in any order.
        test: row numbers.
        validation: row numbers; none by default.
        groups: which group each row is of; without them each row is its own.
        texts: of all rows, to look for the same one in two parts.

    Returns:
        The split, with the rows of each part in ascending order.

    Raises:
        ProbeError: when a row is in two parts or twice in one, is not among the labels, or train or test is empty.

    Warns:
        InterpWarning: for a group or text in two parts, as `check_leakage` does, and for a class that is not in train.

    Example:
        >>> given_split(["a", "b", "a", "b"], train=[1, 0], test=[3, 2]).train.tolist()
        [0, 1]
    """
    empty = _unsplit(labels, groups, None)
    given = {"train": train, "validation": validation, "test": test}
    rows = {name: sorted(int(row) for row in _items(part)) for name, part in given.items()}
    if not rows["train"] or not rows["test"]:
        raise ProbeError(f"train and test need rows, but have {len(rows['train'])} and {len(rows['test'])}")
    total = len(empty.groups)
    for name, part in rows.items():
        if outside := [row for row in part if not 0 <= row < total]:
            raise ProbeError(f"rows go from 0 to {total - 1}, but {name} has {_some(outside)}")
        if twice := [row for row, following in itertools.pairwise(part) if row == following]:
            raise ProbeError(f"a row counts once, but {name} has {_some(twice)} more than once")
    for first, second in itertools.combinations(rows, 2):
        if shared := sorted({*rows[first]} & {*rows[second]}):
            raise ProbeError(f"a row is in one part, but {first} and {second} share {len(shared)}: {_some(shared)}")
    parts = [torch.tensor(rows[name], dtype=torch.long) for name in ("train", "validation", "test")]
    split = replace(empty, train=parts[0], validation=parts[1], test=parts[2])
    found = _leaks(split, None, texts)
    known = {*split.classes[split.train].tolist()}
    if unknown := [str(name) for n, name in enumerate(split.class_names) if n not in known]:
        found.append(f"no row of train is of class {_some(unknown)}: no probe predicts it")
    for sentence in found:
        warnings.warn(sentence, InterpWarning, stacklevel=2)
    return split


def check_leakage(split: Split, *, groups: Column | None = None, texts: Sequence[str] | None = None) -> tuple[str, ...]:
    """Warn of what is in two parts of a split: a group, or a text, also in other case or with other white space.

    Args:
        split: rows of three parts.
        groups: which group each row is of; the split's own by default.
        texts: of all rows.

    Returns:
        What was found, a sentence for each pair of parts and kind; empty when all is well.

    Raises:
        ProbeError: for groups or texts of other rows.

    Warns:
        InterpWarning: with each of these sentences.

    Example:
        >>> split = split_rows([0, 1, 0, 1], validation=0, test=0.5)
        >>> check_leakage(split, groups=[0, 1, 2, 3], texts=["a", "b", "c", "d"])
        ()
    """
    found = _leaks(split, groups, texts)
    for sentence in found:
        warnings.warn(sentence, InterpWarning, stacklevel=2)
    return tuple(found)


def number_groups(groups: Column, rows: int) -> tuple[Int[Tensor, " row"], tuple[Hashable, ...]]:
    """Number groups from 0 on, in the order in which they first appear.

    Args:
        groups: anything that can be told apart, for each row.
        rows: how many there must be.

    Returns:
        The number of each row's group, and the name of each group.

    Raises:
        ProbeError: when there is not one group for each row.

    Example:
        >>> number_groups(["b", "a", "b"], 3)
        (tensor([0, 1, 0]), ('b', 'a'))
    """
    items = _items(groups)
    if len(items) != rows:
        raise ProbeError(f"each row is of one group, but there are {len(items)} for {rows} rows")
    numbers = {name: n for n, name in enumerate(dict.fromkeys(items))}
    return torch.tensor([numbers[item] for item in items], dtype=torch.long), tuple(numbers)


def _items(column: Column) -> list[Any]:
    """The values as Python has them, which can be told apart."""
    if not isinstance(column, Tensor | np.ndarray):
        return list(column)
    if column.ndim != 1:
        raise ProbeError(f"there is one value for each row, but the shape is {tuple(column.shape)}")
    return list(column.tolist())


def _unsplit(labels: Column, groups: Column | None, seed: int | None) -> Split:
    """What a split says about rows before they are in a part."""
    items = _items(labels)
    rows, none = len(items), torch.empty(0, dtype=torch.long)
    if not rows:
        raise ProbeError("there are no rows to split")
    numbers, names = number_groups(range(rows) if groups is None else groups, rows)
    regression = any(isinstance(item, float) for item in items)
    classes, class_names = (torch.zeros(rows, dtype=torch.long), ()) if regression else number_groups(items, rows)
    order = _order(class_names)
    return Split(
        train=none,
        validation=none,
        test=none,
        groups=numbers,
        group_names=names,
        classes=classes if regression else torch.tensor(order).argsort()[classes],
        class_names=tuple(class_names[n] for n in order),
        seed=seed,
    )


def _order(names: Sequence[Any]) -> list[int]:
    """Classes by number or alphabet where all are of a kind, and otherwise as they come."""
    alike = all(isinstance(name, int) for name in names) or all(isinstance(name, str) for name in names)
    return sorted(range(len(names)), key=names.__getitem__) if alike else list(range(len(names)))


def _assigned(split: Split, shares: dict[str, float]) -> Int[Tensor, " row"]:
    """The part of each row, with every class in each part."""
    names = split.class_names or ("any label",)
    counts = np.zeros((len(split.group_names), len(names)), dtype=np.int64)
    np.add.at(counts, (split.groups.numpy(), split.classes.numpy()), 1)
    parts = f"{len(shares)} parts ({', '.join(shares)})"
    for name, groups in zip(names, (counts > 0).sum(0).tolist(), strict=True):
        if groups < len(shares):
            what = f"class {name!r} occurs" if split.class_names else "rows occur"
            raise ProbeError(
                f"{what} in {groups} group{'s' * (groups != 1)}, too few for each of {parts}: give finer groups or "
                "more rows, ask for fewer parts, or leave that class out"
            )
    place = _assign(counts, np.array([*shares.values()]), split.seed or 0)
    for n, part in enumerate(shares):
        absent = [str(names[c]) for c in np.flatnonzero(counts[place == n].sum(0) == 0)]
        if absent:
            raise ProbeError(
                f"no way was found to give each of {parts} whole groups of every class: {part} has none of "
                f"{_some(absent)}; another seed or other shares may do, or fewer parts"
            )
    return torch.from_numpy(place)[split.groups]


def _assign(counts: NDArray[Any], shares: NDArray[Any], seed: int) -> NDArray[Any]:
    """The part of each group, for `[group, class]` numbers of rows; the best of some shuffles."""
    generator = np.random.default_rng(seed)
    kinds, kind_of, members = np.unique(counts, axis=0, return_inverse=True, return_counts=True)
    table = _Table(kinds, members, shares)
    tries = [table.fill(generator) for _ in range(_ATTEMPTS if len(kinds) <= _MANY else 1)]
    dealt = min(tries, key=table.cost)
    # Which groups of a kind go where is chance.
    shuffled = generator.permutation(len(counts))
    order = shuffled[np.argsort(kind_of.reshape(-1)[shuffled], kind="stable")]
    place = np.empty(len(counts), dtype=np.int64)
    place[order] = np.repeat(np.tile(np.arange(len(shares)), len(kinds)), dealt.reshape(-1))
    return place


class _Table:
    """How many groups of each kind go to each part; groups with the same number of rows of each class are of a kind.

    What it costs is the sum, over parts, of squared differences from the wanted numbers of rows, in total and of each
    class, those of the frequent classes counting less; and more than all of this for a class that is not in a part.
    """

    def __init__(self, kinds: NDArray[Any], members: NDArray[Any], shares: NDArray[Any]) -> None:
        self.members, self.shares = members, shares
        self.rows = np.concatenate([kinds, kinds.sum(1, keepdims=True)], axis=1).astype(np.float64)
        totals = members @ self.rows
        self.wanted = shares[:, None] * totals
        self.weights = np.concatenate([totals[:-1].min() / totals[:-1], [1.0]])
        self.absent = 8 * (totals[-1] + 1) ** 2

    def cost(self, dealt: NDArray[Any]) -> float:
        """Of a table `[kind, part]`."""
        have = dealt.T @ self.rows
        return float((self.weights * (have - self.wanted) ** 2).sum() + self.absent * (have == 0).sum())

    def fill(self, generator: np.random.Generator) -> NDArray[Any]:
        """Deal all groups: in proportion as far as that goes, then each to where it is lacked most, then mend."""
        dealt: NDArray[Any] = np.floor(self.members[:, None] * self.shares + 1e-9).astype(np.int64)
        left = np.repeat(np.arange(len(dealt)), self.members - dealt.sum(1))
        generator.shuffle(left)
        excess = dealt.T @ self.rows - self.wanted
        for kind in left:
            part = (excess @ (self.weights * self.rows[kind])).argmin()
            dealt[kind, part] += 1
            excess[part] += self.rows[kind]
        for _ in range(_MANY):
            if not self.mend(dealt):
                break
        return dealt

    def mend(self, dealt: NDArray[Any]) -> bool:
        """Move the one group whose move lowers the cost most, if there is one."""
        have, some = dealt.T @ self.rows, self.rows[:, None] > 0
        weighted = self.weights * self.rows
        pull = weighted @ (have - self.wanted).T
        new = (some & (have == 0)).sum(-1)
        lost = (some & (have == self.rows[:, None])).sum(-1)
        leaving = -2 * pull + self.absent * lost
        arriving = 2 * pull - self.absent * new
        change = leaving[:, :, None] + arriving[:, None, :] + 2 * (weighted * self.rows).sum(1)[:, None, None]
        change[dealt == 0] = np.inf
        change[:, range(len(have)), range(len(have))] = np.inf
        kind, source, goal = np.unravel_index(change.argmin(), change.shape)
        if float(change[kind, source, goal]) > -1e-6:  # less is rounding
            return False
        dealt[kind, source] -= 1
        dealt[kind, goal] += 1
        return True


def _leaks(split: Split, groups: Column | None, texts: Sequence[str] | None) -> list[str]:
    """A sentence for each kind of thing and two parts that share some."""
    rows = len(split.groups)
    own = (split.groups, split.group_names)
    sides = [("group", *(own if groups is None else number_groups(groups, rows)))]
    if texts is not None:
        sides.append(("text", *number_groups([" ".join(text.casefold().split()) for text in texts], rows)))
    return [
        sentence
        for kind, numbers, names in sides
        for first, second in itertools.combinations(split.parts, 2)
        for sentence in _shared(split, kind, numbers, names, first, second)
    ]


def _shared(
    split: Split, kind: str, numbers: Tensor, names: tuple[Hashable, ...], first: str, second: str
) -> list[str]:
    """A sentence about what two parts share, if anything."""
    parts = split.parts
    both = {*numbers[parts[first]].tolist()} & {*numbers[parts[second]].tolist()}
    if not both:
        return []
    rows = [_some(parts[name][[n in both for n in numbers[parts[name]].tolist()]].tolist()) for name in (first, second)]
    known = [str(names[n]) for n in sorted(both)]
    shown = _some([repr(name) if len(name) <= _LONG else f"{name[:_LONG]!r}..." for name in known])
    what = f"{len(both)} {kind}{'s are' if len(both) > 1 else ' is'} in {first} and in {second}: {shown}"
    where = f"rows {rows[0]} of {first}, rows {rows[1]} of {second}"
    return [f"{what} ({where}): scores there say little about new {kind}s"]


def _some(items: Sequence[object]) -> str:
    rest = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(str(item) for item in items[:_SHOWN]) + rest


__all__ = ["Split", "check_leakage", "folds", "given_split", "number_groups", "split_rows"]
