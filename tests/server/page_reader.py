"""Someone at a browser who reads the page and asks: what its tests have in common.

Knows the page's markup; knows nothing of the server behind it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from playwright.sync_api import BrowserContext, Locator, Page, expect

WAIT = 30_000  # milliseconds; nothing takes a tenth of it on a machine at rest
expect.set_options(timeout=WAIT)


@dataclass
class Reader:
    """Someone at a browser: opens tabs of one profile, and notes what should not happen."""

    context: BrowserContext
    url: str
    pardoned: str = "$^"
    """What the browser's console may complain about: what the test itself broke."""
    complaints: list[str] = field(default_factory=list)

    def open(self) -> Page:
        page = self.context.new_page()
        page.set_default_timeout(WAIT)
        page.on("console", lambda said: said.type == "error" and self.note(said.text))
        page.on("pageerror", lambda error: self.note(str(error)))
        page.on("request", lambda asked: self.note_elsewhere(asked.url))
        page.goto(self.url)
        ready(page)
        return page

    def note(self, complaint: str) -> None:
        if not re.search(self.pardoned, complaint):
            self.complaints.append(complaint)

    def note_elsewhere(self, url: str) -> None:
        if not url.startswith((self.url, f"blob:{self.url}")):
            self.complaints.append(f"asked {url}")


def ready(page: Page) -> None:
    """Wait until a question would be sent: the page has met the server."""
    expect(page.locator("#health")).to_have_text("ready")


def reload(page: Page) -> None:
    page.reload()
    ready(page)


def send(page: Page, question: str) -> None:
    page.fill("#question", question)
    page.press("#question", "Enter")


def ask(page: Page, question: str) -> None:
    """Send a question and wait for the end of both answers."""
    turns = page.locator(".turn").count()
    send(page, question)
    expect(page.locator(".turn")).to_have_count(turns + 1)
    settled(page)


def settled(page: Page) -> None:
    expect(page.locator(".answer[data-state=writing]")).to_have_count(0)


def answer(page: Page, column: str) -> Locator:
    """The last answer of a column."""
    return page.locator(f".turn:last-child .{column}")


def text(page: Page, column: str) -> Locator:
    return answer(page, column).locator(".text")
