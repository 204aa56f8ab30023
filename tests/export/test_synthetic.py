"""Models of random weights: whole files, right types and shapes, real tokens, made once."""

from __future__ import annotations

import errno
import shutil
from collections import namedtuple
from dataclasses import replace
from math import prod
from pathlib import Path

import gguf
import numpy as np
import pytest

import tiny_models
from cmc_export import synthetic
from cmc_export.synthetic import BaseShape
from cmc_local.base import gguf_header
from cmc_local.base.model import BaseModel
from cmc_local.base.vocabulary import read_vocabulary
from cmc_local.delta import adapter
from cmc_local.delta.onnx_delta import OnnxDelta
from cmc_local.errors import AdapterError, GGUFError, InputError, TokenizerError, UsageError
from cmc_local.text.prompts import named_form

SMALL = BaseShape(width=256, layers=2, mlp=512, heads=4, kv_heads=2, context=64)
SHAPES = {"1b": (SMALL, replace(SMALL, layers=1, rope_theta=5e5, tied=True))}
TYPES = {"token_embd": "Q4_0", "output_norm": "F32", "output": "Q6_K"}


def make(vocab: Path, folder: Path, lines: list[str] | None = None) -> Path:
    report = (lambda line: None) if lines is None else lines.append
    return synthetic.base_model("1b", vocab, folder, report=report, shapes=SHAPES)


@pytest.fixture(scope="module")
def made(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tiny_gguf, tmp_path_factory.mktemp("synthetic"))


def parameters(size: str, tokens: int) -> int:
    shape = synthetic.SHAPES[size][tokens > synthetic.SMALL_VOCABULARY].with_vocabulary(tokens)
    return sum(prod(tensor.shape) for tensor in synthetic._tensors(shape))


def test_the_shapes_are_those_of_the_models_they_stand_for() -> None:
    assert parameters("1b", 32_000) == 1_100_048_384  # TinyLlama-1.1B
    assert parameters("7b", 32_000) == 6_738_415_616  # Llama-2-7B
    assert parameters("1b", 128_256) == 1_235_814_400  # Llama-3.2-1B
    assert parameters("7b", 128_256) == 8_030_261_248  # Llama-3-8B


