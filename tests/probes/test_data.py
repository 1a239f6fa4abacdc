"""Data are what was given, read alike from all formats, and refused with rows and lines where they are wrong."""

from __future__ import annotations

import csv
import gzip
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from interp_toolkit.errors import ProbeError
from interp_toolkit.probes.data import ProbeData, read_data

ROWS = (("Fine, thanks.", "good"), ('She said "no".\nTwice.', "bad"), ("Größe 猫 👩‍🔬", "good"), ("bad", "bad"))


def some(**changes: Any) -> ProbeData:
    fields: dict[str, Any] = {
        "name": "some",
        "texts": ("a b", "a c", "d b", "d c"),
        "labels": ("x", "y", "x", "y"),
        "groups": ("a", "a", "d", "d"),
        "spans": ("b", "c", "b", "c"),
        "pairs": ("1", "1", "2", "2"),
    }
    return ProbeData(**fields | changes)


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


# --- in memory ----------------------------------------------------------------------------------------------------


def test_columns_become_plain_values() -> None:
    data = ProbeData.of(
        np.array(["a", "b"]), np.array([1, 0]), groups=torch.tensor([3, 3]).tolist(), pairs=[7, 7], spans=iter("ab")
    )
    assert data == ProbeData(
        name="data", texts=("a", "b"), labels=(1, 0), groups=("3", "3"), spans=("a", "b"), pairs=("7", "7")
    )
    assert all(type(label) is int for label in data.labels)
    table = pd.DataFrame({"text": ["a", "b"], "label": [0.5, 2.0], "group": [1, 2]})
    assert ProbeData.of(table["text"], table["label"], groups=table["group"]).labels == (0.5, 2.0)
    assert ProbeData.of(["a", "b"], [{"y", "x"}, []]).labels == (("x", "y"), ())
    assert ProbeData.of(["a", "b"], [1, 2.5]).labels == (1.0, 2.5)


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (["x", "y"], "classes"),
        ([1, 2], "classes"),
        ([True, False], "classes"),
        ([1.0, 2.0], "regression"),
        ([["x"], []], "labels"),
    ],
)
def test_the_type_of_labels_says_what_they_are(labels: list[Any], kind: str) -> None:
    assert ProbeData.of(["a", "b"], labels).kind == kind


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"texts": (), "labels": (), "groups": None, "spans": None, "pairs": None}, "some: there are no rows"),
        ({"labels": ("x",)}, "every row needs one of each, but there are 4 texts, 1 labels, 4 groups, 4 spans"),
        ({"texts": ("a b", "", "d b", " \n")}, "texts are empty or missing in rows 1, 3: leave such rows out"),
        ({"texts": ("a b", 5, "d b", "d c")}, "texts are text, but not in row 1: 5"),
        ({"groups": ("a", "a", "", "d")}, "groups are empty or missing in row 2: give groups for all rows or for none"),
        ({"labels": ("x", None, "x", "y")}, r"labels are empty, None or NaN in row 1: leave such rows out"),
        ({"labels": (1.0, 2.0, float("nan"), 0.0)}, "labels are empty, None or NaN in row 2"),
        ({"labels": (1.0, 2.0, float("inf"), 0.0)}, "labels are infinite in row 2"),
        ({"labels": ("x", 1, "x", "y")}, r"of 2: (int \(1 in row 1\), )?str \('x' in row 0\)"),
        ({"labels": (True, 1, False, 0)}, "labels are of one type, but these are of 2"),
        ({"labels": ("x", "y", b"x", "y")}, "floats or lists of names, but not in row 2: b'x'"),
        ({"labels": (("x",), ("y", "y"), (), ("y",))}, r"different names, but not in row 1: \('y', 'y'\)"),
        ({"labels": (("x",), (3,), (), ("y",))}, r"different names, but not in row 1: \(3,\)"),
        ({"spans": ("b", "z", "b", "c")}, r"spans are not in their texts in row 1: \('z', 'a c'\)"),
        ({"pairs": ("1", "1", "1", "2"), "groups": None}, "a pair is of two rows, but '1' stands in rows 0, 1, 2"),
        ({"labels": ("x", "x", "x", "y")}, "partners differ in their labels, but not those of pair '1' in rows 0, 1"),
        ({"groups": ("a", "d", "d", "d")}, "partners are in one group, but not those of pair '1' in rows 0, 1"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("unchecked")
def test_what_is_wrong_is_refused_with_its_rows(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ProbeError, match=said):
        some(**changes)


def test_many_wrong_rows_are_counted() -> None:
    with pytest.raises(ProbeError, match=r"in rows 0, 1, 2, 3, 4 and 5 more"):
        ProbeData.of([""] * 10, [1] * 10)


def test_missing_values_of_tables_are_missing() -> None:
    table = pd.DataFrame({"text": ["a", "b"], "label": pd.array([1, None], dtype="Int64"), "group": ["g", None]})
    with pytest.raises(ProbeError, match="labels are empty, None or NaN in row 1"):
        ProbeData.of(table["text"], table["label"])
    with pytest.raises(ProbeError, match="groups are empty or missing in row 1"):
        ProbeData.of(table["text"], [1, 2], groups=table["group"])


def test_the_digest_is_of_the_content_alone() -> None:
    data = some()
    assert data.digest == some(name="other", source="Elsewhere.").digest
    changed = [
        {"texts": ("a b", "a c", "d b", "d c!")},
        {"labels": ("y", "x", "y", "x")},
        {"groups": None},
        {"spans": None},
        {"pairs": ("1", "1", "3", "3")},
    ]
    assert len({data.digest, *(some(**change).digest for change in changed)}) == 6
    ints, floats, texts, flags = ([1, 0], [1.0, 0.0], ["1", "0"], [True, False])
    assert len({ProbeData.of(["a", "b"], labels).digest for labels in (ints, floats, texts, flags)}) == 4


@pytest.mark.parametrize(
    "rows",
    [[2, 1], np.array([2, 1]), torch.tensor([2, 1]), (row for row in (2, 1))],
    ids=["list", "array", "tensor", "generator"],
)
def test_rows_are_selected_in_the_order_given(rows: Any) -> None:
    data = some().select(rows)
    assert data == some(texts=("d b", "a c"), labels=("x", "y"), groups=("d", "a"), spans=("b", "c"), pairs=("2", "1"))
    assert data.partners() == ()
    assert some().partners() == ((0, 1), (2, 3))


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_a_mask_selects_too(kind: Any) -> None:
    assert some().select(kind([True, False, False, True])).texts == ("a b", "d c")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([4], "there is no row 4: the 4 rows are counted from 0 to 3"),
        ([-1], "there is no row -1"),
        ([1, 1], "row 1 is chosen more than once"),
        ([], "there are no rows"),
        ([1.0], "rows are chosen by whole numbers or by a mask"),
        ([True, False], "a mask has a value for each of 4 rows, but this one has 2"),
    ],
)
def test_rows_that_cannot_be_selected_are_refused(rows: list[Any], said: str) -> None:
    with pytest.raises(ProbeError, match=said):
        some().select(rows)


