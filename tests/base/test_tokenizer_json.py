"""Tokenizers made of GGUF files, against llama.cpp: its own expected tokens, and itself."""

from __future__ import annotations

import struct
from functools import cache
from pathlib import Path

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from cmc_local.base.tokenizer_json import tokenizer_of
from cmc_local.base.vocabulary import encode, read_vocabulary
from cmc_local.errors import GGUFError, TokenizerError
from cmc_local.text.delta_tokenizer import DeltaTokenizer
from cmc_local.text.vocabulary import Role, from_tokenizer_json
from small_tokenizers import TEXTS

MADE = ("llama-spm", "phi-3", "gpt-2", "falcon", "llama-bpe", "qwen2")
BEGUN = ("llama-spm", "phi-3", "llama-bpe")
"""Where llama.cpp puts BOS before a text; others name one that stands nowhere."""
BORDER = "\n__ggml_vocab_test__\n"


@cache
def real(path: Path) -> Tokenizer:
    """A real vocabulary's, made once: 151,643 tokens take a second or two."""
    return tokenizer_of(path)


def ids(path: Path, text: str) -> list[int]:
    found: list[int] = tokenizer_of(path).encode(text, add_special_tokens=False).ids
    return found


@pytest.mark.parametrize("name", MADE)
def test_llama_cpps_own_test_texts(shared_data: Path, name: str) -> None:
    path = shared_data / "vocab" / f"ggml-vocab-{name}.gguf"
    texts = Path(f"{path}.inp").read_text(encoding="utf-8").split(BORDER)
    lines = Path(f"{path}.out").read_text(encoding="utf-8").split("\n")[: len(texts)]
    expected = [[int(i) for i in line.split()] for line in lines]
    made = real(path)
    assert len(texts) > 40
    assert [made.encode(text, add_special_tokens=False).ids for text in texts] == expected


@pytest.mark.parametrize("name", MADE)
def test_the_vocabulary_is_the_ggufs(shared_data: Path, name: str) -> None:
    path = shared_data / "vocab" / f"ggml-vocab-{name}.gguf"
    made = from_tokenizer_json(real(path).to_str().encode())
    own = read_vocabulary(path)
    assert made.names == own.names
    differing = [i for i in range(len(own)) if made.tokens[i] != own.tokens[i] and own.tokens[i]]
    assert not differing
    assert own.eos_id is not None and made.roles[own.eos_id] == Role.EOS
    assert made.eos_id == own.eos_id  # phi-3's is <|endoftext|>, though it has an </s> as well
    assert made.bos_id == (own.bos_id if name in BEGUN else None)


@pytest.mark.parametrize("name", ["phi-3", "gpt-2"])
def test_nothing_but_bos_is_put_around_a_text(shared_data: Path, name: str) -> None:
    library = real(shared_data / "vocab" / f"ggml-vocab-{name}.gguf")
    tokenizer = DeltaTokenizer(library.to_str().encode())
    tokens = tokenizer.encode("The sea.")
    assert tokens and not {tokenizer.eos_id, tokenizer.bos_id} & set(tokens)
    assert library.encode("The sea.").ids == [*([tokenizer.bos_id] * (name in BEGUN)), *tokens]
    assert tokenizer.encode("</s><s><|endoftext|>")[:1] != [tokenizer.eos_id]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("gpt-2", "phi-2"),
        ("gpt-2", "smollm"),
        ("gpt-2", "command-r"),
        ("llama-bpe", "pixtral"),
        ("llama-bpe", "smaug-bpe"),
        ("qwen2", "deepseek-r1-qwen"),
    ],
)
def test_a_pre_tokenizer_by_name_cuts_as_llama_cpp_does(
    shared_data: Path, tmp_path: Path, source: str, name: str
) -> None:
    vocabulary = shared_data / "vocab" / f"ggml-vocab-{source}.gguf"
    renamed = rename_pre_tokenizer(vocabulary, name, tmp_path / f"{name}.gguf")
    texts = Path(f"{vocabulary}.inp").read_text(encoding="utf-8").split(BORDER)
    text = "\n".join(text for text in texts if text)
    assert ids(renamed, text) == encode(renamed, text)


