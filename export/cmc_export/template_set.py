"""The templates of a recipe: what each of them is (`describe`), and its weights (`open_template`).

A template is a Hugging Face folder or a GGUF file; nothing here trains or reads data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from cmc_export import templates
from cmc_export.beside import Beside
from cmc_export.carrying import Carry
from cmc_export.examples import Side
from cmc_export.frozen import frozen, parse_with_adapter
from cmc_export.gguf_template import GgufTemplate
from cmc_export.loop import on_cpu, use_bf16
from cmc_export.processes import own_gpu
from cmc_export.recipe import TrainRecipe
from cmc_local import base_header, token_map
from cmc_local.base_library import offloads_to_gpu
from cmc_local.base_threads import usable_cores
from cmc_local.delta_tokenizer import DeltaTokenizer
from cmc_local.errors import InputError, TokenizerError
from cmc_local.tokenizer_from_gguf import tokenizer_of

CHECKED_TEXTS = 200
"""Texts of the data on which a GGUF's tokenizer is compared with llama.cpp."""


@dataclass(frozen=True)
class Source:
    """A template before its weights are read."""

    path: Path

    @property
    def is_gguf(self) -> bool:
        """A file is a GGUF, a folder Hugging Face's."""
        return self.path.is_file()

    @property
    def name(self) -> str:
        """Its name in cards and summaries."""
        return self.path.stem if self.is_gguf else self.path.resolve().name

    @cached_property
    def tokenizer_json(self) -> bytes:
        """Its tokenizer.json: the folder's, or one made of the GGUF."""
        if self.is_gguf:
            return tokenizer_of(self.path).to_str().encode()
        if not self.path.is_dir():
            raise InputError(
                f"{self.path} is no folder and no file: give a GGUF file or a Hugging Face model "
                "folder"
            )
        return templates.tokenizer_file(self.path).read_bytes()

    @cached_property
    def side(self) -> Side:
        """Its tokenizer and context."""
        words = self.tokenizer_json
        try:
            return Side(DeltaTokenizer(words), self._context)
        except TokenizerError as error:
            raise TokenizerError(f"{self.path}: {error}") from None

    @property
    def parameters(self) -> int:
        """How many numbers it has."""
        if self.is_gguf:
            return base_header.read(self.path).parameters
        return templates.parameter_count(self.path)

    @property
    def _context(self) -> int:
        if not self.is_gguf:
            return templates.template_context(self.path)
        found = base_header.read(self.path).metadata
        return int(found.get(f"{found.get('general.architecture')}.context_length", 2**31))


def open_template(
    source: Source,
    recipe: TrainRecipe,
    tokenizer: DeltaTokenizer,
    *,
    longest: int,
    texts: Sequence[str],
) -> Beside:
    """One template with its weights, and the deltas of `with_adapter` on it.

    `longest` is the longest row in its tokens; on `texts` a GGUF's tokenizer is checked.
    """
    device = torch.device("cpu") if on_cpu(recipe) else own_gpu()
    delta, own = tokenizer.vocabulary, source.side.tokenizer.vocabulary
    carry = None
    if own.fingerprint != delta.fingerprint:
        found = token_map.build(own, delta, encode=tokenizer.encode)
        carry = Carry(found, device)
    chosen = [parse_with_adapter(text) for text in recipe.with_adapter]
    normalize = recipe.normalization != "add"
    ahead = source.is_gguf and runs_ahead(recipe)
    model: templates.Template
    if source.is_gguf:
        model = GgufTemplate(
            source.path,
            len(own),
            longest=longest,
            threads=template_threads(recipe),
            gpu_layers=recipe.template_gpu_layers,
            normalize=normalize,
        )
        model.check_tokenizer(source.side.tokenizer, texts)
    else:
        model = templates.FolderTemplate(
            source.path,
            len(own),
            device=device,
            dtype=template_dtype(recipe),
            normalize=normalize,
            device_map=recipe.template_device_map,
        )
    return Beside(
        model,
        carry,
        [frozen(folder, delta, device, alpha) for folder, alpha in chosen],
        cache_bytes=recipe.cache_mb * 2**20 // len(recipe.template),
        ahead=ahead,
    )


def runs_ahead(recipe: TrainRecipe) -> bool:
    """Whether a GGUF template works on the next batch while the delta learns from this one.

    It does unless both would have to share one processor core.
    """
    return usable_cores() > 1 or not on_cpu(recipe) or offloads_to_gpu()


def template_threads(recipe: TrainRecipe) -> int:
    """Threads of a GGUF template: half of the cores where the delta learns on the others."""
    shares = on_cpu(recipe) and runs_ahead(recipe)
    return recipe.template_threads or max(1, usable_cores() // (2 if shares else 1))


def template_dtype(recipe: TrainRecipe) -> torch.dtype:
    """bf16 where the hardware has it, unless the recipe says otherwise."""
    bf16 = use_bf16(recipe, recipe.template_precision)
    return torch.bfloat16 if bf16 else torch.float32
