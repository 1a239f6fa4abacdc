"""What makes a probe's score believable: bags of words, control tasks, permutations and code length."""

from __future__ import annotations

import math
from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from interp_toolkit.errors import ProbeError
from interp_toolkit.probes.controls import bag_of_words, control_task, online_code_length, permutations

# --- bags of words -------------------------------------------------------------------------------------------------


def test_words_of_test_rows_alone_are_not_in_the_vocabulary() -> None:
    texts = ["Rome, Rome is old.", "Paris IS new", "old rome"]
    found = bag_of_words(texts, torch.tensor([0, 2]))
    assert found.shape == (3, 5)  # rome, comma, is, old, point
    assert found.sum(1).tolist() == [6.0, 1.0, 2.0]
    assert found[0].max() == 2


def test_a_small_vocabulary_holds_the_most_frequent_words() -> None:
    assert bag_of_words(["a a a b b c", "c"], torch.tensor([0]), size=2).tolist() == [[3.0, 2.0], [0.0, 0.0]]


def test_texts_without_words_give_one_empty_column() -> None:
    assert bag_of_words(["", " "], torch.tensor([0])).tolist() == [[0.0], [0.0]]


# --- control tasks -------------------------------------------------------------------------------------------------


def test_words_on_both_sides_keep_the_rows_of_the_real_task() -> None:
    words = [f"w{n % 30}" for n in range(300)] + ["rare"]
    labels = torch.arange(301) % 3 % 2  # a third of the rows is 1
    train, test = torch.arange(200), torch.arange(200, 301)
    task = control_task(labels, words, train, test)
    assert task is not None
    assert task.train.tolist() == train.tolist()
    assert task.test.tolist() == test[:-1].tolist(), "a word that was never trained cannot be memorised"
    of_words = {word: {int(task.labels[n]) for n in range(301) if words[n] == word} for word in set(words)}
    assert all(len(classes) == 1 for classes in of_words.values())
    assert 8 <= sum(classes == {1} for classes in of_words.values()) <= 12, "as often as in the real task"


@pytest.mark.parametrize("seed", range(5))
def test_groups_on_one_side_are_dealt_anew_so_that_each_is_trained(seed: int) -> None:
    groups = [n // 4 for n in range(200)]
    train, test = torch.arange(0, 120), torch.arange(160, 200)
    task = control_task(torch.arange(200) % 2, groups, train, test, seed=seed)
    assert task is not None
    assert (len(task.train), len(task.test)) == (120, 40), "as many rows as the real task"
    assert sorted([*task.train.tolist(), *task.test.tolist()]) == [*range(120), *range(160, 200)]
    assert {groups[n] for n in task.test.tolist()} <= {groups[n] for n in task.train.tolist()}
    assert len({tuple(task.labels[n : n + 4].tolist()) for n in range(0, 120, 4)} - {(0,) * 4, (1,) * 4}) == 0


def test_control_labels_differ_by_seed_and_say_nothing_about_the_real_ones() -> None:
    labels = torch.arange(400) % 2
    rows = torch.arange(400)
    words = [n // 2 % 100 for n in range(400)]
    tasks = [control_task(labels, words, rows[:200], rows[200:], seed=seed) for seed in range(20)]
    made = [tuple(task.labels.tolist()) for task in tasks if task is not None]
    assert len(set(made)) == 20
    assert abs(np.mean([np.mean(np.array(one) == labels.numpy()) for one in made]) - 0.5) < 0.05


def test_without_a_key_that_occurs_twice_there_is_no_control_task() -> None:
    rows = torch.arange(8)
    assert control_task(rows % 2, range(8), rows[:4], rows[4:]) is None
    assert control_task(rows % 2, ["one"] * 8, rows[:4], rows[4:]) is None, "one key has one class"
    with pytest.raises(ProbeError, match="8 rows, but 3 keys"):
        control_task(rows % 2, "abc", rows[:4], rows[4:])


# --- permutations --------------------------------------------------------------------------------------------------


def drawn(labels: Tensor, groups: Tensor, parts: list[Tensor], number: int = 50, seed: int = 0) -> Tensor:
    orders = islice(permutations(labels[:, None], groups, parts, seed=seed), number)
    return torch.stack([labels[order] for order in orders])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.booleans(), st.integers(0, 1)), min_size=2, max_size=12), st.integers())
