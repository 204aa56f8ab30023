"""README and the pages of the site: their fenced blocks, and the code within sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    place: str
    language: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    lines, start = page.read_text(encoding="utf-8").splitlines(), None
    for number, line in enumerate(lines, 1):
        fence = re.match(r"\s*```\s*(\w*)", line)
        if fence and start is None:
            start, language = number, fence[1]
        elif fence and start is not None:
            inner = lines[start : number - 1]
            indent = min((len(one) - len(one.lstrip()) for one in inner if one.strip()), default=0)
            text = "\n".join(one[indent:] for one in inner)
            yield Block(f"{page.relative_to(REPOSITORY)}:{start + 1}", language, text)
            start = None
    assert start is None, f"{page}: a block does not end"


def prose_code(page: Path) -> list[str]:
    """The code within a page's sentences."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"^\s*```.*?^\s*```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [" ".join(one.split()) for one in re.findall(r"`([^`]+)`", text)]
