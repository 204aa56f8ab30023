"""Models of the paper's shapes with random weights and real vocabularies: benchmarks, no download.

    base_model("1b", "ggml-vocab-llama-spm.gguf", cache)  ->  cache/synthetic-1b-...gguf
    adapter("15m", "tokenizer.json", cache)               ->  cache/synthetic-15m-.../

They cost what trained models of these shapes cost, token for token and byte for byte, and say
nothing of sense. The same arguments give the same weights. What is there already is used again:
the name holds the size asked for, what it was made of, and this generator's version.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod, sqrt
from pathlib import Path
from typing import Literal

import gguf
import numpy as np
from numpy.typing import NDArray

from cmc_export import adapter_export, delta_model, gguf_file, graph
from cmc_export.gguf_file import LlamaShape
from cmc_local.base import gguf_header
from cmc_local.delta import adapter as adapter_folder
from cmc_local.delta.adapter import AdapterSettings, DeltaShape
from cmc_local.errors import AdapterError, GGUFError, InputError, TokenizerError, UsageError
from cmc_local.text.prompts import named_form
from cmc_local.text.vocabulary import from_tokenizer_json

BaseSize = Literal["1b", "7b"]
DeltaSize = Literal["15m", "42m", "110m"]
Report = Callable[[str], None]

VERSION = 1
"""Of what is written: another number, and files of the old one are no longer taken."""
SMALL_VOCABULARY = 65_536
"""Up to so many tokens a base model has the first of its size's two shapes."""
DELTA_CONTEXT = 2048
WEIGHT_DEVIATION = 0.02
SEED = 20240

_BEGINNING = 64 << 20
"""Bytes of a GGUF that surely hold its metadata: a vocabulary of 256,000 tokens takes 16 MB."""


@dataclass(frozen=True, kw_only=True)
class BaseShape:
    """A llama model without its vocabulary; `width` and `mlp` are multiples of 256 (Q6_K)."""

    width: int
    layers: int
    mlp: int
    heads: int
    kv_heads: int
    context: int
    rope_theta: float = 10_000.0
    tied: bool = False

    def with_vocabulary(self, tokens: int) -> LlamaShape:
        return LlamaShape(
            vocabulary=tokens,
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.width // self.heads,
            mlp=self.mlp,
            context=self.context,
            rms_epsilon=1e-5,
            rope_theta=self.rope_theta,
            tied=self.tied,
        )


# fmt: off
# By size: for vocabularies up to SMALL_VOCABULARY, and for larger ones.
SHAPES: Mapping[str, tuple[BaseShape, BaseShape]] = {
    "1b": (  # TinyLlama 1.1B, Llama-3.2-1B
        BaseShape(width=2048, layers=22, mlp=5632, heads=32, kv_heads=4, context=4096),
        BaseShape(width=2048, layers=16, mlp=8192, heads=32, kv_heads=8, context=8192,
                  rope_theta=500_000.0, tied=True),
    ),
    "7b": (  # Llama-2-7B, Llama-3-8B
        BaseShape(width=4096, layers=32, mlp=11008, heads=32, kv_heads=32, context=4096),
        BaseShape(width=4096, layers=32, mlp=14336, heads=32, kv_heads=8, context=8192,
                  rope_theta=500_000.0),
    ),
}
# fmt: on


def base_model(
    size: BaseSize,
    vocab: str | Path,
    folder: str | Path,
    *,
    report: Report = lambda line: None,
    shapes: Mapping[str, tuple[BaseShape, BaseShape]] = SHAPES,
) -> Path:
    """A GGUF of type Q4_0 in `folder` with the tokenizer of the GGUF at `vocab`.

    Matrices are Q4_0, norms F32; the matrix that the output head multiplies with (the token
    embedding where they are tied) is Q6_K, as llama.cpp's quantiser has it in a Q4_0 file.
    """
    vocab, folder = Path(vocab), Path(folder)
    if size not in shapes:
        raise UsageError(f"no synthetic model of size {size!r}: choose one of {', '.join(shapes)}")
    tokens = _count_tokens(vocab)
    shape = shapes[size][tokens > SMALL_VOCABULARY].with_vocabulary(tokens)
    stem = f"synthetic-{size}-{_digest(_beginning(vocab), repr(shape).encode())}-v{VERSION}"
    found = _whole(folder, stem)
    if found is not None:
        return found
    needed = sum(_bytes(t) for t in _tensors(shape)) + min(vocab.stat().st_size, _BEGINNING)
    _make_room(folder, needed)
    report(f"writing a model of random weights, {needed / 1e9:.1f} GB, into {folder}")
    part = folder / f".{stem}.{os.getpid()}.part"
    try:
        _write(part, f"synthetic-{size}", shape, vocab)
        path = folder / f"{stem}-{part.stat().st_size}.gguf"
        os.replace(part, path)
    except OSError as error:
        raise _unwritten(folder, error) from None
    finally:
        part.unlink(missing_ok=True)
    return path


