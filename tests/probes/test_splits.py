"""Splits: groups stay whole, all classes are in all parts, proportions are near, and leaks are named."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch

from interp_toolkit.errors import InterpWarning, ProbeError
from interp_toolkit.probes.splits import Split, check_leakage, folds, given_split, number_groups, split_rows

quick = hypothesis.settings(max_examples=40, deadline=None, derandomize=True)


def everything(split: Split) -> list[int]:
    return sorted(row for part in split.parts.values() for row in part.tolist())


def members(split: Split, groups: Sequence[Any]) -> list[set[Any]]:
    return [{groups[row] for row in part.tolist()} for part in split.parts.values()]


def disjoint(sets: list[set[Any]]) -> bool:
    return sum(map(len, sets)) == len(set().union(*sets))


@st.composite
def grouped_rows(draw: st.DrawFn) -> tuple[list[str], list[int]]:
    """Up to four classes in up to 30 groups of 1 to 8 rows; each class in at least four groups of its own."""
    classes = draw(st.integers(1, 4))
    sizes = draw(st.lists(st.integers(1, 8), min_size=4 * classes, max_size=30))
    labels, groups = [], []
    for group, size in enumerate(sizes):
        own = group % classes
        mixed = group >= 4 * classes and draw(st.booleans())
        labels += [f"class {draw(st.integers(0, classes - 1)) if mixed else own}" for _ in range(size)]
        groups += [group] * size
    order = draw(st.permutations(range(len(labels))))
    return [labels[n] for n in order], [groups[n] for n in order]


# --- what holds for all splits --------------------------------------------------------------------------------------


@quick
@hypothesis.given(grouped_rows(), st.floats(0.15, 0.3), st.floats(0.15, 0.3), st.integers(0, 5))
def test_groups_stay_whole_all_rows_are_used_once_and_every_class_is_everywhere(
    rows: tuple[list[str], list[int]], validation: float, test: float, seed: int
) -> None:
    labels, groups = rows
    split = split_rows(labels, groups=groups, validation=validation, test=test, seed=seed)
    assert everything(split) == list(range(len(labels)))
    assert list(split.parts) == ["train", "validation", "test"]
    assert disjoint(members(split, groups))
    assert all(part == set(labels) for part in members(split, labels))
    largest = max(map(groups.count, groups))
    for part, share in zip(split.parts.values(), (1 - validation - test, validation, test), strict=True):
        assert part.tolist() == sorted(part.tolist())
        # One whole group, and one for each class that has to be in the part.
        assert abs(len(part) - share * len(labels)) <= (1 + len(set(labels))) * largest
    assert check_leakage(split) == ()


@quick
@hypothesis.given(
    st.lists(st.integers(10, 60), min_size=1, max_size=12), st.floats(0.1, 0.4), st.floats(0.1, 0.4), st.integers(0, 5)
)
def test_without_groups_numbers_are_as_near_to_proportions_as_documented(
    sizes: list[int], validation: float, test: float, seed: int
) -> None:
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    split = split_rows(labels, validation=validation, test=test, seed=seed)
    assert everything(split) == list(range(len(labels)))
    for part, share in zip(split.parts.values(), (1 - validation - test, validation, test), strict=True):
        assert abs(len(part) - share * len(labels)) <= 1
        counts = labels[part].bincount(minlength=len(sizes))
        assert float((counts - share * torch.tensor(sizes)).abs().max()) < 2
        assert int(counts.min()) >= 1


@quick
@hypothesis.given(grouped_rows(), st.integers(2, 4), st.integers(0, 5))
def test_each_row_is_tested_on_in_one_fold_and_trained_on_in_all_others(
    rows: tuple[list[str], list[int]], k: int, seed: int
) -> None:
    labels, groups = rows
    found = folds(labels, groups=groups, k=k, seed=seed)
    assert len(found) == k
    assert sorted(row for fold in found for row in fold.test.tolist()) == list(range(len(labels)))
    for fold in found:
        assert everything(fold) == list(range(len(labels)))
        assert len(fold.validation) == 0
        assert disjoint(members(fold, groups))
        assert all(part == set(labels) for part in members(fold, labels))


def test_exact_proportions_are_met_where_rows_or_alike_groups_allow_them() -> None:
    labels = torch.tensor([0, 1] * 50)
    split = split_rows(labels, validation=0.2, test=0.25)
    assert [len(part) for part in split.parts.values()] == [55, 20, 25]
    assert abs(int(labels[split.train].sum()) - 27.5) == 0.5
    pairs = split_rows(labels, groups=torch.arange(100) // 2, validation=0.2, test=0.3)
    assert [len(part) for part in pairs.parts.values()] == [50, 20, 30]
    assert [int(labels[part].sum()) for part in pairs.parts.values()] == [25, 10, 15]
    assert [len(fold.test) for fold in folds(labels, groups=torch.arange(100) // 2)] == [20] * 5


def test_stratification_of_uneven_groups_is_better_than_the_best_of_many_blind_shuffles() -> None:
    generator = np.random.default_rng(0)
    for seed in range(5):
        counts = generator.integers(0, 12, size=(25, 3))
        labels = np.concatenate([np.repeat(np.arange(3), row) for row in counts])
        groups = np.repeat(np.arange(25), counts.sum(1))
        wanted = np.array([0.55, 0.2, 0.25])[:, None] * counts.sum(0)

        def off(parts: list[Any], counts: Any = counts, wanted: Any = wanted) -> tuple[float, float]:
            """Squared differences from the shares, of rows and of classes; the largest of a class, as a share of it."""
            change = np.stack([counts[list(part)].sum(0) for part in parts]) - wanted
            return float((change**2).sum() + (change.sum(1) ** 2).sum()), float((abs(change) / counts.sum(0)).max())

        split = split_rows(labels, groups=groups, seed=seed)
        ours = off([{int(groups[row]) for row in part.tolist()} for part in split.parts.values()])
        blind = [off(np.split(generator.permutation(25), [14, 19])) for _ in range(200)]
        assert ours[0] < min(blind)[0]
        assert ours[1] < 0.05


def test_small_differences_in_many_classes_do_not_add_up() -> None:
    sizes = [1 + n % 3 for n in range(8)]
    labels = [f"class {c}" for c in range(20) for size in sizes for _ in range(size)]
    groups = [(c, n) for c in range(20) for n, size in enumerate(sizes) for _ in range(size)]
    for seed in range(5):
        split = split_rows(labels, groups=groups, seed=seed)
        for part, share in zip(split.parts.values(), (0.55, 0.2, 0.25), strict=True):
            assert abs(len(part) - share * len(labels)) <= 1


def test_which_groups_are_tested_on_is_chance_whatever_their_size() -> None:
    """Over seeds, small and large groups are in the test part about equally often."""
    sizes = [2] * 12 + [9] * 12 + [5] * 12
    groups = [g for g, size in enumerate(sizes) for _ in range(size)]
    labels = [g % 2 for g in groups]
    often = np.zeros(36)
    for seed in range(100):
        split = split_rows(labels, groups=groups, validation=0, test=0.25, seed=seed)
        often[list({groups[row] for row in split.test.tolist()})] += 1
    assert 0.15 < often[:12].mean() / 100 < 0.35
    assert 0.15 < often[12:24].mean() / 100 < 0.35
    assert often.min() > 5
    assert often.max() < 50


def test_the_seed_decides_and_nothing_else_is_touched() -> None:
    labels, groups = ["a", "b", "c"] * 20, [n // 4 for n in range(60)]
    torch.manual_seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002 - it must not be touched
    splits = [split_rows(labels, groups=groups, seed=seed) for seed in (0, 0, 1)]
    assert (torch.equal(torch.get_rng_state(), before[0]), np.random.get_state()[1].tolist()) == (True, before[1])  # noqa: NPY002
    assert [split.seed for split in splits] == [0, 0, 1]
    assert torch.equal(splits[0].test, splits[1].test)
    assert not torch.equal(splits[0].test, splits[2].test)


def test_a_class_in_just_enough_groups_is_everywhere() -> None:
    labels = ["common"] * 60 + ["rare"] * 3
    groups = [n // 3 for n in range(60)] + [100, 101, 102]
    for seed in range(20):
        split = split_rows(labels, groups=groups, validation=0.1, test=0.1, seed=seed)
        assert [sum(labels[row] == "rare" for row in part.tolist()) for part in split.parts.values()] == [1, 1, 1]


def test_regression_labels_are_split_by_groups_alone() -> None:
    labels = torch.randn(40, generator=torch.Generator().manual_seed(0))
    groups = torch.arange(40) // 4
    for given in (labels, labels.numpy(), labels.tolist()):
        split = split_rows(given, groups=groups, validation=0.2, test=0.3)
        assert [len(part) for part in split.parts.values()] == [20, 8, 12]
        assert disjoint(members(split, groups.tolist()))
        assert split.class_names == ()


def test_tables_of_any_kind_give_the_same_split() -> None:
    labels, groups = torch.tensor([0, 1] * 15), torch.arange(30) // 3
    one = split_rows(labels, groups=groups)
    for other in (
        split_rows(labels.numpy(), groups=groups.numpy()),
        split_rows(labels.tolist(), groups=[f"g{int(g)}" for g in groups]),
        split_rows(["no", "yes"] * 15, groups=groups),
        split_rows(labels.bool(), groups=groups),
    ):
        assert all(torch.equal(part, other.parts[name]) for name, part in one.parts.items())
    assert one.class_names == (0, 1)
    assert split_rows(["no", "yes"] * 15).class_names == split_rows(["yes", "no"] * 15).class_names == ("no", "yes")
    assert split_rows(["yes", "no"] * 15).classes.tolist() == [1, 0] * 15
    assert split_rows([1, None] * 15).class_names == (1, None)


def test_many_rows_are_split_in_a_moment() -> None:
    labels = torch.randint(5, (50_000,), generator=torch.Generator().manual_seed(0))
    split = split_rows(labels, groups=torch.arange(50_000) // 20)
    assert [len(part) / 50_000 for part in split.parts.values()] == pytest.approx([0.55, 0.2, 0.25], abs=1e-3)
    shares = torch.stack([labels[part].bincount() / len(part) for part in split.parts.values()])
    assert float((shares - labels.bincount() / 50_000).abs().max()) < 2e-3


# --- what cannot be split -------------------------------------------------------------------------------------------


def test_a_class_that_would_be_missing_is_named_with_its_groups_and_what_would_work() -> None:
    labels = ["a"] * 20 + ["b"] * 20
    groups = [n // 2 for n in range(20)] + [n // 10 + 50 for n in range(20)]
    with pytest.raises(ProbeError, match=r"class 'b' occurs in 2 groups, too few for each of 3 parts .* fewer parts"):
        split_rows(labels, groups=groups)
    assert len(split_rows(labels, groups=groups, validation=0, test=0.5).test) == 20
    with pytest.raises(ProbeError, match=r"class 'b' occurs in 2 groups, too few for each of 5 parts \(fold 0"):
        folds(labels, groups=groups)
    with pytest.raises(ProbeError, match=r"class 1 occurs in 1 group, too few"):
        split_rows([0, 0, 0, 0, 1])
    with pytest.raises(ProbeError, match=r"rows occur in 2 groups, too few for each of 3 parts"):
        split_rows([0.5, 1.5, 2.5], groups=[1, 1, 2])


def test_classes_that_only_come_together_in_a_way_that_fits_nowhere_are_named() -> None:
    # Every class is in three groups, but of four groups with two missing classes each there is no way into three parts.
    groups = {0: "abc", 1: "ade", 2: "bdf", 3: "cef", 4: "abcdef"}
    rows = [(group, name) for group, names in groups.items() for name in names]
    with pytest.raises(ProbeError, match=r"no way was found .* has none of [a-f](, [a-f])*; another seed"):
        split_rows([name for _, name in rows], groups=[group for group, _ in rows])


@pytest.mark.parametrize(("validation", "test"), [(0.5, 0.5), (-0.1, 0.2), (0.2, 1.2), (math.nan, 0.2)])
def test_shares_that_leave_nothing_to_train_on_are_refused(validation: float, test: float) -> None:
    with pytest.raises(ProbeError, match=re.escape(f"not validation={validation} and test={test}")):
        split_rows([0, 1] * 10, validation=validation, test=test)


def test_what_is_not_one_value_for_each_row_is_refused() -> None:
    with pytest.raises(ProbeError, match="there are 3 for 4 rows"):
        split_rows([0, 1, 0, 1], groups=[1, 2, 3])
    with pytest.raises(ProbeError, match=r"the shape is \(4, 1\)"):
        split_rows(torch.zeros(4, 1))
    with pytest.raises(ProbeError, match="no rows to split"):
        split_rows([])
    with pytest.raises(ProbeError, match="at least 2 folds, not 1"):
        folds([0, 1], k=1)


# --- splits from elsewhere, and leaks -------------------------------------------------------------------------------


def test_a_given_split_is_sorted_and_kept() -> None:
    split = given_split(list("abab") * 2, train=[3, 0, 1], validation=torch.tensor([5, 4]), test=np.array([7]))
    assert [part.tolist() for part in split.parts.values()] == [[0, 1, 3], [4, 5], [7]]
    assert (split.seed, split.class_names) == (None, ("a", "b"))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"train": [0, 1, 2], "test": [2, 1, 3]}, "train and test share 2: 1, 2"),
        ({"train": [0, 1], "validation": [2], "test": [2, 3]}, "validation and test share 1: 2"),
        ({"train": [0, 1, 1], "test": [2]}, "train has 1 more than once"),
        ({"train": [0, 1], "test": [2, 8, -1]}, "from 0 to 7, but test has -1, 8"),
        ({"train": [0, 1], "test": []}, "have 2 and 0"),
        ({"train": list(range(7)), "test": list(range(8))}, "share 7: 0, 1, 2, 3, 4 and 2 more"),
    ],
)
def test_rows_that_are_wrong_in_a_given_split_are_named(parts: dict[str, list[int]], message: str) -> None:
    with pytest.raises(ProbeError, match=re.escape(message)):
        given_split(["a", "b"] * 4, **parts)


def test_a_group_in_two_parts_is_named_with_its_rows() -> None:
    groups = ["cat", "cat", "dog", "dog", "emu", "cat"]
    with pytest.warns(InterpWarning) as caught:
        split = given_split([0, 1, 0, 1, 0, 1], train=[0, 1, 2], validation=[3, 4], test=[5], groups=groups)
    ending = ": scores there say little about new groups"
    assert [str(w.message) for w in caught] == [
        f"1 group is in train and in validation: 'dog' (rows 2 of train, rows 3 of validation){ending}",
        f"1 group is in train and in test: 'cat' (rows 0, 1 of train, rows 5 of test){ending}",
    ]
    with pytest.warns(InterpWarning):
        assert len(check_leakage(split)) == 2
    assert check_leakage(split, groups=[1, 1, 1, 2, 2, 3]) == ()


def test_equal_texts_in_two_parts_are_named_whatever_their_case_and_white_space() -> None:
    split = split_rows([0, 1] * 10, validation=0, test=0.5)
    texts = [f"text {n}" for n in range(20)]
    assert check_leakage(split, texts=texts) == ()
    first, second = int(split.train[0]), int(split.test[3])
    for one, other in (("Same.", "Same."), ("Straße\tA ", " STRASSE  a"), ("long " * 30, "Long " * 30)):
        texts[first], texts[second] = one, other
        with pytest.warns(InterpWarning) as caught:
            (found,) = check_leakage(split, texts=texts)
        assert str(caught[0].message) == found
        assert found.startswith("1 text is in train and in test: ")
        assert f"(rows {first} of train, rows {second} of test)" in found
        assert len(found) < 250
    texts[first], texts[second] = "Same.", "Same!"
    texts[int(split.train[1])] = "Same."  # twice in one part is no leak
    assert check_leakage(split, texts=texts) == ()
    with pytest.raises(ProbeError, match="19 for 20 rows"):
        check_leakage(split, texts=texts[1:])


def test_many_leaks_are_counted_and_some_are_named() -> None:
    split = split_rows([0, 1] * 20, validation=0, test=0.5)
    with pytest.warns(InterpWarning, match=r"40 texts|1 text is"):
        check_leakage(split, texts=["same"] * 40)
    parts = torch.empty(40, dtype=torch.long)
    parts[split.train] = parts[split.test] = torch.arange(20)
    with pytest.warns(InterpWarning, match=r"^20 groups are in train and in test: '0', '1', '2', '3', '4' and 15 more"):
        check_leakage(split, groups=parts)


def test_a_class_that_is_not_trained_on_is_named() -> None:
    with pytest.warns(InterpWarning, match="no row of train is of class c: no probe predicts it"):
        given_split(["a", "b", "c", "a"], train=[0, 1], test=[2, 3])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given_split([0.5, 1.5, 2.5, 3.5], train=[0, 1], test=[2, 3])


# --- what is said about a split -------------------------------------------------------------------------------------


def test_a_summary_counts_rows_groups_and_classes_of_each_part() -> None:
    split = given_split(["no", "yes", "yes", "no", "no"], train=[0, 1, 2], test=[3], groups=["p", "p", "q", "r", "s"])
    assert split.summary().splitlines() == [
        "part         rows   share  groups  no  yes",
        "train           3   60.0%       2   1    2",
        "test            1   20.0%       1   1    0",
    ]
    many = split_rows([f"class {n % 14}" for n in range(140)], validation=0, test=0.5).summary().splitlines()
    assert many[0].endswith("class 13  class 2  class 3  class 4  class 5  others")  # by the alphabet
    assert many[1].split()[-1] == "20"
    assert len({len(line) for line in many}) == 1
    assert "groups" in split_rows([0.5, 1.5, 2.5]).summary().splitlines()[0]


def test_groups_are_numbered_as_they_come() -> None:
    numbers, names = number_groups(["x", None, "x", 3], 4)
    assert (numbers.tolist(), names) == ([0, 1, 0, 2], ("x", None, 3))
    assert number_groups(torch.tensor([7, 7, 2]), 3)[1] == (7, 2)
