"""Tokenizers made of GGUF files, against llama.cpp: its own expected tokens, and itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmc_export.tokenizer_from_gguf import tokenizer_of
from cmc_local import base_tokenizer
from cmc_local.base_vocabulary import read_vocabulary
from cmc_local.errors import GGUFError, TokenizerError
from cmc_local.vocabulary import Role, from_tokenizer_json
from small_tokenizers import TEXTS

MADE = ("llama-spm", "phi-3", "gpt-2", "falcon", "llama-bpe", "qwen2")
BORDER = "\n__ggml_vocab_test__\n"


def ids(path: Path, text: str) -> list[int]:
    found: list[int] = tokenizer_of(path).encode(text, add_special_tokens=False).ids
    return found


@pytest.mark.parametrize("name", MADE)
def test_llama_cpps_own_test_texts(shared_data: Path, name: str) -> None:
    path = shared_data / "vocab" / f"ggml-vocab-{name}.gguf"
    texts = Path(f"{path}.inp").read_text(encoding="utf-8").split(BORDER)
    lines = Path(f"{path}.out").read_text(encoding="utf-8").split("\n")[: len(texts)]
    expected = [[int(i) for i in line.split()] for line in lines]
    made = tokenizer_of(path)
    assert len(texts) > 40
    assert [made.encode(text, add_special_tokens=False).ids for text in texts] == expected


@pytest.mark.parametrize("name", MADE)
def test_the_vocabulary_is_the_ggufs(shared_data: Path, name: str) -> None:
    path = shared_data / "vocab" / f"ggml-vocab-{name}.gguf"
    made = from_tokenizer_json(tokenizer_of(path).to_str().encode())
    own = read_vocabulary(path)
    assert made.names == own.names
    differing = [i for i in range(len(own)) if made.tokens[i] != own.tokens[i] and own.tokens[i]]
    assert not differing
    assert made.roles[own.eos_id] == Role.EOS
    assert made.bos_id in (own.bos_id, None)


@pytest.mark.parametrize("which", ["tiny", "other"])
@given(text=st.one_of(st.sampled_from(TEXTS), st.text(max_size=30)))
def test_tiny_models_tokens_are_llama_cpps(
    which: str, tiny_gguf: Path, other_gguf: Path, text: str
) -> None:
    path = {"tiny": tiny_gguf, "other": other_gguf}[which]
    assert ids(path, text) == base_tokenizer.encode(path, text)


def test_what_cannot_be_written_is_refused(shared_data: Path, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="the pre-tokenizer deepseek-llm, whose pattern"):
        tokenizer_of(shared_data / "vocab" / "ggml-vocab-deepseek-llm.gguf")
    (tmp_path / "no.gguf").write_bytes(b"no")
    with pytest.raises(GGUFError, match="is no GGUF file"):
        tokenizer_of(tmp_path / "no.gguf")