def test_labels_stay_in_their_part_and_groups_stay_whole(shape: list[tuple[int, bool, int]], seed: int) -> None:
    """Groups of some sizes, of one class or of alternating ones, in two parts."""
    sizes = torch.tensor([size for size, _, _ in shape])
    groups = torch.arange(len(sizes)).repeat_interleave(sizes)
    within = torch.cat([torch.arange(size) for size in sizes])
    mixed, first = (torch.tensor([s[n] for s in shape])[groups].long() for n in (1, 2))
    labels = (first + mixed * within) % 2
    parts = [(groups % 2 == n).nonzero()[:, 0] for n in (0, 1)]
    for order in islice(permutations(labels[:, None], groups, parts, seed=seed % 2**31), 5):
        for part in parts:
            giver = order[part]
            assert set(giver.tolist()) <= set(part.tolist())
            given_by = [set(groups[order[groups == group]].tolist()) for group in groups[part].unique()]
            assert all(len(one) == 1 for one in given_by), "a group gets its labels from one group"
            if any(len(labels[groups == group].unique()) > 1 for group in groups[part].unique()):
                assert sorted(giver.tolist()) == sorted(part.tolist()), "of equal size, so that all are given once"
            else:
                assert len({one.pop() for one in given_by}) == len(given_by)


def test_pairs_keep_one_of_each_class_and_every_exchange_is_as_likely() -> None:
    pairs = torch.arange(20) // 2
    found = drawn(torch.arange(20) % 2, pairs, [torch.arange(20)], 2000)
    assert bool((found.reshape(2000, 10, 2).sum(-1) == 1).all())
    assert float((found.double().mean(0) - 0.5).abs().max()) < 0.05


def test_groups_of_one_class_exchange_it() -> None:
    groups = torch.tensor([0, 0, 0, 1, 1, 2, 3])
    found = drawn(torch.tensor([1, 1, 1, 0, 0, 0, 0]), groups, [torch.arange(7)], 2000)
    assert bool((found[:, 0] == found[:, 1]).all())
    assert bool((found[:, 0] == found[:, 2]).all())
    assert float((found[:, [0, 3, 5, 6]].double().mean(0) - 0.25).abs().max()) < 0.05


def test_rows_without_groups_are_permuted_within_their_part() -> None:
    labels = torch.tensor([1, 1, 0, 0, 0, 0, 0, 1])
    parts = [torch.arange(4), torch.arange(4, 8)]
    found = drawn(labels, torch.arange(8), parts, 2000)
    assert bool((found[:, :4].sum(1) == 2).all())
    assert bool((found[:, 4:].sum(1) == 1).all())
    wanted = torch.tensor([0.5] * 4 + [0.25] * 4)
    assert float((found.double().mean(0) - wanted).abs().max()) < 0.05


# --- code length ---------------------------------------------------------------------------------------------------


def test_the_online_code_is_that_of_a_loop_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 5))
    y = rng.binomial(1, 1 / (1 + np.exp(-2 * x[:, 0])))
    order = rng.permutation(400)

    def fit(known: Tensor, new: Tensor) -> Tensor:
        made = make_pipeline(StandardScaler(), LogisticRegression()).fit(x[known], y[known])
        return torch.from_numpy(made.predict_log_proba(x[new]))

    bits, uniform = online_code_length(fit, torch.from_numpy(y), torch.from_numpy(order), 2)
    ends = [8, 16, 32, 64, 128, 256, 400]
    wanted = float(ends[0])
    for a, b in pairwise(ends):
        made = make_pipeline(StandardScaler(), LogisticRegression()).fit(x[order[:a]], y[order[:a]])
        told = made.predict_proba(x[order[a:b]])[np.arange(b - a), y[order[a:b]]]
        wanted -= np.log2(told).sum()
    assert bits == pytest.approx(wanted / 400, rel=1e-9)
    assert uniform == 1.0
    assert 0.5 < bits < 1


def test_the_first_portion_ends_when_every_class_was_seen() -> None:
    asked: list[tuple[int, int]] = []

    def fit(known: Tensor, new: Tensor) -> Tensor:
        asked.append((len(known), len(new)))
        return torch.full((len(new), 3), 1 / 3).log()

    labels = torch.tensor([0, 1] * 20 + [2, 0, 1] * 20)
    bits, uniform = online_code_length(fit, labels, torch.arange(100), 3)
    assert asked == [(64, 36)], "the third class comes at row 40, and portions end at 32 and 64"
    assert bits == pytest.approx(math.log2(3))
    assert uniform == math.log2(3)
    assert online_code_length(fit, labels, torch.arange(40), 3) == (math.log2(3), math.log2(3)), "all sent evenly"


def test_no_portion_ends_within_a_group() -> None:
    groups = torch.arange(100) // 7
    ends: list[int] = []

    def fit(known: Tensor, new: Tensor) -> Tensor:
        ends.append(len(known))
        return torch.full((len(new), 2), 0.5).log()

    online_code_length(fit, torch.arange(100) % 2, torch.arange(100), 2, groups=groups)
    assert ends == [7, 14, 21, 35, 70]
    with pytest.raises(ProbeError, match="torn apart"):
        online_code_length(fit, torch.arange(100) % 2, torch.randperm(100), 2, groups=groups)
