"""Tokenizers of both families: what they look like, and that llama.cpp reads them alike."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

import tiny_models
from cmc_export.tokenizer_training import byte_level, sentencepiece_style
from cmc_local.base.model import BaseModel

TEXTS = tiny_models.TEXTS


def plain(tokenizer: Tokenizer, text: str) -> list[int]:
    tokenizer.encode_special_tokens = True  # the spelling of a control token is plain text
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.fixture(scope="module", params=["sentencepiece", "byte-level"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Tokenizer, BaseModel]]:
    """A trained tokenizer, and llama.cpp with the GGUF made from it."""
    folder = tmp_path_factory.mktemp("tokenizer") / "model"
    tiny_models.llama_folder(folder, family=request.param)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    with BaseModel(tiny_models.gguf_of(folder)) as base:
        yield tokenizer, base


def snippets() -> Iterator[str]:
    rng = random.Random(0)
    text = "\n".join(TEXTS)
    for _ in range(500):
        at = rng.randrange(len(text))
        yield text[at : at + rng.randrange(60)]
    for _ in range(500):
        alphabet = "ab the<s>/|x0A41 \u2581\n\t'\"09éü漢😀\u0301ß."
        yield "".join(rng.choices(alphabet, k=rng.randrange(30)))


def test_llama_cpp_agrees_on_a_thousand_texts(pair: tuple[Tokenizer, BaseModel]) -> None:
    tokenizer, base = pair
    different = [t for t in snippets() if base.tokenize(t, bos=False) != plain(tokenizer, t)]
    assert not different


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_llama_cpp_agrees_on_any_text(pair: tuple[Tokenizer, BaseModel], text: str) -> None:
    tokenizer, base = pair
    assert base.tokenize(text, bos=False) == plain(tokenizer, text)


def test_the_sentencepiece_layout_is_llama_2s() -> None:
    tokenizer = sentencepiece_style(TEXTS, 400)
    first = [tokenizer.id_to_token(i) for i in (0, 1, 2, 3, 258)]
    assert first == ["<unk>", "<s>", "</s>", "<0x00>", "<0xFF>"]
    assert tokenizer.get_vocab_size() == 400


def test_a_character_never_seen_becomes_bytes_and_comes_back() -> None:
    tokenizer = sentencepiece_style(TEXTS, 400)
    encoded = tokenizer.encode("the 漢\nthe", add_special_tokens=False)
    assert [f"<0x{byte:02X}>" for byte in "漢\n".encode()] == [
        token for token in encoded.tokens if token.startswith("<0x")
    ]
    assert tokenizer.decode(encoded.ids) == "the 漢\nthe"


def test_training_again_gives_the_same_file() -> None:
    for train in (sentencepiece_style, byte_level):
        assert train(TEXTS, 420).to_str() == train(TEXTS, 420).to_str()


def test_a_vocabulary_without_room_for_the_characters_is_refused() -> None:
    with pytest.raises(ValueError, match="ask for a larger vocabulary"):
        sentencepiece_style(TEXTS, 270)


def test_encoding_with_special_tokens_begins_with_bos() -> None:
    assert sentencepiece_style(TEXTS, 400).encode("a").tokens[0] == "<s>"
    assert byte_level(TEXTS, 400).encode("a").tokens[0] == "<|begin_of_text|>"
