"""`cmc-local bench`: real runs on tiny models, the shape of what it prints, what it refuses."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cmc_local.bench import session
from cmc_local.bench.arms import KINDS, Kind
from cmc_local.commands import bench, main

FAST = ("--threads", "1", "--pairs", "1", "--tokens", "3")


def run(*words: str) -> Result:
    return CliRunner().invoke(main, ["bench", *words])


def refused(*words: str) -> str:
    """The one line on stderr of a command that ends with 2."""
    done = run(*words)
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


@pytest.fixture(scope="module")
def whole(bundled_models: Path) -> Result:
    """Everything at once on the bundled models."""
    arms = ",".join(KINDS)
    return run(*FAST, "--prompt-tokens", "40,16", "--parallel", "2", "--arms", arms)


def test_the_table_comes_first_and_json_last(whole: Result) -> None:
    assert whole.exit_code == 0, whole.output
    lines = whole.stdout.splitlines()
    assert lines[0].startswith("base     template.gguf")
    assert lines[1].startswith("adapter  instruct, int8")
    table = next(i for i, line in enumerate(lines) if line.startswith("arm "))
    assert lines[table + 1].split()[:3] == ["plain", "prose", "40"]
    assert [i for i, line in enumerate(lines) if line.startswith("{")] == [len(lines) - 1]
    json.loads(lines[-1])


def test_every_ratio_is_there(whole: Result) -> None:
    found = json.loads(whole.stdout.splitlines()[-1])
    assert set(found["ratios"]) == {
        "steered_vs_plain",
        "serial_vs_plain",
        "overlapped_vs_plain",
        "steered_vs_naive",
        "plain_vs_stock",
        "naive_vs_stock",
        "speculated_plain_vs_stock",
        "speculated_other",
        "speculated_plain_other",
        "speculated_repeating",
        "speculated_plain_repeating",
        "batched_vs_one",
        "batched_steered_vs_plain",
        "long_vs_short",
    }
    assert all(ratio > 0 for ratio in found["ratios"].values())
    assert set(found["prompts"]) == {"plain", "steered"}
    assert found["settings"]["pairs"] == 1
    assert found["settings"]["contexts"] == [40, 16]
    assert {"base", "delta", "peak"} <= set(found["memory_mb"])


def test_every_arm_wrote_what_was_forced(whole: Result) -> None:
    arms = json.loads(whole.stdout.splitlines()[-1])["arms"]
    written: dict[tuple[str, int], set[str]] = {}
    for arm in arms:
        written.setdefault((arm["text"], arm["sequences"]), set()).add(arm["emitted"])
    assert {place: len(texts) for place, texts in written.items()} == {
        ("prose", 1): 1,  # in every mode, of the rivals too, after prompts of either length
        ("editing", 1): 1,
        ("extraction", 1): 1,
        ("prose", 2): 1,
    }
    assert {arm["tokens"] for arm in arms} == {3, 6}
    main_text = [arm["arm"] for arm in arms if arm["context"] == 40 and arm["sequences"] == 1]
    kinds: tuple[Kind, ...] = (
        "plain",
        "steered",
        "serial",
        "overlapped",
        "alone",
        "stock",
        "naive",
    )
    assert main_text == [*kinds, "plain+guesses", "steered+guesses"]


def test_a_model_without_an_adapter_is_measured_plain(tiny_gguf: Path, tmp_path: Path) -> None:
    text = tmp_path / "my.txt"
    text.write_text("Helen Blackworth was born in Harborville. " * 3)
    words = ("--gguf", str(tiny_gguf), "--arms", "plain,stock", "--text", str(text), "--json")
    done = run(*FAST, *words, "--prompt-tokens", "8")
    assert done.exit_code == 0, done.output
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert [arm["arm"] for arm in found["arms"]] == ["plain", "alone", "stock"]
    assert found["adapter"] is None
    assert found["settings"]["text"] == "my.txt"
    assert str(tmp_path) not in line
    assert "steered, serial, overlapped, naive need an adapter" in refused("-m", str(tiny_gguf))


def test_what_cannot_be_measured_is_refused_in_one_line(
    bundled_models: Path, tmp_path: Path
) -> None:
    text = tmp_path / "short.txt"
    text.write_text("Too short.")
    assert "short.txt is too short" in refused("--text", str(text))
    assert "'--parallel'" in refused("--parallel", "0")
    assert "no arm 'fast': there are plain, steered" in refused("--arms", "plain,fast")
    assert "there are plain" in refused("--arms", ",")
    assert "at least 2" in refused("--prompt-tokens", "1")
    assert "give numbers" in refused("--prompt-tokens", "many")
    assert "leave --gguf" in refused("--synthetic", "1b", "--gguf", "template")
    assert "needs vocabularies" in refused("--synthetic", "1b")
    assert "--arms" in refused("--overlap", "on")


def test_a_synthetic_pair_is_made_in_the_cache_and_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[Any, ...]] = []

    def maker(*arguments: Any, report: Any) -> Path:
        made.append(arguments)
        report("writing a model of random weights")
        return tmp_path / f"made-{arguments[0]}"

    fake = SimpleNamespace(base_model=maker, adapter=maker)
    monkeypatch.setattr(bench, "import_workshop", lambda name: {"synthetic": fake}[name])
    monkeypatch.setattr(bench, "apart", lambda function, *arguments: function(*arguments))
    measured: list[session.Settings] = []
    monkeypatch.setattr(session, "run", lambda settings, tell: measured.append(settings))
    monkeypatch.setenv("CMC_CACHE", str(tmp_path))
    words = ("--synthetic", "1b", "--vocab", "v.gguf", "--delta", "42m", "--delta-vocab", "t.json")
    done = run(*words)
    assert made == [
        ("1b", Path("v.gguf"), tmp_path / "synthetic"),
        ("42m", Path("t.json"), tmp_path / "synthetic"),
    ]
    assert "writing a model" in done.stderr
    assert measured[0].gguf == tmp_path / "made-1b"
    assert measured[0].adapter == tmp_path / "made-42m"
    run(*words, "--cache", str(tmp_path / "own"))
    assert made[-1][2] == tmp_path / "own"


def test_a_process_of_its_own_hands_back_results_and_errors() -> None:
    assert bench.apart(os.getpid) != os.getpid()
    with pytest.raises(ValueError, match="many"):
        bench.apart(int, "many")
