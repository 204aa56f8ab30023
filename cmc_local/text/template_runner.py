"""Renders a GGUF's chat template: a program of unknown origin, so in a process of its own.

Run as a script by `chat_template.py`, isolated from the user's settings and packages: one
JSON object on stdin, one on stdout. A sandbox keeps the template from Python's insides
(CVE-2024-34359), limits of the operating system end what runs too long or eats memory, and output
is counted as it comes. Templates meet what `transformers` gives them: `raise_exception`,
`strftime_now`, `tojson` with its arguments, `{% break %}`, `{% generation %}`.

    in   {"paths": [...], "template": "...", "values": {"messages": [...], "bos_token": "<s>", ...},
          "max_characters": 4000000, "cpu_seconds": 5, "memory_bytes": 1073741824}
    out  {"text": "..."}, {"refused": "..."} by the template itself, or {"error": "..."}

Jinja2 is imported here alone, and only when a template is rendered.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import Any


class Refused(Exception):
    """The template called `raise_exception`."""


def render(template: str, values: dict[str, Any], max_characters: int) -> dict[str, str]:
    """The answer for one template: its text, its refusal, or what is wrong with it."""
    try:
        return {"text": _render(template, values, max_characters)}
    except Refused as refusal:
        return {"refused": _line(str(refusal))}
    except MemoryError:
        return {"error": "it needs too much memory"}
    except Exception as error:  # whatever a stranger's program may raise
        return {"error": f"{type(error).__name__}: {_line(str(error))}"}


def _render(template: str, values: dict[str, Any], max_characters: int) -> str:
    program = _environment().from_string(template)
    pieces, length = [], 0
    for piece in program.generate(**values):
        length += len(piece)
        if length > max_characters:
            raise OverflowError(f"more than {max_characters} characters of output")
        pieces.append(piece)
    return "".join(pieces)


def _environment() -> Any:
    from jinja2 import ext, nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(ext.Extension):
        """`{% generation %}` marks what is trained on; here its content alone matters."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> list[nodes.Node]:
            next(parser.stream)
            body: list[nodes.Node] = parser.parse_statements(
                ("name:endgeneration",), drop_needle=True
            )
            return body

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _refuse(reason: str) -> None:
    raise Refused(reason)


def _line(text: str) -> str:
    return " ".join(text.split())[:300]


def _limit_resources(cpu_seconds: int, memory_bytes: int) -> None:
    """Processor time and memory, where the operating system knows such limits."""
    try:
        import resource
    except ImportError:  # Windows: the parent's patience is the limit
        return
    for kind, most in ((resource.RLIMIT_CPU, cpu_seconds), (resource.RLIMIT_AS, memory_bytes)):
        _, hard = resource.getrlimit(kind)
        if hard == resource.RLIM_INFINITY or hard > most:
            try:
                resource.setrlimit(kind, (most, most))
            except (OSError, ValueError):  # some systems refuse a limit below what is in use
                continue


def _main() -> None:
    """One request, one answer."""
    request = json.loads(sys.stdin.buffer.read())
    sys.path[:0] = request["paths"]
    _limit_resources(request["cpu_seconds"], request["memory_bytes"])
    answer = render(request["template"], request["values"], request["max_characters"])
    sys.stdout.buffer.write(json.dumps(answer).encode("ascii"))


if __name__ == "__main__":
    _main()
