"""A base model's prompt by the chat template in its GGUF: Jinja, in a process of its own.

The template is a program of unknown origin. `template_runner.py` renders it there in a sandbox and
within limits of time, memory and output; this file starts that process and reads its answer.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from cmc_local.errors import GGUFError, UsageError
from cmc_local.text.prompts import Message, check_messages

MAX_CHARACTERS: Final = 4_000_000
"""What a template may write at most."""
CPU_SECONDS: Final = 5
"""Processor time that it may use, however busy the machine."""
PATIENCE: Final = 30.0 if sys.platform == "win32" else 600.0
"""Seconds of wall clock after which it is ended in any case; Windows has no other limit."""
MEMORY_BYTES: Final = 1 << 30


def chat_template_text(
    template: str, messages: Sequence[Message], *, bos: str = "", eos: str = ""
) -> str:
    """The base model's prompt by its own chat template (Jinja), up to where the answer begins.

    `bos` and `eos` are the spellings that the template knows as bos_token and eos_token. Raises
    UsageError where the template refuses the messages, GGUFError where it does not work.
    """
    check_messages(messages)
    answer = _rendered(
        template,
        {
            "messages": list(messages),
            "bos_token": bos,
            "eos_token": eos,
            "add_generation_prompt": True,
            "tools": None,
            "documents": None,
        },
    )
    if "refused" in answer:
        raise UsageError(
            f"the model's chat template refuses these messages: {answer['refused']} "
            "(--base-prompt adapter goes without it)"
        )
    if "error" in answer:
        raise GGUFError(
            f"the model's chat template does not work ({answer['error']}): "
            "use --base-prompt adapter or raw"
        )
    return answer["text"]


def _rendered(template: str, values: Mapping[str, Any]) -> dict[str, str]:
    """What the other process answers."""
    import subprocess  # only a base with a template of its own needs it

    request = {
        "paths": _package_folders("jinja2", "markupsafe"),
        "template": template,
        "values": values,
        "max_characters": MAX_CHARACTERS,
        "cpu_seconds": CPU_SECONDS,
        "memory_bytes": MEMORY_BYTES,
    }
    script = Path(__file__).with_name("template_runner.py")
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", str(script)],
            input=json.dumps(request).encode("ascii"),
            capture_output=True,
            timeout=PATIENCE,
        )
        answer: dict[str, str] = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return {"error": "it takes too long"}
    except json.JSONDecodeError:  # killed by a limit
        return {"error": "it takes too long or needs too much memory"}
    return answer


def _package_folders(*packages: str) -> list[str]:
    """The folders that these installed packages lie in."""
    places = [find_spec(package) for package in packages]
    return list(
        dict.fromkeys(
            str(Path(place.origin).parents[1]) for place in places if place and place.origin
        )
    )