def test_tensors_have_the_types_of_a_q4_0_file(made: Path) -> None:
    header = gguf_header.read(made)
    assert header.tensor_types == {"Q4_0": 2 * 7 + 1, "F32": 2 * 2 + 1, "Q6_K": 1}
    outer = {t.name.removesuffix(".weight"): t.type for t in header.tensors if t.name[:3] != "blk"}
    assert outer == TYPES
    assert all(t.type == "F32" for t in header.tensors if "norm" in t.name)
    assert header.metadata["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q4_0
    assert header.metadata["llama.attention.head_count_kv"] == 2


def test_a_large_vocabulary_takes_the_other_shape_and_its_tied_head_is_q6_k(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthetic, "SMALL_VOCABULARY", 100)
    path = make(tiny_gguf, tmp_path)
    header = gguf_header.read(path)
    assert header.tensor_types == {"Q4_0": 7, "F32": 3, "Q6_K": 1}
    assert {t.name for t in header.tensors if t.type == "Q6_K"} == {"token_embd.weight"}
    assert header.metadata["llama.rope.freq_base"] == 5e5
    with BaseModel(path, threads=1) as base:
        base.decode(base.tokenize(tiny_models.TEXTS[0])[:40], start=0)
        assert np.isfinite(base.logits()).all()


def test_weights_are_spread_as_meant_and_about_zero(made: Path) -> None:
    for tensor in gguf.GGUFReader(made).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert values.size == tensor.n_elements
        if tensor.tensor_type == gguf.GGMLQuantizationType.F32:
            assert (values == 1).all()
            continue
        assert values.std() == pytest.approx(synthetic.WEIGHT_DEVIATION, rel=0.02)
        assert abs(values.mean()) < 4 * values.std() / np.sqrt(values.size)
        assert np.unique(np.abs(values)).size > 8


def test_logits_are_finite_and_depend_on_the_text(made: Path) -> None:
    with BaseModel(made, threads=1) as base:
        tokens = base.tokenize(tiny_models.TEXTS[0])[:40]
        base.decode(tokens, start=0, last_only=False)
        rows = np.stack([base.logits(i) for i in range(len(tokens))])
    assert np.isfinite(rows).all()
    assert 0.1 < rows.std(axis=1).min() < rows.std(axis=1).max() < 1
    assert len(set(rows.argmax(axis=1))) >= 8


@pytest.mark.parametrize("vocab", ["tiny_gguf", "other_gguf"])
def test_it_tokenises_as_the_vocabulary_it_was_given(
    vocab: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source: Path = request.getfixturevalue(vocab)
    path = make(source, tmp_path)
    assert read_vocabulary(path).fingerprint == read_vocabulary(source).fingerprint
    entries = [
        {f.name: (f.types, f.contents()) for f in gguf.GGUFReader(file).fields.values()}
        for file in (source, path)
    ]
    ours, theirs = ({k: v for k, v in e.items() if "tokenizer" in k} for e in entries)
    assert ours == theirs
    with BaseModel(source, threads=1) as old, BaseModel(path, threads=1) as new:
        for text in (*tiny_models.TEXTS, " two  spaces\n\n\ttab ", "Zürich 東京 🙂"):
            assert new.tokenize(text) == old.tokenize(text)


@pytest.mark.parametrize("name", ["llama-spm", pytest.param("llama-bpe", marks=pytest.mark.slow)])
def test_real_vocabularies_tokenise_as_llama_cpp_expects(
    name: str, shared_data: Path, tmp_path: Path
) -> None:
    vocab = shared_data / "vocab" / f"ggml-vocab-{name}.gguf"
    if not vocab.is_file():
        pytest.skip(f"no {vocab.name} among the shared data")
    texts = vocab.with_name(f"{vocab.name}.inp").read_text("utf-8").split("\n__ggml_vocab_test__\n")
    expected = vocab.with_name(f"{vocab.name}.out").read_text().splitlines()
    with BaseModel(make(vocab, tmp_path), threads=1) as base:
        found = [base.tokenize(text, bos=False) for text in texts[: len(expected)]]
    assert found == [[int(token) for token in line.split()] for line in expected]


def test_what_is_there_is_used_again(tiny_gguf: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    path = make(tiny_gguf, tmp_path, lines)
    written = path.stat()
    assert make(tiny_gguf, tmp_path, lines) == path
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (written.st_mtime_ns, written.st_ino)
    assert len(lines) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_cut_short_is_made_anew(tiny_gguf: Path, tmp_path: Path) -> None:
    path = make(tiny_gguf, tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert make(tiny_gguf, tmp_path) == path
    assert path.read_bytes() == whole


def test_other_vocabularies_shapes_and_versions_are_other_files(
    tiny_gguf: Path, other_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wider = {"1b": (replace(SMALL, context=128), SMALL)}
    respelt = tmp_path / "respelt.gguf"  # as many tokens, one of them spelt otherwise
    respelt.write_bytes(tiny_gguf.read_bytes().replace(b"<unk>", b"<huh>"))
    paths = {make(vocab, tmp_path) for vocab in (tiny_gguf, other_gguf, respelt)}
    paths.add(synthetic.base_model("1b", tiny_gguf, tmp_path, shapes=wider))
    monkeypatch.setattr(synthetic, "VERSION", synthetic.VERSION + 1)
    paths.add(make(tiny_gguf, tmp_path))
    assert len(paths) == 5


Usage = namedtuple("Usage", "total used free")


def test_too_little_room_is_said_before_anything_is_written(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = tmp_path / "tokenizer.json"
    tiny_models.tokenizer().save(str(words))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(9, 9, 10_000))
    with pytest.raises(InputError, match=r"free, .* needed: make room or choose another folder"):
        make(tiny_gguf, tmp_path / "cache")
    with pytest.raises(InputError, match="make room"):
        synthetic.adapter("15m", words, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_full_disk_leaves_nothing(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(synthetic, "_values", full)
    with pytest.raises(InputError, match="has no space left: make room"):
        make(tiny_gguf, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_or_unfit_is_named(tiny_gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match=r"none\.gguf does not exist"):
        make(tmp_path / "none.gguf", tmp_path)
    (tmp_path / "text.gguf").write_text("no model")
    with pytest.raises(GGUFError, match="is no GGUF file"):
        make(tmp_path / "text.gguf", tmp_path)
    writer = gguf.GGUFWriter(tmp_path / "bare.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(GGUFError, match=r"bare\.gguf has no vocabulary"):
        make(tmp_path / "bare.gguf", tmp_path)
    (tmp_path / "cut.gguf").write_bytes(tiny_gguf.read_bytes()[:-5000])
    with pytest.raises(GGUFError, match=r"cut\.gguf is damaged"):
        make(tmp_path / "cut.gguf", tmp_path)
    with pytest.raises(InputError, match=r"text\.gguf cannot be written .* another folder"):
        make(tiny_gguf, tmp_path / "text.gguf")
    with pytest.raises(UsageError, match="no synthetic model of size '3b': choose one of 1b, 7b"):
        synthetic.base_model("3b", tiny_gguf, tmp_path)  # type: ignore[arg-type]
    with pytest.raises(TokenizerError, match=r"tokenizer\.json does not exist"):
        synthetic.adapter("15m", tmp_path, tmp_path)


# --- the adapter: a preset of 100,000 weights stands for the larger ones ----------------------


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer.json."""
    folder = tmp_path_factory.mktemp("words")
    tiny_models.tokenizer().save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def made_adapter(words: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.adapter("nano-s", words, tmp_path_factory.mktemp("a"))  # type: ignore[arg-type]


def test_an_adapter_loads_in_every_precision(made_adapter: Path) -> None:
    found = adapter.load(made_adapter)
    tokens = [*range(300, 340)]
    rows = {}
    for precision in ("fp32", "int8", "fp16"):
        delta = OnnxDelta(found, device="cpu", precision=precision)
        rows[precision] = delta.feed(0, tokens, rows=len(tokens))
        assert delta.context == 2048
    assert rows["fp32"].shape == (40, found.settings.shape.vocabulary)
    assert 0.7 < rows["fp32"].std() < 1.4
    assert np.abs(rows["int8"] - rows["fp32"]).max() < 0.2
    assert np.abs(rows["fp16"] - rows["fp32"]).max() < 0.02


def test_an_adapter_says_that_it_is_random(made_adapter: Path) -> None:
    found = adapter.load(made_adapter)
    settings = found.settings
    assert (settings.name, settings.prompt) == ("synthetic-nano-s", named_form("cmc"))
    assert not settings.verification
    assert "random" in settings.training["weights"]
    assert "random weights" in found.read("README.md").decode()


def test_an_adapter_that_is_there_is_used_again(made_adapter: Path, words: Path) -> None:
    lines: list[str] = []
    written = (made_adapter / "adapter.json").stat().st_mtime_ns
    path = synthetic.adapter(
        "nano-s",  # type: ignore[arg-type]
        words / "tokenizer.json",
        made_adapter.parent,
        report=lines.append,
    )
    assert (path, lines) == (made_adapter, [])
    assert (path / "adapter.json").stat().st_mtime_ns == written


def test_a_damaged_adapter_is_made_anew_and_a_stranger_in_its_place_is_not_touched(
    made_adapter: Path, words: Path, tmp_path: Path
) -> None:
    place = tmp_path / made_adapter.name
    shutil.copytree(made_adapter, place)
    (place / "delta.onnx").write_bytes(b"cut")
    assert synthetic.adapter("nano-s", words, tmp_path) == place  # type: ignore[arg-type]
    whole = adapter.load(made_adapter).settings
    assert adapter.load(place).settings.files == whole.files  # the same seed, the same bytes
    (place / "adapter.json").unlink()
    with pytest.raises(AdapterError, match="is not an adapter"):
        synthetic.adapter("nano-s", words, tmp_path)  # type: ignore[arg-type]
