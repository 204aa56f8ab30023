"""Saved chats: what is written is read again, and nothing else is."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmc_local.commands.chat_file import FORMAT, LARGEST, SavedChat, load, place, save
from cmc_local.errors import InputError, UsageError
from cmc_local.settings import Sampling

CHAT = SavedChat(
    model="base.gguf",
    alphas={"instruct": 0.8},
    base_prompt=None,
    system="Be brief.",
    sampling=Sampling(temperature=0, seed=7, stop=("\n\n", "#"), json_schema="{}"),
    messages=[
        {"role": "user", "content": "Wer schrieb „Dune“?"},
        {"role": "assistant", "content": "Frank Herbert.\n"},
    ],
)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "new" / "talk.json"
    save(file, CHAT)
    assert load(file) == CHAT
    assert [one.name for one in file.parent.iterdir()] == ["talk.json"]


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(
    st.lists(st.tuples(texts, texts), max_size=3),
    st.none() | texts,
    st.dictionaries(texts, st.floats(-9, 9), max_size=2),
    st.lists(texts, max_size=2),
    st.floats(0, 2),
)
def test_any_chat_survives(
    tmp_path: Path,
    talk: list[tuple[str, str]],
    system: str | None,
    alphas: dict[str, float],
    stop: list[str],
    temperature: float,
) -> None:
    messages = [
        {"role": role, "content": text}
        for pair in talk
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    chat = replace(
        CHAT,
        messages=messages,  # type: ignore[arg-type]
        system=system,
        alphas=alphas,
        sampling=Sampling(stop=tuple(stop), temperature=temperature),
    )
    save(tmp_path / "talk.json", chat)
    assert load(tmp_path / "talk.json") == chat


def test_a_chat_goes_over_a_chat_and_over_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    save(file, CHAT)
    save(file, replace(CHAT, system=None))
    assert load(file).system is None
    weights = tmp_path / "model.gguf"
    weights.write_bytes(b"GGUF")
    for taken in (weights, tmp_path):
        with pytest.raises(UsageError, match="is there and is no saved chat"):
            save(taken, CHAT)
    assert weights.read_bytes() == b"GGUF"


def test_half_a_character_is_saved_as_a_question_mark(tmp_path: Path) -> None:
    save(tmp_path / "talk.json", replace(CHAT, system="a\ud800b"))
    assert load(tmp_path / "talk.json").system == "a?b"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": "other"}, f'does not say "format": "{FORMAT}"'),
        ({"version": 2}, "its version is 2, and this program reads 1"),
        ({"version": None}, "its version is None"),
        ({"model": None}, "model must"),
        ({"base_prompt": "x"}, "base_prompt must"),
        ({"base_prompt": ["raw"]}, "base_prompt must"),
        ({"system": 3}, "system must"),
        ({"alphas": [1]}, "alphas must"),
        ({"alphas": {"a": True}}, "the alpha of 'a' takes a number"),
        ({"alphas": {"a": 10**400}}, "the alpha of 'a' takes a number"),
        ({"sampling": None}, "sampling must"),
        ({"sampling": {"heat": 1}}, "no setting 'heat'"),
        ({"sampling": {"temperature": -1}}, "temperature must be at least 0"),
        ({"sampling": {"temperature": [1]}}, "temperature takes a number"),
        ({"sampling": {"seed": 1.5}}, "seed takes a whole number"),
        ({"sampling": {"stop": "x"}}, "sampling.stop"),
        ({"sampling": {"stop": [""]}}, "sampling.stop"),
        ({"sampling": {"grammar": 5}}, "sampling.grammar"),
        ({"messages": {}}, "messages must"),
        ({"messages": [{"role": "user", "content": "a"}]}, "messages must"),
        ({"messages": [{"role": "user", "content": "a"}, "b"]}, "message 2"),
        ({"messages": [{"role": "system", "content": "a"}] * 2}, "message 1 must"),
        ({"messages": [{"role": "user", "content": ""}] * 2}, "message 1 must"),
        ({"system": "\ud800"}, "it is not JSON in UTF-8"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    file = tmp_path / "talk.json"
    save(file, CHAT)
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(InputError) as error:
        load(file)
    assert told in str(error.value)
    assert str(error.value).startswith(f"{file} is no saved chat: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"\xff", b'{"format": NaN}', b"[" * 100_000, b"9" * 5_000, b"null"],
    ids=lambda data: repr(data[:8]),
)
def test_what_is_no_chat_at_all_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "talk.json").write_bytes(data)
    with pytest.raises(InputError, match="is no saved chat"):
        load(tmp_path / "talk.json")


def test_a_file_without_end_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is no file"):
        load(tmp_path / "pipe")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(InputError, match="too large"):
        load(tmp_path / "large")
    with pytest.raises(InputError, match="No such file"):
        load(tmp_path / "none")


def test_names_that_no_file_can_have(tmp_path: Path) -> None:
    for use in (load, lambda path: save(path, CHAT)):
        with pytest.raises(InputError, match="too long"):
            use(tmp_path / ("x" * 5_000))
    with pytest.raises(UsageError, match="/save"):
        place("", "/save")
    assert place("~nobody-of-this-name/x", "/load") == Path("~nobody-of-this-name/x")
