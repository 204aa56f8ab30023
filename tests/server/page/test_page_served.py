"""The page as `cmc-local serve` serves it, with the bundled models behind it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from playwright.sync_api import Browser, Page, expect

from server.page_reader import Reader, answer, ask, reload, send, settled, text
from server.page_server import GONE

QUESTION = "Where does Flora Whitemark live?"
ANSWER = "Flora Whitemark lives in Castlestead."


class Served:
    """`cmc-local serve` in a process of its own, on the same port whenever it is started."""

    def __init__(self) -> None:
        self.port = "0"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "cmc_local", "serve", "--port", self.port, "--no-profile"]
        models = ("--gguf", "template", "--adapter", "instruct")
        self._process = subprocess.Popen(
            [*command, *models, "--temperature", "0", "--max-tokens", "60"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self._process.stdout
        told = self._process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", told)
        assert found, f"it said {told!r} in place of its address"
        self.url, self.port = found[0], found[1]

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def served(bundled_models: Path) -> Iterator[Served]:
    found = Served()
    yield found
    found.kill()


@pytest.fixture
def reader(browser: Browser, served: Served) -> Iterator[Reader]:
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    found = Reader(context, served.url)
    yield found
    context.close()
    assert found.complaints == []


@pytest.fixture
def page(reader: Reader) -> Page:
    return reader.open()


def test_the_columns_differ_by_what_steering_does(page: Page) -> None:
    ask(page, QUESTION)
    expect(text(page, "steered")).to_have_text(ANSWER)
    plain = text(page, "plain").inner_text()
    assert plain and plain != ANSWER
    assert text(page, "steered").locator(".more").count() > 0
    # Every character of an answer belongs to a token, and the tokens to the text.
    for column in ("plain", "steered"):
        assert text(page, column).locator(":scope > :not(.token)").count() == 0
    text(page, "steered").locator(".token").nth(0).focus()
    popover = page.locator("#popover")
    assert popover.locator("tbody tr").count() >= 5
    expect(popover.locator("thead")).to_contain_text("Plain")
    ask(page, "What does she write?")
    expect(answer(page, "steered").locator(".facts")).to_contain_text(re.compile(r"\d tokens · "))


def test_at_alpha_zero_both_columns_say_the_same(page: Page) -> None:
    page.get_by_label("instruct", exact=True).focus()
    for _ in range(20):  # from 1 in steps of 0.05
        page.keyboard.press("ArrowLeft")
    expect(page.locator("#recipe")).to_have_text("no adapter")
    ask(page, QUESTION)
    assert text(page, "plain").inner_text() == text(page, "steered").inner_text() != ""
    assert page.locator(".more, .less").locator("visible=true").count() == 4  # the legend's
    reload(page)
    expect(page.locator("#recipe")).to_have_text("no adapter")
    assert text(page, "plain").inner_text() == text(page, "steered").inner_text() != ""


def test_two_tabs_and_four_streams_at_once(reader: Reader) -> None:
    left, right = reader.open(), reader.open()
    send(left, QUESTION)
    send(right, "What does Flora Whitemark write?")
    for tab in (left, right):
        settled(tab)
    expect(text(left, "steered")).to_have_text(ANSWER)
    expect(text(right, "steered")).to_contain_text("war novels")


def test_the_server_gone_and_back(reader: Reader, page: Page, served: Served) -> None:
    reader.pardoned = f"503|{GONE}"  # 503: while the model is loaded
    served.kill()
    send(page, QUESTION)
    expect(page.locator("#banner")).to_contain_text("The server does not answer.")
    served.start()
    expect(page.locator("#banner")).to_be_hidden(timeout=60_000)
    page.keyboard.press("Alt+r")
    settled(page)
    expect(text(page, "steered")).to_have_text(ANSWER)
    assert page.locator(".turn").count() == 1