def test_labels_are_counted() -> None:
    assert list(some().counts().items()) == [("x", 2), ("y", 2)]
    assert list(ProbeData.of("abc", [10, 2, 10]).counts().items()) == [(2, 1), (10, 2)]


def test_the_summary_says_what_there_is() -> None:
    assert some(source="Made up.").summary() == (
        "some: 4 rows. Classes: 2 'x', 2 'y'. 2 groups of 2 rows. 2 whole pairs. A span is marked in each text. "
        "Made up."
    )
    assert ProbeData.of("aab", [1.0, 2.0, 6.0]).summary() == (
        "data: 3 rows. Numbers from 1 to 6, mean 3. 1 row of the same text as an earlier one. Given by the caller."
    )
    assert "Labels: 2 'x', 1 'y'; 1 row without any." in ProbeData.of("abc", [["x", "y"], [], ["x"]]).summary()
    assert "1 0, 1 1, 1 2, 1 3, 1 4 and 3 more." in ProbeData.of("abcdefgh", range(8)).summary()


def test_a_table_has_what_is_known() -> None:
    table = some().to_dataframe()
    assert table.columns.tolist() == ["text", "label", "group", "span", "pair"]
    assert ProbeData.of(*(table[name] for name in ("text", "label"))).to_dataframe()["label"].tolist() == [*"xyxy"]


