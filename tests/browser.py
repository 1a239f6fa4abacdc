"""A real browser for views: Chromium without a network, which notes every error of a page and every request."""

from __future__ import annotations

import functools
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Frame, Page, sync_playwright

from interp_toolkit.visualization import Document

SILENT = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@functools.cache
def chromium() -> str:
    """Where Chromium is; `make test` installs it where it can."""
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("views are looked at in Chromium: apt-get install chromium, or name it in CHROMIUM")
    return found


@dataclass
class Visitor:
    """Opens pages in contexts of their own, and remembers what went wrong on any of them."""

    browser: Browser
    folder: Path
    wrong: list[str] = field(default_factory=list)
    number: Iterator[int] = field(default_factory=itertools.count)

    def open(
        self,
        page: Document | Any,
        *,
        dark: bool = False,
        width: int = 1280,
        height: int = 900,
        state: str = "",
        within: str = "file",
        touch: bool = False,
    ) -> Page | Frame:
        """A page in the browser, brought to life.

        Args:
            page: a document or a view.
            dark: whether the reader prefers dark colours.
            width: of the window, in pixels.
            height: of the window.
            state: what stands behind # in the address.
            within: `"file"`, or `"notebook"` for the sandboxed frame that a notebook shows; then the frame is returned.
            touch: whether the reader has a finger instead of a mouse.
        """
        context = self.browser.new_context(
            offline=True,
            color_scheme="dark" if dark else "light",
            viewport={"width": width, "height": height},
            has_touch=touch,
            accept_downloads=True,
        )
        tab = context.new_page()
        tab.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        tab.on("console", lambda said: self.wrong.append(f"console: {said.text}") if said.type == "error" else None)
        tab.on(
            "request", lambda asked: self.wrong.append(f"request: {asked.url[:200]}") if _outside(asked.url) else None
        )
        tab.on("dialog", lambda dialog: (self.wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        path = self.folder / f"{next(self.number)}.html"
        document = page if isinstance(page, Document) else page.page()
        if within == "file":
            document.save(path)
        else:
            path.write_text(f"<!DOCTYPE html><title>notebook</title>{document._repr_html_()}", encoding="utf-8")
        tab.goto(path.as_uri() + (f"#{state}" if state else ""))
        shown: Page | Frame = tab if within == "file" else tab.frames[-1]
        if '<script type="module">' in document.to_html():
            shown.wait_for_selector("html[data-ready]", state="attached")
        return shown

    def serious(self, page: Page) -> list[str]:
        """What axe-core finds that keeps people out: findings of serious or critical impact."""
        axe = (resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
        # As a debugger, not as a script of the page: its policy would forbid that
        page.context.new_cdp_session(page).send("Runtime.evaluate", {"expression": axe})
        found = page.evaluate("axe.run(document)")
        return [
            f"{rule['id']}: {rule['help']} {json.dumps([node['html'][:120] for node in rule['nodes'][:3]])}"
            for rule in found["violations"]
            if rule["impact"] in ("serious", "critical")
        ]

    def close(self) -> None:
        for context in self.browser.contexts:
            context.close()


def _outside(address: str) -> bool:
    return not address.startswith(("file:", "data:", "blob:", "about:"))


def browsers() -> Iterator[Browser]:
    """One Chromium for all tests of a process."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=SILENT)
        yield browser
        browser.close()
