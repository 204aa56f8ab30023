"""What the extra `eval` installs: imported when it is needed, missed in one line."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from cmc_local.errors import MissingExtra


def import_optional(module: str) -> Any:
    """A module of the extra `eval`; MissingExtra where that is not installed."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f'{error.name} is not installed: pip install "cmc-local[eval]"'
        ) from None