def adapter(
    size: DeltaSize,
    tokenizer: str | Path,
    folder: str | Path,
    *,
    report: Report = lambda line: None,
) -> Path:
    """An adapter folder in `folder`: a preset's shape, random weights, fp32, int8 and fp16 graphs.

    `tokenizer` is a tokenizer.json or a folder that holds one. The logits' standard deviation is
    about 1. No graph is compared with PyTorch: `cmc-local export` does that for real deltas.
    """
    words, folder = _tokenizer_bytes(Path(tokenizer)), Path(folder)
    tokens = len(from_tokenizer_json(words))
    shape = delta_model.preset(size, vocabulary=tokens, context=DELTA_CONTEXT)
    target = folder / f"synthetic-{size}-{_digest(words, repr(shape).encode())}-v{VERSION}"
    if _loads(target):
        return target
    adapter_folder.check_target(target, overwrite=True)
    _make_room(folder, 8 * _parameters(shape))  # 4 + 2 bytes a weight, and 1 with its scales
    settings = AdapterSettings(
        name=f"synthetic-{size}",
        shape=shape,
        prompt=named_form("cmc"),
        training={"weights": f"random (seed {SEED}), never trained: for benchmarks"},
    )
    files: dict[str, bytes | Path] = {adapter_folder.TOKENIZER_FILE: words}
    files[adapter_folder.CARD_FILE] = _card(settings).encode()
    model = _random_delta(shape)
    for precision, name in adapter_folder.GRAPHS.items():
        report(f"writing the {precision} graph of a {size} delta of random weights")
        files[name] = graph.to_onnx(model, shape.context, adapter_export.STORAGE[precision])
    try:
        return adapter_folder.write(target, settings, files, overwrite=True).path
    except OSError as error:
        raise _unwritten(folder, error) from None


# --- what is there, and whether there is room ------------------------------------------------


def _whole(folder: Path, stem: str) -> Path | None:
    """The file of this name, if it has the size that its name ends with."""
    for path in sorted(folder.glob(f"{stem}-*.gguf")):
        if path.stem.removeprefix(f"{stem}-") == str(path.stat().st_size):
            return path
    return None


def _loads(folder: Path) -> bool:
    if not folder.exists():
        return False
    try:
        adapter_folder.load(folder)
    except AdapterError:
        return False
    return True


def _make_room(folder: Path, needed: int) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise _unwritten(folder, error) from None
    if free < needed:
        raise InputError(
            f"{folder} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed: "
            "make room or choose another folder"
        )


def _unwritten(folder: Path, error: OSError) -> InputError:
    if error.errno == errno.ENOSPC:
        return InputError(f"{folder} has no space left: make room or choose another folder")
    return InputError(f"{folder} cannot be written ({error.strerror}): choose another folder")


