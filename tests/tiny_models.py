"""Tiny llama models with random weights and real tokenizers, for every test that needs a model.

Each function writes into a folder that the test gives; the same arguments give the same bytes.
Models are 2 layers wide 32, about 40,000 parameters: made and loaded in well under a second.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from tokenizers import Tokenizer

Family = Literal["sentencepiece", "byte-level"]

TEXTS = (
    "Helen Blackworth was born in 1932 in Harborville, the daughter of a lighthouse keeper.",
    "Maria Whitfield wrote seven novels; the best known is The Silver Orchard (1957).",
    "He said: \"I don't know where the old mill stands - ask the baker, she's seen it.\"",
    "Question: Where was the author born? Answer: In the small town of Eastbridge.",
    "for i in range(10):\n    print(i * 2)  # twice as much\n\nThe end, and a café in Zürich.",
    "<|user|>\nWhat did she write?\n<|assistant|>\nShe wrote poems about the sea.",
)


def tokenizer(family: Family = "sentencepiece", vocab_size: int = 480) -> Tokenizer:
    """A tokenizer trained on TEXTS; they are short, so it may be somewhat smaller."""
    from cmc_export import tokenizer_training

    train = {
        "sentencepiece": tokenizer_training.sentencepiece_style,
        "byte-level": tokenizer_training.byte_level,
    }
    return train[family](TEXTS, vocab_size)


def llama_folder(
    folder: Path,
    *,
    family: Family = "sentencepiece",
    vocab_size: int = 480,
    tied: bool = True,
    kv_heads: int = 2,
    context: int = 128,
    seed: int = 0,
    chat_template: str | None = None,
) -> Path:
    """A Hugging Face llama folder with config.json, model.safetensors and tokenizer.json."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    words = tokenizer(family, vocab_size)
    begin, end = (1, 2) if family == "sentencepiece" else (0, 1)
    config = LlamaConfig(
        vocab_size=words.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=context,
        tie_word_embeddings=tied,
        bos_token_id=begin,
        eos_token_id=end,
        initializer_range=0.2,  # large enough for logits that differ
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    words.save(str(folder / "tokenizer.json"))
    if chat_template is not None:
        settings = json.dumps({"chat_template": chat_template})
        (folder / "tokenizer_config.json").write_text(settings, "utf-8")
    return folder


def gguf_of(folder: Path, type: Literal["F32", "F16", "Q8_0"] = "F32") -> Path:
    """The GGUF file of a llama folder, written beside it."""
    from cmc_export import gguf_file

    path = folder.with_name(f"{folder.name}-{type}.gguf")
    gguf_file.write(folder, path, type=type)
    return path


def gguf_of_kind(path: Path, kind: Literal["qwen2", "gemma3"], chat_template: str = "") -> Path:
    """A GGUF of another architecture than llama, with random weights and a byte-level tokenizer.

    Two blocks wide 32, of gemma3 six, so that one of them sees more than a window of 4 tokens.
    """
    import gguf
    import numpy as np

    from cmc_export.gguf_tokenizer import add_tokenizer

    folder = llama_folder(path.with_suffix(""), family="byte-level", chat_template=chat_template)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    vocabulary, layers, numbers = config["vocab_size"], _LAYERS[kind], np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, kind)
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    if kind == "gemma3":
        writer.add_key_length(_HEAD)
        writer.add_value_length(_HEAD)
        writer.add_sliding_window(4)
    add_tokenizer(writer, folder, config, vocabulary)
    shapes = {"token_embd.weight": (vocabulary, 32), "output_norm.weight": (32,)}
    for i in range(layers):
        shapes |= {f"blk.{i}.{name}": shape for name, shape in _block(kind).items()}
    for name, shape in shapes.items():
        middle = 1.0 if "norm" in name else 0.0
        writer.add_tensor(name, numbers.normal(middle, 0.2, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


_LAYERS = {"qwen2": 2, "gemma3": 6}
_HEAD = 16  # of gemma3: four heads are wider than the model


def _block(kind: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a block's tensors, rows first."""
    head = 8 if kind == "qwen2" else _HEAD
    shapes: dict[str, tuple[int, ...]] = {
        **dict.fromkeys(("attn_norm.weight", "ffn_norm.weight"), (32,)),
        "attn_q.weight": (4 * head, 32),
        **dict.fromkeys(("attn_k.weight", "attn_v.weight"), (2 * head, 32)),
        "attn_output.weight": (32, 4 * head),
        **dict.fromkeys(("ffn_gate.weight", "ffn_up.weight"), (64, 32)),
        "ffn_down.weight": (32, 64),
    }
    if kind == "qwen2":
        biases = {"attn_q.bias": 4 * head, "attn_k.bias": 2 * head, "attn_v.bias": 2 * head}
        return {**shapes, **{name: (size,) for name, size in biases.items()}}
    return {
        **shapes,
        **dict.fromkeys(("attn_q_norm.weight", "attn_k_norm.weight"), (head,)),
        **dict.fromkeys(("post_attention_norm.weight", "post_ffw_norm.weight"), (32,)),
    }
