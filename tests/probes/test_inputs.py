"""What probes take as labels and activations, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from interp_toolkit.errors import ProbeError
from interp_toolkit.probes.inputs import check_finite, read_rows, read_targets


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (torch.tensor([True, False]), (False, True)),
        (np.array([3, 1], dtype=">i8"), (1, 3)),
        (np.array([np.int64(3), 1], dtype=object), (1, 3)),
        ([torch.tensor(3), torch.tensor(1)], (1, 3)),
        (pd.Series(["b", "a"], index=[7, 9]), ("a", "b")),
        (pd.Series(["b", "a"], dtype="category"), ("a", "b")),
        (pd.Series([3, 1], dtype="Int64"), (1, 3)),
        (torch.tensor([2.0, 1.0], dtype=torch.bfloat16), (1.0, 2.0)),
    ],
)
def test_classes_are_read_from_what_holds_them(labels: Any, classes: tuple[Any, ...]) -> None:
    found = read_targets(labels)
    assert found.classes == classes
    assert found.index is not None
    assert found.index.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (pd.Series(["a", pd.NA, "b"], dtype="string"), "missing .* in rows 1"),
        (pd.Series([1, pd.NA, 2], dtype="Int64"), "rows 1"),
        (pd.Series([pd.NaT, "a", "b"], dtype=object), "missing .* in rows 0"),
        ([1, float("nan"), 2], "rows 1"),
        (["a", "b", 1], "all names or all whole numbers"),
        ([b"a", b"b", b"a"], "Unknown label type"),
        ("abc", "1d array"),
        ({0, 1}, "1d array"),
        (3, "1d array"),
        ([1.5, 2.0, 1.0], "Row 0 has the label 1.5"),
    ],
)
def test_what_are_no_classes_is_refused(labels: Any, message: str) -> None:
    with pytest.raises(ProbeError, match=message):
        read_targets(labels)


@pytest.mark.parametrize(
    "labels",
    [
        [{"a", "b"}, {"b"}],
        [["a", "b"], ["b"]],
        [("a", "b"), ("b",)],
        pd.Series([{"a", "b"}, {"b"}]),
        [["b", "a"], ["b", "b"]],
    ],
)
def test_labels_are_sets_of_names(labels: Any) -> None:
    found = read_targets(labels, "labels")
    assert found.classes == ("a", "b")
    assert found.table is not None
    assert found.table.tolist() == [[1, 1], [0, 1]]


@pytest.mark.parametrize("labels", [[(1, 1), (0, 1)], [[1, 1], [0, 1]], torch.tensor([[True, True], [False, True]])])
def test_a_table_of_zeros_and_ones_is_one_also_as_tuples(labels: Any) -> None:
    found = read_targets(labels, "labels")
    assert found.table is not None
    assert found.table.tolist() == [[1, 1], [0, 1]]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([{"a"}, None, "b"], "rows 1, 2 hold something else"),
        ([{"a", 1}, {"b"}], "all names or all whole numbers"),
        ([{"a"}, {None}], "all names or all whole numbers"),
        ([[0, 2], [1, 0]], "rows 0 hold others"),
        ([[0.0, float("nan")], [1, 0]], "rows 0 hold others"),
    ],
)
def test_what_are_no_labels_is_refused(labels: Any, message: str) -> None:
    with pytest.raises(ProbeError, match=message):
        read_targets(labels, "labels")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_large_numbers_are_finite_and_opposite_infinities_are_not(dtype: torch.dtype) -> None:
    x = torch.full((300, 4), torch.finfo(dtype).max, dtype=dtype)
    check_finite(x, len(x))
    x[150:] = torch.finfo(dtype).min
    check_finite(x, len(x))
    x[3, 0], x[7, 1], x[9, 2] = torch.inf, -torch.inf, torch.nan
    with pytest.raises(ProbeError, match="in 3 of 300 rows: 3, 7, 9"):
        check_finite(x, len(x))


@pytest.mark.parametrize(
    "x",
    [
        np.eye(3, dtype=">f8"),
        np.eye(3, dtype=np.longdouble),
        np.eye(3)[::-1],
        torch.eye(3).long(),
        pd.DataFrame(np.eye(3)),
    ],
)
def test_rows_are_read_from_any_table_of_numbers(x: Any) -> None:
    assert read_rows(x).shape == (3, 3)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.complex(torch.eye(3), torch.eye(3)), "Complex"),
        (torch.eye(3).to_sparse(), "dense"),
        (np.array([["a"]]), "numbers"),
        ([[1, 2], [1]], "a table of numbers"),
        (torch.zeros(2, 3, 4), "shape .row, d."),
        (torch.zeros(0, 3), "no activations"),
    ],
)
def test_what_are_no_rows_is_refused(x: Tensor, message: str) -> None:
    with pytest.raises(ProbeError, match=message):
        read_rows(x)
