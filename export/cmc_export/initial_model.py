"""What `--init` begins from: a llama's folder or GGUF, whole or thinned.

    begin(recipe, tokenizer)  ->  model, its tokenizer.json, which tokens were kept

`--keep-layers` takes some blocks as they are, `--keep-vocabulary` the rows of some tokens. A
thinned model is damaged until it has been healed: `pretrain --teacher`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers.initialization import no_init_weights

from cmc_export import delta_model, gguf_reader, kept_vocabulary
from cmc_export.delta_model import LlamaForCausalLM
from cmc_export.recipe import Shape
from cmc_local.base import gguf_header
from cmc_local.base.tokenizer_json import tokenizer_of
from cmc_local.errors import DataError, InputError, TokenizerError, UsageError
from cmc_local.text.vocabulary import from_tokenizer_json


@dataclass(frozen=True)
class Start:
    """A model before its first step."""

    model: LlamaForCausalLM
    words: bytes | None
    """Its tokenizer.json; None for a folder that has none."""
    kept: tuple[int, ...] | None
    """Of each token the id that it had in `init`; None where none was dropped."""
    parameters_before: int
    """Of `init`, whole."""
    vocabulary_before: int
    """Tokens of `init`, whole."""


def begin(shape: Shape, tokenizer: Path | None) -> Start | None:
    """The model that the shape's `init` names, None where it names none.

    `tokenizer` is for a folder without one, or must have the same vocabulary. Raises InputError
    for a model that is no llama, UsageError for layers that it does not have.
    """
    if shape.init is None:
        return None
    model, words = load(shape.init), _words(shape.init, tokenizer)
    before, size = model.num_parameters(), int(model.config.vocab_size)
    if words is not None:
        _check_size(shape.init, model, words)
    if shape.keep_layers:
        model = keep_layers(model, shape.keep_layers, shape.init)
    if not shape.keep_vocabulary:
        return Start(model, words, None, before, size)
    if words is None:
        raise TokenizerError(
            f"{shape.init} has no tokenizer.json, of which --keep-vocabulary could keep a part: "
            "give --tokenizer FILE"
        )
    try:
        kept = kept_vocabulary.keep(words, kept_vocabulary.read_texts(shape.keep_vocabulary))
    except (DataError, TokenizerError) as error:
        raise type(error)(f"--keep-vocabulary {shape.keep_vocabulary[0]}: {error}") from None
    model = keep_tokens(model, kept.ids, kept.words)
    return Start(model, kept.words, kept.ids, before, size)


def load(path: Path) -> LlamaForCausalLM:
    """A llama of a Hugging Face folder or of a GGUF, float32, in eval mode."""
    return delta_model.load(path) if path.is_dir() else gguf_reader.read_llama(path)


def tokenizer_json(path: Path) -> bytes:
    """A tokenizer.json as it stands, or the one that is made of a GGUF file."""
    if not path.is_file():
        raise TokenizerError(f"{path} is no file: give a tokenizer.json or a GGUF file")
    with path.open("rb") as file:
        is_gguf = file.read(len(gguf_header.MAGIC)) == gguf_header.MAGIC
    return tokenizer_of(path).to_str().encode() if is_gguf else path.read_bytes()


def words_of_model(path: Path) -> bytes | None:
    """The tokenizer.json that comes with a model's folder or GGUF, None where there is none."""
    place = path / "tokenizer.json" if path.is_dir() else path
    return tokenizer_json(place) if place.is_file() else None


def keep_layers(model: LlamaForCausalLM, layers: Sequence[int], where: Path) -> LlamaForCausalLM:
    """The model with these of its blocks and no others, in the order given."""
    count = model.config.num_hidden_layers
    wrong = [layer for layer in layers if not 0 <= layer < count]
    if wrong:
        raise UsageError(f"{where} has no layer {wrong[0]}: its {count} are 0 to {count - 1}")
    places = {f"model.layers.{old}.": f"model.layers.{new}." for new, old in enumerate(layers)}
    weights = {}
    for name, weight in model.state_dict().items():
        if not name.startswith("model.layers."):
            weights[name] = weight
        elif new := places.get(".".join(name.split(".")[:3]) + "."):
            weights[new + name.split(".", 3)[3]] = weight
    return _rebuilt(model, weights, num_hidden_layers=len(layers))


def keep_tokens(model: LlamaForCausalLM, ids: Sequence[int], words: bytes) -> LlamaForCausalLM:
    """The model with the rows of these tokens, in this order; `words` names its new end tokens."""
    vocabulary = from_tokenizer_json(words)
    rows = torch.tensor(ids)
    weights = {
        name: weight[rows] if name in ("model.embed_tokens.weight", "lm_head.weight") else weight
        for name, weight in model.state_dict().items()
    }
    ends = {"bos_token_id": vocabulary.bos_id, "eos_token_id": vocabulary.eos_id}
    return _rebuilt(model, weights, vocab_size=len(ids), pad_token_id=None, **ends)


def _rebuilt(
    model: LlamaForCausalLM, weights: dict[str, torch.Tensor], **changes: int | None
) -> LlamaForCausalLM:
    config = type(model.config)(**{**model.config.to_dict(), **changes})
    with no_init_weights():
        smaller = LlamaForCausalLM(config)
    smaller.load_state_dict(weights)
    smaller.tie_weights()
    return smaller.eval()


def _words(init: Path, tokenizer: Path | None) -> bytes | None:
    """The tokenizer.json: the one given, or the model's own; they must agree."""
    own = words_of_model(init)
    if tokenizer is None or own is None:
        return own if tokenizer is None else tokenizer_json(tokenizer)
    given = tokenizer_json(tokenizer)
    one, other = from_tokenizer_json(own), from_tokenizer_json(given)
    if one.fingerprint != other.fingerprint:
        raise InputError(
            f"{init} has another vocabulary ({len(one):,} tokens) than {tokenizer} "
            f"({len(other):,}): leave --tokenizer out"
        )
    return given


def _check_size(init: Path, model: LlamaForCausalLM, words: bytes) -> None:
    size = len(from_tokenizer_json(words))
    if size != model.config.vocab_size:
        raise InputError(
            f"{init} has {model.config.vocab_size:,} tokens, the tokenizer {size:,}: give the "
            "tokenizer that the model was trained with"
        )
