"""The base model on llama.cpp: what it computes, what it forgets, how it refuses."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

import tiny_models
from cmc_local.base import library as base_library
from cmc_local.base.model import BaseModel
from cmc_local.base.span import Span
from cmc_local.base.threads import usable_cores
from cmc_local.errors import GGUFError, PromptTooLong, UsageError

TEXT = "Helen Blackworth was born in 1932 in Harborville."


@pytest.fixture
def base(tiny_gguf: Path) -> Iterator[BaseModel]:
    with BaseModel(tiny_gguf, kv_type="f32", batch=16, sequences=2, threads=1) as model:
        yield model


def logits_of(base: BaseModel, tokens: list[int], sequence: int = 0) -> np.ndarray:
    base.clear(sequence)
    base.decode(tokens, start=0, sequence=sequence)
    return base.logits().copy()


def test_logits_are_those_of_the_pytorch_source(base: BaseModel, tiny_folder: Path) -> None:
    tokens = base.tokenize(TEXT)[:16]
    source = LlamaForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    with torch.no_grad():
        expected = source(torch.tensor([tokens])).logits[0].numpy()
    base.decode(tokens, start=0, last_only=False)
    for i, row in enumerate(expected):
        assert np.abs(base.logits(i) - row).max() < 1e-3 * np.abs(expected).max()


def test_a_prompt_longer_than_a_batch_is_decoded_in_pieces(base: BaseModel) -> None:
    tokens = base.tokenize(TEXT)
    assert len(tokens) > base.batch
    whole = logits_of(base, tokens)
    base.clear(0)
    for position, token in enumerate(tokens):
        base.decode([token], start=position)
    np.testing.assert_allclose(base.logits(), whole, rtol=0, atol=1e-4)


def test_truncating_rolls_back(base: BaseModel) -> None:
    tokens = base.tokenize(TEXT)[:12]
    expected = logits_of(base, tokens)
    base.decode([7, 8, 9], start=12)
    assert base.length() == 15
    assert base.truncate(0, 11)
    assert base.length() == 11
    base.decode(tokens[11:], start=11)
    np.testing.assert_allclose(base.logits(), expected, rtol=0, atol=1e-5)


def test_sequences_do_not_see_each_other(base: BaseModel) -> None:
    alone = logits_of(base, [1, 300, 301])
    base.clear(0)
    base.decode([1, 400, 401, 402], start=0, sequence=1)
    np.testing.assert_array_equal(logits_of(base, [1, 300, 301]), alone)
    base.clear(0)
    assert (base.length(0), base.length(1)) == (0, 4)


def test_what_is_written_into_the_logits_stays_there(base: BaseModel) -> None:
    logits_of(base, [1, 300])
    base.logits()[123] = 1e6
    assert base.logits().argmax() == 123
    assert base.logits().shape == (base.n_vocab,)


def test_bos_comes_first_once_unless_told_otherwise(base: BaseModel) -> None:
    plain = base.tokenize("Maria", bos=False)
    assert base.tokenize("Maria") == [1, *plain]
    assert base.tokenize("<s>Maria", special=True)[:2] != [1, 1]
    assert 1 not in base.tokenize("<s>Maria", bos=False)


def test_the_context_is_what_the_model_was_trained_with(base: BaseModel, tiny_gguf: Path) -> None:
    assert base.n_ctx == 128
    with BaseModel(tiny_gguf, context=64) as smaller:
        assert smaller.n_ctx == 64
        with pytest.raises(PromptTooLong, match="65 tokens"):
            smaller.decode([1] * 65, start=0)


def test_a_long_context_is_not_allocated_unasked(tmp_path: Path) -> None:
    folder = tiny_models.llama_folder(tmp_path / "long", context=131_072)
    with BaseModel(tiny_models.gguf_of(folder)) as model:
        assert model.n_ctx == 8192
    with BaseModel(tiny_models.gguf_of(folder), context=9000) as model:
        assert model.n_ctx == 9000


def test_the_chat_template_is_the_ggufs(tmp_path: Path, base: BaseModel) -> None:
    folder = tiny_models.llama_folder(tmp_path / "chatty", chat_template="{{ messages }}")
    with BaseModel(tiny_models.gguf_of(folder)) as model:
        assert model.chat_template == "{{ messages }}"
    assert base.chat_template is None


def test_logits_that_were_not_computed_are_refused(base: BaseModel) -> None:
    logits_of(base, [1, 300, 301])
    with pytest.raises(UsageError, match="row 0"):
        base.logits(0)
    with pytest.raises(UsageError, match="at most 16"):
        base.decode([1] * 17, start=3, last_only=False)
    with pytest.raises(UsageError, match="at least one token"):
        base.decode([], start=3)


def test_positions_out_of_order_are_an_error(base: BaseModel) -> None:
    logits_of(base, [1, 300, 301])
    with pytest.raises(GGUFError, match="begin the sequence anew"):
        base.decode([302], start=40)


def test_closing_twice_is_fine_and_use_after_it_is_refused(tiny_gguf: Path) -> None:
    model = BaseModel(tiny_gguf)
    model.close()
    model.close()
    with pytest.raises(UsageError, match="has been closed"):
        model.decode([1], start=0)


def damaged(source: Path, tmp_path: Path, kind: str) -> Path:
    path = tmp_path / "bad.gguf"
    data = source.read_bytes()
    if kind == "text":
        path.write_text("This is a text.\n" * 10)
    elif kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes(data[: {"no weights": len(data) // 2, "no header": 3000, "stub": 9}[kind]])
    return path


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("missing", "does not exist: give the path"),
        ("folder", "is a folder: give the .gguf file"),
        ("text", "is no GGUF file"),
        ("stub", "cut off after 9 bytes: download"),
        ("no header", "cannot be loaded .*: download"),
        ("no weights", "not within the file bounds.*: download"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_in_one_line(
    tiny_gguf: Path, tmp_path: Path, kind: str, told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = damaged(tiny_gguf, tmp_path, kind)
    with pytest.raises(GGUFError, match=told) as caught:
        BaseModel(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_vocabulary_alone_is_no_model(shared_data: Path) -> None:
    with pytest.raises(GGUFError, match="no weights: give the model"):
        BaseModel(shared_data / "vocab" / "ggml-vocab-gpt-2.gguf")


def test_with_amx_the_risky_buffers_are_off_and_one_line_says_how_to_rebuild(
    tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen = []
    real = base_library.llama_cpp.llama_model_load_from_file

    def load(path: bytes, params: object) -> object:
        seen.append(params.use_extra_bufts)  # type: ignore[attr-defined]
        return real(path, params)

    monkeypatch.setattr(base_library.llama_cpp, "llama_model_load_from_file", load)
    monkeypatch.setattr(base_library, "system_info", lambda: "CPU : AMX_INT8 = 1 | AVX = 1 |")
    with caplog.at_level(logging.WARNING), BaseModel(tiny_gguf) as model:
        model.decode([1, 300, 301], start=0)
    assert seen == [False]
    (notice,) = caplog.messages
    assert "-mno-amx-int8" in notice and "--no-binary llama-cpp-python" in notice


def test_without_amx_nothing_is_said(tiny_gguf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if base_library.has_risky_amx():
        pytest.skip("this build of llama.cpp uses AMX: build it anew")
    code = (
        "import sys; from cmc_local.base.model import BaseModel; m = BaseModel(sys.argv[1]);"
        " m.decode([1, 300], start=0)"  # left open: the interpreter's end frees it
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_gguf)], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no processor affinity here")
def test_hardware_threads_of_one_core_count_once(tmp_path: Path) -> None:
    processors = os.sched_getaffinity(0)
    for i in processors:
        place = tmp_path / f"cpu{i}" / "topology"
        place.mkdir(parents=True)
        (place / "thread_siblings_list").write_text("0-4095\n")
    assert usable_cores(tmp_path) == 1
    assert usable_cores(tmp_path / "unknown") == len(processors)


SPIN = """
import os, sys
os.environ.update({environment})
from cmc_local.base.library import llama_cpp
print(os.environ.get("GOMP_SPINCOUNT"))
"""


@pytest.mark.parametrize(
    ("environment", "left"), [({}, "None"), ({"GOMP_SPINCOUNT": "7"}, "7")], ids=["ours", "own"]
)
def test_the_spin_setting_is_gone_once_llama_cpp_is_loaded(
    environment: dict[str, str], left: str
) -> None:
    clean = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    done = subprocess.run(
        [sys.executable, "-c", SPIN.format(environment=environment)],
        capture_output=True,
        text=True,
        env=clean,
        check=True,
    )
    assert done.stdout.strip() == left


@pytest.mark.parametrize(
    ("sequences", "context", "flash"), [(1, 512, 0), (2, 512, -1), (1, 16_384, -1)]
)
def test_one_sequence_of_a_usual_context_goes_without_flash_attention(
    tiny_gguf: Path,
    monkeypatch: pytest.MonkeyPatch,
    sequences: int,
    context: int,
    flash: int,
) -> None:
    asked = []
    make = BaseModel._new_context

    def note(self: BaseModel, params: object) -> object:
        fields = {name for name, *_ in type(params)._fields_}  # type: ignore[attr-defined]
        assert {"flash_attn_type", "n_ubatch"} <= fields
        asked.append(params.flash_attn_type)  # type: ignore[attr-defined]
        return make(self, params)

    monkeypatch.setattr(BaseModel, "_new_context", note)
    BaseModel(tiny_gguf, context=context, sequences=sequences, threads=1, gpu_layers=0).close()
    assert asked == [flash]


def test_all_outputs_at_once_are_the_rows_one_by_one(tiny_gguf: Path) -> None:
    with BaseModel(tiny_gguf, context=32, threads=1, sequences=2) as base:
        spans = [Span(0, 0, [1, 5, 9], range(1, 3)), Span(1, 0, [1, 7], range(1))]
        base.decode_spans(spans)
        block = base.outputs(3).copy()
        for mine, theirs in enumerate((1, 2, 3)):
            np.testing.assert_array_equal(block[mine], base.logits(theirs))


@pytest.mark.parametrize("text", ["\n</a>", "a", "ab\n", "\n"])
def test_a_text_within_a_longer_one_is_encoded_whole(text: str) -> None:
    """As by a tokenizer that joins line breaks and puts a space before a text."""
    words = (b"", b" ", b"\n\n", b"\n", b"<", b"/", b"a", b">", b"b")

    def tokenize(text: str, bos: bool) -> list[int]:
        data, found = b" " + text.encode(), []
        while data:
            longest = max((one for one in words if one and data.startswith(one)), key=len)
            found.append(words.index(longest))
            data = data[len(longest) :]
        return found

    base: Any = SimpleNamespace(tokenize=tokenize, vocabulary=SimpleNamespace(tokens=words))
    own = BaseModel._encode_within(base, text)
    assert b"".join(words[one] for one in own) == text.encode()
