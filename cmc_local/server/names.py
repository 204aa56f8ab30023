"""Model names and the field `cmc` -> which adapters act, and how strongly.

    "larger+instruct@0.8+forget"    instruct at 0.8, forget at its own strength, on larger.gguf
    "larger"                        the base model alone; "base" is as good as the file's name
    "larger+instruct" as listed first, "default", or no name: as the server was started

Knows names and numbers only.

    >>> parse("base+a@0.5", "larger", {"a": 1.0, "b": 1.0})
    {'a': 0.5, 'b': 0.0}
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from cmc_local.server.errors import Refusal, invalid, quoted

AS_STARTED: Final = "default"
BASE: Final = "base"
MAX_ALPHA: Final = 100
"""The greatest strength, either way; with much more there are logits that are no numbers."""

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")


def served(base: str, alphas: Mapping[str, float]) -> str:
    """The model as the server was started: its base and all adapters."""
    return "+".join([base, *alphas])


def listed(base: str, alphas: Mapping[str, float]) -> list[str]:
    """What /v1/models lists: as started, the base alone, the base with each adapter."""
    names = [served(base, alphas), base, *(f"{base}+{name}" for name in alphas)]
    return list(dict.fromkeys(names))


def parse(name: str | None, base: str, alphas: Mapping[str, float]) -> dict[str, float] | None:
    """The strengths that a model name means, of every adapter; None for the adapters' own.

    Raises Refusal (404) for a name that means nothing here.
    """
    if name is None or name in ("", AS_STARTED, served(base, alphas)):
        return None
    rest = next((name[len(one) :] for one in (base, BASE) if _begins(name, one)), None)
    if rest is None:
        known = ", ".join(listed(base, alphas))
        raise _unknown(f"there is no model {quoted(name)}: ask for one of {known}", "model")
    chosen: dict[str, float | None] = {}
    while rest:
        adapter, rest = _adapter(rest[1:], alphas)
        alpha, rest = _alpha(rest)
        _choose(chosen, adapter, alpha, "model")
    return _strengths(chosen, alphas)


def choose(
    given: Sequence[tuple[str, float | None]], alphas: Mapping[str, float]
) -> dict[str, float]:
    """The strengths that (adapter, alpha) pairs mean; an adapter left out does not act.

    Raises Refusal: 404 for an unknown adapter, 400 for one that is named twice.
    """
    chosen: dict[str, float | None] = {}
    for number, (name, alpha) in enumerate(given):
        if name not in alphas:
            raise _no_adapter(name, alphas, f"cmc[{number}].adapter")
        _choose(chosen, name, alpha, f"cmc[{number}].adapter")
    return _strengths(chosen, alphas)


def _begins(name: str, base: str) -> bool:
    return name == base or name.startswith(base + "+")


def _adapter(rest: str, alphas: Mapping[str, float]) -> tuple[str, str]:
    """The adapter that a text begins with, the longest that is one, and what follows it."""
    for known in sorted(alphas, key=len, reverse=True):
        after = rest[len(known) :]
        if rest.startswith(known) and (not after or after[0] in "+@"):
            return known, after
    raise _no_adapter(re.split("[+@]", rest)[0], alphas, "model")


def _alpha(rest: str) -> tuple[float | None, str]:
    """The strength after an @, if there is one, and what follows it."""
    if not rest.startswith("@"):
        return None, rest
    match = _NUMBER.match(rest, 1)
    end = len(rest) if match is None else match.end()
    if match is None or rest[end : end + 1] not in ("", "+"):
        raise invalid(f"{quoted(rest[1:])} is no strength: write a number, as in @0.8", "model")
    if not abs(alpha := float(match[0])) <= MAX_ALPHA:
        raise invalid(f"{quoted(match[0])} is not within -{MAX_ALPHA} and {MAX_ALPHA}", "model")
    return alpha, rest[end:]


def _choose(chosen: dict[str, float | None], name: str, alpha: float | None, param: str) -> None:
    if name in chosen:
        raise invalid(f"the adapter {name!r} is named twice: name it once", param)
    chosen[name] = alpha


def _strengths(chosen: Mapping[str, float | None], own: Mapping[str, float]) -> dict[str, float]:
    def strength(name: str) -> float:
        alpha = chosen.get(name)
        return own[name] if alpha is None else alpha

    return {name: strength(name) for name in own if name in chosen}


def _no_adapter(name: str, alphas: Mapping[str, float], param: str) -> Refusal:
    known = ", ".join(alphas) or "none"
    return _unknown(f"no adapter {quoted(name)} is loaded: there are {known}", param)


def _unknown(message: str, param: str) -> Refusal:
    return Refusal(404, message, param=param, code="model_not_found")
