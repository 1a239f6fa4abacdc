"""Tests that share something costly run in one process."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def costly() -> None:
    """What would be made once in each process."""


@pytest.mark.usefixtures("costly")
def test_tests_with_a_fixture_for_their_file_are_one_group(request: pytest.FixtureRequest) -> None:
    assert [mark.args for mark in request.node.iter_markers("xdist_group")] == [("test_conftest.py",)]
    if request.config.getoption("loadgroup", False):  # the runner knows a group by the end of a test's name
        assert request.node.nodeid.endswith("@test_conftest.py")
