"""A GGUF's vocabulary through llama.cpp, beside the same tokenizer's tokenizer.json."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tiny_models
from cmc_local.base import library as base_library
from cmc_local.base.gguf_header import Array, Tensor, read
from cmc_local.base.model import BaseModel
from cmc_local.base.vocabulary import kind_of, read_vocabulary, vocabulary_of
from cmc_local.errors import GGUFError
from cmc_local.text.vocabulary import Role, Vocabulary, from_tokenizer_json

TYPES = "tokenizer.ggml.token_type"


@pytest.mark.parametrize("family", ["sentencepiece", "byte-level"])
def test_it_says_the_same_as_the_tokenizer_json(tmp_path: Path, family: tiny_models.Family) -> None:
    folder = tiny_models.llama_folder(tmp_path / "model", family=family)
    there = read_vocabulary(tiny_models.gguf_of(folder))
    here = from_tokenizer_json(folder / "tokenizer.json")
    assert there.names == here.names
    assert there.tokens == here.tokens
    np.testing.assert_array_equal(there.roles, here.roles)
    assert there.fingerprint == here.fingerprint


def test_llama_2_is_llama_2(shared_data: Path) -> None:
    there = read_vocabulary(shared_data / "vocab" / "ggml-vocab-llama-spm.gguf")
    here = from_tokenizer_json(shared_data / "tokenizers" / "llama2" / "tokenizer.json")
    assert there.fingerprint == here.fingerprint


def role_of(vocabulary: Vocabulary, name: str) -> Role:
    return Role(vocabulary.roles[vocabulary.names.index(name)])


@pytest.mark.parametrize(
    ("file", "kind", "size", "ends"),
    [
        ("llama-bpe", "byte-level BPE", 128256, {"<|end_of_text|>", "<|eot_id|>"}),
        ("phi-3", "SentencePiece BPE", 32064, {"</s>", "<|endoftext|>", "<|end|>"}),
    ],
)
def test_every_token_that_ends_a_generation_is_found(
    shared_data: Path, file: str, kind: str, size: int, ends: set[str]
) -> None:
    path = shared_data / "vocab" / f"ggml-vocab-{file}.gguf"
    vocabulary = read_vocabulary(path)
    assert (len(vocabulary), kind_of(read(path).metadata)) == (size, kind)
    assert ends <= {vocabulary.names[i] for i in np.flatnonzero(vocabulary.roles == Role.EOS)}


def test_roles_and_texts_of_llama_3(shared_data: Path) -> None:
    vocabulary = read_vocabulary(shared_data / "vocab" / "ggml-vocab-llama-bpe.gguf")
    assert vocabulary.tokens[vocabulary.names.index("ĠParis")] == b" Paris"
    assert role_of(vocabulary, "<|begin_of_text|>") is Role.BOS
    assert role_of(vocabulary, "<|start_header_id|>") is Role.CONTROL
    assert role_of(vocabulary, "<|reserved_special_token_0|>") is Role.UNUSED


@pytest.mark.parametrize("file", ["llama-spm", "phi-3", "qwen2", "gpt-2", "deepseek-llm"])
def test_the_files_own_lists_say_what_llama_cpp_says_of_each_token(
    shared_data: Path, tmp_path: Path, file: str
) -> None:
    path = shared_data / "vocab" / f"ggml-vocab-{file}.gguf"
    model = base_library.load(path, vocab_only=True)
    try:
        vocab = base_library.llama_cpp.llama_model_get_vocab(model)
        asked = vocabulary_of(vocab, tmp_path / "away.gguf")  # no list to read: all is asked
    finally:
        base_library.llama_cpp.llama_model_free(model)
    read_ = read_vocabulary(path)
    assert (read_.names, read_.fingerprint) == (asked.names, asked.fingerprint)


def test_a_token_of_the_type_of_text_may_end_a_generation(shared_data: Path) -> None:
    header = read(shared_data / "vocab" / "ggml-vocab-qwen2.gguf", lists={TYPES}).metadata
    vocabulary = read_vocabulary(shared_data / "vocab" / "ggml-vocab-qwen2.gguf")
    end = vocabulary.names.index("</s>")
    assert header[TYPES][end] == 1  # normal; llama.cpp knows it by its spelling
    assert vocabulary.roles[end] == Role.EOS
    assert isinstance(header["tokenizer.ggml.tokens"], Array)  # not asked for


def test_an_open_model_has_the_files_vocabulary(tiny_gguf: Path) -> None:
    with BaseModel(tiny_gguf) as base:
        assert base.vocabulary.fingerprint == read_vocabulary(tiny_gguf).fingerprint


def test_metadata_has_values_and_the_lengths_of_lists(tiny_gguf: Path) -> None:
    metadata = read(tiny_gguf).metadata
    assert metadata["general.architecture"] == "llama"
    assert metadata["llama.block_count"] == 2
    assert metadata["llama.rope.freq_base"] == 10000.0
    assert metadata["tokenizer.ggml.add_bos_token"] is True
    assert metadata["tokenizer.ggml.tokens"] == Array(480)


def test_tensors_have_names_shapes_and_types(tiny_folder: Path) -> None:
    header = read(tiny_models.gguf_of(tiny_folder, "Q8_0"))
    assert Tensor("blk.0.attn_k.weight", (32, 16), "Q8_0") in header.tensors
    assert header.tensor_types == {"Q8_0": 15, "F32": 5}
    # embedding 480 x 32; a layer: Q, O 32 x 32, K, V 16 x 32, MLP 3 x 64 x 32, norms 2 x 32
    assert header.parameters == 480 * 32 + 2 * (2 * 1024 + 2 * 512 + 3 * 2048 + 64) + 32


@pytest.mark.parametrize("size", [5, 30, 2000])
def test_a_header_cut_off_anywhere_is_one_line(tiny_gguf: Path, tmp_path: Path, size: int) -> None:
    path = tmp_path / "short.gguf"
    path.write_bytes(tiny_gguf.read_bytes()[:size])
    with pytest.raises(GGUFError, match="download or copy it again"):
        read(path)
    with pytest.raises(GGUFError, match=r"short\.gguf"):
        read_vocabulary(path)


def test_another_version_is_refused_by_number(tiny_gguf: Path, tmp_path: Path) -> None:
    data = bytearray(tiny_gguf.read_bytes())
    data[4] = 9
    path = tmp_path / "new.gguf"
    path.write_bytes(data)
    with pytest.raises(GGUFError, match="version 9"):
        read(path)
