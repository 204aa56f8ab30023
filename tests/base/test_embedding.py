"""Texts as vectors: the source model's hidden states, pooled, and no reply is disturbed."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import LlamaForCausalLM

import tiny_models
from cmc_local import bundled
from cmc_local.base.embedding import BATCH
from cmc_local.base.model import BaseModel
from cmc_local.errors import GGUFError, PromptTooLong, UsageError
from tiny_loras import lora_gguf, merged, pairs

Float = NDArray[np.float32]
MEAN, CLS, LAST, RANK = 1, 2, 3, 4  # llama_pooling_type
TEXT = "Helen Blackworth was born in 1932 in Harborville, the daughter of a lighthouse keeper. "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.llama_folder(tmp_path_factory.mktemp("models") / "tiny", context=2048)


@pytest.fixture(scope="module")
def gguf(folder: Path) -> Path:
    return tiny_models.gguf_of(folder)


def exact(gguf: Path, **settings: object) -> BaseModel:
    return BaseModel(gguf, kv_type="f32", threads=1, gpu_layers=0, **settings)  # type: ignore[arg-type]


def hidden_states(folder: Path, tokens: list[int]) -> Float:
    """(len(tokens), d) float32, after the last norm, by the PyTorch source."""
    source = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        found: Float = source.model(torch.tensor([tokens])).last_hidden_state[0].numpy()
    return found


def unit(vector: Float) -> Float:
    return vector / np.sqrt((vector**2).sum())


@pytest.mark.parametrize("length", [1, 5, BATCH, BATCH + 1, 3 * BATCH + 7])
def test_a_text_is_the_mean_of_its_sources_hidden_states(
    folder: Path, gguf: Path, length: int
) -> None:
    with exact(gguf) as base:
        tokens = base.tokenize(TEXT * 30)[:length]
        assert len(tokens) == length
        found = base.embed(tokens)
    assert found.dtype == np.float32 and found.shape == (32,)
    assert abs(np.linalg.norm(found) - 1) < 1e-6
    np.testing.assert_allclose(found, unit(hidden_states(folder, tokens).mean(axis=0)), atol=1e-4)


def naming(gguf: Path, target: Path, pooling: int) -> Path:
    """The file with a `pooling_type` as the first of its metadata.

    The tensors keep their place if the header grows by a multiple of 32 bytes: 8 + 18 + 4 + 4 for
    the entry (the key's length, the key, the type u32, the value), 8 + 8 + 4 + 8 + 2 for a text.
    """
    data = gguf.read_bytes()
    entries = struct.unpack_from("<Q", data, 16)[0]
    more = b"".join(
        [
            struct.pack("<Q18sII", 18, b"llama.pooling_type", 4, pooling),
            struct.pack("<Q8sIQ2s", 8, b"test.pad", 8, 2, b"xx"),
        ]
    )
    assert len(more) == 64
    target.write_bytes(data[:16] + struct.pack("<Q", entries + 2) + more + data[24:])
    return target


@pytest.mark.parametrize(
    ("pooling", "pool"),
    [
        (MEAN, lambda states: states.mean(axis=0)),
        (CLS, lambda states: states[0]),
        (LAST, lambda states: states[-1]),
    ],
    ids=["mean", "cls", "last"],
)
def test_the_pooling_is_what_the_gguf_names(
    folder: Path, gguf: Path, tmp_path: Path, pooling: int, pool: Callable[[Float], Float]
) -> None:
    with exact(naming(gguf, tmp_path / "named.gguf", pooling)) as base:
        tokens = base.tokenize(TEXT * 12)
        assert len(tokens) > BATCH
        found = base.embed(tokens)
    np.testing.assert_allclose(found, unit(pool(hidden_states(folder, tokens))), atol=1e-4)


def test_a_model_that_ranks_is_refused(gguf: Path, tmp_path: Path) -> None:
    with (
        exact(naming(gguf, tmp_path / "ranks.gguf", RANK)) as base,
        pytest.raises(GGUFError, match="ranks"),
    ):
        base.embed([1, 300])


@pytest.mark.parametrize("name", bundled.BASES)
def test_it_is_what_llama_cpp_python_gives(bundled_models: Path, name: str) -> None:
    path = bundled.base(name)
    stock = llama_cpp.Llama(
        str(path),
        embedding=True,
        pooling_type=MEAN,
        n_ctx=512,
        n_batch=512,
        n_ubatch=512,
        n_threads=1,
        n_gpu_layers=0,
        verbose=False,
    )
    with BaseModel(path, context=512, threads=1, gpu_layers=0) as base:
        for text in (TEXT, "Maria", TEXT * 8):
            tokens = base.tokenize(text, special=True)
            assert tokens == stock.tokenize(text.encode(), special=True)
            expected = np.array(stock.embed(text, normalize=True, truncate=False))
            assert base.embed(tokens) @ expected > 0.9999
    assert len(tokens) > BATCH
    stock.close()


def test_a_reply_under_way_keeps_its_caches_and_logits(gguf: Path) -> None:
    with exact(gguf, sequences=2) as base:
        begun, other = base.tokenize(TEXT), [1, 400, 401]
        base.decode(other, start=0, sequence=1)
        base.decode(begun, start=0)
        base.logits()[7] = 99.0  # a shift that was added
        before = base.logits().copy()
        first = base.embed([1, 300, 301])
        np.testing.assert_array_equal(base.logits(), before)
        assert (base.length(0), base.length(1)) == (len(begun), len(other))
        base.decode([302], start=len(begun))
        went_on = base.logits().copy()
        base.clear(0)
        base.decode(begun, start=0)
        base.decode([302], start=len(begun))
        np.testing.assert_array_equal(went_on, base.logits())
        np.testing.assert_array_equal(first, base.embed([1, 300, 301]))


def test_its_context_grows_with_the_text_and_stays_one(gguf: Path) -> None:
    with exact(gguf) as base:
        tokens = base.tokenize(TEXT * 60)[:1100]
        assert len(base._contexts) == 1
        short = base.embed(tokens[:20])
        sizes = [llama_cpp.llama_n_ctx(base._contexts[1])]
        base.embed(tokens)
        sizes.append(llama_cpp.llama_n_ctx(base._contexts[1]))
        np.testing.assert_allclose(base.embed(tokens[:20]), short, atol=1e-6)
        assert (sizes, len(base._contexts)) == ([512, 2048], 2)


def test_a_text_that_does_not_fit_is_refused(gguf: Path) -> None:
    with exact(gguf, context=64) as base:
        assert base.embed([1] * 64).shape == (32,)
        with pytest.raises(PromptTooLong, match="65 tokens"):
            base.embed([1] * 65)
        with pytest.raises(UsageError, match="at least one token"):
            base.embed([])
        with pytest.raises(GGUFError, match="could not embed"):
            base.embed([1, base.n_vocab])
        assert base.embed([1, 300]).shape == (32,)
    with pytest.raises(UsageError, match="has been closed"):
        base.embed([1])


def test_a_lora_acts(folder: Path, gguf: Path, tmp_path: Path) -> None:
    learnt = pairs(folder)
    lora = lora_gguf(tmp_path / "lora.gguf", learnt)
    tokens = [1, 300, 301, 17]
    source = merged(folder, tmp_path / "merged", learnt)
    expected = unit(hidden_states(source, tokens).mean(axis=0))
    with exact(gguf, loras=[(lora, 1.0)]) as base:
        np.testing.assert_allclose(base.embed(tokens), expected, atol=1e-4)
    with exact(gguf) as base:
        assert base.embed(tokens) @ expected < 0.99


def test_it_is_freed_with_the_model(gguf: Path) -> None:
    """Left open, collected, and once more left to the interpreter's end."""
    code = (
        "import gc, sys; from cmc_local.base.model import BaseModel\n"
        "model = BaseModel(sys.argv[1]); model.embed([1, 300]); freed = model._free\n"
        "gc.disable(); del model; assert not freed.alive\n"
        "model = BaseModel(sys.argv[1]); model.embed([1, 300])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(gguf)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
