"""Vocabularies from small tokenizer.json files, each built by hand or by the tokenizers library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers

from cmc_local.errors import TokenizerError
from cmc_local.text.vocabulary import (
    Role,
    Vocabulary,
    byte_level_bytes,
    byte_value,
    from_tokenizer_json,
    is_unused_name,
    metaspace_bytes,
)

METASPACE: dict[str, Any] = {
    "normalizer": {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    },
    "decoder": {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ],
    },
}


def bpe(*tokens: str, **model: Any) -> dict[str, Any]:
    return {
        "type": "BPE",
        "vocab": {token: i for i, token in enumerate(tokens)},
        "merges": [],
        **model,
    }


def added(i: int, content: str, special: bool = True) -> dict[str, Any]:
    return {"id": i, "content": content, "special": special}


def read(**root: Any) -> Vocabulary:
    return from_tokenizer_json(json.dumps(root).encode())


def template(*items: str | None, **ids: int) -> dict[str, Any]:
    """A TemplateProcessing step; None is the text itself."""
    return {
        "type": "TemplateProcessing",
        "single": [
            {"Sequence": {"id": "A"}} if item is None else {"SpecialToken": {"id": item}}
            for item in items
        ],
        "special_tokens": {name: {"ids": [i]} for name, i in ids.items()},
    }


def test_sentencepiece_style_tokens_become_their_bytes_and_roles() -> None:
    vocabulary = read(
        model=bpe(
            *("<unk>", "<s>", "</s>", "<0x0A>", "▁Par", "is", "▁▁"),
            byte_fallback=True,
            unk_token="<unk>",
        ),
        added_tokens=[added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
        **METASPACE,
    )
    assert vocabulary.tokens == (b"", b"", b"", b"\n", b" Par", b"is", b"  ")
    assert vocabulary.roles.tolist() == [
        *(Role.CONTROL, Role.BOS, Role.EOS, Role.BYTE, Role.NORMAL, Role.NORMAL, Role.NORMAL)
    ]
    assert (vocabulary.bos_id, vocabulary.eos_id) == (1, 2)
    assert vocabulary.names[4] == "▁Par"
    assert len(vocabulary) == 7


def test_byte_level_tokens_become_their_bytes() -> None:
    vocabulary = read(
        model=bpe("Ġa", "Ċ", "Ã", "<0x0A>"),
        added_tokens=[added(4, "<|endoftext|>"), added(5, "é", special=False)],
        pre_tokenizer={"type": "ByteLevel"},
        decoder={"type": "ByteLevel"},
    )
    assert vocabulary.tokens == (b" a", b"\n", b"\xc3", b"<0x0A>", b"", "é".encode())
    assert vocabulary.roles.tolist() == [*[Role.NORMAL] * 4, Role.EOS, Role.NORMAL]
    assert (vocabulary.bos_id, vocabulary.eos_id) == (None, 4)


BYTE_LEVEL: dict[str, Any] = {"decoder": {"type": "ByteLevel"}}


@pytest.mark.parametrize(
    ("root", "roles", "ends"),
    [
        # every end of a generation is EOS; the first of the known names is the main one
        (
            {
                "model": bpe("a"),
                "added_tokens": [
                    *(added(1, "<|im_end|>"), added(2, "<|endoftext|>"), added(3, "<|im_start|>"))
                ],
                **BYTE_LEVEL,
            },
            [Role.NORMAL, Role.EOS, Role.EOS, Role.CONTROL],
            (None, 2),
        ),
        # the template says which tokens begin and end a text
        (
            {
                "model": bpe("a"),
                "added_tokens": [added(1, "<start>"), added(2, "<stop>")],
                "post_processor": {
                    "type": "Sequence",
                    "processors": [
                        {"type": "ByteLevel"},
                        template("<start>", None, "<stop>", **{"<start>": 1, "<stop>": 2}),
                    ],
                },
                **BYTE_LEVEL,
            },
            [Role.NORMAL, Role.BOS, Role.EOS],
            (1, 2),
        ),
        # one token for both counts as EOS
        (
            {
                "model": bpe("a"),
                "added_tokens": [added(1, "<|endoftext|>")],
                "post_processor": template("<|endoftext|>", None, **{"<|endoftext|>": 1}),
            },
            [Role.NORMAL, Role.EOS],
            (1, 1),
        ),
        # where nothing was added the model's own tokens are searched
        (
            {"model": bpe("<s>", "</s>", "a", byte_fallback=True), **METASPACE},
            [Role.BOS, Role.EOS, Role.NORMAL],
            (0, 1),
        ),
        # an ordinary token of such a name is text where there are added ones
        (
            {"model": bpe("</s>"), "added_tokens": [added(1, "<|endoftext|>")], **BYTE_LEVEL},
            [Role.NORMAL, Role.EOS],
            (None, 1),
        ),
    ],
    ids=["several ends", "template", "one for both", "nothing added", "ordinary"],
)
def test_which_tokens_begin_and_end_a_text(
    root: dict[str, Any], roles: list[Role], ends: tuple[int | None, int | None]
) -> None:
    vocabulary = read(**root)
    assert vocabulary.roles.tolist() == roles
    assert (vocabulary.bos_id, vocabulary.eos_id) == ends


def test_unigram_and_metaspace() -> None:
    vocabulary = read(
        model={"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["▁a", -1.0]]},
        pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
    )
    assert vocabulary.tokens == (b"", b" a")
    assert vocabulary.roles.tolist() == [Role.CONTROL, Role.NORMAL]


def test_wordpiece_begins_a_word_with_a_space() -> None:
    vocabulary = read(
        model={
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "vocab": {"[UNK]": 0, "play": 1, "##ing": 2, "[CLS]": 3, "[SEP]": 4, "[unused1]": 5},
        },
        added_tokens=[added(0, "[UNK]"), added(3, "[CLS]"), added(4, "[SEP]")],
        post_processor={"type": "BertProcessing", "sep": ["[SEP]", 4], "cls": ["[CLS]", 3]},
    )
    assert vocabulary.tokens == (b"", b" play", b"ing", b"", b"", b"")
    assert (vocabulary.bos_id, vocabulary.eos_id) == (3, 4)
    assert vocabulary.roles[5] == Role.UNUSED


def test_a_suffix_at_the_end_of_words_is_a_space() -> None:
    assert read(model=bpe("lo", "w</w>", end_of_word_suffix="</w>")).tokens == (b"lo", b"w ")


def test_holes_between_the_ids_are_unused() -> None:
    vocabulary = read(model={"type": "BPE", "vocab": {"a": 0, "b": 2}, "merges": []})
    assert vocabulary.tokens == (b"a", b"", b"b")
    assert vocabulary.roles.tolist() == [Role.NORMAL, Role.UNUSED, Role.NORMAL]


@given(st.text(max_size=8))
def test_byte_level_spelling_of_any_text_comes_back(text: str) -> None:
    step = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spelled = "".join(word for word, _ in step.pre_tokenize_str(text))
    assert byte_level_bytes(spelled) == text.encode()


def test_every_byte_has_one_byte_level_spelling() -> None:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    assert sorted(byte_level_bytes(char) for char in alphabet) == [bytes([b]) for b in range(256)]


def test_spellings() -> None:
    assert byte_level_bytes("ĠParis") == metaspace_bytes("▁Paris") == b" Paris"
    assert byte_level_bytes("日") == "日".encode()  # no character of the 256
    assert (byte_value("<0x0A>"), byte_value("<0x0a>"), byte_value("0x0A")) == (10, 10, None)
    assert is_unused_name("<|reserved_special_token_12|>")
    assert not is_unused_name("<|im_start|>")


def test_fingerprint_depends_on_texts_and_roles_but_not_on_spellings() -> None:
    def of(*entries: tuple[bytes, Role, str], eos: int | None = None) -> str:
        return Vocabulary.assemble(entries, eos_id=eos).fingerprint

    one = of((b"a", Role.NORMAL, "a"), (b"bc", Role.NORMAL, "bc"))
    assert one == of((b"a", Role.NORMAL, "x"), (b"bc", Role.NORMAL, "y"))
    others = {
        of((b"ab", Role.NORMAL, ""), (b"c", Role.NORMAL, "")),
        of((b"a", Role.BYTE, ""), (b"bc", Role.NORMAL, "")),
        of((b"a", Role.NORMAL, ""), (b"bc", Role.NORMAL, ""), eos=1),
    }
    assert len(others | {one}) == 4
    assert len(one) == 64


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GGUF\x03",
        b"[]",
        b'"text"',
        b"{}",
        b'{"model": {"type": "WordLevel", "vocab": {"a": 0}}}',
        b'{"model": {"type": "BPE", "vocab": {}}}',
        b'{"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}}}',
        b'{"model": {"type": "BPE", "vocab": {"a": -1}}}',
        b'{"model": {"type": "BPE", "vocab": {"a": 99999999999}}}',
        b'{"model": {"type": "BPE", "vocab": {"a": "0"}}}',
        b'{"model": {"type": "BPE", "vocab": {"a": 0}}, "decoder": {"type": 3, "x": 1}, '
        b'"pre_tokenizer": {"type": "Sequence", "pretokenizers": [1]}}',
        b'{"model": {"type": "BPE", "vocab": {"a": 0}}, "added_tokens": [1]}',
        b"[" * 100_000,
        json.dumps({"model": bpe("a" * 5000)}).encode(),
    ],
)
def test_what_is_no_tokenizer_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(TokenizerError) as caught:
        from_tokenizer_json(data)
    assert "\n" not in str(caught.value)


def test_an_error_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"missing\.json"):
        from_tokenizer_json(tmp_path / "missing.json")
    with pytest.raises(TokenizerError, match=tmp_path.name):
        from_tokenizer_json(tmp_path)


def test_parts_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(TokenizerError, match="EOS token 7"):
        Vocabulary((b"a",), np.zeros(1, np.uint8), ("a",), eos_id=7, bos_id=None)
    with pytest.raises(TokenizerError):
        Vocabulary((b"a",), np.zeros(2, np.uint8), ("a",), eos_id=None, bos_id=None)


def test_llama2_texts_are_what_its_tokenizer_decodes(shared_data: Path) -> None:
    path = shared_data / "tokenizers" / "llama2" / "tokenizer.json"
    vocabulary = from_tokenizer_json(path)
    tokenizer = Tokenizer.from_file(str(path))
    # "x" before and after keep the decoder from dropping a first space or a broken character.
    x = tokenizer.token_to_id("x")
    ordinary = [i for i in range(0, len(vocabulary), 7) if vocabulary.roles[i] == Role.NORMAL]
    decoded = [tokenizer.decode([x, i, x]).encode() for i in ordinary]
    assert decoded == [b"x" + vocabulary.tokens[i] + b"x" for i in ordinary]
    assert np.bincount(vocabulary.roles).tolist() == [31_741, 256, 1, 1, 1]
