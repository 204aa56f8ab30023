"""Kinds of tokens, and what each way to carry a shift over loses on them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cmc_export.real import data, kinds
from cmc_export.real.measure import Sizes
from cmc_export.real.places import MODELS, Cell
from cmc_local.errors import UsageError


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([b"The", b" sea", b"side"], ["beginning", "beginning", "inside"]),
        ([b"In", b" Par", b"is", b"."], ["beginning", "name", "name", "punctuation"]),
        ([b"Yes", b".", b" He", b" ran"], ["beginning", "punctuation", "beginning", "beginning"]),
        ([b"It", b"'s", b" 4", b"2"], ["beginning", "inside", "digits", "digits"]),
        ([b"a", b"\n", b"####", b" 7"], ["beginning", "punctuation", "punctuation", "digits"]),
        ([b"Z\xc3", b"\xbcrich"], ["beginning", "inside"]),  # half a character
        ([b"\xe6\x9d", b"\xb1", b"\xe4\xba\xac"], ["beginning", "beginning", "inside"]),
    ],
)
def test_kinds_of_tokens(tokens: list[bytes], expected: list[str]) -> None:
    assert kinds.kinds_of(tokens) == expected


def test_means_are_over_the_tokens_of_a_kind() -> None:
    found = kinds.by_kind(
        [
            {"nats": [1.0, 2.0], "kinds": ["beginning", "end"]},
            {"nats": [3.0, 4.0], "kinds": ["beginning", "digits"]},
        ]
    )
    assert found["nll"] == {"beginning": 2.0, "digits": 4.0, "end": 2.0, "all": 2.5}
    assert found["tokens"]["beginning"] == 2 and found["tokens"]["name"] == 0


@pytest.fixture
def runs(bundled_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The bundled models and adapter in the places of the real ones."""
    for name, file in zip(MODELS.values(), ("template", "larger", "other"), strict=True):
        (tmp_path / name).symlink_to(bundled_models / f"{file}.gguf")
    monkeypatch.setenv("CMC_REAL", str(tmp_path))
    place = tmp_path / "runs"
    data.write_data(place, "style")
    (place / "style/delta.gemma3.0.adapter").symlink_to(bundled_models / "instruct")
    return place


def test_settings_differ_where_the_vocabularies_do(runs: Path) -> None:
    sizes, found = Sizes(nll=2, threads=1), {}
    for base in ("gemma3", "qwen25"):
        cell = Cell("style", base, "delta-gemma3", 0)
        kinds.measure(cell, runs, sizes, print)
        document = json.loads(kinds.result_file(cell, runs).read_text())
        found[base] = {row["setting"]: row["nll"]["all"] for row in document["rows"]}
    assert [*found["qwen25"]] == ["plain", "exact", "pm-mined", "first-piece", "mid-token"]
    same = found["gemma3"]  # the delta's own vocabulary: every way is the same
    assert same["exact"] == pytest.approx(same["pm-mined"]) == pytest.approx(same["first-piece"])
    assert same["plain"] != pytest.approx(same["exact"])
    assert found["qwen25"]["exact"] != pytest.approx(found["qwen25"]["pm-mined"])
    text = kinds.markdown(runs)
    assert text.count("###") == 2 and "kinds --tasks style --bases qwen25" in text


def test_an_arm_without_a_delta_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="delta"):
        kinds.measure(Cell("style", "gemma3", "plain"), tmp_path, Sizes(), print)
