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