def test_a_table_without_pandas_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r'pip install "interpretability-toolkit\[probes\]"'):
        some().to_dataframe()


# --- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".ndjson"])
def test_every_format_gives_the_same_data(tmp_path: Path, suffix: str, zipped: bool, encoding: str) -> None:
    path = tmp_path / f"moods{suffix}"
    with path.open("w", encoding=encoding, newline="") as file:
        if suffix in (".csv", ".tsv"):
            writer = csv.writer(file, dialect="excel" if suffix == ".csv" else "excel-tab")
            writer.writerows([("text", "label"), *ROWS])
        else:
            file.writelines(json.dumps({"text": text, "label": label}) + "\n\n" for text, label in ROWS)
    if zipped:
        path = write(tmp_path / f"moods{suffix}.gz", "")
        path.write_bytes(gzip.compress((tmp_path / f"moods{suffix}").read_bytes()))
    data = read_data(path)
    assert tuple(zip(data.texts, data.labels, strict=True)) == ROWS
    assert data.name == "moods"
    assert data.source == f"Read from {path}."
    assert data.groups is None


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        ("1 0 -3", (1, 0, -3)),
        ("1 0.5 2e3", (1.0, 0.5, 2000.0)),
        ("007 1 2", ("007", "1", "2")),
        ("1 2 other", ("1", "2", "other")),
        ("12345678901234567890 1 2", ("12345678901234567890", "1", "2")),
        ("true false true", ("true", "false", "true")),
        ("1_000 2 3", ("1_000", "2", "3")),
        ("٣ ٤", ("٣", "٤")),
    ],
)
def test_labels_of_text_files_are_numbers_only_if_all_are(tmp_path: Path, cells: str, labels: tuple[Any, ...]) -> None:
    lines = "".join(f"text {n}, {cell} \n" for n, cell in enumerate(cells.split()))
    data = read_data(write(tmp_path / "a.csv", f"text,label\n{lines}"))
    assert data.labels == labels
    assert [type(label) for label in data.labels] == [type(label) for label in labels]


def test_labels_of_json_are_what_they_are_there(tmp_path: Path) -> None:
    def read(*labels: Any) -> tuple[Any, ...]:
        lines = "\n".join(json.dumps({"text": f"t{n}", "label": label}) for n, label in enumerate(labels))
        return read_data(write(tmp_path / "a.jsonl", lines)).labels

    assert read(True, False) == (True, False)
    assert read("1", "2") == ("1", "2")
    assert read(1, 2.5) == (1.0, 2.5)
    assert read(["x", "y"], []) == (("x", "y"), ())


def test_other_columns_are_found_by_name(tmp_path: Path) -> None:
    written = " text ,label,group,span,pair,sentence,gold\na b,1, g ,b,1,c d,0\na c,0,g,c,1,e f,1\n"
    path = write(tmp_path / "a.csv", written)
    data = read_data(path, name="mine")
    assert data == some(
        name="mine", texts=("a b", "a c"), labels=(1, 0), groups=("g", "g"), spans=("b", "c"), pairs=("1", "1"),
        source=f"Read from {path}.",
    )  # fmt: skip
    other = read_data(path, text="sentence", label="gold", group=None, span=None, pair="gold")
    assert other == ProbeData(
        name="a", texts=("c d", "e f"), labels=(0, 1), pairs=("0", "1"), source=f"Read from {path}."
    )


