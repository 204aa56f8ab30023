"""llama2.c's model and tokenizer files as a Hugging Face llama folder.

The model: seven int32 (dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len), then
float32 weights, each kind for all layers together; the output head is the embedding. Rows of Q and
K are in pairs (the rotary layout of llama.cpp), Hugging Face wants two halves.

The tokenizer: int32 longest token, then for each token float32 score, int32 length, bytes; pieces
are joined by the best score, a lone space comes first.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import LlamaConfig, LlamaForCausalLM

SPACE = "\u2581"


def to_folder(model: Path, words: Path, folder: Path) -> Path:
    """Write config.json, model.safetensors and tokenizer.json."""
    data = model.read_bytes()
    shape = Shape(*struct.unpack_from("<7i", data))
    llama = LlamaForCausalLM(shape.config())
    weights = Reader(np.frombuffer(data, "<f4", offset=28), shape)
    llama.load_state_dict({name: torch.tensor(array) for name, array in weights.tensors()})
    llama.save_pretrained(folder)
    tokenizer(words, shape.vocab).save(str(folder / "tokenizer.json"))
    return folder


@dataclass(frozen=True)
class Shape:
    """The header."""

    dim: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    context: int

    def config(self) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=self.vocab,
            hidden_size=self.dim,
            intermediate_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=self.context,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
        )


class Reader:
    """Takes the weights off in their order."""

    def __init__(self, numbers: NDArray[np.float32], shape: Shape) -> None:
        self._numbers = numbers
        self._at = 0
        self._shape = shape

    def tensors(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """(Hugging Face name, weight)."""
        s = self._shape
        kv = s.dim // s.heads * s.kv_heads
        embedding = self._take(s.vocab, s.dim)
        yield "model.embed_tokens.weight", embedding
        yield "lm_head.weight", embedding
        yield from self._layered("input_layernorm", s.dim)
        yield from self._layered("self_attn.q_proj", s.dim, s.dim, heads=s.heads)
        yield from self._layered("self_attn.k_proj", kv, s.dim, heads=s.kv_heads)
        yield from self._layered("self_attn.v_proj", kv, s.dim)
        yield from self._layered("self_attn.o_proj", s.dim, s.dim)
        yield from self._layered("post_attention_layernorm", s.dim)
        yield from self._layered("mlp.gate_proj", s.hidden, s.dim)
        yield from self._layered("mlp.down_proj", s.dim, s.hidden)
        yield from self._layered("mlp.up_proj", s.hidden, s.dim)
        yield "model.norm.weight", self._take(s.dim)

    def _layered(
        self, name: str, *sizes: int, heads: int = 0
    ) -> Iterator[tuple[str, NDArray[np.float32]]]:
        for i, weight in enumerate(self._take(self._shape.layers, *sizes)):
            yield f"model.layers.{i}.{name}.weight", two_halves(weight, heads) if heads else weight

    def _take(self, *sizes: int) -> NDArray[np.float32]:
        count = int(np.prod(sizes))
        self._at += count
        return self._numbers[self._at - count : self._at].reshape(sizes)


def two_halves(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """One head of four rows: 0, 1, 2, 3 become 0, 2, 1, 3."""
    return rows.reshape(heads, -1, 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def tokenizer(path: Path, size: int) -> Tokenizer:
    """A BPE with byte fallback that joins the pieces of `path` in the order of their scores."""
    pieces = list(_pieces(path.read_bytes(), size))
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    names += [text.decode().replace(" ", SPACE) for text, _ in pieces[len(names) :]]
    ids = {name: i for i, name in enumerate(names)}
    merges = [
        (-score, (name[:cut], name[cut:]))
        for name, (_, score) in list(zip(names, pieces, strict=True))[259:]
        for cut in range(1, len(name))
        if name[:cut] in ids and name[cut:] in ids
    ]
    ordered = [pair for _, pair in sorted(merges, key=lambda merge: merge[0])]
    made = Tokenizer(models.BPE(ids, ordered, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    made.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    made.add_special_tokens([AddedToken(name, special=True) for name in names[:3]])
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return made


def _pieces(data: bytes, size: int) -> Iterator[tuple[bytes, float]]:
    at = 4
    for _ in range(size):
        score, length = struct.unpack_from("<fi", data, at)
        yield data[at + 8 : at + 8 + length], score
        at += 8 + length
