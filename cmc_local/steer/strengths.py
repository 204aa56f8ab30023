"""Which adapters act and how strongly: names, alphas, and the refusals that go with them."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping

from cmc_local.errors import UsageError

Alphas = float | Mapping[str, float]
"""One strength for every adapter, or by name; an adapter that is not named keeps its own."""


def check_alpha(alpha: float, whose: str = "alpha") -> float:
    """Any strength is allowed, below 0 too, as long as it is a finite number; else UsageError."""
    if not math.isfinite(alpha):
        raise UsageError(f"{whose} must be a finite number, not {alpha}: 0 is off, 1 as trained")
    return alpha


def free_name(name: str, taken: Container[str]) -> str:
    """`name`, or `name-2`, `name-3`, ... where that is taken."""
    found, number = name, 1
    while found in taken:
        number += 1
        found = f"{name}-{number}"
    return found


def strengths(
    own: Mapping[str, float], alphas: Alphas | None = None, *, exact: bool = False
) -> dict[str, float]:
    """Each adapter's strength in one reply: `alphas` over their `own`, by name.

    With `exact` the adapters that `alphas` does not name are off. Raises UsageError for a name that
    nobody knows and for what is no finite number.

        own (one 1.0, two 0.5), alphas (two 0.0)           one 1.0, two 0.0
        the same, exact                                    one 0.0, two 0.0
    """
    if alphas is None:
        return dict(own)
    if not isinstance(alphas, Mapping):
        alphas = dict.fromkeys(own, alphas)
    for name, alpha in alphas.items():
        if name not in own:
            known = ", ".join(own) or "none"
            raise UsageError(f"no adapter {name!r} is loaded: there are {known}")
        check_alpha(alpha, f"the alpha of {name}")
    return {**(dict.fromkeys(own, 0.0) if exact else own), **alphas}
