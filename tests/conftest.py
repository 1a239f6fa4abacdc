"""What several test files share."""

from __future__ import annotations

import functools
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import jaxtyping
import pytest

import lean_checks

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Browser
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from browser import Visitor

# Torch and transformers are imported further down only: the process that hands out the tests does not need them.
lean_checks.install()


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(OneDemoForDoctests())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts tests that share something costly into a group, which one process runs (`--dist loadgroup`).

    These are the tests of a family, whose model is verified once in a process, and those of a file with fixtures for
    the whole file.
    """
    import torch

    from tiny import FAMILIES

    # Tests run side by side on few cores; more threads than cores would only get in each other's way.
    torch.set_num_threads(1)
    for item in items:
        if not isinstance(item, pytest.Function) or item.get_closest_marker("xdist_group"):
            continue
        given = item.callspec.params if hasattr(item, "callspec") else {}
        family = given.get("name", given.get("family"))
        fixtures = item._fixtureinfo.name2fixturedefs.values()
        if any(found[-1].scope == "module" for found in fixtures):
            item.add_marker(pytest.mark.xdist_group(item.path.name))
        elif isinstance(family, str) and family in FAMILIES:
            item.add_marker(pytest.mark.xdist_group(family))


@functools.cache
def _demo() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from interp_toolkit import load_model  # not before the checks are in place

    return load_model("demo")


@pytest.fixture(scope="session")
def demo() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The demo model and its tokenizer."""
    return _demo()


def share_demo(patch: pytest.MonkeyPatch) -> None:
    """`load_model("demo")` gives the same model each time: it is loaded and verified once in a process."""
    import interp_toolkit

    load = interp_toolkit.load_model
    _demo()

    def shared(name: str, **options: Any) -> Any:
        return load(name, **options) if options or name != "demo" else _demo()

    patch.setattr(interp_toolkit, "load_model", shared)


@pytest.fixture
def one_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """For code that loads the demo model and leaves it as it was."""
    share_demo(monkeypatch)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """One Chromium for all tests of a process."""
    from browser import browsers

    yield from browsers()


@pytest.fixture
def visit(chromium: Browser, tmp_path: Path) -> Iterator[Visitor]:
    """Opens views in Chromium; the test fails where a page had an error or asked for anything."""
    from browser import Visitor

    visitor = Visitor(chromium, tmp_path)
    yield visitor
    visitor.close()
    assert visitor.wrong == []


class OneDemoForDoctests:
    """Examples that load the demo model get that of all the others."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        if not isinstance(item, pytest.DoctestItem) or not any("load_model(" in e.source for e in item.dtest.examples):
            return (yield)
        with pytest.MonkeyPatch.context() as patch:
            share_demo(patch)
            return (yield)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without run-time checks of annotations, as users have it: for arguments whose type is wrong on purpose."""
    kept = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", kept)
