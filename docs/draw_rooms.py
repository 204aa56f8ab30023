"""Draw which room of `cmc_local` imports which, read off the source, into docs/design.md.

    python docs/draw_rooms.py

`tests/test_design.py` fails where the picture is no longer what this would draw.
"""

from __future__ import annotations

import ast
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "cmc_local"
PAGE = REPOSITORY / "docs" / "design.md"
BEGIN, END = "<!-- rooms: drawn by docs/draw_rooms.py -->\n\n", "\n<!-- rooms end -->"


def rooms() -> list[str]:
    """The folders of the package that hold Python files."""
    return [path.parent.name for path in sorted(PACKAGE.glob("*/__init__.py"))]


def needed_by(room: str) -> set[str]:
    """The other rooms that a room's files import, inside of functions too."""
    found: set[str] = set()
    for path in (PACKAGE / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            found |= {name.split(".")[1] for name in names if name.startswith("cmc_local.")}
    return found & set(rooms()) - {room}


def drawing() -> str:
    """A line for each room, those that need least first, with a mark for each room it imports."""
    needs = {room: needed_by(room) for room in rooms()}
    below: dict[str, set[str]] = {}
    for room in needs:
        below[room], waiting = set(), [room]
        while waiting:
            new = needs[waiting.pop()] - below[room]
            below[room] |= new
            waiting += new
    order = sorted(needs, key=lambda room: (len(below[room] - {room}), room))
    width = max(map(len, order)) + 2
    head = " " * (width + 9) + "".join(f"{room:<{len(room) + 2}}" for room in order)
    lines = [head.rstrip()]
    for room in order:
        marks = (
            f"{'o' if one in needs[room] else '-' if one == room else ' ':^{len(one)}}  "
            for one in order
        )
        lines.append(f"{room:<{width}}imports  {''.join(marks)}".rstrip())
    return "```text\n" + "\n".join(lines) + "\n```\n"


def with_drawing(page: str) -> str:
    """The page with the drawing between its markers."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + drawing() + END + after


if __name__ == "__main__":
    PAGE.write_text(with_drawing(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
