"""AlpacaEval's files: instructions in, a model's outputs out, for its annotators to compare.

    [{"instruction": "...", "output": "...", "generator": "other+instruct", "dataset": "koala"}]

The format is that of `--model_outputs` (Li et al. 2023, AlpacaEval). Knows JSON only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cmc_local.errors import DataError

EXPECTED = 'a JSON list of objects with "instruction", as AlpacaEval publishes it'


def read_instructions(path: Path) -> list[dict[str, Any]]:
    """The entries of a JSON list, each with a text under `instruction`; DataError else."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{path} cannot be read ({reason}): give {EXPECTED}") from None
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path} is no list of instructions: give {EXPECTED}")
    for number, entry in enumerate(entries, 1):
        text = entry.get("instruction") if isinstance(entry, dict) else None
        if not isinstance(text, str) or not text.strip():
            raise DataError(f'{path}: entry {number} has no text under "instruction": {EXPECTED}')
    return entries


def outputs(
    answered: Iterable[tuple[Mapping[str, Any], str]], generator: str
) -> list[dict[str, Any]]:
    """AlpacaEval's list from (entry, output) pairs; an entry without `dataset` keeps none.

    >>> outputs([({"instruction": "Hi", "output": "reference"}, "Hello.")], "tiny")
    [{'instruction': 'Hi', 'output': 'Hello.', 'generator': 'tiny'}]
    """
    return [
        {
            "instruction": entry["instruction"],
            "output": output,
            "generator": generator,
            **({"dataset": entry["dataset"]} if "dataset" in entry else {}),
        }
        for entry, output in answered
    ]
