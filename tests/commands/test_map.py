"""`cmc-local map` on vocabularies of a handful of tokens, and on tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tokenizers import Tokenizer, decoders, models, normalizers

from cmc_local.commands.map import command
from cmc_local.commands.map_report import shown
from cmc_local.errors import DataError, InputError, UsageError

BYTES = ("<0x0A>", "<0xE8>", "<0xAA>", "<0x9E>")
DELTA = ("<unk>", "</s>", *BYTES, "▁", "▁P", "a", "r", "ar", "▁Par")
BASE = ("<unk>", "</s>", *BYTES, "▁", "▁P", "a", "r", "i", "s", "▁Pa", "▁Par", "▁Pari", "語")
MERGES = {
    "delta": [("a", "r"), ("▁P", "ar")],
    "base": [("▁P", "a"), ("▁Pa", "r"), ("▁Par", "i")],
}


def save(path: Path, tokens: tuple[str, ...], merges: list[tuple[str, str]]) -> Path:
    """A SentencePiece-style tokenizer.json; a space and P merge first."""
    vocab = {token: i for i, token in enumerate(tokens)}
    usable = [pair for pair in merges if all(part in vocab for part in pair)]
    model = models.BPE(vocab, [("▁", "P"), *usable] if "P" in vocab else usable)
    model.unk_token, model.byte_fallback = "<unk>", True
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    tokenizer.save(str(path))
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save(tmp_path / "base.json", (*BASE, "P"), MERGES["base"])


@pytest.fixture
def delta(tmp_path: Path) -> Path:
    return save(tmp_path / "delta.json", (*DELTA, "P"), MERGES["delta"])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CMC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def run(base: Path, delta: Path, *more: str) -> Result:
    arguments = ["--base", str(base), "--delta", str(delta), *more]
    return CliRunner().invoke(command, arguments, catch_exceptions=False)


def read(base: Path, delta: Path, *more: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(base, delta, *more, "--json").stdout)
    return found


# Base onto delta: <unk> none; </s> by role; the bytes, `▁`, `▁P`, `a`, `r`, `▁Par` and `P` exact;
# `▁Pa` (`▁P` or `▁Par`) and `▁Pari` (`▁Par`) near; `i` and `s` begin nothing, and the delta can
# not spell them; `語` falls back to its first byte.
MAP = [-1, 1, 2, 3, 4, 5, 6, 7, 8, 9, -1, -1, 7, 11, 11, 3, 12]
COUNTS = {"exact": 10, "near": 2, "fallback": 1, "role": 1, "none": 3}


def test_json_counts_every_kind(base: Path, delta: Path) -> None:
    found = read(base, delta)
    assert found["counts"] == COUNTS
    assert found["base"]["tokens"] == 17
    assert found["delta"]["name"] == str(delta)
    assert [pair["base"]["spelling"] for pair in found["worst"]["near"]] == ["▁Pa", "▁Pari"]
    assert found["worst"]["fallback"][0]["delta"]["spelling"] == "<0xE8>"


def test_ids_are_written_as_a_list(base: Path, delta: Path, tmp_path: Path) -> None:
    target = tmp_path / "map.json"
    run(base, delta, "--ids", str(target))
    assert json.loads(target.read_text()) == MAP
    assert not list(tmp_path.glob("*.part"))


def test_without_fallback_what_begins_nothing_has_none(base: Path, delta: Path) -> None:
    counts = read(base, delta, "--fallback", "none")["counts"]
    assert counts == COUNTS | {"fallback": 0, "none": 4}


def test_the_screen_shows_counts_shares_and_the_worst(base: Path, delta: Path) -> None:
    lines = run(base, delta).stdout.splitlines()
    assert lines[0].split() == ["base", str(base), "17", "tokens"]
    assert ["exact", "10", "58.82", "%"] in [line.split() for line in lines]
    assert [line for line in lines if '" Pari"' in line and '-> 11  " Par"' in line]
    assert [line for line in lines if '"語"' in line and "<E8>" in line]


def test_a_text_weighs_the_counts_by_the_bases_own_tokens(
    base: Path, delta: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(" Paris 語 Pa")  # ` Pari` `s` ` ` `語` ` Pa`
    found = read(base, delta, "--text", str(text))
    assert found["text"] == {
        "name": "text.txt",
        "counts": {"exact": 1, "near": 2, "fallback": 1, "role": 0, "none": 1},
    }
    assert found["worst"]["none"][0]["base"]["spelling"] == "s"
    assert found["worst"]["none"][0]["uses"] == 1
    assert "in text.txt" in run(base, delta, "--text", str(text)).stdout


@pytest.mark.parametrize("asked", [" Pari", "▁Pari"])
def test_a_token_is_explained_by_text_or_spelling(base: Path, delta: Path, asked: str) -> None:
    lines = run(base, delta, "--token", asked).stdout.splitlines()
    assert lines[0] == 'base token 14  ▁Pari  " Pari"  normal'
    assert lines[1].startswith('  near: delta token 11  ▁Par  " Par" is 1 away')
    assert lines[2] == '  not 7  ▁P  " P": 3 away'
    assert len(lines) == 3  # the lone space is no candidate


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ("a", "exact:"),
        ("語", "fallback:"),
        ("</s>", "role:"),
        ("i", "none: no delta token"),
        ("<unk>", "none: a token without text"),
    ],
)
def test_every_kind_of_match_has_its_reason(base: Path, delta: Path, asked: str, why: str) -> None:
    assert run(base, delta, "--token", asked).stdout.splitlines()[1].strip().startswith(why)


def test_what_is_no_token_is_explained_by_its_pieces(base: Path, delta: Path) -> None:
    done = run(base, delta, "--token", " Paris")
    assert "writes it as these" in done.stderr
    heads = [line for line in done.stdout.splitlines() if line.startswith("base token")]
    assert [head.split()[2] for head in heads] == ["14", "11"]


def test_a_token_in_json(base: Path, delta: Path) -> None:
    (pair,) = read(base, delta, "--token", " Pari")["tokens"]
    assert pair["match"] == "near"
    assert pair["distance"] == 1
    assert pair["base"] == {"id": 14, "spelling": "▁Pari", "text": " Pari", "role": "normal"}


def test_a_gguf_as_base_uses_llama_cpps_tokens(
    tiny_gguf: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("One word and another.")
    found = read(tiny_gguf, tiny_folder / "tokenizer.json", "--text", str(text))
    tokenizer = Tokenizer.from_file(str(tiny_folder / "tokenizer.json"))
    ids = tokenizer.encode("One word and another.", add_special_tokens=False).ids
    assert found["counts"]["near"] == found["counts"]["fallback"] == 0  # the same vocabulary
    assert found["base"]["fingerprint"] == found["delta"]["fingerprint"]
    assert found["text"]["counts"]["exact"] == len(ids)


def test_a_models_folder_stands_for_its_tokenizer(base: Path, tiny_folder: Path) -> None:
    assert read(tiny_folder, tiny_folder)["counts"]["near"] == 0


def test_what_is_not_there_is_named(base: Path, delta: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing.json"
    for arguments, error in [
        ((missing, delta), InputError),
        ((base, missing), InputError),
        ((tmp_path / "missing.gguf", delta), InputError),
        ((base, tmp_path / "missing"), InputError),
        ((base, tmp_path), InputError),
        ((base, delta, "--text", str(missing)), DataError),
        ((base, delta, "--token", ""), UsageError),
        ((base, delta, "--ids", str(base / "map.json")), InputError),
    ]:
        with pytest.raises(error) as caught:
            run(*arguments)
        assert "\n" not in str(caught.value)


def test_a_control_tokens_spelling_in_a_text_is_text(
    base: Path, delta: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a</s>")
    assert read(base, delta, "--text", str(text))["text"]["counts"]["role"] == 0


def test_an_empty_text_cannot_weigh(base: Path, delta: Path, tmp_path: Path) -> None:
    text = tmp_path / "empty.txt"
    text.write_text("")
    with pytest.raises(DataError, match="empty"):
        run(base, delta, "--text", str(text))


def test_a_text_is_shown_so_that_no_terminal_obeys_it() -> None:
    assert shown(b"a\x1b[31m\n") == '"a\\x1b[31m\\n"'
    assert shown(b"\xe8\xaa") == "<E8 AA>"
    assert shown(b"-" * 50) == '"' + "-" * 40 + '" and 10 more'
