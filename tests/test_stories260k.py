"""A real model that is not ours, steered by a delta with a vocabulary that is not its own.

llama2.c's stories260K (512 tokens) and a random delta with the Llama-2 tokenizer (32,000 tokens).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import llama_cpp
import pytest
import torch

import llama2c
from cmc_export import adapter_export, delta_model, gguf_file
from cmc_export.adapter_export import Choices
from cmc_local.delta.adapter import DeltaShape
from cmc_local.model.steered import SteeredModel
from cmc_local.settings import Limits, Sampling
from cmc_local.text.prompts import named_form

PROMPT = "Once upon a time"
GREEDY = Sampling(temperature=0, max_tokens=40)


@pytest.fixture(scope="module")
def stories(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = shared_data / "models" / "stories260K"
    folder = tmp_path_factory.mktemp("stories") / "stories260K"
    llama2c.to_folder(source / "stories260K.bin", source / "tok512.bin", folder)
    gguf_file.write(folder, folder.with_suffix(".gguf"), type="F32")
    return folder.with_suffix(".gguf")


@pytest.fixture(scope="module")
def llama2_adapter(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer of width 32; the weights are large enough for the shift to be felt."""
    place = tmp_path_factory.mktemp("delta")
    shape = DeltaShape(
        vocabulary=32_000, width=32, layers=1, heads=2, kv_heads=2, head_dim=16, mlp=64, context=256
    )
    model = delta_model.build(shape, bos_id=1, eos_id=2, seed=3)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(30)
    model.save_pretrained(place / "checkpoint")
    choices = Choices(
        prompt=named_form("cmc"),
        tokenizer=shared_data / "tokenizers" / "llama2" / "tokenizer.json",
        precisions=("fp32",),
    )
    done = adapter_export.export(place / "checkpoint", place / "llama2-delta", choices)
    return done.adapter.path


@pytest.fixture
def steered(stories: Path, llama2_adapter: Path) -> Iterator[SteeredModel]:
    with SteeredModel.load(
        stories, [llama2_adapter], limits=Limits(context=256), threads=1, gpu_layers=0
    ) as model:
        yield model


def by_llama_cpp(gguf: Path) -> list[int]:
    """The greedy reply of llama.cpp alone."""
    alone = llama_cpp.Llama(
        str(gguf), n_ctx=256, n_threads=1, n_threads_batch=1, n_gpu_layers=0, verbose=False
    )
    tokens: list[int] = []
    for token in alone.generate(alone.tokenize(PROMPT.encode()), temp=0.0):
        if token == alone.token_eos() or len(tokens) == GREEDY.max_tokens:
            break
        tokens.append(token)
    return tokens


def test_the_story_is_about_lily(stories: Path) -> None:
    with SteeredModel.load(stories, limits=Limits(context=256), threads=1) as model:
        told = model.generate(PROMPT, GREEDY, base_prompt="raw")
    assert told.text.startswith(", there was a little girl named Lily")


def test_alpha_zero_is_the_plain_model_token_for_token(steered: SteeredModel) -> None:
    plain = by_llama_cpp(steered.base.path)  # type: ignore[attr-defined]
    off = steered.generate(PROMPT, GREEDY, alphas=0.0, base_prompt="raw")
    assert len(plain) > 10
    assert list(off.tokens) == plain


def test_the_delta_steers_it(steered: SteeredModel) -> None:
    plain = steered.generate(PROMPT, GREEDY, alphas=0.0, base_prompt="raw")
    told = steered.generate(PROMPT, GREEDY, base_prompt="raw")
    assert told.tokens
    assert told.tokens != plain.tokens
    assert steered.generate(PROMPT, GREEDY, base_prompt="raw").tokens == told.tokens
