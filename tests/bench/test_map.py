"""The token map's measurement: its counts by hand, its table."""

from __future__ import annotations

import fakes
from cmc_local.bench import map as measured
from cmc_local.bench.map import Mapping
from cmc_local.text.delta_tokenizer import DeltaTokenizer


def test_counts_by_hand() -> None:
    tokenizer = DeltaTokenizer(fakes.tokenizer_json())
    base = fakes.vocabulary(b"a", b"abba", b"?")  # `?` has no counterpart
    found = measured.measure("base", base, "delta", tokenizer, "none", 3)
    assert (found.base_size, found.delta_size, found.unmapped) == (4, 5, 1)
    for times in (found.made, found.cached, found.add, found.add_and_fill):
        assert len(times) == 3
        assert min(times) > 0


def test_the_table_and_the_json() -> None:
    one = Mapping("gpt-2", "llama2", 50257, 32000, 7, [0.5], [0.012], [1e-4], [2.5e-4])
    head, row = measured.as_lines([one])
    assert head.split()[:5] == ["base", "tokens", "delta", "tokens", "none"]
    assert row.split() == "gpt-2 50,257 llama2 32,000 7 0.500 12.0 100.0 250.0".split()
    (found,) = measured.as_json([one])
    assert (found["made_s"], found["cached_ms"], found["add_us"]) == (0.5, 12.0, 100.0)
