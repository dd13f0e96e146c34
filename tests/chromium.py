"""Debian's Chromium, started for tests of pages."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator

from playwright.sync_api import Browser, sync_playwright


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A browser that is closed at the end; a machine without it fails the test."""
    program = shutil.which("chromium")
    assert program, "Debian's chromium is needed; see tests/install_system_packages.sh"
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield found
        found.close()
