"""A cut vocabulary: the texts keep their pieces, everything else can still be written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

import tiny_models
from cmc_export.kept_vocabulary import Kept, keep, read_texts
from cmc_local.errors import DataError, TokenizerError
from cmc_local.text.delta_tokenizer import DeltaTokenizer
from cmc_local.text.vocabulary import from_tokenizer_json

FAMILIES: dict[tiny_models.Family, bytes] = {
    "sentencepiece": tiny_models.tokenizer("sentencepiece").to_str().encode(),
    "byte-level": tiny_models.tokenizer("byte-level").to_str().encode(),
}
WORDS = st.sampled_from(" ".join(tiny_models.TEXTS).split(" "))
TEXTS = st.lists(st.lists(WORDS, min_size=1, max_size=8).map(" ".join), min_size=1, max_size=4)


def pieces(words: bytes, texts: list[str]) -> list[list[str]]:
    tokenizer = DeltaTokenizer(words)
    return [[tokenizer.vocabulary.names[i] for i in tokenizer.encode(text)] for text in texts]


def check(words: bytes, kept: Kept, texts: list[str]) -> None:
    """Each text has its pieces, and each new id the text that it had under its old id."""
    assert pieces(kept.words, texts) == pieces(words, texts)
    old, new = from_tokenizer_json(words), from_tokenizer_json(kept.words)
    assert [old.names[i] for i in kept.ids] == list(new.names)
    assert [old.tokens[i] for i in kept.ids] == list(new.tokens)
    assert [old.roles[i] for i in kept.ids] == list(new.roles)
    assert old.names[old.eos_id or 0] == new.names[new.eos_id or 0]


@pytest.mark.parametrize("family", FAMILIES)
@given(texts=TEXTS)
def test_the_texts_keep_their_pieces(family: tiny_models.Family, texts: list[str]) -> None:
    check(FAMILIES[family], keep(FAMILIES[family], texts), texts)


@pytest.mark.parametrize("family", FAMILIES)
@given(text=st.text(max_size=40))
def test_other_texts_can_still_be_written(family: tiny_models.Family, text: str) -> None:
    tokenizer = DeltaTokenizer(keep(FAMILIES[family], ["Helen Blackworth"]).words)
    said = b"".join(tokenizer.vocabulary.tokens[i] for i in tokenizer.encode(text))
    assert said.decode("utf-8").lstrip(" ") == text.encode("utf-8", "replace").decode().lstrip(" ")


def test_what_a_word_is_made_of_stays_and_the_rest_goes() -> None:
    letters = {name: i for i, name in enumerate("<>abcd")}
    vocab = {**letters, "ab": 6, "abc": 7, "cd": 8, "da": 9}
    merges = [("a", "b"), ("c", "d"), ("ab", "c"), ("d", "a")]
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.add_special_tokens(["<", ">"])
    kept = keep(tokenizer.to_str().encode(), ["abc"])
    document = json.loads(kept.words)
    # abc is made of ab and c, ab of a and b; single letters count as bytes in a byte-level BPE.
    assert document["model"]["vocab"] == {**letters, "ab": 6, "abc": 7}
    assert document["model"]["merges"] == [["a", "b"], ["ab", "c"]]
    assert kept.ids == (0, 1, 2, 3, 4, 5, 6, 7)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_end_of_a_text_is_named_by_its_new_number(family: tiny_models.Family) -> None:
    kept = Tokenizer.from_str(keep(FAMILIES[family], ["the sea"]).words.decode())
    old = Tokenizer.from_str(FAMILIES[family].decode())
    assert kept.get_vocab_size() < old.get_vocab_size()
    assert kept.encode("the sea", "the sea").tokens == old.encode("the sea", "the sea").tokens
    named = [kept.id_to_token(i) for i in kept.encode("the sea", "the sea").ids]
    assert named == old.encode("the sea", "the sea").tokens


def test_data_is_read_as_training_reads_it(tmp_path: Path) -> None:
    talk, plain = tmp_path / "qa.jsonl", tmp_path / "text.txt"
    talk.write_text(json.dumps({"question": "Where?", "answer": "There."}), "utf-8")
    plain.write_text("one\ntwo\n\nthree", "utf-8")
    found = read_texts([talk, plain])
    assert "<|user|>\nWhere?\n<|assistant|>\nThere." in found
    assert {"Where?", "There.", "one\ntwo", "one", "two", "three"} <= set(found)


def test_mistakes_are_told() -> None:
    words = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]")).to_str().encode()
    with pytest.raises(TokenizerError, match="WordPiece vocabulary cannot be cut"):
        keep(words, ["a"])
    with pytest.raises(DataError, match="use no piece"):
        keep(FAMILIES["byte-level"], ["\u4e2d"])


@pytest.mark.parametrize("name", ["llama2", "mistral"])
def test_a_real_vocabulary_keeps_a_books_pieces(shared_data: Path, name: str) -> None:
    words = (shared_data / "tokenizers" / name / "tokenizer.json").read_bytes()
    text = (shared_data / "text" / "wikitext2_valid.txt").read_text("utf-8")[:200_000]
    texts = [line for line in text.splitlines() if line.strip()]
    kept = keep(words, texts)
    check(words, kept, texts[:200])
    assert len(kept.ids) < 14_000
