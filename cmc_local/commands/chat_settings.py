"""A chat's sampling settings as text: one that is typed, or one of a saved chat.

Knows no terminal and no model.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any, Final

from cmc_local.errors import UsageError
from cmc_local.settings import FORMS, Sampling

SETTINGS: Final = {
    field.name: field.default for field in fields(Sampling) if field.name != "logit_bias"
}
"""Name -> default of what a chat can set; `logit_bias` speaks of token numbers, a chat of text."""


def changed(sampling: Sampling, name: str, value: str) -> Sampling:
    """`sampling` with one field set from text; an empty value is the field's default."""
    if name not in SETTINGS:
        raise UsageError(f"no setting {name!r}: system, base_prompt, {', '.join(SETTINGS)}")
    setting: Any
    if not value:
        setting = SETTINGS[name]
    elif name == "stop":
        setting = (*sampling.stop, value)
    elif name in FORMS:
        setting = value
    elif isinstance(SETTINGS[name], bool):
        setting = switch(value, name)
    elif name == "seed" or isinstance(SETTINGS[name], int):
        setting = whole_number(value, name)
    else:
        setting = number(value, name)
    changes: dict[str, Any] = {name: setting}
    return replace(sampling, **changes)


def switch(text: str, name: str) -> bool:
    """True for `on`, False for `off`; UsageError names what it was for."""
    if text not in ("on", "off", "True", "False"):
        raise UsageError(f"{name} is on or off, not {text!r}")
    return text in ("on", "True")


def number(text: str, name: str) -> float:
    """A finite number; UsageError names what it was for."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{name} takes a number, not {text!r}")
    return value


def whole_number(text: str, name: str) -> int:
    """A whole number; UsageError names what it was for."""
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{name} takes a whole number, not {text!r}") from None