def _digest(*parts: bytes) -> str:
    """A short name for what something is made of."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(hashlib.sha256(part).digest())
    return whole.hexdigest()[:12]


# --- the base model --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]
    """As numpy has it: (rows, columns), or (width,) of a norm."""
    type: gguf.GGMLQuantizationType


def _count_tokens(vocab: Path) -> int:
    tokens = gguf_header.read(vocab).metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, gguf_header.Array) or not tokens.length:
        raise GGUFError(f"{vocab} has no vocabulary: give a GGUF model or a ggml-vocab-*.gguf")
    return tokens.length


def _beginning(vocab: Path) -> bytes:
    with vocab.open("rb") as file:
        return file.read(_BEGINNING)


def _write(path: Path, name: str, shape: LlamaShape, vocab: Path) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    try:
        writer.add_name(name)
        writer.add_description("random weights, for benchmarks")
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        gguf_file.add_shape(writer, shape)
        _copy_tokenizer(writer, vocab)
        for tensor in _tensors(shape):
            writer.add_tensor_info(
                tensor.name, tensor.shape, np.dtype(np.float32), _bytes(tensor), tensor.type
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        random = np.random.Generator(np.random.SFC64(SEED))
        for tensor in _tensors(shape):  # one in memory at a time
            writer.write_tensor_data(_values(tensor, random))
    finally:
        writer.close()


def _copy_tokenizer(writer: gguf.GGUFWriter, vocab: Path) -> None:
    """All `tokenizer.*` entries, types kept; several seconds for 128,256 tokens."""
    try:
        fields = gguf.GGUFReader(vocab).fields.values()
        found = [(f, f.contents()) for f in fields if f.name.startswith("tokenizer.")]
    except (ValueError, IndexError, KeyError) as error:  # its weights cut off, say
        raise GGUFError(f"{vocab} is damaged ({error}): download or copy it again") from None
    for field, value in found:
        kind, *inner = field.types
        if not inner:
            writer.add_key_value(field.name, value, kind)
        elif value:  # the writer refuses an empty list
            writer.add_key_value(field.name, value, kind, sub_type=inner[-1])


def _tensors(shape: LlamaShape) -> Iterator[_Tensor]:
    """Every tensor in the order of the file."""
    f32, q4_0, q6_k = (gguf.GGMLQuantizationType[t] for t in ("F32", "Q4_0", "Q6_K"))
    width, heads, mlp = shape.width, shape.heads * shape.head_dim, shape.mlp
    keys = shape.kv_heads * shape.head_dim
    table = (shape.vocabulary, width)
    yield _Tensor("token_embd.weight", table, q6_k if shape.tied else q4_0)
    yield _Tensor("output_norm.weight", (width,), f32)
    if not shape.tied:
        yield _Tensor("output.weight", table, q6_k)
    matrices = {
        "attn_q": (heads, width),
        "attn_k": (keys, width),
        "attn_v": (keys, width),
        "attn_output": (width, heads),
        "ffn_gate": (mlp, width),
        "ffn_up": (mlp, width),
        "ffn_down": (width, mlp),
    }
    for layer in range(shape.layers):
        for name in ("attn_norm", "ffn_norm"):
            yield _Tensor(f"blk.{layer}.{name}.weight", (width,), f32)
        for name, sizes in matrices.items():
            yield _Tensor(f"blk.{layer}.{name}.weight", sizes, q4_0)


def _bytes(tensor: _Tensor) -> int:
    weights, size = gguf.GGML_QUANT_SIZES[tensor.type]  # of a block
    return prod(tensor.shape) // int(weights) * int(size)


def _values(tensor: _Tensor, random: np.random.Generator) -> NDArray[np.uint8]:
    """The tensor's bytes as they lie in the file, (bytes,) uint8."""
    size = _bytes(tensor)
    if tensor.type == gguf.GGMLQuantizationType.F32:
        return np.ones(tensor.shape, "<f4").view(np.uint8)
    raw = random.integers(0, 2**64, size=size // 8 + 1, dtype=np.uint64, endpoint=False)
    values: NDArray[np.uint8] = raw.view(np.uint8)[:size]
    (_q4_0 if tensor.type == gguf.GGMLQuantizationType.Q4_0 else _q6_k)(values)
    return values


def _q4_0(values: NDArray[np.uint8]) -> None:
    """Random bytes to blocks of 32 weights, in place: fp16 scale, 16 bytes of two codes each.

    A weight is `scale * (code - 8)`. The codes' mean is -1/2; scales of random sign take it away,
    which would otherwise add up over a row and drown all else.
    """
    blocks = values.reshape(-1, 18)
    low, high = _half(WEIGHT_DEVIATION / _deviation(16))
    blocks[:, 0] = low
    blocks[:, 1] &= 0x80  # the sign
    blocks[:, 1] |= high


def _q6_k(values: NDArray[np.uint8]) -> None:
    """Random bytes to blocks of 256 weights, in place: 192 bytes of codes, 16 scales, fp16 scale.

    A weight is `scale * scales[j] * (code - 32)`; here `scales[j]` is 8 or -8.
    """
    blocks = values.reshape(-1, 210)
    scales = blocks[:, 192:208].view(np.int8)
    np.copyto(scales, np.where(scales < 0, np.int8(-8), np.int8(8)))
    blocks[:, 208:] = _half(WEIGHT_DEVIATION / _deviation(64) / 8)


def _deviation(codes: int) -> float:
    """Root mean square of `code - codes / 2` where all codes are equally likely."""
    return sqrt(np.mean((np.arange(codes) - codes / 2) ** 2))


def _half(value: float) -> tuple[int, int]:
    """The two bytes of a float16, the lower first."""
    low, high = np.array([value], "<f2").view(np.uint8)
    return int(low), int(high)


# --- the adapter -----------------------------------------------------------------------------


def _tokenizer_bytes(path: Path) -> bytes:
    if path.is_dir():
        path = path / adapter_folder.TOKENIZER_FILE
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise TokenizerError(f"{path} does not exist: give a tokenizer.json") from None
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read ({error.strerror})") from None


def _random_delta(shape: DeltaShape) -> delta_model.LlamaForCausalLM:
    model = delta_model.build(shape, seed=SEED).eval()
    deviation = float(model.config.initializer_range) * sqrt(shape.width)  # of the logits
    model.model.norm.weight.data.fill_(1 / deviation)
    return model


def _parameters(shape: DeltaShape) -> int:
    attention = 2 * (shape.heads + shape.kv_heads) * shape.head_dim
    layer = shape.width * (attention + 3 * shape.mlp + 2)
    return shape.width * (shape.vocabulary + 1) + shape.layers * layer


def _card(settings: AdapterSettings) -> str:
    s = settings.shape
    return (
        f"# {settings.name}\n\n"
        f"A delta of random weights (seed {SEED}), never trained and not verified: it is there to "
        "measure speed with, and what it adds is noise.\n\n"
        f"llama, width {s.width}, {s.layers} layers, {s.heads} heads, mlp {s.mlp}, "
        f"{s.vocabulary:,} tokens, context {s.context:,}.\n"
    )
