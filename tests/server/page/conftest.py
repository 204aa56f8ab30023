"""One browser for each test file of the page, and a scripted server for it to look at.

Needs Debian's `chromium` and Playwright's Python package; skipped where one of them is missing.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # a conftest may not skip: the test files do
    from playwright.sync_api import Browser, Page

    from server.page_reader import Reader
    from server.page_server import PageServer


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no `chromium`: install it (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def running_server() -> Iterator[PageServer]:
    from server.page_server import PageServer

    found = PageServer()
    found.start()
    yield found
    found.stop()


@pytest.fixture
def server(running_server: PageServer) -> PageServer:
    """The module's server, with nothing asked yet."""
    running_server.reset()
    return running_server


@pytest.fixture
def reader(browser: Browser, server: PageServer) -> Iterator[Reader]:
    """Fails at the end if the console complained, or if another host was asked."""
    from server.page_reader import Reader

    context = browser.new_context(viewport={"width": 1200, "height": 800}, accept_downloads=True)
    found = Reader(context, server.url)
    yield found
    context.close()
    assert found.complaints == []


@pytest.fixture
def page(reader: Reader) -> Page:
    return reader.open()
