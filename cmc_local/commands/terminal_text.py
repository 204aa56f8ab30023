"""Text for a terminal: without what would move its cursor, and a reply's figures in one line."""

from __future__ import annotations

from typing import Final

from cmc_local.engine.timings import Timings

_UNSAFE: Final = dict.fromkeys(
    {*range(32), *range(127, 160)} - {ord("\n"), ord("\t")}, "\N{REPLACEMENT CHARACTER}"
)


def safe(text: str) -> str:
    """A text without what moves the cursor or changes the terminal's state."""
    return text.translate(_UNSAFE)


def figures(timings: Timings) -> str:
    """The line under a reply; the shares add up to more than 100 % where the deltas run beside."""
    seconds = timings.total_seconds or 1.0
    base = timings.prompt_seconds + timings.decode_seconds
    return (
        f"{timings.generated_tokens} tokens, {timings.tokens_per_second:.1f} tokens/s; "
        f"base {base / seconds:.0%} of the time, delta {timings.delta_seconds / seconds:.0%}"
    )