def rename_pre_tokenizer(path: Path, name: str, target: Path) -> Path:
    """The same vocabulary under another pre-tokenizer's name; a file without tensors can shift."""
    data = path.read_bytes()
    at = data.index(b"tokenizer.ggml.pre") + len(b"tokenizer.ggml.pre")
    kind, length = struct.unpack_from("<IQ", data, at)
    assert kind == 8  # a string
    value = struct.pack("<Q", len(name)) + name.encode()
    target.write_bytes(data[: at + 4] + value + data[at + 12 + length :])
    return target


def header(path: Path, *, begin: int | None, end: int | None, puts_begin: bool = True) -> Path:
    """A GGUF of a byte-level vocabulary alone: three control tokens, "a", "b" and "ab"."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["</s>", "odd: $A name", "<|endoftext|>", "a", "b", "ab"])
    writer.add_token_types([3, 3, 3, 1, 1, 1])
    writer.add_token_merges(["a b"])
    if begin is not None:
        writer.add_bos_token_id(begin)
        writer.add_add_bos_token(puts_begin)
    if end is not None:
        writer.add_eos_token_id(end)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("begin", "end", "puts_begin", "expected"),
    [
        (1, 2, True, (1, 2)),  # by name alone it would be </s>, 0
        (2, 1, True, (2, 1)),
        (0, 0, True, (0, 0)),  # one token for both
        (1, 2, False, (None, 2)),
        (None, 2, True, (None, 2)),
        (1, None, True, (1, 0)),  # nothing said: by name
        (None, None, True, (None, 0)),
    ],
)
def test_the_ends_are_those_that_the_gguf_names(
    tmp_path: Path,
    begin: int | None,
    end: int | None,
    puts_begin: bool,
    expected: tuple[int | None, int | None],
) -> None:
    path = header(tmp_path / "v.gguf", begin=begin, end=end, puts_begin=puts_begin)
    text = Tokenizer.from_str(tokenizer_of(path).to_str()).to_str()  # as a file that was read
    made = from_tokenizer_json(text.encode())
    assert (made.bos_id, made.eos_id) == expected
    assert DeltaTokenizer(text.encode()).encode("aba") == [5, 3]


def test_an_end_outside_the_vocabulary_is_refused(tmp_path: Path) -> None:
    path = header(tmp_path / "v.gguf", begin=1, end=6)
    with pytest.raises(TokenizerError, match="EOS token 6"):
        tokenizer_of(path)


@pytest.mark.parametrize("which", ["tiny", "other"])
@given(text=st.one_of(st.sampled_from(TEXTS), st.text(max_size=30)))
def test_tiny_models_tokens_are_llama_cpps(
    which: str, tiny_gguf: Path, other_gguf: Path, text: str
) -> None:
    path = {"tiny": tiny_gguf, "other": other_gguf}[which]
    assert ids(path, text) == encode(path, text)


def test_what_cannot_be_written_is_refused(shared_data: Path, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="deepseek-llm"):
        tokenizer_of(shared_data / "vocab" / "ggml-vocab-deepseek-llm.gguf")
    (tmp_path / "no.gguf").write_bytes(b"no")
    with pytest.raises(GGUFError, match="is no GGUF file"):
        tokenizer_of(tmp_path / "no.gguf")


@pytest.mark.parametrize(
    ("merges", "types"),
    [(["a z"], [3, 1, 1, 1]), ([""], [3, 1, 1, 1]), (["a b"], [3, 1])],
)
def test_a_damaged_tokenizer_is_one_line(
    tmp_path: Path, merges: list[str], types: list[int]
) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["</s>", "a", "b", "ab"])
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(TokenizerError, match=r"m\.gguf .*damaged"):
        tokenizer_of(tmp_path / "m.gguf")