def test_a_text_may_be_longer_than_csv_usually_allows(tmp_path: Path) -> None:
    usual = csv.field_size_limit()
    data = read_data(write(tmp_path / "a.csv", f"text,label\n{'x' * (usual + 1)},1\ny,0\n"))
    assert len(data.texts[0]) == usual + 1
    assert csv.field_size_limit() == usual


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "", "there is no column 'text': the columns are none"),
        ("a.csv", "text,label\n", "there are no rows"),
        ("a.csv", "Text,labels\na,1\n", "no column 'text': the columns are 'Text', 'labels'; did you mean 'Text'?"),
        ("a.csv", "text,label,label\na,1,2\n", "2 columns are named 'label': rename all but one"),
        ("a.csv", 'text,label\n"a\nb",1\nc, d,2\n', r"row 1 \(line 4\) has 3 cells, but the header has 2; quote texts"),
        ("a.csv", 'text,label\na,1\n"b,2\nc,3\n', r"row 1 \(line 3\) cannot be read: unexpected end of data"),
        ("a.csv", 'text,label\n"a\nb",1\n\n"",2\nc,\n', r"texts are empty or missing in row 1 \(line 5\)"),
        ("a.csv", 'text,label\n"a\nb",x\n\nc,\n', r"labels are empty, None or NaN in row 1 \(line 5\): leave"),
        ("a.csv", "text,label\na,1.5\nb,nan\n", r"labels are empty, None or NaN in row 1 \(line 3\)"),
        ("a.csv", "text,label,span\na,1,b\n", r"spans are not in their texts in row 0 \(line 2\): \('b', 'a'\)"),
        ("a.csv", "text,label,group\na,1,\nb,2,g\n", r"groups are empty or missing in row 0 \(line 2\): give groups"),
        ("a.jsonl", '{"text": "a", "label": 1}\n\n{"text": "b"}\n', r"NaN in row 1 \(line 3\)"),
        ("a.jsonl", '{"text": "a", "label": NaN}\n', r"labels are empty, None or NaN in row 0 \(line 1\)"),
        ("a.jsonl", '{"text": "a", "label": {}}\n', r"but not in row 0 \(line 1\): {}"),
        ("a.jsonl", '{"text": ["a"], "label": 1}\n', r"texts are text, but not in row 0 \(line 1\): \['a'\]"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text"\n', r"row 1 \(line 2\) is not one line of JSON"),
        ("a.jsonl", '["a"]\n', r"row 0 \(line 1\) is no object with fields, such as {...}, but \[\"a\"\]"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": "c"}\n', "labels are of one type"),
        ("a.txt", "a", r"a.txt is no .csv, .tsv, .jsonl or .ndjson file \(nor one of these with .gz\)"),
        ("a.csv.gz", "text,label\n", "cannot be read: Not a gzipped file"),
    ],
)
def test_files_are_refused_with_row_and_line(tmp_path: Path, name: str, content: str, said: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(ProbeError, match=said) as caught:
        read_data(path)
    assert str(path) in str(caught.value)


def test_files_that_are_no_text_or_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match=r"is not UTF-8: .* on line 3; save it as UTF-8"):
        read_data(write(tmp_path / "a.csv", "text,label\na,1\né,0\n", "latin-1"))
    with pytest.raises(ProbeError, match=r"cannot be read: .*No such file"):
        read_data(tmp_path / "b.csv")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a", "label": 1}')[:-9])
    with pytest.raises(ProbeError, match="cannot be read"):
        read_data(tmp_path / "c.jsonl.gz")


@pytest.mark.parametrize("column", ["group", "span", "pair"])
def test_a_column_that_was_named_must_be_there(tmp_path: Path, column: str) -> None:
    path = write(tmp_path / "a.csv", "text,label,template\na,1,t\n")
    assert getattr(read_data(path), f"{column}s") is None
    with pytest.raises(ProbeError, match=r"no column 'templates': .*did you mean 'template'"):
        read_data(path, **{column: "templates"})
