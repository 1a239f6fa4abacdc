"""What the examples share: data that cannot be read is refused in a line, and intervals say how sure a share is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from interp_toolkit.errors import SteeringError

Example = Callable[[str], ModuleType]
GOOD = b'{"word": "hot"}\n\n{"word": "cold", "more": "x"}\n'


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"word": "caf\xe9"}', "cannot be read: it is not UTF-8"),
        (b'[{"word": "hot"},\n {"word": "cold"}]', "line 1 .* is no JSON object, one of which is on each line"),
        (b'["hot", "cold"]', r"line 1 .* is no JSON object, but \[\"hot\", \"cold\"\]"),
        (GOOD + b'{"more": "x"}', "line 4 .* lacks word; each needs word"),
        (GOOD + b'{"word": 3}', "in line 4 .* word is 3: give a text"),
        (GOOD + b'{"word": " "}', "in line 4 .* word is ' ': give a text"),
        (b"\n \n", "has no rows"),
        (None, "cannot be read: No such file"),
    ],
)
def test_data_that_cannot_be_used_are_refused_with_their_line(
    example: Example, tmp_path: Path, data: bytes | None, said: str
) -> None:
    if data is not None:
        (tmp_path / "rows.jsonl").write_bytes(data)
    with pytest.raises(SystemExit, match=f"error: .*{said}"):
        example("example").read_rows(tmp_path / "rows.jsonl", "word")


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_rows_are_read_with_a_byte_order_mark_and_without(example: Example, tmp_path: Path, mark: bytes) -> None:
    (tmp_path / "rows.jsonl").write_bytes(mark + GOOD)
    rows = example("example").read_rows(tmp_path / "rows.jsonl", "word")
    assert rows == [{"word": "hot"}, {"word": "cold", "more": "x"}]


def test_shares_of_none_and_all_have_an_interval_and_draws_are_averaged_first(example: Example) -> None:
    module = example("example")
    assert module.share(torch.zeros(32)) == "0% [0, 11]"
    assert module.share(torch.ones(25) > 0) == "100% [87, 100]"
    assert module.share(torch.eye(2).repeat(8, 1)) == module.share(torch.tensor([1.0, 0.0]).repeat(8)) == "50% [28, 72]"


def test_what_the_library_refuses_is_one_line(example: Example) -> None:
    with pytest.raises(SystemExit, match=r"^error: the direction is zero$"), example("example").clear_errors():
        raise SteeringError("the direction is zero")


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "two", ""])
def test_a_number_of_things_is_whole_and_at_least_one(
    example: Example, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module = example("example")
    parser = module.options("About this.")
    parser.add_argument("--n", type=module.count)
    with pytest.raises(SystemExit):
        parser.parse_args([f"--n={text}"])
    assert "is not a whole number of 1 or more" in capsys.readouterr().err
