"""Places and strengths as they are typed, and what is said of those that are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmc_local.errors import CmcError, InputError, UsageError
from cmc_local.hub import places
from cmc_local.hub.places import AdapterChoice


@pytest.mark.parametrize("tail", ["abc", "", "nan", "inf", "0,5"])
def test_a_strength_that_is_no_number_is_wrong_use(tmp_path: Path, tail: str) -> None:
    with pytest.raises(UsageError, match="is no strength"):
        places.parse_adapter(f"{tmp_path}:{tail}")


def test_every_option_names_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.touch()
    for parse, option, text in (
        (places.parse_adapter, "--adapter", "hf:u/r:strong"),
        (places.parse_proxy, "--proxy", f"{path},{path}:high"),
        (places.parse_lora, "--lora", f"{path}:nan"),
    ):
        with pytest.raises(UsageError, match=f"^{option} .* is no strength"):
            parse(text)


def test_a_colon_of_the_path_itself_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "a:b"
    folder.mkdir()
    assert places.parse_adapter(str(folder)) == AdapterChoice(folder, None)
    assert places.parse_adapter(f"{folder}:2") == AdapterChoice(folder, 2.0)


@pytest.mark.parametrize("words", ["{0}", "{0},", ",{0}", ",", "", " , "])
def test_less_than_two_files_is_no_pair(tmp_path: Path, words: str) -> None:
    (tmp_path / "a.gguf").touch()
    with pytest.raises(UsageError, match="two GGUF files"):
        places.parse_proxy(words.format(tmp_path / "a.gguf"))


def test_what_is_not_there_is_named_with_what_could_be_given(tmp_path: Path) -> None:
    for text in (f"{tmp_path}/none", f"{tmp_path}/none:0.5"):
        with pytest.raises(CmcError, match=r"none.*: give its folder, .*instruct"):
            places.parse_adapter(text)
    with pytest.raises(InputError, match=r"none\.gguf.*: give its path"):
        places.gguf_path(f"{tmp_path}/none.gguf")
    with pytest.raises(InputError, match=r"is a folder"):
        places.gguf_path(str(tmp_path))
    with pytest.raises(InputError, match=r"none\.gguf.*: give the path"):
        places.parse_lora(f"{tmp_path}/none.gguf:0.5")
