"""The table, the parts and the JSON line of a made-up measurement."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import pytest

from cmc_local.bench import report
from cmc_local.bench.arms import Place, Sample
from cmc_local.bench.machine import base_file, machine
from cmc_local.bench.paired import Spread
from cmc_local.bench.ratios import Main
from cmc_local.bench.report import PromptTime, Result


def rounds(*seconds: float, tokens: int = 10, **parts: float) -> list[Sample]:
    return [Sample(one, tokens, ((1, 2),), parts) for one in seconds]


def result(**more: Any) -> Result:
    samples = {
        Place("plain", "prose", 300): rounds(1, 2, 1, decode=0.9, sample=0.1),
        Place("steered", "prose", 300): rounds(2, 2, 1.25, decode=0.9, delta=0.5, map=0.1),
        Place("stock", "prose", 300): rounds(1, 1, 1),
        Place("steered", "prose", 300, 8): rounds(4, 4, 4, tokens=80),
        Place("plain", "prose", 16): rounds(1, 1, 1, decode=1),
    }
    given: dict[str, Any] = {
        "settings": {
            "tokens": 10,
            "pairs": 3,
            "threads": 2,
            "delta_threads": 1,
            "gpu_layers": -1,
            "overlapped": False,
        },
        "machine": machine(),
        "base": {
            "name": "base.gguf",
            "mb": 640.0,
            "parameters": 1_100_000_000,
            "tensor_types": {"Q4_0": 155, "F32": 45},
            "vocabulary": 32_000,
        },
        "adapter": {
            "name": "tiny",
            "precision": "int8",
            "mb": 15.5,
            "device": "cpu",
            "vocabulary": 32_000,
            "alpha": 1.0,
            "vocabulary_s": 0.5,
            "map_s": 0.25,
        },
        "main": Main("prose", 300),
        "samples": samples,
        "prompts": {"plain": PromptTime(300, Spread(2.0, 1.5, 2.5))},
        "memory": {"base": 650_000_000, "delta": 22_500_000, "peak": 1_000_000_000},
        **more,
    }
    return Result(**given)


def rows(lines: list[str], first: str) -> list[list[str]]:
    """The words of each row under a head that begins with `first`, up to an empty line."""
    start = next(i for i, line in enumerate(lines) if line.startswith(first))
    end = next((i for i in range(start, len(lines)) if not lines[i]), len(lines))
    return [line.split() for line in lines[start + 1 : end]]


def test_the_table_has_a_row_for_each_arm() -> None:
    table = rows(list(report.as_lines(result())), "arm")
    # seconds 1, 2, 1 for 10 tokens: median 100 ms, quartiles 100 and 150
    assert table[0] == ["plain", "prose", "300", "100.000", "50.000", "10.00"]
    # speeds over plain by round: 1/2, 1, 0.8
    assert table[1] == ["steered", "prose", "300", "200.000", "37.500", "5.00", "0.800"]
    assert table[3] == ["steered", "x", "8", "prose", "300", "50.000", "0.000", "20.00"]
    assert table[4] == ["plain", "prose", "16", "100.000", "0.000", "10.00"]


def test_the_parts_of_a_step_are_those_of_the_main_text() -> None:
    parts = rows(list(report.as_lines(result())), "ms/token")
    assert parts[0] == ["plain", "90.000", "10.000"]
    assert parts[1] == ["steered", "90.000", "50.000", "10.000"]
    assert len(parts) == 2


def test_the_rest_is_said_in_words() -> None:
    told = "\n".join(report.as_lines(result()))
    assert "base     base.gguf, 640.0 MB, 1,100,000,000 weights" in told
    assert "(tensors: 155 Q4_0, 45 F32), 32,000 tokens" in told
    assert "adapter  tiny, int8, 15.5 MB, on cpu" in told
    assert "token map made in 0.250 s, nothing cached; the base's vocabulary read in 0.500" in told
    assert "threads: base 2, delta 1; steered is serial here" in told
    assert "prompt of 300 tokens, plain: 150 tokens/s, first token after 2.000 s" in told
    assert "memory, MB: base 650.0, delta 22.5, peak 1000.0" in told
    assert "steered_vs_plain            0.800   (0.650 to 0.900)" in told


def test_the_json_says_what_the_table_says() -> None:
    found = json.loads(json.dumps(report.as_json(result())))
    assert found["ratios"]["steered_vs_plain"] == 0.8
    assert found["ratio_spreads"]["steered_vs_plain"] == [0.65, 0.9]
    assert found["ratios"]["batched_vs_one"] == 4
    arms = {(arm["arm"], arm["context"], arm["sequences"]): arm for arm in found["arms"]}
    plain = arms["plain", 300, 1]
    assert (plain["ms_per_token"], plain["spread_ms"], plain["to_plain"]) == (100, 50, None)
    assert plain["parts_ms"] == {"decode": 90, "sample": 10}
    assert arms["steered", 300, 8]["tokens"] == 80
    assert len({arm["emitted"] for arm in arms.values()}) == 1
    assert found["prompts"]["plain"]["tokens_per_second"] == 150
    assert found["memory_mb"] == {"base": 650, "delta": 22.5, "peak": 1000}
    assert found["base"]["tensor_types"] == {"Q4_0": 155, "F32": 45}


def test_without_an_adapter_there_is_no_line_about_it() -> None:
    bare = {Place("plain", "prose", 300): rounds(1, 1, 1)}
    found = result(adapter=None, samples=bare, prompts={}, memory={})
    lines = list(report.as_lines(found))
    assert not any(line.startswith(("adapter", "token map", "prompt", "memory")) for line in lines)
    assert report.as_json(found)["adapter"] is None
    assert report.as_json(found)["ratios"] == {}


def test_nothing_says_where_or_on_whose_machine(
    tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "node", lambda: "my-own-host")
    monkeypatch.setenv("LOGNAME", "somebody")
    told = json.dumps([machine(), base_file(tiny_gguf)])
    assert base_file(tiny_gguf)["name"] == tiny_gguf.name
    assert not any(word in told for word in (str(tiny_gguf.parent), "my-own-host", "somebody"))
    assert machine()["cores"] >= 1
