"""A GGUF file turned back into the Hugging Face folder that it was made of.

For models that ship as GGUF only: half-precision weights are exactly single-precision ones.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM

from reference import llama


def from_gguf(path: Path, folder: Path, words: Tokenizer) -> LlamaForCausalLM:
    """Write config.json, model.safetensors and tokenizer.json; the model in PyTorch, float32."""
    source = llama.from_gguf(path)
    fields = gguf.GGUFReader(path).fields
    tied = source.weights["head"] is source.weights["embed"]
    config = LlamaConfig(
        vocab_size=len(source.weights["embed"]),
        hidden_size=source.weights["embed"].shape[1],
        intermediate_size=len(source.weights["0.up"]),
        num_hidden_layers=source.layers,
        num_attention_heads=source.heads,
        num_key_value_heads=source.kv_heads,
        head_dim=source.head_dim,
        max_position_embeddings=fields["llama.context_length"].contents(),
        rms_norm_eps=source.epsilon,
        tie_word_embeddings=tied,
        bos_token_id=fields["tokenizer.ggml.bos_token_id"].contents(),
        eos_token_id=fields["tokenizer.ggml.eos_token_id"].contents(),
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict(
        {name: tensor.float() for name, tensor in llama.folder_tensors(source).items()}
    )
    model.save_pretrained(folder)
    words.save(str(folder / "tokenizer.json"))
    return model.eval()


def byte_level_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a GGUF whose vocabulary is a byte-level BPE split in GPT-2's manner."""
    fields = gguf.GGUFReader(path).fields
    names = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    words = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    words.decoder = decoders.ByteLevel()
    types = fields["tokenizer.ggml.token_type"].contents()
    control = [name for name, kind in zip(names, types, strict=True) if kind == 3]
    words.add_special_tokens([AddedToken(name, special=True) for name in control])
    begin = fields["tokenizer.ggml.bos_token_id"].contents()
    words.post_processor = processors.TemplateProcessing(
        f"{names[begin]} $A", special_tokens=[(names[begin], begin)]
    )
    return words


def bundled_tokenizer(models_folder: Path, name: str) -> Tokenizer:
    """The tokenizer of a bundled base model; `template` and `larger` share one."""
    if name == "other":
        return byte_level_tokenizer(models_folder / "other.gguf")
    return Tokenizer.from_file(str(models_folder / "template" / "tokenizer.json"))


def same_spellings(path: Path, words: Tokenizer) -> bool:
    """Whether a GGUF's tokens are spelled as the tokenizer spells them, id by id."""
    names = gguf.GGUFReader(path).fields["tokenizer.ggml.tokens"].contents()
    return names == [words.id_to_token(i) for i in range(words.get_vocab_size())]


def largest_difference(model: LlamaForCausalLM, tokens: list[int], got: torch.Tensor) -> float:
    """Of logits (T, V) from the model's, relative to its largest logit."""
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0]
    return float((got - expected).abs().max() / expected.abs().max())
